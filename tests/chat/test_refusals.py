"""Rows that a chat template refuses or shortens: named, counted, or left out where that is asked for."""

import json
from dataclasses import replace

import pytest
from rich.console import Console
from support.models import CHATML, make_tokenizer

from taskpgm.chat.encoder import ChatEncoder
from taskpgm.cli import main as cli
from taskpgm.cli.tables import pool_view, rows_view
from taskpgm.config_file import parse_config
from taskpgm.errors import UserError
from taskpgm.lm.checkpoint import load_tokenizer
from taskpgm.pool.task_pool import TaskPool, load_tasks

ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'].split('</think>')[-1] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


ROWS = [chat(("user", f"{i}?"), ("assistant", f"[b]{i}[/b]")) for i in range(8)]
TWO_QUESTIONS = chat(("user", "a?"), ("user", "b?"), ("assistant", "c"))
THOUGHT = [chat(("user", f"{i}."), ("assistant", f"<think>x</think>{i}")) for i in range(3)]


def prepared(folder, rows, template=ALTERNATING, more="", validation=None, **source):
    """Settings of a task of those rows, and an encoder."""
    make_tokenizer(folder, template)
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if validation:
        (folder / "v.jsonl").write_text("".join(json.dumps(row) + "\n" for row in validation), encoding="utf-8")
        source["validation"] = str(folder / "v.jsonl")
    config = parse_config(
        {
            "model": {"path": str(folder)},
            "tasks": [{"name": "jars", "path": str(folder / "a.jsonl"), **source}],
            "budget": {"examples": 4},
            "contexts": {"per_set": 2, "validation": 2},
            "probes": {"examples": 4},
        }
    )
    return config, ChatEncoder(load_tokenizer(config.model), 400)


def shown(view, width=200):
    console = Console(width=width, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115, PTH123
    console.print(view, soft_wrap=True)
    return console.export_text()


def test_refused_rows_name_task_line_number_reason_and_remedy(tmp_path):
    config, encoder = prepared(tmp_path, [*ROWS[:4], TWO_QUESTIONS, *ROWS[4:], TWO_QUESTIONS])
    said = r"Task 'jars': .* 2 of 10 rows, the first at line 5 of a.jsonl: turns must alternate\. .*`refused: drop`"
    with pytest.raises(UserError, match=said):
        load_tasks(config, encoder.lengths)


def test_one_refused_row_of_a_validation_file_is_named(tmp_path):
    config, encoder = prepared(tmp_path, ROWS, validation=[ROWS[0], TWO_QUESTIONS])
    with pytest.raises(UserError, match=r"1 of 2 rows, line 2 of v.jsonl: turns must alternate"):
        load_tasks(config, encoder.lengths)


def test_refused_rows_are_dropped_and_counted_where_that_is_set(tmp_path):
    config, encoder = prepared(tmp_path, [*ROWS, TWO_QUESTIONS, replace_text(TWO_QUESTIONS)], refused="drop")
    pool = load_tasks(config, encoder.lengths)
    (task,) = pool.tasks
    assert task.counts.refused == 2
    assert len(task.train) + len(task.contexts) + len(task.validation) == 8
    assert "jars: 2 refused by the chat template, dropped" in shown(pool_view(pool, config))
    pool.save(tmp_path / "pool")
    assert TaskPool.load(tmp_path / "pool").tasks[0].counts == task.counts


def replace_text(row):
    return {"messages": [{**turn, "content": turn["content"] + "!"} for turn in row["messages"]]}


def test_too_few_rows_say_how_many_were_refused(tmp_path):
    config, encoder = prepared(tmp_path, [ROWS[0], TWO_QUESTIONS], refused="drop")
    with pytest.raises(UserError, match=r"1 usable row \(2 read, 1 that the chat template cannot take\)"):
        load_tasks(config, encoder.lengths)


def test_rows_that_are_all_too_long_ask_for_more_room(tmp_path):
    config, encoder = prepared(tmp_path, ROWS)
    with pytest.raises(
        UserError, match=r"0 usable rows .*8 longer .*; raise probes.max_length, lower contexts.per_set"
    ):
        load_tasks(config, ChatEncoder(encoder.tokenizer, 3).lengths)


def test_lost_thoughts_are_counted_and_survive_the_store(tmp_path):
    config, encoder = prepared(tmp_path, [*ROWS, *THOUGHT, THOUGHT[0]])
    pool = load_tasks(config, encoder.lengths)
    note = "3 rows: the chat template leaves out the thoughts of the last answer"
    assert pool.tasks[0].notes == (note,)
    assert f"jars: {note}" in shown(pool_view(pool, config))
    pool.save(tmp_path / "pool")
    assert TaskPool.load(tmp_path / "pool").tasks[0].notes == (note,)


def test_rows_are_shown_as_the_model_sees_them(tmp_path):
    config, encoder = prepared(tmp_path, ROWS, CHATML)
    pool = load_tasks(config, encoder.lengths)
    row = pool.tasks[0].train[0]
    question, answer = (message.content for message in row.conversation.messages)
    text = shown(rows_view(pool, encoder, 1, marked=True))
    assert f"jars, row 1: {row.tokens} tokens, {row.response_tokens} of them learned\n" in text
    assert f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n«{answer}<|im_end|>»\n" in text
    plain = shown(rows_view(replace(pool), encoder, 3, marked=False))
    assert "«" not in plain
    assert plain.count("learned") == 3


@pytest.mark.parametrize("terminal", [True, False])
def test_check_shows_rows(terminal, tmp_path, monkeypatch, capsys):
    prepared(tmp_path, [*ROWS, *[chat(("user", f"q{i}"), ("assistant", "a" * 100)) for i in range(8)]], CHATML)
    (tmp_path / "mix.yaml").write_text(
        f"model: {{path: {tmp_path}}}\ntasks: [{{name: jars, path: {tmp_path / 'a.jsonl'}}}]\nbudget: {{examples: 4}}\n"
        "contexts: {per_set: 2, validation: 2}\nprobes: {examples: 4}\n"
    )
    monkeypatch.setattr(
        cli, "screen", Console(width=60, force_terminal=terminal, color_system="standard" if terminal else None)
    )
    cli.check(tmp_path / "mix.yaml", show=12)
    out = capsys.readouterr().out
    assert ("«" in out) != terminal
    assert ("\x1b[1;32m" in out) == terminal
    assert "a" * 100 in out  # not folded
    assert "[b]" in out
