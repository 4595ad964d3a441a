"""The best non-negative weights of some tasks under priced mass: bᵀv − ½vᵀKv over v ≥ 0, by Lawson and Hanson."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from taskpgm.types import Floats

# A pivot below this, relative to the diagonal, is a task that lies in the span of the chosen ones.
DEPENDENT = 1e-10
ZERO = 1e-12  # relative to the largest gain or weight: rounding


@dataclass(frozen=True, eq=False)
class Pricing:
    """The quadratic bᵀv − ½vᵀKv of a selection, with K positive semidefinite on all of ℝⁿ."""

    b: Floats  # (n,)
    K: Floats  # (n, n)
    p: Floats  # (n,) its maximiser over v ≥ 0: the mixture of all tasks
    level: float  # c of the c·11ᵀ added to K; it leaves the mixture alone
    shift: float  # added to K's diagonal, over and above the energy's own shift; it does not
    gamma: float  # λ_min of K scaled to unit diagonal, ≥ 0


def maximise(pricing: Pricing, chosen: Collection[int], start: Floats | None = None) -> tuple[Floats, float]:
    """(v, f(A)): the maximiser over v ≥ 0 with support in A, by Lawson and Hanson's active set method.

    `start` is a feasible v to begin at. Singular blocks are solved by least squares, which drops what is dependent.
    """
    A = np.array(sorted(chosen), dtype=np.int64)
    K, b = pricing.K[np.ix_(A, A)], pricing.b[A]
    x = np.zeros(len(A)) if start is None else np.maximum(start[A], 0.0)
    support = x > 0
    tolerance = ZERO * (float(np.abs(pricing.b).max()) or 1.0)
    for _ in range(10 * len(A) + 10):
        x, support = _settle(K, b, x, support)
        c = np.where(support, -np.inf, b - K @ x)
        entering = int(np.argmax(c)) if len(A) else 0
        if not len(A) or c[entering] <= tolerance:
            break
        support = support.copy()
        support[entering] = True
    v = np.zeros(len(pricing.b))
    v[A] = x
    return v, float(b @ x - 0.5 * x @ K @ x)


def _settle(K: Floats, b: Floats, x: Floats, support: Any) -> tuple[Floats, Any]:
    """The maximiser on a support, after walking towards it and dropping what hits zero on the way."""
    for _ in range(len(b) + 1):
        on = np.flatnonzero(support)
        if len(on) == 0:
            return np.zeros_like(x), support
        direction, bounded = _ascent(K[np.ix_(on, on)], b[on], x[on])
        falling = direction < 0
        ratio = np.divide(x[on], -direction, out=np.full(len(on), np.inf), where=falling)
        step = float(ratio.min())
        if bounded and step > 1:
            x = x.copy()
            x[on] += direction
            return x, support
        if not math.isfinite(step):
            return x, support
        x = x.copy()
        x[on] += step * direction
        support = support.copy()
        support[on[ratio <= step * (1 + 1e-12)]] = False
        x = np.where(support, np.maximum(x, 0.0), 0.0)
    return x, support


def _ascent(K: Floats, b: Floats, x: Floats) -> tuple[Floats, bool]:
    """(direction, True) to the maximiser of bᵀx − ½xᵀKx, or (ray, False) along which a singular K lets it rise."""
    try:
        factor = cho_factor(K, check_finite=False)
        pivots = np.diag(factor[0]) ** 2
        if pivots.min() > DEPENDENT * float(np.diag(K).max()):
            return np.asarray(cho_solve(factor, b, check_finite=False) - x), True
    except np.linalg.LinAlgError:
        pass
    gain = b - K @ x
    move = np.asarray(np.linalg.lstsq(K, gain, rcond=1e-10)[0])
    ray = np.asarray(gain - K @ move)
    flat = float(np.abs(ray).max()) <= 1e-9 * float(np.abs(b).max())
    return (move, True) if flat else (np.asarray(ray), False)
