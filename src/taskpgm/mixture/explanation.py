"""`Explanation`: why a mixture is what it is, as data for the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import DisjointSet, fcluster, linkage
from scipy.spatial.distance import squareform

from taskpgm.errors import UserError
from taskpgm.mixture.affinity import Affinity
from taskpgm.mixture.bounds import Bounds
from taskpgm.mixture.certificate import Optimum, certify
from taskpgm.mixture.energy import Energy
from taskpgm.mixture.optimum import minimise
from taskpgm.mixture.solve import Mixture
from taskpgm.progress import QUIET, Progress
from taskpgm.types import Brief, Floats

# Tasks are interchangeable when swapping mass between them bends the energy by less than this part of the median pair.
# A guess: on the 14 task pool's scale it joins near copies and nothing else.
REDUNDANT = 0.5  # correlation worth a line; below, two tasks share less than a quarter of their variance
INTERCHANGEABLE = 0.1


@dataclass(frozen=True)
class Margin:
    """How the marginal energy of one task adds up; utility − redundancies + prior − repetition − ν + lower − upper
    = 0, less the group's multipliers.

    For a likelihood, utility and redundancy are those of its quadratic field at the mixture, whose slope is the exact
    one there.
    """

    task: str
    utility: float  # ψ_i
    redundancy: Mapping[str, float]  # K_ij p_j for every task j with a share
    prior: float  # κ log(r_i/p_i) − κ, what the prior pulls with
    repetition: float  # 2λ (epochs − 1), what rows that are seen again cost
    lower: float  # multiplier of the task's least share (zero counts)
    upper: float  # multiplier of its largest share
    group: float  # multipliers of the groups that it belongs to, summed: > 0 holds it down

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "redundancy": dict(self.redundancy)}


@dataclass(frozen=True)
class Dropped:
    """What happens without one task: the energy lost, and who takes over its share."""

    task: str
    share: float  # that it has
    loss: float | None  # energy lost, see `leave_out`; None if the others cannot hold the budget
    takers: Mapping[str, float]  # change of every other weight that moves

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"task": self.task, "share": self.share, "loss": self.loss, "takers": dict(self.takers)}


@dataclass(frozen=True, repr=False)
class Explanation(Brief):
    """Marginal energies, leave-one-out and clusters of interchangeable tasks."""

    nu: float  # multiplier of 1ᵀp = 1: what mass costs everywhere
    margins: tuple[Margin, ...]
    dropped: tuple[Dropped, ...]
    clusters: tuple[tuple[str, ...], ...]  # of two or more tasks

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "nu": self.nu,
            "margins": [margin.to_dict() for margin in self.margins],
            "dropped": [one.to_dict() for one in self.dropped],
            "clusters": [list(cluster) for cluster in self.clusters],
        }


def explain(
    energy: Energy,
    mixture: Mixture,
    most: int | None = None,
    copies: Sequence[Sequence[str]] = (),
    progress: Progress = QUIET,
) -> Explanation:
    """Explanation of `mixture` as the minimiser of `energy` within the mixture's bounds.

    `dropped` has every task with a share, or the `most` heaviest.

    Args:
        copies: groups of tasks that hold the same rows, which are interchangeable whatever their probes say.
    """
    energy = replace(energy, without=(), only=(), seeds=())
    optimum = minimise(energy, mixture.bounds)
    psi, K = field_without_prior(energy, optimum.p)
    shared = np.flatnonzero(optimum.p > 1e-9)
    left = np.sort(shared[np.argsort(-optimum.p[shared], kind="stable")[:most]])
    dropped = []
    with progress.stage("leaving out tasks in turn", len(left), "task"):
        for i in left:
            dropped.append(leave_out(energy, mixture.bounds, optimum, int(i)))
            progress.advance()
    return Explanation(
        float(mixture.certificate.nu),
        _margins(energy, mixture, optimum, psi, K),
        tuple(dropped),
        united(energy.tasks, [*clusters(energy.tasks, K), *copies]),
    )


def field_without_prior(energy: Energy, p: Floats) -> tuple[Floats, Floats]:
    """(ψ, K) of the energy without prior and repetition, expanded at p: utility and redundancy of the data alone."""
    return replace(energy, prior=0.0, repetition=0.0).field_at(p)


def _margins(energy: Energy, mixture: Mixture, optimum: Optimum, psi: Floats, K: Floats) -> tuple[Margin, ...]:
    p = optimum.p
    certificate = certify(energy, mixture.bounds, optimum)
    pull = np.zeros_like(p)
    if energy.prior:
        pull[p > 0] = energy.prior * (np.log(energy.reference[p > 0] / p[p > 0]) - 1)
    again = energy.repetition_slope(p)
    group = certificate.group @ mixture.bounds.members
    shared = np.flatnonzero(p > 0)
    return tuple(
        Margin(
            task,
            utility=float(psi[i]),
            redundancy={energy.tasks[j]: float(K[i, j] * p[j]) for j in shared},
            prior=float(pull[i]),
            repetition=float(again[i]),
            lower=float(certificate.lower[i]),
            upper=float(certificate.upper[i]),
            group=float(group[i]),
        )
        for i, task in enumerate(energy.tasks)
    )


def leave_out(energy: Energy, bounds: Bounds, optimum: Optimum, i: int) -> Dropped:
    """What happens when task i gets nothing: the energy's minimum without it minus that with it.

    It is negative only if a least share forces the task in.
    """
    task = energy.tasks[i]
    others = replace(bounds, lo=np.where(np.arange(len(bounds.lo)) == i, 0.0, bounds.lo), hi=bounds.hi.copy())
    others.hi[i] = 0.0
    try:
        others.check()
    except UserError:
        return Dropped(task, float(optimum.p[i]), None, {})
    p = minimise(energy, others, optimum if energy.quadratic else None).p
    loss = energy.value(p) - energy.value(optimum.p)
    if bounds.lo[i] == 0:
        loss = max(loss, 0.0)  # what is below is rounding: the mixtures without it are among those with it
    change = p - optimum.p
    moved = {energy.tasks[j]: float(change[j]) for j in np.argsort(-change) if j != i and abs(change[j]) > 1e-9}
    return Dropped(task, float(optimum.p[i]), float(loss), moved)


def clusters(tasks: tuple[str, ...], K: Floats, threshold: float = INTERCHANGEABLE) -> tuple[tuple[str, ...], ...]:
    """Groups of two or more interchangeable tasks, by complete linkage on d_ij = K_ii + K_jj − 2K_ij.

    d_ij is how much the energy bends when mass moves from i to j: zero for copies. `threshold` is relative to the
    median d. None if tasks are not redundant at all (K = 0, as of a gain energy).
    """
    n = len(tasks)
    if n < 2 or not K.any():
        return ()
    diagonal = np.diag(K)
    d = np.maximum(diagonal[:, None] + diagonal - 2 * K, 0.0)
    pairs = squareform(d, checks=False)
    median = float(np.median(pairs))
    if median == 0:
        return (tasks,)
    labels = fcluster(linkage(pairs, method="complete"), threshold * median, criterion="distance")
    groups = [tuple(tasks[i] for i in np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return tuple(sorted((group for group in groups if len(group) > 1), key=lambda g: tasks.index(g[0])))


def united(tasks: tuple[str, ...], groups: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """The groups, those that share a task made one; in the order of the tasks."""
    found = DisjointSet(tasks)
    for group in groups:
        for one, other in pairwise(group):
            found.merge(one, other)
    ordered = [tuple(sorted(group, key=tasks.index)) for group in found.subsets() if len(group) > 1]
    return tuple(sorted(ordered, key=lambda group: tasks.index(group[0])))


def strongest_pairs(affinity: Affinity, count: int = 3) -> dict[str, list[dict[str, Any]]]:
    """The strongest redundancies and interferences, for saying in words, each of them about other tasks.

    redundancies: pairs of tasks of highest correlation in S centred on the simplex (1: copies); no task is in two.
    interferences: task i and set j ≠ i with the most negative G_ij, in nats a token, of those more than two standard
    errors below zero. One for each task, a target if it hurts one; `others` are the further sets that it hurts. None if
    no probe is seen to hurt, or with a given matrix.
    """
    n = len(affinity.tasks)
    J = np.eye(n) - 1 / n
    centred = J @ affinity.S @ J
    size = np.sqrt(np.maximum(np.diag(centred), 0))
    scale = np.outer(size, size)
    correlation = np.divide(centred, scale, out=np.zeros_like(centred), where=scale > 0)
    upper = [(float(correlation[i, j]), i, j) for i in range(n) for j in range(i + 1, n) if correlation[i, j] > 0]
    redundant: list[dict[str, Any]] = []
    seen: set[int] = set()
    for value, i, j in sorted(upper, key=lambda one: -one[0]):
        if len(redundant) < count and not seen & {i, j}:
            seen |= {i, j}
            pair = [affinity.tasks[i], affinity.tasks[j]]
            redundant.append({"tasks": pair, "correlation": value, "affinity": float(affinity.S[i, j])})
    return {"redundancies": redundant, "interferences": _interferences(affinity)[:count]}


def _interferences(affinity: Affinity) -> list[dict[str, Any]]:
    """One for each task that is seen to hurt another set; those that hurt targets first, then the worst."""
    G, errors = affinity.matrices.get("G"), affinity.errors.get("G")
    if G is None:
        return []
    n = len(affinity.tasks)
    most = np.zeros_like(G) if errors is None else -2 * errors
    found = []
    for i in range(n):
        hurt = sorted((bool(j < n), float(G[i, j]), int(j)) for j in np.flatnonzero(most[i] > G[i]) if j != i)
        if hurt:
            own, value, j = hurt[0]
            error = None if errors is None else float(errors[i, j])
            pair = {"task": affinity.tasks[i], "set": affinity.sets[j], "gain": value, "standard_error": error}
            found.append((own, value, {**pair, "others": [affinity.sets[k] for *_, k in hurt[1:]]}))
    return [pair for *_, pair in sorted(found, key=lambda one: one[:2])]
