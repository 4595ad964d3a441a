"""`Certificate`: how far a mixture is from the optimum, by residuals and the duality gap."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from taskpgm.mixture.bounds import Bounds
from taskpgm.mixture.energy import Energy
from taskpgm.mixture.linalg import mean_curvature
from taskpgm.mixture.qp import Active
from taskpgm.types import Brief, Floats

RELATIVE_GAP = 1e-9  # of quadratic energies: far below any error of the data, above rounding
ABSOLUTE_GAP = 1e-6  # of likelihoods, in nats: far below a standard error of the loss, 5e-3 in the demo
FEASIBILITY = 1e-9  # of shares: less than a row of a billion


class NotCertifiedError(RuntimeError):
    """The solver's answer failed its certificate: a bug or arithmetic out of range, never the user's settings."""


@dataclass(frozen=True, eq=False, repr=False)
class Certificate(Brief):
    """Karush–Kuhn–Tucker residuals of a mixture, and the multipliers that they were taken with.

    gap = max_s ∇E(p)ᵀ(p − s) over the feasible set bounds E(p) − min E from above. It is relative to |ψᵀp| + |½pᵀKp|
    with ψ centred (see `quadratic_scale`) for quadratic energies, absolute in nats for a likelihood.
    """

    stationarity: float  # max |∇E + ν1 + group multipliers − lower + upper|, over the scale of the gap
    feasibility: float  # largest violated bound, or |1ᵀp − 1|
    complementarity: float  # max multiplier · slack, over the scale of the gap
    gap: float
    relative_gap: float
    absolute: bool  # whether the gap in nats is what counts
    tolerance: float
    nu: float  # multiplier of 1ᵀp = 1
    lower: Floats  # (n,) ≥ 0
    upper: Floats  # (n,) ≥ 0
    group: Floats  # (groups,) > 0: held down by its upper bound; < 0: held up by its lower bound
    curvature: float  # smallest, on {v : 1ᵀv = 0}
    shift: float

    @property
    def passed(self) -> bool:
        """Whether gap and feasibility are within their tolerances."""
        gap = self.gap if self.absolute else self.relative_gap
        return bool(gap <= self.tolerance and self.feasibility <= FEASIBILITY)


@dataclass(frozen=True, eq=False, repr=False)
class Optimum(Brief):
    """Minimiser p with what is active there, the warm start of a neighbouring problem."""

    p: Floats
    active: Active
    gap: float  # absolute
    scale: float  # what the gap is relative to


def certify(energy: Energy, bounds: Bounds, optimum: Optimum) -> Certificate:
    """Certificate of `optimum`, from the energy's gradient there; the solver's own multipliers are not used."""
    p, g = optimum.p, energy.gradient(optimum.p)
    y, members = multipliers(g, p, bounds), bounds.members
    residual = g + y[0] + y[1:] @ members
    at_lo = p <= bounds.lo + FEASIBILITY
    at_hi = (p >= bounds.hi - FEASIBILITY) & (bounds.hi < 1)
    lower = np.where(at_lo, np.maximum(residual, 0), 0.0)
    upper = np.where(at_hi, np.maximum(-residual, 0), 0.0)
    sums = members @ p
    group_slack = np.where(y[1:] > 0, bounds.group_hi - sums, sums - bounds.group_lo)
    slackness = np.r_[lower * (p - bounds.lo), upper * (bounds.hi - p), np.abs(y[1:]) * group_slack]
    return Certificate(
        stationarity=float(np.abs(residual - lower + upper).max()) / optimum.scale,
        feasibility=infeasibility(p, bounds),
        complementarity=float(np.abs(slackness).max()) / optimum.scale,
        gap=optimum.gap,
        relative_gap=optimum.gap / optimum.scale,
        absolute=not energy.quadratic,
        tolerance=RELATIVE_GAP if energy.quadratic else ABSOLUTE_GAP,
        nu=float(y[0]),
        lower=lower,
        upper=upper,
        group=y[1:],
        curvature=_curvature(energy, p, bounds.hi > 0),
        shift=energy.shift,
    )


def _curvature(energy: Energy, p: Floats, kept: NDArray[np.bool_]) -> float:
    return energy.curvature_at(p) if kept.all() else energy.restrict_to(kept).curvature_at(p[kept])


def multipliers(g: Floats, p: Floats, bounds: Bounds) -> Floats:
    """(1 + groups,) ν and the multipliers of groups, y with g + Eᵀy ≈ 0 on the free tasks (least squares).

    If no task is free, or the free ones do not settle y, they come from the dual of the linear program of the gap.
    """
    sums, slack = bounds.members @ p, FEASIBILITY
    free = (p > bounds.lo + slack) & ((p < bounds.hi - slack) | (bounds.hi >= 1))
    above, below = sums >= bounds.group_hi - slack, sums <= bounds.group_lo + slack
    on = (above & (bounds.group_hi < 1)) | (below & (bounds.group_lo > 0))
    E = np.vstack([np.ones((1, len(g))), bounds.members[on]])
    y = np.zeros(1 + len(on))
    if free.any() and np.linalg.matrix_rank(E[:, free]) == len(E):
        y[np.r_[True, on]] = np.linalg.lstsq(E[:, free].T, -g[free], rcond=None)[0]
        return y
    return _linear_minimum(g, bounds)[1]


def duality_gap(g: Floats, p: Floats, bounds: Bounds) -> float:
    """max_s gᵀ(p − s) over the feasible set: what a linear model of the energy could still gain. Never negative."""
    if bounds.groups:
        least = _linear_minimum(g - g.min(), bounds)[0] + float(g.min())
    else:
        order = np.argsort(g, kind="stable")
        width = (bounds.hi - bounds.lo)[order]
        before = np.cumsum(width) - width
        filled = np.clip(1 - bounds.lo.sum() - before, 0, width)
        least = float(bounds.lo @ g + filled @ g[order])
    return max(float(g @ p) - least, 0.0)


def infeasibility(p: Floats, bounds: Bounds) -> float:
    """Largest violated bound, or |1ᵀp − 1|; infinite if p is not finite."""
    if not np.isfinite(p).all():
        return float("inf")
    sums = bounds.members @ p
    violations = np.r_[bounds.lo - p, p - bounds.hi, bounds.group_lo - sums, sums - bounds.group_hi, abs(p.sum() - 1)]
    return max(float(violations.max()), 0.0)


def quadratic_scale(energy: Energy, p: Floats) -> float:
    """|ψᵀp| + |½pᵀKp| with ψ centred, at least a millionth of K's mean curvature: both can vanish at the optimum."""
    psi = energy.psi - energy.psi.mean()
    scale = abs(float(psi @ p)) + 0.5 * abs(float(p @ energy.K @ p))
    return max(scale, 1e-6 * mean_curvature(energy.K)) or 1.0


def _linear_minimum(g: Floats, bounds: Bounds) -> tuple[float, Floats]:
    """(min_s gᵀs over the feasible set, (1 + groups,) multipliers ν and those of the groups there).

    That nothing exceeds one, or falls below zero in sum, is no bound of its own, so that it never has a multiplier.
    """
    scale = float(np.abs(g).max()) or 1.0
    members, groups = bounds.members, len(bounds.groups)
    A_ub, b_ub = None, None
    if groups:
        least = np.where(bounds.group_lo > 0, bounds.group_lo, -1.0)
        A_ub, b_ub = np.vstack([members, -members]), np.r_[_beyond(bounds.group_hi), -least]
    box: Any = np.column_stack([bounds.lo, _beyond(bounds.hi)])
    program: Any = linprog(g / scale, A_ub, b_ub, A_eq=np.ones((1, len(g))), b_eq=np.ones(1), bounds=box)
    if program.status != 0:
        raise NotCertifiedError(f"The linear program of the duality gap failed: {program.message}")
    upper, lower = program.ineqlin.marginals[:groups], program.ineqlin.marginals[groups:]
    return float(program.fun) * scale, scale * np.r_[-program.eqlin.marginals, lower - upper]


def _beyond(hi: Floats) -> Floats:
    return np.where(hi >= 1, 2.0, hi)
