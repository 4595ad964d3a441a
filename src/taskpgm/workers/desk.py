"""`Desk`: what a worker in another process keeps between jobs; its progress, sent to the driver."""

import contextlib
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

from taskpgm.errors import UserError
from taskpgm.progress import Progress
from taskpgm.workers.dispatch import Do, Work


class Threads(NamedTuple):
    """Threads of torch's, on a CPU."""

    job: int
    opening: int


class Desk:
    """The tool, loaded for the first job, and the work that is open.

    Args:
        opening: loads the tool, such as the base model.
        place: the machine, in messages.
    """

    def __init__(self, opening: Callable[[], Any], place: str) -> None:
        self.opening = opening
        self.place = place
        self.tool: Any = None
        self.key: Any = None
        self.open = contextlib.ExitStack()
        self.work: Do | None = None

    def do(self, key: Any, work: Callable[[], Work], data: Any, threads: Threads, progress: Progress) -> Any:
        """The result of a job.

        Args:
            key: of the work; one of another key is opened anew.
            work: fetches it.
            threads: of torch's, on a CPU, for the job and for opening the work.
        """
        import torch

        torch.set_num_threads(threads.opening)
        if self.tool is None:
            try:
                self.tool = self.opening()
            except UserError as error:
                raise UserError(f"On {self.place}: {error}") from error
            torch.set_num_threads(threads.opening)  # loading may have lowered it
        if self.work is None or key != self.key:
            self.open.close()
            self.work, self.key = self.open.enter_context(work().opened(self.tool, progress)), key
        torch.set_num_threads(threads.job)
        return self.work(data, progress)


class Sent(Progress):
    """In a worker: pieces and sentences go to the driver, whose stage is open."""

    def __init__(self, send: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._open = 1
        self._send = send

    def say(self, sentence: str) -> None:
        """To the driver."""
        self._send("say", sentence)

    def count(self, pieces: int) -> None:
        """To the driver."""
        self._send("advance", pieces)


def portable(error: Exception) -> Exception:
    """The error, or if it does not survive pickling, one that says the same."""
    with contextlib.suppress(Exception):
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")
