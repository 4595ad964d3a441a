"""The wheel, alone in an empty environment, solves a matrix: the core needs no torch."""

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def call(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)


def succeed(*command: object) -> str:
    done = call(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git has or would take: leftovers of other builds could hide what is missing."""
    folder = tmp_path_factory.mktemp("wheel")
    source, kept = folder / "source", ("src", "pyproject.toml", "README.md", "LICENSE")
    for name in succeed("git", "-C", ROOT, "ls-files", "-co", "--exclude-standard", *kept).splitlines():
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    succeed(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, source)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that has the wheel and what it asks for, nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    succeed(python, "-m", "pip", "install", "--quiet", "--no-compile", "--constraint", ROOT / "constraints.txt", wheel)
    return python


def test_the_wheel_holds_every_module_and_says_that_it_is_typed(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src/taskpgm").rglob("*.py")}
    assert modules <= held
    assert "taskpgm/py.typed" in held
    assert "taskpgm/report/plotly-cartesian.min.js" in held


def test_the_wheel_alone_solves_and_selects_without_torch(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "S.csv").write_text("a,b,c\n1,0.9,0.1\n0.9,1,0.1\n0.1,0.1,1\n")
    taskpgm = python.with_name("taskpgm")
    assert call(python, "-c", "import torch").returncode != 0
    place = succeed(python, "-c", "import taskpgm; print(taskpgm.__file__)")
    assert Path(place).is_relative_to(python.parents[1])
    succeed(taskpgm, "solve", "--affinity", tmp_path / "S.csv", "--t", "0", "--out", tmp_path / "solved")
    solved = json.loads((tmp_path / "solved/mixture.json").read_text())["tasks"]
    # The minimum-variance portfolio: S p is constant, so 1.9a + 0.1c = 0.2a + c.
    assert [task["weight"] for task in solved] == pytest.approx([0.9 / 3.5, 0.9 / 3.5, 1.7 / 3.5])
    succeed(taskpgm, "select", "--affinity", tmp_path / "S.csv", "--t", "0", "-k", "2", "--out", tmp_path / "two")
    chosen = json.loads((tmp_path / "two/mixture.json").read_text())["tasks"]
    assert [task["weight"] > 0 for task in chosen].count(True) == 2


def test_what_needs_torch_says_what_to_install(python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "completion": "c"}\n' * 3)
    (tmp_path / "mix.yaml").write_text("tasks: [{name: a, path: a.jsonl}]\nbudget: {examples: 2}\n")
    done = call(python.with_name("taskpgm"), "check", tmp_path / "mix.yaml")
    assert done.returncode == 1
    assert "pip install 'taskpgm[lm]'" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
