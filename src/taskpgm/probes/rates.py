"""`Rates`: how fast a worker trains and scores, from a trial, from a matrix product, or from a data sheet.

A matrix product of a moment says what a core of this machine reaches; training and scoring reach shares of that, which
were measured (docs/performance.md, "Against what the machine can do"). Of other devices the data sheet is known, and
the shares are taken from the CPU: arithmetic, not a measurement.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls

from taskpgm.errors import UserError
from taskpgm.lm.model import LanguageModel
from taskpgm.workers.processes import threads

# Of a square matrix product's rate, as measured on a CPU: 0.32 to 0.43 and 0.52 to 0.56. Divergences are mostly
# logarithms, which a product's rate says little about.
TRAINING, SCORING, DIVERGENCE = 0.35, 0.52, 0.1
# Seconds that starting a layer's small operations takes on a GPU: some 30 forward, as many backward and in the
# optimiser each, 10 microseconds apiece. Arithmetic.
FORWARD, LAUNCHES = 0.3e-3, 1e-3
SQUARE, MOMENT = 1536, 0.3  # rows of the matrices, and seconds that their product is repeated


class Sheet(NamedTuple):
    """What a maker says of a device, and who says so."""

    peak: float  # dense bfloat16 operations a second
    memory: float  # bytes


DEVICES = {
    "a100-40g": Sheet(312e12, 40e9),
    "a100-80g": Sheet(312e12, 80e9),
    "a10g": Sheet(70e12, 24e9),
    "b200": Sheet(2250e12, 180e9),
    "h100": Sheet(989e12, 80e9),
    "h200": Sheet(989e12, 141e9),
    "l4": Sheet(121e12, 24e9),
    "l40s": Sheet(362e12, 48e9),
    "mi300x": Sheet(1307e12, 192e9),
    "rtx4090": Sheet(165e12, 24e9),
}


@dataclass(frozen=True)
class Pace:
    """How fast a worker is: operations a second, and seconds that every step (of scoring: layer) takes beside them."""

    rate: float
    step: float

    def seconds(self, operations: float, steps: int) -> float:
        """Seconds of a job."""
        return operations / self.rate + steps * self.step

    @classmethod
    def fitted(cls, trials: Sequence[tuple[float, int, float]]) -> "Pace":
        """From (operations, steps, seconds) of trials, by least squares of relative errors, neither part below zero."""
        parts = np.array([[operations / seconds, steps / seconds] for operations, steps, seconds in trials])
        scale = parts.max(0)
        per_operation, per_step = nnls(parts / scale, np.ones(len(parts)))[0] / scale
        if per_operation == 0 or len(trials) < 3:  # too little to tell the two apart
            return cls(float(sum(t[0] for t in trials) / sum(t[2] for t in trials)), 0.0)
        return cls(float(1 / per_operation), float(per_step))


@dataclass(frozen=True)
class Rates:
    """Of one worker, beside as many as there are."""

    warm: Pace  # alone on its machine
    probes: Pace
    scoring: Pace
    divergence: float  # operations a second
    source: str  # one sentence


def sheet(device: str) -> Sheet:
    """What is known of a device.

    Raises:
        UserError: nothing is.
    """
    if device not in DEVICES:
        raise UserError(
            f"No rate is known of the device {device!r}; known are {', '.join(DEVICES)}. Leave --device out on such a "
            "machine to have it tried there."
        )
    return DEVICES[device]


def sheet_rates(device: str, layers: int, part: float = 1.0) -> Rates:
    """Of a device that is not here, or of a part of it: shares of its data sheet's peak."""
    peak = sheet(device).peak * part
    pace = Pace(TRAINING * peak, LAUNCHES * layers)
    source = (
        f"Arithmetic, not measured: {TRAINING:.0%} of the {peak / 1e12:,.0f} TFLOP/s of its data sheet in training and "
        f"{SCORING:.0%} in scoring, as on a CPU, and {1e3 * pace.step:.0f} ms a step of training to start operations."
    )
    return Rates(pace, pace, Pace(SCORING * peak, FORWARD), DIVERGENCE * peak, source)


def product_rates(lm: LanguageModel) -> Rates:
    """Of this machine's cores, from a matrix product of a moment in the model's precision."""
    one, every = _product_rate(lm.dtype, 1), _product_rate(lm.dtype, None)
    source = (
        f"From a matrix product here ({one / 1e9:,.0f} GFLOP/s a core), of which training reaches about "
        f"{TRAINING:.0%} and scoring {SCORING:.0%}; without --quick they are tried."
    )
    return Rates(
        Pace(TRAINING * every, 0.0), Pace(TRAINING * one, 0.0), Pace(SCORING * one, 0.0), DIVERGENCE * one, source
    )


def _product_rate(dtype: torch.dtype, cores: int | None) -> float:
    """Operations a second of a square product on so many threads; None: all."""
    left, right = (torch.randn(SQUARE, SQUARE).to(dtype) for _ in range(2))
    best = math.inf
    with threads(cores), torch.inference_mode():
        began = perf_counter()
        while perf_counter() - began < MOMENT:
            started = perf_counter()
            left @ right
            best = min(best, perf_counter() - started)
    return 2 * SQUARE**3 / best
