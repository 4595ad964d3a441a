"""Explanations add up, and leave-one-out is solving again."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support.numerics import names, random_bounds, random_field, synthetic_scores

from taskpgm.config import AffinityConfig, EnergyConfig
from taskpgm.mixture.affinity import given_affinity, measure_affinity
from taskpgm.mixture.bounds import Group, make_bounds
from taskpgm.mixture.energies import Budget, build_energy
from taskpgm.mixture.energy import field_energy
from taskpgm.mixture.explanation import clusters, explain, strongest_pairs, united
from taskpgm.mixture.solve import solve_mixture


def energies():
    scores = synthetic_scores(np.random.default_rng(0), n=5)
    affinity = measure_affinity(scores, AffinityConfig())
    configs = (
        EnergyConfig(),
        EnergyConfig(prior=0),
        EnergyConfig(kind="gain"),
        EnergyConfig(kind="affinity"),
    )
    with_targets = synthetic_scores(np.random.default_rng(0), n=5, targets=1)
    budget = Budget({name: 0.1 + 0.05 * i for i, name in enumerate(names(5))}, 4.0)
    priced = build_energy(with_targets, None, EnergyConfig(repetition=0.5), budget=budget)
    return [*(build_energy(scores, affinity, config) for config in configs), priced]


@pytest.mark.parametrize("i", range(5))
@pytest.mark.parametrize("bounded", [False, True])
def test_marginal_energies_add_up_to_the_price_of_mass(i, bounded):
    energy = energies()[i]
    bounds = make_bounds(names(5), hi={"t0": 0.1}, lo={"t1": 0.3}, groups=[Group("g", ("t2", "t3"), 0.0, 0.35)])
    mixture = solve_mixture(energy, bounds if bounded else None)
    explanation = explain(energy, mixture)
    for margin in explanation.margins:
        total = -margin.utility + sum(margin.redundancy.values()) - margin.prior + margin.repetition
        total += explanation.nu + margin.group - margin.lower + margin.upper
        # At a gap of 1e-10 slopes are good to its root times that of the curvature.
        assert total == pytest.approx(0, abs=1e-6 if energy.repetition else 1e-8)
    slopes = [-m.utility + sum(m.redundancy.values()) - m.prior + m.repetition for m in explanation.margins]
    np.testing.assert_allclose(slopes, energy.gradient(mixture.weights), atol=1e-8)
    json.dumps(explanation.to_dict(), allow_nan=False)


@pytest.mark.parametrize("i", range(5))
def test_leaving_out_is_solving_again(i):
    energy = energies()[i]
    mixture = solve_mixture(energy)
    for dropped in explain(energy, mixture).dropped:
        others = [task for task in names(5) if task != dropped.task]
        again = solve_mixture(energy, chosen=others)
        assert dropped.loss == pytest.approx(energy.value(again.weights) - energy.value(mixture.weights), abs=1e-9)
        assert dropped.loss >= 0
        for task, change in dropped.takers.items():
            assert change == pytest.approx(again.shares[task] - mixture.shares[task], abs=1e-6)
        assert sum(dropped.takers.values()) == pytest.approx(mixture.shares[dropped.task], abs=1e-6)


def test_of_many_the_heaviest_are_left_out():
    energy = energies()[1]
    mixture = solve_mixture(energy)
    whole, part = explain(energy, mixture), explain(energy, mixture, 2)
    heaviest = sorted(mixture.tasks, key=lambda task: -mixture.shares[task])[:2]
    assert {one.task for one in part.dropped} == set(heaviest)
    assert all(one in whole.dropped for one in part.dropped)
    assert part.margins == whole.margins


def test_a_task_that_cannot_be_spared():
    energy = random_field(np.random.default_rng(1), 2)
    mixture = solve_mixture(energy, make_bounds(names(2), supply={"t0": 0.4, "t1": 0.7}))
    dropped = explain(energy, mixture).dropped
    assert all(one.loss is None for one in dropped)


def test_groups_that_share_a_task_are_one():
    tasks = tuple("abcdefg")
    assert united(tasks, [("d", "e"), ("g", "a"), ("b", "c"), ("e", "f"), ("f", "d")]) == (
        ("a", "g"), ("b", "c"), ("d", "e", "f")
    )  # fmt: skip
    scores = synthetic_scores(np.random.default_rng(0), n=5)
    energy = build_energy(scores, None, EnergyConfig())
    assert explain(energy, solve_mixture(energy), copies=[("t1", "t3")]).clusters == (("t1", "t3"),)


def test_copies_are_interchangeable_and_take_over():
    rng = np.random.default_rng(2)
    base = random_field(rng, 4)
    copy = np.array([0, 1, 2, 3, 1, 3])
    energy = field_energy(names(6), base.psi[copy], base.K[np.ix_(copy, copy)])
    explanation = explain(energy, solve_mixture(energy))
    assert explanation.clusters == (("t1", "t4"), ("t3", "t5"))
    for dropped in explanation.dropped:
        if dropped.task in ("t1", "t3", "t4", "t5"):
            assert dropped.loss == pytest.approx(0, abs=1e-9)
    assert clusters(names(3), np.ones((3, 3))) == (names(3),)
    assert clusters(names(1), np.ones((1, 1))) == ()


def test_with_bounds_left_out_tasks_lose_their_least_share():
    rng = np.random.default_rng(3)
    energy, bounds = random_field(rng, 6), random_bounds(rng, 6)
    for dropped in explain(energy, solve_mixture(energy, bounds)).dropped:
        assert dropped.loss is None or dropped.task not in dropped.takers


def test_strongest_pairs_in_words():
    S = np.array([[1.0, 0.9, 0.1, 0.2], [0.9, 1.0, 0.1, 0.2], [0.1, 0.1, 1.0, 0.1], [0.2, 0.2, 0.1, 1.0]])
    pairs = strongest_pairs(given_affinity(S, tuple("abcd")))
    assert pairs["redundancies"][0]["tasks"] == ["a", "b"]
    assert pairs["interferences"] == []
    truth = np.full((4, 4), -2.0)
    truth[1, 2] = -3.0  # task 0 hurts set 2
    scores = synthetic_scores(np.random.default_rng(4), n=3, targets=1, truth=truth, noise=0.01)
    (worst, *_) = strongest_pairs(measure_affinity(scores, AffinityConfig()))["interferences"]
    assert (worst["task"], worst["set"]) == ("t0", "t2")
    assert worst["gain"] == pytest.approx(-1, abs=0.05)
    affinity = measure_affinity(scores, AffinityConfig())
    unsure = replace(affinity, errors={"G": np.full_like(affinity.errors["G"], 0.6)})  # -1 is within two of these
    assert strongest_pairs(unsure)["interferences"] == []


def test_strongest_pairs_are_of_different_tasks_and_name_targets_first():
    alike = np.full((5, 5), 0.9) + 0.1 * np.eye(5)
    alike[4, :4] = alike[:4, 4] = 0.1
    pairs = strongest_pairs(given_affinity(alike, tuple("abcde")))["redundancies"]
    named = [task for pair in pairs for task in pair["tasks"]]
    assert len(named) == len(set(named)) == 4
    truth = np.full((4, 5), -2.0)
    truth[1, 1:] = [-4.0, -3.5, -3.0, -2.0]  # task 0 hurts both other tasks more than the first of two targets
    truth[2, 0] = -6.0  # task 1 hurts task 0 most of all, and no target
    scores = synthetic_scores(np.random.default_rng(5), n=3, targets=2, truth=truth, noise=0.01)
    first, second = strongest_pairs(measure_affinity(scores, AffinityConfig()))["interferences"][:2]
    assert (first["task"], first["set"], set(first["others"])) == ("t0", "g0", {"t1", "t2"})
    assert (second["task"], second["set"]) == ("t1", "t0")


def test_gains_alone_make_no_tasks_interchangeable():
    energy = build_energy(synthetic_scores(np.random.default_rng(0), n=5), None, EnergyConfig(kind="gain"))
    assert explain(energy, solve_mixture(energy)).clusters == ()
