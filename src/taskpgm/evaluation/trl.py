"""A probe trained by TRL's SFTTrainer, the trainer that many users have: the same result as the project's own engine.

Rows come tokenised and in order, so that both engines see the same tokens. The optimiser, its schedule and the loss are
those of `training.py`: AdamW without weight decay, linear warm-up over a twentieth of the steps, linear decay to zero,
gradient norm clipped at one, the mean over the response tokens of the whole step, no dropout.
"""

import copy
import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskpgm.chat.encoder import Encoded, tokens_of
from taskpgm.config import Config
from taskpgm.errors import UserError
from taskpgm.evaluation.full_finetuning import Finetuned
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.quantized import check_all_trainable
from taskpgm.lm.quiet import import_peft
from taskpgm.probes.adapted import lora_settings
from taskpgm.probes.probe import Probe, adapter_seed
from taskpgm.probes.training import learning_rate_factor
from taskpgm.progress import QUIET, Progress
from taskpgm.trainer.trl import as_before, columns, import_trl


def train_with_trl(
    lm: LanguageModel,
    name: str,
    steps: Sequence[Sequence[Encoded]],
    config: Config,
    seed: int = 0,
    progress: Progress = QUIET,
) -> Probe:
    """Probe trained by SFTTrainer on these rows, one optimiser step an item of `steps`, in their order.

    It starts from the initialisation that `train_probes` draws for this seed. A step that is larger than the model's
    token budget is accumulated over batches; all steps are then cut into equally many.

    Args:
        lm: the base model; unchanged afterwards.
        name: the task's, or the mixture's.
        steps: encoded rows of every optimiser step, none empty.
        seed: which of the `probes.seeds`.
        progress: each step is a piece of the stage that is open.

    Raises:
        UserError: TRL is not installed, or a loss is not finite.
    """
    peft, settings = import_peft(), lora_settings(lm, config.probes.lora)
    with as_before(lm.model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer_class = _trainer_class()  # its import draws random numbers
        torch.manual_seed(adapter_seed(config, seed))
        model = peft.get_peft_model(lm.model, copy.deepcopy(settings))  # which PEFT may change
        try:
            losses = _trained(partial(trainer_class, lm, model, steps, config.probes.learning_rate), name, progress)
            weights = {k: v.detach().cpu().clone() for k, v in peft.get_peft_model_state_dict(model).items()}
        finally:
            model.unload()
    return Probe(name, seed, settings, weights, losses, tokens_of(steps))


def train_full_with_trl(
    lm: LanguageModel, name: str, steps: Sequence[Sequence[Encoded]], config: Config, progress: Progress = QUIET
) -> Finetuned:
    """The whole model trained by SFTTrainer: float32 weights, and in mixed precision if the model is bfloat16.

    Raises:
        UserError: as `train_with_trl`.
    """
    check_all_trainable(lm)
    dtype = lm.dtype
    with as_before(lm.model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer_class = _trainer_class()
        model = copy.deepcopy(lm.model).float().requires_grad_(True)
        losses = _trained(partial(trainer_class, lm, model, steps, config.probes.learning_rate), name, progress)
    weights = {key: p.detach().to("cpu", dtype) for key, p in model.named_parameters()}
    return Finetuned(name, weights, losses, tokens_of(steps))


def _trained(make: Callable[[str], Any], name: str, progress: Progress) -> tuple[float, ...]:
    """Losses of every step; the model's weights that ask for a gradient are trained.

    Args:
        make: gives the trainer, from a folder for its files.
    """
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make(scratch)
        trainer.watch(name, progress)
        trainer.train()
    return tuple(trainer.losses)


def _trainer_class() -> Any:
    """SFTTrainer with the steps given instead of sampled; made here, since importing TRL takes seconds."""
    import_trl()
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    class StepTrainer(SFTTrainer):
        """SFTTrainer whose optimiser steps are given."""

        def __init__(
            self, lm: LanguageModel, model: Any, steps: Sequence[Sequence[Encoded]], peak: float, scratch: str
        ) -> None:
            self.microbatches = _Microbatches(steps, lm.token_budget)
            self.losses: list[float] = []
            rows = [row for step in steps for row in step]
            trained = [p for p in model.parameters() if p.requires_grad]
            optimiser = torch.optim.AdamW(trained, lr=peak, weight_decay=0.0)
            rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, len(steps)))
            settings = SFTConfig(
                output_dir=scratch, max_steps=len(steps), gradient_accumulation_steps=self.microbatches.accumulated,
                max_grad_norm=1.0, bf16=_mixed(lm, model), fp16=False,
                gradient_checkpointing=False,
                use_cpu=lm.device.type == "cpu", max_length=None, pad_to_multiple_of=None,
                dataset_kwargs={"skip_prepare_dataset": True},
                report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
                dataloader_pin_memory=False,
            )  # fmt: skip
            super().__init__(
                model, settings, train_dataset=Dataset.from_list([columns(row) for row in rows]),
                processing_class=lm.tokenizer, optimizers=(optimiser, rate),
            )  # fmt: skip
            self.remove_callback(PrinterCallback)

        def watch(self, name: str, progress: Progress) -> None:
            """Tell of progress under this name."""
            self.task, self.progress = name, progress

        def get_train_dataloader(self) -> Any:
            """Batches in the order of the steps."""
            return torch.utils.data.DataLoader(
                self.train_dataset, batch_sampler=self.microbatches.batches, collate_fn=self.data_collator
            )

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            """Loss without dropout: all modules but the outermost, whose mode the trainer reads, evaluate."""
            model.eval()
            model.training = True
            inputs = {key: inputs[key] for key in ("input_ids", "labels", "attention_mask")}
            return super().compute_loss(model, inputs, *args, **kwargs)

        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            """One batch of a step; its loss counts towards the step's."""
            loss = super().training_step(*args, **kwargs)
            step = self.state.global_step
            if not math.isfinite(float(loss)):
                raise UserError(
                    f"{self.task!r} has loss {float(loss):.4g} at step {step + 1} of {self.args.max_steps}; lower "
                    "probes.learning_rate or use model.dtype bfloat16 or float32."
                )
            if len(self.losses) == step:
                self.losses.append(0.0)
                self.progress.advance()
            self.losses[step] += float(loss)
            return loss

    return StepTrainer


def _mixed(lm: LanguageModel, model: Any) -> bool:
    """Whether a float32 copy of a bfloat16 model is trained."""
    return lm.dtype == torch.bfloat16 and next(model.parameters()).dtype == torch.float32


class _Microbatches:
    """Batches of all steps, equally many a step: as few as keep nearly all within the token budget."""

    def __init__(self, steps: Sequence[Sequence[Encoded]], token_budget: int) -> None:
        padded = [len(step) * max(len(row.ids) for row in step) for step in steps]
        self.accumulated = min(math.ceil(max(padded) / token_budget), min(map(len, steps)))
        starts = np.cumsum([0, *map(len, steps)])
        self.batches: list[list[int]] = []
        for start, step in zip(starts, steps, strict=False):
            by_length = start + np.argsort([len(row.ids) for row in step], kind="stable")
            self.batches += [part.tolist() for part in np.array_split(by_length, self.accumulated)]
