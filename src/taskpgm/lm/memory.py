"""What fits into memory: batches of a training, and activations computed again in the backward pass."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from taskpgm.chat.encoder import Encoded, tokens_of
from taskpgm.lm.forwards import replaced
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.packing import Packed


@contextlib.contextmanager
def recomputing(lm: LanguageModel, packed: Packed, first: int) -> Iterator[None]:
    """Within, layers from `first` on keep only their input for a backward pass, which computes what lies inside of
    them again."""
    from torch.utils.checkpoint import checkpoint

    def contexts() -> tuple[Any, Any]:  # of the layer's first run, and of the one in the backward pass
        return contextlib.nullcontext(), lm.running(packed) if lm.plain_head else contextlib.nullcontext()

    settings = {"use_reentrant": False, "context_fn": contexts, "preserve_rng_state": False}
    with replaced({layer: partial(checkpoint, layer.forward, **settings) for layer in lm.layers[first:]}):
        yield


@dataclass(frozen=True)
class Fit:
    """How training batches fit into memory."""

    tokens: int  # of a batch
    recompute: bool  # the backward pass computes activations again


def fitting(lm: LanguageModel, rows: Sequence[Encoded], first: int, taken: int = 0) -> Fit:
    """The largest batches that should fit into the machine's memory; activations are kept if a row's then fit.

    Args:
        taken: bytes of that memory that something else will take.
    """
    longest, budget = max(len(row.ids) for row in rows), lm.memory_budget - taken
    answered = max(float(row.response.mean()) for row in rows)

    def fits(tokens: int, recompute: bool) -> bool:
        tokens = max(tokens, longest)
        return lm.memory(tokens, longest, math.ceil(answered * tokens), first, recompute) <= budget

    for recompute in (False, True):
        tokens = lm.token_budget
        while tokens > longest and not fits(tokens, recompute):
            tokens //= 2
        if fits(tokens, recompute):
            break
    return Fit(tokens, recompute)


def training_memory(lm: LanguageModel, trainings: Sequence[Sequence[Sequence[Encoded]]], first: int) -> float:
    """Bytes, roughly, that any of these trainings takes beyond the model, from layer `first` on."""
    return max(_memory_of(lm, steps, first) for steps in trainings)


def _memory_of(lm: LanguageModel, steps: Sequence[Sequence[Encoded]], first: int) -> float:
    rows = [row for step in steps for row in step]
    fit, longest = fitting(lm, rows, first), max(len(row.ids) for row in rows)
    tokens = min(max(tokens_of([step]) for step in steps), max(fit.tokens, longest))
    responses = min(tokens, max(sum(row.response_tokens for row in step) for step in steps))
    return lm.memory(tokens, longest, responses, first, fit.recompute)
