"""What keeps a small sample from being taken for more than it is."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from taskpgm.config import Config

# From eight contexts on, nine in ten draws of contexts give an interval within a factor of 2.6 in width, and on skewed
# losses it holds the truth nine times in ten; below, neither (tests/mixture/test_doubts.py has the simulation).
FEW_CONTEXTS = 8
MANY_CONTEXTS = 16  # as many groups as the jackknife makes at most
ANY_REMEDY = f"contexts.per_set: {MANY_CONTEXTS} (of targets contexts.per_target, if it is given)"


def few_contexts(contexts: int, remedy: str = ANY_REMEDY) -> str | None:
    """What intervals from so few contexts a set are worth, and what more would buy; None from `FEW_CONTEXTS` on.

    Half the width of an interval is t_{m−1} s/√m of m contexts, and (m − 1)s²/σ² is chi-squared. So its 95 % and 5 %
    quantiles over draws of contexts are apart by the root of those of chi-squared with m − 1 degrees of freedom.

    Args:
        contexts: of the smallest target, or task without any: as many as there are groups, below 16.
        remedy: the setting that gives `MANY_CONTEXTS`.
    """
    if contexts >= FEW_CONTEXTS:
        return None
    if contexts < 2:
        return f"One context a set gives no intervals and no verdict against uniform; {remedy} gives both."
    low, high = (float(stats.chi2.ppf(part, contexts - 1)) for part in (0.05, 0.95))
    narrower = 1 - half_width(MANY_CONTEXTS) / half_width(contexts)
    return (
        f"{contexts} contexts a set are few: the width of an interval is luck, {math.sqrt(high / low):.1f} times as "
        f"wide in one draw of contexts as in another. {remedy} would narrow the intervals by {narrower:.0%}."
    )


def more_contexts(config: Config) -> str:
    """The setting that gives `MANY_CONTEXTS` to every set that the mixture is measured on."""
    if config.targets:
        return f"contexts.{'per_set' if config.contexts.per_target is None else 'per_target'}: {MANY_CONTEXTS}"
    if config.contexts.total is not None:
        return f"contexts.total: {MANY_CONTEXTS * len(config.tasks)}"
    return f"contexts.per_set: {MANY_CONTEXTS}"


def half_width(contexts: int) -> float:
    """Half the width of a 95 % interval for a mean over so many contexts, in standard deviations of one."""
    return float(stats.t.ppf(0.975, contexts - 1)) / math.sqrt(contexts)


def falling(losses: Mapping[str, Sequence[float]]) -> tuple[float, float] | None:
    """(mean fall, its one-sided p-value) of the loss of probes from the middle third of their steps to the last.

    By a t-test over the probes, since a single probe's steps see different rows. None with fewer than two probes, or
    with fewer than three steps each.
    """
    falls = []
    for curve in losses.values():
        third = len(curve) // 3
        if third:
            falls.append(float(np.mean(curve[-2 * third : -third]) - np.mean(curve[-third:])))
    if len(falls) < 2 or np.ptp(falls) == 0:
        return None
    error = float(np.std(falls, ddof=1)) / math.sqrt(len(falls))
    return float(np.mean(falls)), float(stats.t.sf(np.mean(falls) / error, len(falls) - 1))


def unfinished_probes(losses: Mapping[str, Sequence[float]], setting: str, size: int, seconds: float) -> str | None:
    """That the loss of the probes still fell when their training ended, and what more would cost; None if it did not.

    Args:
        losses: of every step, by probe.
        setting: the name of the probe size, such as "probes.examples".
        size: the probe size.
        seconds: that the training of the probes took.
    """
    found = falling(losses)
    level = float(np.mean([np.mean(curve) for curve in losses.values()])) if losses else 0.0
    if found is None or found[1] > 0.05 or found[0] < 0.01 * level:
        return None
    return (
        f"The probes' loss still fell when their training ended, by {found[0]:.2f} of {level:.2f} nats a token in the "
        f"last third: tasks are told apart by what was learned so far. {setting}: {2 * size} would double the "
        f"{seconds:.0f} s of training."
    )
