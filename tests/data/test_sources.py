"""Which files are read, and every file format: against hand-written rows, `datasets`' own choice, and what may be wrong."""

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskpgm.config import TargetConfig, TaskConfig
from taskpgm.config_file import load_config
from taskpgm.data.conversations import read_source, title_of
from taskpgm.data.facts import Facts
from taskpgm.data.messages import Conversation, Message, conversation
from taskpgm.data.parts import Part
from taskpgm.data.sources import open_source
from taskpgm.data.splits import asked_of, files_of
from taskpgm.errors import UserError
from taskpgm.files import files_below, path_digest
from taskpgm.pipeline.keys import source_digest


def pair(prompt: str, completion: str = "yes") -> Conversation:
    return conversation(("user", prompt), ("assistant", completion))


def pairs(*prompts: object) -> list[dict[str, str]]:
    return [{"prompt": str(prompt), "completion": "yes"} for prompt in prompts]


def lines_of(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def bad(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def put(folder: Path, *names: str) -> Path:
    """A data file of each of these names, of one row that says which."""
    for name in names:
        row = pairs(name)[0]
        if name.endswith((".csv", ".tsv")):
            sign = "\t" if name.endswith(".tsv") else ","
            bad(folder / name, sign.join(row) + "\n" + sign.join(row.values()) + "\n")
        elif name.endswith(".parquet"):
            datasets = pytest.importorskip("datasets")
            bad(folder / name, "")
            datasets.Dataset.from_list([row]).to_parquet(folder / name)
        elif name.endswith(".gz"):
            bad(folder / name, gzip.compress(lines_of([row]).encode()))
        else:
            bad(folder / name, lines_of([row]))
    return folder


def task(path: object, **settings: Any) -> TaskConfig:
    return TaskConfig(name="a", path=str(path), **settings)


def read(path: object, **settings: Any) -> list[Conversation]:
    return read_source(task(path, **settings)).rows


def chosen(path: object, **settings: Any) -> list[str]:
    """Names of the files of `put` that are read."""
    return [row.messages[0].content for row in read(path, **settings)]


def validation(source: TaskConfig) -> list[str]:
    return [row.messages[0].content for row in read_source(source, source.validation).rows]


def records_of(source: TaskConfig) -> list[dict[str, Any]]:
    return [record for part in open_source(source, None, "Task 'a'").parts for _, record in part.records()]


def one_sentence(error: pytest.ExceptionInfo[UserError]) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("Task 'a': ")
    assert text.endswith(".")
    assert ";" in text  # the remedy


# Which files


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["train.jsonl", "validation.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
        (["train.jsonl", "validation.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["train.jsonl", "dev.jsonl", "test.jsonl"], "validation", ["dev.jsonl"]),
        (["train.jsonl", "val.jsonl", "test.jsonl"], "dev", ["val.jsonl"]),
        (["training.jsonl", "evaluation.jsonl"], "train", ["training.jsonl"]),
        (["training.jsonl", "evaluation.jsonl"], "test", ["evaluation.jsonl"]),
        (["Train.jsonl", "TEST.jsonl"], "train", ["Train.jsonl"]),
        (["train.jsonl", "dev.jsonl", "valid.jsonl"], "valid", ["valid.jsonl"]),
        (["gsm8k_train.jsonl", "gsm8k_test.jsonl"], "train", ["gsm8k_train.jsonl"]),
        (["gsm8k-test.jsonl", "gsm8k.train.jsonl"], "train", ["gsm8k.train.jsonl"]),
        (["train_0.jsonl", "train_1.jsonl", "test_0.jsonl"], "train", ["train_0.jsonl", "train_1.jsonl"]),
        (["train-part1.jsonl", "train-part2.jsonl", "test.jsonl"], "train", ["train-part1.jsonl", "train-part2.jsonl"]),
        (["train/part-0.jsonl", "train/part-1.jsonl", "test/part-0.jsonl"], "train", ["train/part-0.jsonl", "train/part-1.jsonl"]),
        (["train/easy.jsonl", "train/hard.jsonl", "test/easy.jsonl"], "train", ["train/easy.jsonl", "train/hard.jsonl"]),
        (["default/train/0000.jsonl", "default/test/0000.jsonl"], "test", ["default/test/0000.jsonl"]),
        (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"], "train",
         ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]),
        (["data/train-00000-of-00001-a09b74b3ef9c3b56.jsonl", "data/test-00000-of-00001-b.jsonl"], "train",
         ["data/train-00000-of-00001-a09b74b3ef9c3b56.jsonl"]),
        (["train_sft-00000-of-00001.jsonl", "train_gen-00000-of-00001.jsonl"], "train_sft", ["train_sft-00000-of-00001.jsonl"]),
        (["train-00000-of-00001.jsonl", "train_gen-00000-of-00001.jsonl"], "train", ["train-00000-of-00001.jsonl"]),
        (["easy.jsonl", "hard.jsonl"], "easy", ["easy.jsonl"]),
        (["en/train.jsonl", "en/test.jsonl"], "train", ["en/train.jsonl"]),
        (["data-00000-of-00002.jsonl", "data-00001-of-00002.jsonl"], "train", ["data-00000-of-00002.jsonl", "data-00001-of-00002.jsonl"]),
        (["b.jsonl", "a.jsonl", "c.ndjson"], "train", ["a.jsonl", "b.jsonl", "c.ndjson"]),
        (["data/b.jsonl", "data/a.jsonl"], "train", ["data/a.jsonl", "data/b.jsonl"]),
        (["trainers.jsonl", "contest.jsonl", "devil.jsonl"], "train", ["contest.jsonl", "devil.jsonl", "trainers.jsonl"]),
        (["train.jsonl", "extra.jsonl"], "train", ["train.jsonl"]),
        (["train.jsonl", "test.csv"], "train", ["train.jsonl"]),
        (["split=train/0.jsonl", "split=test/0.jsonl"], "train", ["split=train/0.jsonl"]),
        (["quizTrain.jsonl", "quizTest.jsonl"], "train", ["quizTrain.jsonl"]),
        (["testSet.jsonl", "trainSet-00000-of-00001.jsonl"], "train", ["trainSet-00000-of-00001.jsonl"]),
        (["inTraining/a.jsonl", "inTest/a.jsonl"], "train", ["inTraining/a.jsonl"]),
    ],
)  # fmt: skip
def test_the_split_asked_for_is_read(tmp_path: Path, names: list[str], split: str, expected: list[str]) -> None:
    assert chosen(put(tmp_path, *names), split=split) == expected


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(
        st.sampled_from(["train", "training", "validation", "valid", "dev", "val", "test", "testing", "eval"]),
        min_size=1, max_size=4, unique=True,
    ),
    before=st.sampled_from(["", "gsm8k_", "my-", "set "]),
    after=st.sampled_from(["", "_0", "-00000-of-00001"]),
    under=st.sampled_from(["", "raw/", "main/"]),
)  # fmt: skip
def test_a_split_is_what_datasets_takes_for_it(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], before: str, after: str, under: str
) -> None:
    data_files = pytest.importorskip("datasets.data_files")
    folder = put(tmp_path_factory.mktemp("f"), *(f"{under}{before}{word}{after}.jsonl" for word in words))
    theirs = data_files.get_data_patterns(str(folder))
    for split in ("train", "validation", "test"):
        try:
            ours = chosen(folder, split=split)
        except UserError as error:
            ours = str(error)
        found = data_files.DataFilesList.from_patterns(theirs.get(split, []), str(folder)) if split in theirs else []
        theirs_here = sorted({str(Path(str(file)).relative_to(folder)) for file in found})
        if isinstance(ours, list):
            assert set(ours) <= set(theirs_here)
            assert len(ours) == len(theirs_here) or any(Path(name).stem.startswith(before + split) for name in ours)
        else:
            assert ("has no file of the split" in ours) == (not theirs_here)
            assert not theirs_here or ("more than one set" in ours and len(theirs_here) > 1)


@pytest.mark.parametrize(
    ("names", "split", "says"),
    [
        (["test.jsonl"], "train", r"has no file of the split 'train'; it has test \(test.jsonl\); set `split: test`"),
        (["test.jsonl", "dev.jsonl"], "train", r"it has test \(test.jsonl\) and validation \(dev.jsonl\); set `split: v"),
        (["gsm8k.jsonl", "test.jsonl"], "train", r"it has test \(test.jsonl\) and gsm8k.jsonl with no split in the name"),
        (["a.jsonl", "b.jsonl"], "test", r"no file of the split 'test'; it has a.jsonl and b.jsonl with no split"),
        (["train.jsonl", "dev.jsonl", "valid.jsonl"], "validation", r"more than one set .*\(dev.jsonl and valid.jsonl\)"),
        (["train_sft-00000-of-00001.jsonl", "train_gen-00000-of-00001.jsonl"], "train", r"train_gen.* and train_sft.*name"),
        (["train_easy.jsonl", "train_hard.jsonl"], "train", r"more than one set .* such as .*/train\*.jsonl"),
        (["gpt3_train.jsonl", "gpt4_train.jsonl"], "train", "more than one set"),
        (["en/train.jsonl", "fr/train.jsonl"], "train", r"\(en/train.jsonl and fr/train.jsonl\); set `subset` \(say en\)"),
        (["en/a.jsonl", "fr/a.jsonl"], "train", r"\(en/a.jsonl and fr/a.jsonl\); set `subset` \(say en\)"),
        (["a.jsonl", "old/a.jsonl"], "train", r"more than one set .*\(a.jsonl and old/a.jsonl\)"),
        (["train_test.jsonl"], "train", "train_test.jsonl in .* could be of more than one split"),
        (["train.jsonl", "train.csv"], "train", r"mixes the same file in several forms \(train.csv and train.jsonl\)"),
        (["train.jsonl", "train.jsonl.gz"], "train", "the same file in several forms"),
        (["train.jsonl", "train.json"], "train", "the same file in several forms"),
        (["a.jsonl", "b.csv"], "train", r"mixes csv and json files \(a.jsonl and b.csv\); name what to read in `path`"),
        ([], "train", r"holds no .jsonl, .ndjson, .*; name another"),
    ],
)  # fmt: skip
def test_where_there_is_no_telling_one_sentence_asks(tmp_path: Path, names: list[str], split: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        read(put(tmp_path, *names), split=split)
    one_sentence(error)


def test_the_pattern_that_a_sentence_proposes_reads_what_was_asked_about(tmp_path: Path) -> None:
    put(tmp_path / "on [x]", "train_easy.jsonl", "train_hard.jsonl", "test.jsonl")
    with pytest.raises(UserError) as error:
        read(tmp_path / "on [x]")
    pattern = str(error.value).rsplit("such as ", 1)[1].removesuffix(".")
    assert chosen(pattern) == ["train_easy.jsonl", "train_hard.jsonl"]


def test_a_target_is_read_by_its_split_too(tmp_path: Path) -> None:
    put(tmp_path, "test.jsonl")
    with pytest.raises(UserError, match="Target 't': .* set `split: test`"):
        read_source(TargetConfig(name="t", path=str(tmp_path)))
    assert read_source(TargetConfig(name="t", path=str(tmp_path), split="test")).rows == [pair("test.jsonl")]


def test_check_says_what_a_folder_was_read_for(tmp_path: Path) -> None:
    put(tmp_path, "train.jsonl", "test.jsonl", "dev.jsonl", "extra.jsonl")
    said = read_source(task(tmp_path)).notes
    assert said == ("reads train.jsonl, not dev.jsonl, extra.jsonl and test.jsonl in the same folder",)
    put(tmp_path / "whole", "a.jsonl", "b.jsonl")
    assert read_source(task(tmp_path / "whole")).notes == ("reads a.jsonl and b.jsonl",)


README = """---
license: mit
configs:
- config_name: default
  data_files: [{split: train, path: data/a-*}, {split: test, path: data/b-*}]
---
# Jars
"""
SUBSETS = README.replace(
    "data_files: [{split: train, path: data/a-*}, {split: test, path: data/b-*}]", "data_files: data/a-*"
)


def test_splits_that_only_a_readme_tells_are_asked_for(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "data/a-0.jsonl", "data/b-0.jsonl")
    bad(folder / "README.md", README)
    for held_out in (False, True):
        with pytest.raises(
            UserError, match=r"README.md sorts .* into train \(data/a-\*\) and test \(data/b-\*\)"
        ) as error:
            validation(task(folder, validation=str(folder))) if held_out else read(folder)
        one_sentence(error)
    pattern = str(read_error(folder)).rsplit("such as ", 1)[1].removesuffix(".")
    assert chosen(pattern) == ["data/a-0.jsonl"]
    bad(folder / "README.md", SUBSETS + "---\n" + SUBSETS)
    assert len(chosen(folder)) == 2  # one part, so nothing is sorted
    bad(folder / "README.md", SUBSETS.replace("---\n#", "- {config_name: other, data_files: data/b-*}\n---\n#"))
    assert "into default (data/a-*) and other (data/b-*)" in str(read_error(folder))
    for readme in (
        "# Jars",
        "---\n: [\n---\n",
        "---\nconfigs: 7\n---\n",
        b"\xff",
        "---\nconfigs: [7, {data_files: 7}]\n---\n",
    ):
        bad(folder / "README.md", readme)
        assert len(chosen(folder)) == 2
    put(folder, "train.jsonl")
    bad(folder / "README.md", README)
    assert chosen(folder) == ["train.jsonl"]  # where names tell, they count


def read_error(path: object) -> UserError:
    with pytest.raises(UserError) as error:
        read(path)
    return error.value


def test_shards_that_are_not_there_and_files_without_rows_are_named(tmp_path: Path) -> None:
    put(
        tmp_path, "data/train-00000-of-00003.jsonl", "data/train-00002-of-00003.jsonl", "data/test-00000-of-00001.jsonl"
    )
    said = "reads 2 of the 3 files data/train-…-of-00003"
    assert read_source(task(tmp_path)).notes[1:] == (said,)
    assert read_source(task(tmp_path / "data" / "train*")).notes[1:] == (said.replace("data/", ""),)
    bad(tmp_path / "data" / "train-00001-of-00003.jsonl", "\n")
    assert read_source(task(tmp_path)).notes[1:] == ("no rows in data/train-00001-of-00003.jsonl",)


def test_a_link_that_leads_nowhere_is_no_file_that_was_left_out(tmp_path: Path) -> None:
    put(tmp_path / "set", "train-00000-of-00002.jsonl", "test.jsonl")
    link(tmp_path / "set" / "train-00001-of-00002.jsonl", tmp_path / "blobs" / "gone")
    link(tmp_path / "set" / "LICENSE", tmp_path / "gone")
    for path in (tmp_path / "set", tmp_path / "set" / "train*.jsonl"):
        assert "train-00001-of-00002.jsonl is a link to what is not there; fetch it again" in str(read_error(path))
    assert chosen(tmp_path / "set", split="test") == ["test.jsonl"]
    (tmp_path / "set" / "train-00001-of-00002.jsonl").unlink()
    link(tmp_path / "set" / "train-00001-of-00002.jsonl", tmp_path / "set" / "train-00001-of-00002.jsonl")
    for path in (tmp_path / "set", tmp_path / "set" / "train*.jsonl"):
        assert "is a link to what is not there" in str(read_error(path))


def test_a_name_that_is_no_text_is_refused_before_a_run_has_to_write_it(tmp_path: Path) -> None:
    """As old archives leave them, in Latin-1."""
    name = tmp_path / os.fsdecode("Größe.jsonl".encode("latin-1"))
    try:
        name.write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    except OSError:
        pytest.skip("this file system has no such names")
    for path in (name, tmp_path, tmp_path / "*.jsonl"):
        assert "is no UTF-8" in str(read_error(path))


def test_only_data_is_read_from_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "jars.jsonl", "._jars.jsonl", ".hidden/a.jsonl", ".ipynb_checkpoints/jars-checkpoint.jsonl")
    put(tmp_path, "__MACOSX/jars.jsonl", "_delta_log/0.json", "config.json", "dataset_infos.json")
    for name in ("README.md", "LICENSE", ".gitattributes", "_SUCCESS", "picture.png", ".jars.jsonl.crc"):
        bad(tmp_path / name, b"\x89 not data")
    assert chosen(tmp_path) == ["jars.jsonl"]
    assert chosen(tmp_path / "._jars.jsonl") == ["._jars.jsonl"]  # named by the user, hidden or not


def test_a_registry_of_a_trainer_is_no_saved_dataset(tmp_path: Path) -> None:
    put(tmp_path, "jars.json")
    bad(tmp_path / "dataset_info.json", json.dumps({"jars": {"file_name": "jars.json", "formatting": "alpaca"}}))
    reading = read_source(task(tmp_path))
    assert reading.rows == [pair("jars.json")]
    assert reading.notes == ("reads jars.json, not dataset_info.json in the same folder",)


def test_a_subset_is_a_folder_of_a_local_copy(tmp_path: Path) -> None:
    put(tmp_path, "main/train.jsonl", "main/test.jsonl", "socratic/train.jsonl")
    assert chosen(tmp_path, subset="main") == ["main/train.jsonl"]
    assert chosen(tmp_path, subset="main", split="test") == ["main/test.jsonl"]
    with pytest.raises(UserError, match="no folder for the subset 'fr'; the folders there with data are main and soc"):
        read(tmp_path, subset="fr")
    note = "`split: test` and `subset: main` are not used: `path` names a file"
    assert read_source(task(tmp_path / "main/train.jsonl", subset="main", split="test")).notes == (note,)


def test_validation_is_the_validation_split_of_what_the_user_names(tmp_path: Path) -> None:
    put(tmp_path, "train.jsonl", "dev.jsonl", "test.jsonl", "held/x.csv", "only/test.jsonl")
    assert validation(task(tmp_path, validation=str(tmp_path / "dev.jsonl"))) == ["dev.jsonl"]
    put(tmp_path / "set", "train.jsonl", "dev.jsonl", "test.jsonl")
    assert validation(task(tmp_path / "set", validation=str(tmp_path / "set"))) == ["dev.jsonl"]
    assert validation(task(tmp_path / "set", validation=str(tmp_path / "held"))) == ["held/x.csv"]
    assert validation(task(tmp_path / "set", validation=str(tmp_path / "set" / "t*t.jsonl"))) == ["test.jsonl"]
    with pytest.raises(
        UserError, match=r"no file of the split 'validation'; it has test .*; name what to read in `val"
    ):
        validation(task(tmp_path, validation=str(tmp_path / "only")))


def test_patterns_are_relative_to_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(
        tmp_path / "on [x]",
        "data/b.jsonl",
        "data/a.jsonl",
        "data/.c.jsonl",
        "data/README.md",
        "data/en/0/train-1.jsonl",
        "br[1]/d.jsonl",
        "br1/e.jsonl",
    )
    monkeypatch.chdir(tmp_path)
    for pattern, expected in [
        ("data/*.jsonl", ["data/a.jsonl", "data/b.jsonl"]),
        ("data/*", ["data/a.jsonl", "data/b.jsonl"]),
        ("data/[a]*l", ["data/a.jsonl"]),
        ("data/**/train-?.jsonl", ["data/en/0/train-1.jsonl"]),
        ("data/.*.jsonl", ["data/.c.jsonl"]),
        ("br[1]/*.jsonl", ["br[1]/d.jsonl"]),
        ("br[1]/**/[d]?jsonl", ["br[1]/d.jsonl"]),
        ("b[qr]1/*.jsonl", ["br1/e.jsonl"]),
    ]:
        settings = {"tasks": [{"name": "a", "path": pattern, "validation": pattern}], "budget": {"examples": 1}}
        bad(tmp_path / "on [x]" / "mix.yaml", json.dumps(settings))
        source = load_config(Path("on [x]") / "mix.yaml").tasks[0]
        assert [row.messages[0].content for row in read_source(source).rows] == expected
        assert validation(source) == expected
        assert str(tmp_path.resolve()) in source.path.replace("[[]", "[")


def test_check_says_what_a_pattern_came_to(tmp_path: Path) -> None:
    put(tmp_path, "train.jsonl", "test.jsonl", "x/README.md")
    assert read_source(task(tmp_path / "*.jsonl")).notes == (
        "the pattern reads 2 files: test.jsonl and train.jsonl; going by their names they are of the splits test and "
        "train",
    )
    assert chosen(tmp_path / "*.jsonl", split="test") == ["test.jsonl"]
    for pattern, says in [
        ("*.csv", r"the pattern .*/\*.csv matches no file; correct it in `path`"),
        ("x/*", "matches only what is no .jsonl, "),
    ]:
        with pytest.raises(UserError, match=says) as error:
            read(tmp_path / pattern)
        one_sentence(error)
    put(tmp_path, "train.csv")
    with pytest.raises(UserError, match="the same file in several forms"):
        read(tmp_path / "train.*")


def test_a_file_with_signs_of_a_pattern_in_its_name_is_a_file(tmp_path: Path) -> None:
    put(tmp_path, "a[1].jsonl", "a1.jsonl")
    assert chosen(tmp_path / "a[1].jsonl") == ["a[1].jsonl"]


def test_links_keep_their_names(tmp_path: Path) -> None:
    put(tmp_path, "blobs/0a1b")
    (tmp_path / "train.jsonl").symlink_to(tmp_path / "blobs" / "0a1b")
    bad(tmp_path / "mix.yaml", "tasks: [{name: a, path: train.jsonl}]\nbudget: {examples: 1}\n")
    assert read_source(load_config(tmp_path / "mix.yaml").tasks[0]).rows == [pair("blobs/0a1b")]


def link(path: Path, to: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)


def test_folders_behind_links_are_read(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/train/a.jsonl", "elsewhere/b.jsonl", "set/test/c.jsonl", "only.d/x.jsonl")
    link(tmp_path / "set" / "train", tmp_path / "elsewhere" / "train")
    link(tmp_path / "only" / "data", tmp_path / "only.d")
    assert chosen(tmp_path / "set") == ["elsewhere/train/a.jsonl"]
    assert chosen(tmp_path / "set", split="test") == ["set/test/c.jsonl"]
    assert chosen(tmp_path / "only") == ["only.d/x.jsonl"]
    before = source_digest(task(tmp_path / "only"))
    put(tmp_path, "only.d/y.jsonl")
    assert source_digest(task(tmp_path / "only")) != before


def test_a_file_is_read_once_however_links_lead_to_it(tmp_path: Path) -> None:
    put(tmp_path, "set/a.jsonl", "set/v2/b.jsonl", "set/.old/c.jsonl", "set/.old/deep/d.jsonl", "x.jsonl")
    link(tmp_path / "set" / "loop", tmp_path / "set")
    link(tmp_path / "set" / "up", tmp_path)
    link(tmp_path / "set" / "latest", tmp_path / "set" / "v2")
    link(tmp_path / "set" / "seen", tmp_path / "set" / ".old")
    link(tmp_path / "set" / "gone", tmp_path / "nowhere")
    below = files_below(tmp_path / "set")
    names = ["a.jsonl", "seen/c.jsonl", "seen/deep/d.jsonl", "v2/b.jsonl"]
    assert [path.relative_to(tmp_path / "set").as_posix() for path in below] == names
    (tmp_path / "set" / "up").unlink()
    found = read_source(task(tmp_path / "set" / "**" / "*.jsonl"))
    said = ["set/.old/c.jsonl", "set/.old/deep/d.jsonl", "set/a.jsonl", "set/v2/b.jsonl"]
    assert sorted(row.messages[0].content for row in found.rows) == said
    assert "are links to files that are read under another" in found.notes[-1]


def test_a_link_whose_name_says_the_kind_of_file_is_the_one_that_a_pattern_reads(tmp_path: Path) -> None:
    put(tmp_path, "blobs/0a1b")
    for revision in ("1", "2"):
        link(tmp_path / "snapshots" / revision / "train.jsonl", tmp_path / "blobs" / "0a1b")
    found = read_source(task(tmp_path / "**" / "*"))
    assert found.places == ["line 1 of snapshots/1/train.jsonl"]


def test_an_adapter_behind_a_link_has_the_hash_of_its_files(tmp_path: Path) -> None:
    bad(tmp_path / "real" / "sub" / "w.bin", "1")
    link(tmp_path / "linked" / "sub", tmp_path / "real" / "sub")
    before = path_digest(tmp_path / "linked")
    assert before == path_digest(tmp_path / "real")
    bad(tmp_path / "real" / "sub" / "w.bin", "2")
    assert before != path_digest(tmp_path / "linked") == path_digest(tmp_path / "real")


def test_only_what_is_read_makes_a_run_stale(tmp_path: Path) -> None:
    put(tmp_path, "set/train.jsonl", "set/test.jsonl", "set/dev.jsonl", "many/a.jsonl", "many/b.jsonl")
    folder, pattern = task(tmp_path / "set"), task(tmp_path / "many" / "*.jsonl")
    held = task(tmp_path / "set", validation=str(tmp_path / "set"))
    sources = (folder, pattern, held)
    before = [source_digest(source) for source in sources]
    bad(tmp_path / "set" / "README.md", "new")
    bad(tmp_path / "set" / ".train.jsonl.swp", "new")
    put(tmp_path, "set/test.jsonl", "many/.c.jsonl")
    bad(tmp_path / "set" / "test.jsonl", lines_of(pairs("other")))
    assert [source_digest(source) for source in sources] == before
    bad(tmp_path / "set" / "dev.jsonl", lines_of(pairs("other")))
    assert [source_digest(source) == old for source, old in zip(sources, before, strict=True)] == [True, True, False]
    bad(tmp_path / "many" / "b.jsonl", lines_of(pairs("other")))
    assert source_digest(pattern) != before[1]
    assert source_digest(task("owner/name")) == ["owner/name"]
    one = source_digest(task(tmp_path / "set" / "train.jsonl"))
    assert one == source_digest(folder)  # the same rows


def test_files_are_listed_in_the_order_in_which_they_are_read(tmp_path: Path) -> None:
    put(tmp_path, "train/b.jsonl", "train/a.jsonl", "test/a.jsonl")
    source = task(tmp_path)
    files = files_of(asked_of(source, title_of(source)))
    assert files is not None
    assert [files.name(path) for path in files.paths] == ["train/a.jsonl", "train/b.jsonl"]
    assert read_source(source).places == ["line 1 of train/a.jsonl", "line 1 of train/b.jsonl"]


# Text

# What text may hold: separators that splitlines() takes for line ends, quotes, commas, line breaks, a BOM.
TEXTS = [
    "a,b", 'say "x"', "two\nlines", "c\r\nd", "e\u2028f\x85g", "ünï😀", " space ", "007", "5.10", "None", "NA", "NaN", "1e5",
    "true", "2020-01-01", "a;b|c\td", "\ufeffx", "'q'", "\\n",
]  # fmt: skip


def as_csv(rows: Sequence[Sequence[str]], separator: str = ",", end: str = "\n") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
    return text.getvalue()


def test_text_files_agree(tmp_path: Path) -> None:
    rows = [{"prompt": text, "completion": text + "."} for text in TEXTS]
    expected = [pair(text, text + ".") for text in TEXTS]
    lines = "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows))
    array = json.dumps(rows, indent=2, ensure_ascii=False)
    table = [["prompt", "completion"], *([text, text + "."] for text in TEXTS)]
    bom = "\ufeff"
    for name, data in [
        ("a.jsonl", lines.encode()),
        ("b.jsonl", (bom + lines.replace("}\n", "}\r\n\r\n") + "  \n").encode()),
        ("c.jsonl", lines.removesuffix("\n").encode()),
        ("d.json", array.encode()),
        ("d1.json", (bom + "\n\n" + array).encode()),
        ("d2.json", json.dumps(rows).encode()),
        ("e.json", lines.encode()),
        ("e1.ndjson", lines.encode()),
        ("e2.jsonl", lines.encode("utf-16")),
        ("e3.jsonl", lines.replace("\n", "\r\n").encode("utf-16-be")),
        ("e4.jsonl", lines.encode("utf-16-le")),
        ("e5.json", array.encode("utf-16")),
        ("e6.jsonl", lines.replace("}\n", "}\r").encode()),
        ("f.csv", as_csv(table).encode()),
        ("f1.csv", as_csv(table, ";").encode()),
        ("f2.csv", as_csv(table, "|").encode()),
        ("f3.tsv", as_csv(table, "\t").encode()),
        ("f4.csv", as_csv(table, "\t").encode("utf-16")),
        ("f5.csv", as_csv(table, end="\r\n").encode("utf-16-le")),
        ("g.csv", (bom + as_csv(table, end="\r\n\r\n") + "\n").encode()),
        ("g1.csv", ("\n\n" + as_csv(table)).encode()),
        ("h.jsonl.gz", gzip.compress(lines.encode())),
        ("i.csv.gz", gzip.compress(as_csv(table).encode())),
        ("j.json.GZ", gzip.compress(array.encode("utf-16"))),
    ]:
        (tmp_path / name).write_bytes(data)
        assert read(tmp_path / name) == expected, name


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_packed_files_are_read(ending: str, pack: Any, tmp_path: Path) -> None:
    lines = lines_of(pairs(*range(3000))).encode()
    for data in (lines, lines.decode().encode("utf-16")):
        bad(tmp_path / f"a.jsonl.{ending.upper()}", pack(data))
        assert read(tmp_path / f"a.jsonl.{ending.upper()}") == [pair(str(i)) for i in range(3000)]
    bad(tmp_path / f"b.csv.{ending}", pack(as_csv([["prompt", "completion"], ["p", "yes"]]).encode()))
    assert read(tmp_path / f"b.csv.{ending}") == [pair("p")]
    bad(tmp_path / f"c.jsonl.{ending}", pack(lines) + pack(lines))  # end to end they are one file
    assert len(read(tmp_path / f"c.jsonl.{ending}")) == 6000


def test_zstandard_files_are_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    lines = lines_of(pairs(*range(3000)))
    for name, data in [("a.jsonl.zst", lines), ("b.csv.zst", as_csv([["prompt", "completion"], ["p", "yes"]]))]:
        with pyarrow.output_stream(str(tmp_path / name), compression="zstd") as file:
            file.write(data.encode())
    assert read(tmp_path / "a.jsonl.zst") == [pair(str(i)) for i in range(3000)]
    assert read(tmp_path / "b.csv.zst") == [pair("p")]
    whole = (tmp_path / "a.jsonl.zst").read_bytes()
    for data in (whole + whole, whole[:-20], b"no"):  # frames end to end are one file
        bad(tmp_path / "c.jsonl.zst", data)
        if len(data) > len(whole):
            assert len(read(tmp_path / "c.jsonl.zst")) == 6000
            continue
        with pytest.raises(UserError, match="cannot read .*c.jsonl.zst .*; check the file") as error:
            read(tmp_path / "c.jsonl.zst")
        one_sentence(error)


def test_without_pyarrow_zstandard_files_and_parquet_name_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pyarrow", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("a.jsonl.zst", "a.parquet"):
        with pytest.raises(UserError, match=r"pip install 'taskpgm\[lm\]'"):
            read(bad(tmp_path / name, "x"))


def test_numbers_are_the_text_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(f'{{"prompt": 1, "completion": {c}}}\n' for c in ("18", "5.10", "1e5", "true", "-0")))
    assert [m.answer for m in read(file)] == ["18", "5.10", "1e5", "true", "-0"]
    assert read(file)[0].messages[0] == Message("user", "1")


def test_rows_by_name_are_refused_in_a_short_sentence(tmp_path: Path) -> None:
    rows = {str(i): row for i, row in enumerate(pairs(*range(30_000)))}
    for name, text in [
        ("a.json", json.dumps(rows)),
        ("b.json", json.dumps(rows, indent=1)),
        ("c.jsonl", json.dumps(rows)),
    ]:
        with pytest.raises(UserError, match="is one object of 30,000 objects .'0', '1' and 29998 more.; if") as error:
            read(bad(tmp_path / name, text))
        one_sentence(error)
        assert len(str(error.value)) < 400
    with pytest.raises(UserError, match=r"has the columns 0, 1, 2, .*, 19 and 29980 more; a task needs") as error:
        read(bad(tmp_path / "d.jsonl", lines_of([rows, rows])))
    assert len(str(error.value)) < 500
    row = {"chat": {"role": ["user", "assistant"], "content": ["u", "a"]}, "meta": {"id": 1}}
    assert read(bad(tmp_path / "e.json", json.dumps(row)), columns={"messages": "chat"}) == [pair("u", "a")]


def test_taking_notice_of_a_record_takes_time_in_line_with_its_columns() -> None:
    looks = 0

    class Counted(dict[str, Any]):
        def __contains__(self, key: object) -> bool:
            nonlocal looks
            looks += 1
            return super().__contains__(key)

    facts = Facts()
    part = Part(lambda: iter(()), "line", "a.jsonl")
    facts.see(part, 1, Counted({str(i): 1 for i in range(5000)}))
    facts.see(part, 2, Counted({str(i): 1 for i in range(9000)}))
    assert looks <= 5000 + 9000
    assert facts.said.keys() == facts.present == {str(i) for i in range(9000)}


def test_a_file_that_is_one_object_is_a_row_or_holds_one_list_of_rows(tmp_path: Path) -> None:
    for indent in (None, 1):
        for value, expected in [
            ({"data": pairs(1, 2)}, [pair("1"), pair("2")]),
            ({"version": "1.1", "data": pairs(1, 2), "tags": ["x"]}, [pair("1"), pair("2")]),
            (pairs(7)[0], [pair("7")]),
            ({**pairs(7)[0], "sources": [{"url": "x"}]}, [pair("7")]),
            ({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}, [pair("u", "a")]),
        ]:
            assert read(bad(tmp_path / "a.json", json.dumps(value, indent=indent))) == expected
    note = "rows are the objects in the list 'data'; not read beside it: 'version' and 'tags'"
    bad(tmp_path / "a.json", json.dumps({"version": "1.1", "data": pairs(1), "tags": ["x"]}))
    reading = read_source(task(tmp_path / "a.json"))
    assert (reading.notes, reading.places) == ((note,), ["row 1 of data in a.json"])
    columns = {"messages": "turns"}
    bad(tmp_path / "a.json", json.dumps({"turns": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}))
    assert read(tmp_path / "a.json", columns=columns) == [pair("u", "a")]
    bad(tmp_path / "a.json", json.dumps({"train": pairs(1), "test": pairs(2)}))
    with pytest.raises(UserError, match="holds several lists of objects .'train' and 'test'.*; write") as error:
        read(tmp_path / "a.json")
    one_sentence(error)


# CSV


def test_cells_of_any_length_are_read(tmp_path: Path) -> None:
    long = "word, " * 700_000
    limit = csv.field_size_limit()
    assert read(bad(tmp_path / "a.csv", as_csv([["prompt", "completion"], [long, "yes"]]))) == [pair(long)]
    assert csv.field_size_limit() == limit


def test_a_line_of_a_csv_file_is_the_line_in_the_file(tmp_path: Path) -> None:
    text = 'prompt,completion\n\n"two\r\nlines",b\n\nc,d\n"three\n\nlines","e"\nf,g\n'
    file = bad(tmp_path / "a.csv", text)
    assert [place.split()[1] for place in read_source(task(file)).places] == ["3", "6", "7", "10"]
    for ending, line in [("h\n", 11), ('x,"\ny\n', 11), ("h,i,j\n", 11), ('k,l\n"m"n,o\n', 12)]:
        with pytest.raises(UserError, match=f"a.csv: line {line} ") as error:
            read(bad(file, text + ending))
        one_sentence(error)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("at", [2, 3, 352, 5000])
def test_a_stray_byte_is_found_in_its_line(tmp_path: Path, at: int, newline: str) -> None:
    rows = [f"dish {i},soup" for i in range(2, 6000)]
    rows[at - 2] = "dish,caf\udce9"
    for bom in ("", "\ufeff"):
        text = bom + newline.join(["prompt,completion", *rows]) + newline
        data = text.encode("utf-8", "surrogateescape")
        for name, content in (("a.csv", data), ("b.csv.gz", gzip.compress(data))):
            with pytest.raises(UserError, match=f"line {at} is not UTF-8 text .*; save the file as UTF-8") as error:
                read(bad(tmp_path / name, content))
            one_sentence(error)
    lines = [json.dumps(row) for row in pairs(*range(6000))]
    lines[at - 1] = '{"prompt": "caf\udce9"}'
    with pytest.raises(UserError, match=f"a.jsonl: line {at} is not UTF-8 text"):
        read(bad(tmp_path / "a.jsonl", newline.join(lines).encode("utf-8", "surrogateescape")))
    data = newline.join([*lines[: at - 1], "{"]).encode("utf-16") + b"\x00\xdc"
    with pytest.raises(UserError, match=f"a.jsonl: line {at} is not UTF-16"):
        read(bad(tmp_path / "a.jsonl", data))


def test_the_separator_of_a_csv_file_is_the_one_that_gives_known_columns(tmp_path: Path) -> None:
    for head, cells, columns in [
        ("prompt;completion", "a, b;yes", None),
        ("id|prompt|completion;x", "1|a, b|yes", {"completion": "completion;x"}),
        ("prompt\tcompletion\tcomma,separated,tags", "a, b\tyes\tt", None),
        ("q;a,b", '"a, b";yes', {"prompt": "q", "completion": "a,b"}),
        ("completion,prompt", 'yes,"a, b"', None),
    ]:
        assert read(bad(tmp_path / "a.csv", f"{head}\n{cells}\n"), columns=columns) == [pair("a, b")]
    said = read_source(task(bad(tmp_path / "a.csv", "prompt;completion\na;b\n"))).notes
    assert said == ("columns are taken to be separated by ';'",)
    many = bad(tmp_path / "f" / "b.csv", "prompt;completion\na;b\n").parent
    bad(many / "c.csv", "prompt;completion\na;b\n")
    assert read_source(task(many)).notes == ("reads b.csv and c.csv", *said)
    assert read_source(task(bad(tmp_path / "a.tsv", "prompt\tcompletion\na\tb\n"))).notes == ()


def test_spelling_of_csv_cells_is_kept(tmp_path: Path) -> None:
    cells = ["007", "5.10", "None", "NaN", "NULL", " x ", "1,5", "", "TRUE", "0x1F", "1e400", 'a 5" pipe']
    body = "".join(f"{cell};yes\n" for cell in cells if cell)
    records = records_of(task(bad(tmp_path / "a.csv", "prompt;completion\n;yes\n" + body)))
    assert [record["prompt"] for record in records] == ["", *(cell for cell in cells if cell)]


# Parquet, Arrow, saved datasets


def test_arrow_formats_agree(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import feather

    chat = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    data = datasets.Dataset.from_list(
        [{"prompt": f"p{i}", "completion": i, "messages": chat, "extra": [i]} for i in range(3)]
    )
    plain = data.remove_columns("messages")
    plain.to_parquet(tmp_path / "a.parquet")
    plain.with_format("numpy").save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": plain, "test": plain.select([1])}).save_to_disk(tmp_path / "dict")
    data.remove_columns(["prompt", "completion"]).to_parquet(tmp_path / "chat.parquet")
    schema = plain.data.table.schema
    with (tmp_path / "file.arrow").open("wb") as file, pyarrow.ipc.new_file(file, schema) as writer:
        writer.write_table(plain.data.table)
    feather.write_feather(plain.data.table, tmp_path / "f.feather")  # compressed
    expected = [pair(f"p{i}", str(i)) for i in range(3)]
    assert read(tmp_path / "a.parquet") == read(tmp_path / "saved") == read(tmp_path / "dict") == expected
    assert read(tmp_path / "file.arrow") == read(tmp_path / "saved" / "data-00000-of-00001.arrow") == expected
    assert read(tmp_path / "f.feather") == expected
    assert read(tmp_path / "dict", split="test") == expected[1:2]
    assert read(tmp_path / "chat.parquet") == [pair("u", "a")] * 3
    assert read_source(task(tmp_path / "dict")).notes == (
        "reads the split train, not test in the same folder", "not read: extra",
    )  # fmt: skip
    with pytest.raises(UserError, match="no split 'dev'; it has train and test; set `split`"):
        read(tmp_path / "dict", split="dev")
    with pytest.raises(UserError, match="no split 'validation'; it has train and test; name one of them, as in `valid"):
        validation(task(tmp_path / "a.parquet", validation=str(tmp_path / "dict")))
    assert validation(task(tmp_path / "a.parquet", validation=str(tmp_path / "dict" / "test"))) == ["p1"]


def test_columns_of_other_names_are_named_whatever_the_format(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"question": "q", "answer": "a"}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "b")
    bad(tmp_path / "c.jsonl", lines_of(rows))
    bad(tmp_path / "d.csv", as_csv([["question", "answer"], ["q", "a"]]))
    for name in ("a.parquet", "b", "b/data-00000-of-00001.arrow", "c.jsonl", "d.csv"):
        with pytest.raises(UserError, match="has the columns question, answer; a task needs"):
            read(tmp_path / name)


def test_what_datasets_caches_beside_a_saved_dataset_is_no_data(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(pairs(1, 2)).save_to_disk(tmp_path / "set" / "saved")
    saved = datasets.load_from_disk(str(tmp_path / "set" / "saved"))
    saved.map(lambda row: {"completion": row["completion"] + "!"})
    assert list((tmp_path / "set" / "saved").glob("cache-*.arrow"))
    assert read(tmp_path / "set") == read(tmp_path / "set" / "saved") == [pair("1"), pair("2")]


def test_only_the_split_of_a_saved_dataset_that_is_read_makes_a_run_stale(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")

    def save(train: int, dev: int) -> list[list[str]]:
        sets = {"train": datasets.Dataset.from_list(pairs(train)), "dev": datasets.Dataset.from_list(pairs(dev))}
        datasets.DatasetDict(sets).save_to_disk(tmp_path / f"{train} {dev}")
        return [source_digest(task(tmp_path / f"{train} {dev}", split=split)) for split in ("train", "validation")]

    first, other = save(1, 2), save(1, 3)
    assert (first[0] == other[0], first[1] == other[1]) == (True, False)
    assert chosen(tmp_path / "1 3", split="validation") == ["3"]


def test_folders_of_parquet_shards(tmp_path: Path) -> None:
    names = [f"data/train-0000{i}-of-00002.parquet" for i in range(2)]
    put(tmp_path, *names, "data/test-00000-of-00001.parquet")
    assert chosen(tmp_path) == names
    assert chosen(tmp_path / "data" / "test-*.parquet") == ["data/test-00000-of-00001.parquet"]
    put(tmp_path, "data/train.jsonl")
    assert read_source(task(tmp_path / "data" / "*-0000[01]-of-00002.parquet")).rows == [pair(name) for name in names]
    with pytest.raises(UserError, match="mixes json and parquet files"):
        read(tmp_path)


def test_a_folder_of_the_cache_of_datasets_is_read_by_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    put(tmp_path / "src", "train.jsonl", "test.jsonl")
    files = {split: str(tmp_path / "src" / f"{split}.jsonl") for split in ("train", "test")}
    cached = datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path / "cache"))
    folder = Path(cached["train"].cache_files[0]["filename"]).parent
    assert (folder / "dataset_info.json").is_file()
    assert chosen(folder) == ["train.jsonl"]
    assert chosen(folder, split="test") == ["test.jsonl"]


def test_a_missing_number_is_handed_on_as_nan_or_none(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"instruction": "i", "input": math.nan, "output": "o"}, {"instruction": "i", "input": None, "output": "o"}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    bad(tmp_path / "b.jsonl", lines_of(rows))  # NaN, as pandas and json write it
    for name in ("a.parquet", "b.jsonl"):
        records = records_of(task(tmp_path / name))
        assert math.isnan(records[0]["input"])
        assert records[1]["input"] is None
    bad(tmp_path / "c.csv", "instruction,input,output\ni,NaN,o\ni,,o\n")
    records = records_of(task(tmp_path / "c.csv"))
    assert [record["input"] for record in records] == ["NaN", ""]  # text: the file has no other kind


def test_numbers_of_few_bits_are_spelled_as_they_were_written(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import parquet

    numbers = [0.1, -2.5, 1e10, 3.0, 1e-7, 65504.0, None]
    rows = {
        "prompt": pyarrow.array(["p"] * 7),
        "completion": pyarrow.array(numbers, pyarrow.float32()),
        "half": pyarrow.array(np.array([0.1] * 7, np.float16)),
        "tools": pyarrow.array([[{"name": "f", "parameters": {"x": x, "y": [x]}}] for x in numbers],
            pyarrow.list_(pyarrow.struct({"name": pyarrow.string(), "parameters": pyarrow.struct(
                {"x": pyarrow.float32(), "y": pyarrow.list_(pyarrow.float32())})}))),
    }  # fmt: skip
    table = pyarrow.table(rows).slice(0, 6)
    parquet.write_table(table, tmp_path / "a.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "a.parquet", tmp_path / "saved"):
        found = read(path)
        assert [row.answer for row in found] == list(map(str, numbers[:6]))
        assert [row.tools[0]["function"]["parameters"] for row in found] == [{"x": x, "y": [x]} for x in numbers[:6]]
        assert [row.answer for row in read(path, columns={"completion": "half"})] == ["0.1"] * 6


def test_media_are_refused_only_where_there_are_any(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import feather, parquet

    picture = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    some: list[Any] = [None] * 40 + [{"bytes": b"x", "path": "x.png"}]
    for image, refused in [
        (pyarrow.array([None] * 41, picture), False), (pyarrow.array(some, picture), True),
        (pyarrow.array([[]] * 41, pyarrow.list_(picture)), False),
        (pyarrow.array([[]] * 40 + [some[40:]], pyarrow.list_(picture)), True),
    ]:  # fmt: skip
        table = pyarrow.table(
            {**{key: [f"{key}{i}" for i in range(41)] for key in ("prompt", "completion")}, "images": image}
        )
        parquet.write_table(table, tmp_path / "a.parquet")
        feather.write_feather(table, tmp_path / "b.arrow")
        datasets.Dataset(table).save_to_disk(tmp_path / f"saved {refused}{image.type}".replace("/", ""))
        for path in (tmp_path / "a.parquet", tmp_path / "b.arrow", tmp_path / f"saved {refused}{image.type}"):
            if not refused:
                assert len(read(path)) == 41
                continue
            with pytest.raises(UserError, match="has a value in column 'images'"):
                read(path)


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import parquet

    kind = pyarrow.map_(pyarrow.string(), pyarrow.string())
    table = pyarrow.table({"prompt": ["p"], "completion": ["c"], "tools": pyarrow.array([[("a", "1")]], kind)})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match="a.parquet has values of the type map<string, string.*>, which is not read; st"
    ):
        read(tmp_path / "a.parquet")


def test_class_labels_become_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    data.to_parquet(tmp_path / "a.parquet")
    data.save_to_disk(tmp_path / "saved")
    columns = {"prompt": "text", "completion": "label"}
    for path in (tmp_path / "a.parquet", tmp_path / "saved", tmp_path / "saved" / "data-00000-of-00001.arrow"):
        assert read(path, columns=columns) == [pair("a", "pos"), pair("b", "neg")]


def test_plain_text_is_read_as_datasets_reads_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"word {i}\n", "completion": f"ünï {i}"} for i in range(20)]
    path = str(bad(tmp_path / "a.jsonl", lines_of(rows)))
    theirs = datasets.load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    assert read(path) == [pair(row["prompt"], row["completion"]) for row in theirs]


# What a user may get wrong: one sentence with value, reason and remedy

GOOD = '{"prompt": "p", "completion": "c"}\n'
DEEP = '{"prompt": ' + "[" * 200_000 + "\n"
BAD_FILES = [
    ("a.jsonl", "", "holds no rows"),
    ("a.csv", "", "holds no rows"),
    ("a.csv", "prompt,completion\n", "holds no rows"),
    ("a.json", "[]", "holds no rows"),
    ("a.jsonl", "\n \n", "holds no rows"),
    ("a.txt", "x", "is not a .jsonl, .ndjson, .json, .csv, .tsv .* or .feather file; convert or rename it"),
    ("a.parquet.gz", "x", "is not a .jsonl"),
    ("a.jsonl.bz2", bz2.compress(GOOD.encode())[:-9], "check the file"),
    ("a.jsonl.bz2", GOOD, "check the file"),
    ("a.jsonl.xz", lzma.compress(GOOD.encode())[:-9], "check the file"),
    ("a.jsonl.xz", GOOD, "check the file"),
    ("a.jsonl", GOOD + "\ufeff" + GOOD, "line 2 is not valid JSON .a byte order mark, U\\+FEFF, in column 1: remove it"),
    ("a.jsonl.lz4", GOOD, "is not a .jsonl"),
    ("a.feather", "FEA1", "not a readable Arrow file"),
    ("a.jsonl", GOOD + '{"prompt": "p", "compl\n', r"line 2 is not valid JSON \(.*column 17\)"),
    ("a.jsonl", GOOD + '{"prompt": "p", "compl', r"line 2 is not valid JSON \(.*column 17\)"),
    ("a.jsonl", '{"prompt": "p",\n' + GOOD, r"line 1 is not valid JSON \(.*column 16\)"),
    ("a.jsonl", GOOD + "\n" + GOOD + "oops\n", "line 4 is not valid JSON"),
    ("a.jsonl", "\r\n\r\n" + GOOD + "\r\noops\r\n", "line 5 is not valid JSON"),
    ("a.json", '[\n{"prompt": "p",\n"completion" "c"}]', "line 3 is not valid JSON"),
    ("a.json", '\n\n[\n{"prompt": "p",\n"completion" "c"}]', "line 5 is not valid JSON"),
    ("a.json", '{\n"prompt": "p"\n}\n{\n"prompt": "q"\n}', "line 4 is not valid JSON .* one object a line, or one list"),
    ("a.json", '{\n"data": [\n{"prompt": "p"\n]}', "line 4 is not valid JSON"),
    ("a.jsonl", GOOD + "7\n", "line 2 of a.jsonl is a number, not an object"),
    ("a.jsonl", GOOD + '["p", "c"]\n', "line 2 of a.jsonl is a list, not an object"),
    ("a.jsonl", '["p", "c"]\n["p", "c"]\n', "line 1 of a.jsonl is a list, not an object"),
    ("a.json", '"text"', "line 1 of a.json is text, not an object"),
    ("a.jsonl", GOOD + '{"prompt": "p", "prompt": "q", "completion": "c"}\n', "line 2 cannot be read .'prompt' is given twice"),
    ("a.json", "[\n" + GOOD + ',\n{"prompt": "p", "prompt": "q"}]', "line 4 cannot be read .'prompt' is given twice"),
    ("a.json", '{\n"prompt": "p",\n"prompt": "q"}', "line 1 cannot be read .'prompt' is given twice"),
    ("a.jsonl", GOOD + DEEP, "line 2 cannot be read .it is nested too deeply.; correct"),
    ("a.jsonl", GOOD.encode() + b'{"prompt": "\xff"}\n', "line 2 is not UTF-8"),
    ("a.csv", "q;a\n1;2\n", "has the columns q, a; a task needs"),
    ("a.csv", "prompt,completion\na,b,c\n", "line 2 has 3 fields where the header names 2 .*; put text that holds ',' in quotes"),
    ("a.csv", "prompt;completion\na;b\nc\n", "line 3 has 1 fields where the header names 2 .* that holds ';' in quotes"),
    ("a.csv", "prompt,completion\n\na,\n", "line 3 of a.csv has an empty answer"),
    ("a.csv", 'prompt,completion\na,"b\nc,d\n', "line 2 is not valid CSV .a quote is never closed, found in line 3"),
    ("a.csv", 'prompt,completion\na,"b\nc","d"\n' + "e,f\n" * 9, "line 2 has 3 fields"),
    ("a.csv", 'prompt,completion\na,"say \\"x\\""\n', "line 2 is not valid CSV .',' expected after"),
    ("a.csv", "prompt,completion,completion\na,b,c\n", "names the column 'completion' more than once; rename"),
    ("a.csv", b"prompt,completion\na,\xff\n", "line 2 is not UTF-8"),
    ("a.jsonl.gz", GOOD, "cannot read .*Not a gzipped file.*; check"),
    ("a.jsonl.gz", gzip.compress((GOOD * 99).encode(), mtime=0)[:-9], "cannot read .*; check"),
    ("a.json", '{"prompt": ["p", "q"], "completion": ["c", "d"]}', "is one object of 2 columns .'prompt' and 'completion'.; write a row"),
    ("a.json", '{"prompt": {"0": "p", "1": "q"}, "completion": {"0": "c", "1": "d"}}', "is one object of 2 columns"),
    ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "is a pointer of Git LFS, .*`git lfs pull`"),
    ("a.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "is a pointer of Git LFS"),
    ("a.jsonl.gz", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "is a pointer of Git LFS"),
    ("a.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "is a pointer of Git LFS"),
    ("a.jsonl", gzip.compress(GOOD.encode(), mtime=0), "begins like a .gz file, not like text; unpack"),
    ("a.csv", lzma.compress(GOOD.encode()), "begins like an .xz file"),
    ("a.json", b"PK\x03\x04\x14", "begins like a .zip file"),
    ("a.parquet", "PAR1 no", "is not a readable Parquet file"),
    ("a.arrow", "", "is not a readable Arrow file"),
    ("a.arrow", "no such thing", "is not a readable Arrow file"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "says"), BAD_FILES)
def test_bad_files(tmp_path: Path, name: str, text: str | bytes, says: str) -> None:
    if name.endswith((".parquet", ".arrow", ".feather")):
        pytest.importorskip("datasets")
    with pytest.raises(UserError, match=says) as error:
        read(bad(tmp_path / name, text))
    one_sentence(error)
    assert name in str(error.value)


def test_columns_of_one_name_in_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    from pyarrow import parquet

    table = pyarrow.table([["p"], ["c"], ["d"]], names=["prompt", "completion", "completion"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="names the column 'completion' more than once; rename") as error:
        read(tmp_path / "a.parquet")
    one_sentence(error)


@pytest.mark.parametrize(
    "path", ["no/such/file", "nowhere.jsonl", "data/nowhere.csv", "/no/such", "what is this", "a/b/c"]
)
def test_nothing_there(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="neither a file nor a folder, nor does it look like a hub id") as error:
        read(path)
    one_sentence(error)
    assert path in str(error.value)


def test_a_saved_dataset_that_is_damaged(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    bad(tmp_path / "dataset_info.json", "{}")
    bad(tmp_path / "state.json", '{"_data_files": ')
    with pytest.raises(UserError, match="is not a readable saved dataset .*; save it again") as error:
        read(tmp_path)
    one_sentence(error)


def test_files_of_others_that_are_called_like_those_of_a_saved_dataset(tmp_path: Path) -> None:
    for name, text in (("dataset_dict.json", '{"jars": "a.jsonl"}'), ("state.json", "{}"), ("dataset_info.json", "{}")):
        bad(put(tmp_path, "a.jsonl") / name, text)
        assert chosen(tmp_path) == ["a.jsonl"]


def test_a_file_that_has_nothing_in_common_with_the_data_beside_it_is_named(tmp_path: Path) -> None:
    bad(put(tmp_path, "jars.json") / "index.json", '{"jars": {"file_name": "jars.json"}}')
    with pytest.raises(
        UserError, match="index.json in .* has the columns jars, none of .*, and jars.json has"
    ) as error:
        read(tmp_path)
    one_sentence(error)
    bad(tmp_path / "index.json", lines_of([{"question": "q", "answer": "a"}]))
    with pytest.raises(UserError, match="index.json in .* has the columns question and answer"):
        read(tmp_path)


def test_a_remedy_never_names_files_of_another_split(tmp_path: Path) -> None:
    put(tmp_path, "jars.jsonl", "jars_test.jsonl")
    with pytest.raises(UserError, match=r"such as the file \S+/jars\.jsonl\.$"):
        read(tmp_path)


def test_a_name_that_begins_like_a_home_folder_is_a_file(tmp_path: Path) -> None:
    put(tmp_path, "~.jsonl", "~nobody-here.jsonl")
    for name in ("~.jsonl", "~nobody-here.jsonl"):
        (tmp_path / "mix.yaml").write_text(f"tasks: [{{name: a, path: {name}}}]\nbudget: {{examples: 1}}\n")
        assert read_source(load_config(tmp_path / "mix.yaml").tasks[0]).rows == [pair(name)]


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    import subprocess

    code = (
        "from taskpgm.config import TaskConfig\nfrom taskpgm.data.conversations import read_source\n"
        "try: read_source(TaskConfig(name='a', path='nobody-here/nothing'))\nexcept ValueError as error: print(error)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith(
        "Task 'a': 'nobody-here/nothing' is neither a file nor a folder here, and loading it from"
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
