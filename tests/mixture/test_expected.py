"""What a training is expected to change: against draws of the coefficients, and in words."""

import numpy as np
import pytest
from support.numerics import synthetic_scores

from taskpgm.config import AffinityConfig, EnergyConfig
from taskpgm.mixture.affinity import measure_affinity
from taskpgm.mixture.energies import REPETITION, Budget, build_energy
from taskpgm.mixture.expected import (
    DIVERGENCE,
    DIVERGENCE_ERROR,
    LEVEL,
    MISFIT,
    REPETITION_ERROR,
    expected_change,
    expected_sentence,
)
from taskpgm.mixture.refinement import ENSEMBLE_ERROR, GAIN_ERROR, SPREAD

ONCE = np.array([0.1, 0.2, 0.3, 0.4])


def budget(scores, times=1.0, once=ONCE):
    return Budget(dict(zip(scores.tasks, once.tolist(), strict=True)), times)


@pytest.mark.parametrize("times", [1.0, 4.0])
def test_change_and_interval_are_those_of_draws(times):
    scores = synthetic_scores(np.random.default_rng(3), targets=2)
    n = len(scores.tasks)
    u, p = np.full(n, 1 / n), np.array([0.5, 0.3, 0.15, 0.05])
    found = expected_change(scores, {}, p, u, budget(scores, times))
    affinity = measure_affinity(scores, AffinityConfig())
    ensemble, gain = (build_energy(scores, affinity, EnergyConfig(kind=k, prior=0.0)) for k in ("likelihood", "gain"))
    random = np.random.default_rng(0)
    slope = SPREAD * np.std(ensemble.gradient(u))
    again = [sum(max(0.0, x - o) ** 2 / o for x, o in zip(q, ONCE, strict=True)) for q in (p, u)]
    draws = [
        (
            random.normal(1, ENSEMBLE_ERROR) * (ensemble.loss(p) - ensemble.loss(u))
            + random.normal(0, GAIN_ERROR) * (gain.loss(p) - gain.loss(u))
            + random.normal(DIVERGENCE, DIVERGENCE_ERROR) * float((p * np.log(p * n)).sum())
            + random.normal(0, slope, n) @ (p - u)
        )
        / np.sqrt(times)
        + random.normal(1, REPETITION_ERROR) * REPETITION * times / 16 * (again[0] - again[1]) * ensemble.loss(u)
        + random.normal(0, MISFIT) * ensemble.loss(u)
        for _ in range(20_000)
    ]
    parts = np.array(draws) / ensemble.loss(u)
    tail = 50 * (1 - LEVEL)
    np.testing.assert_allclose(found.change, parts.mean(), atol=4 * parts.std() / np.sqrt(len(parts)))
    expected = np.percentile(parts, [tail, 100 - tail])
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.05 * parts.std())


def test_uniform_changes_nothing_but_what_the_form_misses():
    scores = synthetic_scores(np.random.default_rng(3), targets=1)
    u = np.full(4, 0.25)
    found = expected_change(scores, {}, u, u, budget(scores))
    assert found.change == 0
    assert found.high == pytest.approx(1.6449 * MISFIT, rel=1e-3)


def test_words():
    found = {"change": -0.0213, "low": -0.05, "high": 0.0081, "level": 0.9}
    assert expected_sentence(found) == (
        "expected of a training: targets' loss -2.1 % against uniform (90 % interval -5.0 to +0.8 %)"
    )
