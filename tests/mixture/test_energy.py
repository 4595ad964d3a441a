"""Energies against finite differences, their definitions written as loops, and each other."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from scipy.special import softmax
from support.numerics import names, random_truth, synthetic_scores

from taskpgm.config import AffinityConfig, EnergyConfig
from taskpgm.errors import UserError
from taskpgm.mixture.affinity import given_affinity, mean_logp, measure_affinity
from taskpgm.mixture.energies import PRIOR, REPETITION, WITHOUT_TARGETS, Budget, build_energy
from taskpgm.mixture.energy import field_energy
from taskpgm.mixture.jackknife import Fold, standard_error, t_quantile
from taskpgm.mixture.linalg import convexity_shift, tangent_spectrum
from taskpgm.mixture.solve import solve_mixture
from taskpgm.mixture.verification import verify

RATIO = AffinityConfig()


def energies(seed=0, targets=0, **scores_options):
    scores = synthetic_scores(np.random.default_rng(seed), targets=targets, **scores_options)
    affinity = measure_affinity(scores, RATIO)
    configs = [
        EnergyConfig(),
        EnergyConfig(prior=0, utility={"t1": 0.2}),
        EnergyConfig(kind="gain", utility={"t1": 0.2}),
    ]
    if not targets:
        configs += [EnergyConfig(kind="affinity"), EnergyConfig(kind="affinity", t=0.5, utility={"t0": 1.0})]
    return scores, [build_energy(scores, affinity, config) for config in configs]


def budget(scores, times=4.0, once=0.6):
    """Rows for `once` budgets, the last task having the most."""
    sizes = np.arange(1, len(scores.tasks) + 1)
    return Budget(dict(zip(scores.tasks, (once * sizes / sizes.sum()).tolist(), strict=True)), times)


@pytest.mark.parametrize("targets", [0, 2])
def test_gradient_and_hessian_are_those_of_the_value(targets):
    rng = np.random.default_rng(1)
    scores, built = energies(targets=targets)
    for energy in (*built, build_energy(scores, None, EnergyConfig(repetition=2.0), budget=budget(scores))):
        p, h = rng.dirichlet(np.full(4, 5.0)), 1e-5
        for i in range(4):
            e = h * np.eye(4)[i]
            slope = (energy.value(p + e) - energy.value(p - e)) / (2 * h)
            assert energy.gradient(p)[i] == pytest.approx(slope, abs=1e-8)
            bend = (energy.gradient(p + e) - energy.gradient(p - e)) / (2 * h)
            np.testing.assert_allclose(energy.hessian(p)[i], bend, atol=1e-6)


def test_likelihood_is_the_loss_of_the_ensemble():
    scores, (energy, bare, *_) = energies(targets=2)
    weights = {"g0": 3.0, "g1": 1.0}
    energy = build_energy(scores, None, EnergyConfig(), weights)
    p = np.array([0.1, 0.2, 0.3, 0.4])
    losses = {}
    for j, name in ((4, "g0"), (5, "g1")):
        of_contexts = [
            -np.log(p @ np.exp(scores.logp[1:, scores.context == c])).mean()
            for c in np.flatnonzero(scores.context_set == j)
        ]
        losses[name] = np.mean(of_contexts)
    expected = 0.75 * losses["g0"] + 0.25 * losses["g1"]
    assert energy.loss(p) == pytest.approx(expected, rel=1e-12)
    divergence = np.sum(p * np.log(p / 0.25))
    assert energy.value(p) == pytest.approx(expected + PRIOR["likelihood"] * divergence, rel=1e-12)
    assert bare.loss(p) == pytest.approx(0.5 * losses["g0"] + 0.5 * losses["g1"], rel=1e-12)
    assert bare.value(p) == pytest.approx(bare.loss(p) - 0.2 * p[1], rel=1e-12)  # what the user adds is not data


def test_prior_takes_its_reference():
    scores = synthetic_scores(np.random.default_rng(2))
    energy = build_energy(scores, None, EnergyConfig(), reference={"t0": 3, "t1": 1, "t2": 2, "t3": 2})
    assert energy.prior == WITHOUT_TARGETS
    np.testing.assert_allclose(energy.reference, [0.375, 0.125, 0.25, 0.25])


def test_ratio_with_t_2_is_the_second_order_expansion_of_the_likelihood():
    """By finite differences of the likelihood's own value, at uniform, without a prior."""
    scores = synthetic_scores(np.random.default_rng(3), n=3)
    exact = build_energy(scores, None, EnergyConfig(prior=0))
    field = build_energy(scores, measure_affinity(scores, RATIO), EnergyConfig(kind="affinity"))
    u, h = np.full(3, 1 / 3), 1e-4
    eye = np.eye(3)
    for i in range(3):
        slope = (exact.value(u + h * eye[i]) - exact.value(u - h * eye[i])) / (2 * h)
        assert field.gradient(u)[i] == pytest.approx(slope, abs=1e-6)
        for j in range(3):
            a, b = h * eye[i], h * eye[j]
            mixed = exact.value(u + a + b) - exact.value(u + a - b) - exact.value(u - a + b) + exact.value(u - a - b)
            assert field.K[i, j] == pytest.approx(mixed / (4 * h * h), abs=1e-5)
    psi, K = exact.field_at(u)
    np.testing.assert_allclose(psi, field.psi, atol=1e-12)  # 2E[R] = 2Ku: t is applied once, as 2·S·w
    np.testing.assert_allclose(K, field.K, atol=1e-12)
    np.testing.assert_allclose(K @ u, psi / 2, atol=1e-12)


@pytest.mark.parametrize("targets", [0, 2])
def test_replicates_are_energies_of_what_is_left(targets):
    """Each replicate equals the energy of scores in which the group never was; `only` averages back to the whole."""
    scores, built = energies(targets=targets)
    p = np.array([0.1, 0.2, 0.3, 0.4])
    for energy in built:
        assert len(energy.without) == len(energy.only) == 16
        assert np.mean([held_out.loss(p) for held_out in energy.only]) == pytest.approx(energy.loss(p), rel=1e-10)
        assert np.mean([rest.loss(p) for rest in energy.without]) == pytest.approx(energy.loss(p), rel=1e-10)
    without = scores.logp.copy()
    dropped = scores.context_group[scores.context] == 3
    without[:, dropped] = -50 * np.random.default_rng(0).random(size=without[:, dropped].shape)
    for energy, other in zip(built, _rebuild(replace(scores, logp=without), targets), strict=True):
        assert energy.without[3].value(p) == pytest.approx(other.without[3].value(p), rel=1e-9)
        assert energy.only[7].loss(p) == pytest.approx(other.only[7].loss(p), rel=1e-9)


@pytest.mark.parametrize("loss", ["per_row", "per_token"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_groups_average_back_to_the_whole_where_tasks_have_few_contexts(loss, seeds):
    rng = np.random.default_rng(6)
    scores = replace(synthetic_scores(rng, targets=2, contexts=[4, 5, 4, 4, 16, 20], seeds=seeds), loss=loss)
    p = np.array([0.1, 0.2, 0.3, 0.4])
    for kind in ("likelihood", "gain"):
        energy = build_energy(scores, None, EnergyConfig(kind=kind, balance=0.2))
        assert np.mean([held_out.loss(p) for held_out in energy.only]) == pytest.approx(energy.loss(p), rel=1e-10)


@pytest.mark.parametrize("targets", [0, 2])
def test_groups_of_a_loss_per_token_average_back_to_the_mean_over_tokens(targets):
    """One context a group: a mean within groups would be the loss per row."""
    rng = np.random.default_rng(5)
    scores = replace(synthetic_scores(rng, targets=targets, contexts=16, longest=30, seeds=2), loss="per_token")
    p, sets = np.array([0.1, 0.2, 0.3, 0.4]), range(4, 6) if targets else range(4)
    set_T = scores.context_set[scores.context]
    by_hand = -np.mean([np.log(p @ np.exp(scores.logp[1:, set_T == j])).mean() for j in sets])
    by_row = build_energy(replace(scores, loss="per_row"), None, EnergyConfig()).loss(p)
    assert abs(by_row - by_hand) > 1e-3
    assert build_energy(scores, None, EnergyConfig()).loss(p) == pytest.approx(by_hand, rel=1e-12)
    for energy in _rebuild(scores, targets):
        assert np.mean([held_out.loss(p) for held_out in energy.only]) == pytest.approx(energy.loss(p), rel=1e-10)
    affinity = measure_affinity(scores, RATIO)
    np.testing.assert_allclose(affinity.only.mean(axis=0), affinity.S, rtol=1e-10)


def _rebuild(scores, targets):
    affinity = measure_affinity(scores, RATIO)
    configs = [EnergyConfig(), EnergyConfig(prior=0, utility={"t1": 0.2}),
               EnergyConfig(kind="gain", utility={"t1": 0.2})]  # fmt: skip
    if not targets:
        configs += [EnergyConfig(kind="affinity"), EnergyConfig(kind="affinity", t=0.5, utility={"t0": 1.0})]
    return [build_energy(scores, affinity, config) for config in configs]


@given(seed=st.integers(0, 10_000), n=st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_shift_restores_exactly_what_is_missing_and_a_margin(seed, n):
    rng = np.random.default_rng(seed)
    K = rng.normal(size=(n, n))
    K = K + K.T
    Z = np.linalg.svd(np.ones((1, n)))[2][1:].T
    values = np.linalg.eigvalsh(Z.T @ K @ Z)
    smallest, largest = tangent_spectrum(K)
    np.testing.assert_allclose([smallest, largest], [values[0], values[-1]], atol=1e-10 * np.abs(values).max())
    shift, least = convexity_shift(K)
    assert least == smallest
    energy = field_energy(names(n), np.zeros(n), K)
    assert energy.curvature == pytest.approx(tangent_spectrum(energy.K)[0], rel=1e-6, abs=1e-10)
    if values[0] >= 0:
        assert shift == 0
    else:
        assert shift == pytest.approx(-values[0] + 1e-3 * np.abs(values).max(), rel=1e-6)
        assert np.linalg.eigvalsh(Z.T @ (K + shift * np.eye(n)) @ Z)[0] > 0  # an exact −λ_min shift would be singular


def test_semidefinite_affinities_need_no_shift():
    scores = synthetic_scores(np.random.default_rng(8), jsd=True)
    for kind in ("ratio", "jsd"):
        affinity = measure_affinity(scores, AffinityConfig(kind=kind))
        assert build_energy(None, affinity, EnergyConfig(kind="affinity", t=2)).shift == 0


def test_ridge_adds_mean_curvature():
    S = np.random.default_rng(9).normal(size=(5, 5))
    S = S @ S.T
    plain = build_energy(None, given_affinity(S), EnergyConfig(kind="affinity", t=2))
    ridged = build_energy(None, given_affinity(S + 7.0), EnergyConfig(kind="affinity", t=2, ridge=0.5))
    Z = np.linalg.svd(np.ones((1, 5)))[2][1:].T
    added = 0.5 * np.trace(Z.T @ S @ Z) / 4
    np.testing.assert_allclose(ridged.K, plain.K + 7.0 + added * np.eye(5))


def test_knobs_turn_without_measuring_again():
    scores, built = energies()
    rng = np.random.default_rng(10)
    p = rng.dirichlet(np.ones(4))
    affinity = measure_affinity(scores, RATIO)
    for energy, config in zip(built, (EnergyConfig(prior=0.3), EnergyConfig(prior=0.3, utility={"t1": 0.2}),
                                      EnergyConfig(kind="gain", prior=0.3, utility={"t1": 0.2}),
                                      EnergyConfig(kind="affinity", t=0.3),
                                      EnergyConfig(kind="affinity", t=0.3, utility={"t0": 1.0})), strict=True):  # fmt: skip
        turned, built_anew = energy.with_knob(0.3), build_energy(scores, affinity, config)
        assert turned.knob == 0.3
        assert turned.value(p) == pytest.approx(built_anew.value(p), rel=1e-12)
        assert turned.without[2].value(p) == pytest.approx(built_anew.without[2].value(p), rel=1e-12)
        assert turned.settings == built_anew.settings


def test_wrong_settings_get_one_sentence():
    scores = synthetic_scores(np.random.default_rng(11), targets=1)
    affinity = measure_affinity(scores, RATIO)
    given = given_affinity(np.eye(3))
    cases = [
        (lambda: build_energy(scores, affinity, EnergyConfig(kind="affinity")), "targets"),
        (lambda: build_energy(scores, None, EnergyConfig(kind="affinity")), "needs an affinity"),
        (lambda: build_energy(None, given, EnergyConfig()), "needs scores"),
        (lambda: build_energy(None, given, EnergyConfig(kind="affinity")), "no default"),
        (lambda: build_energy(None, given, EnergyConfig(kind="affinity", t=2, utility={"x": 1})), "'x'"),
        (lambda: build_energy(scores, None, EnergyConfig(), reference={"x": 1}), "'x'"),
        (lambda: build_energy(scores, None, EnergyConfig(), reference={"t0": -1}), "non-negative"),
        (lambda: build_energy(scores, None, EnergyConfig(), reference={"t0": 1}), "gives 't1' nothing"),
        (lambda: build_energy(replace(scores, logp=scores.logp * np.nan), None, EnergyConfig()), "NaN"),
    ]
    for call, words in cases:
        with pytest.raises(UserError, match=words):
            call()


def test_interval_of_utility_covers_the_truth():
    """ψ of the affinity energy, nominal 95 %, between 90 and 99 %."""
    rng = np.random.default_rng(12)
    truth = random_truth(rng, 3)
    config = EnergyConfig(kind="affinity", t=2)
    pmi = AffinityConfig(kind="pmi", reference="base")
    G = truth[1:, :3] - truth[0, :3]
    expected = 2 * (0.5 * (G + G.T)).mean(axis=1)
    hits = []
    for _ in range(150):
        energy = build_energy(None, measure_affinity(synthetic_scores(rng, n=3, truth=truth), pmi), config)
        error = standard_error([one.psi for one in energy.without])
        hits.append(np.abs(energy.psi - expected) <= stats.t.ppf(0.975, 15) * error)
    assert 0.90 <= np.mean(hits) <= 0.99


def test_quantile_has_satterthwaite_degrees_of_freedom():
    rng = np.random.default_rng(13)
    contexts, seeds = rng.normal(size=(16, 1)), rng.normal(size=(3, 1))
    assert t_quantile(contexts, [])[0] == pytest.approx(stats.t.ppf(0.975, 15))
    a, b = 15 * contexts.var(), 2 * seeds.var()
    freedom = (a + b) ** 2 / (a**2 / 15 + b**2 / 2)
    assert t_quantile(contexts, seeds)[0] == pytest.approx(stats.t.ppf(0.975, freedom))


def test_one_task():
    energy = field_energy(names(1), np.ones(1), np.ones((1, 1)))
    assert energy.curvature == float("inf")
    assert energy.shift == 0
    assert mean_logp(synthetic_scores(np.random.default_rng(0), n=1), Fold()).shape == (2, 1)


@pytest.mark.parametrize("targets", [0, 2])
def test_the_gain_energy_is_mean_gain_and_bounds_the_ensembles(targets):
    scores = synthetic_scores(np.random.default_rng(12), targets=targets)
    sets = range(4, 6) if targets else range(4)
    energy = build_energy(scores, None, EnergyConfig(kind="gain"))
    ensemble = build_energy(scores, None, EnergyConfig(prior=0))
    gains, base = np.zeros(4), 0.0
    for c in np.flatnonzero(np.isin(scores.context_set, sets)):
        of_context = scores.logp[:, scores.context == c].mean(axis=1)
        share = 1 / len(sets) / np.sum(scores.context_set == scores.context_set[c])
        gains += share * (of_context[1:] - of_context[0])
        base += share * of_context[0]
    np.testing.assert_allclose(energy.psi, gains, rtol=1e-10)
    for p in np.random.default_rng(0).dirichlet(np.ones(4), 20):
        assert energy.loss(p) == pytest.approx(-gains @ p)
        assert ensemble.loss(p) <= energy.loss(p) - base + 1e-12


def test_the_gain_energys_mixture_is_its_closed_form():
    """Stationarity by hand: p_i ∝ r_i exp(ψ_i/κ)."""
    scores = synthetic_scores(np.random.default_rng(13))
    r = {"t0": 0.1, "t1": 0.2, "t2": 0.3, "t3": 0.4}
    for prior in (0.01, 0.3, 10.0):
        energy = build_energy(scores, None, EnergyConfig(kind="gain", prior=prior), reference=r)
        p = softmax(np.log(energy.reference) + energy.psi / prior)
        mixture = solve_mixture(energy)
        np.testing.assert_allclose(mixture.weights, p, atol=1e-7)
        assert mixture.certificate.passed
        assert len(mixture.replicates) == len(energy.without)


def test_repetition_prices_rows_beyond_the_first_epoch():
    scores = synthetic_scores(np.random.default_rng(2), targets=1)
    plain, priced = (build_energy(scores, None, EnergyConfig(balance=0.25), budget=b) for b in (None, budget(scores)))
    p, u = np.array([0.4, 0.3, 0.2, 0.1]), np.full(4, 0.25)
    epochs = p / (0.6 * np.arange(1, 5) / 10)
    cost = sum(share * (e - 1) ** 2 / e for share, e in zip(p, epochs, strict=True) if e > 1)
    of_targets = build_energy(scores, None, EnergyConfig()).loss(u)
    price = REPETITION * 0.75 * of_targets * 4 / 16 * 2  # a quarter of 16 budgets, over what is left of F at four
    assert priced.value(p) - plain.value(p) == pytest.approx(price * cost, rel=1e-12)
    assert priced.loss(p) == plain.loss(p)
    assert priced.settings["repetition_price"] == pytest.approx(price)
    assert Budget({}, 64.0).repetition() == REPETITION == Budget({}, 16.0).repetition(REPETITION)


@pytest.mark.parametrize("config", [EnergyConfig(repetition=0), EnergyConfig(kind="gain"), EnergyConfig(balance=1)])
def test_repetition_is_free_where_it_is_not_asked_for(config):
    scores = synthetic_scores(np.random.default_rng(2), targets=1)
    p = np.array([0.4, 0.3, 0.2, 0.1])
    plain, priced = (build_energy(scores, None, config, budget=b) for b in (None, budget(scores)))
    assert priced.value(p) == plain.value(p)
    alone = scores.without_targets()
    assert build_energy(alone, None, EnergyConfig(), budget=budget(alone)).repetition == 0


def test_a_dear_repetition_gives_shares_by_size():
    """Σ max(0, p_i − o_i)²/o_i is least, where not all rows can be new, for p ∝ o."""
    scores = synthetic_scores(np.random.default_rng(2), targets=1)
    energy = build_energy(scores, None, EnergyConfig(repetition=1e6), budget=budget(scores))
    np.testing.assert_allclose(solve_mixture(energy).weights, np.arange(1, 5) / 10, atol=1e-4)
    rich = build_energy(scores, None, EnergyConfig(repetition=1e6), budget=budget(scores, once=40.0))
    plain = build_energy(scores, None, EnergyConfig())
    np.testing.assert_allclose(solve_mixture(rich).weights, solve_mixture(plain).weights, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.01, 0.3, 5.0]), st.sampled_from([0.1, 0.9, 3.0]))
def test_optima_with_a_price_are_certified_and_those_of_another_solver(seed, price, once):
    scores = synthetic_scores(np.random.default_rng(seed), targets=1)
    energy = build_energy(scores, None, EnergyConfig(repetition=price), budget=budget(scores, once=once))
    mixture = solve_mixture(energy)
    assert mixture.certificate.passed
    assert verify(energy, mixture).passed
    sum_to_one = optimize.LinearConstraint(np.ones(4), 1, 1)
    start, box = np.full(4, 0.25), [(1e-9, 1)] * 4
    other = optimize.minimize(
        energy.value, start, jac=energy.gradient, bounds=box, constraints=sum_to_one, method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 500},
    )  # fmt: skip
    assert energy.value(mixture.weights) <= other.fun + 1e-9
    np.testing.assert_allclose(mixture.weights, other.x / other.x.sum(), atol=1e-3)
