"""A whole experiment on a quantised base, from its files to a trained adapter."""

import json
import math

import pytest
from support.runs import experiment
from typer.testing import CliRunner

from taskpgm import TrainOptions, UserError, load_config, run, train
from taskpgm.cli.main import app


def made(folder, model, **settings):
    """mix.yaml of an experiment on this model."""
    path = experiment(folder, model)
    written = json.loads(path.read_text())
    path.write_text(json.dumps(written | {"model": {**written["model"], "quantization": "nf4", **settings}}))
    return path


def test_a_run_on_a_quantised_base_and_what_follows_it(tmp_path, model_folders):
    paths = [made(tmp_path / str(n), model_folders["llama"], processes=n) for n in (2, 3)]
    for path in paths:
        run(load_config(path), path.parent / "run")
    two, three = ((path.parent / "run" / "mixture.json").read_bytes() for path in paths)
    assert two == three  # a job has one thread, bitsandbytes' too
    called = [
        "compare",
        str(paths[0]),
        "--out",
        str(tmp_path / "2" / "run"),
        "--mixtures",
        "taskpgm,uniform",
        "--seeds",
        "1",
    ]
    done = CliRunner().invoke(app, called)
    assert done.exit_code == 0, done.output
    for command in ([*called, "--method", "full"], ["train", str(tmp_path / "2" / "run"), "--full"]):
        refused = CliRunner().invoke(app, command).exception
        assert isinstance(refused, UserError)
        assert str(refused).startswith("Every weight cannot be trained with model.quantization: nf4; train an adapter")
    trained = train(tmp_path / "2" / "run", tmp_path / "trained", TrainOptions(batch=8))
    assert "linear layers in nf4 (and TRL has the adapter in bfloat16)" in trained.settings["model"]
    assert all(math.isfinite(loss) for loss in trained.losses)
    assert json.loads((trained.folder / "adapter_config.json").read_text())["r"] == 4


def test_another_quantisation_makes_all_again(tmp_path, model_folders):
    folder = tmp_path / "run"
    for quantization, kept in (("int8", False), ("int8", True), ("nf4", False)):
        config = load_config(made(tmp_path, model_folders["llama"], quantization=quantization, processes=1))
        before = folder / "adapters" / "sums" / "adapter_model.safetensors"
        stamp = before.stat().st_mtime_ns if before.exists() else None
        run(config, folder)
        assert (before.stat().st_mtime_ns == stamp) == kept


def test_a_word_that_is_no_quantisation(tmp_path, model_folders):
    with pytest.raises(UserError, match=r"model.quantization: .*'nf4' or 'int8'"):
        load_config(made(tmp_path, model_folders["llama"], quantization="int4"))
