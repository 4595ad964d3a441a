"""Files that are written whole or not at all, and hashes of what files hold."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import filelock

from taskpgm.errors import UserError, first_line

Made = TypeVar("Made")
Parts = Mapping[str, str]
KEY_FILE = "key.json"
SCRATCH = ".taskpgm-tmp-"  # what files and folders are called until they are whole
LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}  # in some readers' eyes
LARGE = 256 << 20  # bytes of a file from which on its hash is remembered, to save seconds


def cache_folder() -> Path:
    """Where things are kept between runs: TASKPGM_CACHE, or ~/.cache/taskpgm."""
    return Path(os.environ.get("TASKPGM_CACHE") or Path.home() / ".cache" / "taskpgm")


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to; it takes target's place when the block ends well, and vanishes otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f"{SCRATCH}{secrets.token_hex(4)}-{target.name}")
    try:
        yield scratch
        _flush(scratch)
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path, parts: Parts) -> Iterator[Path]:
    """The same for a folder, which gets `key.json` with its parts as its last file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, suffix=f"-{target.name}", dir=target.parent))
    scratch.chmod(0o755)
    try:
        yield scratch
        for file in scratch.iterdir():
            _flush(file)
        (scratch / KEY_FILE).write_text(json.dumps(dict(parts), indent=1) + "\n")
        _flush(scratch / KEY_FILE)
        replace_folder(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def replace_folder(new: Path, target: Path, old: Path | None = None) -> None:
    """Have a folder take the place of another, which stays if that fails; see `end_scratch` for a kill in between.

    Args:
        old: what the other one is called meanwhile; a name beside `target` if left out.
    """
    old = old or target.with_name(SCRATCH + secrets.token_hex(4))
    try:
        if target.exists():
            target.replace(old)
        new.replace(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def end_scratch(scratch: Path) -> None:
    """Give a folder that a killed process had finished its name; remove what else it left."""
    target = scratch.parent / scratch.name.removeprefix(SCRATCH).partition("-")[2]  # of an old one: the parent
    if (scratch / KEY_FILE).is_file() and not target.exists():
        scratch.replace(target)
    elif scratch.is_dir():
        shutil.rmtree(scratch, ignore_errors=True)
    else:
        scratch.unlink(missing_ok=True)


def is_held(lock: Path) -> bool:
    """Whether another process works on the folder of the lock."""
    try:
        with filelock.FileLock(lock, timeout=0):
            return False
    except filelock.Timeout:
        return True


def loaded(load: Callable[..., Made], path: Path, *more: Any, by: str = "run") -> Made:
    """What `load` makes of a file or folder of a run.

    Args:
        by: the command that makes it.

    Raises:
        UserError: it is damaged; files are written whole or not at all, so something else did that.
    """
    try:
        return load(path, *more)
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, EOFError, FileNotFoundError, zipfile.BadZipFile, zlib.error) as error:
        raise damaged(path, first_line(error) or type(error).__name__, by) from error


def damaged(path: Path, why: str, by: str = "run") -> UserError:
    """What is to be done about a file or folder of a run that cannot be used."""
    return UserError(
        f"{path} is damaged ({why}); remove it, then `taskpgm {by}` makes what is missing again and keeps the rest."
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is something else.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def digest(value: Any) -> str:
    """Hash of plain data (as JSON with sorted keys)."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def path_digest(path: Path) -> str:
    """Hash of a file, or of a folder's files and their names, but for hidden ones."""
    if not path.is_dir():
        return file_digest(path)
    return digest({str(p.relative_to(path)): file_digest(p) for p in files_below(path)})


def files_below(folder: Path, hidden: tuple[str, ...] = (".",), lost: bool = False) -> list[Path]:
    """Files in the folder and below it, those behind links to folders too, but for hidden ones.

    A folder that can be reached in two ways is looked at once, without a link if that is possible; a link that leads
    to the folder itself or to one above it is not followed.

    Args:
        hidden: what the names of hidden folders begin with; those of hidden files, with a dot.
        lost: with links that lead nowhere.

    Raises:
        UserError: a folder may not be looked into.
    """
    found, seen = [], set(folder.resolve().parents)
    own, linked = [folder], list[Path]()
    while own or linked:
        here = own.pop() if own else linked.pop(0)
        if here.resolve() in seen:
            continue
        seen.add(here.resolve())
        for path in _entries(here):
            if path.is_dir() and not path.name.startswith(hidden):
                (linked if path.is_symlink() else own).append(path)
            elif (path.is_file() or (lost and is_lost(path))) and not path.name.startswith("."):
                found.append(path)
    return sorted(found)


def is_lost(path: Path) -> bool:
    """Whether the path is a link that leads nowhere."""
    return path.is_symlink() and not path.exists()


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, in order."""
    try:
        return sorted(folder.iterdir())
    except PermissionError as error:
        raise UserError(
            f"The folder {folder} may not be looked into ({error.strerror}), so what it holds would be missing; let "
            "it be read, or name what is meant by a pattern."
        ) from error


def files_digest(paths: Sequence[Path]) -> str:
    """Hash of what files hold, in their order; of one file, its own."""
    found = [file_digest(path) for path in paths]
    return found[0] if len(found) == 1 else digest(found)


def file_digest(path: Path) -> str:
    """Hash of a file's size and content, the same wherever it lies.

    That of a file of 256 MiB or more is remembered in the cache until the file is written to or replaced.
    """
    stat = path.stat()
    if stat.st_size < LARGE:
        return _content_digest(path, stat.st_size)
    state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    known = cache_folder() / "digests" / digest([str(path.resolve()), *state])
    with contextlib.suppress(OSError):
        return known.read_text(encoding="ascii")
    found = _content_digest(path, stat.st_size)
    with contextlib.suppress(OSError), atomic_file(known) as scratch:  # a cache that cannot be written
        scratch.write_text(found, encoding="ascii")
    return found


def _content_digest(path: Path, size: int) -> str:
    found = hashlib.blake2b(str(size).encode(), digest_size=12)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One object a line in UTF-8; a line of the file is a line to every reader. Not atomic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).translate(LINE_ENDS) + "\n")


def _flush(path: Path) -> None:
    """Have the file on the disk before it is renamed."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, data: Any) -> None:
    """Data as JSON in UTF-8, in one piece or not at all."""
    with atomic_file(path) as scratch:
        scratch.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
