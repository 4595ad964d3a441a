"""The cost model against counts made another way, and against a run."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.probing import setup
from support.runs import experiment
from torch.utils.flop_counter import FlopCounterMode

from taskpgm import load_config, run
from taskpgm.chat.encoder import ChatEncoder
from taskpgm.config_file import parse_config
from taskpgm.errors import UserError
from taskpgm.lm.engine import Engine
from taskpgm.lm.loading import load_model, skeleton
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import make_pool, recorded_pool
from taskpgm.pool.task_pool import load_tasks
from taskpgm.probes.cache import BASE, WARM
from taskpgm.probes.cost import Place, estimate_run, gpu_part, makespan, spread
from taskpgm.probes.demand import (
    Demand,
    Piece,
    Shape,
    context_tokens,
    count_demand,
    counted_memory,
    model_shape,
    run_tokens,
    scored_rows,
)
from taskpgm.probes.joining import joined_sets
from taskpgm.probes.probe import Probe
from taskpgm.probes.rates import DEVICES, Pace, Rates, Sheet
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
    tokens, responses = np.sum([context_tokens(lm, of_set) for of_set in rows.values()], axis=0)
    last = set(lm.layers[-1].mlp.modules())
    ran = {m: responses if m in last else tokens for m in adapted(lm, shape)}
    updates = 2 * sum(m.in_features * on for m, on in ran.items()) * len(probes)  # addmm_ is not counted
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
    shape = Shape(layer=2e8, layers=32, first=24, width=4096, vocabulary=32000, answering=1.3e8)
    assert shape.training(1000, 400, 10) == pytest.approx(
        2 * 2e8 * 24 * 400 + 4 * (2e8 * 7 + 0.7e8) * 1000 + 4 * (1.3e8 + 4096 * 32000) * 10
    )
    assert shape.scoring(1000, 10, 5) == pytest.approx(
        2 * 2e8 * 24 * 1000 + 5 * (2 * (2e8 * 7 + 0.7e8) * 1000 + 2 * (1.3e8 + 4096 * 32000) * 10)
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


def demand_of(config, lm):
    return count_demand(lm, load_tasks(config, ChatEncoder(lm.tokenizer, config.probes.max_length).lengths), config)


def test_a_model_of_which_only_shapes_are_read_asks_for_as_much(model_folders, tmp_path):
    config = load_config(experiment(tmp_path, model_folders["llama"], affinity={"kind": "jsd"}))
    counted = demand_of(config, skeleton(config.model))
    assert counted == demand_of(config, load_model(config.model))
    run(config, tmp_path / "run")
    adapters = list((tmp_path / "run" / "adapters").glob("*/adapter_model.safetensors"))
    kept = sum(tensor.numel() for path in adapters for tensor in load_file(path).values())
    assert counted.adapters == kept * 8  # float32, kept and carried


class Recorder:
    """Workers that do nothing but keep the jobs they are given."""

    def __init__(self, count):
        self.number, self.jobs = count, []

    def count(self, progress):
        return self.number

    def map(self, work, jobs, progress):
        self.jobs += jobs
        return iter(())


@pytest.mark.parametrize("workers", [1, 2, 3, 64])
def test_jobs_of_scoring_are_those_of_a_run(workers, model_folders, tmp_path):
    config = load_config(experiment(tmp_path, model_folders["llama"]))
    lm = load_model(config.model)
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length)
    pool = load_tasks(config, encoder.lengths)
    demand, contexts = count_demand(lm, pool, config), scored_rows(encoder, pool, config)
    names = [*pool.names, *[WARM] * (demand.warm is not None), *[BASE] * (demand.warm is None)]
    assert len(names) == demand.scored
    probes = [Probe(name, 0, None, {}) for name in names if name != BASE]
    engine = Engine.of(lm)
    engine.__dict__["workers"] = recorder = Recorder(workers)
    of_set = [*(p.name for p in probes), *[BASE] * (BASE in names)]
    joined = joined_sets(pool, config)
    assert len(joined) < len(contexts)
    list(score_sets(engine, contexts, probes, dict.fromkeys(contexts, of_set), joined=joined))
    expected = [
        demand.shape.scoring(
            *context_tokens(lm, [r for part in job.data.parts for r in part.rows]), len(job.data.names)
        )
        for job in recorder.jobs
    ]
    assert sorted(job.operations for job in demand.scoring(workers)) == pytest.approx(sorted(expected))


@given(
    costs=st.lists(st.tuples(st.floats(1e9, 1e12), st.integers(1, 50)), min_size=1, max_size=6),
    workers=st.integers(1, 8),
)
def test_workers_share_the_probes_and_the_warm_start_is_alone(costs, workers):
    shape = Shape(1e6, 4, 2, 8, 100)
    probes = tuple(Piece(*cost) for cost in costs)
    demand = Demand(shape, 2, Piece(3e9, 7), probes, ((100, 10),), 64, 4, 0, len(probes), 0, 0, 0, 0, 0)
    rates = Rates(Pace(2e9, 0.5), Pace(1e9, 0.1), Pace(1e9, 0.0), 1e9, "")
    seconds = spread(demand, rates, workers)
    assert seconds["train the warm start"] == pytest.approx(2 * (3e9 / 2e9 + 7 * 0.5))
    each = [work / 1e9 + 0.1 * steps for work, steps in costs]
    in_turn = spread(demand, rates, 1)["train probes"]
    assert in_turn == pytest.approx(2 * sum(each))
    assert 2 * max(max(each), sum(each) / workers) <= seconds["train probes"] * (1 + 1e-9)
    assert seconds["train probes"] <= in_turn * (1 + 1e-9)


def test_an_estimate_for_a_cluster_that_is_not_there(model_folders, tmp_path):
    config = load_config(experiment(tmp_path, model_folders["llama"]))
    few, many = (estimate_run(config, place=Place(workers, "h100", price=2.5)) for workers in (2, 64))
    assert few.seconds["train probes"] >= many.seconds["train probes"]
    assert many.device_hours == pytest.approx(64 * many.total / 3600)
    assert many.money == pytest.approx(2.5 * many.device_hours)
    assert "not measured" in many.rates
    assert many.elsewhere
    assert many.to_dict()["money"] == many.money
    quick = estimate_run(config, place=Place(quick=True))
    assert quick.tera_operations == estimate_run(config).tera_operations
    with pytest.raises(UserError, match="h1000.*known are.*h100"):
        estimate_run(config, place=Place(device="h1000"))


def test_a_model_that_does_not_fit_is_refused(model_folders, tmp_path, monkeypatch):
    config = load_config(experiment(tmp_path, model_folders["llama"]))
    monkeypatch.setitem(DEVICES, "small", Sheet(1e12, 300e6))
    with pytest.raises(UserError, match="(?i)a worker takes about.*small"):
        estimate_run(config, place=Place(device="small"))


@pytest.mark.parametrize("opened", [make_pool, recorded_pool])
def test_every_command_has_workers_share_a_gpu(opened, model_folders, tmp_path, monkeypatch):
    config = load_config(experiment(tmp_path, model_folders["llama"]))
    monkeypatch.setitem(DEVICES, "small", Sheet(1e12, 1e12))
    with open_session(config, tmp_path / "out") as session:
        make_pool(session)
    with open_session(config, tmp_path / "out") as session:
        assert session.engine.workers.part("small") == 1
        opened(session)
        assert session.engine.workers.part("small") == 0.25


@pytest.mark.parametrize(("parts", "share"), [(0.9, 1.0), (1.2, 1.0), (2.3, 0.5), (3.4, 1 / 3), (1000, 0.25)])
def test_workers_share_a_gpu_if_their_memory_fits(parts, share, model_folders, tmp_path, monkeypatch):
    config = load_config(experiment(tmp_path, model_folders["llama"]))
    lm = skeleton(config.model, torch.device("cuda"), 1e9)
    pool = load_tasks(config, ChatEncoder(lm.tokenizer, config.probes.max_length).lengths)
    needed = counted_memory(lm, pool, config, count_demand(lm, pool, config))
    monkeypatch.setitem(DEVICES, "small", Sheet(1e12, parts * needed))
    assert gpu_part(config, pool, "small") == share
    assert gpu_part(config, pool, "unheard of") == 1


def test_the_table_in_the_docs_is_the_one_that_is_used():
    lines = (Path(__file__).parents[2] / "docs" / "scale.md").read_text().splitlines()
    cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    shown = {cell[0]: (float(cell[1].replace(",", "")), float(cell[2])) for cell in cells if cell[0] in DEVICES}
    assert shown == {name: (sheet.peak / 1e12, sheet.memory / 1e9) for name, sheet in DEVICES.items()}
