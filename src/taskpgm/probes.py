"""`Probe`: one adapter, its files in PEFT's format, and the model under it."""

import contextlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskpgm.adapters import low_rank, patched
from taskpgm.config import LoraConfig
from taskpgm.errors import UserError, first_line
from taskpgm.lm import LanguageModel, out_of_memory

WEIGHTS, SETTINGS, TRAINING = "adapter_model.safetensors", "adapter_config.json", "training.json"


@dataclass(frozen=True)
class Probe:
    """A task's adapter: PEFT settings and weights on the CPU, and how training went."""

    task: str
    seed: int  # which of `probes.seeds`
    settings: Any  # peft.LoraConfig
    weights: dict[str, Tensor]
    losses: tuple[float, ...] = ()  # mean response loss of every step, nats a token
    trained_tokens: int = 0  # tokens that went through the training pass, prompts included

    @property
    def name(self) -> str:
        """Name of the adapter inside the model (PEFT takes no dots)."""
        return f"{self.task.replace('.', '~')}__{self.seed}"

    def first_layer(self, depth: int) -> int:
        """Lowest decoder layer that the adapter changes; 0 where it reaches outside of the layers."""
        found = [re.search(r"\.(?:layers|h|blocks?|layer)\.(\d+)\.", key) for key in self.weights]
        return min((int(m.group(1)) if m else 0 for m in found), default=depth - 1)

    @property
    def changes_head(self) -> bool:
        """Whether the adapter changes the output embedding or a module as a whole."""
        return any("lm_head" in key or "embed" in key or "wte" in key for key in self.weights)

    def save(self, folder: Path, **facts: Any) -> None:
        """Write PEFT's files and `training.json`, which also gets `facts`, into an existing folder."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        try:
            save_file(self.weights, folder / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk comes as one of these
            raise OSError(f"{folder / WEIGHTS}: {error}") from error
        self.settings.save_pretrained(str(folder))
        record = {
            "task": self.task,
            "seed": self.seed,
            "trained_tokens": self.trained_tokens,
            **facts,
            "losses": self.losses,
        }
        (folder / TRAINING).write_text(json.dumps(record) + "\n")


def load_probe(folder: Path, task: str, seed: int = 0) -> Probe:
    """Probe from a folder in PEFT format, written by this tool or by the user's own training.

    Raises:
        UserError: no LoRA adapter there, or its weights are not safetensors.
    """
    from peft import PeftConfig
    from safetensors.torch import load_file

    if not (folder / SETTINGS).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(
            f"Task {task!r}: adapter {folder} needs {SETTINGS} and {WEIGHTS}; save it with PEFT's save_pretrained."
        )
    try:
        settings = PeftConfig.from_pretrained(str(folder))
        weights = load_file(folder / WEIGHTS)
    except Exception as error:
        raise UserError(f"Task {task!r}: adapter {folder} cannot be read ({error}); save it again.") from error
    if settings.peft_type != "LORA" or settings.bias != "none" or settings.modules_to_save:
        raise UserError(
            f"Task {task!r}: adapter {folder} is {settings.peft_type}, bias={getattr(settings, 'bias', None)!r}; "
            "probes are LoRA without biases or whole modules. Leave `adapter` out to train one."
        )
    record = json.loads((folder / TRAINING).read_text()) if (folder / TRAINING).is_file() else {}
    return Probe(task, seed, settings, weights, tuple(record.get("losses", ())), record.get("trained_tokens", 0))


def lora_settings(lm: LanguageModel, lora: LoraConfig) -> Any:
    """PEFT's LoraConfig for this model: explicit module names, and the last layers where asked for.

    Raises:
        UserError: a target module that no decoder layer has, or more last layers than the model has.
    """
    import peft

    depth = len(lm.layers)
    if (lora.last_layers or 0) > depth:
        raise UserError(f"probes.lora.last_layers is {lora.last_layers}, but {lm.name!r} has {depth} layers; lower it.")
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in lm.layers.named_modules()
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
    }
    targets = linear if lora.target_modules == "all-linear" else set(lora.target_modules)
    if unknown := targets - linear:
        raise UserError(
            f"probes.lora.target_modules names {sorted(unknown)[0]!r}, which no layer of {lm.name!r} has; "
            f"its linear modules are {', '.join(sorted(linear))}."
        )
    last = None if lora.last_layers is None else list(range(depth - lora.last_layers, depth))
    conv = any(type(module).__name__ == "Conv1D" for module in lm.layers.modules())
    return peft.LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, target_modules=sorted(targets), layers_to_transform=last,
        task_type="CAUSAL_LM", fan_in_fan_out=conv, base_model_name_or_path=lm.name,
    )  # fmt: skip


Use = Callable[["Probe | None"], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def installed(lm: LanguageModel, probes: Sequence[Probe]) -> Iterator[Use]:
    """Within, the model carries these probes; `with use(probe)` it is under one of them, else it is the base model.

    Raises:
        UserError: an adapter that does not fit the model.
    """
    try:
        updates = {p.name: low_rank(lm.model, p.settings, p.weights) for p in probes}
    except ValueError as error:
        raise _misfit(probes, lm, first_line(error)) from error
    plain = {name: update for name, update in updates.items() if update is not None}
    with (
        patched(list(plain.values())) as switch,
        _peft_installed(lm, [p for p in probes if p.name not in plain]) as peft,
    ):

        def use(probe: Probe | None) -> contextlib.AbstractContextManager[None]:
            if probe is None or probe.name in plain:
                return switch.use(plain[probe.name] if probe else None)
            return _peft_switched(peft, probe)

        yield use


@contextlib.contextmanager
def _peft_installed(lm: LanguageModel, probes: Sequence[Probe]) -> Iterator[Any]:
    """Within, the model carries these probes as PEFT adapters, none of them active."""
    from peft import PeftModel, set_peft_model_state_dict

    peft_model = None
    try:
        with peft_quiet():
            for probe in probes:
                try:
                    if peft_model is None:
                        peft_model = PeftModel(lm.model, probe.settings, adapter_name=probe.name)
                    else:
                        peft_model.add_adapter(probe.name, probe.settings)
                    loaded = set_peft_model_state_dict(peft_model, probe.weights, adapter_name=probe.name)
                except (ValueError, RuntimeError) as error:
                    if out_of_memory(error):
                        raise
                    raise _misfit([probe], lm, first_line(error)) from error
                if strange := _not_matched(loaded, probe):
                    raise _misfit([probe], lm, strange)
        lm.model.requires_grad_(False)
        if peft_model is not None:
            peft_model.base_model.disable_adapter_layers()
        yield peft_model
    finally:
        if peft_model is not None:
            peft_model.unload()


@contextlib.contextmanager
def _peft_switched(peft_model: Any, probe: Probe) -> Iterator[None]:
    peft_model.set_adapter(probe.name)
    peft_model.base_model.enable_adapter_layers()
    try:
        yield
    finally:
        peft_model.base_model.disable_adapter_layers()


def _not_matched(loaded: Any, probe: Probe) -> str | None:
    """First weight that only the model or only the adapter has."""
    missing = [key for key in loaded.missing_keys if f".{probe.name}." in key and "lora_" in key]
    return next(iter([*loaded.unexpected_keys, *missing]), None)


def _misfit(probes: Sequence[Probe], lm: LanguageModel, why: str) -> UserError:
    tasks = " or ".join(repr(probe.task) for probe in probes[:3])
    return UserError(f"The adapter of task {tasks} does not fit {lm.name!r} ({why}); is it of the same base?")


@contextlib.contextmanager
def peft_quiet() -> Iterator[None]:
    """Within, PEFT's warnings are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
