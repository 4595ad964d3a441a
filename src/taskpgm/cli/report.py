"""The page of a run from the command line: on demand, and at the end of what makes or measures a mixture."""

import importlib.util
from pathlib import Path

from taskpgm.errors import UserError

NEEDED = ("plotly", "jinja2", "networkx")
INSTALL = "pip install 'taskpgm[report]'"


def check_installed() -> None:
    """UserError naming what the page needs and is not installed."""
    missing = _missing()
    if missing:
        raise UserError(f"The report needs {', '.join(missing)}; {INSTALL}.")


def report_line(out: Path) -> str:
    """Where the run's page lies, after writing it; or why there is none. Nothing is raised: the run is finished."""
    if missing := _missing():
        return f"no report: it needs {', '.join(missing)} ({INSTALL}, then `taskpgm report {out}`)"
    from taskpgm.report.build import write_report

    try:
        return str(write_report(out))
    except Exception as error:  # whatever goes wrong in drawing, the run's own files are complete
        sentence = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return f"no report: {sentence} (all else is finished; `taskpgm report {out}` tries again)"


def _missing() -> list[str]:
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]
