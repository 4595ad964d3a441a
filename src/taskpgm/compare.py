"""Trains and evaluates mixtures at the same budget, and predicts the outcome without training.

    train       one adapter a mixture and seed; a seed redraws rows, their order and the adapter's initialisation
    evaluate    loss and accuracy on the tasks' validation rows and on the targets' rows that are no contexts
    predict     (a) the loss of the probes' ensemble, F(p); (b) the loss under the probes merged with weights p

Both predictions read the target contexts, which chose the mixture, and no row of the evaluation.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import spearmanr

from taskpgm.baselines import baseline_mixture, within_supply
from taskpgm.comparison import Comparison, Equivalence, Measurement, budget_equivalence, compare_measurements
from taskpgm.config import Config
from taskpgm.energy import build_energy
from taskpgm.errors import UserError
from taskpgm.pipeline import Result, Say, Stages, write_json
from taskpgm.plan import plan_rows, supply_bounds
from taskpgm.store import RunDirectory, atomic_folder, digest
from taskpgm.tasks import TaskPool, Tell, tell_nobody

if TYPE_CHECKING:
    from taskpgm.chat import Encoded
    from taskpgm.evaluate import Evaluator
    from taskpgm.lm import LanguageModel
    from taskpgm.probes import Probe

OURS = "taskpgm"
TRUNK_MEMORY = 4 << 30  # bytes of activations of training rows that runs share


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, and how runs are trained and evaluated."""

    mixtures: tuple[str, ...] = (OURS, "uniform", "size")
    seeds: int = 3
    budgets: tuple[float, ...] = ()  # multiples of the budget at which uniform is trained too, for the equivalence
    trainer: str = "engine"  # or trl
    accuracy: bool = True  # mark answers too, which takes options and writing
    keep: bool = False  # adapters stay in the run directory
    rows: int | None = None  # rows a set that are evaluated, at most
    harness: tuple[str, ...] = ()  # benchmarks of lm-evaluation-harness, run on every adapter
    include: Path | None = None  # folder or file of the harness's local tasks


def run_comparison(stages: Stages, options: CompareOptions) -> tuple[Comparison, dict[str, Any]]:
    """Comparison of mixtures trained at the budget, written to `comparison.json`, and the budget equivalence.

    Every run is kept as it is done, so that a stopped comparison goes on where it was.

    Raises:
        UserError: a mixture that is none, a set without rows to evaluate, or what a run of the pipeline would raise.
    """
    stages.probe()
    stages.score()
    result = stages.sample()
    runs = list(_runs(stages, result, options))
    sets = evaluation_rows(result.pool, options.rows)
    worker = _Worker(stages, result.pool, runs, options, sets)
    measurements: dict[tuple[str, int], Measurement] = {}
    for done, run in enumerate(runs):
        stages.tell("comparing", done, len(runs))
        measurements[run.name, run.seed] = _measured(stages, result, run, options, sets, worker)
    stages.tell("comparing", len(runs), len(runs))
    asked = [m for (name, _), m in measurements.items() if "@" not in name]
    weights = {target.name: target.weight for target in stages.config.targets}
    comparison = compare_measurements(asked, result.pool.names, [s.name for s in result.pool.targets], weights or None)
    facts: dict[str, Any] = {}
    if options.budgets:
        facts["budget equivalence"] = _equivalence(measurements, comparison, options, stages.config.budget.size)
    write_json(stages.directory / "comparison.json", {**comparison.to_dict(), **facts})
    return comparison, facts


def compare_mixtures(
    config: Config, out: Path | str, options: CompareOptions | None = None, tell: Tell = tell_nobody,
    say: Say = lambda _: None,
) -> Comparison:  # fmt: skip
    """Comparison of mixtures on the run directory `out`, as `taskpgm compare` makes it; see `run_comparison`."""
    with RunDirectory(out) as directory:
        return run_comparison(Stages(config, directory, tell, say), options or CompareOptions())[0]


def predict_mixtures(
    config: Config, out: Path | str, mixtures: Sequence[str], merged: bool = True, tell: Tell = tell_nobody,
    say: Say = lambda _: None,
) -> list["Prediction"]:  # fmt: skip
    """Predictions for mixtures on the run directory `out`, as `taskpgm predict` makes them; see `run_prediction`."""
    with RunDirectory(out) as directory:
        return run_prediction(Stages(config, directory, tell, say), mixtures, merged)[0]


@dataclass(frozen=True)
class Prediction:
    """What the predictions say of one mixture; losses in nats a token on the target contexts."""

    mixture: str
    weights: Mapping[str, float]
    ensemble: float  # −E log Σ p_i P_i
    merged: float | None  # loss under Σ p_i B_i A_i
    measured: float | None = None  # mean over seeds of the macro loss on the evaluation rows, where compared


def run_prediction(
    stages: Stages, mixtures: Sequence[str], merged: bool = True
) -> tuple[list[Prediction], dict[str, Any]]:
    """Predictions for mixtures without training, written to `prediction.json`.

    Mixtures that `compare` trained at this budget are predicted too, every draw of `random` apart. Their measured
    losses stand beside the predictions, with the rank correlation (Spearman's) of either prediction with them.

    Raises:
        UserError: a mixture that is none, or a stage before that is missing.
    """
    result = stages.solve()
    weights = _weights(stages, result, mixtures, seed=0)
    measured = _trained_mixtures(stages, result.pool)
    weights |= {name: of_task for name, (of_task, _) in measured.items()}
    found = [
        replace(one, measured=measured[one.mixture][1] if one.mixture in measured else None)
        for one in predict_losses(stages, result, weights, merged)
    ]
    ranks = rank_correlations(found)
    write_json(
        stages.directory / "prediction.json", {"predictions": [asdict(one) for one in found], "rank correlation": ranks}
    )
    return found, ranks


def predict_losses(
    stages: Stages, result: Result, weights: Mapping[str, Mapping[str, float]], merged: bool = True
) -> list[Prediction]:
    """Predictions for these weights, on the contexts of the targets, or of the tasks where there are none."""
    pool = result.pool
    wanted = {target.name: target.weight for target in stages.config.targets}
    plain = stages.config.energy.model_copy(update={"kind": "likelihood", "prior": 0.0, "utility": {}})
    energy = build_energy(result.scores, result.affinity, plain, wanted, None)
    found = []
    merger = _Merger(stages, result) if merged else None
    for done, (name, of_task) in enumerate(weights.items()):
        stages.tell("predicting", done, len(weights))
        p = np.array([of_task.get(task, 0.0) for task in pool.names])
        found.append(Prediction(name, dict(of_task), float(energy.loss(p)), merger.loss(p) if merger else None))
    stages.tell("predicting", len(weights), len(weights))
    return found


def rank_correlations(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Spearman's correlation of either prediction with the measured losses; {} for fewer than three of these."""
    known = [one for one in predictions if one.measured is not None]
    if len(known) < 3:
        return {}
    measured = [one.measured for one in known]
    ranks: dict[str, Any] = {"mixtures": len(known), "ensemble": _spearman([one.ensemble for one in known], measured)}
    if all(one.merged is not None for one in known):
        ranks["merged"] = _spearman([one.merged for one in known], measured)
    return ranks


def merged_probe(probes: Sequence["Probe"], weights: Sequence[float]) -> "Probe":
    """One adapter whose update is Σ_i p_i B_i A_i: A stacked, B side by side and scaled by p_i (arXiv 2602.00747).

    The rank is the sum of the ranks of probes with a weight; alpha grows with it, so that alpha/r stays.

    Raises:
        UserError: probes of different layers or scales.
    """
    import torch

    from taskpgm.adapters import LEFT, RIGHT
    from taskpgm.probes import Probe

    used = [(p, float(w)) for p, w in zip(probes, weights, strict=True) if w > 0]
    first = used[0][0]
    scales = {p.settings.lora_alpha / (p.settings.r**0.5 if p.settings.use_rslora else p.settings.r) for p, _ in used}
    if len(scales) > 1 or any(p.weights.keys() != first.weights.keys() for p, _ in used):
        raise UserError("Probes of different layers or scales cannot be merged; predict with the ensemble alone.")
    merged = {}
    for key in first.weights:
        if key.endswith(LEFT):
            merged[key] = torch.cat([p.weights[key] for p, _ in used])
        elif key.endswith(RIGHT):
            merged[key] = torch.cat([p.weights[key] * w for p, w in used], 1)
    rank = next(iter(merged.values())).shape[0]
    settings = type(first.settings)(
        r=rank, lora_alpha=scales.pop() * rank, target_modules=first.settings.target_modules,
        layers_to_transform=first.settings.layers_to_transform, task_type="CAUSAL_LM",
        fan_in_fan_out=first.settings.fan_in_fan_out,
    )  # fmt: skip
    return Probe("merged", first.seed, settings, merged)


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
    return {s.name: s.validation[:most] for s in (*pool.targets, *pool.tasks)}


# --- runs ---


@dataclass(frozen=True)
class _Run:
    name: str  # as asked for, or uniform@2 for twice the budget
    seed: int
    weights: Mapping[str, float]
    config: Config  # of this run: its seed, and its budget


def _runs(stages: Stages, result: Result, options: CompareOptions) -> Iterator[_Run]:
    """All runs, seed by seed, so that a stopped comparison has whole seeds."""
    for seed in range(options.seeds):
        config = _seeded(stages.config, seed)
        for name, weights in _weights(stages, result, options.mixtures, seed).items():
            yield _Run(name, seed, weights, config)
        for times in options.budgets:
            size = round(config.budget.size * times)
            budget = config.budget.model_copy(update={config.budget.unit: size})
            scaled = config.model_copy(update={"budget": budget})
            yield _Run(f"uniform@{times:g}", seed, _baseline("uniform", result, scaled, seed), scaled)


def _seeded(config: Config, seed: int) -> Config:
    from taskpgm.probes import derive_seed

    return config.model_copy(update={"seed": derive_seed(config.seed, "compare", str(seed)) % 2**31})


def _weights(stages: Stages, result: Result, mixtures: Sequence[str], seed: int) -> dict[str, dict[str, float]]:
    return {
        name: dict(result.mixture.shares) if name == OURS else _baseline(name, result, stages.config, seed)
        for name in mixtures
    }


def _baseline(name: str, result: Result, config: Config, seed: int) -> dict[str, float]:
    """A baseline's weights, within what the tasks supply at this budget."""
    weights = baseline_mixture(name, result.pool, config, seed, result.affinity)
    return within_supply(weights, *supply_bounds(result.pool, config))


def _measured(
    stages: Stages, result: Result, run: _Run, options: CompareOptions, sets: Mapping[str, Any], worker: "_Worker"
) -> Measurement:
    """The measurement of a run, from the run directory where it is there and current."""
    from taskpgm.machine import Clock

    path = stages.directory / "compare" / f"{_key(stages, result, run, options, sets)[:16]}.json"
    if path.exists():
        return _measurement(run, json.loads(path.read_text()))
    clock = Clock()
    probe = worker.train(run)
    trained = clock.seconds
    found = worker.evaluator.evaluate(probe, mark=options.accuracy)
    record = {
        "mixture": run.name, "seed": run.seed, "weights": dict(run.weights), "rows": run.config.budget.size,
        "trained_tokens": probe.trained_tokens, "seconds": {"train": trained, "evaluate": clock.seconds - trained},
        **found.to_dict(),
    }  # fmt: skip
    if options.harness:
        from taskpgm.harness import run_harness

        record["harness"] = run_harness(stages.lm, probe, options.harness, options.include, options.rows)
    path.parent.mkdir(exist_ok=True)
    if options.keep:
        with atomic_folder(path.with_suffix(""), {}) as folder:
            probe.save(folder)
    write_json(path, record)
    return _measurement(run, record)


class _Worker:
    """What runs share, made when the first of them needs it: tokens, activations below the adapters, the evaluator."""

    def __init__(
        self, stages: Stages, pool: TaskPool, runs: Sequence[_Run], options: CompareOptions, sets: Mapping[str, Any]
    ) -> None:
        self.stages = stages
        self.pool = pool
        self.runs = runs
        self.options = options
        self.sets = sets

    @cached_property
    def encoder(self) -> Any:
        from taskpgm.chat import ChatEncoder

        return ChatEncoder(self.stages.lm.tokenizer, self.stages.config.probes.max_length)

    @cached_property
    def evaluator(self) -> "Evaluator":
        from taskpgm.evaluate import Evaluator

        return Evaluator(self.stages.lm, self.sets, self.stages.config)

    @cached_property
    def rows(self) -> "dict[tuple[int, int], Encoded]":
        """Tokens of every row that any run trains on, by task and row."""
        plans = [plan_rows(self.pool, run.weights, run.config) for run in self.runs]
        used = sorted({key for plan in plans for key in zip(plan.task.tolist(), plan.row.tolist(), strict=True)})
        encoded = self.encoder.encode([self.pool.tasks[task].train[row].messages for task, row in used])
        return {key: row for key, row in zip(used, encoded, strict=True) if row is not None}

    @cached_property
    def trunk(self) -> Any:
        from taskpgm.lm import Trunk

        lm, last = self.stages.lm, self.stages.config.probes.lora.last_layers
        first = len(lm.layers) - last if last else 0
        return Trunk(lm, first, lm.shared_prefix(list(self.rows.values())), TRUNK_MEMORY)

    def train(self, run: _Run) -> "Probe":
        """The adapter of a run."""
        steps = plan_steps(self.rows, self.pool, run.weights, run.config)
        if self.options.trainer == "trl":
            from taskpgm.trl_backend import train_with_trl

            return train_with_trl(self.stages.lm, run.name, steps, run.config)
        from taskpgm.probes import Trainer

        return Trainer(self.stages.lm, run.config, 0, self.stages.say).train(run.name, steps, trunk=self.trunk)


def _key(stages: Stages, result: Result, run: _Run, options: CompareOptions, sets: Mapping[str, Any]) -> str:
    """Hash of all that a run's outcome depends on."""
    config = run.config
    training = config.probes.model_dump(include={"lora", "learning_rate", "batch", "max_length"})
    counts = {task.name: task.count for task in plan_rows(result.pool, run.weights, config).tasks}
    return digest(
        [
            stages.fingerprint, counts, config.seed, config.budget.model_dump(), training, options.trainer,
            options.accuracy, options.harness, options.rows, [s.train_key for s in result.pool.tasks],
            {name: [row.key for row in rows] for name, rows in sets.items()},
        ]
    )  # fmt: skip


def plan_steps(
    encoded: "Mapping[tuple[int, int], Encoded]", pool: TaskPool, weights: Mapping[str, float], config: Config
) -> "list[list[Encoded]]":
    """The rows of a mixture's plan, in its order, in equal optimiser steps of about `probes.batch`.

    Args:
        encoded: tokens by task and row of the pool.
    """
    plan = plan_rows(pool, weights, config)
    keys = zip(plan.task.tolist(), plan.row.tolist(), strict=True)
    rows = [encoded[key] for key in keys if key in encoded]
    steps = min(len(rows), max(1, round(config.budget.size / config.step_size)))
    cuts = np.linspace(0, len(rows), steps + 1).round().astype(int)
    return [rows[a:b] for a, b in pairwise(cuts)]


def _measurement(run: _Run, record: Mapping[str, Any]) -> Measurement:
    sets = record["sets"]
    accuracy = {name: one["accuracy"] for name, one in sets.items() if one["accuracy"] is not None}
    for task, metrics in record.get("harness", {}).items():
        accuracy[task] = next(
            (metrics[m] for m in ("acc", "exact_match") if m in metrics), next(iter(metrics.values()))
        )
    seconds = sum(record["seconds"].values())
    return Measurement(
        run.name, run.seed, {n: one["token_loss"] for n, one in sets.items()}, accuracy, record["rows"], seconds
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
        if name.split("@")[0] == "uniform":
            curve.setdefault(m.rows, {})[seed] = macro(m)
    ours = {seed: macro(m) for (name, seed), m in measurements.items() if name == options.mixtures[0]}
    found: Equivalence = budget_equivalence(curve, ours)
    finite = {k: v if isinstance(v, int) or v is None or np.isfinite(v) else None for k, v in asdict(found).items()}
    return {
        "sentence": f"uniform needs {found.times(size)} the budget to reach the loss of {options.mixtures[0]}",
        "curve": {str(rows): losses for rows, losses in sorted(curve.items())}, **finite,
    }  # fmt: skip


# --- prediction ---


class _Merger:
    """Losses under merged probes, on the contexts of the targets or else of the tasks."""

    def __init__(self, stages: Stages, result: Result) -> None:
        from taskpgm.chat import ChatEncoder
        from taskpgm.scoring import encode_contexts

        self.probes = stages.trained()
        self.lm: LanguageModel = stages.lm
        names = [s.name for s in (result.pool.targets or result.pool.tasks)]
        weights = {target.name: target.weight for target in stages.config.targets}
        total = sum(weights.get(name, 1.0) for name in names)
        self.shares = {name: weights.get(name, 1.0) / total for name in names}
        encoder = ChatEncoder(self.lm.tokenizer, stages.config.probes.max_length)
        self.contexts = {name: rows for name, rows in encode_contexts(encoder, result.pool).items() if name in names}

    def loss(self, p: Any) -> float:
        """Mean over targets, then contexts, then positions, of −log P_merged."""
        from taskpgm.scoring import score_sets

        probe = merged_probe(self.probes, p)
        wanted = {name: [probe.name] for name in self.contexts}
        total = 0.0
        for name, blocks in score_sets(self.lm, self.contexts, [probe], wanted):
            lengths = [int(row.response.sum()) for row in self.contexts[name]]
            parts = np.split(blocks[probe.name, name].logp, np.cumsum(lengths)[:-1])
            total -= self.shares[name] * float(np.mean([part.mean() for part in parts]))
        return total


def _trained_mixtures(stages: Stages, pool: TaskPool) -> dict[str, tuple[dict[str, float], float]]:
    """Weights, and mean macro loss over seeds on the targets (else the tasks), of what `compare` trained here."""
    losses: dict[tuple[str, str], list[float]] = {}
    weights: dict[tuple[str, str], dict[str, float]] = {}
    names = [one.name for one in (pool.targets or pool.tasks)]
    wanted = {target.name: target.weight for target in stages.config.targets}
    for path in sorted((stages.directory / "compare").glob("*.json")):
        record = json.loads(path.read_text())
        if record["rows"] != stages.config.budget.size or not set(names) <= record["sets"].keys():
            continue
        key = (record["mixture"], digest(record["weights"]))
        name = record["mixture"].split("@")[0]
        if name.startswith("random"):
            key = (f"random, seed {record['seed']}", key[1])
        shares = [wanted.get(one, 1.0) for one in names]
        macro = float(np.average([record["sets"][one]["token_loss"] for one in names], weights=shares))
        losses.setdefault(key, []).append(macro)
        weights[key] = record["weights"]
    named: dict[str, tuple[dict[str, float], float]] = {}
    for (name, of_weights), found in losses.items():
        label = (
            name if name not in named else f"{name} ({of_weights[:6]})"
        )  # the same name with other weights, from before
        named[label] = (weights[name, of_weights], float(np.mean(found)))
    return named


def _spearman(a: Sequence[Any], b: Sequence[Any]) -> float:
    return float(spearmanr(a, b).statistic)
