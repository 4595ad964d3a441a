"""What a run would make, before it makes it; and warm starts that are kept when tasks are added."""

import json
import shutil

import numpy as np
import pytest
from support.heard import Heard
from support.runs import TASKS, experiment

from taskpgm import Scores, load_config, run
from taskpgm.pipeline.outlook import outlook, solves_anew
from taskpgm.pipeline.session import open_session

WARM_PROBES = {"examples": 12, "batch": 4, "learning_rate": 0.01, "lora": {"r": 4, "last_layers": 2}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_folders):
    root = tmp_path_factory.mktemp("warm")
    run(load_config(experiment(root, model_folders["llama"], probes=WARM_PROBES)), root / "out", progress=Heard())
    return root


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def ahead(config, out):
    with open_session(load_config(config), out, Heard()) as session:
        return outlook(session) or solves_anew(session)


def contents(out):
    return {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file() and path.name != ".lock"}


def test_a_finished_run_has_nothing_to_do(copied, model_folders):
    config = experiment(copied, model_folders["llama"], probes=WARM_PROBES)
    before = contents(copied / "out")
    assert ahead(config, copied / "out") == []
    assert contents(copied / "out") == before
    with open_session(load_config(config), copied / "out", Heard()) as session:
        from taskpgm.pipeline.run import run_session

        run_session(session)
        assert session.artifacts.made == set()


@pytest.mark.parametrize("more", [{"energy": {"prior": 0}}, {"export": {"format": "prompt_completion"}}])
def test_a_training_set_of_another_mixture_or_format_is_made_again(more, copied, model_folders):
    from taskpgm.pipeline.run import run_session, solve_run

    config, out = experiment(copied, model_folders["llama"], probes=WARM_PROBES, **more), copied / "out"
    with open_session(load_config(config), out, Heard()) as session:
        solve_run(session)
    before = (out / "train.jsonl").read_bytes()
    assert ahead(config, out) == [("solve", "the training set", "of another mixture or format", 1.0)]
    with open_session(load_config(config), out, Heard()) as session:
        run_session(session)
        assert session.artifacts.made == {"sample"}
    assert (out / "train.jsonl").read_bytes() != before
    assert ahead(config, out) == []


def test_what_is_foretold_is_what_is_made(copied, model_folders):
    """After an edit: the outlook names the stages, and counts the probes and blocks, that the run then makes."""
    out = copied / "out"
    with (copied / "sky.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "a new row?", "completion": "yes"}) + "\n")
    config = experiment(copied, model_folders["llama"], probes=WARM_PROBES)
    before = contents(out)
    steps = ahead(config, out)
    assert contents(out) == before
    assert [(step.stage, step.what, step.why) for step in steps[:-1]] == [
        ("pool", "rows of all sets", "data of 'sky' changed"),
        ("warm start", "the warm start", "training rows of 'sky' changed"),
        ("probe", "2 of 3 probes: sums, words", "warm start changed"),
        ("probe", "the probe of sky", "training rows, warm start changed"),
    ]
    assert steps[-1].stage == "score"
    heard = Heard()
    with open_session(load_config(config), out, heard) as session:
        from taskpgm.pipeline.run import run_session

        run_session(session)
        assert {"pool", "probe", "score"} <= session.artifacts.made
    assert heard.totals["training probes"] == 3 * round(3 * sum(s.share for s in steps if s.stage == "probe"))
    assert heard.totals["scoring"] == 6 * 4 * 4 * sum(s.share for s in steps if s.stage == "score")
    assert ahead(config, out) == []


def test_a_run_from_nothing_and_other_settings_of_the_mixture(copied, model_folders, tmp_path):
    config = experiment(copied, model_folders["llama"], probes=WARM_PROBES)
    steps = ahead(config, tmp_path / "new")
    assert [(step.stage, step.why, step.share) for step in steps] == [
        ("pool", "missing", 1.0), ("warm start", "missing", 1.0), ("probe", "missing", 1.0), ("score", "missing", 1.0)
    ]  # fmt: skip
    config = experiment(copied, model_folders["llama"], probes=WARM_PROBES, energy={"prior": 3.0})
    assert [step.stage for step in ahead(config, copied / "out")] == ["solve"]


def test_scores_that_were_removed_are_foretold(copied):
    (copied / "out" / "scores.npz").unlink()
    assert [(step.stage, step.why) for step in ahead(copied / "mix.yaml", copied / "out")] == [("score", "missing")]


def test_a_warm_start_is_kept_when_a_task_is_added(copied, model_folders, tmp_path):
    """Only the new probe is trained, from the old warm start; its scores equal those of training it so by itself."""
    out = copied / "out"
    config = experiment(copied, model_folders["llama"], (*TASKS, "more"), probes=WARM_PROBES)
    steps = ahead(config, out)
    assert [(step.stage, step.what) for step in steps[:2]] == [
        ("pool", "rows of all sets"),
        ("probe", "the probe of more"),
    ]
    old = Scores.load(out / "scores.npz")
    warm = (out / "warm" / "adapter_model.safetensors").read_bytes()
    heard = Heard()
    result = run(load_config(config), out, progress=heard)
    assert heard.totals["training probes"] == 3
    assert (out / "warm" / "adapter_model.safetensors").read_bytes() == warm
    assert any("the warm start is kept: it was trained without 'more'" in said for said in heard.said)
    new = result.scores
    columns = np.isin(new.context_set[new.context], [new.sets.index(name) for name in old.sets])
    rows = [0, *(1 + new.tasks.index(name) for name in old.tasks)]
    np.testing.assert_allclose(new.logp[rows][:, columns], old.logp, atol=1e-5)  # in other batches
    assert ahead(config, out) == []

    fresh = {**WARM_PROBES, "freeze_warm_start": False}
    config = experiment(copied, model_folders["llama"], (*TASKS, "more"), probes=fresh)
    assert [step.stage for step in ahead(config, out)] == ["warm start", "probe", "score"]
    run(load_config(config), out, progress=Heard())
    run(load_config(config), tmp_path / "fresh", progress=Heard())
    assert (out / "mixture.json").read_bytes() == (tmp_path / "fresh" / "mixture.json").read_bytes()


def test_a_task_that_leaves_or_changes_takes_the_warm_start_with_it(copied, model_folders):
    config = experiment(copied, model_folders["llama"], TASKS[:2], probes=WARM_PROBES)
    assert "warm start" in [step.stage for step in ahead(config, copied / "out")]


def test_positions_cut_the_contexts_and_nothing_else(copied, model_folders, tmp_path):
    """The first label of every context under the same probes, as the whole contexts have it."""
    config = experiment(
        copied, model_folders["llama"], probes=WARM_PROBES, contexts={"per_set": 6, "validation": 3, "positions": 1}
    )
    assert [step.stage for step in ahead(config, copied / "out")] == ["score"]
    whole = Scores.load(copied / "out" / "scores.npz")
    cut = run(load_config(config), copied / "out", progress=Heard()).scores
    np.testing.assert_allclose(cut.logp, whole.logp[:, whole.position == 0], atol=1e-5)
