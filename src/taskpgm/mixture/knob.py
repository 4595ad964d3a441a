"""The knob t of an affinity energy, chosen by prediction if the user leaves it open."""

from dataclasses import replace

import numpy as np

from taskpgm.config import EnergyConfig
from taskpgm.mixture.affinity import Affinity
from taskpgm.mixture.bounds import Bounds
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.energy import Energy
from taskpgm.mixture.optimum import minimise
from taskpgm.scores import Scores

TRIED = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # from least redundant to central tasks, denser near uniform


def choose_t(scores: Scores, affinity: Affinity, config: EnergyConfig, bounds: Bounds) -> Energy:
    """The affinity energy at the t whose mixtures are predicted best, of `TRIED`; its settings say what was predicted.

    The prediction is F, the loss of the probes' ensemble on the tasks, cross-fitted: the mixture is solved without a
    group of contexts and F taken on that group, in the mean over groups. Ties go to the t nearest to 1, uniform.
    """
    energy = build_energy(scores, affinity, config.model_copy(update={"t": 1.0}))
    plain = config.model_copy(update={"kind": "likelihood", "prior": 0.0, "utility": {}})
    ensemble = build_energy(scores, affinity, plain)
    tried = {t: predicted_loss(energy.with_knob(t), ensemble, bounds) for t in TRIED}
    best = min(TRIED, key=lambda t: (tried[t], abs(t - 1)))
    chosen = energy.with_knob(best)
    return replace(chosen, settings={**chosen.settings, "tried": {f"{t:g}": loss for t, loss in tried.items()}})


def predicted_loss(energy: Energy, ensemble: Energy, bounds: Bounds) -> float:
    """Mean over groups of the ensemble's loss on a group, at the mixture that is solved without it."""
    pairs = zip(energy.without, ensemble.only, strict=True)
    return float(np.mean([only.loss(minimise(without, bounds).p) for without, only in pairs]))
