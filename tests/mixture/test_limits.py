"""Targets against tasks: the balance, limits on what tasks lose, and their prices, against a convex solver."""

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from support.numerics import synthetic_scores

from taskpgm.config import MAX_TASK_LOSS, AffinityConfig, EnergyConfig
from taskpgm.config_file import parse_config
from taskpgm.errors import UserError
from taskpgm.mixture.affinity import mean_logp, measure_affinity
from taskpgm.mixture.balance import balanced, trace_balance
from taskpgm.mixture.bounds import make_bounds, simplex
from taskpgm.mixture.energies import PRIOR, WITHOUT_TARGETS, Budget, build_energy, ensemble_loss, usual_prior
from taskpgm.mixture.jackknife import EVERYTHING, without_folds
from taskpgm.mixture.limits import UNSEEN, find_prices, keep_tasks, task_limits
from taskpgm.mixture.optimum import minimise, nearest_to_uniform
from taskpgm.mixture.refinement import choose
from taskpgm.mixture.refinement import usual_prior as fitting_prior
from taskpgm.mixture.solve import Mixture, solve_mixture
from taskpgm.mixture.surrogate import Features, fit_surrogate
from taskpgm.mixture.verification import verify


def scored(seed, n=5, targets=2, noise=0.3):
    return synthetic_scores(np.random.default_rng(seed), n=n, targets=targets, noise=noise)


def by_convex_solver(energy, limits, bounds):
    """(minimiser, prices) of the energy within limits."""
    p = cp.Variable(len(energy.tasks))

    def loss(one):
        return -one.omega @ (cp.log(p @ one.likelihoods) + one.log_scale)

    prior = energy.prior * cp.sum(cp.rel_entr(p, energy.reference))
    kept = [loss(one.energy) <= one.most for one in limits]
    problem = cp.Problem(
        cp.Minimize(loss(energy) + prior - energy.psi @ p), [*kept, cp.sum(p) == 1, p >= bounds.lo, p <= bounds.hi]
    )
    problem.solve(solver=cp.CLARABEL)
    return p.value, np.array([float(one.dual_value) for one in kept])


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 500), st.sampled_from([0.005, 0.02, 0.05]), st.booleans())
def test_limits_and_prices_are_those_of_a_convex_solver(seed, share, each):
    scores = scored(seed)
    config = EnergyConfig(prior=0.1, **{"max_task_loss" if each else "max_loss": share})
    bounds = make_bounds(scores.tasks, {scores.tasks[0]: 0.05}, {scores.tasks[1]: 0.4})
    energy = replace(build_energy(scores, None, config), without=(), only=(), seeds=())
    uniform = nearest_to_uniform(bounds)
    limits = task_limits(scores, config, uniform)
    prices, optimum = find_prices(energy, limits, bounds, uniform)
    assert max(one.excess(optimum.p) for one in limits) <= 1e-8
    assert (prices >= 0).all()
    assert max(price * abs(one.excess(optimum.p)) for one, price in zip(limits, prices, strict=True)) <= 1e-8
    try:
        p, wanted = by_convex_solver(energy, limits, bounds)
    except cp.SolverError:
        return
    np.testing.assert_allclose(optimum.p, p, atol=2e-4)
    np.testing.assert_allclose(prices, wanted, atol=5e-3 * (1 + prices.max()))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(3, 9), st.sampled_from([0.0, 0.05, 0.2]), st.sampled_from([0.002, 0.01, 0.03]),
    st.sampled_from([None, 0.001, 0.01]), st.booleans(),
)  # fmt: skip
def test_limits_hold_where_bounds_are_tight_and_more_bind_than_shares_are_free(seed, n, prior, each, mean, repeats):
    scores, random = scored(seed, n=n, targets=1), np.random.default_rng(seed)
    config = EnergyConfig(prior=prior, max_task_loss=each, max_loss=mean)
    bounds = make_bounds(scores.tasks, None, dict(zip(scores.tasks, random.uniform(1.03 / n, 2.2 / n, n), strict=True)))
    once = dict(zip(scores.tasks, random.uniform(0.3 / n, 2 / n, n), strict=True))
    energy = build_energy(scores, None, config, budget=Budget(once, 16.0) if repeats else None)
    energy = replace(energy, without=(), only=(), seeds=())
    uniform = nearest_to_uniform(bounds)
    limits = task_limits(scores, config, uniform)
    prices, optimum = find_prices(energy, limits, bounds, uniform)
    assert (prices >= 0).all()
    assert max(one.excess(optimum.p) for one in limits) <= 1e-7
    assert max(price * abs(one.excess(optimum.p)) for one, price in zip(limits, prices, strict=True)) <= 1e-7
    found = optimize.minimize(
        energy.value, uniform, jac=energy.gradient, bounds=list(zip(bounds.lo + 1e-12, bounds.hi, strict=True)),
        constraints=[
            {"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
            {"type": "ineq", "fun": lambda p: np.array([-one.excess(p) for one in limits]),
             "jac": lambda p: np.array([-one.energy.gradient(p) for one in limits])},
        ],
        method="SLSQP", options={"ftol": 1e-12, "maxiter": 300},
    )  # fmt: skip
    if found.success and max(one.excess(found.x) for one in limits) < 1e-9:
        assert energy.value(optimum.p) == pytest.approx(found.fun, abs=1e-6)


def test_a_loss_of_a_task_is_the_mean_over_its_contexts():
    scores = scored(0)
    p = np.array([0.1, 0.2, 0.3, 0.15, 0.25])
    config = EnergyConfig(max_task_loss=0.1, max_loss=0.05)
    limits = {one.name: one for one in task_limits(scores, config, np.full(5, 0.2))}
    of_task = []
    for j, task in enumerate(scores.tasks):
        contexts = np.flatnonzero(scores.context_set == j)
        ensemble = [-np.log(p @ np.exp(scores.logp[1:, scores.context == c])).mean() for c in contexts]
        of_task.append(np.mean(ensemble))
        assert limits[task].energy.loss(p) == pytest.approx(of_task[-1])
    assert limits["all tasks"].energy.loss(p) == pytest.approx(np.mean(of_task))
    assert limits["all tasks"].most == pytest.approx(1.05 * limits["all tasks"].start)


def test_a_price_is_what_another_hundredth_of_loss_would_gain():
    scores, bounds = scored(3), simplex(scored(3).tasks)
    values, found = [], None
    for share in (0.0295, 0.03, 0.0305):
        config = EnergyConfig(prior=0.1, max_task_loss=share)
        mixture = solve_mixture(keep_tasks(build_energy(scores, None, config), scores, config, bounds), bounds)
        values.append(build_energy(scores, None, config).value(mixture.weights))
        found = mixture if share == 0.03 else found
    prices = {name: price for name, price in found.shadow_prices.items() if name.endswith(".max_loss")}
    assert sum(prices.values()) > 1e-4
    assert sum(prices.values()) == pytest.approx(10 * (values[0] - values[2]), rel=1e-2)
    assert Mixture.from_dict(found.to_dict()).shadow_prices == pytest.approx(found.shadow_prices)


def test_a_mixture_within_limits_is_certified_with_errors_and_replicates_keep_them_too():
    scores, bounds = scored(3), simplex(scored(3).tasks)
    config = EnergyConfig(prior=0.1, max_task_loss=0.03)
    energy = keep_tasks(build_energy(scores, None, config), scores, config, bounds)
    mixture = solve_mixture(energy, bounds, {"uniform": None})
    assert mixture.certificate.passed
    assert verify(energy, mixture).passed
    for replicate, p in zip(energy.without, mixture.replicates, strict=True):
        for one in replicate.settings["limits"]:
            assert one["loss"] <= one["most"] + 1e-6
        np.testing.assert_allclose(minimise(replicate, bounds).p, p, atol=1e-6)
    free = solve_mixture(build_energy(scores, None, EnergyConfig(prior=0.1)), bounds)
    assert np.abs(free.weights - mixture.weights).max() > 0.01  # the limits held it back


@pytest.mark.parametrize("kind", ["likelihood", "gain"])
def test_the_loss_of_a_mixture_within_limits_is_that_of_the_data(kind):
    """Without what the limits cost: by a loop over the target's contexts."""
    scores = scored(3)
    config = EnergyConfig(kind=kind, prior=0.0, max_task_loss=0.0001)
    mixture = solve_mixture(keep_tasks(build_energy(scores, None, config), scores, config, simplex(scores.tasks)))
    assert max(one["price"] for one in mixture.energy["settings"]["limits"]) > 0.01  # else this tests nothing
    p, losses = mixture.weights, {j: [] for j in range(len(scores.tasks), len(scores.sets))}
    for c, j in enumerate(scores.context_set):
        if j in losses:
            columns = scores.logp[:, scores.context == c]
            of_ensemble, of_gain = -np.log(p @ np.exp(columns[1:])).mean(), -p @ (columns[1:] - columns[0]).mean(axis=1)
            losses[j].append(of_ensemble if kind == "likelihood" else of_gain)
    assert mixture.energy["loss"] == pytest.approx(np.mean([np.mean(one) for one in losses.values()]))
    assert mixture.energy["value"] > mixture.energy["loss"] + 1e-3


def test_limits_that_do_not_bind_change_nothing():
    scores, bounds = scored(3), simplex(scored(3).tasks)
    config = EnergyConfig(max_loss=1.0)
    energy = build_energy(scores, None, config)
    limited = keep_tasks(energy, scores, config, bounds)
    np.testing.assert_array_equal(solve_mixture(limited, bounds).weights, solve_mixture(energy, bounds).weights)
    assert [one["price"] for one in limited.settings["limits"]] == [0.0]
    assert keep_tasks(energy, scores, EnergyConfig(), bounds) is energy


@pytest.mark.parametrize("loss", ["per_row", "per_token"])
def test_limits_that_all_tasks_keep_are_described_as_if_each_had_been_looked_at(loss):
    scores = replace(scored(6), loss=loss)
    bounds, config = simplex(scores.tasks), EnergyConfig(prior=0.5, max_task_loss=0.5)
    limited = keep_tasks(build_energy(scores, None, config), scores, config, bounds)
    u = nearest_to_uniform(bounds)
    folds = [EVERYTHING, *without_folds(scores)]
    for energy, fold in zip([limited, *limited.without], folds, strict=True):
        p = minimise(energy, bounds).p
        each = task_limits(scores, config, u, fold)
        for one, said in zip(each, energy.settings["limits"], strict=True):
            assert (said["name"], said["price"]) == (one.name, 0.0)
            assert (said["uniform"], said["most"], said["loss"]) == pytest.approx(
                (one.start, one.most, one.energy.loss(p))
            )


def test_a_rise_that_nobody_sees_is_always_allowed():
    scores = scored(2)
    for share in (1e-6, 0.5):
        for one in task_limits(scores, EnergyConfig(max_loss=share, max_task_loss=share), np.full(5, 0.2)):
            assert one.most - one.start == pytest.approx(max(share * one.start, UNSEEN))
    bounds, config = simplex(scores.tasks), EnergyConfig(prior=0.1, max_task_loss=1e-6)
    energy = keep_tasks(build_energy(scores, None, config), scores, config, bounds)
    p = minimise(energy, bounds).p
    rises = [one.energy.loss(p) - one.start for one in task_limits(scores, config, np.full(5, 0.2))]
    assert max(rises) == pytest.approx(UNSEEN, abs=1e-6)


def test_what_trials_choose_keeps_the_limits():
    scores = scored(4)
    bounds, u = simplex(scores.tasks), np.full(5, 0.2)
    weights = scores.target_weights({})
    ensemble = build_energy(scores, None, EnergyConfig(prior=0.0))
    features = Features(scores.tasks, ensemble, (mean_logp(scores)[1:] - mean_logp(scores)[0]) @ weights)
    prior = fitting_prior(features, 0.05)
    mixtures = [u, minimise(ensemble, bounds).p]
    surrogate = fit_surrogate(features, mixtures, [ensemble.loss(p) for p in mixtures], 0.001, prior)
    free = choose(surrogate, bounds)
    limits = task_limits(scores, EnergyConfig(max_task_loss=0.02), u)
    assert max(one.excess(free.p) for one in limits) > 0.001
    found = choose(surrogate, bounds, limits)
    assert max(one.excess(found.p) for one in limits) < 1e-6
    expected, _ = by_convex_solver(surrogate.energy(), limits, bounds)
    least = surrogate.loss(np.maximum(expected, 0) / expected.sum())
    assert surrogate.loss(found.p) == pytest.approx(least, abs=1e-5)
    assert not found.uniform
    wide = task_limits(scores, EnergyConfig(max_task_loss=1.0), u)
    np.testing.assert_allclose(choose(surrogate, bounds, wide).p, free.p, atol=1e-7)


@pytest.mark.parametrize("kind", ["likelihood", "gain"])
def test_balance_goes_from_the_targets_to_the_tasks(kind):
    scores = scored(1)
    affinity = measure_affinity(scores, AffinityConfig())
    p = np.random.default_rng(2).dirichlet(np.ones(5))

    def loss(balance):
        return build_energy(scores, affinity, EnergyConfig(kind=kind, prior=0.0, balance=balance)).loss(p)

    assert loss(0.25) == pytest.approx(0.75 * loss(0) + 0.25 * loss(1))
    if kind == "likelihood":
        assert loss(1) == pytest.approx(ensemble_loss(scores, scores.task_weights()).loss(p))
        own = build_energy(scores.without_targets(), None, EnergyConfig())
        both = build_energy(scores, None, EnergyConfig(balance=1.0))
        assert (both.prior, both.value(p)) == (own.prior, pytest.approx(own.value(p)))
        assert usual_prior(kind, scores, 0.5) == pytest.approx((PRIOR[kind] + WITHOUT_TARGETS) / 2)


def test_along_the_curve_targets_lose_and_tasks_gain():
    scores, bounds = scored(4), simplex(scored(4).tasks)
    config = experiment(prior=0.1, repetition=0)
    energies = [(b, build_energy(scores, None, balanced(config, b).energy)) for b in (0.0, 0.3, 0.6, 1.0)]
    curve = trace_balance(scores, energies, bounds, scores.target_weights({}))
    targets, tasks = ([getattr(point, name) for point in curve.points] for name in ("targets", "tasks"))
    assert targets == sorted(targets)
    assert tasks == sorted(tasks, reverse=True)
    first = curve.points[0]
    losses = ensemble_loss(scores, np.eye(7)[scores.tasks.index(first.worst_task)])
    p = np.array(list(first.weights.values()))
    assert first.worst == pytest.approx(losses.loss(p) / losses.loss(np.full(5, 0.2)) - 1)
    assert max(point.gap for point in curve.points) < 1e-6


def experiment(score="tokens", targets=2, **energy):
    served = [{"name": f"g{i}", "path": "x", "score": score} for i in range(targets)]
    tasks = [{"name": f"t{i}", "path": "x"} for i in range(5)]
    return parse_config({"tasks": tasks, "targets": served, "budget": {"examples": 9}, "energy": energy})


@pytest.mark.parametrize("value", [0, 0.2, 0.7, 1])
@pytest.mark.parametrize("score", ["tokens", "options"])
@pytest.mark.parametrize(
    "given",
    [
        {}, {"max_task_loss": MAX_TASK_LOSS}, {"max_task_loss": 0.05}, {"max_loss": 0.1}, {"prior": 0.3},
        {"repetition": 0}, {"kind": "gain"}, {"utility": {"t1": 0.5}}, {"max_task_loss": "3%", "loss": "per_token"},
    ],
)  # fmt: skip
def test_a_point_of_the_curve_has_the_settings_of_its_balance(given, score, value):
    """From whatever balance the YAML has: those of a YAML with this one."""
    wanted = experiment(score, **given, balance=value)
    for before in ({}, {"balance": 0}, {"balance": 0.2}, {"balance": 1}):
        config = experiment(score, **given, **before)
        assert balanced(config, value).model_dump() == wanted.model_dump()
        if given not in (
            {"max_task_loss": MAX_TASK_LOSS},
            {"repetition": 0},
        ):  # manifests do not tell them from defaults
            recorded = parse_config(config.model_dump(mode="json"))
            assert balanced(recorded, value).model_dump() == wanted.model_dump()


def test_the_usual_limit_is_that_of_the_balance():
    assert balanced(experiment(balance=0), 0.2).energy.max_task_loss == MAX_TASK_LOSS
    assert balanced(experiment(balance=0.2), 0).energy.limited == ()
    assert balanced(experiment(max_task_loss=MAX_TASK_LOSS), 0).energy.limited == ("max_task_loss",)  # as was asked for


def test_wrong_balances_are_told():
    with pytest.raises(UserError, match="from 0, the targets alone, to 1"):
        balanced(experiment(), 1.5)
    with pytest.raises(UserError, match="no balance"):
        balanced(experiment(targets=0, kind="affinity", t=2), 0.5)
    scores = scored(0, targets=0)
    with pytest.raises(UserError, match="there are none"):
        trace_balance(scores, [], simplex(scores.tasks), scores.task_weights())
