"""One layer's attention on a CPU core, forward and forward with backward, by length: ours against two other ways.

    python benchmarks/attention.py [--heads 9 --groups 3 --size 64] [--lengths 64,128,256,512,1024,2048]

2,048 tokens in bfloat16 in rows of one length, heads as in the embedded model, milliseconds, the least of `--repeats`:

    all scores   what 0.1.0 did: every score of a row at once, softmax in float32
    SDPA         PyTorch's causal scaled dot product, keys repeated for their groups
    blocks       `lm/packing.py`
"""

import argparse
import time

import torch
from rich.console import Console
from rich.table import Table

from taskpgm.lm.packing import Span, blocked_attention

TOKENS = 2048


def all_scores(q, k, v, span):
    """Every score of a row at once; M is one token's heads after the other's."""
    heads = q.shape[2] // k.shape[2]
    hidden = span.hidden(range(k.shape[2]), range(k.shape[2]), k.device).repeat_interleave(heads, 0)
    score = ((q * span.scale) @ k.mT).masked_fill(hidden, -torch.inf)
    return score.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def sdpa(q, k, v, span):
    """PyTorch's kernel, which takes a head's queries together and as many keys as queries."""
    length = k.shape[2]
    heads = q.shape[2] // length
    by_head = q.unflatten(2, (length, heads)).permute(0, 1, 3, 2, 4).flatten(1, 2)
    keys, values = (x.repeat_interleave(heads, 1) for x in (k, v))
    out = torch.nn.functional.scaled_dot_product_attention(by_head, keys, values, is_causal=True, scale=span.scale)
    return out.unflatten(1, (-1, heads)).permute(0, 1, 3, 2, 4).flatten(2, 3)


def milliseconds(attention, q, k, v, span, backward):
    started = time.perf_counter()
    with torch.set_grad_enabled(backward):
        out = attention(q, k, v, span)
        if backward:
            torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    return 1e3 * (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--lengths", default="64,128,256,512,1024,2048")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ways = {"all scores": all_scores, "SDPA": sdpa, "blocks": blocked_attention}
    table = Table("tokens a row", *(f"{name}, {what}" for name in ways for what in ("forward", "both")))
    for length in map(int, args.lengths.split(",")):
        rows, heads = max(1, TOKENS // length), args.heads // args.groups
        sizes = (length * heads, length, length)
        q, k, v = (
            torch.randn(rows, args.groups, n, args.size, dtype=torch.bfloat16, requires_grad=True) for n in sizes
        )
        span = Span((length,) * rows, args.size**-0.5)
        times = {
            (name, backward): min(milliseconds(way, q, k, v, span, backward) for _ in range(args.repeats))
            for backward in (False, True)
            for name, way in ways.items()
        }
        table.add_row(str(length), *(f"{times[name, backward]:.0f}" for name in ways for backward in (False, True)))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
