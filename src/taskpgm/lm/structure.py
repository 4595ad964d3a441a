"""Whether a model can be run packed and in two parts, decided in float32."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskpgm.chat.encoder import Encoded
from taskpgm.errors import UserError, first_line
from taskpgm.lm.batching import out_of_memory
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.packing import Packed, pack

ROUNDING = 1e-3  # of the norm of logits: 30 layers in float32 differ by 1e-5, the least structure by more


def why_whole(lm: LanguageModel) -> str | None:
    """Why a model has to be run whole and padded; None if packed trunk, rest and head give its own logits.

    Both ways are compared in float32, whatever the model's precision: there rounding is small on every processor, and
    what is left is structure (a cap, a scale, another kind of attention or of state). In bfloat16 two plain ways to the
    same logits, padded and row by row, differ by up to 8 % in norm on processors with AMX.
    """
    config = lm.model.config.get_text_config()
    for name in ("final_logit_softcapping", "attn_logit_softcapping", "attention_chunk_size"):
        if value := getattr(config, name, None):
            return f"its configuration sets {name} to {value:g}"
    packed = _sample(lm)
    try:
        with torch.no_grad(), in_float32(lm):
            whole = torch.cat([logits for logits, *_ in lm._whole(packed)])
            for first in sorted({len(lm.layers) // 2, len(lm.layers) - 1}):
                blocks = lm.response_logits(packed, lm.trunk(packed, first), first)
                parts = torch.cat([logits for logits, *_ in blocks])
                difference = float((whole - parts).norm() / (whole - whole.mean(-1, keepdim=True)).norm())
                if not difference <= ROUNDING:
                    return (
                        f"run in parts, its logits differ by {difference:.2%} in norm, while rounding explains "
                        f"{ROUNDING:.1%} (float32, from layer {first} of {len(lm.layers)})"
                    )
    except Exception as error:  # of code that is not ours: another kind of attention, cache or position
        if out_of_memory(error):
            raise
        return f"its layers cannot be run in parts ({type(error).__name__}: {first_line(error)})"
    return None


def check_causal(lm: LanguageModel) -> None:
    """Errors if what follows a row changes what the model says of it: it is then no causal language model.

    Of a model that runs packed the comparison with packed rows, which nothing follows, has shown that already.

    Raises:
        UserError: also if the model cannot be run at all.
    """
    packed = _sample(lm)
    try:
        with torch.no_grad(), in_float32(lm):
            beside = torch.cat([logits for logits, *_ in lm._whole(packed)])
            alone = torch.cat([logits for row in packed.rows for logits, *_ in lm._whole(pack([row], 0, lm.device))])
            difference = float((beside - alone).norm() / (alone - alone.mean(-1, keepdim=True)).norm())
    except Exception as error:  # of code that is not ours
        if out_of_memory(error):
            raise
        raise UserError(
            f"{lm.name!r} ({type(lm.model).__name__}) cannot be run here, not even on rows of twelve tokens "
            f"({type(error).__name__}: {first_line(error)}); check its config.json, or name another model."
        ) from error
    if difference > ROUNDING:
        raise UserError(
            f"What {lm.name!r} ({type(lm.model).__name__}) says of a row depends on what follows it: its logits differ "
            f"by {difference:.2%} in norm with padding behind the row; name a causal language model."
        )


def _sample(lm: LanguageModel) -> Packed:
    """Three short rows that begin alike."""
    vocabulary = lm.model.get_input_embeddings().weight.shape[0]
    ids = (np.arange(36, dtype=np.int32).reshape(3, 12) * 7919 + 11) % vocabulary
    ids[:, :5] = ids[0, :5]
    rows = [Encoded(row[:length], np.arange(length) >= 6, False) for row, length in zip(ids, (12, 9, 12), strict=True)]
    return pack(rows, 5, lm.device)


@contextlib.contextmanager
def in_float32(lm: LanguageModel) -> Iterator[None]:
    """Within, the model computes in float32: the weights of one decoder layer, or of the output layer, at a time.

    So it takes the memory of one layer, not of a second model. Embeddings are looked up as they are.
    """
    heavy = [*lm.layers, lm.model.get_output_embeddings()]
    inside = {module for one in heavy for module in one.modules()}
    tables = [m for m in lm.model.modules() if isinstance(m, nn.Embedding) and m not in inside]
    light = [m for m in lm.model.modules() if m not in inside and m not in tables]
    precision = torch.get_float32_matmul_precision()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, precision)
        torch.set_float32_matmul_precision("highest")
        stack.enter_context(_widened(t for module in light for t in _own(module)))
        running = stack.enter_context(contextlib.ExitStack())

        def widen(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            running.close()  # a layer that was stopped at
            running.enter_context(_widened(t for inner in module.modules() for t in _own(inner)))
            return tuple(x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in args)

        for module in heavy:
            stack.callback(module.register_forward_pre_hook(widen).remove)
            stack.callback(module.register_forward_hook(lambda *_: running.close()).remove)
        for table in tables:
            stack.callback(table.register_forward_hook(lambda _, __, out: out.float()).remove)
        yield


def _own(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of a module itself."""
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


@contextlib.contextmanager
def _widened(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Within, those of these tensors that hold shorter floats hold the same in float32."""
    before = [(t, t.data) for t in tensors if t.dtype in (torch.bfloat16, torch.float16)]
    for tensor, data in before:
        tensor.data = data.float()
    try:
        yield
    finally:
        for tensor, data in before:
            tensor.data = data
