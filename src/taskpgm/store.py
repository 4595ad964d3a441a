"""The run directory: one process at a time, atomic writes, keys that say what a piece depends on, manifest last.

A piece (an adapter folder, a file) carries the parts of its key: a name for each thing that it depends on and that
thing's hash. A piece whose parts equal the wanted ones is done; otherwise the differing names say why it is not.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from taskpgm.errors import UserError

Parts = Mapping[str, str]
KEY_FILE = "key.json"
WHOLE = 256 << 20  # larger files are hashed by size, time and their two ends


class RunDirectory:
    """A run's folder, held by this process from creation until `close` (or the process's end, however it comes)."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
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
        for scratch in self.path.glob("**/.tmp-*"):  # left by a process that was killed
            shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes in."""
        self._lock.release()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def manifest(self) -> dict[str, Any]:
        """What `write_manifest` wrote last; empty in a new directory."""
        path = self.path / "manifest.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace the manifest."""
        with atomic_file(self.path / "manifest.json") as path:
            path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to; it takes target's place when the block ends well, and vanishes otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        yield scratch
        _flush(scratch)
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path, parts: Parts) -> Iterator[Path]:
    """The same for a folder, which gets `key.json` with its parts."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".tmp-", dir=target.parent))
    scratch.chmod(0o755)
    try:
        yield scratch
        (scratch / KEY_FILE).write_text(json.dumps(dict(parts), indent=1) + "\n")
        for file in scratch.iterdir():
            _flush(file)
        if target.exists():
            shutil.rmtree(target)
        scratch.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def stale_because(folder: Path, wanted: Parts) -> str | None:
    """Why a keyed folder cannot be used: 'missing' or the names of the parts that differ; None where it can."""
    path = folder / KEY_FILE
    return differing(json.loads(path.read_text()), wanted) if path.is_file() else "missing"


def differing(found: Parts, wanted: Parts) -> str | None:
    """Names of the parts that differ, joined; None where none does."""
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    more = f" and {len(names) - 3} more" if len(names) > 4 else ""
    return ", ".join(names[: 3 if more else 4]) + more or None


def digest(value: Any) -> str:
    """Hash of plain data (as JSON with sorted keys)."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def path_digest(path: Path) -> str:
    """Hash of a file, or of a folder's files and their names, but for hidden ones."""
    if not path.is_dir():
        return file_digest(path)
    files = {p.relative_to(path): p for p in sorted(path.rglob("*")) if p.is_file()}
    seen = {name: p for name, p in files.items() if not any(part.startswith(".") for part in name.parts)}
    return digest({str(name): file_digest(p) for name, p in seen.items()})


def files_digest(paths: Sequence[Path]) -> str:
    """Hash of what files hold, in their order; of one file, its own."""
    found = [file_digest(path) for path in paths]
    return found[0] if len(found) == 1 else digest(found)


def file_digest(path: Path) -> str:
    """Hash of a file's content; of size, time, first and last megabyte where it is larger than 256 MiB."""
    stat = path.stat()
    found = hashlib.blake2b(str(stat.st_size).encode(), digest_size=12)
    with path.open("rb") as file:
        if stat.st_size <= WHOLE:
            while chunk := file.read(1 << 20):
                found.update(chunk)
        else:
            found.update(str(stat.st_mtime_ns).encode() + file.read(1 << 20))
            file.seek(-(1 << 20), os.SEEK_END)
            found.update(file.read())
    return found.hexdigest()


def _flush(path: Path) -> None:
    """Have the file on the disk before it is renamed."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
