"""`Stack`: several adapters at once in one batch, each under rows of its own.

Products with the base's weights serve all rows together; the thin ones of the adapters are batched. Small steps leave a
GPU idle, so this pays there (docs/performance.md); a CPU gains nothing. Every adapter's part of a batch is filled up to
the same number of tokens, so that a batch is a stack of blocks.

Shapes: K adapters, n tokens of a block, N = K·n of the packed batch, P weights of an adapter, R response tokens;
r rank, in and out a layer's sizes, d hidden size.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskpgm.data.chat import Encoded
from taskpgm.lm.batching import batches
from taskpgm.lm.forwards import Forward, replaced
from taskpgm.lm.lora import flatten, low_rank
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.packing import Packed, ends, pack
from taskpgm.lm.trunk import Trunk


@dataclass(frozen=True)
class _Whole(LanguageModel):
    """The model, its last layer run on all tokens: blocks stay equal."""

    @property
    def last_feed_forward(self) -> nn.Module | None:
        return None


class Stack:
    """K plain LoRA adapters of the same layers of a model on one device: what their layers read, and its gradients.

    Raises:
        ValueError: adapters that are not plain LoRA, or a model that does not run packed or is on several devices.
    """

    def __init__(self, lm: LanguageModel, settings: Any, weights: Sequence[Mapping[str, Tensor]]) -> None:
        if not lm.plain_head or len(lm.devices) > 1:
            raise ValueError(f"adapters abreast need a model that runs packed: {lm.whole_because or 'several devices'}")
        first = low_rank(lm.model, settings, weights[0])
        if first is None:
            raise ValueError("adapters abreast are plain LoRA")
        self.lm = _Whole(**vars(lm))
        self.modules, self.scale, self.weights_of = first.modules, first.scale, first.weights
        self.master_KP = torch.stack([flatten(one) for one in weights]).to(lm.device)  # float32
        self.copy_KP = self.master_KP.to(lm.dtype)  # what the layers read
        self.gradient_KP = torch.zeros_like(self.copy_KP)
        self.hidden_size = int(lm.model.config.get_text_config().hidden_size)
        shapes = [t.shape for pair in zip(first.left, first.right, strict=True) for t in pair]
        views, gradients = (_views(flat, shapes) for flat in (self.copy_KP, self.gradient_KP))
        for view, gradient in zip(views, gradients, strict=True):
            view.requires_grad_().grad = gradient
        self.left_Kri, self.right_Kor = views[::2], views[1::2]

    def __len__(self) -> int:
        return len(self.master_KP)

    def update(self) -> None:
        """The layers read what the float32 weights are now."""
        with torch.no_grad():
            self.copy_KP.copy_(self.master_KP)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within, block k of a batch runs under adapter k: y = Wx + s·B_k(A_k x)."""
        parts = zip(self.modules, self.left_Kri, self.right_Kor, strict=True)
        with replaced({m: _updated(m.forward, left, right, self.scale) for m, left, right in parts}):
            yield

    def add_gradients(self, rows: Sequence[Sequence[Encoded]], trunk: Trunk | None = None) -> Tensor:
        """(K,) mean losses of the adapters on their own rows; each one's gradient is added to its `gradient_KP`.

        Args:
            rows: of every adapter.
            trunk: of rows that these are among, without a shared prefix.
        """
        packed, owner_R = self._packed(rows, trunk)
        entering_Nd, first = (trunk.entering(packed), trunk.first) if trunk else (None, 0)
        with self.applied():
            blocks = self.lm.response_logits(packed, entering_Nd, first)
            losses = [nn.functional.cross_entropy(z.float(), y, reduction="none") for z, y, _ in blocks]
        labels_K = torch.bincount(owner_R, minlength=len(self) + 1)[: len(self)]
        sums_K = torch.zeros(len(self) + 1, device=owner_R.device).index_add(0, owner_R, torch.cat(losses))
        means_K = sums_K[: len(self)] / labels_K
        means_K.sum().backward()
        return means_K.detach()

    @torch.inference_mode()
    def logp(self, rows: Sequence[Encoded], trunk: Trunk | None = None, tokens: int = 1 << 17) -> list[Tensor]:
        """(K, R) log-probabilities of the response tokens of every row, under each adapter, on the CPU.

        Args:
            trunk: of a set that the rows belong to, without a shared prefix.
            tokens: of a batch at most, all adapters together.
        """
        found: list[Tensor] = [torch.zeros(len(self), 0)] * len(rows)
        for batch in batches([ends(row) for row in rows], max(1, tokens // len(self))):
            some = [rows[i] for i in batch]
            packed = pack(some * len(self), 0, self.lm.device)
            entering_Nd, first = (trunk.entering(packed), trunk.first) if trunk else (None, 0)
            with self.applied():
                blocks = [
                    -nn.functional.cross_entropy(z.float(), y, reduction="none")
                    for z, y, _ in self.lm.response_logits(packed, entering_Nd, first)
                ]
            logp_KR = torch.cat(blocks).view(len(self), -1).cpu()
            for i, part in zip(batch, logp_KR.split([row.response_tokens for row in some], 1), strict=True):
                found[i] = part
        return found

    def _packed(self, rows: Sequence[Sequence[Encoded]], trunk: Trunk | None) -> tuple[Packed, Tensor]:
        """One batch of equal blocks, and whose each response token is: K for those that only fill."""
        lengths = [[ends(row) for row in of_one] for of_one in rows]
        most, longest = max(map(sum, lengths)), max(map(max, lengths))
        all_rows: list[Encoded] = []
        owner: list[int] = []
        for k, of_one in enumerate(rows):
            missing = most - sum(lengths[k])
            fill = [_filler(min(longest, missing - start)) for start in range(0, missing, longest)]
            if trunk and trunk.first:
                for row in fill:
                    if id(row) not in trunk.kept:
                        trunk.kept[id(row)] = row, self.copy_KP.new_zeros(ends(row), self.hidden_size)
            all_rows += [*of_one, *fill]
            owner += [k] * sum(row.response_tokens for row in of_one) + [len(rows)] * len(fill)
        return pack(all_rows, 0, self.lm.device), torch.tensor(owner, device=self.lm.device)


_FILLERS: dict[int, Encoded] = {}


def _filler(tokens: int) -> Encoded:
    """The row of that many tokens that counts for nothing; always the same object."""
    if tokens not in _FILLERS:
        response = np.arange(tokens + 1) == tokens
        _FILLERS[tokens] = Encoded(np.zeros(tokens + 1, np.int32), response, False)
    return _FILLERS[tokens]


def _views(flat_KP: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """(K, …) tensors of these shapes, one after another in P."""
    parts = flat_KP.split([shape.numel() for shape in shapes], 1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]


def _updated(forward: Forward, left_Kri: Tensor, right_Kor: Tensor, scale: float) -> Forward:
    def updated(x: Tensor) -> Tensor:
        x_Kni = x.reshape(len(left_Kri), -1, x.shape[-1])
        y_Kno = forward(x_Kni)
        # In place: what the layer gave is nobody else's, and its backward does not need it.
        return y_Kno.baddbmm_(x_Kni @ left_Kri.mT, right_Kor.mT, alpha=scale).view(*x.shape[:-1], -1)

    return updated
