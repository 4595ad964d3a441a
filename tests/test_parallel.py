"""Work in processes against the same work in turn."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from support.heard import Heard

from taskpgm.config import ModelConfig
from taskpgm.errors import UserError
from taskpgm.lm.loading import load_model
from taskpgm.parallel import possible, processes_for, side_by_side
from taskpgm.system import BESIDE, Clock, available_memory, total_memory

pytestmark = pytest.mark.skipif(not possible(), reason="processes are forked on Linux alone")
MEMORY = 1 << 20


def product(size, progress):
    progress.advance()
    progress.say(f"size {size}")
    draw = torch.randn(size, size, generator=torch.Generator().manual_seed(size))
    return size, draw @ draw, torch.get_num_threads(), os.getpid()


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_results_are_those_of_work_in_turn(processes):
    heard = Heard()
    with heard.stage("products", 3):
        found = list(side_by_side(product, [3, 50, 200], processes, MEMORY, heard))
    assert sorted(size for size, *_ in found) == [3, 50, 200]
    for size, result, *_ in found:
        torch.testing.assert_close(result, product(size, Heard())[1], atol=1e-3, rtol=1e-4)
    assert heard.done == {"products": 3}
    assert sorted(heard.said) == ["size 200", "size 3", "size 50"]
    assert all((pid == os.getpid()) == (processes == 1) for *_, pid in found)
    assert not BESIDE.of_process


def test_a_result_does_not_depend_on_how_many_are_made_or_how_much_memory_is_left():
    before = torch.get_num_threads()
    many = {size: result for size, result, *_ in side_by_side(product, [100, 301], 2, MEMORY, Heard())}
    for items, memory in (([301], MEMORY), ([100, 301], 1e18)):
        for size, result, threads, pid in side_by_side(product, items, 2, memory, Heard()):
            assert torch.equal(result, many[size])
            assert (threads, pid) == (1, os.getpid())
    assert torch.get_num_threads() == before


def test_an_error_of_the_work_is_raised_and_the_others_are_stopped():
    def work(item, progress):
        if item == 1:
            raise UserError("item 1 is wrong; mend it.")
        time.sleep(60)

    started = time.monotonic()
    with pytest.raises(UserError, match="item 1 is wrong"):
        list(side_by_side(work, [0, 1], 2, MEMORY, Heard()))
    assert time.monotonic() - started < 30
    assert not multiprocessing.active_children()


def test_a_killed_process_is_told_with_a_remedy():
    def work(item, progress):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match=r"exit code -9 .* model.processes"):
        list(side_by_side(work, [0, 1], 2, MEMORY, Heard()))


def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    def work(item, progress):
        (tmp_path / str(item)).write_text(str(os.getpid()))
        time.sleep(60)

    parent = os.fork()
    if parent == 0:
        list(side_by_side(work, [0, 1], 2, MEMORY, Heard()))
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
    def work(size, progress):
        return len(bytearray(b"x" * size))

    clock = Clock()
    before = clock.peak()
    list(side_by_side(work, [200 << 20, 200 << 20], 2, MEMORY, Heard()))
    assert clock.peak() - before > 300 << 20


def test_processes_are_as_many_as_memory_and_cores_allow():
    assert 0 < available_memory() <= total_memory()
    assert processes_for(1e18) == 1
    assert processes_for(1) == torch.get_num_threads()


def test_processes_where_there_can_be_none_are_refused(model_folders, monkeypatch):
    monkeypatch.setattr("taskpgm.lm.loading.possible", lambda: False)
    with pytest.raises(UserError, match="model.processes is 2.*leave it out"):
        load_model(ModelConfig(path=str(model_folders["llama"]), processes=2))
