"""`Opened`: the records of one source, whatever file format they come in, in parts that are read in a stream.

Text files are parsed here, not by `datasets`, which guesses types: an answer 2020-01-01 becomes a date, 007 becomes 7,
5.10 becomes 5.1 and None becomes null. Here a number in a text column is the text that the file holds. Saved datasets
and hub ids go through `datasets`, Parquet and Arrow through pyarrow; class labels become the names of the classes.
The module is long because each format has its own errors, with file and line.
"""

import csv
import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO, cast

from taskpgm.config import ALIASES, FIELDS, REFUSED, Source, local_path
from taskpgm.data.splits import PACKED, READABLE, Asked, asked_of, files_of, is_saved, kind_of, named, pick_split
from taskpgm.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
SEPARATORS = (",", "\t", ";", "|")  # of CSV files
LONGEST = 2**31 - 1  # characters of a CSV cell; csv's own limit of 131,072 is less than a long document


class Number(str):
    """A number of a JSON file, as the file spells it: text everywhere but in tools, calls and a verifier's metadata."""

    __slots__ = ()


Record = tuple[int, dict[str, Any]]  # (its number in the file, for messages; the record)
PART = 16 << 20  # bytes of a large file that are read as one part: a guess, some seconds of work
BATCH = 1024  # rows of a columnar file that are turned into records at a time


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


class Opened(NamedTuple):
    """A source that is ready to be read, in file order."""

    asked: Asked
    parts: list[Part]
    notes: tuple[str, ...] = ()  # which files were chosen and what was left out, for `check`


class Table(NamedTuple):
    """Records of one source in file order, all in memory."""

    columns: list[str]
    records: list[tuple[str, dict[str, Any]]]  # (where it stands, the record)
    notes: tuple[str, ...] = ()


class _File(NamedTuple):
    path: Path
    name: str  # from the folder or pattern given
    who: str  # whose it is

    @property
    def where(self) -> str:
        return f"{self.who}: {self.path}"


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
            return Opened(asked, *_open_hub(asked, source))
        raise UserError(
            f"{who}: {asked.path} is neither a file nor a folder, nor does it look like a hub id (owner/name); check "
            f"its {asked.key}."
        )
    if is_saved(local):
        parts, notes = _open_saved(local, asked, source)
        return Opened(asked, parts, files.notes + notes)
    parts, said = [], dict.fromkeys(files.notes)
    for file in files.paths:
        found, notes = _open_file(_File(file, files.name(file), who), source)
        parts += found
        said |= dict.fromkeys(notes)
    return Opened(asked, parts, tuple(said))


def read_table(source: Source, path: str | None, who: str) -> Table:
    """All columns and records of what `open_source` opens.

    Raises:
        UserError: anything about the source that its owner has to put right.
    """
    opened = open_source(source, path, who)
    columns: dict[str, dict[str, None]] = {}
    filled: dict[str, dict[str, None]] = {}
    records = []
    for part in opened.parts:
        names = columns.setdefault(part.file, dict.fromkeys(part.columns))
        for number, record in part.records():
            names |= dict.fromkeys(record)
            records.append((part.place(number), record))
            filled[part.file] = names
    check_alike(filled, opened.asked, source)
    return Table(list(dict.fromkeys(name for names in columns.values() for name in names)), records, opened.notes)


def check_alike(columns: dict[str, dict[str, None]], asked: Asked, source: Source) -> None:
    """Raise if a file has none of the columns that are read, and another has: it is no data, or other data.

    Args:
        columns: names by file, of those that hold records.
    """
    known = _known(source)
    strange = [file for file, names in columns.items() if not known & set(names)]
    if strange and len(strange) < len(columns):
        usual = next(name for name in columns if name not in strange)
        raise UserError(
            f"{asked.who}: {strange[0]} in {asked.path} has the columns {named(columns[strange[0]])}, none of "
            f"those that are read, and {usual} has some; name what to read in `{asked.key}`, a file or a pattern, "
            "without it."
        )


Parts = tuple[list[Part], tuple[str, ...]]  # and notes


def _open_file(file: _File, source: Source) -> Parts:
    kind = kind_of(file.path)
    if kind is None:
        raise UserError(f"{file.where} is not a {READABLE}; convert or rename it.")
    if kind in ("parquet", "arrow"):
        return _open_arrow(file, source)
    with _readable(file):
        return (_open_json if kind == "json" else _open_csv)(file, source)


@contextmanager
def _readable(file: _File) -> Iterator[None]:
    """Within, what goes wrong with a text file is said to its owner."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise _not_text(file) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file.who}: cannot read {file.path} ({reason_of(error)}); check the file.") from error


# Text


@contextmanager
def _opened(file: _File, newline: str | None) -> Iterator[TextIO]:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 if its first bytes are of such."""
    with (
        _unpacked(file) as data,
        io.TextIOWrapper(data, json.detect_encoding(data.peek(4)[:4]), newline=newline) as text,
    ):
        yield text


def _unpacked(file: _File) -> io.BufferedReader:
    name = file.path.name.lower()
    if name.endswith(".gz"):
        return cast(io.BufferedReader, gzip.open(file.path))  # it reads like one
    if not name.endswith(".zst"):
        return file.path.open("rb")
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(
            f"{file.where} needs the package pyarrow; pip install 'taskpgm[lm]', or unpack the file."
        ) from error
    return io.BufferedReader(pyarrow.input_stream(str(file.path), compression="zstd"))


def _not_text(file: _File) -> UserError:
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


class _TwiceError(ValueError):
    """A key that an object has twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(f"{next(key for key in keys if keys.count(key) > 1)!r} is given twice in one object")
    return found


BETWEEN = re.compile(r"[\s\[,]*")  # in front of the values of a list
DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, object_pairs_hook=_unique)


def _open_json(file: _File, source: Source) -> Parts:
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


def _of_lines(file: _File) -> list[Part]:
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


def _stretches(file: _File, size: int) -> list[tuple[int, int]]:
    """(byte, number of its line) where each part of about `PART` bytes begins; none if lines do not end in \\n alone
    or \\r\\n, or the text is not plain UTF-8."""
    cuts, line, at, wanted = [(0, 1)], 1, 0, PART
    with file.path.open("rb") as data:
        if json.detect_encoding(data.peek(4)[:4]) != "utf-8":
            return []
        while block := data.read(1 << 20) + data.readline():  # ends behind a line
            if block.count(b"\r") != block.count(b"\r\n"):
                return []
            at, line = at + len(block), line + block.count(b"\n")
            if wanted <= at < size:
                cuts.append((at, line))
                wanted = at + PART
    return cuts


def _text_lines(file: _File) -> Iterator[Record]:
    with _readable(file), _opened(file, newline=None) as text:
        for number, line in _lines(text):
            yield number, _object(_parse(file, number, line), f"line {number} of {file.name}", file)


def _byte_lines(file: _File, start: int, end: int, number: int) -> Iterator[Record]:
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


def _of_value(value: Any, line: int, file: _File, source: Source) -> Parts:
    """Rows of a file that is one value."""
    if isinstance(value, list):
        return [_of_list(value, file.name, file)], ()
    lists = _lists_in(value, source) if isinstance(value, dict) else []
    if not lists:
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


def _of_list(values: list[Any], name: str, file: _File) -> Part:
    rows = [(i, _object(row, f"row {i} of {name}", file)) for i, row in enumerate(values, 1)]
    return Part(lambda: iter(rows), "row", name)


def _lists_in(value: dict[str, Any], source: Source) -> list[str]:
    """Keys of an object's lists of objects; none if the object is itself a row, with a known column or turns."""
    lists = {key: one for key, one in value.items() if isinstance(one, list) and one}
    lists = {key: one for key, one in lists.items() if all(isinstance(item, dict) for item in one)}
    turns = any("role" in item or "from" in item for one in lists.values() for item in one)
    return [] if turns or _known(source) & set(value) else list(lists)


def _object(value: Any, at: str, file: _File) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise UserError(
        f"{file.where}: {at} is {type_of(value)}, not an object; write one object with named columns a row."
    )


def _parse_whole(file: _File, number: int, first: str, rest: str) -> Any:
    """Value of a file whose first line is no JSON: all of it, or else an error that names the line."""
    try:
        return DECODER.decode(first + rest)
    except (ValueError, RecursionError):
        by_line = ".json" not in file.path.suffixes  # by its name, a file of one value
        return _parse(file, number, first if by_line else first + rest)


def _parse(file: _File, line: int, text: str) -> Any:
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        line, reason = line + error.lineno - 1, f"{error.msg}, column {error.colno}"
        raise UserError(
            f"{file.where}: line {line} is not valid JSON ({reason}); write one object a line, or one list of objects."
        ) from error
    except (_TwiceError, RecursionError) as error:
        reason = str(error) if isinstance(error, _TwiceError) else "it is nested too deeply"
        line += text.count("\n", 0, _unreadable(text))
        raise UserError(f"{file.where}: line {line} cannot be read ({reason}); correct or remove it.") from error


def _unreadable(text: str) -> int:
    """Where the value begins that no decoder reads: the whole, or one in a list."""
    at = 0
    while text[:1] == "[":
        at = BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # matches anywhere
        try:
            _, at = DECODER.raw_decode(text, at)
        except (_TwiceError, RecursionError):
            break
    return at


# CSV


def _open_csv(file: _File, source: Source) -> Parts:
    """Records under the names in the first line; every cell stays the text that the file holds."""
    with _wide_cells(), _opened(file, newline="") as text:
        head = _head(text)
        separator = _separator(head[-1], source)
        rows = _cells(csv.reader(chain(head, text), delimiter=separator, strict=True), file)
        _, header = next(rows, (1, []))
        _check_unique(header, file)
        empty = next(rows, None) is None
    expected = "\t" if ".tsv" in file.path.name.lower() else ","
    note = f"columns are taken to be separated by {separator!r}"
    part = Part(partial(_csv_records, file, separator), "line", file.name, tuple(header))
    return [part], () if separator == expected or empty else (note,)


def _csv_records(file: _File, separator: str) -> Iterator[Record]:
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
    return max(names, key=lambda sign: (len(_known(source) & set(names[sign])), len(names[sign])))


def _cells(reader: Any, file: _File) -> Iterator[tuple[int, list[str]]]:
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


def _record(number: int, cells: list[str], header: list[str], separator: str, file: _File) -> Record:
    if len(cells) != len(header):
        raise UserError(
            f"{file.where}: line {number} has {len(cells)} fields where the header names {len(header)} "
            f"({named(header)}); put text that holds {separator!r} in quotes."
        )
    return number, dict(zip(header, cells, strict=True))


def _check_unique(columns: list[str], file: _File) -> None:
    twice = [column for column in dict.fromkeys(columns) if column.strip() and columns.count(column) > 1]
    if twice:
        raise UserError(f"{file.where} names the column {twice[0]!r} more than once; rename or remove all but one.")


# Parquet, Arrow, saved datasets, hub ids


def _open_arrow(file: _File, source: Source) -> Parts:
    _import_datasets()
    form: Literal["Parquet", "Arrow"] = "Parquet" if kind_of(file.path) == "parquet" else "Arrow"
    with _decodable(file, form):
        columns, _ = _load_arrow(file, source) if form == "Arrow" else _load_parquet(file, source)
    return [Part(partial(_arrow_records, file, source, form), "row", file.name, tuple(columns))], ()


@contextmanager
def _decodable(file: _File, form: str) -> Iterator[None]:
    """Within, what goes wrong with a file of that form is said to its owner."""
    import pyarrow

    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{file.where} is not a readable {form} file ({reason_of(error)}); write it again.") from error


def _arrow_records(file: _File, source: Source, form: Literal["Parquet", "Arrow"]) -> Iterator[Record]:
    datasets = _import_datasets()
    with _decodable(file, form):
        batches = (_load_arrow if form == "Arrow" else _load_parquet)(file, source)[1]
        number = 1
        for table in batches:
            yield from enumerate(_records(datasets.Dataset(table)), number)
            number += len(table)


def _open_saved(folder: Path, asked: Asked, source: Source) -> Parts:
    datasets = _import_datasets()
    import pyarrow

    try:
        with _quiet():
            saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{asked.who}: {folder} is not a readable saved dataset ({reason_of(error)}); save it again."
        ) from error
    if not isinstance(saved, datasets.DatasetDict):
        return _of_dataset(saved, source, folder.name), ()
    split = pick_split(list(saved), asked.split)
    if split is None:
        remedy = "set `split`" if asked.key == "path" else f"name one of them, as in `validation: {folder}/NAME`"
        raise UserError(f"{asked.who}: {folder} has no split {asked.split!r}; it has {named(saved)}; {remedy}.")
    left = [name for name in saved if name != split]
    note = f"reads the split {split}, not {named(left)} in the same folder"
    return _of_dataset(saved[split], source, folder.name), (note,) if left else ()


def _open_hub(asked: Asked, source: Source) -> Parts:
    datasets = _import_datasets()
    try:
        with _quiet():
            loaded = datasets.load_dataset(asked.path, source.subset, split=asked.split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{asked.who}: {asked.path!r} is neither a file nor a folder here, and loading it from the hub failed "
            f"({reason_of(error)}); check path, subset, split and the connection."
        ) from error
    return _of_dataset(loaded, source, asked.path), ()


def _of_dataset(dataset: "Dataset", source: Source, name: str) -> list[Part]:
    kept = dataset.with_format(None).select_columns(_wanted(dataset.column_names, source))

    def records() -> Iterator[Record]:
        for start in range(0, len(kept), BATCH):
            some = kept.select(range(start, min(start + BATCH, len(kept))))
            yield from enumerate(_records(some), start + 1)

    return [Part(records, "row", name, tuple(dataset.column_names))]


def _records(dataset: "Dataset") -> list[dict[str, Any]]:
    """Rows of a dataset with class labels spelled out (-1, unlabelled, is null)."""
    records: list[dict[str, Any]] = dataset.to_list()
    for column, feature in dataset.features.items():
        names: list[str] = getattr(feature, "names", None) or []  # only a ClassLabel has them
        for record in records if names else ():
            label = record[column]
            record[column] = None if label is None or label < 0 else names[label]
    return [{column: _without_nulls(value) for column, value in record.items()} for record in records]


def _without_nulls(value: Any) -> Any:
    """Without the null keys that Arrow gives objects in a list, so that all of them have the same ones."""
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return {k: _without_nulls(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _wanted(columns: list[str], source: Source) -> list[str]:
    known = _known(source)
    return [column for column in columns if column in known] or columns[:1]  # without any there are no rows to count


def _known(source: Source) -> set[str]:
    """Names of columns that say something: those in the source's settings and those that need none."""
    return {*FIELDS, *REFUSED, *(source.columns or {}).values()}.union(*ALIASES.values())


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "Parquet and Arrow files, saved datasets and hub ids need the package datasets; pip install 'taskpgm[lm]'."
        ) from error
    return datasets


def _load_parquet(file: _File, source: Source) -> tuple[list[str], Iterator[Any]]:
    """The names of all columns, and tables of some rows of those that are wanted."""
    import pyarrow
    from pyarrow import parquet

    whole = parquet.ParquetFile(file.path)
    names = whole.schema_arrow.names
    _check_unique(names, file)
    batches = whole.iter_batches(BATCH, columns=_wanted(names, source), use_threads=False)
    return names, (pyarrow.Table.from_batches([batch]) for batch in batches)


def _load_arrow(file: _File, source: Source) -> tuple[list[str], Iterator[Any]]:
    """The same of a stream, as datasets caches them, or a file in Arrow's own format."""
    import pyarrow

    data = pyarrow.memory_map(str(file.path))
    is_file = data.read(6) == b"ARROW1"
    data.seek(0)
    whole = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(data).read_all()
    _check_unique(whole.schema.names, file)
    wanted = whole.select(_wanted(whole.schema.names, source))
    return whole.schema.names, (wanted.slice(start, BATCH) for start in range(0, len(wanted), BATCH))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of datasets and the retry messages of the hub client."""
    import datasets
    import huggingface_hub.utils.logging as hub_logging

    bars, level = datasets.are_progress_bars_disabled(), hub_logging.get_verbosity()
    datasets.disable_progress_bars()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def type_of(value: Any) -> str:
    """What kind of JSON value that is, in words."""
    names = {list: "a list", dict: "an object", str: "text", Number: "a number", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def reason_of(error: BaseException) -> str:
    """What an exception of a library says, on one line and without its full stop."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
    return (text[:200] + "…" if len(text) > 200 else text) or type(error).__name__
