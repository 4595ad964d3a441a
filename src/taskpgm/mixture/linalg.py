"""Linear algebra on the simplex and its tangent space, and vectors by task name."""

import math
from collections.abc import Mapping

import numpy as np

from taskpgm.errors import UserError
from taskpgm.types import Floats

# Added to the curvature that a shift restores, relative to the largest curvature: an exact −λ_min shift would leave a
# singular matrix. 1e-3 keeps the condition number near 1,000; it is a guess.
SHIFT_MARGIN = 1e-3
# Negative eigenvalues smaller than this, relative to the largest, are rounding errors of a semidefinite matrix.
ROUNDING = 1e-12


def tangent_spectrum(K: Floats) -> tuple[float, float]:
    """(smallest, largest) eigenvalue of K on {v : 1ᵀv = 0}; (inf, 0) for n = 1."""
    n = len(K)
    if n == 1:
        return float("inf"), 0.0
    J_K = K - K.mean(axis=0)
    centred = J_K - J_K.mean(axis=1)[:, None]
    scale = float(np.abs(centred).max())
    if scale == 0:
        return 0.0, 0.0
    values = np.linalg.eigvalsh(centred / scale + 2.0)  # 2·11ᵀ moves the eigenvector 1 to 2n, above all others
    return float(values[0] * scale), float(values[-2] * scale)


def named_vector(tasks: tuple[str, ...], values: Mapping[str, float], default: float, what: str) -> Floats:
    """(n,) values by name in the order of `tasks`; UserError for a name that is not a task."""
    for name in values:
        if name not in tasks:
            raise UserError(f"{what} names {name!r}, which is not a task; the tasks are {', '.join(tasks)[:200]}.")
    return np.array([float(values.get(name, default)) for name in tasks])


def normalised(tasks: tuple[str, ...], values: Mapping[str, float] | None, what: str) -> Floats:
    """(n,) non-negative values by name that sum to one; uniform for None or {}."""
    vector = named_vector(tasks, values, 0.0, what) if values else np.ones(len(tasks))
    if not np.isfinite(vector).all() or vector.min() < 0 or vector.sum() == 0:
        raise UserError(f"{what} must be non-negative numbers, not all zero; got {dict(values or {})}.")
    return np.asarray(vector / vector.sum())


def convexity_shift(K: Floats) -> tuple[float, float]:
    """(δ, λ): what K's diagonal lacks to be convex on the simplex, and K's smallest eigenvalue there without it.

    δ = 0, or −λ + SHIFT_MARGIN · max |eigenvalue|, all on {v : 1ᵀv = 0}.
    """
    smallest, largest = tangent_spectrum(K)
    scale = max(abs(smallest), abs(largest)) if len(K) > 1 else 0.0
    return (0.0 if smallest >= -ROUNDING * scale * len(K) else -smallest + SHIFT_MARGIN * scale), smallest


def mean_curvature(K: Floats) -> float:
    """Mean eigenvalue of K on {v : 1ᵀv = 0}; 0 for n = 1."""
    n = len(K)
    return float((np.trace(K) - K.sum() / n) / (n - 1)) if n > 1 else 0.0


def tangent_basis(n: int) -> Floats:
    """(n, n−1) orthonormal Z with 1ᵀZ = 0 (Helmert)."""
    Z = np.zeros((n, n - 1))
    for k in range(1, n):
        Z[:k, k - 1], Z[k, k - 1] = 1, -k
        Z[:, k - 1] /= math.sqrt(k * (k + 1))
    return Z
