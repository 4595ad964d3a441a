"""Rows as the model reads them: chat template, token ids and the mask of response tokens.

Needs transformers, not torch. With a chat template of its own a model sees that; without one the plain template is

    [bos] system⏎ user⏎ assistant[eos] user⏎ assistant[eos] …

where ⏎ is a newline, left out after text that ends in white space.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskpgm.checkpoint import Limits, model_folder
from taskpgm.config import ModelConfig
from taskpgm.errors import UserError, first_line
from taskpgm.messages import Conversation
from taskpgm.tasks import Length

_GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")


def separated(text: str) -> str:
    """The text of a system or user turn as the plain template ends it: with a newline unless white space does."""
    return text if text[-1:].isspace() else text + "\n"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one row and which of them are response tokens (assistant text and its end-of-turn token)."""

    ids: NDArray[np.int32]  # (length,)
    response: NDArray[np.bool_]  # (length,) never true at 0: the first token has nothing to be predicted from
    truncated: bool


def load_tokenizer(config: ModelConfig) -> Any:
    """The model's tokenizer, with a pad token. No weights are read."""
    from transformers import AutoTokenizer

    folder = model_folder(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"No tokenizer can be loaded from {config.path!r} ({first_line(error)}); put the model's "
            "tokenizer.json and tokenizer_config.json beside its weights."
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or next(iter(tokenizer.get_vocab()))
    return tokenizer


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
        self._own_mask = self.has_template and bool(_GENERATION.search(str(tokenizer.chat_template)))
        self._end = tokenizer.eos_token or ""
        bos = tokenizer.bos_token_id
        self._bos = bos if bos is not None and list(tokenizer("a").input_ids[:1]) == [bos] else None
        marks = sorted({t for t in tokenizer.get_added_vocab() if t}, key=len, reverse=True)
        self._mark = re.compile("|".join(map(re.escape, marks))) if marks else None

    def lengths(self, rows: Sequence[Conversation]) -> list[Length | None]:
        """Tokens, response tokens and whether the prompt was cut, for each row; None where its end does not fit."""
        return [
            None if e is None else Length(len(e.ids), int(e.response.sum()), e.truncated)
            for start in range(0, len(rows), 512)
            for e in self.encode(rows[start : start + 512])
        ]

    def encode(self, rows: Sequence[Conversation]) -> list[Encoded | None]:
        """Ids and response mask of each row, cut from the left of the prompt to `max_length`.

        None where the last completion does not fit behind one prompt token. An earlier assistant turn that the cut
        runs through is kept as context, not scored.

        Raises:
            UserError: the model's template refuses a row, or hides where its assistant turns are, or the model has
                no place for one of its tokens.
        """
        full = self._encode_masked(rows) if self._own_mask else self._encode_by_offsets(rows)
        encoded = [self._fit(ids, response) for ids, response in full]
        for row, one in zip(rows, encoded, strict=True):
            if one is not None and self.limits is not None and (why := self._beyond(one.ids, self.limits)):
                raise UserError(f"The row {_shown(row).removeprefix('the row ')} {why}")
        return encoded

    def _beyond(self, ids: NDArray[np.int32], limits: Limits) -> str | None:
        """Why the model cannot be given these tokens, and what to do; None where it can."""
        top = int(ids.max(initial=0))
        if top >= limits.vocabulary:
            return (
                f"has the token {self.tokenizer.convert_ids_to_tokens(top)!r}, whose id {top} is beyond the "
                f"{limits.vocabulary} rows of the model's embeddings (the tokenizer has {len(self.tokenizer)} tokens); "
                "resize them, model.resize_token_embeddings(len(tokenizer)), and save the model, or use the "
                "tokenizer that it came with."
            )
        if limits.positions is not None and len(ids) > limits.positions:
            return (
                f"has {len(ids)} tokens, but the model has {limits.positions} positions; lower probes.max_length to "
                f"{limits.positions}, which cuts longer prompts at their left."
            )
        return None

    def _encode_masked(self, rows: Sequence[Conversation]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
        """Ids and mask as the template's own {% generation %} block marks them."""
        for row in rows:
            out = self._apply(row, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
            mask = np.array(out["assistant_masks"], dtype=bool)
            if not mask.any():
                raise UserError(f"The chat template's generation block marks no assistant token in {_shown(row)}.")
            yield np.array(out["input_ids"], dtype=np.int32), mask

    def _encode_by_offsets(self, rows: Sequence[Conversation]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
        """Ids of the rendered text; a token is a response token where it overlaps an assistant span."""
        if not rows:
            return
        rendered = [self._spans(row) for row in rows]
        batch = self.tokenizer(
            [text for text, _ in rendered],
            add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False,
        )  # fmt: skip
        for (_, spans), ids, offsets in zip(rendered, batch["input_ids"], batch["offset_mapping"], strict=True):
            start, end = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
            response = np.zeros(len(ids), dtype=bool)
            for a, b in spans:
                response |= (end > a) & (start < b)
            ids_array = np.array(ids, dtype=np.int32)
            if not self.has_template and self._bos is not None:
                ids_array, response = np.r_[np.int32(self._bos), ids_array], np.r_[False, response]
            yield ids_array, response

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

    def _spans(self, row: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """The rendered row and the character spans of its assistant turns, end-of-turn included."""
        if not self.has_template:
            return _plain(row, self._end)
        text = str(self._apply(row, tokenize=False))
        spans, cursor = [], 0
        for i, message in enumerate(row.messages):
            if message.role != "assistant":
                continue
            prompt = str(
                self._apply(replace(row, messages=row.messages[:i]), tokenize=False, add_generation_prompt=True)
            )
            start, end = _locate(text, prompt, message.content, cursor)
            cursor = self._turn_end(text, end)
            spans.append((start, cursor))
        return text, spans

    def _turn_end(self, text: str, end: int) -> int:
        """End of the end-of-turn token right behind a turn's text; the text's own end where there is none."""
        after = end
        while text[after : after + 1] == " ":  # "[/INST] text </s>"
            after += 1
        mark = self._mark.match(text, after) if self._mark else None
        return mark.end() if mark else end

    def _apply(self, row: Conversation, **options: Any) -> Any:
        from jinja2.exceptions import TemplateError

        try:
            return self.tokenizer.apply_chat_template(row.to_dicts(), **options)
        except TemplateError as error:
            roles = [message.role for message in row.messages[:2]]
            if roles == ["system", "user"]:  # templates without a system turn
                system, user, *rest = row.messages
                merged = replace(user, content=separated(system.content) + user.content)
                return self._apply(replace(row, messages=(merged, *rest)), **options)
            raise UserError(f"The model's chat template refuses {_shown(row)}: {error}.") from error


def _locate(text: str, prompt: str, content: str, cursor: int) -> tuple[int, int]:
    """Start and end of an assistant turn: from behind the generation prompt to the end of its text.

    Where the template rewrites earlier turns, the prompt is no prefix and the turn starts at its own text.
    """
    start = len(prompt) if text.startswith(prompt) else cursor
    for said in (content, content.strip()):
        found = text.find(said, start)
        if found >= 0:
            return (start if text.startswith(prompt) else found), found + len(said)
    raise UserError(f"Cannot find the assistant's turn {content[:40]!r} in the row rendered by the chat template.")


def _plain(row: Conversation, end: str) -> tuple[str, list[tuple[int, int]]]:
    text, spans = "", []
    for message in row.messages:
        if message.role == "assistant":
            spans.append((len(text), len(text) + len(message.content) + len(end)))
            text += message.content + end
        else:
            text += separated(message.content)
    return text, spans


def _shown(row: Conversation) -> str:
    return f"the row with turns {', '.join(m.role for m in row.messages)} that starts {row.messages[0].content[:40]!r}"
