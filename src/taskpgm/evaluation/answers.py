"""Right answers: by options, by verifiers and by comparing what the model writes.

Shapes: B rows, L padded length, R response tokens.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor

from taskpgm.data.chat import ChatEncoder, Encoded
from taskpgm.data.messages import Conversation
from taskpgm.data.pool import Row
from taskpgm.errors import UserError
from taskpgm.lm.batching import batches
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.packing import ends, pack
from taskpgm.lm.trunk import Trunk
from taskpgm.probes.divergence import label_logp

GradedBy = Literal["choices", "verifier", "exact"]
EXACT_TOKENS = 32  # longest reference compared as a whole: longer answers are seldom said in the same words
VERIFIED_TOKENS = 128  # longest reference of a set with a verifier: writing takes a pass a token
SPARE_TOKENS = 4  # what the model may write beyond the longest reference: a little space, a full stop, the end of turn


def response_logp(lm: LanguageModel, rows: Sequence[Encoded], trunk: Trunk | None = None) -> list[NDArray[np.float32]]:
    """(R,) log-probabilities of the response tokens of every row, under whatever adapter is installed.

    Args:
        trunk: of a set that the rows belong to, below the adapter's layers.
    """
    logp: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(rows)
    trunk = trunk or Trunk(lm, 0, lm.shared_prefix(rows))
    for batch in batches([ends(row) for row in rows], lm.token_budget, trunk.shared):
        packed = pack([rows[i] for i in batch], trunk.shared, lm.device)
        with torch.inference_mode():
            logits = lm.response_logits(packed, trunk.entering(packed), trunk.first)
            blocks = [label_logp(z, y).cpu().numpy() for z, y, _ in logits]
        cuts = np.cumsum([rows[i].response_tokens for i in batch])[:-1]
        for i, logp_R in zip(batch, np.split(np.concatenate(blocks), cuts), strict=True):
            logp[i] = logp_R
    return logp


def option_logp(lm: LanguageModel, encoder: ChatEncoder, rows: Sequence[Row]) -> list[NDArray[np.float64] | None]:
    """(options,) log-likelihood of each option as the last answer, with its end-of-turn token; None if one is too long.

    The rows carry choices; turns behind the last answer do not count. A prompt runs once for all its options if they
    leave its tokens as they are, which is nearly always.
    """
    encoded = [encoder.encode([row.conversation.until_answer(choice) for choice in row.choices or ()]) for row in rows]
    by_row: list[NDArray[np.float64] | None] = [None] * len(rows)
    asked: dict[int, _Question] = {}
    for i, options in enumerate(encoded):
        turns = [option.last_turn for option in options if option]
        if len(turns) < len(options):
            continue
        if question := _question(turns):
            asked[i] = question
        else:
            by_row[i] = np.array([logp_R.sum(dtype=np.float64) for logp_R in response_logp(lm, turns)])
    places = list(asked)
    for batch in batches([asked[i].cost for i in places], lm.token_budget):
        chosen = [places[k] for k in batch]
        for i, logp in zip(chosen, _batch_of_options(lm, [asked[i] for i in chosen]), strict=True):
            by_row[i] = logp
    return by_row


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


def grade_answers(lm: LanguageModel, encoder: ChatEncoder, rows: list[Row], generate: bool) -> Grades:
    """Grades of the rows whose answer is text, by what at least half of them carry; see `Evaluator.evaluate`."""
    rows = [row for row in rows if row.conversation.answer_is_text]  # no calls, no thoughts
    if not rows:
        return Grades()
    with_choices, verified = [row for row in rows if row.choices], [row for row in rows if row.verifier]
    if 2 * len(with_choices) >= len(rows):
        return _grade_choices(lm, encoder, with_choices)
    if not generate:
        return Grades()
    if 2 * len(verified) >= len(rows):
        return _grade_written(lm, encoder, "verifier", verified, VERIFIED_TOKENS, _verified_score())
    return _grade_written(lm, encoder, "exact", rows, EXACT_TOKENS, lambda row, said: same_answer(said, _answer(row)))


def _grade_choices(lm: LanguageModel, encoder: ChatEncoder, rows: list[Row]) -> Grades:
    right, right_norm, losses = [], [], []
    for row, logp in zip(rows, option_logp(lm, encoder, rows), strict=True):
        if logp is not None and row.choices:
            length = np.array([max(1, len(choice)) for choice in row.choices])
            right.append(row.choices[int(logp.argmax())] == _answer(row))
            right_norm.append(row.choices[int((logp / length).argmax())] == _answer(row))
            losses.append(float(logsumexp(logp) - logp[row.choices.index(_answer(row))]))
    if not right:
        return Grades()
    return Grades(
        "choices", len(right), float(np.mean(right)), float(np.mean(right_norm)), option_loss=float(np.mean(losses))
    )


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


class _Question(NamedTuple):
    prompt: NDArray[np.int32]  # token ids that all options share
    options: list[NDArray[np.int32]]  # token ids of each

    @property
    def cost(self) -> int:
        """Tokens that the cache holds when every option has a copy of the prompt."""
        return len(self.options) * (len(self.prompt) + max(map(len, self.options)))


def _question(turns: Sequence[Encoded]) -> _Question | None:
    """Prompt and options of rows that differ in their last turn; None if their prompts differ, by truncation say."""
    starts = [int(np.flatnonzero(turn.response)[0]) for turn in turns]
    prompt = turns[0].ids[: starts[0]]
    if any(not np.array_equal(turn.ids[:start], prompt) for turn, start in zip(turns, starts, strict=True)):
        return None
    ends = [int(np.flatnonzero(turn.response)[-1]) + 1 for turn in turns]
    return _Question(prompt, [turn.ids[a:b] for turn, a, b in zip(turns, starts, ends, strict=True)])


def _batch_of_options(lm: LanguageModel, questions: Sequence[_Question]) -> list[NDArray[np.float64]]:
    """(options,) log-likelihoods of every question: the prompts once, then all options on copies of their caches.

    Shapes: Q questions, O options of all, P and L padded lengths of prompts (on the left) and options (on the right).
    """
    from transformers import DynamicCache

    ids_QP, seen_QP = _left_padded(lm, [question.prompt for question in questions])
    options = [ids for question in questions for ids in question.options]
    owner_O = torch.tensor([q for q, question in enumerate(questions) for _ in question.options], device=lm.device)
    ids_OL = torch.full((len(options), max(map(len, options))), lm.tokenizer.pad_token_id, device=lm.device)
    for o, ids in enumerate(options):
        ids_OL[o, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
    cache = DynamicCache(config=lm.model.config)
    # transformers 5.2x renamed the argument; the old name goes in 5.40.
    named = "cache" if "cache" in inspect.signature(type(lm.model).forward).parameters else "past_key_values"
    with torch.inference_mode():
        place_QP = (seen_QP.cumsum(1) - 1).clamp(min=0)
        first = lm.model(
            input_ids=ids_QP, attention_mask=seen_QP, position_ids=place_QP, logits_to_keep=1, use_cache=True,
            **{named: cache},
        )  # fmt: skip
        sums_O = label_logp(first.logits[:, -1][owner_O], ids_OL[:, 0]).double()
        if ids_OL.shape[1] > 1:
            for layer in cache.layers:  # each is where the model's layer is
                layer.batch_select_indices(owner_O.to(getattr(layer, "keys", owner_O).device))
            given_OL = ids_OL[:, :-1]
            logits_OLV = lm.model(
                input_ids=given_OL, use_cache=True, **{named: cache},
                attention_mask=torch.cat([seen_QP[owner_O], torch.ones_like(given_OL)], 1),
                position_ids=seen_QP.sum(1)[owner_O, None] + torch.arange(given_OL.shape[1], device=lm.device),
            ).logits  # fmt: skip
            for o, ids in enumerate(options):
                sums_O[o] += label_logp(logits_OLV[o, : len(ids) - 1], ids_OL[o, 1 : len(ids)]).double().sum()
    cuts = np.cumsum([len(question.options) for question in questions])[:-1]
    return list(np.split(sums_O.cpu().numpy(), cuts))


def _left_padded(lm: LanguageModel, prompts: Sequence[NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
    """(B, L) token ids padded on the left, and where they are not padding (1 or 0)."""
    longest = max(map(len, prompts))
    ids_BL = np.full((len(prompts), longest), lm.tokenizer.pad_token_id, dtype=np.int64)
    seen_BL = np.zeros((len(prompts), longest), dtype=np.int64)
    for i, prompt in enumerate(prompts):
        ids_BL[i, longest - len(prompt) :], seen_BL[i, longest - len(prompt) :] = prompt, 1
    return torch.from_numpy(ids_BL).to(lm.device), torch.from_numpy(seen_BL).to(lm.device)


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

    ids_BL, seen_BL = _left_padded(lm, prompts)
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
