"""`Packed`: rows of a set laid end to end without padding, what they all begin with kept once, and attention over them.

Rows of one task begin alike: a system prompt, an instruction. A causal model's activations there are the same in every
row, so the shared prefix is run once and every row attends to it. The layout is

    [shared prefix | rest of row 1 | rest of row 2 | …]

Every layer but attention works on single tokens and never sees the layout. Rows end before their last response token,
which predicts nothing that is asked for.

Shapes: N tokens of the layout, S of them shared; B rows, L longest rest, R response tokens; H heads, e their size; G
groups of g heads that have the same keys.
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
    seen_BK: Tensor  # index into N of what a row attends to: the S shared tokens, and its rest
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
    seen = np.concatenate([np.tile(np.arange(shared), (len(rows), 1)), shared + padded], 1)
    arrays = (
        ids, position, predict, np.concatenate([row.ids[at] for row, at in zip(rows, labels, strict=True)]), padded,
        ended, seen, np.flatnonzero(~ended),
    )  # fmt: skip
    ids_N, position_N, predict_R, labels_R, padded_BL, ended_BL, seen_BK, inverse = (
        torch.from_numpy(a.astype(a.dtype if a.dtype == bool else np.int64)).to(device) for a in arrays
    )
    return Packed(tuple(rows), ids_N, position_N, shared, predict_R, labels_R, padded_BL, ended_BL, seen_BK, inverse)


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
    q_HNe, k_GNe, v_GNe = query[0], key[0], value[0]
    scale = q_HNe.shape[-1] ** -0.5 if scaling is None else scaling
    first_q, rest_q = _Queries.apply(q_HNe, len(k_GNe), packed)
    (first_k, rest_k), (first_v, rest_v) = (_Keys.apply(x_GNe, packed) for x_GNe in (k_GNe, v_GNe))
    rest = _causal(rest_q, rest_k, rest_v, packed.padded_BL.shape[1], scale, window)
    first = _causal(first_q, first_k, first_v, packed.shared, scale, window) if packed.shared else first_v
    return _Outputs.apply(first, rest, packed)[None], None


def _causal(q_GBMe: Tensor, k: Tensor, v: Tensor, length: int, scale: float, window: int | None) -> Tensor:
    """(G, B, M, e) attention of queries to the keys at their own and earlier positions; keys end where queries do.

    M is one head's `length` queries, then the next head's that has the same keys.
    """
    keys = k.shape[2]
    at = torch.arange(keys, device=k.device) - (keys - length)
    behind = torch.arange(length, device=k.device)[:, None] - at  # how far a key lies behind a query
    hidden = (behind < 0) | (behind >= window) if window else behind < 0
    attention = plain_attention if k.device.type == "cpu" else fused_attention
    return attention(q_GBMe, k, v, hidden.repeat(q_GBMe.shape[2] // length, 1), scale)


def plain_attention(q_GBMe: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """(G, B, M, e) attention where `hidden` (M, K) says which keys a query does not see; the fastest on a CPU."""
    score = (q_GBMe * scale) @ k.mT
    weight = score.masked_fill_(hidden, -torch.inf).softmax(-1, dtype=torch.float32).to(v.dtype)
    return weight @ v


def fused_attention(q_GBMe: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """The same by PyTorch's fused kernels, which hold no M·K scores; for a GPU."""
    flat = [x.transpose(0, 1) for x in (q_GBMe, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*flat, attn_mask=~hidden, scale=scale)
    return out.transpose(0, 1)


class _Queries(torch.autograd.Function):  # type: ignore[misc]
    """(H, N, e) to the prefix's (G, 1, g·S, e) and the rests' (G, B, g·L, e).

    Ended rows hold copies that nothing reads, here and in `_Keys`, so no gradient comes from there.
    """

    @staticmethod
    def forward(ctx: Any, q_HNe: Tensor, groups: int, packed: Packed) -> tuple[Tensor, Tensor]:
        ctx.packed = packed
        rows, longest = packed.padded_BL.shape
        first_SHe, rest_nHe = q_HNe.transpose(0, 1).tensor_split([packed.shared])
        padded = rest_nHe.index_select(0, packed.padded_BL.flatten()).view(rows, longest, groups, -1, q_HNe.shape[-1])
        return _by_group(first_SHe.unflatten(1, (groups, -1))[None]), _by_group(padded)

    @staticmethod
    def backward(ctx: Any, first: Tensor, rest: Tensor) -> tuple[Tensor, None, None]:
        packed = ctx.packed
        padded = _by_token(rest, packed.padded_BL.shape[1]).index_select(0, packed.inverse)
        grad_NHe = torch.cat([_by_token(first, packed.shared), padded]) if packed.shared else padded
        return grad_NHe.transpose(0, 1), None, None


class _Keys(torch.autograd.Function):  # type: ignore[misc]
    """(G, N, e) to the prefix's (G, 1, S, e) and what every row attends to, (G, B, S + L, e)."""

    @staticmethod
    def forward(ctx: Any, x_GNe: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
        ctx.packed = packed
        seen = x_GNe.index_select(1, packed.seen_BK.flatten()).unflatten(1, packed.seen_BK.shape)
        return x_GNe[:, None, : packed.shared].contiguous(), seen

    @staticmethod
    def backward(ctx: Any, first: Tensor, seen: Tensor) -> tuple[Tensor, None]:
        packed = ctx.packed
        rest = seen[:, :, packed.shared :].flatten(1, 2).index_select(1, packed.inverse)
        if not packed.shared:
            return rest, None
        return torch.cat([first[:, 0] + seen[:, :, : packed.shared].sum(1), rest], 1), None


class _Outputs(torch.autograd.Function):  # type: ignore[misc]
    """(G, 1, g·S, e) of the prefix and (G, B, g·L, e) of the rests to (N, H, e)."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, rest: Tensor, packed: Packed) -> Tensor:
        ctx.packed, ctx.groups = packed, len(rest)
        rest_nHe = _by_token(rest, packed.padded_BL.shape[1]).index_select(0, packed.inverse)
        return torch.cat([_by_token(first, packed.shared), rest_nHe]) if packed.shared else rest_nHe

    @staticmethod
    def backward(ctx: Any, grad_NHe: Tensor) -> tuple[Tensor, Tensor, None]:
        packed = ctx.packed
        first, rest = grad_NHe.unflatten(1, (ctx.groups, -1)).tensor_split([packed.shared])
        padded = rest.index_select(0, packed.padded_BL.flatten())
        padded.masked_fill_(packed.ended_BL.flatten()[:, None, None, None], 0)
        return _by_group(first[None]), _by_group(padded.unflatten(0, packed.padded_BL.shape)), None


def _by_group(x_BLGge: Tensor) -> Tensor:
    """(G, B, g·L, e)"""
    return x_BLGge.permute(2, 0, 3, 1, 4).flatten(2, 3)


def _by_token(x_GBMe: Tensor, length: int) -> Tensor:
    """(B·L, H, e)"""
    return x_GBMe.unflatten(2, (-1, length)).permute(1, 3, 0, 2, 4).flatten(2, 3).flatten(0, 1)
