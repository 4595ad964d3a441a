"""train.jsonl against the plan, and against what reads it."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pools import make_config, make_pool, make_task

from taskpgm.errors import UserError
from taskpgm.export import choose_format, trainer_units, write_train_jsonl
from taskpgm.messages import Conversation, Message, conversation
from taskpgm.plan import RowPlan, plan_rows
from taskpgm.tasks import TaskPool

PAIRS: list[Conversation] = [conversation(("user", f"q{i}\n\u2028ü"), ("assistant", f"a{i} 😀")) for i in range(6)]
CHATS: list[Conversation] = [
    Conversation((Message("system", "s"), *PAIRS[i].messages, *PAIRS[5 - i].messages)) for i in range(4)
]


def planned(*rows: list[Conversation], examples: int = 15) -> tuple[TaskPool, RowPlan]:
    tasks = tuple(make_task(name, range(1, len(own) + 1), own) for name, own in zip("ab", rows, strict=False))
    pool = TaskPool(tasks, (), np.zeros((len(tasks), len(tasks)), dtype=np.int64))
    weights = {"a": 0.6, "b": 0.4} if len(tasks) == 2 else {"a": 1.0}
    return pool, plan_rows(pool, weights, make_config(pool, examples=examples, max_epochs=9))


def expected(pool: TaskPool, plan: RowPlan) -> list[tuple[str, Conversation]]:
    return [(pool.tasks[t].name, pool.tasks[t].train[r].conversation) for t, r in zip(plan.task, plan.row, strict=True)]


def test_messages_hold_the_plan(tmp_path: Path) -> None:
    pool, plan = planned(PAIRS, CHATS)
    write_train_jsonl(tmp_path / "train.jsonl", pool, plan, "messages")
    lines = (tmp_path / "train.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    read = [json.loads(line) for line in lines]
    assert [(r["task"], conversation(*((m["role"], m["content"]) for m in r["messages"]))) for r in read] == expected(
        pool, plan
    )
    assert len(read) == 15
    assert {tuple(r) for r in read} == {("messages", "task")}
    assert "ü" in lines[0].decode()


def test_marks_do_not_leak(tmp_path: Path) -> None:
    pool, plan = planned(PAIRS, PAIRS[:2])
    marked = [
        replace(t, train=tuple(replace(r, choices=("x", "y"), verifier={"answer": 1}) for r in t.train))
        for t in pool.tasks
    ]
    for format in ("messages", "prompt_completion"):
        write_train_jsonl(tmp_path / "plain", pool, plan, format)  # type: ignore[arg-type]
        write_train_jsonl(tmp_path / "marked", replace(pool, tasks=tuple(marked)), plan, format)  # type: ignore[arg-type]
        assert (tmp_path / "plain").read_bytes() == (tmp_path / "marked").read_bytes()


def test_prompt_completion_holds_the_plan(tmp_path: Path) -> None:
    pool, plan = planned(PAIRS, PAIRS[:2])
    write_train_jsonl(tmp_path / "train.jsonl", pool, plan, "prompt_completion")
    read = [json.loads(line) for line in (tmp_path / "train.jsonl").read_bytes().splitlines()]
    assert [
        (r["task"], conversation(("user", r["prompt"].removesuffix("\n")), ("assistant", r["completion"])))
        for r in read
    ] == expected(pool, plan)
    assert {tuple(r) for r in read} == {("prompt", "completion", "task")}


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        pool, plan = planned(PAIRS, CHATS)
        write_train_jsonl(tmp_path / name, pool, plan, "messages")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("format", ["messages", "prompt_completion"])
def test_datasets_reads_it_as_it_is(tmp_path: Path, format: str) -> None:
    datasets = pytest.importorskip("datasets")
    pool, plan = planned(PAIRS, CHATS if format == "messages" else PAIRS[:2])
    path = tmp_path / "train.jsonl"
    write_train_jsonl(path, pool, plan, format)  # type: ignore[arg-type]
    data = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    if format == "messages":
        rows = [conversation(*((m["role"], m["content"]) for m in messages)) for messages in data["messages"]]
    else:
        rows = [
            conversation(("user", p.removesuffix("\n")), ("assistant", c))
            for p, c in zip(data["prompt"], data["completion"], strict=True)
        ]
    assert list(zip(data["task"], rows, strict=True)) == expected(pool, plan)


def test_formats() -> None:
    simple, mixed = planned(PAIRS, PAIRS[:2]), planned(PAIRS, CHATS)
    system = planned([Conversation((Message("system", "s"), *PAIRS[0].messages))], examples=9)
    assert choose_format(*simple, "auto", False) == "prompt_completion"
    assert choose_format(*simple, "auto", True) == "messages"
    assert choose_format(*simple, "messages", False) == "messages"
    assert choose_format(*simple, "prompt_completion", True) == "prompt_completion"
    for odd in (mixed, system):
        assert choose_format(*odd, "auto", False) == "messages"
        with pytest.raises(
            UserError, match=r"prompt_completion cannot hold rows of task '[ab]' .* set it to messages or auto"
        ):
            choose_format(*odd, "prompt_completion", True)


def test_units_of_trainers() -> None:
    pool = make_pool({"a": [1] * 10, "b": [3] * 10})
    for budget, share in (({"examples": 16}, 0.75), ({"tokens": 24}, 0.5)):
        plan = plan_rows(pool, {"a": share, "b": 1 - share}, make_config(pool, **budget))
        units = trainer_units(plan)
        counts = Counter(pool.names[task] for task in plan.task)
        assert counts == {"a": 12, "b": 4}
        assert [units[name].count for name in "ab"] == [12, 4]
        assert [units[name].epochs for name in "ab"] == [1.2, 0.4]
        assert [units[name].share for name in "ab"] == [share, 1 - share]
        assert [units[name].draw_probability for name in "ab"] == [0.75, 0.25]
