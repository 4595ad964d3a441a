"""`Field`: likeness and interference between tasks, with errors, and their hierarchy."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from taskpgm.mixture.affinity import Affinity
from taskpgm.mixture.jackknife import standard_error
from taskpgm.types import Floats

KINDS = ("alike", "interfering")


@dataclass(frozen=True)
class Edge:
    """A relation between two tasks; `first` acts on `second` if it is interference."""

    first: int
    second: int
    kind: str
    strength: float  # correlation, or nats a token lost
    error: float | None

    def words(self, tasks: tuple[str, ...]) -> str:
        """What it says."""
        a, b, sure = tasks[self.first], tasks[self.second], "" if self.error is None else f" ± {self.error:.2f}"
        if self.kind == "alike":
            return f"{a} and {b} are alike, correlation {self.strength:.2f}{sure}"
        return f"{a} makes {b} {self.strength:.2f}{sure} nats a token worse"


class Field:
    """Likeness and interference between tasks with errors, and their hierarchy."""

    def __init__(self, affinity: Affinity) -> None:
        self.affinity, self.tasks, self.n = affinity, affinity.tasks, len(affinity.tasks)

    @cached_property
    def correlation(self) -> Floats:
        """(n, n) correlation in S centred on the simplex."""
        return correlation(self.affinity.S)

    @cached_property
    def error(self) -> Floats | None:
        """(n, n) jackknife error of the correlation."""
        if not len(self.affinity.without):
            return None
        by_seed = [correlation(S) for S in self.affinity.seeds]
        return standard_error([correlation(S) for S in self.affinity.without], by_seed)

    @cached_property
    def edges(self) -> tuple[list[Edge], int]:
        """(those beyond two standard errors, strongest first; how many more were not)."""
        found, unsure = [], 0
        for i, j in zip(*np.triu_indices(self.n, 1), strict=True):
            value, error = float(self.correlation[i, j]), _at(self.error, i, j)
            if value > 2 * (error or 0.0):
                found.append(Edge(int(i), int(j), "alike", value, error))
            elif value > 0:
                unsure += 1
        G, G_error = self.affinity.matrices.get("G"), self.affinity.errors.get("G")
        hurt: Any = [] if G is None else np.argwhere(G[:, : self.n] < 0)
        for i, j in hurt:
            value, error = -float(G[i, j]), _at(G_error, i, j)  # type: ignore[index]
            if i != j and value > 2 * (error or 0.0):
                found.append(Edge(int(i), int(j), "interfering", value, error))
            elif i != j:
                unsure += 1
        return sorted(found, key=lambda edge: -edge.strength), unsure

    @cached_property
    def hierarchy(self) -> Any:
        """SciPy's linkage of 1 − correlation, average, optimally ordered."""
        distance = np.clip(1 - self.correlation, 0, 2)
        return linkage(squareform(distance, checks=False), "average", optimal_ordering=self.n <= 400)

    @cached_property
    def cluster(self) -> list[int]:
        """(n,) cluster of each task: where the dendrogram is cut at 0.7 of its height, as SciPy colours it."""
        if self.n < 2:
            return [0] * self.n
        height = 0.7 * float(self.hierarchy[:, 2].max())
        return [int(c) - 1 for c in fcluster(self.hierarchy, height, criterion="distance")]


def correlation(S: Floats) -> Floats:
    """(n, n) of S centred on the simplex: 1 for copies; 0 where a task has no spread."""
    J = np.eye(len(S)) - 1 / len(S)
    centred = J @ S @ J
    size = np.sqrt(np.maximum(np.diag(centred), 0))
    scale = np.outer(size, size)
    return np.divide(centred, scale, out=np.zeros_like(centred), where=scale > 0)


def _at(error: Any, i: Any, j: Any) -> float | None:
    return None if error is None else float(error[i, j])
