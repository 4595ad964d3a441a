"""Files of a run that something damaged: one sentence, and the run makes again what is removed."""

import shutil

import pytest
from safetensors.torch import load_file, save_file
from support.runs import experiment

from taskpgm import load_config, load_run, run
from taskpgm.errors import UserError
from taskpgm.probes.probe import load_probe
from taskpgm.report.history import read_curves

READERS = {
    "mixture.json": lambda found: found.mixture,
    "scores.npz": lambda found: found.scores,
    "affinity.npz": lambda found: found.affinity,
    "pool/pool.json": lambda found: found.pool,
    "pool/index.npz": lambda found: found.pool,
    "pool/rows-00000.jsonl": lambda found: found.pool,
    "manifest.json": lambda found: found.manifest,
    "adapters/sums/training.json": lambda found: found.doubts,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_folders):
    folder = tmp_path_factory.mktemp("damage")
    config = load_config(experiment(folder, model_folders["llama"]))
    run(config, folder / "run")
    return config, folder / "run"


def damage(path, how):
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "garbage": b"garbage{", "list": b"[1, 2]"}[how])


@pytest.mark.parametrize("how", ["empty", "half", "garbage", "list"])
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named(name, how, finished, tmp_path):
    _, whole = finished
    shutil.copytree(whole, tmp_path / "run")
    damage(tmp_path / "run" / name, how)
    with pytest.raises(UserError, match=rf"run/{name.split('/')[0]}.* is damaged.*remove it"):
        READERS[name](load_run(tmp_path / "run"))


@pytest.mark.parametrize(
    "name", ["mixture.json", "scores.npz", "affinity.npz", "pool", "manifest.json", "overlap.json"]
)
def test_what_is_removed_is_made_again(name, finished, tmp_path):
    config, whole = finished
    again = tmp_path / "run"
    shutil.copytree(whole, again)
    shutil.rmtree(again / name) if (again / name).is_dir() else (again / name).unlink()
    kept = {path: path.stat().st_mtime_ns for path in again.glob("adapters/*/adapter_model.safetensors")}
    run(config, again)
    for one in ("mixture.json", "train.jsonl", "overlap.json"):
        assert (again / one).read_bytes() == (whole / one).read_bytes()
    assert (again / name).exists()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # probes are kept


def test_a_manifest_without_settings_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="manifest.json is damaged.*remove it"):
        load_run(tmp_path).config  # noqa: B018


@pytest.mark.parametrize("how", ["half", "list"])
def test_a_damaged_mixture_is_replaced_by_a_run(how, finished, tmp_path):
    config, whole = finished
    shutil.copytree(whole, tmp_path / "run")
    damage(tmp_path / "run" / "mixture.json", how)
    run(config, tmp_path / "run")
    assert (tmp_path / "run" / "mixture.json").read_bytes() == (whole / "mixture.json").read_bytes()


@pytest.mark.parametrize("how", ["half", "removed"])
def test_a_damaged_record_of_a_probe_is_named_and_the_remedy_helps(how, finished, tmp_path):
    config, whole = finished
    out = shutil.copytree(whole, tmp_path / "run")
    record = out / "adapters" / "sums" / "training.json"
    record.unlink() if how == "removed" else damage(record, how)
    readers = [lambda: read_curves(out), lambda: load_probe(out / "adapters" / "sums", "sums")]
    for read in (lambda: run(config, out), *(readers if how == "half" else [])):
        with pytest.raises(UserError, match=r"adapters/sums is damaged.*remove it, then `taskpgm run`"):
            read()
    shutil.rmtree(out / "adapters" / "sums")
    run(config, out)
    assert load_probe(out / "adapters" / "sums", "sums").losses


def not_finite(file):
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("how", [lambda file: damage(file, "half"), not_finite, lambda file: file.unlink()])
def test_damaged_weights_of_a_probe_are_named_and_the_remedy_helps(how, finished, tmp_path):
    config, whole = finished
    out = shutil.copytree(whole, tmp_path / "run")
    how(out / "adapters" / "sums" / "adapter_model.safetensors")
    shutil.rmtree(out / "blocks")
    (out / "scores.npz").unlink()
    with pytest.raises(UserError, match=r"adapters/sums is damaged \(.*\); remove it, then `taskpgm run`"):
        run(config, out)
    shutil.rmtree(out / "adapters" / "sums")
    run(config, out)
    for name in ("adapters/sums/adapter_model.safetensors", "mixture.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
