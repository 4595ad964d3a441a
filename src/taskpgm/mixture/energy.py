"""`Energy`: what a mixture minimises, with value, gradient and Hessian.

Every kind is an instance of one convex form on the simplex,

    E(p) = −ψᵀp + ½ pᵀKp − Σ_t ω_t log Σ_i p_i P_i(y_t) + κ KL(p‖r) + λ R(p),      ψ = t·unary + utility,

of which `affinity` has the first two terms (a Markov random field with unary potentials ψ, utility, and pairwise
potentials K, redundancy, at its mean field p), `likelihood` the others, and `gain` the first and the prior.

R(p) = Σ_i max(0, p_i − o_i)²/o_i prices rows that are seen again: o_i is the share that the rows of task i fill once,
and e = p_i/o_i epochs of it cost p_i (e − 1)²/e. Convex, with a continuous slope of 2 (e − 1).

Legend of shape suffixes: N tasks, T columns of the scores that carry weight, J sets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from taskpgm.mixture.linalg import convexity_shift, tangent_spectrum
from taskpgm.types import Brief, Floats

TINY = 1e-300  # a share of zero, which the prior allows only where a bound holds it there, counts as that in a slope
KNOBS = {"likelihood": "prior", "gain": "prior", "affinity": "t", "surrogate": "prior"}


@dataclass(frozen=True, eq=False, repr=False)
class Energy(Brief):
    """Convex energy on the simplex over `tasks`, with its delete-one-group replicates.

    `K` is already shifted and has its ridge. `likelihoods` is P_i(y_t) scaled to a
    column maximum of one, `log_scale` the logarithm of that scale. Quadratic energies have T = 0, a likelihood K = 0.
    """

    kind: str  # likelihood, gain, affinity or surrogate
    tasks: tuple[str, ...]
    unary: Floats  # (n,)
    utility: Floats  # (n,) the user's own
    K: Floats  # (n, n) pairwise potentials
    likelihoods: Floats  # (n, T)
    omega: Floats  # (T,)
    log_scale: Floats  # (T,)
    reference: Floats  # (n,) the prior's r, positive
    t: float = 1.0
    prior: float = 0.0
    once: Floats = field(default_factory=lambda: np.empty(0))  # (n,) o, positive; unused without a price
    repetition: float = 0.0  # λ
    limits: int = 0  # last columns that are limits on the tasks' losses at their prices, not data
    shift: float = 0.0  # added to K's diagonal so that K is convex on the simplex
    least: float | None = None  # smallest eigenvalue of K on {v : 1ᵀv = 0}, if it is known already
    settings: Mapping[str, Any] = field(default_factory=dict)
    without: tuple["Energy", ...] = ()  # one a group of contexts, left out
    only: tuple["Energy", ...] = ()  # one a group of contexts, alone: for held-out values, not for minimising
    seeds: tuple["Energy", ...] = ()  # one a probe seed, left out

    @property
    def quadratic(self) -> bool:
        """Whether E is −ψᵀp + ½pᵀKp and nothing else."""
        return self.likelihoods.shape[1] == 0 and self.prior == 0 and self.repetition == 0

    @cached_property
    def psi(self) -> Floats:
        """(n,) ψ = t·unary + utility."""
        return self.t * self.unary + self.utility

    @cached_property
    def curvature(self) -> float:
        """Smallest eigenvalue of K on {v : 1ᵀv = 0}; infinite for a single task."""
        return tangent_spectrum(self.K)[0] if self.least is None else self.least

    def loss(self, p: Floats) -> float:
        """−t·unaryᵀp + ½pᵀKp − E_ω log Σ_i p_i P_i: what data say, without utility, limits, prior and repetition."""
        total = -self.t * float(self.unary @ p)
        if self.K.any():
            total += 0.5 * float(p @ self.K @ p)
        return total + self._surprise(p, slice(self.likelihoods.shape[1] - self.limits))

    def value(self, p: Floats) -> float:
        """E(p)."""
        total = self.loss(p) - float(self.utility @ p)
        if self.limits:
            total += self._surprise(p, slice(-self.limits, None))
        if self.prior:
            total += self.prior * float(rel_entr(p, self.reference).sum())
        if self.repetition:
            total += self.repetition * repeated(p, self.once)
        return total

    def _surprise(self, p: Floats, columns: slice) -> float:
        """−Σ_t ω_t log Σ_i p_i P_i(y_t) of some of the columns."""
        if not self.likelihoods.shape[1]:
            return 0.0
        with np.errstate(divide="ignore"):
            mixed = np.log(p @ self.likelihoods[:, columns]) + self.log_scale[columns]
        return -float(self.omega[columns] @ mixed)

    def gradient(self, p: Floats) -> Floats:
        """(n,) ∇E(p)."""
        g = -self.psi
        if self.K.any():
            g = g + self.K @ p
        if self.likelihoods.shape[1]:
            g = g - self.likelihoods @ (self.omega / (p @ self.likelihoods))
        if self.prior:
            g = g + self.prior * (np.log(np.maximum(p, TINY) / self.reference) + 1)
        if self.repetition:
            g = g + self.repetition_slope(p)
        return g

    def repetition_slope(self, p: Floats) -> Floats:
        """(n,) λ ∇R(p) = 2λ (epochs − 1) where rows are seen again; zero without a price."""
        return 2 * self.repetition * np.maximum(p / self.once - 1, 0) if self.repetition else np.zeros_like(p)

    def hessian(self, p: Floats) -> Floats:
        """(n, n) ∇²E(p)."""
        H = self.K
        if self.likelihoods.shape[1]:
            scaled_NT = self.likelihoods * (np.sqrt(self.omega) / (p @ self.likelihoods))
            H = H + scaled_NT @ scaled_NT.T
        if self.prior:
            H = H + np.diag(self.prior / np.maximum(p, TINY))
        if self.repetition:
            H = H + np.diag(np.where(p > self.once, 2 * self.repetition / self.once, 0.0))
        return H

    def field_at(self, p: Floats) -> tuple[Floats, Floats]:
        """(ψ, K) of the second-order expansion −ψᵀq + ½qᵀKq at p, constants dropped; the energy itself if quadratic."""
        if self.quadratic:
            return self.psi, self.K
        K = self.hessian(p)
        return K @ p - self.gradient(p), K

    def curvature_at(self, p: Floats) -> float:
        """Smallest curvature of E at p along directions that keep the sum of p."""
        return self.curvature if self.quadratic else tangent_spectrum(self.hessian(p))[0]

    def restrict_to(self, kept: NDArray[np.bool_]) -> "Energy":
        """The same energy of the tasks that are `kept`, the others having no share; without its replicates."""
        tasks = tuple(task for task, keep in zip(self.tasks, kept, strict=True) if keep)
        return replace(
            self, tasks=tasks, unary=self.unary[kept], utility=self.utility[kept], reference=self.reference[kept],
            K=self.K[np.ix_(kept, kept)], likelihoods=self.likelihoods[kept], least=None, without=(),
            only=(), seeds=(), once=self.once[kept] if self.repetition else self.once,
        )  # fmt: skip

    @property
    def knob(self) -> float:
        """The one number that a user turns: t (affinity) or prior (likelihood, gain)."""
        return float(getattr(self, KNOBS[self.kind]))

    def with_knob(self, value: float) -> "Energy":
        """The same energy, and its replicates, with another value of the knob; E is linear in it."""
        turned = {
            part: tuple(energy.with_knob(value) for energy in getattr(self, part))
            for part in ("without", "only", "seeds")
        }
        name = KNOBS[self.kind]
        settings = {**self.settings, name: float(value)}
        return replace(self, **{name: float(value)}, settings=settings, **turned)  # type: ignore[arg-type]


def repeated(p: Floats, once: Floats) -> float:
    """R(p) = Σ_i max(0, p_i − o_i)²/o_i."""
    return float((np.maximum(p - once, 0) ** 2 / once).sum())


def field_energy(tasks: tuple[str, ...], psi: Floats, K: Floats) -> Energy:
    """Quadratic energy −ψᵀp + ½pᵀKp from arrays of your own; K symmetric, shifted if it is not convex."""
    shift, least = convexity_shift(K)
    K = np.asarray(K, dtype=np.float64) + shift * np.eye(len(K))
    psi = np.asarray(psi, dtype=np.float64)
    return _field("affinity", tasks, psi, np.zeros(len(K)), K, shift=shift, least=least + shift)


def _field(kind: str, tasks: tuple[str, ...], unary: Floats, utility: Floats, K: Floats, **extra: Any) -> Energy:
    n = len(tasks)
    none = np.empty(0)
    return Energy(kind, tasks, unary, utility, K, np.empty((n, 0)), none, none, np.full(n, 1 / n), **extra)
