"""Right answers: by options, by verifiers and by comparing what the model writes.

Shapes: B rows, L padded length.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp

from taskpgm.chat.encoder import ChatEncoder, Encoded
from taskpgm.data.messages import Conversation
from taskpgm.errors import UserError
from taskpgm.evaluation.likelihood import Questions, left_padded
from taskpgm.lm.batching import batches
from taskpgm.lm.model import LanguageModel
from taskpgm.pool.task_pool import Row

GradedBy = Literal["choices", "verifier", "exact"]
EXACT_TOKENS = 32  # longest reference compared as a whole: longer answers are seldom said in the same words
VERIFIED_TOKENS = 128  # longest reference of a set with a verifier: writing takes a pass a token
SPARE_TOKENS = 4  # what the model may write beyond the longest reference: a little space, a full stop, the end of turn


def written_answers(lm: LanguageModel, encoder: ChatEncoder, rows: Sequence[Row]) -> list[str]:
    """What the model writes, greedily, in place of every row's last answer.

    The prompt is the row's own tokens before that answer. Writing ends with a token that ends a turn, or a few tokens
    behind the length of the longest reference.
    """
    references = encoder.encode([_until_answer(row) for row in rows])
    turns = [row.last_turn for row in references if row]
    assert len(turns) == len(rows), "rows fit: their lengths were measured"
    starts = [int(np.flatnonzero(turn.response)[0]) for turn in turns]
    prompts = [turn.ids[:start] for turn, start in zip(turns, starts, strict=True)]
    limit = max(turn.response_tokens for turn in turns) + SPARE_TOKENS
    if lm.limits.positions is not None:  # what is written needs positions too: long prompts lose their left end
        limit = min(limit, lm.limits.positions - 1)
        prompts = [ids[-(lm.limits.positions - limit) :] for ids in prompts]
    ends = _ends(lm, turns)
    answers = [""] * len(rows)
    for batch in batches([len(prompt) + limit for prompt in prompts], lm.token_budget):
        for i, ids in zip(batch, _greedy(lm, [prompts[i] for i in batch], limit, ends), strict=True):
            answers[i] = lm.tokenizer.decode(ids, skip_special_tokens=True)
    return answers


def same_answer(written: str, reference: str) -> bool:
    """Whether two answers are equal but for case, white space around them and one full stop at their end."""
    return _plain(written) == _plain(reference)


class Grades(NamedTuple):
    """How many answers of a set are right; None if the set has no such grade. Fields as in `SetEvaluation`."""

    measure: GradedBy | None = None
    marked: int = 0
    accuracy: float | None = None
    accuracy_norm: float | None = None
    score: float | None = None
    option_loss: float | None = None
    option_halves: tuple[float, float] | None = None


def graded_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows whose answer is text: no calls, no thoughts."""
    return [row for row in rows if row.conversation.answer_is_text]


def rows_to_choose(rows: Sequence[Row]) -> list[Row]:
    """The rows with choices, if at least half of those that are graded have some; none otherwise."""
    rows = graded_rows(rows)
    with_choices = [row for row in rows if row.choices]
    return with_choices if 2 * len(with_choices) >= len(rows) else []


def grade_chosen(questions: Questions) -> Grades:
    """Grades by the options of rows with choices."""
    right, right_norm, losses = [], [], []
    for row, logp in zip(questions.rows, questions.logp(), strict=True):
        if logp is not None and row.choices:
            length = np.array([max(1, len(choice)) for choice in row.choices])
            right.append(row.choices[int(logp.argmax())] == _answer(row))
            right_norm.append(row.choices[int((logp / length).argmax())] == _answer(row))
            losses.append(float(logsumexp(logp) - logp[row.choices.index(_answer(row))]))
    if not right:
        return Grades()
    halves = (float(np.mean(losses[::2])), float(np.mean(losses[1::2]))) if len(losses) > 1 else None
    accuracy, accuracy_norm = float(np.mean(right)), float(np.mean(right_norm))
    return Grades("choices", len(right), accuracy, accuracy_norm, None, float(np.mean(losses)), halves)


def grade_written(lm: LanguageModel, encoder: ChatEncoder, rows: Sequence[Row]) -> Grades:
    """Grades of what the model writes in place of the rows' answers, by verifiers if half of the rows carry one."""
    rows = graded_rows(rows)
    verified = [row for row in rows if row.verifier]
    if not rows:
        return Grades()
    if 2 * len(verified) >= len(rows):
        return _grade_written(lm, encoder, "verifier", verified, VERIFIED_TOKENS, _verified_score())
    return _grade_written(lm, encoder, "exact", rows, EXACT_TOKENS, lambda row, said: same_answer(said, _answer(row)))


def _grade_written(
    lm: LanguageModel, encoder: ChatEncoder, measure: GradedBy, rows: list[Row], longest: int,
    score: Callable[[Row, str], float],
) -> Grades:  # fmt: skip
    references = [row.last_turn for row in encoder.encode([_until_answer(row) for row in rows]) if row]
    if max(turn.response_tokens for turn in references) > longest:
        return Grades()
    scores = [float(score(row, said)) for row, said in zip(rows, written_answers(lm, encoder, rows), strict=True)]
    right = float(np.mean([score >= 1 for score in scores]))
    return Grades(measure, len(rows), right, score=float(np.mean(scores)) if measure == "verifier" else None)


def _verified_score() -> Callable[[Row, str], float]:
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError(
            "Grading these answers needs reasoning-gym, which is not installed; pip install 'taskpgm[demo]', or ignore "
            "the column with columns: {reasoning_gym: ''}."
        ) from error

    def score(row: Row, said: str) -> float:
        assert row.verifier
        entry = {**row.verifier, "question": row.conversation.messages[row.conversation.last_answer - 1].content}
        return float(reasoning_gym.get_score_answer_fn(row.verifier["dataset"])(answer=said.strip(), entry=entry))

    return score


def _until_answer(row: Row) -> Conversation:
    return row.conversation.until_answer()


def _answer(row: Row) -> str:
    return row.conversation.answer


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()


def _ends(lm: LanguageModel, turns: Sequence[Encoded]) -> list[int]:
    """Tokens that end a turn: the tokenizer's, the model's own, and the special token that ends every reference."""
    own = lm.model.generation_config.eos_token_id
    ends = {lm.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    last = {int(turn.ids[turn.response][-1]) for turn in turns}
    special = set(lm.tokenizer.get_added_vocab().values())
    return sorted(ends | (last if len(last) == 1 and last <= special else set()))


def _greedy(
    lm: LanguageModel, prompts: Sequence[NDArray[np.int32]], limit: int, ends: list[int]
) -> Iterator[list[int]]:
    """Token ids written after every prompt, up to the first that ends a turn; prompts are padded on the left."""
    from transformers import GenerationConfig

    ids_BL, seen_BL = left_padded(lm, prompts)
    plain = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=limit, repetition_penalty=1.0, no_repeat_ngram_size=0,
        eos_token_id=ends, pad_token_id=lm.tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.inference_mode():
        written_BL = lm.model.generate(input_ids=ids_BL, attention_mask=seen_BL, generation_config=plain)[
            :, ids_BL.shape[1] :
        ]
    for ids in written_BL.tolist():
        stop = next((k for k, token in enumerate(ids) if token in ends), len(ids))
        yield ids[:stop]
