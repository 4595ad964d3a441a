"""Rows of several sets that are copies of each other, in the sense of `data.duplicates`.

Equal rows have the same number, so that millions are compared without being read again; near copies are sought one by
one, by `taskpgm.pool.near`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from taskpgm.pool.alike import normal_data
from taskpgm.pool.rowfiles import Entries, RowFiles
from taskpgm.types import Ints

Sense = Literal["exact", "normalised", "near"]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Contamination:
    """How much of what a set holds out stood in a task's training rows, from which it was left out."""

    set: str
    task: str
    rows: int  # held-out rows of the set that have a copy there
    share: float  # of the set's held-out rows


@dataclass(frozen=True, eq=False)
class Leaks:
    """Training rows that copied held-out rows; they were left out. Shapes: (sets, sets) in the order of `pool.sets`."""

    dropped: Ints  # [i, j] training rows of i that copied a context, validation or target row of j
    held: Ints  # [i, j] rows held out of j that stood among the training rows of i

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"dropped": self.dropped.tolist(), "held": self.held.tolist()}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Leaks":
        """Leaks from what `to_dict` gave."""
        return cls(np.array(given["dropped"], dtype=np.int64), np.array(given["held"], dtype=np.int64))

    def contamination(self, names: Sequence[str], sizes: Sequence[int]) -> list[Contamination]:
        """Every pair that shares rows, largest share first; `sizes` are the held-out rows of each set."""
        found = [
            Contamination(names[j], names[i], int(self.held[i, j]), float(self.held[i, j] / sizes[j]))
            for i, j in zip(*np.nonzero(self.held), strict=True)
        ]
        return sorted(found, key=lambda one: (-one.share, one.set, one.task))


class Members(NamedTuple):
    """Some rows of one set."""

    entries: Entries
    forms: Ints  # the same number for equal rows, in the sense of exact or of normalised


class Copied(NamedTuple):
    """Which rows of sets copy which rows of sets."""

    rows: list[Mask]  # of each of the first, which of its rows copy one of the others
    leaks: Leaks  # [i, j] rows of the first i with a copy in the other j, and rows of the other j with one in i


def numbered(sets: Sequence[Entries], sense: Sense, files: RowFiles) -> tuple[list[Ints], list[Ints]]:
    """For every row of each set a number that equal rows share: of equal hashes, then of equal rows in that sense.

    Args:
        sets: distinct rows of each.
        sense: what makes rows equal; near copies have no such number, so near counts as normalised.
        files: where the rows lie.
    """
    everything = np.concatenate([*sets, sets[0][:0]])
    numbers, one_of_each = _equal(everything)
    forms = numbers if sense == "exact" else _normalised(everything[one_of_each], files)[numbers]
    cuts = np.cumsum([len(one) for one in sets])[:-1]
    return np.split(numbers, cuts), np.split(forms, cuts)


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
            found[i] = seen.setdefault(normal_data(files.data(entries[i])[0]), i)
    return found


def _groups(values: NDArray[np.uint64]) -> Iterator[Ints]:
    """Places of the values that stand more than once."""
    order = np.argsort(values, kind="stable")
    cuts = np.flatnonzero(np.diff(values[order])) + 1
    starts, ends = np.r_[0, cuts], np.r_[cuts, len(order)]
    for start, end in zip(starts[ends - starts > 1].tolist(), ends[ends - starts > 1].tolist(), strict=True):
        yield order[start:end]


def equal_copies(sets: Sequence[Members], others: Sequence[Members]) -> Copied:
    """Rows of sets that equal rows of others."""
    forms, other_forms = [one.forms for one in sets], [one.forms for one in others]
    everywhere = np.concatenate([*other_forms, np.zeros(0, np.int64)])
    leaks = Leaks(shared(forms, other_forms), shared(other_forms, forms).T)
    return Copied([np.isin(one, everywhere) for one in forms], leaks)


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


def first_of_equal(rows: Members) -> Mask:
    """Which rows have no equal before them."""
    kept = np.zeros(len(rows.forms), dtype=bool)
    kept[np.unique(rows.forms, return_index=True)[1]] = True
    return kept
