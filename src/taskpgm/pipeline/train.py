"""`train`: the model trained on a finished run's rows, for those who have no trainer of their own; TRL does the work.

OUT/training.json    what is trained, on what; at the end what came out
OUT/checkpoints/     while it trains
OUT/adapter/         PEFT's files, at the end; or OUT/model/, transformers' files, of a training of every weight
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskpgm.config import Config
from taskpgm.errors import UserError
from taskpgm.files import atomic_folder, digest, write_json
from taskpgm.lm.engine import Engine
from taskpgm.pipeline.directory import RunDirectory, differing
from taskpgm.pipeline.finished import FinishedDirectory, load_run
from taskpgm.pool.drawing import peek
from taskpgm.progress import Progress, plain_lines
from taskpgm.system import Clock, environment

if TYPE_CHECKING:
    from taskpgm.chat.encoder import Encoded
    from taskpgm.trainer.sft import SftSettings

RECORD, CHECKPOINTS = "training.json", "checkpoints"


@dataclass(frozen=True)
class TrainOptions:
    """How a run's model is trained. The rest is the run's: rows and their order, adapter, longest row, seed."""

    full: bool = False  # every weight, instead of an adapter on all layers
    learning_rate: float | None = None  # peak; 2e-4, or 2e-5 of every weight
    batch: int = 16  # rows of a step
    epochs: int = 1  # passes over the training set; the repeats of the plan are in it
    shuffle: bool = False  # False: in the order of train.jsonl, every task spread evenly

    def __post_init__(self) -> None:
        for name, value in (("batch", self.batch), ("epochs", self.epochs)):
            if value < 1:
                raise UserError(f"{name} is {value}; give at least 1.")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise UserError(f"The learning rate is {self.learning_rate:g}; give one above 0, such as {self.rate:g}.")

    @property
    def rate(self) -> float:
        """The learning rate that is used if none is given."""
        return 2e-5 if self.full else 2e-4


@dataclass(frozen=True)
class Trained:
    """A model that was trained on a run's rows."""

    folder: Path  # of PEFT's or transformers' files
    full: bool
    settings: dict[str, Any]  # all of them, as they were shown before the start
    losses: tuple[float, ...]  # of every step: mean over its response tokens, nats a token
    seconds: float  # of the last start

    @property
    def loading(self) -> str:
        """Python that loads it."""
        name = "AutoModelForCausalLM" if self.full else "AutoPeftModelForCausalLM"
        package = "transformers" if self.full else "peft"
        return f'from {package} import {name}; model = {name}.from_pretrained("{self.folder.as_posix()}")'


def train(
    run: Path | str, out: Path | str | None = None, options: TrainOptions | None = None,
    progress: Progress | None = None,
) -> Trained:  # fmt: skip
    """The model of the finished run directory `run`, trained on its training set by TRL's SFTTrainer.

    The loss is that of answers alone, with the masks that probes have. Stopped at any moment and started again, it goes
    on from its last checkpoint. What is done already is not done again.

    Args:
        run: a run directory with a mixture.
        out: where to write; `trained` in the run directory if left out.
        options: how.
        progress: is told all settings before the start; left out, as plain lines on standard error.

    Raises:
        UserError: no mixture there, TRL is not installed, a model that is not the run's, or an `out` with something
            else in it.
    """
    options, progress = options or TrainOptions(), progress or plain_lines()
    finished = load_run(run)
    out = finished.path / "trained" if out is None else Path(out)
    rows = planned_keys(finished)
    if options.full:
        finished.config.model.check_full()
    _check_place(out)
    with RunDirectory(out) as directory:
        return _train(finished, directory, rows, options, progress)


def planned_keys(finished: FinishedDirectory) -> list[tuple[int, int]]:
    """(task, training row) of every row of the training set, in order."""
    plan = finished.plan
    return list(zip(plan.task.tolist(), plan.row.tolist(), strict=True))


def _check_place(out: Path) -> None:
    """Errors for a folder that holds something else than a training."""
    if out.is_dir() and not (out / RECORD).is_file() and any(path.name != ".lock" for path in out.iterdir()):
        raise UserError(f"{out} holds something that is no training (no {RECORD}); name another --out, or empty it.")


def _train(
    finished: FinishedDirectory, directory: RunDirectory, rows: list[tuple[int, int]], options: TrainOptions,
    progress: Progress,
) -> Trained:  # fmt: skip
    from taskpgm.trainer.trl import import_trl

    engine = Engine(finished.config.model, progress)
    settings = _settings(finished.config, options)
    parts = _parts(finished, engine, rows, settings)
    record = _record(directory / RECORD)
    if record and (why := differing(record["parts"], parts)):
        raise UserError(
            f"{directory.path} holds a training with other {why}; name another --out, or remove it to train anew."
        )
    folder = directory / ("model" if options.full else "adapter")
    if record and "losses" in record and folder.is_dir():
        shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)  # left by a kill after the record
        progress.say(f"{folder} is trained already")
        return _trained(folder, options, record)
    import_trl()  # what is missing is said before the model is loaded
    if finished.config.workers.backend == "ray":
        progress.say(
            "One training is not spread over workers: it runs here, not on the Ray cluster; `taskpgm export` hands its "
            "rows to another trainer"
        )
    encoded = _encoded(finished, engine, rows)
    record = {"parts": parts, "settings": describe(engine, encoded, settings, directory.path)}
    write_json(directory / RECORD, record)
    for name, value in record["settings"].items():
        progress.say(f"{name}: {value}")
    return _trained(folder, options, _finish(directory, folder, engine, encoded, settings, record))


def _record(path: Path) -> dict[str, Any]:
    """What an earlier start wrote; empty if there was none."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"parts": dict(found["parts"]), **found}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not what a training writes; name another --out, or remove it.") from None


def _settings(config: Config, options: TrainOptions) -> "SftSettings":
    from taskpgm.trainer.sft import SftSettings

    lora = None if options.full else config.probes.lora.model_copy(update={"last_layers": None})
    rate = options.rate if options.learning_rate is None else options.learning_rate
    return SftSettings(lora, rate, options.batch, options.epochs, options.shuffle, config.seed)


def _parts(
    finished: FinishedDirectory, engine: Engine, rows: list[tuple[int, int]], settings: "SftSettings"
) -> dict[str, str]:
    """What a training depends on.

    Raises:
        UserError: the model is no longer the run's.
    """
    if engine.fingerprint != finished.manifest["model"]["fingerprint"]:
        raise UserError(
            f"The model {engine.config.path!r} is not the one that {finished.path} was made with; its files changed. "
            "Bring them back, or run `taskpgm run` again."
        )
    keys = [peek(finished.pool.tasks[task].train, row).key for task, row in rows]
    lora = settings.lora.model_dump(mode="json") if settings.lora else "all weights"
    given: dict[str, Any] = {
        "learning rate": settings.learning_rate,
        "batch": settings.batch,
        "epochs": settings.epochs,
    }
    given |= {"method": lora, "shuffling": settings.shuffle, "seed": settings.seed}
    given |= {"rows": keys, "longest row": finished.config.probes.max_length, "model": engine.fingerprint}
    return {name: digest(value) for name, value in given.items()}


def _encoded(finished: FinishedDirectory, engine: Engine, rows: list[tuple[int, int]]) -> "list[Encoded]":
    """The rows as tokens, in order; one that is repeated is encoded once."""
    from taskpgm.chat.encoder import ChatEncoder

    encoder = ChatEncoder(engine.tokenizer, finished.config.probes.max_length, engine.lm.limits)
    distinct = list(dict.fromkeys(rows))
    found = encoder.encode([peek(finished.pool.tasks[task].train, row).conversation for task, row in distinct])
    by_row = {key: one for key, one in zip(distinct, found, strict=True) if one is not None}
    assert len(by_row) == len(distinct), "the pool holds rows that fit"
    return [by_row[key] for key in rows]


def describe(engine: Engine, rows: "list[Encoded]", settings: "SftSettings", out: Path) -> dict[str, Any]:
    """All settings in words, by name."""
    from taskpgm.trainer.sft import at_a_time, save_every, warm_up

    lm, lora, steps = engine.lm, settings.lora, settings.steps(len(rows))
    size = at_a_time(rows, settings.batch, lm.token_budget)
    modules = "all linear layers" if lora and lora.target_modules == "all-linear" else lora and lora.target_modules
    kind = engine.config.quantization
    held = f", linear layers in {kind} (and TRL has the adapter in bfloat16)" if kind else ""
    order = f"shuffled by seed {settings.seed}" if settings.shuffle else "that of train.jsonl, not shuffled"
    return {
        "model": f"{engine.config.path}, {str(lm.dtype).removeprefix('torch.')}{held}, on {lm.device}",
        "method": f"LoRA of rank {lora.r}, alpha {lora.alpha:g}, on {modules} of every layer"
        if lora
        else "every weight, in float32" + (", products in bfloat16" if str(lm.dtype).endswith("bfloat16") else ""),
        "rows": f"{len(rows)}, {sum(row.response_tokens for row in rows)} response tokens",
        "order": order,
        "loss": "answers alone, the mean over the response tokens of a step",
        "epochs": f"{settings.epochs} (repeats of the plan are among the rows)",
        "batch": f"{settings.batch} rows a step, {size} at a time",
        "steps": steps,
        "learning rate": f"{settings.learning_rate:g} at its peak, {warm_up(steps)} steps up, then linearly to zero",
        "optimiser": "AdamW, no weight decay, gradient norm at most 1",
        "checkpoints": f"every {save_every(steps)} steps, the last two, removed at the end",
        "seed": settings.seed,
        "out": str(out),
    }


def _finish(
    directory: RunDirectory, folder: Path, engine: Engine, rows: "list[Encoded]", settings: "SftSettings",
    record: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The record of a training that is done; its model is saved, its checkpoints are gone."""
    from taskpgm.trainer.sft import save_sft, train_sft

    clock = Clock()
    model, losses = train_sft(engine.lm, rows, settings, directory / CHECKPOINTS, engine.progress)
    with atomic_folder(folder, record["parts"]) as scratch:
        save_sft(engine, model, scratch)
    record = {
        **record, "losses": losses, "seconds": round(clock.seconds, 3), "peak_memory": clock.peak(), **environment(),
    }  # fmt: skip
    write_json(directory / RECORD, record)
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
    return record


def _trained(folder: Path, options: TrainOptions, record: Mapping[str, Any]) -> Trained:
    return Trained(folder, options.full, dict(record["settings"]), tuple(record["losses"]), record["seconds"])
