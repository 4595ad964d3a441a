"""`Reading`: the rows of one source as conversations, whatever shape they have.

What a source says beside its questions and answers is read, named in a note, or refused: nothing vanishes in silence.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple

from taskpgm.config import GRADING_COLUMNS, Source, TargetConfig
from taskpgm.data.columns import LAYOUTS, Layout, Shape, Way, find_shape, refuse_unread, unread_notes
from taskpgm.data.facts import Facts
from taskpgm.data.grading import Grading, read_grading
from taskpgm.data.making import conversation_of, quick_data, text_of_data
from taskpgm.data.messages import Conversation
from taskpgm.data.parts import Part
from taskpgm.data.sources import check_alike, open_source
from taskpgm.data.splits import named
from taskpgm.data.values import is_empty
from taskpgm.errors import UserError

READING_VERSION = 5  # a run whose rows were read in another way reads them again
HEAD = 64  # rows of every file that its columns are told from at first: a guess


class Reading(NamedTuple):
    """Rows of one source, in file order, and how its columns were understood."""

    rows: list[Conversation]
    layout: Layout
    columns: dict[str, str]  # field -> column it was read from
    gradings: list[Grading]  # one a row
    places: list[str]  # where each row stands: "line 5 of jars.jsonl"
    notes: tuple[str, ...] = ()  # what `check` says of the source: columns that are not read, say


class PartReading(NamedTuple):
    """What reading one part came to."""

    facts: Facts
    unread: dict[str, None]  # keys inside of columns that are not read, in order of appearance
    blanks: list[str]  # where each earlier answer stands that says nothing
    left: list[str]  # for each row whose `choices` were left alone, why; of many the first alone has words
    error: UserError | None  # of its first row that cannot be read


# Takes a row: its number, its data (`Conversation.to_data`), that as JSON, its grading.
Keep = Callable[[int, list[Any], bytes, Grading], None]
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


def count_rows(source: Source) -> int:
    """How many different rows a task or target has; none is kept in memory.

    Raises:
        UserError: anything about the source that its owner has to put right.
    """
    stream, keys = SourceStream(source), set[bytes]()

    def keep(number: int, data: list[Any], text: bytes, grading: Grading) -> None:
        keys.add(blake2b(text, digest_size=16).digest())

    found = [stream.read_part(part, keep) for part in stream.parts]
    if not stream.settle(found):
        keys.clear()
        found = [stream.read_part(part, keep) for part in stream.parts]
    stream.check(found)
    return len(keys)


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
        except (UserError, RecursionError):
            return None

    def read_part(self, part: Part, keep: Keep) -> PartReading:
        """One part, its rows handed to `keep` up to the first that cannot be read.

        Raises:
            UserError: a record that cannot be parsed.
        """
        facts, way = Facts(part.columns), self._way
        unread: dict[str, None] = {}
        left: list[str] = []
        blanks: list[str] = []
        error = None
        for number, record in part.records():
            try:
                facts.see(part, number, record)
                if way is None or error is not None:
                    continue
                data = quick_data(way, record) or []
                text = text_of_data(data) if data else b""
                if not text:
                    at = f"{self.who}: {part.place(number)}"
                    data = conversation_of(way, record, at, unread, blanks).to_data()
                    text = text_of_data(data)
                grading = self._graded(data, record, part.place(number), left) if way.graded else UNGRADED
            except UserError as found:
                error = found
                continue
            except RecursionError:
                what = f"{self.who}: {part.place(number)} is nested too deeply; correct or remove it."
                error = error or UserError(what)
                continue
            keep(number, data, text, grading)
        return PartReading(facts, unread, blanks, left, error)

    def _graded(self, data: list[Any], record: dict[str, Any], at: str, left: list[str]) -> Grading:
        """Grading of a row; `choices` that nobody named and that do not fit are left alone."""
        row, graded, at = Conversation.from_data(data), self.way.graded, f"{self.who}: {at}"
        given = record.get(self.way.columns.get(LAYOUTS[self.way.layout][-1], ""))
        try:
            return read_grading(graded, record, row, at, given)
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
        shape = find_shape(facts, self._mapped, self.path, self.who, self._has_all)
        given = {field: self._mapped.get(field, field) for field in GRADING_COLUMNS}
        given = {field: column for field, column in given.items() if column and column in facts.columns}
        refuse_unread(facts, shape, self._mapped, self.who)
        return Way(shape.layout, shape.columns, given, "choices" in self._mapped)

    def _has_all(self, shapes: list[Shape]) -> bool:
        """Whether a record has the answers of several layouts."""
        answers = [shape.columns[LAYOUTS[shape.layout][-1]] for shape in shapes]
        records = (record for part in self.parts for _, record in part.records())
        return any(not any(is_empty(record.get(answer)) for answer in answers) for record in records)

    def notes(self, found: Sequence[PartReading], rows: int) -> tuple[str, ...]:
        """What `check` says of the source."""
        unread = {key: None for one in found for key in one.unread}
        left = [why for one in found for why in one.left]
        said = [f"choices left alone in {len(left)} of {rows} rows: {next(filter(None, left))}"] if left else []
        blanks = [at for one in found for at in one.blanks]
        if blanks:
            what = "answers say" if len(blanks) > 1 else "answer says"
            first = blanks[0].removeprefix(f"{self.who}: ")
            said.append(f"{len(blanks)} earlier {what} nothing: context, not learned (the first in {first})")
        facts, filled = _all_facts(found), self._columns_of(found)
        blank = [file for file in dict.fromkeys(part.file for part in self.parts) if file not in filled]
        said += [f"no rows in {named(blank)}"] if blank else []
        return (*self._opened.notes, *unread_notes(facts, self.way.all_columns, self._mapped, unread), *said)


def _all_facts(found: Sequence[PartReading]) -> Facts:
    facts = Facts()
    for one in found:
        facts = facts.and_then(one.facts)
    return facts


def title_of(source: Source) -> str:
    """How messages call a source: Task 'arc'."""
    return f"{'Target' if isinstance(source, TargetConfig) else 'Task'} {source.name!r}"
