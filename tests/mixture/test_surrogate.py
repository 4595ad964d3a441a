"""The surrogate against a convex solver, rejection sampling, and worlds whose coefficients are known."""

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.numerics import synthetic_scores

from taskpgm.config import AffinityConfig, EnergyConfig
from taskpgm.mixture.affinity import measure_affinity
from taskpgm.mixture.bounds import make_bounds, simplex
from taskpgm.mixture.certificate import certify
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.optimum import nearest_to_uniform
from taskpgm.mixture.refinement import (
    choose,
    default_coefficients,
    fitted_prior,
    hoped_for,
    left_out,
    likely_noise,
    next_trial,
    usual_prior,
)
from taskpgm.mixture.solve import solve_mixture
from taskpgm.mixture.surrogate import (
    SCALE,
    Features,
    Prior,
    evidence,
    fit_surrogate,
)
from taskpgm.mixture.trials import Trials, describe_surface

KAPPA = 0.2


def features(seed=0):
    scores = synthetic_scores(np.random.default_rng(seed), targets=2)
    affinity = measure_affinity(scores, AffinityConfig())
    energy, gain = (
        build_energy(scores, affinity, EnergyConfig(kind=kind, prior=0.0)) for kind in ("likelihood", "gain")
    )
    return Features(energy.tasks, energy, gain.psi)


def trained(of, count, noise=0.01, seed=1):
    """Mixtures, and losses by coefficients that are drawn from the prior."""
    random = np.random.default_rng(seed)
    prior = usual_prior(of, KAPPA)
    truth = np.r_[2.0, np.abs(random.normal(prior.mean[1:4], prior.error[1:4])), random.normal(0, prior.error[4:])]
    mixtures = [of.uniform, *random.dirichlet(np.ones(len(of.tasks)), count - 1)]
    return mixtures, [float(of(p) @ truth + noise * random.standard_normal()) for p in mixtures], truth


def test_features_are_losses_gains_and_divergence_less_those_of_uniform():
    of = features()
    p, u = np.array([0.1, 0.2, 0.3, 0.4]), np.full(4, 0.25)
    x = of(p)
    assert x[0] == 1
    assert x[1] == pytest.approx(of.energy.loss(p) - of.energy.loss(u))
    assert x[2] == pytest.approx(sum(of.gains * u) - sum(of.gains * p))
    assert x[3] == pytest.approx(stats.entropy(p, u))
    np.testing.assert_allclose(x[SCALE:], p - u)
    np.testing.assert_array_equal(of(u), [1, *np.zeros(7)])


def test_the_posterior_is_that_of_rejection_sampling():
    of = features(3)
    prior = Prior(np.r_[0.0, 0.3, 0.1, 0.1, np.zeros(4)], np.r_[0.0, 0.5, 0.3, 0.3, np.full(4, 0.2)])
    mixtures, losses, _ = trained(of, 4, 0.05)
    found = fit_surrogate(of, mixtures, losses, 0.05, prior)
    X = np.array([of(p) for p in mixtures])
    A = X.T @ X / 0.05**2 + np.diag([0, *prior.error[1:] ** -2.0])
    b = X.T @ np.array(losses) / 0.05**2 + np.r_[0, prior.mean[1:] / prior.error[1:] ** 2]
    wild = np.random.default_rng(0).multivariate_normal(np.linalg.solve(A, b), np.linalg.inv(A), 200_000)
    kept = wild[(wild[:, 1:4] >= 0).all(axis=1)]
    assert len(kept) > 5000
    error = kept.std(axis=0) * np.sqrt(1 / len(found.draws) + 1 / len(kept))
    assert (np.abs(found.coefficients - kept.mean(axis=0)) < 4.5 * error).all()
    np.testing.assert_allclose(found.draws.std(axis=0), kept.std(axis=0), rtol=0.12)
    assert (found.draws[:, 1:4] >= 0).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999))
def test_every_draw_is_convex_and_its_optimum_certified(seed):
    of = features(seed)
    mixtures, losses, _ = trained(of, 5, seed=seed)
    found = fit_surrogate(of, mixtures, losses, 0.01, usual_prior(of, KAPPA))
    bounds = make_bounds(of.tasks, {of.tasks[0]: 0.1}, {of.tasks[1]: 0.3})
    random = np.random.default_rng(seed)
    for coefficients in (found.coefficients, *found.draws[:5]):
        a, b = random.dirichlet(np.ones(4), 2)
        values = [of(p) @ coefficients for p in (a, b, 0.5 * (a + b))]
        assert values[2] <= (values[0] + values[1]) / 2 + 1e-9
        optimum = found.optimum(bounds, coefficients)
        assert certify(found.energy(coefficients), bounds, optimum).passed
        others = np.clip(random.dirichlet(np.ones(4), 200), 0, 1)
        others = [p for p in others if p[0] >= 0.1 and p[1] <= 0.3]
        assert min(of(p) @ coefficients for p in others) >= of(optimum.p) @ coefficients - 1e-7


def test_many_trainings_give_the_truth_whatever_was_believed():
    of = features()
    mixtures, losses, truth = trained(of, 400, 1e-4)
    found = fit_surrogate(of, mixtures, losses, 1e-4, usual_prior(of, KAPPA))
    for p in np.random.default_rng(5).dirichlet(np.full(4, 3.0), 20):
        assert found.loss(p) == pytest.approx(of(p) @ truth, abs=4e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.05, 5.0]))
def test_what_is_known_of_repetition_is_not_fitted(seed, price):
    """Losses with λR are fitted as those without it; the optimum is that of both together."""
    of = features(seed)
    priced = replace(of, once=np.array([0.05, 0.2, 0.3, 0.6]), repetition=price)
    mixtures, losses, _ = trained(of, 6, seed=seed)
    more = [loss + priced.known(p) for p, loss in zip(mixtures, losses, strict=True)]
    prior = usual_prior(of, KAPPA)
    plain, found = fit_surrogate(of, mixtures, losses, 0.01, prior), fit_surrogate(priced, mixtures, more, 0.01, prior)
    np.testing.assert_allclose(found.draws, plain.draws, atol=1e-6)
    assert evidence(priced, mixtures, more, 0.01, prior) == pytest.approx(evidence(of, mixtures, losses, 0.01, prior))
    p, u = mixtures[1], of.uniform

    def again(q):
        return price * sum(max(0.0, x - o) ** 2 / o for x, o in zip(q, priced.once, strict=True))

    gain = again(p) - again(u)
    assert found.loss(p) - found.loss(u) == pytest.approx(plain.loss(p) - plain.loss(u) + gain, abs=1e-6)
    assert found.error(p, u) == pytest.approx(plain.error(p, u), rel=1e-4)
    optimum = found.optimum(simplex(of.tasks))
    assert certify(found.energy(), simplex(of.tasks), optimum).passed
    others = np.random.default_rng(seed).dirichlet(np.ones(4), 300)
    others = [*others, *(0.99 * optimum.p + 0.01 * other for other in others)]
    assert min(map(found.loss, others)) >= found.loss(optimum.p) - 1e-7


def test_uniform_is_chosen_as_it_is_where_rows_would_repeat():
    of = replace(features(), once=np.array([0.05, 0.2, 0.3, 0.6]), repetition=0.5)
    mixtures = [of.uniform] * 30
    noisy = fit_surrogate(of, mixtures, [2.0] * 30, 5.0, Prior(np.zeros(8), np.full(8, 5.0)))
    choice = choose(noisy, simplex(of.tasks))
    assert choice.uniform
    np.testing.assert_allclose(solve_mixture(choice.energy).weights, of.uniform, atol=1e-9)


def test_errors_cover_the_truth_as_often_as_they_say():
    of, inside = features(), []
    prior = usual_prior(of, KAPPA)
    p = np.array([0.5, 0.3, 0.1, 0.1])
    for seed in range(150):
        mixtures, losses, truth = trained(of, 4, 0.02, seed)
        found = fit_surrogate(of, mixtures, losses, 0.02, prior)
        inside.append(abs(found.loss(p) - of(p) @ truth) < 2 * found.error(p))
    assert 0.88 <= np.mean(inside) <= 0.99


def test_a_default_that_is_worse_is_left_for_uniform_and_one_that_is_better_kept():
    of, bounds = features(), simplex(("t0", "t1", "t2", "t3"))
    prior = usual_prior(of, KAPPA)
    first = fit_surrogate(of, [of.uniform], [2.0], 0.005, prior)
    default = first.optimum(bounds, default_coefficients(of, KAPPA)).p
    chosen = {}
    for gain in (-0.3, 0.0, float(-of(default) @ default_coefficients(of, KAPPA))):
        fit = fit_surrogate(of, [of.uniform, default], [2.0, 2.0 - gain], 0.005, prior)
        chosen[gain] = np.abs(choose(fit, bounds).p - default).sum()
    assert sorted(chosen.values(), reverse=True) == list(chosen.values())
    assert chosen[-0.3] > 0.8 * np.abs(of.uniform - default).sum()
    assert np.abs(choose(fit, bounds).p - default).sum() < 0.3 * np.abs(of.uniform - default).sum()


def test_next_trials_differ_and_stay_within_bounds():
    of = features()
    bounds = make_bounds(of.tasks, {}, {of.tasks[2]: 0.2})
    mixtures, losses, _ = trained(of, 2)
    fit = fit_surrogate(of, mixtures, losses, 0.01, usual_prior(of, KAPPA))
    tried = np.array([next_trial(fit, bounds, k) for k in range(4)])
    assert (tried[:, 2] <= 0.2 + 1e-12).all()
    assert min(np.abs(a - b).sum() for i, a in enumerate(tried) for b in tried[:i]) > 1e-4
    again = fit_surrogate(of, mixtures, losses, 0.01, usual_prior(of, KAPPA))
    np.testing.assert_array_equal(tried[0], next_trial(again, bounds, 0))
    np.testing.assert_allclose(nearest_to_uniform(bounds), [0.8 / 3, 0.8 / 3, 0.2, 0.8 / 3], atol=1e-7)


def test_what_is_said_of_a_surrogate_is_what_its_draws_say_one_by_one():
    of = replace(features(), once=np.array([0.1, 0.2, 0.3, 0.5]), repetition=0.05)
    prior, bounds, u = usual_prior(of, KAPPA), simplex(of.tasks), of.uniform
    mixtures, losses, _ = trained(of, 5)
    fit = fit_surrogate(of, mixtures, losses, 0.01, prior)

    def by_draw(p):
        again = [max(0.0, x - o) ** 2 / o for x, o in zip(p, of.once, strict=True)]
        return np.array([of(p) @ draw for draw in fit.draws]) + 0.05 * sum(again)

    p, q = mixtures[1], mixtures[2]
    assert fit.error(p) == pytest.approx(by_draw(p).std())
    assert fit.error(p, q) == pytest.approx((by_draw(p) - by_draw(q)).std())
    assert fit.improvement(p, q) == pytest.approx(np.maximum(by_draw(q) - by_draw(p), 0).mean())
    choice = choose(fit, bounds)
    assert not choice.uniform
    assert choice.error == pytest.approx((by_draw(choice.p) - by_draw(u)).std())
    assert choice.gain == pytest.approx((by_draw(u) - by_draw(choice.p)).mean())
    tried = [fit.optimum(bounds, draw).p for draw in fit.draws[-8:]]
    hoped = max(np.maximum(by_draw(choice.p) - by_draw(one), 0).mean() for one in tried)
    assert hoped_for(fit, bounds) == pytest.approx((hoped, choice.error))

    found = describe_surface(Trials(of.tasks, tuple("abcde"), mixtures, losses), fit, prior, choice, u)
    for k, trial in enumerate(found["trials"]):
        others = [i for i in range(5) if i != k]
        refit = fit_surrogate(of, [mixtures[i] for i in others], [losses[i] for i in others], 0.01, prior)
        assert trial["predicted by the others"] == pytest.approx(refit.loss(mixtures[k]))
    for i, task in enumerate(of.tasks):
        more = np.array([x + 0.01 if j == i else x - 0.01 * x / (1 - choice.p[i]) for j, x in enumerate(choice.p)])
        change = by_draw(more) - by_draw(choice.p)
        assert found["one hundredth more"][task] == pytest.approx({"change": change.mean(), "error": change.std()})
    line = found["from uniform to choice"]
    assert [point["error"] for point in line] == pytest.approx(
        [(by_draw(u + k / 10 * (choice.p - u)) - by_draw(u)).std() for k in range(11)], abs=1e-12
    )


def test_evidence_is_the_density_of_differences():
    of = features()
    prior = usual_prior(of, KAPPA)
    mixtures, losses, _ = trained(of, 6)
    X = np.array([of(p)[1:] for p in mixtures])
    step = np.linalg.qr(np.c_[np.ones(6), np.eye(6)])[0][:, 1:6].T  # orthonormal, and blind to θ₀
    wanted = []
    for scale in (0.5, 1.0, 2.0):
        C = scale**2 * X @ np.diag(prior.error[1:] ** 2) @ X.T + 0.01**2 * np.eye(6)
        density = stats.multivariate_normal(step @ X @ prior.mean[1:] * scale, step @ C @ step.T)
        wanted.append(density.logpdf(step @ losses) - evidence(of, mixtures, losses, 0.01, prior.scaled(scale)))
    np.testing.assert_allclose(wanted, wanted[0], rtol=1e-8)


def test_repeats_tell_the_noise():
    of, random = features(), np.random.default_rng(4)
    prior = usual_prior(of, KAPPA)
    for noise in (0.005, 0.01, 0.04):
        mixtures, losses, _ = trained(of, 6, 0.0)
        mixtures, losses = mixtures * 6, [loss + noise * random.standard_normal() for loss in losses * 6]
        assert likely_noise(of, mixtures, losses, 0.01, prior) == pytest.approx(noise, rel=0.45)
    assert likely_noise(of, mixtures[:1], losses[:1], 0.01, prior) == 0.01  # nothing known: what is usual


@pytest.mark.parametrize("unit", [1.0, 250.0])
def test_without_probes_and_in_any_unit_the_best_mixture_is_found(unit):
    of = Features(tuple("abcd"))
    random = np.random.default_rng(2)
    best = np.array([0.4, 0.3, 0.2, 0.1])
    mixtures = list(random.dirichlet(np.full(4, 2.0), 40))
    losses = [unit * (3 + 0.3 * stats.entropy(best, p) + 0.002 * random.standard_normal()) for p in mixtures]
    prior, noise = fitted_prior(of, mixtures, losses, KAPPA)
    fit = fit_surrogate(of, mixtures, losses, noise, prior)
    np.testing.assert_allclose(choose(fit, simplex(of.tasks)).p, best, atol=0.06)
    assert np.corrcoef(left_out(fit, mixtures, losses, prior), losses)[0, 1] > 0.9


@pytest.mark.parametrize("seed", range(4))
def test_no_choice_is_believed_to_gain_more_than_twice_what_a_trial_did(seed):
    """One that promises more gives way to the mixture nearest to uniform that promises twice as much, by cvxpy."""
    of, random = features(seed), np.random.default_rng(seed)
    prior = usual_prior(of, KAPPA)
    steep = np.r_[2.0, 1.0, 0.0, 0.05, 3.0 * random.normal(0, prior.error[4:])]
    near = [of.uniform, *(0.9 * of.uniform + 0.1 * p for p in random.dirichlet(np.ones(4), 12))]
    fit = fit_surrogate(of, near, [float(of(p) @ steep) for p in near], 1e-4, prior)
    bounds = make_bounds(of.tasks, {}, {of.tasks[1]: 0.6})
    free = fit.optimum(bounds).p
    most = 2 * max(fit.loss(of.uniform) - fit.loss(p) for p in near)
    assert fit.loss(of.uniform) - fit.loss(free) > 1.2 * most  # else this tests nothing
    choice = choose(fit, bounds)
    assert choice.held
    assert choice.gain == pytest.approx(most, rel=1e-4)
    assert solve_mixture(choice.energy, bounds).certificate.passed

    p, (_, ensemble, gain, divergence), rho = cp.Variable(4), fit.coefficients[:SCALE], fit.coefficients[SCALE:]
    u, F = of.uniform, of.energy
    change = ensemble * (-F.omega @ cp.log(F.likelihoods.T @ p) + F.omega @ np.log(F.likelihoods.T @ u))
    change += divergence * cp.sum(cp.kl_div(p, u)) + (rho - gain * of.gains) @ (p - u)
    kept = [change <= -most, cp.sum(p) == 1, p >= 0, p[1] <= 0.6]
    cp.Problem(cp.Minimize(cp.sum(cp.kl_div(p, u))), kept).solve(solver=cp.CLARABEL)
    np.testing.assert_allclose(choice.p, p.value, atol=1e-4)

    unknown = replace(fit, tried=())  # nothing to hold it against
    np.testing.assert_array_equal(choose(unknown, bounds).p, free)
    known = replace(fit, tried=(*near, free))  # a trial that was there itself
    assert not choose(known, bounds).held
