"""`Conversation`: one row as its messages, with the tools that its template may name; the form that all else reads.

The keys are those of chat templates (`role`, `content`, `reasoning_content`, `tool_calls`, `tool_call_id`, `name`), so
that `to_dicts` can be handed to a template, to a trainer and to JSON as it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# What a message may say beside role and content, in the order in which it is written.
EXTRAS = ("reasoning_content", "tool_calls", "tool_call_id", "name")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `learned` counts only for assistant turns: whether their tokens are trained on."""

    role: str
    content: str = ""  # "" beside tool calls that come without text
    reasoning_content: str | None = None  # thoughts in front of the answer
    tool_calls: tuple[dict[str, Any], ...] = field(default=(), hash=False)  # {type: function, function: {name, …}}
    tool_call_id: str | None = None  # of a tool's result: which call it answers
    name: str | None = None
    learned: bool = True

    @property
    def answers(self) -> bool:
        """Whether this turn is trained on."""
        return self.role == "assistant" and self.learned

    def to_dict(self) -> dict[str, Any]:
        """The message as chat templates and trainers know it; an assistant turn that is not learned has `weight: 0`."""
        given: dict[str, Any] = {"role": self.role, "content": self.content}
        for key in EXTRAS:
            value = getattr(self, key)
            if value is not None and value != ():
                given[key] = list(value) if key == "tool_calls" else value
        return given | ({} if self.learned or self.role != "assistant" else {"weight": 0})

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Message":
        """Message from what `to_dict` gave."""
        rest = {key: given[key] for key in EXTRAS if key in given and key != "tool_calls"}
        calls = tuple(given.get("tool_calls", ()))
        return cls(given["role"], given["content"], tool_calls=calls, learned=given.get("weight", 1) != 0, **rest)


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns of one row in order, and the tools that may be called in it (JSON schemas; none if empty)."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = field(default=(), hash=False)

    @property
    def last_answer(self) -> int:
        """Index of the last turn that is learned: the answer that is graded."""
        return max(i for i, message in enumerate(self.messages) if message.answers)

    @property
    def answer(self) -> str:
        """Text of that turn."""
        return self.messages[self.last_answer].content

    @property
    def answer_is_text(self) -> bool:
        """Whether that text is all of the turn, so that it can be compared with what a model writes."""
        return not (said := self.messages[self.last_answer]).tool_calls and said.reasoning_content is None

    @property
    def plain(self) -> bool:
        """Whether role and content of its messages are all there is."""
        return not self.tools and all(set(message.to_dict()) == {"role", "content"} for message in self.messages)

    @property
    def plain_texts(self) -> bool:
        """The same, but that an answer may be context."""
        return not self.tools and not any(
            m.tool_calls or m.reasoning_content is not None or m.tool_call_id is not None or m.name is not None
            for m in self.messages
        )

    def until_answer(self, content: str | None = None) -> "Conversation":
        """The turns up to the last answer, with another text in its place if one is given."""
        last = self.last_answer
        said = self.messages[last] if content is None else replace(self.messages[last], content=content)
        return replace(self, messages=(*self.messages[:last], said))

    def to_dicts(self) -> list[dict[str, Any]]:
        """The messages as `Message.to_dict` gives them."""
        return [message.to_dict() for message in self.messages]

    def to_data(self) -> list[Any]:
        """Plain data for JSON, short if there is little to say: [[role, content] or an object, …], and the tools.

        What equals in it is the same row: its hash identifies the row.
        """
        messages = [
            [given["role"], given["content"]] if set(given) == {"role", "content"} else given
            for given in self.to_dicts()
        ]
        return [messages, list(self.tools)] if self.tools else [messages]

    @classmethod
    def from_data(cls, data: Iterable[Any]) -> "Conversation":
        """Conversation from what `to_data` gave."""
        messages, *tools = data
        turns = (Message(*m) if isinstance(m, list) else Message.from_dict(m) for m in messages)
        return cls(tuple(turns), tuple(tools[0]) if tools else ())


def conversation(*turns: tuple[str, str]) -> Conversation:
    """Conversation of turns that are only (role, content)."""
    return Conversation(tuple(Message(role, content) for role, content in turns))
