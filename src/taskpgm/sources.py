"""`Table`: the records of one source, whatever file format they come in.

Text files are parsed here, not by `datasets`, which guesses types: an answer 2020-01-01 becomes a date, 007 becomes 7,
5.10 becomes 5.1 and None becomes null. Here a number in a text column is the text that the file holds. Saved datasets
and hub ids go through `datasets`, Parquet through pyarrow; their class labels become the names of the classes.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from taskpgm.config import ALIASES, FIELDS, REFUSED, Source
from taskpgm.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


class Number(str):
    """A number of a JSON file, as the file spells it: text everywhere but in tools, calls and a verifier's metadata."""

    __slots__ = ()


class Table(NamedTuple):
    """Records of one source in file order."""

    columns: list[str]
    records: list[tuple[str, dict[str, Any]]]  # (where it stands, for messages; the record)


def read_table(path: str, source: Source, who: str) -> Table:
    """Columns and records of a file, a folder of files, a saved dataset or a hub id.

    Raises:
        UserError: anything about the source that its owner has to put right.
    """
    local = Path(path).expanduser()
    if local.is_file():
        return _read_file(local, source)
    if (local / "dataset_info.json").is_file() or (local / "dataset_dict.json").is_file():
        return _read_saved(local, source, who)
    if local.is_dir():
        return _join(_read_file(file, source) for file in _files_of(local, who))
    if HUB_ID.fullmatch(path) and not _kind(local):
        return _read_hub(path, source, who)
    raise UserError(
        f"{who}: {path} is neither a file nor a folder, nor does it look like a hub id (owner/name); check its path."
    )


def _join(tables: Iterable[Table]) -> Table:
    tables = list(tables)
    columns = dict.fromkeys(column for table in tables for column in table.columns)
    return Table(list(columns), [record for table in tables for record in table.records])


# Files


def _kind(path: Path) -> str | None:
    """json, csv, parquet, or None: what the end of the name says."""
    name = path.name.lower()
    plain = Path(name.removesuffix(".gz"))
    kind = SUFFIXES.get(plain.suffix)
    return None if kind == "parquet" and name.endswith(".gz") else kind


def _files_of(folder: Path, who: str) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and _kind(file))
    kinds = sorted({str(_kind(file)) for file in files})
    if len(kinds) != 1:
        what = f"mixes {' and '.join(kinds)} files" if kinds else "holds no .jsonl, .json, .csv or .parquet file"
        raise UserError(f"{who}: the folder {folder} {what}; give a folder whose files are of one kind, or one file.")
    return files


def _read_file(path: Path, source: Source) -> Table:
    readers = {"json": _read_json, "csv": _read_csv}
    kind = _kind(path)
    if kind is None:
        raise UserError(
            f"{path} is not a .jsonl, .json, .csv (or one of these with .gz) or .parquet file; convert or rename it."
        )
    if kind == "parquet":
        return _read_parquet(path, source)
    try:
        data = path.read_bytes()
        return readers[kind](path, gzip.decompress(data) if path.name.lower().endswith(".gz") else data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"Cannot read {path}: {reason_of(error)}; check the file.") from error


def _read_json(path: Path, data: bytes) -> Table:
    """Objects of a JSON array, or one a line; numbers stay the text that the file holds."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data.lstrip()[:1] == b"[":
        values = ((f"row {i} of {path.name}", value) for i, value in enumerate(_parse_json(path, 1, data), 1))
    else:
        values = (
            (f"line {i} of {path.name}", _parse_json(path, i, line))
            for i, line in enumerate(data.split(b"\n"), 1)
            if line and not line.isspace()
        )
    records = []
    for at, value in values:
        if not isinstance(value, dict):
            raise UserError(
                f"{path}: {at} is {type_of(value)}, not an object; write one object with named columns a row."
            )
        records.append((at, value))
    return Table(list(dict.fromkeys(column for _, record in records for column in record)), records)


def _parse_json(path: Path, line: int, data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"), parse_int=Number, parse_float=Number)
    except UnicodeDecodeError as error:
        line += data[: error.start].count(b"\n")
        raise UserError(f"{path}: line {line} is not UTF-8 text ({error.reason}); save the file as UTF-8.") from error
    except (json.JSONDecodeError, RecursionError) as error:
        reason = (
            f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        )
        line += error.lineno - 1 if isinstance(error, json.JSONDecodeError) else 0
        raise UserError(
            f"{path}: line {line} is not valid JSON ({reason}); write one object a line, or one list of objects."
        ) from error


def _read_csv(path: Path, data: bytes) -> Table:
    """Records under the names in the first line; every cell stays the text that the file holds."""
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline=""), strict=True)
    try:
        lines = [cells for cells in reader if cells]
    except csv.Error as error:
        raise UserError(
            f"{path}: line {reader.line_num} is not valid CSV ({error}); correct its quotes, or use JSON Lines."
        ) from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: line {line} is not UTF-8 text ({error.reason}); save the file as UTF-8.") from error
    header = lines[0] if lines else []
    for i, cells in enumerate(lines[1:], 1):
        if len(cells) != len(header):
            raise UserError(
                f"{path}: row {i} has {len(cells)} fields where the first line names {len(header)} "
                f"({', '.join(header)}); put text with commas in quotes."
            )
    records = [
        (f"row {i} of {path.name}", dict(zip(header, cells, strict=True))) for i, cells in enumerate(lines[1:], 1)
    ]
    return Table(header, records)


# Parquet, saved datasets, hub ids


def _read_parquet(path: Path, source: Source) -> Table:
    datasets = _import_datasets()
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        columns = file.schema_arrow.names
        table = file.read(columns=_wanted(columns, source))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is not a readable Parquet file ({reason_of(error)}); write it again.") from error
    return Table(columns, _records(datasets.Dataset(table), path.name))


def _read_saved(folder: Path, source: Source, who: str) -> Table:
    datasets = _import_datasets()
    import pyarrow

    try:
        with _quiet():
            saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{who}: {folder} is not a readable saved dataset ({reason_of(error)}); save it again."
        ) from error
    if isinstance(saved, datasets.DatasetDict):
        if source.split not in saved:
            raise UserError(f"{who}: {folder} has no split {source.split!r}; it has {', '.join(saved)}. Set `split`.")
        saved = saved[source.split]
    return _of_dataset(saved, source, folder.name)


def _read_hub(name: str, source: Source, who: str) -> Table:
    datasets = _import_datasets()
    try:
        with _quiet():
            loaded = datasets.load_dataset(name, source.subset, split=source.split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{who}: {name!r} is neither a file nor a folder here, and loading it from the hub failed "
            f"({reason_of(error)}); check path, subset, split and the connection."
        ) from error
    return _of_dataset(loaded, source, name)


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
    mapped = source.columns or {}
    fields = {mapped.get(field, field) for field in FIELDS}.union(REFUSED, *ALIASES.values())
    return [column for column in columns if column in fields]


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "Parquet files, saved datasets and hub ids need the package datasets; pip install 'taskpgm[lm]'."
        ) from error
    return datasets


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
    names = {list: "a list", dict: "an object", str: "text", Number: "text", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def reason_of(error: BaseException) -> str:
    """What an exception of a library says, on one line and without its full stop."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
    return (text[:200] + "…" if len(text) > 200 else text) or type(error).__name__
