"""The knob that is left open is chosen by prediction."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from support.numerics import synthetic_scores
from support.runs import experiment

from taskpgm import load_config, run
from taskpgm.cli.mixtures import knob_lines
from taskpgm.config import AffinityConfig, EnergyConfig
from taskpgm.mixture.affinity import measure_affinity
from taskpgm.mixture.bounds import simplex
from taskpgm.mixture.jackknife import omega_of, only_folds, without_folds
from taskpgm.mixture.knob import TRIED, choose_t
from taskpgm.mixture.solve import solve_mixture

PMI = AffinityConfig(kind="pmi")


def test_the_prediction_is_that_of_solving_and_holding_out_group_by_group():
    """Against scipy on the quadratic form of each fold's own affinity, and the ensemble written out."""
    scores = synthetic_scores(np.random.default_rng(5), n=3)
    affinity = measure_affinity(scores, PMI)
    energy = choose_t(scores, affinity, EnergyConfig(kind="affinity"), simplex(scores.tasks))
    tried = energy.settings["tried"]
    assert tuple(map(float, tried)) == TRIED
    w = scores.target_weights({})
    for t in (0.5, 2.0):
        losses = []
        for S, only, without in zip(affinity.without, only_folds(scores), energy.without, strict=True):
            K = S + without.shift * np.eye(3)
            psi = t * S.mean(axis=1)
            bounds = [{"type": "eq", "fun": lambda p: p.sum() - 1}]
            found = minimize(
                lambda p, K=K, psi=psi: -psi @ p + 0.5 * p @ K @ p, np.full(3, 1 / 3), bounds=[(0, 1)] * 3,
                constraints=bounds, method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
            )  # fmt: skip
            omega = omega_of(scores, w, only)
            losses.append(-(omega / omega.sum()) @ np.log(found.x @ np.exp(scores.logp[1:])))
        assert tried[f"{t:g}"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert len(list(without_folds(scores))) == len(losses)


@pytest.mark.parametrize("kind", ["pmi", "ratio"])
def test_the_chosen_t_has_the_lowest_prediction_and_its_mixture_is_certified(kind):
    scores = synthetic_scores(np.random.default_rng(8), n=4)
    affinity = measure_affinity(scores, AffinityConfig(kind=kind))
    energy = choose_t(scores, affinity, EnergyConfig(kind="affinity"), simplex(scores.tasks))
    tried = energy.settings["tried"]
    assert tried[f"{energy.t:g}"] == min(tried.values())
    assert len(set(tried.values())) > 1
    assert solve_mixture(energy).certificate.passed
    # t = 1 is uniform whatever the affinity is, so its prediction is that of uniform.
    uniform = np.log(np.exp(scores.logp[1:]).mean(axis=0))
    by_group = [-omega_of(scores, scores.target_weights({}), fold) @ uniform for fold in only_folds(scores)]
    assert tried["1"] == pytest.approx(np.mean(by_group), rel=1e-6)


def test_a_run_whose_t_is_left_open_says_what_it_chose(tmp_path, model_folders):
    more = {"targets": [], "energy": {"kind": "affinity"}, "affinity": {"kind": "pmi"}}
    config = load_config(experiment(tmp_path, model_folders["llama"], **more))
    result = run(config, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "mixture.json").read_text())
    (line,) = knob_lines(written)
    assert line.startswith(f"t = {result.energy.t:g} has the lowest predicted loss")
    given = config.model_copy(update={"energy": config.energy.model_copy(update={"t": result.energy.t})})
    again = run(given, tmp_path / "out")
    np.testing.assert_allclose(again.mixture.weights, result.mixture.weights, atol=1e-12)
    assert not knob_lines(json.loads((tmp_path / "out" / "mixture.json").read_text()))
