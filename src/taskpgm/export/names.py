"""Names of tasks as names of files."""

import re
import unicodedata
from collections.abc import Sequence

LONGEST = 80  # characters; with an ending and in UTF-8 that stays below the 255 bytes of most file systems
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}  # on Windows


def file_stems(names: Sequence[str]) -> dict[str, str]:
    """A file name without ending for each task, all different even where case does not count.

    Letters and digits of every script stay, as do `_` and `-` inside; all else, which trainers may read as syntax
    (spaces, `/`, `#`, `:`, `,`, dots), becomes `_`.
    """
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        stem = first = _plain(name)
        number = 2
        while stem.casefold() in taken:
            stem, number = f"{first}_{number}", number + 1
        taken.add(stem.casefold())
        stems[name] = stem
    return stems


def _plain(name: str) -> str:
    text = unicodedata.normalize("NFC", name)
    kept = "".join(c if c.isalnum() or unicodedata.category(c).startswith("M") or c in "_-" else "_" for c in text)
    stem = re.sub(r"_+", "_", kept).strip("_-")
    while len(stem.encode()) > 2 * LONGEST:
        stem = stem[:-1]
    stem = stem[:LONGEST]
    return f"task_{stem}".rstrip("_") if not stem or stem.casefold() in RESERVED else stem
