"""Parts of text files: JSON, JSON Lines, CSV and TSV, packed or not; numbers stay as the file spells them."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, TextIO, cast

from taskpgm.config import Source
from taskpgm.data.parts import (
    PART,
    Number,
    Part,
    Parts,
    Record,
    SourceFile,
    check_unique,
    known_columns,
    reason_of,
    type_of,
)
from taskpgm.data.splits import PACKED, named
from taskpgm.data.values import UnreadableError, unique
from taskpgm.errors import UserError

SEPARATORS = (",", "\t", ";", "|")  # of CSV files
UNPACK: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
BLOCK = 1 << 20  # bytes that are looked through at a time for the ends of lines
LONGEST = 2**31 - 1  # characters of a CSV cell; csv's own limit of 131,072 is less than a long document


def open_text(file: SourceFile, source: Source, kind: str) -> Parts:
    """Parts of a file of JSON or of CSV, and notes.

    Raises:
        UserError: it is no such text.
    """
    with _readable(file):
        return (_open_json if kind == "json" else _open_csv)(file, source)


@contextmanager
def _readable(file: SourceFile) -> Iterator[None]:
    """Within, what goes wrong with a text file is said to its owner."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise _not_text(file) from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{file.who}: cannot read {file.path} ({reason_of(error)}); check the file.") from error


@contextmanager
def _opened(file: SourceFile, newline: str | None) -> Iterator[TextIO]:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 if its first bytes are of such."""
    with (
        _unpacked(file) as data,
        io.TextIOWrapper(data, json.detect_encoding(data.peek(4)[:4]), newline=newline) as text,
    ):
        yield text


def _unpacked(file: SourceFile) -> io.BufferedReader:
    name = file.path.name.lower()
    for ending, unpack in UNPACK.items():
        if name.endswith(ending):
            return cast(io.BufferedReader, unpack(file.path))  # it reads like one
    if not name.endswith(".zst"):
        return file.path.open("rb")
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(
            f"{file.where} needs the package pyarrow; pip install 'taskpgm[lm]', or unpack the file."
        ) from error
    return io.BufferedReader(pyarrow.input_stream(str(file.path), compression="zstd"))


def _not_text(file: SourceFile) -> UserError:
    """What is wrong with a file that cannot be decoded; decoders work in pieces, so all of it is read to tell where."""
    with _unpacked(file) as binary:
        data = binary.read()
    try:
        data.decode(json.detect_encoding(data[:4]))
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(error.encoding, "replace")
        line = len(re.findall(r"\r\n?|\n", before)) + 1
        text = f"line {line} is not {error.encoding.upper()} text ({error.reason})"
        return UserError(f"{file.where}: {text}; save the file as UTF-8.")
    return UserError(f"{file.where} changed while it was read; run the command again.")


# JSON


BETWEEN = re.compile(r"[\s\[,]*")  # in front of the values of a list
DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, object_pairs_hook=unique)


def _open_json(file: SourceFile, source: Source) -> Parts:
    """Objects, one a line, or those of one list, or of the only list in one object; numbers as the file spells them."""
    with _opened(file, newline=None) as text:
        lines = _lines(text)
        number, first = next(lines, (1, "[]"))
        try:
            value = DECODER.decode(first)
        except (ValueError, RecursionError):
            return _of_value(_parse_whole(file, number, first, "\n" + text.read()), number, file, source)
        if next(lines, None) is None:
            return _of_value(value, number, file, source)
    return _of_lines(file), ()


def _lines(text: TextIO) -> Iterator[tuple[int, str]]:
    """(number, line) of those that are not blank."""
    return ((number, line.rstrip("\n")) for number, line in enumerate(text, 1) if not line.isspace())


def _of_lines(file: SourceFile) -> list[Part]:
    """Parts of a file of one object a line: of a large one that is plain UTF-8, stretches that begin with a line."""
    size = file.path.stat().st_size
    if file.path.name.lower().endswith(PACKED):
        return [Part(partial(_text_lines, file), "line", file.name)]
    cuts = _stretches(file, size) if size > PART else []
    if not cuts:
        return [Part(partial(_text_lines, file), "line", file.name, size=size)]
    ends = [start for start, _ in cuts[1:]] + [size]
    return [
        Part(partial(_byte_lines, file, start, end, line), "line", file.name, size=end - start)
        for (start, line), end in zip(cuts, ends, strict=True)
    ]


def _stretches(file: SourceFile, size: int) -> list[tuple[int, int]]:
    """(byte, number of its line) where each part of about `PART` bytes begins; none if lines do not end in \\n alone
    or \\r\\n, or the text is not plain UTF-8."""
    cuts, line, at, wanted = [(0, 1)], 1, 0, PART
    with file.path.open("rb") as data:
        if json.detect_encoding(data.peek(4)[:4]) != "utf-8":
            return []
        while block := data.read(BLOCK) + data.readline():  # ends behind a line
            if block.count(b"\r") != block.count(b"\r\n"):
                return []
            at, line = at + len(block), line + block.count(b"\n")
            if wanted <= at < size:
                cuts.append((at, line))
                wanted = at + PART
    return cuts


def _text_lines(file: SourceFile) -> Iterator[Record]:
    with _readable(file), _opened(file, newline=None) as text:
        for number, line in _lines(text):
            yield number, _object(_parse(file, number, line), f"line {number} of {file.name}", file)


def _byte_lines(file: SourceFile, start: int, end: int, number: int) -> Iterator[Record]:
    """The same of a stretch of a file; `number` is its first line's."""
    with _readable(file), file.path.open("rb") as data:
        data.seek(start)
        while start < end:
            line = data.readline()
            start += len(line)
            if line and not line.isspace():
                text = line.decode().rstrip("\r\n")
                yield number, _object(_parse(file, number, text), f"line {number} of {file.name}", file)
            elif not line:
                raise UserError(f"{file.where} changed while it was read; run the command again.")
            number += 1


def _of_value(value: Any, line: int, file: SourceFile, source: Source) -> Parts:
    """Rows of a file that is one value."""
    if isinstance(value, list):
        return [_of_list(value, file.name, file)], ()
    lists = _lists_in(value, source) if isinstance(value, dict) else []
    if not lists:
        _check_keyed(value, file, source)
        _check_columns(value, file)
        row = _object(value, f"line {line} of {file.name}", file)
        return [Part(lambda: iter([(line, row)]), "line", file.name)], ()
    if len(lists) > 1:
        raise UserError(
            f"{file.where} holds several lists of objects ({named(map(repr, lists))}), and nothing says which is the "
            "data; write that one into a file of its own."
        )
    others = [repr(key) for key in value if key not in lists]
    note = f"rows are the objects in the list {lists[0]!r}" + (
        f"; not read beside it: {named(others)}" if others else ""
    )
    return [_of_list(value[lists[0]], f"{lists[0]} in {file.name}", file)], (note,)


def _check_keyed(value: Any, file: SourceFile, source: Source) -> None:
    """Raise if an object holds rows by name, {"7": {…}, "8": {…}}: it is no row itself."""
    keyed = isinstance(value, dict) and len(value) > 1 and all(isinstance(one, dict) for one in value.values())
    if keyed and not known_columns(source) & set(value):
        raise UserError(
            f"{file.where} is one object of {len(value):,} objects ({named(map(repr, value), 2)}); if they are rows, "
            "write them as a list, or one a line."
        )


def _check_columns(value: Any, file: SourceFile) -> None:
    """Raise if an object is columns, {"prompt": ["p", "q"], …}, or as pandas writes them: {"prompt": {"0": "p"}}."""
    columns = list(value.values()) if isinstance(value, dict) else []
    lists = all(isinstance(one, list) and not any(isinstance(item, dict) for item in one) for one in columns)
    numbered = all(isinstance(one, dict) and all(key.isdecimal() for key in one) for one in columns)
    if len(columns) > 1 and all(columns) and (lists or numbered) and len({len(one) for one in columns}) == 1:
        raise UserError(
            f"{file.where} is one object of {len(columns)} columns ({named(map(repr, value))}); write a row an object, "
            "as a list or one a line (pandas: to_json(orient='records', lines=True))."
        )


def _of_list(values: list[Any], name: str, file: SourceFile) -> Part:
    rows = [(i, _object(row, f"row {i} of {name}", file)) for i, row in enumerate(values, 1)]
    return Part(lambda: iter(rows), "row", name)


def _lists_in(value: dict[str, Any], source: Source) -> list[str]:
    """Keys of an object's lists of objects; none if the object is itself a row, with a known column or turns."""
    lists = {key: one for key, one in value.items() if isinstance(one, list) and one}
    lists = {key: one for key, one in lists.items() if all(isinstance(item, dict) for item in one)}
    turns = any("role" in item or "from" in item for one in lists.values() for item in one)
    return [] if turns or known_columns(source) & set(value) else list(lists)


def _object(value: Any, at: str, file: SourceFile) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise UserError(
        f"{file.where}: {at} is {type_of(value)}, not an object; write one object with named columns a row."
    )


def _parse_whole(file: SourceFile, number: int, first: str, rest: str) -> Any:
    """Value of a file whose first line is no JSON: all of it, or else an error that names the line."""
    try:
        return DECODER.decode(first + rest)
    except (ValueError, RecursionError):
        by_line = ".json" not in file.path.suffixes  # by its name, a file of one value
        return _parse(file, number, first if by_line else first + rest)


def _parse(file: SourceFile, line: int, text: str) -> Any:
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        line, reason = line + error.lineno - 1, f"{error.msg}, column {error.colno}"
        if text[error.pos : error.pos + 1] == "\ufeff":
            reason = f"a byte order mark, U+FEFF, in column {error.colno}: remove it"
        raise UserError(
            f"{file.where}: line {line} is not valid JSON ({reason}); write one object a line, or one list of objects."
        ) from error
    except (UnreadableError, RecursionError) as error:
        reason = str(error) if isinstance(error, UnreadableError) else "it is nested too deeply"
        line += text.count("\n", 0, _unreadable(text))
        raise UserError(f"{file.where}: line {line} cannot be read ({reason}); correct or remove it.") from error


def _unreadable(text: str) -> int:
    """Where the value begins that no decoder reads: the whole, or one in a list."""
    at = 0
    while text[:1] == "[":
        at = BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # matches anywhere
        try:
            _, at = DECODER.raw_decode(text, at)
        except (UnreadableError, RecursionError):
            break
    return at


# CSV


def _open_csv(file: SourceFile, source: Source) -> Parts:
    """Records under the names in the first line; every cell stays the text that the file holds."""
    with _wide_cells(), _opened(file, newline="") as text:
        head = _head(text)
        separator = _separator(head[-1], source)
        rows = _cells(csv.reader(chain(head, text), delimiter=separator, strict=True), file)
        _, header = next(rows, (1, []))
        check_unique(header, file)
        empty = next(rows, None) is None
    expected = "\t" if ".tsv" in file.path.name.lower() else ","
    note = f"columns are taken to be separated by {separator!r}"
    part = Part(partial(_csv_records, file, separator), "line", file.name, tuple(header))
    return [part], () if separator == expected or empty else (note,)


def _csv_records(file: SourceFile, separator: str) -> Iterator[Record]:
    with _readable(file), _wide_cells(), _opened(file, newline="") as text:
        head = _head(text)
        rows = _cells(csv.reader(chain(head, text), delimiter=separator, strict=True), file)
        _, header = next(rows, (1, []))
        for number, cells in rows:
            yield _record(number, cells, header, separator, file)


@contextmanager
def _wide_cells() -> Iterator[None]:
    """Within, cells may be as long as they like."""
    limit = csv.field_size_limit(LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _head(text: TextIO) -> list[str]:
    """Lines up to the first that is not blank; that it is complete does not matter."""
    lines = [""]
    for line in text:
        lines.append(line)
        if line.strip():
            break
    return lines[1:] or lines


def _separator(line: str, source: Source) -> str:
    """What separates the names in the first line: the sign that gives the most known ones, then the most of any."""
    names = {sign: next(csv.reader([line], delimiter=sign), []) for sign in SEPARATORS}
    return max(names, key=lambda sign: (len(known_columns(source) & set(names[sign])), len(names[sign])))


def _cells(reader: Any, file: SourceFile) -> Iterator[tuple[int, list[str]]]:
    """(line where it begins, cells) of every record that is not a blank line."""
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        reason = "a quote is never closed" if "end of data" in str(error) else str(error).replace("\t", "\\t")
        found = f", found in line {reader.line_num}" if reader.line_num > start else ""
        raise UserError(
            f"{file.where}: line {start} is not valid CSV ({reason}{found}); correct its quotes, or use JSON Lines."
        ) from error


def _record(number: int, cells: list[str], header: list[str], separator: str, file: SourceFile) -> Record:
    if len(cells) != len(header):
        raise UserError(
            f"{file.where}: line {number} has {len(cells)} fields where the header names {len(header)} "
            f"({named(header)}); put text that holds {separator!r} in quotes."
        )
    return number, dict(zip(header, cells, strict=True))
