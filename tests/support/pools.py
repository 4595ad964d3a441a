"""Small pools made in memory, for the tests of plans and files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from taskpgm.config import Config
from taskpgm.config_file import parse_config
from taskpgm.data.messages import Conversation, conversation
from taskpgm.pool.task_pool import Counts, Row, TaskPool, TaskSet, row_key


def make_task(name: str, lengths: Sequence[int], rows: Sequence[Conversation] = ()) -> TaskSet:
    """Task whose training rows have so many response tokens each."""
    rows = rows or [conversation(("user", f"{name} {i}"), ("assistant", "x")) for i in range(len(lengths))]
    train = tuple(Row(m, n + 5, n, False, row_key(0, m)) for m, n in zip(rows, lengths, strict=True))
    return TaskSet(name, "task", "messages", {}, train, (), (), Counts(len(rows), 0, 0, 0, 0, 0, 0))


def make_pool(lengths: Mapping[str, Sequence[int]]) -> TaskPool:
    tasks = tuple(make_task(name, own) for name, own in lengths.items())
    return TaskPool(tasks, (), np.zeros((len(tasks), len(tasks)), dtype=np.int64))


def make_config(
    pool: TaskPool, seed: int = 0, bounds: Mapping[str, Mapping[str, float]] | None = None, **budget: Any
) -> Config:
    tasks = [{"name": name, "path": "nowhere", **(bounds or {}).get(name, {})} for name in pool.names]
    return parse_config({"tasks": tasks, "budget": budget, "seed": seed})
