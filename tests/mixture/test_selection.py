"""Selections against brute force, re-solving for every candidate, and the theory of weak submodularity."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from support.numerics import cvxpy_minimum, names, random_field, synthetic_scores

from taskpgm.config import EnergyConfig
from taskpgm.errors import UserError
from taskpgm.mixture.affinity import given_affinity
from taskpgm.mixture.bounds import Bounds, make_bounds, simplex
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.energy import field_energy
from taskpgm.mixture.maximiser import maximise
from taskpgm.mixture.selection import price, select_tasks
from taskpgm.mixture.solve import solve_mixture

seeds = st.integers(0, 1_000_000)
SELECTION_KINDS = ("dense", "low-rank", "rank-one", "duplicates", "indefinite")


def value_of(pricing, A):
    """f(A) by SciPy's non-negative least squares: ½‖Mv − y‖² with MᵀM = K, Mᵀy = b (y exists as b ≤ Kp*...)."""
    A = list(A)
    if not A:
        return 0.0
    values, vectors = np.linalg.eigh(pricing.K[np.ix_(A, A)])
    keep = values > 1e-11 * values[-1]
    M = (vectors[:, keep] * np.sqrt(values[keep])).T
    y = (vectors[:, keep] / np.sqrt(values[keep])).T @ pricing.b[A]
    v, _ = nnls(M, y, maxiter=1000)
    return float(pricing.b[A] @ v - 0.5 * v @ pricing.K[np.ix_(A, A)] @ v)


def brute_force(pricing, k):
    return max(value_of(pricing, A) for A in itertools.combinations(range(len(pricing.b)), k))


def slow_greedy(pricing, k):
    """Re-solve for every candidate; the first of equals."""
    order, value = [], 0.0
    for _ in range(k):
        left = [j for j in range(len(pricing.b)) if j not in order]
        gains = np.array([maximise(pricing, [*order, j])[1] - value for j in left])
        if gains.max() <= 1e-11 * abs(value):
            break
        best = left[int(np.flatnonzero(gains >= gains.max() - 1e-11 * abs(gains.max()))[0])]
        order.append(best)
        value += gains.max()
    return order


@given(seed=seeds, n=st.integers(1, 9), kind=st.sampled_from(("dense", "indefinite")))
@settings(max_examples=100, deadline=None)
def test_f_against_nonnegative_least_squares(seed, n, kind):
    rng = np.random.default_rng(seed)
    pricing = price(random_field(rng, n, kind=kind))
    A = np.flatnonzero(rng.random(n) < 0.6)
    assert maximise(pricing, A)[1] == pytest.approx(value_of(pricing, A), rel=1e-8, abs=1e-12)


@given(seed=seeds, n=st.integers(2, 9), kind=st.sampled_from(SELECTION_KINDS))
@settings(max_examples=150, deadline=None)
def test_f_is_monotone_with_the_mixture_as_full_maximiser(seed, n, kind):
    rng = np.random.default_rng(seed)
    energy = random_field(rng, n, kind=kind)
    pricing = price(energy)
    full = 0.5 * float(pricing.b @ pricing.p)
    v, value = maximise(pricing, range(n))
    assert value == pytest.approx(full, rel=1e-7, abs=1e-12)
    if pricing.shift == 0:
        np.testing.assert_allclose(pricing.p, solve_mixture(energy).weights, atol=1e-6)
    c = pricing.b - pricing.K @ pricing.p
    scale = np.abs(pricing.K).max()
    assert c.max() <= 1e-7 * scale  # b − Kp* ≤ 0, = 0 where p* > 0: p* maximises f over all tasks
    assert np.abs(c[pricing.p > 1e-6]).max() <= 1e-7 * scale
    order = rng.permutation(n)
    values = [maximise(pricing, order[:i])[1] for i in range(n + 1)]
    assert values[0] == 0
    assert (np.diff(values) >= -1e-9 * max(values)).all()
    assert v.sum() >= 0


@given(seed=seeds, n=st.integers(2, 12), kind=st.sampled_from(SELECTION_KINDS))
@settings(max_examples=300, deadline=None)
def test_greedy_keeps_its_guarantees_against_exhaustive_search(seed, n, kind):
    rng = np.random.default_rng(seed)
    energy = random_field(rng, n, kind=kind)
    k = int(rng.integers(1, n + 1))
    greedy = select_tasks(energy, k=k)
    best = select_tasks(energy, k=k, exhaustive=True)
    optimum = best.values[-1]
    assert greedy.values[-1] <= optimum * (1 + 1e-9) + 1e-12
    assert greedy.values[-1] >= greedy.guarantee * optimum - 1e-9 * abs(optimum)
    assert greedy.upper_bound >= optimum * (1 - 1e-9)
    assert greedy.values[-1] >= greedy.certified * optimum * (1 - 1e-9)
    assert len(greedy.chosen) <= k
    assert len(best.chosen) <= k


def test_thousands_of_instances_keep_greedys_bound():
    """3,000 instances of up to 12 tasks, greedy against the exact optimum by branch and bound."""
    rng = np.random.default_rng(0)
    worst = 1.0
    for trial in range(1000):
        energy = random_field(rng, int(rng.integers(3, 13)), kind=SELECTION_KINDS[trial % len(SELECTION_KINDS)])
        for k in (1, 2, 3):
            greedy, best = select_tasks(energy, k=k), select_tasks(energy, k=k, exhaustive=True)
            if best.values[-1] > 1e-12:
                ratio = greedy.values[-1] / best.values[-1]
                worst = min(worst, ratio)
                assert ratio >= greedy.guarantee - 1e-9
                assert greedy.upper_bound >= best.values[-1] * (1 - 1e-9)
    assert worst < 1  # greedy is not always optimal, so the bounds were put to a test


@given(seed=seeds, n=st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_exhaustive_search_against_all_subsets(seed, n):
    rng = np.random.default_rng(seed)
    energy = random_field(rng, n)
    k = int(rng.integers(1, n + 1))
    assert select_tasks(energy, k=k, exhaustive=True).values[-1] == pytest.approx(
        brute_force(price(energy), k), rel=1e-7
    )


@given(seed=seeds, n=st.integers(2, 14), kind=st.sampled_from(SELECTION_KINDS))
@settings(max_examples=150, deadline=None)
def test_greedy_takes_the_order_of_resolving_for_every_candidate(seed, n, kind):
    rng = np.random.default_rng(seed)
    energy = random_field(rng, n, kind=kind)
    chosen = [energy.tasks.index(task) for task in select_tasks(energy, k=n).chosen]
    slow = slow_greedy(price(energy), n)
    pricing = price(energy)
    for i, (a, b) in enumerate(zip(chosen, slow, strict=False)):
        if a != b:  # only where both gain the same to rounding
            gain_a, gain_b = (maximise(pricing, [*slow[:i], j])[1] for j in (a, b))
            assert gain_a == pytest.approx(gain_b, rel=1e-8)
            return
    values = [maximise(pricing, order)[1] for order in (chosen, slow)]
    assert values[0] == pytest.approx(values[1], rel=1e-8)


@given(seed=seeds, n=st.integers(3, 7))
@settings(max_examples=60, deadline=None)
def test_measured_submodularity_ratio_is_never_below_the_bound(seed, n):
    """γ = min Σ_{j∈S∖A} [f(A∪j) − f(A)] / [f(A∪S) − f(A)] over pairs of sets, against λ_min at unit diagonal."""
    rng = np.random.default_rng(seed)
    pricing = price(random_field(rng, n))
    f = {A: maximise(pricing, A)[1] for r in range(n + 1) for A in itertools.combinations(range(n), r)}
    for A in f:
        for S in f:
            rest = [j for j in S if j not in A]
            union = f[tuple(sorted({*A, *S}))] - f[A]
            if union > 1e-9:
                single = sum(f[tuple(sorted((*A, j)))] - f[A] for j in rest)
                assert single >= pricing.gamma * union * (1 - 1e-6)


def test_selection_on_a_likelihood_is_on_its_field_at_the_mixture():
    energy = build_energy(synthetic_scores(np.random.default_rng(1), n=6), None, EnergyConfig(prior=0))
    pricing = price(energy)
    np.testing.assert_allclose(pricing.p, solve_mixture(energy).weights, atol=1e-9)
    assert maximise(pricing, range(6))[1] == pytest.approx(0.5 * pricing.b @ pricing.p, rel=1e-6)
    selection = select_tasks(energy, k=3)
    mixture = solve_mixture(energy, chosen=selection.chosen)
    assert {task for task, share in mixture.shares.items() if share > 0} <= set(selection.chosen)
    others = [solve_mixture(energy, chosen=c).certificate for c in itertools.combinations(energy.tasks, 3)]
    assert all(c.passed for c in others)


def test_pmi_is_priced_with_a_level_that_leaves_the_mixture():
    rng = np.random.default_rng(2)
    points = rng.normal(size=(8, 3))
    S = -((points[:, None] - points[None]) ** 2).sum(-1) - 1 + np.eye(8)  # negative along 1, curved on the tangent
    energy = build_energy(None, given_affinity(S), EnergyConfig(kind="affinity", t=2.0))
    pricing = price(energy)
    assert energy.shift == 0
    assert pricing.level > 0
    assert pricing.shift == 0
    assert np.linalg.eigvalsh(pricing.K)[0] > 0
    np.testing.assert_allclose(pricing.p, solve_mixture(energy).weights, atol=1e-8)


def test_pricing_at_nu_makes_all_tasks_worth_what_the_mixture_is():
    energy = random_field(np.random.default_rng(3), 10)
    selection = select_tasks(energy, k=10)
    p, _ = cvxpy_minimum(energy, simplex(names(10)))
    pricing = price(energy)
    assert selection.full_value == pytest.approx(float(pricing.b @ p - 0.5 * p @ pricing.K @ p), rel=1e-6)
    assert selection.values[-1] == pytest.approx(selection.full_value, rel=1e-9)
    assert selection.certified == pytest.approx(1)


def test_bounds_take_part():
    energy = random_field(np.random.default_rng(4), 8)
    bounds = make_bounds(names(8), lo={"t5": 0.05}, hi={"t0": 0.0}, supply=dict.fromkeys(names(8), 0.3) | {"t0": 0.0})
    selection = select_tasks(energy, bounds, k=4)
    assert selection.chosen[0] == "t5"
    assert "t0" not in selection.chosen
    assert solve_mixture(energy, bounds, chosen=selection.chosen).certificate.passed
    with pytest.raises(UserError):
        select_tasks(energy, bounds, k=3)  # three tasks of 0.3 cannot hold the budget
    small = dict.fromkeys(names(8), 0.05) | {"t6": 0.5, "t7": 0.5}
    assert set(select_tasks(energy, make_bounds(names(8), supply=small), k=2).chosen) == {"t6", "t7"}


def test_greedy_promises_nothing_where_bounds_decide():
    """Of K = 1 every task is worth p_i²/2. Greedy takes t0, beside which only t3, worth nothing, holds the budget."""
    energy = field_energy(names(4), np.array([0.34, 0.33, 0.33, 0.0]), np.eye(4))
    bounds = make_bounds(names(4), supply={"t0": 0.2, "t1": 0.5, "t2": 0.5, "t3": 0.8})
    greedy, best = select_tasks(energy, bounds, k=2), select_tasks(energy, bounds, k=2, exhaustive=True)
    assert set(greedy.chosen) == {"t0", "t3"}
    assert set(best.chosen) == {"t1", "t2"}
    assert greedy.certified <= greedy.values[-1] / best.values[-1]
    assert select_tasks(energy, k=2).guarantee == pytest.approx(1 - math.exp(-1))


@given(seed=seeds, n=st.integers(2, 7))
@settings(max_examples=150, deadline=None)
def test_selections_within_bounds_against_all_subsets_that_hold_the_budget(seed, n):
    rng = np.random.default_rng(seed)
    energy, k = random_field(rng, n), int(rng.integers(1, n + 1))
    hi = np.minimum(rng.uniform(0.1, 1.2, n), 1.0)
    lo = np.where(rng.random(n) < 0.15, 0.5 * hi / n, 0.0)
    if np.sort(hi)[::-1].sum() < 1:
        return
    bounds, all_tasks = Bounds(names(n), lo, hi), range(n)
    pricing, forced = price(energy, bounds), set(np.flatnonzero(lo > 0))
    able = [A for A in itertools.combinations(all_tasks, k) if hi[list(A)].sum() >= 1 and forced <= set(A)]
    try:
        greedy, best = (select_tasks(energy, bounds, k, exhaustive) for exhaustive in (False, True))
    except UserError:
        assert not able
        return
    optimum = max(value_of(pricing, A) for A in able)
    assert best.values[-1] == pytest.approx(optimum, rel=1e-7, abs=1e-12)
    assert hi[[int(name[1:]) for name in best.chosen]].sum() >= 1 - 1e-9
    # What is known of greedy is known against any k tasks, those included that cannot hold the budget.
    assert greedy.values[-1] >= greedy.certified * brute_force(pricing, k) - 1e-9 * abs(optimum)


def test_wrong_k_gets_one_sentence():
    energy = random_field(np.random.default_rng(5), 25)
    for call, words in (
        (lambda: select_tasks(energy, k=0), "between"),
        (lambda: select_tasks(energy, k=26), "between"),
        (lambda: select_tasks(energy, k=3, exhaustive=True), "20"),
        (lambda: select_tasks(energy, make_bounds(names(25), lo={"t0": 0.1, "t1": 0.1}), k=1), "min_share"),
    ):
        with pytest.raises(UserError, match=words):
            call()


def test_adversarial_selections():
    rng = np.random.default_rng(6)
    for kind in (*SELECTION_KINDS, "identical", "ill-conditioned", "tiny", "huge"):
        for n in (1, 2, 40):
            selection = select_tasks(random_field(rng, n, kind=kind), k=min(n, 10))
            assert 1 <= len(selection.chosen) <= 10
            assert (selection.gains >= -1e-9 * abs(selection.full_value)).all()
            data = json.loads(json.dumps(selection.to_dict(), allow_nan=False))
            assert data["chosen"][0]["task"] == selection.chosen[0]
            assert math.isfinite(selection.upper_bound)
            assert 0 <= selection.certified <= 1


def test_gains_alone_are_nothing_to_select_by():
    energy = build_energy(synthetic_scores(np.random.default_rng(1), n=4), None, EnergyConfig(kind="gain"))
    with pytest.raises(UserError, match="knows no redundancy"):
        select_tasks(energy, k=2)
