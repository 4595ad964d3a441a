"""On a CPU without fast products in the precision that a model was saved in, it is run in float32, and that is said."""

import platform
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.heard import Heard
from support.models import make_model
from transformers import AutoModelForCausalLM

from taskpgm.config import ModelConfig
from taskpgm.lm import loading
from taskpgm.lm.devices import multiplies
from taskpgm.lm.engine import Engine
from taskpgm.lm.loading import load_model, skeleton
from taskpgm.trainer.sft import save_sft

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
INFO = Path("/proc/cpuinfo")
HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture
def old_processor(monkeypatch):
    """One that multiplies float32 alone."""
    monkeypatch.setattr(loading, "multiplies", lambda device, dtype: device.type != "cpu" or dtype not in HALVES)


@pytest.fixture(params=HALVES, ids=["bfloat16", "float16"])
def half(request, tmp_path):
    """A model that was saved in a half precision, and its name."""
    AutoModelForCausalLM.from_pretrained(make_model(tmp_path)).to(request.param).save_pretrained(tmp_path)
    return ModelConfig(path=str(tmp_path), device="cpu"), str(request.param).removeprefix("torch.")


@pytest.mark.skipif(not INFO.is_file() or platform.machine() != "x86_64", reason="the flags of x86 under Linux")
def test_products_are_those_that_the_processor_names():
    flags = set(next(line for line in INFO.read_text().splitlines() if line.startswith("flags")).split())
    assert multiplies(CPU, torch.bfloat16) == bool(flags & {"avx512_bf16", "amx_bf16"})
    assert multiplies(CPU, torch.float16) == bool(flags & {"avx512_fp16", "amx_fp16"})
    assert multiplies(CPU, torch.float32)
    assert multiplies(CUDA, torch.float16)


def test_auto_becomes_float32_with_the_same_weights(half, old_processor):
    config, name = half
    heard = Heard()
    lm = Engine(config, heard).lm
    assert lm.dtype == torch.float32
    saved = load_file(Path(config.path) / "model.safetensors")
    assert all(torch.equal(weight, saved[key].float()) for key, weight in lm.model.named_parameters())
    (said,) = heard.said
    assert f"is run in float32: it was saved in {name}" in said
    assert f"model.dtype: {name} keeps it" in said
    assert skeleton(config).dtype == torch.float32  # by which time and memory are estimated
    assert skeleton(config, CUDA, 1e9).dtype == getattr(torch, name)  # of a GPU elsewhere


def test_a_precision_that_is_asked_for_is_kept_and_called_slow(half, old_processor):
    config, name = half
    lm = load_model(config.model_copy(update={"dtype": name}))
    assert lm.dtype == getattr(torch, name)
    assert f"run in {name}, of which this processor has no fast products; float32 has" in lm.precision_note


def test_without_room_for_float32_the_saved_precision_stays(half, old_processor, monkeypatch):
    config, name = half
    weights = sum(weight.numel() for weight in load_model(config).model.parameters())
    for memory, expected in ((8 * weights, torch.float32), (8 * weights - 1, getattr(torch, name))):
        monkeypatch.setattr(loading, "total_memory", lambda memory=memory: float(memory))
        assert load_model(config).dtype == expected
    assert "more than half of the memory" in load_model(config).precision_note


def test_nothing_is_said_where_the_precision_is_a_fast_one(half, tmp_path, monkeypatch):
    config, name = half
    monkeypatch.setattr(loading, "multiplies", lambda *_: True)
    assert (load_model(config).dtype, load_model(config).precision_note) == (getattr(torch, name), None)
    monkeypatch.undo()
    wide = ModelConfig(path=str(make_model(tmp_path / "wide")), device="cpu")
    assert (load_model(wide).dtype, load_model(wide).precision_note) == (torch.float32, None)


def test_a_model_that_was_trained_in_float32_is_saved_as_it_was(half, old_processor, tmp_path):
    config, name = half
    engine = Engine(config, Heard())
    save_sft(engine, engine.lm.model, tmp_path / "trained")
    saved = load_file(tmp_path / "trained" / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {getattr(torch, name)}
