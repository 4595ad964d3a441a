"""Rows of token ids, scored packed and one at a time."""

import numpy as np
import torch

from taskpgm.chat.encoder import Encoded
from taskpgm.lm.packing import pack
from taskpgm.probes.divergence import label_logp


def row(ids, first_response, last_response=None):
    ids = np.array(ids, dtype=np.int32)
    at = np.arange(len(ids))
    return Encoded(ids, (at >= first_response) & (at <= (last_response or len(ids))), False)


def plain_logp(model, rows):
    with torch.no_grad():
        found = []
        for r in rows:
            logits = model(input_ids=torch.tensor(r.ids[None].astype(np.int64))).logits[0].float()
            at = np.flatnonzero(r.response)
            found.append(logits.log_softmax(-1)[at - 1, r.ids[at]].numpy())
    return np.concatenate(found)


def packed_logp(lm, rows, first=0):
    with torch.no_grad():
        packed = pack(rows, lm.shared_prefix(rows), lm.device)
        blocks = lm.response_logits(packed, lm.trunk(packed, first), first)
        return np.concatenate([label_logp(z, y).numpy() for z, y, _ in blocks])


def some_rows(count=4, length=40, shared=12):
    rng = np.random.default_rng(0)
    head = rng.integers(4, 331, shared)
    return [row([*head, *rng.integers(4, 331, length - shared - i)], length - 12) for i in range(count)]
