"""Rows as the model reads them: chat template, token ids and the mask of response tokens.

Needs transformers, not torch. With a chat template of its own a model sees that; without one the plain template is

    [bos] system⏎ user⏎ assistant[eos] user⏎ assistant[eos] …

where ⏎ is a newline, left out after text that ends in white space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskpgm.chat.known_text import KnownText
from taskpgm.chat.template import Rendered, Template, separated
from taskpgm.data.messages import Conversation, Message
from taskpgm.errors import UserError
from taskpgm.files import digest
from taskpgm.pool.task_pool import Length, Refused

LENGTHS_VERSION = 2  # lengths that were measured in another way are measured again
BATCH = 512  # rows tokenised at a time: a guess, enough work for the tokenizer's threads


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one row and which of them are response tokens (assistant text and its end-of-turn token)."""

    ids: NDArray[np.int32]  # (length,)
    response: NDArray[np.bool_]  # (length,) never true at 0: the first token has nothing to be predicted from
    truncated: bool

    @property
    def response_tokens(self) -> int:
        """How many tokens are learned."""
        return int(self.response.sum())

    def until(self, responses: int | None) -> "Encoded":
        """The row up to so many response tokens; itself if it has no more."""
        if responses is None or self.response_tokens <= responses:
            return self
        end = int(np.flatnonzero(self.response)[responses - 1]) + 1
        return Encoded(self.ids[:end], self.response[:end], self.truncated)

    @property
    def last_turn(self) -> "Encoded":
        """The row with only the tokens of its last answer as the response."""
        said = np.flatnonzero(self.response)
        start = said[np.flatnonzero(np.diff(said, prepend=-2) > 1)[-1]]
        return Encoded(self.ids, self.response & (np.arange(len(self.ids)) >= start), self.truncated)


class Limits(NamedTuple):
    """What a model can be given."""

    vocabulary: int  # rows of its embeddings: token ids are below it
    positions: int | None  # tokens that a row may have; None if the configuration does not say
    scaled: bool = False  # True if it has more, and reads all rows beside such a long one in another way


class ChatEncoder:
    """Encoder of rows for one tokenizer, at most `max_length` tokens a row.

    With `limits` a row that the model cannot be given is an error that says why.
    """

    def __init__(self, tokenizer: Any, max_length: int, limits: Limits | None = None) -> None:
        if not tokenizer.is_fast:
            raise UserError(
                f"The tokenizer {type(tokenizer).__name__} gives no character offsets, which the response mask needs; "
                "use a model with a fast tokenizer (tokenizer.json)."
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.limits = limits
        self.has_template = bool(tokenizer.chat_template)
        self._template = KnownText(Template(tokenizer)) if self.has_template else None
        self._end = tokenizer.eos_token or ""
        bos = tokenizer.bos_token_id
        self._bos = bos if bos is not None and list(tokenizer("a").input_ids[:1]) == [bos] else None

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that lengths depend on beside the row."""
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        tokens = [str(getattr(self.tokenizer, name, None)) for name in names]
        template = str(self.tokenizer.chat_template)
        about = [LENGTHS_VERSION, self.max_length, self.limits, template, tokens]
        return digest([*about, self.tokenizer.backend_tokenizer.to_str()])

    def lengths(self, rows: Sequence[Conversation]) -> list[Length | Refused | None]:
        """What each row costs; refused if its answers cannot be placed; None if its end does not fit."""
        measured: list[Length | Refused | None] = []
        for start in range(0, len(rows), BATCH):
            written = [self._write(row) for row in rows[start : start + BATCH]]
            encoded = iter(self._tokenise([one for one in written if isinstance(one, Rendered)]))
            measured += [one if isinstance(one, Refused) else self._measure(next(encoded), one.lost) for one in written]
        return measured

    def encode(self, rows: Sequence[Conversation]) -> list[Encoded | None]:
        """Ids and response mask of each row, cut from the left of the prompt to `max_length`.

        None if the last completion does not fit behind one prompt token. An earlier assistant turn that the cut
        runs through is kept as context, not scored.

        Raises:
            UserError: the model's template refuses a row, or hides where its assistant turns are, or the model has
                no place for one of its tokens.
        """
        written = []
        for row in rows:
            one = self._write(row)
            if isinstance(one, Refused):
                raise UserError(f"The model's chat template refuses {_shown(row)}: {one.why}.")
            written.append(one)
        encoded = self._tokenise(written)
        for row, tokens in zip(rows, encoded, strict=True):
            if tokens is not None and (why := self._beyond(tokens.ids)):
                raise UserError(f"The model cannot take {_shown(row)}: {why}.")
        return encoded

    def _measure(self, encoded: Encoded | None, lost: tuple[str, ...]) -> Length | Refused | None:
        """What an encoded row costs, or why the model cannot be given it."""
        if encoded is None:
            return None
        if why := self._beyond(encoded.ids):
            return Refused(why, "model")
        return Length(len(encoded.ids), encoded.response_tokens, encoded.truncated, lost)

    def _beyond(self, ids: NDArray[np.int32]) -> str | None:
        """Why the model cannot be given these tokens, and what to do; None if it can."""
        limits, top = self.limits, int(ids.max(initial=0))
        if limits is None:
            return None
        if top >= limits.vocabulary:
            return (
                f"it has the token {self.tokenizer.convert_ids_to_tokens(top)!r}, whose id {top} is beyond the "
                f"{limits.vocabulary} rows of the model's embeddings (the tokenizer has {len(self.tokenizer)} tokens); "
                "resize them, model.resize_token_embeddings(len(tokenizer)), and save the model, or use the tokenizer "
                "that it came with"
            )
        if limits.positions is not None and len(ids) > limits.positions:
            scaled = " before it changes the rotary factors of all rows beside this one" if limits.scaled else ""
            return (
                f"it has {len(ids)} tokens, but the model has {limits.positions} positions{scaled}; lower "
                f"probes.max_length to {limits.positions}, which cuts longer prompts at their left"
            )
        return None

    def _write(self, row: Conversation) -> Rendered | Refused:
        return self._template.write(row) if self._template else _plain(row, self._end)

    def _tokenise(self, written: Sequence[Rendered]) -> list[Encoded | None]:
        """Ids of the rendered texts; a token is a response token if it overlaps a span."""
        if not written:
            return []
        batch = self.tokenizer(
            [one.text for one in written],
            add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False,
        )  # fmt: skip
        encoded = []
        for one, ids, offsets in zip(written, batch["input_ids"], batch["offset_mapping"], strict=True):
            start, end = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
            response = np.zeros(len(ids), dtype=bool)
            for a, b in one.spans:
                response |= (end > a) & (start < b)
            ids_array = np.array(ids, dtype=np.int32)
            if not self.has_template and self._bos is not None:
                ids_array, response = np.r_[np.int32(self._bos), ids_array], np.r_[False, response]
            encoded.append(self._fit(ids_array, response))
        return encoded

    def _fit(self, ids: NDArray[np.int32], response: NDArray[np.bool_]) -> Encoded | None:
        cut = len(ids) - self.max_length
        if cut <= 0:
            response[:1] = False
            return Encoded(ids, response, truncated=False)
        head = 1 if self._bos is not None and ids[0] == self._bos else 0
        cut += head  # the kept bos takes a place
        turns = np.flatnonzero(np.diff(np.r_[False, response].astype(np.int8)) == 1)
        if not len(turns) or turns[-1] < cut + 1 - head:
            return None
        whole = turns[turns >= cut + 1 - head][0]
        response[:whole] = False
        return Encoded(np.r_[ids[:head], ids[cut:]], np.r_[response[:head], response[cut:]], truncated=True)


def _plain(row: Conversation, end: str) -> Rendered | Refused:
    """The row in the plain template, which has no place for calls, tools and thoughts."""
    if any(message.answers and message.tool_calls for message in row.messages):
        return Refused("the tokenizer has no chat template, and without one there is no way to write tool calls")
    text, spans = "", []
    for message in row.messages:
        if message.role != "assistant":
            text += separated(message.content)
            continue
        if message.answers:
            spans.append((len(text), len(text) + len(message.content) + len(end)))
        text += message.content + end
    return Rendered(text, spans, _plain_losses(row))


def _plain_losses(row: Conversation) -> tuple[str, ...]:
    def thinks(message: Message) -> bool:
        return message.reasoning_content is not None

    last = row.last_answer
    found = {
        "the thoughts of earlier answers": any(map(thinks, row.messages[:last])),
        "the thoughts of the last answer": thinks(row.messages[last]),
        "the tool calls of turns that are not learned": any(message.tool_calls for message in row.messages),
        "the tools": bool(row.tools),
    }
    return tuple(what for what, lost in found.items() if lost)


def _shown(row: Conversation) -> str:
    return f"the row with turns {', '.join(m.role for m in row.messages)} that starts {row.messages[0].content[:40]!r}"


def tokens_of(steps: Sequence[Sequence[Encoded]]) -> int:
    """Tokens of all rows of these steps, prompts included."""
    return sum(len(row.ids) for step in steps for row in step)
