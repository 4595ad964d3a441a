"""`taskpgm init`: whatever the files hold, a configuration to go on from."""

import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskpgm import load_config
from taskpgm.cli.template import write_template
from taskpgm.data.conversations import read_source
from taskpgm.progress import Progress


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def rows(prompt, completion, count=40):
    return [{prompt: f"{i}?", completion: str(i)} for i in range(count)]


def config_of(tmp_path, *paths):
    """The configuration as it is printed, the comment in front of each task, and the notes."""
    text, notes = write_template(paths)
    (tmp_path / "mix.yaml").write_text(text, encoding="utf-8")
    return load_config(tmp_path / "mix.yaml"), text, notes


def test_usual_columns_need_nothing(tmp_path):
    config, text, notes = config_of(tmp_path, write(tmp_path / "sums.jsonl", *rows("prompt", "completion")))
    assert config.tasks[0].columns is None
    assert "# 40 rows" in text
    assert notes == []
    assert config.contexts.per_set == 32


@pytest.mark.parametrize(
    ("record", "columns"),
    [
        ({"question": "1?", "answer": "1"}, {"prompt": "question", "completion": "answer"}),
        ({"id": "7", "Question": "1?", "Answer": "1"}, {"prompt": "Question", "completion": "Answer"}),
        ({"prompt": "1?", "response": "1"}, {"prompt": "prompt", "completion": "response"}),
        ({"problem": "1?", "solution": "1"}, {"prompt": "problem", "completion": "solution"}),
        (
            {"instruction": "1?", "context": "c", "response": "1"},
            {"instruction": "instruction", "input": "context", "output": "response"},
        ),
        (
            {"passage": "c", "question": "1?", "answer": True},
            {"instruction": "question", "input": "passage", "output": "answer"},
        ),
        ({"inputs": "1?", "targets": "1"}, {"prompt": "inputs", "completion": "targets"}),
        ({"id": "1", "question": "1?", "answerKey": "A"}, {"prompt": "question", "completion": "answerKey"}),
        ({"article": "1?", "highlights": "1"}, {"prompt": "article", "completion": "highlights"}),
    ],
)
def test_likely_columns_are_proposed_with_what_was_found(record, columns, tmp_path):
    config, text, notes = config_of(tmp_path, write(tmp_path / "quiz.jsonl", record))
    assert config.tasks[0].columns == columns
    found = f"has the columns {', '.join(record)}; confirm or correct `columns`"
    assert f"# quiz {found}" in text or "# quiz has 1 different rows" in text
    assert len(notes) == 1


def test_conversations_are_recognised(tmp_path):
    talk = [{"from": "human", "value": "1?"}, {"from": "gpt", "value": "1"}]
    config, _, _ = config_of(tmp_path, write(tmp_path / "a.jsonl", *({"conversations": talk} for _ in range(9))))
    assert config.tasks[0].columns is None  # found under that name
    assert len(read_source(config.tasks[0]).rows) == 9


@pytest.mark.parametrize(
    ("more", "columns"),
    [
        (
            {"messages": [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "2"}]},
            "conversations, messages",
        ),
        ({"prompt": "2?", "completion": "2"}, "conversations, prompt, completion"),
    ],
)
def test_one_of_several_readings_is_to_be_confirmed(more, columns, tmp_path):
    talk = [{"from": "human", "value": "1?"}, {"from": "gpt", "value": "1"}]
    rows = [{"conversations": [{**talk[0], "value": f"{i}?"}, talk[1]], **more} for i in range(9)]
    config, text, notes = config_of(tmp_path, write(tmp_path / "a.jsonl", *rows))
    assert config.tasks[0].columns == {"messages": "conversations"}
    assert notes == [f"a: has the columns {columns}; confirm or correct `columns`"]
    assert f"# a has the columns {columns}; confirm or correct `columns`" in text


def test_rows_are_counted_as_a_run_counts_them_and_progress_is_told(tmp_path):
    said = []

    class Told(Progress):
        def begin(self, what, total, unit):
            said.append((what, total, unit))

        def count(self, pieces):
            said.append(pieces)

    late = [{"prompt": f"{i}?", "completion": "1"} for i in range(70)] + [
        {"prompt": "x?", "completion": "1", "system": "s"}
    ]
    path = write(tmp_path / "late.jsonl", *late, *late)
    text, _ = write_template([path, write(tmp_path / "a.jsonl", *rows("prompt", "completion"))], Told())
    assert "late.jsonl}  # 71 rows" in text
    assert said == [("reading", 2, "file"), 1, 1]


def test_preferences_say_which_column_to_name(tmp_path):
    _, _, notes = config_of(tmp_path, write(tmp_path / "a.jsonl", {"prompt": "1?", "chosen": "1", "rejected": "2"}))
    assert "fill in `columns`: which hold the prompt and the completion" in notes[0]
    assert "of preferences the chosen answers, with completion: chosen" in notes[0]


def test_endings_are_no_part_of_a_name(tmp_path):
    names = ["a.jsonl.zst", "b.JSONL.GZ", "c.jsonl.bz2", "d.csv.xz", "e.v2.jsonl", "f.feather"]
    assert [task.name for task in config_of(tmp_path, *map(tmp_path.joinpath, names))[0].tasks] == [
        "a", "b", "c", "d", "e.v2", "f"
    ]  # fmt: skip


def test_unknown_columns_leave_a_line_to_fill_in(tmp_path):
    config, text, notes = config_of(tmp_path, write(tmp_path / "odd.jsonl", *rows("foo", "bar")))
    assert config.tasks[0].columns is None
    assert notes == [
        "odd: has the columns foo, bar; fill in `columns`: which hold the prompt and the completion, or the messages"
    ]
    line = "    # columns: {prompt: …, completion: …}"
    assert line in text
    filled = text.replace(line, "    columns: {prompt: foo, completion: bar}")
    assert yaml.safe_load(filled)["tasks"][0]["columns"] == {"prompt": "foo", "completion": "bar"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it holds no rows"),
        ("{}\n{}\n", "it has no columns"),
        ('{"prompt"', "line 1 is not valid JSON"),
        ('{"prompt": "a", "completion": null}\n', "line 1 of bad.jsonl has no text in column 'completion'"),
        ('{"question": "a", "answer": 1}\n{"question": "a"}\n', "line 2 of bad.jsonl has no text in column 'answer'"),
        ("\x01\n", "line 1 is not valid JSON"),
        (None, "is neither a file nor a folder"),
    ],
)
def test_a_file_that_cannot_be_read_is_listed_with_the_reason(text, reason, tmp_path):
    if text is not None:
        (tmp_path / "bad.jsonl").write_text(text)
    good = write(tmp_path / "good.jsonl", *rows("prompt", "completion"))
    config, printed, notes = config_of(tmp_path, tmp_path / "bad.jsonl", good)
    assert [task.name for task in config.tasks] == ["bad", "good"]
    assert reason in notes[0]
    comments = " ".join(line.strip().removeprefix("# ") for line in printed.splitlines())
    assert "bad cannot be read yet: " in comments
    assert reason in comments


def test_contexts_fit_the_smallest_file(tmp_path):
    large = write(tmp_path / "large.jsonl", *rows("prompt", "completion", 90))
    small = write(tmp_path / "small.jsonl", *rows("prompt", "completion", 10), *rows("prompt", "completion", 10))
    config, text, _ = config_of(tmp_path, large, small)
    assert config.contexts.per_set == 5  # of 10 different rows
    assert "per_set: 5  # 32 is usual; the smallest file has 10 rows" in text
    one = write(tmp_path / "one.jsonl", *rows("prompt", "completion", 1))
    config, _, notes = config_of(tmp_path, large, one)
    assert config.contexts.per_set == 32
    assert notes == ["one: has 1 different rows, and a task needs 3 at least; add some, or leave it out"]


def test_names_are_the_files_own_in_any_script_and_all_different(tmp_path):
    names = ["数学", "代码", "no", "2024", "1e5", "null", "a b #c", "it's: {x}", "été"]
    paths = [write(tmp_path / f"{name}.jsonl", *rows("prompt", "completion")) for name in names]
    assert [task.name for task in config_of(tmp_path, *paths)[0].tasks] == names
    paths = [
        write(tmp_path / file, *rows("prompt", "completion"))
        for file in ("a/train.jsonl", "b/train.jsonl", "b/TRAIN.jsonl", "x/b/train.jsonl", ".hidden.jsonl", "数" * 79 + ".jsonl")
    ]  # fmt: skip
    found = [task.name for task in config_of(tmp_path, *paths)[0].tasks]
    assert found == ["a_train", "b_train", "b_TRAIN_2", "b_train_3", "hidden", "数" * 66]
    assert [task.name for task in config_of(tmp_path, paths[0], paths[0])[0].tasks] == ["train"]


FILE_NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=60)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(FILE_NAMES, min_size=1, max_size=4))
def test_any_names_of_files_give_a_configuration(tmp_path, texts):
    paths = [tmp_path / f"{text}.jsonl" for text in texts]
    config, _, _ = config_of(tmp_path, *paths)
    assert len(config.tasks) == len(set(paths))
