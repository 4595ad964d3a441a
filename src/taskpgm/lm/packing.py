"""`Packed`: rows of a set laid end to end without padding, what they all begin with kept once, and attention over them.

Rows of one task begin alike: a system prompt, an instruction. A causal model's activations there are the same in every
row, so the shared prefix is run once and every row attends to it. The layout is

    [shared prefix | rest of row 1 | rest of row 2 | …]

Every layer but attention works on single tokens and never sees the layout. Rows end before their last response token,
which predicts nothing that is asked for.

Shapes: N tokens of the layout, S of them shared; B rows, L longest rest, R response tokens; H heads, e their size; G
groups of g heads that have the same keys; M = L·g queries of a group, one token's g heads after the other's; K = S + L.
"""

import contextlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from taskpgm.chat.encoder import Encoded

ATTENTION = "taskpgm_packed"  # the name under which transformers finds `packed_attention`
SHORTEST_PREFIX = 4  # sharing fewer tokens than this is not worth a second attention call
BLOCK = 64  # queries of a head that attend at a time on a CPU: their scores stay in the cache
KEPT = 2 * BLOCK  # rests up to so long keep their attention weights for the backward pass: they are few


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
    lengths: tuple[int, ...]  # of the rests
    elsewhere: dict[torch.device, "Packed"] = field(default_factory=dict, repr=False)

    def on(self, device: torch.device) -> "Packed":
        """The same on another device, made once."""
        if device == self.ids_N.device:
            return self
        if device not in self.elsewhere:
            moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
            self.elsewhere[device] = replace(self, **moved, elsewhere={})
        return self.elsewhere[device]


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
    return Packed(
        tuple(rows),
        ids_N,
        position_N,
        shared,
        predict_R,
        labels_R,
        padded_BL,
        ended_BL,
        seen_BK,
        inverse,
        tuple(lengths.tolist()),
    )


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
    packed, window = _LAYOUT.get().on(query.device), kwargs.get("sliding_window")
    q_HNe, k_GNe, v_GNe = query[0], key[0], value[0]
    scale = q_HNe.shape[-1] ** -0.5 if scaling is None else scaling
    first_q, rest_q = _Queries.apply(q_HNe, len(k_GNe), packed)
    (first_k, rest_k), (first_v, rest_v) = (_Keys.apply(x_GNe, packed) for x_GNe in (k_GNe, v_GNe))
    attention = blocked_attention if q_HNe.device.type == "cpu" else fused_attention
    rest = attention(rest_q, rest_k, rest_v, Span(packed.lengths, scale, window))
    first = attention(first_q, first_k, first_v, Span((packed.shared,), scale, window)) if packed.shared else first_v
    return _Outputs.apply(first, rest, packed)[None], None


class Span(NamedTuple):
    """Which keys a query sees, those at its own and earlier positions; keys end where queries do."""

    lengths: tuple[int, ...]  # queries of each row; behind them stand copies that nothing reads
    scale: float  # of the scores
    window: int | None = None  # a query sees so many keys at most, itself included

    def hidden(self, queries: range, keys: range, device: torch.device) -> Tensor:
        """(queries, keys) True where a query does not see a key; both count from where the keys begin."""
        behind = torch.arange(queries.start, queries.stop, device=device)[:, None]
        behind = behind - torch.arange(keys.start, keys.stop, device=device)  # how far a key lies behind a query
        return (behind < 0) | (behind >= self.window) if self.window else behind < 0


def fused_attention(q_BGMe: Tensor, k_BGKe: Tensor, v_BGKe: Tensor, span: Span) -> Tensor:
    """(B, G, M, e) attention by PyTorch's fused kernels, which hold no M·K scores; for a GPU."""
    length, keys = max(span.lengths), k_BGKe.shape[2]
    seen = ~span.hidden(range(keys - length, keys), range(keys), k_BGKe.device)
    seen = seen.repeat_interleave(q_BGMe.shape[2] // length, 0)
    return torch.nn.functional.scaled_dot_product_attention(q_BGMe, k_BGKe, v_BGKe, attn_mask=seen, scale=span.scale)


def blocked_attention(q_BGMe: Tensor, k_BGKe: Tensor, v_BGKe: Tensor, span: Span) -> Tensor:
    """(B, G, M, e) the same, `BLOCK` queries of every head at a time: no scores of later keys, none kept; for a CPU.

    The largest piece held is B·H·BLOCK·K scores. Softmax adds up in float32, whatever the precision of the scores.
    """
    found: Tensor = _Blocked.apply(q_BGMe, k_BGKe, v_BGKe, span)
    return found


class _Blocked(torch.autograd.Function):  # type: ignore[misc]
    """Attention block by block; the backward pass computes long rows' weights again (as in arXiv 2205.14135)."""

    @staticmethod
    def forward(ctx: Any, q_BGMe: Tensor, k_BGKe: Tensor, v_BGKe: Tensor, span: Span) -> Tensor:
        out, kept = q_BGMe.new_empty(*q_BGMe.shape[:-1], v_BGKe.shape[-1]), []
        for block in _blocks(q_BGMe, k_BGKe, span):
            weight = _weights(block.queries(q_BGMe) * span.scale, block.seen(k_BGKe), block)
            block.queries(out).copy_(weight @ block.seen(v_BGKe))
            kept += [weight] * (max(span.lengths) <= KEPT)
        ctx.save_for_backward(q_BGMe, k_BGKe, v_BGKe, *kept)
        ctx.span = span
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors
        of_q, of_k, of_v = torch.empty_like(q), *(torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
        for number, block in enumerate(_blocks(q, k, ctx.span)):
            scaled, own = block.queries(q) * ctx.span.scale, block.queries(grad)
            weight = kept[number] if kept else _weights(scaled, block.seen(k), block)
            block.seen(of_v).add_(weight.mT @ own)
            of_weight = own @ block.seen(v).mT
            of_score = torch._softmax_backward_data(of_weight, weight, -1, weight.dtype)
            block.queries(of_q).copy_((of_score @ block.seen(k)).mul_(ctx.span.scale))
            block.seen(of_k).add_(of_score.mT @ scaled)
        return of_q, of_k.to(k.dtype), of_v.to(v.dtype), None


class _Block(NamedTuple):
    """Some queries of the rows that reach so far, and the keys that any of them sees."""

    rows: int  # the first row that has queries here
    at: slice  # of M
    keys: slice  # of K
    hidden: Tensor  # (queries, keys from `edge` on), True where a query does not see a key
    edge: int  # of these keys all before are seen by all of these queries

    def queries(self, x_BGMe: Tensor) -> Tensor:
        return x_BGMe[self.rows :, :, self.at]

    def seen(self, x_BGKe: Tensor) -> Tensor:
        return x_BGKe[self.rows :, :, self.keys]


def _blocks(q_BGMe: Tensor, k_BGKe: Tensor, span: Span) -> Iterator[_Block]:
    lengths, keys = span.lengths, k_BGKe.shape[2]
    longest = max(lengths)
    heads, before = q_BGMe.shape[2] // longest, keys - longest
    ascending = all(a <= b for a, b in pairwise(lengths))
    for start in range(0, longest, BLOCK):
        stop = min(start + BLOCK, longest)
        first = max(0, before + start - span.window + 1) if span.window else 0
        # Every query sees all keys up to the first query, unless a window leaves some of them behind.
        edge = 0 if span.window else before + start - first
        hidden = span.hidden(range(before + start, before + stop), range(first + edge, before + stop), k_BGKe.device)
        rows = bisect_right(lengths, start) if ascending else 0
        yield _Block(
            rows, slice(start * heads, stop * heads), slice(first, before + stop),
            hidden.repeat_interleave(heads, 0), edge,
        )  # fmt: skip


def _weights(scaled_BGMe: Tensor, k_BGKe: Tensor, block: _Block) -> Tensor:
    """(B, G, M, K) attention weights of a block's queries."""
    score = scaled_BGMe @ k_BGKe.mT
    score[..., block.edge :].masked_fill_(block.hidden, -torch.inf)
    return score.softmax(-1)


class _Queries(torch.autograd.Function):  # type: ignore[misc]
    """(H, N, e) to the prefix's (1, G, S·g, e) and the rests' (B, G, L·g, e).

    Ended rows hold copies that nothing reads, here and in `_Keys`, so no gradient comes from there.
    """

    @staticmethod
    def forward(ctx: Any, q_HNe: Tensor, groups: int, packed: Packed) -> tuple[Tensor, Tensor]:
        ctx.packed = packed
        first_SHe, rest_nHe = q_HNe.transpose(0, 1).tensor_split([packed.shared])
        padded = rest_nHe.index_select(0, packed.padded_BL.flatten()).unflatten(0, packed.padded_BL.shape)
        return _by_group(first_SHe[None], groups), _by_group(padded, groups)

    @staticmethod
    def backward(ctx: Any, first: Tensor, rest: Tensor) -> tuple[Tensor, None, None]:
        packed = ctx.packed
        padded = _by_token(rest, packed.padded_BL.shape[1]).index_select(0, packed.inverse)
        grad_NHe = torch.cat([_by_token(first, packed.shared), padded]) if packed.shared else padded
        return grad_NHe.transpose(0, 1), None, None


class _Keys(torch.autograd.Function):  # type: ignore[misc]
    """(G, N, e) to the prefix's (1, G, S, e) and what every row attends to, (B, G, S + L, e)."""

    @staticmethod
    def forward(ctx: Any, x_GNe: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
        ctx.packed = packed
        x_NGe = x_GNe.transpose(0, 1)
        seen = x_NGe.index_select(0, packed.seen_BK.flatten()).unflatten(0, packed.seen_BK.shape)
        return x_GNe[None, :, : packed.shared].contiguous(), seen.transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, first: Tensor, seen: Tensor) -> tuple[Tensor, None]:
        packed = ctx.packed
        rest = seen[:, :, packed.shared :].transpose(1, 2).flatten(0, 1).index_select(0, packed.inverse)
        if not packed.shared:
            return rest.transpose(0, 1), None
        both = (first[0] + seen[:, :, : packed.shared].sum(0)).transpose(0, 1)
        return torch.cat([both, rest]).transpose(0, 1), None


class _Outputs(torch.autograd.Function):  # type: ignore[misc]
    """(1, G, S·g, e) of the prefix and (B, G, L·g, e) of the rests to (N, H, e)."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, rest: Tensor, packed: Packed) -> Tensor:
        ctx.packed, ctx.groups = packed, rest.shape[1]
        rest_nHe = _by_token(rest, packed.padded_BL.shape[1]).index_select(0, packed.inverse)
        return torch.cat([_by_token(first, packed.shared), rest_nHe]) if packed.shared else rest_nHe

    @staticmethod
    def backward(ctx: Any, grad_NHe: Tensor) -> tuple[Tensor, Tensor, None]:
        packed = ctx.packed
        first, rest = grad_NHe.tensor_split([packed.shared])
        padded = rest.index_select(0, packed.padded_BL.flatten())
        padded.masked_fill_(packed.ended_BL.flatten()[:, None, None], 0)
        shaped = padded.unflatten(0, packed.padded_BL.shape)
        return _by_group(first[None], ctx.groups), _by_group(shaped, ctx.groups), None


def _by_group(x_BLHe: Tensor, groups: int) -> Tensor:
    """(B, G, L·g, e)"""
    return x_BLHe.unflatten(2, (groups, -1)).transpose(1, 2).flatten(2, 3)


def _by_token(x_BGMe: Tensor, length: int) -> Tensor:
    """(B·L, H, e)"""
    return x_BGMe.unflatten(2, (length, -1)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
