"""Full fine-tuning: every weight of the model, for `compare`. Probes stay low-rank.

Beside the model it takes 16 bytes a parameter for float32 weights, their gradient and AdamW's two moments, and weights
and gradient once more in the model's precision.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskpgm.chat.encoder import Encoded, tokens_of
from taskpgm.config import Config
from taskpgm.errors import UserError
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.quantized import check_all_trainable
from taskpgm.lm.trunk import Trunk
from taskpgm.probes.probe import Probe, installed
from taskpgm.probes.training import Trainer
from taskpgm.progress import QUIET, Progress


@dataclass(frozen=True)
class Finetuned:
    """All weights of a model that was trained on some rows, on the CPU and in the model's precision."""

    task: str
    weights: dict[str, Tensor]
    losses: tuple[float, ...] = ()  # mean response loss of every step, nats a token
    trained_tokens: int = 0

    def first_layer(self, depth: int) -> int:
        """Lowest decoder layer that differs from the base model."""
        return 0


@contextlib.contextmanager
def under(lm: LanguageModel, trained: Probe | Finetuned | None) -> Iterator[None]:
    """Within, the model is the base model under this adapter, or with these weights, or alone."""
    if isinstance(trained, Finetuned):
        with _replaced(lm.model, trained.weights):
            yield
    else:
        with installed(lm, [trained] if trained else []) as use, use(trained):
            yield


def train_full(
    lm: LanguageModel, name: str, steps: Sequence[Sequence[Encoded]], config: Config, progress: Progress = QUIET
) -> Finetuned:
    """The model trained on these rows, step by step, by the optimiser and the schedule that probes have.

    Raises:
        UserError: a loss that is not finite, or a model whose weights are not of one precision or place.
    """
    check_all_trainable(lm)
    parameters = dict(lm.model.named_parameters())  # tied ones once
    if len({p.dtype for p in parameters.values()}) > 1:
        raise UserError("The model's weights are of several precisions; set model.dtype to train all of them.")
    flat = torch.cat([p.detach().flatten() for p in parameters.values()])
    gradient = torch.zeros_like(flat)
    master = torch.nn.Parameter(flat.float())
    trainer = Trainer(replace(lm, processes=1), config, progress=progress)
    trunk = Trunk(lm, 0, lm.shared_prefix([row for step in steps for row in step]))
    with _replaced(lm.model, _views(flat, parameters)), _trainable(parameters, _views(gradient, parameters)):
        losses = trainer.descend(name, steps, trunk, master, [flat], [gradient])
    weights = {key: view.cpu() for key, view in _views(flat, parameters).items()}
    return Finetuned(name, weights, losses, tokens_of(steps))


def save_finetuned(lm: LanguageModel, trained: Finetuned, folder: Path) -> None:
    """A folder that transformers loads: the model with these weights, and its tokenizer."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        with _replaced(lm.model, trained.weights):
            lm.model.save_pretrained(folder)
    finally:
        transformers_logging.enable_progress_bar()
    lm.tokenizer.save_pretrained(folder)


def _views(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = flat.split([p.numel() for p in like.values()])
    return {key: part.view_as(p) for (key, p), part in zip(like.items(), parts, strict=True)}


@contextlib.contextmanager
def _replaced(model: Any, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, the model's parameters are these tensors; their own are untouched."""
    parameters = dict(model.named_parameters())
    before = {key: p.data for key, p in parameters.items()}
    try:
        for key, p in parameters.items():
            p.data = weights[key].to(p.device)
        yield
    finally:
        for key, p in parameters.items():
            p.data = before[key]


@contextlib.contextmanager
def _trainable(parameters: Mapping[str, torch.nn.Parameter], gradients: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, backward passes add the parameters' gradients to these tensors."""
    try:
        for key, p in parameters.items():
            p.requires_grad_().grad = gradients[key]
        yield
    finally:
        for p in parameters.values():
            p.requires_grad_(False).grad = None
