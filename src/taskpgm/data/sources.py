"""`Opened`: the records of one source, whatever file format they come in, in parts that are read in a stream.

Text files are parsed here, not by `datasets`, which guesses types: an answer 2020-01-01 becomes a date, 007 becomes 7,
5.10 becomes 5.1 and None becomes null. Here a number in a text column is the text that the file holds. Saved datasets
and hub ids go through `datasets`, Parquet and Arrow through pyarrow; class labels become the names of the classes.
"""

import re
from typing import NamedTuple

from taskpgm.config import Source
from taskpgm.data.columnar import open_arrow, open_hub, open_saved
from taskpgm.data.parts import Part, Parts, SourceFile, known_columns, reason_of
from taskpgm.data.splits import PACKED, READABLE, Asked, Kind, asked_of, files_of, is_saved, kind_of, named
from taskpgm.data.texts import open_text
from taskpgm.errors import UserError
from taskpgm.paths import local_path

POINTER = b"version https://git-lfs"
BINARY = {  # what files of text never begin with
    b"\x1f\x8b": "a .gz file", b"PK\x03\x04": "a .zip file", b"\x28\xb5\x2f\xfd": "a .zst file",
    b"\xfd7zXZ\x00": "an .xz file", b"PAR1\x15": "a .parquet file", b"ARROW1\x00": "an .arrow file",
}  # fmt: skip
HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


class Opened(NamedTuple):
    """A source that is ready to be read, in file order."""

    asked: Asked
    parts: list[Part]
    notes: tuple[str, ...] = ()  # which files were chosen and what was left out, for `check`


def open_source(source: Source, path: str | None, who: str) -> Opened:
    """A file, a folder of files, a pattern, a saved dataset or a hub id, ready to be read.

    Args:
        source: its path, split and subset say what is read, its columns which of the columns.
        path: another path, whose validation split is read instead.
        who: how messages call the source.

    Raises:
        UserError: anything about the source that its owner has to put right; what is wrong with a record is raised
            where its part is read.
    """
    asked = asked_of(source, who, path)
    local = local_path(asked.path)
    files = files_of(asked)
    if files is None:
        if HUB_ID.fullmatch(asked.path) and not kind_of(local):
            return Opened(asked, *open_hub(asked, source))
        raise UserError(
            f"{who}: {asked.path} is neither a file nor a folder, nor does it look like a hub id (owner/name); check "
            f"its {asked.key}."
        )
    if is_saved(local):
        parts, notes = open_saved(local, asked, source)
        return Opened(asked, parts, files.notes + notes)
    parts, said = [], dict.fromkeys(files.notes)
    for file in files.paths:
        found, notes = _open_file(SourceFile(file, files.name(file), who), source)
        parts += found
        said |= dict.fromkeys(notes)
    return Opened(asked, parts, tuple(said))


def read_columns(source: Source, who: str) -> list[str] | None:
    """Names of all columns of what `open_source` opens; None if it holds no rows.

    Raises:
        UserError: anything about the source that its owner has to put right.
    """
    opened = open_source(source, None, who)
    columns: dict[str, dict[str, None]] = {}
    filled: dict[str, dict[str, None]] = {}
    for part in opened.parts:
        names = columns.setdefault(part.file, dict.fromkeys(part.columns))
        for _, record in part.records():
            names |= dict.fromkeys(record)
            filled[part.file] = names
    check_alike(filled, opened.asked, source)
    return list(dict.fromkeys(name for names in columns.values() for name in names)) if filled else None


def check_alike(columns: dict[str, dict[str, None]], asked: Asked, source: Source) -> None:
    """Raise if a file has none of the columns that are read, and another has: it is no data, or other data.

    Args:
        columns: names by file, of those that hold records.
    """
    known = known_columns(source)
    strange = [file for file, names in columns.items() if not known & set(names)]
    if strange and len(strange) < len(columns):
        usual = next(name for name in columns if name not in strange)
        raise UserError(
            f"{asked.who}: {strange[0]} in {asked.path} has the columns {named(columns[strange[0]])}, none of "
            f"those that are read, and {usual} has some; name what to read in `{asked.key}`, a file or a pattern, "
            "without it."
        )


def _open_file(file: SourceFile, source: Source) -> Parts:
    kind = kind_of(file.path)
    if kind is None:
        raise UserError(f"{file.where} is not a {READABLE}; convert or rename it.")
    _check_start(file, kind)
    return open_arrow(file, source) if kind in ("parquet", "arrow") else open_text(file, source, kind)


def _check_start(file: SourceFile, kind: Kind) -> None:
    """Raise if a file's first bytes say that it is not what its name says."""
    try:
        with file.path.open("rb") as data:
            start = data.read(max(map(len, (POINTER, *BINARY))))
    except OSError as error:
        raise UserError(f"{file.who}: cannot read {file.path} ({reason_of(error)}); check the file.") from error
    if start.startswith(POINTER):
        raise UserError(
            f"{file.where} is a pointer of Git LFS, not the data that it stands for; fetch that with `git lfs pull`."
        )
    found = [what for first, what in BINARY.items() if start.startswith(first)]
    if found and kind in ("json", "csv") and not file.path.name.lower().endswith(PACKED):
        raise UserError(
            f"{file.where} begins like {found[0]}, not like text; unpack or convert it, or rename it if it is one that "
            "is read."
        )
