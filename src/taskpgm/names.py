"""Names of tasks and targets: what folders may be called on every file system."""

import unicodedata
from collections.abc import Sequence

NAME_BYTES = 200  # of a name: file systems take 255 for a file, and ours have something before and behind it


def bad_in_name(text: str) -> str:
    """The first part of a text for which it cannot be a name; empty if it can.

    Names become folder names (adapters/<task>/): anything that a file system takes, and that can be seen.
    """
    unseen = (c for c in text if c in "/\\" or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp"))
    edges = (c for c in (text[:1], text[-1:]) if c.isspace())
    begins = text[:1] if text[:1] in (".", "~") else ""
    return next(unseen, "") or next(edges, "") or begins


def good_name(text: str) -> str:
    """The text, which can be a name of a task; a ValueError with the reason if it cannot."""
    if text and not bad_in_name(text) and len(text.encode()) <= NAME_BYTES:
        return text
    found = bad_in_name(text)
    why = f"because of {found!r}" if found else f"it has {len(text.encode())} bytes" if text else "it is empty"
    raise ValueError(
        f"{text!r} cannot be a name ({why}); a name may have letters of any script, digits, spaces and signs, but no "
        f"/, \\ or control character, no space at its ends and no . or ~ in front, and 1 to {NAME_BYTES} bytes"
    )


def name_key(name: str) -> str:
    """What names that some file systems take for the same one have in common."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def check_apart(names: Sequence[str]) -> None:
    """A ValueError for two names that are one, here or on some file system."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name_key(name), name)
        if other != name:
            raise ValueError(f"names {other!r} and {name!r} are one and the same to some file systems; rename one")
        if names.count(name) > 1:
            raise ValueError(f"name {name!r} is given twice; every task and target needs a name of its own")
