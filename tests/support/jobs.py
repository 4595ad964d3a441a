"""Work without a model, for the tests of workers; workers import it by name."""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from taskpgm.errors import UserError
from taskpgm.workers.dispatch import Job


class Tool:
    processes = 2


def open_tool():
    return Tool()


def open_no_tool():
    raise UserError("there is no model here; download it.")


@dataclass(frozen=True)
class Products:
    """Products of matrices; a job whose name is in `deadly` ends its worker the first so many times."""

    deadly: tuple[str, ...] = ()
    times: int = 1
    folder: str = ""  # where deaths are counted
    wrong: str = ""
    alone: bool = False
    seconds: float = 0.0

    @contextlib.contextmanager
    def opened(self, tool, progress):
        assert isinstance(tool, Tool)

        def do(job, progress):
            name, size = job
            if name in self.deadly and len(list(Path(self.folder).glob(f"{name}-*"))) < self.times:
                progress.advance()
                (Path(self.folder) / f"{name}-{time.time_ns()}").touch()
                time.sleep(0.2)
                os._exit(9)
            if name == self.wrong:
                raise UserError(f"{name} is wrong; mend it.")
            time.sleep(self.seconds)
            progress.advance()
            progress.say(f"size {size}")
            draw = torch.randn(size, size, generator=torch.Generator().manual_seed(size))
            return name, (draw @ draw).numpy(), torch.get_num_threads(), os.getpid()

        yield do

    def memory(self, tool):
        return 1 << 20


def some_jobs(sizes=(3, 50, 200)):
    return [Job(f"job{size}", size, (f"job{size}", size)) for size in sizes]
