"""Several adapters in one batch, each under rows of its own: a reference that nothing here uses yet.

Products with the base's weights serve all rows at once; the thin ones alone are an adapter's own. Small steps leave a
GPU idle, so this should pay there; it was not measured on one (docs/performance.md).

Shapes: N tokens of a packed batch, the first adapter's before the second's; r rank, in and out a layer's sizes.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from taskpgm.data.chat import Encoded
from taskpgm.lm.forwards import Forward, replaced
from taskpgm.lm.lora import LowRank
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.packing import ends, pack


@contextlib.contextmanager
def abreast(lm: LanguageModel, updates: Sequence[LowRank], rows: Sequence[Sequence[Encoded]]) -> Iterator[None]:
    """Within, of a packed batch the first rows run under the first update, the next under the second, …

    A layer gives token t of adapter k Wx_t + s_k·B_k(A_k x_t). All updates are of the same layers.
    """
    tokens = [sum(map(ends, of_one)) for of_one in rows]
    answers = [sum(row.response_tokens for row in of_one) for of_one in rows]
    last = set(lm.last_feed_forward.modules() if lm.last_feed_forward else ())  # sees tokens that predict answers
    layers = {
        module: _updated(
            module.forward,
            [(u.left[i], u.right[i], u.scale) for u in updates],
            answers if module in last else tokens,
        )
        for i, module in enumerate(updates[0].modules)
    }
    with replaced(layers):
        yield


def add_gradients(lm: LanguageModel, updates: Sequence[LowRank], rows: Sequence[Sequence[Encoded]]) -> list[float]:
    """Mean loss of every adapter on its own rows; backward adds each one's gradient to its weights' `grad`.

    The same as one adapter after another. Nothing that rows begin with is run once, since adapters change it.

    Args:
        updates: whose weights ask for gradients.
        rows: of every update.

    Raises:
        ValueError: the model does not run packed.
    """
    if not lm.plain_head:
        raise ValueError(f"several adapters in a batch need a model that runs packed: {lm.whole_because}")
    packed = pack([row for of_one in rows for row in of_one], 0, lm.device)
    with abreast(lm, updates, rows):
        losses_R = torch.cat([
            nn.functional.cross_entropy(z.float(), y, reduction="none") for z, y, _ in lm.response_logits(packed)
        ])  # fmt: skip
    means = [part.mean() for part in losses_R.split([sum(r.response_tokens for r in of_one) for of_one in rows])]
    torch.stack(means).sum().backward()
    return [float(mean.detach()) for mean in means]


def _updated(forward: Forward, updates: Sequence[tuple[Tensor, Tensor, float]], tokens: Sequence[int]) -> Forward:
    def updated(x: Tensor) -> Tensor:
        x_Ni = x.reshape(-1, x.shape[-1])
        parts = zip(x_Ni.split(list(tokens)), updates, strict=True)
        added_No = torch.cat([scale * (x_ni @ left.mT @ right.mT) for x_ni, (left, right, scale) in parts])
        return forward(x) + added_No.view(*x.shape[:-1], -1)

    return updated
