"""Delete-one-group jackknife: how far an estimate would move with other contexts, and with other probe seeds.

Legend of shape suffixes: B groups of contexts, k probe seeds; a `Fold` says which columns of the scores count.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from taskpgm.scores import Scores
from taskpgm.types import Floats


class Fold(NamedTuple):
    """Which part of the scores counts; the arguments of `Scores.omega`."""

    without_group: int | None = None
    without_seed: int | None = None
    only_group: int | None = None


EVERYTHING = Fold()


def omega_of(scores: Scores, set_weights: Floats, fold: Fold) -> Floats:
    """(T,) position weights of one fold, see `Scores.omega`."""
    return scores.omega(set_weights, fold.without_group, fold.without_seed, fold.only_group)


def without_folds(scores: Scores) -> list[Fold]:
    """One fold for each group of contexts, which it leaves out."""
    return [Fold(without_group=b) for b in range(scores.groups)] if scores.groups > 1 else []


def only_folds(scores: Scores) -> list[Fold]:
    """One fold for each group of contexts: only that group is kept."""
    return [Fold(only_group=b) for b in range(scores.groups)] if scores.groups > 1 else []


def seed_folds(scores: Scores) -> list[Fold]:
    """One fold for each probe seed, which it leaves out; none if there is a single seed."""
    seeds = int(scores.seed.max()) + 1
    return [Fold(without_seed=s) for s in range(seeds)] if seeds > 1 else []


def variance(replicates: Sequence[Floats] | Floats) -> Floats | float:
    """Delete-one variance (B−1)/B · Σ_b (θ_b − mean θ)², elementwise over the first axis; 0 without replicates."""
    B = len(replicates)
    if B < 2:
        return 0.0
    theta = np.asarray(replicates)
    return np.asarray((B - 1) * theta.var(axis=0))


def standard_error(contexts: Sequence[Floats] | Floats, seeds: Sequence[Floats] | Floats = ()) -> Floats:
    """Total standard error: the jackknife over contexts plus, with several probe seeds, the one over seeds."""
    return np.asarray(np.sqrt(variance(contexts) + variance(seeds)))


def t_quantile(contexts: Sequence[Floats] | Floats, seeds: Sequence[Floats] | Floats, level: float = 0.95) -> Floats:
    """Two-sided quantile of Student's t, elementwise, with B − 1 degrees of freedom.

    With several seeds the degrees of freedom are Satterthwaite's for a sum of two variances.
    """
    context_variance, seed_variance = np.asarray(variance(contexts)), np.asarray(variance(seeds))
    total = context_variance + seed_variance
    spread = context_variance**2 / max(len(contexts) - 1, 1) + seed_variance**2 / max(len(seeds) - 1, 1)
    freedom = np.divide(total**2, spread, out=np.full_like(total, max(len(contexts) - 1, 1)), where=spread > 0)
    return np.asarray(stats.t.ppf(0.5 + level / 2, freedom))
