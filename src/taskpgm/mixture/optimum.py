"""`Optimum`: where an energy is least within bounds, and the proof that it is.

Quadratic energies are one quadratic program; a likelihood is a few of them (Newton's method with a line search, each
step a program on the second-order expansion: sequential quadratic programming as in mixSQP, Kim et al. 2020).
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from taskpgm.mixture.bounds import Bounds
from taskpgm.mixture.certificate import (
    ABSOLUTE_GAP,
    FEASIBILITY,
    RELATIVE_GAP,
    NotCertifiedError,
    Optimum,
    duality_gap,
    infeasibility,
    quadratic_scale,
)
from taskpgm.mixture.energy import Energy
from taskpgm.mixture.qp import FREE, LOWER, Active, Constraints, Quadratic, solve_qp
from taskpgm.types import Floats

# Newton goes on to this gap: it is quadratic at the end, so the digits beyond ABSOLUTE_GAP are nearly free.
_NEWTON_GAP = 1e-10
_NEWTON_STEPS = 100  # a guess, far more than the quadratic end needs; the certificate decides
# Proximal weights of steps around the last solution, tried in turn until the gap closes: smaller than PROXIMAL, then
# larger, which are better conditioned where rounding keeps the others from moving.
_REFINEMENTS = (1e-10, 1e-11, 1e-12, 1e-13, 1e-7, 1e-6)
# A step may shrink a share that the prior keeps positive to this fraction of itself; log p leaves its model below.
_SHRINK = 0.02
_TINY = 1e-8  # below it a share moves nothing but its own slope, so that it follows from the others' in closed form


def minimise(
    energy: Energy, bounds: Bounds, start: Optimum | None = None, prepared: Quadratic | None = None
) -> Optimum:
    """Minimiser of `energy` over `bounds`, of least norm if there are several.

    Args:
        start: optimum of a neighbouring problem; fewer steps, the same result.
        prepared: `Quadratic.of(energy.K)`, if many energies share K.

    Raises:
        NotCertifiedError: the gap of what was found exceeds its tolerance.
    """
    kept = bounds.hi > 0
    if not kept.all():
        # A task that is out must not set the scale of the problem: its own curvature can exceed all others by far.
        near = start and Optimum(start.p[kept], Active(start.active.variables[kept], start.active.rows), 0.0, 1.0)
        return _with_zeros(minimise(energy.restrict_to(kept), bounds.restrict_to(kept), near), kept)
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


def nearest_to_uniform(bounds: Bounds) -> Floats:
    """(n,) the mixture within bounds of least KL(p‖u), u uniform; certified."""
    n, none = len(bounds.tasks), np.empty(0)
    zero, u = np.zeros(n), np.full(n, 1 / n)
    energy = Energy(
        "likelihood", bounds.tasks, zero, zero, np.zeros((n, n)), np.empty((n, 0)), none, none, u, prior=1.0
    )
    return minimise(energy, bounds).p


def _with_zeros(optimum: Optimum, kept: NDArray[np.bool_]) -> Optimum:
    p, variables = np.zeros(len(kept)), np.full(len(kept), LOWER)
    p[kept], variables[kept] = optimum.p, optimum.active.variables
    return replace(optimum, p=p, active=Active(variables, optimum.active.rows))


def _quadratic(energy: Energy, bounds: Bounds, start: Optimum | None, quadratic: Quadratic) -> Optimum:
    """Minimiser of a quadratic energy; with other proximal terms if the usual one leaves too large a gap."""
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
    """Minimiser of an energy with a likelihood or a prior; stops at _NEWTON_GAP, or when rounding stops it."""
    n = len(bounds.tasks)
    p = bounds.spread if start is None else start.p
    active = start.active if start else Active(np.full(n, FREE), np.full(len(bounds.groups), FREE))
    positive = energy.prior > 0  # log p keeps all shares so
    if positive and (p < 1e-9).any():  # a start from elsewhere, where it is infinite or nearly so
        p = 0.999 * p + 0.001 * bounds.spread
    limits = Constraints.of(bounds)
    value, least, stalled = energy.value(p), np.inf, 0
    for _ in range(_NEWTON_STEPS):
        g = energy.gradient(p)
        gap = duality_gap(g, p, bounds)
        stalled = 0 if gap < 0.5 * least else stalled + 1
        least = min(gap, least)
        inside = infeasibility(p, bounds) <= FEASIBILITY
        if (inside and gap <= _NEWTON_GAP) or (gap <= ABSOLUTE_GAP and stalled >= 3):
            break
        H, tiny = energy.hessian(p), positive & (p < _TINY)
        H[tiny], H[:, tiny] = 0.0, 0.0
        H[tiny, tiny] = 1.0
        floor = np.maximum(limits.lo, np.minimum(_SHRINK * p, limits.hi)) if positive else limits.lo
        sums = limits.rows @ p
        # Solved for the step, not for the point: rounding is then relative to the step, and small shares stay sharp.
        boxed = Constraints(
            np.where(tiny, 0.0, floor - p), np.where(tiny, 0.0, limits.hi - p), limits.rows, limits.row_lo - sums,
            limits.row_hi - sums, total=1 - p.sum(),
        )  # fmt: skip
        step, active = solve_qp(Quadratic.of(H), -g, boxed, (np.zeros_like(p), active))
        p, value = _line_search(energy, p, step, g, value)
        if tiny.any():
            p = _with_tiny(energy, limits, p, active, tiny)
    return Optimum(p, active, duality_gap(energy.gradient(p), p, bounds), 1.0)


def _with_tiny(energy: Energy, limits: Constraints, p: Floats, active: Active, tiny: NDArray[np.bool_]) -> Floats:
    """p with tiny shares where their slope is that of the others: κ log p_i moves it, and they move nothing else.

    The slope of a free share is the multiplier of the sum, plus those of the groups at a limit that hold the task.
    """
    inside = ~tiny & (p > limits.lo + _TINY) & (p < limits.hi - _TINY)
    if not inside.any():
        return p
    g = energy.gradient(p)
    rows = np.vstack([np.ones(len(p)), limits.rows[active.rows != FREE]])
    multipliers = np.linalg.lstsq(rows[:, inside].T, g[inside], rcond=None)[0]
    grown = np.minimum(p * np.exp(np.minimum((rows.T @ multipliers - g) / energy.prior, 700.0)), 20 * _TINY)
    found = np.where(tiny, np.clip(grown, np.maximum(limits.lo, 1e-300), limits.hi), p)
    found[np.argmax(np.where(inside, p, 0.0))] += p.sum() - found.sum()
    return found


def _line_search(energy: Energy, p: Floats, d: Floats, g: Floats, value: float) -> tuple[Floats, float]:
    """The first of p + d, p + d/2, ... with sufficient decrease (Armijo), or p itself."""
    slope = float(g @ d)
    step = 1.0
    # Below rounding of the energy, decrease cannot be seen any more; Newton's full step is then the better judge.
    blind = 1e-13 * max(1.0, abs(value), energy.prior)
    while step > 1e-10:
        trial = p + step * d
        trial_value = energy.value(trial)
        if trial_value <= value + 1e-4 * step * slope + blind:
            return trial, trial_value
        step /= 2
    return p, value
