"""`Verification`: a second opinion on a mixture, by the definitions only; shares no code with the solver.

It writes the energy's terms out anew, checks the bounds one by one, bounds the distance to the minimum with SciPy's
linear programming, and confirms the gradient by differences of the value.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from taskpgm.mixture.bounds import Bounds
from taskpgm.mixture.energy import TINY, Energy
from taskpgm.mixture.solve import Mixture
from taskpgm.types import Floats


@dataclass(frozen=True)
class Verification:
    """What an independent look at a mixture found. `gap` is in units of the energy, `relative_gap` of its scale."""

    feasibility: float  # largest violated bound, or |1ᵀp − 1|
    gap: float  # E(p) − min E is at most this, if the energy is convex
    relative_gap: float
    gradient_error: float  # analytic against numerical slope towards the linear program's vertex, over the scale
    absolute: bool

    @property
    def passed(self) -> bool:
        """Feasible to 1e-9, and within 1e-9 relative of the minimum (a likelihood: within 1e-6 nats)."""
        close = self.gap <= 1e-6 if self.absolute else self.relative_gap <= 1e-9
        return bool(close and self.feasibility <= 1e-9 and self.gradient_error <= 1e-4)


def verify(energy: Energy, mixture: Mixture) -> Verification:
    """Verification of `mixture` as the minimiser of `energy` within the mixture's own bounds."""
    bounds, p = mixture.bounds, mixture.weights
    g = _slopes(energy, p)
    vertex, gap = _vertex(g, p, bounds)
    psi = energy.t * energy.unary + energy.utility
    K = energy.K
    absolute = energy.likelihoods.shape[1] > 0 or energy.prior > 0 or energy.repetition > 0
    scale = 1.0
    if not absolute:
        curvature = (np.trace(K) - K.mean() * len(p)) / max(len(p) - 1, 1)
        scale = max(abs(float((psi - psi.mean()) @ p)) + abs(0.5 * float(p @ K @ p)), 1e-6 * float(curvature)) or 1.0
    # A share may change by a thousandth of itself at most: beyond, the curvature of log p shows in the difference.
    away = np.abs(vertex - p)[p > 0].max() or 1.0
    h = min(1e-6 / away, 1e-3 * float(np.min(p[p > 0] / np.maximum(np.abs(vertex - p)[p > 0], 1e-300))))
    ahead, behind = _value(energy, p + h * (vertex - p)), _value(energy, p - h * (vertex - p))
    slope = (ahead - behind) / (2 * h) if math.isfinite(ahead - behind) else -gap
    rounding = 1e-15 * abs(_value(energy, p)) / h
    error = max(abs(slope + gap) - rounding, 0.0) / scale if math.isfinite(gap) else math.inf
    return Verification(_violation(p, bounds), gap, gap / scale, error, absolute)


def _slopes(energy: Energy, p: Floats) -> Floats:
    slopes = np.zeros(len(p))
    K = energy.K
    ensemble = np.einsum("n,nt->t", p, energy.likelihoods)
    for i in range(len(p)):
        slopes[i] = math.fsum(K[i] * p) - energy.t * energy.unary[i] - energy.utility[i]
        if len(ensemble):
            slopes[i] -= math.fsum(energy.omega * energy.likelihoods[i] / ensemble)
        if energy.prior > 0:
            slopes[i] += energy.prior * (math.log(max(p[i], TINY)) - math.log(energy.reference[i]) + 1)
        if energy.repetition > 0:
            slopes[i] += 2 * energy.repetition * max(p[i] - energy.once[i], 0.0) / energy.once[i]
    return slopes


def _value(energy: Energy, p: Floats) -> float:
    K = energy.K
    terms = [0.5 * float(p @ K @ p), -float((energy.t * energy.unary + energy.utility) @ p)]
    ensemble = np.einsum("n,nt->t", p, energy.likelihoods)
    if (ensemble <= 0).any():
        return math.inf
    terms.append(-math.fsum(energy.omega * np.log(ensemble)))
    if energy.prior > 0:
        held = p > 0
        terms.append(energy.prior * math.fsum(p[held] * np.log(p[held] / energy.reference[held])))
    if energy.repetition > 0:
        terms += [energy.repetition * max(x - o, 0.0) ** 2 / o for x, o in zip(p, energy.once, strict=True)]
    return math.fsum(terms)


def _vertex(g: Floats, p: Floats, bounds: Bounds) -> tuple[Floats, float]:
    """The feasible s that lowers the linear model the most, and by how much."""
    if not np.isfinite(g).all():
        return p, math.inf
    centred = g - g.min()
    scale = float(centred.max()) or 1.0
    rows = [[float(task in group.tasks) for task in bounds.tasks] for group in bounds.groups]
    program = linprog(
        centred / scale,
        A_ub=[*rows, *[[-x for x in row] for row in rows]] or None,
        b_ub=[*[group.hi for group in bounds.groups], *[-group.lo for group in bounds.groups]] or None,
        A_eq=[[1.0] * len(p)], b_eq=[1.0], bounds=list(zip(bounds.lo, bounds.hi, strict=True)),
    )  # fmt: skip
    if program.status != 0:
        return p, math.inf
    vertex = np.asarray(program.x)
    return vertex, math.fsum(centred * (p - vertex))


def _violation(p: Floats, bounds: Bounds) -> float:
    worst = abs(math.fsum(p) - 1)
    for share, lo, hi in zip(p, bounds.lo, bounds.hi, strict=True):
        worst = max(worst, lo - share, share - hi) if math.isfinite(share) else math.inf
    for group in bounds.groups:
        total = math.fsum(share for share, task in zip(p, bounds.tasks, strict=True) if task in group.tasks)
        worst = max(worst, group.lo - total, total - group.hi)
    return float(worst)
