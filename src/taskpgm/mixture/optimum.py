"""`Optimum`: where an energy is least within bounds, and the proof that it is.

Quadratic energies are one quadratic program; a likelihood is a few of them (Newton's method with a line search, each
step a program on the second-order expansion: sequential quadratic programming as in mixSQP, Kim et al. 2020).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from taskpgm.mixture.bounds import Bounds
from taskpgm.mixture.energy import Energy, mean_curvature
from taskpgm.mixture.qp import FREE, LOWER, Active, Constraints, Quadratic, solve_qp
from taskpgm.types import Floats

RELATIVE_GAP = 1e-9  # of quadratic energies
ABSOLUTE_GAP = 1e-6  # of likelihoods, in nats
FEASIBILITY = 1e-9
# Newton goes on to this gap: it is quadratic at the end, so the digits beyond ABSOLUTE_GAP are nearly free.
_NEWTON_GAP = 1e-10
_NEWTON_STEPS = 100
_REFINEMENTS = (1e-10, 1e-11, 1e-12, 1e-13)
# A step may shrink a share that the prior keeps positive to this fraction of itself; −log p leaves its model below.
_SHRINK = 0.02


class NotCertifiedError(RuntimeError):
    """The solver's answer failed its certificate: a bug or arithmetic out of range, never the user's settings."""


@dataclass(frozen=True, eq=False)
class Certificate:
    """Karush–Kuhn–Tucker residuals of a mixture, and the multipliers that they were taken with.

    gap = max_s ∇E(p)ᵀ(p − s) over the feasible set bounds E(p) − min E from above. It is relative to |ψᵀp| + |½pᵀKp|
    with ψ centred (see `quadratic_scale`) for quadratic energies, absolute in nats for a likelihood.
    """

    stationarity: float  # max |∇E + ν1 + group prices − lower + upper|, over the scale of the gap
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


@dataclass(frozen=True, eq=False)
class Optimum:
    """Minimiser p with what is active there, the warm start of a neighbouring problem."""

    p: Floats
    active: Active
    gap: float  # absolute
    scale: float  # what the gap is relative to


def minimise(
    energy: Energy, bounds: Bounds, start: Optimum | None = None, prepared: Quadratic | None = None
) -> Optimum:
    """Minimiser of `energy` over `bounds`, of least norm where there are several.

    Args:
        start: optimum of a neighbouring problem; fewer steps, the same result.
        prepared: `Quadratic.of(energy.K)`, where many energies share K.

    Raises:
        NotCertifiedError: the gap of what was found exceeds its tolerance.
    """
    kept = bounds.hi > 0
    if not kept.all():
        # A task that is out must not set the scale of the problem: its own curvature can exceed all others by far.
        near = start and Optimum(start.p[kept], Active(start.active.variables[kept], start.active.rows), 0.0, 1.0)
        return _with_zeros(minimise(energy.among(kept), bounds.among(kept), near), kept)
    if energy.quadratic:
        optimum = _quadratic(energy, bounds, start, prepared or Quadratic.of(energy.K))
        excess = optimum.gap / optimum.scale - RELATIVE_GAP
    else:
        optimum = _newton(energy, bounds, start)
        excess = optimum.gap - ABSOLUTE_GAP
    if not (excess <= 0 and infeasibility(optimum.p, bounds) <= FEASIBILITY):
        raise NotCertifiedError(
            f"The minimiser of the {energy.kind} energy was found only to a gap of {optimum.gap:.3g} (scale "
            f"{optimum.scale:.3g}, infeasibility {infeasibility(optimum.p, bounds):.3g}); no mixture is returned."
        )
    return optimum


def _with_zeros(optimum: Optimum, kept: NDArray[np.bool_]) -> Optimum:
    p, variables = np.zeros(len(kept)), np.full(len(kept), LOWER)
    p[kept], variables[kept] = optimum.p, optimum.active.variables
    return replace(optimum, p=p, active=Active(variables, optimum.active.rows))


def certify(energy: Energy, bounds: Bounds, optimum: Optimum) -> Certificate:
    """Certificate of `optimum`, from the energy's gradient there; the solver's own multipliers are not used."""
    p, g = optimum.p, energy.gradient(optimum.p)
    y, members = multipliers(g, optimum, bounds), bounds.members
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
    return energy.curvature_at(p) if kept.all() else energy.among(kept).curvature_at(p[kept])


def multipliers(g: Floats, optimum: Optimum, bounds: Bounds) -> Floats:
    """(1 + groups,) ν and the prices of groups, y with g + Eᵀy ≈ 0 on the free tasks (least squares).

    Where no task is free, or the free ones do not settle y, they come from the dual of the linear program of the gap.
    """
    free = optimum.active.variables == FREE
    on = optimum.active.rows != FREE
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
        room = (bounds.hi - bounds.lo)[order]
        before = np.cumsum(room) - room
        filled = np.clip(1 - bounds.lo.sum() - before, 0, room)
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
    """(min_s gᵀs over the feasible set, (1 + groups,) multipliers ν and group prices there)."""
    scale = float(np.abs(g).max()) or 1.0
    members, groups = bounds.members, len(bounds.groups)
    A_ub, b_ub = None, None
    if groups:
        A_ub, b_ub = np.vstack([members, -members]), np.r_[bounds.group_hi, -bounds.group_lo]
    box: Any = np.column_stack([bounds.lo, bounds.hi])
    program: Any = linprog(g / scale, A_ub, b_ub, A_eq=np.ones((1, len(g))), b_eq=np.ones(1), bounds=box)
    if program.status != 0:
        raise NotCertifiedError(f"The linear program of the duality gap failed: {program.message}")
    upper, lower = program.ineqlin.marginals[:groups], program.ineqlin.marginals[groups:]
    return float(program.fun) * scale, scale * np.r_[-program.eqlin.marginals, lower - upper]


def _quadratic(energy: Energy, bounds: Bounds, start: Optimum | None, quadratic: Quadratic) -> Optimum:
    """Minimiser of a quadratic energy; with weaker proximal terms where the usual one leaves too large a gap."""
    limits = Constraints.of(bounds)

    def measured(p: Floats, active: Active) -> Optimum:
        return Optimum(p, active, duality_gap(energy.gradient(p), p, bounds), quadratic_scale(energy, p))

    near = None
    if start:
        near = (start.p if infeasibility(start.p, bounds) <= FEASIBILITY else None, start.active)
    best = measured(*solve_qp(quadratic, energy.psi, limits, near))
    for epsilon in _REFINEMENTS:
        if best.gap <= 0.1 * RELATIVE_GAP * best.scale:
            break
        finer = measured(*solve_qp(quadratic, energy.psi, limits, (best.p, best.active), best.p, epsilon))
        best = finer if finer.gap < best.gap and infeasibility(finer.p, bounds) <= FEASIBILITY else best
    return best


def _newton(energy: Energy, bounds: Bounds, start: Optimum | None) -> Optimum:
    """Minimiser of an energy with a likelihood or a prior; stops at _NEWTON_GAP, or where rounding stops it."""
    n = len(bounds.tasks)
    p = bounds.spread if start is None else start.p
    active = start.active if start else Active(np.full(n, FREE), np.full(len(bounds.groups), FREE))
    kept_positive = (energy.reference > 0) & (energy.prior > 0)
    if (p[kept_positive] < 1e-9).any():  # a start from elsewhere, where −log p is infinite or nearly so
        p = 0.999 * p + 0.001 * bounds.spread
    limits = Constraints.of(bounds)
    value, least, stalled = energy.value(p), np.inf, 0
    for _ in range(_NEWTON_STEPS):
        g = energy.gradient(p)
        gap = duality_gap(g, p, bounds)
        stalled = 0 if gap < 0.5 * least else stalled + 1
        least = min(gap, least)
        if gap <= _NEWTON_GAP or (gap <= ABSOLUTE_GAP and stalled >= 3):
            break
        H = energy.hessian(p)
        floor = np.where(kept_positive, np.maximum(limits.lo, np.minimum(_SHRINK * p, limits.hi)), limits.lo)
        sums = limits.rows @ p
        # Solved for the step, not for the point: rounding is then relative to the step, and tiny shares stay sharp.
        boxed = Constraints(
            floor - p, limits.hi - p, limits.rows, limits.row_lo - sums, limits.row_hi - sums, total=0.0
        )
        step, active = solve_qp(Quadratic.of(H), -g, boxed, (np.zeros_like(p), active))
        p, value = _line_search(energy, p, step, g, value)
    return Optimum(p, active, duality_gap(energy.gradient(p), p, bounds), 1.0)


def _line_search(energy: Energy, p: Floats, d: Floats, g: Floats, value: float) -> tuple[Floats, float]:
    """The first of p + d, p + d/2, ... with sufficient decrease (Armijo), or p itself."""
    slope = float(g @ d)
    step = 1.0
    # Below rounding of the energy, decrease cannot be seen any more; Newton's full step is then the better judge.
    blind = 1e-13 * max(1.0, abs(value))
    while step > 1e-10:
        trial = p + step * d
        trial_value = energy.value(trial)
        if trial_value <= value + 1e-4 * step * slope + blind:
            return trial, trial_value
        step /= 2
    return p, value
