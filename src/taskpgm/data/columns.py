"""`Way`: which columns of a source are read as what, from the facts that are known of it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from taskpgm.config import EXTRAS, FIELDS, GRADING_COLUMNS
from taskpgm.data.column_names import ALIASES, MEDIA, REFUSED
from taskpgm.data.facts import Facts
from taskpgm.data.parts import plain_name
from taskpgm.errors import UserError

MOST = 20  # columns that an error lists
Layout = Literal["messages", "prompt_completion", "instruction_output"]

# The fields that hold question and answer, and those that a layout may have beside them.
LAYOUTS: dict[Layout, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "instruction_output": ("instruction", "input", "output"),
}
BESIDE: dict[Layout, tuple[str, ...]] = {
    "messages": ("system", "tools"),
    "prompt_completion": EXTRAS,
    "instruction_output": EXTRAS,
}


class Way(NamedTuple):
    """How the records of a source become rows."""

    layout: Layout
    columns: dict[str, str]  # field -> column
    graded: dict[str, str]  # the same of what its answers are graded by
    must_grade: bool  # `choices` that do not fit are an error

    @property
    def all_columns(self) -> dict[str, str]:
        """All fields with their columns."""
        return {**self.columns, **self.graded}


class Shape(NamedTuple):
    """A layout that the columns allow."""

    layout: Layout
    columns: dict[str, str]  # field -> column


def find_shape(
    table: Facts, mapped: dict[str, str], path: str, who: str, has_all: Callable[[list[Shape]], bool]
) -> Shape:
    """The one layout that the columns allow, and which column holds which field."""
    given = {field: column for field, column in mapped.items() if column}
    for field, column in given.items():
        if column not in table.columns:
            raise UserError(f"{who}: `columns` reads {field} from {column!r}, but {path} has {_listed(table.columns)}.")
        other = next((name for name in given if name != field and given[name] == column), None)
        if other:
            raise UserError(
                f"{who}: `columns` reads both {field} and {other} from {column!r}; name another column for one of them."
            )
    found = list(_shapes(table, mapped))
    if len(found) == 1:
        return found[0]
    has = f"{who}: {path} has " + (f"the columns {_listed(table.columns)}" if table.columns else "no columns")
    if found:
        ways = [" and ".join(_required(shape)) for shape in found]
        if not has_all(found):
            raise UserError(f"{has}, in rows of {' and of '.join(ways)}; write each kind into a file of its own.")
        first = f"columns: {{{next(f'{field}: {column}' for field, column in found[0].columns.items())}}}"
        raise UserError(f"{has}, which can be read as {', or as '.join(ways)}; say which, with {first} for the first.")
    also = f" and `columns` maps {', '.join(given)}" if given else ""
    raise UserError(
        f"{has}{also}; a task needs messages, or prompt and completion, or instruction and output: name them in "
        f"`columns`{hint(list(table.columns))}."
    )


def _listed(columns: Iterable[str]) -> str:
    names = list(columns)
    return ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")


def hint(columns: list[str]) -> str:
    """What to do about columns that say nothing to a task as they are."""
    if "chosen" in columns:
        return (
            " (of preferences the chosen answers, with completion: chosen, or messages: chosen for whole conversations)"
        )
    return " (text without a question has no answer to learn)" if columns == ["text"] else ""


def _required(shape: Shape) -> list[str]:
    return [column for field, column in shape.columns.items() if field in LAYOUTS[shape.layout]]


def _shapes(table: Facts, mapped: dict[str, str]) -> Iterator[Shape]:
    """Every layout that the columns allow and that takes all the fields that `columns` maps."""
    asked = {field for field, column in mapped.items() if column}
    for layout, own in LAYOUTS.items():
        if not asked <= {*own, *BESIDE[layout], *GRADING_COLUMNS}:
            continue
        columns = {field: _column(field, table, mapped) for field in (*own, *BESIDE[layout])}
        found = {field: column for field, column in columns.items() if column}
        if layout == "messages":
            for column in _conversation_columns(table, mapped):
                yield Shape(layout, found | {"messages": column})
        elif own[-1] in found and any(field in found for field in own[:-1]):
            yield Shape(layout, found)


def _column(field: str, table: Facts, mapped: dict[str, str]) -> str | None:
    """The column of a field: the one it is mapped to, or else the first that has its name or another name of it."""
    if field in mapped:
        return mapped[field] or None
    names = (field, *(ALIASES.get(field, ()) if field != "messages" else ()))
    taken = [column for column in mapped.values() if column]
    free = (name for name in names if name in table.columns and mapped.get(name) != "" and name not in taken)
    return next(free, None)


def _conversation_columns(table: Facts, mapped: dict[str, str]) -> list[str]:
    """Columns that hold whole conversations; under another name than `messages`, if their first value is one."""
    if "messages" in mapped:
        return [mapped["messages"]] if mapped["messages"] else []
    others = [name for name in ALIASES["messages"] if name in table.columns and mapped.get(name) != ""]
    return ["messages"] * ("messages" in table.columns) + [name for name in others if table.said.get(name)]


def refuse_unread(table: Facts, shape: Shape, mapped: dict[str, str], who: str) -> None:
    """An error if a column would change what is trained on, and is neither read nor ignored by name."""
    watched = {*REFUSED, *MEDIA, *EXTRAS, *(name for field in EXTRAS for name in ALIASES.get(field, ()))}
    watched |= {"input"} if shape.layout == "prompt_completion" else set()
    settled = {name for field in mapped for name in (field, *ALIASES.get(field, ()))}
    for column in table.columns:
        name = column if column in watched or plain_name(column) in MEDIA else plain_name(column)
        if name not in watched or column in shape.columns.values() or {name, column} & settled:
            continue
        at = table.changed.get(column)
        if at or column not in table.present:
            raise UserError(
                f"{who}: {at or table.first} has a value in column {column!r}, which would change what is "
                f"trained on and is not read; {_remedy(column, name, shape)}ignore it with columns: {{{column}: ''}}."
            )


def _remedy(column: str, name: str, shape: Shape) -> str:
    """How the column, whose plain name this is, can be read, if it can."""
    if name == "input":
        return "map instruction, input and output to read it, or "
    if name in ("label", "kto_tag"):
        return "keep only the rows whose answers are wanted, and then "
    fields = {"available_tools": "tools", **dict.fromkeys(("thinking", "reasoning", "thoughts"), "reasoning_content")}
    fields |= {other: field for field in EXTRAS for other in (field, *ALIASES.get(field, ()))}
    field = fields.get(name)
    readable = field in BESIDE[shape.layout] and field not in shape.columns
    return f"read it with columns: {{{field}: {column}}}, or " if readable else ""


def unread_notes(
    table: Facts, columns: dict[str, str], mapped: dict[str, str], unread: dict[str, None]
) -> Iterator[str]:
    """What is not read, in one sentence, and what `columns` ignores although it is not there."""
    seen = {*columns.values(), *(field for field, column in mapped.items() if not column)}
    left = [column for column in table.columns if column not in seen and not _says_nothing(column, table)]
    names = [column or "(no name)" for column in left] + list(unread)
    if names:
        yield f"not read: {', '.join(names)}"
    absent = [field for field, column in mapped.items() if not column and field not in (*table.columns, *FIELDS)]
    if absent:
        yield f"ignored in `columns`, but no column: {', '.join(absent)}"


def _says_nothing(column: str, table: Facts) -> bool:
    return column in table.present and column not in table.said
