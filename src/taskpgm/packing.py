"""`Packed`: rows of a set laid end to end without padding, what they all begin with kept once, and attention over them.

Rows of one task begin alike: a system prompt, an instruction. A causal model's activations there are the same in every
row, so the shared prefix is run once and every row attends to it. The layout is

    [shared prefix | rest of row 1 | rest of row 2 | …]

Every layer but attention works on single tokens and never sees the layout. Rows end before their last response token,
which predicts nothing that is asked for.

Shapes: N tokens of the layout, S of them shared; B rows, L longest rest, R response tokens; H heads, e their size.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskpgm.chat import Encoded

ATTENTION = "taskpgm_packed"  # the name under which transformers finds `packed_attention`
SHORTEST_PREFIX = 4  # sharing fewer tokens than this is not worth a second attention call


@dataclass(frozen=True)
class Packed:
    """Token ids and positions of a packed batch, and where its response tokens are predicted."""

    rows: tuple[Encoded, ...]
    ids_N: Tensor
    position_N: Tensor
    shared: int
    predict_R: Tensor  # index into N of the token from which each response token is predicted, row by row
    labels_R: Tensor
    padded_BL: Tensor  # index into the N - S tokens of the rests; 0 where a row has ended
    ended_BL: Tensor  # True where a row has ended
    inverse: Tensor  # (N - S,) index into B·L


def shared_prefix(rows: Sequence[Encoded]) -> int:
    """Number of tokens that all rows begin with, all of them before the token that predicts any row's first label."""
    if len(rows) < 2:
        return 0
    longest = min(int(row.response.argmax()) - 1 for row in rows)
    ids = np.stack([row.ids[: max(longest, 0)] for row in rows])
    shared = int(np.logical_and.accumulate((ids == ids[0]).all(0)).sum())
    return shared if shared >= SHORTEST_PREFIX else 0


def ends(row: Encoded) -> int:
    """Number of tokens of a row that predict something or lead to it: all before its last response token."""
    return int(len(row.response) - 1 - row.response[::-1].argmax())


def pack(rows: Sequence[Encoded], shared: int, device: torch.device) -> Packed:
    """The packed batch of these rows, the first `shared` tokens of all of them being the same."""
    stop = np.array([ends(row) for row in rows])
    lengths = stop - shared
    start = shared + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    ids = np.concatenate([rows[0].ids[:shared], *(row.ids[shared:e] for row, e in zip(rows, stop, strict=True))])
    position = np.concatenate([np.arange(shared), *(np.arange(shared, e) for e in stop)])
    labels = [np.flatnonzero(row.response) for row in rows]
    predict = np.concatenate([at - 1 - shared + s for at, s in zip(labels, start, strict=True)])
    column = np.arange(lengths.max())
    ended = column >= lengths[:, None]
    padded = np.where(ended, 0, start[:, None] - shared + column)
    arrays = (
        ids, position, predict, np.concatenate([row.ids[at] for row, at in zip(rows, labels, strict=True)]), padded,
        ended, np.flatnonzero(~ended),
    )  # fmt: skip
    ids_N, position_N, predict_R, labels_R, padded_BL, ended_BL, inverse = (
        torch.from_numpy(a.astype(a.dtype if a.dtype == bool else np.int64)).to(device) for a in arrays
    )
    return Packed(tuple(rows), ids_N, position_N, shared, predict_R, labels_R, padded_BL, ended_BL, inverse)


_LAYOUT: ContextVar[Packed] = ContextVar("_LAYOUT")


@contextlib.contextmanager
def attending(model: Any, packed: Packed) -> Iterator[None]:
    """Within, the model's attention follows the packed layout."""
    config = model.config.get_text_config()
    usual = config._attn_implementation
    token = _LAYOUT.set(packed)
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = usual
        _LAYOUT.reset(token)


def register() -> None:
    """Make `packed_attention` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, packed_attention)


def packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float | None = None,
    dropout: float = 0.0, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """(1, N, H, e) causal attention of a packed batch, in the form that transformers calls.

    The prefix attends to itself; every rest attends to the prefix and to itself. Equal to attention row by row.
    """
    if kwargs.get("softcap") or kwargs.get("s_aux") is not None:
        raise ValueError("scores are capped, or have sinks: not attention of this kind")
    packed, window = _LAYOUT.get(), kwargs.get("sliding_window")
    q, k, v = query[0], key[0], value[0]
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    s = packed.shared
    rows, longest = packed.padded_BL.shape
    padded_q, padded_k, padded_v = (_Padded.apply(x[:, s:], packed) for x in (q, k, v))
    if s:
        padded_k, padded_v = (
            torch.cat([x[:, None, :s].expand(-1, rows, -1, -1), padded], 2)
            for x, padded in ((k, padded_k), (v, padded_v))
        )
    out = _causal(padded_q, padded_k, padded_v, scale, window)
    out = _Unpadded.apply(out.reshape(len(q), rows * longest, -1), packed)
    if s:
        out = torch.cat([_causal(q[:, None, :s], k[:, None, :s], v[:, None, :s], scale, window)[:, 0], out], 1)
    return out.transpose(0, 1)[None], None


def _causal(q_HBLe: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """(H, B, L, e) attention of L queries to the keys at their own and earlier positions; keys end where queries do."""
    length, keys = q_HBLe.shape[2], k.shape[2]
    groups = len(q_HBLe) // len(k)
    if groups > 1:
        k, v = (x.repeat_interleave(groups, 0) for x in (k, v))
    at = torch.arange(keys, device=k.device) - (keys - length)
    behind = torch.arange(length, device=k.device)[:, None] - at  # how far a key lies behind a query
    hidden = (behind < 0) | (behind >= window) if window else behind < 0
    attention = plain_attention if k.device.type == "cpu" else fused_attention
    return attention(q_HBLe, k, v, hidden, scale)


def plain_attention(q_HBLe: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """(H, B, L, e) attention where `hidden` (L, K) says which keys a query does not see; the fastest on a CPU."""
    score = (q_HBLe * scale) @ k.mT
    weight = score.masked_fill_(hidden, -torch.inf).softmax(-1, dtype=torch.float32).to(v.dtype)
    return weight @ v


def fused_attention(q_HBLe: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """The same by PyTorch's fused kernels, which hold no L·K scores; for a GPU."""
    flat = [x.transpose(0, 1) for x in (q_HBLe, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*flat, attn_mask=~hidden, scale=scale)
    return out.transpose(0, 1)


class _Padded(torch.autograd.Function):  # type: ignore[misc]
    """(H, N - S, e) to (H, B, L, e). Ended rows hold copies that nothing reads, so no gradient comes from there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed) -> Tensor:
        ctx.packed = packed
        return x.index_select(1, packed.padded_BL.flatten()).unflatten(1, packed.padded_BL.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.flatten(1, 2).index_select(1, ctx.packed.inverse), None


class _Unpadded(torch.autograd.Function):  # type: ignore[misc]
    """(H, B·L, e) to (H, N - S, e)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed) -> Tensor:
        ctx.packed = packed
        return x.index_select(1, packed.inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        padded = grad.index_select(1, ctx.packed.padded_BL.flatten())
        return padded.masked_fill_(ctx.packed.ended_BL.flatten()[:, None], 0), None
