"""The accelerator that PyTorch offers: CUDA, ROCm, XPU, Apple's MPS. Their names stay in here."""

import math
import os
import platform
from typing import Any

import torch

from taskpgm.config import ModelConfig
from taskpgm.errors import UserError, first_line

# By type, the variable that hides all devices but some from a process.
VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}
ROCM = "HIP_VISIBLE_DEVICES"


def choose_device(name: str) -> torch.device:
    """The device of that name; auto: the accelerator if there is one that can do what is needed, else the CPU.

    Raises:
        UserError: it is not there.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device(found.type if found else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"Device {name!r} is not available ({first_line(error)}); use auto or cpu.") from error
    return device


def missing_operation(device: torch.device) -> str | None:
    """What a device cannot do of what training and scoring do everywhere; None if nothing is missing.

    Apple's and Intel's backends lack operations; a few small ones tell before a model is moved.
    """
    if device.type in ("cpu", "meta"):
        return None
    try:
        x = torch.ones(4, 4, device=device, requires_grad=True)
        at = torch.tensor([0, 2], device=device)
        y = torch.nn.functional.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None])
        loss = torch.nn.functional.cross_entropy(y[0, 0].index_select(0, at), at, reduction="sum")
        loss.backward()
        parameter = torch.nn.Parameter(x.detach().clone())
        parameter.grad = x.grad
        torch.optim.AdamW([parameter], fused=True).step()
    except RuntimeError as error:
        return first_line(error)
    return None


def multiplies(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products in that precision are what the device is built for, rather than float32's made slower.

    Of accelerators that is taken for granted. A CPU without such instructions is asked for them all the same, and then
    takes 5 to 40 times as long as in float32 (docs/performance.md, "Precision on a CPU").
    """
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    # On x86, AVX-512 alone makes oneDNN accept bfloat16: it then computes in float32, and converts.
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        if on_x86
        else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def local_devices(config: ModelConfig) -> list[dict[str, str]]:
    """For every accelerator of this machine, what shows a process that one alone; none if one is chosen by name, or
    if the model is spread over all."""
    if config.device != "auto" or config.device_map or not torch.accelerator.is_available():
        return []
    kind = choose_device("auto").type
    name = ROCM if getattr(torch.version, "hip", None) else VISIBLE.get(kind)
    count = torch.accelerator.device_count()
    if name is None or count < 2:
        return []
    given = [part for part in os.environ.get(name, "").split(",") if part]
    return [{name: one} for one in (given or [str(i) for i in range(count)])[:count]]


def free_memory(device: torch.device) -> float:
    """Bytes of a device that may still be taken, less a tenth; infinite if it does not say."""
    module: Any = torch.get_device_module(device.type)
    if not hasattr(module, "mem_get_info"):
        return math.inf
    free, _ = module.mem_get_info(device)
    return float(0.9 * (free + module.memory_reserved(device) - module.memory_allocated(device)))


def peak_memory(device: torch.device) -> float:
    """Largest memory of the device that was taken; 0 if it does not say."""
    module: Any = torch.get_device_module(device.type)
    return float(module.max_memory_allocated(device)) if hasattr(module, "max_memory_allocated") else 0.0


def empty_cache() -> None:
    """Give back what the accelerator's allocator holds and nothing uses."""
    if torch.accelerator.is_available():
        module: Any = torch.get_device_module(torch.accelerator.current_accelerator())
        if hasattr(module, "empty_cache"):
            module.empty_cache()
