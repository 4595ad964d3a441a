"""What was chosen by other rows, probes or settings than a run directory has now is never handed on."""

import json
import os
import shutil

import pytest
from safetensors.torch import load_file, save_file
from support.models import make_model
from support.runs import experiment, write_rows

from taskpgm import files, load_config, load_run, run
from taskpgm.config import ModelConfig
from taskpgm.errors import UserError
from taskpgm.evaluation.settings import CompareOptions
from taskpgm.lm.checkpoint import model_fingerprint
from taskpgm.pipeline.finished import export_run
from taskpgm.pipeline.run import compare_mixtures, select_run, solve_run
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import make_pool, make_probes, make_scores
from taskpgm.progress import Progress


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_folders):
    """A run with a selection."""
    root = tmp_path_factory.mktemp("finished")
    config = load_config(experiment(root, model_folders["llama"]))
    run(config, root / "out", Progress())
    with open_session(config, root / "out", Progress()) as session:
        select_run(session, 2)
    return root


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def change(folder, **settings):
    """The experiment with other settings."""
    config = folder / "mix.yaml"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return load_config(config)


def made(config, out, until="probe"):
    """As `taskpgm probe` or `score`, or a run that was killed after that stage."""
    with open_session(config, out, Progress()) as session:
        pool = make_pool(session)
        if until != "pool":
            make_probes(session, pool)
        if until == "score":
            make_scores(session, pool)


def readers(copied):
    """What reads the mixtures of a run, by the command that makes them anew."""
    out = copied / "out"
    return [
        ("run", lambda: load_run(out).mixture),
        ("run", lambda: load_run(out).affinity),
        ("run", lambda: export_run(out, "trl", copied / "export")),
        ("select", lambda: load_run(out / "selections" / "k2").mixture),
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("until", ["pool", "probe", "score"])
def test_what_was_chosen_by_other_rows_is_not_handed_on(until, copied):
    out = copied / "out"
    made(load_config(copied / "mix.yaml"), out, until)  # nothing has changed
    for _, read in readers(copied):
        read()
    shutil.rmtree(copied / "export")

    (copied / "sums.jsonl").unlink()
    write_rows(copied / "sums.jsonl", "other", 40)
    config = load_config(copied / "mix.yaml")
    made(config, out, until)
    for command, read in readers(copied):
        with pytest.raises(UserError, match=rf"not up to date \(rows.*run `taskpgm {command}`"):
            read()
    if until == "score":
        assert len(load_run(out).scores.tasks) == 3
    else:
        with pytest.raises(UserError, match=r"scores.* not up to date \(.*contexts.*run `taskpgm run`"):
            _ = load_run(out).scores
    result = run(config, out, Progress())
    assert load_run(out).mixture.shares == result.mixture.shares
    assert load_run(out).scores.tasks == result.scores.tasks


@pytest.mark.parametrize(
    "settings", [{"budget": {"examples": 60}}, {"energy": {"prior": 3}}, {"affinity": {"kind": "pmi"}}]
)
def test_what_was_chosen_by_other_settings_is_not_handed_on(settings, copied):
    config, out = change(copied, **settings), copied / "out"
    made(config, out)
    for command, read in readers(copied):
        with pytest.raises(UserError, match=rf"not up to date \(settings\).*run `taskpgm {command}`"):
            read()
    assert load_run(out).scores.tasks  # of the same probes and contexts
    with open_session(config, out, Progress()) as session:
        solve_run(session)
        select_run(session, 2)
    assert len(load_run(out).plan) == len(load_run(out / "selections" / "k2").plan) == config.budget.size


def test_fewer_probes_than_before_are_other_probes(tmp_path, model_folders):
    probes = {"examples": 12, "batch": 4, "lora": {"r": 2}, "warm_start": False}
    out = tmp_path / "out"
    run(load_config(experiment(tmp_path, model_folders["llama"], probes=probes | {"seeds": 2})), out, Progress())
    config = change(tmp_path, probes=probes | {"seeds": 1})
    made(config, out)
    with pytest.raises(UserError, match=r"mixture.* not up to date \(probes\)"):
        _ = load_run(out).mixture
    with pytest.raises(UserError, match=r"scores.* not up to date \(probes\)"):
        _ = load_run(out).scores
    config = change(tmp_path, probes=probes | {"seeds": 2})
    with open_session(config, out, Progress()) as session:
        solve_run(session)  # scores of two seeds are there, and their probes
    assert load_run(out).doubts is not None
    assert load_run(out).mixture.shares


def test_a_selection_that_was_stopped_is_not_handed_on(copied, monkeypatch):
    out = copied / "out"
    with open_session(load_config(copied / "mix.yaml"), out, Progress()) as session:
        monkeypatch.setattr("taskpgm.pipeline.stages.counted", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            select_run(session, 2)
    with pytest.raises(UserError, match=r"mixture.*k2 is not up to date \(not finished\); run `taskpgm select`"):
        _ = load_run(out / "selections" / "k2").mixture


def test_a_model_is_the_same_wherever_it_lies_and_another_if_one_byte_is(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGE", 1)  # all files are remembered
    first = make_model(tmp_path / "first")
    second = shutil.copytree(first, tmp_path / "second")
    os.utime(second / "model.safetensors", (1e9, 1e9))
    same = [model_fingerprint(ModelConfig(path=str(folder))) for folder in (first, second, first, second)]
    assert len(set(same)) == 1
    weights = load_file(second / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 2] += 1
    save_file(weights, second / "model.safetensors", metadata={"format": "pt"})
    assert model_fingerprint(ModelConfig(path=str(second))) != same[0]


def test_code_that_is_run_is_part_of_the_model(tmp_path):
    folder = make_model(tmp_path)
    (folder / "modeling_x.py").write_text("A = 1\n")
    trusted, other = (ModelConfig(path=str(folder), trust_remote_code=trust) for trust in (True, False))
    before = model_fingerprint(trusted), model_fingerprint(other)
    (folder / "modeling_x.py").write_text("A = 2\n")
    assert model_fingerprint(trusted) != before[0]
    assert model_fingerprint(other) == before[1]


def test_a_damaged_training_is_named(tmp_path, model_folders):
    config = experiment(tmp_path, model_folders["llama"])
    options = CompareOptions(("uniform", "taskpgm"), seeds=1, rows=2, accuracy=False)
    compare_mixtures(load_config(config), tmp_path / "out", options, Progress())
    kept = next((tmp_path / "out" / "compare").glob("*.json"))
    for text in ("{", '{"sets": {}', "{}"):
        kept.write_text(text)
        with pytest.raises(UserError, match=rf"{kept.name} is damaged .* remove it, then `taskpgm compare`"):
            compare_mixtures(load_config(config), tmp_path / "out", options, Progress())
    kept.unlink()
    compare_mixtures(load_config(config), tmp_path / "out", options, Progress())
    assert kept.exists()
