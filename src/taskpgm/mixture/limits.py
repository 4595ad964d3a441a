"""What a mixture may cost the tasks: convex limits on predicted losses, and the prices at which they hold.

A limit says F_k(p) ≤ F_k(u) + max(x F_k(u), 0.01 nats), F_k the loss of the probes' ensemble on one task or on all, u
uniform within the bounds. The mixture that minimises E within the limits also minimises E + Σ_k μ_k F_k without them,
for the right prices μ ≥ 0 (strong duality: u meets every limit strictly). They are the multipliers of the problem with
limits, found by sequential quadratic programming; what is certified is an ordinary energy.

Legend of shape suffixes: N tasks, K limits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np
import piqp  # type: ignore[import-untyped]

from taskpgm.config import EnergyConfig
from taskpgm.mixture import jackknife
from taskpgm.mixture.bounds import Bounds
from taskpgm.mixture.certificate import ABSOLUTE_GAP, NotCertifiedError, Optimum
from taskpgm.mixture.energies import ensemble_loss
from taskpgm.mixture.energy import Energy
from taskpgm.mixture.jackknife import EVERYTHING, Fold
from taskpgm.mixture.optimum import minimise, nearest_to_uniform
from taskpgm.mixture.qp import PROXIMAL
from taskpgm.scores import Scores
from taskpgm.types import Floats

UNSEEN = 0.01  # nats a token: a rise that no limit forbids, so that a task with hardly a loss does not rule all others
MET = 1e-9  # nats: a limit that is exceeded by less is met
STEPS = 100  # far more than it takes; the check at the end decides
AT_REST = 1e-11  # a step that moves no share by more ends the search
NEAR = 1e-7  # nats: a limit with more slack has no price but by the solver's tolerance
SHRINK = 0.02  # a step leaves every share at least so much of itself


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
    """The limit that lets a loss rise by `share` of what uniform has, or by `UNSEEN` if that is more."""
    start = energy.loss(uniform)
    return Limit(name, energy, float(_most(start, share)), start)


def _most(start: Any, share: float) -> Any:
    """How far a loss, or an array of them, may rise from there."""
    return start + np.maximum(share * np.abs(start), UNSEEN)


def keep_tasks(energy: Energy, scores: Scores, config: EnergyConfig, bounds: Bounds) -> Energy:
    """The energy under the limits that `config` sets, if any, and its replicates under those of their own contexts.

    Raises:
        NotCertifiedError: no prices were found at which the limits hold.
    """
    if not config.limited:
        return energy
    uniform, tasks = nearest_to_uniform(bounds), _Tasks(scores)

    def of(one: Energy, fold: Fold) -> Energy:
        if config.max_loss is None and (free := _all_met(one, tasks, config, bounds, fold)):
            return free
        return within_limits(one, task_limits(scores, config, uniform, fold), bounds, uniform)

    folds = {"without": jackknife.without_folds(scores), "seeds": jackknife.seed_folds(scores)}
    parts = {name: tuple(map(of, getattr(energy, name), fold)) for name, fold in folds.items()}
    return replace(of(energy, EVERYTHING), **parts)  # type: ignore[arg-type]


class _Tasks:
    """Losses of the probes' ensemble on every task at once, which few limits need more of."""

    def __init__(self, scores: Scores) -> None:
        self.scores = scores
        self.own_T = scores.context_set[scores.context] < len(scores.tasks)
        self.set_T = scores.context_set[scores.context][self.own_T]
        logp_NT = scores.logp[1:, self.own_T]
        self.top_T = logp_NT.max(axis=0)
        self.likelihoods_NT = np.exp(logp_NT - self.top_T)

    def losses(self, p: Floats, fold: Fold) -> Floats:
        """(n,) F of every task on one fold of the contexts."""
        omega_T = jackknife.omega_of(self.scores, self.scores.task_weights(), fold)[self.own_T]
        loss_T = -np.log(p @ self.likelihoods_NT) - self.top_T
        total, weight = (np.bincount(self.set_T, w, len(self.scores.tasks)) for w in (omega_T * loss_T, omega_T))
        return np.asarray(total / weight)


def _all_met(energy: Energy, tasks: _Tasks, config: EnergyConfig, bounds: Bounds, fold: Fold) -> Energy | None:
    """The energy with its settings, if its own minimiser is within the limits of all tasks: most often, and quickly."""
    start = tasks.losses(nearest_to_uniform(bounds), fold)
    most = _most(start, config.max_task_loss or 0.0)
    loss = tasks.losses(minimise(energy, bounds).p, fold)
    if (loss > most + MET).any():
        return None
    found = zip(energy.tasks, start.tolist(), most.tolist(), loss.tolist(), strict=True)
    described = [_described(*facts, price=0.0) for facts in found]
    return replace(energy, settings={**energy.settings, "limits": described})


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
        _described(one.name, one.start, one.most, one.energy.loss(optimum.p), float(price))
        for one, price in zip(limits, prices, strict=True)
    ]
    return replace(priced(energy, limits, prices), settings={**energy.settings, "limits": described})


def _described(name: str, uniform: float, most: float, loss: float, price: float) -> dict[str, Any]:
    return {"name": name, "uniform": uniform, "most": most, "loss": loss, "price": price}


def find_prices(energy: Energy, limits: Sequence[Limit], bounds: Bounds, inside: Floats) -> tuple[Floats, Optimum]:
    """(K,) prices μ ≥ 0, and the minimiser of E + Σ μ_k F_k, which meets every limit, those with a price exactly.

    Raises:
        NotCertifiedError: they were found only roughly.
    """
    prices_K, optimum = np.zeros(len(limits)), minimise(energy, bounds)
    kept_K = np.zeros(len(limits), dtype=bool)  # the others are met without being asked for
    while (broken_K := (_excess(limits, optimum.p) > MET) & ~kept_K).any():
        kept_K |= broken_K
        prices_K[kept_K] = _multipliers(energy, list(compress(limits, kept_K)), bounds, inside)
        optimum = minimise(priced(energy, limits, prices_K), bounds)
    if (residual := _residual(prices_K, _excess(limits, optimum.p))) > ABSOLUTE_GAP:
        raise NotCertifiedError(
            f"The limits on the tasks' losses were met only to {residual:.3g} nats; none is returned."
        )
    return prices_K, optimum


def _multipliers(energy: Energy, limits: Sequence[Limit], bounds: Bounds, p: Floats) -> Floats:
    """(K,) multipliers of the limits where E is least within them: sequential quadratic programming from p.

    Every step minimises the expansion of E + Σ μ_k F_k to second order within the limits' tangents (PIQP), and is
    shortened until E + σ Σ max(0, excess) falls enough, σ above every multiplier so far.
    """
    prices_K, sigma = np.zeros(len(limits)), 1.0
    for _ in range(STEPS):
        excess_K = _excess(limits, p)
        step, wanted_K = _program(energy, limits, bounds, prices_K, excess_K, p)
        sigma = max(sigma, 2 * float(wanted_K.max(initial=0.0)))

        def merit(q: Floats, sigma: float = sigma) -> float:
            return energy.value(q) + sigma * float(np.maximum(_excess(limits, q), 0).sum())

        slope = float(energy.gradient(p) @ step) - sigma * float(np.maximum(excess_K, 0).sum())
        start, part = merit(p), 1.0
        while part > 1e-8 and merit(_moved(p, part * step, bounds)) > start + 1e-4 * part * min(slope, 0.0) + 1e-13:
            part /= 2
        p, prices_K = _moved(p, part * step, bounds), prices_K + part * (wanted_K - prices_K)
        if np.abs(step).max() < AT_REST:
            break
    return np.where(_excess(limits, p) < -NEAR, 0.0, prices_K)


def _program(
    energy: Energy, limits: Sequence[Limit], bounds: Bounds, prices_K: Floats, excess_K: Floats, p: Floats
) -> tuple[Floats, Floats]:
    """((n,) the step from p, (K,) multipliers of the limits' tangents)."""
    n, sums = len(p), bounds.members @ p
    H = priced(energy, limits, prices_K).hessian(p)
    slopes_KN = np.array([one.energy.gradient(p) for one in limits])
    floor = np.maximum(bounds.lo, SHRINK * p) if energy.prior > 0 else bounds.lo  # log p leaves its expansion below
    solver = piqp.DenseSolver()
    solver.settings.eps_abs = solver.settings.eps_rel = 1e-12
    solver.settings.max_iter = 200
    solver.setup(
        H + PROXIMAL * np.trace(H) / n * np.eye(n), energy.gradient(p), np.ones((1, n)), np.array([1 - p.sum()]),
        np.vstack([bounds.members, slopes_KN]), np.r_[bounds.group_lo - sums, np.full(len(limits), -np.inf)],
        np.r_[bounds.group_hi - sums, -excess_K], floor - p, bounds.hi - p,
    )  # fmt: skip
    solver.solve()
    return np.array(solver.result.x), np.maximum(np.array(solver.result.z_u)[len(sums) :], 0.0)


def _moved(p: Floats, step: Floats, bounds: Bounds) -> Floats:
    """p + step without what rounding leaves beyond the bounds."""
    moved = np.clip(p + step, bounds.lo, bounds.hi)
    return np.asarray(moved / moved.sum())


def priced(energy: Energy, limits: Sequence[Limit], prices: Floats) -> Energy:
    """E + Σ_k μ_k F_k as one energy: the limits' positions stand beside the energy's own, weighted by their prices."""
    held = [(one.energy, price) for one, price in zip(limits, prices, strict=True) if price > 0]
    parts = [(energy.likelihoods, energy.omega, energy.log_scale)]
    parts += [(one.likelihoods, price * one.omega, one.log_scale) for one, price in held]
    likelihoods, omega, log_scale = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
    added = len(omega) - len(energy.omega)
    return replace(energy, likelihoods=likelihoods, omega=omega, log_scale=log_scale, limits=energy.limits + added)


def _excess(limits: Sequence[Limit], p: Floats) -> Floats:
    return np.array([one.excess(p) for one in limits])


def _residual(prices_K: Floats, excess_K: Floats) -> float:
    """Largest violation, or price times slack."""
    return float(np.maximum(excess_K, prices_K * np.abs(excess_K)).max(initial=0.0))
