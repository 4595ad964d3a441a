"""What a user can put right: one sentence with the value, the reason and the remedy."""

NO_RAY = "workers.backend ray needs Ray: pip install 'taskpgm[ray]'."


class UserError(ValueError):
    """Wrong input, setting or environment; the command line prints it and exits with 2."""


def first_line(error: BaseException) -> str:
    """First line of another library's message, to be put inside one of ours."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")[:200]
