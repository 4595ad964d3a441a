"""Probes of a tiny model, and their scores by a plain loop."""

import numpy as np
import torch
from peft import PeftModel

from taskpgm.chat.encoder import ChatEncoder, Encoded
from taskpgm.config import ModelConfig
from taskpgm.config_file import parse_config
from taskpgm.data.messages import conversation
from taskpgm.lm.engine import Engine
from taskpgm.lm.loading import load_model
from taskpgm.pool.task_pool import Row
from taskpgm.probes.scoring import BASE, score_sets
from taskpgm.probes.training import train_probes

ROWS = {
    "sums": [
        conversation(("user", "What is 3 and 4?"), ("assistant", "7")),
        conversation(("user", "What is the sum of 12 and 30? Think, then answer."), ("assistant", "The answer is 42.")),
        conversation(("system", "Help."), ("user", "5 and 5"), ("assistant", "10"), ("user", "and 1?"), ("assistant", "11")),
    ],
    "sky": [
        conversation(("user", "Is the sky blue?"), ("assistant", "yes")),
        conversation(("user", "x"), ("assistant", "a much longer answer than the question " * 3)),
    ],
}  # fmt: skip


def config_for(folder, **probes):
    return parse_config(
        {
            "model": {"path": str(folder), "device": "cpu"},
            "tasks": [{"name": n, "path": n} for n in ROWS],
            "budget": {"examples": 10},
            "probes": {"examples": 4, "batch": 2, "learning_rate": 0.02, **probes},
        }
    )


def setup(folder, dtype="float32", device="cpu", **lora):
    config = config_for(folder, lora={"r": 4, "alpha": 8, **lora})
    lm = load_model(ModelConfig(path=str(folder), device=device, dtype=dtype))
    encoder = ChatEncoder(lm.tokenizer, 256)
    rows = {name: encoder.encode(of_set) for name, of_set in ROWS.items()}
    train = {n: [Row(m, *encoder.lengths([m])[0][:3], key="") for m in of_set] for n, of_set in ROWS.items()}
    return lm, rows, sorted(train_probes(Engine.of(lm), train, config), key=lambda probe: list(train).index(probe.task))


def plain_loop(folder, adapter, rows: list[Encoded], dtype=torch.float32) -> list[np.ndarray]:
    """(labels, V) log-probabilities of each row under a PEFT adapter folder, by transformers and PEFT alone."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    out = []
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor(row.ids[None].astype(np.int64))).logits[0].float()
            out.append(torch.log_softmax(logits, -1)[np.flatnonzero(row.response) - 1].numpy())
    return out


def labels_of(row: Encoded) -> np.ndarray:
    return row.ids[row.response].astype(np.int64)


def all_blocks(lm, rows, probes, sampled=None, joined=None):
    missing = {name: [p.name for p in probes] + [BASE] for name in rows}
    done = score_sets(Engine.of(lm), rows, probes, missing, sampled, joined=joined)
    return {key: block for _, blocks in done for key, block in blocks.items()}


def loaded(folder, device="cpu"):
    lm = load_model(ModelConfig(path=str(folder), device=device, dtype="float32"))
    encoder = ChatEncoder(lm.tokenizer, 256)
    rows = {n: [Row(m, *encoder.lengths([m])[0][:3], key="") for m in of_set] for n, of_set in ROWS.items()}
    return lm, encoder, rows
