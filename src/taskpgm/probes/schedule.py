"""Which rows a probe or a warm start is trained on, step by step, drawn from nothing but the run seed and names."""

import heapq
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from taskpgm.config import Config
from taskpgm.data.chat import ChatEncoder, Encoded
from taskpgm.data.pool import Row
from taskpgm.types import Ints, derive_seed

FLAT = 0.02  # a fall of the loss, from a quarter of the steps to the next, that is too little to go on for: a guess
Schedule = list[Ints]  # indices of the rows of every optimiser step


def probe_schedule(response_tokens: Sequence[int], config: Config, task: str, seed: int) -> Schedule:
    """Row indices of every optimiser step: whole shuffled epochs, cut at the probe size, in equal steps.

    The size and the steps are counted in the unit of the budget, examples or response tokens, and are the same for
    every task, up to the one row that crosses the end. With `probes.early_stop` a task of fewer rows ends when each has
    come once.

    Args:
        response_tokens: of each of the task's training rows.
        task: its name, which the shuffles are drawn from.
        seed: which of the `probes.seeds`.
    """
    rng = np.random.default_rng(derive_seed(config.seed, "order", task, str(seed)))
    cost = np.ones(len(response_tokens)) if config.budget.unit == "examples" else np.array(response_tokens, dtype=float)
    size = min(config.probe_size, cost.sum()) if config.probes.early_stop else config.probe_size
    epochs = math.ceil(size / cost.sum())
    order = np.concatenate([rng.permutation(len(cost)) for _ in range(epochs)])
    spent = np.cumsum(cost[order])
    order = order[: int(np.searchsorted(spent, size)) + 1]
    return _equal_steps(order, spent[: len(order)], config.steps_of(size))


def is_flat(losses: Sequence[float], steps: int) -> bool:
    """Whether a training of so many steps may end here: half of them are done, and the mean loss of the last quarter is
    less than 2 % below that of the quarter before."""
    quarter = max(2, steps // 4)
    if len(losses) < max(steps / 2, 2 * quarter):
        return False
    return bool(np.mean(losses[-quarter:]) > (1 - FLAT) * np.mean(losses[-2 * quarter : -quarter]))


def warm_start_schedule(response_tokens: Sequence[Sequence[int]], config: Config, seed: int) -> Schedule:
    """Rows of every optimiser step of a warm start, counted through all tasks one after another.

    The next row is always of the task that has spent least so far, ties in random order; a task goes through its rows
    in shuffled epochs.
    """
    rng = np.random.default_rng(derive_seed(config.seed, "warm start", str(seed)))
    offsets = np.cumsum([0, *map(len, response_tokens)])
    queue = [(0.0, float(rng.random()), task) for task in range(len(response_tokens))]
    heapq.heapify(queue)
    upcoming: list[list[int]] = [[] for _ in response_tokens]
    found: list[int] = []
    costs: list[float] = []
    total = 0.0
    while total < config.warm_size:
        spent, _, task = heapq.heappop(queue)
        upcoming[task] = upcoming[task] or rng.permutation(len(response_tokens[task])).tolist()
        row = upcoming[task].pop()
        costs.append(1.0 if config.budget.unit == "examples" else float(response_tokens[task][row]))
        total += costs[-1]
        found.append(int(offsets[task]) + row)
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
    encoded = dict(zip(used, encoder.encode([rows[i].conversation for i in used]), strict=True))
    return [[row for i in step if (row := encoded[int(i)]) is not None] for step in schedule]
