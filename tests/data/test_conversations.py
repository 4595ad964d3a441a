"""Row shapes: what is read of every one, by hand-written expectations, and what is named or refused instead."""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from support.files import GOOD, bad, configure, lengths_of, load, one_sentence, pair, pairs, read, write

from taskpgm.config import FIELDS
from taskpgm.data.column_names import REFUSED
from taskpgm.data.conversations import Reading, read_source
from taskpgm.data.messages import Conversation, Message, conversation
from taskpgm.errors import UserError
from taskpgm.pool.task_pool import TaskPool, load_tasks, row_key


def reading(path: object, **settings: Any) -> Reading:
    return read_source(configure({"a": {"path": str(path), **settings}}).tasks[0])


def refused(path: Path, rows: Sequence[Any], **settings: Any) -> str:
    """The sentence that refuses such a file."""
    with pytest.raises(UserError) as error:
        read(write(path / "a.jsonl", rows), **settings)
    one_sentence(error)
    return str(error.value)


# Shapes: a record, and the conversation that it is

USER, ANSWER = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
SUBTRACT = {
    "name": "subtract",
    "description": "a minus b",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}
TOOL = {"type": "function", "function": SUBTRACT}
CALL = {"type": "function", "function": {"name": "subtract", "arguments": {"a": 11, "b": 4.5}}}
TOLD = {"role": "tool", "content": "7", "tool_call_id": "c1"}
CALLED = Conversation(
    (
        Message("user", "u"),
        Message("assistant", "", tool_calls=({"id": "c1", **CALL},)),
        Message("tool", "7", tool_call_id="c1"),
        Message("assistant", "a"),
    ),
    (TOOL,),
)
CALLED_BY_NAME = Conversation(
    (Message("user", "u"), Message("assistant", tool_calls=(CALL,)), Message("tool", "7"), Message("assistant", "a")),
    (TOOL,),
)
THOUGHT = Conversation((Message("user", "u"), Message("assistant", "a", "hm")))
CONTEXT = Conversation(
    (Message("user", "u"), Message("assistant", "no", learned=False), Message("user", "v"), Message("assistant", "a"))
)
FULL = conversation(("system", "s"), ("user", "u"), ("assistant", "a"))
LONG = conversation(("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b"))


def call_of(arguments: Any, **more: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "subtract", "arguments": arguments}, **more}


def called(content: Any, call: Any, tools: Any) -> dict[str, Any]:
    return {
        "messages": [USER, {"role": "assistant", "content": content, "tool_calls": call}, TOLD, ANSWER],
        "tools": tools,
    }


def flagged(key: str, no: Any, yes: Any) -> dict[str, Any]:
    turns = [{"role": "assistant", "content": "no", key: no}, {"role": "user", "content": "v"}, {**ANSWER, key: yes}]
    return {"messages": [USER, *turns]}


def sharegpt(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **more}


CALL_TEXT = json.dumps({"name": "subtract", "arguments": {"a": 11, "b": 4.5}})
KEYS = (
    "role", "from", "content", "value", "type", "text", "thinking", "reasoning_content", "tool_calls", "function_call",
    "function", "name", "arguments", "id", "weight", "train", "tool_call_id", "label", "dataset", "answer", "mask",
)  # fmt: skip
SHAPES: dict[str, tuple[dict[str, Any], Conversation]] = {
    "messages": ({"messages": [{"role": "system", "content": "s"}, USER, ANSWER]}, FULL),
    "messages and a system column": ({"messages": [USER, ANSWER], "system": "s"}, FULL),
    "the same system text twice": ({"messages": [{"role": "system", "content": "s"}, USER, ANSWER], "system_prompt": "s"}, FULL),
    "developer": ({"messages": [{"role": "developer", "content": "s"}, USER, ANSWER]}, FULL),
    "lists of roles and contents": ({"messages": {"role": ["user", "assistant"], "content": ["u", "a"]}}, pair("u", "a")),
    "a greeting first": ({"messages": [ANSWER, USER, ANSWER]}, conversation(("assistant", "a"), ("user", "u"), ("assistant", "a"))),
    "prompt and completion": ({"prompt": "u", "completion": "a"}, pair("u", "a")),
    "prompt, completion, system": ({"prompt": "u", "completion": "a", "system": "s"}, FULL),
    "prompt and completion of messages": (
        {"prompt": [{"role": "system", "content": "s"}, USER], "completion": [ANSWER]}, FULL
    ),
    "an answer in the prompt": (
        {"prompt": [USER, {"role": "assistant", "content": "no"}, {"role": "user", "content": "v"}], "completion": [ANSWER]},
        CONTEXT,
    ),
    "prompt of messages, completion of text": ({"prompt": [USER], "completion": "a"}, pair("u", "a")),
    "prompt of text, completion of messages": ({"prompt": "u", "completion": [ANSWER]}, pair("u", "a")),
    "a completion that calls": (
        {"prompt": [USER], "completion": called(None, [call_of({"a": 11, "b": 4.5})], None)["messages"][1:], "tools": [TOOL]},
        CALLED,
    ),
    "reasoning_content as a column": ({"prompt": "u", "completion": "a", "reasoning_content": "hm"}, THOUGHT),
    "alpaca": ({"instruction": "i", "input": "x", "output": "a"}, pair("i\n\nx", "a")),
    "alpaca without input": ({"instruction": "i", "output": "a"}, pair("i", "a")),
    "alpaca with an empty input": ({"instruction": "i", "input": "", "output": "a"}, pair("i", "a")),
    "alpaca with a null input": ({"instruction": "i", "input": None, "output": "a"}, pair("i", "a")),
    "alpaca with an empty instruction": ({"instruction": "", "input": "u", "output": "a"}, pair("u", "a")),
    "input and output alone": ({"input": "u", "output": "a"}, pair("u", "a")),
    "alpaca with system and history": (
        {"instruction": "v", "input": "", "output": "b", "system": "s", "history": [["u", "a"]]},
        Conversation((Message("system", "s"), *LONG.messages)),
    ),
    "alpaca with an empty history": ({"instruction": "u", "output": "a", "system": "", "history": []}, pair("u", "a")),
    "a history of messages": ({"prompt": "v", "completion": "b", "history": [USER, ANSWER]}, LONG),
    "sharegpt": (sharegpt(("human", "u"), ("gpt", "a")), pair("u", "a")),
    "sharegpt with a system turn": (sharegpt(("system", "s"), ("user", "u"), ("chatgpt", "a")), FULL),
    "sharegpt with a system column": (sharegpt(("Human", "u"), ("model", "a"), system="s"), FULL),
    "sharegpt with calls as JSON": (
        sharegpt(("human", "u"), ("function_call", CALL_TEXT), ("observation", "7"), ("gpt", "a"), tools=json.dumps([SUBTRACT])),
        CALLED_BY_NAME,
    ),
    "sharegpt with several calls as JSON": (
        sharegpt(("human", "u"), ("tool_call", f"[{CALL_TEXT}]"), ("tool_response", "7"), ("bing", "a"), tools=json.dumps([TOOL])),
        CALLED_BY_NAME,
    ),
    "conversations in OpenAI's keys": ({"conversation": [USER, ANSWER]}, pair("u", "a")),
    "dialogue": ({"dialogue": [USER, ANSWER]}, pair("u", "a")),
    "a call with content": (called("", [call_of({"a": 11, "b": 4.5})], [TOOL]), CALLED),
    "a call with null content": (called(None, [call_of({"a": 11, "b": 4.5})], [TOOL]), CALLED),
    "a call whose arguments are JSON text": (called(None, [call_of('{"a": 11, "b": 4.5}')], [TOOL]), CALLED),
    "a bare call and a bare tool": (
        called(None, [{"id": "c1", "name": "subtract", "arguments": {"a": 11, "b": 4.5}}], [SUBTRACT]), CALLED
    ),
    **{
        f"a call whose arguments are called {key}": (
            called(None, [{"id": "c1", "name": "subtract", key: {"a": 11, "b": 4.5}}], [SUBTRACT]), CALLED
        )
        for key in ("parameters", "args", "input", "params")
    },
    "a call with its arguments beside its function": (
        called(None, [{"id": "c1", "function": {"name": "subtract"}, "args": '{"a": 11, "b": 4.5}'}], [TOOL]), CALLED
    ),
    "an empty spelling beside a full one": (
        {
            "messages": [
                {**USER, "value": ""},
                {**ANSWER, "content": None, "tool_calls": [call_of({"a": 11, "b": 4.5}, args="")]},
                TOLD,
                {**ANSWER, "text": "", "reasoning": "", "thinking": " "},
            ],
            "tools": [TOOL],
        },
        CALLED,
    ),
    "tools as JSON text": (called(None, [call_of({"a": 11, "b": 4.5})], json.dumps([TOOL])), CALLED),
    "each tool as JSON text": (called(None, [call_of({"a": 11, "b": 4.5})], [json.dumps(TOOL)]), CALLED),
    "OpenAI's older calls": (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "function_call": {"name": "subtract", "arguments": '{"a": 11, "b": 4.5}'}},
                {"role": "function", "name": "subtract", "content": "7"},
                ANSWER,
            ],
            "functions": [SUBTRACT],
        },
        Conversation(
            (*CALLED_BY_NAME.messages[:2], Message("tool", "7", name="subtract"), CALLED_BY_NAME.messages[3]), (TOOL,)
        ),
    ),
    "a last turn that calls": (
        {"messages": [USER, {"role": "assistant", "tool_calls": [call_of("{}")]}]},
        Conversation((Message("user", "u"), Message("assistant", tool_calls=(call_of({}),)))),
    ),
    "text blocks": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "u"}]}, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]},
        pair("u", "a"),
    ),
    "parts": (
        {"messages": [{"role": "user", "parts": [{"text": "u"}]}, {"role": "model", "parts": [{"text": "a"}]}]}, pair("u", "a")
    ),
    "speakers and texts": (
        {"dialog": [{"speaker": "user", "text": "u"}, {"speaker": "assistant", "text": "a"}]}, pair("u", "a")
    ),
    "several text blocks": (
        {"messages": [{"role": "user", "content": [{"type": "input_text", "text": "u "}, {"type": None, "text": "v"}]}, {**ANSWER, "content": [{"type": "output_text", "text": "a"}]}]},
        pair("u v", "a"),
    ),
    "blocks of thoughts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "u"}]}, {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]}]},
        THOUGHT,
    ),
    "Anthropic's calls and results": (
        {
            "system": [{"type": "text", "text": "s"}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "u"}]},
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "See."}, {"type": "tool_use", "id": "c1", "name": "subtract", "input": {"a": 11, "b": 4.5}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "7"}]}, {"type": "text", "text": "And?"}]},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "subtract", "input": {"a": 11, "b": 4.5}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "7"}]}]},
                {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
            ],
            "tools": [{"type": "custom", "name": "subtract", "description": "a minus b", "input_schema": SUBTRACT["parameters"]}],
        },
        Conversation(
            (
                Message("system", "s"), CALLED.messages[0], replace(CALLED.messages[1], content="See.", reasoning_content="hm"),
                CALLED.messages[2], Message("user", "And?"), *CALLED.messages[1:]
            ),
            (TOOL,),
        ),
    ),
    "Gemini's contents": (
        {
            "systemInstruction": {"role": "system", "parts": [{"text": "s"}]},
            "contents": [{"role": "user", "parts": [{"text": "u"}]}, {"role": "model", "parts": [{"text": "a"}]}],
        },
        FULL,
    ),
    "a system text in blocks": ({"messages": [USER, ANSWER], "system": [{"text": "s"}]}, FULL),
    "a system turn as a column": ({"messages": [USER, ANSWER], "system": {"role": "system", "content": "s"}}, FULL),
    "one text in a list": ({"messages": [{"role": "user", "parts": ["u"]}, {"role": "model", "parts": ["a"]}]}, pair("u", "a")),
    "reasoning_content": ({"messages": [USER, {**ANSWER, "reasoning_content": "hm"}]}, THOUGHT),
    "thinking": ({"messages": [USER, {**ANSWER, "thinking": "hm"}]}, THOUGHT),
    "reasoning": ({"messages": [USER, {**ANSWER, "reasoning": "hm", "reasoning_content": None}]}, THOUGHT),
    "weight 0": (flagged("weight", 0, 1), CONTEXT),
    "weight 0.0": (flagged("weight", 0.0, 1.0), CONTEXT),
    "weight as text": (flagged("weight", "0", "1"), CONTEXT),
    "train": (flagged("train", False, True), CONTEXT),
    "loss": (flagged("loss", False, True), CONTEXT),
    "training as text": (flagged("training", "false", "true"), CONTEXT),
    "weight 0 at a question": (
        {"messages": [{**USER, "weight": 0}, {**ANSWER, "weight": 1}]}, pair("u", "a")
    ),
    "null keys": (
        {"messages": [{**USER, "tool_calls": None, "name": None, "weight": None}, {**ANSWER, "tool_calls": [], "reasoning_content": ""}]},
        pair("u", "a"),
    ),
    "null as JSON text": (
        {"messages": [USER, {**ANSWER, "tool_calls": "null", "function_call": " null "}], "tools": "null"}, pair("u", "a")
    ),
    "a history that is null as JSON text": ({"prompt": "u", "completion": "a", "history": "null"}, pair("u", "a")),
    "names": (
        {"messages": [{**USER, "name": "Ann"}, ANSWER]}, Conversation((Message("user", "u", name="Ann"), Message("assistant", "a")))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_read(name: str, tmp_path: Path) -> None:
    record, expected = SHAPES[name]
    found = reading(write(tmp_path / "a.jsonl", [record]))
    assert found.rows == [expected]
    assert found.notes == ()
    assert found.places == ["line 1 of a.jsonl"]


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_read_alike_from_parquet_where_objects_have_null_keys(name: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    record, expected = SHAPES[name]
    datasets.Dataset.from_list([record, record]).to_parquet(tmp_path / "a.parquet")
    assert reading(tmp_path / "a.parquet").rows == [expected] * 2
    path, cache = write(tmp_path / "a.jsonl", [record]), str(tmp_path / "cache")
    loaded = datasets.load_dataset("json", data_files=path, split="train", cache_dir=cache)  # objects of any keys
    loaded.to_parquet(tmp_path / "b.parquet")
    loaded.save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "b.parquet") == read(tmp_path / "saved") == [expected]


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_read_alike_from_csv_with_lists_as_json_text(name: str, tmp_path: Path) -> None:
    record, expected = SHAPES[name]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(record))
        writer.writeheader()
        writer.writerow({k: v if v is None or isinstance(v, str) else json.dumps(v) for k, v in record.items()})
    assert read(tmp_path / "a.csv") == [expected]


@pytest.mark.parametrize(
    "text",
    [
        '[{"from": "Oslo", "to": "Rome"}]', '[{"role": "admin", "name": "Ann"}]', '{"role": "user", "id": 3}', "[1, 2]",
        "{'role': 'admin', 'content': 1}", "[{'from': 'Oslo'}]", '{"a": 1, "a": 2}', '[{"a": 1, "a": 2}]', '[{"role": "user", "content": ', "[oops",
    ],
)  # fmt: skip
def test_json_that_is_no_messages_is_text(text: str, tmp_path: Path) -> None:
    for row in ({"prompt": text, "completion": "a"}, {"prompt": "u", "completion": text}):
        expected = [pair(row["prompt"], row["completion"])]
        assert read(write(tmp_path / "a.jsonl", [row])) == expected
        (tmp_path / "a.csv").write_text("")
        with (tmp_path / "a.csv").open("w", newline="") as file:
            csv.writer(file).writerows([row.keys(), row.values()])
        assert read(tmp_path / "a.csv") == expected


def test_every_example_of_the_documentation_is_read_in_full(tmp_path: Path) -> None:
    docs = [path.read_text(encoding="utf-8") for path in (Path(__file__).parents[2] / "docs").glob("data*.md")]
    text = "".join(doc.partition("## Rows\n")[2].partition("\n## ")[0] for doc in docs)
    examples = [line for line in text.splitlines() if line.startswith("{")]
    assert len(examples) > 10
    for example in examples:
        found = reading(bad(tmp_path / "a.jsonl", example))
        assert found.notes == ()
        assert found.rows[0].messages[-1].content in ("7", "12")


def test_calls_of_other_arguments_in_one_parquet_file_keep_their_own(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [called(None, [call_of({"a": 1})], [TOOL]), called(None, [call_of({"b": "x"})], [TOOL])]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    said = [row.messages[1].tool_calls[0]["function"]["arguments"] for row in read(tmp_path / "a.parquet")]
    assert said == [{"a": 1}, {"b": "x"}]


def test_columns_are_found_by_the_names_that_columns_gives(tmp_path: Path) -> None:
    alpaca = {"q": "i", "more": "x", "a": "o"}
    for row, columns, expected in [
        ({"chat": [USER, ANSWER]}, {"messages": "chat"}, pair("u", "a")),
        ({"question": "p", "answer": "c"}, {"prompt": "question", "completion": "answer"}, pair("p", "c")),
        ({"prompt": "p", "answer": "c"}, {"completion": "answer"}, pair("p", "c")),
        (alpaca, {"instruction": "q", "input": "more", "output": "a"}, pair("i\n\nx", "o")),
        ({"prompt": "u", "completion": "a", "sys": "s"}, {"system": "sys"}, FULL),
        ({"prompt": "u", "completion": "a", "thinking": "hm"}, {"reasoning_content": "thinking"}, THOUGHT),
        ({"prompt": "v", "completion": "b", "before": [["u", "a"]]}, {"history": "before"}, LONG),
        ({"prompt": "u", "chosen": "a", "rejected": "b"}, {"completion": "chosen"}, pair("u", "a")),
        ({"prompt": "u", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, {"messages": "chosen"}, pair("u", "a")),
        ({"messages": [USER, ANSWER], "prompt": "u", "completion": "b"}, {"messages": "messages"}, pair("u", "a")),
        ({"messages": [USER, ANSWER], "prompt": "u", "completion": "b"}, {"messages": ""}, pair("u", "b")),
    ]:
        assert read(write(tmp_path / "a.jsonl", [row]), columns=columns) == [expected]


def test_not_a_number_is_no_value_in_an_optional_column(tmp_path: Path) -> None:
    row = (
        '{"instruction": "i", "input": NaN, "output": "a", "system": NaN, "history": NaN, "tools": NaN, "choices": NaN}'
    )
    assert reading(bad(tmp_path / "a.jsonl", row)).rows == [pair("i", "a")]


# What is not read: named once, or refused where it would change what is trained on


def test_what_is_not_read_is_named_once(tmp_path: Path) -> None:
    messages = [{**USER, "id": 3}, {**ANSWER, "stamp": "x", "empty": None}]
    rows = [
        {"messages": messages, "source": "web", "none": None, "": 0},
        {"messages": [USER, {**ANSWER, "id": 4}], "late": 1},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    assert reading(path).notes == ("not read: source, (no name), late, messages.id, messages.stamp",)
    assert reading(path, columns={"source": "", "late": ""}).notes == (
        "not read: (no name), messages.id, messages.stamp",
    )
    assert reading(path, columns={"sauce": ""}).notes[1:] == ("ignored in `columns`, but no column: sauce",)


def test_earlier_answers_that_say_nothing_are_context_and_counted(tmp_path: Path) -> None:
    empty, told = {**ANSWER, "content": " \n"}, Message("assistant", " \n", learned=False)
    rows = [
        {"messages": [empty, USER, ANSWER]},
        {"messages": [USER, empty, USER, {**empty, "reasoning": "hm"}, USER, {**empty, "tool_calls": [call_of({})]}, ANSWER]},
        {"messages": [USER, {**empty, "weight": 0}, ANSWER, {**empty, "weight": 0}]},
        {"messages": [USER, empty, empty, {**ANSWER, "content": None, "tool_calls": [call_of({})]}]},
    ]  # fmt: skip
    found = reading(write(tmp_path / "a.jsonl", rows))
    assert found.rows[0].messages[0] == told
    for row, answers in zip(found.rows, ("a", "a", "a", ""), strict=True):
        assert row.answer == answers
    assert [[m.learned for m in row.messages if m.role == "assistant"] for row in found.rows] == [
        [False, True], [False, True, True, True], [False, True, False], [False, False, True],
    ]  # fmt: skip
    assert found.notes == ("4 earlier answers say nothing: context, not learned (the first in line 1 of a.jsonl)",)
    path = write(tmp_path / "a.jsonl", [{"prompt": "u", "completion": "a", "history": [["x", ""]]}])
    assert reading(path).notes == (
        "1 earlier answer says nothing: context, not learned (the first in line 1 of a.jsonl)",
    )


def test_what_a_call_has_beside_its_arguments_is_named(tmp_path: Path) -> None:
    calls = [{"name": "f", "args": {"a": 1}, "note": "x", "index": 0}, {"name": "now", "call_id": "c1", "note": ""}]
    found = reading(write(tmp_path / "a.jsonl", [{"messages": [USER, {"role": "assistant", "tool_calls": calls}]}]))
    said = [call["function"] for call in found.rows[0].messages[1].tool_calls]
    assert said == [{"name": "f", "arguments": {"a": 1}}, {"name": "now", "arguments": {}}]
    assert found.notes == (
        "not read: messages.tool_calls.note, messages.tool_calls.index, messages.tool_calls.call_id",
    )


def test_columns_of_parquet_that_are_not_read_are_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": "u", "completion": "a", "id": i, "system": None, "weight": 1.0} for i in range(3)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    found = reading(tmp_path / "a.parquet")
    assert (found.notes, found.rows[0]) == (("not read: id, weight",), pair("u", "a"))


def test_notes_reach_the_set_and_those_of_a_validation_file_too(tmp_path: Path) -> None:
    own = write(tmp_path / "a.jsonl", [{**row, "id": 1} for row in pairs(*range(30))])
    other = write(tmp_path / "v.jsonl", [{**row, "id": 1, "late": 2} for row in pairs(40, 41)])
    pool = load_tasks(configure({"a": {"path": own, "validation": other}}), lengths_of)
    assert pool["a"].notes == ("not read: id", "validation file: not read: id, late")


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"weight": 0.5}, "'weight'"),
    (
        {"thinking": "hm"},
        "read it with columns: {reasoning_content: thinking}, or ignore it with columns: {thinking: ''}",
    ),
    ({"available_tools": [TOOL]}, "read it with columns: {tools: available_tools}"),
    ({"chat_template_kwargs": {"enable_thinking": True}}, "'chat_template_kwargs'"),
    ({"label": False}, "keep only the rows whose answers are wanted, and then ignore it with columns: {label: ''}"),
    ({"images": ["a.png"]}, "'images'"),
    ({"input": "x"}, "map instruction, input and output"),
    ({"system": "s", "system_prompt": "t"}, "in column 'system_prompt', which would change what is trained on and is not read; ignore"),
    ({"system": "s", "systemInstruction": {"parts": [{"text": "t"}]}}, "in column 'systemInstruction'"),
    ({"System": "s"}, "read it with columns: {system: System}, or ignore it with columns: {System: ''}"),
    ({"Tools ": [TOOL]}, "read it with columns: {tools: Tools }, or ignore it"),
    ({"Input": "x"}, "map instruction, input and output"),
    ({"Label": True}, "keep only the rows whose answers are wanted"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "says"), REFUSALS)
def test_a_column_that_would_change_what_is_trained_on_is_refused_until_ignored_by_name(
    more: dict[str, Any], says: str, tmp_path: Path
) -> None:
    rows = [pairs(1)[0], {**pairs(2)[0], **more}]
    said = refused(tmp_path, rows)
    assert "Task 'a': line 2 of a.jsonl has a value in column" in said
    assert "would change what is trained on and is not read" in said
    assert says in said
    assert len(read(tmp_path / "a.jsonl", columns=dict.fromkeys(more, ""))) == 2


@pytest.mark.parametrize("key", ["label", "kto_tag"])
@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"messages": [USER, ANSWER]}, None),
        ({"instruction": "i", "output": "a"}, None),
        ({"prompt": "u", "completion": "a"}, None),
        ({"question": "u", "answer": "a"}, {"prompt": "question", "completion": "answer"}),
        ({"chat": [USER, ANSWER]}, {"messages": "chat"}),
    ],
)
def test_answers_marked_as_wanted_or_not_are_refused_in_every_layout(
    row: dict[str, Any], columns: dict[str, str] | None, key: str, tmp_path: Path
) -> None:
    said = refused(tmp_path, [{**row, key: True}, {**row, key: False}], columns=columns)
    assert f"line 1 of a.jsonl has a value in column {key!r}, which would change what is trained on" in said
    assert len(read(tmp_path / "a.jsonl", columns={**(columns or {}), key: ""})) == 2
    classes = [{**row, "label": 0}, {**row, "label": 1}]
    assert len(read(write(tmp_path / "a.jsonl", classes), columns=columns)) == 2


def test_names_in_capitals_say_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    rows = [{**row, "System": None, "Input": "", "Label": 1, "Weight": 1.0, "Note": "x"} for row in pairs(1, 2)]
    write(tmp_path / "a.jsonl", rows)
    pytest.importorskip("datasets").Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert reading(tmp_path / name).notes == ("not read: Label, Weight, Note",)
    rows[1]["System"] = "s"
    pytest.importorskip("datasets").Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="row 2 of a.parquet has a value in column 'System'"):
        read(tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", columns={"system": "System"})
    assert found == [pair("1"), conversation(("system", "s"), ("user", "2"), ("assistant", "yes"))]


def test_a_column_is_read_as_one_field_alone(tmp_path: Path) -> None:
    row = {"text": "t", "prompt": "p", "completion": "c"}
    said = refused(tmp_path, [row], columns={"prompt": "text", "completion": "text"})
    assert "`columns` reads both prompt and completion from 'text'; name another column" in said


def test_a_label_of_truth_values_may_be_the_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "u", "label": True}])
    assert read(path, columns={"completion": "label"}) == [pair("u", "true")]


def test_a_field_that_columns_names_settles_its_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{**pairs(1)[0], "system": "t", "system_prompt": "v", "sys": "s", "label": 3}])
    found = reading(path, columns={"system": "sys"})
    assert found.rows[0].messages[0] == Message("system", "s")
    assert found.notes == ("not read: system, system_prompt, label",)
    found = reading(path, columns={"system": ""})
    assert (found.rows[0], found.notes) == (pair("1"), ("not read: system_prompt, sys, label",))


def test_a_column_that_says_nothing_new_is_not_refused(tmp_path: Path) -> None:
    rows = [
        {**pairs(1)[0], "weight": 1, "label": 3, "images": [], "chat_template_kwargs": {"tools": None}, "input": ""}
    ]
    assert reading(write(tmp_path / "a.jsonl", rows)).notes == ("not read: weight, label",)


def test_columns_of_messages_that_take_no_history_are_refused(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", [{"messages": [USER, ANSWER], "history": "null"}])) == [pair("u", "a")]
    assert "'history'" in refused(tmp_path, [{"messages": [USER, ANSWER], "history": [["q", "b"]]}])


def test_rows_that_can_be_read_in_two_ways_are_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, [{"messages": [USER, ANSWER], "prompt": "u", "completion": "a"}])
    assert "can be read as messages, or as prompt and completion; say which, with columns: {messages: messages}" in said
    said = refused(tmp_path, [{"conversations": [USER, ANSWER], "dialog": [USER, ANSWER]}])
    assert "can be read as conversations, or as dialog" in said
    said = refused(tmp_path, [{"messages": [USER, ANSWER]}, {"prompt": "u", "completion": "a"}])
    assert "in rows of messages and of prompt and completion; write each kind into a file of its own" in said


def test_rows_without_an_answer_say_what_a_task_needs(tmp_path: Path) -> None:
    assert "completion: chosen" in refused(tmp_path, [{"prompt": "u", "chosen": "a", "rejected": "b"}])
    assert "text without a question has no answer to learn" in refused(tmp_path, [{"text": "a"}])
    assert "a task needs messages" in refused(tmp_path, [{"dialog": ["u", "a"]}])
    assert "a.jsonl has no columns; a task needs messages" in refused(tmp_path, [{}])


def turn(**keys: Any) -> dict[str, Any]:
    return {"messages": [USER, {**ANSWER, **keys}]}


def question(**keys: Any) -> dict[str, Any]:
    return {"messages": [{**USER, **keys}, ANSWER]}


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "p"}, "has no text in column 'completion' (missing or null)"),
    ({"prompt": float("inf"), "completion": "c"}, "has no text in column 'prompt' (inf)"),
    ({"prompt": "p", "completion": {"text": ["c"]}}, "has no list of {role, content} in 'completion' (an object); write it as text, of several the one that is meant, or as such"),
    ({"prompt": None, "completion": "c"}, "has no text in column 'prompt' (missing or null)"),
    ({"prompt": "p", "completion": ["c"]}, "has no list of {role, content} in 'completion' (a list)"),
    ({"prompt": "p", "completion": " "}, "has an empty answer"),
    ({"prompt": "p", "completion": [USER, ANSWER]}, "has a turn of user as its first in 'completion'"),
    ({"prompt": "\ud800", "completion": "c"}, "holds half a surrogate pair"),
    ({"instruction": "p", "output": {"text": ["c"]}}, "has no text in column 'output' (an object); write it as text or remove"),
    ({"instruction": None, "input": None, "output": "c"}, "has no text in 'instruction' or 'input'"),
    ({"messages": "hello"}, "has no list of {role, content} in 'messages' (text)"),
    ({"messages": str([USER, ANSWER])}, "has no list of {role, content} in 'messages' (text as Python writes it instead of JSON)"),
    ({"prompt": str([USER]), "completion": "c"}, "has no list of {role, content} in 'prompt' (text as Python writes it instead of JSON)"),
    ({"prompt": str([{"from": "human", "value": "u"}]), "completion": "c"}, "in 'prompt' (text as Python writes it instead"),
    ({"prompt": "p", "completion": str(ANSWER)}, "in 'completion' (text as Python writes it instead of JSON)"),
    ({**turn(), "tools": str([TOOL])}, "has text as Python writes it instead of JSON that is no list of functions"),
    ({**turn(), "tools": "None"}, "has text that is no list of functions with names in 'tools'"),
    ({"messages": "[oops"}, "has no list of {role, content} in 'messages' (text)"),
    ({"messages": None}, "has no list of {role, content} in 'messages' (missing or null)"),
    ({"messages": []}, "has no assistant turn after somebody else's (roles: none)"),
    ({"messages": [USER]}, "has no assistant turn after somebody else's (roles: user)"),
    ({"messages": [ANSWER]}, "has no assistant turn after somebody else's"),
    ({"prompt": json.dumps(USER), "completion": "c"}, "has no list of {role, content} in 'prompt' (an object)"),
    ({"prompt": "p", "completion": json.dumps([USER])}, "has a turn of user as its first in 'completion'"),
    ({"prompt": json.dumps([USER, {**USER, "role": "critic"}]), "completion": "c"}, "the unknown role 'critic'"),
    ({"messages": '[{"role": "user", "role": "system", "content": "u"}]'}, "JSON that cannot be read ('role' is given twice"),
    (turn(tool_calls=[call_of('{"a": 1, "a": 2}')]), "has JSON that cannot be read ('a' is given twice in one object)"),
    (turn(tool_calls=['{"name": "f", "name": "g"}']), "has JSON that cannot be read ('name' is given twice in one object)"),
    (turn(role="function_call", content='{"name": "f", "arguments": {"a": 1, "a": 2}}'), "'a' is given twice"),
    ({**turn(), "tools": '[{"name": "f", "name": "g"}]'}, "has JSON that cannot be read ('name' is given twice in one object)"),
    ({"prompt": "p", "completion": "c", "history": '[{"role": "user", "content": "x", "content": "y"}]'}, "'content' is given twice"),
    ({"prompt": "p", "completion": "c", "reasoning_gym": '{"a": 1, "a": 2}'}, "in column 'reasoning_gym' that cannot be read ('a'"),
    ({"prompt": "p", "completion": "c", "reasoning_gym": '{"a": %s}' % ("7" * 5000)}, "cannot be read (a number has 5,000"),
    (turn(tool_calls=[call_of('{"a": %s}' % ("7" * 5000))]), "has JSON that cannot be read (a number has 5,000 digits, too many)"),
    (question(content=None), "has no text as content (missing or null) in turn 1 of 'messages'"),
    (turn(content=None), "has no text as content (missing or null) in turn 2 of 'messages'"),
    (question(role=None), "has no text as role (missing or null) in turn 1 of 'messages'"),
    (question(role="critic"), "has the unknown role 'critic' in turn 1 of 'messages'; known are system, developer"),
    (question(content=[{"type": "image_url", "image_url": {"url": "x"}}]), "has a block of type 'image_url' in turn 1"),
    (question(content=[{"type": ["text"], "text": "u"}]), "has a block of type ['text'] in turn 1"),
    (question(content=[{"type": "text", "text": None}]), "has a block of type 'text' without text in turn 1"),
    (question(content=["Rome", "Paris"]), "has a list of 2 texts as content in turn 1 of 'messages'; join them to one text"),
    (question(content=[1, 2]), "has no text as content (a list) in turn 1 of 'messages'"),
    (turn(content=[{"type": "tool_use", "name": "f", "input": {}}, {"type": "text", "text": "a"}]), "has a block of type 'tool_use' in turn 2"),
    (question(content=[{"type": "text", "text": "u"}, {"type": "tool_result", "content": "7"}]), "has a block of type 'tool_result' in turn 1"),
    (question(content=[{"type": "tool_use", "name": "f", "input": {}}]), "has tool_calls of user in turn 1"),
    (turn(content=[{"type": "tool_result", "content": "7"}]), "has a block of type 'tool_result' in turn 2"),
    (turn(channel="analysis"), "has 'channel' in turn 2 of 'messages'; it would change what is trained on"),
    (question(weight=1), "has weight: 1 at the user's turn in turn 1 of 'messages'; only assistant turns are learned"),
    (turn(weight=0.5), "has weight: 0.5 in turn 2 of 'messages'; a turn is learned or is context, parts are not"),
    (turn(loss_weight=0.5), "has loss_weight: 0.5 in turn 2 of 'messages'; a turn is learned or is context"),
    (turn(ignore=True), "has 'ignore' in turn 2 of 'messages'; it would change what is trained on"),
    (question(content={"text": "sunny", "temperature": 21}), "has a block of 'text' and 'temperature' in turn 1"),
    (question(content=[{"type": None, "text": "u", "image": "x.png"}]), "has a block of 'text' and 'image' in turn 1"),
    (question(content={"result": 4}), "has a block of 'result' without text in turn 1"),
    (question(content=[{"image": "x.png"}]), "has a block of 'image' without text in turn 1"),
    ({"messages": [USER, ANSWER, USER, {**ANSWER, "content": " "}]}, "has an empty answer at its end (roles: user, assistant, user"),
    ({"messages": [USER, ANSWER, USER, {**ANSWER, "content": ""}, USER]}, "has an empty answer at its end"),
    ({"prompt": "p", "completion": [ANSWER, {**ANSWER, "content": ""}]}, "has an empty answer at its end"),
    (turn(weight=0), "has no answer that is learned (roles: user, assistant)"),
    (turn(weight=1, train=False), "has weight and train that differ in turn 2"),
    (turn(train_detail=[{"begin_offset": 0}]), "has 'train_detail' in turn 2 of 'messages'; it would change what is"),
    (turn(reasoning="x", thinking="y"), "has reasoning and thinking that differ in turn 2"),
    (question(thinking="x"), "has reasoning_content of user in turn 1"),
    (question(tool_calls=[call_of({})]), "has tool_calls of user in turn 1"),
    (turn(tool_calls=[call_of("{oops")]), "has arguments of 'subtract' that are no object (text that is not JSON: '{oops')"),
    (turn(tool_calls=[call_of([1])]), "has arguments of 'subtract' that are no object (a list)"),
    (turn(tool_calls=[{"function": {"arguments": "{}"}}]), "has a call without the name of its function in turn 2"),
    (turn(tool_calls=[{"name": "f", "kwargs": {"a": 1}}]), "has a call of 'f' with 'kwargs' and without arguments in turn 2"),
    (turn(tool_calls=[{"function": {"name": "f", "arguments": ""}, "parameter": "{}"}]), "with 'parameter' and without"),
    (turn(tool_calls=[call_of({"a": 1}, args={"a": 2})]), "has arguments and arguments beside them that differ in turn 2"),
    (turn(tool_calls=[{"name": "f", "args": {"a": 1}, "input": {"a": 2}}]), "has args and input that differ in turn 2"),
    (turn(tool_calls=[call_of({}, type="web_search")]), "has a call of type 'web_search' in turn 2"),
    (turn(tool_calls=[call_of({"a": float("inf")})]), "holds a number in its tools or calls that JSON cannot say"),
    (turn(role="function_call", content="oops"), "has a call that is text in turn 2 of 'messages'"),
    ({**turn(), "tools": "oops"}, "has text that is no list of functions with names in 'tools'"),
    ({**turn(), "tools": [{"type": "web_search"}]}, "has a list that is no list of functions with names in 'tools'"),
    ({**turn(), "system": [{"type": "thinking", "thinking": "x"}]}, "has no text in column 'system' (a list); write it as text"),
    ({**turn(), "system": ["s"]}, "has no text in column 'system' (a list)"),
    ({"messages": [{"role": "system", "content": "t"}, USER, ANSWER], "system": "s"}, "has another text than the row's system"),
    ({"prompt": "p", "completion": "c", "history": [["q"]]}, "has no list of [question, answer] in 'history'"),
    ({"prompt": "p", "completion": "c", "history": "oops"}, "has no list of [question, answer] in 'history'"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "says"), BAD_ROWS)
def test_a_row_that_cannot_be_read_is_one_sentence_with_its_place(
    row: dict[str, Any], says: str, tmp_path: Path
) -> None:
    good = SHAPES["messages"][0] if "messages" in row else {"prompt": "p", "completion": "c"}
    rows = (
        [row]
        if "instruction" in row or row.get("messages", 1) in (None, "hello", "[oops", str([USER, ANSWER]))
        else [good, row]
    )
    said = refused(tmp_path, rows)
    assert said.startswith(f"Task 'a': line {len(rows)} of a.jsonl ")
    assert says in said


@pytest.mark.parametrize("depth", [30, 490, 900, 985])
@pytest.mark.parametrize("key", ["tool_calls", "name", "stamp", "tools", "completion", "more"])
def test_whatever_is_nested_deeply_is_read_or_refused(depth: int, key: str, tmp_path: Path) -> None:
    nested = '{"a": ' * depth + "1" + "}" * depth
    turn = (
        {"role": "assistant", "content": "a", "tool_calls": [{"name": "f", "arguments": "DEEP"}]}
        if key == "tool_calls"
        else {**ANSWER, key: "DEEP"}
    )
    rows: dict[str, Any] = {
        "completion": {"prompt": "p", "completion": "DEEP"},
        "more": {"prompt": "p", "completion": "c", "more": "DEEP"},
        "tools": {"prompt": "p", "completion": "c", "tools": [{"name": "f", "parameters": "DEEP"}]},
    }
    row = rows.get(key, {"messages": [USER, turn]})
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row).replace('"DEEP"', nested) + "\n")
    said = ""
    try:
        read(path)
    except UserError as error:
        said = str(error)
    assert bool(said) == (key in ("name", "completion")) or depth > 30
    assert not said or ("line 1" in said and "a.jsonl" in said and said.count(";"))


# What answers are graded by

MARKED: list[dict[str, Any]] = [
    {"prompt": "p", "completion": "5", "choices": ["5", "x"], "reasoning_gym": None},
    {"prompt": "q", "completion": "x", "choices": [], "reasoning_gym": None},
    {
        "prompt": "r",
        "completion": "7.50",
        "choices": None,
        "reasoning_gym": {"dataset": "lcm", "answer": "7.50", "metadata": {"n": [3, -0.25, 1e-7], "text": "12", "no": False}},
    },
]  # fmt: skip
GRADINGS = [(("5", "x"), None), (None, None), (None, MARKED[2]["reasoning_gym"])]


def test_gradings_survive_every_format(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    as_text = [{k: v if isinstance(v, str) else json.dumps(v) if v else "" for k, v in row.items()} for row in MARKED]
    write(tmp_path / "a.jsonl", [{k: v for k, v in row.items() if v is not None} for row in MARKED])
    write(tmp_path / "b.jsonl", as_text)
    (tmp_path / "c.json").write_text(json.dumps(MARKED))
    with (tmp_path / "d.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(MARKED[0]))
        writer.writeheader()
        writer.writerows(as_text)
    data = datasets.Dataset.from_list(MARKED)
    data.to_parquet(tmp_path / "e.parquet")
    data.save_to_disk(tmp_path / "f")
    for name in ("a.jsonl", "b.jsonl", "c.json", "d.csv", "e.parquet", "f"):
        found = read_source(configure({"a": tmp_path / name}).tasks[0])
        assert [tuple(grading) for grading in found.gradings] == GRADINGS, name
        assert found.rows == [pair("p", "5"), pair("q", "x"), pair("r", "7.50")]
        assert type(found.rows[0].answer) is str


def test_columns_of_marks_can_be_named_and_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"q": "p", "a": "yes", "choices": "of another kind", "options": ["yes", "no"]}])
    columns = {"prompt": "q", "completion": "a"}
    for choices, expected in (("options", ("yes", "no")), ("", None)):
        source = configure({"a": {"path": path, "columns": {**columns, "choices": choices}}}).tasks[0]
        assert read_source(source).gradings[0].choices == expected
    index = bad(tmp_path / "index.csv", ',prompt,completion,choices\n0,p,yes,"[""no"", ""yes""]"\n')
    assert read_source(configure({"a": index}).tasks[0]).gradings[0].choices == ("no", "yes")
    ignored = configure({"a": {"path": str(index), "columns": {"choices": ""}}}).tasks[0]
    assert read_source(ignored).gradings[0].choices is None


OPTIONS: list[tuple[Any, tuple[str, ...]]] = [
    (["7", "none"], ("7", "none")),
    ({"text": ["7", "none"], "label": ["A", "B"]}, ("7", "none")),
    ([{"text": "7", "label": "A"}, {"text": "none", "label": "B"}], ("7", "none")),
    ({"text": ["seven", "none"], "label": ["7", "8"]}, ("7", "8")),
    ({"A": "7", "B": "none"}, ("7", "none")),
    ({"7": "seven", "8": "eight"}, ("7", "8")),
    ({"text": ["7", "8"], "label": ["7", "8"]}, ("7", "8")),
    ('["7", "none"]', ("7", "none")),
]


@pytest.mark.parametrize(("choices", "expected"), OPTIONS)
def test_options_are_read_in_every_shape(choices: Any, expected: tuple[str, ...], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "7", "choices": choices}])
    assert reading(path).gradings[0].choices == expected
    assert reading(path).notes == ()


LEFT = [
    (["a", "d"], "has the answer 'c', which is none of its 2 choices"),
    ({"A": ["c"]}, "has an object in column 'choices', not a list of answers or {text, label}"),
    (["c", None], "has no text in column 'choices' (missing or null)"),
    ("A, B", "has text in column 'choices' that is not JSON"),
    (7, "has no list in column 'choices', not a list of answers"),
]


@pytest.mark.parametrize(("choices", "says"), LEFT)
def test_choices_that_do_not_fit_are_left_alone_with_a_note_or_refused_where_named(
    choices: Any, says: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [json.loads(GOOD), {**json.loads(GOOD), "choices": choices}])
    found = reading(path)
    assert [grading.choices for grading in found.gradings] == [None, None]
    (note,) = found.notes
    assert note.startswith("choices left alone in 1 of 2 rows: line 2 of a.jsonl has ")
    assert says in note
    with pytest.raises(UserError) as error:
        read(path, columns={"choices": "choices"})
    one_sentence(error)
    assert f"Task 'a': line 2 of a.jsonl {says}" in str(error.value)


AMBIGUOUS: list[tuple[Any, Any, str]] = [
    ("1", {"text": ["3", "1"], "label": ["1", "2"]}, "has the answer '1', which is one of its choices and the label of another"),
    ("1", {"1": "3", "2": "1"}, "has the answer '1', which is one of its choices and the label of another"),
    (2, ["1", "2", "3", "0"], "has the answer 2 as a number, which is one of its choices and may be the place of another"),
    (2, ["2", "5"], "has the answer 2 as a number, which is one of its choices and may be the place of another"),
]  # fmt: skip


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize(("answer", "choices", "says"), AMBIGUOUS)
def test_an_answer_that_may_be_two_of_the_choices_is_none(
    answer: Any, choices: Any, says: str, form: str, tmp_path: Path
) -> None:
    rows = [{"prompt": "p", "completion": answer, "choices": choices}]
    path = write(tmp_path / "a.jsonl", rows)
    if form == "parquet":
        path = str(tmp_path / "a.parquet")
        pytest.importorskip("datasets").Dataset.from_list(rows).to_parquet(path)
    found = reading(path)
    assert (found.rows, found.gradings[0].choices) == ([pair("p", str(answer))], None)
    assert says in found.notes[0]
    with pytest.raises(UserError, match=re.escape(says)) as error:
        read(path, columns={"choices": "choices"})
    one_sentence(error)


@pytest.mark.parametrize(
    ("answer", "choices"),
    [(7, ["7", "5"]), (2, [2, 1, 3]), ("2", ["1", "2", "3"]), (1, {"text": ["a"], "label": ["1"]})],
)
def test_a_number_that_is_no_place_among_the_choices_is_one(answer: Any, choices: Any, tmp_path: Path) -> None:
    found = reading(write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": answer, "choices": choices}]))
    assert str(answer) in (found.gradings[0].choices or ())
    assert found.notes == ()


def test_a_call_is_marked_by_no_choices(tmp_path: Path) -> None:
    record = {**SHAPES["a last turn that calls"][0], "choices": ["", "b"]}
    assert reading(write(tmp_path / "a.jsonl", [record])).notes == (
        "choices left alone in 1 of 1 rows: line 1 of a.jsonl has the answer with a call or thoughts, which is none of "
        "its 2 choices",
    )


def test_a_verifier_without_its_parts_is_refused(tmp_path: Path) -> None:
    row = {**json.loads(GOOD), "reasoning_gym": {"answer": "c"}}
    assert "line 1 of a.jsonl has no {dataset, answer, metadata}" in refused(tmp_path, [row])


# Whatever a file holds is read or refused

odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats()
    | st.sampled_from(
        ["", "user", "assistant", "gpt", "tool", "function_call", "text", "function", "[]", "{}", "[{}]", "[1"]
    )
    | st.just(CALL_TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=6,
)
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "function_call"]), "content": odd},
    optional={key: odd for key in KEYS if key not in ("role", "content")},
)
records = st.dictionaries(
    st.sampled_from([*FIELDS, "conversations", "functions", *REFUSED]), odd | st.lists(turns), max_size=6
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    records=st.lists(records | st.fixed_dictionaries({"messages": st.lists(turns, min_size=1)}), min_size=1, max_size=3)
)
def test_whatever_a_file_holds_is_read_or_refused_in_a_sentence(tmp_path: Path, records: list[Any]) -> None:
    path = write(tmp_path / "a.jsonl", records)
    said = "Task 'a': ."
    try:
        found = reading(path)
    except UserError as error:
        event("refused")
        said = str(error)
        found = None
    assert re.fullmatch(r"Task 'a': .*[.]", said, re.S)
    for row in found.rows if found else ():
        event("read")
        assert Conversation.from_data(json.loads(json.dumps(row.to_data()))) == row
        assert row.messages[row.last_answer].learned


# Rows come back as they are

texts = st.text(max_size=5)
names = st.text("abc", min_size=1, max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
calls = st.builds(
    lambda name, arguments, head: {**head, "type": "function", "function": {"name": name, "arguments": arguments}},
    names, st.dictionaries(texts, values, max_size=2), st.sampled_from([{}, {"id": "c1"}]),
)  # fmt: skip
thoughts = st.none() | st.text(min_size=1, max_size=3)
answers = st.builds(
    lambda text, thought, made, learned: Message("assistant", text, thought, tuple(made), learned=learned),
    texts, thoughts, st.lists(calls, max_size=2), st.booleans(),
).filter(lambda m: not m.learned or m.content.strip() or m.tool_calls or (m.reasoning_content or "").strip())  # fmt: skip
others = st.builds(
    lambda role, text, call_id, name: Message(role, text, None, (), call_id, name),
    st.sampled_from(["user", "tool", "system"]), texts, st.none() | names, st.none() | names,
)  # fmt: skip
tools = st.builds(
    lambda name, schema: {"type": "function", "function": {"name": name, "parameters": schema}},
    names, st.dictionaries(texts, values, max_size=2),
)  # fmt: skip
rich = st.builds(
    lambda turns, answer, tools: Conversation((Message("user", "u"), *turns, answer), tuple(tools)),
    st.lists(answers | others, max_size=3),
    answers.filter(lambda m: m.learned and (m.content.strip() or m.tool_calls)), st.lists(tools, max_size=2),
)  # fmt: skip
common = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@common
@given(row=rich)
def test_rich_rows_survive_files_and_the_pool(tmp_path: Path, row: Conversation) -> None:
    assert Conversation.from_data(json.loads(json.dumps(row.to_data()))) == row
    record = {"messages": row.to_dicts(), "tools": list(row.tools)}
    found = reading(write(tmp_path / "a.jsonl", [record]))
    assert found.rows == [row]
    assert found.notes == ()
    assert read(write(tmp_path / "a.jsonl", [{key: json.dumps(value) for key, value in record.items()}])) == [row]


@common
@given(one=rich, other=rich)
def test_the_key_says_whether_two_rows_are_the_same(one: Conversation, other: Conversation) -> None:
    same = json.dumps(one.to_data()) == json.dumps(other.to_data())
    assert (row_key(0, one) == row_key(0, other)) == same


def test_flags_calls_tools_and_thoughts_change_the_key() -> None:
    plain = Conversation(tuple(Message(m.role, m.content) for m in CALLED.messages))
    rows = [pair("u", "a"), THOUGHT, CONTEXT, Conversation(tuple(Message(m.role, m.content) for m in CONTEXT.messages))]
    rows += [CALLED, plain, Conversation(CALLED.messages), Conversation(plain.messages, CALLED.tools)]
    assert len({row_key(0, row) for row in rows}) == len(rows)


def test_plain_rows_are_stored_as_pairs_of_role_and_text() -> None:
    assert FULL.to_data() == [[["system", "s"], ["user", "u"], ["assistant", "a"]]]
    assert row_key(0, FULL) == "36dbb9e3fe590508272fdee62dc1b39f"


def test_a_pool_of_rich_rows_comes_back(tmp_path: Path) -> None:
    records = [SHAPES[name][0] for name in ("a call with null content", "thinking", "weight 0", "names")]
    rows = [{**r, "messages": [*r["messages"], {"role": "user", "content": str(i)}]} for i in range(8) for r in records]
    pool = load(configure({"a": write(tmp_path / "a.jsonl", rows)}))
    pool.save(tmp_path / "pool")
    assert TaskPool.load(tmp_path / "pool").tasks == pool.tasks


def test_the_answer_that_is_marked_is_the_last_that_is_learned() -> None:
    row = Conversation((*CONTEXT.messages, Message("user", "w"), Message("assistant", "c", learned=False)))
    assert (row.last_answer, row.answer, row.answer_is_text) == (3, "a", True)
    assert row.until_answer("b").messages == (*CONTEXT.messages[:3], Message("assistant", "b"))
    assert not THOUGHT.answer_is_text
    assert not Conversation(CALLED.messages[:2]).answer_is_text
    assert CALLED.answer_is_text
