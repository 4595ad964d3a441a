"""`Table`: the records of one source, whatever file format they come in.

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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, cast

from taskpgm.config import ALIASES, FIELDS, REFUSED, Source, local_path
from taskpgm.data.splits import READABLE, Asked, asked_of, files_of, is_saved, kind_of, named, pick_split
from taskpgm.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
SEPARATORS = (",", "\t", ";", "|")  # of CSV files
LONGEST = 2**31 - 1  # characters of a CSV cell; csv's own limit of 131,072 is less than a long document


class Number(str):
    """A number of a JSON file, as the file spells it: text everywhere but in tools, calls and a verifier's metadata."""

    __slots__ = ()


Record = tuple[str, dict[str, Any]]  # (where it stands, for messages; the record)


class Table(NamedTuple):
    """Records of one source in file order."""

    columns: list[str]
    records: list[Record]
    notes: tuple[str, ...] = ()  # which files were chosen and what was left out, for `check`


class _File(NamedTuple):
    path: Path
    name: str  # from the folder or pattern given
    who: str  # whose it is

    @property
    def where(self) -> str:
        return f"{self.who}: {self.path}"


def read_table(source: Source, path: str | None, who: str) -> Table:
    """Columns and records of a file, a folder of files, a pattern, a saved dataset or a hub id.

    Args:
        source: its path, split and subset say what is read, its columns which of the columns.
        path: another path, whose validation split is read instead.
        who: how messages call the source.

    Raises:
        UserError: anything about the source that its owner has to put right.
    """
    asked = asked_of(source, who, path)
    local = local_path(asked.path)
    files = files_of(asked)
    if files is None:
        if HUB_ID.fullmatch(asked.path) and not kind_of(local):
            return _read_hub(asked, source)
        raise UserError(
            f"{who}: {asked.path} is neither a file nor a folder, nor does it look like a hub id (owner/name); check "
            f"its {asked.key}."
        )
    if is_saved(local):
        table = _read_saved(local, asked, source)
    else:
        tables = [_read_file(_File(file, files.name(file), who), source) for file in files.paths]
        names = [files.name(file) for file in files.paths]
        _check_alike(dict(zip(names, tables, strict=True)), asked, source)
        table = _join(tables)
    return table._replace(notes=files.notes + table.notes)


def _check_alike(tables: dict[str, Table], asked: Asked, source: Source) -> None:
    """Raise if a file has none of the columns that are read, and another has: it is no data, or other data."""
    known = _known(source)
    strange = [name for name, table in tables.items() if table.records and not known & set(table.columns)]
    if strange and len(strange) < len(tables):
        usual = next(name for name in tables if name not in strange)
        raise UserError(
            f"{asked.who}: {strange[0]} in {asked.path} has the columns {named(tables[strange[0]].columns)}, none of "
            f"those that are read, and {usual} has some; name what to read in `{asked.key}`, a file or a pattern, "
            "without it."
        )


def _join(tables: Iterable[Table]) -> Table:
    tables = list(tables)
    columns = dict.fromkeys(column for table in tables for column in table.columns)
    records = [record for table in tables for record in table.records]
    return Table(list(columns), records, tuple(dict.fromkeys(note for table in tables for note in table.notes)))


def _read_file(file: _File, source: Source) -> Table:
    kind = kind_of(file.path)
    if kind is None:
        raise UserError(f"{file.where} is not a {READABLE}; convert or rename it.")
    if kind in ("parquet", "arrow"):
        return _read_arrow(file, source)
    try:
        with _opened(file, newline=None if kind == "json" else "") as text:
            return (_read_json if kind == "json" else _read_csv)(text, file, source)
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


def _read_json(text: TextIO, file: _File, source: Source) -> Table:
    """Objects, one a line, or those of one list, or of the only list in one object; numbers as the file spells them."""
    lines = ((number, line.rstrip("\n")) for number, line in enumerate(text, 1) if not line.isspace())
    number, first = next(lines, (1, "[]"))
    try:
        value = DECODER.decode(first)
    except (ValueError, RecursionError):
        return _of_value(_parse_whole(file, number, first, "\n" + text.read()), number, file, source)
    second = next(lines, None)
    if second is None:
        return _of_value(value, number, file, source)
    rest = ((number, _parse(file, number, line)) for number, line in chain([second], lines))
    return _objects(
        ((f"line {number} of {file.name}", value) for number, value in chain([(number, value)], rest)), file
    )


def _of_value(value: Any, line: int, file: _File, source: Source) -> Table:
    """Rows of a file that is one value."""
    if isinstance(value, list):
        return _objects(((f"row {i} of {file.name}", row) for i, row in enumerate(value, 1)), file)
    lists = _lists_in(value, source) if isinstance(value, dict) else []
    if not lists:
        return _objects([(f"line {line} of {file.name}", value)], file)
    if len(lists) > 1:
        raise UserError(
            f"{file.where} holds several lists of objects ({named(map(repr, lists))}), and nothing says which is the "
            "data; write that one into a file of its own."
        )
    others = [repr(key) for key in value if key not in lists]
    note = f"rows are the objects in the list {lists[0]!r}" + (
        f"; not read beside it: {named(others)}" if others else ""
    )
    rows = _objects(((f"row {i} of {lists[0]} in {file.name}", row) for i, row in enumerate(value[lists[0]], 1)), file)
    return rows._replace(notes=(note,))


def _lists_in(value: dict[str, Any], source: Source) -> list[str]:
    """Keys of an object's lists of objects; none if the object is itself a row, with a known column or turns."""
    lists = {key: one for key, one in value.items() if isinstance(one, list) and one}
    lists = {key: one for key, one in lists.items() if all(isinstance(item, dict) for item in one)}
    turns = any("role" in item or "from" in item for one in lists.values() for item in one)
    return [] if turns or _known(source) & set(value) else list(lists)


def _objects(values: Iterable[tuple[str, Any]], file: _File) -> Table:
    records = []
    columns: dict[str, None] = {}
    for at, value in values:
        if not isinstance(value, dict):
            raise UserError(
                f"{file.where}: {at} is {type_of(value)}, not an object; write one object with named columns a row."
            )
        columns.update(dict.fromkeys(value))
        records.append((at, value))
    return Table(list(columns), records)


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


def _read_csv(text: TextIO, file: _File, source: Source) -> Table:
    """Records under the names in the first line; every cell stays the text that the file holds."""
    limit = csv.field_size_limit(LONGEST)
    try:
        head = _head(text)
        separator = _separator(head[-1], source)
        rows = _cells(csv.reader(chain(head, text), delimiter=separator, strict=True), file)
        _, header = next(rows, (1, []))
        _check_unique(header, file)
        records = [_record(number, cells, header, separator, file) for number, cells in rows]
    finally:
        csv.field_size_limit(limit)
    expected = "\t" if ".tsv" in file.path.name.lower() else ","
    note = f"columns are taken to be separated by {separator!r}"
    return Table(header, records, () if separator == expected or not records else (note,))


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
    return f"line {number} of {file.name}", dict(zip(header, cells, strict=True))


def _check_unique(columns: list[str], file: _File) -> None:
    twice = [column for column in dict.fromkeys(columns) if column.strip() and columns.count(column) > 1]
    if twice:
        raise UserError(f"{file.where} names the column {twice[0]!r} more than once; rename or remove all but one.")


# Parquet, Arrow, saved datasets, hub ids


def _read_arrow(file: _File, source: Source) -> Table:
    datasets = _import_datasets()
    import pyarrow

    form = "Parquet" if kind_of(file.path) == "parquet" else "Arrow"
    try:
        columns, table = (_load_parquet if form == "Parquet" else _load_arrow)(file, source)
    except UserError:
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{file.where} is not a readable {form} file ({reason_of(error)}); write it again.") from error
    return Table(columns, _records(datasets.Dataset(table), file.name))


def _read_saved(folder: Path, asked: Asked, source: Source) -> Table:
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
        return _of_dataset(saved, source, folder.name)
    split = pick_split(list(saved), asked.split)
    if split is None:
        remedy = "set `split`" if asked.key == "path" else f"name one of them, as in `validation: {folder}/NAME`"
        raise UserError(f"{asked.who}: {folder} has no split {asked.split!r}; it has {named(saved)}; {remedy}.")
    left = [name for name in saved if name != split]
    note = f"reads the split {split}, not {named(left)} in the same folder"
    return _of_dataset(saved[split], source, folder.name)._replace(notes=(note,) if left else ())


def _read_hub(asked: Asked, source: Source) -> Table:
    datasets = _import_datasets()
    try:
        with _quiet():
            loaded = datasets.load_dataset(asked.path, source.subset, split=asked.split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{asked.who}: {asked.path!r} is neither a file nor a folder here, and loading it from the hub failed "
            f"({reason_of(error)}); check path, subset, split and the connection."
        ) from error
    return _of_dataset(loaded, source, asked.path)


def _of_dataset(dataset: "Dataset", source: Source, name: str) -> Table:
    kept = dataset.with_format(None).select_columns(_wanted(dataset.column_names, source))
    return Table(dataset.column_names, _records(kept, name))


def _records(dataset: "Dataset", name: str) -> list[tuple[str, dict[str, Any]]]:
    """Rows of a dataset with class labels spelled out (-1, unlabelled, is null)."""
    records: list[dict[str, Any]] = dataset.to_list()
    for column, feature in dataset.features.items():
        names: list[str] = getattr(feature, "names", None) or []  # only a ClassLabel has them
        for record in records if names else ():
            label = record[column]
            record[column] = None if label is None or label < 0 else names[label]
    plain = ({column: _without_nulls(value) for column, value in record.items()} for record in records)
    return [(f"row {i} of {name}", record) for i, record in enumerate(plain, 1)]


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


def _load_parquet(file: _File, source: Source) -> Any:
    """Table of the columns that are wanted, and the names of all."""
    from pyarrow import parquet

    whole = parquet.ParquetFile(file.path)
    _check_unique(whole.schema_arrow.names, file)
    return whole.schema_arrow.names, whole.read(columns=_wanted(whole.schema_arrow.names, source))


def _load_arrow(file: _File, source: Source) -> Any:
    """The same of a stream, as datasets caches them, or a file in Arrow's own format."""
    import pyarrow

    data = pyarrow.memory_map(str(file.path))
    is_file = data.read(6) == b"ARROW1"
    data.seek(0)
    whole = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(data).read_all()
    _check_unique(whole.schema.names, file)
    return whole.schema.names, whole.select(_wanted(whole.schema.names, source))


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
