"""Which rows a probe or a warm start is trained on, step by step, drawn from nothing but the run seed and names."""

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from taskpgm.chat.encoder import ChatEncoder, Encoded
from taskpgm.config import Config
from taskpgm.errors import UserError
from taskpgm.pool.drawing import Costs, check_some_fit, fits_last, fitting, peek, response_tokens
from taskpgm.pool.task_pool import Row
from taskpgm.types import Ints, derive_seed

FLAT = 0.02  # a fall of the loss, from a quarter of the steps to the next, that is too little to go on for: a guess
Schedule = list[Ints]  # indices of the rows of every optimiser step


def probe_schedule(rows: Costs, config: Config, task: str, seed: int) -> Schedule:
    """Row indices of every optimiser step: whole shuffled epochs, cut at the probe size, in equal steps.

    The size and the steps are counted in the unit of the budget, examples or response tokens, and are the same for
    every task, up to the one row that crosses the end. Rows that do not fit are passed over. With `probes.early_stop` a
    task of fewer rows ends when each has come once.

    Args:
        rows: the task's training rows, or the response tokens of each.
        task: its name, which the shuffles are drawn from.
        seed: which of the `probes.seeds`.
    """
    rng = np.random.default_rng(derive_seed(config.seed, "order", task, str(seed)))
    orders, costs = [np.zeros(0, np.int64)], [np.zeros(0)]
    left = float(config.probe_size)
    while left > 0:
        order, spent = _spend(rows, rng.permutation(len(rows)), left, config)
        if not len(order):
            raise UserError(f"Task {task!r} has no row that fits; raise probes.max_length or leave the task out.")
        orders, costs, left = [*orders, order], [*costs, spent], left - float(spent.sum())
        if config.probes.early_stop:
            break
    spent = np.cumsum(np.concatenate(costs))
    return _equal_steps(np.concatenate(orders), spent, config.steps_of(min(config.probe_size, float(spent[-1]))))


def is_flat(losses: Sequence[float], steps: int) -> bool:
    """Whether a training of so many steps may end here: half of them are done, and the mean loss of the last quarter is
    less than 2 % below that of the quarter before."""
    quarter = max(2, steps // 4)
    if len(losses) < max(steps / 2, 2 * quarter):
        return False
    return bool(np.mean(losses[-quarter:]) > (1 - FLAT) * np.mean(losses[-2 * quarter : -quarter]))


def _spend(rows: Costs, order: Ints, amount: float, config: Config) -> tuple[Ints, NDArray[np.float64]]:
    """The first rows in that order that cost so much, or all, and what each costs."""
    found, costs = [order[:0]], [np.zeros(0)]
    for block in fitting(rows, order):
        cost = _costs(rows, block, config)
        end = int(np.searchsorted(np.cumsum(cost), amount)) + 1
        found, costs, amount = [*found, block[:end]], [*costs, cost[:end]], amount - float(cost[:end].sum())
        if amount <= 0:
            break
    return np.concatenate(found), np.concatenate(costs)


def _costs(rows: Costs, which: Ints, config: Config) -> NDArray[np.float64]:
    """What rows cost in the unit of the budget."""
    if config.budget.unit == "examples":
        return np.ones(len(which))
    return response_tokens(rows, which).astype(np.float64)


def warm_start_schedule(tasks: Sequence[Costs], config: Config, seed: int) -> Schedule:
    """Rows of every optimiser step of a warm start, counted through all tasks one after another.

    The next row is always of the task that has spent least so far, ties in random order; a task goes through its rows
    in shuffled epochs, passing over those that do not fit.

    Args:
        tasks: of each its training rows, or the response tokens of each row.
    """
    rng = np.random.default_rng(derive_seed(config.seed, "warm start", str(seed)))
    offsets = np.cumsum([0, *map(len, tasks)])
    queue = [(0.0, float(rng.random()), task) for task in range(len(tasks))]
    heapq.heapify(queue)
    upcoming = [np.zeros(0, np.int64) for _ in tasks]  # from the end
    found: list[int] = []
    costs: list[float] = []
    total = 0.0
    while total < config.warm_size:
        spent, _, task = heapq.heappop(queue)
        while not fits_last(tasks[task], upcoming[task]):
            if not len(upcoming[task]):
                check_some_fit(tasks[task])
            upcoming[task] = upcoming[task][:-1] if len(upcoming[task]) else rng.permutation(len(tasks[task]))
        row, upcoming[task] = upcoming[task][-1:], upcoming[task][:-1]
        costs.append(float(_costs(tasks[task], row, config)[0]))
        total += costs[-1]
        found.append(int(offsets[task] + row[0]))
        heapq.heappush(queue, (spent + costs[-1], float(rng.random()), task))
    return _equal_steps(np.array(found), np.cumsum(costs), config.steps_of(config.warm_size))


def _equal_steps(order: Ints, spent: NDArray[np.float64], steps: int) -> Schedule:
    """The order cut into so many steps, equal in what is spent up to each row."""
    steps = min(steps, len(order))
    cuts = np.searchsorted(spent, np.arange(1, steps) * spent[-1] / steps, side="left") + 1
    return [step for step in np.split(order, np.minimum(cuts, len(order))) if len(step)]


def encoded_steps(encoder: ChatEncoder, rows: Sequence[Row], schedule: Sequence[Ints]) -> list[list[Encoded]]:
    """Encoded rows of every optimiser step; a row that comes again is the same object."""
    used = sorted({int(i) for step in schedule for i in step})
    encoded = dict(zip(used, encoder.encode([peek(rows, i).conversation for i in used]), strict=True))
    return [[row for i in step if (row := encoded[int(i)]) is not None] for step in schedule]
