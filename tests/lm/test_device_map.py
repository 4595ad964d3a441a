"""A model over several devices, as far as it can be tested without any.

With accelerate's hooks in place on a CPU, all bytes are those without. Over a CPU and a device that is pretended but has
values, operations that mix devices fail.
"""

import copy
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from support.heard import Heard
from support.models import ARCHITECTURES
from support.probing import all_blocks, config_for, setup
from transformers import AutoModelForCausalLM

import taskpgm
from taskpgm.config import ModelConfig
from taskpgm.config_file import parse_config
from taskpgm.errors import UserError
from taskpgm.evaluation.full_finetuning import train_full
from taskpgm.evaluation.trl import train_full_with_trl
from taskpgm.lm.checkpoint import read_model
from taskpgm.lm.devices import local_devices
from taskpgm.lm.engine import Engine
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.structure import why_whole
from taskpgm.probes import training
from taskpgm.probes.training import Trainer


def layer_names(lm):
    return next(name for name, module in lm.model.named_modules() if module is lm.layers)


def blocks_of(lm):
    """Names of the modules that accelerate places as a whole, in order: embeddings, layers, what follows."""
    layers = layer_names(lm)
    stem = layers.rpartition(".")[0]
    names = []
    for name, _ in lm.model.get_submodule(stem).named_children():
        full = f"{stem}.{name}"
        names += [f"{full}.{i}" for i in range(len(lm.layers))] if full == layers else [full]
    return [*names, "lm_head"]


def hooked(lm):
    """The same model under accelerate's hooks, on the CPU."""
    model = copy.deepcopy(lm.model)
    dispatch_model(model, dict.fromkeys(blocks_of(lm), "cpu"), main_device="cpu", force_hooks=True)
    found = replace(lm, model=model, layers=model.get_submodule(layer_names(lm)))
    assert all(hasattr(layer, "_hf_hook") for layer in found.layers)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("last_layers", "recompute"), [(None, False), (2, False), (2, True)])
def test_the_same_bytes_under_accelerates_hooks(architecture, last_layers, recompute, model_folders, monkeypatch):
    monkeypatch.setattr(training, "fitting", lambda lm, *_: training.Fit(lm.token_budget, recompute))
    config = config_for(model_folders[architecture], lora={"r": 4, "alpha": 8, "last_layers": last_layers})
    plain, rows, probes = setup(model_folders[architecture], last_layers=last_layers)
    lm = hooked(plain)
    assert why_whole(lm) is None
    for probe in probes:
        found, expected = (Trainer(one, config, start=probe).train("x", [rows["sky"]] * 2) for one in (lm, plain))
        assert found.losses == expected.losses
        assert all(torch.equal(found.weights[key], weight) for key, weight in expected.weights.items())
    found, expected = (all_blocks(one, rows, probes, None) for one in (lm, plain))
    assert all(np.array_equal(found[key].logp, block.logp) for key, block in expected.items())
    assert all("forward" in vars(layer) for layer in lm.layers)  # the hooks are still there


def test_other_devices_than_cuda_and_several_give_what_a_cpu_gives(model_folders):
    """A device of another kind, with values: alone, together with the CPU, and with an operation missing."""
    script = Path(__file__).parents[1] / "support" / "two_devices.py"
    done = subprocess.run(
        [sys.executable, script, model_folders["llama"].parent], capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["tests", *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines() == [
        *(f"{name}: {what}" for name in ("llama", "gpt2") for what in (
            "auto takes the far device, with the CPU's results", "over both, with one's results",
        )),
        "far cannot do all that is needed (The operator 'aten.index_select.default' is not implemented for far); "
        "working on the CPU.",
    ]  # fmt: skip


@pytest.mark.parametrize("method", [train_full, train_full_with_trl])
def test_every_weight_over_several_devices_cannot_be_trained(method, model_folders, monkeypatch):
    lm, rows, _ = setup(model_folders["llama"])
    monkeypatch.setattr(LanguageModel, "devices", (torch.device("cuda:0"), torch.device("cuda:1")))
    with pytest.raises(UserError, match="over several devices; train an adapter, or leave model.device_map out"):
        method(lm, "x", [rows["sky"]], config_for(model_folders["llama"]))


def test_a_map_and_a_device_do_not_go_together():
    with pytest.raises(UserError, match="device_map auto takes all accelerators, device cuda:1 one; leave one of them"):
        parse_config(
            {
                "model": {"device_map": "auto", "device": "cuda:1"},
                "tasks": [{"name": "a", "path": "a"}],
                "budget": {"examples": 1},
            }
        )


def test_one_device_is_said(model_folders):
    heard = Heard()
    config = ModelConfig(path=str(model_folders["llama"]), device_map="auto")
    with patch("torch.accelerator.is_available", lambda: False):
        lm = Engine(config, heard).lm
    assert lm.devices == (torch.device("cpu"),)
    assert "model.device_map is not used: cpu is the one device here" in heard.said


def test_a_model_over_all_gpus_has_one_worker(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert len(local_devices(ModelConfig())) == 4
    assert local_devices(ModelConfig(device_map="auto")) == []


@pytest.mark.parametrize(
    ("quantization", "remedy"), [(None, "set model.quantization: nf4, give"), ("nf4", "together; give")]
)
def test_a_model_without_room_says_so(quantization, remedy, model_folders, monkeypatch):
    """What accelerate leaves on the CPU or the disk would be copied for every step."""
    folder = model_folders["llama"]
    whole = AutoModelForCausalLM.from_pretrained

    def from_pretrained(*args, **options):
        model, found = whole(*args, **options)
        model.hf_device_map = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": "cpu"}
        return model, found

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(UserError, match=f"does not fit on the accelerators that are here {remedy}.*|.*{remedy}"):
        read_model(ModelConfig(path=str(folder), quantization=quantization))


def test_cuda_is_named_in_one_module_alone():
    """Beside what `model.device` means, and estimates for devices that are not there."""
    named = [
        path.name
        for path in Path(taskpgm.__file__).parent.rglob("*.py")
        if re.search(r"\bcuda\b|\bCUDA\b|\bhip\b", path.read_text())
    ]
    assert sorted(named) == ["config.py", "cost.py", "devices.py", "tables.py"]
