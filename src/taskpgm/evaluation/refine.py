"""`Refinement`: a mixture that a few trial runs chose, and what fresh runs say of it.

Trials are trainings as `compare` makes and keeps them, with its first seed; they are judged by every other evaluation
row. The mixture that they choose and uniform are then trained with fresh seeds, and judged by the rows that are left:
that is what is reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from taskpgm.config import Config, EnergyConfig
from taskpgm.errors import UserError
from taskpgm.evaluation.answers import rows_to_choose
from taskpgm.evaluation.compare import Trainings, training_run
from taskpgm.evaluation.result import FinishedRun, Result
from taskpgm.evaluation.settings import CompareOptions
from taskpgm.evaluation.statistics import Comparison, Difference, Measurement, compare_measurements
from taskpgm.mixture.energies import Budget, build_energy, repetition_price, usual_prior, wanted_sets
from taskpgm.mixture.energy import Energy
from taskpgm.mixture.limits import Limit, task_limits
from taskpgm.mixture.optimum import nearest_to_uniform
from taskpgm.mixture.refinement import Choice, choose, hoped_for, likely_noise, next_trial
from taskpgm.mixture.refinement import usual_prior as prior_of
from taskpgm.mixture.solve import Mixture, solve_mixture
from taskpgm.mixture.surrogate import Features, Prior, Surrogate, fit_surrogate
from taskpgm.mixture.trials import Trials, describe_surface
from taskpgm.pool.plan import RowPlan, budget_of, plan_rows
from taskpgm.progress import many
from taskpgm.types import Brief, Floats

# Of the loss: how far trainings of one mixture are apart, their seeds' common part left aside, and from the surrogate.
USUAL_NOISE = 0.01
# A trial whose expected gain is below so many standard errors of the choice's gain is not made: on what seven settings
# taught, 7 to 8 of 8 runs are then made, and 10 to 12 of 12.
WORTH = 0.05
REFINED, UNIFORM = "refined", "uniform"
CHOOSING, CONFIRMING = 0, 1  # which half of the evaluation rows


@dataclass(frozen=True)
class RefineOptions:
    """How many trials, of what size, and how the choice is confirmed."""

    runs: int = 8
    size: int | None = None  # of a trial's training, in the unit of the budget; the budget itself if left out
    seeds: int = 3  # fresh ones, of the choice and of uniform


@dataclass(frozen=True, eq=False, repr=False)
class Refinement(Brief):
    """What trials chose. `comparison` is None if uniform was chosen, which needs no confirmation."""

    trials: Trials
    surrogate: Surrogate
    prior: Prior
    choice: Choice
    mixture: Mixture
    plan: RowPlan
    ended: str  # why no further trial was made
    comparison: Comparison | None
    there: Surrogate  # the surrogate at the budget of the choice
    budget: Mapping[str, Any]  # its unit, and how much of it the trials and the choice have
    options: Sequence[str] = ()  # targets that are judged by their options

    @property
    def sentence(self) -> str:
        """What came out, in words."""
        if self.comparison is None:
            return "no mixture can be told from uniform by these trials: uniform is chosen"
        return confirmed_sentence(self.comparison, self.options)

    def surface(self) -> dict[str, Any]:
        """JSON-ready: the surrogate's losses of mixtures with their errors, and the confirmation."""
        uniform = nearest_to_uniform(self.mixture.bounds)
        found = describe_surface(self.trials, self.surrogate, self.prior, self.choice, uniform, self.there)
        confirmation = self.comparison.to_dict() if self.comparison else None
        return {
            **found,
            "budget": dict(self.budget),
            "ended": self.ended,
            "verdict": self.sentence,
            "confirmation": confirmation,
        }


def run_refinement(finished: FinishedRun, options: RefineOptions) -> Refinement:
    """Trials, the choice by them, and its confirmation; every training is kept, so that a stopped refinement goes on.

    Raises:
        UserError: fewer than two runs, no fresh seed, or a set with a single row to evaluate.
    """
    if options.runs < 2 or options.seeds < 1:
        raise UserError(
            f"refine takes at least 2 runs (uniform and the default) and 1 fresh seed, not {options.runs} and "
            f"{options.seeds}."
        )
    trained = _of_size(finished, options.size)
    worker = _Worker(trained, finished.result)
    ended = worker.search(options.runs)
    there = worker.at_budget(finished.config)
    choice = choose(there, worker.bounds, worker.limits)
    comparison = None if choice.uniform else worker.confirm(choice.p, options.seeds)
    mixture = solve_mixture(choice.energy, worker.bounds, {UNIFORM: None})
    plan = plan_rows(finished.result.pool, mixture.shares, finished.config)
    budget, chosen = finished.config.budget, finished.config.option_targets
    sizes = {"unit": budget.unit, "trials": trained.config.budget.size, "choice": budget.size}
    return Refinement(
        worker.trials, worker.fit(), worker.prior, choice, mixture, plan, ended, comparison, there, sizes, chosen
    )


def run_shares(config: Config, result: Result) -> dict[str, float]:
    """What each set of a run counts, by name, summing to one; sets that count nothing are left out."""
    w = wanted_sets(result.scores, config.target_weights, config.energy.balance)
    return {name: float(share) for name, share in zip(result.scores.sets, w, strict=True) if share > 0}


def run_limits(config: Config, result: Result) -> tuple[Limit, ...]:
    """The limits that a run sets to what the probes predict of its tasks' losses."""
    return task_limits(result.scores, config.energy, nearest_to_uniform(result.mixture.bounds))


def run_features(config: Config, result: Result) -> Features:
    """The probes' ensemble and gains on the sets that count in a run."""

    def plain(kind: Literal["likelihood", "gain"]) -> Energy:
        wanted = EnergyConfig(kind=kind, prior=0.0, balance=config.energy.balance)
        return build_energy(result.scores, result.affinity, wanted, config.target_weights)

    return Features(result.scores.tasks, plain("likelihood"), plain("gain").psi)


def priced(features: Features, config: Config, result: Result, budget: Budget) -> Features:
    """The same with the cost of rows that are seen again in trainings of that budget."""
    price = repetition_price(result.scores, config.energy, config.target_weights, budget) if config.targets else 0.0
    return replace(features, once=np.array([budget.once[task] for task in features.tasks]), repetition=price)


def run_kappa(config: Config, result: Result) -> float:
    """The default's prior: the run's own if its energy is a likelihood."""
    energy = result.energy
    own = energy.kind == "likelihood"
    return energy.prior if own else usual_prior("likelihood", result.scores, config.energy.balance)


def confirmed_sentence(comparison: Comparison, options: Sequence[str] = ()) -> str:
    """The confirmation in a sentence: so many percent below uniform, or that it cannot be told from it.

    Args:
        options: targets whose losses are those of options.
    """
    quantity = "targets" if comparison.targets else "tasks"
    found: Difference = next(d for d in comparison.differences if d.quantity == quantity)
    seeds, loss = found.estimate.seeds, found.estimate.mean
    if found.relative is None:
        return f"measured with {seeds} fresh seeds: {quantity} {loss:+.4f} nats from uniform"
    what = quantity
    if options:
        what += "' options" if len(options) == len(comparison.targets) else f" (by options: {', '.join(options)})"
    how = f"{abs(found.relative):.1%} {'below' if loss < 0 else 'above'} uniform on the {what}".replace("%", " %")
    if found.relative_low is None or found.relative_high is None:
        return f"measured with {many(seeds, 'fresh seed')} and fresh rows, without an interval: {how}"
    low, high = sorted((-100 * found.relative_high, -100 * found.relative_low))
    told = low > 0 or high < 0
    verdict = "measured" if told else "cannot be told from uniform; measured"
    return f"{verdict} with {seeds} fresh seeds and fresh rows: {how} (95 % interval {low:.1f} to {high:.1f} below)"


def _of_size(finished: FinishedRun, size: int | None) -> FinishedRun:
    if size is None:
        return finished
    budget = finished.config.budget.model_copy(update={finished.config.budget.unit: size})
    return replace(finished, config=finished.config.model_copy(update={"budget": budget}))


class _Worker:
    """Trials of one run so far, and what is needed to make and judge others."""

    def __init__(self, finished: FinishedRun, result: Result) -> None:
        config = finished.config
        self.finished, self.result, self.bounds = finished, result, result.mixture.bounds
        self.chosen = frozenset(config.option_targets)
        graded: Literal["options", False] = "options" if self.chosen else False
        self.trainings = Trainings(finished, CompareOptions(accuracy=graded), halves=True)
        sets = self.trainings.sets
        _check_halves({one: len(rows_to_choose(rows) if one in self.chosen else rows) for one, rows in sets.items()})
        self.shares = run_shares(finished.config, result)
        self.limits = run_limits(config, result)
        budget = budget_of(result.pool, config)
        self.features = priced(run_features(config, result), config, result, budget)
        self.prior = prior_of(self.features, run_kappa(config, result)).scaled(budget.fade)
        self.trials = Trials(result.pool.names, (), (), ())

    def search(self, runs: int) -> str:
        """Make the trials; why the last one was the last."""
        self.train({UNIFORM: nearest_to_uniform(self.bounds), "taskpgm": self.result.mixture.weights})
        while (done := len(self.trials.losses)) < runs:
            improvement, error = hoped_for(self.fit(), self.bounds, self.limits)
            if improvement < WORTH * error:
                return (
                    f"after {done} of {runs} runs: another is expected to gain {improvement:.4f} nats, which is little "
                    f"beside the error of what is known of the choice ({error:.4f})"
                )
            trial = next_trial(self.fit(), self.bounds, done)
            if same := self.made(trial):
                return f"after {done} of {runs} runs: the next mixture has as many rows of every task as {same!r}"
            self.train({f"trial {done + 1}": trial})
        return f"after {runs} runs, as asked for"

    def made(self, p: Floats) -> str | None:
        """The trial that has as many rows of every task as this mixture; its training would be the same."""
        pool, config = self.result.pool, self.finished.config

        def counts(q: Floats) -> list[int]:
            plan = plan_rows(pool, dict(zip(pool.names, q.tolist(), strict=True)), config)
            return [task.count for task in plan.tasks]

        before = zip(self.trials.names, self.trials.mixtures, strict=True)
        return next((name for name, q in before if counts(q) == counts(p)), None)

    def train(self, mixtures: Mapping[str, Floats]) -> None:
        """Train these and add them to the trials."""
        found = self.measure(mixtures, [0], "trial runs")
        losses = [self.macro(one, CHOOSING) for one in found]
        before = self.trials
        self.trials = Trials(
            before.tasks, (*before.names, *mixtures), (*before.mixtures, *mixtures.values()), (*before.losses, *losses)
        )

    def measure(self, mixtures: Mapping[str, Floats], seeds: Sequence[int], what: str) -> list[Measurement]:
        """Measurements of mixtures with these seeds."""
        tasks = self.result.pool.names
        named = {name: dict(zip(tasks, p.tolist(), strict=True)) for name, p in mixtures.items()}
        runs = [training_run(self.finished, name, shares, seed) for seed in seeds for name, shares in named.items()]
        return self.trainings.measurements(runs, what)

    def macro(self, measurement: Measurement, half: int) -> float:
        """Weighted loss on half the evaluation rows of the targets and, by the balance, of the tasks."""
        losses = self.losses(measurement, half)
        return sum(share * losses[name] for name, share in self.shares.items())

    def losses(self, measurement: Measurement, half: int) -> dict[str, float]:
        """Loss by set of half the evaluation rows: of options where these are what is served, else of tokens."""
        halves = {**measurement.halves, **{name: measurement.option_halves[name] for name in self.chosen}}
        return {name: pair[half] for name, pair in halves.items()}

    def fit(self) -> Surrogate:
        """What the trials so far say."""
        mixtures, losses = self.trials.mixtures, self.trials.losses
        usual = USUAL_NOISE * abs(float(np.mean(losses)))
        noise = likely_noise(self.features, mixtures, losses, usual, self.prior)
        return fit_surrogate(self.features, mixtures, losses, noise, self.prior, self.finished.config.seed)

    def at_budget(self, config: Config) -> Surrogate:
        """The same for trainings of another budget: other rows are seen again there, and all else fades.

        Uniform's loss stays that of the trials: what it is there nobody has measured.
        """
        found, pool = self.fit(), self.result.pool
        here, there = budget_of(pool, self.finished.config), budget_of(pool, config)
        by = np.full(len(found.coefficients), there.fade / here.fade)
        by[0] = 1.0
        features = priced(self.features, config, self.result, there)
        return replace(found, features=features, coefficients=found.coefficients * by, draws=found.draws * by)

    def confirm(self, p: Floats, seeds: int) -> Comparison:
        """The choice against uniform, with fresh seeds, on the rows that did not choose it; no accuracies, which are
        of all rows."""
        mixtures = {REFINED: p, UNIFORM: nearest_to_uniform(self.bounds)}
        found = self.measure(mixtures, range(1, seeds + 1), "confirming")
        fresh = [replace(m, loss=self.losses(m, CONFIRMING), option_loss={}, accuracy={}) for m in found]
        pool = self.result.pool
        weights = self.finished.config.target_weights or None
        return compare_measurements(fresh, pool.names, [s.name for s in pool.targets], weights)


def _check_halves(rows: Mapping[str, int]) -> None:
    for name, count in rows.items():
        if count < 2:
            raise UserError(
                f"{name!r} has {many(count, 'row')} to evaluate, but refine chooses by one half of the rows "
                "and confirms by the other; raise contexts.validation, or give it more rows (with choices, if it is "
                "scored by options)."
            )
