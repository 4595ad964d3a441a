"""`mapped`: results of independent work on plain data, in their order, in processes of one core each.

Nothing here needs torch. Processes are forked, so that work and items need no pickling, and results come back by it.
"""

import contextlib
import ctypes
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from taskpgm.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
PR_SET_PDEATHSIG = 1  # Linux: a signal for the child when its parent has ended

_inherited: list[Any] = []  # work and items of the processes that are being forked


def mapped(work: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Iterator[Result]:
    """`work` of every item in order; in this process if one is asked for, or the system does not fork.

    Raises:
        UserError: a process was killed, as systems do when memory runs out.
    """
    count = min(processes, len(items))
    if count < 2 or sys.platform != "linux":
        yield from map(work, items)
        return
    _inherited[:] = [work, items]
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), _begin)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads: none of them is used again
            running = [pool.submit(_work_on, i) for i in range(len(items))]
        for i in range(len(running)):
            yield running[i].result()
            running[i] = None  # type: ignore[call-overload]  # its result is not kept
    except BrokenProcessPool as error:
        raise UserError(
            "A process that reads or tokenises rows was killed, most often for memory; set model.processes to 1, and "
            "start again."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        _inherited.clear()


def _begin() -> None:
    """In a new process: it ends with its parent, and does not fork or start threads of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops this process
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _work_on(number: int) -> Any:
    work, items = _inherited
    return work(items[number])
