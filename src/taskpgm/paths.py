"""Paths as settings give them: a home folder, a pattern."""

import glob
import os
from pathlib import Path

from taskpgm.errors import UserError


def local_path(path: str) -> Path:
    """The path, with a home folder for the ~ that it begins with; ~.jsonl is a file if nobody has that home.

    Raises:
        UserError: no file can be called that.
    """
    if any(len(part.encode(errors="replace")) > 255 for part in path.split("/")) or "\0" in path:
        raise UserError(f"The path {path[:60]!r}… has a name of more than 255 bytes, or a null byte; check it.")
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib's raises for ~.jsonl)


def literal_folders(pattern: Path, here: Path) -> Path:
    """The pattern, seen from `here`, with the signs of leading folders that are there under just that name escaped."""
    parts = pattern.parts
    known = next((i for i in range(1, len(parts)) if not here.joinpath(*parts[:i]).is_dir()), len(parts)) - 1
    return Path(*map(glob.escape, parts[:known]), *parts[known:])


def is_pattern(path: str) -> bool:
    """Whether a path stands for whatever matches it."""
    return any(sign in path for sign in "*?[")
