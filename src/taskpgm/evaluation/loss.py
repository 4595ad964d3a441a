"""`Evaluation`: what a model under an adapter scores on held-out rows, in loss and in right answers.

Loss is the negative log-likelihood of response tokens. Answers are graded by what the rows carry: by choosing among
their options, by reasoning-gym's own verifier on what the model writes, or else by comparing that with the reference.
Writing is greedy, so that the same weights always get the same grades.

Shapes: B rows, L padded length, R response tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskpgm.chat.encoder import ChatEncoder, Encoded
from taskpgm.config import Config
from taskpgm.errors import UserError
from taskpgm.evaluation.answers import GradedBy, Grades, grade_chosen, grade_written, rows_to_choose
from taskpgm.evaluation.full_finetuning import Finetuned, under
from taskpgm.evaluation.likelihood import Questions, response_logp
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.trunk import Trunk
from taskpgm.pool.task_pool import Row
from taskpgm.probes.probe import Probe
from taskpgm.progress import QUIET, Progress
from taskpgm.types import Brief

TRUNK_MEMORY = 2 << 30  # bytes of activations that an evaluator keeps: a guess, small beside a model


@dataclass(frozen=True)
class SetEvaluation:
    """One set under one adapter. Losses are in nats; accuracies are shares of the graded rows."""

    rows: int
    tokens: int  # response tokens
    token_loss: float  # Σ over rows of NLL / Σ over rows of response tokens: long answers weigh more
    row_loss: float  # mean over rows of a row's NLL per response token: every row weighs the same
    measure: GradedBy | None = None  # how answers were graded, None: not at all
    marked: int = 0  # rows that accuracies are over: those that carry the set's measure
    accuracy: float | None = None  # choices: the most likely answer is right; otherwise what the model wrote is
    accuracy_norm: float | None = None  # choices: the same by log-likelihood per character of the answer's text
    score: float | None = None  # verifier: mean score; a wrong answer may earn a part
    option_loss: float | None = None  # choices: mean of −log P(answer) / Σ P(options), in nats
    option_halves: tuple[float, float] | None = None  # the same of every other graded row, and of the rest
    halves: tuple[float, float] | None = None  # token_loss of every other row, and of the rest: one may choose by one


@dataclass(frozen=True, repr=False)
class Evaluation(Brief):
    """All sets under one adapter."""

    sets: dict[str, SetEvaluation]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


class Evaluator:
    """The sets, encoded once; activations below the adapters are kept for the next adapter while there is memory.

    A row that does not fit into `probes.max_length` is left out; UserError for a set that has no row left.
    """

    def __init__(self, lm: LanguageModel, sets: Mapping[str, Sequence[Row]], config: Config) -> None:
        self.lm = lm
        self.encoder = ChatEncoder(lm.tokenizer, config.probes.max_length, lm.limits)
        self.sets = {name: _kept(self.encoder, name, rows) for name, rows in sets.items()}
        self.choosing = {name: rows_to_choose([row for row, _ in kept]) for name, kept in self.sets.items()}
        self.trunks: dict[tuple[str, int], Trunk] = {}
        self.questions: dict[tuple[str, int], Questions] = {}

    def evaluate(
        self, probe: Probe | Finetuned | None, generate: bool = True, grade: bool = True, progress: Progress = QUIET
    ) -> Evaluation:
        """Evaluation of the model under an adapter, trained as a whole, or as it is (None).

        Every answer includes its end-of-turn token, in losses, in options and in what may be written. A set's measure
        is the first of choices and verifier that at least half of its rows carry, else exact comparison if all
        references are short. Options replace the row's last answer. They are compared by the log-likelihood of that
        turn, summed, and divided by the characters of its text, as in lm-evaluation-harness. An answer with calls or
        thoughts is not graded.

        Args:
            generate: False leaves out what needs the model to write.
            grade: False leaves out all answers, so that only losses remain.
            progress: each set is a piece of the stage that is open.

        Raises:
            UserError: a loss that is not finite.
        """
        first = probe.first_layer(len(self.lm.layers)) if probe else 0
        found = {}
        with under(self.lm, probe):
            for name, kept in self.sets.items():
                loss = _loss(self.lm, name, kept, self._trunk(name, first))
                grades = self._grades(name, first, generate) if grade else Grades()
                found[name] = SetEvaluation(**loss, **grades._asdict())
                progress.advance()
        return Evaluation(found)

    @property
    def memory(self) -> float:
        """Bytes, roughly, that an evaluation takes beyond the model."""
        longest = max(len(one.ids) for kept in self.sets.values() for _, one in kept)
        return self.lm.memory(max(self.lm.token_budget, longest), longest, self.lm.token_budget // 4)

    def fill(self, first: int, progress: Progress, grade: bool = True) -> None:
        """Run what lies below layer `first` now, before processes part that would each do it."""
        with progress.stage("shared layers to evaluate", len(self.sets), "set"):
            for name, kept in self.sets.items():
                self._trunk(name, first).fill([one for _, one in kept], progress)
                if grade and self.choosing[name]:
                    self._asked(name, first).fill(progress)
                progress.advance()

    def _grades(self, name: str, first: int, generate: bool) -> Grades:
        if self.choosing[name]:
            return grade_chosen(self._asked(name, first))
        rows = [row for row, _ in self.sets[name]]
        return grade_written(self.lm, self.encoder, rows) if generate else Grades()

    def _asked(self, name: str, first: int) -> Questions:
        if (name, first) not in self.questions:
            memory = TRUNK_MEMORY // len(self.sets)
            self.questions[name, first] = Questions(self.lm, self.encoder, self.choosing[name], first, memory)
        return self.questions[name, first]

    def _trunk(self, name: str, first: int) -> Trunk:
        if (name, first) not in self.trunks:
            shared = self.lm.shared_prefix([one for _, one in self.sets[name]])
            self.trunks[name, first] = Trunk(self.lm, first, shared, TRUNK_MEMORY // len(self.sets))
        return self.trunks[name, first]


def _kept(encoder: ChatEncoder, name: str, rows: Sequence[Row]) -> list[tuple[Row, Encoded]]:
    """The rows that fit, with their tokens."""
    encoded = encoder.encode([row.conversation for row in rows])
    kept = [(row, one) for row, one in zip(rows, encoded, strict=True) if one]
    if not kept:
        raise UserError(
            f"{name!r} has no rows to evaluate; give it validation rows (contexts.validation), or leave it out."
        )
    return kept


def _loss(lm: LanguageModel, name: str, kept: Sequence[tuple[Row, Encoded]], trunk: Trunk) -> dict[str, Any]:
    """Rows, tokens and losses of one set."""
    return losses_of(name, response_logp(lm, [one for _, one in kept], trunk))


def losses_of(name: str, logp: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
    """The same from the log-probabilities of every row's response tokens."""
    loss = [-logp_R.astype(np.float64) for logp_R in logp]
    sums, tokens = np.array([one.sum() for one in loss]), np.array([len(one) for one in loss])
    if not np.isfinite(sums).all():
        raise UserError(
            f"The loss on {name!r} is not finite; use model.dtype bfloat16 or float32, or a lower probes.learning_rate."
        )
    losses: dict[str, Any] = {"token_loss": float(sums.sum() / tokens.sum()), "row_loss": float((sums / tokens).mean())}
    if len(logp) > 1:
        losses["halves"] = tuple(float(sums[k::2].sum() / tokens[k::2].sum()) for k in range(2))
    return {"rows": len(logp), "tokens": int(tokens.sum()), **losses}
