"""`Equivalence`: how many rows the reference mixture needs to reach the loss of ours."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from taskpgm.errors import UserError
from taskpgm.evaluation.statistics import t_interval
from taskpgm.types import Floats


@dataclass(frozen=True)
class Equivalence:
    """How many rows the reference needs to reach our loss: geometric mean over seeds, with its interval.

    If some seed's loss lies outside what the reference was measured on, that seed counts at the nearest end:
    `rows` is then a bound (`beyond`: at least, `below`: at most), the interval is open on that side, and its other
    end is that of the seeds' own range, since Student's t does not hold.
    """

    rows: float
    low: float | None
    high: float | None
    seeds: int
    below: int  # seeds that the reference beats with its fewest rows
    beyond: int  # seeds that it does not reach with its most

    def times(self, budget: int) -> str:
        """The rows as multiples of the budget, in words: '2.1x (1.6x to 2.8x)', '>4x', '<0.5x'."""
        if self.below and self.beyond:
            return f"unknown: {self.below} of {self.seeds} seeds below and {self.beyond} beyond what was measured"
        sign = ">" if self.beyond else "<" if self.below else ""
        text = f"{sign}{self.rows / budget:.2g}x"
        part = self.beyond or self.below
        if part and part < self.seeds:
            return f"{text} ({part} of {self.seeds} seeds outside what was measured)"
        if self.low is None or self.high is None or part:
            return text
        return f"{text} ({self.low / budget:.2g}x to {self.high / budget:.2g}x)"


def budget_equivalence(
    reference_losses: Mapping[int, Mapping[int, float]], ours: Mapping[int, float], level: float = 0.95
) -> Equivalence:
    """Rows with which the reference reaches our loss, seed by seed on its own curve of loss against rows.

    A seed's curve is its least loss with so many rows or fewer (more can do harm, and then nobody would take them),
    linear in log rows between the sizes measured; the answer is where it first comes down to our loss. Nothing is
    extrapolated. The mean and its t-interval are those of log rows.

    Args:
        reference_losses: rows -> seed -> loss; at least two sizes, a seed at every size or it is left out.
        ours: seed -> loss, all at the same budget.

    Raises:
        UserError: fewer than two sizes, no seed that all have, or a loss that is not finite.
    """
    rows = sorted(reference_losses)
    if len(rows) < 2:
        raise UserError(f"A curve of loss against rows needs at least two sizes, but {len(rows)} was measured.")
    seeds = sorted(set(ours).intersection(*reference_losses.values()))
    if not seeds:
        raise UserError("No seed was measured at every size and with our mixture; use the same seeds for all.")
    for where, losses in (("ours", ours), *((f"{size} rows", reference_losses[size]) for size in rows)):
        for seed in seeds:
            if not math.isfinite(losses[seed]):
                raise UserError(f"The loss of seed {seed} ({where}) is {losses[seed]}; train and evaluate it again.")
    logs = np.log(rows)
    curves = [np.minimum.accumulate([reference_losses[size][seed] for size in rows]) for seed in seeds]
    found = [_first_reached(curve, logs, ours[seed]) for curve, seed in zip(curves, seeds, strict=True)]
    below = sum(ours[seed] > float(curve[0]) for curve, seed in zip(curves, seeds, strict=True))
    beyond = sum(ours[seed] < float(curve[-1]) for curve, seed in zip(curves, seeds, strict=True))
    estimate = t_interval(found, level)
    low, high = (None if end is None else math.exp(end) for end in (estimate.low, estimate.high))
    if below or beyond:
        low = 0.0 if below else math.exp(min(found))
        high = math.inf if beyond else math.exp(max(found))
    return Equivalence(math.exp(estimate.mean), low, high, len(seeds), below, beyond)


def _first_reached(curve: Floats, logs: Floats, loss: float) -> float:
    """Log rows at which a non-increasing curve first comes down to the loss; the nearest end if it does not."""
    reached = np.flatnonzero(curve <= loss)
    if len(reached) == 0:
        return float(logs[-1])
    k = int(reached[0])
    if k == 0:
        return float(logs[0])
    part = (curve[k - 1] - loss) / (curve[k - 1] - curve[k])
    return float(logs[k - 1] + part * (logs[k] - logs[k - 1]))
