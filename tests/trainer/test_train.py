"""`train`: the run's rows in order through SFTTrainer, as a plain loop in PyTorch trains them; killed, it goes on."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.models import make_model
from support.runs import experiment
from typer.testing import CliRunner

from taskpgm import TrainOptions, UserError, load_config, load_run, run, train
from taskpgm.chat.encoder import ChatEncoder
from taskpgm.cli.main import app
from taskpgm.progress import Progress

pytest.importorskip("trl")
TESTS = Path(__file__).parents[1]
KILLED = """
import os, signal, sys
from taskpgm import TrainOptions, train
from taskpgm.progress import Progress

class Killing(Progress):
    done = 0
    def say(self, sentence): pass
    def count(self, pieces):
        self.done += pieces
        if self.done == 9:
            os.kill(os.getpid(), signal.SIGKILL)

train(sys.argv[1], sys.argv[2], TrainOptions(learning_rate=0.01, batch=4), Killing())
"""


class Said(Progress):
    def __init__(self):
        super().__init__()
        self.sentences, self.steps = [], 0

    def say(self, sentence):
        self.sentences.append(sentence)

    def count(self, pieces):
        self.steps += pieces


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    model = make_model(folder / "model", layers=2)
    run(load_config(experiment(folder, model)), folder / "run", Said())
    return folder / "run"


@pytest.fixture(scope="module")
def whole(finished):
    """A training that nobody stopped."""
    return train(finished, finished.parent / "whole", TrainOptions(learning_rate=0.01, batch=4), Said())


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def test_every_weight_is_trained_as_a_plain_loop_trains_it(finished, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trained = train(finished, tmp_path / "full", TrainOptions(full=True, learning_rate=1e-3, batch=4), Said())
    directory = load_run(finished)
    model = AutoModelForCausalLM.from_pretrained(directory.config.model.path)
    tokenizer = AutoTokenizer.from_pretrained(directory.config.model.path)
    rows = [json.loads(line) for line in (finished / "train.jsonl").read_text().splitlines()]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    steps = -(-len(rows) // 4)
    losses = []
    for step in range(steps):
        total, tokens = 0.0, 0
        for row in rows[4 * step : 4 * step + 4]:  # a row at a time: no padding, no collator
            text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
            start = text.index("<|im_start|>assistant\n") + len("<|im_start|>assistant\n")
            found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids = torch.tensor(found.input_ids)
            # The answer and the token that ends its turn, but not the newline behind that.
            learned = [a >= start and text[a:b] != "\n" for a, b in found.offset_mapping]
            logp = torch.log_softmax(model(input_ids=ids[None]).logits[0], -1)
            picked = [i for i, one in enumerate(learned) if one]
            total = total - sum(logp[i - 1, ids[i]] for i in picked)
            tokens += len(picked)
        for group in optimiser.param_groups:
            up = -(-steps // 20)
            group["lr"] = 1e-3 * (step / up if step < up else (steps - step) / (steps - up))
        optimiser.zero_grad()
        (total / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append((total / tokens).item())
    np.testing.assert_allclose(trained.losses, losses, rtol=2e-4)
    saved = AutoModelForCausalLM.from_pretrained(trained.folder)
    for name, weight in model.named_parameters():
        assert (saved.get_parameter(name) - weight).abs().mean() < 2e-5


def test_killed_and_started_again_it_gives_the_same_adapter(finished, whole, tmp_path):
    """SIGKILL within the ninth of 13 steps; a checkpoint that it left half-written is not gone on from."""
    out = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(finished), str(out)], cwd=TESTS, capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    assert not (out / "adapter").exists()
    broken = out / "checkpoints" / "checkpoint-12"
    broken.mkdir()
    (broken / "trainer_state.json").write_text('{"global_')
    said = Said()
    trained = train(finished, out, TrainOptions(learning_rate=0.01, batch=4), said)
    assert "going on from step 8" in said.sentences
    assert said.steps == len(trained.losses) == 13
    assert trained.losses == whole.losses
    for name, weight in weights(whole.folder).items():
        assert torch.equal(weights(trained.folder)[name], weight), name
    assert not (out / "checkpoints").exists()


def test_peft_loads_what_was_saved(finished, whole):
    """The sentence that is printed loads a model with a lower loss on the rows than the base model has."""
    namespace: dict = {}
    exec(whole.loading, namespace)
    model = namespace["model"].eval()
    directory = load_run(finished)
    from taskpgm.lm.checkpoint import load_tokenizer

    rows = ChatEncoder(load_tokenizer(directory.config.model), 256).encode(
        [row.conversation for task in directory.pool.tasks for row in task.train[:5]]
    )

    def loss():
        total = 0.0
        for row in rows:
            logp = torch.log_softmax(model(input_ids=torch.tensor(row.ids[None].astype(np.int64))).logits[0], -1)
            at = np.flatnonzero(row.response)
            total -= float(logp[at - 1, row.ids[at].astype(np.int64)].mean())
        return total / len(rows)

    with torch.no_grad():
        after = loss()
        with model.disable_adapter():
            before = loss()
    assert after < before - 0.1


def test_all_settings_are_said_and_a_second_start_does_nothing(finished, whole):
    said = Said()
    (whole.folder.parent / "checkpoints" / "checkpoint-13").mkdir(parents=True)  # killed while they were removed
    again = train(finished, whole.folder.parent, TrainOptions(learning_rate=0.01, batch=4), said)
    assert said.sentences == [f"{whole.folder} is trained already"]
    assert (said.steps, again) == (0, whole)
    assert not (whole.folder.parent / "checkpoints").exists()
    assert {"model", "method", "rows", "order", "loss", "epochs", "batch", "steps", "learning rate", "seed"} <= set(
        whole.settings
    )


def test_that_workers_elsewhere_do_not_train_is_said(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["settings"]["workers"] = {"backend": "ray"}
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    said = Said()
    train(tmp_path / "run", options=TrainOptions(learning_rate=0.01), progress=said)
    assert any("is not spread over workers: it runs here" in sentence for sentence in said.sentences)


def test_bad_input_is_one_sentence(finished, whole, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"mine holds something that is no training .*name another --out"):
        train(finished, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="holds a training with other learning rate"):
        train(finished, whole.folder.parent, TrainOptions(learning_rate=0.02, batch=4), Said())
    with pytest.raises(UserError, match=r"has no manifest.json"):
        train(tmp_path, tmp_path / "x")
    with pytest.raises(UserError, match="batch is 0"):
        TrainOptions(batch=0)
    with pytest.raises(UserError, match="learning rate is -1"):
        TrainOptions(learning_rate=-1)
    with pytest.raises(UserError, match="learning rate is inf"):
        TrainOptions(learning_rate=float("inf"))
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(UserError, match=r"needs trl, which is not installed; pip install 'taskpgm\[lm,trl\]'"):
        train(finished, tmp_path / "none", progress=Said())


@pytest.mark.parametrize("numbers", [1, 100_000])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a full disk at hand")
def test_a_full_disk_at_a_checkpoint_is_an_error_of_the_machine(numbers, tmp_path):
    from taskpgm.trainer.sft import _saving

    with pytest.raises(OSError, match="No space left"), _saving(tmp_path):
        torch.save(torch.zeros(numbers), "/dev/full")


def test_a_loss_that_is_not_finite_is_one_sentence(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(UserError, match=r"The loss is .* at step \d+ of 13; lower the learning rate"):
        train(tmp_path / "run", None, TrainOptions(full=True, learning_rate=1e30, batch=4), Said())
    assert not (tmp_path / "run" / "trained" / "model").exists()


def test_the_command_prints_how_to_load_it(finished, whole):
    out = ["--out", str(whole.folder.parent), "--learning-rate", "0.01", "--batch", "4"]
    result = CliRunner().invoke(app, ["train", str(finished), *out])
    assert result.exit_code == 0, result.output
    assert whole.loading in result.output.replace("\n", "")
