"""`Reading`: the rows of one source as conversations, whatever shape they have.

What a source says beside its questions and answers is read, named in a note, or refused: nothing vanishes in silence.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from taskpgm.config import ALIASES, EXTRAS, FIELDS, GRADING_COLUMNS, MEDIA, REFUSED, Source, TargetConfig
from taskpgm.data.grading import Grading, read_grading
from taskpgm.data.messages import Conversation, Message
from taskpgm.data.sources import Table, read_table
from taskpgm.data.turns import Spot, are_turns, read_tools, read_turns
from taskpgm.data.values import is_absent, is_empty, text_of, unpacked
from taskpgm.errors import UserError

READING_VERSION = 2  # a run whose rows were read in another way reads them again
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


class Reading(NamedTuple):
    """Rows of one source, in file order, and how its columns were understood."""

    rows: list[Conversation]
    layout: Layout
    columns: dict[str, str]  # field -> column it was read from
    gradings: list[Grading]  # one a row
    places: list[str]  # where each row stands: "line 5 of jars.jsonl"
    notes: tuple[str, ...] = ()  # what `check` says of the source: columns that are not read, say


class _Shape(NamedTuple):
    layout: Layout
    columns: dict[str, str]  # field -> column


def read_source(source: Source, path: str | None = None) -> Reading:
    """Reading of a task or target, or of another path (its validation rows) with the same columns.

    Every row has an assistant turn that is learned and says something, and a turn of somebody else before it. Numbers
    and booleans in a text column are taken as text, the way JSON spells them (CSV: exactly as the file does); null is
    an error there, and no value in an optional column.

    Raises:
        UserError: anything about the source that its owner has to put right.
    """
    who = title_of(source)
    table = read_table(source, path, who)
    path = path or source.path
    if not table.records:
        raise UserError(f"{who}: {path} holds no rows; give it some or leave it out.")
    mapped = source.columns or {}
    shape = _shape(table, mapped, path, who)
    given = {field: mapped.get(field, field) for field in GRADING_COLUMNS}
    given = {field: column for field, column in given.items() if column and column in table.columns}
    _refuse_unread(table, shape, mapped, who)
    unread: dict[str, None] = {}
    rows = [_conversation(shape, record, f"{who}: {at}", unread) for at, record in table.records]
    gradings, left = _gradings(table, given, mapped, rows, who)
    columns = {**shape.columns, **given}
    notes = (*table.notes, *_unread_notes(table, columns, mapped, unread), *left)
    return Reading(rows, shape.layout, columns, gradings, [at for at, _ in table.records], notes)


def title_of(source: Source) -> str:
    """How messages call a source: Task 'arc'."""
    return f"{'Target' if isinstance(source, TargetConfig) else 'Task'} {source.name!r}"


# Which columns are read


def _shape(table: Table, mapped: dict[str, str], path: str, who: str) -> _Shape:
    """The one layout that the columns allow, and which column holds which field."""
    named = {field: column for field, column in mapped.items() if column}
    for field, column in named.items():
        if column not in table.columns:
            raise UserError(
                f"{who}: `columns` reads {field} from {column!r}, but {path} has {', '.join(table.columns)}."
            )
    found = list(_shapes(table, mapped))
    if len(found) == 1:
        return found[0]
    has = f"{who}: {path} has " + (f"the columns {', '.join(table.columns)}" if table.columns else "no columns")
    if found:
        ways = [" and ".join(_required(shape)) for shape in found]
        if not any(_has_all(record, found) for _, record in table.records):
            raise UserError(f"{has}, in rows of {' and of '.join(ways)}; write each kind into a file of its own.")
        first = f"columns: {{{next(f'{field}: {column}' for field, column in found[0].columns.items())}}}"
        raise UserError(f"{has}, which can be read as {', or as '.join(ways)}; say which, with {first} for the first.")
    also = f" and `columns` maps {', '.join(named)}" if named else ""
    raise UserError(
        f"{has}{also}; a task needs messages, or prompt and completion, or instruction and output: name them in "
        f"`columns`{_hint(table.columns)}."
    )


def _has_all(record: dict[str, Any], shapes: list[_Shape]) -> bool:
    """Whether a record has the answers of several layouts."""
    return not any(is_empty(record.get(shape.columns[LAYOUTS[shape.layout][-1]])) for shape in shapes)


def _hint(columns: list[str]) -> str:
    if "chosen" in columns:
        return (
            " (of preferences the chosen answers, with completion: chosen, or messages: chosen for whole conversations)"
        )
    return " (text without a question has no answer to learn)" if columns == ["text"] else ""


def _required(shape: _Shape) -> list[str]:
    return [column for field, column in shape.columns.items() if field in LAYOUTS[shape.layout]]


def _shapes(table: Table, mapped: dict[str, str]) -> Iterator[_Shape]:
    """Every layout that the columns allow and that takes all the fields that `columns` maps."""
    named = {field for field, column in mapped.items() if column}
    for layout, own in LAYOUTS.items():
        if not named <= {*own, *BESIDE[layout], *GRADING_COLUMNS}:
            continue
        columns = {field: _column(field, table, mapped) for field in (*own, *BESIDE[layout])}
        found = {field: column for field, column in columns.items() if column}
        if layout == "messages":
            for column in _conversation_columns(table, mapped):
                yield _Shape(layout, found | {"messages": column})
        elif own[-1] in found and any(field in found for field in own[:-1]):
            yield _Shape(layout, found)


def _column(field: str, table: Table, mapped: dict[str, str]) -> str | None:
    """The column of a field: the one it is mapped to, or else the first that has its name or another name of it."""
    if field in mapped:
        return mapped[field] or None
    names = (field, *(ALIASES.get(field, ()) if field != "messages" else ()))
    taken = [column for column in mapped.values() if column]
    free = (name for name in names if name in table.columns and mapped.get(name) != "" and name not in taken)
    return next(free, None)


def _conversation_columns(table: Table, mapped: dict[str, str]) -> list[str]:
    """Columns that hold whole conversations; under another name than `messages`, if their first value is one."""
    if "messages" in mapped:
        return [mapped["messages"]] if mapped["messages"] else []
    others = [name for name in ALIASES["messages"] if name in table.columns and mapped.get(name) != ""]
    return ["messages"] * ("messages" in table.columns) + [
        name
        for name in others
        if are_turns(next((r[name] for _, r in table.records if not is_empty(r.get(name))), None))
    ]


def _refuse_unread(table: Table, shape: _Shape, mapped: dict[str, str], who: str) -> None:
    """An error if a column would change what is trained on, and is neither read nor ignored by name."""
    watched = {*REFUSED, *MEDIA, *EXTRAS, *(name for field in EXTRAS for name in ALIASES.get(field, ()))}
    watched |= {"input"} if shape.layout == "prompt_completion" else set()
    watched -= (
        set() if shape.layout == "prompt_completion" and not mapped else {"label"}
    )  # of TRL's unpaired preferences
    settled = {name for field in mapped for name in (field, *ALIASES.get(field, ()))}
    for column in table.columns:
        if column not in watched or column in shape.columns.values() or column in settled:
            continue
        at = next((at for at, record in table.records if _changes(column, record)), None)
        if at or not any(column in record for _, record in table.records):
            raise UserError(
                f"{who}: {at or table.records[0][0]} has a value in column {column!r}, which would change what is "
                f"trained on and is not read; {_remedy(column, shape)}ignore it with columns: {{{column}: ''}}."
            )


def _remedy(column: str, shape: _Shape) -> str:
    """How the column can be read, if it can."""
    if column == "input":
        return "map instruction, input and output to read it, or "
    field = "tools" if column == "available_tools" else "reasoning_content"
    readable = column in ("available_tools", "thinking", "reasoning", "thoughts") and field in BESIDE[shape.layout]
    return f"read it with columns: {{{field}: {column}}}, or " if readable else ""


def _changes(column: str, record: dict[str, Any]) -> bool:
    """Whether the record says something in a column that would change what is trained on."""
    value = record.get(column)
    if column == "label":  # of unpaired preferences; a class otherwise
        return isinstance(value, bool) or str(value).lower() in ("true", "false")
    neutral = "weight" in column and str(value).lower() in ("1", "1.0", "true")
    return not is_empty(value) and not neutral


def _unread_notes(
    table: Table, columns: dict[str, str], mapped: dict[str, str], unread: dict[str, None]
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


def _says_nothing(column: str, table: Table) -> bool:
    given = [record[column] for _, record in table.records if column in record]
    return bool(given) and all(map(is_empty, given))


# Rows


def _conversation(shape: _Shape, record: dict[str, Any], at: str, unread: dict[str, None]) -> Conversation:
    columns = shape.columns
    spots = {field: Spot(at, column, unread) for field, column in columns.items()}
    if shape.layout == "messages":
        turns = read_turns(record.get(columns["messages"]), spots["messages"])
    else:
        turns = _asked(shape, record, spots, at) + _answered(shape, record, spots, at)
    if "history" in columns:
        turns = _with_history(turns, record.get(columns["history"]), spots["history"])
    if "system" in columns:
        turns = _with_system(turns, record.get(columns["system"]), spots["system"])
    tools = read_tools(record.get(columns["tools"]), spots["tools"]) if "tools" in columns else ()
    found = Conversation(turns, tools)
    _check_conversation(found, at)
    return found


def _asked(shape: _Shape, record: dict[str, Any], spots: dict[str, Spot], at: str) -> tuple[Message, ...]:
    """The turns before the answer: context, whoever speaks."""
    if shape.layout == "prompt_completion":
        spot = spots["prompt"]
        given = record.get(spot.column)
        if _is_list(given) or _both_turns(shape, record):
            turns = read_turns(given, spot)
            return tuple(replace(turn, learned=False) if turn.role == "assistant" else turn for turn in turns)
        return (Message("user", text_of(given, spot.column, at)),)
    texts = {field: record.get(shape.columns[field]) for field in ("instruction", "input") if field in shape.columns}
    given = {field: value for field, value in texts.items() if not is_absent(value)}
    if not given:
        raise UserError(f"{at} has no text in {' or '.join(map(repr, texts))}; fill it in or remove the row.")
    said = [text_of(value, shape.columns[field], at) for field, value in given.items()]
    return (Message("user", "\n\n".join(filter(None, said))),)


def _answered(shape: _Shape, record: dict[str, Any], spots: dict[str, Spot], at: str) -> tuple[Message, ...]:
    """The turns that are the answer."""
    spot = spots["completion" if shape.layout == "prompt_completion" else "output"]
    given = record.get(spot.column)
    thoughts = _optional(record, "reasoning_content", shape, at)
    if shape.layout == "prompt_completion" and (_is_list(given) or _both_turns(shape, record)):
        turns = read_turns(given, spot)
        if turns and turns[0].role not in ("assistant", "tool"):
            raise spot.error(
                f"a turn of {turns[0].role} as its first",
                "a completion is an answer: name whole conversations as messages",
            )
        if thoughts:
            raise spots["reasoning_content"].error("thoughts of a completion that is a list of messages")
        return turns
    return (Message("assistant", text_of(given, spot.column, at), thoughts),)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | dict)


def _both_turns(shape: _Shape, record: dict[str, Any]) -> bool:
    """Whether prompt and completion are both lists of messages as JSON text, as in CSV."""
    return all(
        are_turns(record.get(shape.columns[field])) for field in LAYOUTS["prompt_completion"] if field in shape.columns
    )


def _optional(record: dict[str, Any], field: str, shape: _Shape, at: str) -> str | None:
    column = shape.columns.get(field)
    value = record.get(column) if column else None
    return None if not column or is_empty(value) else text_of(value, column, at)


def _with_system(turns: tuple[Message, ...], given: Any, spot: Spot) -> tuple[Message, ...]:
    """The turns behind a system turn of that text, unless they have the same one."""
    if is_empty(given):
        return turns
    said = Message("system", text_of(given, spot.column, spot.at))
    if turns[:1] == (said,):
        return turns
    if any(turn.role == "system" for turn in turns):
        raise spot.error(
            "another text than the row's system turn",
            f"correct the row, or ignore the column with columns: {{{spot.column}: ''}}",
        )
    return (said, *turns)


def _with_history(turns: tuple[Message, ...], given: Any, spot: Spot) -> tuple[Message, ...]:
    """The turns with earlier ones in front, behind a system turn: pairs of question and answer, or messages."""
    found = unpacked(given)
    if is_empty(found):
        return turns
    earlier = read_turns(found, spot) if are_turns(found) else _of_pairs(found, spot)
    lead = 1 if turns[0].role == "system" else 0
    return (*turns[:lead], *earlier, *turns[lead:])


def _of_pairs(pairs: Any, spot: Spot) -> tuple[Message, ...]:
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise spot.error("no list of [question, answer]")
    texts = [text_of(text, spot.column, spot.at) for pair in pairs for text in pair]
    return tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))


def _check_conversation(row: Conversation, at: str) -> None:
    roles = [message.role for message in row.messages]
    asked = next((i for i, role in enumerate(roles) if role != "assistant"), len(roles))
    answers = [message for message in row.messages[asked:] if message.role == "assistant"]
    said = [message for message in answers if message.content.strip() or message.tool_calls]
    if not any(message.learned for message in said):
        wrong = (
            "no answer that is learned"
            if said
            else "an empty answer"
            if answers
            else "no assistant turn after somebody else's"
        )
        raise UserError(
            f"{at} has {wrong} (roles: {', '.join(roles) or 'none'}); every row needs an answer to learn, correct or "
            "remove it."
        )
    try:
        json.dumps(row.to_data(), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{at} holds half a surrogate pair, which is not text; correct or remove the row.") from error
    except ValueError as error:
        raise UserError(
            f"{at} holds a number in its tools or calls that JSON cannot say; correct or remove it."
        ) from error


# Gradings


def _gradings(
    table: Table, given: dict[str, str], mapped: dict[str, str], rows: list[Conversation], who: str
) -> tuple[list[Grading], list[str]]:
    """Gradings of the rows; `choices` that nobody named and that do not fit are left alone, with a note."""
    gradings, left = [], []
    verified = {field: column for field, column in given.items() if field != "choices"}
    for (at, record), row in zip(table.records, rows, strict=True):
        try:
            gradings.append(read_grading(given, record, row, f"{who}: {at}"))
        except UserError as error:
            if "choices" in mapped:
                raise
            gradings.append(read_grading(verified, record, row, f"{who}: {at}"))
            left.append(str(error).removeprefix(f"{who}: ").partition("; ")[0])
    notes = [f"choices left alone in {len(left)} of {len(rows)} rows: {left[0]}"] if left else []
    return gradings, notes
