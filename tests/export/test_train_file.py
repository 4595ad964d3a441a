"""train.jsonl against the plan, and against what reads it."""

import functools
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.pools import make_config, make_pool, make_task

from taskpgm.config import ModelConfig, TaskConfig
from taskpgm.data.conversations import read_source
from taskpgm.data.messages import Conversation, Message, conversation
from taskpgm.errors import UserError
from taskpgm.export.train_file import Format, check_format, choose_format, trainer_units, write_train_jsonl
from taskpgm.pool.plan import RowPlan, plan_rows
from taskpgm.pool.task_pool import TaskPool

PAIRS: list[Conversation] = [conversation(("user", f"q{i}\n\u2028ü"), ("assistant", f"a{i} 😀")) for i in range(6)]
CHATS: list[Conversation] = [
    Conversation((Message("system", "s"), *PAIRS[i].messages, *PAIRS[5 - i].messages)) for i in range(4)
]
CALLS = (  # ChatML with tools and calls
    "{% if tools %}{{ '<|im_start|>system\n' + tools | map(attribute='function.name') | join(' ') + '<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{% for c in m.tool_calls %}"
    "{{ '<call>' + c.function.name + ' ' + c.function.arguments | tojson + '</call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (  # ChatML that marks what the assistant says
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tool(name: str, **properties: object) -> dict[str, object]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def called(name: str, arguments: dict[str, object], learned: bool = True) -> Conversation:
    """A row whose call is learned or not, of a tool with other arguments than the next row's."""
    call = {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": arguments}}
    turns = (Message("user", "yes?"), Message("assistant", tool_calls=(call,), learned=learned))
    told = (Message("tool", "7", tool_call_id=f"call_{name}"), Message("assistant", "The answer is 7"))
    return Conversation(turns + told, (tool(name, **{key: {"type": "string"} for key in arguments}),))


CONTEXT = Conversation(
    (
        Message("user", "sky?"),
        Message("assistant", "maybe", learned=False),
        Message("user", "no?"),
        Message("assistant", "yes"),
    )
)
THOUGHT = Conversation((Message("user", "3 and 4?"), Message("assistant", "7", "Count.")))
RICH = [called("f", {"a": 1}), called("g", {"b": ["x", None], "c": 0.5}), CONTEXT, THOUGHT, *PAIRS[:2]]
ONE_ANSWER = [
    called("f", {"a": 1}, learned=False),
    CONTEXT,
    *PAIRS[:2],
    Conversation((Message("system", "s"), *PAIRS[2].messages)),
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
    for format in ("messages", "prompt_completion", "text"):
        write_train_jsonl(tmp_path / "plain", pool, plan, format)  # type: ignore[arg-type]
        write_train_jsonl(tmp_path / "marked", replace(pool, tasks=tuple(marked)), plan, format)  # type: ignore[arg-type]
        assert (tmp_path / "plain").read_bytes() == (tmp_path / "marked").read_bytes()


def test_text_holds_the_plan(tmp_path: Path) -> None:
    pool, plan = planned(PAIRS, PAIRS[:2])
    write_train_jsonl(tmp_path / "train.jsonl", pool, plan, "text")
    read = [json.loads(line) for line in (tmp_path / "train.jsonl").read_bytes().splitlines()]
    assert [
        (r["task"], conversation(("user", r["prompt"].removesuffix("\n")), ("assistant", r["completion"])))
        for r in read
    ] == expected(pool, plan)
    assert {tuple(r) for r in read} == {("prompt", "completion", "task")}


def test_a_line_is_a_line_to_every_reader(tmp_path: Path) -> None:
    said = "a\u2028b\u2029c\x85d"
    pool, plan = planned(*[[conversation(("user", f"{said} {i}"), ("assistant", said)) for i in range(6)]] * 2)
    write_train_jsonl(tmp_path / "train.jsonl", pool, plan, "text")
    lines = (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()  # by all of Unicode's line ends
    assert [json.loads(line)["completion"] for line in lines] == [said] * len(plan)


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        pool, plan = planned(PAIRS, CHATS)
        write_train_jsonl(tmp_path / name, pool, plan, "messages")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("format", ["messages", "text"])
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


@pytest.mark.parametrize(("format", "rows"), [("messages", RICH), ("prompt_completion", ONE_ANSWER)])
def test_rich_rows_come_back_from_the_file_with_the_same_turns_learned(
    tmp_path: Path, format: Format, rows: list[Conversation]
) -> None:
    pool, plan = planned(rows)
    write_train_jsonl(tmp_path / "train.jsonl", pool, plan, format)
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert {tuple(line) for line in lines} == {
        ("messages", "tools", "task") if format == "messages" else ("prompt", "completion", "tools", "task")
    }
    back = read_source(TaskConfig(name="a", path=str(tmp_path / "train.jsonl")))
    assert back.rows == [row for _, row in expected(pool, plan)]
    assert back.notes == ("not read: task",)


@pytest.mark.parametrize(("format", "rows"), [("messages", RICH), ("prompt_completion", ONE_ANSWER)])
def test_datasets_reads_rich_rows_without_adding_or_losing_a_key(
    tmp_path: Path, format: Format, rows: list[Conversation]
) -> None:
    datasets = pytest.importorskip("datasets")
    pool, plan = planned(rows)
    path = tmp_path / "train.jsonl"
    write_train_jsonl(path, pool, plan, format)
    data = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(data) == [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_formats() -> None:
    simple, mixed = planned(PAIRS, PAIRS[:2]), planned(PAIRS, CHATS)
    system = planned([Conversation((Message("system", "s"), *PAIRS[0].messages))], examples=9)
    context, calls = planned(PAIRS, ONE_ANSWER), planned(PAIRS, RICH)
    on = planned([Conversation((*PAIRS[0].messages, Message("user", "q")))], examples=9)
    for planning, template, expected in [
        (simple, False, "text"), (simple, True, "messages"), (mixed, False, "messages"), (mixed, True, "messages"),
        (system, False, "messages"), (system, True, "messages"), (calls, True, "messages"), (calls, False, "messages"),
        (context, True, "prompt_completion"), (context, False, "messages"),
    ]:  # fmt: skip
        assert choose_format(*planning, "auto", template) == expected
        assert choose_format(*planning, "messages", template) == "messages"
    assert choose_format(*simple, "prompt_completion", False) == "text"
    for planning in (simple, system, context):
        assert choose_format(*planning, "prompt_completion", True) == "prompt_completion"
    for planning, template, says in [
        (mixed, False, "'b', which has a row that is more than a question and its answer"),
        (system, False, "'a', which has a row that is more than a question and its answer"),
        (context, False, "'b', which has a row that is more than a question and its answer"),
        (mixed, True, "'b', which has a row with several answers to learn"),
        (on, True, "'a', which has a row that goes on after its answer"),
    ]:
        with pytest.raises(UserError, match=f"prompt_completion cannot hold task {says}; set it to messages or auto"):
            choose_format(*planning, "prompt_completion", template)


def test_a_format_that_rows_do_not_fit_is_said_before_anything_is_trained() -> None:
    pool, _ = planned(PAIRS, CHATS)
    for asked, template in (("auto", True), ("messages", True), ("messages", False)):
        check_format(pool, asked, template)
    with pytest.raises(
        UserError, match=r"cannot hold \d+ of the \d+ training rows of task 'b', such as one with several"
    ):
        check_format(pool, "prompt_completion", True)
    check_format(planned(PAIRS, PAIRS[:2])[0], "prompt_completion", False)


# TRL, as README has it


def prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, rows: list[Conversation], format: Format
) -> None:
    """A folder with a model, the training set, and TRL's settings for a machine without a GPU."""
    trl = pytest.importorskip("trl")
    from support.models import make_model

    make_model(tmp_path / "model", template=template)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    pool, plan = planned(rows, examples=len(rows))
    write_train_jsonl(tmp_path / "runs" / "first" / "train.jsonl", pool, plan, format)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    cpu = functools.partial(trl.SFTConfig, use_cpu=True, bf16=False, report_to=[], max_steps=1)
    monkeypatch.setattr(trl, "SFTConfig", cpu)


def snippets() -> list[str]:
    """The Python of README's section on trainers, on the model at hand."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Hand it to your trainer")[2].partition("\n## ")[0]
    return [
        code.replace("HuggingFaceTB/SmolLM2-360M-Instruct", "model")
        for code in re.findall(r"```python\n(.*?)```", section, re.S)
    ]


def learned(trainer: Any) -> list[str]:
    """What is learned of every row, as text."""
    rows = trainer.train_dataset
    return [
        trainer.processing_class.decode(
            [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label >= 0]
        )
        for row in rows
    ]


def test_trl_learns_from_prompt_completion_what_probes_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path, monkeypatch, CALLS, ONE_ANSWER, "prompt_completion")
    found: dict[str, Any] = {}
    exec(snippets()[0], found)
    trainer, tokenizer = found["trainer"], found["trainer"].processing_class
    answers = [m["completion"][0]["content"] for m in found["rows"]]
    assert sorted(answers) == sorted(row.answer for row in ONE_ANSWER)
    assert learned(trainer) == [f"{answer}<|im_end|>\n" for answer in answers]  # and the template's newline behind it
    whole = [tokenizer.decode(row["input_ids"]) for row in trainer.train_dataset]
    (call,) = [text for text in whole if "<call>" in text]
    assert "<|im_start|>system\nf<|im_end|>\n<|im_start|>user\nyes?<|im_end|>" in call
    assert '<call>f {"a": 1}</call><|im_end|>\n<|im_start|>tool\n7<|im_end|>' in call
    assert np.isfinite(trainer.train().training_loss)


def test_trls_tokens_and_mask_of_prompt_completion_are_our_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.models import CHATML

    from taskpgm.chat.encoder import ChatEncoder
    from taskpgm.lm.checkpoint import load_tokenizer

    rows = [*PAIRS, Conversation((Message("system", "s"), *PAIRS[2].messages))]
    prepared(tmp_path, monkeypatch, CHATML, rows, "prompt_completion")
    found: dict[str, Any] = {}
    exec(snippets()[0], found)
    encoder = ChatEncoder(load_tokenizer(ModelConfig(path=str(tmp_path / "model"))), 512)
    written = read_source(TaskConfig(name="a", path=str(tmp_path / "runs" / "first" / "train.jsonl"))).rows
    for theirs, ours in zip(found["trainer"].train_dataset, encoder.encode(written), strict=True):
        assert ours is not None
        assert theirs["input_ids"] == ours.ids.tolist()
        response = [label >= 0 for label in theirs["labels"]]
        assert encoder.tokenizer.decode(theirs["input_ids"][-1:]) == "\n"  # behind the turn's end: TRL learns it too
        assert response[:-1] == ours.response[:-1].tolist()


def test_trl_learns_from_messages_where_the_template_marks_what_the_assistant_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path, monkeypatch, MARKED, CHATS, "messages")
    found: dict[str, Any] = {}
    exec("\n".join(snippets()), found)
    said = [
        "".join(f"{m['content']}<|im_end|>" for m in row["messages"] if m["role"] == "assistant")
        for row in found["rows"]
    ]
    assert learned(found["trainer"]) == said
    assert np.isfinite(found["trainer"].train().training_loss)


def test_trl_stops_at_messages_where_no_template_marks_what_the_assistant_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path, monkeypatch, CALLS, CHATS, "messages")
    with pytest.raises(ValueError, match="template"):
        exec("\n".join(snippets()), {})


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
