"""TRL's SFTTrainer and the project's own engine train the same probe from the same rows."""

import copy
import random

import numpy as np
import pytest
import torch
from support.heard import Heard
from support.models import ARCHITECTURES
from support.probing import ROWS, config_for, loaded

from taskpgm.errors import UserError
from taskpgm.evaluation.full_finetuning import save_finetuned, train_full, under
from taskpgm.evaluation.trl import _Microbatches, train_full_with_trl, train_with_trl
from taskpgm.lm import model as lm_module
from taskpgm.lm.loading import load_model
from taskpgm.probes.probe import installed
from taskpgm.probes.training import Trainer

pytest.importorskip("trl")


def steps_of(encoder):
    """Six uneven steps of rows of very different lengths."""
    rows = [row for name in ROWS for row in encoder.encode(ROWS[name])]
    return [[rows[i] for i in chosen] for chosen in ([0, 4], [1, 2, 3], [3, 3], [4, 0, 1], [2], [1, 4])]


def own_engine(lm, steps, config, seed):
    probe = Trainer(lm, config, seed).train("a", steps)
    return probe.losses, probe.weights


def draws():
    return random.random(), np.random.random(), float(torch.rand(1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_engines_agree(architecture, model_folders):
    lm, encoder, _ = loaded(model_folders[architecture])
    config = config_for(model_folders[architecture], lora={"r": 4, "alpha": 8})
    steps = steps_of(encoder)
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    settings = copy.deepcopy(
        [lm.model.config.to_dict(), lm.model.generation_config.to_dict(), vars(lm.model)["training"]]
    )
    heard = Heard()
    (random.seed(3), np.random.seed(3), torch.manual_seed(3))
    expected = draws()
    (random.seed(3), np.random.seed(3), torch.manual_seed(3))
    with heard.stage("training", 6):
        found = train_with_trl(lm, "a", steps, config, 1, heard)
    assert draws() == expected  # the random generators are left alone
    losses, weights = own_engine(lm, steps, config, 1)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-4)
    assert len(set(np.round(losses, 3))) == len(steps)
    assert set(found.weights) == set(weights)
    for key, weight in weights.items():
        torch.testing.assert_close(found.weights[key], weight, atol=1e-4, rtol=1e-3)
    assert found.trained_tokens == sum(len(row.ids) for step in steps for row in step)
    assert heard.done == {"training": 6}
    with installed(lm, [found]):
        pass
    assert [lm.model.config.to_dict(), lm.model.generation_config.to_dict(), lm.model.training] == settings
    assert "forward" not in vars(lm.model)
    assert all(torch.equal(before[name], p) for name, p in lm.model.named_parameters())
    assert dict(lm.model.named_parameters()).keys() == before.keys()


def test_a_large_step_is_accumulated(model_folders, monkeypatch):
    lm, encoder, _ = loaded(model_folders["llama"])
    config = config_for(model_folders["llama"], lora={"r": 4, "alpha": 8})
    steps = [step for step in steps_of(encoder) if len(step) > 1]
    whole = train_with_trl(lm, "a", steps, config)
    assert (_Microbatches(steps, 60).accumulated, _Microbatches(steps, 10**6).accumulated) == (2, 1)
    monkeypatch.setattr(lm_module.LanguageModel, "token_budget", 60)
    parts = train_with_trl(lm, "a", steps, config)
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-4)
    for key, weight in whole.weights.items():
        torch.testing.assert_close(parts.weights[key], weight, atol=1e-4, rtol=1e-3)


def test_a_loss_that_is_not_finite_is_one_sentence(model_folders):
    lm, encoder, _ = loaded(model_folders["llama"])
    config = config_for(model_folders["llama"], learning_rate=1e30)
    with pytest.raises(UserError, match=r"'a' has loss .* at step \d of 6; lower probes.learning_rate"):
        train_with_trl(lm, "a", steps_of(encoder), config)
    assert not [name for name, _ in lm.model.named_parameters() if "lora" in name]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_engines_train_the_same_whole_model(architecture, model_folders, tmp_path):
    lm, encoder, _ = loaded(model_folders[architecture])
    config = config_for(model_folders[architecture], learning_rate=1e-3)
    steps = steps_of(encoder)
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    theirs, ours = train_full_with_trl(lm, "a", steps, config), train_full(lm, "a", steps, config)
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-4)
    assert ours.weights.keys() == theirs.weights.keys() == before.keys()
    assert ours.trained_tokens == theirs.trained_tokens
    for key, weight in theirs.weights.items():
        # AdamW's steps are of the learning rate's size whatever the gradient's, so where that is zero but for rounding
        # (GPT-2's bias of keys, which no softmax sees) the weights differ.
        moved = (weight - before[key]).abs().mean()
        assert moved > 1e-4
        assert (ours.weights[key] - weight).abs().mean() < 0.02 * moved
    assert all(torch.equal(before[name], p) for name, p in lm.model.named_parameters())
    assert not any(p.requires_grad or p.grad is not None for p in lm.model.parameters())
    with under(lm, ours):
        assert all(torch.equal(ours.weights[name], p) for name, p in lm.model.named_parameters())
    assert all(torch.equal(before[name], p) for name, p in lm.model.named_parameters())
    save_finetuned(lm, ours, tmp_path)
    saved = load_model(config.model.model_copy(update={"path": str(tmp_path)}))
    assert all(torch.equal(ours.weights[name], p) for name, p in saved.model.named_parameters())
    assert saved.tokenizer("a b").input_ids == lm.tokenizer("a b").input_ids
