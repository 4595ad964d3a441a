"""`Evaluation`: what a model under an adapter scores on held-out rows, in loss and in right answers.

Loss is the negative log-likelihood of response tokens. Answers are marked by whatever the rows carry: by choosing among
their options, by reasoning-gym's own verifier on what the model writes, or else by comparing that with the reference.
Writing is greedy, so that the same weights always get the same marks.

Shapes: B rows, L padded length, R response tokens.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from taskpgm.chat import ChatEncoder, Encoded
from taskpgm.config import Config
from taskpgm.divergence import label_logp
from taskpgm.errors import UserError
from taskpgm.lm import LanguageModel, batches, padded
from taskpgm.probes import Probe, installed
from taskpgm.reading import Messages, last_answer
from taskpgm.tasks import Row, Tell, tell_nobody

Measure = Literal["choices", "verifier", "exact"]
EXACT_TOKENS = 32  # longest reference answer that is compared word by word
VERIFIED_TOKENS = 128  # longest reference answer of a set whose verifier marks what the model writes
SPARE_TOKENS = 4  # what the model may write beyond the longest reference answer


@dataclass(frozen=True)
class SetEvaluation:
    """One set under one adapter. Losses are in nats; accuracies are shares of the marked rows."""

    rows: int
    tokens: int  # response tokens
    token_loss: float  # Σ over rows of NLL / Σ over rows of response tokens: long answers weigh more
    row_loss: float  # mean over rows of a row's NLL per response token: every row weighs the same
    measure: Measure | None = None  # how answers were marked, None: not at all
    marked: int = 0  # rows that accuracies are over: those that carry the set's measure
    accuracy: float | None = None  # choices: the most likely answer is right; otherwise what the model wrote is
    accuracy_norm: float | None = None  # choices: the same by log-likelihood per character of the answer's text
    score: float | None = None  # verifier: mean score, where a wrong answer may earn a part


@dataclass(frozen=True)
class Evaluation:
    """All sets under one adapter."""

    sets: dict[str, SetEvaluation]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Evaluation":
        """Evaluation from what `to_dict` gave."""
        return cls({name: SetEvaluation(**one) for name, one in data["sets"].items()})


def evaluate_probe(
    lm: LanguageModel,
    sets: Mapping[str, Sequence[Row]],
    probe: Probe | None,
    config: Config,
    tell: Tell = tell_nobody,
    generate: bool = True,
) -> Evaluation:
    """Evaluation of the base model under an adapter, or of the base model alone, on rows by set.

    Every answer includes its end-of-turn token, in losses, in options and in what may be written. A set's measure is
    the first of choices and verifier that at least half of its rows carry, else exact comparison where all references
    are short. Options replace the row's last answer and are compared by the log-likelihood of that turn, summed, and
    divided by the characters of its text, as in lm-evaluation-harness.

    Args:
        lm: the base model; unchanged afterwards.
        probe: None for the base model.
        config: its `probes.max_length` counts here; a row that does not fit is left out.
        generate: False leaves out what needs the model to write.

    Raises:
        UserError: a set without a row that fits, or a loss that is not finite.
    """
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length)
    found = {}
    with installed(lm, [probe]) if probe else contextlib.nullcontext():
        for done, (name, rows) in enumerate(sets.items()):
            tell("evaluating", done, len(sets))
            found[name] = _evaluate_set(lm, encoder, name, rows, generate)
    tell("evaluating", len(sets), len(sets))
    return Evaluation(found)


def response_logp(lm: LanguageModel, rows: Sequence[Encoded]) -> list[NDArray[np.float32]]:
    """(R,) log-probabilities of the response tokens of every row, under whatever adapter is installed."""
    found: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(rows)
    for batch in batches([len(row.ids) for row in rows], lm.token_budget):
        ids, response = padded([rows[i] for i in batch], lm.tokenizer.pad_token_id, lm.device)
        with torch.inference_mode():
            blocks = [label_logp(z, y).cpu().numpy() for z, y, _ in lm.response_logits(ids, response)]
        cuts = np.cumsum([int(rows[i].response.sum()) for i in batch])[:-1]
        for i, logp_R in zip(batch, np.split(np.concatenate(blocks), cuts), strict=True):
            found[i] = logp_R
    return found


def option_logp(lm: LanguageModel, encoder: ChatEncoder, rows: Sequence[Row]) -> list[NDArray[np.float64] | None]:
    """(options,) log-likelihood of every option as the last answer, end-of-turn token included; None: one is too long.

    The rows carry choices; turns behind the last answer do not count.
    """
    asked = [(i, (*row.messages[: last_answer(row.messages)], ("assistant", c))) for i, row in enumerate(rows)
             for c in row.choices or ()]  # fmt: skip
    encoded = [_last_turn(one) if one else None for one in encoder.encode([messages for _, messages in asked])]
    logp = iter(response_logp(lm, [one for one in encoded if one]))
    sums: list[list[float | None]] = [[] for _ in rows]
    for (i, _), one in zip(asked, encoded, strict=True):
        sums[i].append(float(next(logp).astype(np.float64).sum()) if one else None)
    return [None if None in of_row else np.array(of_row, dtype=np.float64) for of_row in sums]


def written_answers(lm: LanguageModel, encoder: ChatEncoder, rows: Sequence[Row]) -> list[str]:
    """What the model writes, greedily, in place of every row's last answer.

    The prompt is the row's own tokens before that answer. Writing ends with a token that ends a turn, or a few tokens
    behind the length of the longest reference.
    """
    references = encoder.encode([_until_answer(row) for row in rows])
    turns = [_last_turn(one) for one in references if one]
    assert len(turns) == len(rows), "rows fit: their lengths were measured"
    starts = [int(np.flatnonzero(one.response)[0]) for one in turns]
    prompts = [one.ids[:start] for one, start in zip(turns, starts, strict=True)]
    limit = max(int(one.response.sum()) for one in turns) + SPARE_TOKENS
    ends = _ends(lm, turns)
    found = [""] * len(rows)
    for batch in batches([len(prompt) + limit for prompt in prompts], lm.token_budget):
        for i, ids in zip(batch, _greedy(lm, [prompts[i] for i in batch], limit, ends), strict=True):
            found[i] = lm.tokenizer.decode(ids, skip_special_tokens=True)
    return found


def same_answer(written: str, reference: str) -> bool:
    """Whether two answers are equal but for case, white space around them and one full stop at their end."""
    return _plain(written) == _plain(reference)


class _Marks(NamedTuple):
    measure: Measure | None = None
    marked: int = 0
    accuracy: float | None = None
    accuracy_norm: float | None = None
    score: float | None = None


def _evaluate_set(
    lm: LanguageModel, encoder: ChatEncoder, name: str, rows: Sequence[Row], generate: bool
) -> SetEvaluation:
    encoded = encoder.encode([row.messages for row in rows])
    kept = [(row, one) for row, one in zip(rows, encoded, strict=True) if one]
    if not kept:
        raise UserError(
            f"{name!r} has no rows to evaluate; give it validation rows (contexts.validation), or leave it out."
        )
    loss = [-logp_R.astype(np.float64) for logp_R in response_logp(lm, [one for _, one in kept])]
    sums, tokens = np.array([one.sum() for one in loss]), np.array([len(one) for one in loss])
    if not np.isfinite(sums).all():
        raise UserError(
            f"The loss on {name!r} is not finite; use model.dtype bfloat16 or float32, or a lower probes.learning_rate."
        )
    marks = _mark(lm, encoder, [row for row, _ in kept], generate)
    losses = float(sums.sum() / tokens.sum()), float((sums / tokens).mean())
    return SetEvaluation(len(kept), int(tokens.sum()), *losses, **marks._asdict())


def _mark(lm: LanguageModel, encoder: ChatEncoder, rows: list[Row], generate: bool) -> _Marks:
    with_choices, verified = [row for row in rows if row.choices], [row for row in rows if row.verifier]
    if 2 * len(with_choices) >= len(rows):
        return _mark_choices(lm, encoder, with_choices)
    if not generate:
        return _Marks()
    if 2 * len(verified) >= len(rows):
        return _mark_written(lm, encoder, "verifier", verified, VERIFIED_TOKENS, _verified_score())
    return _mark_written(lm, encoder, "exact", rows, EXACT_TOKENS, lambda row, said: same_answer(said, _answer(row)))


def _mark_choices(lm: LanguageModel, encoder: ChatEncoder, rows: list[Row]) -> _Marks:
    right, right_norm = [], []
    for row, logp in zip(rows, option_logp(lm, encoder, rows), strict=True):
        if logp is not None and row.choices:
            length = np.array([max(1, len(choice)) for choice in row.choices])
            right.append(row.choices[int(logp.argmax())] == _answer(row))
            right_norm.append(row.choices[int((logp / length).argmax())] == _answer(row))
    return _Marks("choices", len(right), float(np.mean(right)), float(np.mean(right_norm))) if right else _Marks()


def _mark_written(
    lm: LanguageModel, encoder: ChatEncoder, measure: Measure, rows: list[Row], longest: int,
    score: Callable[[Row, str], float],
) -> _Marks:  # fmt: skip
    references = [_last_turn(one) for one in encoder.encode([_until_answer(row) for row in rows]) if one]
    if max(int(one.response.sum()) for one in references) > longest:
        return _Marks()
    scores = [float(score(row, said)) for row, said in zip(rows, written_answers(lm, encoder, rows), strict=True)]
    right = float(np.mean([one >= 1 for one in scores]))
    return _Marks(measure, len(rows), right, score=float(np.mean(scores)) if measure == "verifier" else None)


def _verified_score() -> Callable[[Row, str], float]:
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError(
            "Marking these answers needs reasoning-gym, which is not installed; pip install 'taskpgm[demo]', or ignore "
            "the column with columns: {reasoning_gym: ''}."
        ) from error

    def score(row: Row, said: str) -> float:
        assert row.verifier
        entry = {**row.verifier, "question": row.messages[last_answer(row.messages) - 1][1]}
        return float(reasoning_gym.get_score_answer_fn(row.verifier["dataset"])(answer=said.strip(), entry=entry))

    return score


def _until_answer(row: Row) -> Messages:
    return row.messages[: last_answer(row.messages) + 1]


def _answer(row: Row) -> str:
    return row.messages[last_answer(row.messages)][1]


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()


def _last_turn(row: Encoded) -> Encoded:
    """The row with the tokens of its last answer alone as the response."""
    said = np.flatnonzero(row.response)
    start = said[np.flatnonzero(np.diff(said, prepend=-2) > 1)[-1]]
    return Encoded(row.ids, row.response & (np.arange(len(row.ids)) >= start), row.truncated)


def _ends(lm: LanguageModel, turns: Sequence[Encoded]) -> list[int]:
    """Tokens that end a turn: the tokenizer's, the model's own, and the special token that ends every reference."""
    own = lm.model.generation_config.eos_token_id
    ends = {lm.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    last = {int(one.ids[one.response][-1]) for one in turns}
    special = set(lm.tokenizer.get_added_vocab().values())
    return sorted(ends | (last if len(last) == 1 and last <= special else set()))


def _greedy(
    lm: LanguageModel, prompts: Sequence[NDArray[np.int32]], limit: int, ends: list[int]
) -> Iterator[list[int]]:
    """Token ids written after every prompt, up to the first that ends a turn; prompts are padded on the left."""
    from transformers import GenerationConfig

    longest = max(map(len, prompts))
    ids_BL = np.full((len(prompts), longest), lm.tokenizer.pad_token_id, dtype=np.int64)
    seen_BL = np.zeros((len(prompts), longest), dtype=np.int64)
    for i, prompt in enumerate(prompts):
        ids_BL[i, longest - len(prompt) :], seen_BL[i, longest - len(prompt) :] = prompt, 1
    plain = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=limit, repetition_penalty=1.0, no_repeat_ngram_size=0,
        eos_token_id=ends, pad_token_id=lm.tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.inference_mode():
        written_BL = lm.model.generate(
            input_ids=torch.from_numpy(ids_BL).to(lm.device), attention_mask=torch.from_numpy(seen_BL).to(lm.device),
            generation_config=plain,
        )[:, longest:]  # fmt: skip
    for ids in written_BL.tolist():
        stop = next((k for k, token in enumerate(ids) if token in ends), len(ids))
        yield ids[:stop]
