"""Formats of Arrow: a dataset saved to disk, and Parquet."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from taskpgm.data.messages import Conversation
from taskpgm.export.carry import Form
from taskpgm.export.handover import Handover, Written, columns, drawn_counts, exact

BATCH = 1000  # rows of a group in a Parquet file
KEYS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name", "weight")
JSON_TEXT = "Tools and calls are JSON text: Arrow would give all calls the same arguments."
WEIGHT = "`weight` is 0 at answers that are context, 1 at those to learn, null at other turns."

DATASETS = '''"""The mixture as one `datasets.Dataset`; needs the package datasets."""

from pathlib import Path

from datasets import load_from_disk

dataset = load_from_disk(str(Path(__file__).parent / "dataset"))
'''
BY_COUNTS = '''"""The mixture as one `datasets.Dataset`: so many rows of each file; needs the package datasets."""

from pathlib import Path

from datasets import concatenate_datasets, load_dataset

HERE = Path(__file__).parent
COUNTS = {counts}
SEED = {seed}


def drawn(file, count):
    """Whole passes over the file, then a random part of it."""
    rows = load_dataset("parquet", data_files=str(HERE / file), split="train")
    passes, rest = divmod(count, len(rows))
    return concatenate_datasets([rows] * passes + [rows.shuffle(seed=SEED).select(range(rest))])


dataset = concatenate_datasets([drawn(file, count) for file, count in COUNTS.items()]).shuffle(seed=SEED)
'''


def write_datasets(handover: Handover, folder: Path) -> Written:
    """A dataset saved to disk, and `load.py`; by counts `load.py` draws them from the tasks' files."""
    start = "```python\nfrom load import dataset\n```"
    if handover.by == "counts":
        files = _write_task_tables(handover, folder)
        counts = {file: task.plan.count for file, task in zip(files, handover.tasks, strict=True)}
        told = json.dumps(counts, indent=4, ensure_ascii=False)
        (folder / "load.py").write_text(BY_COUNTS.format(counts=told, seed=handover.seed), encoding="utf-8")
        return Written(drawn_counts(handover), start, (WEIGHT, JSON_TEXT))
    from datasets import Dataset

    scratch = folder / "scratch"
    scratch.mkdir()
    _write_table(handover, scratch / "train.parquet", handover.in_order())
    loaded = Dataset.from_parquet(str(scratch / "train.parquet"), cache_dir=str(scratch))
    loaded.save_to_disk(str(folder / "dataset"))
    shutil.rmtree(scratch)
    (folder / "load.py").write_text(DATASETS, encoding="utf-8")
    return Written(exact(handover), start, (WEIGHT, JSON_TEXT))


def write_parquet(handover: Handover, folder: Path) -> Written:
    """`train.parquet` in training order, and a file a task."""
    _write_table(handover, folder / "train.parquet", handover.in_order())
    _write_task_tables(handover, folder)
    start = "```python\nimport pyarrow.parquet\n\ntable = pyarrow.parquet.read_table('train.parquet')\n```"
    return Written(exact(handover), start, (WEIGHT, JSON_TEXT))


def write_json_parquet(path: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Columns of lists, or null, whose items may be any JSON: the type does not depend on what rows have."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.schema([(name, pa.list_(pa.string())) for name in names])
    schema = pa.schema([(name, pa.list_(pa.json_())) for name in names])
    flat = ({name: _items(row.get(name)) for name in names} for row in rows)
    with pq.ParquetWriter(path, schema) as file:
        for batch in _batches(flat, BATCH):
            file.write_table(pa.Table.from_pylist(batch, text).cast(schema))


def _items(values: Iterable[Any] | None) -> list[str] | None:
    return None if values is None else [json.dumps(value, ensure_ascii=False) for value in values]


def write_messages_parquet(path: Path, rows: Iterable[Conversation]) -> None:
    """One column, `messages`, of role and content."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema([("messages", pa.list_(message))])
    plain = ({"messages": [{"role": m.role, "content": m.content} for m in row.messages]} for row in rows)
    with pq.ParquetWriter(path, schema) as file:
        for batch in _batches(plain, BATCH):
            file.write_table(pa.Table.from_pylist(batch, schema))


def _write_task_tables(handover: Handover, folder: Path) -> list[str]:
    """A Parquet file a task, all of one schema; their names."""
    (folder / "tasks").mkdir()
    files = [f"tasks/{task.stem}.parquet" for task in handover.tasks]
    for task, file in zip(handover.tasks, files, strict=True):
        _write_table(handover, folder / file, ((task.name, row) for row in handover.conversations(task)))
    return files


def _write_table(handover: Handover, path: Path, rows: Iterable[tuple[str, Conversation]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    message = pa.struct([*((key, text) for key in KEYS[:-1]), (KEYS[-1], pa.int8())])
    tools = [("tools", text)] if handover.has_tools else []
    schema = pa.schema([("messages", pa.list_(message)), *tools, ("task", text)])
    with pq.ParquetWriter(path, schema) as file:
        for batch in _batches(({**_flat(handover, row), "task": task} for task, row in rows), BATCH):
            file.write_table(pa.Table.from_pylist(batch, schema))


def _batches(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch


def _flat(handover: Handover, row: Conversation) -> dict[str, Any]:
    """A row whose columns have one type in all rows: every message has every key."""
    form = Form(flag="weight", every=True, text_arguments=True)
    given = columns(handover, row, form, tools_as_text=True)
    turns = []
    for turn in given["messages"]:
        calls = json.dumps(turn["tool_calls"], ensure_ascii=False) if "tool_calls" in turn else None
        turns.append({key: turn.get(key) for key in KEYS} | {"tool_calls": calls})
    return {**given, "messages": turns}
