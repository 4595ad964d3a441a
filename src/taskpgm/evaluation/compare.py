"""Trains and evaluates mixtures at the same budget, and compares them.

train       one adapter (or whole model) a mixture and seed; a seed redraws rows, order and the adapter's initialisation
evaluate    loss and accuracy on the tasks' validation rows and on the targets' rows that are no contexts
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from taskpgm.config import Config
from taskpgm.errors import UserError
from taskpgm.evaluation.baselines import baseline_mixture, bent_by_supply, within_supply
from taskpgm.evaluation.equivalence import Equivalence, budget_equivalence
from taskpgm.evaluation.result import FinishedRun, Result
from taskpgm.evaluation.settings import OURS, CompareOptions
from taskpgm.evaluation.statistics import Comparison, Measurement, compare_measurements
from taskpgm.files import atomic_folder, digest, loaded, path_digest, read_json, write_json
from taskpgm.pool.drawing import first, peek
from taskpgm.pool.plan import RowPlan, plan_rows, supply_bounds
from taskpgm.pool.task_pool import TaskPool

if TYPE_CHECKING:
    from taskpgm.chat.encoder import Encoded
    from taskpgm.evaluation.full_finetuning import Finetuned
    from taskpgm.probes.probe import Probe

SCALED = "uniform@"  # what uniform's name begins with at another budget; its multiple follows
ORDER = "spread"  # how `plan.py` orders rows; another word when that changes, so that measurements stay apart
FULL_LEARNING_RATE = 5e-5  # peak when every weight is trained: a tenth of LoRA's 5e-4, as is usual


def run_comparison(finished: FinishedRun, options: CompareOptions) -> tuple[Comparison, dict[str, Any]]:
    """Comparison of mixtures trained at the budget, written to `comparison.json`, and the budget equivalence.

    Every run is kept as it is done, so that a stopped comparison goes on where it was.

    Raises:
        UserError: a mixture that is none, a set without rows to evaluate, or what a run of the pipeline would raise.
    """
    result = finished.result
    for sentence in bent_mixtures(finished.config, result, options.mixtures):
        finished.engine.progress.say(sentence)
    trainings, runs = Trainings(finished, options), list(_runs(finished, options))
    measurements = {(m.mixture, m.seed): m for m in trainings.measurements(runs, "comparing")}
    asked = [m for (name, _), m in measurements.items() if name in options.mixtures]
    weights = finished.config.target_weights
    comparison = compare_measurements(asked, result.pool.names, [s.name for s in result.pool.targets], weights or None)
    facts: dict[str, Any] = {}
    if options.budgets:
        facts["budget equivalence"] = _equivalence(measurements, comparison, options, finished.config.budget.size)
    settings = {"setting": trainings.setting, "settings": compared_settings(finished.config, options)}
    write_json(finished.folder / "comparison.json", {**comparison.to_dict(), **facts, **settings})
    for task in options.harness:
        if _benchmark(task, trainings.sets) not in asked[0].accuracy:
            finished.engine.progress.say(f"{task} gives no accuracy of its own: what it gives is in compare/*.json")
    return comparison, facts


def check_options(config: Config, options: CompareOptions) -> None:
    """Look before anything is trained, probes too, whether it can be compared.

    Raises:
        UserError: a model that cannot be trained in full, benchmarks that are none, or budgets of which uniform's loss
            cannot be drawn.
    """
    if options.method == "full":
        config.model.check_full()
    if options.harness:
        from taskpgm.evaluation.harness import find_tasks

        find_tasks(options.harness, options.include)
    _check_budgets(options, config.budget.size)


def _check_budgets(options: CompareOptions, size: int) -> None:
    for times in options.budgets:
        if not (np.isfinite(times) and round(size * times) > 0):
            raise UserError(
                f"--budgets {times:g} leaves nothing of the budget of {size}; give multiples such as 0.5,2."
            )
    own = {size} if "uniform" in options.mixtures else set()
    if options.budgets and len(own | {round(size * times) for times in options.budgets}) < 2:
        raise UserError(
            "--budgets takes uniform at two sizes at least, to draw its loss against them; give two multiples, or one "
            "other than 1 and uniform among --mixtures."
        )


def evaluation_rows(pool: TaskPool, most: int | None = None) -> dict[str, Any]:
    """Validation rows of every task and target that has some: neither trained on nor read by the mixture's choice.

    Raises:
        UserError: a set without any.
    """
    for one in pool.all:
        if not one.validation:
            raise UserError(
                f"{one.name!r} has no rows left to evaluate; raise contexts.validation, give the task a `validation` "
                "file, or lower contexts.per_set."
            )
    return {s.name: first(s.validation, most) for s in (*pool.targets, *pool.tasks)}


Made = tuple[Path, dict[str, Any], "Probe | Finetuned | None"]


@dataclass(frozen=True)
class TrainingRun:
    """One training: a mixture's rows at one seed and budget."""

    name: str  # as asked for, or uniform@2 for twice the budget
    seed: int
    weights: Mapping[str, float]
    config: Config  # of this run: its seed, and its budget
    plan: RowPlan


def _runs(finished: FinishedRun, options: CompareOptions) -> Iterator[TrainingRun]:
    """All runs, seed by seed, so that a stopped comparison has whole seeds."""
    result = finished.result
    for seed in range(options.seeds):
        config = _seeded(finished.config, seed)
        for name, weights in mixture_weights(finished.config, result, options.mixtures, seed).items():
            yield training_run(finished, name, weights, seed)
        for times in options.budgets:
            budget = config.budget.model_copy(update={config.budget.unit: round(config.budget.size * times)})
            scaled = config.model_copy(update={"budget": budget})
            weights = _baseline("uniform", result, scaled, seed)
            yield TrainingRun(f"{SCALED}{times:g}", seed, weights, scaled, plan_rows(result.pool, weights, scaled))


def training_run(finished: FinishedRun, name: str, weights: Mapping[str, float], seed: int) -> TrainingRun:
    """The training of a mixture at the budget; a seed redraws rows, order and the adapter's initialisation."""
    config = _seeded(finished.config, seed)
    return TrainingRun(name, seed, weights, config, plan_rows(finished.result.pool, weights, config))


def _training(config: Config, options: CompareOptions) -> Config:
    """The config with the learning rate that mixtures are trained at."""
    full = FULL_LEARNING_RATE if options.method == "full" else config.probes.learning_rate
    probes = config.probes.model_copy(
        update={"learning_rate": options.learning_rate if options.learning_rate is not None else full}
    )
    return config.model_copy(update={"probes": probes})


def compared_settings(config: Config, options: CompareOptions) -> dict[str, Any]:
    """How the mixtures were trained and evaluated, for JSON."""
    probes = _training(config, options).probes
    trained = probes.model_dump(mode="json", include={"learning_rate", "batch", "max_length"})
    lora = {"lora": probes.lora.model_dump(mode="json")} if options.method == "lora" else {}
    asked = {key: value if value is None else str(value) for key, value in [("include", options.include)]}
    return {
        **asdict(options), **asked, **trained, **lora, "model": config.model.path, "seed": config.seed,
        "budget": {"unit": config.budget.unit, "size": config.budget.size, "max_epochs": config.budget.max_epochs},
    }  # fmt: skip


def _seeded(config: Config, seed: int) -> Config:
    from taskpgm.types import derive_seed

    return config.model_copy(update={"seed": derive_seed(config.seed, "compare", str(seed)) % 2**31})


def mixture_weights(config: Config, result: Result, mixtures: Sequence[str], seed: int) -> dict[str, dict[str, float]]:
    """Weights by mixture: the run's own, or a baseline's within what the tasks supply."""
    return {
        name: dict(result.mixture.shares) if name == OURS else _baseline(name, result, config, seed)
        for name in mixtures
    }


def bent_mixtures(config: Config, result: Result, mixtures: Sequence[str]) -> list[str]:
    """A sentence for each mixture that the supply makes another one."""
    names = [name for name in mixtures if name not in (OURS, "random")]
    supply, found = supply_bounds(result.pool, config), []
    for name in names:
        weights = baseline_mixture(name, result.pool, config, 0, result.affinity)
        found.append(bent_by_supply(name, weights, within_supply(weights, *supply)))
    return [sentence for sentence in found if sentence]


def _baseline(name: str, result: Result, config: Config, seed: int) -> dict[str, float]:
    weights = baseline_mixture(name, result.pool, config, seed, result.affinity)
    return within_supply(weights, *supply_bounds(result.pool, config))


class Trainings:
    """Trains and measures mixtures, side by side. What trainings share is made once a worker, and only if one is left
    to do: tokens, activations below the adapters, the evaluator."""

    def __init__(self, finished: FinishedRun, options: CompareOptions, halves: bool = False) -> None:
        """
        Args:
            halves: whether to train again what was measured before losses of half the rows were kept.
        """
        self.run = finished
        self.halves = halves
        self.pool = finished.result.pool
        self.options = options
        self.sets = evaluation_rows(self.pool, options.rows)
        self.rows: dict[tuple[int, int], Encoded] = {}  # tokens by task and row, of every run so far
        self.kept: dict[str, Any] = {}  # what trainings that are asked for one after another share

    @cached_property
    def setting(self) -> str:
        """Hash of what all runs have in common: measurements of one setting can be compared."""
        config, options = self.run.config, self.options
        training = _training(config, options).probes.model_dump(
            include={"learning_rate", "batch", "max_length"} | ({"lora"} if options.method == "lora" else set())
        )
        rows = [row for rows in self.sets.values() for row in rows] if options.accuracy else []
        graded = {row.key: [row.choices, row.verifier] for row in rows if row.choices or row.verifier}
        local = path_digest(options.include) if options.include and options.include.exists() else None
        return digest(
            [
                ORDER, self.run.engine.fingerprint, config.seed, config.budget.model_dump(), training, options.trainer,
                options.accuracy, options.harness, options.rows, [task.train_key for task in self.pool.tasks],
                {name: [row.key for row in rows] for name, rows in self.sets.items()},
                *([graded, local] if graded or local else []),
            ]
        )  # fmt: skip

    def measurements(self, runs: Sequence[TrainingRun], what: str) -> list[Measurement]:
        """Measurements of the runs, in their order; every one is kept as it is done. Progress is told as of `what`."""
        found = {(one.mixture, one.seed): one for one in self.as_done(runs, what)}
        return [found[run.name, run.seed] for run in runs]

    def as_done(self, runs: Sequence[TrainingRun], what: str) -> Iterator[Measurement]:
        """Measurements of the runs as they are had, those first that the run directory holds; the others are made side
        by side."""
        runs = list(runs)
        todo: dict[Path, list[TrainingRun]] = {}  # several if two mixtures are the same
        for run in (replace(run, config=_training(run.config, self.options)) for run in runs):
            path = self.path(run)
            kept = path.exists() and (path.with_suffix("").is_dir() or not self.options.keep)
            found = loaded(_measured, path, run, by="compare") if kept else None
            if found and (not self.halves or self._has_halves(found)):
                yield found
            else:
                todo.setdefault(path, []).append(run)
        if not todo:
            return
        (self.run.folder / "compare").mkdir(exist_ok=True)
        self._encode([run for run, *_ in todo.values()])
        for path, record, trained in self._made({path: run for path, (run, *_) in todo.items()}, what):
            if trained is not None:
                with atomic_folder(path.with_suffix(""), {}) as folder:
                    self.save(trained, folder)
            write_json(path, record)
            yield from (_measurement(run, record) for run in todo[path])

    def _has_halves(self, found: Measurement) -> bool:
        chosen = self.run.config.option_targets if self.options.accuracy else ()
        return bool(found.halves) and found.option_halves.keys() >= set(chosen)

    def _made(self, todo: Mapping[Path, TrainingRun], what: str) -> Iterator[Made]:
        """Record of every run as it is trained and measured, and what it trained if that is to be kept."""
        from taskpgm.evaluation.mixing import Mixed, Mixing
        from taskpgm.workers.dispatch import Job

        steps = {path: plan_steps(self.rows, run.plan, run.config) for path, run in todo.items()}
        largest = max(steps.values(), key=lambda of_run: max(_tokens(self.rows, step) for step in of_run))
        work = Mixing(self.options, self.run.config, self.sets, dict(self.rows), largest, self.kept)
        jobs = [
            Job(f"the training on {run.name!r}, seed {run.seed}", len(steps[path]),
                Mixed(str(path), run.name, run.config, steps[path]))
            for path, run in todo.items()
        ]  # fmt: skip
        progress, pieces = self.run.engine.progress, sum(len(steps[path]) + len(self.sets) for path in todo)
        with progress.stage(f"{what}, {len(todo)} trainings", pieces, "step"):
            for key, found, trained in self.run.engine.workers.map(work, jobs, progress):
                yield Path(key), self.record(todo[Path(key)], found), trained

    def record(self, run: TrainingRun, found: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept of a run."""
        return {
            "setting": self.setting, "mixture": run.name, "seed": run.seed, "weights": dict(run.weights),
            "rows": run.config.budget.size, **found,
        }  # fmt: skip

    def path(self, run: TrainingRun) -> Path:
        """Where the measurement of a run is kept."""
        key = digest([self.setting, _planned(run.plan), run.config.seed, run.config.budget.model_dump()])
        return self.run.folder / "compare" / f"{key[:16]}.json"

    def save(self, trained: "Probe | Finetuned", folder: Path) -> None:
        """What a run trained, as PEFT or transformers load it."""
        from taskpgm.evaluation.full_finetuning import Finetuned, save_finetuned

        if isinstance(trained, Finetuned):
            save_finetuned(self.run.engine.lm, trained, folder)
        else:
            trained.save(folder)

    def _encode(self, runs: Sequence[TrainingRun]) -> None:
        """Tokenise the rows of these runs that no run before them had."""
        from taskpgm.chat.encoder import ChatEncoder

        encoder = ChatEncoder(self.run.engine.tokenizer, self.run.config.probes.max_length)
        used = sorted({key for run in runs for key in _planned(run.plan)} - self.rows.keys())
        encoded = encoder.encode([peek(self.pool.tasks[task].train, row).conversation for task, row in used])
        self.rows |= {key: row for key, row in zip(used, encoded, strict=True) if row is not None}


def plan_steps(
    encoded: "Mapping[tuple[int, int], Encoded]", plan: RowPlan, config: Config
) -> list[list[tuple[int, int]]]:
    """The rows of a plan, by task and row of the pool, in its order, in equal optimiser steps of about `probes.batch`.

    Args:
        encoded: tokens of the rows that have some.
    """
    rows = [key for key in _planned(plan) if key in encoded]
    steps = min(len(rows), config.steps_of(config.budget.size))
    cuts = np.linspace(0, len(rows), steps + 1).round().astype(int)
    return [rows[a:b] for a, b in pairwise(cuts)]


def _tokens(encoded: "Mapping[tuple[int, int], Encoded]", step: Sequence[tuple[int, int]]) -> int:
    return sum(len(encoded[key].ids) for key in step)


def _planned(plan: RowPlan) -> list[tuple[int, int]]:
    return list(zip(plan.task.tolist(), plan.row.tolist(), strict=True))


def _benchmark(task: str, sets: Collection[str]) -> str:
    """What the accuracy of a benchmark is called, beside those of sets."""
    return f"{task} (harness)" if task in sets else task


def _accuracy_of(metrics: Mapping[str, float]) -> str | None:
    """Which of a benchmark's metrics is an accuracy, the plain ones first; None if none is."""
    names = [name for name in metrics if name.startswith(("acc", "exact_match")) and "_stderr" not in name]
    return min(names, key=lambda name: (name not in ("acc", "exact_match"), names.index(name)), default=None)


def _measured(path: Path, run: TrainingRun) -> Measurement:
    """What was kept of the run."""
    return _measurement(run, read_json(path))


def _measurement(run: TrainingRun, record: Mapping[str, Any]) -> Measurement:
    sets = record["sets"]
    accuracy = {name: one["accuracy"] for name, one in sets.items() if one["accuracy"] is not None}
    for task, metrics in record.get("harness", {}).items():
        if (metric := _accuracy_of(metrics)) is not None:
            accuracy[_benchmark(task, sets)] = metrics[metric]
    options = {name: one["option_loss"] for name, one in sets.items() if one.get("option_loss") is not None}
    seconds = sum(record["seconds"].values())
    halves, option_halves = (
        {name: tuple(one[key]) for name, one in sets.items() if one.get(key)} for key in ("halves", "option_halves")
    )
    return Measurement(
        run.name,
        run.seed,
        {n: one["token_loss"] for n, one in sets.items()},
        accuracy,
        record["rows"],
        seconds,
        dict(run.weights),
        halves,
        options,
        option_halves,
    )


def _equivalence(
    measurements: Mapping[tuple[str, int], Measurement], comparison: Comparison, options: CompareOptions, size: int
) -> dict[str, Any]:
    """How many rows uniform needs for the first mixture's macro loss on the targets (on the tasks without any)."""
    sets = comparison.targets or comparison.tasks
    shares = comparison.weights or dict.fromkeys(sets, 1 / len(sets))

    def macro(m: Measurement) -> float:
        return sum(shares[name] * m.loss[name] for name in sets)

    curve: dict[int, dict[int, float]] = {}
    for (name, seed), m in measurements.items():
        if name == "uniform" or name.startswith(SCALED):
            curve.setdefault(m.rows, {})[seed] = macro(m)
    ours = {seed: macro(m) for (name, seed), m in measurements.items() if name == options.mixtures[0]}
    found: Equivalence = budget_equivalence(curve, ours)
    finite = {k: v if isinstance(v, int) or v is None or np.isfinite(v) else None for k, v in asdict(found).items()}
    return {
        "sentence": f"uniform needs {found.times(size)} the budget to reach the loss of {options.mixtures[0]}",
        "curve": {str(rows): losses for rows, losses in sorted(curve.items())}, **finite,
    }  # fmt: skip
