"""`Template`: a row as the model's chat template writes it, and where each assistant turn stands in that text.

The place of a turn is traced, never searched for. Every letter of the row (of long texts those at their ends) is
replaced by a stand-in of its own, a code point that no text uses, and the row is rendered a second time. With the
letters put back, that text must equal the first, letter by letter; then each stand-in shows where its letter went,
whatever the template trims, splits or leaves out. A turn reaches from behind the generation prompt to its end-of-turn
token. The module is long because rendering and placing share one trace.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskpgm.data.messages import Conversation, Message
from taskpgm.errors import first_line
from taskpgm.pool.task_pool import Refused

DAY = date(2024, 7, 26)  # for templates that write today's: what Llama's own take where there is no clock
FIRST, LAST = 0x40000, 0xDFFFF  # planes without characters: the stand-ins
EDGE = 1024  # letters at either end of a text that have stand-ins, fewer if texts are many; those between need none
NOTHING = 0x10FFFF  # what the stand-in of an empty answer stands for
BLANK = np.array([chr(i).isspace() or i < 32 for i in range(0x3001)] + [False])  # white space by code point
THOUGHT, TEXT, CALL, NAME = range(4)
QUOTES = ('"', "'", "\\")  # escaped if a call is written as JSON, or as Python writes lists

_NOW = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<form>.*?)(?P=quote)\s*\)""")
_GENERATION = re.compile(r"{%[-+]?\s*generation\s*[-+]?%}")
_CLOSER = re.compile(r"</[\w:]*think(?:ing)?>|\[/THINK\]|◁/think▷|<channel\|>")
# Thoughts that a generation prompt opens, or opens and closes: the model's own words in the row, not its prompt.
_OPENED = re.compile(r"(?:(?:[<\[◁]/?[\w:]*think(?:ing)?[>\]▷]|<\|channel>thought|<channel\|>)\s*)+$", re.IGNORECASE)
_ESCAPED = re.compile(r"\\U000([4-9a-d][0-9a-f]{4})")  # a stand-in as Python shows it in a list
_TAG = r"<[^<>\s]*>|\[[^\[\]\s]*\]"


@cache
def undated(template: str) -> str:
    """The template with `DAY` in place of today, so that a row is the same on every day."""
    return _NOW.sub(lambda found: json.dumps(DAY.strftime(found["form"])), template)


class Rendered(NamedTuple):
    """Text of a row, the spans of its learned turns in it, in order, and what of the row the text leaves out."""

    text: str
    spans: list[tuple[int, int]]
    lost: tuple[str, ...]


class Form(NamedTuple):
    """How a row is handed to a template, if the usual way does not suit it."""

    blocks: bool = False  # contents as [{type: text, text: …}]
    text_arguments: bool = False  # arguments of calls as JSON text


class Template:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        marks = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens} - {""}
        mark = "|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or r"(?!)"
        self._mark = re.compile(mark)
        self._token = re.compile(f"{mark}|{_TAG}|.", re.DOTALL)
        self._heads: dict[tuple[str, ...], int | None] = {}
        self._tails: dict[tuple[str, ...], tuple[int, bool]] = {}
        self._needs_tools: dict[str, bool] = {}

    def write(self, row: Conversation) -> Rendered | Refused:
        """The row as the template writes it; refused if the template fails or an answer cannot be placed."""
        try:
            return self._write(row, Form())
        except _RefusalError as refusal:
            for other, form in _other_ways(row, refusal):
                try:
                    return self._write(other, form)
                except _RefusalError as another:
                    objects_failed = form.text_arguments and isinstance(refusal.cause, TypeError)
                    if (another.leaves_out and not refusal.leaves_out) or objects_failed:
                        refusal = another  # it came further
            return Refused(refusal.why)

    def _write(self, row: Conversation, form: Form) -> Rendered:
        """The row in that form, traced with as few letters left as they are as the template allows."""
        text, marks = self._render(row, _dicts(row, form), masks=self.marks(row))
        if form.blocks and "'type': 'text'" in text:
            raise _RefusalError("it writes lists of texts as Python does")
        words = _words(self._source(row))
        quoted = any(message.tool_calls or message.role == "tool" for message in row.messages)
        tags = tuple(word for word in words if not word.isalnum() and (quoted or word not in QUOTES))
        edge = _edge(row)
        for kept, names in (((), True), (tags, True), (tags, False), (words, False)):
            trace = Trace(kept, names, edge)
            dicts = _dicts(row, form, trace)
            try:
                traced = _unescaped(self._render(row, dicts)[0])
            except _RefusalError:
                continue
            if trace.read(traced, text):
                return _Turns(self, row, dicts, trace, Written(text, traced, marks)).rendered()
        raise _RefusalError("it rewrites the texts of the row, so that its answers cannot be placed")

    def marks(self, row: Conversation) -> bool:
        """Whether the template itself marks what the assistant says, by {% generation %}."""
        return bool(_GENERATION.search(self._source(row)))

    def text_of(self, row: Conversation) -> str | None:
        """The row as the template writes it in the usual form; None if it fails."""
        try:
            return self._render(row, _dicts(row, Form()))[0]
        except _RefusalError:
            return None

    def prompt(self, row: Conversation, dicts: list[dict[str, Any]], generation: bool = True) -> str | None:
        """Those messages, traced, with a generation prompt behind them; None if the template fails."""
        try:
            return _unescaped(self._render(row, dicts, generation)[0])
        except _RefusalError:
            return None

    def _source(self, row: Conversation) -> str:
        try:
            return undated(str(self._tokenizer.get_chat_template(tools=list(row.tools) or None)))
        except ValueError as error:  # named templates without a default
            raise _RefusalError(first_line(error)) from error

    def _render(
        self, row: Conversation, dicts: list[dict[str, Any]], generation: bool = False, masks: bool = False
    ) -> tuple[str, list[tuple[int, int]] | None]:
        """Text, and the spans of {% generation %} blocks if they are asked for."""
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                [dicts], tools=list(row.tools) or None, chat_template=self._source(row),
                add_generation_prompt=generation, return_assistant_tokens_mask=masks,
                **self._tokenizer.special_tokens_map,
            )  # fmt: skip
        except Exception as error:  # a template is a program: anything may go wrong in it
            raise _RefusalError(first_line(error), error) from error
        return texts[0], [(a, b) for a, b in spans[0]] if masks else None

    def shows_tools(self, row: Conversation, dicts: list[dict[str, Any]], text: str) -> bool:
        """Whether the text would be another without the row's tools."""
        key = json.dumps(row.tools, sort_keys=True)
        if key not in self._needs_tools:
            self._needs_tools[key] = self.prompt(replace(row, tools=()), dicts, generation=False) != text
        return self._needs_tools[key]

    @cached_property
    def closes(self) -> bool:
        """Whether an answer without calls ends in a token of the template's own."""
        messages = [{"role": "user", "content": chr(FIRST)}, {"role": "assistant", "content": chr(FIRST)}]
        text = self.prompt(Conversation(()), messages, generation=False)
        return text is None or bool(self._mark.search(text.rpartition(chr(FIRST))[2]))

    def common(self, first: str, second: str) -> int:
        """Length of what two texts begin with alike, in whole tokens."""
        length = 0
        for a, b in zip(self._token.finditer(first), self._token.finditer(second), strict=False):
            if a[0] != b[0]:
                break
            length = a.end()
        return length

    def first_mark(self, text: str) -> int:
        """End of the first special token in a text; 0 without one."""
        mark = self._mark.search(text)
        return mark.end() if mark else 0

    def mark_behind(self, text: str) -> int:
        """End of the special token that the text begins with, spaces aside; 0 if it does not."""
        mark = self._mark.match(text, len(text) - len(text.lstrip(" ")))
        return mark.end() if mark else 0

    def head(self, key: tuple[str, ...], find: Callable[[], int | None]) -> int | None:
        """What `find` says, once for every key."""
        if key not in self._heads:
            self._heads[key] = find()
        return self._heads[key]

    def tail(self, key: tuple[str, ...], find: Callable[[], tuple[int, bool]]) -> tuple[int, bool]:
        """What `find` says, once for every key."""
        if key not in self._tails:
            self._tails[key] = find()
        return self._tails[key]


class Trace:
    """The stand-ins of a row's letters, in the order of the row, and where a text has them.

    `kept` are words that stay as they are; so do white space and, if `names` is false, the names of functions.
    """

    def __init__(self, kept: tuple[str, ...], names: bool, edge: int = EDGE) -> None:
        self.kept, self.names, self._edge = kept, names, edge
        self._letters: list[NDArray[np.uint32]] = []
        self._owners: list[tuple[int, int, int]] = []  # (letters, message, part)
        self.count = 0

    def hide(self, text: str, message: int, part: int) -> str:
        """The text with stand-ins for its letters, or for those at its ends if it is long."""
        if part == NAME and not self.names:
            return text
        codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").copy()
        hidden = ~BLANK[np.minimum(codes, len(BLANK) - 1)]
        for word in self.kept:
            at = text.find(word)
            while at >= 0:
                hidden[at : at + len(word)] = False
                at = text.find(word, at + 1)
        hidden[np.flatnonzero(hidden)[self._edge : -self._edge]] = False
        return self._hide(codes, hidden, message, part)

    def hide_nothing(self, message: int) -> str:
        """A stand-in for an empty answer."""
        return self._hide(np.array([NOTHING], dtype="<u4"), np.array([True]), message, TEXT)

    def _hide(self, codes: NDArray[np.uint32], hidden: NDArray[np.bool_], message: int, part: int) -> str:
        number = int(hidden.sum())
        if FIRST + self.count + number > LAST:
            raise _RefusalError(f"it has more than {LAST - FIRST:,} letters, too many to place its answers")
        self._letters.append(codes[hidden])
        self._owners.append((number, message, part))
        codes[hidden] = np.arange(number, dtype=np.uint32) + np.uint32(FIRST + self.count)
        self.count += number
        return codes.tobytes().decode("utf-32-le")

    def read(self, traced: str, text: str) -> bool:
        """Whether a traced text, its letters put back, equals the text; if so, the places of the letters are known."""
        codes = np.frombuffer(traced.encode("utf-32-le"), dtype="<u4")
        numbers = codes.astype(np.int64) - FIRST
        self.at = np.flatnonzero((numbers >= 0) & (numbers < self.count))  # where stand-ins are
        self.which = numbers[self.at]  # and which
        restored = codes.copy()
        restored[self.at] = np.concatenate([*self._letters, np.zeros(0, np.uint32)])[self.which]
        there = restored != NOTHING
        if restored[there].tobytes() != text.encode("utf-32-le"):
            return False
        self.shift = np.r_[0, np.cumsum(there)]  # place in the traced text -> place in the text
        lengths, messages, parts = np.array([*self._owners, (0, 0, 0)], dtype=np.int64).T
        self.message, self.part = np.repeat(messages, lengths), np.repeat(parts, lengths)
        self.place = np.full(self.count, -1, dtype=np.int64)  # of each letter the first; -1: left out
        self.place[self.which[::-1]] = self.at[::-1]
        self.times = np.bincount(self.which, minlength=self.count)
        return True

    def letters(self, message: int) -> slice:
        """Numbers of the stand-ins of a message."""
        return slice(*np.searchsorted(self.message, (message, message + 1)))

    def of(self, message: int, part: int | None = None) -> NDArray[np.int64]:
        """Places of the letters of a message (of a part of it), -1 for those left out."""
        own = self.letters(message)
        return self.place[own] if part is None else self.place[own][self.part[own] == part]


def _edge(row: Conversation) -> int:
    """How many letters at either end of each text of the row can have stand-ins."""
    texts = sum(_strings(message.to_dict()) + 1 for message in row.messages)  # a content may be cut in two
    return max(1, min(EDGE, (LAST - FIRST) // (2 * texts)))


def _strings(value: Any) -> int:
    if isinstance(value, dict | list):
        return sum(map(_strings, value.values() if isinstance(value, dict) else value))
    return int(isinstance(value, str))


def _unescaped(traced: str) -> str:
    """A traced text with the stand-ins that Python escaped in it: some templates write a list as Python shows it."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), traced)


class Written(NamedTuple):
    """A row as its template writes it."""

    text: str
    traced: str  # with stand-ins for its letters
    marks: list[tuple[int, int]] | None  # where the template itself marks answers


class _Turns:
    """The turns of one row in one traced text."""

    def __init__(
        self, template: Template, row: Conversation, dicts: list[dict[str, Any]], trace: Trace, written: Written
    ) -> None:
        self.template, self.row, self.dicts, self.trace = template, row, dicts, trace
        self.text, self.traced, self.marks = written
        self.lost: dict[str, None] = {}

    def rendered(self) -> Rendered:
        """Text, spans and losses."""
        self._count_losses()
        if self.marks is not None:
            return Rendered(self.text, self._marked_spans(), tuple(self.lost))
        spans = []
        for i, message in enumerate(self.row.messages):
            if message.answers:
                start, end = self._span(i)
                spans.append((int(self.trace.shift[start]), int(self.trace.shift[end])))
        if any(a >= b for a, b in spans) or any(b > a for (_, b), (a, _) in pairwise(spans)):
            raise _RefusalError("its answers run into one another")
        return Rendered(self.text, spans, tuple(self.lost))

    def _count_losses(self) -> None:
        last = max((i for i, message in enumerate(self.row.messages) if message.answers), default=-1)
        for i, message in enumerate(self.row.messages if (self.trace.place < 0).any() else ()):
            if message.role == "assistant":
                self._count_answer(i, message, "the last answer" if i == last else "earlier answers")
            elif (self.trace.of(i) < 0).any():
                named = {"system": "the system text", "user": "words of the user", "tool": "results of tools"}
                self.lost[named.get(message.role, f"the text of {message.role!r}")] = None
        if self.row.tools and not self.template.shows_tools(self.row, self.dicts, self.traced):
            self.lost["the tools"] = None

    def _count_answer(self, i: int, message: Message, which: str) -> None:
        """What is missing of an assistant turn: thoughts may be, the text and the calls of a learned turn may not."""
        if (self.trace.of(i, THOUGHT) < 0).any():
            self.lost[f"the thoughts of {which}"] = None
        for part, what in ((TEXT, "text"), (CALL, "tool calls"), (NAME, "tool calls")):
            if (self.trace.of(i, part) < 0).any():
                if message.learned:
                    raise _RefusalError(
                        f"it leaves out the {what} of turn {i + 1}, an answer to learn", leaves_out=True
                    )
                self.lost[f"the {what} of turns that are not learned"] = None

    def _ends(self, i: int) -> tuple[int, int]:
        """First letter of an answer in the traced text, and behind its last."""
        places = np.r_[self.trace.of(i), self._names(i)]
        places = places[places >= 0]
        if not len(places):
            raise _RefusalError(f"nothing is left of turn {i + 1}, an answer to learn", leaves_out=True)
        first, last = int(places.min()), int(places.max()) + 1
        inside = self.trace.which[(self.trace.at >= first) & (self.trace.at < last)]
        own = self.trace.letters(i)
        twice = (self.trace.times[own] > 1) & (self.trace.part[own] != NAME)
        if (self.trace.message[inside] != i).any() or twice.any():
            raise _RefusalError(f"it writes turn {i + 1} twice or mixes it with others")
        return first, last

    def _names(self, i: int) -> NDArray[np.int64]:
        """Places of the functions that a turn calls, once or twice; results that name them again are left aside."""
        if not self.row.messages[i].tool_calls:
            return self.trace.at[:0]
        named = (self.trace.message == i) & (self.trace.part == NAME)
        at = self.trace.at[named[self.trace.which]]
        if len(at) > named.sum() and (text := self.template.prompt(self.row, self.dicts[: i + 1], generation=False)):
            numbers = np.flatnonzero(named) + FIRST
            return at[: sum(text.count(chr(number)) for number in numbers.tolist())]
        return at[: named.sum()]

    def _span(self, i: int) -> tuple[int, int]:
        first, last = self._ends(i)
        before = self.trace.at[self.trace.at < first]
        begin = int(before[-1]) + 1 if len(before) else 0
        behind = self.trace.at[self.trace.at >= last]
        end = int(behind[0]) if len(behind) else len(self.traced)
        return self._start(i, begin, first), self._end(i, last, end)

    def _start(self, i: int, begin: int, first: int) -> int:
        """Behind the generation prompt, of which the text in front of the turn has all but opened thoughts."""
        lead, roles = self.traced[begin:first], [message.role for message in self.row.messages[:i]]
        key = (lead, str(_says_text_alone(self.row.messages[i])), *roles[-1:])
        head = self.template.head(key, lambda: self._head(i, begin, lead) if i else self._first_head(lead))
        if head is not None:
            return begin + head
        own = self._own_start(i, first, begin)
        if own is None:
            raise _RefusalError(f"its generation prompt does not stand in front of turn {i + 1}")
        return own

    def _head(self, i: int, begin: int, lead: str) -> int | None:
        asked = self.template.prompt(self.row, self.dicts[:i])
        behind = _behind_last(asked)
        if behind is None or (behind[0] or None) != (self.traced[begin - 1] if begin else None):
            return None
        prompt = _OPENED.sub("", behind[1])
        for wanted in (prompt, prompt.rstrip()):
            if lead.startswith(wanted):
                rest, header = lead[len(wanted) :], self._generation_prompt(i)
                if not header and rest.strip() and _says_text_alone(self.row.messages[i]):
                    return None  # a header that no prompt has: its text is what the turn is
                # Behind results some templates write the header although their prompt there leaves it out.
                return len(wanted) + (len(header) if rest.startswith(header) else 0)
        return None

    def _first_head(self, lead: str) -> int | None:
        """Of a turn that nothing goes before: behind the generation prompt of a later turn."""
        header = self._generation_prompt(0)
        at = lead.rfind(header) if header else -1
        return at + len(header) if at >= 0 else None

    def _generation_prompt(self, turn: int) -> str:
        """What the template adds for a turn, the first behind a question but this one; empty if it adds nothing."""
        pairs = enumerate(pairwise(message.role for message in self.row.messages), 1)
        for i, roles in sorted(pairs, key=lambda pair: pair[0] == turn):
            if roles == ("user", "assistant"):
                asked = _behind_last(self.template.prompt(self.row, self.dicts[:i]))
                plain = _behind_last(self.template.prompt(self.row, self.dicts[:i], generation=False))
                if asked is not None and plain is not None and asked[0] == plain[0]:
                    return _OPENED.sub("", asked[1][self.template.common(asked[1], plain[1]) :])
        return ""

    def _own_start(self, i: int, first: int, begin: int) -> int | None:
        """Where the turn's text begins, if the turn is only its text."""
        if not _says_text_alone(self.row.messages[i]):
            return None
        number = int(self.trace.which[self.trace.at == first][0])
        content = self.dicts[i]["content"]
        content = content if isinstance(content, str) else content[0]["text"]
        at = content.find(chr(FIRST + number))
        start = first
        while start > begin and at > 0 and self.traced[start - 1] == content[at - 1]:
            start, at = start - 1, at - 1
        return start

    def _end(self, i: int, last: int, end: int) -> int:
        """Behind the end-of-turn token: what the template writes behind the turn whatever follows it."""
        rest, final = self.traced[last:end], i + 1 == len(self.row.messages)
        following = "" if final else self.row.messages[i + 1].role
        tail, closed = self.template.tail((rest, following), lambda: self._tail(i, self.traced[last - 1], rest))
        if not closed and i == self.row.last_answer:
            self.lost["the end-of-turn token of the last answer"] = None
        return last + tail

    def _tail(self, i: int, letter: str, rest: str) -> tuple[int, bool]:
        """How much of the rest belongs to the turn, and whether it has an end-of-turn token."""
        own = rest
        if i + 1 < len(self.row.messages):
            stopped = self.template.prompt(self.row, self.dicts[: i + 1], generation=False) or ""
            _, found, behind = stopped.rpartition(letter)
            own = rest[: self.template.common(rest, behind)] if found else ""
        if not self._generation_prompt(i) and (stop := self.template.first_mark(own)):
            return stop, True
        if self.template.closes and self.template.first_mark(own):
            return len(own.rstrip()), True
        stop = self.template.mark_behind(rest[len(own) :])
        return (len(own) + stop if stop else len(own.rstrip())), bool(stop)

    def _marked_spans(self) -> list[tuple[int, int]]:
        """The template's own marks of learned turns, once it is sure that they hold every answer and nothing else."""
        assert self.marks is not None
        owners = self._owners_of_marks()
        for i, message in enumerate(self.row.messages):
            if message.answers:
                self._ends(i)
                places = self.trace.shift[(own := self.trace.of(i))[own >= 0]]
                if not all(any(a <= place < b for a, b in self.marks) for place in (places.min(), places.max())):
                    raise _RefusalError(f"its {{% generation %}} blocks leave out turn {i + 1}, an answer to learn")
        return [
            mark for mark, owner in zip(self.marks, owners, strict=True)
            if owner is not None and self.row.messages[owner].answers and mark[0] < mark[1]
        ]  # fmt: skip

    def _owners_of_marks(self) -> list[int | None]:
        """The message that each mark is of; a mark without words belongs to the one before."""
        assert self.marks is not None
        place = np.where(self.trace.place < 0, -1, self.trace.shift[self.trace.place])
        owners: list[int | None] = []
        for a, b in self.marks:
            held = np.unique(self.trace.message[(place >= a) & (place < b)]).tolist()
            if len(held) > 1 or any(self.row.messages[i].role != "assistant" for i in held):
                raise _RefusalError("its {% generation %} blocks hold more than an answer")
            owners.append(held[0] if held else (owners[-1] if owners else None))
        return owners


class _RefusalError(Exception):
    """Why a row cannot be used."""

    def __init__(self, why: str, cause: Exception | None = None, leaves_out: bool = False) -> None:
        super().__init__(why)
        self.why, self.cause, self.leaves_out = why, cause, leaves_out


def _other_ways(row: Conversation, refusal: _RefusalError) -> Iterator[tuple[Conversation, Form]]:
    """Other forms of a row: for templates without a system turn, with arguments as text, with contents as lists."""
    rows = [row]
    if refusal.cause is not None and [message.role for message in row.messages[:2]] == ["system", "user"]:
        system, user, *rest = row.messages
        merged = replace(user, content=separated(system.content) + user.content)
        rows.append(replace(row, messages=(merged, *rest)))
        yield rows[-1], Form()
    if isinstance(refusal.cause, TypeError) and any(message.tool_calls for message in row.messages):
        yield from ((one, Form(text_arguments=True)) for one in rows)
    if refusal.leaves_out or refusal.cause is not None:
        yield from ((one, Form(blocks=True)) for one in rows)


def separated(text: str) -> str:
    """The text of a system or user turn as the plain template ends it: with a newline unless white space does."""
    return text if text[-1:].isspace() else text + "\n"


def _says_text_alone(message: Message) -> bool:
    return not message.tool_calls and message.reasoning_content is None


def _dicts(row: Conversation, form: Form, trace: Trace | None = None) -> list[dict[str, Any]]:
    """The messages as a template reads them, traced or not."""
    return [_dict(i, message, form, trace) for i, message in enumerate(row.messages)]


def _dict(i: int, message: Message, form: Form, trace: Trace | None) -> dict[str, Any]:
    def hide(text: str, part: int) -> str:
        return trace.hide(text, i, part) if trace else text

    given = message.to_dict()
    given.pop("weight", None)
    if message.reasoning_content is not None:
        given["reasoning_content"] = hide(message.reasoning_content, THOUGHT)
    cut = max((end.end() for end in _CLOSER.finditer(message.content)), default=0) if message.role == "assistant" else 0
    content = hide(message.content[:cut], THOUGHT) + hide(message.content[cut:], TEXT)
    if trace and message.answers and not message.content.strip() and _says_text_alone(message):
        content = trace.hide_nothing(i) + content
    given["content"] = [{"type": "text", "text": content}] if form.blocks else content
    if message.tool_calls:
        given["tool_calls"] = [_call(call, form, hide) for call in message.tool_calls]
    return given


def _call(call: dict[str, Any], form: Form, hide: Callable[[str, int], str]) -> dict[str, Any]:
    """A call with its arguments as an object, the form that templates document, whatever form they came in."""
    given = call.get("function", call)
    function = {**given}
    if isinstance(function.get("name"), str):
        function["name"] = hide(function["name"], NAME)
    if "arguments" in function:
        arguments = function["arguments"]
        arguments = _hidden(_object(arguments) if isinstance(arguments, str) else arguments, hide)
        as_text = form.text_arguments and not isinstance(arguments, str)
        function["arguments"] = json.dumps(arguments, ensure_ascii=False) if as_text else arguments
    return function if given is call else {**call, "function": function}


def _object(text: str) -> Any:
    """The object that a JSON text is, or the text if it is none (or holds half a surrogate pair)."""
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) else text


def _hidden(value: Any, hide: Callable[[str, int], str]) -> Any:
    if isinstance(value, str):
        return hide(value, CALL)
    if isinstance(value, list):
        return [_hidden(item, hide) for item in value]
    return {key: _hidden(item, hide) for key, item in value.items()} if isinstance(value, dict) else value


def _behind_last(text: str | None) -> tuple[str, str] | None:
    """The last stand-in of a traced text, empty without one, and what is behind it."""
    if text is None:
        return None
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    found = np.flatnonzero((codes >= FIRST) & (codes <= LAST))
    return (text[found[-1]], text[found[-1] + 1 :]) if len(found) else ("", text)


@cache
def _words(source: str) -> tuple[str, ...]:
    """What a template may look for in a text: the words in its source, and what JSON escapes."""
    from jinja2 import Environment

    words = {
        value[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape")
        for _, kind, value in Environment().lex(source)
        if kind == "string"
    }
    return (*sorted(word for word in words if word.strip() and len(word) > 1), *QUOTES)
