"""`Result`: what a run leaves behind, as values; `FinishedRun`: that, and what comparing and predicting need of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from taskpgm.config import Config
from taskpgm.lm.engine import Engine
from taskpgm.mixture.affinity import Affinity
from taskpgm.mixture.energy import Energy
from taskpgm.mixture.selection import Selection
from taskpgm.mixture.solve import Mixture
from taskpgm.pool.plan import RowPlan
from taskpgm.pool.task_pool import TaskPool
from taskpgm.scores import Scores
from taskpgm.types import Brief

if TYPE_CHECKING:
    from taskpgm.probes.probe import Probe


@dataclass(frozen=True, repr=False)
class Result(Brief):
    """What a run leaves behind, in memory; the same is in the run directory."""

    pool: TaskPool
    scores: Scores
    affinity: Affinity
    energy: Energy
    mixture: Mixture
    plan: RowPlan
    selection: Selection | None = None  # if `selection.k` asks for one


@dataclass(frozen=True)
class FinishedRun:
    """A run whose mixture is known, to be compared with others or predicted."""

    config: Config
    result: Result
    engine: Engine
    probes: "Callable[[], list[Probe]]"  # reads those of the first probe seed, in the order of the tasks
    folder: Path  # measurements are kept in it
