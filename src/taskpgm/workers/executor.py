"""`Workers`: the one seam through which all independent work goes; results are the same whatever does it.

    serial   in turn, in this process
    local    processes of one core each; with several GPUs a process each
    ray      actors on a Ray cluster

A result depends on torch's threads, never on how many workers there are or where. A job has one thread
(`workers.cpus`); work that is alone, such as the warm start, has as many as the driver's machine has cores.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from taskpgm.config import WorkersConfig
from taskpgm.progress import Progress
from taskpgm.system import available_memory, usable_cores
from taskpgm.workers.desk import Threads
from taskpgm.workers.dispatch import Job, Work, dispatch
from taskpgm.workers.processes import Forked, Spawned, threads


class Workers:
    """Does jobs side by side.

    Args:
        settings: which backend, and how many workers.
        here: the tool in this process, loaded when it is first asked for.
        opening: loads the tool in another process; can be pickled.
        devices: of local processes, what each has in its environment; fewer than two: work is done here.
        part: of a kind of GPU, the part that a worker on a cluster is given if the settings do not say.
    """

    def __init__(
        self, settings: WorkersConfig, here: Callable[[], Any], opening: Callable[[], Any],
        devices: Sequence[dict[str, str]] = (), part: Callable[[str], float] = lambda kind: 1.0,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.here = here
        self.opening = opening
        self.devices = devices
        self.part = part
        self.crew: Any = None  # workers that stay between works
        self.works = 0

    @property
    def elsewhere(self) -> bool:
        """Whether the tool is loaded by workers, and not here."""
        return self.settings.backend == "ray" or (self.settings.backend != "serial" and len(self.devices) > 1)

    def count(self, progress: Progress) -> int:
        """Workers, at most."""
        if self.settings.backend == "serial":
            return 1
        if self.elsewhere:
            crew = self._crew(progress)
            return int(crew.room()) if self.settings.backend == "ray" else len(self.devices)
        return int(self.here().processes)

    def map(self, work: Work, jobs: Sequence[Job], progress: Progress) -> Iterator[Any]:
        """Results of the jobs as they are done, the longest begun first.

        Raises:
            UserError: a job that was lost with three workers, no cluster, a worker with another model; what a job
                raises.
        """
        if not jobs:
            return
        if self.elsewhere:
            crew, self.works = self._crew(progress), self.works + 1
            crew.begin(self.works, work, jobs, Threads(self._threads(work) or self._all(), self._all()))
            with contextlib.closing(dispatch(crew, jobs, progress)) as results:
                yield from results
            return
        tool = self.here()
        side = 1 if work.alone or self.settings.backend == "serial" or (self.settings.cpus or 1) > 1 else tool.processes
        with contextlib.ExitStack() as stack:
            with threads(self.settings.cpus):
                do = stack.enter_context(work.opened(tool, progress))
            count = min(len(jobs), side, math.floor(0.8 * available_memory() / work.memory(tool)))
            if count > 1:
                forked = Forked(do, jobs, count)
                try:
                    with contextlib.closing(dispatch(forked, jobs, progress)) as results:
                        yield from results
                finally:
                    forked.end()
                return
            for job in sorted(jobs, key=lambda job: -job.cost):
                with threads(self._threads(work, tool)):
                    result = do(job.data, progress)
                yield result

    def _threads(self, work: Work, tool: Any = None) -> int | None:
        """Of a job; None: all."""
        if self.settings.cpus:
            return self.settings.cpus
        one = self.settings.backend in ("serial", "ray") or tool is None or tool.processes > 1
        return 1 if one and not work.alone else None

    def _all(self) -> int:
        """Threads of what is alone: cores of the driver's machine."""
        return self.settings.cpus or min(torch.get_num_threads(), usable_cores())

    def _crew(self, progress: Progress) -> Any:
        if self.crew is None:
            if self.settings.backend == "ray":
                from taskpgm.workers.rays import RayCrew

                self.crew = RayCrew(self.settings, self.opening, progress, self.part)
            else:
                self.crew = Spawned(self.opening, self.devices[: self.settings.count])
        return self.crew

    def end(self) -> None:
        """End workers that stay between works."""
        if self.crew is not None:
            self.crew.end()
            self.crew = None
