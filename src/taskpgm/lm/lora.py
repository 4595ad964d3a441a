"""Low-rank updates on the model's own linear layers: y = Wx + s·B(Ax), switched by pointing at other A and B.

The update runs in the model's precision, fused into one addition, while PEFT runs it in float32 beside the layer; the
weights that are trained stay float32. What is not a plain LoRA (DoRA, embeddings, ranks by pattern) is left to PEFT.

Shapes: r rank, in and out the layer's sizes.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor, nn

from taskpgm.lm.forwards import Forward, replaced

# Settings of PEFT's LoraConfig that leave y = Wx + s·B(Ax) as it is when nothing is dropped out.
HARMLESS = {
    "r", "lora_alpha", "use_rslora", "lora_dropout", "target_modules", "exclude_modules", "fan_in_fan_out",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "task_type", "peft_type", "peft_version",
    "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
}  # fmt: skip
KEY, LEFT, RIGHT = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class LowRank:
    """Updates of some linear layers in the model's precision: views of a flat tensor, layer by layer.

    The flat tensor is in pieces, each on the device of its layers: one, if the model is on one device.
    """

    modules: tuple[nn.Module, ...]
    stems: tuple[str, ...]  # the layers' names in PEFT's files
    pieces: tuple[Tensor, ...]
    left: tuple[Tensor, ...]  # (r, in) of each layer
    right: tuple[Tensor, ...]  # (out, r) of each layer
    scale: float

    def weights(self, flat: Tensor) -> dict[str, Tensor]:
        """PEFT's names and tensors of another flat tensor of the same layout."""
        keys = [KEY + stem + side for stem in self.stems for side in (LEFT, RIGHT)]
        return {key: view.clone() for key, view in zip(keys, _views([flat], self._shapes), strict=True)}

    def zeros(self) -> "LowRank":
        """Updates of zeros in the same layout, in memory of their own."""
        pieces = tuple(map(torch.zeros_like, self.pieces))
        views = _views(pieces, self._shapes)
        return dataclasses.replace(self, pieces=pieces, left=tuple(views[::2]), right=tuple(views[1::2]))

    @property
    def _shapes(self) -> list[torch.Size]:
        return [t.shape for pair in zip(self.left, self.right, strict=True) for t in pair]


def flatten(weights: Mapping[str, Tensor]) -> Tensor:
    """One flat float32 tensor of PEFT's weights, A before B, layer by layer in the order of their keys."""
    parts = [weights[KEY + stem + side].float().flatten() for stem in _stems(weights) for side in (LEFT, RIGHT)]
    return torch.cat(parts)


def _views(pieces: Sequence[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Tensors of these shapes, one after another in the pieces."""
    views: list[Tensor] = []
    for piece in pieces:
        at = 0
        while at < len(piece):
            shape = shapes[len(views)]
            views.append(piece[at : at + shape.numel()].view(shape))
            at += shape.numel()
    return views


def low_rank(model: Any, settings: Any, weights: Mapping[str, Tensor]) -> LowRank | None:
    """The updates that PEFT's `weights` make on the model; None if they are not plain LoRA on linear layers.

    Raises:
        ValueError: a layer that the model does not have, or another shape; the message names it.
    """
    if not is_plain(settings, weights):
        return None
    stems = _stems(weights)
    modules = [_linear(model, stem) for stem in stems]
    if any(module is None for module in modules):
        return None
    kept = [module for module in modules if module is not None]
    shapes: list[torch.Size] = []
    for stem, module in zip(stems, kept, strict=True):
        size_in, size_out = sizes(module)
        for key, shape in ((LEFT, (-1, size_in)), (RIGHT, (size_out, -1))):
            tensor = weights[KEY + stem + key]
            if tensor.ndim != 2 or not all(a in (b, -1) for a, b in zip(shape, tensor.shape, strict=True)):
                raise ValueError(f"{stem}{key} has shape {tuple(tensor.shape)}")
            shapes.append(tensor.shape)
    flat, dtype = flatten(weights), next(model.parameters()).dtype
    runs = [(device, len(list(run))) for device, run in groupby(module.weight.device for module in kept)]
    lengths = iter([shape.numel() for shape in shapes])
    parts = flat.split([sum(islice(lengths, 2 * layers)) for _, layers in runs])
    pieces = [part.to(device, dtype, copy=True) for part, (device, _) in zip(parts, runs, strict=True)]
    views = _views(pieces, shapes)
    return LowRank(tuple(kept), tuple(stems), tuple(pieces), tuple(views[::2]), tuple(views[1::2]), scale(settings))


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
    with replaced({module: _updated(module, module.forward, switch) for module in modules}):
        yield switch


def _updated(module: nn.Module, forward: Forward, switch: Switch) -> Forward:
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
    if not changed_settings(settings) <= HARMLESS or settings.init_lora_weights not in (True, False, "gaussian"):
        return False
    return all(key.startswith(KEY) and key.endswith((LEFT, RIGHT)) for key in weights)


def changed_settings(settings: Any) -> set[str]:
    """Names of the settings that are not as PEFT has them; nothing, in whatever form, is as good as None."""
    usual = type(settings)()
    names = {field.name for field in dataclasses.fields(settings)}
    return {name for name in names if (getattr(settings, name) or None) != (getattr(usual, name) or None)}


def _stems(weights: Mapping[str, Tensor]) -> list[str]:
    return [key[len(KEY) : -len(LEFT)] for key in weights if key.endswith(LEFT)]


def _linear(model: Any, stem: str) -> nn.Module | None:
    """The linear layer of that name; None if it is another kind of module."""
    try:
        module = model.get_submodule(stem)
    except AttributeError as error:
        raise ValueError(f"no module {stem}") from error
    return module if is_linear(module) else None


def is_linear(module: nn.Module) -> bool:
    """Whether a module takes (N, in) to (N, out): a model's own kind of linear layer, a router say, may give more."""
    if not isinstance(module, nn.Linear):
        return type(module).__name__ == "Conv1D"
    quantized = module.weight.dtype not in (torch.float32, torch.bfloat16, torch.float16)
    if quantized or type(module).forward is nn.Linear.forward:
        return True
    try:
        with torch.no_grad():
            found = module(module.weight.new_zeros(2, module.in_features))
    except (RuntimeError, ValueError, IndexError):
        return False
    return isinstance(found, Tensor) and found.shape == (2, module.out_features)


def sizes(module: Any) -> tuple[int, int]:
    """In and out of a linear layer, quantised or not."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return module.weight.shape[0], module.weight.shape[1]
