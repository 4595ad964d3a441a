"""Adapters in stacks: what they get is what they get one after another."""

import dataclasses

import numpy as np
import pytest
import torch
from support.benchmarks import load_benchmark
from support.models import ARCHITECTURES, make_model
from support.packed import some_rows
from support.probing import setup
from support.runs import experiment
from torch.nn.functional import cross_entropy

from taskpgm import load_config
from taskpgm.evaluation.compare import Trainings, mixture_weights, training_run
from taskpgm.evaluation.likelihood import response_logp
from taskpgm.evaluation.settings import CompareOptions
from taskpgm.lm.lora import flatten, low_rank, patched
from taskpgm.lm.packing import pack
from taskpgm.lm.trunk import Trunk
from taskpgm.pipeline.run import run_session
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import finished_run


@pytest.fixture(scope="module")
def stacked():
    return load_benchmark("stacked")


def test_stacks_measure_what_single_trainings_do(stacked, tmp_path, monkeypatch):
    monkeypatch.setattr(stacked.StackedTrainings, "tokens", 600)  # of a step: several stacks
    config = load_config(experiment(tmp_path, make_model(tmp_path / "model")))
    with open_session(config, tmp_path / "run") as session:
        finished = finished_run(session, run_session(session))
        options = CompareOptions(("taskpgm", "uniform", "random"), accuracy=False)
        found = []
        for kind in (stacked.StackedTrainings, Trainings):
            trainings = kind(finished, options)
            runs = [
                training_run(finished, name, weights, seed)
                for seed in range(2)
                for name, weights in mixture_weights(config, finished.result, options.mixtures, seed).items()
            ]
            for run in runs:
                trainings.path(run).unlink(missing_ok=True)
            found.append(trainings.measurements(runs, "comparing"))
    for one, other in zip(*found, strict=True):
        assert (one.mixture, one.seed) == (other.mixture, other.seed)
        for name, loss in one.loss.items():
            np.testing.assert_allclose(loss, other.loss[name], rtol=1e-4)
            np.testing.assert_allclose(one.halves[name], other.halves[name], rtol=1e-4)


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
def test_losses_and_gradients_are_those_of_one_after_another(stacked, architecture, last_layers, model_folders):
    lm, _, probes = setup(model_folders[architecture], last_layers=last_layers)
    rows = [some_rows(4, length)[:count] for length, count in zip(LENGTHS, (4, 1, 2), strict=True)]
    weights = some_weights(probes[0])
    expected, gradients = one_by_one(lm, probes[0].settings, weights, rows)
    stack = stacked.Stack(lm, probes[0].settings, weights)
    first = probes[0].first_layer(len(lm.layers))
    found = stack.add_gradients(rows, Trunk(lm, first, 0) if first else None)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert len({round(loss, 3) for loss in expected}) == 3
    torch.testing.assert_close(stack.gradient_KP, gradients, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(stack.master_KP, torch.stack([flatten(one) for one in weights]))


@pytest.mark.parametrize("last_layers", [None, 1])
def test_scores_are_those_of_one_after_another(stacked, last_layers, model_folders):
    lm, _, probes = setup(model_folders["llama"], last_layers=last_layers)
    rows, weights = some_rows(5, 40), some_weights(probes[0])
    first = probes[0].first_layer(len(lm.layers))
    found = stacked.Stack(lm, probes[0].settings, weights).logp(
        rows, Trunk(lm, first, 0) if first else None, tokens=200
    )
    for k, one in enumerate(weights):
        update = low_rank(lm.model, probes[0].settings, one)
        with patched([update]) as switch, switch.use(update):
            expected = response_logp(lm, rows)
        for of_row, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(of_row[k].numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_layers_read_what_was_updated(stacked, model_folders):
    lm, _, probes = setup(model_folders["llama"])
    stack = stacked.Stack(lm, probes[0].settings, some_weights(probes[0]))
    before = stack.logp(some_rows())
    stack.master_KP[1] += 0.05
    stack.update()
    after = stack.logp(some_rows())
    assert [bool((a == b).all()) for a, b in zip(torch.cat(after, 1), torch.cat(before, 1), strict=True)] == [
        True,
        False,
        True,
    ]


def test_a_model_that_does_not_run_packed_is_refused(stacked, model_folders):
    lm, _, probes = setup(model_folders["llama"])
    whole = dataclasses.replace(lm, whole_because="it has sinks")
    with pytest.raises(ValueError, match="needs a model that runs packed: it has sinks"):
        stacked.Stack(whole, probes[0].settings, some_weights(probes[0]))
