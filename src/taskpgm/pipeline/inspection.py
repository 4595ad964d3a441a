"""What `check` finds, and what a run begins with: rows and their lengths, and the model by its shapes."""

from typing import TYPE_CHECKING, NamedTuple

from taskpgm.config import Config
from taskpgm.data.pool import TaskPool, load_tasks
from taskpgm.lm.checkpoint import limits_of, read_skeleton
from taskpgm.progress import QUIET, Progress

if TYPE_CHECKING:
    from taskpgm.data.chat import ChatEncoder


class Inspection(NamedTuple):
    """What `check` shows and a run begins with."""

    pool: TaskPool
    encoder: "ChatEncoder"  # of its rows
    runnable: bool  # there is a model beside the tokenizer
    notes: list[str]  # on the model, and on the adapters that were brought


def inspect(config: Config, progress: Progress = QUIET) -> Inspection:
    """All rows and their lengths, the model by its shapes, and brought adapters on it; no weight of the model is read.

    Raises:
        UserError: what a run would raise for its model, its adapters or its data.
    """
    from taskpgm.data.chat import ChatEncoder
    from taskpgm.lm.checkpoint import load_tokenizer
    from taskpgm.probes.probe import check_adapters

    with progress.stage("checking the model"):
        tokenizer = load_tokenizer(config.model)
        skeleton = read_skeleton(config.model)
        notes = check_adapters(config, skeleton)
    if skeleton is None:
        notes.append(f"{config.model.path} holds only a tokenizer: rows can be counted, but a run needs the model")
    encoder = ChatEncoder(tokenizer, config.probes.max_length, limits_of(skeleton) if skeleton is not None else None)
    return Inspection(load_tasks(config, encoder.lengths, progress), encoder, skeleton is not None, notes)
