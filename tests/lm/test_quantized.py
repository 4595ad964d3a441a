"""Quantised bases: what they hold is near the model, and everything done with them is what it would be with plain
layers of those same weights."""

import copy
import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from support.models import make_model
from support.packed import packed_logp, plain_logp, some_rows
from support.probing import config_for
from torch import nn
from transformers import AutoModelForCausalLM

from taskpgm.config import ModelConfig
from taskpgm.config_file import parse_config
from taskpgm.errors import UserError
from taskpgm.evaluation.full_finetuning import train_full
from taskpgm.lm.checkpoint import model_fingerprint, quantization_of, read_skeleton
from taskpgm.lm.loading import load_model
from taskpgm.lm.quantized import dequantized, held_bytes, quantized_layers
from taskpgm.lm.structure import why_whole
from taskpgm.pipeline.inspection import inspect
from taskpgm.probes.training import Trainer

KINDS = ("nf4", "int8")
ARCHITECTURES = ("llama", "qwen2", "gpt2")  # tied and not, with biases, with transposed layers
# The codes of NF4, arXiv 2305.14314, appendix E.
NF4 = [
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803, 0.1609302, 0.2461123,
    0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
]  # fmt: skip


def loaded(folder, quantization, dtype="float32"):
    return load_model(ModelConfig(path=str(folder), device="cpu", dtype=dtype, quantization=quantization, processes=1))


def plain_twin(lm):
    """The same model with plain linear layers that hold the dequantised weights."""
    model = copy.deepcopy(lm.model)
    for name, layer in quantized_layers(model).items():
        twin = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        twin.weight.data = dequantized(layer, torch.float32)
        if layer.bias is not None:
            twin.bias.data = layer.bias.data.float()
        model.set_submodule(name, twin)
    return model.requires_grad_(False)


def nearest_code(weight, dtype=torch.float64):
    """NF4 with exact scales: blocks of 64, every weight as the nearest code times its block's largest."""
    blocks = weight.to(dtype).flatten().unflatten(0, (-1, 64))
    largest = blocks.abs().amax(1, keepdim=True)
    codes = torch.tensor(NF4, dtype=dtype)
    nearest = codes[(blocks[..., None] / largest[..., None] - codes).abs().argmin(-1)]
    return (nearest * largest).view_as(weight), largest.expand_as(blocks).reshape(weight.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_nearest_that_the_bits_hold(kind, model_folders):
    lm = loaded(model_folders["llama"], kind)
    plain = dict(AutoModelForCausalLM.from_pretrained(model_folders["llama"], dtype=torch.float32).named_parameters())
    layers = quantized_layers(lm.model)
    assert len(layers) == 7 * 4  # all but embeddings and output layer
    for name, layer in layers.items():
        weight, held = plain[f"{name}.weight"], dequantized(layer, torch.float32)
        if kind == "int8":
            half = weight.abs().amax(1, keepdim=True) / 127 / 2
            assert ((held - weight).abs() <= 1.001 * half + weight.abs() * 2**-11).all()  # read in float16
        else:
            nearest, largest = nearest_code(weight)
            # Scales are held in 8 bits, as differences from their mean: a hundredth of the largest of these is lost.
            lost = 0.01 * (largest - largest.mean()).abs().max()
            assert ((held - nearest).abs() <= lost).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_runs_as_its_plain_twin(kind, architecture, model_folders):
    lm = loaded(model_folders[architecture], kind)
    assert lm.whole_because is None
    rows, twin = some_rows(length=100), plain_twin(lm)
    for first in (0, 1, 3):
        np.testing.assert_allclose(packed_logp(lm, rows, first), plain_logp(twin, rows), atol=1e-3)
    assert loaded(model_folders[architecture], kind, "bfloat16").whole_because is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_training_on_a_quantised_model_is_training_on_its_plain_twin(kind, architecture, model_folders):
    """After the model has run without gradients, too, where bitsandbytes' own layers lose them."""
    lm = loaded(model_folders[architecture], kind)
    twin = copy.copy(lm)
    object.__setattr__(twin, "model", plain_twin(lm))
    name = next(name for name, module in lm.model.named_modules() if module is lm.layers)
    object.__setattr__(twin, "layers", twin.model.get_submodule(name))
    assert why_whole(twin) is None
    rows, config = some_rows(8), config_for(model_folders[architecture], lora={"r": 4, "alpha": 8})
    steps = [rows[:4], rows[4:8], rows[:4]]
    found, expected = (Trainer(one, config).train("x", steps) for one in (lm, twin))
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    for key, weight in expected.weights.items():
        torch.testing.assert_close(found.weights[key], weight, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rows_result_does_not_depend_on_the_rows_beside_it(kind, model_folders):
    lm, rows = loaded(model_folders["llama"], kind), some_rows(length=40)
    together = packed_logp(lm, rows)
    alone = np.concatenate([packed_logp(lm, [row]) for row in rows])
    np.testing.assert_allclose(alone, together, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_told_from_shapes(kind, model_folders):
    lm = loaded(model_folders["llama"], kind)
    found = held_bytes(lm.model, kind)
    for layer in quantized_layers(lm.model).values():
        found += layer.weight.quant_state.absmax.nbytes if kind == "nf4" else layer.weight.SCB.nbytes
    config = ModelConfig(path=str(model_folders["llama"]), dtype="float32", quantization=kind)
    assert held_bytes(read_skeleton(config), kind) == found


def test_another_quantisation_is_another_model(model_folders):
    prints = {model_fingerprint(ModelConfig(path=str(model_folders["llama"]), quantization=q)) for q in (None, *KINDS)}
    assert len(prints) == 3


def test_it_says_what_is_missing(model_folders, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "bitsandbytes" else find(name))
    config = ModelConfig(path=str(model_folders["llama"]), quantization="nf4")
    for read in (load_model, read_skeleton):
        with pytest.raises(UserError, match=r"nf4 needs bitsandbytes, .* pip install 'taskpgm\[quantized\]'"):
            read(config)


def test_a_model_that_is_quantised_in_its_files(model_folders, tmp_path):
    """It is run as it is; to be quantised again is an error."""
    lm = loaded(model_folders["llama"], "nf4")
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    rows = some_rows(length=40)
    again = loaded(tmp_path, None)
    np.testing.assert_allclose(packed_logp(again, rows), packed_logp(lm, rows), atol=1e-4)
    with pytest.raises(UserError, match=r"is quantised in its files \(bitsandbytes, says config.json\)"):
        loaded(tmp_path, "int8")
    config = ModelConfig(path=str(tmp_path), device="cpu")
    shapes = read_skeleton(config)  # what `check` reads
    plain = read_skeleton(ModelConfig(path=str(model_folders["llama"])))
    assert {n: p.shape for n, p in shapes.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    assert held_bytes(shapes, quantization_of(config)) == held_bytes(plain, "nf4")
    assert load_model(config).dtype == again.dtype


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_plain_weights_that_are_called_quantised_are_one_sentence(bits, model_folders, tmp_path):
    folder = shutil.copytree(model_folders["llama"], tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", bits: True}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"those of 'model.layers.0.self_attn.q_proj' are not; remove that setting"):
        loaded(folder, None)


def test_check_opens_a_model_that_is_quantised_in_its_files(model_folders, tmp_path):
    lm = loaded(model_folders["llama"], "int8")
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    lines = [{"prompt": f"{i} + 1 =", "completion": str(i + 1)} for i in range(60)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = [{"name": "sums", "path": str(tmp_path / "sums.jsonl")}]
    found = inspect(parse_config({"model": {"path": str(tmp_path)}, "tasks": tasks, "budget": {"examples": 8}}))
    assert found.runnable
    assert found.encoder.limits.vocabulary == 331


def test_every_weight_of_a_quantised_model_cannot_be_trained(model_folders):
    lm = loaded(model_folders["llama"], "nf4")
    with pytest.raises(
        UserError,
        match=r"cannot all be trained, since it is quantised; train an adapter, or leave model.quantization out",
    ):
        train_full(lm, "x", [some_rows()], config_for(model_folders["llama"]))


def test_weights_that_are_not_finite_are_found(tmp_path):
    folder = make_model(tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = torch.nan
    model.save_pretrained(folder)
    for kind in KINDS:
        with pytest.raises(UserError, match=r"'model.layers.1.mlp.up_proj.weight' .* not finite"):
            loaded(folder, kind)
