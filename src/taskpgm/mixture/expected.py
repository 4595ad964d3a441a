"""`Expected`: what a training on a mixture is expected to change against uniform, before any is made.

    L(p) − L(u) = [θ₁ (F(p) − F(u)) + θ₂ (Γ(p) − Γ(u)) + θ₃ KL(p‖u) + ρᵀ(p − u)] · fade + θ₄ (R(p) − R(u)) + ε

with the coefficients' priors of `refinement.py`: what the trainings of seven settings taught of them. That of the
divergence is its own: narrower, since trials must allow for more than was seen, and around what a training loses by
leaving uniform, which is more than the energy's κ. θ₁ is 1. The error is mostly ρ's, what tasks do to each other in a
training that their probes do not show. What is left of that at a budget, and what R costs, rows that are seen again,
says `Budget`. How often the interval held: docs/trainings.md.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from taskpgm.mixture.affinity import mean_logp
from taskpgm.mixture.energies import Budget, ensemble_loss
from taskpgm.mixture.energy import repeated
from taskpgm.mixture.refinement import usual_prior
from taskpgm.mixture.surrogate import SCALE, Features
from taskpgm.scores import Scores
from taskpgm.types import Floats

LEVEL = 0.9
DIVERGENCE, DIVERGENCE_ERROR = 0.2, 0.1  # mean and standard deviation of θ₃
MISFIT = 0.012  # standard deviation of ε, in parts of the loss: what the form misses
REPETITION_ERROR = 1.4  # standard deviation of θ₄, in parts of its mean


@dataclass(frozen=True)
class Expected:
    """Change of the targets' loss against uniform, in parts of it: negative is better. `low` to `high` hold 90 %."""

    change: float
    low: float
    high: float
    level: float = LEVEL

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def expected_change(
    scores: Scores, weights: Mapping[str, float], p: Floats, uniform: Floats, budget: Budget
) -> Expected:
    """What training on p is expected to change on the targets.

    Args:
        weights: of the targets by name; alike if left out.
        p: (n,) the mixture.
        uniform: (n,) what it is compared with.
        budget: what is trained on.
    """
    w, M = scores.target_weights(weights), mean_logp(scores)
    ensemble = ensemble_loss(scores, w)
    features = Features(scores.tasks, ensemble, (M[1:] - M[0]) @ w)
    prior = usual_prior(features, DIVERGENCE)
    prior.error[SCALE - 1] = DIVERGENCE_ERROR
    x = (features(p) - features(uniform)) / ensemble.loss(uniform) * budget.fade
    once = np.array([budget.once[task] for task in scores.tasks])
    again = budget.repetition() * (repeated(p, once) - repeated(uniform, once))
    change = float(x @ prior.mean) + again
    error = float(np.linalg.norm([*(x * prior.error), REPETITION_ERROR * again, MISFIT]))
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * error
    return Expected(change, change - half, change + half)


def expected_sentence(found: Mapping[str, Any]) -> str:
    """The same in words, from JSON."""
    change, low, high = (f"{100 * found[key]:+.1f}" for key in ("change", "low", "high"))
    interval = f"{100 * found['level']:.0f} % interval {low} to {high} %"
    return f"expected of a training: targets' loss {change} % against uniform ({interval})"
