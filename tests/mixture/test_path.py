"""Paths over the knob: each point is the mixture that solving afresh gives."""

import json

import numpy as np
import pytest
from support.numerics import names, synthetic_scores

from taskpgm import UserError
from taskpgm.config import AffinityConfig, EnergyConfig
from taskpgm.mixture.affinity import given_affinity, measure_affinity
from taskpgm.mixture.bounds import make_bounds
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.path import trace_path
from taskpgm.mixture.solve import solve_mixture


@pytest.mark.parametrize("config", [EnergyConfig(), EnergyConfig(kind="gain"), EnergyConfig(kind="affinity")])
def test_each_point_is_the_mixture_solved_afresh(config):
    scores = synthetic_scores(np.random.default_rng(0), n=5)
    energy = build_energy(scores, measure_affinity(scores, AffinityConfig()), config)
    bounds = make_bounds(names(5), hi={"t0": 0.3})
    values = [0.0, 0.01, 0.5, 1.0, 2.0, 8.0]
    path = trace_path(energy, values, bounds)
    assert path.knob == {"likelihood": "prior", "gain": "prior", "affinity": "t"}[config.kind]
    for value, weights in zip(values, path.weights, strict=True):
        np.testing.assert_allclose(weights, solve_mixture(energy.with_knob(value), bounds).weights, atol=1e-6)
    data = json.loads(json.dumps(path.to_dict(), allow_nan=False))
    np.testing.assert_array_equal(data["weights"]["t1"], path.weights[:, 1])


def test_path_of_t_starts_at_minimum_variance_and_passes_uniform():
    rng = np.random.default_rng(1)
    A = rng.normal(size=(6, 40))
    S = A @ A.T / 40
    path = trace_path(build_energy(None, given_affinity(S), EnergyConfig(kind="affinity", t=2)), [0, 1, 2, 50])
    w0 = np.linalg.solve(S, np.ones(6))
    np.testing.assert_allclose(path.weights[0], w0 / w0.sum(), atol=1e-9)
    np.testing.assert_allclose(path.weights[1], 1 / 6, atol=1e-9)
    assert path.weights[3].max() > path.weights[2].max() > path.weights[1].max()
    large = trace_path(build_energy(None, given_affinity(1e9 * S), EnergyConfig(kind="affinity", t=2)), [0, 1, 2, 50])
    np.testing.assert_allclose(large.weights, path.weights, atol=1e-9)
    assert large.relative_gap.max() <= 1e-9  # of an energy of any size


def test_minimum_variance_of_a_singular_affinity_has_energy_zero():
    """pᵀKp = 0 at t = 0: nothing to be relative to, yet certified."""
    A = np.random.default_rng(2).normal(size=(60, 8))
    energy = build_energy(None, given_affinity(A @ A.T), EnergyConfig(kind="affinity", t=2))
    path = trace_path(energy, np.linspace(0, 5, 11))
    assert path.relative_gap.max() <= 1e-9
    assert abs(energy.with_knob(0.0).value(path.weights[0])) < 1e-12


def test_prior_pulls_from_the_likelihood_to_its_reference():
    scores = synthetic_scores(np.random.default_rng(4), n=5)
    path = trace_path(build_energy(scores, None, EnergyConfig()), [0, 0.05, 1.0, 1e4])
    np.testing.assert_allclose(path.weights[-1], 0.2, atol=1e-3)
    spread = np.abs(path.weights - 0.2).sum(axis=1)
    assert (np.diff(spread) < 0).all()


@pytest.mark.parametrize("prior", [1e4, 3e6])
def test_a_strong_prior_is_certified_from_a_neighbours_solution(prior):
    """Rounding of κ KL hides what a step gains there, on some processors and versions of SciPy earlier than on others."""
    for seed in range(60):
        energy = build_energy(synthetic_scores(np.random.default_rng(seed), n=5), None, EnergyConfig())
        path = trace_path(energy, [1.0, prior])
        np.testing.assert_allclose(path.weights[-1], 0.2, atol=10 / prior)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_knob_is_a_finite_number_from_zero_up(value):
    scores = synthetic_scores(np.random.default_rng(0), n=3)
    energy = build_energy(scores, None, EnergyConfig())
    with pytest.raises(UserError, match="from 0 up"):
        trace_path(energy, [0.1, value])
