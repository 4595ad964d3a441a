"""`TARGETS`: every form in which a mixture can be handed over. Adding one is a function and an entry here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from taskpgm.data.messages import Conversation
from taskpgm.export.arrow import write_datasets, write_parquet
from taskpgm.export.axolotl import write_axolotl
from taskpgm.export.carry import PARTS, Learned, Part
from taskpgm.export.handover import By, Handover, Written
from taskpgm.export.llama_factory import unfit_for_llama_factory, write_llama_factory
from taskpgm.export.mds import write_mds
from taskpgm.export.ms_swift import write_ms_swift
from taskpgm.export.nvidia import write_megatron, write_nemo_automodel
from taskpgm.export.open_instruct import write_open_instruct
from taskpgm.export.other_trainers import write_tinker, write_torchtune, write_verl
from taskpgm.export.plain import write_openai, write_plain_jsonl, write_weights
from taskpgm.export.trl import write_trl, write_unsloth

ALL = frozenset(PARTS)
TEMPLATED = frozenset[Part](("tools", "tool calls", "names"))
NONE = frozenset[Part]()
ANY: frozenset[Learned] = frozenset(("all", "last", "flags"))
ONE: frozenset[Learned] = frozenset(("all", "last"))
EVERY: frozenset[Learned] = frozenset(("all",))


def takes_every_row(row: Conversation) -> str | None:
    """No row is refused for its turns."""
    return None


@dataclass(frozen=True)
class Target:
    """A trainer or format."""

    title: str
    write: Callable[[Handover, Path], Written]  # writes its files to a folder that is there and empty
    carries: frozenset[Part]  # of a row, beyond roles and texts
    learns: frozenset[Learned]  # which answers it can be told to learn
    by: tuple[By, ...] = ("rows",)
    needs: str = ""  # a package, beyond the core, that writing takes
    unfit: Callable[[Conversation], str | None] = field(default=takes_every_row)  # why it cannot take a row


TARGETS: dict[str, Target] = {
    "jsonl": Target("train.jsonl as a run writes it, and by task", write_plain_jsonl, ALL, ANY),
    "openai": Target("JSON Lines for OpenAI's fine-tuning and others like it", write_openai, TEMPLATED, ANY),
    "datasets": Target("datasets, saved to disk", write_datasets, ALL, ANY, ("rows", "counts"), "datasets"),
    "parquet": Target("Parquet", write_parquet, ALL, ANY, needs="pyarrow"),
    "trl": Target("TRL's sft", write_trl, ALL, ANY, ("rows", "shares")),
    "unsloth": Target("Unsloth, a script", write_unsloth, ALL, EVERY),
    "llama-factory": Target(
        "LLaMA-Factory", write_llama_factory, frozenset(("tools", "tool calls")), ONE, ("rows", "counts"),
        unfit=unfit_for_llama_factory,
    ),
    "axolotl": Target("Axolotl 0.20 and newer", write_axolotl, ALL, ANY),
    "ms-swift": Target("ms-swift", write_ms_swift, frozenset(("tools", "tool calls")), ANY, ("rows", "counts")),
    "open-instruct": Target("open-instruct", write_open_instruct, TEMPLATED, EVERY, ("rows", "counts")),
    "nemo-automodel": Target("NVIDIA NeMo-Automodel", write_nemo_automodel, ALL, ONE),
    "megatron": Target("Megatron-LM, a blend list", write_megatron, ALL, ANY),
    "verl": Target("verl's SFT trainer", write_verl, NONE, EVERY, needs="pyarrow"),
    "torchtune": Target("torchtune, the dataset of a recipe", write_torchtune, NONE, EVERY),
    "tinker": Target("Tinker's cookbook", write_tinker, NONE, ONE),
    "mds": Target("MDS shards of mosaicml-streaming", write_mds, ALL, ANY, ("rows", "counts"), "streaming"),
    "weights": Target("the shares alone, as JSON, YAML and CSV", write_weights, ALL, ANY),
}  # fmt: skip
