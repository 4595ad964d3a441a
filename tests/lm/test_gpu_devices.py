"""What runs on a GPU alone, as far as it can be tested without one.

PyTorch's meta tensors have shapes and a device of their own, and no values: training, scoring and divergences run on
them take a GPU's branches and sizes, and may not mix devices. What is computed there is tested where there is a GPU
(`devices` in conftest.py).
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.models import ARCHITECTURES
from support.probing import all_blocks, config_for, setup
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from taskpgm.lm.engine import Engine
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.packing import Span, blocked_attention, fused_attention
from taskpgm.probes import training
from taskpgm.probes.diverging import measure_divergences, sample_positions
from taskpgm.probes.training import Trainer

COPIES = {"aten._to_copy.default", "aten.copy_.default"}


class OneDevice(TorchDispatchMode):
    """Within, no operation but a copy gets tensors of two devices (numbers apart), as on a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.ndim]
        assert str(func) in COPIES or len({t.device for t in tensors}) < 2, f"{func} mixes devices"
        return func(*args, **(kwargs or {}))


def test_mixed_devices_are_seen():
    with OneDevice(), pytest.raises(AssertionError, match="mm.default mixes devices"):
        torch.empty(2, 2, device="meta") @ torch.ones(2, 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("last_layers", "recompute"), [(None, False), (2, False), (2, True)])
def test_no_path_mixes_devices(architecture, last_layers, recompute, model_folders, monkeypatch):
    monkeypatch.setattr(training, "fitting", lambda lm, *_: training.Fit(lm.token_budget, recompute))
    config = config_for(model_folders[architecture], lora={"r": 4, "alpha": 8, "last_layers": last_layers})
    lm, rows, probes = setup(model_folders[architecture], last_layers=last_layers)
    model = copy.deepcopy(lm.model).to("meta")
    layers = model.get_submodule(next(name for name, m in lm.model.named_modules() if m is lm.layers))
    lm = replace(lm, model=model, layers=layers, processes=1)
    assert lm.device.type == "meta"
    # What comes back from the device is ones.
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: 1.0)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: torch.ones(self.shape, dtype=self.dtype))
    adamw = torch.optim.AdamW  # fused for real devices only
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, fused, **settings: adamw(parameters, **settings))
    sample = sample_positions(rows, 20, seed=0)
    with OneDevice():
        for probe in probes:
            trained = Trainer(lm, config, start=probe).train(probe.task, [rows[probe.task]] * 2)
            assert {k: w.shape for k, w in trained.weights.items()} == {k: w.shape for k, w in probe.weights.items()}
        blocks = all_blocks(lm, rows, probes, {name: columns for name, (columns, _) in sample.items()})
        hidden = {n: {p.name: blocks[p.name, n].hidden for p in probes} for n in rows}
        found = measure_divergences(Engine.of(lm), rows, sample, hidden.__getitem__, [[p.name for p in probes]])
    assert {len(blocks[probes[0].name, n].logp) for n in rows} == {sum(r.response.sum() for r in rows[n]) for n in rows}
    assert np.isfinite(found.total_SBNN).all()


@pytest.mark.parametrize("window", [None, 3, 90])
@pytest.mark.parametrize("length", [7, 150])
@pytest.mark.parametrize("prefix", [0, 5, 80])
def test_attention_of_a_gpu_is_that_of_a_cpu(prefix, length, window):
    generator = torch.Generator().manual_seed(0)
    keys = length + prefix
    q, k, v = (torch.randn(3, 2, n, 8, generator=generator, requires_grad=True) for n in (2 * length, keys, keys))
    found = []
    for attention in (fused_attention, blocked_attention):
        out = attention(q, k, v, Span((length,) * 3, 0.3, window))
        found.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_batches_are_sized_by_what_is_free_on_the_fullest_gpu(count, model_folders, monkeypatch):
    lm, *_ = setup(model_folders["llama"])
    gpus = tuple(torch.device("cuda", i) for i in range(count))
    free = dict(zip(gpus, (50e9, 30e9), strict=False))
    monkeypatch.setattr(LanguageModel, "device", gpus[0])
    monkeypatch.setattr(LanguageModel, "devices", gpus)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 80e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 10e9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 4e9)
    assert lm.memory_budget == pytest.approx(0.9 * 56e9 if count == 1 else 2 * 0.9 * 36e9)
