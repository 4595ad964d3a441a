"""`KnobPath`: the mixture as a function of the one knob of its energy (t or prior)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from taskpgm.errors import UserError
from taskpgm.mixture.bounds import Bounds, simplex
from taskpgm.mixture.certificate import Optimum
from taskpgm.mixture.energy import KNOBS, Energy
from taskpgm.mixture.optimum import minimise
from taskpgm.mixture.qp import Quadratic
from taskpgm.types import Brief, Floats


@dataclass(frozen=True, eq=False, repr=False)
class KnobPath(Brief):
    """Certified mixtures along the values of a knob, for a plot of weights against it."""

    tasks: tuple[str, ...]
    knob: str
    values: Floats  # (m,)
    weights: Floats  # (m, n)
    relative_gap: Floats  # (m,) of each; absolute, in nats, for a likelihood

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        weights = {task: column.tolist() for task, column in zip(self.tasks, self.weights.T, strict=True)}
        return {"knob": self.knob, "values": self.values.tolist(), "weights": weights}


def check_knob(values: Sequence[float]) -> None:
    """
    Raises:
        UserError: a value that no knob takes.
    """
    for value in values:
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"A knob (--knob) takes numbers from 0 up, such as 0.1,1,10, not {value:g}.")


def trace_path(energy: Energy, values: Sequence[float], bounds: Bounds | None = None) -> KnobPath:
    """KnobPath of minimisers of `energy` with its knob at each of `values`, each the warm start of the next.

    Raises:
        UserError: a value below zero, or none that is finite.
        NotCertifiedError: one of them failed its certificate.
    """
    check_knob(values)
    bounds = bounds or simplex(energy.tasks)
    energy = replace(energy, without=(), only=(), seeds=())
    prepared = Quadratic.of(energy.K) if energy.kind == "affinity" else None
    optimum: Optimum | None = None
    optima = []
    for value in values:
        optimum = minimise(energy.with_knob(float(value)), bounds, optimum, prepared)
        optima.append(optimum)
    return KnobPath(
        energy.tasks,
        KNOBS[energy.kind],
        np.array(values, dtype=np.float64),
        np.array([one.p for one in optima]).reshape(-1, len(energy.tasks)),
        np.array([one.gap / one.scale for one in optima]),
    )
