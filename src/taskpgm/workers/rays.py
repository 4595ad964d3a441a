"""Workers that are Ray actors: each loads the model once, on whatever node of the cluster has room for it.

The driver owns the run directory: work and jobs travel as bytes, results come back as bytes. Nothing is forked.
"""

import contextlib
import functools
import logging
import os
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from taskpgm.config import WorkersConfig
from taskpgm.errors import NO_RAY, UserError, first_line
from taskpgm.progress import Progress
from taskpgm.system import wait_passively
from taskpgm.workers.desk import Desk, Sent, Threads, portable
from taskpgm.workers.dispatch import Event, Job, Work

KIND = "accelerator_type:"  # what Ray calls the kinds of GPUs of a cluster
MOMENT = 0.5  # seconds that something new is waited for
STARTS = 10  # workers that may be lost one after another while they start, as when nodes vanish
GROWTH = 5.0  # seconds between two looks at the size of the cluster
PATIENCE = 30.0  # seconds without a worker after which that is said


class Actor:
    """In a worker: one thread does jobs, another one tells how they go."""

    def __init__(self, opening: bytes) -> None:
        wait_passively()
        import ray

        self.node = f"node {ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"
        self.desk = Desk(pickle.loads(opening), self.node)
        self.news: list[tuple[str, Any]] = []
        self.changed = threading.Condition()
        self.working = False

    def where(self) -> str:
        """The node, and that the worker is there."""
        return self.node

    def do(self, key: int, work: Sequence[Any], data: bytes, threads: Threads) -> tuple[str, Any]:
        """("result", of a job) or ("error", an exception)."""
        import ray

        self.working = True
        try:
            fetch: Callable[[], Work] = lambda: cast(Work, pickle.loads(ray.get(work[0])))  # noqa: E731
            return "result", pickle.dumps(self.desk.do(key, fetch, pickle.loads(data), threads, Sent(self._tell)))
        except Exception as error:
            return "error", pickle.dumps(portable(error))
        finally:
            self.working = False
            with self.changed:
                self.changed.notify_all()

    def told(self) -> list[tuple[str, Any]]:
        """What is new, waited for a moment."""
        with self.changed:
            if not self.news and self.working:
                self.changed.wait(MOMENT)
            news, self.news = self.news, []
            return news

    def _tell(self, kind: str, value: Any) -> None:
        with self.changed:
            if kind == "advance" and self.news and self.news[-1][0] == "advance":
                self.news[-1] = ("advance", self.news[-1][1] + value)
            else:
                self.news.append((kind, value))


class Handle(NamedTuple):
    """A worker as the driver has it."""

    number: int
    actor: Any


class RayCrew:
    """Actors on a cluster: as many as it has room for, or `workers.count`; more when nodes join.

    Raises:
        UserError: Ray is not installed, or there is no cluster at that address.
    """

    def __init__(
        self, settings: WorkersConfig, opening: Callable[[], Any], progress: Progress, part: Callable[[str], float]
    ) -> None:
        self.settings = settings
        self.opening = pickle.dumps(opening)
        self.progress = progress
        self.part = functools.cache(part)
        self.started = _connect(settings.address)
        self.made = 0
        self.last_place = "a node"  # of the worker that was lost last
        self.coming: dict[Any, Handle] = {}  # ref of `where` -> a worker that is not there yet
        self.places: dict[Handle, str] = {}  # those that are there
        self.doing: dict[Any, Handle] = {}  # ref of a job
        self.telling: dict[Any, Handle] = {}  # ref of what is told
        self.idle: list[Handle] = []
        self.failed = 0  # to start, one after another
        self.looked = -GROWTH
        self.alone_since = time.monotonic()

    def begin(self, key: Any, work: Work, jobs: Sequence[Job], threads: Threads) -> None:
        """What follows are jobs of this work."""
        import ray

        self.key, self.jobs, self.threads = key, jobs, threads
        self.work = [ray.put(pickle.dumps(work))]
        self.idle = list(self.places)

    def ready(self, wanted: int) -> list[Handle]:
        """Those that have joined; more actors are asked for if the cluster has room."""
        known, self.idle = self.idle, []
        missing = min(self.room(), wanted) - len(self.places) - len(self.coming)
        for _ in range(max(0, missing)):
            self._hire()
        return known

    def room(self) -> int:
        """Workers that the cluster has room for, now."""
        import ray

        if self.settings.count:
            return self.settings.count
        if time.monotonic() - self.looked > GROWTH:
            self.looked, has = time.monotonic(), ray.cluster_resources()
            room = has.get("CPU", 0) / (self.settings.cpus or 1)
            if gpus := self._gpus(has):
                room = min(room, has.get("GPU", 0) / gpus)
            self.fits = max(1, int(room + 1e-9))
        return self.fits

    def _gpus(self, has: Any) -> float:
        """GPUs a worker: those that are asked for, else the part that its memory needs of any kind that there is."""
        if self.settings.gpus is not None or not has.get("GPU", 0):
            return float(self.settings.gpus or 0)
        kinds = [name.removeprefix(KIND).lower() for name in has if name.startswith(KIND)]
        return max((self.part(kind) for kind in kinds), default=1.0)

    def _hire(self) -> None:
        import ray

        self.made += 1
        options = {"num_cpus": self.settings.cpus or 1, "num_gpus": self._gpus(ray.cluster_resources())}
        actor = ray.remote(Actor).options(**options, max_concurrency=2, max_restarts=0).remote(self.opening)
        handle = Handle(self.made, actor)
        self.coming[actor.where.remote()] = handle

    def give(self, worker: Handle, job: int) -> None:
        """Start it."""
        data = pickle.dumps(self.jobs[job].data)
        self.doing[worker.actor.do.remote(self.key, self.work, data, self.threads)] = worker
        self._listen(worker)

    def _listen(self, worker: Handle) -> None:
        self.telling[worker.actor.told.remote()] = worker

    def heard(self) -> list[Event]:
        """What is new, waited for a moment."""
        import ray

        refs = [*self.telling, *self.doing, *self.coming]
        if not refs:
            time.sleep(MOMENT)
            return []
        if done := ray.wait(refs, num_returns=1, timeout=MOMENT)[0]:
            done = ray.wait(refs, num_returns=len(refs), timeout=0)[0]
        self._say_if_none_is_there()
        order = {ref: number for number, ref in enumerate(refs)}
        return [event for ref in sorted(done, key=order.__getitem__) for event in self._events(ref)]

    def _events(self, ref: Any) -> list[Event]:
        import ray

        worker = self.telling.pop(ref, None) or self.doing.get(ref) or self.coming.get(ref)
        if worker is None:  # of one that was dropped
            return []
        try:
            found = ray.get(ref)
        except ray.exceptions.RayError as error:
            if ref in self.coming:
                self._failed_to_start(error)
            return self._lost(worker, first_line(error))
        if ref in self.coming:
            self.failed = 0
            self.places[self.coming.pop(ref)] = found
            self.idle.append(worker)
            return []
        if ref in self.doing:
            late = [other for other, of in self.telling.items() if of == worker]
            rest = [event for other in late for event in self._events(other)]
            if any(event.kind == "lost" for event in rest):
                return rest
            del self.doing[ref]
            kind, value = found
            return [*rest, Event(worker, kind, pickle.loads(value))]
        if worker in self.doing.values():
            self._listen(worker)
        return [Event(worker, kind, value) for kind, value in found]

    def _failed_to_start(self, error: Exception) -> None:
        self.failed += 1
        if self.failed >= STARTS:
            why = str(error).strip().splitlines()[-1]
            raise UserError(
                f"{self.failed} workers ended while they started ({why}); let every node "
                "have the driver's taskpgm[lm,ray] and Python."
            ) from error

    def _lost(self, worker: Handle, why: str) -> list[Event]:
        self.last_place = self.place(worker)
        self._forget(worker)
        return [Event(worker, "lost", why)]

    def _forget(self, worker: Handle) -> None:
        for refs in (self.coming, self.doing, self.telling):
            for ref in [ref for ref, other in refs.items() if other == worker]:
                del refs[ref]
        self.places.pop(worker, None)
        self.idle = [other for other in self.idle if other != worker]

    def _say_if_none_is_there(self) -> None:
        import ray

        now = time.monotonic()
        if self.places:
            self.alone_since = now
        elif now - self.alone_since > PATIENCE:
            self.alone_since = now
            has = ray.cluster_resources()
            self.progress.say(
                f"waiting for a worker of {self.settings.cpus or 1} CPUs and {self._gpus(has):g} GPUs; the cluster has "
                f"{has.get('CPU', 0):g} and {has.get('GPU', 0):g}"
            )

    def place(self, worker: Handle) -> str:
        """The node."""
        return self.places.get(worker, self.last_place)

    def drop(self, worker: Handle) -> None:
        """End an actor, whatever it is doing."""
        import ray

        self._forget(worker)
        with contextlib.suppress(Exception):
            ray.kill(worker.actor)

    def end(self) -> None:
        """End all actors, so that their place is free; and the cluster, if it was started for them."""
        import ray

        for worker in [*self.places, *self.coming.values()]:
            self.drop(worker)
        if self.started:
            ray.shutdown()


def _connect(address: str | None) -> bool:
    """Connect to a cluster; whether it was this call that did."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(NO_RAY) from error
    if ray.is_initialized():
        return False
    # Left to itself, Ray would join whatever cluster was last started here, and wait long for one that was killed.
    chosen = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        ray.init(address=chosen, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        place = "this machine" if chosen == "local" else chosen
        raise UserError(
            f"No Ray cluster at {place} ({first_line(error)}); start one with `ray start --head`, or leave out "
            "workers.address to start one on this machine."
        ) from error
    return True
