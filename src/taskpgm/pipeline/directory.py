"""The run directory: one process at a time, atomic writes, keys that say what a piece depends on, manifest last.

A piece (an adapter folder, a file) carries the parts of its key: a name for each thing that it depends on and that
thing's hash. A piece whose parts equal the wanted ones is done; otherwise the differing names say why it is not.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from taskpgm.config import Config
from taskpgm.errors import UserError
from taskpgm.files import KEY_FILE, SCRATCH, Parts, atomic_file, end_scratch, is_held, loaded, read_json


class RunDirectory:
    """A run's folder, held by this process from creation until `close` (or the process's end, however it comes)."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(self.path / ".lock")
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f"Another process is working on {self.path}; wait for it, stop it, or give another --out."
            ) from None
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{self.path} is a file; --out takes a folder.") from error
        in_use = [lock.parent for lock in self.path.glob("*/**/.lock") if is_held(lock)]  # `taskpgm train`, say
        for scratch in self.path.glob(f"**/{SCRATCH}*"):  # left by a process that was killed
            if not any(scratch.is_relative_to(folder) for folder in in_use):
                end_scratch(scratch)

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes in; what this one made and nothing was written to is taken away again."""
        with contextlib.suppress(OSError):  # not empty
            if self._made and {one.name for one in self.path.iterdir()} <= {".lock"}:
                (self.path / ".lock").unlink(missing_ok=True)
                for folder in self._made:
                    folder.rmdir()
        self._lock.release()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def manifest(self) -> dict[str, Any]:
        """What `write_manifest` wrote last; empty in a new directory."""
        path = self.path / "manifest.json"
        return loaded(read_json, path) if path.exists() else {}

    def check_no_run(self, name: str) -> None:
        """Look before `name` is written of something that is no run's.

        Raises:
            UserError: a run's directory, which has a file or a folder of that name of its own.
        """
        if self.manifest():
            raise UserError(
                f"{self.path} is the directory of a run, whose own {name} would be lost; give another --out, or the "
                "run's YAML file."
            )

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace the manifest."""
        with atomic_file(self.path / "manifest.json") as path:
            path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def kept_work(path: Path, config: Config) -> str:
    """What a run directory holds of an interrupted run, in a sentence."""
    probes, of = len(list(path.glob(f"adapters*/*/{KEY_FILE}"))), len(config.tasks) * config.probes.seeds
    blocks, sets = len(list(path.glob("blocks/*.npz"))), len(config.tasks) + len(config.targets)
    trainings = len(list(path.glob("compare/*.json")))
    kept = ["the rows of all sets"] if (path / "pool" / KEY_FILE).exists() else []
    kept += ["the warm start"] if any(path.glob(f"warm*/{KEY_FILE}")) else []
    kept += [f"{min(probes, of)} of {of} probes"] if probes else []
    kept += [f"scores on {min(blocks, sets)} of {sets} sets"] if blocks else []
    kept += [f"{trainings} measured trainings"] if trainings else []
    if not kept:
        return f"Nothing was finished in {path} yet."
    return f"Kept in {path}: {', '.join(kept)}. The same command goes on from there."


def stale_because(folder: Path, wanted: Parts) -> str | None:
    """Why a keyed folder cannot be used: 'missing' or the names of the parts that differ; None if it can."""
    path = folder / KEY_FILE
    return differing(loaded(read_json, path), wanted) if path.is_file() else "missing"


def differing(found: Parts, wanted: Parts) -> str | None:
    """Names of the parts that differ, joined; None if none does."""
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    more = f" and {len(names) - 3} more" if len(names) > 4 else ""
    return ", ".join(names[: 3 if more else 4]) + more or None
