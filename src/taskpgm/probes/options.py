"""Contexts that are scored by their options: how likely the right answer is among those that may be given.

    q_i(c | x) = exp ℓ_i(c | x) / Σ_c' exp ℓ_i(c' | x),

ℓ_i(c | x) the summed log-probabilities of option c's tokens, its end-of-turn token among them. Such a context is one
position whose label is the right option, so that F, its errors and its certificate stay what they are. It asks for
right answers, and rewards nothing that all options share, such as their form.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from taskpgm.chat.encoder import ChatEncoder, Encoded
from taskpgm.config import Config
from taskpgm.errors import UserError
from taskpgm.files import digest
from taskpgm.pool.task_pool import Row, TaskPool
from taskpgm.types import Floats


class Options(NamedTuple):
    """The options of a set's contexts as rows to score, one context after the other."""

    rows: list[Encoded]  # each with only its last turn as the response
    counts: list[int]  # options of each context
    right: list[int]  # which row of each context's is the right answer

    @property
    def answers(self) -> list[Encoded]:
        """The right option of each context."""
        starts = np.cumsum([0, *self.counts])[:-1]
        return [self.rows[start + k] for start, k in zip(starts, self.right, strict=True)]

    def sums(self, of_tokens: NDArray[np.floating[Any]]) -> list[Floats]:
        """By context (…, options) log-probabilities of its options, from (…, T) those of all rows' tokens."""
        starts = np.cumsum([0, *(row.response_tokens for row in self.rows)])[:-1]
        of_options = np.add.reduceat(np.asarray(of_tokens, dtype=np.float64), starts, axis=-1)
        return np.split(of_options, np.cumsum(self.counts)[:-1], axis=-1)

    def logp(self, of_tokens: NDArray[np.floating[Any]]) -> Floats:
        """(contexts,) log q of the right options, from the (T,) log-probabilities of all rows' tokens."""
        of_context = self.sums(of_tokens)
        return np.array([one[k] - logsumexp(one) for one, k in zip(of_context, self.right, strict=True)])


def check_options(pool: TaskPool, config: Config) -> None:
    """UserError if a target is to be scored by options and a context of it has none, or fewer than two."""
    for name in config.option_targets:
        for row in pool[name].contexts:
            if not row.choices or len(set(row.choices)) < 2:
                raise UserError(
                    f"Target {name!r} has score: options, but a row of it has no choices to tell apart ({row.key[:8]}: "
                    f"{row.conversation.answer[:40]!r}); name their column with columns: {{choices: COLUMN}}, or leave "
                    "score out."
                )


def encode_options(encoder: ChatEncoder, pool: TaskPool, config: Config) -> dict[str, Options]:
    """Options of every target that is scored by them; contexts with an option that does not fit are left out.

    Raises:
        UserError: a target is left with no context.
    """
    return {name: options_of(encoder, name, pool[name].contexts) for name in config.option_targets}


def options_of(encoder: ChatEncoder, name: str, contexts: Sequence[Row]) -> Options:
    """Options of these contexts, which have choices; those with an option that does not fit are left out.

    Raises:
        UserError: none is left.
    """
    found = Options([], [], [])
    for row in contexts:
        choices = list(dict.fromkeys(row.choices or ()))
        encoded = encoder.encode([row.conversation.until_answer(choice) for choice in choices])
        turns = [one.last_turn for one in encoded if one]
        if len(turns) == len(choices):
            found.rows.extend(turns)
            found.counts.append(len(turns))
            found.right.append(choices.index(row.conversation.answer))
    if not found.rows:
        raise UserError(f"No context of target {name!r} fits with all its options; raise probes.max_length.")
    return found


def option_keys(pool: TaskPool, config: Config) -> Mapping[str, tuple[str, str]]:
    """By target that is scored by options: that it is, and a hash of them."""
    return {name: ("options", digest([row.choices for row in pool[name].contexts])) for name in config.option_targets}
