"""A model's files: what is missing or does not fit is one sentence, with or without its weights read."""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import ARCHITECTURES, make_model, make_tokenizer, write_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, BertForMaskedLM

from taskpgm.chat.encoder import ChatEncoder
from taskpgm.config import ModelConfig
from taskpgm.data.messages import conversation
from taskpgm.errors import UserError
from taskpgm.lm.checkpoint import limits_of, load_tokenizer, read_model, read_skeleton
from taskpgm.lm.loading import load_model

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_skeleton_has_the_shapes_of_the_model_and_nothing_in_them(architecture, model_folders):
    config = ModelConfig(path=str(model_folders[architecture]))
    whole, skeleton = read_model(config), read_skeleton(config)
    assert {n: p.shape for n, p in whole.named_parameters()} == {n: p.shape for n, p in skeleton.named_parameters()}
    assert all(p.is_meta for p in skeleton.parameters())
    assert not any(p.is_meta for p in whole.parameters())
    assert limits_of(whole) == limits_of(skeleton) == (331, 512, False)


def test_rows_longer_than_a_models_short_rotary_factors_are_refused(tmp_path):
    """Such a row beside a short one changes what the model says of that: here transformers' own logits do."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 16}
    rotary = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0, **factors}
    settings = {"original_max_position_embeddings": 16, "rope_parameters": rotary}
    config = ModelConfig(path=str(write_model(tmp_path, "phi3", settings)))
    limits = limits_of(read_skeleton(config))
    assert limits == (331, 16, True)
    model = read_model(config).eval()
    with torch.no_grad():
        logits = [model(input_ids=torch.arange(n)[None]).logits[:, :10] for n in (10, 16, 17)]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)
    assert (logits[2] - logits[0]).abs().max() > 0.1
    row = conversation(("user", "a b c d e f g h i j k l m n o p q r s t u v w x y z"), ("assistant", "yes"))
    encoder = ChatEncoder(load_tokenizer(config), 256, limits)
    with pytest.raises(
        UserError, match=r"has 16 positions before it changes the rotary factors of all.*max_length to 16"
    ):
        encoder.encode([row])
    assert ChatEncoder(load_tokenizer(config), 16, limits).encode([row])[0].truncated


def change_config(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def without_a_weight(folder):
    weights = load_file(folder / WEIGHTS)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def in_shards(folder):
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="40KB")
    (folder / WEIGHTS).unlink(missing_ok=True)


def without_a_shard(folder):
    in_shards(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def without_an_index(folder):
    in_shards(folder)
    (folder / "model.safetensors.index.json").write_text("{}")


def pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def as_an_adapter(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')


def in_awq(folder):
    change_config(folder, quantization_config={"quant_method": "awq", "bits": 4, "group_size": 128})


def with_code(folder):
    auto = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    change_config(folder, auto_map=auto, model_type="own_kind")


def as_a_classifier(folder):
    """Tied embeddings: no weight of the language model is missing."""
    change_config(folder, tie_word_embeddings=True)
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(folder)


def cut(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without_a_weight, r"no weights for 'model.layers.1.mlp.up_proj.weight', which a LlamaForCausalLM needs"),
        (lambda f: change_config(f, num_hidden_layers=6), r"no weights for 'model.layers.4.* and 17 more"),
        (lambda f: change_config(f, vocab_size=340), r"embed_tokens.weight' of shape \(331, 32\), .* asks for \(340, 32\)"),
        (without_a_shard, r"lacks model-00002-of-0000\d.safetensors, which its model.safetensors.index.json names"),
        (without_an_index, r"no readable model.safetensors.index.json .* fetch it again"),
        (pickled, r"only pickled weights \(pytorch_model.bin\), which are not loaded; save it as safetensors"),
        (cut, r"No causal language model can be loaded .*incomplete metadata"),
        (lambda f: (f / WEIGHTS).write_bytes(b""), r"No causal language model can be loaded .*header too small"),
        (lambda f: (f / WEIGHTS).unlink(), r"No causal language model can be loaded .*safetensors"),
        (lambda f: (f / "config.json").write_text("{"), r"No causal language model .* not a valid JSON file"),
        (lambda f: (f / "config.json").unlink(), r"No causal language model .* no config.json; name the folder that a model was"),
        (in_awq, r"requires gptqmodel.*; install what it needs, or name the model in another form"),
        (with_code, r"it brings code of its own, which is run with model.trust_remote_code: true"),
        (as_a_classifier, r"was saved as LlamaForSequenceClassification .* name the language model that it was made from"),
        (as_an_adapter, r"is the folder of an adapter \(adapter_config.json\); name the model that it belongs to"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("read", [read_model, read_skeleton])
def test_files_that_are_missing_or_do_not_fit_are_one_sentence(read, change, sentence, model_folders, tmp_path):
    folder = shutil.copytree(model_folders["llama"], tmp_path / "model")
    change(folder)
    with pytest.raises(UserError, match=sentence) as error:
        read(ModelConfig(path=str(folder)))
    assert "\n" not in str(error.value)


def test_a_model_in_shards_is_read_whole(model_folders, tmp_path):
    folder = shutil.copytree(model_folders["qwen2"], tmp_path / "model")
    in_shards(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    found = read_model(ModelConfig(path=str(folder))).state_dict()
    expected = load_file(model_folders["qwen2"] / WEIGHTS)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert read_skeleton(ModelConfig(path=str(folder))).lm_head.weight.shape == (331, 32)


def test_a_tokenizer_alone_has_no_skeleton(tmp_path):
    make_tokenizer(tmp_path)
    assert read_skeleton(ModelConfig(path=str(tmp_path))) is None
    with pytest.raises(UserError, match=r"no config.json; name the folder that a model was saved to"):
        load_model(ModelConfig(path=str(tmp_path)))


def test_a_folder_without_a_model_is_called_so(tmp_path):
    (tmp_path / "snapshots").mkdir()
    with pytest.raises(UserError, match=r"holds no model: name the folder that has its config.json"):
        load_tokenizer(ModelConfig(path=str(tmp_path)))


def test_a_model_that_sees_later_tokens_is_refused(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    BertForMaskedLM(BertConfig(vocab_size=331, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"sees later tokens too .* name a causal language model"):
        read_skeleton(ModelConfig(path=str(tmp_path)))


def test_padding_that_was_added_behind_the_embeddings_is_another_token(model_folders, tmp_path):
    folder = shutil.copytree(model_folders["llama"], tmp_path / "model")
    make_tokenizer(folder)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    while len(tokenizer) < 331:
        tokenizer.add_tokens([f"filling {len(tokenizer)}"])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id >= 331
    tokenizer.save_pretrained(folder)
    lm = load_model(ModelConfig(path=str(folder), device="cpu"))
    assert lm.tokenizer.pad_token == "<|im_end|>"


def test_weights_that_are_no_numbers_are_named_before_anything_is_trained(tmp_path):
    folder = make_model(tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 2] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"'model.layers.1.mlp.up_proj.weight' of model .* not finite.*download"):
        load_model(ModelConfig(path=str(folder), device="cpu"))


def write_gguf(path, without=()):
    """A random Llama of one layer with a tokenizer of single letters."""
    tokens = ["<unk>", "<s>", "</s>", *map(chr, range(33, 127)), "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        ("context_length", 64), ("embedding_length", 32), ("block_count", 1), ("feed_forward_length", 48),
        ("head_count", 4), ("head_count_kv", 2), ("layer_norm_rms_eps", 1e-5), ("rope_dimension_count", 8),
        ("vocab_size", len(tokens)), ("tokenizer_model", "gpt2"), ("tokenizer_pre", "default"), ("token_list", tokens),
        ("token_types", [1] * len(tokens)), ("token_merges", ["a b"]), ("bos_token_id", 1), ("eos_token_id", 2),
    ):  # fmt: skip
        getattr(writer, f"add_{add}")(value)
    shapes = {"token_embd": (len(tokens), 32), "output": (len(tokens), 32), "output_norm": (32,)} | {
        f"blk.0.{name}": shape
        for name, shape in {
            "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32), "ffn_gate": (48, 32),
            "ffn_up": (48, 32), "ffn_down": (32, 48), "attn_norm": (32,), "ffn_norm": (32,),
        }.items()
    }  # fmt: skip
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        if name not in without:
            writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_weight_that_a_gguf_file_lacks_is_an_error_as_one_of_safetensors_is(tmp_path):
    """As a file that is one of several parts lacks those of the others."""
    write_gguf(tmp_path / "whole.gguf")
    assert read_skeleton(ModelConfig(path=str(tmp_path / "whole.gguf"))).config.num_hidden_layers == 1
    write_gguf(tmp_path / "lacking.gguf", ["blk.0.ffn_up"])
    with pytest.raises(UserError, match=r"lacking.gguf' have no weights for 'model.layers.0.mlp.up_proj.weight'"):
        read_skeleton(ModelConfig(path=str(tmp_path / "lacking.gguf")))
    with pytest.raises(UserError, match=r"has 2 GGUF files \(lacking.gguf, whole.gguf, …\); name one of them"):
        read_skeleton(ModelConfig(path=str(tmp_path)))
    (tmp_path / "noise.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match=r"noise.gguf cannot be read .*; is it complete"):
        read_skeleton(ModelConfig(path=str(tmp_path / "noise.gguf")))


def of_another_kind(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["type"] = "of tomorrow"
    path.write_text(json.dumps(tokenizer))


def with_a_wrong_type(folder):
    change_config(folder, hidden_size="32")


@pytest.mark.parametrize("change", [of_another_kind, with_a_wrong_type])
def test_whatever_goes_wrong_with_a_tokenizer_is_one_sentence(change, model_folders, tmp_path):
    """A newer tokenizer.json makes `tokenizers` raise a bare Exception, and a wrong config.json one of the hub's own."""
    folder = shutil.copytree(model_folders["llama"], tmp_path / "model")
    change(folder)
    with pytest.raises(UserError, match=r"No tokenizer can be loaded from .*tokenizer_config.json beside its weights"):
        load_tokenizer(ModelConfig(path=str(folder)))
