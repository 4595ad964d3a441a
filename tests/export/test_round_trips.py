"""What trainers' own loaders read of an export is the plan: the same rows, as often."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.handovers import COUNTS, SIZES, make_handover, of_all_kinds, planned, texts

from taskpgm.export.handover import By
from taskpgm.export.targets import TARGETS
from taskpgm.export.trl import taken_by_fractions
from taskpgm.export.write import export_plan

ON_CPU = ["--use_cpu", "true", "--bf16", "false"]
HELD = "tests/support/stand_ins"


def lines(path: Path) -> list[dict[str, Any]]:
    # splitlines, as NeMo-Automodel reads: it also splits at U+2028 and U+0085
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf/datasets"))
    return tmp_path


TASK_FILES = [
    "jsonl", "openai", "axolotl", "ms-swift", "open-instruct", "nemo-automodel", "megatron", "torchtune", "unsloth",
]  # fmt: skip


@pytest.mark.parametrize("to", TASK_FILES)
def test_task_files_hold_the_planned_rows(here: Path, to: str) -> None:
    handover = make_handover()
    export = export_plan(handover, to, here / "out")
    files = {name: lines(here / f"out/tasks/{stem}.jsonl") for name, stem, _ in export.tasks}
    assert {name: len(rows) for name, rows in files.items()} == {name: n for name, n in COUNTS.items() if n}
    assert texts(row["messages"] for rows in files.values() for row in rows) == planned(handover)
    assert len(list((here / "out/tasks").iterdir())) == 3  # nothing of the task that is left out


@pytest.mark.parametrize("by", ["rows", "shares"])
def test_trl_reads_the_plan(here: Path, by: By, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.scripts.sft import make_parser
    from trl.scripts.utils import get_dataset

    handover = make_handover(by=by)
    export_plan(handover, "trl", here / "out")
    monkeypatch.chdir(here / "out")
    script, training, model, mixture = make_parser().parse_args_and_config(["--config", "sft.yaml", *ON_CPU])[:4]
    assert model.model_name_or_path == "some/model"
    assert training.assistant_only_loss
    assert training.max_length == 512
    assert not training.packing
    rows = get_dataset(mixture)["train"]
    if by == "rows":
        assert texts(rows["messages"]) == planned(handover)
    else:
        shares = [count / 52 for count in COUNTS.values() if count]
        expected = taken_by_fractions([SIZES[name] for name, count in COUNTS.items() if count], shares)
        assert len(rows) == sum(expected)
    assert script is not None


def test_trl_takes_pairs_if_every_row_is_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.scripts.sft import make_parser
    from trl.scripts.utils import get_dataset

    rows = {name: [c for c in own if len(c.messages) == 2] for name, own in _pools().items()}
    handover = make_handover(rows, counts={"a": 5, "b": 3})
    export_plan(handover, "trl", here / "out")
    monkeypatch.chdir(here / "out")
    training, mixture = make_parser().parse_args_and_config(["--config", "sft.yaml", *ON_CPU])[1:4:2]
    assert training.completion_only_loss
    read = get_dataset(mixture)["train"]
    assert texts([*row["prompt"], *row["completion"]] for row in read) == planned(handover)


def _pools() -> dict[str, Any]:
    from support.handovers import plain_rows

    return {"a": plain_rows("a", 3), "b": plain_rows("b", 9)}


@pytest.mark.parametrize("paired", [False, True])
def test_trl_reads_tasks_of_which_some_have_calls_and_thoughts(
    here: Path, paired: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every part of every row, though files differ in what their rows have, and TRL joins them."""
    from trl.scripts.sft import make_parser
    from trl.scripts.utils import get_dataset

    handover = of_all_kinds(without=("calls", "one call") if paired else ())
    export_plan(handover, "trl", here / "out")
    monkeypatch.chdir(here / "out")
    mixture = make_parser().parse_args_and_config(["--config", "sft.yaml", *ON_CPU])[3]
    rows = get_dataset(mixture)["train"]
    read = [
        [row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]], row.get("tools")]
        for row in rows
    ]
    assert canonical(read) == canonical([row.to_dicts(), list(row.tools) or None] for _, row in handover.everything())


def canonical(rows: Iterable[Any]) -> Counter[str]:
    return Counter(json.dumps(row, sort_keys=True) for row in rows)


def test_unsloth_writes_the_text_of_every_part(here: Path) -> None:
    handover = of_all_kinds()
    export_plan(handover, "unsloth", here / "out")
    scope: dict[str, Any] = {"__file__": str(here / "out/train.py"), "__name__": "read"}
    exec((here / "out/train.py").read_text(encoding="utf-8"), scope)

    class Tokenizer:
        def apply_chat_template(self, messages: Any, tools: Any, tokenize: bool) -> str:
            return json.dumps([messages, tools], sort_keys=True)

    expected = canonical([row.to_dicts(), list(row.tools) or None] for _, row in handover.everything())
    assert Counter(scope["texts"](Tokenizer())["text"]) == expected


def test_datasets_by_counts_reads_tasks_of_which_some_have_calls_and_thoughts(here: Path) -> None:
    handover = of_all_kinds("counts")
    export_plan(handover, "datasets", here / "out")
    scope: dict[str, Any] = {"__file__": str(here / "out/load.py")}
    exec((here / "out/load.py").read_text(encoding="utf-8"), scope)
    rows = scope["dataset"]
    assert Counter(rows["task"]) == Counter({task.name: task.plan.count for task in handover.tasks})
    calls = [json.loads(turn["tool_calls"]) for row in rows for turn in row["messages"] if turn["tool_calls"]]
    texts_of_calls = [json.loads(call["function"]["arguments"]) for call in itertools.chain(*calls)]
    assert {"a": "one", "deep": {"x": None}} in texts_of_calls
    assert {"a": 1, "b": [2]} in texts_of_calls


@pytest.mark.parametrize("by", ["rows", "counts"])
def test_datasets_reads_the_plan(here: Path, by: By) -> None:
    handover = make_handover(by=by)
    export_plan(handover, "datasets", here / "out")
    scope: dict[str, Any] = {"__file__": str(here / "out/load.py")}
    exec((here / "out/load.py").read_text(), scope)
    rows = scope["dataset"]
    assert len(rows) == 52
    if by == "rows":
        assert texts(rows["messages"]) == planned(handover)
        assert Counter(rows["task"]) == Counter({name: n for name, n in COUNTS.items() if n})
    else:
        assert Counter(turns[-2]["content"] for turns in rows["messages"]).total() == 52
        assert _by_task(handover, texts(rows["messages"])) == {name: n for name, n in COUNTS.items() if n}


def _by_task(handover: Any, found: Counter[Any]) -> dict[str, int]:
    """How many of the rows found are training rows of each task; all must be of one."""
    own = {task.name: set(texts(row.conversation.to_dicts() for row in task.train)) for task in handover.pool.tasks}
    counts = {name: sum(n for row, n in found.items() if row in rows) for name, rows in own.items()}
    assert sum(counts.values()) == found.total()
    return {name: count for name, count in counts.items() if count}


def test_parquet_holds_the_plan(here: Path) -> None:
    import pyarrow.parquet as pq

    handover = make_handover()
    export = export_plan(handover, "parquet", here / "out")
    table = pq.read_table(here / "out/train.parquet")
    assert texts(table["messages"].to_pylist()) == planned(handover)
    for name, stem, count in export.tasks:
        assert pq.read_table(here / f"out/tasks/{stem}.parquet")["task"].to_pylist() == [name] * count


def test_verl_reads_messages_of_parquet(here: Path) -> None:
    import pandas as pd

    handover = make_handover()
    export_plan(handover, "verl", here / "out")
    # as verl's MultiTurnSFTDataset reads them
    frames = [pd.read_parquet(file, dtype_backend="pyarrow") for file in sorted((here / "out/tasks").iterdir())]
    assert texts(row for frame in frames for row in frame["messages"].tolist()) == planned(handover)


def test_tinker_and_openai_hold_the_plan_in_training_order(here: Path) -> None:
    handover = make_handover()
    for to in ("tinker", "openai"):
        export_plan(handover, to, here / to)
        rows = lines(here / to / "train.jsonl")
        assert texts(row["messages"] for row in rows) == planned(handover)
        expected = [[m.content for m in row.messages] for _, row in handover.in_order()]
        assert [[m["content"] for m in row["messages"]] for row in rows] == expected


def test_llama_factory_lists_every_task_once(here: Path) -> None:
    handover = make_handover(by="counts")
    export_plan(handover, "llama-factory", here / "out")
    info = json.loads((here / "out/dataset_info.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((here / "out/sft.yaml").read_text(encoding="utf-8"))
    names = config["dataset"].split(",")
    assert names == list(info)
    assert len(names) == 3
    assert [info[name]["num_samples"] for name in names] == [10, 30, 12]
    assert {len(lines(here / "out" / info[name]["file_name"])) for name in names} == {4, 30, 50}


@pytest.mark.parametrize("by", ["rows", "counts"])
def test_streaming_yields_the_plan(here: Path, by: By) -> None:
    script = f"""
import sys; sys.path[:0] = [{str(Path("tests").resolve())!r}]
from collections import Counter
from pathlib import Path
from support.handovers import COUNTS, make_handover, planned, texts
from taskpgm.export.write import export_plan
handover = make_handover(by={by!r})
export_plan(handover, "mds", Path("out"))
scope = {{"__file__": str(Path("out/loader.py").resolve())}}
exec(Path("out/loader.py").read_text(), scope)
rows = [row["messages"] for row in scope["dataset"](batch_size=4)]
assert len(rows) == 52, len(rows)
if {by!r} == "rows":
    assert texts(rows) == planned(handover)
else:
    from taskpgm.data.messages import Message
    for name, count in COUNTS.items():
        own = set(texts(row.conversation.to_dicts() for row in handover.pool[name].train))
        assert sum(n for row, n in texts(rows).items() if row in own) == count
print("ok")
"""
    if not find_spec("streaming"):
        pytest.fail("mosaicml-streaming is not installed; make test installs it")
    # streaming imports torchvision for images, which has no build for this torch: a stand-in without content is in its place
    path = ":".join([str(Path(HELD).resolve()), *sys.path[1:]])
    done = subprocess.run([sys.executable, "-c", script], cwd=here, env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "HOME": str(here)}, capture_output=True, text=True)  # fmt: skip
    assert done.stdout.strip().endswith("ok"), done.stderr[-2000:]


def test_megatron_blends_the_counts(here: Path) -> None:
    import numpy as np
    from megatron.core.datasets import helpers
    from megatron.core.datasets.utils import get_blend_from_list

    handover = make_handover()
    export_plan(handover, "megatron", here / "out")
    prefixes, weights = get_blend_from_list((here / "out/blend.txt").read_text().split())
    assert weights == [10.0, 30.0, 12.0]
    share = np.array(weights) / sum(weights)
    which, sample = np.zeros(52, dtype=np.int16), np.zeros(52, dtype=np.int64)
    helpers.build_blending_indices(which, sample, share, 3, 52, False)
    assert np.bincount(which).tolist() == [10, 30, 12]
    # the files behind the prefixes have as many rows as their weights
    for prefix, weight in zip(prefixes, weights, strict=True):
        stem = Path(prefix).name.removesuffix("_text_document")
        assert len(lines(here / f"out/tasks/{stem}.jsonl")) == weight


def test_open_instruct_asks_for_whole_files_or_counts(here: Path) -> None:
    for by, amounts in (("rows", ["1.0"] * 3), ("counts", ["10", "30", "12"])):
        handover = make_handover(by=by)  # type: ignore[arg-type]
        export_plan(handover, "open-instruct", here / by)
        out = subprocess.run(
            ["sh", "-c", f"accelerate() {{ printf '%s\\n' \"$@\"; }}; . {here / by}/finetune.sh"], capture_output=True, text=True,
        )  # fmt: skip
        said = out.stdout.splitlines()
        mixer = said[said.index("--dataset_mixer_list") + 1 : said.index("--dataset_mixer_list_splits")]
        assert mixer[1::2] == amounts
        assert all(name.endswith(".jsonl") for name in mixer[::2])


def test_every_target_writes_a_howto(here: Path) -> None:
    handover = make_handover()
    for to in TARGETS:
        if to == "mds":
            continue  # above, beside the stand-in
        export_plan(handover, to, here / to)
        text = (here / to / "HOWTO.md").read_text(encoding="utf-8")
        assert "数学: 題 (易)" in text
        assert "left out" not in text.split("## Tasks")[1]
