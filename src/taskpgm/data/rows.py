"""`Rows`: rows that stay on disk, in the order of their hash, and what is known of their lengths.

A row is read when it is asked for and measured when it is drawn: a file of a million rows costs its hashes and places,
not its texts. A row that turns out not to fit the model gives its place to the next in the same order.
"""

import json
import operator
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from taskpgm.data.messages import Conversation
from taskpgm.errors import UserError
from taskpgm.progress import QUIET, Progress
from taskpgm.types import Ints

BEFORE = 64  # rows measured beside one that is drawn alone: a guess, enough for a batch
CHUNK = 512  # rows measured at a time: often enough for a progress bar
# Where a row stands and what identifies it: two halves of its hash, a coarser one, and its line on disk.
ENTRY = np.dtype([
    ("high", "u8"), ("low", "u8"), ("coarse", "u8"), ("offset", "u8"), ("length", "u4"), ("segment", "u4"),
    ("number", "u4"), ("part", "u4"), ("shape", "u4"), ("graded", "?"),
])  # fmt: skip
COST = np.dtype([("tokens", "i4"), ("response", "i4"), ("truncated", "?")])
MADE = 99999  # the segment of rows that came from no file
UNKNOWN, UNFIT = -1, -2  # as tokens: not measured yet; does not fit, or is refused and left out
Entries = NDArray[np.void]  # of ENTRY


class Length(NamedTuple):
    """What a row costs: tokens in all, those of its assistant turns, and whether its prompt lost its left end."""

    tokens: int
    response_tokens: int
    truncated: bool
    lost: tuple[str, ...] = ()  # what of the row the template leaves out: "the system text"


class Refused(NamedTuple):
    """A row that cannot be used, and why: the model's chat template refuses it, or hides what is to be learned; or the
    model has no place for one of its tokens."""

    why: str
    by: Literal["chat template", "model"] = "chat template"


Measured = Length | Refused | None  # None: the completion does not fit
LengthsOf = Callable[[Sequence[Conversation]], Sequence[Measured]]


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation, its cost in tokens, the hash that identifies and ranks it, and what its answer is graded by."""

    conversation: Conversation
    tokens: int
    response_tokens: int
    truncated: bool
    key: str  # of the conversation, whatever its grading
    choices: tuple[str, ...] | None = None  # every answer that may be given; the row's own is one of them
    verifier: dict[str, Any] | None = field(default=None, hash=False)  # reasoning-gym: {dataset, answer, metadata}


class Sample(NamedTuple):
    """What the rows of a set that were measured came to: those with the lowest hashes, so drawn at random."""

    measured: int
    fitting: int
    response_tokens: int  # of those that fit
    truncated: int

    @property
    def fraction(self) -> float:
        """Fraction of the rows that fit."""
        return self.fitting / self.measured if self.measured else 1.0


class RowFiles:
    """Files that hold a JSON line for every row: [data] or [data, choices, verifier], data as `Conversation.to_data`.

    Args:
        folder: where they lie.
        temporary: make a folder within it, gone with this object; in the system's own place if no folder is given.
        places: by part of a source, how messages number and call it.
        shapes: by number, the roles of such rows; see `gathering.shape_of`.
    """

    def __init__(
        self,
        folder: Path | None,
        places: Iterable[tuple[str, str]] = (),
        shapes: Sequence[str] = (),
        temporary: bool = False,
    ) -> None:
        self._open: dict[int, int] = {}
        self._temporary = tempfile.TemporaryDirectory(prefix=".tmp-rows-", dir=folder) if temporary else None
        self.folder = Path(self._temporary.name) if self._temporary else folder or Path()
        self.places, self.shapes = list(places), list(shapes)

    def __del__(self) -> None:
        for file in self._open.values():
            os.close(file)

    def path(self, segment: int) -> Path:
        """Where a segment lies."""
        return self.folder / f"rows-{segment:05d}.jsonl"

    def line(self, entry: Any) -> bytes:
        """The line of an entry."""
        segment = int(entry["segment"])
        if segment not in self._open:
            self._open[segment] = os.open(self.path(segment), os.O_RDONLY | getattr(os, "O_BINARY", 0))
        return _read_at(self._open[segment], int(entry["length"]), int(entry["offset"]))

    def place(self, entry: Any) -> str:
        """Where a row stands in its source: "line 5 of jars.jsonl"."""
        word, file = self.places[int(entry["part"])]
        return f"{word} {int(entry['number'])} of {file}"

    def conversation(self, entry: Any) -> Conversation:
        """The row of an entry without its grading."""
        return Conversation.from_data(json.loads(self.line(entry))[0])

    def row(self, entry: Any, cost: Any) -> Row:
        """The row of an entry."""
        data, *grading = json.loads(self.line(entry))
        choices, verifier = grading or (None, None)
        tokens, response, truncated = int(cost["tokens"]), int(cost["response"]), bool(cost["truncated"])
        chosen = tuple(choices) if choices else None
        return Row(Conversation.from_data(data), tokens, response, truncated, key_of(entry), chosen, verifier)

    def put(self, folder: Path) -> None:
        """Put the segments into another folder too; nothing if it is their own."""
        for path in sorted(self.folder.glob("rows-*.jsonl")) if folder != self.folder else ():
            try:
                os.link(path, folder / path.name)
            except OSError:  # another disk, or one without links
                shutil.copyfile(path, folder / path.name)


def grading_key(files: RowFiles, entry: Any) -> str:
    """What the gradings of equal rows are ordered by."""
    return json.dumps(json.loads(files.line(entry))[1:], sort_keys=True)


def _read_at(file: int, length: int, offset: int) -> bytes:
    if hasattr(os, "pread"):  # processes that were forked share the place in a file
        return os.pread(file, length, offset)
    os.lseek(file, offset, os.SEEK_SET)
    return os.read(file, length)


def key_of(entry: Any) -> str:
    """Hash of a row as 32 hexadecimal digits."""
    return f"{int(entry['high']):016x}{int(entry['low']):016x}"


def keys_of(entries: Entries) -> bytes:
    """Hexadecimal digits of all hashes, one after another."""
    halves = np.stack([entries["high"], entries["low"]], axis=1).astype(">u8")
    return halves.tobytes().hex().encode()


class Meter:
    """Lengths of rows, each measured once, and remembered elsewhere too if there is a `memory`."""

    def __init__(self, lengths_of: LengthsOf, memory: "Memory | None" = None, progress: Progress = QUIET) -> None:
        self.lengths_of, self.progress = lengths_of, progress
        self._memory = memory
        self._known: dict[tuple[int, int], Measured] = {}

    def lengths(self, files: RowFiles, entries: Entries, shown: bool = False) -> list[Measured]:
        """What each row costs; `shown` as a stage of its own, as many rows are in any case."""
        keys = list(zip(entries["high"].tolist(), entries["low"].tolist(), strict=True))
        if self._memory:
            self._known |= self._memory.find([key for key in keys if key not in self._known])
        wanted = list({key: i for i, key in enumerate(keys) if key not in self._known}.values())
        if len(wanted) <= CHUNK and not (shown and wanted):
            self._measure(files, entries, keys, wanted)
        else:
            with self.progress.stage("tokenising", len(wanted), "rows"):
                self._measure(files, entries, keys, wanted)
        return [self._known[key] for key in keys]

    def _measure(self, files: RowFiles, entries: Entries, keys: list[tuple[int, int]], wanted: list[int]) -> None:
        for start in range(0, len(wanted), CHUNK):
            some = wanted[start : start + CHUNK]
            found = self.lengths_of([files.conversation(entries[i]) for i in some])
            new = {keys[i]: length for i, length in zip(some, found, strict=True)}
            self._known |= new
            if self._memory:
                self._memory.keep(new)
            self.progress.advance(len(some))


class Memory:
    """What lengths are remembered in between runs."""

    def find(self, keys: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], Measured]:
        """Those of the rows that are known."""
        raise NotImplementedError

    def keep(self, lengths: Mapping[tuple[int, int], Measured]) -> None:
        """Remember them."""
        raise NotImplementedError


class Rows(Sequence[Row]):
    """Rows of one side of a set, by hash. Reading one measures it; those that do not fit are left out by `taken`.

    Args:
        files: where they lie.
        entries: (n,) of ENTRY.
        costs: (n,) of COST.
        meter: measures those that are not known; none if all are.
        title: whose they are, for messages; None if rows that the chat template refuses are left out.
    """

    def __init__(
        self, files: RowFiles, entries: Entries, costs: Entries, meter: Meter | None = None, title: str | None = None
    ) -> None:
        self.files, self.entries, self.costs = files, entries, costs
        self._meter, self.title = meter, title

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, i: int) -> Row: ...
    @overload
    def __getitem__(self, i: slice) -> list[Row]: ...
    def __getitem__(self, i: int | slice) -> Row | list[Row]:
        if isinstance(i, slice):
            return [self[one] for one in range(len(self))[i]]
        self.measure(np.array([i]))
        return self.files.row(self.entries[i], self.costs[i])

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), CHUNK):
            yield from self[start : start + CHUNK]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    @property
    def known(self) -> NDArray[np.bool_]:
        """(n,) which rows were measured."""
        return np.asarray(self.costs["tokens"] != UNKNOWN)

    def measure(self, which: Ints) -> None:
        """Have these rows measured.

        Raises:
            UserError: one that cannot be used.
        """
        which = which[self.costs["tokens"][which] == UNKNOWN]
        if not len(which):
            return
        assert self._meter is not None, "rows that are not measured have what measures them"
        for i, found in zip(which.tolist(), self._meter.lengths(self.files, self.entries[which]), strict=True):
            if isinstance(found, Refused) and (self.title is not None or found.by == "model"):
                raise self._refusal(i, found)
            self.costs[i] = cost_of(found)

    def _refusal(self, i: int, refused: Refused) -> UserError:
        who = "model" if refused.by == "model" else "model's chat template"
        at = self.files.place(self.entries[i])
        remedy = " `taskpgm check --exact` finds all such rows; correct or remove them" + (
            ", or leave them out with `refused: drop`." if refused.by == "chat template" else "."
        )
        return UserError(f"{self.title or 'A set'}: the {who} cannot take {at}: {refused.why}.{remedy}")

    def fit(self, which: Ints) -> NDArray[np.bool_]:
        """Which of these rows can be used."""
        self.measure(which)
        return np.asarray(self.costs["tokens"][which] >= 0)

    def response_tokens(self, which: Ints) -> Ints:
        """Response tokens of these rows."""
        self.measure(which)
        return self.costs["response"][which].astype(np.int64)


def cost_of(found: Measured) -> tuple[int, int, bool]:
    """A length as COST."""
    return (found.tokens, found.response_tokens, found.truncated) if isinstance(found, Length) else (UNFIT, 0, False)


def costs_of(rows: Sequence[Row]) -> Entries:
    """(n,) of COST, as far as it is known."""
    if isinstance(rows, Rows):
        return rows.costs
    return np.array([(row.tokens, row.response_tokens, row.truncated) for row in rows], COST)


class Store:
    """Writes rows to a folder: those that lie in files are copied with them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: RowFiles | None = None
        self._new = RowFiles(folder, [("row", "a pool made in memory")], ["?"])

    @property
    def about(self) -> dict[str, Any]:
        """What `RowFiles` has to be told to read them."""
        files = self._files or self._new
        return {"places": files.places, "shapes": files.shapes}

    def kept(self, rows: Sequence[Row]) -> Rows:
        """The rows, once they lie in the folder."""
        if not isinstance(rows, Rows):
            return self._written(rows)
        if self._files is None:
            self._files = rows.files
            rows.files.put(self._folder)
        assert rows.files is self._files, "the rows of a pool lie together"
        return rows

    def _written(self, rows: Sequence[Row]) -> Rows:
        entries = np.zeros(len(rows), ENTRY)
        with self._new.path(MADE).open("ab") as file:
            for entry, row in zip(entries, rows, strict=True):
                data = [
                    row.conversation.to_data(),
                    *([row.choices, row.verifier] if row.choices or row.verifier else []),
                ]
                line = json.dumps(data, ensure_ascii=False).encode() + b"\n"
                entry["high"], entry["low"] = int(row.key[:16], 16), int(row.key[16:], 16)
                entry["offset"], entry["length"], entry["segment"] = file.tell(), file.write(line), MADE
        return Rows(self._new, entries, costs_of(rows))


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
        part = int(np.searchsorted(self._starts, i, side="right")) - 1
        return self._parts[part][i - int(self._starts[part])]
