"""Ctrl-C and a killed driver, from the command line: what ends, what is kept, and that the next run goes on."""

import json

import pytest
from support.drivers import Driver, until
from support.runs import experiment

torch = pytest.importorskip("torch")
from taskpgm.workers.processes import possible  # noqa: E402

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not possible(), reason="processes are forked on Linux alone"),
]
TASKS = ("sums", "sky", "words", "more", "most", "last")
FILES = ("mixture.json", "train.jsonl")


def prepared(folder, model, backend):
    """An experiment whose six probes take some seconds."""
    probes = {"examples": 120, "batch": 2, "learning_rate": 0.001, "lora": {"r": 4}, "warm_start": False}
    workers = {"backend": backend} | ({} if backend == "serial" else {"count": 2})
    return experiment(folder, model, TASKS, probes=probes, workers=workers)


def finished(out):
    """Files of finished probes, and when each was written."""
    return {path: path.stat().st_mtime_ns for key in keys(out) for path in key.parent.iterdir()}


def keys(out):
    """One for each probe that is finished."""
    return list(out.glob("adapters/[!.]*/key.json"))


def stopped_between_probes(config, out, log):
    driver = Driver("run", config, "--out", out, log=log)
    until(lambda: finished(out) or driver.process.poll() is not None, 180, "a probe")
    assert driver.process.poll() is None, log.read_text()
    assert len(driver.started()) >= 2
    return driver


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory, model_folders):
    out = tmp_path_factory.mktemp("in-turn")
    driver = Driver("run", prepared(out, model_folders["llama"], "serial"), "--out", out / "run", log=out / "log")
    assert driver.ended()[0] == 0
    return out / "run"


@pytest.mark.parametrize("stop", ["interrupt", "kill"])
@pytest.mark.parametrize("backend", ["local", "ray"])
def test_no_worker_outlives_its_driver_and_the_next_run_goes_on(backend, stop, tmp_path, model_folders, in_turn):
    config, out = prepared(tmp_path, model_folders["llama"], backend), tmp_path / "run"
    driver = stopped_between_probes(config, out, tmp_path / "first")
    getattr(driver, stop)()
    code, said = driver.ended()
    until(lambda: not driver.started(), 30, f"the end of {driver.started()}")
    before = finished(out)
    assert 0 < len(keys(out)) < len(TASKS)
    if stop == "interrupt":
        assert code == 130
        assert "Traceback" not in said
        sentence = said.splitlines()[-1]
        assert sentence.startswith(f"Stopped: Kept in {out}: ")
        assert f"{len(list(out.glob('adapters/*/key.json')))} of 6 probes" in sentence
    code, said = Driver("run", config, "--out", out, log=tmp_path / "second").ended()
    assert code == 0, said
    assert before.items() <= finished(out).items()
    for name in FILES:
        assert (out / name).read_bytes() == (in_turn / name).read_bytes(), name
    assert json.loads((out / "manifest.json").read_text())["stages"].keys() >= {"probe", "score", "solve", "sample"}
