"""`RowFiles`: rows on disk, a JSON line each; `Row`: one of them, with its length in tokens."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskpgm.data.messages import Conversation
from taskpgm.errors import UserError
from taskpgm.files import SCRATCH

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
        shapes: by number, the roles of such rows; see `shape_of`.
    """

    def __init__(
        self,
        folder: Path | None,
        places: Iterable[tuple[str, str]] = (),
        shapes: Sequence[str] = (),
        temporary: bool = False,
    ) -> None:
        self._open: dict[int, int] = {}
        self._temporary = tempfile.TemporaryDirectory(prefix=f"{SCRATCH}rows-", dir=folder) if temporary else None
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

    def data(self, entry: Any) -> list[Any]:
        """What that line says.

        Raises:
            UserError: it is not there any more.
        """
        try:
            found: list[Any] = json.loads(self.line(entry))
        except (OSError, ValueError) as error:
            raise self._damaged(int(entry["segment"])) from error
        return found

    def check(self, entries: Entries) -> None:
        """Raise UserError if a file is too short for these entries, or missing."""
        for segment in np.unique(entries["segment"]).tolist():
            own = entries[entries["segment"] == segment]
            path = self.path(segment)
            if not path.exists() or path.stat().st_size < int((own["offset"] + own["length"]).max()):
                raise self._damaged(segment)

    def _damaged(self, segment: int) -> UserError:
        return UserError(
            f"{self.folder} is damaged ({self.path(segment).name}); remove it, then `taskpgm run` makes what is "
            "missing again and keeps the rest."
        )

    def place(self, entry: Any) -> str:
        """Where a row stands in its source: "line 5 of jars.jsonl"."""
        word, file = self.places[int(entry["part"])]
        return f"{word} {int(entry['number'])} of {file}"

    def conversation(self, entry: Any) -> Conversation:
        """The row of an entry without its grading."""
        return Conversation.from_data(self.data(entry)[0])

    def row(self, entry: Any, cost: Any) -> Row:
        """The row of an entry."""
        data, *grading = self.data(entry)
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
    return json.dumps(files.data(entry)[1:], sort_keys=True)


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


def cost_of(found: Measured) -> tuple[int, int, bool]:
    """A length as COST."""
    return (found.tokens, found.response_tokens, found.truncated) if isinstance(found, Length) else (UNFIT, 0, False)


def shape_of(data: list[Any]) -> str:
    """Roles of a row in order; with - where an answer is context, + where a turn is more than text, and its tools."""
    messages, *tools = data
    roles = [turn[0] if type(turn) is list else _marked(turn) for turn in messages]
    return " ".join([*roles, "tools"] if tools else roles)


def _marked(turn: dict[str, Any]) -> str:
    more = turn.keys() - {"role", "content", "weight"}
    return f"{turn['role']}{'-' * (turn.get('weight', 1) == 0)}{'+' * bool(more)}"
