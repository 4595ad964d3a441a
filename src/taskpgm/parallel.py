"""`side_by_side`: results of independent work, in processes of one core each.

On a CPU the tensors of one training are too small to keep several cores busy: two trainings on a core each take less
time than two in turn on both. Processes are forked, so that they share the model's memory; a fork must not start
threads again after its parent had some, hence one core each.
"""

import contextlib
import ctypes
import math
import multiprocessing
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar, cast

import torch

from taskpgm.errors import UserError
from taskpgm.progress import Progress
from taskpgm.system import BESIDE, Clock, available_memory, resident_memory, total_memory

Item = TypeVar("Item")
Result = TypeVar("Result")
PR_SET_PDEATHSIG = 1  # Linux: a signal for the child when its parent has ended


def possible() -> bool:
    """Whether processes may be forked: on Linux, whose libraries expect it, and not beside CUDA's threads."""
    return sys.platform == "linux" and not torch.cuda.is_available()


def processes_for(memory: float) -> int:
    """Processes that may work side by side here, each of which takes about `memory` bytes: one a core (a thread of
    torch's), in half of the machine's memory."""
    if not possible():
        return 1
    return max(1, min(torch.get_num_threads(), math.floor(total_memory() / 2 / memory)))


def side_by_side(
    work: Callable[[Item, Progress], Result], items: Sequence[Item], processes: int, memory: float, progress: Progress
) -> Iterator[Result]:
    """Results of `work` on every item, as they are done.

    With one process in turn, in this process and on all cores. With more each on one core, however few items there are
    or how little memory is left, so that a result does not depend on what is made beside it. What an item's work
    raises is raised here, and the others are stopped.

    Args:
        work: gets an item, and what tells `progress` of its pieces and sentences, from another process too.
        processes: at most so many items are worked on at a time; fewer if memory is short.
        memory: bytes, about, that the work on an item takes.

    Raises:
        UserError: a process was killed, as systems do when memory runs out.
    """
    count = max(1, min(len(items), processes, math.floor(0.8 * available_memory() / memory)))
    if count > 1:
        yield from _in_processes(work, items, count, progress)
        return
    for item in items:
        with one_core() if processes > 1 else contextlib.nullcontext():
            result = work(item, progress)
        yield result


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Within, torch keeps to one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_processes(work: Any, items: Sequence[Any], count: int, progress: Progress) -> Iterator[Any]:
    running: dict[Connection, Any] = {}  # the processes
    numbers = iter(range(len(items)))
    try:
        for _ in range(count):
            pipe, process = _forked(work, items, list(running))
            running[pipe] = process
            pipe.send(next(numbers))
        while running:
            for ready in wait(list(running)):
                pipe = cast(Connection, ready)
                kind, value = _received(pipe, running[pipe])
                if kind == "advance":
                    progress.advance(value)
                elif kind == "say":
                    progress.say(value)
                elif kind == "error":
                    raise value
                else:
                    result, taken = value
                    BESIDE.told(running[pipe].pid, taken)
                    pipe.send(number := next(numbers, None))
                    if number is None:
                        _end(running.pop(pipe))
                    yield result
    finally:
        for process in running.values():
            process.terminate()
            _end(process)


def _end(process: Any) -> None:
    process.join()
    BESIDE.ended(process.pid)


def _forked(work: Any, items: Sequence[Any], others: Sequence[Connection]) -> tuple[Connection, Any]:
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_serve, args=(work, items, there, [here, *others]), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads: none of them is used again
        process.start()
    there.close()
    return here, process


def _serve(work: Any, items: Sequence[Any], pipe: Connection, inherited: Sequence[Connection]) -> None:
    """In the new process: work on the items whose numbers come, until None comes or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops this process
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # and takes it along, with the run directory's lock
    for other in inherited:  # an end kept open here would hide that the parent is gone
        other.close()
    torch.set_num_threads(1)
    clock, before = Clock(), resident_memory()

    def send(kind: str, value: Any) -> None:
        # Plain pickle: multiprocessing's own would hand tensors over in shared memory, of which containers have little.
        pipe.send_bytes(pickle.dumps((kind, value)))

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while (number := pipe.recv()) is not None:
            try:
                result = work(items[number], _Sent(send))
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                send("error", _portable(error))
                return
            send("result", (result, clock.peak() - before))


class _Sent(Progress):
    """In the new process: pieces and sentences go to the parent, whose stage is open."""

    def __init__(self, send: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._open = 1
        self._send = send

    def say(self, sentence: str) -> None:
        self._send("say", sentence)

    def count(self, pieces: int) -> None:
        self._send("advance", pieces)


def _portable(error: Exception) -> Exception:
    """The error, or if it does not survive pickling, one that says the same."""
    with contextlib.suppress(Exception):
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def _received(pipe: Connection, process: Any) -> tuple[str, Any]:
    try:
        kind, value = pickle.loads(pipe.recv_bytes())
    except EOFError:
        process.join()
        raise UserError(
            f"A process of this run ended with exit code {process.exitcode} (-9: killed, most often for memory); set "
            "model.processes to 1 or fewer, and start again: finished work is kept."
        ) from None
    return kind, value
