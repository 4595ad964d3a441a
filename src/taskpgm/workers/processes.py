"""Workers that are processes of this machine: forked ones of one core each, and spawned ones of a GPU each.

On a CPU the tensors of one training are too small to keep several cores busy: two trainings on a core each take less
time than two in turn on both. Forked processes share the model's memory; a fork must not start threads again after its
parent had some, hence one core each. Beside a GPU nothing can be forked: spawned processes load the model themselves.
"""

import contextlib
import ctypes
import math
import multiprocessing
import os
import pickle
import platform
import signal
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import torch

from taskpgm.progress import Progress
from taskpgm.system import BESIDE, Clock, resident_memory, total_memory
from taskpgm.workers.desk import Desk, Sent, Threads, portable
from taskpgm.workers.dispatch import Do, Event, Job, Work

PR_SET_PDEATHSIG = 1  # Linux: a signal for the child when its parent has ended


def possible() -> bool:
    """Whether processes may be forked: on Linux, whose libraries expect it, and not beside a GPU's threads."""
    return sys.platform == "linux" and not torch.accelerator.is_available()


def processes_for(memory: float) -> int:
    """Processes that may work side by side here, each of which takes about `memory` bytes: one a core (a thread of
    torch's), in half of the machine's memory."""
    if not possible():
        return 1
    return max(1, min(torch.get_num_threads(), math.floor(total_memory() / 2 / memory)))


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Within, torch keeps to so many threads; to those it has if None."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Crew(ABC):
    """Processes, each at the other end of a pipe."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.processes: dict[Connection, Any] = {}

    def ready(self, wanted: int) -> list[Connection]:
        """More processes, up to the count; those that are lost are replaced."""
        missing = min(self.count, wanted) - len(self.processes)
        return [self.start() for _ in range(max(0, missing))]

    @abstractmethod
    def start(self) -> Connection:
        """Another process."""

    def heard(self) -> list[Event]:
        """One message of every process that has some."""
        return [self._received(cast(Connection, pipe)) for pipe in wait(list(self.processes))]

    def place(self, worker: Connection) -> str:
        """The machine."""
        return platform.node() or "this machine"

    def drop(self, worker: Connection) -> None:
        """End a process, one that hangs too."""
        if process := self.processes.pop(worker, None):
            process.kill()
            process.join()
            BESIDE.ended(process.pid)

    def end(self) -> None:
        """End all of them."""
        for worker in list(self.processes):
            self.drop(worker)

    def _received(self, pipe: Connection) -> Event:
        try:
            kind, value = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            process = self.processes.pop(pipe)
            process.join()
            BESIDE.ended(process.pid)
            return Event(pipe, "lost", f"exit code {process.exitcode}; -9: killed")
        if kind == "result":
            value, taken = value
            BESIDE.told(self.processes[pipe].pid, taken)
        return Event(pipe, kind, value)


class Forked(_Crew):
    """Processes that share this one's memory, and end with their jobs."""

    def __init__(self, do: Do, jobs: Sequence[Job], count: int) -> None:
        super().__init__(count)
        self.do = do
        self.jobs = jobs

    def start(self) -> Connection:
        """A fork."""
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(
            target=_serve_forked, args=(self.do, self.jobs, there, [here, *self.processes]), daemon=True
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads: none of them is used again
            process.start()
        there.close()
        self.processes[here] = process
        return here

    def give(self, worker: Connection, job: int) -> None:
        """Its number is enough."""
        with contextlib.suppress(BrokenPipeError):  # heard as lost
            worker.send(job)


class Spawned(_Crew):
    """Processes with a tool of their own, kept for all work of a run: one a device.

    Args:
        opening: loads the tool.
        environments: of every process, what is set in its environment: which device it sees.
    """

    def __init__(self, opening: Callable[[], Any], environments: Sequence[Mapping[str, str]]) -> None:
        super().__init__(len(environments))
        self.opening = opening
        self.environments = environments
        self.used: dict[Connection, int] = {}
        self.idle: list[Connection] = []

    def begin(self, key: Any, work: Work, jobs: Sequence[Job], threads: Threads) -> None:
        """What follows are jobs of this work."""
        self.key, self.work, self.jobs, self.threads = key, pickle.dumps(work), jobs, threads
        self.has: set[Connection] = set()
        self.idle = list(self.processes)

    def ready(self, wanted: int) -> list[Connection]:
        """Those of the work before first."""
        known, self.idle = self.idle, []
        return [*known, *super().ready(wanted)]

    def start(self) -> Connection:
        """A process on a device that no other one has."""
        slot = min(set(range(self.count)) - {self.used[pipe] for pipe in self.processes})
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_serve_spawned, args=(self.opening, there, os.getpid()), daemon=True
        )
        with _environment(self.environments[slot]):
            process.start()
        there.close()
        self.processes[here], self.used[here] = process, slot
        return here

    def give(self, worker: Connection, job: int) -> None:
        """With the work, if it is new there."""
        work = None if worker in self.has else self.work
        self.has.add(worker)
        with contextlib.suppress(BrokenPipeError):  # heard as lost
            worker.send_bytes(pickle.dumps((self.key, work, self.jobs[job].data, self.threads)))

    def place(self, worker: Connection) -> str:
        """Machine and device."""
        device = ", ".join(self.environments[self.used[worker]].values())
        return f"{super().place(worker)}{' device ' + device if device else ''}"


@contextlib.contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    """Within, a process that is started has these in its environment."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops this process
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # and takes it along, with the directory's lock


def _serve_forked(do: Do, jobs: Sequence[Job], pipe: Connection, inherited: Sequence[Connection]) -> None:
    """In the new process: do the jobs whose numbers come, until the parent is gone."""
    _end_with_parent()
    for other in inherited:  # an end kept open here would hide that the parent is gone
        other.close()
    torch.set_num_threads(1)
    _serve(pipe, lambda progress: do(jobs[pipe.recv()].data, progress))


def _serve_spawned(opening: Callable[[], Any], pipe: Connection, parent: int) -> None:
    _end_with_parent()
    if os.getppid() != parent:
        return
    desk = Desk(opening, platform.node() or "this machine")

    def one(progress: Progress) -> Any:
        key, work, data, count = pickle.loads(pipe.recv_bytes())
        return desk.do(key, lambda: cast(Work, pickle.loads(work)), data, count, progress)

    _serve(pipe, one)


def _serve(pipe: Connection, one: Callable[[Progress], Any]) -> None:
    clock, before = Clock(), resident_memory()

    def send(kind: str, value: Any) -> None:
        # Plain pickle: multiprocessing's own would hand tensors over in shared memory, of which containers have little.
        pipe.send_bytes(pickle.dumps((kind, value)))

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            try:
                result = one(Sent(send))
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                send("error", portable(error))
                return
            send("result", (result, clock.peak() - before))
