"""Rows that are copies of each other, in the sense of `data.duplicates`."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from taskpgm.data.alike import normal, normal_data
from taskpgm.data.messages import Conversation
from taskpgm.errors import UserError
from taskpgm.types import Ints

if TYPE_CHECKING:
    from taskpgm.data.pool import Row, TaskSet

Sense = Literal["exact", "normalised", "near"]
RUN = 3  # words
ALIKE = 0.8  # share of their runs of words that near copies have in common, by Jaccard
CANDIDATES = 0.6  # candidates are sought from here on, so that few of the rows near the limit are missed
HASHES = 128  # of a MinHash: the standard error of its Jaccard index is at most 0.045
FIGURES = re.compile(r"\d+|[-+*/=<>^%]")  # near copies have the same ones: 3 + 4 and 3 + 5 are two exercises


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


def without_leaks(sets: "Sequence[TaskSet]", sense: Sense, within_tasks: bool) -> "tuple[list[TaskSet], Leaks]":
    """The sets without validation rows that copy contexts, and without training rows that copy what is held out.

    Args:
        sets: tasks and targets.
        sense: what a copy is.
        within_tasks: of training rows of a task that copy each other, keep the first.

    Raises:
        UserError: a task keeps no training row; or near without its package.
    """
    contexts = [row for one in sets for row in one.contexts]
    held = contexts + [row for one in sets for row in one.validation]
    homes = _homes(sets)
    leaks = Leaks(*(np.zeros((len(sets), len(sets)), dtype=np.int64) for _ in range(2)))
    from_contexts, from_held = _Originals(contexts, sense), _Originals(held, sense)
    clean = []
    for i, one in enumerate(sets):
        validation = tuple(row for row in one.validation if not from_contexts.of(row))
        copied = {row.key: keys for row in one.train if (keys := from_held.of(row))}
        for keys in copied.values():
            leaks.dropped[i, sorted({j for key in keys for j in homes[key]})] += 1
        for key in set[str]().union(*copied.values()):
            leaks.held[i, sorted(homes[key])] += 1
        train = tuple(row for row in one.train if row.key not in copied)
        again = _repeats(train, sense) if within_tasks else set[str]()
        clean.append(_cleaned(one, tuple(row for row in train if row.key not in again), validation, len(again)))
    return clean, leaks


def _homes(sets: "Sequence[TaskSet]") -> dict[str, set[int]]:
    """Key of a held-out row -> the sets that hold it out."""
    homes: dict[str, set[int]] = {}
    for i, one in enumerate(sets):
        for row in (*one.contexts, *one.validation):
            homes.setdefault(row.key, set()).add(i)
    return homes


def _cleaned(one: "TaskSet", train: "tuple[Row, ...]", validation: "tuple[Row, ...]", again: int) -> "TaskSet":
    """The set with these rows, and counts of what left."""
    if one.train and not train:
        raise UserError(
            f"Task {one.name!r} has no training row left: all {len(one.train)} copy held-out rows of its own or other "
            "sets; take fewer contexts, add data, leave out the task or the set that it repeats, or set "
            "data.duplicates to a narrower sense."
        )
    counts = replace(
        one.counts,
        validation_dropped=len(one.validation) - len(validation),
        train_dropped=len(one.train) - len(train) - again,
        truncated=sum(row.truncated for side in (train, one.contexts, validation) for row in side),
        repeats=again,
    )
    return replace(one, train=train, validation=validation, counts=counts)


class _Originals:
    """Rows of which others may be copies.

    exact: the same conversation. normalised: the same `normal_data`. near: that, or at least ALIKE of their runs of
    three words in common, |A ∩ B| / |A ∪ B|, and the same numbers and signs in the same order. Candidates come from
    MinHash, which misses some near the limit.
    """

    def __init__(self, rows: "Iterable[Row]", sense: Sense) -> None:
        self.identity = _identity(sense)
        self.keys: dict[bytes, set[str]] = {}
        self.nearly = _NearCopies() if sense == "near" else None
        for row in rows:
            self.add(row)

    def add(self, row: "Row") -> None:
        """One more row."""
        self.keys.setdefault(self.identity(row), set()).add(row.key)
        if self.nearly:
            self.nearly.add(row)

    def of(self, row: "Row") -> set[str]:
        """Keys of the rows that this row is a copy of."""
        found = self.keys.get(self.identity(row), set())
        return found | set(self.nearly.of(row)) if self.nearly else found


def _repeats(rows: "Iterable[Row]", sense: Sense) -> set[str]:
    """Keys of the rows that are copies of an earlier row that is kept."""
    kept, found = _Originals((), sense), set()
    for row in rows:
        if kept.of(row):
            found.add(row.key)
        else:
            kept.add(row)
    return found


def _identity(sense: Sense) -> "Callable[[Row], bytes]":
    if sense == "exact":
        return lambda row: row.key.encode()
    return lambda row: normal_data(row.conversation.to_data())


class _NearCopies:
    """An index of rows by MinHash."""

    def __init__(self) -> None:
        if not find_spec("datasketch"):
            raise UserError("data.duplicates near needs the package datasketch: pip install 'taskpgm[near]'.")
        from datasketch import MinHashLSH

        self.index = MinHashLSH(threshold=CANDIDATES, num_perm=HASHES)
        self.rows: dict[str, tuple[set[str], list[str]]] = {}

    def add(self, row: "Row") -> None:
        """One more row."""
        if row.key not in self.rows:
            self.rows[row.key] = runs, _ = _words_of(row.conversation)
            self.index.insert(row.key, _minhash(runs))

    def of(self, row: "Row") -> "Iterator[str]":
        """Keys of the rows of the index that it nearly copies."""
        runs, figures = _words_of(row.conversation)
        for key in self.index.query(_minhash(runs)):
            theirs, signs = self.rows[key]
            if signs == figures and len(runs & theirs) >= ALIKE * len(runs | theirs):
                yield key


def _words_of(conversation: Conversation) -> tuple[set[str], list[str]]:
    """Runs of words of the row's normal text, and its numbers and signs in order."""
    text = " \n ".join(f"{turn.role} {normal(turn.content)}" for turn in conversation.messages)
    words = text.split()
    return {" ".join(words[i : i + RUN]) for i in range(max(len(words) - RUN + 1, 1))}, FIGURES.findall(text)


def _minhash(runs: set[str]) -> Any:
    from datasketch import MinHash

    sketch = MinHash(num_perm=HASHES)
    sketch.update_batch([run.encode() for run in runs])
    return sketch
