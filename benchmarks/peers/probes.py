"""Peers that read probes: Merge-to-Mix, and the mixtures of the paper."""

import numpy as np

from taskpgm.config import AffinityConfig, EnergyConfig
from taskpgm.evaluation.predict import predict_losses
from taskpgm.mixture.affinity import measure_affinity
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.solve import solve_mixture


def merge_to_mix(finished, candidates):
    """Merge-to-Mix (arXiv 2505.16066): the loss under the probes merged with the candidate's weights stands for the
    loss after training on it. (k,) for (k, n); takes the model, no training."""
    tasks = finished.result.pool.names
    named = {str(k): dict(zip(tasks, p.tolist(), strict=True)) for k, p in enumerate(candidates)}
    return np.array([one.merged for one in predict_losses(finished, named, merged=True)])


def paper(result, kind="pmi", t=2.0):
    """The paper's mixture (arXiv 2507.12612), chosen without the targets: affinity PMI, or JSD where it was scored."""
    scores = result.scores.without_targets()
    affinity = measure_affinity(scores, AffinityConfig(kind=kind))
    energy = build_energy(scores, affinity, EnergyConfig(kind="affinity", t=t))
    return solve_mixture(energy, result.mixture.bounds).weights
