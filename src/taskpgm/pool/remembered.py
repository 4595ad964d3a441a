"""`LengthFile`: lengths of rows that were measured once, kept between runs in the user's cache folder."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskpgm.files import cache_folder
from taskpgm.pool.meter import Memory
from taskpgm.pool.rowfiles import UNFIT, Length, Measured

LENGTH = np.dtype([
    ("high", "<u8"), ("low", "<u8"), ("tokens", "<i4"), ("response", "<i4"), ("truncated", "<i4"), ("mark", "<u4")
])  # fmt: skip
MARK = 0x7A5C6D01  # at the end of each record, of this version of the format


class LengthFile(Memory):
    """Lengths by one tokenizer, template and limit. Rows that are refused, or of which something is left out, are
    measured anew: their words are not kept. A folder that cannot be written is no error; nothing is remembered then.

    Args:
        encoder: what lengths depend on beside the row.
    """

    def __init__(self, encoder: Callable[[], str]) -> None:
        self._encoder = encoder

    @cached_property
    def path(self) -> Path:
        """Where the lengths are."""
        return cache_folder() / "lengths" / f"{self._encoder()}.bin"

    def find(self, keys: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], Measured]:
        """Those of the rows that are known."""
        known = self._known
        if not keys or not len(known):
            return {}
        wanted = np.array(keys, dtype=np.uint64)
        at = np.minimum(np.searchsorted(known["high"], wanted[:, 0]), len(known) - 1)
        there = (known["high"][at] == wanted[:, 0]) & (known["low"][at] == wanted[:, 1])
        return {keys[i]: _length(known[at[i]]) for i in np.flatnonzero(there).tolist()}

    def keep(self, lengths: Mapping[tuple[int, int], Measured]) -> None:
        """Append them to the file, in one piece."""
        records = [
            (*key, *((found.tokens, found.response_tokens, found.truncated) if found else (UNFIT, 0, 0)), MARK)
            for key, found in lengths.items()
            if found is None or (isinstance(found, Length) and not found.lost)
        ]
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
            try:
                os.write(file, np.array(records, LENGTH).tobytes())
            finally:
                os.close(file)

    @cached_property
    def _known(self) -> NDArray[np.void]:
        """What earlier runs measured, by hash."""
        try:
            data = self.path.read_bytes()
        except OSError:
            return np.zeros(0, LENGTH)
        found = np.frombuffer(data[: len(data) // LENGTH.itemsize * LENGTH.itemsize], LENGTH)
        if (found["mark"] != MARK).any() or len(data) % LENGTH.itemsize:  # a write was cut short
            with contextlib.suppress(OSError):
                self.path.unlink()
            return np.zeros(0, LENGTH)
        return found[np.argsort(found["high"], kind="stable")]


def _length(record: Any) -> Measured:
    tokens = int(record["tokens"])
    return None if tokens == UNFIT else Length(tokens, int(record["response"]), bool(record["truncated"]))
