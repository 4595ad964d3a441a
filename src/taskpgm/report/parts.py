"""`Section`, `Picture` and `Table`: what a page is made of, before it is a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Picture:
    """A figure, what it shows in words, and its data.

    Buttons and sliders of the figure become controls that keyboards and screen readers know. Without `table`, the CSV
    is the heat map that is shown, whose rows and columns `names` holds.
    """

    name: str  # letters and hyphens, unique on the page
    title: str
    figure: Any  # plotly.graph_objects.Figure
    table: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # columns by name
    names: tuple[Sequence[str], Sequence[str]] = ((), ())
    follows: bool = False  # whether its first buttons follow the task that the reader chose


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False

    @property
    def words(self) -> set[int]:
        """Columns that hold more than numbers, which stand at their left."""
        return {k for row in self.rows for k, cell in enumerate(row) if cell and cell[0] not in "0123456789+-−"}


@dataclass(frozen=True)
class Panel:
    """What is said of one task, shown where the reader chose it."""

    task: str
    title: str
    lines: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, str, str, str]]]] = ()  # heading, (set, prompt, answer, change)


@dataclass(frozen=True)
class Section:
    """One question and its answer: sentences, pictures, tables."""

    name: str
    title: str
    sentences: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    panels: Sequence[Panel] = ()  # one a task
    texts: Mapping[str, str] = field(default_factory=dict)  # text as it stands, such as settings, by heading


def joined(names: Sequence[str], most: int = 3) -> str:
    """Names in a sentence, the first of many."""
    shown = list(names[:most])
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else ""
