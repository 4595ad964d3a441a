"""Progress on a terminal, as bars; elsewhere as plain lines."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Display

from taskpgm.progress import Lines, Progress, many

COLUMNS = (
    TextColumn("{task.description}", markup=False),
    BarColumn(10),
    TextColumn("{task.fields[pieces]}", markup=False),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
)


class Bars(Progress):
    """One bar for each stage."""

    def __init__(self, display: Display) -> None:
        super().__init__()
        self.display = display

    def say(self, sentence: str) -> None:
        """The sentence above the bars."""
        self.display.console.print(sentence, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def begin(self, what: str, total: int, unit: str) -> None:
        """Another bar below the others."""
        self.what, self.total, self.unit = what, total, unit
        self.bar = self.display.add_task(what, total=total or None, pieces="")

    def count(self, pieces: int) -> None:
        """The bar grows."""
        self.display.advance(self.bar, pieces)
        if self.total:
            done = int(self.display.tasks[self.bar].completed)
            self.display.update(self.bar, pieces=f"{done:,}/{many(self.total, self.unit)}")

    def spread(self, workers: int) -> None:
        """The number behind the name."""
        self.display.update(self.bar, description=f"{self.what} ({many(workers, 'worker')})")

    def end(self, finished: bool) -> None:
        """A bar of unknown length is full, and no clock runs on."""
        if finished and not self.total:
            self.display.update(self.bar, total=1, completed=1)
        self.display.stop_task(self.bar)


@contextmanager
def shown(console: Console) -> Iterator[Progress]:
    """Progress on this console: bars on a terminal, plain lines where there is none."""
    if not console.is_terminal:
        yield Lines(console.file)
        return
    with Display(*COLUMNS, console=console) as display:
        yield Bars(display)
