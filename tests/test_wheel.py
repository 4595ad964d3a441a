"""The wheel, installed alone into an empty environment, and the examples."""

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_alone_solves_a_matrix_without_torch(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = tmp_path / "source"  # a build leaves files behind
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("taskpgm-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "taskpgm").rglob("*.py")}
    assert sources | {"taskpgm/py.typed"} <= packed
    venv.create(tmp_path / "alone", with_pip=False)
    python = tmp_path / "alone" / "bin" / "python"
    install = [*pip, "--python", str(python), "install", "--no-compile", "--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*install, str(wheel)], check=True)
    (tmp_path / "S.csv").write_text(",a,b,c\na,1,0.9,0.1\nb,0.9,1,0.1\nc,0.1,0.1,1\n")
    command = [str(python), "-m", "taskpgm", "solve", "--affinity", "S.csv", "--t", "0.5", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "certified: gap" in done.stdout
    said = subprocess.run([str(python), "-c", "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in said.stderr


def test_the_example_of_the_optimiser_runs() -> None:
    example = ROOT / "examples" / "optimiser_on_a_matrix.py"
    done = subprocess.run([sys.executable, str(example)], check=True, capture_output=True, text=True)
    assert "certified" in done.stdout
    assert "the best two" in done.stdout
