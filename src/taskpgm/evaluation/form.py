"""`Form`: how much of what a mixture is predicted to gain on targets with choices is the form of answers.

Every context of such a target is scored again with one of its wrong options in the right one's place. What all options
share, such as their form, lifts both alike; what tells them apart lifts the right one alone. With d the change of the
probes' ensemble's loss from uniform to the mixture,

    d(right answers) = d(wrong answers) + d(right answers) − d(wrong answers) = form + substance.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from taskpgm.config import Config
from taskpgm.data.pool import Row, TaskPool
from taskpgm.errors import UserError
from taskpgm.scores import Scores
from taskpgm.types import Brief, Floats, Ints

if TYPE_CHECKING:
    from taskpgm.data.chat import ChatEncoder, Encoded

WRONG = "~wrong"  # the set of wrong answers; no task or target can have this name


class WrongAnswers(NamedTuple):
    """Contexts of targets with a wrong option in the right one's place."""

    rows: "list[Encoded]"
    of: Ints  # (rows,) which context of the scores each one repeats


@dataclass(frozen=True)
class TargetForm:
    """One target: changes of the ensemble's loss from uniform to the mixture, in nats a token; negative is better."""

    name: str
    contexts: int
    right: float
    wrong: float


@dataclass(frozen=True, repr=False)
class Form(Brief):
    """Predicted changes on the targets with choices, their weights as in the mixture's energy.

    Attributes:
        right: of the right answers' loss, in nats a token.
        wrong: of wrong answers' loss: what is the form of answers.
        error: standard error of right − wrong over the choice of contexts.
        mixture: the shares that this is of.
    """

    right: float
    wrong: float
    error: float
    targets: tuple[TargetForm, ...]
    mixture: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"mixture": dict(self.mixture)}


def wrong_answers(encoder: "ChatEncoder", pool: TaskPool, config: Config) -> WrongAnswers:
    """A wrong option for every context of the targets with choices that are scored by tokens.

    Which one follows from the row alone. Contexts that do not fit with it are left out.

    Raises:
        UserError: no target has any.
    """
    rows: list[Encoded] = []
    of: list[int] = []
    start = sum(_fitting(encoder, task.contexts).count(True) for task in pool.tasks)
    for target in pool.targets:
        fits = _fitting(encoder, target.contexts)
        kept = [row for row, fit in zip(target.contexts, fits, strict=True) if fit]
        if target.name not in config.option_targets:
            asked = [(i, wrong) for i, row in enumerate(kept) if (wrong := _wrong_option(row)) is not None]
            encoded = encoder.encode([kept[i].conversation.until_answer(wrong) for i, wrong in asked])
            found = [(start + i, one) for (i, _), one in zip(asked, encoded, strict=True) if one]
            rows += [one.until(config.contexts.positions) for _, one in found]
            of += [i for i, _ in found]
        start += len(kept)
    if not rows:
        raise UserError(
            "No target that is scored by tokens has rows with choices to tell apart, so there is no form to measure; "
            "name their column with columns: {choices: COLUMN}."
        )
    return WrongAnswers(rows, np.array(of))


def _fitting(encoder: "ChatEncoder", rows: Sequence[Row]) -> list[bool]:
    return [one is not None for one in encoder.encode([row.conversation for row in rows])]


def has_form(pool: TaskPool, config: Config) -> bool:
    """Whether a target that is scored by tokens has choices to tell apart."""
    targets = [target for target in pool.targets if target.name not in config.option_targets]
    return any(_wrong_option(row) is not None for target in targets for row in target.contexts)


def _wrong_option(row: Row) -> str | None:
    others = [choice for choice in dict.fromkeys(row.choices or ()) if choice != row.conversation.answer]
    if not others:
        return None
    return others[hashlib.blake2b(row.key.encode(), digest_size=8).digest()[0] % len(others)]


def measure_form(
    scores: Scores, wrong_logp: Floats, wrong: WrongAnswers, weights: Mapping[str, float], p: Floats, uniform: Floats
) -> Form:
    """Form and substance of what the mixture p is predicted to change.

    Args:
        wrong_logp: (n, columns) log-probabilities of the wrong answers under the tasks' probes, context by context,
            once for every probe seed.
        weights: of the targets by name.
        p: (n,) the mixture.
        uniform: (n,) what it is compared with.
    """
    right_C = _changes(scores.logp[1:], scores.context, len(scores.context_set), p, uniform)[wrong.of]
    seeds = int(scores.seed.max()) + 1
    context = np.tile(np.repeat(np.arange(len(wrong.rows)), [row.response_tokens for row in wrong.rows]), seeds)
    wrong_C = _changes(wrong_logp, context, len(wrong.rows), p, uniform)
    set_C, w = scores.context_set[wrong.of], scores.target_weights(weights)
    sets = np.unique(set_C)
    w = w[sets] / w[sets].sum()
    means = np.array([[right_C[set_C == s].mean(), wrong_C[set_C == s].mean()] for s in sets])
    spread = [np.var(d := (right_C - wrong_C)[set_C == s], ddof=min(1, len(d) - 1)) / len(d) for s in sets]
    targets = tuple(
        TargetForm(scores.sets[s], int((set_C == s).sum()), float(right), float(other))
        for s, (right, other) in zip(sets, means, strict=True)
    )
    right, other = w @ means
    shares = dict(zip(scores.tasks, p.tolist(), strict=True))
    return Form(float(right), float(other), float(np.sqrt(w**2 @ np.array(spread))), targets, shares)


def _changes(logp_NT: Floats, context_T: Ints, contexts: int, p: Floats, uniform: Floats) -> Floats:
    """(contexts,) change of the ensemble's mean loss a token from uniform to p."""
    top_T = logp_NT.max(axis=0)
    likelihoods = np.exp(logp_NT - top_T)
    change_T = np.log(uniform @ likelihoods) - np.log(p @ likelihoods)
    return np.bincount(context_T, change_T, contexts) / np.bincount(context_T, minlength=contexts)


def form_sentence(found: Mapping[str, Any]) -> str:
    """The same in words, from JSON."""
    right, wrong = -found["right"], -found["wrong"]
    apart = f"{right - wrong:+.4f} ± {found['error']:.4f}"
    return (
        f"by the probes, on targets with choices right answers gain {right:+.4f} nats a token against uniform, wrong "
        f"options {wrong:+.4f}: {apart} is in telling them apart, the rest is the form of answers"
    )
