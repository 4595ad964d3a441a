"""Which layers of a model carry a probe's adapter, and PEFT's settings for them."""

import copy
import importlib.util
from typing import Any

from torch import nn

from taskpgm.config import LoraConfig
from taskpgm.errors import UserError
from taskpgm.lm.lora import is_linear
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.quiet import import_peft, peft_quiet

MOST = 0.9  # of the layers' weights: of a model without experts all but norms and biases have adapters


def lora_settings(lm: LanguageModel, lora: LoraConfig) -> Any:
    """PEFT's LoraConfig for this model: explicit module names, and the last layers if asked for.

    Modules are named by the ends of their names; wholly where such an end means other modules of the model too.

    Raises:
        UserError: a target module that no decoder layer has, or more last layers than the model has.
    """
    depth, adapted = len(lm.layers), adapted_layers(lm, lora)
    last = None if lora.last_layers is None else list(range(lora.first_layer(depth), depth))
    common = {
        "r": lora.r, "lora_alpha": lora.alpha, "task_type": "CAUSAL_LM", "base_model_name_or_path": lm.name,
        "fan_in_fan_out": any(type(module).__name__ == "Conv1D" for module in adapted.values()),
    }  # fmt: skip
    peft = import_peft()
    ends = sorted({_end(name) for name in adapted})
    settings = peft.LoraConfig(target_modules=ends, layers_to_transform=last, **common)
    reached = {name for name, _ in lm.model.named_modules() if _is_target(settings, name)}
    return settings if reached == set(adapted) else peft.LoraConfig(target_modules=sorted(adapted), **common)


def adapted_layers(lm: LanguageModel, lora: LoraConfig) -> dict[str, nn.Module]:
    """Linear layers that carry an adapter, by their whole names.

    Raises:
        UserError: as `lora_settings`.
    """
    depth = len(lm.layers)
    if (lora.last_layers or 0) > depth:
        raise UserError(f"probes.lora.last_layers is {lora.last_layers}, but {lm.name!r} has {depth} layers; lower it.")
    linear = {_end(name) for name, module in lm.layers.named_modules() if is_linear(module)}
    possible = {name for name in linear if _is_adapted(lm.model, name)}
    targets = possible if lora.target_modules == "all-linear" else set(lora.target_modules)
    if unknown := sorted(targets - possible):
        why = "PEFT puts no adapter on" if unknown[0] in linear else f"no layer of {lm.name!r} has"
        raise UserError(
            f"probes.lora.target_modules names {unknown[0]!r}, which {why}; "
            f"its linear modules are {', '.join(sorted(possible))}."
        )
    inside = set(lm.layers[lora.first_layer(depth) :].modules())
    found = {name: module for name, module in lm.model.named_modules() if _end(name) in targets and module in inside}
    if adapted := {name: module for name, module in found.items() if is_linear(module)}:
        return adapted
    named = f" called {', '.join(sorted(targets))}" if targets else ""
    raise UserError(
        f"The {lora.last_layers or depth} last layers of {lm.name!r} have no linear modules{named} that an adapter can "
        "be on; set probes.lora.last_layers or target_modules otherwise, or name another model."
    )


def check_new_adapters(lm: LanguageModel, lora: LoraConfig) -> list[str]:
    """A note if adapters on all linear layers leave much of the layers as it is, experts say.

    Args:
        lm: the base model, or its skeleton; left as it was.

    Raises:
        UserError: as `lora_settings`, and if PEFT would not find in its own files all that it saved there.
    """
    peft, settings, adapted = import_peft(), lora_settings(lm, lora), adapted_layers(lm, lora)
    with peft_quiet():
        peft_model = peft.get_peft_model(lm.model, copy.deepcopy(settings))
        loaded = peft.set_peft_model_state_dict(peft_model, peft.get_peft_model_state_dict(peft_model))
    peft_model.unload()
    lm.model.requires_grad_(False)
    if lost := [key for key in loaded.missing_keys if "lora_" in key]:
        raise UserError(
            f"PEFT does not find {lost[0].replace('.default', '')} of {lm.name!r} in a file that it has saved itself; "
            "name linear layers without it in probes.lora.target_modules, of "
            f"{', '.join(sorted({_end(name) for name in adapted}))}."
        )
    weights = lm.layers[lora.first_layer(len(lm.layers)) :].parameters()
    share = sum(module.weight.numel() for module in adapted.values()) / sum(weight.numel() for weight in weights)
    if lora.target_modules != "all-linear" or share > MOST:
        return []
    return [
        f"adapters are on {', '.join(sorted({_end(name) for name in adapted}))}, {share:.0%} of the weights of the "
        f"layers of {lm.name!r}: the rest (experts, say) is in no linear layer that PEFT adapts, and stays as it is"
    ]


def _end(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _is_target(settings: Any, name: str) -> bool:
    """Whether PEFT puts an adapter with these settings on the module of that name."""
    from peft.tuners.tuners_utils import check_target_module_exists

    return bool(check_target_module_exists(settings, name))


def _is_adapted(model: Any, name: str) -> bool:
    """Whether PEFT puts adapters on the linear layers of a model that are called so.

    It takes some names for experts that transformers 5 has fused, and refuses those that Mamba's kernels pass by.
    """
    from peft.tuners import tuners_utils

    settings = import_peft().LoraConfig(target_modules=[name])
    try:
        if hasattr(tuners_utils, "_check_lora_target_modules_mamba"):
            tuners_utils._check_lora_target_modules_mamba(settings, model, name)
        if importlib.util.find_spec("peft.utils.transformers_weight_conversion"):
            from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers as convert

            convert(settings, model, None)
    except ValueError:
        return False
    return bool(settings.target_modules == {name})
