"""Processes of this machine: what becomes of them, and how many there may be."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from support.heard import Heard
from support.jobs import Products, Tool, some_jobs

from taskpgm.config import ModelConfig
from taskpgm.errors import UserError
from taskpgm.system import BESIDE, Clock, available_memory, total_memory

torch = pytest.importorskip("torch")
from taskpgm.lm.loading import load_model  # noqa: E402
from taskpgm.workers.dispatch import Job, dispatch  # noqa: E402
from taskpgm.workers.processes import Forked, possible, processes_for  # noqa: E402

pytestmark = pytest.mark.skipif(not possible(), reason="processes are forked on Linux alone")


def forked(do, items, count=2):
    jobs = [Job(f"job {item}", 1.0, item) for item in items]
    crew = Forked(do, jobs, count)
    try:
        yield from dispatch(crew, jobs, Heard())
    finally:
        crew.end()


@pytest.mark.parametrize("memory", [1 << 20, 1e18])
def test_a_result_does_not_depend_on_how_many_are_made_or_how_much_memory_is_left(memory, monkeypatch):
    from taskpgm.config import WorkersConfig
    from taskpgm.workers.executor import Workers

    before = torch.get_num_threads()
    monkeypatch.setattr(Products, "memory", lambda self, tool: memory)
    one = Workers(WorkersConfig(), Tool, Tool)
    (alone,) = one.map(Products(), some_jobs([301]), Heard())
    many = {name: rest for name, *rest in one.map(Products(), some_jobs([100, 301]), Heard())}
    assert (alone[1] == many["job301"][0]).all()
    assert alone[2] == many["job301"][1] == 1
    assert torch.get_num_threads() == before


def test_an_error_of_the_work_is_raised_and_the_others_are_stopped():
    def do(item, progress):
        if item == 1:
            raise UserError("item 1 is wrong; mend it.")
        time.sleep(60)

    started = time.monotonic()
    with pytest.raises(UserError, match="item 1 is wrong"):
        list(forked(do, [0, 1]))
    assert time.monotonic() - started < 30
    assert not multiprocessing.active_children()
    assert not BESIDE.of_process


def test_a_process_that_hangs_is_ended():
    def do(item, progress):
        os.kill(os.getpid(), signal.SIGSTOP)

    job = Job("job", 1.0, 0)
    crew = Forked(do, [job], 1)
    (worker,) = crew.ready(1)
    crew.give(worker, 0)
    pid = crew.processes[worker].pid
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    crew.end()  # a process that is stopped hears no SIGTERM
    assert not multiprocessing.active_children()


def test_a_killed_process_is_told_with_a_remedy():
    def do(item, progress):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match=r"exit code -9.* model.processes"):
        list(forked(do, [0, 1]))


def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    def do(item, progress):
        (tmp_path / str(item)).write_text(str(os.getpid()))
        time.sleep(60)

    parent = os.fork()
    if parent == 0:
        list(forked(do, [0, 1]))
    until(lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "01"))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    until(lambda: not any(alive(int((tmp_path / name).read_text())) for name in "01"))


def until(true):
    for _ in range(200):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("not within 20 s")


def alive(pid):
    """Whether a process runs: one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_memory_of_the_processes_is_counted():
    def do(size, progress):
        return len(bytearray(b"x" * size))

    clock = Clock()
    before = clock.peak()
    list(forked(do, [200 << 20, 200 << 20]))
    assert clock.peak() - before > 300 << 20


def test_processes_are_as_many_as_memory_and_cores_allow():
    assert 0 < available_memory() <= total_memory()
    assert processes_for(1e18) == 1
    assert processes_for(1) == torch.get_num_threads()


def test_processes_where_there_can_be_none_are_refused(model_folders, monkeypatch):
    monkeypatch.setattr("taskpgm.lm.loading.possible", lambda: False)
    with pytest.raises(UserError, match="model.processes is 2.*leave it out"):
        load_model(ModelConfig(path=str(model_folders["llama"]), processes=2))
