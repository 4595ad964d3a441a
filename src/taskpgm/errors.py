"""What a user can put right: one sentence with the value, the reason and the remedy."""

import difflib
from collections.abc import Iterable

NO_RAY = "workers.backend ray needs Ray: pip install 'taskpgm[ray]'."


class UserError(ValueError):
    """Wrong input, setting or environment; the command line prints it and exits with 2."""


def first_line(error: BaseException) -> str:
    """First line of another library's message, to be put inside one of ours."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")[:200]


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """The end of a sentence that names the known key nearest to `key`; empty if none is near."""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
