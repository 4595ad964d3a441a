"""Rows of several sets that are copies of each other, in the sense of `data.duplicates`."""

import json
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from taskpgm.data.alike import normal_data
from taskpgm.data.rows import Entries, RowFiles
from taskpgm.types import Ints

Sense = Literal["exact", "normalised"]


def find_copies(sets: Sequence[Entries], sense: Sense, files: RowFiles) -> list[Ints]:
    """For every row a number that its copies share and no other row has.

    Args:
        sets: distinct rows of each.
        sense: what a copy is.
        files: where the rows lie.
    """
    everything = np.concatenate([*sets, sets[0][:0]])
    numbers, one_of_each = _equal(everything)
    if sense != "exact":
        numbers = _normalised(everything[one_of_each], files)[numbers]
    return np.split(numbers, np.cumsum([len(one) for one in sets])[:-1])


def _equal(entries: Entries) -> tuple[Ints, Ints]:
    """A number for every hash, and where one row of each number stands."""
    order = np.lexsort((entries["low"], entries["high"]))
    high, low = entries["high"][order], entries["low"][order]
    new = np.r_[True, (high[1:] != high[:-1]) | (low[1:] != low[:-1])][: len(order)]
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = np.cumsum(new) - 1
    return numbers, order[new]


def _normalised(entries: Entries, files: RowFiles) -> Ints:
    """The number of each row, or that of a row before it with the same normal data; only where coarse hashes meet are
    rows read."""
    found = np.arange(len(entries))
    for group in _groups(entries["coarse"]):
        seen: dict[bytes, int] = {}
        for i in np.sort(group).tolist():
            found[i] = seen.setdefault(normal_data(json.loads(files.line(entries[i]))[0]), i)
    return found


def _groups(values: NDArray[np.uint64]) -> Iterator[Ints]:
    """Places of the values that stand more than once."""
    order = np.argsort(values, kind="stable")
    cuts = np.flatnonzero(np.diff(values[order])) + 1
    starts, ends = np.r_[0, cuts], np.r_[cuts, len(order)]
    for start, end in zip(starts[ends - starts > 1].tolist(), ends[ends - starts > 1].tolist(), strict=True):
        yield order[start:end]


def shared(members: Sequence[Ints], others: Sequence[Ints]) -> Ints:
    """(members, others) how many elements of each of the first, repeats counted, stand in each of the second."""
    top = 1 + max((int(one.max(initial=-1)) for one in (*members, *others)), default=0)
    first, second = _incidence(members, top, repeats=True), _incidence(others, top, repeats=False)
    return np.asarray((first @ second.T).toarray(), dtype=np.int64)


def _incidence(sets: Sequence[Ints], top: int, repeats: bool) -> "sparse.csr_array":
    sets = sets if repeats else [np.unique(one) for one in sets]
    rows = np.repeat(np.arange(len(sets)), [len(one) for one in sets])
    columns = np.concatenate([*sets, np.zeros(0, np.int64)])
    ones = np.ones(len(columns), dtype=np.int64)
    return sparse.csr_array(sparse.coo_array((ones, (rows, columns)), shape=(len(sets), top)))
