"""A script: models on the far device, or over it and the CPU, give what they give on the CPU.

Its argument is a folder of models by architecture. Every check that holds is a line of output.
"""

from support.far import FAR, MISSING  # first

# isort: split
import copy
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import dispatch_model

from support.probing import ROWS, all_blocks, config_for, setup
from taskpgm.chat.encoder import ChatEncoder
from taskpgm.config import ModelConfig
from taskpgm.evaluation.answers import written_answers
from taskpgm.evaluation.likelihood import Questions
from taskpgm.lm.engine import Engine
from taskpgm.lm.loading import load_model
from taskpgm.lm.structure import why_whole
from taskpgm.pool.task_pool import Row
from taskpgm.probes import training
from taskpgm.probes.diverging import measure_divergences, sample_positions
from taskpgm.probes.probe import installed
from taskpgm.probes.training import Trainer
from taskpgm.progress import Progress

ARCHITECTURES = ("llama", "gpt2")  # with tied embeddings, and with transposed layers
near = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)  # the attention is another one

STEPS = 2


class Heard(Progress):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, sentence):
        self.said.append(sentence)


def auto(folder):
    """The model where `device: auto` puts it, and what was said."""
    heard = Heard()
    return load_model(ModelConfig(path=str(folder), dtype="float32"), heard), heard.said


def spread(lm):
    """The model under accelerate: what comes before the middle layer on the CPU, the rest on the far device."""
    model = copy.deepcopy(lm.model)
    layers = next(name for name, module in lm.model.named_modules() if module is lm.layers)
    stem = layers.rpartition(".")[0]
    below = [name for name, _ in lm.model.get_submodule(stem).named_children()]
    names = [f"{stem}.{name}" for name in below[: below.index(layers.rpartition(".")[2])]]
    names += [f"{layers}.{i}" for i in range(len(lm.layers))]
    names += [f"{stem}.{name}" for name in below if f"{stem}.{name}" != layers and f"{stem}.{name}" not in names]
    middle = f"{layers}.{len(lm.layers) // 2}"
    places = {name: "cpu" if names.index(name) < names.index(middle) else FAR for name in names}
    dispatch_model(model, {**places, "lm_head": "cpu"}, main_device="cpu")
    found = replace(lm, model=model, layers=model.get_submodule(layers), processes=1)
    assert {device.type for device in found.devices} == {"cpu", "far"}
    assert [next(layer.parameters()).device.type for layer in found.layers] == ["cpu", "cpu", "far", "far"]
    assert why_whole(found) is None
    return found


def compare(lm, plain, folder, last_layers=None):
    """Probes, scores, divergences and answers are the same."""
    config = config_for(folder, lora={"r": 4, "alpha": 8, "last_layers": last_layers})
    _, rows, probes = setup(folder, last_layers=last_layers)
    for start in (*probes, None):
        found, expected = (Trainer(one, config, start=start).train("x", [rows["sky"]] * STEPS) for one in (lm, plain))
        near(found.losses, expected.losses)
        for key, weight in expected.weights.items():
            # AdamW's first steps are of the gradient's sign: where it is zero but for rounding, they go either way.
            apart = (found.weights[key] - weight).abs()
            assert float(apart.max()) <= 2 * STEPS * config.probes.learning_rate
            assert float((apart > 1e-4).float().mean()) < 0.05
    sample = sample_positions(rows, 20, seed=0)
    results = []
    for one in (lm, plain):
        blocks = all_blocks(one, rows, probes, {name: columns for name, (columns, _) in sample.items()})
        hidden = {name: {p.name: blocks[p.name, name].hidden for p in probes} for name in rows}
        names = [[p.name for p in probes]]
        divergences = measure_divergences(Engine.of(one), rows, sample, hidden.__getitem__, names)
        results.append({key: block.logp for key, block in blocks.items()} | {"jsd": divergences.total_SBNN})
        with installed(one, probes) as use, use(probes[0]):
            results[-1] |= answers(one)
    for key, expected in results[1].items():
        near(results[0][key], expected) if key != "written" else results[0][key] == expected


def answers(lm):
    """Log-likelihoods of options, and what is written."""
    encoder = ChatEncoder(lm.tokenizer, 256)
    row = Row(ROWS["sky"][0], *encoder.lengths([ROWS["sky"][0]])[0][:3], key="", choices=("yes", "no", "maybe so"))
    return {"options": Questions(lm, encoder, [row]).logp()[0], "written": written_answers(lm, encoder, [row])}


def main(root):
    for architecture in ARCHITECTURES:
        folder = root / architecture
        plain = load_model(ModelConfig(path=str(folder), device="cpu", dtype="float32", processes=1))
        lm, said = auto(folder)
        assert (lm.device, lm.whole_because, said) == (FAR, None, []), (lm.device, lm.whole_because, said)
        compare(lm, plain, folder)
        print(f"{architecture}: auto takes the far device, with the CPU's results")
        lm = spread(plain)
        for last_layers, recompute in ((None, False), (3, True)) if architecture == "llama" else ((1, False),):
            training.fitting = lambda lm, *_, again=recompute: training.Fit(lm.token_budget, again)
            compare(lm, plain, folder, last_layers)
        print(f"{architecture}: over both, with one's results")
    MISSING.add("index_select")
    lm, said = auto(root / "llama")
    assert lm.device.type == "cpu"
    print(*said)


main(Path(sys.argv[1]))
