"""Synthetic scores with known truth, random energies, and slow oracles for the tests of the numerical half."""

import cvxpy
import numpy as np

from taskpgm.mixture.bounds import Bounds
from taskpgm.mixture.energy import Energy, field_energy
from taskpgm.scores import Divergences, Scores, context_groups


def names(n, prefix="t"):
    return tuple(f"{prefix}{i}" for i in range(n))


def synthetic_scores(rng, n=4, targets=0, contexts=16, longest=4, seeds=1, noise=0.3, truth=None, jsd=False):
    """Scores with M_ij = truth_ij in the population: context and position noise around it, lengths 1..longest.

    Args:
        contexts: of every set, or of each set, tasks first.
    """
    sets = n + targets
    counts = [contexts] * sets if isinstance(contexts, int) else list(contexts)
    truth = random_truth(rng, n, targets) if truth is None else truth
    context_set = np.repeat(np.arange(sets), counts)
    context_group = np.concatenate(context_groups(counts, n))
    lengths = rng.integers(1, longest + 1, size=len(context_set))
    context = np.repeat(np.arange(len(context_set)), lengths)
    position = np.concatenate([np.arange(length) for length in lengths])
    of_context = noise * rng.normal(size=(n + 1, len(context_set)))
    blocks = []
    for _ in range(seeds):
        block = truth[:, context_set[context]] + of_context[:, context]
        blocks.append(block + noise * rng.normal(size=block.shape))
    divergences = None
    if jsd:
        B = int(context_group.max()) + 1
        points = rng.random((seeds, B, n, 3))
        distance = ((points[:, :, :, None] - points[:, :, None]) ** 2).sum(-1) / 5
        divergences = Divergences(distance * 2.0, np.full(B, 2.0), 100)
    return Scores(
        names(n), names(n) + names(targets, "g"), np.hstack(blocks), np.tile(context, seeds),
        np.tile(position, seeds), np.repeat(np.arange(seeds), len(context)), context_set, context_group, divergences,
    )  # fmt: skip


def random_truth(rng, n, targets=0):
    truth = -2 + 0.4 * rng.normal(size=(n + 1, n + targets))
    truth[1:, :n] += 0.6 * np.eye(n)
    return truth


def random_field(rng, n, rank=None, kind="dense") -> Energy:
    """Quadratic energies of many shapes: dense, low-rank, duplicates, ill-conditioned, tiny, huge, indefinite."""
    rank = rank or n + 2
    A = rng.normal(size=(n, rank))
    if kind == "low-rank":
        A = A[:, : max(1, n // 3)]
    if kind == "rank-one":
        A = A[:, :1]
    K = A @ A.T / A.shape[1]
    psi = K @ rng.dirichlet(np.ones(n)) * 2 + 0.1 * rng.normal(size=n)
    if kind == "ill-conditioned":
        Q, _ = np.linalg.qr(rng.normal(size=(n, n)))
        K = (Q * np.logspace(0, -14, n)) @ Q.T
        K = 0.5 * (K + K.T)
    if kind == "duplicates":
        copy = rng.integers(0, n, size=n)
        K, psi = K[np.ix_(copy, copy)], psi[copy]
    if kind == "identical":
        K, psi = np.full((n, n), 0.7), np.full(n, 0.3)
    if kind == "indefinite":
        K = 0.5 * (A @ A[::-1].T + A[::-1] @ A.T)
    scale = {"tiny": 1e-12, "huge": 1e12}.get(kind, 1.0)
    return field_energy(names(n), scale * psi, scale * K)


KINDS = ("dense", "low-rank", "rank-one", "ill-conditioned", "duplicates", "identical", "indefinite", "tiny", "huge")


def random_bounds(rng, n) -> Bounds:
    """Feasible bounds that often bind: around a random mixture."""
    inside = rng.dirichlet(np.ones(n))
    lo = inside * rng.random(n) * (rng.random(n) < 0.5)
    hi = np.where(rng.random(n) < 0.5, np.minimum(inside * (1 + rng.random(n)), 1), 1.0)
    return Bounds(names(n), lo, hi)


def cvxpy_minimum(energy: Energy, bounds: Bounds) -> tuple[np.ndarray, float]:
    """(p, E(p)) by cvxpy with Clarabel, of the energy scaled to order one."""
    n = len(energy.tasks)
    if n == 1:
        return np.ones(1), energy.value(np.ones(1))
    p = cvxpy.Variable(n)
    K, psi = energy.K, energy.psi
    scale = max(np.abs(K - K.mean()).max(), np.abs(psi - psi.mean()).max())
    if not energy.quadratic or scale <= 1e-14 * max(np.abs(K).max(), np.abs(psi).max()):
        scale = 1.0
    objective = -((psi - psi.mean()) / scale) @ p
    if K.any():
        # A square root keeps the objective a sum of squares even where rounding makes K slightly indefinite.
        values, vectors = np.linalg.eigh((K - K.mean(axis=0) - K.mean(axis=1)[:, None] + K.mean()) / scale)
        root = vectors * np.sqrt(np.clip(values, 0, None))
        level = K.mean(axis=0) - K.mean()
        root = root[:, values > 1e-12]
        objective = objective + 0.5 * cvxpy.sum_squares(root.T @ p) + (level / scale) @ p
    if energy.likelihoods.shape[1]:
        objective = objective - energy.omega @ cvxpy.log(energy.likelihoods.T @ p)
    if energy.prior:
        objective = objective + energy.prior * cvxpy.sum(cvxpy.rel_entr(p, energy.reference))
    constraints = [cvxpy.sum(p) == 1, p >= bounds.lo, p <= bounds.hi]
    if bounds.groups:
        constraints += [bounds.members @ p >= bounds.group_lo, bounds.members @ p <= bounds.group_hi]
    problem = cvxpy.Problem(cvxpy.Minimize(objective), constraints)
    for tolerance in (1e-10, 1e-9, 1e-8):
        try:
            problem.solve(solver=cvxpy.CLARABEL, tol_gap_abs=tolerance, tol_gap_rel=tolerance, tol_feas=tolerance)
            break
        except cvxpy.SolverError:
            continue
    q = np.clip(p.value, bounds.lo, bounds.hi)
    return q, energy.value(q / q.sum())


def closed_form(energy: Energy) -> np.ndarray | None:
    """(n,) p° that minimises a quadratic energy on {p : 1ᵀp = 1} without bounds, by its linear system

        [K 1; 1ᵀ 0] [p; ν] = [ψ; 1].

    Entries may be negative. Least norm if K is singular on the simplex; None if the energy falls without end.
    """
    assert energy.quadratic, "the closed form is of quadratic energies"
    n = len(energy.tasks)
    system = np.block([[energy.K, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    right = np.r_[energy.psi, 1.0]
    solution = np.linalg.lstsq(system, right, rcond=1e-12)[0]
    return solution[:n] if np.allclose(system @ solution, right, atol=1e-7 * np.abs(right).max()) else None
