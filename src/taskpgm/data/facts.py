"""`Facts`: what the columns of a source hold, gathered while its records pass by."""

from typing import Any

from taskpgm.config import EXTRAS
from taskpgm.data.column_names import ALIASES, MEDIA, REFUSED
from taskpgm.data.parts import Part, plain_name
from taskpgm.data.turns import are_turns
from taskpgm.data.values import is_empty, is_null

# Columns that may change what is trained on.
NAMES = {*REFUSED, *MEDIA, *EXTRAS, "input", *(name for one in EXTRAS for name in ALIASES.get(one, ()))}
WATCHED = frozenset(map(plain_name, NAMES))
LISTS = frozenset({"history", "tools", *ALIASES["tools"], "available_tools", "tool_calls", "function_call"})
TALKS = frozenset({"messages", *ALIASES["messages"]})


class Facts:
    """Columns in order of appearance, and what is known of their values."""

    def __init__(self, columns: "tuple[str, ...] | dict[str, None]" = ()) -> None:
        self.columns = dict.fromkeys(columns)
        self.present: set[str] = set()  # columns that some record has, whatever its value
        self.said: dict[str, bool] = {}  # columns with a value; whether the first is a list of turns
        self.changed: dict[str, str] = {}  # where a watched column first says something
        self.first = ""  # where the first record stands
        self.count = 0  # records
        self._names: set[tuple[str, ...]] = set()  # sets of columns that records had
        self._open: dict[str, None] = {}  # columns that are not all known yet

    def see(self, part: Part, number: int, record: dict[str, Any]) -> None:
        """Take notice of one record."""
        if not self.count:
            self.first = part.place(number)
        self.count += 1
        if (names := tuple(record)) not in self._names:
            self._names.add(names)
            self._open |= dict.fromkeys(name for name in names if name not in self.present)
            self.columns |= dict.fromkeys(names)
            self.present |= record.keys()
        for column in [column for column in self._open if column in record] if self._open else ():
            self._look(column, record[column], part, number)

    def _look(self, column: str, value: Any, part: Part, number: int) -> None:
        if column not in self.said and not is_empty(value):
            self.said[column] = column in TALKS and are_turns(value)
        watched = plain_name(column) in WATCHED
        if watched and column not in self.changed and changes(plain_name(column), value):
            self.changed[column] = part.place(number)
        if column in self.said and (not watched or column in self.changed):
            del self._open[column]

    def and_then(self, later: "Facts") -> "Facts":
        """These facts and those of records behind them."""
        both = Facts({**self.columns, **later.columns})
        both.present = self.present | later.present
        both.said, both.changed = {**later.said, **self.said}, {**later.changed, **self.changed}
        both.first, both.count = self.first or later.first, self.count + later.count
        return both


def changes(column: str, value: Any) -> bool:
    """Whether a value would change what is trained on."""
    if column == "label":  # of unpaired preferences; a class otherwise
        return isinstance(value, bool) or str(value).lower() in ("true", "false")
    neutral = "weight" in column and str(value).lower() in ("1", "1.0", "true")
    return not is_empty(value) and not neutral and not (column in LISTS and is_null(value))
