"""`Reading`: the rows of one source as conversations, whatever format they come in.

Text files are parsed here, not by `datasets`, which guesses types: an answer 2020-01-01 becomes a date, 007 becomes 7,
5.10 becomes 5.1 and None becomes null. Here a number in a text column is the text that the file holds. Saved datasets
and hub ids go through `datasets`, Parquet through pyarrow; their class labels become the names of the classes.
"""

import csv
import gzip
import io
import json
import logging
import math
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from taskpgm.config import MARKS, Source, TargetConfig
from taskpgm.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

Messages = tuple[tuple[str, str], ...]  # (role, content) of every turn
Layout = Literal["messages", "prompt_completion", "instruction_output"]

LAYOUTS: dict[Layout, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "instruction_output": ("instruction", "output"),
}
OPTIONAL: dict[Layout, tuple[str, ...]] = {"instruction_output": ("input",)}
FIELDS = ("messages", "prompt", "completion", "instruction", "input", "output", *MARKS)
SUFFIXES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}  # rows of {from, value} instead of {role, content}
HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


class Marking(NamedTuple):
    """What an answer to a row is marked by, where its source says so; no part of the conversation."""

    choices: tuple[str, ...] | None = None  # every answer that may be given; the row's own is one of them
    verifier: dict[str, Any] | None = None  # reasoning-gym: {dataset, answer, metadata}


class Reading(NamedTuple):
    """Rows of one source, in file order, and how its columns were understood."""

    rows: list[Messages]
    layout: Layout
    columns: dict[str, str]  # field -> column it was read from
    markings: list[Marking]  # one a row


class _Number(str):
    """A number of a JSON file, as the file spells it: text everywhere but in a verifier's metadata."""

    __slots__ = ()


class _Table(NamedTuple):
    columns: list[str]
    records: list[tuple[str, dict[str, Any]]]  # (where it stands, for messages; the record)


def read_source(source: Source, path: str | None = None) -> Reading:
    """Reading of a task or target, or of another file (its validation rows) with the same columns.

    Every row has an assistant turn that says something and a turn of somebody else before it. Numbers and booleans in
    a text column are taken as text, the way JSON spells them (CSV: exactly as the file does); null is an error.

    Raises:
        UserError: anything about the source that its owner has to put right.
    """
    path = path or source.path
    who = f"{'Target' if isinstance(source, TargetConfig) else 'Task'} {source.name!r}"
    table = _read_table(path, source, who)
    if not table.records:
        raise UserError(f"{who}: {path} holds no rows; give it some or leave it out.")
    layout, columns = _detect(table.columns, source.columns or {}, path, who)
    marks = {field: (source.columns or {}).get(field, field) for field in MARKS}
    marks = {field: column for field, column in marks.items() if column and column in table.columns}
    rows, markings = [], []
    for at, record in table.records:
        rows.append(_conversation(layout, columns, record, f"{who}: {at}"))
        markings.append(_marking(marks, record, rows[-1], f"{who}: {at}") if marks else Marking())
    return Reading(rows, layout, {**columns, **marks}, markings)


def _read_table(path: str, source: Source, who: str) -> _Table:
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


def _join(tables: Iterable[_Table]) -> _Table:
    tables = list(tables)
    columns = dict.fromkeys(column for table in tables for column in table.columns)
    return _Table(list(columns), [record for table in tables for record in table.records])


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


def _read_file(path: Path, source: Source) -> _Table:
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
        raise UserError(f"Cannot read {path}: {_reason(error)}; check the file.") from error


def _read_json(path: Path, data: bytes) -> _Table:
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
                f"{path}: {at} is {_type(value)}, not an object; write one object with named columns a row."
            )
        records.append((at, value))
    return _Table(list(dict.fromkeys(column for _, record in records for column in record)), records)


def _parse_json(path: Path, line: int, data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"), parse_int=_Number, parse_float=_Number)
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


def _read_csv(path: Path, data: bytes) -> _Table:
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
    return _Table(header, records)


# Parquet, saved datasets, hub ids


def _read_parquet(path: Path, source: Source) -> _Table:
    datasets = _import_datasets()
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        columns = file.schema_arrow.names
        table = file.read(columns=_wanted(columns, source))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is not a readable Parquet file ({_reason(error)}); write it again.") from error
    return _Table(columns, _records(datasets.Dataset(table), path.name))


def _read_saved(folder: Path, source: Source, who: str) -> _Table:
    datasets = _import_datasets()
    import pyarrow

    try:
        with _quiet():
            saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{who}: {folder} is not a readable saved dataset ({_reason(error)}); save it again."
        ) from error
    if isinstance(saved, datasets.DatasetDict):
        if source.split not in saved:
            raise UserError(f"{who}: {folder} has no split {source.split!r}; it has {', '.join(saved)}. Set `split`.")
        saved = saved[source.split]
    return _of_dataset(saved, source, folder.name)


def _read_hub(name: str, source: Source, who: str) -> _Table:
    datasets = _import_datasets()
    try:
        with _quiet():
            loaded = datasets.load_dataset(name, source.subset, split=source.split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{who}: {name!r} is neither a file nor a folder here, and loading it from the hub failed "
            f"({_reason(error)}); check path, subset, split and the connection."
        ) from error
    return _of_dataset(loaded, source, name)


def _of_dataset(dataset: "Dataset", source: Source, name: str) -> _Table:
    kept = dataset.with_format(None).select_columns(_wanted(dataset.column_names, source))
    return _Table(dataset.column_names, _records(kept, name))


def _records(dataset: "Dataset", name: str) -> list[tuple[str, dict[str, Any]]]:
    """Rows of a dataset with class labels spelled out (-1, unlabelled, is null)."""
    records: list[dict[str, Any]] = dataset.to_list()
    for column, feature in dataset.features.items():
        names: list[str] = getattr(feature, "names", None) or []  # only a ClassLabel has them
        for record in records if names else ():
            label = record[column]
            record[column] = None if label is None or label < 0 else names[label]
    return [(f"row {i} of {name}", record) for i, record in enumerate(records, 1)]


def _wanted(columns: list[str], source: Source) -> list[str]:
    mapped = source.columns or {}
    fields = {mapped.get(field, field) for field in FIELDS}
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


# Columns and conversations


def _detect(found: list[str], mapped: dict[str, str], path: str, who: str) -> tuple[Layout, dict[str, str]]:
    mapped = {field: column for field, column in mapped.items() if column or field not in MARKS}
    for field, column in mapped.items():
        if column not in found:
            raise UserError(f"{who}: `columns` reads {field} from {column!r}, but {path} has {', '.join(found)}.")
    for layout, required in LAYOUTS.items():
        fields = (*required, *OPTIONAL.get(layout, ()))
        columns = {field: mapped.get(field, field) for field in fields}
        if set(mapped) <= {*fields, *MARKS} and all(columns[field] in found for field in required):
            return layout, {field: column for field, column in columns.items() if column in found}
    also = f" and `columns` maps {', '.join(mapped)}" if mapped else ""
    raise UserError(
        f"{who}: {path} has the columns {', '.join(found)}{also}; a task needs messages, or prompt and completion, or "
        "instruction and output: name them in `columns`."
    )


def _conversation(layout: Layout, columns: dict[str, str], record: dict[str, Any], at: str) -> Messages:
    if layout == "messages":
        messages = _turns(record.get(columns["messages"]), columns["messages"], at)
    else:
        user, assistant = LAYOUTS[layout]
        question = _text(record.get(columns[user]), columns[user], at)
        extra = record.get(columns["input"]) if "input" in columns else None
        if extra is not None and (text := _text(extra, columns["input"], at)):
            question = f"{question}\n\n{text}"
        messages = (("user", question), ("assistant", _text(record.get(columns[assistant]), columns[assistant], at)))
    _check_conversation(messages, at)
    return messages


def _turns(value: Any, column: str, at: str) -> Messages:
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        wrong = "missing or null" if value is None else _type(value)
        raise UserError(f"{at} has no list of {{role, content}} in {column!r} ({wrong}); correct or remove the row.")
    turns = []
    for i, turn in enumerate(value, 1):
        role = turn.get("role")
        role = SHAREGPT_ROLES.get(name := turn.get("from"), name) if role is None else role
        content = turn.get("content")
        content = turn.get("value") if content is None else content
        for key, text in (("role", role), ("content", content)):
            if not isinstance(text, str):
                wrong = "missing or null" if text is None else _type(text)
                raise UserError(
                    f"{at} has no text as {key} of turn {i} of {column!r} ({wrong}); correct or remove the row."
                )
        turns.append((str(role), str(content)))
    return tuple(turns)


def _text(value: Any, column: str, at: str) -> str:
    if isinstance(value, str):
        return str(value)  # plain text, where it was a number of a JSON file
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    wrong = "missing or null" if value is None or isinstance(value, float) else _type(value)
    raise UserError(f"{at} has no text in column {column!r} ({wrong}); fill it in or remove the row.")


def _check_conversation(messages: Messages, at: str) -> None:
    roles = [role for role, _ in messages]
    asked = next((i for i, role in enumerate(roles) if role != "assistant"), len(roles))
    if not any(role == "assistant" and content.strip() for role, content in messages[asked:]):
        said = "an empty answer" if "assistant" in roles[asked:] else "no assistant turn after another one"
        raise UserError(f"{at} has {said} (roles: {', '.join(roles) or 'none'}); every row needs an answer to learn.")
    try:
        "".join(part for turn in messages for part in turn).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{at} holds half a surrogate pair, which is not text; correct or remove the row.") from error


def last_answer(messages: Messages) -> int:
    """Index of the last assistant turn: the answer that is marked."""
    return max(i for i, (role, _) in enumerate(messages) if role == "assistant")


def _marking(columns: dict[str, str], record: dict[str, Any], messages: Messages, at: str) -> Marking:
    choices = _choices(columns, record, messages[last_answer(messages)][1], at)
    return Marking(choices, _verifier(columns, record, at))


def _choices(columns: dict[str, str], record: dict[str, Any], answer: str, at: str) -> tuple[str, ...] | None:
    column = columns.get("choices")
    value = _from_text(record.get(column), column, at) if column else None
    if not column or not value:
        return None
    remedy = "correct the row, or ignore the column with columns: {choices: ''}"
    if not isinstance(value, list):
        raise UserError(f"{at} has {_type(value)} in column {column!r}, not a list of answers; {remedy}.")
    choices = tuple(_text(choice, column, at) for choice in value)
    if answer not in choices:
        raise UserError(f"{at} has the answer {answer[:40]!r}, which is none of its {len(choices)} choices; {remedy}.")
    return choices


def _verifier(columns: dict[str, str], record: dict[str, Any], at: str) -> dict[str, Any] | None:
    column = columns.get("reasoning_gym")
    value = _numbers(_from_text(record.get(column), column, at)) if column else None
    if not column or not value:
        return None
    if isinstance(value, dict) and isinstance(value.get("dataset"), str) and "answer" in value:
        return {"dataset": value["dataset"], "answer": value["answer"], "metadata": value.get("metadata") or {}}
    raise UserError(
        f"{at} has no {{dataset, answer, metadata}} in column {column!r}, which its verifier needs; correct the row, "
        "or ignore the column with columns: {reasoning_gym: ''}."
    )


def _from_text(value: Any, column: str, at: str) -> Any:
    """The value, read from JSON where it is text, as in CSV."""
    if not isinstance(value, str) or not value.strip():
        return None if isinstance(value, str) else value
    try:
        return json.loads(value, parse_int=_Number, parse_float=_Number)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f"{at} has text in column {column!r} that is not JSON ({_reason(error)}); correct the row, or ignore the "
            f"column with columns: {{{column}: ''}}."
        ) from error


def _numbers(value: Any) -> Any:
    """Plain data with the numbers of a JSON file as numbers again."""
    if isinstance(value, _Number):
        return json.loads(value)
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return {key: _numbers(item) for key, item in value.items()} if isinstance(value, dict) else value


def _type(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "text", _Number: "text", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def _reason(error: BaseException) -> str:
    """What an exception of a library says, on one line and without its full stop."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
    return (text[:200] + "…" if len(text) > 200 else text) or type(error).__name__
