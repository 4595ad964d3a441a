"""Counts against exhaustive search, plans against what the docstrings promise."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from support.pools import make_config, make_pool

from taskpgm.errors import UserError
from taskpgm.pool.plan import (
    RowPlan,
    copies,
    distinct_mixture,
    plan_rows,
    round_shares,
    size_mixture,
    supply_bounds,
    uniform_mixture,
)
from taskpgm.pool.task_pool import TaskPool

common = settings(max_examples=150, deadline=None)
Case = tuple[dict[str, float], int, dict[str, int], dict[str, float], dict[str, float]]


@st.composite
def roundings(draw: st.DrawFn) -> Case:
    names = "abcd"[: draw(st.integers(1, 4))]
    parts = [draw(st.integers(0, 12)) for _ in names]
    assume(sum(parts))
    total = draw(st.integers(1, 9))
    shares = {name: part / sum(parts) for name, part in zip(names, parts, strict=True)}
    supply = {name: math.ceil(shares[name] * total - 1e-9) + draw(st.integers(0, 2)) for name in names}
    lo = {name: shares[name] * draw(st.sampled_from([0.0, 0.5, 1.0])) for name in names}
    hi = {name: shares[name] + (1 - shares[name]) * draw(st.sampled_from([0.0, 0.2, 1.0])) for name in names}
    return shares, total, supply, lo, hi


@common
@given(roundings())
def test_counts_are_the_nearest_within_the_bounds(case: Case) -> None:
    shares, total, supply, lo, hi = case
    counts = round_shares(shares, total, supply, lo, hi)
    assert sum(counts.values()) == total
    assert all(0 <= counts[name] <= supply[name] for name in shares)

    def distance(vector: tuple[int, ...]) -> float:
        return sum((c - share * total) ** 2 for c, share in zip(vector, shares.values(), strict=True))

    vectors = [v for v in itertools.product(*(range(supply[name] + 1) for name in shares)) if sum(v) == total]
    least = [lo[name] * total - 1e-6 for name in shares]
    most = [hi[name] * total * (shares[name] > 0) + 1e-6 for name in shares]
    inside = [v for v in vectors if all(a <= c <= b for a, c, b in zip(least, v, most, strict=True))]
    event(f"whole numbers meet the bounds: {bool(inside)}")
    mine = tuple(counts.values())
    if inside:
        assert mine in inside
        assert distance(mine) <= min(map(distance, inside)) + 1e-9
    else:
        for name in shares:
            assert lo[name] * total - 1 < counts[name] < hi[name] * total + 1


@common
@given(roundings(), st.randoms(use_true_random=False))
def test_permuting_tasks_permutes_counts(case: Case, order: object) -> None:
    shares, total, supply, lo, hi = case
    names = list(shares)
    order.shuffle(names)  # type: ignore[attr-defined]
    again = round_shares({name: shares[name] for name in names}, total, supply, lo, hi)
    assert again == round_shares(shares, total, supply, lo, hi)


def test_counts_by_hand() -> None:
    free = {"lo": dict.fromkeys("abc", 0.0), "hi": dict.fromkeys("abc", 1.0)}
    many = dict.fromkeys("abc", 100)
    # Hamilton's method: 5.5, 3.3, 2.2 of 11; the seat left goes to the largest remainder.
    assert round_shares({"a": 0.5, "b": 0.3, "c": 0.2}, 11, many, **free) == {"a": 6, "b": 3, "c": 2}
    assert round_shares({"b": 0.25, "a": 0.25, "c": 0.5}, 2, many, **free) == {"a": 1, "b": 0, "c": 1}  # a tie: by name
    assert round_shares({"a": 0.5, "b": 0.3, "c": 0.2}, 11, {**many, "a": 5}, **free) == {"a": 5, "b": 4, "c": 2}
    third = {"lo": dict.fromkeys("abc", 0.0), "hi": dict.fromkeys("abc", 1 / 3)}
    assert round_shares(dict.fromkeys("abc", 1 / 3), 10, many, **third) == {"a": 4, "b": 3, "c": 3}
    assert round_shares({"a": 0.29, "b": 0.71, "c": 0.0}, 100, {"a": 29, "b": 71, "c": 9}, **free)["a"] == 29


# Plans


@st.composite
def plans(draw: st.DrawFn) -> tuple[TaskPool, dict[str, float], dict[str, float]]:
    """A pool, a mixture that keeps its supply, and a budget."""
    names = draw(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, unique=True))
    lengths = {name: draw(st.lists(st.integers(1, 30), min_size=1, max_size=12)) for name in names}
    epochs = draw(st.sampled_from([0.5, 1, 1.3, 2, 4]))
    pool = make_pool(lengths)
    unit = draw(st.sampled_from(["examples", "tokens"]))
    most = {name: math.floor(epochs * len(own) + 1e-6) for name, own in lengths.items()}
    if (
        unit == "tokens"
    ):  # at least so many, whichever rows an unfinished pass draws; exactly so many where all are finished
        passes = {name: divmod(most[name], len(own)) for name, own in lengths.items()}
        most = {n: passes[n][0] * sum(own) + sum(sorted(own)[: passes[n][1]]) for n, own in lengths.items()}
    parts = {name: most[name] * draw(st.sampled_from([0.0, 0.37, 0.8, 1.0])) for name in names}
    total = sum(parts.values())
    budget = math.floor(total + 1e-6)
    assume(budget >= 1)
    weights = {name: part / total for name, part in parts.items()}
    return pool, weights, {"max_epochs": epochs, unit: budget}


def rows_of(pool: TaskPool, plan: RowPlan) -> list[tuple[str, int, int]]:
    names = [pool.tasks[task].name for task in plan.task]
    return list(zip(names, plan.row.tolist(), plan.repeat.tolist(), strict=True))


@common
@given(plans(), st.integers(0, 2))
def test_plans_keep_their_promises(case: tuple[TaskPool, dict[str, float], dict[str, float]], seed: int) -> None:
    pool, weights, budget = case
    config = make_config(pool, seed, **budget)
    longest = max(row.response_tokens for task in pool.tasks for row in task.train)
    if config.budget.unit == "tokens" and config.budget.size <= longest / 2:
        return
    plan = plan_rows(pool, weights, config)
    event(config.budget.unit)
    assert len(set(rows_of(pool, plan))) == len(plan)
    used = Counter((name, row) for name, row, _ in rows_of(pool, plan))
    tokens = 0
    for task in pool.tasks:
        own = plan[task.name]
        times = [used[task.name, i] for i in range(len(task.train))]
        assert own.count == sum(times) == round(own.epochs * own.rows)
        assert max(times) - min(times) <= 1
        assert own.count <= config.budget.max_epochs * len(task.train) + 1e-6
        assert own.tokens == sum(n * row.response_tokens for n, row in zip(times, task.train, strict=True))
        if not weights[task.name]:
            assert own.count == 0
        for i, n in enumerate(times):
            assert sorted(repeat for name, row, repeat in rows_of(pool, plan) if (name, row) == (task.name, i)) == list(
                range(n)
            )
        tokens += own.tokens
    assert plan.budget == config.budget.size
    assert math.isclose(sum(task.row_share for task in plan.tasks), 1)
    assert math.isclose(sum(task.token_share for task in plan.tasks), 1)
    if plan.unit == "examples":
        assert len(plan) == plan.budget
        assert all(abs(task.count - task.weight * plan.budget) < 1 for task in plan.tasks)
    else:
        assert abs(tokens - plan.budget) <= longest / 2 + 1e-6
        assert all(abs(task.tokens - task.weight * plan.budget) <= longest + 1e-6 for task in plan.tasks)


@common
@given(plans(), st.randoms(use_true_random=False))
def test_the_order_of_tasks_changes_nothing(
    case: tuple[TaskPool, dict[str, float], dict[str, float]], order: object
) -> None:
    pool, weights, budget = case
    tasks = list(pool.tasks)
    order.shuffle(tasks)  # type: ignore[attr-defined]
    other = TaskPool(tuple(tasks), (), pool.overlap)
    try:
        plan = plan_rows(pool, weights, make_config(pool, **budget))
    except UserError as error:
        assert "less than half a row" in str(error)  # noqa: PT017
        return
    assert rows_of(other, plan_rows(other, weights, make_config(other, **budget))) == rows_of(pool, plan)


def test_the_rows_of_a_task_follow_from_its_count_alone() -> None:
    pool = make_pool({"a": [3] * 50, "b": [7] * 80})
    small = plan_rows(pool, {"a": 0.5, "b": 0.5}, make_config(pool, examples=60))
    large = plan_rows(pool, {"a": 0.3, "b": 0.7}, make_config(pool, examples=100))
    assert small["a"].count == large["a"].count == 30
    own = [{row for row in rows_of(pool, plan) if row[0] == "a"} for plan in (small, large)]
    assert own[0] == own[1]
    more = plan_rows(pool, {"a": 1.0}, make_config(pool, examples=40))
    assert own[0] < set(rows_of(pool, more))


def test_the_seed_draws_other_rows_in_another_order() -> None:
    pool = make_pool({"a": [3] * 500})
    first, second = (plan_rows(pool, {"a": 1.0}, make_config(pool, seed, examples=100)) for seed in (0, 1))
    again = plan_rows(pool, {"a": 1.0}, make_config(pool, 0, examples=100))
    assert rows_of(pool, first) == rows_of(pool, again)
    assert set(first.row.tolist()) != set(second.row.tolist())


def test_tasks_of_one_size_draw_apart() -> None:
    pool = make_pool({"a": [1] * 200, "b": [1] * 200})
    plan = plan_rows(pool, uniform_mixture(pool), make_config(pool, examples=200))
    a, b = (set(plan.row[plan.task == i].tolist()) for i in (0, 1))
    # Two draws of 100 of 200: they share 50 rows, standard deviation 3.5.
    assert abs(len(a & b) - 50) < 5 * 3.6


def test_every_pass_has_an_order_of_its_own() -> None:
    pool = make_pool({"a": [1] * 200})
    once, twice = (plan_rows(pool, {"a": 1.0}, make_config(pool, examples=n)) for n in (100, 300))
    first, second = set(once.row.tolist()), set(twice.row[twice.repeat == 1].tolist())
    assert abs(len(first & second) - 50) < 5 * 3.6


def test_rows_that_are_seen_again_are_told() -> None:
    pool = make_pool({"a": [1] * 50, "b": [1] * 1950})
    for budget, shares, described in (
        (100, {"a": 0.5, "b": 0.5}, "100 rows"),
        (120, {"a": 0.5, "b": 0.5}, "120 rows, 10 of them seen before"),
        (1400, {"a": 0.1, "b": 0.9}, "1,400 rows, 90 of them seen before"),
    ):
        plan = plan_rows(pool, shares, make_config(pool, examples=budget))
        assert plan.described == described
        assert len(set(zip(plan.task.tolist(), plan.row.tolist(), strict=True))) == budget - int(
            (plan.repeat > 0).sum()
        )


def test_a_share_that_exceeds_the_supply_by_noise_never_repeats_a_row() -> None:
    pool = make_pool({"a": [10**7] + [1] * 9, "b": [1] * 100})
    supply = {"a": 10**7 + 9, "b": 100}
    for over in range(1, 9):  # within the millionth that a solver is forgiven
        budget = supply["a"] + 50
        share = (supply["a"] + over) / budget
        plan = plan_rows(pool, {"a": share, "b": 1 - share}, make_config(pool, over, max_epochs=1, tokens=budget))
        assert (plan["a"].count, plan["b"].count) == (10, 50)


def test_draws_and_order_look_uniform() -> None:
    # 300 seeds, 25 of 100 rows each: a row is drawn 75 times, standard deviation 7.5.
    pool = make_pool({"a": [1] * 100, "b": [1] * 100})
    drawn, place = np.zeros(100), []
    for seed in range(300):
        plan = plan_rows(pool, {"a": 0.5, "b": 0.5}, make_config(pool, seed, examples=50))
        drawn += np.bincount(plan.row[plan.task == 0], minlength=100)
        place.append(np.flatnonzero(plan.task == 0).mean())
    assert abs(drawn - 75).max() < 5 * 7.5
    # A task's mean place is 24.5 of 0 to 49; 25 of 50 at random would vary by 50²/12/25/2 about it, spread ones less.
    assert abs(np.mean(place) - 24.5) < 5 * math.sqrt(50**2 / 12 / 25 / 2 / 300)
    assert np.var(place) < 50**2 / 12 / 25 / 2 / 2


@common
@given(plans())
def test_every_task_is_spread_evenly(case: tuple[TaskPool, dict[str, float], dict[str, float]]) -> None:
    pool, weights, budget = case
    try:
        plan = plan_rows(pool, weights, make_config(pool, **budget))
    except UserError:
        return
    share = {i: task.count / len(plan) for i, task in enumerate(plan.tasks)}
    for i, expected in share.items():
        # Of the first r rows a task has its share, to within a row of its own and one of every other task.
        off = np.cumsum(plan.task == i) - expected * np.arange(1, len(plan) + 1)
        assert abs(off).max(initial=0) <= 1 + expected * len(plan.tasks)


def test_mixtures_that_hardly_differ_train_alike() -> None:
    pool = make_pool({"a": [1] * 500, "b": [1] * 500, "c": [1] * 500})
    orders = []
    for a in (0.3, 0.32):
        plan = plan_rows(pool, {"a": a, "b": 0.4, "c": 0.6 - a}, make_config(pool, examples=250))
        orders.append({(name, row): place / len(plan) for place, (name, row, _) in enumerate(rows_of(pool, plan))})
    both = orders[0].keys() & orders[1].keys()
    assert len(both) == 250 - 5
    assert max(abs(orders[0][key] - orders[1][key]) for key in both) < 0.08


def test_the_whole_supply_can_be_used() -> None:
    lengths = {"a": [1, 2, 30], "b": [4] * 7}
    for unit, sizes in (("examples", {"a": 6, "b": 14}), ("tokens", {"a": 66, "b": 56})):
        pool, total = make_pool(lengths), sum(sizes.values())
        config = make_config(pool, max_epochs=2, **{unit: total})
        _, hi = supply_bounds(pool, config)
        assert hi == {name: size / total for name, size in sizes.items()}
        plan = plan_rows(pool, hi, config)
        assert [task.epochs for task in plan.tasks] == [2, 2]
        assert set(Counter((name, row) for name, row, _ in rows_of(pool, plan)).values()) == {2}
        with pytest.raises(
            UserError, match=f"budget.{unit} {total + 1} exceeds the supply: the tasks have {total} under max_"
        ):
            supply_bounds(pool, make_config(pool, max_epochs=2, **{unit: total + 1}))


def test_supply_in_tokens_is_that_of_the_rows_drawn() -> None:
    pool = make_pool({"a": [1, 2, 4, 8, 16, 32]})
    _, hi = supply_bounds(pool, make_config(pool, max_epochs=1.5, tokens=1))
    rows = plan_rows(pool, {"a": 1.0}, make_config(pool, max_epochs=1.5, examples=9))
    assert hi["a"] == min(1.0, rows["a"].tokens)
    config = make_config(pool, max_epochs=1.5, tokens=rows["a"].tokens)
    assert supply_bounds(pool, config)[1]["a"] == 1.0
    assert rows_of(pool, plan_rows(pool, {"a": 1.0}, config)) == rows_of(pool, rows)


def test_bounds() -> None:
    pool = make_pool({"a": [1] * 10, "b": [1] * 100})
    config = make_config(pool, examples=200, bounds={"a": {"min_share": 0.1}, "b": {"max_share": 0.9}})
    assert supply_bounds(pool, config) == ({"a": 0.1, "b": 0.0}, {"a": 0.2, "b": 0.9})
    with pytest.raises(
        UserError, match=r"Task 'a' has min_share 0.5 of 200 examples, but supplies only 40 \(a share of 0.2000\)"
    ):
        supply_bounds(pool, make_config(pool, examples=200, bounds={"a": {"min_share": 0.5}}))


def test_shares_beyond_the_supply_are_refused() -> None:
    pool = make_pool({"a": [1] * 10, "b": [1] * 100})
    with pytest.raises(
        UserError, match=r"Task 'a' is to be .* of 200 examples, but supplies only 40 under max_epochs 4;"
    ):
        plan_rows(pool, uniform_mixture(pool), make_config(pool, examples=200))
    # A mixture of its own may leave the bounds on shares, of which a baseline knows nothing.
    config = make_config(pool, examples=20, bounds={"a": {"max_share": 0.1}, "b": {"min_share": 0.9}})
    assert [task.count for task in plan_rows(pool, uniform_mixture(pool), config).tasks] == [10, 10]


def test_a_budget_of_less_than_a_row_is_refused() -> None:
    pool = make_pool({"a": [100] * 10})
    with pytest.raises(UserError, match="tokens 3 is less than half a row's; raise it"):
        plan_rows(pool, {"a": 1.0}, make_config(pool, tokens=3))


def test_copies_of_a_task_count_as_one() -> None:
    pool = make_pool({"a": [1] * 8, "b": [1] * 8, "c": [1] * 20, "d": [1] * 8})
    apart = replace(pool, overlap=np.diag([8, 8, 20, 8]))
    assert distinct_mixture(apart) == pytest.approx(uniform_mixture(pool))
    copied = apart.overlap.copy()
    copied[np.ix_([0, 1, 3], [0, 1, 3])] = 8
    assert copies(apart) == ()
    assert copies(replace(pool, overlap=copied)) == (("a", "b", "d"),)
    assert distinct_mixture(replace(pool, overlap=copied)) == pytest.approx(
        {"a": 1 / 6, "b": 1 / 6, "c": 0.5, "d": 1 / 6}
    )
    rows = {"a": set(range(8)), "b": set(range(4, 12)), "c": set(range(100, 120)), "d": set(range(200, 208))}
    partly = np.array([[len(one & other) for other in rows.values()] for one in rows.values()])
    each = [1 / sum(len(one & other) / len(one | other) for other in rows.values()) for one in rows.values()]
    found = distinct_mixture(replace(pool, overlap=partly))
    assert list(found.values()) == pytest.approx([share / sum(each) for share in each])


def test_reference_mixtures() -> None:
    pool = make_pool({"a": [1, 1, 2], "b": [12]})
    assert uniform_mixture(pool) == {"a": 0.5, "b": 0.5}
    assert size_mixture(pool, "examples") == {"a": 0.75, "b": 0.25}
    assert size_mixture(pool, "tokens") == {"a": 0.25, "b": 0.75}
