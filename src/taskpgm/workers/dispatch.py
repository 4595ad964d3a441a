"""`dispatch`: jobs to workers, longest first; a job whose worker is lost is done again by another one."""

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from taskpgm.errors import UserError
from taskpgm.progress import Progress

TRIES = 3  # workers that may be lost with the same job


class Job(NamedTuple):
    """One piece of independent work: data that can be pickled."""

    name: str  # in messages
    cost: float  # predicted, in any unit
    data: Any


Do = Callable[[Any, Progress], Any]  # a job's data -> its result


class Work(Protocol):
    """What some jobs have in common. It is pickled: a worker gets it once, opens it, and does its jobs.

    A job may be done twice, so its result must depend on nothing but the work and the job.
    """

    @property
    def alone(self) -> bool:
        """Whether a job has a machine to itself, and as many threads as the driver's cores."""

    def opened(self, tool: Any, progress: Progress) -> AbstractContextManager[Do]:
        """Within, what does a job with the worker's tool, the loaded model."""

    def memory(self, tool: Any) -> float:
        """Bytes, about, that a job takes beyond the tool."""


class Event(NamedTuple):
    """What is heard of a worker."""

    worker: Any
    kind: str  # advance, say, result, error, lost
    value: Any  # pieces; a sentence; a result; an exception; why


class Crew(Protocol):
    """Workers of one kind."""

    def ready(self, wanted: int) -> Sequence[Any]:
        """Workers that have joined since it was last asked; more are started if that is possible, up to `wanted`."""

    def give(self, worker: Any, job: int) -> None:
        """Start a worker on the job of that number."""

    def heard(self) -> Sequence[Event]:
        """What is new, waited for a moment."""

    def place(self, worker: Any) -> str:
        """Where a worker is, for messages."""

    def drop(self, worker: Any) -> None:
        """End a worker, whatever it is doing."""


def dispatch(crew: Crew, jobs: Sequence[Job], progress: Progress) -> Generator[Any, None, None]:
    """Results as they are done. If it is left before its end, workers that are busy are ended.

    Raises:
        UserError: a job that was lost with three workers, or what a job raises.
    """
    waiting = sorted(range(len(jobs)), key=lambda number: (jobs[number].cost, -number))  # the longest last
    busy: dict[Any, int] = {}
    told: Counter[int] = Counter()  # pieces of a job that are done
    lost: Counter[int] = Counter()
    idle: list[Any] = []
    left, shown = len(jobs), 0
    try:
        while left:
            idle += crew.ready(len(waiting) + len(busy))
            while idle and waiting:
                busy[worker := idle.pop(0)] = waiting.pop()
                crew.give(worker, busy[worker])
            if len(busy) != shown and (waiting or len(busy) > shown):
                progress.workers(shown := len(busy))
            for worker, kind, value in crew.heard():
                number = busy.get(worker)
                if kind == "say":
                    progress.say(value)
                elif kind == "lost":
                    idle = [other for other in idle if other is not worker]
                    if busy.pop(worker, None) is not None and number is not None:
                        progress.advance(-told.pop(number, 0))
                        lost[number] += 1
                        _tell_lost(crew.place(worker), jobs[number].name, str(value), lost[number], progress)
                        waiting.append(number)
                elif kind == "error":
                    busy.pop(worker, None)
                    crew.drop(worker)
                    raise value
                elif number is not None and kind == "advance":
                    told[number] += value
                    progress.advance(value)
                elif number is not None:
                    del busy[worker]
                    left -= 1
                    if waiting:
                        busy[worker] = waiting.pop()
                        crew.give(worker, busy[worker])
                    else:
                        idle.append(worker)
                    yield value
    finally:
        for worker in busy:
            crew.drop(worker)


def _tell_lost(place: str, job: str, why: str, times: int, progress: Progress) -> None:
    if times >= TRIES:
        raise UserError(
            f"{job} was lost with {times} workers, the last on {place} ({why}); most often memory is short: let fewer "
            "workers share a machine (workers.count, model.processes), then start again: finished work is kept."
        )
    progress.say(f"the worker on {place} was lost ({why}): {job} is done again")
