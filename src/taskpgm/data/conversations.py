"""`Reading`: the rows of one source as conversations, whatever shape they have.

What a source says beside its questions and answers is read, named in a note, or refused: nothing vanishes in silence.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, NamedTuple

from taskpgm.config import ALIASES, EXTRAS, FIELDS, GRADING_COLUMNS, MEDIA, REFUSED, Source, TargetConfig
from taskpgm.data.facts import Facts
from taskpgm.data.grading import Grading, read_grading
from taskpgm.data.messages import Conversation, Message
from taskpgm.data.sources import Part, check_alike, open_source
from taskpgm.data.turns import CANONICAL, Spot, are_turns, read_tools, read_turns
from taskpgm.data.values import is_absent, is_empty, text_of, unpacked
from taskpgm.errors import UserError

READING_VERSION = 2  # a run whose rows were read in another way reads them again
HEAD = 64  # rows of every file that its columns are told from at first: a guess
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


class _Shape(NamedTuple):
    layout: Layout
    columns: dict[str, str]  # field -> column


class PartReading(NamedTuple):
    """What reading one part came to."""

    facts: Facts
    unread: dict[str, None]  # keys inside of columns that are not read, in order of appearance
    left: list[str]  # for each row whose `choices` were left alone, why; of many the first alone has words
    error: UserError | None  # of its first row that cannot be read


# Takes a row: its number, its data (`Conversation.to_data`), that as JSON, its grading.
Keep = Callable[[int, list[Any], bytes, Grading], None]
ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False)
UNGRADED = Grading()


def read_source(source: Source, path: str | None = None) -> Reading:
    """Reading of a task or target, or of another path (its validation rows) with the same columns, all in memory.

    Every row has an assistant turn that is learned and says something, and a turn of somebody else before it. Numbers
    and booleans in a text column are taken as text, the way JSON spells them (CSV: exactly as the file does); null is
    an error there, and no value in an optional column.

    Raises:
        UserError: anything about the source that its owner has to put right.
    """
    stream = SourceStream(source, path)
    rows: list[Conversation] = []
    gradings: list[Grading] = []
    places: list[str] = []

    def read(part: Part) -> PartReading:
        def keep(number: int, data: list[Any], text: bytes, grading: Grading) -> None:
            rows.append(Conversation.from_data(data))
            gradings.append(grading)
            places.append(part.place(number))

        return stream.read_part(part, keep)

    found = [read(part) for part in stream.parts]
    if not stream.settle(found):
        for kept in (rows, gradings, places):
            kept.clear()
        found = [read(part) for part in stream.parts]
    stream.check(found)
    way = stream.way
    return Reading(rows, way.layout, way.all_columns, gradings, places, stream.notes(found, len(rows)))


class SourceStream:
    """One source that is read part by part, in any order, by `read_part`.

    How its rows are to be read follows from all of its columns. Before they are known it is taken to follow from
    those of the first rows; `settle` says whether that held, and if not, all parts are to be read again.
    """

    def __init__(self, source: Source, path: str | None = None) -> None:
        self.source, self.who = source, title_of(source)
        self.path = path or source.path
        self._mapped = source.columns or {}
        self._opened = open_source(source, path, self.who)
        self.parts = self._opened.parts
        self._way = self._guess()

    @property
    def way(self) -> Way:
        """How rows are read."""
        assert self._way is not None, "settle raises without one"
        return self._way

    def _guess(self) -> Way | None:
        """The way that the first rows of every file ask for; none if that cannot be told."""
        facts = Facts()
        try:
            for first in {part.file: part for part in reversed(self.parts)}.values():
                head = Facts(first.columns)
                for number, record in islice(first.records(), HEAD):
                    head.see(first, number, record)
                facts = head.and_then(facts)
            return self._way_of(facts)
        except UserError:
            return None

    def read_part(self, part: Part, keep: Keep) -> PartReading:
        """One part, its rows handed to `keep` up to the first that cannot be read.

        Raises:
            UserError: a record that cannot be parsed.
        """
        facts, way = Facts(part.columns), self._way
        unread: dict[str, None] = {}
        left: list[str] = []
        error = None
        for number, record in part.records():
            facts.see(part, number, record)
            if way is None or error is not None:
                continue
            data = _quick(way, record) or []
            text = _text(data) if data else b""
            try:
                if not text:
                    data = _conversation(way, record, f"{self.who}: {part.place(number)}", unread).to_data()
                    text = _text(data)
                grading = self._graded(data, record, part.place(number), left) if way.graded else UNGRADED
            except UserError as found:
                error = found
                continue
            keep(number, data, text, grading)
        return PartReading(facts, unread, left, error)

    def _graded(self, data: list[Any], record: dict[str, Any], at: str, left: list[str]) -> Grading:
        """Grading of a row; `choices` that nobody named and that do not fit are left alone."""
        row, graded, at = Conversation.from_data(data), self.way.graded, f"{self.who}: {at}"
        try:
            return read_grading(graded, record, row, at)
        except UserError as error:
            if self.way.must_grade:
                raise
            verified = {field: column for field, column in graded.items() if field != "choices"}
            found = read_grading(verified, record, row, at)
            left.append("" if left else str(error).removeprefix(f"{self.who}: ").partition("; ")[0])
            return found

    def settle(self, found: Sequence[PartReading]) -> bool:
        """Whether the parts, all of them in order, were read the right way; if not, the next reading will be.

        Raises:
            UserError: no rows, or columns that cannot be read.
        """
        way = self._way_of(_all_facts(found), self._columns_of(found))
        held, self._way = way == self._way, way
        return held

    def check(self, found: Sequence[PartReading]) -> None:
        """Raise UserError for the first row that cannot be read."""
        for one in found:
            if one.error:
                raise one.error

    def _columns_of(self, found: Sequence[PartReading]) -> dict[str, dict[str, None]]:
        columns: dict[str, dict[str, None]] = {}
        for part, one in zip(self.parts, found, strict=True):
            if one.facts.count:
                columns.setdefault(part.file, {}).update(one.facts.columns)
        return columns

    def _way_of(self, facts: Facts, columns: dict[str, dict[str, None]] | None = None) -> Way:
        if not facts.count:
            raise UserError(f"{self.who}: {self.path} holds no rows; give it some or leave it out.")
        check_alike(columns or {}, self._opened.asked, self.source)
        shape = _shape(facts, self._mapped, self.path, self.who, self._has_all)
        given = {field: self._mapped.get(field, field) for field in GRADING_COLUMNS}
        given = {field: column for field, column in given.items() if column and column in facts.columns}
        _refuse_unread(facts, shape, self._mapped, self.who)
        return Way(shape.layout, shape.columns, given, "choices" in self._mapped)

    def _has_all(self, shapes: list[_Shape]) -> bool:
        """Whether a record has the answers of several layouts."""
        answers = [shape.columns[LAYOUTS[shape.layout][-1]] for shape in shapes]
        records = (record for part in self.parts for _, record in part.records())
        return any(not any(is_empty(record.get(answer)) for answer in answers) for record in records)

    def notes(self, found: Sequence[PartReading], rows: int) -> tuple[str, ...]:
        """What `check` says of the source."""
        unread = {key: None for one in found for key in one.unread}
        left = [why for one in found for why in one.left]
        said = [f"choices left alone in {len(left)} of {rows} rows: {next(filter(None, left))}"] if left else []
        facts = _all_facts(found)
        return (*self._opened.notes, *_unread_notes(facts, self.way.all_columns, self._mapped, unread), *said)


def _all_facts(found: Sequence[PartReading]) -> Facts:
    facts = Facts()
    for one in found:
        facts = facts.and_then(one.facts)
    return facts


def title_of(source: Source) -> str:
    """How messages call a source: Task 'arc'."""
    return f"{'Target' if isinstance(source, TargetConfig) else 'Task'} {source.name!r}"


# Which columns are read


def _shape(
    table: Facts, mapped: dict[str, str], path: str, who: str, has_all: Callable[[list[_Shape]], bool]
) -> _Shape:
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
        if not has_all(found):
            raise UserError(f"{has}, in rows of {' and of '.join(ways)}; write each kind into a file of its own.")
        first = f"columns: {{{next(f'{field}: {column}' for field, column in found[0].columns.items())}}}"
        raise UserError(f"{has}, which can be read as {', or as '.join(ways)}; say which, with {first} for the first.")
    also = f" and `columns` maps {', '.join(named)}" if named else ""
    raise UserError(
        f"{has}{also}; a task needs messages, or prompt and completion, or instruction and output: name them in "
        f"`columns`{_hint(list(table.columns))}."
    )


def _hint(columns: list[str]) -> str:
    if "chosen" in columns:
        return (
            " (of preferences the chosen answers, with completion: chosen, or messages: chosen for whole conversations)"
        )
    return " (text without a question has no answer to learn)" if columns == ["text"] else ""


def _required(shape: _Shape) -> list[str]:
    return [column for field, column in shape.columns.items() if field in LAYOUTS[shape.layout]]


def _shapes(table: Facts, mapped: dict[str, str]) -> Iterator[_Shape]:
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


def _refuse_unread(table: Facts, shape: _Shape, mapped: dict[str, str], who: str) -> None:
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
        at = table.changed.get(column)
        if at or column not in table.present:
            raise UserError(
                f"{who}: {at or table.first} has a value in column {column!r}, which would change what is "
                f"trained on and is not read; {_remedy(column, shape)}ignore it with columns: {{{column}: ''}}."
            )


def _remedy(column: str, shape: _Shape) -> str:
    """How the column can be read, if it can."""
    if column == "input":
        return "map instruction, input and output to read it, or "
    field = "tools" if column == "available_tools" else "reasoning_content"
    readable = column in ("available_tools", "thinking", "reasoning", "thoughts") and field in BESIDE[shape.layout]
    return f"read it with columns: {{{field}: {column}}}, or " if readable else ""


def _unread_notes(
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


# Rows


def _text(data: list[Any]) -> bytes:
    """The data as JSON; empty if it holds half a surrogate pair."""
    try:
        return ENCODER.encode(data).encode()
    except UnicodeEncodeError:
        return b""


def _quick(way: Way, record: dict[str, Any]) -> list[Any] | None:
    """Data of a row that is only plain texts, which most are; none if it takes a closer look."""
    if way.layout == "messages":
        return _quick_turns(record.get(way.columns["messages"])) if len(way.columns) == 1 else None
    texts: list[Any] = [record.get(column) for column in way.columns.values()]
    if len(texts) > len(LAYOUTS[way.layout]) or not all(type(text) is str for text in texts):
        return None
    *asked, answer = texts
    if not answer.strip() or any(text.lstrip()[:1] in ("[", "{") for text in texts):  # a list of turns, perhaps
        return None
    return [[["user", "\n\n".join(filter(None, asked))], ["assistant", answer]]]


def _quick_turns(turns: Any) -> list[Any] | None:
    if type(turns) is not list or len(turns) < 2:
        return None
    found = []
    for turn in turns:
        if type(turn) is not dict or len(turn) != 2:
            return None
        role, said = turn.get("role"), turn.get("content")
        if type(said) is not str or type(role) is not str or role not in CANONICAL:
            return None
        found.append([role, said])
    good = found[0][0] != "assistant" and found[-1][0] == "assistant" and found[-1][1].strip()
    return [found] if good else None


def _conversation(shape: Way, record: dict[str, Any], at: str, unread: dict[str, None]) -> Conversation:
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


def _asked(shape: Way, record: dict[str, Any], spots: dict[str, Spot], at: str) -> tuple[Message, ...]:
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


def _answered(shape: Way, record: dict[str, Any], spots: dict[str, Spot], at: str) -> tuple[Message, ...]:
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


def _both_turns(shape: Way, record: dict[str, Any]) -> bool:
    """Whether prompt and completion are both lists of messages as JSON text, as in CSV."""
    return all(
        are_turns(record.get(shape.columns[field])) for field in LAYOUTS["prompt_completion"] if field in shape.columns
    )


def _optional(record: dict[str, Any], field: str, shape: Way, at: str) -> str | None:
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
