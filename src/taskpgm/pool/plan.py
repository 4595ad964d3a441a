"""`RowPlan`: which rows the training set holds, how often, in which order.

Shapes: R rows of the training set, repeats included.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from taskpgm.config import Config
from taskpgm.errors import UserError
from taskpgm.mixture.energies import Budget
from taskpgm.pool.drawing import blocks, response_tokens, taken
from taskpgm.pool.meter import CHUNK
from taskpgm.pool.task_pool import TaskPool, TaskSet
from taskpgm.progress import many
from taskpgm.types import Brief, Floats, Ints

Unit = Literal["examples", "tokens"]

# Shares come out of a solver and products such as 0.29 · 100 out of floats: a millionth of a row is rounding noise.
ROUNDING = 1e-6
TWOFOLD = 2.0  # shares of rows and of tokens that differ so much are named
COPY = 0.9  # of all rows of two tasks, that both hold: as copies of each other
LEAST_SHARE = 0.01  # of either, below which nobody needs to hear of it
LESS_OFTEN = 0.1  # by which a row is seen less often than with uniform, before that is said


@dataclass(frozen=True)
class TaskPlan:
    """What the training set holds of one task."""

    name: str
    weight: float  # the share that was asked for, in the unit of the budget
    count: int  # rows written, repeats included
    tokens: int  # response tokens written
    rows: int  # training rows available; an estimate if not all were measured
    epochs: float  # count / rows
    row_share: float
    token_share: float
    replaced: int = 0  # rows that turned out not to fit when they were drawn; the next took their places


@dataclass(frozen=True, eq=False, repr=False)
class RowPlan(Brief):
    """The training set: its i-th row is row[i] of the training rows of task task[i].

    Inside an epoch no row is drawn twice: a task's rows are used ⌊count/rows⌋ or ⌈count/rows⌉ times each. Every task is
    spread evenly over the whole, so that no part of the training is another mixture.
    """

    unit: Unit
    budget: int
    tasks: tuple[TaskPlan, ...]  # in the order of pool.tasks
    task: Ints  # (R,) index into pool.tasks
    row: Ints  # (R,) index into that task's training rows
    repeat: Ints  # (R,) which pass over them this belongs to, 0..

    def __len__(self) -> int:
        return len(self.task)

    @property
    def described(self) -> str:
        """How many rows, and how many of them are seen again, in words."""
        again = int((self.repeat > 0).sum())
        return many(len(self), "row") + (f", {again:,} of them seen before" if again else "")

    def __getitem__(self, name: str) -> TaskPlan:
        """The plan of the task of that name."""
        return next(task for task in self.tasks if task.name == name)


def rows_again(data: Mapping[str, Any]) -> str | None:
    """How often a row is seen, on average over the training set, if repetition has a price and that keeps it down.

    Args:
        data: mixture.json.
    """
    tasks = [task for task in data["tasks"] if task.get("epochs") and "uniform" in task["references"]]
    if not tasks or not data["energy"]["settings"].get("repetition_price"):
        return None
    once = np.array([task["weight"] / task["epochs"] for task in tasks])
    p = np.array([task["weight"] for task in tasks])
    u = np.array([min(task["references"]["uniform"], task["max_share"]) for task in tasks])
    seen, uniform = (float((q * np.maximum(q / once, 1)).sum() / q.sum()) for q in (p, u))
    if seen > uniform - LESS_OFTEN:
        return None
    return (
        f"rows are seen {seen:.1f} times on average, with uniform {uniform:.1f} times: repetition has a price beside "
        "what probes see (energy.repetition)"
    )


def tokens_apart(shares: Mapping[str, tuple[float, float]], unit: Unit) -> str | None:
    """A sentence on the task whose shares of rows and of response tokens differ most, if twofold, and the remedy.

    Args:
        shares: (of rows, of response tokens) of each task.
        unit: of the budget.
    """
    apart = [
        (max(rows / tokens, tokens / rows), name)
        for name, (rows, tokens) in shares.items()
        if min(rows, tokens) > 0 and max(rows, tokens) >= LEAST_SHARE
    ]
    far = sorted((one for one in apart if one[0] >= TWOFOLD), reverse=True)
    if not far:
        return None
    name = far[0][1]
    rows, tokens = shares[name]
    others = f" (twofold apart too: {many(len(far) - 1, 'more task')})" if len(far) > 1 else ""
    if unit == "tokens":
        remedy = "shares are of tokens, which trainers average their loss over; with budget.examples they are of rows"
    else:
        remedy = "trainers average their loss over tokens; with budget.tokens shares are of tokens"
    return f"{name} has {rows:.1%} of the rows and {tokens:.1%} of the response tokens{others}: {remedy}"


def uniform_mixture(pool: TaskPool) -> dict[str, float]:
    """The same share for every task."""
    return {name: 1 / len(pool.tasks) for name in pool.names}


def distinct_mixture(pool: TaskPool) -> dict[str, float]:
    """As uniform, but tasks that hold the same rows count as one: r_i ∝ 1 / Σ_j J_ij, J_ij = |A_i ∩ A_j| / |A_i ∪ A_j|
    the Jaccard index of their rows, so that m copies of a task have 1/m each."""
    each = 1 / np.maximum(_likeness(pool).sum(axis=1), 1)
    return dict(zip(pool.names, (each / each.sum()).tolist(), strict=True))


def copies(pool: TaskPool) -> tuple[tuple[str, ...], ...]:
    """Groups of two or more tasks that hold nearly the same rows: linked by a Jaccard index of `COPY` or more."""
    _, group = connected_components(_likeness(pool) >= COPY, directed=False)
    found = [tuple(pool.names[i] for i in np.flatnonzero(group == label)) for label in np.unique(group)]
    return tuple(names for names in found if len(names) > 1)


def _likeness(pool: TaskPool) -> Floats:
    """(n, n) Jaccard indices of the tasks' rows."""
    n = len(pool.tasks)
    shared, sizes = pool.overlap[:n, :n], np.diag(pool.overlap)[:n]
    return np.asarray(shared / np.maximum(sizes[:, None] + sizes[None, :] - shared, 1))


def size_mixture(pool: TaskPool, unit: Unit) -> dict[str, float]:
    """Shares proportional to a task's training rows, or to their response tokens."""
    sizes = _sizes(pool, unit)
    return {name: size / sum(sizes.values()) for name, size in sizes.items()}


def budget_of(pool: TaskPool, config: Config) -> Budget:
    """What the budget asks of the tasks' rows; tasks that hold the same rows share them, as in `distinct_mixture`."""
    sizes, size = _sizes(pool, config.budget.unit), config.budget.size
    shared = dict(zip(pool.names, np.maximum(_likeness(pool).sum(axis=1), 1).tolist(), strict=True))
    return Budget({name: sizes[name] / shared[name] / size for name in sizes}, max(1.0, size / config.warm_size))


def _sizes(pool: TaskPool, unit: Unit) -> dict[str, int]:
    return {task.name: task.rows if unit == "examples" else task.response_tokens for task in pool.tasks}


def supply_bounds(pool: TaskPool, config: Config) -> tuple[dict[str, float], dict[str, float]]:
    """Least and largest share of every task: its min_share, and the smaller of its max_share and its supply.

    The supply is what `budget.max_epochs` passes over its training rows give (⌊max_epochs · N_i⌋ rows; in tokens, the
    response tokens of those rows), over the budget. Bounds on groups of tasks are not in it.

    Raises:
        UserError: the budget exceeds the supply of all tasks, or a min_share that of its task.
    """
    budget, unit, epochs = config.budget.size, config.budget.unit, config.budget.max_epochs
    supplies = {task.name: _supply(task, config) for task in pool.tasks}
    total = sum(supplies.values())
    if total < budget:
        once = sum(task.rows if unit == "examples" else task.response_tokens for task in pool.tasks)
        raise UserError(
            f"budget.{unit} {budget} exceeds the supply: the tasks have {total} under max_epochs {epochs:g}; "
            f"{f'lower it to {total}, ' if total else ''}raise max_epochs to {math.ceil(budget / once)}, or add data."
        )
    lo = {task.name: task.min_share for task in config.tasks}
    hi = {task.name: min(task.max_share, supplies[task.name] / budget) for task in config.tasks}
    for name in lo:
        if lo[name] > hi[name]:
            raise UserError(
                f"Task {name!r} has min_share {lo[name]:g} of {budget} {unit}, but supplies only {supplies[name]} "
                f"(a share of {hi[name]:.4f}) under max_epochs {epochs:g}; lower min_share or add data."
            )
    return lo, hi


def plan_rows(pool: TaskPool, weights: Mapping[str, float], config: Config) -> RowPlan:
    """Row plan whose shares are the weights, in the unit of the budget.

    A budget in examples is met exactly (see `round_shares`), one in response tokens to within a row, the rounding error
    of each task being carried to the next. Which rows of a task are drawn, and about where each stands, follows from
    only the run seed, its name and its count: two mixtures that hardly differ give training sets that hardly differ.

    Args:
        pool: where rows come from.
        weights: shares that sum to one; a task left out has none. Bounds on shares are kept if the weights keep
            them, those on groups to within a row a task.
        config: its budget, seed and bounds count here.

    Raises:
        UserError: the budget, or a task's share of it, exceeds what there is under `budget.max_epochs`.
    """
    assert set(weights) <= set(pool.names), "weights name unknown tasks"
    total = math.fsum(weights.values())
    assert min(weights.values()) >= 0, "weights are negative"
    assert abs(total - 1) < 1e-6, "weights do not sum to one"
    shares = {name: weights.get(name, 0.0) / total for name in pool.names}
    lo, hi = supply_bounds(pool, config)
    _check_supply(pool, shares, config)
    if config.budget.unit == "examples":
        counts = round_shares(shares, config.budget.size, {t.name: _row_supply(t, config) for t in pool.tasks}, lo, hi)
    else:
        counts = _token_counts(pool, shares, config)
    return _planned(pool, shares, counts, config)


def round_shares(
    shares: Mapping[str, float],
    total: int,
    supply: Mapping[str, int],
    lo: Mapping[str, float],
    hi: Mapping[str, float],
) -> dict[str, int]:
    """Integers summing to `total`, at most `supply`, that are nearest to shares · total (largest remainder).

    Bounds on shares that the shares themselves keep hold for the integers too, or if whole numbers do not allow it
    (three tasks of at most a third each, ten rows) to less than one; a share of zero stays zero likewise. Ties go to
    the first name.

    Args:
        shares: sum to one; share · total is at most the supply.
        total: at most the sum of the supply.
        supply: the most that each may get, whatever its share.
        lo: least shares.
        hi: largest shares.
    """
    exact = {name: share * total for name, share in shares.items()}
    least = {name: math.ceil(min(lo[name], share) * total - ROUNDING) for name, share in shares.items()}
    most = {name: math.floor(max(hi[name], share) * total + ROUNDING) if share else 0 for name, share in shares.items()}
    counts = {name: min(max(math.floor(exact[name]), least[name]), most[name], supply[name]) for name in shares}
    while sum(counts.values()) < total:
        able = [name for name in shares if counts[name] < supply[name]]
        counts[min(able, key=lambda name: (counts[name] >= most[name], counts[name] - exact[name], name))] += 1
    while sum(counts.values()) > total:
        able = [name for name in shares if counts[name] > 0]
        counts[min(able, key=lambda name: (counts[name] <= least[name], exact[name] - counts[name], name))] -= 1
    return counts


def _check_supply(pool: TaskPool, shares: Mapping[str, float], config: Config) -> None:
    budget = config.budget
    for task in pool.tasks:
        supply, need = _supply(task, config), shares[task.name] * budget.size
        if need > supply * (1 + 1e-6) + ROUNDING:
            raise UserError(
                f"Task {task.name!r} is to be {shares[task.name]:.4f} of {budget.size} {budget.unit}, but supplies "
                f"only {supply} under max_epochs {budget.max_epochs:g}; lower its share, raise max_epochs, or add data."
            )


def _row_supply(task: TaskSet, config: Config) -> int:
    return math.floor(config.budget.max_epochs * task.rows + ROUNDING)


def _supply(task: TaskSet, config: Config) -> int:
    """Rows or response tokens that `max_epochs` passes give: in tokens, those of the rows that would be drawn."""
    rows = _row_supply(task, config)
    if config.budget.unit == "examples":
        return rows
    if task.estimate:
        return round(rows * task.response_tokens / max(task.rows, 1))
    passes, rest = divmod(rows, len(task.train))
    return passes * task.response_tokens + int(_tokens(task)[_order(task, passes, config.seed)][:rest].sum())


def _token_counts(pool: TaskPool, shares: Mapping[str, float], config: Config) -> dict[str, int]:
    """Rows of each task, so that response tokens sum to the budget within half of the longest row.

    Every task takes the rows whose tokens come nearest to its share plus the error so far. One that cannot (all its
    supply is used, or nothing is left to take away) passes on no more error than it was given, so the bound stands
    whatever the order; those with most slack come last, where they absorb what remains.
    """
    exact = {name: share * config.budget.size for name, share in shares.items()}
    slack = {task.name: min(exact[task.name], _supply(task, config) - exact[task.name]) for task in pool.tasks}
    counts = dict.fromkeys(pool.names, 0)
    error = 0.0
    for name in sorted((name for name in pool.names if shares[name]), key=lambda name: (slack[name], name)):
        counts[name], tokens = _nearest_rows(pool[name], exact[name] + error, config)
        error += exact[name] - tokens
    if not any(counts.values()):
        raise UserError(f"budget.tokens {config.budget.size} is less than half a row's; raise it.")
    return counts


def _nearest_rows(task: TaskSet, target: float, config: Config) -> tuple[int, int]:
    """How many rows to draw so that their response tokens come nearest to the target, and those tokens."""
    if task.estimate:
        return _nearest_drawn(task, target, config)
    once = task.response_tokens
    passes = max(0, math.floor(target / once))
    ends = np.cumsum([0, *_tokens(task)[_order(task, passes, config.seed)]])
    part = int(np.argmin(np.abs(passes * once + ends - target)))
    count, tokens = passes * len(task.train) + part, passes * once + int(ends[part])
    supply = _row_supply(task, config)
    return (count, tokens) if count <= supply else (supply, _supply(task, config))


def _nearest_drawn(task: TaskSet, target: float, config: Config) -> tuple[int, int]:
    """The same of a task whose rows are measured as they are drawn."""
    supply, count, tokens = _row_supply(task, config), 0, 0
    for epoch in range(math.ceil(config.budget.max_epochs) + 1):
        for block in blocks(task.train, _order(task, epoch, config.seed), CHUNK):
            ends = np.cumsum([tokens, *response_tokens(task.train, block)])[: supply - count + 1]
            if ends[-1] >= target or len(ends) <= len(block):
                part = int(np.argmin(np.abs(ends - target)))
                return count + part, int(ends[part])
            count, tokens = count + len(block), int(ends[-1])
    return count, tokens


def _planned(pool: TaskPool, shares: Mapping[str, float], counts: Mapping[str, int], config: Config) -> RowPlan:
    order = sorted(range(len(pool.tasks)), key=lambda i: pool.names[i])
    drawn = {i: _draw(pool.tasks[i], counts[pool.names[i]], config.seed) for i in order}
    spread = np.argsort(
        np.concatenate([_places(name, counts[name], config.seed) for name in sorted(counts)]), kind="stable"
    )
    task_R = np.concatenate([np.full(len(drawn[i][0]), i, dtype=np.int64) for i in order])[spread]
    row_R = np.concatenate([drawn[i][0] for i in order])[spread]
    repeat_R = np.concatenate([drawn[i][1] for i in order])[spread]
    tokens = {task.name: int(response_tokens(task.train, drawn[i][0]).sum()) for i, task in enumerate(pool.tasks)}
    tasks = tuple(
        TaskPlan(
            name=task.name,
            weight=shares[task.name],
            count=counts[task.name],
            tokens=tokens[task.name],
            rows=task.rows,
            epochs=counts[task.name] / task.rows,
            row_share=counts[task.name] / sum(counts.values()),
            token_share=tokens[task.name] / sum(tokens.values()),
            replaced=drawn[i][2],
        )
        for i, task in enumerate(pool.tasks)
    )
    return RowPlan(config.budget.unit, config.budget.size, tasks, task_R, row_R, repeat_R)


def _places(name: str, count: int, seed: int) -> NDArray[np.float64]:
    """(count,) where in the training set, 0 to 1, the rows of a task stand: one at random in each count-th part."""
    return (np.arange(count) + _random(seed, "places", name).random(count)) / max(count, 1)


def _draw(task: TaskSet, count: int, seed: int) -> tuple[Ints, Ints, int]:
    """(count,) rows of the task that fit, one pass after another, and how often each was used before; also how many
    were passed over because they do not fit."""
    rows, repeats, passed, left = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0, count
    while left:
        epoch = len(rows) - 1
        found, over = taken(task.train, _order(task, epoch, seed), left)
        if not len(found):
            raise UserError(f"Task {task.name!r} has no row that fits; raise probes.max_length or leave the task out.")
        rows, repeats = [*rows, found], [*repeats, np.full(len(found), epoch)]
        passed, left = passed + (over if not epoch else 0), left - len(found)
    return np.concatenate(rows), np.concatenate(repeats), passed


def _order(task: TaskSet, epoch: int, seed: int) -> Ints:
    """(rows,) the order of one pass over the training rows of a task."""
    return _random(seed, "rows", task.name, epoch).permutation(len(task.train))


def _tokens(task: TaskSet) -> Ints:
    return response_tokens(task.train, np.arange(len(task.train)))


def _random(*parts: int | str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()))
