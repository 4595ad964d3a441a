"""Packed batches: the layout, attention row by row, cached trunks, and models that do not run packed."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from support.heard import Heard
from support.models import ARCHITECTURES, make_model
from support.packed import packed_logp, plain_logp, row, some_rows
from transformers import AutoModelForCausalLM

from taskpgm.chat.encoder import Encoded
from taskpgm.config import ModelConfig
from taskpgm.lm import packing
from taskpgm.lm.engine import Engine
from taskpgm.lm.loading import load_model
from taskpgm.lm.lora import flatten, low_rank
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.packing import ends, pack, shared_prefix
from taskpgm.lm.trunk import Trunk
from taskpgm.probes.probe import Probe, installed
from taskpgm.probes.scoring import BASE, score_sets

CPU = torch.device("cpu")


@st.composite
def rows_with_a_prefix(draw):
    """Rows of a vocabulary of 331 that begin alike for a while, with responses of one or two turns."""
    prefix = draw(st.lists(st.integers(4, 330), min_size=0, max_size=9))
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        rest = draw(st.lists(st.integers(4, 330), min_size=2, max_size=14))
        ids = np.array([3, *prefix, *rest], dtype=np.int32)
        first = draw(st.integers(1, len(ids) - 1))
        mask = np.arange(len(ids)) >= first
        if draw(st.booleans()) and len(ids) - first > 2:
            mask[first + 1] = False
        if draw(st.booleans()) and mask.sum() > 1:
            mask[-1] = False
        rows.append(Encoded(ids, mask, False))
    return rows


@settings(max_examples=200, deadline=None)
@given(rows_with_a_prefix())
def test_the_layout_holds_every_token_once_and_predicts_every_label(rows):
    shared = shared_prefix(rows)
    packed = pack(rows, shared, CPU)
    first = min(int(r.response.argmax()) for r in rows)
    assert all((r.ids[:shared] == rows[0].ids[:shared]).all() for r in rows)
    assert shared < first
    lengths = [ends(r) - shared for r in rows]
    assert len(packed.ids_N) == shared + sum(lengths)
    starts = shared + np.cumsum([0, *lengths[:-1]])
    at = 0
    for r, start, length in zip(rows, starts, lengths, strict=True):
        own = [*range(shared), *range(start, start + length)]
        np.testing.assert_array_equal(packed.ids_N[own], r.ids[: ends(r)])
        np.testing.assert_array_equal(packed.position_N[own], np.arange(ends(r)))
        labels = np.flatnonzero(r.response)
        np.testing.assert_array_equal(packed.labels_R[at : at + len(labels)], r.ids[labels])
        np.testing.assert_array_equal(packed.predict_R[at : at + len(labels)], np.array(own)[labels - 1])
        at += len(labels)
    assert at == len(packed.labels_R)


_MODELS: dict = {}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows_with_a_prefix(), architecture=st.sampled_from(ARCHITECTURES), first=st.sampled_from([0, 2, 3]))
def test_packed_rows_score_as_one_at_a_time(rows, architecture, first, model_folders):
    if architecture not in _MODELS:
        folder = model_folders[architecture]
        _MODELS[architecture] = (
            load_model(ModelConfig(path=str(folder), device="cpu", dtype="float32")),
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
        )
    lm, plain = _MODELS[architecture]
    assert lm.plain_head
    np.testing.assert_allclose(packed_logp(lm, rows, first), plain_logp(plain, rows), atol=1e-4)


@pytest.mark.parametrize("shared", [0, 5, 70])
@pytest.mark.parametrize("lengths", [(9, 6, 12), (6, 9, 130, 200), (200, 70, 129)])
@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1)])
def test_attention_and_its_gradients_are_those_of_rows_alone(shared, lengths, window, heads, groups):
    """Of rows in one block of queries and in several, in any order; values may be of another size than keys."""
    rng = np.random.default_rng(0)
    lengths = [shared + length for length in lengths]
    rows = [row([*range(4, 4 + shared), *rng.integers(20, 99, length - shared)], length - 2) for length in lengths]
    packed = pack(rows, shared, CPU)
    sizes = ((heads, 8), (groups, 8), (groups, 3))
    q, k, v = (torch.randn(1, h, len(packed.ids_N), e, dtype=torch.float64, requires_grad=True) for h, e in sizes)
    token = packing._LAYOUT.set(packed)
    out, _ = packing.packed_attention(None, q, k, v, None, sliding_window=window)
    packing._LAYOUT.reset(token)
    starts = shared + np.cumsum([0, *(ends(one) - shared for one in rows)])
    expected = torch.zeros_like(out)
    for start, one in zip(starts, rows, strict=False):
        at = torch.cat([torch.arange(shared), torch.arange(int(start), int(start) + ends(one) - shared)])
        own = (x[:, :, at].repeat_interleave(heads // x.shape[1], 1) for x in (q, k, v))
        behind = torch.arange(len(at))[:, None] - torch.arange(len(at))
        seen = (behind >= 0) & (behind < (window or len(at)))
        alone = torch.nn.functional.scaled_dot_product_attention(*own, attn_mask=seen)[0].transpose(0, 1)
        expected = expected.index_put((torch.tensor(0), at), alone)  # what rows share comes to the same in all of them
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-9)
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), (q, k, v))
    near = {"atol": 1e-5, "rtol": 1e-5}  # gradients of keys add up in float32
    torch.testing.assert_close(found, torch.autograd.grad((expected * weight).sum(), (q, k, v)), **near)


def test_a_sliding_window_is_kept(tmp_path):
    folder = make_model(tmp_path, "mistral")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.sliding_window = 8
    model.save_pretrained(folder)
    lm = load_model(ModelConfig(path=str(folder), device="cpu", dtype="float32"))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = some_rows()
    assert lm.plain_head
    assert lm.shared_prefix(rows) == 12
    np.testing.assert_allclose(packed_logp(lm, rows), plain_logp(plain, rows), atol=1e-4)
    plain.config.sliding_window = None
    assert np.abs(packed_logp(lm, rows) - plain_logp(plain, rows)).max() > 0.01  # the window means something


def counted_trunk(folder, memory, monkeypatch):
    """A model, rows, a trunk of them, what runs it, and a list of how many rows every run had."""
    lm = load_model(ModelConfig(path=str(folder), device="cpu", dtype="float32"))
    rows, run, ran = some_rows(), LanguageModel.trunk, []
    monkeypatch.setattr(
        LanguageModel, "trunk", lambda self, packed, first: ran.append(len(packed.rows)) or run(self, packed, first)
    )
    return lm, rows, Trunk(lm, 2, lm.shared_prefix(rows), memory), run, ran


@pytest.mark.parametrize("memory", [0, 4000, 1 << 20])
def test_a_trunk_gives_what_it_kept_or_runs_it_again(memory, model_folders, monkeypatch):
    lm, rows, trunk, run, ran = counted_trunk(model_folders["qwen2"], memory, monkeypatch)
    for chosen in ([0, 1], [1, 2, 3], [3, 3, 0]):
        packed = pack([rows[i] for i in chosen], trunk.shared, lm.device)
        torch.testing.assert_close(trunk.entering(packed), run(lm, packed, 2), atol=1e-5, rtol=1e-4)
    # 4,000 bytes hold one row's 27 activations of 32 floats.
    assert ran == {0: [2, 3, 2], 4000: [2, 3, 1], 1 << 20: [2, 2]}[memory]
    assert sum(kept.nbytes for _, kept in trunk.kept.values()) <= memory


@pytest.mark.parametrize("memory", [0, 4000, 1 << 20])
def test_a_trunk_is_filled_in_full_batches_while_there_is_memory(memory, model_folders, monkeypatch):
    lm, rows, trunk, run, ran = counted_trunk(model_folders["qwen2"], memory, monkeypatch)
    monkeypatch.setattr(LanguageModel, "token_budget", trunk.shared + 2 * (max(map(ends, rows)) - trunk.shared))
    heard = Heard()
    trunk.fill([*rows, rows[0]], heard)
    assert not heard.said
    assert (heard.done == heard.totals) == (memory == 1 << 20)
    filled = list(ran)
    assert filled == ([2, 2] if memory == 1 << 20 else [2])
    assert len(trunk.kept) == {0: 0, 4000: 1, 1 << 20: 4}[memory]
    packed = pack([rows[i] for i in (3, 1, 3)], trunk.shared, lm.device)
    torch.testing.assert_close(trunk.entering(packed), run(lm, packed, 2), atol=1e-5, rtol=1e-4)
    assert (ran == filled) == (memory == 1 << 20)


def test_an_adapter_that_is_no_plain_lora_is_left_to_peft(model_folders, tmp_path):
    folder = model_folders["llama"]
    lm = load_model(ModelConfig(path=str(folder), device="cpu", dtype="float32"))
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings_ = LoraConfig(
        r=3, lora_alpha=9, use_dora=True, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM",
        init_lora_weights=False,
    )  # fmt: skip
    model = get_peft_model(base, settings_).eval()
    weights = {k: v.clone() for k, v in get_peft_model_state_dict(model).items()}
    probe = Probe("dora", 0, settings_, weights)
    assert low_rank(lm.model, settings_, weights) is None
    rows = some_rows()
    blocks = dict(score_sets(Engine.of(lm), {"x": rows}, [probe], {"x": [probe.name, BASE]}))["x"]
    np.testing.assert_allclose(blocks[probe.name, "x"].logp, plain_logp(model, rows), atol=1e-4)
    with model.disable_adapter():
        np.testing.assert_allclose(blocks[BASE, "x"].logp, plain_logp(model, rows), atol=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_low_rank_updates_are_pefts(architecture, rslora, model_folders, tmp_path):
    folder = model_folders[architecture]
    lm = load_model(ModelConfig(path=str(folder), device="cpu", dtype="float32"))
    targets = ["c_attn", "c_fc"] if architecture == "gpt2" else ["k_proj", "down_proj"]
    settings_ = LoraConfig(
        r=4, lora_alpha=6, use_rslora=rslora, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False,
        fan_in_fan_out=architecture == "gpt2",
    )  # fmt: skip
    torch.manual_seed(5)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), settings_)
    model.save_pretrained(tmp_path / "a")
    weights = {k: v.clone() for k, v in get_peft_model_state_dict(model).items()}
    model.peft_config["default"].init_lora_weights = True
    probe = Probe("a", 0, model.peft_config["default"], weights)
    update = low_rank(lm.model, probe.settings, weights)
    assert update is not None
    assert all(torch.equal(v, weights[k]) for k, v in update.weights(flatten(weights)).items())
    reloaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tmp_path / "a"
    ).eval()
    ids = torch.arange(20)[None]
    with installed(lm, [probe]) as use, torch.no_grad():
        base = lm.model(input_ids=ids).logits
        with use(probe):
            found = lm.model(input_ids=ids).logits
        assert torch.equal(lm.model(input_ids=ids).logits, base)
        torch.testing.assert_close(found, reloaded(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
        assert (found - base).abs().max() > 0.1
