"""The same jobs in turn, in forked and in spawned processes; workers that are lost."""

import os

import numpy as np
import pytest
from support.heard import Heard
from support.jobs import Products, Tool, open_no_tool, open_tool, some_jobs

from taskpgm.config import WorkersConfig
from taskpgm.errors import UserError
from taskpgm.workers.executor import Workers

pytest.importorskip("torch")
BACKENDS = ("serial", "forked", "spawned")


def workers(backend, opening=open_tool):
    settings = WorkersConfig(backend="serial" if backend == "serial" else "local")
    return Workers(settings, Tool, opening, [{"NTH": "0"}, {"NTH": "1"}] if backend == "spawned" else [])


def results(backend, work, heard, sizes=(3, 50, 200)):
    one = workers(backend)
    try:
        with heard.stage("products", len(sizes)):
            return {name: rest for name, *rest in one.map(work, some_jobs(sizes), heard)}
    finally:
        one.end()


@pytest.fixture(scope="module")
def in_turn():
    return results("serial", Products(), Heard())


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_bit_for_bit_those_of_work_in_turn(backend, in_turn):
    heard = Heard()
    found = results(backend, Products(), heard)
    assert found.keys() == in_turn.keys()
    for name, (product, threads, pid) in found.items():
        np.testing.assert_array_equal(product, in_turn[name][0])
        assert threads == 1
        assert (pid == os.getpid()) == (backend == "serial")
    assert heard.done == {"products": 3}
    assert max(heard.shared, default=1) == (1 if backend == "serial" else 2)
    assert sorted(heard.said) == ["size 200", "size 3", "size 50"]


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_job_of_a_lost_worker_is_done_again(backend, in_turn, tmp_path):
    heard = Heard()
    found = results(backend, Products(("job50", "job3"), 2, str(tmp_path)), heard)
    assert {name: product.tolist() for name, (product, *_) in found.items()} == {
        name: product.tolist() for name, (product, *_) in in_turn.items()
    }
    assert sum("was lost" in said for said in heard.said) == 4
    assert heard.done == {"products": 3}  # what a lost worker had done is not counted


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_job_that_is_lost_three_times_ends_in_one_sentence(backend, tmp_path):
    with pytest.raises(UserError, match=r"job50 was lost with 3 workers, the last on .*exit code 9"):
        results(backend, Products(("job50",), 9, str(tmp_path)), Heard())


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_of_a_job_is_raised_as_it_is(backend):
    with pytest.raises(UserError, match="^job50 is wrong; mend it.$"):
        results(backend, Products(wrong="job50"), Heard())


def test_a_worker_without_a_model_says_where_it_is():
    one = workers("spawned", open_no_tool)
    with pytest.raises(UserError, match="^On .*: there is no model here"):
        list(one.map(Products(), some_jobs(), Heard()))
    one.end()


def test_spawned_workers_stay_for_the_next_work():
    one = workers("spawned")
    pids = [{rest[-1] for _, *rest in one.map(Products(seconds=0.2), some_jobs(), Heard())} for _ in range(2)]
    assert pids[0] == pids[1]
    one.end()


def test_settings_of_ray_are_refused_elsewhere():
    with pytest.raises(ValueError, match="gpus is for backend ray alone"):
        WorkersConfig(backend="local", gpus=0.5)
