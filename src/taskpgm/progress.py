"""`Progress`: what a run tells while it works, in stages, pieces and sentences; `Lines`: the same as plain lines."""

import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

BETWEEN = 30.0  # seconds between two lines of a stage


class Progress:
    """Hears of stages, of their pieces and of sentences. This one shows no stages; its sentences are warnings.

    Whoever knows how many pieces a stage has opens it; the work inside calls `advance` for each that is done, from
    other processes too. A stage that is opened inside another belongs to a piece of that one: it is not shown, and its
    pieces are not counted. To show progress your own way, override `begin`, `count`, `spread`, `end` and `say`.
    """

    def __init__(self) -> None:
        self._open = 0  # stages that are open, one inside another
        self.inside: list[str] = []  # names of those that are not shown

    @contextmanager
    def stage(self, what: str, total: int = 0, unit: str = "") -> Iterator[None]:
        """Within, `total` pieces of work are done.

        Args:
            what: the work, such as "training probes".
            total: 0 if nobody knows.
            unit: what a piece is, such as "step".
        """
        self._open += 1
        if self._open == 1:
            self.begin(what, total, unit)
        else:
            self.inside.append(what)
        finished = False
        try:
            yield
            finished = True
        finally:
            self._open -= 1
            if self._open == 0:
                self.end(finished)
            else:
                self.inside.pop()

    def advance(self, pieces: int = 1) -> None:
        """So many more pieces of the open stage are done."""
        if self._open == 1:
            self.count(pieces)

    def workers(self, count: int) -> None:
        """The open stage is shared by so many workers, from now on."""
        if self._open == 1:
            self.spread(count)

    def say(self, sentence: str) -> None:
        """A sentence for the user: what is made again and why, or what went otherwise than planned."""
        warnings.warn(sentence, stacklevel=2)

    def begin(self, what: str, total: int, unit: str) -> None:
        """A stage begins."""

    def count(self, pieces: int) -> None:
        """Pieces of it are done."""

    def spread(self, workers: int) -> None:
        """So many workers share it."""

    def end(self, finished: bool) -> None:
        """It ends, before its time if not `finished`."""


QUIET = Progress()


class Lines(Progress):
    """One plain line at the start and the end of each stage, one every 30 s between them, and each sentence as a line.

    Args:
        stream: where the lines go.
        between: seconds between the lines of a stage.
    """

    def __init__(self, stream: IO[str], between: float = BETWEEN) -> None:
        super().__init__()
        self.stream = stream
        self.between = between

    def say(self, sentence: str) -> None:
        """The sentence, as a line."""
        print(sentence, file=self.stream, flush=True)

    def begin(self, what: str, total: int, unit: str) -> None:
        """The first line; then one every so often, also while no piece is done."""
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self.shared = ""
        self.started = time.monotonic()
        self.over = threading.Event()
        self.say(f"{what}: {many(total, unit)}" if total else f"{what} …")
        self.beat = threading.Thread(target=self._beat, daemon=True)
        self.beat.start()

    def count(self, pieces: int) -> None:
        """Shown with the next line."""
        self.done += pieces

    def spread(self, workers: int) -> None:
        """Shown with the next line."""
        self.shared = f" ({many(workers, 'worker')})"

    def end(self, finished: bool) -> None:
        """The last line."""
        self.over.set()
        self.beat.join()
        far = "done in" if finished else f"stopped{self._far(' at')} after"
        self.say(f"{self.what}{self.shared}: {far} {duration(self._spent())}")

    def _beat(self) -> None:
        while not self.over.wait(self.between):
            spent = self._spent()
            known = self.done and self.total
            left = f", about {duration(spent / self.done * (self.total - self.done))} left" if known else ""
            now = "".join(f" ({what})" for what in self.inside[-1:])
            self.say(f"{self.what}{self.shared}:{self._far()} after {duration(spent)}{left}{now}")

    def _spent(self) -> float:
        return time.monotonic() - self.started

    def _far(self, at: str = "") -> str:
        return f"{at} {self.done} of {many(self.total, self.unit)}" if self.total else ""


def many(count: int, noun: str) -> str:
    """1 row, 2 rows, 10,000 rows, 3 passes; without a noun the count alone."""
    ending = "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending * (count != 1)}" if noun else f"{count:,}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8 s, 4 min 10 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plain_lines() -> Lines:
    """Lines where a script's user sees them: on standard error, in a notebook among its output."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return Lines(sys.stdout if hasattr(shell, "kernel") else sys.stderr)
