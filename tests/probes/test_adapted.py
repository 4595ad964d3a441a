"""Which layers carry adapters: linear ones of the decoder that PEFT adapts, and finds again in its own files."""

import json
import math

import pytest
from peft import PeftConfig, PeftModel
from support.models import OTHERS
from support.probing import config_for, loaded
from transformers import AutoModelForCausalLM

from taskpgm.config import ModelConfig
from taskpgm.errors import UserError
from taskpgm.lm.engine import Engine
from taskpgm.lm.loading import skeleton
from taskpgm.probes import adapted
from taskpgm.probes.adapted import adapted_layers, check_new_adapters, lora_settings
from taskpgm.probes.demand import adapter_weights
from taskpgm.probes.probe import check_adapter, load_probe
from taskpgm.probes.training import train_probes


def lora_of(**settings):
    return config_for(".", lora=settings).probes.lora


def shapes(folder):
    return skeleton(ModelConfig(path=str(folder), device="cpu"))


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("last", [None, 1])
def test_adapters_are_on_linear_layers_of_the_decoder_and_nowhere_else(kind, last, other_folders):
    lm, lora = shapes(other_folders[kind]), lora_of(last_layers=last)
    found = adapted_layers(lm, lora)
    assert " ".join(sorted({name.rsplit(".", 1)[-1] for name in found})) == OTHERS[kind][1]
    inside = {module for layer in lm.layers[-(last or 0) :] for module in layer.modules()}
    assert set(found.values()) <= inside
    model = PeftModel(AutoModelForCausalLM.from_pretrained(other_folders[kind]), lora_settings(lm, lora))
    names = {n.removeprefix("base_model.model.") for n, m in model.named_modules() if hasattr(m, "lora_A")}
    assert names == set(found)  # what PEFT itself puts adapters on
    trained = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert trained == adapter_weights(lm, config_for(".", lora={"last_layers": last}))


@pytest.mark.parametrize(
    ("kind", "noted"), [("mixtral", True), ("deepseek_v3", True), ("ctrl", False), ("gemma3", False)]
)
def test_weights_that_no_adapter_is_on_are_said(kind, noted, other_folders):
    lm = shapes(other_folders[kind])
    notes = check_new_adapters(lm, lora_of())
    assert bool(notes) == noted
    if kind == "mixtral":
        one = sum(p.numel() for p in lm.layers[0].parameters())
        share = (32 * 32 * 2 + 32 * 16 * 2) / one
        assert f"adapters are on k_proj, o_proj, q_proj, v_proj, {share:.0%} of the weights" in notes[0]
    assert not any("lora_" in name for name, _ in lm.model.named_parameters())
    assert check_new_adapters(lm, lora_of(target_modules=[OTHERS[kind][1].split()[0]])) == []


@pytest.mark.parametrize(
    ("kind", "lora", "sentence"),
    [
        ("deepseek_v3", {"target_modules": ["up_proj"]}, r"names 'up_proj', which PEFT puts no adapter on; .* q_a_proj"),
        ("falcon_mamba", {"target_modules": ["out_proj"]}, r"names 'out_proj', which PEFT puts no adapter on"),
        ("mixtral", {"target_modules": ["w1"]}, r"names 'w1', which no layer of '.*mixtral' has; .* k_proj, o_proj"),
        ("mixtral", {"last_layers": 7}, r"last_layers is 7, but .*mixtral' has 4 layers; lower it"),
    ],
)  # fmt: skip
def test_layers_that_cannot_be_adapted_are_one_sentence(kind, lora, sentence, other_folders):
    with pytest.raises(UserError, match=sentence):
        check_new_adapters(shapes(other_folders[kind]), lora_of(**lora))


def test_adapters_that_peft_would_not_find_again_are_refused(other_folders, monkeypatch):
    """As those of shared experts that a transformers of then renames whenever an adapter is read."""
    peft = adapted.import_peft()
    lost = type("Found", (), {"missing_keys": ["base_model.model.x.lora_A.default.weight"]})
    monkeypatch.setattr(peft, "set_peft_model_state_dict", lambda *_: lost)
    with pytest.raises(
        UserError, match=r"does not find base_model.model.x.lora_A.weight of .* name linear layers without it"
    ):
        check_new_adapters(shapes(other_folders["mixtral"]), lora_of())


def test_an_adapter_that_peft_saved_with_empty_settings_is_plain(other_folders, tmp_path):
    """PEFT writes target_parameters: [] for models with fused experts, whether any were asked for or not."""
    lm, _, rows = loaded(other_folders["mixtral"])
    (probe,) = train_probes(Engine.of(lm), {"sums": rows["sums"]}, config_for(other_folders["mixtral"]))
    probe.save(tmp_path)
    file = tmp_path / "adapter_config.json"
    assert json.loads(file.read_text())["target_parameters"] is None
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(other_folders["mixtral"]), tmp_path)
    model.save_pretrained(tmp_path)
    assert json.loads(file.read_text())["target_parameters"] == []
    again = load_probe(tmp_path, "sums")
    check_adapter(lm.model, lm.name, again)
    assert PeftConfig.from_pretrained(tmp_path).r == again.settings.r
    assert math.isfinite(sum(float(w.sum()) for w in again.weights.values()))
