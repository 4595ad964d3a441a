"""Rows that a task helps and hurts most, by what its probe says of their labels: ℓ_i − ℓ_0 by position."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from taskpgm.data.messages import Conversation
from taskpgm.errors import UserError
from taskpgm.pipeline.finished import FinishedDirectory
from taskpgm.types import Floats

if TYPE_CHECKING:
    from taskpgm.chat.encoder import ChatEncoder

EACH = 2  # rows of either kind
AROUND = 4  # tokens on either side of the one that changed most
LONGEST = 220  # characters of a text
FEW = 60  # of more tasks than this, one row of either kind


@dataclass(frozen=True)
class Examples:
    """Heading -> rows: (set, prompt, answer, what changed)."""

    parts: Sequence[tuple[str, Sequence[tuple[str, str, str, str]]]]


class Rows:
    """Contexts as text, and the tokens of their responses if the tokenizer is at hand."""

    def __init__(self, run: FinishedDirectory) -> None:
        pool, scores = run.pool, run.scores
        self.rows = [(s.name, row.conversation) for name in scores.sets for s in (pool[name],) for row in s.contexts]
        self.sets, self.contexts = scores.context_set, scores.context
        self.encoder, self.note = _encoder(run)
        self.gain_NT = scores.logp[1:] - scores.logp[0]
        count = np.bincount(scores.context, minlength=len(self.rows))
        sums = [np.bincount(scores.context, g, minlength=len(self.rows)) for g in self.gain_NT]
        self.gain_NC: Floats = np.array(sums) / np.maximum(count, 1)
        self.position, self.seed = scores.position, scores.seed

    def example(self, task: int, context: int) -> tuple[str, str, str, str]:
        """One row for the page."""
        name, conversation = self.rows[context]
        prompt, answer = _texts(conversation)
        return (
            name,
            _cut(prompt),
            _cut(answer),
            f"{self.gain_NC[task, context]:+.2f} nats a token{self._token(task, context)}",
        )

    def _token(self, task: int, context: int) -> str:
        """The token that changed most, among its neighbours."""
        at = np.flatnonzero((self.contexts == context) & (self.seed == 0))
        if not len(at) or self.encoder is None:
            return ""
        change: Floats = self.gain_NT[task, at]
        most = int(np.abs(change).argmax())
        (encoded,) = self.encoder.encode([self.rows[context][1]])
        if encoded is None:
            return ""
        ids = encoded.ids[encoded.response]
        place = int(self.position[at[most]])
        before, own, after = (
            self.encoder.tokenizer.decode(part.tolist(), clean_up_tokenization_spaces=False)
            for part in (
                ids[max(0, place - AROUND) : place],
                ids[place : place + 1],
                ids[place + 1 : place + 1 + AROUND],
            )
        )
        return f"; most at {before}«{own}»{after} ({change[most]:+.2f})"


def of_tasks(run: FinishedDirectory, targets: Sequence[str]) -> tuple[dict[str, Examples], list[str]]:
    """(examples by task, why there are fewer than could be)."""
    try:
        rows = Rows(run)
    except UserError as error:
        return {}, [f"There are no example rows: {error}"]
    tasks = run.mixture.tasks
    n, each = len(tasks), EACH if len(tasks) <= FEW else 1
    served = np.flatnonzero(rows.sets >= n) if targets else np.arange(len(rows.rows))
    what = "target rows" if targets else "rows of all tasks"
    found = {}
    for i, task in enumerate(tasks):
        own, order = np.flatnonzero(rows.sets == i), served[np.argsort(-rows.gain_NC[i, served], kind="stable")]
        named = {
            "Its own rows": own[:each],
            f"The {what} that it helps most": order[:each],
            f"The {what} that it hurts most, or helps least": order[::-1][:each],
        }
        found[task] = Examples([(title, [rows.example(i, int(c)) for c in at]) for title, at in named.items()])
    return found, [rows.note] if rows.note else []


def _encoder(run: FinishedDirectory) -> "tuple[ChatEncoder | None, str]":
    """The run's tokenizer, or why there is none."""
    if len(run.mixture.tasks) > FEW:
        return None, ""
    try:
        from taskpgm.chat.encoder import ChatEncoder
        from taskpgm.lm.checkpoint import load_tokenizer

        config = run.config
        return ChatEncoder(load_tokenizer(config.model), config.probes.max_length), ""
    except (UserError, ModuleNotFoundError) as error:
        return None, f"Single tokens are not shown: {error}"


def _texts(conversation: Conversation) -> tuple[str, str]:
    """(all turns before the last answer, the last answer)."""
    last = conversation.last_answer
    return " / ".join(m.content for m in conversation.messages[:last]), conversation.messages[last].content


def _cut(value: Any) -> str:
    whole = str(value)
    return whole if len(whole) <= LONGEST else f"{whole[: LONGEST // 2]} … {whole[-LONGEST // 2 :]}"
