"""`try_here`: some steps of training and some scoring on this machine, as many side by side as in a run.

Each is a trial of seconds on the experiment's own rows; memory is its peak, on a CPU a quarter more, and the adapters.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from time import perf_counter
from typing import NamedTuple, TypeVar

import torch

from taskpgm.chat.encoder import ChatEncoder, Encoded, tokens_of
from taskpgm.config import Config
from taskpgm.lm.devices import peak_memory
from taskpgm.lm.engine import Engine
from taskpgm.lm.memory import training_memory
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.packing import ends
from taskpgm.pool.task_pool import TaskPool
from taskpgm.probes.cache import WARM
from taskpgm.probes.demand import (
    Demand,
    Shape,
    context_tokens,
    longest_step,
    run_tokens,
    schedule_of,
    scored_groups,
    trainings_of,
)
from taskpgm.probes.divergence import jsd_matrix
from taskpgm.probes.probe import Probe
from taskpgm.probes.rates import Pace, Rates
from taskpgm.probes.schedule import encoded_steps
from taskpgm.probes.scoring import score_sets
from taskpgm.probes.training import Trainer
from taskpgm.progress import Progress
from taskpgm.system import Clock
from taskpgm.workers.dispatch import Do, Job
from taskpgm.workers.processes import threads

TRIAL_SECONDS = 5.0  # of training and of scoring each, in turn over the tasks: an estimate is waited for
STEPS = 2  # of each task: many tasks show how much memory batches of different sizes take together
# On a CPU the allocator keeps blocks of many sizes: a run's peak grows beyond its trial's (benchmarks/estimates.py).
GROWTH = 1.25
Item = TypeVar("Item")


class Trial(NamedTuple):
    """What was found."""

    rates: Rates
    memory: float  # bytes that a run takes here at most; on a GPU, of the GPU


def try_here(lm: LanguageModel, pool: TaskPool, config: Config, demand: Demand, progress: Progress) -> Trial:
    """Trains and scores for some seconds; nothing is kept."""
    clock, shape = Clock(), demand.shape
    with progress.stage("trying training"):
        pace, probe = _try_training(lm, shape, pool, config, progress)
        warm = _try_warm_start(lm, shape, pool, config) if demand.warm else pace
    training = _peak(lm, clock)
    groups = scored_groups(ChatEncoder(lm.tokenizer, config.probes.max_length), pool, config)
    clock = Clock()
    with progress.stage("trying scoring"):
        scoring = _try_scoring(lm, shape, groups, probe)
    memory = max(training, _peak(lm, clock) + demand.adapters)
    divergence = _try_divergence(lm, shape) if demand.positions else math.inf
    source = "Rates are of a trial of some seconds on these rows, on this machine, just now."
    return Trial(Rates(warm, pace, Pace(scoring / lm.processes, 0.0), divergence, source), memory)


def _peak(lm: LanguageModel, clock: Clock) -> float:
    """Bytes of memory that a run of what was tried will take at most; on a GPU, of the GPU."""
    return GROWTH * clock.peak() if lm.device.type == "cpu" else peak_memory(lm.device)


def _try_training(
    lm: LanguageModel, shape: Shape, pool: TaskPool, config: Config, progress: Progress
) -> tuple[Pace, Probe]:
    """How fast some steps of one task after another are, as many side by side as in a run, and a probe."""
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length)
    schedules = {task.name: schedule_of(pool, task.name, config) for task in pool.tasks}
    longest = {task.name: longest_step(encoder, task.train, schedules[task.name]) for task in pool.tasks}
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
            return timed_training(trainer, self.shape, *job)

        yield do

    def memory(self, lm: LanguageModel) -> float:
        """Bytes, roughly, of a training."""
        return training_memory(lm, [self.largest], self.shape.first)


def timed_training(
    trainer: Trainer, shape: Shape, first: list[Encoded], steps: Sequence[Sequence[Encoded]]
) -> tuple[tuple[float, int, float], Probe]:
    """(operations, steps, seconds) of the steps, or of the first one if that alone takes a trial's time; the probe.

    A process's first step allocates; the longest one sets its peak.
    """
    for timed in ([first], steps):
        started = perf_counter()
        probe = trainer.train("trial", timed)
        spent = perf_counter() - started
        if spent > TRIAL_SECONDS:
            break
    return (shape.training(*run_tokens(trainer.lm, timed)), len(timed), spent), probe


def _try_warm_start(lm: LanguageModel, shape: Shape, pool: TaskPool, config: Config) -> Pace:
    """How fast the first steps of the warm start are, which is one training on all cores."""
    rows, schedule = trainings_of(pool, config)[WARM]
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length)
    steps = encoded_steps(encoder, rows, schedule[: 2 * STEPS])
    trial, _ = timed_training(Trainer(lm, config), shape, longest_step(encoder, rows, schedule), steps)
    return Pace.fitted([trial])


def _try_scoring(lm: LanguageModel, shape: Shape, joined: Sequence[Sequence[Encoded]], probe: Probe) -> float:
    """Operations a second of all processes together, on groups of rows as a run scores them."""
    probes = [Probe(f"trial-{i}", 0, probe.settings, probe.weights) for i in range(4)]
    some = {str(i): _batch_of(rows, lm.token_budget) for i, rows in enumerate(joined)}
    groups = _alike({name: float(sum(ends(row) for row in rows)) for name, rows in some.items()}, lm)

    def seconds(tried: Sequence[Sequence[str]]) -> float:
        names = {name: [p.name for p in probes] for group in tried for name in group}
        started = perf_counter()
        for _ in score_sets(Engine.of(lm), {name: some[name] for name in names}, probes, names):
            pass
        return perf_counter() - started

    tried = groups[:1]
    spent = seconds(tried)
    if spent < TRIAL_SECONDS:  # the first one allocates; now as many as there is time for, in one go as in a run
        tried = groups[: math.ceil(TRIAL_SECONDS / spent)]
        spent = seconds(tried)
    done = [context_tokens(lm, some[name]) for group in tried for name in group]
    return sum(shape.scoring(*one, len(probes)) for one in done) / spent


def _batch_of(rows: Sequence[Encoded], tokens: int) -> list[Encoded]:
    """The first rows, until they have so many tokens."""
    before = [0, *accumulate(ends(row) for row in rows)]
    return [row for row, taken in zip(rows, before, strict=False) if taken < tokens]


def _try_divergence(lm: LanguageModel, shape: Shape, probes: int = 8, positions: int = 16) -> float:
    """Operations a second of one worker."""
    head = lm.model.get_output_embeddings()
    hidden = torch.randn(probes, positions, shape.width, generator=torch.Generator().manual_seed(0))
    weight = torch.ones(positions, 1, dtype=torch.float64)
    with torch.inference_mode(), threads(1):
        for _ in range(2):
            started = perf_counter()
            jsd_matrix(hidden, lambda h: head(h.to(lm.device, head.weight.dtype)), weight, shape.vocabulary)
            spent = perf_counter() - started
    return shape.divergence(positions, probes) / spent


def _alike(sizes: Mapping[str, float], lm: LanguageModel) -> list[list[str]]:
    """The names in groups of like size, one for every process; longest, shortest, then what lies between."""
    by_size = sorted(sizes, key=lambda name: -sizes[name])
    groups = [by_size[i : i + lm.processes] for i in range(0, len(by_size), lm.processes)]
    return [*groups[:1], *groups[1:][-1:], *_spread(groups[1:-1])]


def _spread(items: Sequence[Item]) -> list[Item]:
    """The items, far ones first: every prefix is spread over the list."""
    stride = max(1, round(len(items) * 0.382))
    while math.gcd(stride, len(items)) > 1:
        stride += 1
    return [items[(i * stride) % len(items)] for i in range(len(items))]
