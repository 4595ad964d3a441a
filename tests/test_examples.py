"""The examples run as they stand."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import taskpgm

EXAMPLES = Path(__file__).parents[1] / "examples"
SOURCE = Path(taskpgm.__file__).parents[1]


def output(script: str, *arguments: str, **environment: str) -> str:
    """What an example prints, run in a process of its own."""
    found = {**os.environ, "PYTHONPATH": str(SOURCE), **environment}
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=found, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shares(line: str) -> dict[str, float]:
    """Shares by task, in percent, of a line that an example prints."""
    pairs = [part.rsplit(" ", 1) for part in line.partition(": ")[2].split(", ")]
    return {task: float(share.rstrip("%")) for task, share in pairs}


def test_the_optimiser_on_a_matrix_needs_no_torch_and_finds_the_optimum(tmp_path: Path) -> None:
    for name in ("torch", "transformers"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} was imported')\n")
    lines = output("optimiser_on_a_matrix.py", PYTHONPATH=f"{tmp_path}{os.pathsep}{SOURCE}").splitlines()
    # Inside the simplex the optimum is w₀ + t(w − w₀), w uniform and w₀ the minimum-variance portfolio.
    S = np.array([[1.0, 0.9, 0.4, 0.05], [0.9, 1.0, 0.4, 0.05], [0.4, 0.4, 1.0, 0.1], [0.05, 0.05, 0.1, 1.0]])
    least = np.linalg.solve(S, np.ones(4))
    least /= least.sum()
    assert list(shares(lines[0]).values()) == pytest.approx(100 * (least + 0.5 * (0.25 - least)), abs=0.06)
    assert shares(lines[1])["poems"] == pytest.approx(40)
    assert [share > 0 for share in shares(lines[3]).values()].count(True) == 2
    assert lines[-1].endswith("other code agrees: True")


def test_from_files_to_a_trained_model(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("trl")
    from support.models import make_model

    cache = {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    model, out = make_model(tmp_path / "model"), tmp_path / "run"
    options = ["--model", str(model), "--out", str(out), "--steps", "2"]
    lines = output("from_files_to_trainer.py", *options, **cache).splitlines()
    written = Counter(json.loads(line)["task"] for line in (out / "train.jsonl").read_text().splitlines())
    assert written.total() == 48
    printed = [line.split(": ") for line in lines if "±" in line]
    found = {task: float(rest.split("%")[0]) for task, rest in printed}
    assert set(found) == {"sums", "larger", "backwards"}
    for task, share in found.items():
        assert written[task] == pytest.approx(48 * share / 100, abs=1)
    assert any("for 2 steps: loss" in line for line in lines)
    assert (out / "trained").is_dir()


def test_the_notebook_on_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    for name in ("plotly", "pandas", "ipykernel"):
        pytest.importorskip(name)
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    from support.finished import finished_run

    folder = finished_run(tmp_path / "run", n=4, targets=2)
    monkeypatch.setenv("RUN", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    notebook = nbformat.read(EXAMPLES / "finished_run.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [cell.outputs[0].data for cell in notebook.cells if cell.cell_type == "code"]
    assert ["application/vnd.plotly.v1+json" in data for data in outputs] == [False, *[True] * 4, False, False]
    first = json.loads((folder / "mixture.json").read_text())["tasks"][0]
    assert f"{first['weight']:.6f}" in outputs[0]["text/plain"]
