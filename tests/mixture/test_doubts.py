"""Small samples: what a simulation shows of them, and what is said."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from support.finished import finished_run
from support.numerics import names, random_truth, synthetic_scores

from taskpgm import load_run
from taskpgm.config import EnergyConfig
from taskpgm.config_file import parse_config
from taskpgm.mixture.doubts import FEW_CONTEXTS, falling, few_contexts, half_width, more_contexts, unfinished_probes
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.solve import solve_mixture
from taskpgm.scores import Scores

TASKS, TARGETS = 4, 2


def skewed_scores(seed, contexts):
    """Contexts whose losses differ by exponential amounts, as hard and easy questions do; one token each."""
    rng = np.random.default_rng(seed)
    truth = random_truth(np.random.default_rng(0), TASKS, TARGETS)
    context_set = np.repeat(np.arange(TASKS + TARGETS), contexts)
    logp = truth[:, context_set] - (rng.exponential(size=(TASKS + 1, len(context_set))) - 1)
    each = np.arange(len(context_set))
    groups = np.tile(np.arange(contexts) % min(16, contexts), TASKS + TARGETS)
    zero = np.zeros_like(each)
    return Scores(
        names(TASKS), names(TASKS) + names(TARGETS, "g"), logp, each, zero, zero, context_set, groups
    )  # fmt: skip


def intervals(contexts, draws=60):
    """(draws, tasks, 2) of the mixture's weights, and the weights that many contexts give."""
    found = []
    for seed in range(draws):
        mixture = solve_mixture(build_energy(skewed_scores(seed + 1, contexts), None, EnergyConfig()))
        found.append(mixture.interval)
    return np.array(found)


def test_below_eight_contexts_the_width_of_an_interval_is_luck():
    """The 95 % and 5 % quantiles over draws of the intervals' width are far apart below, and not from eight on."""
    ratios = {}
    for contexts in (3, FEW_CONTEXTS - 2, FEW_CONTEXTS, 16):
        found = intervals(contexts)
        low, high = np.quantile(found[..., 1] - found[..., 0], [0.05, 0.95], axis=0)
        ratios[contexts] = float(np.mean(high / low))
    assert ratios[3] > ratios[FEW_CONTEXTS - 2] > ratios[FEW_CONTEXTS] > ratios[16]
    assert ratios[3] > 5
    assert ratios[16] < 3.5


def test_what_is_said_of_few_contexts_is_what_normal_contexts_do():
    rng = np.random.default_rng(0)
    for contexts, said in ((3, "7.6 times"), (6, "3.1 times")):
        widths = rng.normal(size=(40_000, contexts)).std(axis=1, ddof=1)
        low, high = np.quantile(widths, [0.05, 0.95])
        assert high / low == pytest.approx(float(said.split()[0]), rel=0.03)
        assert said in few_contexts(contexts)
        assert f"{1 - half_width(16) / half_width(contexts):.0%}" in few_contexts(contexts)
    values = rng.normal(size=9)
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    assert half_width(9) * values.std(ddof=1) == pytest.approx((high - low) / 2)
    assert few_contexts(FEW_CONTEXTS) is None
    assert "no verdict" in few_contexts(1)


@pytest.mark.parametrize(("tasks", "targets", "said"), [(4, 16, None), (16, 4, "4 contexts a set are few")])
def test_what_is_doubted_of_a_run_is_what_its_intervals_rest_on(tasks, targets, said, tmp_path):
    """As many groups as a target has contexts, however few the tasks have."""
    folder = finished_run(tmp_path / "run", n=6, targets=2, contexts=16)
    scores = synthetic_scores(np.random.default_rng(1), n=6, targets=2, contexts=[tasks] * 6 + [targets] * 2)
    replace(scores, tasks=load_run(folder).scores.tasks, sets=load_run(folder).scores.sets).save(folder / "scores.npz")
    found = [doubt for doubt in load_run(folder).doubts if "contexts" in doubt]
    assert len(found) == (said is not None)
    assert all(doubt.startswith(said) for doubt in found)


@pytest.mark.parametrize(
    ("contexts", "targets", "remedy"),
    [
        ({"per_set": 4}, 1, "contexts.per_set: 16"), ({"per_set": 4}, 0, "contexts.per_set: 16"),
        ({"per_target": 4}, 1, "contexts.per_target: 16"), ({"total": 12}, 0, "contexts.total: 48"),
        ({"total": 12, "per_set": 4}, 1, "contexts.per_set: 16"),
    ],
)  # fmt: skip
def test_the_remedy_is_the_setting_that_gives_sixteen(contexts, targets, remedy):
    data = {
        "tasks": [{"name": name, "path": "x"} for name in "abc"], "budget": {"examples": 9},
        "targets": [{"name": "t", "path": "x"}][:targets], "contexts": contexts,
    }  # fmt: skip
    assert more_contexts(parse_config(data)) == remedy
    name, value = remedy.removeprefix("contexts.").split(": ")
    mended = parse_config(data | {"contexts": contexts | {name: int(value)}})
    assert (mended.target_contexts if targets else mended.task_contexts).per_set == 16


def test_probes_whose_loss_still_falls_are_named_and_others_are_not():
    rng = np.random.default_rng(1)
    steps = np.arange(30)
    falls = {name: 2 - 0.03 * steps + 0.1 * rng.normal(size=30) for name in "abcdef"}
    flat = {name: 1 + np.exp(-steps) + 0.1 * rng.normal(size=30) for name in "abcdef"}
    for curves in (falls, flat):
        mean, p = falling(curves)
        drops = [curve[10:20].mean() - curve[20:].mean() for curve in curves.values()]
        oracle = stats.ttest_1samp(drops, 0, alternative="greater")
        assert (mean, p) == pytest.approx((np.mean(drops), oracle.pvalue))
    said = unfinished_probes(falls, "probes.examples", 96, 32.4)
    assert "by 0.30 of 1.5" in said
    assert "probes.examples: 192 would double the 32 s" in said
    assert unfinished_probes(flat, "probes.examples", 96, 32.4) is None
    assert falling({"a": [3.0, 2.0, 1.0]}) is None
    assert falling({"a": [3.0, 2.0], "b": [3.0, 2.0]}) is None
    assert unfinished_probes({}, "probes.examples", 96, 0.0) is None
