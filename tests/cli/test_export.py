"""`docs/hand-over.md`, run as it stands on a finished run; and the command's errors."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.runs import TASKS, experiment

from taskpgm import export_run, load_config, load_run, run
from taskpgm.cli.main import main
from taskpgm.export.targets import TARGETS

PAGE = (Path(__file__).parents[2] / "docs/hand-over.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def place(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/first."""
    folder = tmp_path_factory.mktemp("place")
    run(load_config(experiment(folder, model_folders["llama"])), folder / "runs/first")
    return folder


@pytest.fixture
def call(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    monkeypatch.chdir(place)

    def called(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["taskpgm", *arguments])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, said.out + said.err

    return called


def test_the_page_as_it_stands(
    place: Path, call: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(place / "cache"))
    seen = set()
    for line in re.findall(r"^    taskpgm (export .*)$", PAGE, re.M):
        code, said = call(*line.split())
        to = line.partition("--to ")[2].split(" ")[0]
        if to == "mds":  # its package cannot be loaded beside this torch: tests/export has it with a stand-in
            assert (code, "mosaicml-streaming" in said) == (2, True)
        else:
            assert code == 0, said
        seen.add(to)
    assert seen - {""} == set(TARGETS)
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(snippets) == 3
    scope: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet, scope)
    assert len(scope["dataset"]) == scope["table"].num_rows == 50  # type: ignore[arg-type, attr-defined]
    promised = re.search(r'export\.sees  # "(.*)"', PAGE)
    assert promised is not None
    assert scope["export"].sees == promised[1]  # type: ignore[attr-defined]


def test_the_table_of_the_page_is_the_code(call: Callable[..., tuple[int, str]]) -> None:
    rows = re.findall(r"^\| (`[^|]+) \| (\w*) \| (\w*) \|", PAGE, re.M)
    told = {to: row[1:] for row in rows for to in re.findall(r"`([\w-]+)`", row[0])}
    for to, target in TARGETS.items():
        if to != "weights":
            carried = ("yes" if part in target.carries else "no" for part in ("tool calls", "thoughts"))
            assert told[to] == tuple(carried), to


def test_errors_are_sentences(place: Path, call: Callable[..., tuple[int, str]]) -> None:
    for arguments, hint in (
        (("runs/first", "--to", "axolotll", "--out", "e"), "did you mean 'axolotl'"),
        (("runs/first", "--to", "trl"), "Give a run directory, --to and --out"),
        (("runs/none", "--to", "trl", "--out", "e"), "no run directory"),
        (("runs/first", "--to", "trl", "--by", "half", "--out", "e"), "rows, counts or shares"),
        (("runs/first", "--to", "trl", "--out", "runs"), "is there already"),
        (("runs/first", "--to", "trl", "--out", "runs", "--force"), "no earlier export"),
    ):
        code, said = call("export", *arguments)
        assert code == 2, said
        assert hint in " ".join(said.split())
        assert "Traceback" not in said
    assert not (place / "e").exists()
    assert (place / "runs/first/train.jsonl").exists()


def test_a_selection_is_handed_over_by_its_folder(place: Path, call: Callable[..., tuple[int, str]]) -> None:
    assert call("select", "mix.yaml", "--out", "runs/first", "-k", "2")[0] == 0
    code, said = call("export", "runs/first/selections/k2", "--to", "weights", "--out", "exports/k2")
    assert code == 0, said
    found = json.loads((place / "exports/k2/weights.json").read_text())
    chosen = json.loads((place / "runs/first/selections/k2/mixture.json").read_text())
    assert {task["task"]: task["count"] for task in found["tasks"]} == {t["name"]: t["count"] for t in chosen["tasks"]}
    assert sum(task["count"] > 0 for task in found["tasks"]) == 2
    code, said = call("export", "runs/first/selections/k1", "--to", "weights", "--out", "exports/k1")
    assert code == 2
    assert "no mixture.json" in said


def test_the_plain_export_has_the_format_of_the_run(
    place: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    root = shutil.copytree(place, tmp_path / "place")
    config = experiment(root, model_folders["llama"], export={"format": "prompt_completion"})
    run(load_config(config), root / "runs/first")
    export_run(root / "runs/first", "jsonl", tmp_path / "out")
    own = (root / "runs/first/train.jsonl").read_bytes()
    assert (tmp_path / "out/train.jsonl").read_bytes() == own != (place / "runs/first/train.jsonl").read_bytes()
    assert json.loads(own.splitlines()[0]).keys() == {"prompt", "completion", "task"}


def test_what_refine_chose_is_handed_over_by_its_folder(
    place: Path, call: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "mine.csv").write_text("sums,sky,words,loss\n1,1,1,5\n2,1,0,7\n0,1,2,3\n2,0,1,6.5\n")
    code, said = call("refine", "mix.yaml", "--out", "runs/first", "--from", "mine.csv")
    assert code == 0, said
    monkeypatch.chdir(place / "runs/first/refined")
    code, said = call("export", ".", "--to", "weights", "--out", "../../../exports/refined")
    assert code == 0, said
    found = json.loads((place / "exports/refined/weights.json").read_text())
    rows = [json.loads(row)["task"] for row in (place / "runs/first/refined/train.jsonl").read_text().splitlines()]
    assert {task["task"]: task["count"] for task in found["tasks"]} == {name: rows.count(name) for name in TASKS}
    assert load_run(place / "runs/first").mixture.shares != load_run(place / "runs/first/refined").mixture.shares


def test_the_list_names_every_target(call: Callable[..., tuple[int, str]]) -> None:
    code, said = call("export", "--list")
    assert code == 0
    assert all(to in said for to in TARGETS)


def test_a_run_that_has_not_come_so_far(place: Path, model_folders: dict[str, Path], tmp_path: Path) -> None:
    from taskpgm import UserError

    (tmp_path / "half").mkdir()
    (tmp_path / "half/manifest.json").write_text((place / "runs/first/manifest.json").read_text())
    with pytest.raises(UserError, match="not come so far"):
        export_run(tmp_path / "half", "trl", tmp_path / "out")
    assert not (tmp_path / "out").exists()
