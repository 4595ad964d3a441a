"""`Surrogate`: the loss after training as a convex function of the mixture, fitted to a few trainings.

    L̂(p) = θ₀ + θ₁ (F(p) − F(u)) + θ₂ (Γ(p) − Γ(u)) + θ₃ KL(p‖u) + ρᵀ(p − u) + λ (R(p) − R(u)),      θ₁, θ₂, θ₃ ≥ 0,

F the loss of the probes' ensemble, Γ minus their mean gains, u uniform, λR what is known of rows that are seen again
(see `Energy`). Normal priors on all coefficients, cut at zero for the three with a sign; normal noise. What is fitted
is then a ridge regression under signs, its posterior a truncated normal distribution, and L̂ convex for every draw of
it, so that its least value within bounds is certified. Without probes F and Γ are left out.

The idea of a regression of measured losses on mixtures is RegMix's (arXiv 2407.01492) and the data mixing laws'
(arXiv 2403.16952); probes as features, signs and priors are ours.

Legend of shape suffixes: M trainings, D = n + 4 coefficients (θ₀ … θ₃, then ρ), B draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_ndtr, ndtri_exp, rel_entr

from taskpgm.mixture.bounds import Bounds
from taskpgm.mixture.certificate import Optimum
from taskpgm.mixture.energy import Energy, repeated
from taskpgm.mixture.optimum import minimise
from taskpgm.types import Brief, Floats

SIGNED = slice(1, 4)  # θ₁, θ₂, θ₃
SCALE = 4  # of coefficients: ρ starts there
DRAWS = 1000  # of the posterior: errors are then good to 2 %
SWEEPS = 60  # of Gibbs' sampler over three coefficients, far more than it takes to forget its start


@dataclass(frozen=True, eq=False, repr=False)
class Features(Brief):
    """What a mixture is described by: the probes' ensemble and gains, the divergence from uniform, its shares.

    `energy` is the likelihood energy of the wanted sets with prior 0, or None without probes; `gains` (n,) is what a
    unit of each task does for them, in nats a token. Beside them stands what is known of rows that are seen again:
    `repetition` is its price λ in nats, `once` (n,) the shares that the tasks' rows fill once, see `Energy`.
    """

    tasks: tuple[str, ...]
    energy: Energy | None = None
    gains: Floats | None = None
    once: Floats | None = None
    repetition: float = 0.0

    @property
    def uniform(self) -> Floats:
        """(n,) u."""
        return np.full(len(self.tasks), 1 / len(self.tasks))

    def __call__(self, p: Floats) -> Floats:
        """(D,) features of a mixture, those of uniform being (1, 0, …, 0)."""
        u = self.uniform
        ensemble = self.energy.loss(p) - self.energy.loss(u) if self.energy else 0.0
        gain = -float(self.gains @ (p - u)) if self.gains is not None else 0.0
        divergence = float(rel_entr(p, u).sum())
        return np.r_[1.0, ensemble, gain, divergence, p - u]

    def known(self, p: Floats) -> float:
        """λ (R(p) − R(u)), the part of L̂ that is not fitted."""
        if self.once is None:
            return 0.0
        return self.repetition * (repeated(p, self.once) - repeated(self.uniform, self.once))


@dataclass(frozen=True, eq=False)
class Prior:
    """Independent normal priors of the coefficients; θ₀ has none."""

    mean: Floats  # (D,)
    error: Floats  # (D,) standard deviations; zero holds a coefficient at its mean

    def scaled(self, by: float) -> "Prior":
        """The same of a metric that rises by `by` if the loss rises by a nat."""
        return Prior(self.mean * by, self.error * by)


@dataclass(frozen=True, eq=False, repr=False)
class Surrogate(Brief):
    """L̂ as it is believed after some trainings: mean and draws of its coefficients.

    Attributes:
        coefficients: (D,) the posterior mean; θ₁ to θ₃ are not negative.
        draws: (B, D) of the posterior.
        noise: standard deviation of one training.
        tried: (n,) each, the mixtures of these trainings.
    """

    features: Features
    coefficients: Floats
    draws: Floats
    noise: float
    tried: Sequence[Floats] = ()

    def loss(self, p: Floats) -> float:
        """L̂(p), in the unit of what was measured."""
        return float(self.features(p) @ self.coefficients) + self.features.known(p)

    def error(self, p: Floats, against: Floats | None = None) -> float:
        """Standard error of L̂(p), or of its difference from L̂ of another mixture."""
        x = self.features(p) - (0 if against is None else self.features(against))
        return float((self.draws @ x).std())

    def improvement(self, p: Floats, best: Floats) -> float:
        """Expected improvement E max(0, L(best) − L(p))."""
        return float(np.maximum(self._differences(best, p), 0).mean())

    def _differences(self, p: Floats, q: Floats) -> Floats:
        """(B,) L̂(p) − L̂(q) by every draw."""
        features = self.features
        return np.asarray(self.draws @ (features(p) - features(q)) + features.known(p) - features.known(q))

    def energy(self, coefficients: Floats | None = None) -> Energy:
        """L̂ − θ₀ + constants as an energy, by the mean or by a draw."""
        return surrogate_energy(self.features, self.coefficients if coefficients is None else coefficients)

    def optimum(self, bounds: Bounds, coefficients: Floats | None = None) -> Optimum:
        """The mixture of least L̂ within bounds, certified.

        Raises:
            NotCertifiedError: the solver's answer fails its certificate.
        """
        return minimise(self.energy(coefficients), bounds)


def surrogate_energy(features: Features, coefficients: Floats) -> Energy:
    """θ₁F + θ₂Γ + θ₃KL + ρᵀp + λR, scaled so that the largest part is one: tolerances then fit any unit."""
    n, (_, ensemble, gain, divergence), rho = len(features.tasks), coefficients[:SCALE], coefficients[SCALE:]
    slope = -rho + (gain * features.gains if features.gains is not None else 0.0)
    scale = max(ensemble, divergence, float(np.abs(slope).max()), features.repetition) or 1.0
    none = np.empty(0)
    kept = features.energy if features.energy is not None and ensemble > 0 else None
    return Energy(
        "surrogate", features.tasks, slope / scale, np.zeros(n), np.zeros((n, n)),
        kept.likelihoods if kept else np.empty((n, 0)), kept.omega * (ensemble / scale) if kept else none,
        kept.log_scale if kept else none, features.uniform, prior=float(divergence / scale),
        once=none if features.once is None else features.once, repetition=features.repetition / scale,
    )  # fmt: skip


def fit_surrogate(
    features: Features, mixtures: Sequence[Floats], losses: Sequence[float], noise: float, prior: Prior, seed: int = 0
) -> Surrogate:
    """The posterior of L̂ given trainings of some mixtures.

    Args:
        mixtures: (n,) each; one may stand there several times.
        losses: of each, lower is better.
        noise: standard deviation of one training, in the unit of the losses.
        seed: of the posterior's draws.
    """
    X_MD, y = _fitted_part(features, mixtures, losses)
    A, b = _normal_equations(X_MD, y, noise, prior)
    draws = _draws(A, b, prior, np.random.default_rng([seed, 17]))
    return Surrogate(features, draws.mean(axis=0), draws, noise, tuple(mixtures))


def evidence(
    features: Features, mixtures: Sequence[Floats], losses: Sequence[float], noise: float, prior: Prior
) -> float:
    """Log marginal likelihood of the losses but for a constant, θ₀ integrated out and signs left aside."""
    X_MD, y = _fitted_part(features, mixtures, losses)
    X_MD = X_MD[:, 1:]
    rest = y - X_MD @ prior.mean[1:]
    C = X_MD @ np.diag(prior.error[1:] ** 2) @ X_MD.T + noise**2 * np.eye(len(rest))
    root = np.linalg.cholesky(C)
    one, white = np.linalg.solve(root, np.ones(len(rest))), np.linalg.solve(root, rest)
    squares = white @ white - (one @ white) ** 2 / (one @ one)
    return float(-np.log(np.diag(root)).sum() - 0.5 * np.log(one @ one) - 0.5 * squares)


def _fitted_part(features: Features, mixtures: Sequence[Floats], losses: Sequence[float]) -> tuple[Floats, Floats]:
    """(M, D) features of the mixtures, and (M,) their losses less what is known of them."""
    X_MD = np.array([features(p) for p in mixtures])
    return X_MD, np.asarray(losses, dtype=np.float64) - [features.known(p) for p in mixtures]


def _free(prior: Prior) -> Any:
    """(D,) which coefficients are not held; θ₀ never is."""
    free = prior.error > 0
    free[0] = True
    return free


def _normal_equations(X_MD: Floats, losses: Floats, noise: float, prior: Prior) -> tuple[Floats, Floats]:
    """(A, b) of the unconstrained posterior N(A⁻¹b, A⁻¹) of the free coefficients."""
    free = _free(prior)
    held = np.where(free, 0.0, prior.mean)
    X, y = X_MD[:, free], losses - X_MD @ held
    precision = np.r_[0.0, prior.error[free][1:] ** -2.0]
    # θ₀ is free but for this, far below what any training says of it; it keeps A regular without trainings.
    precision[0] = 1e-8 / noise**2
    return X.T @ X / noise**2 + np.diag(precision), X.T @ y / noise**2 + precision * prior.mean[free]


def _draws(A: Floats, b: Floats, prior: Prior, random: np.random.Generator) -> Floats:
    """(B, D) of N(A⁻¹b, A⁻¹) where the signed coefficients are not negative: Gibbs over these, the rest given them."""
    free = _free(prior)
    index = np.flatnonzero(free)
    signed = np.isin(index, range(SIGNED.start, SIGNED.stop))
    covariance = np.linalg.inv(A)
    mean = covariance @ b
    values = np.tile(mean, (DRAWS, 1))
    if signed.any():
        precision = np.linalg.inv(covariance[np.ix_(signed, signed)])
        values[:, signed] = _truncated(mean[signed], precision, random)
        shift = covariance[np.ix_(~signed, signed)] @ precision
        values[:, ~signed] += (values[:, signed] - mean[signed]) @ shift.T
        rest = np.linalg.inv(A[np.ix_(~signed, ~signed)])  # covariance given the signed ones
    else:
        rest = covariance
    root = np.linalg.cholesky(rest)
    values[:, ~signed] += random.standard_normal((DRAWS, len(root))) @ root.T
    draws = np.tile(prior.mean, (DRAWS, 1))
    draws[:, free] = values
    return draws


def _truncated(mean: Floats, precision: Floats, random: np.random.Generator) -> Floats:
    """(B, k) of N(mean, precision⁻¹) on the positive orthant, a chain of Gibbs' sampler a draw."""
    x = np.tile(np.maximum(mean, 0.0), (DRAWS, 1))
    for _ in range(SWEEPS):
        for i in range(len(mean)):
            others = np.delete(np.arange(len(mean)), i)
            centre = mean[i] - (x[:, others] - mean[others]) @ precision[i, others] / precision[i, i]
            x[:, i] = _above_zero(centre, precision[i, i] ** -0.5, random.random(DRAWS))
    return x


def _above_zero(centre: Floats, error: float, quantile: Floats) -> Floats:
    """Quantiles of N(centre, error²) given that it is positive, sharp far out in the tail too."""
    return np.maximum(centre - error * ndtri_exp(log_ndtr(centre / error) + np.log1p(-quantile)), 0.0)
