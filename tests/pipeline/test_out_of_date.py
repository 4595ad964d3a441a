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
from taskpgm.pipeline.directory import RunDirectory
from taskpgm.pipeline.run import compare_mixtures, export_run
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import make_pool, make_probes
from taskpgm.progress import Progress


def probed(config, out):
    """As `taskpgm probe`, or a run that was killed after its probes."""
    with open_session(load_config(config), out, Progress()) as session:
        make_probes(session, make_pool(session))


def change(config, **settings):
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_mixture_of_other_rows_or_settings_is_not_handed_on(tmp_path, model_folders):
    config, out = experiment(tmp_path, model_folders["llama"]), tmp_path / "out"
    run(load_config(config), out, Progress())
    assert len(load_run(out).plan) == 50
    probed(config, out)  # nothing has changed
    assert len(load_run(out).plan) == 50

    change(config, budget={"examples": 60})
    probed(config, out)
    with pytest.raises(UserError, match=r"gives other rows than the settings that .* run `taskpgm run`"):
        export_run(out, "trl", tmp_path / "export")
    run(load_config(config), out, Progress())
    assert len(load_run(out).plan) == 60

    (tmp_path / "sums.jsonl").unlink()
    write_rows(tmp_path / "sums.jsonl", "other", 40)
    probed(config, out)
    with pytest.raises(UserError, match=r"newer than its mixture.json; run `taskpgm run`"):
        export_run(out, "trl", tmp_path / "export")
    run(load_config(config), out, Progress())
    assert len(load_run(out).plan) == 60


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


def test_a_remembered_hash_is_that_of_the_content(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"x" * 5000)
    plain = files.file_digest(path)
    monkeypatch.setattr(files, "LARGE", 1)
    assert [files.file_digest(path), files.file_digest(path)] == [plain, plain]
    monkeypatch.setenv("TASKPGM_CACHE", "/proc/nowhere")  # no place to remember it
    assert files.file_digest(path) == plain


def test_code_that_is_run_is_part_of_the_model(tmp_path):
    folder = make_model(tmp_path)
    (folder / "modeling_x.py").write_text("A = 1\n")
    trusted, other = (ModelConfig(path=str(folder), trust_remote_code=trust) for trust in (True, False))
    before = model_fingerprint(trusted), model_fingerprint(other)
    (folder / "modeling_x.py").write_text("A = 2\n")
    assert model_fingerprint(trusted) != before[0]
    assert model_fingerprint(other) == before[1]


def test_what_another_process_writes_below_is_left_and_what_a_killed_one_left_goes(tmp_path):
    with RunDirectory(tmp_path / "run") as directory:
        (directory / "blocks").mkdir()
    old = tmp_path / "run" / "blocks" / f"{files.SCRATCH}1-x"
    own = tmp_path / "run" / ".tmp-of-the-user"
    for path in (old, own):
        path.write_text("x")
    with RunDirectory(tmp_path / "run" / "trained"):
        at_work = tmp_path / "run" / "trained" / f"{files.SCRATCH}2"
        at_work.mkdir()
        RunDirectory(tmp_path / "run").close()
        assert (old.exists(), own.exists(), at_work.exists()) == (False, True, True)
    RunDirectory(tmp_path / "run").close()
    assert not at_work.exists()


def test_a_damaged_training_is_named(tmp_path, model_folders):
    config = experiment(tmp_path, model_folders["llama"])
    options = CompareOptions(("uniform", "taskpgm"), seeds=1, rows=2, accuracy=False)
    compare_mixtures(load_config(config), tmp_path / "out", options, Progress())
    kept = next((tmp_path / "out" / "compare").glob("*.json"))
    for text in ("{", '{"sets": {}', "{}"):
        kept.write_text(text)
        with pytest.raises(UserError, match=rf"{kept.name} is damaged .* remove it"):
            compare_mixtures(load_config(config), tmp_path / "out", options, Progress())
    kept.unlink()
    compare_mixtures(load_config(config), tmp_path / "out", options, Progress())
    assert kept.exists()
