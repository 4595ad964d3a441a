"""The base model from its files, ready to be run: on its device, its structure checked."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from taskpgm.config import ModelConfig
from taskpgm.errors import UserError
from taskpgm.lm import packing
from taskpgm.lm.checkpoint import (
    check_quantization,
    limits_of,
    load_tokenizer,
    quantization_of,
    read_model,
    read_skeleton,
)
from taskpgm.lm.devices import choose_device, missing_operation, multiplies
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.quantized import (
    check_scales,
    dequantize_in_products,
    dequantized,
    held_bytes,
    quantized_layers,
    quantizing,
)
from taskpgm.lm.structure import check_causal, why_whole
from taskpgm.progress import QUIET, Progress
from taskpgm.system import total_memory, usable_cores
from taskpgm.workers.processes import possible, processes_for

# oneDNN compiles a product's kernel for every number of tokens, and keeps 1,024 of them: some 600 MiB. A step has about
# 50 shapes. Read once, when the first product is run.
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
KERNELS = "128"
USUAL_ROW = 256  # tokens, where the number of processes is chosen before any row is read


def load_model(config: ModelConfig, progress: Progress = QUIET) -> LanguageModel:
    """The base model in evaluation mode on its device, gradients off, checked to run in two parts.

    Weights are read from safetensors (a GGUF file is converted to it once); pickled weights are refused.

    Raises:
        UserError: what `read_model` raises, no tokenizer, an unavailable device, or a model that is not causal.
    """
    for name in KERNEL_CACHES:
        os.environ.setdefault(name, KERNELS)
    if usable_cores() < torch.get_num_threads():
        torch.set_num_threads(usable_cores())
    tokenizer = load_tokenizer(config)
    device = choose_device(config.device)
    if config.device == "auto" and (why := missing_operation(device)):
        progress.say(f"{device.type} cannot do all that is needed ({why}); working on the CPU.")
        device = torch.device("cpu")
    config, precision_note = _in_fast_precision(config, device)
    model = _on_its_devices(config, device)
    _keep_padding_known(tokenizer, limits_of(model).vocabulary)
    packing.register()
    _check_finite(config.path, model)
    lm = LanguageModel(model, tokenizer, config.path, decoder_layers(model), precision_note=precision_note)
    lm = replace(lm, whole_because=why_whole(lm))
    if not lm.plain_head:
        check_causal(lm)
    return replace(lm, processes=_processes(config.processes, lm))


def _in_fast_precision(config: ModelConfig, device: torch.device) -> tuple[ModelConfig, str | None]:
    """The settings, and what the user should know of the precision, if anything.

    Where `auto` would take a precision that the CPU multiplies slowly it becomes float32, if there is room.
    """
    shapes = read_skeleton(config)
    in_single = config.model_copy(update={"dtype": "float32"})
    if shapes is not None and shapes.dtype == torch.float64:
        return in_single, f"{config.path!r} is run in float32: it was saved in float64"
    if shapes is None or multiplies(device, shapes.dtype):
        return config, None
    name = str(shapes.dtype).removeprefix("torch.")
    if config.dtype != "auto":
        return config, f"{config.path!r} is run in {name}, of which this processor has no fast products; float32 has"
    weights, memory = held_bytes(shapes.float(), quantization_of(config)), total_memory()
    if weights > memory / 2:
        return config, (
            f"{config.path!r} is run in {name}, of which this processor has no fast products: in float32 its weights "
            f"would take {weights / 2**30:,.1f} GiB, more than half of the memory ({memory / 2**30:,.1f} GiB)"
        )
    return in_single, (
        f"{config.path!r} is run in float32: it was saved in {name}, of which this processor has no fast products "
        f"(model.dtype: {name} keeps it)"
    )


def _on_its_devices(config: ModelConfig, device: torch.device) -> Any:
    """The model on the device, or spread over all of its kind; quantised as it is read, if it is to be.

    Raises:
        UserError: also if a part of it has no room on them.
    """
    check_quantization(config)
    # For what is not run packed: eager attention knows caps and sinks, and trains faster than the flash kernel here.
    options: dict[str, Any] = {"attn_implementation": "eager"} if device.type == "cpu" else {}
    options |= quantizing(config, device)
    spread = config.device_map is not None and device.type != "cpu"
    if spread or config.quantization:
        options["device_map"] = config.device_map if spread else {"": str(device)}
    model = read_model(config, **options)
    if not options.get("device_map"):
        model = model.to(device)
    check_scales(config.path, model)
    dequantize_in_products(model)
    return model.eval().requires_grad_(False)


def skeleton(config: ModelConfig, device: torch.device | None = None, room: float | None = None) -> LanguageModel:
    """The model without its weights, as if it were on a device with so many bytes of memory: sizes can be read off.

    It is taken to run packed, which only its weights can tell. Left out, the device is the one of this machine.

    Raises:
        UserError: what `read_skeleton` raises; no model, but a tokenizer alone.
    """
    device = device or choose_device(config.device)
    config, _ = _in_fast_precision(config, device)
    tokenizer, model = load_tokenizer(config), read_skeleton(config)
    if model is None:
        raise UserError(f"{config.path!r} holds a tokenizer and no model; name the folder of a whole model.")
    _keep_padding_known(tokenizer, limits_of(model).vocabulary)
    weights = held_bytes(model, quantization_of(config))
    lm = LanguageModel(
        model.eval(), tokenizer, config.path, decoder_layers(model), planned=device,
        room=None if room is None else max(0.0, 0.9 * (room - weights)),
    )  # fmt: skip
    return replace(lm, processes=_processes(config.processes, lm))


def _keep_padding_known(tokenizer: Any, vocabulary: int) -> None:
    """Have another token pad if the tokenizer's own was added behind the model's embeddings."""
    if tokenizer.pad_token_id >= vocabulary:
        end = tokenizer.eos_token_id
        known = end if end is not None and end < vocabulary else 0
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(known)


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder layers of the part that reads text; a model may have as many for images.

    Raises:
        UserError: it has no such list.
    """
    settings = model.config.get_text_config()
    depth = settings.num_hidden_layers
    found = [(layers, of) for layers, of in _lists(model.base_model, model.config) if len(layers) == depth]
    if not found:
        raise UserError(f"{type(model).__name__} has no list of {depth} decoder layers; such a model is not supported.")
    return next((layers for layers, of in found if type(of) is type(settings)), found[0][0])


def _lists(module: nn.Module, settings: Any) -> Iterator[tuple[nn.ModuleList, Any]]:
    """All lists of modules, and the settings of the part of the model that each is in."""
    settings = getattr(module, "config", settings)
    if isinstance(module, nn.ModuleList):
        yield module, settings
    for inner in module.children():
        yield from _lists(inner, settings)


def _check_finite(name: str, model: Any) -> None:
    quantized = quantized_layers(model)
    for weight, values in model.named_parameters():
        layer = quantized.get(weight.removesuffix(".weight"))
        shown = values if layer is None else dequantized(layer, torch.float32)
        if not bool(torch.isfinite(shown).all()):
            raise UserError(
                f"The weight {weight!r} of model {name!r} holds values that are not finite, so nothing it says is a "
                "number; download the model again, or save it again in bfloat16 or float32."
            )


def _processes(wanted: int | None, lm: LanguageModel) -> int:
    if (wanted or 1) > 1 and not (lm.device.type == "cpu" and possible()):
        raise UserError(
            f"model.processes is {wanted}, but work is spread over processes only on Linux, on a CPU, and not "
            "beside a GPU; leave it out."
        )
    usual = lm.memory(lm.token_budget // 2, USUAL_ROW, lm.token_budget // 8, 0)
    return wanted or (processes_for(usual) if lm.device.type == "cpu" else 1)
