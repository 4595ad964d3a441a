"""`Comparison`: what a finished comparison of mixtures shows, and how sure it is.

Every mixture was trained and evaluated with the same seeds; everything here is a statistic over those seeds. Losses
are negative log-likelihoods in nats a token. The first mixture is the one that is judged.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Literal

import numpy as np
from scipy import stats

from taskpgm.errors import UserError
from taskpgm.types import Brief

Quantity = Literal["targets", "tasks", "target option loss", "task option loss", "target accuracy", "task accuracy"]
Values = Literal["loss", "option_loss", "accuracy"]
Outcome = Literal["better", "worse", "no difference", "not tested"]
UNIFORM = "uniform"


@dataclass(frozen=True)
class Measurement:
    """One mixture trained with one seed, evaluated on every set."""

    mixture: str
    seed: int
    loss: Mapping[str, float]  # nats a token, by set
    accuracy: Mapping[str, float] = field(default_factory=dict)  # 0 to 1, by set; any sets, alike in all measurements
    rows: int = 0
    seconds: float = 0.0
    weights: Mapping[str, float] = field(default_factory=dict)  # share by task that it was trained on
    halves: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # loss of either half of the rows, by set
    option_loss: Mapping[str, float] = field(default_factory=dict)  # −log(P(answer) / Σ P(options)), nats a question
    option_halves: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # the same of either half


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds and its interval by Student's t; no interval from one seed, or if all give the same."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    def words(self, quantity: str) -> str:
        """The mean ± half of the interval: three digits of a loss, percents of an accuracy."""
        unit, digits, sign = (100, 1, " %") if quantity.endswith("accuracy") else (1, 3, "")
        half = "" if self.high is None else f" ± {(self.high - self.mean) * unit:.{digits}f}"
        return f"{self.mean * unit:.{digits}f}{half}{sign}"


@dataclass(frozen=True, repr=False)
class Summary(Brief):
    """What one mixture reached: macro averages by quantity, and where it did worst.

    `worst` is the task of the largest mean loss increase over uniform if uniform was measured, else of the largest
    mean loss; its interval is that of this task, as if it had been named beforehand. None without tasks, or if no
    seed is shared with uniform.
    """

    mixture: str
    averages: Mapping[Quantity, Estimate]
    worst_task: str | None
    worst: Estimate | None
    losses: Mapping[str, Estimate]  # by set
    accuracies: Mapping[str, Estimate] = field(default_factory=dict)  # by set that is graded
    weights: Mapping[str, float] = field(default_factory=dict)  # share by task, mean over seeds
    option_losses: Mapping[str, Estimate] = field(default_factory=dict)  # by set that is graded by its options


@dataclass(frozen=True)
class Difference:
    """The first mixture minus another, paired by seed, in one quantity.

    `p_value` is two-sided, by a t-test over the seeds that both have; `corrected` is Holm's over all comparisons of
    this quantity. The estimate's interval is that of this comparison alone; `corrected_interval` is wider, in the way
    that the p-value is larger: it holds zero if and only if no difference is found. Relative numbers are in parts of
    the other mixture's mean over these seeds, which is taken as known.
    """

    quantity: Quantity
    other: str
    estimate: Estimate
    relative: float | None  # None if that mean is not positive
    relative_low: float | None
    relative_high: float | None
    p_value: float | None
    corrected: float | None
    corrected_interval: tuple[float, float] | None
    comparisons: int  # with a p-value, in this quantity
    verdict: Outcome


@dataclass(frozen=True, repr=False)
class Comparison(Brief):
    """Summaries of all mixtures and the first one's differences from the others."""

    mixtures: tuple[str, ...]
    tasks: tuple[str, ...]
    targets: tuple[str, ...]
    weights: Mapping[str, float]  # of targets, sum to one
    level: float
    summaries: tuple[Summary, ...]  # in the order of `mixtures`
    differences: tuple[Difference, ...]
    measurements: tuple[Measurement, ...]

    @property
    def sets(self) -> tuple[str, ...]:
        """Targets, then tasks."""
        return self.targets + self.tasks

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """What was averaged."""
        return tuple(self.summaries[0].averages)

    @property
    def reference(self) -> str:
        """Uniform if it was measured, else the judged mixture: what losses of single sets are compared with."""
        return UNIFORM if UNIFORM in self.mixtures else self.mixtures[0]

    def __getitem__(self, mixture: str) -> Summary:
        """The summary of the mixture of that name."""
        return self.summaries[self.mixtures.index(mixture)]

    def excess(self, mixture: str, one: str, values: Values = "loss") -> Estimate | None:
        """Loss on set `one` minus the reference's, paired by seed; None if they share no seed."""
        runs = _by_seed(self.measurements)
        found = _Average(values, {one: 1.0}).differences(runs[mixture], runs[self.reference])
        return t_interval(found, self.level) if found else None

    @property
    def sentences(self) -> tuple[str, ...]:
        """The verdict on every difference, in words."""
        return tuple(verdict_sentence(difference, self.level) for difference in self.differences)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: everything, the verdicts in words and the measurements included."""
        return {**asdict(self), "sentences": list(self.sentences)}


def compare_measurements(
    measurements: Iterable[Measurement],
    tasks: Sequence[str],
    targets: Sequence[str],
    weights: Mapping[str, float] | None = None,
    level: float = 0.95,
) -> Comparison:
    """Comparison of all mixtures that were measured, in order of appearance; the first is judged against the others.

    Args:
        measurements: each (mixture, seed) once; losses of all tasks and targets.
        tasks: names of the tasks, averaged with equal weights.
        targets: names of the targets; may be empty.
        weights: of the targets in their average; equal if left out.
        level: of the intervals; a difference counts if its corrected p-value is below 1 − level.

    Raises:
        UserError: no measurement, one given twice, a set without loss or with one that is not finite, accuracies of
            some sets in one measurement and of others in another, no seed shared with the first mixture, or weights
            that are none.
    """
    runs = tuple(measurements)
    tasks, targets = tuple(tasks), tuple(targets)
    _check(runs, tasks, targets)
    weights = _normalised(targets, weights)
    quantities = _quantities(runs[0], tasks, weights)
    by_seed = _by_seed(runs)
    judged, *others = by_seed
    _check_shared(judged, others, by_seed)
    summaries = tuple(_summary(name, by_seed, quantities, tasks, targets + tasks, level) for name in by_seed)
    found = [_differences(quantity, one, judged, others, by_seed, level) for quantity, one in quantities.items()]
    differences = tuple(difference for one in found for difference in one)
    return Comparison(tuple(by_seed), tasks, targets, weights, level, summaries, differences, runs)


def t_interval(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean ± t_{n−1} s/√n of independent values; no interval from one of them, nor if all are equal.

    Equal ones come of accuracies on few rows, and say nothing of how they would spread.
    """
    n, mean = len(values), fmean(values)
    if not _spread(values):
        return Estimate(mean, None, None, n)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def t_test(values: Sequence[float]) -> float | None:
    """Two-sided p-value of a mean of zero; None if there is no interval."""
    if not _spread(values):
        return None
    n, error = len(values), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(2 * stats.t.sf(abs(fmean(values)) / error, n - 1))


def _spread(values: Sequence[float]) -> bool:
    """Whether values differ by more than rounding."""
    return bool(np.ptp(values) > 1e-12 * max(1.0, np.abs(values).max()))


def corrected_interval(values: Sequence[float], factor: float, level: float) -> tuple[float, float]:
    """Student's interval of a mean at the level 1 − (1 − level)/factor, by which Holm's correction multiplied its p.

    It holds zero exactly if p · factor ≥ 1 − level, as the verdict has it.
    """
    found = t_interval(values, 1 - (1 - level) / factor)
    assert found.low is not None, "values that have a p-value have an interval"
    assert found.high is not None, "values that have a p-value have an interval"
    return found.low, found.high


def holm_factors(p_values: Sequence[float]) -> list[float]:
    """By how much Holm's correction multiplies each p-value, before it is cut at 1."""
    m = len(p_values)
    factors, largest = [1.0] * m, 0.0
    for k, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        largest = max(largest, (m - k) * p_values[i])
        factors[i] = largest / p_values[i] if p_values[i] > 0 else float(m - k)
    return factors


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values (1979): sorted upwards, p_(k) times (m − k), k = 0.., made monotone, at most 1."""
    return [min(1.0, p * factor) for p, factor in zip(p_values, holm_factors(p_values), strict=True)]


@dataclass(frozen=True)
class _Average:
    """Weighted mean of a measurement's losses or accuracies over sets."""

    values: Values
    shares: Mapping[str, float]

    def of(self, m: Measurement) -> float:
        found = getattr(m, self.values)
        return math.fsum(w * found[name] for name, w in self.shares.items()) / math.fsum(self.shares.values())

    def differences(self, own: Mapping[int, Measurement], other: Mapping[int, Measurement]) -> list[float]:
        """own − other for every seed that both have."""
        return [self.of(m) - self.of(other[seed]) for seed, m in own.items() if seed in other]


def _loss_on(one: str) -> _Average:
    return _Average("loss", {one: 1.0})


Runs = Mapping[str, Mapping[int, Measurement]]  # mixture -> seed


def _by_seed(measurements: Sequence[Measurement]) -> dict[str, dict[int, Measurement]]:
    runs: dict[str, dict[int, Measurement]] = {}
    for m in measurements:
        runs.setdefault(m.mixture, {})[m.seed] = m
    return runs


def _check(runs: Sequence[Measurement], tasks: Sequence[str], targets: Sequence[str]) -> None:
    if not runs:
        raise UserError("There is nothing to compare: no measurement; train and evaluate at least one mixture.")
    seen = set()
    for m in runs:
        where = f"Mixture {m.mixture!r}, seed {m.seed}"
        if (m.mixture, m.seed) in seen:
            raise UserError(f"{where} is measured twice; give every run once.")
        seen.add((m.mixture, m.seed))
        for what, own, first in (
            ("an accuracy", m.accuracy, runs[0].accuracy), ("a loss of options", m.option_loss, runs[0].option_loss)
        ):  # fmt: skip
            if own.keys() != first.keys():
                one = sorted(own.keys() ^ first.keys())[0]
                raise UserError(f"{where}: set {one!r} has {what} in some runs only; evaluate all runs alike.")
        for name in (*tasks, *targets):
            if name not in m.loss:
                raise UserError(f"{where} has no loss on set {name!r}; evaluate it there.")
        for what, values in (("loss", m.loss), ("loss of options", m.option_loss), ("accuracy", m.accuracy)):
            for name, value in values.items():
                if not math.isfinite(value):
                    raise UserError(
                        f"{where}: the {what} on set {name!r} is {value}; look at that run's training, or leave it out."
                    )


def _check_shared(judged: str, others: Sequence[str], runs: Runs) -> None:
    for other in others:
        if not runs[judged].keys() & runs[other].keys():
            raise UserError(f"Mixtures {judged!r} and {other!r} share no seed; train both with the same seeds.")


def _normalised(targets: Sequence[str], weights: Mapping[str, float] | None) -> dict[str, float]:
    given = dict.fromkeys(targets, 1.0) if weights is None else dict(weights)
    for name in given:
        if name not in targets:
            raise UserError(f"{name!r} has a weight but is no target; the targets are {', '.join(targets)[:200]}.")
    for name in targets:
        if not (math.isfinite(given.get(name, math.nan)) and given[name] >= 0):
            raise UserError(f"Target {name!r} has weight {given.get(name)}; give every target a weight of 0 or more.")
    total = math.fsum(given[name] for name in targets)
    if targets and not total:
        raise UserError("All targets have weight 0; give at least one a positive weight.")
    return {name: given[name] / total for name in targets}


def _quantities(m: Measurement, tasks: Sequence[str], targets: Mapping[str, float]) -> dict[Quantity, _Average]:
    """What can be averaged, and how: over targets with their weights, over tasks with equal ones."""
    equal = dict.fromkeys(tasks, 1.0)

    def average(values: Values, shares: Mapping[str, float]) -> _Average:
        return _Average(values, {name: w for name, w in shares.items() if name in getattr(m, values)})

    averages: dict[Quantity, _Average] = {
        "targets": average("loss", targets),
        "tasks": average("loss", equal),
        "target option loss": average("option_loss", targets),
        "task option loss": average("option_loss", equal),
        "target accuracy": average("accuracy", targets),
        "task accuracy": average("accuracy", equal),
    }
    return {quantity: average for quantity, average in averages.items() if sum(average.shares.values()) > 0}


def _summary(
    name: str, runs: Runs, quantities: Mapping[Quantity, _Average], tasks: Sequence[str], sets: Sequence[str],
    level: float,
) -> Summary:  # fmt: skip
    own = runs[name]
    first = next(iter(own.values()))
    averages = {quantity: t_interval(list(map(one.of, own.values())), level) for quantity, one in quantities.items()}
    losses = {one: t_interval([m.loss[one] for m in own.values()], level) for one in sets}
    worse = {task: losses[task] for task in tasks}
    if UNIFORM in runs:
        pairs = {task: _loss_on(task).differences(own, runs[UNIFORM]) for task in tasks}
        worse = {task: t_interval(values, level) for task, values in pairs.items() if values}
    worst = max(worse, key=lambda task: worse[task].mean, default=None)
    accuracies = {one: t_interval([m.accuracy[one] for m in own.values()], level) for one in first.accuracy}
    option_losses = {one: t_interval([m.option_loss[one] for m in own.values()], level) for one in first.option_loss}
    weights = {task: fmean(m.weights.get(task, 0.0) for m in own.values()) for task in first.weights}
    worst_one = None if worst is None else worse[worst]
    return Summary(name, averages, worst, worst_one, losses, accuracies, weights, option_losses)


def _differences(
    quantity: Quantity, average: _Average, judged: str, others: Sequence[str], runs: Runs, level: float
) -> list[Difference]:
    """The judged mixture against all others in one quantity, with p-values corrected together."""
    changes = {other: average.differences(runs[judged], runs[other]) for other in others}
    tests = {other: p for other, values in changes.items() if (p := t_test(values)) is not None}
    corrected = dict(zip(tests, holm(list(tests.values())), strict=True))
    factors = dict(zip(tests, holm_factors(list(tests.values())), strict=True))
    found = []
    for other, values in changes.items():
        estimate = t_interval(values, level)
        scale = fmean(average.of(m) for seed, m in runs[other].items() if seed in runs[judged])
        relative, low, high = (
            None if x is None or scale <= 0 else x / scale for x in (estimate.mean, estimate.low, estimate.high)
        )
        p = corrected.get(other)
        verdict = _verdict(quantity, estimate.mean, p, level)
        wider = corrected_interval(values, factors[other], level) if other in factors else None
        one = Difference(
            quantity, other, estimate, relative, low, high, tests.get(other), p, wider, len(tests), verdict
        )
        found.append(one)
    return found


def _verdict(quantity: Quantity, mean: float, corrected: float | None, level: float) -> Outcome:
    if corrected is None:
        return "not tested"
    if corrected >= 1 - level:
        return "no difference"
    return "better" if (mean > 0) == quantity.endswith("accuracy") else "worse"


def verdict_sentence(difference: Difference, level: float = 0.95) -> str:
    """What one difference says, in plain words: lower, higher or no difference found, by how much, how surely.

    The interval and p are corrected for the number of comparisons.
    """
    d, e = difference, difference.estimate
    word = "lower" if e.mean < 0 else "higher"
    size = _amount(d.quantity, abs(e.mean))
    if d.relative is not None and not d.quantity.endswith("accuracy"):
        size += f" ({abs(d.relative):.1%})".replace("%", " %")
    if e.low is None or e.high is None or d.corrected is None:
        found = f"{word} than {d.other} by {size}" if abs(e.mean) > 1e-12 else f"the same as {d.other}"
        seeds = "one seed" if e.seeds == 1 else f"each of {e.seeds} seeds"
        return f"{d.quantity}: {found} with {seeds}: no interval, so nothing is shown"
    interval = d.corrected_interval or (e.low, e.high)
    sure = f"{100 * level:g} % interval {_range(d.quantity, *interval)}, p = {_p(d.corrected)}"
    if d.comparisons > 1:
        sure += f", both corrected for {d.comparisons} comparisons"
    if d.verdict == "no difference":
        return f"{d.quantity}: no difference from {d.other} found: {word} by {size}, {sure}"
    loses = ": this mixture loses" if d.verdict == "worse" else ""
    return f"{d.quantity}: {word} than {d.other} by {size}{loses}, {sure}"


def _amount(quantity: Quantity, x: float) -> str:
    return f"{100 * x:.1f} points" if quantity.endswith("accuracy") else f"{x:.3f} nats"


def _range(quantity: Quantity, low: float, high: float) -> str:
    """The interval as two magnitudes if both ends have the sign of the mean, else with signs."""
    unit, digits = (100, 1) if quantity.endswith("accuracy") else (1, 3)
    low, high = low * unit, high * unit
    if low * high < 0:
        return f"{low:+.{digits}f} to {high:+.{digits}f}"
    return " to ".join(f"{abs(x):.{digits}f}" for x in sorted([low, high], key=abs))


def _p(p: float) -> str:
    return "1" if p >= 0.995 else f"{p:.2g}" if p >= 0.001 else f"{p:.0e}".replace("e-0", "e-")
