"""What `check` finds, and what a run begins with: rows and their lengths, and the model by its shapes."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from taskpgm.chat.template import DAY
from taskpgm.config import Config
from taskpgm.errors import NO_RAY, UserError
from taskpgm.lm.checkpoint import limits_of, read_skeleton
from taskpgm.pool.meter import Memory
from taskpgm.pool.remembered import LengthFile
from taskpgm.pool.rowfiles import LengthsOf
from taskpgm.pool.task_pool import TaskPool, load_tasks
from taskpgm.progress import QUIET, Progress

if TYPE_CHECKING:
    from taskpgm.chat.encoder import ChatEncoder

DATED = f"the chat template writes the day's date; probes and evaluation read {DAY:%d %b %Y}, so rows stay the same"


class Inspection(NamedTuple):
    """What `check` shows and a run begins with."""

    pool: TaskPool
    encoder: "ChatEncoder"  # of its rows
    runnable: bool  # there is a model beside the tokenizer
    notes: list[str]  # on the model, and on the adapters that were brought


def inspect(config: Config, progress: Progress = QUIET, folder: Path | None = None, exact: bool = False) -> Inspection:
    """All rows, lengths of some of each set, the model by its shapes, and brought adapters on it.

    No weight of the model is read.

    Args:
        folder: where a temporary folder is made for the rows; the system's own place if left out.
        exact: measure every row.

    Raises:
        UserError: what a run would raise for its model, its adapters, the layers that these are on, or its data.
    """
    from taskpgm.chat.encoder import ChatEncoder
    from taskpgm.lm.checkpoint import load_tokenizer
    from taskpgm.lm.loading import decoder_layers
    from taskpgm.lm.model import LanguageModel
    from taskpgm.probes.adapted import check_new_adapters
    from taskpgm.probes.probe import check_adapters

    with progress.stage("checking the model"):
        tokenizer = load_tokenizer(config.model)
        skeleton = read_skeleton(config.model)
        notes = check_adapters(config, skeleton)
        if skeleton is not None:
            lm = LanguageModel(skeleton, tokenizer, config.model.path, decoder_layers(skeleton))
            notes += check_new_adapters(lm, config.probes.lora)
    if skeleton is None:
        notes.append(f"{config.model.path} holds only a tokenizer: rows can be counted, but a run needs the model")
    if "strftime_now" in str(tokenizer.chat_template or ""):
        notes.append(DATED)
    encoder = ChatEncoder(tokenizer, config.probes.max_length, limits_of(skeleton) if skeleton is not None else None)
    pool = load_tasks(config, encoder.lengths, progress, folder, LengthFile(lambda: encoder.fingerprint), exact)
    return Inspection(pool, encoder, skeleton is not None, notes)


def stops_here(config: Config) -> str | None:
    """What a run on this machine would stop at, though rows and model are in order; None if nothing."""
    from taskpgm.lm.devices import choose_device

    if config.workers.backend == "ray":  # whose driver needs no device
        return None if find_spec("ray") else NO_RAY
    try:
        choose_device(config.model.device)
    except UserError as error:
        return str(error)
    return None


def late_lengths(config: Config) -> tuple[LengthsOf, Memory]:
    """Lengths of conversations by an encoder that is made when the first are asked for, and those of earlier runs."""

    @cache
    def encoder() -> "ChatEncoder":
        from taskpgm.chat.encoder import ChatEncoder
        from taskpgm.lm.checkpoint import load_tokenizer

        skeleton = read_skeleton(config.model)
        limits = limits_of(skeleton) if skeleton is not None else None
        return ChatEncoder(load_tokenizer(config.model), config.probes.max_length, limits)

    return lambda rows: encoder().lengths(rows), LengthFile(lambda: encoder().fingerprint)
