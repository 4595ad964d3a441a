"""Files and folders that are written whole or not at all, those that a killed process left, and hashes of files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from taskpgm import files
from taskpgm.errors import UserError
from taskpgm.export.write import _replaced
from taskpgm.files import KEY_FILE, SCRATCH, atomic_file, atomic_folder, files_below
from taskpgm.pipeline.directory import RunDirectory


def folder_of(target, text):
    """A folder with a key and one file."""
    with atomic_folder(target, {}) as folder:
        (folder / "weights").write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


KILLED = """
import os, sys
from pathlib import Path
from taskpgm.files import atomic_folder
moves, replace = [], Path.replace
def counted(self, target):
    moves.append(self)
    return os._exit(9) if len(moves) == int(sys.argv[2]) else replace(self, target)
Path.replace = counted
with atomic_folder(Path(sys.argv[1]), {}) as folder:
    (folder / "weights").write_text("new")
"""


@pytest.mark.parametrize(("move", "left"), [(1, "old"), (2, "new")])
def test_killed_before_either_move_of_a_folder_none_is_lost(move, left, tmp_path):
    target = tmp_path / "adapters" / "a-b"
    folder_of(target, "old")
    assert subprocess.run([sys.executable, "-c", KILLED, str(target), str(move)]).returncode == 9
    with RunDirectory(tmp_path):
        assert (target / "weights").read_text() == left
        assert (target / KEY_FILE).exists()
        assert names(target.parent) == ["a-b"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    folder_of(tmp_path / "pool", "old")
    replace = type(tmp_path).replace

    def full(self, target):
        if (self / "weights").read_text() == "new":
            raise OSError("No space left on device")
        return replace(self, target)

    monkeypatch.setattr(type(tmp_path), "replace", full)
    with pytest.raises(OSError, match="No space left"):
        folder_of(tmp_path / "pool", "new")
    assert (tmp_path / "pool" / "weights").read_text() == "old"
    assert names(tmp_path) == ["pool"]


def test_a_folder_whose_key_cannot_be_written_is_not_finished(tmp_path, monkeypatch):
    def full(path):
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "_flush", full)
    monkeypatch.setattr(files.shutil, "rmtree", lambda *_, **__: None)  # as if killed then
    with pytest.raises(OSError, match="No space left"):
        folder_of(tmp_path / "pool", "new")
    monkeypatch.undo()
    with RunDirectory(tmp_path):
        assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize("running", [True, False])
def test_what_another_process_writes_below_is_left_and_what_a_killed_one_left_goes(running, tmp_path):
    with RunDirectory(tmp_path / "run") as directory:
        (directory / "blocks").mkdir()
    old = tmp_path / "run" / "blocks" / f"{SCRATCH}1-x"
    own = tmp_path / "run" / ".tmp-of-the-user"
    for path in (old, own):
        path.write_text("x")
    training = RunDirectory(tmp_path / "run" / "trained")
    at_work = training / f"{SCRATCH}2"
    at_work.mkdir()
    if not running:
        training.close()
    RunDirectory(tmp_path / "run").close()
    assert (old.exists(), own.exists(), at_work.exists()) == (False, True, running)
    training.close()


def test_an_export_into_a_run_directory_goes_on_when_the_run_is_opened(tmp_path):
    with _replaced(tmp_path / "exported") as scratch:
        RunDirectory(tmp_path).close()
        (scratch / "rows").write_text("x")
    assert names(tmp_path / "exported") == ["rows"]


KILLED_EXPORT = """
import os, sys
from pathlib import Path
from taskpgm.export.write import _replaced
replace = Path.replace
Path.replace = lambda self, target: os._exit(9) if self.name == sys.argv[2] else replace(self, target)
with _replaced(Path(sys.argv[1])) as folder:
    (folder / "rows").write_text("new")
"""


@pytest.mark.parametrize("before", ["exported", "new"])
def test_what_a_killed_export_left_goes_with_the_next_one(before, tmp_path):
    out = tmp_path / "exported"
    with _replaced(out) as scratch:
        (scratch / "rows").write_text("old")
    assert subprocess.run([sys.executable, "-c", KILLED_EXPORT, str(out), before]).returncode == 9
    assert len([name for name in names(tmp_path) if name.startswith(".taskpgm-")]) == 1
    with _replaced(out) as first, _replaced(out) as other:  # one at work is left alone
        (first / "rows").write_text("first")
        (other / "rows").write_text("other")
    assert (names(tmp_path), names(out), (out / "rows").read_text()) == (["exported"], ["rows"], "first")


def test_an_export_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    with _replaced(tmp_path / "exported") as scratch:
        (scratch / "rows").write_text("old")
    replace = type(tmp_path).replace

    def full(self, target):
        if (self / "rows").read_text() == "new":
            raise OSError("No space left on device")
        return replace(self, target)

    monkeypatch.setattr(type(tmp_path), "replace", full)
    with pytest.raises(OSError, match="No space left"), _replaced(tmp_path / "exported") as scratch:
        (scratch / "rows").write_text("new")
    assert (tmp_path / "exported" / "rows").read_text() == "old"
    assert names(tmp_path) == ["exported"]


def test_processes_of_one_number_write_to_files_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in two containers that share a folder
    target = tmp_path / "scores.npz"
    with atomic_file(target) as one:
        one.write_text("one")
        with atomic_file(target) as other:
            other.write_text("other")
        assert target.read_text() == "other"
    assert target.read_text() == "one"
    assert names(tmp_path) == ["scores.npz"]


def test_a_remembered_hash_is_that_of_the_content(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"x" * 5000)
    plain = files.file_digest(path)
    monkeypatch.setattr(files, "LARGE", 1)
    assert [files.file_digest(path), files.file_digest(path)] == [plain, plain]
    monkeypatch.setenv("TASKPGM_CACHE", "/proc/nowhere")  # no place to remember it
    assert files.file_digest(path) == plain


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_a_file_of_the_same_size_and_time_is_another_one(how, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGE", 1)
    path, other = tmp_path / "model.safetensors", tmp_path / "other"
    path.write_bytes(b"x" * 5000)
    before, then = files.file_digest(path), path.stat().st_mtime_ns
    (path if how == "written" else other).write_bytes(b"y" * 5000)
    if how == "replaced":
        other.replace(path)
    os.utime(path, ns=(then, then))
    assert files.file_digest(path) != before


def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path, monkeypatch):
    """Its files would be missing from what is trained on, or from a hash."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.jsonl").write_text("{}\n")
    look = Path.iterdir

    def closed(folder):
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return look(folder)

    monkeypatch.setattr(Path, "iterdir", closed)  # root may look into every folder
    with pytest.raises(UserError, match=r"closed may not be looked into \(Permission denied\)"):
        files_below(tmp_path)
    assert files_below(tmp_path, hidden=(".", "cl")) == [tmp_path / "a.jsonl"]
