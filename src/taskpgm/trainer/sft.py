"""`train_sft`: a model trained by TRL's SFTTrainer on rows in their order, from its last checkpoint if there is one."""

import contextlib
import json
import math
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from taskpgm.chat.encoder import Encoded
from taskpgm.config import LoraConfig, ModelConfig
from taskpgm.errors import UserError
from taskpgm.lm.checkpoint import model_folder, read_skeleton
from taskpgm.lm.engine import Engine
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.quantized import check_all_trainable
from taskpgm.lm.quiet import import_peft
from taskpgm.probes.adapted import lora_settings
from taskpgm.progress import QUIET, Progress
from taskpgm.trainer.trl import as_before, columns, import_trl

WARM_UP = 20  # a twentieth of the steps, as probes have it
CHECKPOINTS = 10  # of a whole training
UNWRITTEN = ("PytorchStreamWriter", "inline_container", "iostream error")  # torch.save, by where in a file it failed
STATE = "trainer_state.json"  # what transformers writes last into a checkpoint


@dataclass(frozen=True)
class SftSettings:
    """How a model is trained."""

    lora: LoraConfig | None  # None: every weight
    learning_rate: float  # peak
    batch: int  # rows of an optimiser step
    epochs: int  # passes over the rows that are given
    shuffle: bool  # False: the rows in their order
    seed: int

    def steps(self, rows: int) -> int:
        """Optimiser steps in all."""
        return self.epochs * math.ceil(rows / self.batch)


def at_a_time(rows: Sequence[Encoded], batch: int, token_budget: int) -> int:
    """Rows that are run at a time: the largest divisor of the batch for which the longest rows keep the budget."""
    longest = max(len(row.ids) for row in rows)
    fitting = [n for n in range(1, batch + 1) if batch % n == 0 and n * longest <= token_budget]
    return max(fitting, default=1)


def train_sft(
    lm: LanguageModel, rows: Sequence[Encoded], settings: SftSettings, checkpoints: Path, progress: Progress = QUIET
) -> tuple[Any, list[float]]:
    """The trained model and the loss of every step; the same bytes whether it was stopped in between or not.

    The loss of a step is the mean over its response tokens, as SFTTrainer has it. AdamW without weight decay, linear
    warm-up over a twentieth of the steps, linear decay to zero, gradient norm clipped at one.

    Args:
        lm: the base model, which is trained itself; take it anew for anything else.
        rows: tokenised, with the masks that probes have.
        settings: how.
        checkpoints: a folder; what an earlier call left there is gone on from.
        progress: each step is a piece.

    Raises:
        UserError: TRL is not installed, or a loss is not finite.
        OSError: a checkpoint cannot be written.
    """
    start = _last_checkpoint(checkpoints)
    with as_before(lm.model), warnings.catch_warnings(), _saving(checkpoints):
        warnings.simplefilter("ignore")
        trl = import_trl()
        torch.manual_seed(settings.seed)
        model = _trainable(lm, settings.lora)
        trainer = trl.SFTTrainer(**_arguments(trl, lm, model, rows, settings, checkpoints))
        watch = _watch(progress)
        trainer.add_callback(watch)
        _quiet(trainer)
        if not settings.shuffle:
            trainer._get_train_sampler = torch.utils.data.SequentialSampler
        with progress.stage("training with TRL", settings.steps(len(rows)), "step"):
            if start:
                done = int(start.name.rpartition("-")[2])
                progress.say(f"going on from step {done}")
                progress.advance(done)
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return model, losses


def save_sft(engine: Engine, model: Any, folder: Path) -> None:
    """A folder that PEFT loads, or transformers if every weight was trained: the model and its tokenizer.

    An adapter names its base as those can load it: a hub id, or the folder with the base model's files.
    """
    with _saving(folder):
        if hasattr(model, "peft_config"):
            settings, base = model.peft_config["default"], model_folder(engine.config)
            on_hub = "snapshots" in base.parts
            settings.base_model_name_or_path = engine.config.path if on_hub else str(base.resolve())
            settings.revision = engine.config.revision if on_hub else None
            model.save_pretrained(folder, save_embedding_layers=False)
        else:
            model.to(_saved_dtype(engine.config)).save_pretrained(folder)
        engine.tokenizer.save_pretrained(folder)


def _saved_dtype(config: ModelConfig) -> torch.dtype:
    """The precision that the settings ask for, else that of the base model's files, whatever it was trained in."""
    shapes = read_skeleton(config)
    return torch.float32 if shapes is None else shapes.dtype


def _trainable(lm: LanguageModel, lora: LoraConfig | None) -> Any:
    """The model with a fresh adapter, or with float32 weights that are all trained."""
    if lora is None:
        check_all_trainable(lm)
        return lm.model.float().requires_grad_(True)
    return import_peft().get_peft_model(lm.model, lora_settings(lm, lora))


def _arguments(
    trl: Any, lm: LanguageModel, model: Any, rows: Sequence[Encoded], settings: SftSettings, checkpoints: Path
) -> dict[str, Any]:
    from datasets import Dataset

    size, steps = at_a_time(rows, settings.batch, lm.token_budget), settings.steps(len(rows))
    on_cpu = lm.device.type == "cpu"
    arguments = trl.SFTConfig(
        output_dir=str(checkpoints), num_train_epochs=settings.epochs, per_device_train_batch_size=size,
        gradient_accumulation_steps=settings.batch // size, learning_rate=settings.learning_rate,
        lr_scheduler_type="linear", warmup_steps=warm_up(steps), weight_decay=0.0, max_grad_norm=1.0,
        bf16=lm.dtype == torch.bfloat16 and settings.lora is None, fp16=False, use_cpu=on_cpu,
        gradient_checkpointing=not on_cpu, seed=settings.seed, max_length=None, pad_to_multiple_of=None,
        dataset_kwargs={"skip_prepare_dataset": True}, save_strategy="steps", save_steps=save_every(steps),
        save_total_limit=2, logging_strategy="steps", logging_steps=1, logging_nan_inf_filter=False,
        report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    if arguments.n_gpu > 1:  # the model is on one of them; DataParallel would train larger steps than was said
        arguments._n_gpu = 1
    return {
        "model": model, "args": arguments, "processing_class": lm.tokenizer,
        "train_dataset": Dataset.from_list([columns(row) for row in rows]),
    }  # fmt: skip


def warm_up(steps: int) -> int:
    """Steps in which the learning rate rises."""
    return math.ceil(steps / WARM_UP)


def save_every(steps: int) -> int:
    """Steps between two checkpoints."""
    return math.ceil(steps / CHECKPOINTS)


def _watch(progress: Progress) -> Any:
    """A callback that tells of steps, and stops at a loss that is not finite."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Of one training."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """One more step."""
            progress.advance()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            """The loss of a step."""
            loss = (logs or {}).get("loss", 0.0)
            if not math.isfinite(float(loss)):
                raise UserError(
                    f"The loss is {loss} at step {state.global_step} of {state.max_steps}; lower the learning rate, or "
                    "use model.dtype bfloat16 or float32."
                )

    return Watch()


def _quiet(trainer: Any) -> None:
    """Progress is told by us."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; those that a killed process left half-written are removed."""
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if number and _is_whole(path):
            whole[int(number[1])] = path
        else:
            shutil.rmtree(path)
    return whole[max(whole)] if whole else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


@contextlib.contextmanager
def _saving(folder: Path) -> Iterator[None]:
    """Within, what torch and safetensors raise at a full disk is an OSError, and saving shows no bars."""
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{folder}: {error}") from error
    except RuntimeError as error:
        if not any(sign in str(error) for sign in UNWRITTEN):
            raise
        raise OSError(f"{folder}: {error}. No space left?") from error
    finally:
        transformers_logging.enable_progress_bar()
