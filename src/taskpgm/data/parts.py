"""`Part`: a stretch of a source that is read by itself, and what all file formats share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from taskpgm.config import FIELDS, Source
from taskpgm.data.column_names import ALIASES, REFUSED
from taskpgm.errors import UserError

PART = 16 << 20  # bytes of a large file that are read as one part: a guess, some seconds of work


class Number(str):
    """A number of a JSON file, as the file spells it: text everywhere but in tools, calls and a verifier's metadata."""

    __slots__ = ()


Record = tuple[int, dict[str, Any]]  # (its number in the file, for messages; the record)


class Part(NamedTuple):
    """A stretch of a file that can be read by itself, as often as asked."""

    records: Callable[[], Iterator[Record]]
    word: str  # how messages number its records: "line", "row"
    file: str  # what they call the file
    columns: tuple[str, ...] = ()  # that a header or a schema names
    size: int = 0  # bytes, if that many may be read in a process of their own

    def place(self, number: int) -> str:
        """Where a record stands: "line 5 of jars.jsonl"."""
        return f"{self.word} {number} of {self.file}"


Parts = tuple[list[Part], tuple[str, ...]]  # and notes


class SourceFile(NamedTuple):
    """One file of a source."""

    path: Path
    name: str  # from the folder or pattern given
    who: str  # whose it is

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"{self.who}: {self.path}"


def known_columns(source: Source) -> set[str]:
    """Names of columns that say something: those in the source's settings and those that need none."""
    return {*FIELDS, *REFUSED, *(source.columns or {}).values()}.union(*ALIASES.values())


def plain_name(column: str) -> str:
    """The name of a column without what people write in two ways: case, and space around it."""
    return column.strip().lower()


def check_unique(columns: list[str], file: SourceFile) -> None:
    """Raise UserError if two columns have the same name."""
    twice = [column for column in dict.fromkeys(columns) if column.strip() and columns.count(column) > 1]
    if twice:
        raise UserError(f"{file.where} names the column {twice[0]!r} more than once; rename or remove all but one.")


def type_of(value: Any) -> str:
    """What kind of JSON value that is, in words."""
    names = {list: "a list", dict: "an object", str: "text", Number: "a number", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def reason_of(error: BaseException) -> str:
    """What an exception of a library says, on one line and without its full stop."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
    return (text[:200] + "…" if len(text) > 200 else text) or type(error).__name__
