"""Rows that are drawn: measured where they have to be, and passed over where they do not fit."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import overload

import numpy as np

from taskpgm.errors import UserError
from taskpgm.pool.meter import CHUNK
from taskpgm.pool.rowfiles import COST, UNFIT, Row
from taskpgm.pool.rows import Rows
from taskpgm.types import Ints

BEFORE = 64  # rows measured beside one that is drawn alone: a guess, enough for a batch


def peek(rows: Sequence[Row], i: int) -> Row:
    """The row, whose length is not looked at: it may not be known."""
    return rows.peek(i) if isinstance(rows, Rows | Joined) else rows[i]


def shapes_of(rows: Sequence[Row]) -> Ints:
    """(n,) the same number for rows with the same roles in the same order, and tools or none."""
    return rows.entries["shape"].astype(np.int64) if isinstance(rows, Rows) else np.arange(len(rows))


def one_of_each_shape(rows: Sequence[Row]) -> Iterator[tuple[int, Row]]:
    """The first row of each sequence of roles, and how many rows have it; their lengths are not looked at."""
    if not isinstance(rows, Rows):
        yield from ((1, row) for row in rows)
        return
    _, places, numbers = np.unique(rows.entries["shape"], return_index=True, return_counts=True)
    for i in np.argsort(places).tolist():
        entry = rows.entries[places[i]]
        yield int(numbers[i]), rows.files.row(entry, np.zeros(1, COST)[0])


def is_open(rows: Sequence[Row]) -> bool:
    """Whether some of the rows were not measured, or do not fit."""
    return isinstance(rows, Rows) and bool((rows.costs["tokens"] < 0).any())


def blocks(rows: Sequence[Row], order: Ints, size: int) -> Iterator[Ints]:
    """Those in that order that fit, about `size` at a time if they have to be measured."""
    size = size if is_open(rows) else max(len(order), 1)
    for start in range(0, len(order), size):
        some = order[start : start + size]
        yield some[rows.fit(some)] if isinstance(rows, Rows) else some


def which_fit(rows: Sequence[Row]) -> Ints:
    """Those that fit, in their order; all are measured."""
    return np.concatenate([np.zeros(0, np.int64), *blocks(rows, np.arange(len(rows)), CHUNK)])


def taken(rows: Sequence[Row], order: Ints, number: int) -> tuple[Ints, int]:
    """The first so many in that order that fit, and how many before the last of them do not: a row that does not is
    replaced by the next."""
    if not isinstance(rows, Rows) or not is_open(rows):
        return order[:number], 0
    fits = np.zeros(len(order), dtype=bool)
    stop = 0
    while stop < len(order) and (left := number - int(fits.sum())) > 0:
        some = slice(stop, stop + left)
        fits[some] = rows.fit(order[some])
        stop += left
    found = np.flatnonzero(fits)[:number]
    return order[found], int(found[-1]) + 1 - len(found) if len(found) else len(order)


def first(rows: Sequence[Row], number: int | None = None) -> Sequence[Row]:
    """The first so many rows that fit, or all that do."""
    number = len(rows) if number is None else number
    if not is_open(rows):
        return rows[:number]
    return [rows[i] for i in taken(rows, np.arange(len(rows)), number)[0].tolist()]


Costs = Sequence[Row] | Sequence[int]  # rows, or the response tokens of each, all of which fit


def fitting(rows: Costs, order: Ints) -> Iterator[Ints]:
    """Those in that order that fit, some at a time."""
    return blocks(rows, order, CHUNK) if isinstance(rows, Rows) else iter([order])


def fits_last(rows: Costs, upcoming: Ints) -> bool:
    """Whether there is a last one and it fits; some before it are measured too."""
    if len(upcoming) and isinstance(rows, Rows) and rows.costs["tokens"][upcoming[-1]] < 0:
        return bool(rows.fit(upcoming[-BEFORE:])[-1])
    return bool(len(upcoming))


def check_some_fit(rows: Costs) -> None:
    """Raise UserError if all rows are known, and none fits."""
    if isinstance(rows, Rows) and (rows.costs["tokens"] == UNFIT).all():
        who = rows.title or "A task"
        raise UserError(f"{who} has no row that fits; raise probes.max_length or leave the task out.")


def response_tokens(rows: Costs, which: Ints) -> Ints:
    """Response tokens of these rows."""
    if isinstance(rows, Rows):
        return rows.response_tokens(which)
    given = [rows[i] for i in which.tolist()]
    return np.array([one.response_tokens if isinstance(one, Row) else one for one in given], dtype=np.int64)


class Joined(Sequence[Row]):
    """The rows of several sequences, one after another."""

    def __init__(self, parts: Sequence[Sequence[Row]]) -> None:
        self._parts = parts
        self._starts = np.array([0, *accumulate(map(len, parts))])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, i: int) -> Row: ...
    @overload
    def __getitem__(self, i: slice) -> list[Row]: ...
    def __getitem__(self, i: int | slice) -> Row | list[Row]:
        if isinstance(i, slice):
            return [self[one] for one in range(len(self))[i]]
        part, own = self._place(i)
        return part[own]

    def peek(self, i: int) -> Row:
        """The row as far as it is known."""
        return peek(*self._place(i))

    def _place(self, i: int) -> tuple[Sequence[Row], int]:
        part = int(np.searchsorted(self._starts, i, side="right")) - 1
        return self._parts[part], i - int(self._starts[part])
