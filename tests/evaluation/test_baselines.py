"""Baselines against formulas written out, SMART against brute force, supply against a convex program."""

import itertools
import json
import math

import cvxpy
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from support.pools import make_config, make_pool

from taskpgm.config import AffinityConfig
from taskpgm.errors import UserError
from taskpgm.evaluation.baselines import (
    GRAPH_CUT,
    baseline_mixture,
    greedy_gains,
    parse_mixtures,
    parse_spec,
    within_supply,
)
from taskpgm.mixture.affinity import given_affinity, measure_affinity
from taskpgm.pool.plan import plan_rows, size_mixture, supply_bounds, uniform_mixture

common = settings(max_examples=150, deadline=None)
POOL = make_pool({"a": [1] * 60, "b": [5] * 30, "c": [2] * 10})
ROWS = make_config(POOL, examples=40)
TOKENS = make_config(POOL, tokens=100)


def weights_of(spec, config=ROWS, **more):
    weights = baseline_mixture(spec, POOL, config, **more)
    assert tuple(sorted(weights)) == POOL.names
    assert math.fsum(weights.values()) == pytest.approx(1, abs=1e-12)
    return [weights[name] for name in POOL.names]


def test_by_hand():
    assert weights_of("uniform") == pytest.approx([1 / 3] * 3)
    assert weights_of("size") == pytest.approx([0.6, 0.3, 0.1])
    assert weights_of("size:20") == pytest.approx([0.4, 0.4, 0.2])
    assert weights_of("size", TOKENS) == pytest.approx([60 / 230, 150 / 230, 20 / 230])
    assert weights_of("size:60", TOKENS) == pytest.approx([60 / 140, 60 / 140, 20 / 140])
    roots = np.sqrt([60, 30, 10])
    assert weights_of("temperature:2") == pytest.approx(roots / roots.sum())


@common
@given(st.floats(0.05, 50), st.floats(1, 1000))
def test_limits(temperature, most):
    """Between size-proportional (T = 1, K = ∞) and uniform (T → ∞, K ≤ the smallest size)."""
    assert weights_of("temperature:1") == pytest.approx(list(size_mixture(POOL, "examples").values()))
    assert weights_of("temperature:1e9") == pytest.approx(list(uniform_mixture(POOL).values()))
    assert weights_of("size:1") == pytest.approx([1 / 3] * 3)
    for weights in (weights_of(f"temperature:{temperature}"), weights_of(f"size:{most}")):
        assert weights == sorted(weights, reverse=True)
    assert weights_of("temperature:0.001")[0] == pytest.approx(1)


def test_random_is_uniform_on_the_simplex():
    draws = np.array([weights_of("random", seed=seed) for seed in range(400)])
    assert weights_of("random", seed=3) == list(draws[3])
    for i in range(3):  # each share of a Dirichlet(1, 1, 1) is Beta(1, 2)
        assert stats.kstest(draws[:, i], stats.beta(1, 2).cdf).pvalue > 0.001
    turned = make_pool({"c": [1], "a": [1], "b": [1]})
    again = baseline_mixture("random", turned, make_config(turned, examples=2), seed=3)
    assert [again[name] for name in POOL.names] == pytest.approx(list(draws[3]))


def value(S, chosen, objective):
    """f(A) by its definition."""
    chosen = list(chosen)
    if not chosen:
        return 0.0
    if objective == "facility_location":
        return sum(max(S[i, j] for j in chosen) for i in range(len(S)))
    within = sum(S[i, j] for i in chosen for j in chosen)
    return sum(S[i, j] for i in range(len(S)) for j in chosen) - GRAPH_CUT * within


@common
@given(st.integers(1, 6), st.integers(0, 10**6), st.sampled_from(["graph_cut", "facility_location"]))
def test_greedy_against_the_definition(n, seed, objective):
    A = np.random.default_rng(seed).normal(size=(n, 4))
    S = A @ A.T
    order, gains = greedy_gains(S, objective)
    assert sorted(order) == list(range(n))
    for k in range(n):
        before = value(S, order[:k], objective)
        slow = {i: value(S, [*order[:k], i], objective) - before for i in range(n) if i not in order[:k]}
        assert gains[k] == pytest.approx(max(slow.values()), abs=1e-9)
        assert slow[order[k]] == pytest.approx(max(slow.values()), abs=1e-9)


def test_smart_by_hand():
    """Tasks a and b are one and the same, c is apart: V = 3, greedy takes a, then c, then b."""
    affinity = given_affinity(4 * np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]), POOL.names)
    gains = np.array([2 - 0.4, 2 - 0.4 * 3, 1 - 0.4])  # of a; of b after a (2 − 0.4 (1 + 2·1)); of c
    taylor = 1 + gains + gains**2 / 2
    assert weights_of("smart", affinity=affinity) == pytest.approx(taylor / taylor.sum())
    assert weights_of("smart:graph_cut", affinity=affinity) == weights_of("smart", affinity=affinity)
    taylor = np.array([1 + 2 + 2, 1, 1 + 1 + 0.5])
    assert weights_of("smart:facility_location", affinity=affinity) == pytest.approx(taylor / taylor.sum())


def test_smart_takes_the_gram_matrix_and_not_the_order_of_tasks():
    from support.numerics import synthetic_scores

    scores = synthetic_scores(np.random.default_rng(0), n=3)
    pool = make_pool({name: [1] * 9 for name in scores.tasks})
    config = make_config(pool, examples=3)
    ratio, pmi = (measure_affinity(scores, AffinityConfig(kind=kind)) for kind in ("ratio", "pmi"))
    weights = baseline_mixture("smart", pool, config, affinity=ratio)
    assert baseline_mixture("smart", pool, config, affinity=pmi) == weights
    turn = [2, 0, 1]
    turned = given_affinity(ratio.S[np.ix_(turn, turn)], tuple(ratio.tasks[i] for i in turn))
    assert baseline_mixture("smart", pool, config, affinity=turned) == pytest.approx(weights)


def test_weights_from_files(tmp_path):
    (tmp_path / "w.json").write_text('{"c": 1, "a": 2, "b": 0}')
    (tmp_path / "w.yaml").write_text("a: 2.0\nb: 0\nc: 1\n")
    rows = [{"name": name, "weight": w, "more": 1} for name, w in (("a", 2 / 3), ("b", 0.0), ("c", 1 / 3))]
    (tmp_path / "mixture.json").write_text(json.dumps({"tasks": rows, "energy": {}}))
    for name in ("w.json", "w.yaml", "mixture.json"):
        assert weights_of(str(tmp_path / name)) == pytest.approx([2 / 3, 0, 1 / 3])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "b": 1}', "no weight for task 'c'"),
        ('{"a": 1, "b": 1, "c": 1, "d": 1}', "names 'd', which is not a task"),
        ('{"a": 1, "b": NaN, "c": 1}', "non-negative"),
        ('{"a": 1, "b": -1, "c": 1}', "non-negative"),
        ('{"a": 0, "b": 0, "c": 0}', "not all zero"),
        ('{"a": "half", "b": 1, "c": 1}', "'half', which is no number; write one"),
        ('{"a": true, "b": 1, "c": 1}', "True, which is no number"),
        ("[1, 2, 3]", "holds no weights"),
        ("{}", "holds no weights"),
        ('{"tasks": [1, 2]}', "holds no weights"),
        ('{"a": 1,', "Cannot read weights"),
    ],
)
def test_wrong_weights(tmp_path, text, says):
    (tmp_path / "w.json").write_text(text)
    with pytest.raises(UserError, match=says):
        weights_of(str(tmp_path / "w.json"))


def test_parse_mixtures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.json").write_text("{}")
    text = "taskpgm, uniform,size,size:100,temperature:2,random,smart,smart:facility_location,my.json"
    assert parse_mixtures(text) == tuple(name.strip() for name in text.split(","))
    for wrong, says in {
        "": "names no mixture",
        "taskpgm,uniforn": "Unknown mixture 'uniforn'",
        "uniform:2": "Unknown mixture",
        "smart:logdet": "Unknown mixture",
        "temperature": "positive number",
        "temperature:": "positive number",
        "temperature:0": "positive number",
        "temperature:warm": "positive number",
        "temperature:inf": "positive number",
        "size:-3": "positive number",
        "size:nan": "positive number",
        "your.json": "not a file",
        "uniform,size,uniform": "'uniform' is given twice",
        "temperature:2,temperature:2.0": "'temperature:2' and 'temperature:2.0' are the same",
        "smart,smart:graph_cut": "are the same",
    }.items():
        with pytest.raises(UserError, match=says):
            parse_mixtures(wrong)
    assert parse_spec("size").number == math.inf


def test_what_a_pool_cannot_give():
    with pytest.raises(UserError, match="needs the affinities"):
        weights_of("smart")
    with pytest.raises(UserError, match="not of this pool"):
        weights_of("smart", affinity=given_affinity(np.eye(3)))
    with pytest.raises(UserError, match="with itself is 0"):
        weights_of("smart", affinity=given_affinity(np.diag([1.0, 0, 1]), POOL.names))
    with pytest.raises(UserError, match="not a baseline"):
        weights_of("taskpgm")


@st.composite
def supplies(draw):
    names = "abcde"[: draw(st.integers(1, 5))]
    weights = {name: draw(st.sampled_from([0.0, 0.01, 1.0, 2.0, 30.0])) for name in names}
    assume(sum(weights.values()))
    lo = {name: draw(st.sampled_from([0.0, 0.0, 0.05, 0.2])) for name in names}
    hi = {name: lo[name] + draw(st.sampled_from([0.0, 0.1, 0.3, 1.0])) for name in names}
    hi = {name: min(most, 1.0) for name, most in hi.items()}
    assume(sum(lo.values()) <= 1 and sum(hi.values()) >= 1)
    return weights, lo, hi


@common
@given(supplies())
def test_within_supply(case):
    """Feasible, unchanged where it already was, and in proportion wherever no bound binds."""
    weights, lo, hi = case
    p = within_supply(weights, lo, hi)
    assert math.fsum(p.values()) == pytest.approx(1, abs=1e-9)
    assert all(lo[name] - 1e-12 <= p[name] <= hi[name] + 1e-12 for name in p)
    total = sum(weights.values())
    if all(lo[name] <= weight / total <= hi[name] for name, weight in weights.items()):
        assert p == pytest.approx({name: weight / total for name, weight in weights.items()})
    assert within_supply(p, lo, hi) == pytest.approx(p, abs=1e-9)
    held = [name for name in p if weights[name] > 0]
    for one, other in itertools.permutations(held, 2):  # p_i/w_i is larger only where p_i is held up or p_j held down
        if p[one] / weights[one] > p[other] / weights[other] * (1 + 1e-9):
            assert p[one] == pytest.approx(lo[one], abs=1e-9) or p[other] == pytest.approx(hi[other], abs=1e-9)
    if sum(hi[name] for name in held) + sum(lo[name] for name in set(p) - set(held)) >= 1:
        assert all(p[name] == pytest.approx(lo[name]) for name in set(p) - set(held))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10**6))
def test_within_supply_is_nearest_in_relative_entropy(n, seed):
    rng = np.random.default_rng(seed)
    w, inside = rng.dirichlet(np.ones(n), size=2)
    lo, hi = inside * rng.random(n), np.minimum(inside * (1 + rng.random(n)), 1)
    p = cvxpy.Variable(n)
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(cvxpy.kl_div(p, w))), [cvxpy.sum(p) == 1, p >= lo, p <= hi]).solve(
        solver=cvxpy.CLARABEL
    )
    names = "abcdef"[:n]
    mine = within_supply(*(dict(zip(names, map(float, one), strict=True)) for one in (w, lo, hi)))
    assert list(mine.values()) == pytest.approx(list(p.value), abs=1e-3)
    entropies = [stats.entropy(one, w) for one in (list(mine.values()), np.clip(p.value, lo, hi))]
    assert entropies[0] <= entropies[1] + 1e-7


def test_within_supply_in_a_plan():
    """A baseline that asks a small task for too much is planned after all; c gives 4 · 10 of 120 rows at most."""
    config = make_config(POOL, examples=150)
    lo, hi = supply_bounds(POOL, config)
    p = within_supply({"a": 0.0, "b": 0.1, "c": 0.9}, lo, hi)
    plan = plan_rows(POOL, p, config)
    assert {task.name: task.count for task in plan.tasks} == {"a": 0, "b": 110, "c": 40}
    with pytest.raises(UserError, match="No mixture meets all of"):
        within_supply({"a": 1.0}, {"a": 0.0}, {"a": 0.5})
