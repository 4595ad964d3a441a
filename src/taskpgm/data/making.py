"""A record as a conversation: its data, in the layout that its source has."""

import json
from dataclasses import replace
from typing import Any

from taskpgm.data.columns import LAYOUTS, Way
from taskpgm.data.messages import Conversation, Message
from taskpgm.data.turns import CANONICAL, Spot, are_turns, read_tools, read_turns, speaks, system_text
from taskpgm.data.values import UnreadableError, is_absent, is_empty, is_null, text_of, unpacked
from taskpgm.errors import UserError

AS_TEXT = "write it as text, of several the one that is meant, or as such a list; or remove the row"
ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False)


def text_of_data(data: list[Any]) -> bytes:
    """The data as JSON; empty if it holds half a surrogate pair."""
    try:
        return ENCODER.encode(data).encode()
    except UnicodeEncodeError:
        return b""


def quick_data(way: Way, record: dict[str, Any]) -> list[Any] | None:
    """Data of a row that is only plain texts, which most are; none if it takes a closer look."""
    if way.layout == "messages":
        return _quick_turns(record.get(way.columns["messages"])) if len(way.columns) == 1 else None
    texts: list[Any] = [record.get(column) for column in way.columns.values()]
    if not way.columns.keys() <= set(LAYOUTS[way.layout]) or not all(type(text) is str for text in texts):
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
        if role == "assistant" and not said.strip():
            return None
        found.append([role, said])
    return [found] if found[0][0] != "assistant" and found[-1][0] == "assistant" else None


def conversation_of(
    shape: Way, record: dict[str, Any], at: str, unread: dict[str, None], blanks: list[str]
) -> Conversation:
    """The row that a record is.

    Args:
        at: where it stands, for messages.
        unread: gets the keys inside of columns that are not read.
        blanks: gets `at` for every earlier answer that says nothing, which is context.

    Raises:
        UserError: it cannot be read.
    """
    try:
        found = _conversation(shape, record, at, unread)
    except UnreadableError as error:
        raise UserError(f"{at} has JSON that cannot be read ({error}); correct or remove the row.") from error
    found = _without_blanks(found, at, blanks)
    _check_conversation(found, at)
    return found


def _without_blanks(row: Conversation, at: str, blanks: list[str]) -> Conversation:
    """The row with answers that say nothing as context, but for the last, which is an error: it would teach to stop."""
    answers = [i for i, message in enumerate(row.messages) if message.answers]
    blank = [i for i in answers[:-1] if _says_nothing(row.messages[i])]
    blanks += [at] * len(blank)
    if not blank:
        return row
    turns = (replace(turn, learned=False) if i in blank else turn for i, turn in enumerate(row.messages))
    return replace(row, messages=tuple(turns))


def _says_nothing(message: Message) -> bool:
    return not (message.content.strip() or message.tool_calls or (message.reasoning_content or "").strip())


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
    return Conversation(turns, tools)


def _asked(shape: Way, record: dict[str, Any], spots: dict[str, Spot], at: str) -> tuple[Message, ...]:
    """The turns before the answer: context, whoever speaks."""
    if shape.layout == "prompt_completion":
        spot = spots["prompt"]
        given = record.get(spot.column)
        if _are_messages(given, shape, record):
            turns = read_turns(given, spot, AS_TEXT)
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
    if shape.layout == "prompt_completion" and _are_messages(given, shape, record):
        turns = read_turns(given, spot, AS_TEXT)
        if turns and turns[0].role not in ("assistant", "tool"):
            raise spot.error(
                f"a turn of {turns[0].role} as its first",
                "a completion is an answer: name whole conversations as messages",
            )
        if thoughts:
            raise spots["reasoning_content"].error("thoughts of a completion that is a list of messages")
        return turns
    return (Message("assistant", text_of(given, spot.column, at), thoughts),)


def _are_messages(value: Any, shape: Way, record: dict[str, Any]) -> bool:
    """Whether a prompt or completion is messages: a list or an object, or such as JSON text, as in CSV."""
    if isinstance(value, list | dict) or speaks(value):
        return True
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
    said = Message("system", system_text(given, spot))
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
    if is_null(found):
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
    ends = [message for message in row.messages if message.answers][-1:]
    if not any(message.learned for message in said) or any(map(_says_nothing, ends)):
        wrong = (
            "an empty answer at its end"
            if said and any(map(_says_nothing, ends))
            else "no answer that is learned"
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
