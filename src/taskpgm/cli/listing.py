"""`Listing`: a table for the terminal whose names are never broken or cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Listing:
    """A table whose first column names things. No name is ever broken or cut: if the table is wider than the terminal,
    columns without a heading (bars) are left out, then each name stands on a line of its own above its numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Text]]
    left: frozenset[str] = frozenset()  # columns whose text begins at their left; the first does in any case

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, as wide as it has to be; print it with crop=False."""
        kept = [i for i, name in enumerate(self.header) if name or i == 0]
        narrow = [self.header[i] for i in kept], [[row[i] for i in kept] for row in self.rows]
        for header, rows in ((self.header, self.rows), narrow):
            table = self._table(header, rows)
            if _wanted(table, console, options) <= options.max_width:
                yield table
                return
        header = self.header[1:]
        widths = [max(_width(row[i]) for row in (self.header, *self.rows)) for i in range(1, len(self.header))]
        bare = {"show_edge": False}
        shape = {**bare, "width": _wanted(self._table(header, [], widths, **bare), console, options)}
        yield Text(str(self.header[0]), style="bold")
        yield self._table(header, [], widths, **shape)
        for name, *rest in self.rows:
            yield Text(str(name), no_wrap=True, overflow="ignore")
            yield self._table(header, [rest], widths, show_header=False, **shape)

    def _table(
        self, header: Sequence[str], rows: Sequence[Sequence[str | Text]], widths: Sequence[int] = (), **options: Any
    ) -> Table:
        table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True, **options)
        for name, width in zip_longest(header, widths):
            side: Literal["left", "right"] = "left" if name in (self.header[0], *self.left) else "right"
            table.add_column(name, justify=side, no_wrap=True, min_width=width)
        for row in rows:
            table.add_row(*map(_text, row))
        return table


def _wanted(table: Table, console: Console, options: ConsoleOptions) -> int:
    """Cells that the table takes if there is room for all of it."""
    return Measurement.get(console, options.update(max_width=100_000), table).maximum


def _text(cell: str | Text) -> Text:
    """The cell as it stands: what a name holds is no markup."""
    return cell if isinstance(cell, Text) else Text(cell)


def _width(cell: str | Text) -> int:
    return max((line.cell_len for line in _text(cell).split("\n")), default=0)


def some(names: Sequence[str], most: int) -> str:
    """The names, or the first of them and how many more there are."""
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
