"""Parts of what has columns: Parquet and Arrow files, saved datasets, hub ids; class labels become their names."""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from taskpgm.config import Source
from taskpgm.data.column_names import MEDIA
from taskpgm.data.parts import Part, Parts, Record, SourceFile, check_unique, known_columns, plain_name, reason_of
from taskpgm.data.splits import Asked, kind_of, named, pick_split
from taskpgm.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

BATCH = 1024  # rows that are turned into records at a time


def open_arrow(file: SourceFile, source: Source) -> Parts:
    """The part that a Parquet or Arrow file is."""
    _import_datasets()
    form: Literal["Parquet", "Arrow"] = "Parquet" if kind_of(file.path) == "parquet" else "Arrow"
    with _decodable(file, form):
        columns, _ = _load_arrow(file, source) if form == "Arrow" else _load_parquet(file, source)
        saying = tuple(name for name in columns if name not in MEDIA or _says_something(file.path, name, form))
    return [Part(partial(_arrow_records, file, source, form), "row", file.name, saying)], ()


def _says_something(path: Path, column: str, form: str) -> bool:
    """Whether a column of media has a value that is no null and no empty list; read only up to the first."""
    from pyarrow import parquet

    batches: Iterable[Any]
    if form == "Arrow":
        batches = _whole_arrow(path).select([column]).to_batches()
    else:
        batches = parquet.ParquetFile(path).iter_batches(16, columns=[column], use_threads=False)
    return any(_has_value(batch.column(0)) for batch in batches)


def _has_value(values: Any) -> bool:
    import pyarrow
    from pyarrow import compute

    kind = values.type
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return bool(compute.any(compute.greater(compute.list_value_length(values), 0)).as_py())
    return int(values.null_count) < len(values)


@contextmanager
def _decodable(file: SourceFile, form: str) -> Iterator[None]:
    """Within, what goes wrong with a file of that form is said to its owner."""
    import pyarrow

    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        if unknown := re.search(r"Arrow type (.+) does not have", str(error)):
            raise UserError(
                f"{file.where} has values of the type {unknown[1]}, which is not read; store them as objects of named "
                "fields, or as JSON text."
            ) from error
        raise UserError(f"{file.where} is not a readable {form} file ({reason_of(error)}); write it again.") from error


def _arrow_records(file: SourceFile, source: Source, form: Literal["Parquet", "Arrow"]) -> Iterator[Record]:
    datasets = _import_datasets()
    with _decodable(file, form):
        batches = (_load_arrow if form == "Arrow" else _load_parquet)(file, source)[1]
        number = 1
        for table in batches:
            yield from enumerate(_records(datasets.Dataset(table)), number)
            number += len(table)


def open_saved(folder: Path, asked: Asked, source: Source) -> Parts:
    """The part that a saved dataset is, or the split of it that is read."""
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


def open_hub(asked: Asked, source: Source) -> Parts:
    """The part that a dataset of the hub is."""
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

    table = dataset.data
    names = (one for one in dataset.column_names if one not in MEDIA or any(map(_has_value, table.column(one).chunks)))
    return [Part(records, "row", name, tuple(names))]


def _records(dataset: "Dataset") -> list[dict[str, Any]]:
    """Rows of a dataset with class labels spelled out (-1, unlabelled, is null)."""
    records: list[dict[str, Any]] = dataset.to_list()
    for field in dataset.data.schema:
        if _is_short(field.type):
            for record in records:
                record[field.name] = _spelled(record[field.name], field.type)
    for column, feature in dataset.features.items():
        names: list[str] = getattr(feature, "names", None) or []  # only a ClassLabel has them
        for record in records if names else ():
            label = record[column]
            record[column] = None if label is None or label < 0 else names[label]
    return [{column: _without_nulls(value) for column, value in record.items()} for record in records]


def _is_short(kind: Any) -> bool:
    """Whether values of the type hold numbers of fewer bits than Python's: 0.1 of 32 bits is 0.10000000149011612."""
    import pyarrow

    if isinstance(kind, pyarrow.BaseExtensionType):
        return False
    inner = (kind.field(i).type for i in range(kind.num_fields))
    return bool(pyarrow.types.is_float32(kind) or pyarrow.types.is_float16(kind)) or any(map(_is_short, inner))


def _spelled(value: Any, kind: Any) -> Any:
    """The value with such numbers as the shortest ones that mean the same."""
    if isinstance(value, float):
        short = np.float16 if kind.bit_width == 16 else np.float32
        return float(str(short(value))) if kind.bit_width < 64 else value
    if isinstance(value, list):
        return [_spelled(one, kind.value_type) for one in value]
    if isinstance(value, dict):
        return {key: _spelled(one, kind.field(key).type) for key, one in value.items()}
    return value


def _without_nulls(value: Any) -> Any:
    """Without the null keys that Arrow gives objects in a list, so that all of them have the same ones."""
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return {k: _without_nulls(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _wanted(columns: list[str], source: Source) -> list[str]:
    known = known_columns(source)
    wanted = [column for column in columns if column in known or plain_name(column) in known]
    return wanted or columns[:1]  # without any there are no rows to count


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "Parquet and Arrow files, saved datasets and hub ids need the package datasets; pip install 'taskpgm[lm]'."
        ) from error
    return datasets


def _load_parquet(file: SourceFile, source: Source) -> tuple[list[str], Iterator[Any]]:
    """The names of all columns, and tables of some rows of those that are wanted."""
    import pyarrow
    from pyarrow import parquet

    whole = parquet.ParquetFile(file.path)
    names = whole.schema_arrow.names
    check_unique(names, file)
    batches = whole.iter_batches(BATCH, columns=_wanted(names, source), use_threads=False)
    return names, (pyarrow.Table.from_batches([batch]) for batch in batches)


def _load_arrow(file: SourceFile, source: Source) -> tuple[list[str], Iterator[Any]]:
    """The same of a stream, as datasets caches them, or a file in Arrow's own format."""
    whole = _whole_arrow(file.path)
    check_unique(whole.schema.names, file)
    wanted = whole.select(_wanted(whole.schema.names, source))
    return whole.schema.names, (wanted.slice(start, BATCH) for start in range(0, len(wanted), BATCH))


def _whole_arrow(path: Path) -> Any:
    import pyarrow

    data = pyarrow.memory_map(str(path))
    is_file = data.read(6) == b"ARROW1"
    data.seek(0)
    return (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(data).read_all()


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
