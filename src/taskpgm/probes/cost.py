"""`RunEstimate`: what a run will take on this machine in time, memory and disk, from operations counted and a trial.

With P weights in the linear layers of a decoder layer, L layers of which the first F carry no adapter, width d,
vocabulary V, and per task the T tokens that all steps run (a shared prefix once a batch) and the U of them that are
distinct rows, R response tokens,

    training   2P·F·U + 4P·(L − F)·T + 4dV·R                     forward, and backward without weight gradients
    scoring    2P·F·C + (n + 1)·(2P·(L − F)·C + 2dV·R)           C context tokens, the trunk once for all probes
    divergence n·2dV·J + n²/2·J·V                                J sampled positions; the last term is logarithms

A trial of a few seconds on the experiment's own rows says how many operations a second this machine reaches in each,
and how long a step of training takes beside them. Trainings are spread over processes as a run spreads them. Memory is
the trial's peak, on a CPU a quarter more, and the adapters.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.optimize import nnls

from taskpgm.config import Config
from taskpgm.data.chat import ChatEncoder, Encoded, tokens_of
from taskpgm.data.drawing import Joined
from taskpgm.data.pool import Row, TaskPool, load_tasks
from taskpgm.lm.batching import batches
from taskpgm.lm.devices import peak_memory
from taskpgm.lm.engine import Engine
from taskpgm.lm.loading import load_model
from taskpgm.lm.memory import training_memory
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.packing import ends
from taskpgm.probes.cache import WARM
from taskpgm.probes.divergence import jsd_matrix
from taskpgm.probes.options import check_options, encode_options
from taskpgm.probes.probe import Probe, check_adapters
from taskpgm.probes.schedule import Schedule, encoded_steps, probe_schedule, warm_start_schedule
from taskpgm.probes.scoring import encode_contexts, score_sets
from taskpgm.probes.training import Trainer
from taskpgm.progress import QUIET, Progress
from taskpgm.system import Clock
from taskpgm.workers.dispatch import Do, Job

TRIAL_SECONDS = 5.0  # of training and of scoring each, in turn over the tasks: an estimate is waited for
STEPS = 2  # of each task: many tasks show how much memory batches of different sizes take together
# On a CPU the allocator keeps blocks of many sizes: a run's peak grows beyond its trial's (benchmarks/estimates.py).
GROWTH = 1.25
Item = TypeVar("Item")
SAMPLED_ROWS = 32  # of a task, from which its lengths and its shared prefix are read: a guess


@dataclass(frozen=True)
class RunEstimate:
    """Seconds by stage, bytes, and what they are made of."""

    seconds: dict[str, float]  # by stage
    memory: int  # largest resident memory in bytes; on a GPU, of the GPU
    disk: int  # bytes of the run directory
    trained_tokens: int  # tokens of all probes' rows, prompts included
    run_tokens: int  # of these, those that are run: a shared prefix once a batch
    scored_tokens: int  # context tokens times probes
    tera_operations: dict[str, float]  # by stage, 1e12 floating point operations
    giga_operations_per_second: dict[str, float]  # by stage, of all processes together

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return math.fsum(self.seconds.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "total_seconds": self.total}


@dataclass(frozen=True)
class Shape:
    """The model's sizes that operations depend on."""

    layer: float  # P, mean weights in the linear layers of a decoder layer
    layers: int  # L
    first: int  # F, lowest layer with an adapter
    width: int  # d
    vocabulary: int  # V

    def training(self, run: int, distinct: int, responses: int) -> float:
        """Operations of training on `run` tokens, `distinct` of them once through the trunk."""
        rest = 4 * self.layer * (self.layers - self.first) * run
        return 2 * self.layer * self.first * distinct + rest + 4 * self.width * self.vocabulary * responses

    def scoring(self, tokens: int, responses: int, probes: int) -> float:
        """Operations of scoring contexts under so many probes (the base model counts as one)."""
        one = 2 * self.layer * (self.layers - self.first) * tokens + 2 * self.width * self.vocabulary * responses
        return 2 * self.layer * self.first * tokens + probes * one

    def divergence(self, positions: int, probes: int) -> float:
        """Operations of all pairs' divergences; a logarithm and its sum count as eight."""
        head = 2 * self.width * self.vocabulary * positions * probes
        return head + 8 * probes * (probes + 1) / 2 * positions * self.vocabulary


@dataclass(frozen=True)
class Pace:
    """How fast this machine trains: operations a second, and seconds that every optimiser step takes beside them."""

    rate: float
    step: float

    def seconds(self, operations: float, steps: int) -> float:
        """Seconds of a training."""
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


def model_shape(lm: LanguageModel, config: Config) -> Shape:
    """Sizes of this model under this configuration."""
    head = lm.model.get_output_embeddings().weight
    weights = sum(
        m.weight.numel() for m in lm.layers.modules() if getattr(m, "weight", None) is not None and m.weight.ndim == 2
    )
    depth = len(lm.layers)
    return Shape(weights / depth, depth, config.probes.lora.first_layer(depth), head.shape[1], head.shape[0])


def run_tokens(lm: LanguageModel, steps: Sequence[Sequence[Encoded]]) -> tuple[int, int, int]:
    """(tokens run, distinct tokens, response tokens) of training on these steps."""
    rows = [row for step in steps for row in step]
    shared = lm.shared_prefix(rows)
    run = sum(_packed_tokens([ends(row) for row in step], shared, lm.token_budget) for step in steps)
    distinct = shared + sum(ends(row) - shared for row in {id(row): row for row in rows}.values())
    return run, distinct, sum(row.response_tokens for row in rows)


def context_tokens(lm: LanguageModel, contexts: Mapping[str, Sequence[Encoded]]) -> tuple[int, int]:
    """(tokens run, response tokens) of one pass over the contexts."""
    run = sum(
        _packed_tokens([ends(row) for row in rows], lm.shared_prefix(rows), lm.token_budget)
        for rows in contexts.values()
    )
    return run, sum(row.response_tokens for rows in contexts.values() for row in rows)


def estimate_run(config: Config, progress: Progress = QUIET) -> RunEstimate:
    """Estimate of `taskpgm run` on this machine; reads all rows and loads the model, trains nothing that is kept.

    Raises:
        UserError: what a run would raise for its data or its model.
    """
    clock = Clock()
    lm = load_model(config.model)
    loading = clock.seconds
    check_adapters(config, lm.model)
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length, lm.limits)
    pool = load_tasks(config, encoder.lengths, progress)
    reading = clock.seconds - loading
    shape = model_shape(lm, config)
    trainings = _trainings(pool, config)
    with progress.stage("trying training"):
        pace, probe = _try_training(lm, shape, pool, config, progress)
        warm_pace = _try_warm_start(lm, shape, trainings[WARM], config) if WARM in trainings else pace
    peak_training = _peak(lm, clock)
    check_options(pool, config)
    options = {name: one.rows for name, one in encode_options(encoder, pool, config).items()}
    contexts = encode_contexts(encoder, pool, config.contexts.positions) | options
    clock = Clock()
    with progress.stage("trying scoring"):
        scoring_rate = _try_scoring(lm, shape, contexts, probe)
    peak_scoring = _peak(lm, clock)

    n, seeds = len(pool.tasks), config.probes.seeds
    run = {name: _tokens_to_run(lm, encoder, rows, schedule) for name, (rows, schedule) in trainings.items()}
    work = {name: seeds * shape.training(*tokens) for name, tokens in run.items()}
    steps = {name: seeds * len(schedule) for name, (_, schedule) in trainings.items()}
    probes = [name for name in run if name != WARM]
    warm = WARM in trainings
    tokens, responses = context_tokens(lm, contexts)
    adapters = (n + warm) * seeds
    scored = adapters + (not warm)
    scoring = shape.scoring(tokens, responses, scored)
    seconds = {"load the model": loading, "read tasks": reading}
    operations = {}
    if warm:
        operations["train the warm start"] = work[WARM]
        seconds["train the warm start"] = warm_pace.seconds(work[WARM], steps[WARM])
    operations |= {"train probes": sum(work[name] for name in probes), "score contexts": scoring}
    seconds["train probes"] = makespan([pace.seconds(work[name], steps[name]) for name in probes], lm.processes)
    seconds["score contexts"] = scoring / scoring_rate
    positions = 0
    if config.affinity.kind == "jsd":
        columns = sum(row.response_tokens for task in pool.tasks for row in contexts[task.name])
        positions = min(columns, config.affinity.jsd_positions)
        operations["divergences"] = seeds * shape.divergence(positions, n)
        seconds["divergences"] = operations["divergences"] / _try_divergence(lm, shape)
    adapter = sum(w.nbytes for w in probe.weights.values())
    kept = adapters * sum(w.numel() for w in probe.weights.values()) * next(lm.model.parameters()).element_size()
    disk = adapters * (adapter + 4 * responses + 4 * positions * shape.width) + pool.bytes
    return RunEstimate(
        seconds, int(max(peak_training, peak_scoring + adapters * adapter + kept)), int(disk),
        run_tokens=seeds * sum(tokens for tokens, *_ in run.values()),
        trained_tokens=seeds * sum(
            rows[int(i)].tokens for rows, schedule in trainings.values() for step in schedule for i in step
        ),
        scored_tokens=sum(len(r.ids) for rows in contexts.values() for r in rows) * scored,
        tera_operations={k: v / 1e12 for k, v in operations.items()},
        giga_operations_per_second={k: v / 1e9 / seconds[k] for k, v in operations.items() if seconds[k]},
    )  # fmt: skip


def _peak(lm: LanguageModel, clock: Clock) -> float:
    """Bytes of memory that a run of what was tried will take at most; on a GPU, of the GPU."""
    return GROWTH * clock.peak() if lm.device.type == "cpu" else peak_memory(lm.device)


def makespan(seconds: Sequence[float], processes: int) -> float:
    """Seconds until all is done by so many processes, each of which takes the longest that is left."""
    busy = [0.0] * max(1, min(processes, len(seconds)))
    for one in sorted(seconds, reverse=True):
        busy[busy.index(min(busy))] += one
    return max(busy)


def _try_training(
    lm: LanguageModel, shape: Shape, pool: TaskPool, config: Config, progress: Progress
) -> tuple[Pace, Probe]:
    """How fast some steps of one task after another are, as many side by side as in a run, and a probe."""
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length)
    schedules = {task.name: _schedule(pool, task.name, config) for task in pool.tasks}
    longest = {task.name: _longest(encoder, task.train, schedules[task.name]) for task in pool.tasks}
    work, engine = Trying(config, shape, [max(longest.values(), key=lambda rows: tokens_of([rows]))]), Engine.of(lm)
    started, probe = perf_counter(), None
    trials: list[tuple[float, int, float]] = []
    for group in _alike({task: float(sum(len(row.ids) for row in rows)) for task, rows in longest.items()}, lm):
        jobs = [
            Job(f"the trial of {task!r}", tokens_of([longest[task]]),
                (longest[task], encoded_steps(encoder, pool[task].train, schedules[task][:STEPS])))
            for task in group
        ]  # fmt: skip
        done = list(engine.workers.map(work, jobs, progress))
        trials, probe = trials + [trial for trial, _ in done], done[-1][1]
        if perf_counter() - started > TRIAL_SECONDS:
            break
    assert probe is not None
    return Pace.fitted(trials), probe


@dataclass(frozen=True)
class Trying:
    """Timed trainings; a job is a long step to begin with, and the steps that are timed."""

    config: Config
    shape: Shape
    largest: Sequence[Sequence[Encoded]]
    alone: bool = False

    @contextlib.contextmanager
    def opened(self, lm: LanguageModel, progress: Progress) -> Iterator[Do]:
        """Within, what gives (operations, steps, seconds) and the probe."""
        trainer = Trainer(lm, self.config)

        def do(
            job: tuple[list[Encoded], Sequence[Sequence[Encoded]]], progress: Progress
        ) -> tuple[tuple[float, int, float], Probe]:
            trainer.progress = progress
            first, steps = job
            trainer.train("trial", [first])  # a process's first step allocates; the longest one sets its peak
            started = perf_counter()
            found = trainer.train("trial", steps)
            return (self.shape.training(*run_tokens(lm, steps)), len(steps), perf_counter() - started), found

        yield do

    def memory(self, lm: LanguageModel) -> float:
        """Bytes, roughly, of a training."""
        return training_memory(lm, [self.largest], self.shape.first)


def _try_warm_start(lm: LanguageModel, shape: Shape, training: tuple[Sequence[Row], Schedule], config: Config) -> Pace:
    """How fast the first steps of the warm start are, which is one training on all cores."""
    rows, schedule = training
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length)
    steps = encoded_steps(encoder, rows, schedule[: 2 * STEPS])
    trainer = Trainer(lm, config)
    trainer.train("trial", [_longest(encoder, rows, schedule)])
    started = perf_counter()
    trainer.train("trial", steps)
    return Pace(shape.training(*run_tokens(lm, steps)) / (perf_counter() - started), 0.0)


def _alike(sizes: Mapping[str, float], lm: LanguageModel) -> list[list[str]]:
    """The names in groups of like size, one for every process; longest, shortest, then what lies between."""
    by_size = sorted(sizes, key=lambda name: -sizes[name])
    groups = [by_size[i : i + lm.processes] for i in range(0, len(by_size), lm.processes)]
    return [*groups[:1], *groups[1:][-1:], *_spread(groups[1:-1])]


def _longest(encoder: ChatEncoder, rows: Sequence[Row], schedule: Schedule) -> list[Encoded]:
    """The rows of the optimiser step that has the most tokens."""
    step = max(schedule, key=lambda step: sum(rows[int(i)].tokens for i in step))
    return _encode(encoder, [rows[int(i)] for i in step])


def _try_scoring(lm: LanguageModel, shape: Shape, contexts: Mapping[str, list[Encoded]], probe: Probe) -> float:
    probes = [Probe(f"trial-{i}", 0, probe.settings, probe.weights) for i in range(4)]
    groups = _alike({name: float(sum(len(row.ids) for row in rows)) for name, rows in contexts.items()}, lm)

    def seconds(some: Sequence[Sequence[str]]) -> float:
        names = {name: [p.name for p in probes] for group in some for name in group}
        started = perf_counter()
        for _ in score_sets(Engine.of(lm), {name: contexts[name] for name in names}, probes, names):
            pass
        return perf_counter() - started

    some = groups[:1]
    spent = seconds(some)
    if spent < TRIAL_SECONDS:  # the first one allocates; now as many as there is time for, in one go as in a run
        some = groups[: math.ceil(TRIAL_SECONDS / spent)]
        spent = seconds(some)
    done = context_tokens(lm, {name: contexts[name] for group in some for name in group})
    return shape.scoring(*done, len(probes)) / spent


def _try_divergence(lm: LanguageModel, shape: Shape, probes: int = 8, positions: int = 16) -> float:
    head = lm.model.get_output_embeddings()
    hidden = torch.randn(probes, positions, shape.width, generator=torch.Generator().manual_seed(0))
    weight = torch.ones(positions, 1, dtype=torch.float64)
    with torch.inference_mode():
        for _ in range(2):
            started = perf_counter()
            jsd_matrix(hidden, lambda h: head(h.to(lm.device, head.weight.dtype)), weight, shape.vocabulary)
            spent = perf_counter() - started
    return shape.divergence(positions, probes) / spent


def _tokens_to_run(
    lm: LanguageModel, encoder: ChatEncoder, train: Sequence[Row], schedule: Schedule
) -> tuple[int, int, int]:
    """As `run_tokens` of one probe's training; lengths and the shared prefix are read from some of its rows."""
    used = [int(i) for step in schedule for i in step]
    rows = _encode(encoder, [train[i] for i in used[:SAMPLED_ROWS]])
    shared, length = lm.shared_prefix(rows), float(np.mean([ends(row) for row in rows]))
    per_step = max(1, math.ceil(len(used) / len(schedule) * (length - shared) / lm.token_budget))
    run = len(used) * (length - shared) + per_step * len(schedule) * shared
    distinct = len(set(used)) * (length - shared) + shared
    responses = sum(train[i].response_tokens for i in used)
    return round(run), round(distinct), responses


def _trainings(pool: TaskPool, config: Config) -> dict[str, tuple[Sequence[Row], Schedule]]:
    """Rows of every training of one probe seed, and their schedules."""
    found: dict[str, tuple[Sequence[Row], Schedule]] = {
        task.name: (pool[task.name].train, _schedule(pool, task.name, config))
        for task in config.tasks
        if not task.adapter
    }
    if config.probes.warm_start and len(found) == len(pool.tasks):
        tasks = [task.train for task in pool.tasks]
        found[WARM] = (Joined(tasks), warm_start_schedule(tasks, config, seed=0))
    return found


def _schedule(pool: TaskPool, task: str, config: Config) -> Schedule:
    return probe_schedule(pool[task].train, config, task, seed=0)


def _packed_tokens(lengths: Sequence[int], shared: int, budget: int) -> int:
    return sum(shared + sum(lengths[i] - shared for i in batch) for batch in batches(lengths, budget, shared))


def _encode(encoder: ChatEncoder, rows: Sequence[Row]) -> list[Encoded]:
    return [row for row in encoder.encode([row.conversation for row in rows]) if row is not None]


def _spread(items: Sequence[Item]) -> list[Item]:
    """The items, far ones first: every prefix is spread over the list."""
    stride = max(1, round(len(items) * 0.382))
    while math.gcd(stride, len(items)) > 1:
        stride += 1
    return [items[(i * stride) % len(items)] for i in range(len(items))]
