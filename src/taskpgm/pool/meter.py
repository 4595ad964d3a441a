"""`Meter`: lengths of rows, each measured once."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from taskpgm.pool.rowfiles import Entries, LengthsOf, Measured, RowFiles
from taskpgm.progress import QUIET, Progress

CHUNK = 512  # rows measured at a time: often enough for a progress bar


class Meter:
    """Lengths of rows, each measured once, and remembered elsewhere too if there is a `memory`."""

    def __init__(self, lengths_of: LengthsOf, memory: "Memory | None" = None, progress: Progress = QUIET) -> None:
        self.lengths_of, self.progress = lengths_of, progress
        self._memory = memory
        self._known: dict[tuple[int, int], Measured] = {}

    def lengths(self, files: RowFiles, entries: Entries, shown: bool = False) -> list[Measured]:
        """What each row costs; `shown` as a stage of its own, as many rows are in any case."""
        keys = list(zip(entries["high"].tolist(), entries["low"].tolist(), strict=True))
        if self._memory:
            self._known |= self._memory.find([key for key in keys if key not in self._known])
        wanted = list({key: i for i, key in enumerate(keys) if key not in self._known}.values())
        if len(wanted) <= CHUNK and not (shown and wanted):
            self._measure(files, entries, keys, wanted)
        else:
            with self.progress.stage("tokenising", len(wanted), "row"):
                self._measure(files, entries, keys, wanted)
        return [self._known[key] for key in keys]

    def _measure(self, files: RowFiles, entries: Entries, keys: list[tuple[int, int]], wanted: list[int]) -> None:
        for start in range(0, len(wanted), CHUNK):
            some = wanted[start : start + CHUNK]
            found = self.lengths_of([files.conversation(entries[i]) for i in some])
            new = {keys[i]: length for i, length in zip(some, found, strict=True)}
            self._known |= new
            if self._memory:
                self._memory.keep(new)
            self.progress.advance(len(some))


class Memory(Protocol):
    """What lengths are remembered in between runs."""

    def find(self, keys: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], Measured]:
        """Those of the rows that are known."""

    def keep(self, lengths: Mapping[tuple[int, int], Measured]) -> None:
        """Remember them."""
