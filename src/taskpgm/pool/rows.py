"""`Rows`: rows that stay on disk, in the order of their hash, and what is known of their lengths.

A row is read when it is asked for and measured when it is drawn: a file of a million rows costs its hashes and places,
not its texts. A row that turns out not to fit the model gives its place to the next in the same order.
"""

import json
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from taskpgm.errors import UserError
from taskpgm.pool.meter import CHUNK, Meter
from taskpgm.pool.rowfiles import COST, ENTRY, MADE, UNKNOWN, Entries, Refused, Row, RowFiles, cost_of, shape_of
from taskpgm.types import Ints


class Rows(Sequence[Row]):
    """Rows of one side of a set, by hash. Reading one measures it; those that do not fit, which have negative tokens,
    are left out by `taken` and `first`.

    Args:
        files: where they lie.
        entries: (n,) of ENTRY.
        costs: (n,) of COST.
        meter: measures those that are not known; none if all are.
        title: whose they are, for messages; None if rows that the chat template refuses are left out.
    """

    def __init__(
        self, files: RowFiles, entries: Entries, costs: Entries, meter: Meter | None = None, title: str | None = None
    ) -> None:
        self.files, self.entries, self.costs = files, entries, costs
        self._meter, self.title = meter, title

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, i: int) -> Row: ...
    @overload
    def __getitem__(self, i: slice) -> list[Row]: ...
    def __getitem__(self, i: int | slice) -> Row | list[Row]:
        if isinstance(i, slice):
            which = np.arange(len(self))[i]
            self.measure(which)
            return [self.peek(one) for one in which.tolist()]
        self.measure(np.array([i]))
        return self.peek(i)

    def peek(self, i: int) -> Row:
        """The row as far as it is known: with negative tokens if it was not measured, or does not fit."""
        return self.files.row(self.entries[i], self.costs[i])

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), CHUNK):
            yield from self[start : start + CHUNK]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    @property
    def known(self) -> NDArray[np.bool_]:
        """(n,) which rows were measured."""
        return np.asarray(self.costs["tokens"] != UNKNOWN)

    def measure(self, which: Ints) -> None:
        """Have these rows measured.

        Raises:
            UserError: one that cannot be used.
        """
        which = which[self.costs["tokens"][which] == UNKNOWN]
        if not len(which):
            return
        assert self._meter is not None, "rows that are not measured have what measures them"
        for i, found in zip(which.tolist(), self._meter.lengths(self.files, self.entries[which]), strict=True):
            if isinstance(found, Refused) and (self.title is not None or found.by == "model"):
                raise self._refusal(i, found)
            self.costs[i] = cost_of(found)

    def _refusal(self, i: int, refused: Refused) -> UserError:
        who = "model" if refused.by == "model" else "model's chat template"
        at = self.files.place(self.entries[i])
        remedy = " `taskpgm check --exact` finds all such rows; correct or remove them" + (
            ", or leave them out with `refused: drop`." if refused.by == "chat template" else "."
        )
        return UserError(f"{self.title or 'A set'}: the {who} cannot take {at}: {refused.why}.{remedy}")

    def fit(self, which: Ints) -> NDArray[np.bool_]:
        """Which of these rows can be used."""
        self.measure(which)
        return np.asarray(self.costs["tokens"][which] >= 0)

    def response_tokens(self, which: Ints) -> Ints:
        """Response tokens of these rows."""
        self.measure(which)
        return self.costs["response"][which].astype(np.int64)


def costs_of(rows: Sequence[Row]) -> Entries:
    """(n,) of COST, as far as it is known."""
    if isinstance(rows, Rows):
        return rows.costs
    return np.array([(row.tokens, row.response_tokens, row.truncated) for row in rows], COST)


class Store:
    """Writes rows to a folder: those that lie in files are copied with them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shapes: dict[str, int] = {}
        self._files: RowFiles | None = None
        self._new = RowFiles(folder, [("row", "a pool made in memory")])

    @property
    def about(self) -> dict[str, Any]:
        """What `RowFiles` has to be told to read them."""
        files = self._files or self._new
        return {"places": files.places, "shapes": files.shapes}

    def kept(self, rows: Sequence[Row]) -> Rows:
        """The rows, once they lie in the folder."""
        if not isinstance(rows, Rows):
            return self._written(rows)
        if self._files is None:
            self._files = rows.files
            rows.files.put(self._folder)
        assert rows.files is self._files, "the rows of a pool lie together"
        return rows

    def _written(self, rows: Sequence[Row]) -> Rows:
        entries = np.zeros(len(rows), ENTRY)
        with self._new.path(MADE).open("ab") as file:
            for entry, row in zip(entries, rows, strict=True):
                data = row.conversation.to_data()
                grading = [row.choices, row.verifier] if row.choices or row.verifier else []
                line = json.dumps([data, *grading], ensure_ascii=False).encode() + b"\n"
                entry["high"], entry["low"] = int(row.key[:16], 16), int(row.key[16:], 16)
                entry["shape"] = self._shape(shape_of(data))
                entry["offset"], entry["length"], entry["segment"] = file.tell(), file.write(line), MADE
        return Rows(self._new, entries, costs_of(rows))

    def _shape(self, shape: str) -> int:
        if shape not in self._shapes:
            self._new.shapes = list(self._shapes | {shape: 0})
        return self._shapes.setdefault(shape, len(self._shapes))
