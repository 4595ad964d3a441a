"""`Energy`: what a mixture minimises, with value, gradient and Hessian.

Every kind is an instance of one convex form on the simplex,

    E(p) = −ψᵀp + ½ pᵀKp − Σ_t ω_t log Σ_i p_i P_i(y_t) + κ KL(r‖p),      ψ = t·unary + utility,

of which `affinity` and `transfer` have the first two terms (a Markov random field with unary potentials ψ, utility,
and pairwise potentials K, redundancy, at its mean field p), `likelihood` the other two, and `gain` the first and last.

Legend of shape suffixes: N tasks, T columns of the scores that carry weight, J sets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskpgm.config import EnergyConfig
from taskpgm.errors import UserError
from taskpgm.mixture import jackknife
from taskpgm.mixture.affinity import Affinity, mean_logp
from taskpgm.mixture.jackknife import EVERYTHING, Fold
from taskpgm.scores import Scores
from taskpgm.types import Floats

# Added to the curvature that a shift restores, relative to the largest curvature: an exact −λ_min shift would leave a
# singular matrix. 1e-3 keeps the condition number near 1,000; it is a guess.
SHIFT_MARGIN = 1e-3
# Negative eigenvalues smaller than this, relative to the largest, are rounding errors of a semidefinite matrix.
ROUNDING = 1e-12
PRIOR = {"likelihood": 0.2, "gain": 0.3}  # κ where none is given; docs/decisions.md has what they are chosen by
WITHOUT_TARGETS = 0.5  # κ of a likelihood where the tasks themselves are served, for which uniform is hard to beat
KNOBS = {"likelihood": "prior", "gain": "prior", "affinity": "t", "transfer": "saturation"}


@dataclass(frozen=True, eq=False)
class Energy:
    """Convex energy on the simplex over `tasks`, with its delete-one-group replicates.

    `pairwise` is K without `saturation`, already shifted and with its ridge. `likelihoods` is P_i(y_t) scaled to a
    column maximum of one, `log_scale` the logarithm of that scale. Quadratic energies have T = 0, a likelihood K = 0.
    """

    kind: str  # likelihood, gain, affinity or transfer
    tasks: tuple[str, ...]
    unary: Floats  # (n,)
    utility: Floats  # (n,) the user's own
    pairwise: Floats  # (n, n)
    likelihoods: Floats  # (n, T)
    omega: Floats  # (T,)
    log_scale: Floats  # (T,)
    reference: Floats  # (n,) the prior's r
    t: float = 1.0
    saturation: float = 1.0
    prior: float = 0.0
    shift: float = 0.0  # added to K's diagonal so that K is convex on the simplex
    least: float | None = None  # smallest eigenvalue of `pairwise` on {v : 1ᵀv = 0}, where it is known already
    settings: Mapping[str, Any] = field(default_factory=dict)
    without: tuple["Energy", ...] = ()  # one a group of contexts, left out
    only: tuple["Energy", ...] = ()  # one a group of contexts, alone: for held-out values, not for minimising
    seeds: tuple["Energy", ...] = ()  # one a probe seed, left out

    @property
    def quadratic(self) -> bool:
        """Whether E is −ψᵀp + ½pᵀKp and nothing else."""
        return self.likelihoods.shape[1] == 0 and self.prior == 0

    @cached_property
    def psi(self) -> Floats:
        """(n,) ψ = t·unary + utility."""
        return self.t * self.unary + self.utility

    @cached_property
    def K(self) -> Floats:  # noqa: N802
        """(n, n) pairwise potentials."""
        return self.pairwise if self.saturation == 1 else self.saturation * self.pairwise

    @cached_property
    def curvature(self) -> float:
        """Smallest eigenvalue of K on {v : 1ᵀv = 0}; infinite for a single task."""
        return tangent_spectrum(self.K)[0] if self.least is None else self.saturation * self.least

    def loss(self, p: Floats) -> float:
        """−ψᵀp + ½pᵀKp − E_ω log Σ_i p_i P_i: the energy without its prior, in nats for a likelihood."""
        total = float(-self.psi @ p)
        if self.pairwise.any():
            total += 0.5 * float(p @ self.K @ p)
        if self.likelihoods.shape[1]:
            with np.errstate(divide="ignore"):
                total -= float(self.omega @ (np.log(p @ self.likelihoods) + self.log_scale))
        return total

    def value(self, p: Floats) -> float:
        """E(p)."""
        total = self.loss(p)
        if self.prior:
            held = self.reference > 0
            with np.errstate(divide="ignore"):
                ratio = np.log(self.reference[held] / p[held])
            total += self.prior * float(self.reference[held] @ ratio)
        return total

    def gradient(self, p: Floats) -> Floats:
        """(n,) ∇E(p)."""
        g = -self.psi
        if self.pairwise.any():
            g = g + self.K @ p
        if self.likelihoods.shape[1]:
            g = g - self.likelihoods @ (self.omega / (p @ self.likelihoods))
        if self.prior:
            g = g - self.prior * _ratio(self.reference, p)
        return g

    def hessian(self, p: Floats) -> Floats:
        """(n, n) ∇²E(p)."""
        H = self.K
        if self.likelihoods.shape[1]:
            scaled_NT = self.likelihoods * (np.sqrt(self.omega) / (p @ self.likelihoods))
            H = H + scaled_NT @ scaled_NT.T
        if self.prior:
            H = H + np.diag(self.prior * _ratio(_ratio(self.reference, p), p))
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

    def allowing(self, allowed: NDArray[np.bool_]) -> "Energy":
        """The same energy, and its replicates, with a prior that expects nothing of the tasks that are not `allowed`.

        KL(r‖p) is infinite where a task with r_i > 0 is held at zero, so r is renormalised over the others.
        """
        if self.prior == 0 or not (self.reference[~allowed] > 0).any():
            return self
        r = np.where(allowed, self.reference, 0.0)
        r = r / r.sum() if r.sum() > 0 else allowed / allowed.sum()
        parts = ("without", "only", "seeds")
        restricted = {part: tuple(energy.allowing(allowed) for energy in getattr(self, part)) for part in parts}
        return replace(self, reference=r, **restricted)  # type: ignore[arg-type]

    def among(self, kept: NDArray[np.bool_]) -> "Energy":
        """The same energy of the tasks that are `kept`, the others having no share; without its replicates."""
        tasks = tuple(task for task, keep in zip(self.tasks, kept, strict=True) if keep)
        return replace(
            self, tasks=tasks, unary=self.unary[kept], utility=self.utility[kept], reference=self.reference[kept],
            pairwise=self.pairwise[np.ix_(kept, kept)], likelihoods=self.likelihoods[kept], least=None, without=(),
            only=(), seeds=(),
        )  # fmt: skip

    @property
    def knob(self) -> float:
        """The one number that a user turns: t (affinity), saturation (transfer) or prior (likelihood)."""
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


def build_energy(
    scores: Scores | None,
    affinity: Affinity | None,
    config: EnergyConfig,
    weights: Mapping[str, float] | None = None,
    reference: Mapping[str, float] | None = None,
) -> Energy:
    """Energy of `config.kind` over the tasks of `scores` or `affinity`, with its jackknife replicates.

    likelihood: F(p) = −E_ω log Σ_i p_i P_i(y_t) + κ KL(r‖p). gain: −Σ_i p_i Σ_j w_j G_ij + κ KL(r‖p). affinity:
    ψ = t·S w, K = S. transfer: z = Rᵀp, E = −Σ_j w_j (z_j − ½κ z_j²), R_ij = G_ij / max(max_i G_ij, floor).

    Args:
        weights: by name, of the target sets, or of the tasks where there are none; equal where left out.
        reference: by name, the prior's r (likelihood, gain); uniform where left out.

    Raises:
        UserError: scores are missing for a kind that needs them, targets with `affinity`, no t where none is default.
    """
    weights = weights or {}
    if config.kind == "affinity":
        if affinity is None:
            raise UserError(
                "energy.kind 'affinity' needs an affinity; measure one from scores or read one from a file."
            )
        if len(affinity.sets) > len(affinity.tasks):
            raise UserError(
                "energy.kind 'affinity' takes no targets (affinities have no such columns); use likelihood or transfer."
            )
        return _affinity_energy(affinity, config, weights)
    if scores is None:
        raise UserError(
            f"energy.kind {config.kind!r} needs scores; a given affinity serves energy.kind 'affinity' only."
        )
    if config.kind == "transfer":
        return _transfer_energy(scores, config, weights)
    if config.kind == "gain":
        return _gain_energy(scores, config, weights, reference)
    return _likelihood_energy(scores, config, weights, reference)


def usual_prior(kind: str, scores: Scores) -> float:
    """κ where none is given: that of the kind, but more for a likelihood without targets."""
    targets = len(scores.sets) > len(scores.tasks)
    return PRIOR[kind] if targets or kind != "likelihood" else WITHOUT_TARGETS


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


def _affinity_energy(affinity: Affinity, config: EnergyConfig, weights: Mapping[str, float]) -> Energy:
    t = config.t if config.t is not None else 2.0 if affinity.kind == "ratio" else None
    if t is None:
        raise UserError(
            f"energy.t has no default for an affinity of kind {affinity.kind!r}; give one: 0 is least redundant, "
            "1 is uniform, 2 favours central tasks."
        )
    given = named_vector(affinity.tasks, weights, 1.0, "weights")
    w = normalised(affinity.tasks, dict(zip(affinity.tasks, given, strict=True)), "weights")
    utility = named_vector(affinity.tasks, config.utility, 0.0, "energy.utility")
    settings = {"affinity": affinity.kind, "t": t, "ridge": config.ridge, "utility": dict(config.utility)}

    def of(S: Floats, shift: float | None = None) -> Energy:
        least = None
        if shift is None:
            shift, least = convexity_shift(S)
        ridge = config.ridge * (mean_curvature(S) + shift)
        K = S + np.diag(np.full(len(S), shift + ridge))
        least = None if least is None else least + shift + ridge
        return _field("affinity", affinity.tasks, S @ w, utility, K, t=t, shift=shift, least=least, settings=settings)

    full = of(affinity.S)
    return replace(
        full,
        without=tuple(of(S) for S in affinity.without),
        # Held-out energies must be linear in the data to be unbiased, so they keep the shift of the full sample.
        only=tuple(of(S, full.shift) for S in affinity.only),
        seeds=tuple(of(S) for S in affinity.seeds),
    )


def _transfer_energy(scores: Scores, config: EnergyConfig, weights: Mapping[str, float]) -> Energy:
    w = scores.target_weights(weights)
    utility = named_vector(scores.tasks, config.utility, 0.0, "energy.utility")
    settings = {
        "saturation": config.saturation, "floor": config.floor, "utility": dict(config.utility),
        "weights": {name: float(v) for name, v in zip(scores.sets, w, strict=True) if v > 0},
    }  # fmt: skip
    logp_TN = np.ascontiguousarray(scores.logp.T)

    def gains(fold: Fold) -> Floats:
        M = mean_logp(scores, fold, logp_TN)
        return np.asarray(M[1:] - M[0])

    def of(R: Floats, noise: Floats | float = 0.0) -> Energy:
        K = (R * w) @ R.T - noise
        return _field("transfer", scores.tasks, R @ w, utility, K, saturation=config.saturation, settings=settings)

    G = gains(EVERYTHING)
    best = _best_gain(G, config.floor)
    G_without = [gains(fold) for fold in jackknife.without_folds(scores)]
    G_only = [gains(fold) for fold in jackknife.only_folds(scores)]
    G_seeds = [gains(fold) for fold in jackknife.seed_folds(scores)]
    # R_b R_bᵀ counts the sampling noise of group b as redundancy, so its expectation, the covariance of R_b over the
    # groups, is taken off: held-out energies are for comparing, and must be unbiased.
    spread = np.array(G_only) / best - np.mean(G_only, axis=0) / best if G_only else np.empty((0, *G.shape))
    noise = np.einsum("bij,j,bkj->ik", spread, w, spread) / max(len(spread) - 1, 1)
    return replace(
        of(G / best),
        without=tuple(of(G_b / _best_gain(G_b, config.floor)) for G_b in G_without),
        only=tuple(of(G_b / best, noise) for G_b in G_only),
        seeds=tuple(of(G_s / _best_gain(G_s, config.floor)) for G_s in G_seeds),
    )


def _gain_energy(
    scores: Scores, config: EnergyConfig, weights: Mapping[str, float], reference: Mapping[str, float] | None
) -> Energy:
    """ψ_i = Σ_j w_j G_ij, what a unit of task i does for the targets, against straying from the reference.

    By Jensen's inequality −ψᵀp bounds F(p) less the loss that probes start from: the ensemble's loss when the wrong
    probes count as much as the right ones, so that it sees interference, which F does not. Without a prior all weight
    goes to one task.
    """
    prior = config.prior if config.prior is not None else usual_prior("gain", scores)
    w = scores.target_weights(weights)
    r = normalised(scores.tasks, reference, "the reference mixture")
    utility = named_vector(scores.tasks, config.utility, 0.0, "energy.utility")
    settings = {
        "prior": prior, "reference": {name: float(v) for name, v in zip(scores.tasks, r, strict=True)},
        "utility": dict(config.utility),
        "weights": {name: float(v) for name, v in zip(scores.sets, w, strict=True) if v > 0},
    }  # fmt: skip
    logp_TN = np.ascontiguousarray(scores.logp.T)
    none = np.zeros((len(scores.tasks), len(scores.tasks)))

    def of(fold: Fold) -> Energy:
        M = mean_logp(scores, fold, logp_TN)
        field = _field("gain", scores.tasks, (M[1:] - M[0]) @ w, utility, none, settings=settings)
        return replace(field, reference=r, prior=prior)

    return replace(
        of(EVERYTHING),
        without=tuple(map(of, jackknife.without_folds(scores))),
        only=tuple(map(of, jackknife.only_folds(scores))),
        seeds=tuple(map(of, jackknife.seed_folds(scores))),
    )


def _best_gain(G: Floats, floor: float) -> Floats:
    """What a set's gains are divided by: the best one, or the largest harm where no task helps it by the floor."""
    best = G.max(axis=0)
    return np.asarray(np.where(best >= floor, best, np.maximum(np.abs(G).max(axis=0), floor)))


def _likelihood_energy(
    scores: Scores, config: EnergyConfig, weights: Mapping[str, float], reference: Mapping[str, float] | None
) -> Energy:
    prior = config.prior if config.prior is not None else usual_prior("likelihood", scores)
    w = scores.target_weights(weights)
    n = len(scores.tasks)
    r = normalised(scores.tasks, reference, "the reference mixture")
    used_T = scores.omega(w) > 0
    logp_NT = scores.logp[1:, used_T]
    if not np.isfinite(logp_NT).all():
        raise UserError("The scores hold NaN or infinite log-probabilities; score the contexts again.")
    column_T = logp_NT.max(axis=0)
    probe_NT = np.exp(logp_NT - column_T)
    settings = {
        "prior": prior, "reference": {name: float(v) for name, v in zip(scores.tasks, r, strict=True)},
        "utility": dict(config.utility),
        "weights": {name: float(v) for name, v in zip(scores.sets, w, strict=True) if v > 0},
    }  # fmt: skip
    utility = named_vector(scores.tasks, config.utility, 0.0, "energy.utility")

    def of(fold: Fold) -> Energy:
        omega_T = jackknife.omega_of(scores, w, fold)[used_T]
        return Energy(
            "likelihood", scores.tasks, np.zeros(n), utility, np.zeros((n, n)), probe_NT, omega_T / omega_T.sum(),
            column_T, r, prior=prior, settings=settings,
        )  # fmt: skip

    return replace(
        of(EVERYTHING),
        without=tuple(map(of, jackknife.without_folds(scores))),
        only=tuple(map(of, jackknife.only_folds(scores))),
        seeds=tuple(map(of, jackknife.seed_folds(scores))),
    )


def field_energy(tasks: tuple[str, ...], psi: Floats, K: Floats) -> Energy:
    """Quadratic energy −ψᵀp + ½pᵀKp from arrays of your own; K symmetric, shifted where it is not convex."""
    shift, least = convexity_shift(K)
    K = np.asarray(K, dtype=np.float64) + shift * np.eye(len(K))
    psi = np.asarray(psi, dtype=np.float64)
    return _field("affinity", tasks, np.zeros(len(K)), psi, K, shift=shift, least=least + shift)


def _field(kind: str, tasks: tuple[str, ...], unary: Floats, utility: Floats, K: Floats, **extra: Any) -> Energy:
    n = len(tasks)
    none = np.empty(0)
    return Energy(kind, tasks, unary, utility, K, np.empty((n, 0)), none, none, np.full(n, 1 / n), **extra)


def _ratio(numerator: Floats, p: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.divide(numerator, p, out=np.zeros_like(p), where=numerator > 0)
