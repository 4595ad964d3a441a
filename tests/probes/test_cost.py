"""The cost model against counts made another way, and against a run."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.probing import setup
from support.runs import experiment
from torch.utils.flop_counter import FlopCounterMode

from taskpgm import load_config, run
from taskpgm.config import parse_config
from taskpgm.lm.engine import Engine
from taskpgm.probes.cost import Pace, Shape, context_tokens, estimate_run, makespan, model_shape, run_tokens
from taskpgm.probes.scoring import score_sets
from taskpgm.probes.training import Trainer


@pytest.mark.parametrize("last_layers", [None, 1])
def test_operations_are_those_that_torch_counts(last_layers, model_folders):
    lm, rows, probes = setup(model_folders["llama"], last_layers=last_layers, r=1)
    config = parse_config(
        {"tasks": [{"name": "a", "path": "a"}], "budget": {"examples": 4},
         "probes": {"examples": 4, "batch": 2, "lora": {"r": 1, "last_layers": last_layers}}}
    )  # fmt: skip
    lm = replace(lm, processes=1)  # the counter sees this process
    shape = model_shape(lm, config)
    names = {name: [p.name for p in probes] for name in rows}
    with FlopCounterMode(display=False) as counter:
        list(score_sets(Engine.of(lm), rows, probes, names))
    tokens, responses = context_tokens(lm, rows)
    updates = 2 * sum(m.in_features for m in adapted(lm, shape)) * tokens * len(probes)  # addmm_ is not counted
    expected = shape.scoring(tokens, responses, len(probes)) + updates
    np.testing.assert_allclose(products(counter), expected, rtol=1e-6)
    steps = [rows["sums"], rows["sky"], rows["sums"]]
    with FlopCounterMode(display=False) as counter:
        Trainer(lm, config).train("a", steps)
    run_, *rest = run_tokens(lm, steps)
    # What enters the lowest adapted layer needs no gradient: up to a layer's worth is not run backwards.
    least = shape.training(run_, *rest) - 2 * shape.layer * run_
    most = shape.training(run_, *rest) + 6 * sum(m.in_features + m.out_features for m in adapted(lm, shape)) * run_
    assert least <= products(counter) <= most


def adapted(lm, shape):
    """Linear modules with an update of rank one."""
    return [m for m in lm.layers[shape.first :].modules() if isinstance(m, torch.nn.Linear)]


def products(counter):
    """Operations of matrix products, those of attention (batched) left out."""
    counts = counter.get_flop_counts()["Global"]
    return sum(count for op, count in counts.items() if "bmm" not in str(op))


def test_the_formulas_of_a_large_model():
    shape = Shape(layer=2e8, layers=32, first=24, width=4096, vocabulary=32000)
    assert shape.training(1000, 400, 10) == pytest.approx(
        2 * 2e8 * 24 * 400 + 4 * 2e8 * 8 * 1000 + 4 * 4096 * 32000 * 10
    )
    assert shape.scoring(1000, 10, 5) == pytest.approx(
        2 * 2e8 * 24 * 1000 + 5 * (2 * 2e8 * 8 * 1000 + 2 * 4096 * 32000 * 10)
    )


@given(
    rate=st.floats(1e9, 1e15), step=st.floats(0, 10), operations=st.lists(st.floats(1e9, 1e15), min_size=3, unique=True)
)
def test_a_pace_is_what_trials_were_made_with(rate, step, operations):
    pace = Pace(rate, step)
    assume(max(operations) > 2 * min(operations))
    trials = [(work, 2, pace.seconds(work, 2)) for work in operations]
    found = Pace.fitted(trials)
    for work, steps, seconds in trials:
        assert found.seconds(work, steps) == pytest.approx(seconds, rel=1e-3)


def test_two_trials_do_not_tell_a_step_from_its_operations():
    assert Pace.fitted([(10.0, 2, 5.0), (30.0, 2, 7.0)]) == Pace(40 / 12, 0.0)


@settings(max_examples=50)
@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=5), st.integers(1, 4))
def test_no_plan_of_processes_is_much_shorter(seconds, processes):
    # Graham (1969): longest first is within 4/3 of the best assignment.
    best = min(
        max(sum(s for s, at in zip(seconds, plan, strict=True) if at == p) for p in range(processes))
        for plan in itertools.product(range(processes), repeat=len(seconds))
    )
    assert best * (1 - 1e-9) <= makespan(seconds, processes) <= best * 4 / 3


@pytest.mark.parametrize("warm", [False, True])
def test_an_estimate_counts_what_a_run_does(warm, model_folders, tmp_path):
    config = load_config(experiment(tmp_path, model_folders["llama"], affinity={"kind": "jsd"}))
    config = config.model_copy(update={"probes": config.probes.model_copy(update={"warm_start": warm})})
    found = estimate_run(config)
    run(config, tmp_path / "run")
    stages = json.loads((tmp_path / "run" / "manifest.json").read_text())["stages"]
    assert found.trained_tokens == stages["probe"]["trained_tokens"]
    assert found.scored_tokens == stages["score"]["scored_tokens"]
    stages_ = {"load the model", "read tasks", "train probes", "score contexts", "divergences"}
    assert set(found.seconds) == stages_ | ({"train the warm start"} if warm else set())
    assert all(np.isfinite(value) and value > 0 for value in found.seconds.values())
    size = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert found.disk == pytest.approx(size, rel=1.0)  # a tiny run is mostly headers
    peak = max(stages[name]["peak_memory"] for name in ("probe", "score"))
    assert peak / 2 < found.memory < 3 * peak
