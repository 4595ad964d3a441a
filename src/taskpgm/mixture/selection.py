"""`Selection`: at most k tasks, in the order in which greedy takes them, with how far from the best k they can be.

Mass is priced at ν, the multiplier of 1ᵀp = 1 at the mixture p* of all tasks, so that p* itself maximises

    f(A) = max { bᵀv − ½vᵀKv : v ≥ 0, supp v ⊆ A },   b = ψ − ν1,   f(∅) = 0.

f is monotone and weakly submodular with ratio γ ≥ λ_min of K scaled to unit diagonal (Das and Kempe 2011; Elenberg et
al. 2018, arXiv 1612.00804; the objective of ProtoDash, arXiv 1707.01212), so greedy's set A_k has
f(A_k) ≥ (1 − e^−γ) f(A*), unless bounds decide which tasks come: those with a least share, and large ones where others
could not hold the budget. Bounds do not enter f: they return when the mixture on the chosen tasks is solved.

Legend: P the chosen tasks with v > 0, c = b − Kv the gain per unit of mass.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from taskpgm.errors import UserError
from taskpgm.mixture.bounds import SLACK, Bounds, simplex
from taskpgm.mixture.certificate import multipliers
from taskpgm.mixture.energy import Energy, field_energy
from taskpgm.mixture.linalg import SHIFT_MARGIN, mean_curvature, tangent_basis
from taskpgm.mixture.maximiser import DEPENDENT, ZERO, Pricing, maximise
from taskpgm.mixture.optimum import minimise
from taskpgm.types import Brief, Floats, Ints

EXHAUSTIVE_UP_TO = 20  # tasks: 2^20 sets at worst, most of which branch and bound leaves out
_TINY = 1e-300  # what is smaller cannot be divided by


@dataclass(frozen=True, eq=False, repr=False)
class Selection(Brief):
    """Chosen tasks in order, with the value f after each and bounds on what the best set of that size reaches."""

    chosen: tuple[str, ...]
    values: Floats  # (k,) f of the first 1, 2, ... chosen tasks
    full_value: float  # f of all tasks
    gamma: float
    level: float
    shift: float
    upper_bound: float  # f(A*) of the best k tasks is at most this
    exhaustive: bool  # whether every set was considered; `chosen` is then optimal, ordered by weight
    resolved: int  # candidates that needed an exact non-negative re-solve
    bounded: bool = False  # whether bounds on shares kept greedy from taking what gains most

    @property
    def gains(self) -> Floats:
        """(k,) what each task added to f."""
        return np.diff(self.values, prepend=0.0)

    @property
    def guarantee(self) -> float:
        """1 − e^−γ: the part of f(A*) that greedy is known to reach before looking; 1 for an exhaustive search, 0 if
        bounds on shares decided."""
        return 1.0 if self.exhaustive else 0.0 if self.bounded else 1 - math.exp(-self.gamma)

    @property
    def certified(self) -> float:
        """f(A_k) over the upper bound on f(A*): the part of the best that is known to be reached, after looking."""
        if len(self.values) == 0 or self.upper_bound <= 0:
            return 1.0
        return max(min(float(self.values[-1]) / self.upper_bound, 1.0), self.guarantee)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: order, values, gains and guarantees."""
        steps = zip(self.chosen, self.values, self.gains, strict=True)
        return {
            "chosen": [{"task": task, "value": float(value), "gain": float(gain)} for task, value, gain in steps],
            "full_value": self.full_value,
            "gamma": self.gamma,
            "guarantee": self.guarantee,
            "upper_bound": self.upper_bound,
            "certified": self.certified,
            "level": self.level,
            "shift": self.shift,
            "exhaustive": self.exhaustive,
            "bounded": self.bounded,
            "resolved": self.resolved,
        }


def select_tasks(
    energy: Energy, bounds: Bounds | None = None, k: int | None = None, exhaustive: bool | None = None
) -> Selection:
    """Selection of at most k tasks (all if k is None) by greedy, or exactly by branch and bound.

    Tasks with a least share above zero come first, whatever they gain.

    Args:
        exhaustive: search every set; for at most 20 tasks. None: greedy.

    Raises:
        UserError: an energy of gains; k is not between 1 and n, fewer than the tasks that must be in, or too small to
            hold the budget; `exhaustive` with more than 20 tasks.
    """
    if energy.kind == "gain":
        raise UserError(
            "energy.kind 'gain' knows no redundancy between tasks, so a selection by it would be the tasks of highest "
            "gain; use likelihood or affinity to select."
        )
    n = len(energy.tasks)
    bounds = bounds or simplex(energy.tasks)
    k = n if k is None else k
    forced = np.flatnonzero(bounds.lo > 0)
    _check(n, k, forced, exhaustive)
    pricing = price(energy, bounds)
    allowed = np.flatnonzero(bounds.hi > 0)
    if exhaustive:
        order, values, resolved, bounded = _branch_and_bound(pricing, k, forced, bounds.hi), None, 0, False
    else:
        order, values, resolved, bounded = _greedy(pricing, min(k, len(allowed)), forced, bounds)
    if values is None:
        values = np.array([maximise(pricing, order[: i + 1])[1] for i in range(len(order))])
    full = 0.5 * float(pricing.b @ pricing.p)
    upper = float(values[-1]) if exhaustive else _upper_bound(pricing, order, float(values[-1]), k, full)
    chosen = tuple(energy.tasks[i] for i in order)
    bounds.with_others_at_zero(chosen)
    return Selection(
        chosen, values, full, pricing.gamma, pricing.level, pricing.shift, upper, bool(exhaustive), resolved, bounded
    )


def price(energy: Energy, bounds: Bounds | None = None) -> Pricing:
    """Pricing of mass at the multiplier of the mixture of all tasks; of a likelihood, of its field at that mixture.

    Only tasks that `bounds` exclude altogether stay out; other bounds do not enter.
    """
    bounds = bounds or simplex(energy.tasks)
    free = Bounds(energy.tasks, np.zeros(len(energy.tasks)), (bounds.hi > 0).astype(np.float64))
    energy = replace(energy, without=(), only=(), seeds=())
    optimum = minimise(energy, free)
    psi, K = energy.field_at(optimum.p)
    level = _level(K)
    K = K + level
    shift = _spectral_shift(K)
    if shift:
        K = K + shift * np.eye(len(K))
        optimum = minimise(field_energy(energy.tasks, psi, K), free)
    nu = multipliers(K @ optimum.p - psi, optimum.p, free)[0]
    diagonal = np.sqrt(np.where(np.diag(K) > 0, np.diag(K), 1.0))
    gamma = max(float(np.linalg.eigvalsh(K / diagonal / diagonal[:, None])[0]), 0.0)
    return Pricing(psi - nu, K, optimum.p, level, shift, gamma)


def _spectral_shift(K: Floats) -> float:
    """What K's diagonal lacks to be positive semidefinite on all of ℝⁿ, and a margin; 0 if nothing is lacking."""
    values = np.linalg.eigvalsh(K)
    scale = float(np.abs(values).max())
    return 0.0 if values[0] >= -1e-12 * len(K) * scale else float(-values[0] + SHIFT_MARGIN * scale)


def _level(K: Floats) -> float:
    """c for which K + c·11ᵀ has mean curvature along 1, seen from the tangent space; 0 if K is semidefinite.

    A matrix of PMI is negative along 1 and curved upwards on {v : 1ᵀv = 0}. Adding 11ᵀ repairs that and leaves the
    mixture alone; shifting the whole spectrum would pull the mixture towards uniform.
    """
    n = len(K)
    if n == 1 or _spectral_shift(K) == 0:
        return 0.0
    Z, e = tangent_basis(n), np.full(n, 1 / math.sqrt(n))
    k = Z.T @ (K @ e)
    along = float(e @ K @ e) - float(k @ np.linalg.lstsq(Z.T @ K @ Z, k, rcond=1e-12)[0])
    return max((mean_curvature(K) - along) / n, 0.0)


def _check(n: int, k: int, forced: Ints, exhaustive: bool | None) -> None:
    if not 1 <= k <= n:
        raise UserError(f"selection.k is {k}; with {n} tasks it must be between 1 and {n}.")
    if len(forced) > k:
        raise UserError(f"selection.k is {k} but {len(forced)} tasks have a min_share; raise k or lower a min_share.")
    if exhaustive and n > EXHAUSTIVE_UP_TO:
        raise UserError(f"An exhaustive search over {n} tasks is too long; it takes {EXHAUSTIVE_UP_TO} at most.")


def _greedy(pricing: Pricing, k: int, forced: Ints, bounds: Bounds) -> tuple[list[int], Floats, int, bool]:
    """(order, f after each, exact re-solves, whether bounds decided): always the candidate of largest exact gain, the
    first of equals.

    Only candidates with which k tasks can still hold the whole budget count; it ends early when nothing gains any more.
    """
    order: list[int] = []
    values: list[float] = []
    resolved, bounded = 0, len(forced) > 0
    v, value = np.zeros(len(pricing.b)), 0.0
    for step in range(k):
        if step < len(forced):
            best = int(forced[step])
            v, value = maximise(pricing, [*order, best], v)
        else:
            candidates = _able(bounds.hi, order, k)
            bounded |= len(candidates) + len(order) < int((bounds.hi > 0).sum())
            best, new_v, new_value, count = _best_candidate(pricing, order, candidates, v, value)
            resolved += count
            if new_value <= value and bounds.hi[order].sum() >= 1 - SLACK:
                break
            v, value = new_v, new_value
        order.append(best)
        values.append(value)
    return order, np.array(values), resolved, bounded


def _able(hi: Floats, order: list[int], k: int) -> Ints:
    """Candidates after which the largest shares of the remaining choices still add up to the budget."""
    candidates = np.setdiff1d(np.flatnonzero(hi > 0), order)
    later = k - len(order) - 1
    by_share = np.sort(hi[candidates])[::-1]
    with_others = by_share[:later].sum()
    # A candidate among the largest takes one of their places, so the next largest moves up.
    largest = hi[candidates] >= (by_share[later - 1] if later > 0 else np.inf)
    spare = by_share[later] if later < len(by_share) else 0.0
    total = hi[order].sum() + with_others + np.where(largest, spare, hi[candidates])
    able = candidates[total >= 1 - SLACK]
    return able if len(able) else candidates


def _best_candidate(
    pricing: Pricing, order: list[int], candidates: Ints, v: Floats, value: float
) -> tuple[int, Floats, float, int]:
    """(candidate, v, f, exact re-solves) of the largest f(A ∪ {j}).

    If adding j leaves the earlier v non-negative, and the earlier tasks with v = 0 still not worth having, the gain
    is the closed form c_j²/(2d_j), d_j the Schur complement. The others are re-solved, the most promising first, until
    no upper bound of the rest exceeds the best gain found.
    """
    b, K = pricing.b, pricing.K
    positive = np.array([i for i in order if v[i] > 0], dtype=np.int64)
    idle = np.array([i for i in order if v[i] <= 0], dtype=np.int64)
    c = b - K @ v
    c_j, diagonal = c[candidates], np.diag(K)[candidates]
    X = np.zeros((len(positive), len(candidates)))
    d = diagonal.copy()
    if len(positive):
        columns = K[np.ix_(positive, candidates)]
        X = cho_solve(cho_factor(K[np.ix_(positive, positive)], check_finite=False), columns, check_finite=False)
        d = diagonal - np.einsum("pj,pj->j", columns, X)
    scale = float(np.abs(b).max()) or 1.0
    worth = c_j > ZERO * scale
    sound = d > DEPENDENT * np.maximum(diagonal, 1e-300)
    step = np.where(worth & sound, c_j / np.where(sound, d, 1.0), 0.0)
    kept = (v[positive][:, None] - X * step >= 0).all(axis=0)
    if len(idle):
        rise = K[np.ix_(idle, candidates)] - K[np.ix_(idle, positive)] @ X
        kept &= (c[idle][:, None] - rise * step <= ZERO * scale).all(axis=0)
    closed = np.where(sound & kept, 0.5 * c_j * step, 0.0)
    best_at = int(np.argmax(closed))
    best_gain, best_v = float(closed[best_at]), None
    most = _most(pricing, v, value, candidates, c_j)
    if len(idle) == 0:  # c_j²/(2d_j) lets the others go negative
        most = np.minimum(most, np.where(sound, 0.5 * c_j**2 / np.where(sound, d, 1.0), np.inf) + 1e-12 * abs(value))
    limit = np.where(worth & ~(sound & kept), most, 0.0)
    count = 0
    for at in np.argsort(-limit, kind="stable"):
        if limit[at] < best_gain * (1 - 1e-12) or limit[at] == 0:
            break
        trial, trial_value = maximise(pricing, [*order, int(candidates[at])], v)
        count += 1
        gain = trial_value - value
        tie = abs(gain - best_gain) <= 1e-12 * abs(best_gain)
        if (gain > best_gain and not tie) or (tie and at < best_at):
            best_at, best_gain, best_v = int(at), gain, trial
    j = int(candidates[best_at])
    if best_v is None:
        best_v = v.copy()
        best_v[positive] -= X[:, best_at] * step[best_at]
        best_v[j] = step[best_at]
    return j, best_v, value + best_gain, count


def _most(pricing: Pricing, v: Floats, value: float, candidates: Ints, c: Floats) -> Floats:
    """An upper bound on the gain of each candidate j.

    By duality f(A) = min {½xᵀKx : Kx ≥ b on A}. x = (1−s)v + s p* with s = c_j/(c_j + (Kp* − b)_j) is feasible for
    A ∪ {j}, because Kv ≥ b on A and Kp* ≥ b everywhere.
    """
    slack = np.maximum((pricing.K @ pricing.p - pricing.b)[candidates], 0.0)
    s = np.divide(c, c + slack, out=np.zeros_like(c), where=c > _TINY)
    vKv, vKp, pKp = (float(x @ pricing.K @ y) for x, y in ((v, v), (v, pricing.p), (pricing.p, pricing.p)))
    dual = 0.5 * ((1 - s) ** 2 * vKv + 2 * s * (1 - s) * vKp + s**2 * pKp) - value
    # Rounding of the difference above must not hide a gain.
    return np.maximum(dual, 0.0) + 1e-12 * abs(value)


def _upper_bound(pricing: Pricing, order: list[int], value: float, k: int, full: float) -> float:
    """f(A*) of any k tasks is at most this: from the gains at A_k and the curvature γ diag K, and never above f(all).

    With v on A_k and c = b − Kv, any x ≥ 0 on S has bᵀx − ½xᵀKx ≤ f(A_k) + cᵀ(x − v) − ½γ Σ_i K_ii (x_i − v_i)².
    Task by task: outside A_k the best x_i gains c_i²/(2γK_ii); a task of A_k that S lacks costs ½γK_ii v_i².
    """
    if pricing.gamma <= 0:
        return full
    v, _ = maximise(pricing, order)
    c = np.maximum(pricing.b - pricing.K @ v, 0.0)
    curvature = pricing.gamma * np.diag(pricing.K)
    outside = np.ones(len(v), dtype=bool)
    outside[order] = False
    gain = np.divide(c**2, 2 * curvature, out=np.where(c > 0, np.inf, 0.0), where=curvature > 0)
    loss = 0.5 * curvature * v**2
    score = np.where(outside, gain, loss)
    bound = value + float(np.sort(score)[::-1][:k].sum()) - float(loss[~outside].sum())
    return max(min(bound, full), value)


def _branch_and_bound(pricing: Pricing, k: int, forced: Ints, hi: Floats) -> list[int]:
    """The best k tasks that can hold the budget, by weight: f of the tasks not yet excluded bounds every set of them.

    A branch is settled when its maximiser, with others to hold what it cannot, has at most k tasks; else its heaviest
    undecided task goes out, or stays in. It is left when no k tasks hold the budget.
    """
    best_value, best_order = -np.inf, [int(i) for i in forced]

    def visit(pool: frozenset[int], kept: frozenset[int]) -> None:
        nonlocal best_value, best_order
        if not _filled(hi, kept, pool, k):
            return
        v, value = maximise(pricing, kept if len(kept) == k else pool)
        if value <= best_value + 1e-14 * abs(best_value):
            return
        used = kept | {int(i) for i in np.flatnonzero(v > 0)}
        if filled := _filled(hi, used, pool, k):
            best_value, best_order = value, sorted(filled, key=lambda i: (-v[i], i))
            return
        heaviest = max(used - kept, key=lambda i: (v[i], -i))
        visit(pool, kept | {heaviest})
        visit(pool - {heaviest}, kept)

    visit(frozenset(np.flatnonzero(hi > 0).tolist()), frozenset(int(i) for i in forced))
    return best_order


def _filled(hi: Floats, used: frozenset[int], pool: frozenset[int], k: int) -> frozenset[int]:
    """These tasks and the largest others of the pool that it takes to hold the budget; none if that is more than k."""
    others = sorted(pool - used, key=lambda i: (-hi[i], i))
    while len(used) < k and others and hi[list(used)].sum() < 1 - SLACK:
        used |= {others.pop(0)}
    return used if len(used) <= k and hi[list(used)].sum() >= 1 - SLACK else frozenset()
