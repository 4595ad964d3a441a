"""One convex quadratic program over a bounded simplex, exactly: an active-set method, with PIQP behind it.

    minimise ½ xᵀKx − ψᵀx   subject to   1ᵀx = 1 (or 0),  lo ≤ x ≤ hi,  group_lo ≤ Ax ≤ group_hi

The primal–dual active set method (Hintermüller, Ito and Kunisch 2002) guesses which variables sit at a bound, solves
the equality-constrained problem on the rest, and corrects the guess when a variable leaves its bounds or a multiplier
has the wrong sign. It usually needs a handful of Cholesky factorisations of the free block, one if the guess comes
from a neighbouring problem. If it does not settle, better conditioned problems lead up to this one, with primal
active set steps between them; if those are too many, PIQP (an interior point method) supplies the guess.

If K is singular the proximal term ½ε‖x − c‖², first around c = uniform, picks the optimum of least norm; steps with
c = the last solution then remove the error that ε made elsewhere.

Legend: H, b the centred and scaled K and ψ; F free variables; E the equality rows (1 and the active groups).
"""

from dataclasses import dataclass, replace

import numpy as np
import piqp  # type: ignore[import-untyped]
from scipy.linalg import LinAlgError
from scipy.linalg.lapack import dpotrf, dpotrs

from taskpgm.mixture.bounds import Bounds
from taskpgm.types import Floats, Ints

# Relative to the mean curvature. Larger leaves more of it in the least-norm optimum, smaller drowns that in rounding.
PROXIMAL = 1e-9
FREE, LOWER, UPPER = 0, -1, 1
_TOLERANCE = 1e-11  # of signs and bounds, in units of the scaled problem; rounding errors of n = 2,000 stay below
_ROUNDS = 40  # exchanges of the guess; a guess, one that settles takes a handful
_PATIENCE = 3  # exchanges in a row without fewer wrong entries: then it cycles
_DESCENTS = 1000  # primal steps: a guess, each drops or takes up one bound
_NEIGHBOURLY = 100  # the same from a neighbour's solution: a guess, near ones need few
_CONTINUATION = (1e0, 1e-2, 1e-4, 1e-6, 1e-7, 1e-8)  # proximal weights that lead up to PROXIMAL


@dataclass(frozen=True, eq=False)
class Constraints:
    """Bounds as bare arrays, ready for a solver: they may be tighter than the user's own (a trust region)."""

    lo: Floats
    hi: Floats
    rows: Floats  # (groups, n)
    row_lo: Floats
    row_hi: Floats
    total: float = 1.0  # what x sums to: 1 for a mixture, 0 for a step from one

    @classmethod
    def of(cls, bounds: Bounds) -> "Constraints":
        """The arrays of `bounds`; a share of at most one is no bound of its own, so it never becomes active."""
        hi = np.where(bounds.hi >= 1, 2.0, bounds.hi)
        return cls(bounds.lo, hi, bounds.members, bounds.group_lo, bounds.group_hi)


@dataclass(frozen=True, eq=False)
class Active:
    """Which variables and groups sit at which bound: FREE, LOWER or UPPER each; the warm start of the next problem."""

    variables: Ints  # (n,)
    rows: Ints  # (groups,)


@dataclass(frozen=True, eq=False)
class Quadratic:
    """K centred, J K J + (s/n) 11ᵀ with J = I − 11ᵀ/n, and divided by its mean curvature s; the same on the simplex."""

    H: Floats
    offset: Floats  # (n,) J K 1/n, what centring moved into the linear term
    scale: float

    @classmethod
    def of(cls, K: Floats) -> "Quadratic":
        """K prepared once, for any number of ψ and constraints."""
        n = len(K)
        mean = K.mean(axis=0)
        H = K - mean
        H -= mean[:, None] - mean.mean()
        s = float(np.trace(H)) / max(n - 1, 1)
        # A K that is constant up to rounding leaves a linear problem; s = 1 then, and only the proximal term curves it.
        if s <= 1e-15 * float(np.abs(mean).max()):
            return cls(np.full((n, n), 1 / n), mean - mean.mean(), 0.0)
        H /= s
        H += 1 / n
        return cls(H, mean - mean.mean(), s)


def solve_qp(
    quadratic: Quadratic,
    psi: Floats,
    constraints: Constraints,
    start: tuple[Floats | None, Active] | None = None,
    center: Floats | None = None,
    epsilon: float = PROXIMAL,
) -> tuple[Floats, Active]:
    """Minimiser of ½xᵀKx − ψᵀx, of least norm if there are several, and what is active at it.

    The caller checks the result: the constraints must be feasible, and K convex on {v : 1ᵀv = 0}.

    Args:
        start: solution of a neighbouring problem (None if it is not feasible here) and what is active at it.
        center: a nearly optimal x to refine, with an epsilon smaller than PROXIMAL; uniform if left out.
    """
    b = psi - psi.mean() - constraints.total * quadratic.offset
    scale = quadratic.scale or float(np.abs(b).max()) or 1.0
    problem = _Problem(quadratic.H, b / scale, constraints, epsilon)
    center = np.full(len(b), constraints.total / len(b)) if center is None else center
    near, active = start or (None, Active(np.full(len(b), FREE), np.full(len(constraints.row_lo), FREE)))
    x, active = problem.solve(center, near, _pin_fixed(active, constraints))
    # Again around the solution: what is left of the proximal term's error is its square.
    return problem.solve(x, x, active)


@dataclass(frozen=True, eq=False)
class _Problem:
    H: Floats
    b: Floats
    limits: Constraints
    epsilon: float

    def solve(self, center: Floats, x: Floats | None, active: Active) -> tuple[Floats, Active]:
        """Minimiser of the proximal problem around `center`, from a neighbour's solution x if there is one."""
        found = self._exchange(center, active)
        if found is None and x is not None:
            found = self._descend(center, x, active, _NEIGHBOURLY)
        if found is None:
            found = self._continuation(center, active)
        if found is None:
            guess = self._interior_point(center)
            found = self._exchange(center, guess[1]) or self._descend(center, *guess, _DESCENTS) or guess
        return found

    def _descend(self, center: Floats, x: Floats, active: Active, steps: int) -> tuple[Floats, Active] | None:
        """Primal active set steps from a feasible x: slower than exchanging, but each goes down; None if too many."""
        for _ in range(steps):
            solved = self._on_active(center, active)
            if solved is None:
                return None
            target, y = solved
            x, blocked = self._towards(x, target, active)
            if blocked is not None:
                active = blocked
                continue
            released = self._released(center, active, x, y)
            if released is None:
                return x, active
            active = released
        return None

    def _towards(self, x: Floats, target: Floats, active: Active) -> tuple[Floats, Active | None]:
        """As far from x to target as the bounds allow, and the active set with what stopped it, if anything did."""
        lim, d = self.limits, target - x
        position, direction = np.r_[x, lim.rows @ x], np.r_[d, lim.rows @ d]
        lo, hi = np.r_[lim.lo, lim.row_lo], np.r_[lim.hi, lim.row_hi]
        free = np.r_[active.variables, active.rows] == FREE
        distance = np.where(direction > 0, hi - position, position - lo)
        moving = free & (np.abs(direction) > 1e-16)
        steps = np.full(len(position), np.inf)
        np.divide(np.maximum(distance, 0), np.abs(direction), out=steps, where=moving)
        at = int(np.argmin(steps))
        if steps[at] >= 1:
            return target, None
        flags = np.r_[active.variables, active.rows]
        flags[at] = UPPER if direction[at] > 0 else LOWER
        x = x + steps[at] * d
        if at < len(x):
            x[at] = hi[at] if direction[at] > 0 else lo[at]
        return x, Active(flags[: len(x)], flags[len(x) :])

    def _released(self, center: Floats, active: Active, x: Floats, y: Floats) -> Active | None:
        """The active set without the constraint whose multiplier has the wrong sign the most; None at the optimum."""
        lim = self.limits
        on = active.rows != FREE
        price = np.zeros(len(on))
        price[on] = y[1:]
        z = self.H @ x + self.epsilon * (x - center) - self.b + y[0] + price @ lim.rows
        flags = np.r_[active.variables, active.rows]
        movable = np.r_[lim.lo < lim.hi, lim.row_lo < lim.row_hi]
        wrong = np.where(movable, np.r_[-z, price] * -flags, 0.0)
        worst = int(np.argmax(wrong))
        if wrong[worst] <= 1e-15 * max(1.0, float(np.abs(self.b).max())):
            return None
        flags[worst] = FREE
        return Active(flags[: len(x)], flags[len(x) :])

    def _continuation(self, center: Floats, active: Active) -> tuple[Floats, Active] | None:
        """Minimiser by way of well-conditioned problems around the same center, each the start of the next."""
        x: Floats | None = None
        for epsilon in (*_CONTINUATION, self.epsilon):
            stage = replace(self, epsilon=epsilon)
            found = stage._exchange(center, active)
            if found is None and x is not None:
                found = stage._descend(center, x, active, _NEIGHBOURLY)
            if found is None:
                return None
            x, active = found
        return found

    def _exchange(self, center: Floats, active: Active) -> tuple[Floats, Active] | None:
        """Primal–dual active set iterations; None if they do not settle."""
        fewest, patience = np.inf, _PATIENCE
        for _ in range(_ROUNDS):
            if not (active.variables == FREE).any():
                active = self._with_one_free(center, active)
            solved = self._on_active(center, active)
            if solved is None:
                return None
            x, y = solved
            following, wrong = self._corrected(center, active, x, y)
            if wrong == 0:
                return x, active
            if wrong < fewest:
                fewest, patience = wrong, _PATIENCE
            else:
                patience -= 1
                if patience == 0:
                    return None
            active = following
        return None

    def _with_one_free(self, center: Floats, active: Active) -> Active:
        """The same guess with one variable let go: the one that gains most from taking up what the sum lacks."""
        lim = self.limits
        x = np.where(active.variables == LOWER, lim.lo, lim.hi)
        slope = self.H @ x + self.epsilon * (x - center) - self.b
        side, sign = (LOWER, 1.0) if x.sum() <= lim.total + _TOLERANCE else (UPPER, -1.0)
        candidates = (active.variables == side) & (lim.lo < lim.hi)
        if not candidates.any():
            candidates = lim.lo < lim.hi
        variables = active.variables.copy()
        if candidates.any():
            variables[np.argmin(np.where(candidates, sign * slope, np.inf))] = FREE
        return Active(variables, active.rows)

    def _on_active(self, center: Floats, active: Active) -> tuple[Floats, Floats] | None:
        """(x, multipliers of E) with the active constraints as equations; None if no variable is free for them."""
        lim = self.limits
        x = np.where(active.variables == LOWER, lim.lo, np.where(active.variables == UPPER, lim.hi, 0.0))
        free = np.flatnonzero(active.variables == FREE)
        if len(free) == 0:
            return None
        on = active.rows != FREE
        E = np.vstack([np.ones((1, len(x))), lim.rows[on]])
        e = np.r_[lim.total, np.where(active.rows == LOWER, lim.row_lo, lim.row_hi)[on]]
        right = self.b + self.epsilon * center
        fixed = np.flatnonzero(x)
        if len(fixed):
            right = right - self.H[:, fixed] @ x[fixed]
        block = self.H if len(free) == len(x) else self.H[np.ix_(free, free)]
        block = _add_diagonal(block.copy() if len(free) == len(x) else block, self.epsilon)
        factor, info = dpotrf(block.T, lower=1, overwrite_a=1, clean=0)
        if info != 0:
            return None
        E_F = E[:, free]
        solved, _ = dpotrs(factor, np.column_stack([right[free], E_F.T]), lower=1)
        unconstrained, Z = solved[:, 0], solved[:, 1:]
        schur, gap = E_F @ Z, E_F @ unconstrained - (e - E @ x)
        try:
            y = gap / schur[0, 0] if len(e) == 1 else np.linalg.lstsq(schur, gap, rcond=1e-13)[0]
        except LinAlgError:
            return None
        x[free] = unconstrained - Z @ y
        # Groups whose free members coincide can contradict each other under a wrong guess.
        return (x, y) if len(e) == 1 or np.abs(E @ x - e).max() <= 1e-10 else None

    def _corrected(self, center: Floats, active: Active, x: Floats, y: Floats) -> tuple[Active, int]:
        """The next guess, and how many entries of this one are wrong."""
        lim = self.limits
        z = self.H @ x + self.epsilon * (x - center) - self.b + y[0]
        on = active.rows != FREE
        if on.any():
            z = z + y[1:] @ lim.rows[on]
        variables = active.variables.copy()
        free, movable = variables == FREE, lim.lo < lim.hi
        tolerance = min(_TOLERANCE, max(1e-2 * self.epsilon, 1e-15)) * max(1.0, float(np.abs(self.b).max()))
        variables[free & (x < lim.lo - _TOLERANCE)] = LOWER
        variables[free & (x > lim.hi + _TOLERANCE)] = UPPER
        variables[(active.variables == LOWER) & (z < -tolerance) & movable] = FREE
        variables[(active.variables == UPPER) & (z > tolerance) & movable] = FREE
        rows = active.rows.copy()
        if len(rows):
            sums, price = lim.rows @ x, np.zeros(len(rows))
            price[on] = y[1:]
            rows[~on & (sums < lim.row_lo - _TOLERANCE)] = LOWER
            rows[~on & (sums > lim.row_hi + _TOLERANCE)] = UPPER
            turnable = lim.row_lo < lim.row_hi
            rows[(active.rows == LOWER) & (price > tolerance) & turnable] = FREE
            rows[(active.rows == UPPER) & (price < -tolerance) & turnable] = FREE
        wrong = int((variables != active.variables).sum() + (rows != active.rows).sum())
        return Active(variables, rows), wrong

    def _interior_point(self, center: Floats) -> tuple[Floats, Active]:
        """PIQP's solution, made feasible, and the constraints whose multiplier exceeds their slack there."""
        n, lim = len(self.b), self.limits
        solver = piqp.DenseSolver()
        solver.settings.eps_abs = solver.settings.eps_rel = 1e-12
        solver.settings.max_iter = 60
        rows = (lim.rows, lim.row_lo, lim.row_hi) if len(lim.rows) else (None, None, None)
        P = _add_diagonal(self.H.copy(), PROXIMAL)
        solver.setup(P, -(self.b + PROXIMAL * center), np.ones((1, n)), np.full(1, lim.total), *rows, lim.lo, lim.hi)
        solver.solve()
        result = solver.result
        variables = np.full(n, FREE)
        variables[result.z_bl > result.x - lim.lo] = LOWER
        variables[result.z_bu > lim.hi - result.x] = UPPER
        active_rows = np.full(len(lim.row_lo), FREE)
        if len(lim.rows):
            sums = lim.rows @ result.x
            active_rows[result.z_l > sums - lim.row_lo] = LOWER
            active_rows[result.z_u > lim.row_hi - sums] = UPPER
        active = _pin_fixed(Active(variables, active_rows), lim)
        return self._onto(result.x, active), active

    def _onto(self, x: Floats, active: Active) -> Floats:
        """The point nearest to x that meets the active constraints as equations."""
        lim = self.limits
        x = np.where(active.variables == LOWER, lim.lo, np.where(active.variables == UPPER, lim.hi, x))
        on, free = active.rows != FREE, active.variables == FREE
        E = np.vstack([np.ones((1, len(x))), lim.rows[on]])
        e = np.r_[lim.total, np.where(active.rows == LOWER, lim.row_lo, lim.row_hi)[on]]
        if free.any():
            x[free] += np.linalg.lstsq(E[:, free], e - E @ x, rcond=None)[0]
        return np.clip(x, lim.lo, lim.hi)


def _pin_fixed(active: Active, limits: Constraints) -> Active:
    """The same guess with variables and groups whose two bounds agree held there."""
    variables = np.where((limits.lo >= limits.hi) & (active.variables == FREE), LOWER, active.variables)
    rows = np.where((limits.row_lo >= limits.row_hi) & (active.rows == FREE), LOWER, active.rows)
    return Active(variables, rows)


def _add_diagonal(A: Floats, value: float) -> Floats:
    A[np.diag_indices(len(A))] += value
    return A
