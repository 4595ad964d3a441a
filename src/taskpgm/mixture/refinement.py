"""Which mixtures to train next, and which to choose after a few trainings, by a `Surrogate`.

Uniform and the default come first. Every further trial is the optimum of one draw of the posterior (Thompson sampling):
it is where the draws disagree about the optimum that mixtures differ. The choice is the optimum of the posterior mean,
or uniform if that cannot be told from it. Far from all trials the surrogate's form is a guess: of mixtures that it
promises more than twice what the best trial gained, the nearest to uniform that is promised so much is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy.optimize import brentq

from taskpgm.mixture.bounds import Bounds
from taskpgm.mixture.energy import Energy
from taskpgm.mixture.limits import Limit, within_limits
from taskpgm.mixture.optimum import minimise, nearest_to_uniform
from taskpgm.mixture.surrogate import SCALE, Features, Prior, Surrogate, evidence, fit_surrogate, surrogate_energy
from taskpgm.types import Floats

# By the likelihood of the trainings of seven settings (benchmarks/outcome.py), but for the divergence's error, which is
# 0.1 there: worlds that lose more by leaving tasks out are possible (docs/decisions.md).
ENSEMBLE_ERROR, GAIN_ERROR, DIVERGENCE_ERROR = 0.35, 0.75, 0.3
SPREAD = 1.7  # standard deviation of ρ's prior, in units of the standard deviation over tasks of F's slope at uniform
REACH = 2.0  # what is believed of a gain, in gains of the best trial (docs/decisions.md)
TOLD_APART = 0.5  # a gain over uniform of fewer standard errors is none
CANDIDATES = 8  # draws whose optima are looked at before it is said that no trial is worth its cost
NOISE_ERROR = 0.5  # standard deviation of the noise's logarithm, a priori
NOISE_TIMES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)  # of the usual noise, what is tried
# What is tried for metrics of unknown scale, in units of their own spread.
SCALES, SPREADS, NOISES = (0.25, 0.5, 1.0, 2.0, 4.0), (0.1, 0.3, 1.0, 3.0), (0.05, 0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True, eq=False)
class Choice:
    """The mixture that a surrogate chooses.

    Attributes:
        p: (n,) the mixture, the minimiser of `energy` within the bounds.
        gain: L̂(u) − L̂(p), u uniform within the bounds.
        error: standard error of the gain.
        uniform: whether p is uniform, since nothing better could be told from it.
        held: whether the optimum promised more than is believed, so that p is on the way to it.
    """

    p: Floats
    energy: Energy
    gain: float
    error: float
    uniform: bool
    held: bool = False


def default_coefficients(features: Features, kappa: float) -> Floats:
    """(D,) of the default, F(p) + κ KL(p‖u), or κ KL(p‖u) without probes."""
    n = len(features.tasks)
    return np.r_[0.0, float(features.energy is not None), 0.0, kappa, np.zeros(n)]


def least(energy: Energy, bounds: Bounds) -> Floats:
    """(n,) where an energy is least within bounds, certified."""
    return minimise(energy, bounds).p


def usual_prior(features: Features, kappa: float, spread: float = SPREAD) -> Prior:
    """What is believed before any trial: the default's energy, and a ρ of `spread` times the spread of F's own slope.

    With probes alone, and for losses in nats.
    """
    assert features.energy is not None, "without probes there is no scale"
    n, rho = len(features.tasks), spread * float(np.std(features.energy.gradient(features.uniform)))
    error = np.r_[0.0, ENSEMBLE_ERROR, GAIN_ERROR, DIVERGENCE_ERROR, np.full(n, rho)]
    return Prior(default_coefficients(features, kappa), error)


def likely_noise(
    features: Features, mixtures: Sequence[Floats], losses: Sequence[float], usual: float, prior: Prior
) -> float:
    """Standard deviation of one training, and of what the surrogate's form misses: where the losses were most likely.

    Mixtures that were trained twice tell it best. A priori its logarithm is normal around that of what is usual.

    Args:
        usual: a standard deviation known from elsewhere.
    """
    tried = [usual * times for times in NOISE_TIMES]

    def belief(noise: float) -> float:
        far = np.log(noise / usual) / NOISE_ERROR
        return evidence(features, mixtures, losses, noise, prior) - 0.5 * float(far**2)

    return max(tried, key=belief)


def fitted_prior(
    features: Features, mixtures: Sequence[Floats], losses: Sequence[float], kappa: float
) -> tuple[Prior, float]:
    """(prior, noise) for a metric of any unit: those under which its values were most likely, of a grid.

    The grid is over the metric's scale (the default's energy then rises by as much as the metric spreads), ρ's spread
    and the noise.
    """
    X = np.array([features(p) for p in mixtures])
    unit = float(np.std(losses)) or 1.0
    energy = X @ default_coefficients(features, kappa)
    steps = float(np.sqrt(((X[:, SCALE:] - X[:, SCALE:].mean(axis=0)) ** 2).sum(axis=1).mean())) or 1.0
    held = float(features.gains is not None)

    def prior(scale: float, spread: float) -> Prior:
        n, a = len(features.tasks), scale * unit / (float(energy.std()) or 1.0)
        mean = a * default_coefficients(features, kappa) * held
        error = np.r_[
            0.0, held * a * ENSEMBLE_ERROR, held * a * GAIN_ERROR, a * max(kappa, held * DIVERGENCE_ERROR),
            np.full(n, spread * unit / steps),
        ]  # fmt: skip
        return Prior(mean, error)

    tried = [(prior(a, s), b * unit) for a, s, b in product(SCALES, SPREADS, NOISES)]
    return max(tried, key=lambda one: evidence(features, mixtures, losses, one[1], one[0]))


def next_trial(surrogate: Surrogate, bounds: Bounds, number: int) -> Floats:
    """(n,) the optimum of the posterior's draw of that number."""
    return surrogate.optimum(bounds, surrogate.draws[number]).p


def hoped_for(surrogate: Surrogate, bounds: Bounds, limits: Sequence[Limit] = ()) -> tuple[float, float]:
    """(expected improvement over the present choice of the best of a few candidates, error of that choice's gain)."""
    choice = choose(surrogate, bounds, limits)
    candidates = [next_trial(surrogate, bounds, -1 - k) for k in range(CANDIDATES)]
    return max(surrogate.improvement(p, choice.p) for p in candidates), choice.error


def choose(surrogate: Surrogate, bounds: Bounds, limits: Sequence[Limit] = ()) -> Choice:
    """The optimum of the posterior mean within limits; uniform if its gain is less than half a standard error.

    Args:
        limits: on what the probes predict of tasks' losses, which trials do not change.
    """
    features, u = surrogate.features, nearest_to_uniform(bounds)

    def best(more: float) -> tuple[Floats, Energy, float]:
        """The minimiser of L̂ + more · KL(p‖u), its energy and L̂'s gain there, which falls as `more` grows."""
        energy = surrogate.energy(surrogate.coefficients + more * _only_divergence(features))
        energy = within_limits(energy, limits, bounds, u) if limits else energy
        p = least(energy, bounds)
        return p, energy, surrogate.loss(u) - surrogate.loss(p)

    p, energy, gain = best(0.0)
    gains = [surrogate.loss(u) - surrogate.loss(q) for q in surrogate.tried]
    most = REACH * max(*gains, surrogate.noise) if gains else gain
    if held := gain > most:
        low, high = 0.0, most
        while best(high)[2] > most:
            low, high = high, 2 * high
        p, energy, gain = best(brentq(lambda more: best(more)[2] - most, low, high, xtol=1e-6 * high))
    error = surrogate.error(p, u)
    if gain < TOLD_APART * error or not gain > 0:
        free = replace(features, repetition=0.0)
        return Choice(u, surrogate_energy(free, _only_divergence(features)), 0.0, error, True)
    return Choice(p, energy, gain, error, False, held)


def left_out(surrogate: Surrogate, mixtures: Sequence[Floats], losses: Sequence[float], prior: Prior) -> Floats:
    """(M,) what each training's mixture is predicted to reach by the others."""
    found = []
    for k, p in enumerate(mixtures):
        others = [i for i in range(len(mixtures)) if i != k]
        fit = fit_surrogate(
            surrogate.features, [mixtures[i] for i in others], [losses[i] for i in others], surrogate.noise, prior
        )
        found.append(fit.loss(p))
    return np.array(found)


def _only_divergence(features: Features) -> Floats:
    return np.r_[0.0, 0.0, 0.0, 1.0, np.zeros(len(features.tasks))]
