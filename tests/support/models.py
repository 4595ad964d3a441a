"""Tiny random models in the architectures people use, and a tokenizer trained on the spot."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


ARCHITECTURES = ("llama", "qwen2", "mistral", "gpt2")


CORPUS = [
    "What is the sum of 3 and 4? The answer is 7.",
    "Is the sky blue? Answer yes or no. yes no maybe",
    "Reverse the word apple: elppa. Count the letters in banana: 6.",
    "user assistant system You are a helpful assistant. 0 1 2 3 4 5 6 7 8 9",
]

SMALL = {
    "vocab_size": 331, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 3, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SHORT = {"head_dim": 8}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
GPT2 = {"vocab_size": 331, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512, "pad_token_id": 0}
IMAGES = ("gemma3", {
    "text_config": {**SMALL, **SHORT, "sliding_window": 8},
    "vision_config": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4, "image_token_index": 330, "boi_token_index": 329, "eoi_token_index": 328,
})  # fmt: skip
# Models with layers that PEFT knows under other names, refuses or means others by, and what carries adapters in them.
OTHERS = {
    "mixtral": ({"num_local_experts": 4}, "k_proj o_proj q_proj v_proj"),
    "deepseek_v3": (
        {
            **EXPERTS, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
            "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4,
        },
        "kv_a_proj_with_mqa kv_b_proj o_proj q_a_proj q_b_proj",
    ),
    "llama4_text": (
        {**SHORT, "num_local_experts": 2, "intermediate_size_mlp": 56},
        "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj",
    ),
    "ctrl": (
        {"n_embd": 32, "n_layer": 4, "n_head": 4, "dff": 56, "n_positions": 512}, "0 2 Wk Wq Wv dense"
    ),
    "gemma3": (IMAGES[1], "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"),
    "falcon_mamba": ({"state_size": 8}, "dt_proj in_proj x_proj"),
}  # fmt: skip


def devices() -> list[str]:
    """Where the engine is tested: on the CPU, and on a GPU where there is one."""
    if importlib.util.find_spec("torch") is None:
        return ["cpu"]
    import torch

    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def make_tokenizer(folder: Path, template: str | None = CHATML, bos: bool = False) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=331, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>" if template else "<|endoftext|>",
        bos_token="<s>" if bos else None,
    )
    fast.chat_template = template
    fast.save_pretrained(folder)


def make_model(folder: Path, architecture: str = "llama", layers: int = 4, template: str | None = CHATML) -> Path:
    """Folder of a random model whose predictions are far from flat, with a vocabulary of a prime number of tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(folder, template, bos=architecture == "mistral")
    common = {"vocab_size": 331, "bos_token_id": 3, "eos_token_id": 2, "pad_token_id": None}
    if architecture == "gpt2":
        config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=layers, n_head=4, n_positions=512, **common)
    else:
        config = AutoConfig.for_model(
            architecture, hidden_size=32, intermediate_size=56, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3,
            tie_word_embeddings=architecture == "llama", **common,
        )  # fmt: skip
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config)
    if architecture == "gpt2":
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.to(torch.float32).save_pretrained(folder)
    return folder


def write_model(folder: Path, kind: str, settings: Mapping[str, Any] | None) -> Path:
    """A random model of the first word of `kind` whose predictions are far from flat."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(folder)
    sizes = GPT2 if settings is None else settings if "text_config" in settings else {**SMALL, **settings}
    config = AutoConfig.for_model(kind.split()[0], **sizes)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.to(torch.float32).save_pretrained(folder)
    return folder


def run_short_of_memory(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Have every batch of more than so many rows fail like an allocation."""
    import torch

    from taskpgm.lm.model import LanguageModel

    whole = LanguageModel.response_logits

    def response_logits(self, packed, *rest):
        if len(packed.rows) > rows:
            raise torch.OutOfMemoryError("Tried to allocate")
        return whole(self, packed, *rest)

    monkeypatch.setattr(LanguageModel, "response_logits", response_logits)
