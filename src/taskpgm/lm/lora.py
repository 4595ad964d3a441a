"""Low-rank updates on the model's own linear layers: y = Wx + s·B(Ax), switched by pointing at other A and B.

The update runs in the model's precision, fused into one addition, while PEFT runs it in float32 beside the layer; the
weights that are trained stay float32. What is not a plain LoRA (DoRA, embeddings, ranks by pattern) is left to PEFT.

Shapes: r rank, in and out the layer's sizes.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# Settings of PEFT's LoraConfig that leave y = Wx + s·B(Ax) as it is when nothing is dropped out.
HARMLESS = {
    "r", "lora_alpha", "use_rslora", "lora_dropout", "target_modules", "exclude_modules", "fan_in_fan_out",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "task_type", "peft_type", "peft_version",
    "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
}  # fmt: skip
KEY, LEFT, RIGHT = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class LowRank:
    """Updates of some linear layers in the model's precision: views of one flat tensor, layer by layer."""

    modules: tuple[nn.Module, ...]
    stems: tuple[str, ...]  # the layers' names in PEFT's files
    flat: Tensor
    left: tuple[Tensor, ...]  # (r, in) of each layer
    right: tuple[Tensor, ...]  # (out, r) of each layer
    scale: float

    def weights(self, flat: Tensor) -> dict[str, Tensor]:
        """PEFT's names and tensors of another flat tensor of the same layout."""
        views = flat.split([t.numel() for pair in zip(self.left, self.right, strict=True) for t in pair])
        shapes = [t.shape for pair in zip(self.left, self.right, strict=True) for t in pair]
        keys = [KEY + stem + side for stem in self.stems for side in (LEFT, RIGHT)]
        return {k: v.reshape(s).clone() for k, v, s in zip(keys, views, shapes, strict=True)}


def flatten(weights: Mapping[str, Tensor]) -> Tensor:
    """One flat float32 tensor of PEFT's weights, A before B, layer by layer in the order of their keys."""
    parts = [weights[KEY + stem + side].float().flatten() for stem in _stems(weights) for side in (LEFT, RIGHT)]
    return torch.cat(parts)


def low_rank(model: Any, settings: Any, weights: Mapping[str, Tensor], flat: Tensor | None = None) -> LowRank | None:
    """The updates that PEFT's `weights` make on the model; None if they are not plain LoRA on linear layers.

    Args:
        flat: the flat tensor to look into, in the layout of `flatten`; made in the model's precision if left out.

    Raises:
        ValueError: a layer that the model does not have, or another shape; the message names it.
    """
    if not is_plain(settings, weights):
        return None
    stems = _stems(weights)
    modules = [_linear(model, stem) for stem in stems]
    if any(module is None for module in modules):
        return None
    sample = next(model.parameters())
    flat = flatten(weights).to(sample.device, sample.dtype) if flat is None else flat
    left: list[Tensor] = []
    right: list[Tensor] = []
    at = 0
    for stem, module in zip(stems, modules, strict=True):
        size_in, size_out = _sizes(module)
        for views, key, shape in ((left, LEFT, (-1, size_in)), (right, RIGHT, (size_out, -1))):
            tensor = weights[KEY + stem + key]
            if tensor.ndim != 2 or not all(a in (b, -1) for a, b in zip(shape, tensor.shape, strict=True)):
                raise ValueError(f"{stem}{key} has shape {tuple(tensor.shape)}")
            views.append(flat[at : at + tensor.numel()].view(tensor.shape))
            at += tensor.numel()
    kept = tuple(module for module in modules if module is not None)
    return LowRank(kept, tuple(stems), flat, tuple(left), tuple(right), scale(settings))


def scale(settings: Any) -> float:
    """s of the update s·BA."""
    return float(settings.lora_alpha / (math.sqrt(settings.r) if settings.use_rslora else settings.r))


@dataclass
class Switch:
    """Which update the patched layers apply."""

    active: dict[nn.Module, tuple[Tensor, Tensor, float]] = field(default_factory=dict)

    @contextlib.contextmanager
    def use(self, update: LowRank | None) -> Iterator[None]:
        """Within, the model is the base model under this update, or alone."""
        before = self.active
        self.active = {}
        if update is not None:
            pairs = zip(update.left, update.right, strict=True)
            self.active = {m: (a, b, update.scale) for m, (a, b) in zip(update.modules, pairs, strict=True)}
        try:
            yield
        finally:
            self.active = before


@contextlib.contextmanager
def patched(updates: Sequence[LowRank]) -> Iterator[Switch]:
    """Within, the layers that any of these updates changes follow the switch."""
    switch = Switch()
    modules = list({m: None for update in updates for m in update.modules})
    for module in modules:
        module.forward = _updated(module, module.forward, switch)
    try:
        yield switch
    finally:
        for module in modules:
            del module.forward


def _updated(module: nn.Module, forward: Callable[[Tensor], Tensor], switch: Switch) -> Callable[[Tensor], Tensor]:
    def updated(x: Tensor) -> Tensor:
        if module not in switch.active:
            return forward(x)
        left, right, scale = switch.active[module]
        x_Ni = x.reshape(-1, x.shape[-1])
        # In place: what the layer gave is nobody else's, and its backward does not need it.
        y_No = forward(x_Ni).addmm_(x_Ni @ left.mT, right.mT, alpha=scale)
        return y_No.view(*x.shape[:-1], -1)

    return updated


def is_plain(settings: Any, weights: Mapping[str, Tensor]) -> bool:
    """Whether these are A and B of linear layers, all of one scale: nothing set that changes what they mean."""
    usual = type(settings)()
    changed = {f.name for f in dataclasses.fields(settings) if getattr(settings, f.name) != getattr(usual, f.name)}
    if not changed <= HARMLESS or settings.init_lora_weights not in (True, False, "gaussian"):
        return False
    return all(key.startswith(KEY) and key.endswith((LEFT, RIGHT)) for key in weights)


def _stems(weights: Mapping[str, Tensor]) -> list[str]:
    return [key[len(KEY) : -len(LEFT)] for key in weights if key.endswith(LEFT)]


def _linear(model: Any, stem: str) -> nn.Module | None:
    """The linear layer of that name; None if it is another kind of module."""
    try:
        module = model.get_submodule(stem)
    except AttributeError as error:
        raise ValueError(f"no module {stem}") from error
    return module if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D" else None


def _sizes(module: Any) -> tuple[int, int]:
    shape = module.weight.shape
    return (shape[1], shape[0]) if isinstance(module, nn.Linear) else (shape[0], shape[1])
