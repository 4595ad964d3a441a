"""Quantised base models, as QLoRA has them (arXiv 2305.14314): weights in few bits, products in the model's precision.

bitsandbytes quantises and dequantises; the product is ours, for its own layers lose gradients on a CPU once they have
run without (they repack their weights for that), and in 8 bits have a row's result depend on the rows beside it.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from taskpgm.config import ModelConfig
from taskpgm.errors import UserError
from taskpgm.lm.lora import sizes
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.quiet import bitsandbytes_quiet

KINDS = ("Linear4bit", "Linear8bitLt")  # bitsandbytes' layers


def quantizing(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` needs to quantise the model as configured; empty if it is not to.

    NF4 with quantised scales, as in QLoRA; int8 with a scale a row. Embeddings, norms and the output layer stay as they
    are.

    Raises:
        UserError: bitsandbytes cannot use the device.
    """
    if config.quantization is None:
        return {}
    from transformers import BitsAndBytesConfig

    with bitsandbytes_quiet():
        from bitsandbytes import supported_torch_devices as supported
    if device.type not in supported:
        raise UserError(
            f"model.quantization {config.quantization} does not go with {device.type}: bitsandbytes knows "
            f"{', '.join(sorted(supported))}; leave it out, or set model.device."
        )
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    settings = four if config.quantization == "nf4" else {"load_in_8bit": True}
    return {"quantization_config": BitsAndBytesConfig(**settings)}


def quantized_layers(model: Any) -> dict[str, nn.Module]:
    """The layers whose weights are quantised, by name."""
    return {name: module for name, module in model.named_modules() if type(module).__name__ in KINDS}


def check_scales(name: str, model: Any) -> None:
    """Errors if a layer's weights have no scales, so that nobody knows what they mean."""
    for layer, module in quantized_layers(model).items():
        if not hasattr(module.weight, "quant_state" if type(module).__name__ == "Linear4bit" else "SCB"):
            raise UserError(
                f"config.json of model {name!r} says that its weights are quantised (quantization_config), but those "
                f"of {layer!r} are not; remove that setting from config.json, or save the whole model again."
            )


def held_bytes(model: Any, quantization: str | None) -> float:
    """Bytes of a model's weights; of one that is not quantised yet, as they will be.

    NF4 takes 4 bits a weight, and for every 64 a scale of 8; int8 takes 8 bits, and for every output a scale of 32.
    """
    total = float(sum(weight.numel() * weight.element_size() for weight in model.parameters()))
    if quantization is None or quantized_layers(model):
        return total
    head = model.get_output_embeddings()
    for layer in model.modules():
        if layer is not head and (isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"):
            count, (size_in, _) = layer.weight.numel(), sizes(layer)
            each = 0.5 + 1 / 64 if quantization == "nf4" else 1 + 4 / size_in
            total += count * (each - layer.weight.element_size())
    return total


def check_all_trainable(lm: LanguageModel) -> None:
    """Errors if adapters alone can be trained: the model is quantised, or over several devices."""
    why = "quantised" if quantized_layers(lm.model) else "over several devices" if len(lm.devices) > 1 else ""
    if why:
        setting = "quantization" if why == "quantised" else "device_map"
        raise UserError(
            f"The weights of {lm.name!r} cannot all be trained, since it is {why}; train an adapter, or leave "
            f"model.{setting} out."
        )


def dequantize_in_products(model: Any) -> None:
    """Have every quantised layer of the model compute x·Wᵀ + b with W dequantised, in the precision of x."""
    for module in quantized_layers(model).values():
        hooked = hasattr(module, "_hf_hook")  # accelerate calls what stood there before it
        setattr(module, "_old_forward" if hooked else "forward", partial(_linear, module))


def dequantized(module: Any, dtype: torch.dtype) -> Tensor:
    """(out, in) weights of a quantised layer."""
    from bitsandbytes import functional

    weight = module.weight
    if type(module).__name__ == "Linear4bit":
        return _of_four_bits(weight.data, weight.quant_state, dtype)
    scales = module.state.SCB if weight.SCB is None else weight.SCB
    return functional.int8_vectorwise_dequant(weight.data, scales).to(dtype)


def _of_four_bits(codes: Tensor, state: Any, dtype: torch.dtype) -> Tensor:
    """The weights as one long row where a block of one scale reaches over the end of a row of theirs.

    On a CPU, bitsandbytes 0.50 takes the scales of other blocks there.
    """
    from bitsandbytes import functional

    scales = (
        functional.dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    )
    count, row = state.shape.numel(), state.shape[-1]
    shape = tuple(state.shape) if row % state.blocksize == 0 else (1, count)
    flat = torch.ops.bitsandbytes.dequantize_4bit.default(
        codes, scales.float(), state.blocksize, state.quant_type, shape, dtype
    )
    return flat.view(state.shape)


def _linear(module: Any, x: Tensor) -> Tensor:
    y = _Product.apply(x, module)
    return y if module.bias is None else y + module.bias.to(y.dtype)


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """x·Wᵀ; the backward pass dequantises again, so that nothing of the size of W is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Any) -> Tensor:
        ctx.module = module
        return torch.nn.functional.linear(x, dequantized(module, x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ dequantized(ctx.module, grad.dtype), None
