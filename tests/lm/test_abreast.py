"""Several adapters in one batch: what they get is what they get one after another."""

import dataclasses

import numpy as np
import pytest
import torch
from support.models import ARCHITECTURES
from support.packed import some_rows
from support.probing import setup
from torch.nn.functional import cross_entropy

from taskpgm.lm.abreast import add_gradients
from taskpgm.lm.lora import low_rank, patched
from taskpgm.lm.packing import pack

SCALES = (2.0, 0.5, 1.0)


def adapters(lm, probe):
    """Three adapters of random weights and different scales, that ask for gradients."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for scale in SCALES:
        weights = {k: torch.randn(w.shape, generator=generator) * 0.1 for k, w in probe.weights.items()}
        update = dataclasses.replace(low_rank(lm.model, probe.settings, weights), scale=scale)
        for weight in (*update.left, *update.right):
            weight.requires_grad_()
        found.append(update)
    return found


def one_by_one(lm, updates, rows):
    """Mean losses, gradients in the weights, by the engine's usual way."""
    losses = []
    for update, of_one in zip(updates, rows, strict=True):
        packed = pack(of_one, lm.shared_prefix(of_one), lm.device)
        with patched([update]) as switch, switch.use(update):
            blocks = [cross_entropy(z.float(), y, reduction="none") for z, y, _ in lm.response_logits(packed)]
            loss = torch.cat(blocks).mean()
        loss.backward()
        losses.append(float(loss.detach()))
    return losses


def steps(lm, probe, add, rows):
    """Losses of three optimiser steps of all adapters, and their gradients of the last one."""
    updates = adapters(lm, probe)
    optimisers = [torch.optim.SGD([*u.left, *u.right], lr=0.1) for u in updates]
    losses = []
    for number in range(3):
        for optimiser in optimisers:
            optimiser.zero_grad()
        losses.append(add(lm, updates, [of_one[number : number + 2] for of_one in rows]))
        gradients = [weight.grad.clone() for u in updates for weight in (*u.left, *u.right)]
        for optimiser in optimisers:
            optimiser.step()
    return losses, gradients


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_and_steps_are_those_of_one_after_another(architecture, model_folders):
    lm, _, probes = setup(model_folders[architecture])
    rows = [some_rows(4, length) for length in (30, 55, 41)]
    found, expected = (steps(lm, probes[0], add, rows) for add in (add_gradients, one_by_one))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert len({round(loss, 3) for step in expected[0] for loss in step}) == 9
    for gradient, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-3)


def test_a_model_that_does_not_run_packed_is_refused(model_folders):
    lm, _, probes = setup(model_folders["llama"])
    whole = dataclasses.replace(lm, whole_because="it has sinks")
    with pytest.raises(ValueError, match="need a model that runs packed: it has sinks"):
        add_gradients(whole, adapters(lm, probes[0])[:1], [some_rows()])
