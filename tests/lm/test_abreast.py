"""Several adapters in one batch: what they get is what they get one after another."""

import dataclasses

import numpy as np
import pytest
import torch
from support.models import ARCHITECTURES
from support.packed import some_rows
from support.probing import setup
from torch.nn.functional import cross_entropy

from taskpgm.evaluation.answers import response_logp
from taskpgm.lm.abreast import Stack
from taskpgm.lm.lora import flatten, low_rank, patched
from taskpgm.lm.packing import pack
from taskpgm.lm.trunk import Trunk

LENGTHS = (30, 55, 41)


def some_weights(probe):
    """Random weights of three adapters."""
    generator = torch.Generator().manual_seed(0)
    return [{k: torch.randn(w.shape, generator=generator) * 0.1 for k, w in probe.weights.items()} for _ in LENGTHS]


def one_by_one(lm, settings, weights, rows):
    """Mean losses and flat gradients, by the engine's usual way."""
    losses, gradients = [], []
    for one, of_one in zip(weights, rows, strict=True):
        update = low_rank(lm.model, settings, one)
        for weight in (*update.left, *update.right):
            weight.requires_grad_()
        packed = pack(of_one, lm.shared_prefix(of_one), lm.device)
        with patched([update]) as switch, switch.use(update):
            blocks = [cross_entropy(z.float(), y, reduction="none") for z, y, _ in lm.response_logits(packed)]
            loss = torch.cat(blocks).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        pairs = zip(update.left, update.right, strict=True)
        gradients.append(torch.cat([w.grad.flatten() for pair in pairs for w in pair]))
    return losses, torch.stack(gradients)


@pytest.mark.parametrize("last_layers", [None, 1])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_and_gradients_are_those_of_one_after_another(architecture, last_layers, model_folders):
    lm, _, probes = setup(model_folders[architecture], last_layers=last_layers)
    rows = [some_rows(4, length)[:count] for length, count in zip(LENGTHS, (4, 1, 2), strict=True)]
    weights = some_weights(probes[0])
    expected, gradients = one_by_one(lm, probes[0].settings, weights, rows)
    stack = Stack(lm, probes[0].settings, weights)
    first = probes[0].first_layer(len(lm.layers))
    found = stack.add_gradients(rows, Trunk(lm, first, 0) if first else None)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert len({round(loss, 3) for loss in expected}) == 3
    torch.testing.assert_close(stack.gradient_KP, gradients, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(stack.master_KP, torch.stack([flatten(one) for one in weights]))


@pytest.mark.parametrize("last_layers", [None, 1])
def test_scores_are_those_of_one_after_another(last_layers, model_folders):
    lm, _, probes = setup(model_folders["llama"], last_layers=last_layers)
    rows, weights = some_rows(5, 40), some_weights(probes[0])
    first = probes[0].first_layer(len(lm.layers))
    found = Stack(lm, probes[0].settings, weights).logp(rows, Trunk(lm, first, 0) if first else None, tokens=200)
    for k, one in enumerate(weights):
        update = low_rank(lm.model, probes[0].settings, one)
        with patched([update]) as switch, switch.use(update):
            expected = response_logp(lm, rows)
        for of_row, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(of_row[k].numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_layers_read_what_was_updated(model_folders):
    lm, _, probes = setup(model_folders["llama"])
    stack = Stack(lm, probes[0].settings, some_weights(probes[0]))
    before = stack.logp(some_rows())
    stack.master_KP[1] += 0.05
    stack.update()
    after = stack.logp(some_rows())
    assert [bool((a == b).all()) for a, b in zip(torch.cat(after, 1), torch.cat(before, 1), strict=True)] == [
        True,
        False,
        True,
    ]


def test_a_model_that_does_not_run_packed_is_refused(model_folders):
    lm, _, probes = setup(model_folders["llama"])
    whole = dataclasses.replace(lm, whole_because="it has sinks")
    with pytest.raises(ValueError, match="need a model that runs packed: it has sinks"):
        Stack(whole, probes[0].settings, some_weights(probes[0]))
