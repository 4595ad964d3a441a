"""`BalanceCurve`: what the targets gain and the tasks lose as `energy.balance` goes from one to the other."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from taskpgm.config import Config, EnergyConfig
from taskpgm.errors import UserError
from taskpgm.mixture.bounds import Bounds
from taskpgm.mixture.energies import ensemble_loss
from taskpgm.mixture.energy import Energy
from taskpgm.mixture.optimum import minimise, nearest_to_uniform
from taskpgm.scores import Scores
from taskpgm.types import Floats


@dataclass(frozen=True)
class BalancePoint:
    """One certified mixture of the curve. Changes are of the probes' ensemble's loss F, in parts of uniform's."""

    balance: float
    targets: float
    tasks: float
    worst_task: str
    worst: float
    weights: dict[str, float]
    gap: float  # in nats


@dataclass(frozen=True)
class BalanceCurve:
    """Mixtures by balance."""

    points: tuple[BalancePoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"points": [asdict(point) for point in self.points]}


def trace_balance(
    scores: Scores, energies: Sequence[tuple[float, Energy]], bounds: Bounds, targets: Floats
) -> BalanceCurve:
    """The curve of the minimisers of these energies, by the balance that each was built with.

    Args:
        energies: (balance, energy) each.
        targets: (sets,) weights of the targets, summing to one.

    Raises:
        UserError: there are no targets.
        NotCertifiedError: one of the mixtures failed its certificate.
    """
    if len(scores.sets) == len(scores.tasks):
        raise UserError("--balance weighs tasks against targets, and there are none.")
    wanted = [targets, scores.task_weights(), *np.eye(len(scores.sets))[: len(scores.tasks)]]
    losses = [ensemble_loss(scores, w) for w in wanted]
    uniform = nearest_to_uniform(bounds)
    start = np.array([one.loss(uniform) for one in losses])
    points = []
    for balance, energy in energies:
        optimum = minimise(energy, bounds)
        change = np.array([one.loss(optimum.p) for one in losses]) / start - 1
        worst = int(change[2:].argmax())
        weights = dict(zip(scores.tasks, optimum.p.tolist(), strict=True))
        facts = (float(change[0]), float(change[1]), scores.tasks[worst], float(change[2 + worst]))
        points.append(BalancePoint(balance, *facts, weights, optimum.gap))
    return BalanceCurve(tuple(points))


def balanced(config: Config, value: float) -> Config:
    """The same experiment with another `energy.balance`: what its YAML left out has the default of that balance.

    Raises:
        UserError: a balance outside of 0 to 1, or a kind that has none.
    """
    if not 0 <= value <= 1:
        raise UserError(f"--balance goes from 0, the targets alone, to 1, the tasks alone, not to {value:g}.")
    if config.energy.kind == "affinity":
        raise UserError("energy.kind 'affinity' has no balance: it takes no targets.")
    energy = EnergyConfig(**{**_given(config), "balance": float(value)})
    filled = energy.with_defaults(bool(config.targets), bool(config.option_targets))
    return config.model_copy(update={"energy": filled})


def _given(config: Config) -> dict[str, Any]:
    """The settings of the energy that were not left out; of a manifest, which names all, those that are not usual."""
    energy = config.energy
    given = {name: getattr(energy, name) for name in energy.model_fields_set}
    if not given.keys() >= {name for name in EnergyConfig.model_fields if getattr(energy, name) not in (None, {})}:
        return given
    bare = EnergyConfig(kind=energy.kind, balance=energy.balance, max_loss=energy.max_loss)
    usual = bare.with_defaults(bool(config.targets), bool(config.option_targets))
    always = {"kind": energy.kind, "max_loss": energy.max_loss}
    return {name: value for name, value in given.items() if value != getattr(usual, name)} | always
