"""Figures of a finished run, each a Plotly figure for notebooks: `from taskpgm import load_run, plot`."""

from typing import Any

from taskpgm.pipeline.finished import FinishedDirectory
from taskpgm.report import gains as _gains
from taskpgm.report import relations as _relations
from taskpgm.report import shares as _shares
from taskpgm.report.field import Field
from taskpgm.report.material import Material


def shares(run: FinishedDirectory) -> Any:
    """Figure of the shares with their 95 % intervals, beside uniform and size-proportional ones."""
    return _shares.figure(Material(run))


def graph(run: FinishedDirectory) -> Any:
    """Figure of the random field: tasks sized by share, coloured by cluster; redundancy and interference as edges.

    Relations within two standard errors of nothing are left out; a slider leaves the strongest.
    """
    return _relations.graph(Material(run), Field(run.affinity))


def matrix(run: FinishedDirectory) -> Any:
    """Figure of the measured matrices over the tasks in the order of their dendrogram, with a switch between them."""
    return _relations.matrix(Field(run.affinity))


def gains(run: FinishedDirectory) -> Any:
    """Figure of what each task gains or loses on each target, in nats a token; on the tasks without targets."""
    return _gains.figure(Material(run))
