"""Log-likelihoods under whatever adapter is installed: of rows' response tokens, and of the options of questions.

Shapes: B rows, L padded length, R response tokens.
"""

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskpgm.chat.encoder import ChatEncoder, Encoded
from taskpgm.lm.batching import batches
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.packing import ends, pack
from taskpgm.lm.trunk import Trunk
from taskpgm.pool.task_pool import Row
from taskpgm.probes.divergence import label_logp
from taskpgm.progress import Progress


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


class Questions:
    """Rows with choices and the tokens of their options, each as the last answer with its end-of-turn token.

    Turns behind the last answer do not count. What lies below layer `first` is run once and kept, of as many questions
    as there is memory (bytes) for: every adapter then runs a prompt and its options through its own layers alone. Other
    prompts run many at a time through all layers, and their options on copies of the cache, if they leave the prompt's
    tokens as they are, which is nearly always.
    """

    def __init__(
        self, lm: LanguageModel, encoder: ChatEncoder, rows: Sequence[Row], first: int = 0, memory: int = 1 << 30
    ) -> None:
        self.lm, self.rows = lm, rows
        self.turns: dict[int, list[Encoded]] = {}  # of rows all of whose options fit
        for i, row in enumerate(rows):
            encoded = encoder.encode([row.conversation.until_answer(choice) for choice in row.choices or ()])
            turns = [option.last_turn for option in encoded if option]
            if len(turns) == len(encoded):
                self.turns[i] = turns
        self.trunks: dict[int, Trunk] = {}
        each = 4 * lm.model.config.get_text_config().hidden_size  # bytes a token
        for i, turns in self.turns.items() if first and lm.plain_head else ():
            shared = lm.shared_prefix(turns)
            needed = each * (shared + sum(ends(turn) - shared for turn in turns))
            if needed <= memory:
                memory -= needed
                self.trunks[i] = Trunk(lm, first, shared, needed)

    def fill(self, progress: Progress) -> None:
        """Run what lies below the adapters now."""
        for i, trunk in self.trunks.items():
            trunk.fill(self.turns[i], progress)

    def logp(self) -> list[NDArray[np.float64] | None]:
        """(options,) log-likelihood of each option, by row; None for a row with an option that is too long."""
        found: list[NDArray[np.float64] | None] = [None] * len(self.rows)
        together: dict[int, _Question] = {}
        for i, turns in self.turns.items():
            question = None if i in self.trunks else _question(turns)
            if question:
                together[i] = question
            else:
                of_tokens = response_logp(self.lm, turns, self.trunks.get(i))
                found[i] = np.array([logp_R.sum(dtype=np.float64) for logp_R in of_tokens])
        places = list(together)
        for batch in batches([together[i].cost for i in places], self.lm.token_budget):
            chosen = [places[k] for k in batch]
            for i, logp in zip(chosen, _batch_of_options(self.lm, [together[i] for i in chosen]), strict=True):
                found[i] = logp
        return found


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

    ids_QP, seen_QP = left_padded(lm, [question.prompt for question in questions])
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


def left_padded(lm: LanguageModel, prompts: Sequence[NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
    """(B, L) token ids padded on the left, and where they are not padding (1 or 0)."""
    longest = max(map(len, prompts))
    ids_BL = np.full((len(prompts), longest), lm.tokenizer.pad_token_id, dtype=np.int64)
    seen_BL = np.zeros((len(prompts), longest), dtype=np.int64)
    for i, prompt in enumerate(prompts):
        ids_BL[i, longest - len(prompt) :], seen_BL[i, longest - len(prompt) :] = prompt, 1
    return torch.from_numpy(ids_BL).to(lm.device), torch.from_numpy(seen_BL).to(lm.device)
