"""Statistics of a comparison against SciPy's tests, Holm against closed testing, curves against a known law."""

import io
import itertools
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from taskpgm.cli.tables import comparison_view
from taskpgm.errors import UserError
from taskpgm.evaluation.equivalence import budget_equivalence
from taskpgm.evaluation.statistics import (
    Measurement,
    compare_measurements,
    corrected_interval,
    holm,
    holm_factors,
    t_interval,
    t_test,
)

common = settings(max_examples=100, deadline=None)
TASKS, TARGETS = ("a", "b"), ("g", "h", "i")
SETS = TARGETS + TASKS


def measured(mixture, seed, change=0.0, rng=None, accuracy=(), options=()):
    """Losses 1, 2, ... of the sets, plus a change on each, plus noise; half of that on options."""
    noise = rng.normal(0, 0.02, len(SETS)) if rng is not None else np.zeros(len(SETS))
    change = dict(zip(SETS, np.broadcast_to(change, len(SETS)), strict=True))
    loss = {one: 1.0 + k + change[one] + noise[k] for k, one in enumerate(SETS)}
    right = {one: 0.5 - float(change[one]) - noise[SETS.index(one)] for one in accuracy}
    chosen = {one: loss[one] / 2 for one in options}
    return Measurement(mixture, seed, loss, right, 288, 12.5, option_loss=chosen)


def runs(changes, seeds=5, noise=True, accuracy=(), options=()):
    rng = np.random.default_rng(0) if noise else None
    return [measured(m, s, change, rng, accuracy, options) for m, change in changes.items() for s in range(seeds)]


@common
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(0.5, 0.999))
def test_interval_and_test_are_students(values, level):
    estimate = t_interval(values, level)
    assert estimate.mean == pytest.approx(np.mean(values))
    if np.ptp(values) < 1e-6:
        return
    oracle = stats.ttest_1samp(values, 0)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(oracle.confidence_interval(level)), abs=1e-9)
    assert t_test(values) == pytest.approx(oracle.pvalue, abs=1e-12)


def test_equal_values_and_single_ones():
    assert [t_test(values) for values in ([0.0, 0.0], [1.0, 1.0], [1.0], [0.3, 0.1 + 0.2])] == [None] * 4
    for values in ([3.0], [3.0, 3.0]):
        one = t_interval(values)
        assert (one.mean, one.low, one.high, one.seeds) == (3, None, None, len(values))
    assert t_test([1.0, 1.001]) < 0.001


@common
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_bonferroni_in_closed_testing(p):
    """A hypothesis falls where every set of hypotheses that holds it falls by Bonferroni (Marcus, Peritz, Gabriel)."""
    everything = range(len(p))
    subsets = [s for k in everything for s in itertools.combinations(everything, k + 1)]
    slow = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in everything]
    assert holm(p) == pytest.approx(slow)


@common
@given(st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=5), min_size=1, max_size=4))
def test_a_corrected_interval_holds_zero_exactly_if_no_difference_is_found(changes):
    tests = [(values, p) for values in changes if (p := t_test(values)) is not None]
    factors, corrected = holm_factors([p for _, p in tests]), holm([p for _, p in tests])
    for (values, _), factor, p in zip(tests, factors, corrected, strict=True):
        low, high = corrected_interval(values, factor, 0.95)
        if abs(p - 0.05) > 1e-9:
            assert (low <= 0 <= high) == (p >= 0.05)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_averages_pairs_and_relative_differences():
    found = runs({"ours": -0.1, "uniform": 0.0, "size": 0.03})
    weights = {"g": 1.0, "h": 3.0, "i": 0.0}
    c = compare_measurements(found, TASKS, TARGETS, weights)
    assert c.mixtures == ("ours", "uniform", "size")
    assert c.weights == {"g": 0.25, "h": 0.75, "i": 0.0}
    macro = {m: [0.25 * r.loss["g"] + 0.75 * r.loss["h"] for r in found if r.mixture == m] for m in c.mixtures}
    for mixture in c.mixtures:
        assert c[mixture].averages["targets"].mean == pytest.approx(np.mean(macro[mixture]))
        tasks = [(r.loss["a"] + r.loss["b"]) / 2 for r in found if r.mixture == mixture]
        assert c[mixture].averages["tasks"].mean == pytest.approx(np.mean(tasks))
    on_targets = {d.other: d for d in c.differences if d.quantity == "targets"}
    raw = {m: stats.ttest_rel(macro["ours"], macro[m]) for m in ("uniform", "size")}
    corrected = dict(zip(raw, holm([float(r.pvalue) for r in raw.values()]), strict=True))
    for other, d in on_targets.items():
        assert d.p_value == pytest.approx(raw[other].pvalue)
        assert d.corrected == pytest.approx(corrected[other])
        assert (d.estimate.low, d.estimate.high) == pytest.approx(tuple(raw[other].confidence_interval()))
        level = 1 - 0.05 * float(raw[other].pvalue) / d.corrected
        low, high = d.corrected_interval
        assert (low, high) == pytest.approx(tuple(raw[other].confidence_interval(level)))
        assert (low < 0 < high) == (d.verdict == "no difference")
        assert d.relative == pytest.approx(d.estimate.mean / np.mean(macro[other]))
        assert d.relative_low * np.mean(macro[other]) == pytest.approx(d.estimate.low)
        assert d.comparisons == 2
        assert d.verdict == "better"


def test_only_shared_seeds_are_paired():
    """Seeds are as far apart as mixtures, and only pairing tells; ours lacks seed 0, uniform seed 4."""
    found = [measured(m, s, 10 * s + shift) for m, shift in (("ours", -0.5), ("uniform", 0.0)) for s in range(5)]
    found = [r for r in found if (r.mixture, r.seed) not in (("ours", 0), ("uniform", 4))]
    c = compare_measurements(found, TASKS, TARGETS)
    (on_targets,) = (d for d in c.differences if d.quantity == "targets")
    assert on_targets.estimate.mean == pytest.approx(-0.5)
    assert on_targets.estimate.seeds == 3
    assert on_targets.relative == pytest.approx(-0.5 / (2 + 10 * 2))  # of uniform's mean over seeds 1, 2 and 3
    assert c["ours"].averages["targets"].seeds == 4
    assert c.excess("ours", "a").mean == pytest.approx(-0.5)
    with pytest.raises(UserError, match="'ours' and 'size' share no seed"):
        compare_measurements([*found, measured("size", 9)], TASKS, TARGETS)


def test_worst_task():
    change = dict(zip(SETS, (-0.2, -0.2, -0.2, 0.3, 0.1), strict=True))
    found = runs({"ours": list(change.values()), "uniform": 0.0, "size": 0.0})
    c = compare_measurements(found, TASKS, TARGETS)
    assert c["ours"].worst_task == "a"  # the larger increase; b has the larger loss
    increase = [r.loss["a"] - u.loss["a"] for r, u in zip(found[:5], found[5:10], strict=True)]
    assert c["ours"].worst == t_interval(increase)
    without = compare_measurements([r for r in found if r.mixture != "uniform"], TASKS, TARGETS)
    assert without["ours"].worst_task == "b"
    assert without["ours"].worst == t_interval([r.loss["b"] for r in found[:5]])
    assert without.reference == "ours"


def test_without_targets_there_are_tasks_alone():
    c = compare_measurements(runs({"ours": 0.0, "uniform": 0.0}), TASKS, ())
    assert c.quantities == ("tasks",)
    c = compare_measurements(runs({"ours": 0.0, "uniform": 0.0}, accuracy=("g", "a")), TASKS, TARGETS)
    assert c.quantities == ("targets", "tasks", "target accuracy", "task accuracy")


def test_losses_of_options_stand_apart():
    found = runs({"ours": -0.1, "uniform": 0.0}, accuracy=("g",), options=("g", "h"))
    c = compare_measurements(found, TASKS, TARGETS, {"g": 1, "h": 3, "i": 4})
    assert c.quantities == ("targets", "tasks", "target option loss", "target accuracy")
    own, other = found[:5], found[5:]
    expected = [m.option_loss["g"] / 4 + m.option_loss["h"] * 3 / 4 for m in own]
    average = c["ours"].averages["target option loss"]
    assert (average.mean, average.low) == pytest.approx((t_interval(expected).mean, t_interval(expected).low))
    assert c["ours"].option_losses["h"] == t_interval([m.option_loss["h"] for m in own])
    difference = next(d for d in c.differences if d.quantity == "target option loss")
    pairs = [(a - b.option_loss["g"] / 4 - b.option_loss["h"] * 3 / 4) for a, b in zip(expected, other, strict=True)]
    assert difference.estimate.mean == pytest.approx(np.mean(pairs))
    assert (difference.verdict, difference.relative < 0) == ("better", True)
    assert any(one.startswith("target option loss: lower than uniform by 0.0") for one in c.sentences)
    excess = np.mean([a.option_loss["g"] - b.option_loss["g"] for a, b in zip(own, other, strict=True)])
    assert c.excess("ours", "g", "option_loss").mean == pytest.approx(excess)


def test_sentences():
    def sentence(change, seeds=5, quantity="targets", **more):
        c = compare_measurements(runs({"ours": change, "uniform": 0.0}, seeds, **more), TASKS, TARGETS)
        (found,) = ((d, text) for d, text in zip(c.differences, c.sentences, strict=True) if d.quantity == quantity)
        return found[0].verdict, found[1]

    verdict, text = sentence(-0.1)
    assert verdict == "better"
    assert re.fullmatch(
        r"targets: lower than uniform by 0\.\d{3} nats \(\d\.\d %\), 95 % interval 0\.\d{3} to 0\.\d{3}, p = [\de.-]+",
        text,
    )
    low, high = map(float, re.search(r"interval (0\.\d+) to (0\.\d+)", text).groups())
    assert low < 0.1 < high
    verdict, text = sentence(0.1)
    assert verdict == "worse"
    assert "higher than uniform by" in text
    assert "this mixture loses" in text
    verdict, text = sentence(0.0)
    assert verdict == "no difference"
    assert re.search(r"no difference from uniform found: (lower|higher) by .* interval -0\.\d+ to \+0\.\d+, p = ", text)
    verdict, text = sentence(-0.1, seeds=1)
    assert verdict == "not tested"
    assert "with one seed: no interval" in text
    verdict, text = sentence(-0.1, quantity="target accuracy", accuracy=("g",), noise=False)
    assert verdict == "not tested"
    assert "higher than uniform by 10.0 points with each of 5 seeds: no interval, so nothing is shown" in text
    verdict, text = sentence(0.0, quantity="target accuracy", accuracy=("g",), noise=False)
    assert "the same as uniform with each of 5 seeds" in text
    verdict, text = sentence(-0.1, quantity="target accuracy", accuracy=("g",))
    assert verdict == "better"
    assert "higher than uniform by" in text


def test_correction_can_take_a_difference_away():
    rng = np.random.default_rng(1)
    spread = rng.normal(0, 0.05, 5)
    spread -= spread.mean()
    error = spread.std(ddof=1) / math.sqrt(5)
    shift = 3.2 * error  # two-sided p = 0.033 with 4 degrees of freedom
    alone = [measured("ours", s, x - shift) for s, x in enumerate(spread)] + [measured("uniform", s) for s in range(5)]
    (d,) = (d for d in compare_measurements(alone, TASKS, TARGETS).differences if d.quantity == "targets")
    assert d.verdict == "better"
    twin = [measured("size", s) for s in range(5)]
    for d in compare_measurements([*alone, *twin], TASKS, TARGETS).differences:
        assert d.verdict == "no difference"
        assert d.estimate.high < 0
        assert d.corrected == pytest.approx(2 * d.p_value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r[:0], "no measurement"),
        (lambda r: [*r, r[0]], "Mixture 'ours', seed 0 is measured twice"),
        (
            lambda r: [*r, measured("size", 1, [0, math.nan, 0, 0, 0])],
            "Mixture 'size', seed 1: the loss on set 'h' is nan",
        ),
        (lambda r: [*r, measured("size", 1, [0, 0, 0, math.inf, 0])], "the loss on set 'a' is inf"),
        (lambda r: [*r, Measurement("size", 2, {"a": 1.0})], "Mixture 'size', seed 2 has no loss on set 'b'"),
        (lambda r: [*r, measured("size", 1, accuracy=("g",))], "set 'g' has an accuracy in some runs only"),
        (lambda r: [*r, measured("size", 1, options=("g",))], "set 'g' has a loss of options in some runs only"),
    ],
)
def test_wrong_measurements(change, says):
    with pytest.raises(UserError, match=says):
        compare_measurements(change(runs({"ours": 0.0, "uniform": 0.0})), TASKS, TARGETS)


@pytest.mark.parametrize("weights", [{"g": 1.0}, {"g": -1.0, "h": 1, "i": 1}, {"g": math.nan, "h": 1, "i": 1}, dict.fromkeys("ghi", 0.0), dict.fromkeys("ghij", 1.0)])  # fmt: skip
def test_wrong_weights(weights):
    with pytest.raises(UserError, match="weight"):
        compare_measurements(runs({"ours": 0.0}), TASKS, TARGETS, weights)


def test_false_alarms_stay_below_the_level():
    """Five mixtures that are all alike: some difference is claimed in no more than 5 % of the comparisons."""
    rng = np.random.default_rng(3)
    wrong, draws = 0, 300
    for _ in range(draws):
        found = [Measurement(m, s, {"a": rng.normal()}) for m in "uvwxy" for s in range(5)]
        wrong += any(d.verdict != "no difference" for d in compare_measurements(found, ("a",), ()).differences)
    assert wrong / draws < 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


def test_json_and_table_hold_everything():
    changes = {"taskpgm": -0.1, "uniform": 0.0, "temperature:2": 0.02, "[/b]weights.json": 0.1}
    c = compare_measurements(runs(changes, accuracy=("g", "a"), options=("g", "a")), TASKS, TARGETS)
    data = json.loads(json.dumps(c.to_dict(), allow_nan=False))
    assert data["measurements"][0]["loss"] == c.measurements[0].loss
    assert data["summaries"][1]["averages"]["targets"]["mean"] == c["uniform"].averages["targets"].mean
    assert len(data["differences"]) == len(data["sentences"]) == 3 * 6
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison_view(c))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) < 80
    for name in changes:
        assert name[:8] in text
    assert "temperature:2's worst task: " in text
    for summary in c.summaries:
        for quantity, found in summary.averages.items():
            shown = f"{100 * found.mean:.1f}" if quantity.endswith("accuracy") else f"{found.mean:.3f}"
            assert shown in text
    words = " ".join(text.split())
    assert all(" ".join(sentence.split()) in words for sentence in c.sentences)


ROWS = (144, 288, 576, 1152)


def law(rows, seed=0):
    return 2 + 0.1 * seed + 8 * rows**-0.5


@common
@given(st.lists(st.floats(150, 1100), min_size=2, max_size=5, unique_by=round))
def test_equivalence_on_a_power_law(reached):
    """Every seed has its own level; between sizes that double, a line in log rows is near the law."""
    curve = {rows: {s: law(rows, s) for s in range(len(reached))} for rows in ROWS}
    found = budget_equivalence(curve, {s: law(rows, s) for s, rows in enumerate(reached)})
    assert found.rows == pytest.approx(stats.gmean(reached), rel=0.05)
    assert found.low <= found.rows <= found.high
    assert (found.below, found.beyond, found.seeds) == (0, 0, len(reached))


@common
@given(st.lists(st.floats(150, 1100), min_size=2, max_size=5, unique_by=round))
def test_equivalence_is_exact_where_loss_is_linear_in_log_rows(reached):
    curve = {rows: {s: s - math.log(rows) for s in range(len(reached))} for rows in ROWS}
    found = budget_equivalence(curve, {s: s - math.log(rows) for s, rows in enumerate(reached)})
    logs = t_interval([math.log(rows) for rows in reached])
    assert [math.log(x) for x in (found.rows, found.low, found.high)] == pytest.approx([logs.mean, logs.low, logs.high])


def test_equivalence_outside_what_was_measured():
    curve = {rows: {s: law(rows) for s in range(3)} for rows in ROWS}

    def found(*losses):
        return budget_equivalence(curve, dict(enumerate(losses)))

    beyond = found(1.0, 1.1, 1.2)
    assert (beyond.rows, beyond.low, beyond.high) == (pytest.approx(1152), pytest.approx(1152), math.inf)
    assert beyond.times(288) == ">4x"
    below = found(9, 9, 9)
    assert (below.rows, below.low, below.high) == (pytest.approx(144), 0, pytest.approx(144))
    assert below.times(288) == "<0.5x"
    some = found(law(576), law(576), 1.0)
    assert some.rows == pytest.approx((576 * 576 * 1152) ** (1 / 3))
    assert (some.low, some.high) == (pytest.approx(576), math.inf)
    assert some.times(288) == ">2.5x (1 of 3 seeds outside what was measured)"
    assert found(1.0, 9, law(288)).times(288).startswith("unknown: 1 of 3 seeds below and 1 beyond")
    at_the_ends = found(law(144), law(1152), law(288))  # which were measured themselves
    assert (at_the_ends.below, at_the_ends.beyond) == (0, 0)
    assert budget_equivalence(curve, {0: law(576)}).times(288) == "2x"
    assert re.fullmatch(r"2x \(1\.\d+x to 2\.\d+x\)", found(law(500), law(576), law(650)).times(288))


def test_equivalence_of_a_curve_that_rises():
    """Losses 3, 2, 2.4, 1: with 1,000 rows nobody need do worse than with 100 of them."""
    curve = {10: {0: 3.0}, 100: {0: 2.0}, 1000: {0: 2.4}, 10000: {0: 1.0}}
    for loss, rows in ((2.2, 10**1.8), (2.6, 10**1.4), (1.6, 10**3.4), (3.0, 10)):
        assert budget_equivalence(curve, {0: loss}).rows == pytest.approx(rows)
    harmful = {size: {0: loss} for size, loss in ((144, 2.97), (288, 2.84), (576, 2.82), (1152, 3.01))}
    assert budget_equivalence(harmful, {0: 2.83}).times(288) == "1.4x"
    assert budget_equivalence(harmful, {0: 2.81}).times(288) == ">4x"


def test_equivalence_of_wrong_curves():
    for curve, ours, says in (
        ({1: {0: 1.0}}, {0: 1.0}, "at least two sizes"),
        ({1: {0: 1.0}, 2: {1: 1.0}}, {0: 1.0}, "No seed was measured at every size"),
        ({1: {0: 1.0}, 2: {0: math.nan}}, {0: 1.0}, r"seed 0 \(2 rows\) is nan"),
    ):
        with pytest.raises(UserError, match=says):
            budget_equivalence(curve, ours)
