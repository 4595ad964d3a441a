"""`Bounds`: which mixtures are allowed, and why when none is.

Feasible set: {p : 1ᵀp = 1, lo ≤ p ≤ hi, lo_g ≤ Σ_{i∈g} p_i ≤ hi_g for every group g}.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from taskpgm.errors import UserError
from taskpgm.mixture.linalg import named_vector
from taskpgm.types import Brief, Floats

# Two shares closer than this count as equal.
SLACK = 1e-12


@dataclass(frozen=True)
class Group:
    """Bounds on the summed share of several tasks."""

    name: str
    tasks: tuple[str, ...]
    lo: float = 0.0
    hi: float = 1.0


@dataclass(frozen=True, eq=False, repr=False)
class Bounds(Brief):
    """Shares that are allowed: bounds on each task and on groups of tasks. A fixed share has lo = hi."""

    tasks: tuple[str, ...]
    lo: Floats  # (n,)
    hi: Floats  # (n,)
    groups: tuple[Group, ...] = ()
    hi_reason: tuple[str, ...] = ()  # (n,) what sets hi: "max_share", "supply", or "selection" (left out)

    @property
    def members(self) -> Floats:
        """(groups, n) 1 if a task belongs to a group."""
        rows = [[float(task in group.tasks) for task in self.tasks] for group in self.groups]
        return np.array(rows).reshape(len(self.groups), len(self.tasks))

    @property
    def group_lo(self) -> Floats:
        """(groups,) least summed share."""
        return np.array([group.lo for group in self.groups])

    @property
    def group_hi(self) -> Floats:
        """(groups,) largest summed share."""
        return np.array([group.hi for group in self.groups])

    def with_others_at_zero(self, chosen: Collection[str]) -> "Bounds":
        """The same bounds with every task outside `chosen` held at zero.

        Raises:
            UserError: a task outside `chosen` has a least share, or the chosen tasks cannot hold the whole budget.
        """
        out = np.array([task not in chosen for task in self.tasks])
        for i in np.flatnonzero(out & (self.lo > 0)):
            raise UserError(
                f"Task {self.tasks[i]!r} has min_share {self.lo[i]:g} but is not among the chosen tasks; "
                "lower its min_share or choose it."
            )
        reasons = self.hi_reason or ("max_share",) * len(self.tasks)
        reason = tuple("selection" if left else why for left, why in zip(out, reasons, strict=True))
        bounds = replace(self, hi=np.where(out, 0.0, self.hi), hi_reason=reason)
        bounds.check()
        return bounds

    def restrict_to(self, kept: NDArray[np.bool_]) -> "Bounds":
        """The same bounds on the tasks that are `kept`, the others having no share."""
        tasks = tuple(task for task, keep in zip(self.tasks, kept, strict=True) if keep)
        groups = tuple(replace(g, tasks=tuple(task for task in g.tasks if task in tasks)) for g in self.groups)
        return Bounds(tasks, self.lo[kept], self.hi[kept], groups)

    @property
    def spread(self) -> Floats:
        """(n,) a mixture that is allowed and positive wherever any is.

        Every share above its least by the same part of its width, that part as large as it can be; if some share then
        has to stay at zero, the mean of the mixtures in which one share each is largest.
        """
        n, width = len(self.tasks), self.hi - self.lo
        part = (1 - self.lo.sum()) / width.sum() if width.sum() > 0 else 0.0
        if not self.groups or self._meets_groups(self.lo + part * width):
            return np.asarray(self.lo + part * width)
        even = self._program(np.r_[np.zeros(n), -1.0], np.c_[-np.eye(n), np.ones(n)])
        if even[n] > 1e-9:
            return self.lo + width * even[:n]
        unit = -np.eye(n + 1)[:n]
        return np.asarray(self.lo + width * np.mean([self._program(cost) for cost in unit], axis=0)[:n])

    def _meets_groups(self, p: Floats) -> bool:
        sums = self.members @ p
        return bool((sums >= self.group_lo).all() and (sums <= self.group_hi).all())

    def _program(self, cost: Floats, rows: Floats | None = None) -> Floats:
        """(n+1,) minimiser (q, s) of cost · (q, s) over 0 ≤ q, s ≤ 1 with lo + width · q feasible and rows (q, s) ≤ 0.

        Parts of widths, not shares, so that the program's tolerance is small beside the smallest share too.
        """
        width, n = self.hi - self.lo, len(self.tasks)
        at_least = self.members @ self.lo
        members = np.c_[self.members * width, np.zeros(len(self.groups))]
        rows = np.zeros((0, n + 1)) if rows is None else rows
        A_ub = np.vstack([members, -members, rows])
        b_ub = np.r_[self.group_hi - at_least, at_least - self.group_lo, np.zeros(len(rows))]
        program = linprog(cost, A_ub, b_ub, np.r_[width, 0.0][None], np.array([1 - self.lo.sum()]), bounds=(0, 1))
        assert program.x is not None, program.message
        return np.clip(program.x, 0, 1)

    def check(self) -> None:
        """UserError naming an irreducible set of bounds in conflict, and by how much, if no mixture is allowed."""
        if self._obviously_feasible():
            return
        conflict = _irreducible_conflict(self)
        if conflict:
            raise UserError(_conflict_sentence(conflict, _total_violation(conflict, len(self.tasks))))

    def _obviously_feasible(self) -> bool:
        fits = bool((self.lo <= self.hi).all()) and self.lo.sum() <= 1 + SLACK and self.hi.sum() >= 1 - SLACK
        return fits and not self.groups


def make_bounds(
    tasks: tuple[str, ...],
    lo: Mapping[str, float] | None = None,
    hi: Mapping[str, float] | None = None,
    supply: Mapping[str, float] | None = None,
    groups: Sequence[Group] = (),
) -> Bounds:
    """Bounds on shares by name: lo (default 0), hi (default 1), supply (share of the budget that a task can fill).

    Raises:
        UserError: a name that is not a task, or bounds that no mixture meets.
    """
    most = named_vector(tasks, hi or {}, 1.0, "max_share")
    available = named_vector(tasks, supply or {}, np.inf, "supply")
    for group in groups:
        named_vector(tasks, dict.fromkeys(group.tasks, 0.0), 0.0, f"group {group.name!r}")
    reason = tuple("supply" if a < m else "max_share" for a, m in zip(available, most, strict=True))
    least = named_vector(tasks, lo or {}, 0.0, "min_share")
    bounds = Bounds(tasks, np.maximum(least, 0.0), np.minimum(np.minimum(most, available), 1.0), tuple(groups), reason)
    bounds.check()
    return bounds


@dataclass(frozen=True, eq=False)
class _Limit:
    """One inequality sign · row·p ≤ sign · limit, in words; sign −1 for a lower limit."""

    words: str
    row: Floats  # (n,)
    sign: int
    limit: float


def _limits(bounds: Bounds) -> list[_Limit]:
    unit = np.eye(len(bounds.tasks))
    reasons = bounds.hi_reason or ("max_share",) * len(bounds.tasks)
    limits = []
    for i, task in enumerate(bounds.tasks):
        if bounds.lo[i] > 0:
            limits.append(_Limit(f"min_share {bounds.lo[i]:.4g} of {task!r}", unit[i], -1, bounds.lo[i]))
        if bounds.hi[i] < 1:
            limits.append(_Limit(f"{reasons[i]} {bounds.hi[i]:.4g} of {task!r}", unit[i], 1, bounds.hi[i]))
    for group, row in zip(bounds.groups, bounds.members, strict=True):
        if group.lo > 0:
            limits.append(_Limit(f"min_share {group.lo:.4g} of group {group.name!r}", row, -1, group.lo))
        if group.hi < 1:
            limits.append(_Limit(f"max_share {group.hi:.4g} of group {group.name!r}", row, 1, group.hi))
    return limits


def _total_violation(limits: Sequence[_Limit], n: int) -> float:
    """Least summed violation of `limits` over the simplex, by linear programming."""
    m = len(limits)
    if m == 0:
        return 0.0
    A = np.hstack([np.array([limit.sign * limit.row for limit in limits]), -np.eye(m)])
    b = np.array([limit.sign * limit.limit for limit in limits])
    cost = np.r_[np.zeros(n), np.ones(m)]
    one = np.r_[np.ones(n), np.zeros(m)][None]
    program = linprog(cost, A_ub=A, b_ub=b, A_eq=one, b_eq=np.ones(1), bounds=(0, None))
    assert program.fun is not None, program.message
    return float(program.fun)


def _irreducible_conflict(bounds: Bounds) -> list[_Limit]:
    """A subset of the limits that no mixture meets, and of which every proper subset some mixture meets; [] if none.

    Deletion filter (Chinneck 2008): drop each limit in turn for good if the rest still conflict.
    """
    n = len(bounds.tasks)
    kept = _limits(bounds)
    if _total_violation(kept, n) <= 1e-9:
        return []
    # Smallest demands are tried for removal first, so that what remains are the few that matter most.
    for limit in sorted(kept, key=lambda one: one.limit if one.sign < 0 else 1 - one.limit):
        fewer = [other for other in kept if other is not limit]
        if _total_violation(fewer, n) > 1e-9:
            kept = fewer
    return kept


def _conflict_sentence(conflict: Sequence[_Limit], excess: float) -> str:
    words = [limit.words for limit in conflict]
    shown = ", ".join(words[:12]) + (f" and {len(words) - 12} more" if len(words) > 12 else "")
    return f"No mixture meets all of: {shown}; they miss each other by {excess:.4g} of the budget; relax one of them."


def simplex(tasks: tuple[str, ...]) -> Bounds:
    """No bounds but p ≥ 0 and 1ᵀp = 1."""
    return Bounds(tasks, np.zeros(len(tasks)), np.ones(len(tasks)))
