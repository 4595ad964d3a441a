"""A model's files: what is missing or does not fit is one sentence, with or without its weights read."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import ARCHITECTURES, make_model, make_tokenizer
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM

from taskpgm.config import ModelConfig
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
    assert limits_of(whole) == limits_of(skeleton) == (331, 512)


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
