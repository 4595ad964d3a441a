"""Which models run packed, and which whole and padded: by their structure, on every processor and in every precision."""

import contextlib
import hashlib
import json
import re

import numpy as np
import pytest
import torch
from support.models import EXPERTS, IMAGES, SHORT, make_model, write_model
from support.packed import packed_logp, plain_logp, some_rows
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from taskpgm.config import ModelConfig
from taskpgm.errors import UserError
from taskpgm.lm.devices import multiplies
from taskpgm.lm.loading import load_model, skeleton
from taskpgm.lm.structure import in_float32, why_whole

PACKED = {
    "llama": {}, "qwen2": {}, "mistral": {"sliding_window": 8}, "gpt2": None, "qwen3": SHORT, "phi3": {}, "phi": {},
    "gemma": SHORT, "gemma3_text": {**SHORT, "sliding_window": 8}, "olmo2": {}, "starcoder2": {}, "stablelm": {},
    "smollm3": {}, "glm4": SHORT, "gpt_neox": {}, "opt": {"ffn_dim": 56, "word_embed_proj_dim": 32},
    "mixtral": {"num_local_experts": 4}, "qwen3_moe": {**SHORT, **EXPERTS, "num_experts": 4},
    "deepseek_v3": {
        **EXPERTS, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4,
    },
}  # fmt: skip
WHOLE = {
    "gemma2": ({**SHORT, "attn_logit_softcapping": None}, "final_logit_softcapping to 30"),
    "gemma2 with capped attention": ({**SHORT, "final_logit_softcapping": None}, "attn_logit_softcapping to 50"),
    "gemma2 with a cap too high to be seen": (
        {**SHORT, "attn_logit_softcapping": None, "final_logit_softcapping": 1e4}, "final_logit_softcapping to 10000"
    ),
    "granite": ({"logits_scaling": 3.0}, r"its logits differ by \d+\.\d\d% in norm"),
    "granite of a scale near one": ({"logits_scaling": 1.002}, r"its logits differ by 0\.20% in norm"),
    "cohere": ({"logit_scale": 0.9}, r"its logits differ by 11\.1\d% in norm"),
    "gpt_oss": ({**SHORT, "num_local_experts": 4}, "have sinks"),
    "llama4_text": (
        {**SHORT, "num_local_experts": 2, "intermediate_size_mlp": 56}, "attention_chunk_size to 8192"
    ),
    "bloom": ({"n_layer": 4, "n_head": 4}, "cannot be run in parts"),
    "mamba2": ({"num_heads": 8, "head_dim": 8, "n_groups": 1}, "its logits differ"),
    "lfm2": ({"layer_types": ["conv", "conv", "full_attention", "conv"]}, "its logits differ"),
}  # fmt: skip


def loaded(folder, dtype="float32"):
    return load_model(ModelConfig(path=str(folder), device="cpu", dtype=dtype))


@contextlib.contextmanager
def another_processor(monkeypatch):
    """Within, products of linear layers have another processor's rounding: it depends on their shape.

    In bfloat16 four times as much as the format's own, more than AMX and AVX-512 differ by.
    """
    plain = torch.nn.functional.linear

    def linear(x, weight, bias=None):
        out = plain(x, weight, bias)
        seed = int.from_bytes(hashlib.blake2b(str((x.shape, weight.shape)).encode(), digest_size=4).digest(), "big")
        noise = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
        return out * (1 + 2 * torch.finfo(out.dtype).eps * noise).to(out.dtype)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", linear)
        yield


@pytest.mark.parametrize("kind", PACKED)
def test_supported_architectures_run_packed(kind, tmp_path, monkeypatch):
    folder = write_model(tmp_path, kind, PACKED[kind])
    lm = loaded(folder)
    assert lm.whole_because is None
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = some_rows(length=100)
    for first in (0, 1, 3):
        np.testing.assert_allclose(packed_logp(lm, rows, first), plain_logp(plain, rows), atol=1e-3)
    for dtype in ("bfloat16", "float16"):
        assert loaded(folder, dtype).whole_because is None
    with another_processor(monkeypatch):
        assert loaded(folder, "bfloat16").whole_because is None


@pytest.mark.parametrize("kind", WHOLE)
def test_others_are_run_whole_and_say_why(kind, tmp_path, monkeypatch):
    settings, why = WHOLE[kind]
    folder = write_model(tmp_path, kind, settings)
    for dtype in ("float32", "bfloat16"):
        lm = loaded(folder, dtype)
        assert re.search(why, lm.whole_because or "")
    with another_processor(monkeypatch):
        assert loaded(folder, "bfloat16").whole_because
    if kind == "granite":
        lm = loaded(folder)
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        rows = some_rows()
        assert lm.shared_prefix(rows) == 0
        np.testing.assert_allclose(packed_logp(lm, rows), plain_logp(plain, rows), atol=1e-4)


def test_a_model_that_sees_what_follows_a_row_is_refused(tmp_path):
    """Else it would be asked for answers that it has in view."""
    folder = write_model(tmp_path, "bert-generation", {})
    with pytest.raises(UserError, match=r"depends on what follows it: .* in norm .*; name a causal language model"):
        loaded(folder)
    change = json.loads((folder / "config.json").read_text()) | {"is_decoder": True}
    (folder / "config.json").write_text(json.dumps(change))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    np.testing.assert_allclose(packed_logp(loaded(folder), some_rows()), plain_logp(plain, some_rows()), atol=1e-4)


def test_a_model_that_cannot_be_run_is_one_sentence(tmp_path, monkeypatch):
    folder = write_model(tmp_path, "llama", {})

    def forward(*_, **__):
        raise TypeError("topk(): argument 'k' must be int, not NoneType")

    monkeypatch.setattr(modeling_llama.LlamaForCausalLM, "forward", forward)
    with pytest.raises(UserError, match=r"cannot be run here, .*\(TypeError: topk.*check its config.json"):
        loaded(folder)


def test_a_model_of_states_alone_is_run_though_it_has_no_heads(tmp_path):
    folder = write_model(tmp_path, "mamba", {})
    lm, rows = loaded(folder), some_rows()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    np.testing.assert_allclose(packed_logp(lm, rows), plain_logp(plain, rows), atol=1e-4)
    assert skeleton(ModelConfig(path=str(folder), device="cpu")).memory(100, 50, 10, 0) > 0


def test_the_layers_are_those_that_read_text(tmp_path):
    lm = loaded(write_model(tmp_path, *IMAGES))
    assert lm.whole_because is None
    assert lm.layers is lm.model.model.language_model.layers
    assert len(lm.layers) == len(lm.model.model.vision_tower.encoder.layers)


def test_a_model_in_float64_is_run_in_float32(tmp_path):
    folder = write_model(tmp_path, "llama", {})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    model.save_pretrained(folder)
    lm = load_model(ModelConfig(path=str(folder), device="cpu"))
    assert lm.dtype == torch.float32
    assert "saved in float64" in lm.precision_note
    np.testing.assert_allclose(packed_logp(lm, some_rows()), plain_logp(model, some_rows()), atol=1e-4)


def test_noise_of_another_processor_is_seen_in_bfloat16(tmp_path, monkeypatch):
    """Else the tests above would show nothing."""
    model = loaded(make_model(tmp_path), "bfloat16").model
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        alone = torch.cat([model(input_ids=row[None]).logits for row in ids]).float()
        with another_processor(monkeypatch):
            other, rows = model(input_ids=ids).logits, [model(input_ids=row[None]).logits for row in ids]
    scale = (alone - alone.mean(-1, keepdim=True)).norm()
    assert (other.float() - alone).norm() / scale > 0.005
    assert (other - torch.cat(rows)).float().norm() / scale > 0.005  # two plain ways to the same


def test_nothing_of_the_comparison_stays(tmp_path):
    lm = loaded(write_model(tmp_path, "gemma", SHORT), "bfloat16")
    before = {name: (p.dtype, p.clone()) for name, p in lm.model.named_parameters()}
    with in_float32(lm), torch.no_grad():
        assert lm.model(input_ids=torch.arange(9)[None]).logits.dtype == torch.float32
    for name, p in lm.model.named_parameters():
        assert p.dtype == before[name][0]
        assert torch.equal(p, before[name][1])
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in lm.model.modules())


def sinking(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    """Llama's attention with a sink: a score of nothing that takes its share of the weights."""
    key, value = (modeling_llama.repeat_kv(x, module.num_key_value_groups) for x in (key, value))
    score = query @ key.transpose(2, 3) * scaling
    score = score + attention_mask if attention_mask is not None else score
    weight = torch.cat([score, torch.zeros_like(score[..., :1])], -1).softmax(-1)[..., :-1]
    return (weight @ value).transpose(1, 2).contiguous(), weight


def scaled(head):
    return lambda self, *args, **kwargs: _with_logits(head(self, *args, **kwargs), 1.002)


def _with_logits(out, factor):
    out.logits = out.logits * factor
    return out


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float32"] if multiplies(torch.device("cpu"), torch.bfloat16) else ["float32"]
)
@pytest.mark.parametrize("structure", ["sink", "scale", "nothing"])
def test_the_embedded_model_runs_packed_and_another_structure_with_its_weights_is_found(structure, dtype, monkeypatch):
    lm = load_model(ModelConfig(device="cpu", dtype=dtype))
    assert lm.whole_because is None
    if structure == "sink":
        monkeypatch.setattr(modeling_llama, "eager_attention_forward", sinking)
    if structure == "scale":
        kind = modeling_llama.LlamaForCausalLM
        monkeypatch.setattr(kind, "forward", scaled(kind.forward))
    with another_processor(monkeypatch):
        assert (why_whole(lm) is None) == (structure == "nothing")
