"""What a mixture may cost the tasks: convex limits on predicted losses, and the prices at which they hold.

A limit says F_k(p) ≤ (1 + x) F_k(u), F_k the loss of the probes' ensemble on one task or on all, u uniform within the
bounds. The mixture that minimises E within the limits also minimises E + Σ_k μ_k F_k without them, for the right prices
μ ≥ 0 (strong duality: u meets every limit strictly). They maximise the concave dual, whose slope is F_k(p) − most_k, by
a projected Newton's method (Bertsekas 1982); so what is certified is an ordinary energy.

Legend of shape suffixes: N tasks, K limits, F limits in play.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import null_space

from taskpgm.config import EnergyConfig
from taskpgm.mixture import jackknife
from taskpgm.mixture.bounds import Bounds
from taskpgm.mixture.certificate import ABSOLUTE_GAP, NotCertifiedError, Optimum
from taskpgm.mixture.energies import ensemble_loss
from taskpgm.mixture.energy import Energy
from taskpgm.mixture.jackknife import EVERYTHING, Fold
from taskpgm.mixture.optimum import minimise, nearest_to_uniform
from taskpgm.scores import Scores
from taskpgm.types import Floats

MET = 1e-9  # nats: Newton goes on until limits and complementarity hold to this
STEPS, HALVINGS = 60, 40  # far more than it takes; the check at the end decides
AT_BOUND = 1e-9


ALL = "all tasks"


@dataclass(frozen=True, eq=False)
class Limit:
    """`energy.loss(p)` may be `most`; `name` is a task's, or "all tasks" for their mean."""

    name: str
    energy: Energy  # a likelihood without prior
    most: float
    start: float  # uniform's loss

    def excess(self, p: Floats) -> float:
        """How far the loss is above the limit, in nats."""
        return self.energy.loss(p) - self.most


def limit(name: str, energy: Energy, uniform: Floats, share: float) -> Limit:
    """The limit that lets a loss rise by `share` of what uniform has."""
    start = energy.loss(uniform)
    return Limit(name, energy, start + share * abs(start), start)


def keep_tasks(energy: Energy, scores: Scores, config: EnergyConfig, bounds: Bounds) -> Energy:
    """The energy under the limits that `config` sets, if any, and its replicates under those of their own contexts.

    Raises:
        NotCertifiedError: no prices were found at which the limits hold.
    """
    if not config.limited:
        return energy
    uniform = nearest_to_uniform(bounds)

    def of(one: Energy, fold: Fold) -> Energy:
        return within_limits(one, task_limits(scores, config, uniform, fold), bounds, uniform)

    folds = {"without": jackknife.without_folds(scores), "seeds": jackknife.seed_folds(scores)}
    parts = {name: tuple(map(of, getattr(energy, name), fold)) for name, fold in folds.items()}
    return replace(of(energy, EVERYTHING), **parts)  # type: ignore[arg-type]


def task_limits(scores: Scores, config: EnergyConfig, uniform: Floats, fold: Fold = EVERYTHING) -> tuple[Limit, ...]:
    """`max_loss` of the mean over tasks and `max_task_loss` of each, as far as they are set."""
    weights: Mapping[str, Floats] = {ALL: scores.task_weights()} if config.max_loss is not None else {}
    if config.max_task_loss is not None:
        weights = {**weights, **dict(zip(scores.tasks, np.eye(len(scores.sets)), strict=False))}
    shares = {name: config.max_loss if name == ALL else config.max_task_loss for name in weights}
    return tuple(
        limit(name, ensemble_loss(scores, w, fold), uniform, shares[name] or 0.0) for name, w in weights.items()
    )


def within_limits(energy: Energy, limits: Sequence[Limit], bounds: Bounds, inside: Floats) -> Energy:
    """E + Σ_k μ_k F_k, whose minimiser within bounds is that of E within the limits too; its settings name the prices.

    Args:
        inside: (n,) a mixture that meets every limit strictly.

    Raises:
        NotCertifiedError: no prices were found at which the limits hold.
    """
    prices, optimum = find_prices(energy, limits, bounds, inside)
    described = [
        {
            "name": one.name,
            "uniform": one.start,
            "most": one.most,
            "loss": one.energy.loss(optimum.p),
            "price": float(price),
        }
        for one, price in zip(limits, prices, strict=True)
    ]
    return replace(priced(energy, limits, prices), settings={**energy.settings, "limits": described})


def find_prices(energy: Energy, limits: Sequence[Limit], bounds: Bounds, inside: Floats) -> tuple[Floats, Optimum]:
    """(K,) prices μ ≥ 0, and the minimiser of E + Σ μ_k F_k, which meets every limit, those with a price exactly.

    No price is larger than what it costs in E to go inside, over the room that there is: Σ μ_k room_k ≤ E(inside) − E*.

    Raises:
        NotCertifiedError: they were found only roughly.
    """
    prices_K, optimum = np.zeros(len(limits)), minimise(energy, bounds)
    excess_K = _excess(limits, optimum.p)
    highest_K = (energy.value(inside) - energy.value(optimum.p)) / -_excess(limits, inside)
    for _ in range(STEPS):
        if _residual(prices_K, excess_K) <= MET:
            break
        step_K = _newton_step(energy, limits, bounds, prices_K, excess_K, optimum.p)
        found = _line_search(energy, limits, bounds, (prices_K, excess_K, optimum), step_K, highest_K)
        if found is None:
            break
        prices_K, excess_K, optimum = found
    if (residual := _residual(prices_K, excess_K)) > ABSOLUTE_GAP:
        raise NotCertifiedError(
            f"The limits on the tasks' losses were met only to {residual:.3g} nats; none is returned."
        )
    return prices_K, optimum


def priced(energy: Energy, limits: Sequence[Limit], prices: Floats) -> Energy:
    """E + Σ_k μ_k F_k as one energy: the limits' positions stand beside the energy's own, weighted by their prices."""
    held = [(one.energy, price) for one, price in zip(limits, prices, strict=True) if price > 0]
    parts = [(energy.likelihoods, energy.omega, energy.log_scale)]
    parts += [(one.likelihoods, price * one.omega, one.log_scale) for one, price in held]
    likelihoods, omega, log_scale = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
    return replace(energy, likelihoods=likelihoods, omega=omega, log_scale=log_scale)


def _excess(limits: Sequence[Limit], p: Floats) -> Floats:
    return np.array([one.excess(p) for one in limits])


def _residual(prices_K: Floats, excess_K: Floats) -> float:
    """Largest violation, or price times slack."""
    return float(np.maximum(excess_K, prices_K * np.abs(excess_K)).max(initial=0.0))


def _newton_step(
    energy: Energy, limits: Sequence[Limit], bounds: Bounds, prices_K: Floats, excess_K: Floats, p: Floats
) -> Floats:
    """(K,) the step that makes the excess of the limits in play vanish, to first order."""
    play = (prices_K > 0) | (excess_K > 0)
    slopes_FN = np.array([one.energy.gradient(p) for one, on in zip(limits, play, strict=True) if on])
    free = (p > bounds.lo + AT_BOUND) & (p < bounds.hi - AT_BOUND)
    sums = bounds.members @ p
    on = (sums < bounds.group_lo + AT_BOUND) | (sums > bounds.group_hi - AT_BOUND)
    Z = null_space(np.vstack([np.ones((1, len(p))), bounds.members[on]])[:, free])
    H = priced(energy, limits, prices_K).hessian(p)[np.ix_(free, free)]
    moved = slopes_FN[:, free] @ Z
    response_FF = moved @ np.linalg.pinv(Z.T @ H @ Z, hermitian=True) @ moved.T
    response_FF += (1e-12 * np.trace(response_FF) + 1e-300) * np.eye(len(response_FF))
    step_K = np.zeros(len(prices_K))
    step_K[play] = np.linalg.lstsq(response_FF, excess_K[play], rcond=None)[0]
    return step_K


def _line_search(
    energy: Energy, limits: Sequence[Limit], bounds: Bounds, now: Any, step_K: Floats, highest_K: Floats
) -> Any:
    """(prices, excess, optimum) of the first of step, step/2, ... that raises the dual enough; None if none does."""
    prices_K, excess_K, optimum = now
    value = energy.value(optimum.p) + float(prices_K @ excess_K)
    for k in range(HALVINGS):
        trial_K = np.clip(prices_K + step_K / 2**k, 0.0, highest_K)
        found = minimise(priced(energy, limits, trial_K), bounds, optimum)
        over_K = _excess(limits, found.p)
        rise = energy.value(found.p) + float(trial_K @ over_K) - value
        if rise >= 1e-4 * float(excess_K @ (trial_K - prices_K)) - 1e-13 * max(1.0, abs(value)):
            return trial_K, over_K, found
    return None
