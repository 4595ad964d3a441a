"""Training and scoring of probes against the usual ways, side by side in one run; prints tables and writes JSON.

    python benchmarks/engine.py [--model M] [--config MIX.YAML] [--last-layers 8] [--parts training,scoring,...]

Without a configuration: the embedded model and the demo's tasks. With `--random llama-2-7b` or `qwen2-7b`: a model of
that size with random weights, which needs no download, on random rows of 512 tokens, a quarter of them responses. Times
are medians of pairs, taken in turn.

    training    n runs of transformers' Trainer with a PEFT LoRA on the same modules, same rows, same rows a batch
    scoring     one model with n PEFT adapters, set_adapter in turn, padded batches, full logits, gather
    divergence  JSD of every pair by log_softmax in float32 on the same hidden states
    research    Trainer for every task, merged models saved, each loaded and run over every context
    limit       torch.mm in the model's precision: square, and at the shapes of scoring
    memory      working memory of scoring with 8 and with 64 probes; its time with 8, 16, 32 and 64
    lengths     rows of `--lengths` tokens: the model with SDPA, PEFT with SDPA and with eager attention, equal lengths
"""

import argparse
import contextlib
import copy
import ctypes
import gc
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console

from taskpgm.chat.encoder import ChatEncoder, Encoded, tokens_of
from taskpgm.cli.demo import write_demo
from taskpgm.config import Config
from taskpgm.config_file import load_config, parse_config
from taskpgm.lm.batching import padded
from taskpgm.lm.checkpoint import load_tokenizer, model_folder
from taskpgm.lm.engine import Engine
from taskpgm.lm.loading import load_model
from taskpgm.pool.task_pool import load_tasks
from taskpgm.probes.cache import BASE
from taskpgm.probes.demand import context_tokens, model_shape, run_tokens
from taskpgm.probes.divergence import jsd_matrix
from taskpgm.probes.probe import Probe
from taskpgm.probes.schedule import encoded_steps, probe_schedule
from taskpgm.probes.scoring import encode_contexts, score_sets
from taskpgm.probes.training import Trainer, Training, train_probes
from taskpgm.progress import QUIET
from taskpgm.system import Clock, environment, resident_memory
from taskpgm.workers.dispatch import Job
from taskpgm.workers.processes import threads

RANK = 16
screen = Console(width=110)
warnings.filterwarnings("ignore")


# What the models of these names are, for transformers' configuration classes.
SIZES: dict[str, dict[str, Any]] = {
    "llama-2-7b": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    },
    "qwen2-7b": {
        "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768,
        "rope_theta": 1e6, "tie_word_embeddings": False,
    },
}  # fmt: skip
RANDOM_LENGTH = 512


def write_random_model(name: str, layers: int | None, config: Config, folder: Path) -> Path:
    """A checkpoint of that size in bfloat16, with a tokenizer that is only there to be loaded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = SIZES[name] | ({"num_hidden_layers": layers} if layers else {})
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**sizes), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    load_tokenizer(config.model).save_pretrained(folder)
    return folder


def random_rows(count: int, vocabulary: int, seed: int) -> list[Encoded]:
    """Rows of random ids; the last quarter is the response."""
    ids = np.random.default_rng(seed % 2**32).integers(vocabulary, size=(count, RANDOM_LENGTH), dtype=np.int32)
    return [Encoded(row, np.arange(RANDOM_LENGTH) >= RANDOM_LENGTH * 3 // 4, False) for row in ids]


class Bench:
    """Model, tasks and settings of one run, and the rows of its tables."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.folder = folder
        config = load_config(args.config) if args.config else write_demo(folder)
        data = config.model_dump(exclude_none=True)
        data["probes"] |= {"examples": args.rows * args.epochs, "batch": args.batch}
        data["probes"]["lora"] = {"r": RANK, "alpha": 2 * RANK}
        if args.last_layers:
            data["probes"]["lora"]["last_layers"] = args.last_layers
        if path := self.model_path(args, config):
            data["model"] = {"path": path}
        data["tasks"] = data["tasks"][: args.tasks]
        self.args = args
        self.config: Config = parse_config(data)
        self.lm = load_model(self.config.model)
        if args.whole:
            self.lm = replace(self.lm, whole_because="asked for by --whole")
        self.encoder = ChatEncoder(self.lm.tokenizer, self.config.probes.max_length)
        self.pool = load_tasks(self.config, self.encoder.lengths)
        self.vocabulary = self.lm.model.get_input_embeddings().weight.shape[0]
        self.contexts = self.all_contexts()
        self.facts: dict[str, Any] = {**environment(), "threads": torch.get_num_threads(), "model": self.lm.name,
                                      "last_layers": args.last_layers}  # fmt: skip

    def model_path(self, args: argparse.Namespace, config: Config) -> str | None:
        """Another model than the configuration's."""
        return args.model

    def all_contexts(self) -> dict[str, list[Encoded]]:
        """Contexts by set."""
        return encode_contexts(self.encoder, self.pool)

    def train(self, tasks: Sequence[str]) -> list[Probe]:
        """The probes of these tasks, as `taskpgm probe` trains them."""
        rows = {task: self.pool[task].train[: self.args.rows] for task in tasks}
        return list(train_probes(Engine.of(self.lm), rows, self.config))

    def steps(self, task: str) -> list[list[Encoded]]:
        """What a probe of the task is trained on: `rows` of its rows, `epochs` times."""
        rows = self.pool[task].train[: self.args.rows]
        order = probe_schedule([row.response_tokens for row in rows], self.config, task, 0)
        return encoded_steps(self.encoder, rows, order)

    def plain_model(self, folder: Path | str | None = None, attention: str | None = None) -> Any:
        """The model as transformers loads it."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(
            folder or model_folder(self.config.model), dtype=next(self.lm.model.parameters()).dtype,
            attn_implementation=attention,
        ).to(self.lm.device)  # fmt: skip

    def pad(self) -> int:
        return self.lm.tokenizer.pad_token_id


class RandomBench(Bench):
    """The same of random rows, under a model with random weights."""

    def model_path(self, args: argparse.Namespace, config: Config) -> str:
        return str(write_random_model(args.random, args.layers, config, self.folder / args.random))

    def all_contexts(self) -> dict[str, list[Encoded]]:
        return {f"random-{k}": random_rows(self.args.contexts // 2, self.vocabulary, -1 - k) for k in range(2)}

    def train(self, tasks: Sequence[str]) -> list[Probe]:
        return [Trainer(self.lm, self.config).train(task, self.steps(task)) for task in tasks]

    def steps(self, task: str) -> list[list[Encoded]]:
        found = random_rows(self.args.rows, self.vocabulary, 1 + self.pool.names.index(task)) * self.args.epochs
        return [found[at : at + self.args.batch] for at in range(0, len(found), self.args.batch)]


def timed(work: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


# --- training ---


def training(bench: Bench) -> dict[str, Any]:
    """Non-padding tokens a second: some tasks as `train_probes` does them, as many at a time as it has processes; then
    the same ones with Trainer, in turn."""
    Trainer(bench.lm, bench.config).train("warm-up", bench.steps(bench.pool.names[0])[:2])
    pairs = []
    together = bench.lm.processes
    for at in range(0, len(bench.pool.names), together)[: bench.args.pairs]:
        tasks = bench.pool.names[at : at + together]
        tokens = sum(tokens_of(bench.steps(task)) for task in tasks)
        ours, _ = timed(lambda tasks=tasks: bench.train(tasks))
        theirs, _ = timed(lambda tasks=tasks: [train_with_trainer(bench, bench.steps(t), True) for t in tasks])
        pairs.append(
            {"task": " and ".join(tasks), "tokens": tokens, "ours": tokens / ours, "Trainer + PEFT": tokens / theirs}
        )
        if bench.args.last_layers:
            same, _ = timed(lambda tasks=tasks: [train_with_trainer(bench, bench.steps(t)) for t in tasks])
            pairs[-1]["Trainer + PEFT on the same layers"] = tokens / same
        screen.print({k: v if isinstance(v, str) else round(v) for k, v in pairs[-1].items()})
    found = ratios(pairs, "Trainer + PEFT")
    if bench.args.last_layers:
        found["same layers"] = ratios(pairs, "Trainer + PEFT on the same layers")
    return found


def train_with_trainer(bench: Bench, steps: list[list[Encoded]], all_layers: bool = False) -> Any:
    """The PEFT model that transformers' Trainer makes of these rows, in its usual settings."""
    from peft import get_peft_model
    from transformers import Trainer as HFTrainer
    from transformers import TrainingArguments
    from transformers.utils import logging

    logging.set_verbosity_error()
    settings = copy.copy(Trainer(bench.lm, bench.config).settings)
    if all_layers:
        settings.layers_to_transform = None
    model = get_peft_model(bench.plain_model(), settings)
    rows = [row for step in steps for row in step]

    def collate(batch: list[Encoded]) -> dict[str, torch.Tensor]:
        ids, response = padded(batch, bench.pad(), torch.device("cpu"))
        mask = torch.zeros_like(ids)
        for i, row in enumerate(batch):
            mask[i, : len(row.ids)] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(response, ids, -100)}

    arguments = TrainingArguments(
        output_dir=str(bench.folder / "trainer"), per_device_train_batch_size=bench.args.batch, num_train_epochs=1,
        learning_rate=bench.config.probes.learning_rate, report_to=[], save_strategy="no", logging_strategy="no",
        disable_tqdm=True, remove_unused_columns=False, use_cpu=bench.lm.device.type == "cpu",
    )  # fmt: skip
    with contextlib.redirect_stdout(None):
        HFTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collate).train()
    return model


# --- scoring ---


def some_probes(bench: Bench, count: int) -> list[Probe]:
    """Probes after two steps on one task or another: their size and cost are those of finished ones."""
    trainer = Trainer(bench.lm, bench.config)
    trained = [trainer.train(task, bench.steps(task)[:2]) for task in bench.pool.names[: min(count, 4)]]
    return [Probe(f"probe-{i}", 0, trained[0].settings, trained[i % len(trained)].weights) for i in range(count)]


def score_ours(bench: Bench, probes: list[Probe], sampled: Any = None) -> dict[tuple[str, str], Any]:
    names = {name: [p.name for p in probes] for name in bench.contexts}
    found = score_sets(Engine.of(bench.lm), bench.contexts, probes, names, sampled)
    return {key: block for _, blocks in found for key, block in blocks.items()}


def score_with_peft(bench: Bench, model: Any, names: list[str]) -> dict[str, list[np.ndarray]]:
    """The loop that people write: adapters in turn, padded batches, logits of all positions, gather."""
    rows = [row for of_set in bench.contexts.values() for row in of_set]
    found: dict[str, list[np.ndarray]] = {}
    with torch.inference_mode():
        for name in names:
            if name:
                model.set_adapter(name)
            found[name] = []
            for batch in itertools.batched(rows, 16) if hasattr(itertools, "batched") else _batched(rows, 16):
                ids, response = padded(batch, bench.pad(), bench.lm.device)
                mask = (torch.arange(ids.shape[1])[None] < torch.tensor([len(r.ids) for r in batch])[:, None]).long()
                logits = model(input_ids=ids, attention_mask=mask.to(ids.device)).logits[:, :-1]
                logp = logits.float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
                found[name].append(logp[response[:, 1:]].cpu().numpy())
    return found


def _batched(rows: list[Any], size: int) -> list[list[Any]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


@contextlib.contextmanager
def peft_with(bench: Bench, probes: list[Probe]) -> Any:
    yield peft_of(bench.plain_model(), probes).eval()


def scoring(bench: Bench) -> dict[str, Any]:
    """Non-padding tokens a second times probes: label log-probabilities alone."""
    probes = some_probes(bench, bench.args.probes or min(4, len(bench.pool.names)))
    tokens = sum(len(row.ids) for rows in bench.contexts.values() for row in rows)
    pairs = []
    with peft_with(bench, probes) as model:
        for _ in range(bench.args.repeats):
            ours, blocks = timed(lambda: score_ours(bench, probes))
            theirs, found = timed(lambda: score_with_peft(bench, model, [p.name for p in probes]))
            for probe in probes:
                a = np.concatenate([blocks[probe.name, name].logp for name in bench.contexts])
                error = float(np.median(np.abs(a - np.concatenate(found[probe.name]))))
            pairs.append(
                {"tokens": tokens * len(probes), "ours": tokens * len(probes) / ours,
                 "adapter loop": tokens * len(probes) / theirs, "median difference": error}
            )  # fmt: skip
            screen.print({k: round(v, 3) for k, v in pairs[-1].items()})
    return {"contexts": sum(map(len, bench.contexts.values())), **ratios(pairs, "adapter loop")}


# --- divergence ---


def divergence(bench: Bench) -> dict[str, Any]:
    """Position-pairs a second on the same hidden states: every pair by log_softmax in float32, against jsd_matrix."""
    n, positions = bench.args.probes or len(bench.pool.names), 48
    head = bench.lm.model.get_output_embeddings()
    probes = some_probes(bench, n)
    sampled = {name: np.arange(min(5, sum(r.response_tokens for r in rows))) for name, rows in bench.contexts.items()}
    blocks = score_ours(bench, probes, sampled)
    hidden = [np.concatenate([blocks[p.name, name].hidden for name in bench.contexts])[:positions] for p in probes]
    noise = torch.randn(n, len(hidden[0]), head.weight.shape[1], generator=torch.Generator().manual_seed(0))
    hidden_NPd = torch.from_numpy(np.stack(hidden)) + noise  # n different ones
    weight = torch.full((hidden_NPd.shape[1], 1), 1 / hidden_NPd.shape[1], dtype=torch.float64)

    def logits(h: torch.Tensor) -> torch.Tensor:
        return head(h.to(bench.lm.device, head.weight.dtype))

    def pairwise(logits_NPV: torch.Tensor) -> torch.Tensor:
        logits_NPV = logits_NPV.float()
        total = torch.zeros(n, n, dtype=torch.float64)
        for i in range(n):
            for j in range(i):
                a, b = logits_NPV[i].log_softmax(-1), logits_NPV[j].log_softmax(-1)
                middle = torch.logaddexp(a, b) - math.log(2)
                kl = [(x.exp() * (x - middle)).sum(-1) for x in (a, b)]
                total[i, j] = ((kl[0] + kl[1]) / 2).mean()
        return total + total.T

    pairs = []
    with torch.inference_mode():
        logits_NPV = torch.stack([logits(h) for h in hidden_NPd])
        given = (logits_NPV, lambda z: z), (hidden_NPd, logits)
        for states, head_or_not in given:
            jsd_matrix(states, head_or_not, weight, head.weight.shape[0])
        for _ in range(bench.args.repeats):
            pair = {}
            for (states, head_or_not), what in zip(given, ("ours", "ours with the head"), strict=True):
                seconds, a = timed(lambda s=states, h=head_or_not: jsd_matrix(s, h, weight, head.weight.shape[0])[0])
                pair[what] = seconds
            head_seconds, _ = timed(lambda: torch.stack([logits(h) for h in hidden_NPd]))
            seconds, b = timed(lambda: pairwise(logits_NPV))
            pair |= {"log_softmax": seconds, "log_softmax with the head": seconds + head_seconds}
            count = n * (n - 1) / 2 * hidden_NPd.shape[1]
            pairs.append({k: count / v for k, v in pair.items()} | {"difference": float((a - b).abs().max())})
    whole = statistics.median(p["ours with the head"] / p["log_softmax with the head"] for p in pairs)
    return {"probes": n, "positions": hidden_NPd.shape[1], **ratios(pairs, "log_softmax"), "ratio with the head": whole}


# --- research ---


def research(bench: Bench) -> dict[str, Any]:
    """Seconds from tasks to affinity.npz: `taskpgm run` as a user starts it, and the way of the research scripts.

    The latter: Trainer for every task, merged model saved; each loaded, and run over every context of every set. It is
    timed on `--pairs` of the tasks, spread over their lengths; its training is then counted by tokens, its scoring by
    tasks, since contexts are those of all. Ours is timed in full, at all layers and on the last ones, without the warm
    start that theirs has not.
    """
    data = bench.config.model_dump(mode="json", exclude_none=True)
    held = bench.config.contexts.per_set + bench.config.contexts.validation
    data["probes"]["warm_start"] = False
    for task in data["tasks"]:  # so many rows for training that probes go over them `epochs` times, like the others
        lines = Path(task["path"]).read_text().splitlines(keepends=True)[: bench.args.rows + held]
        task["path"] = str(bench.folder / f"few-{task['name']}.jsonl")
        Path(task["path"]).write_text("".join(lines))

    def ours(last: int) -> None:
        data["probes"]["lora"]["last_layers"] = last or None
        settings = bench.folder / "research.yaml"
        settings.write_text(yaml.safe_dump(data))
        command = [sys.executable, "-m", "taskpgm", "run", str(settings), "--out", str(bench.folder / f"run-{last}")]
        subprocess.run(command, check=True, capture_output=True)

    tokens = {task: tokens_of(bench.steps(task)) for task in bench.pool.names}
    by_length = sorted(tokens, key=lambda task: tokens[task])
    few = min(bench.args.pairs, len(by_length))
    chosen = [by_length[int((i + 0.5) * len(by_length) / few)] for i in range(few)]

    def train(task: str) -> None:
        merged = train_with_trainer(bench, bench.steps(task), all_layers=True).merge_and_unload()
        merged.save_pretrained(bench.folder / "merged" / task)

    def score(task: str) -> None:
        model = bench.plain_model(bench.folder / "merged" / task).eval()
        np.savez(bench.folder / "research.npz", *score_with_peft(bench, model, [""])[""])

    found: dict[str, Any] = {"tasks": len(bench.pool.names)}
    depths = {"all layers": 0} | (
        {f"last {bench.args.last_layers}": bench.args.last_layers} if bench.args.last_layers else {}
    )
    for name, last in depths.items():
        found[f"ours, {name}, s"], _ = timed(lambda last=last: ours(last))
        screen.print(f"ours, {name}: {found[f'ours, {name}, s']:.0f} s")
    training_s, scoring_s = (sum(timed(partial(work, task))[0] for task in chosen) for work in (train, score))
    share = sum(tokens[task] for task in chosen) / sum(tokens.values())
    found |= {
        "research style, timed tasks": chosen, "timed training, s": training_s, "timed scoring, s": scoring_s,
        "their share of all training tokens": share,
        "research style, s": training_s / share + scoring_s * len(tokens) / few,
    }  # fmt: skip
    return found | {f"ratio, {name}": found["research style, s"] / found[f"ours, {name}, s"] for name in depths}


# --- limit ---


def limit(bench: Bench) -> dict[str, Any]:
    """GFLOP/s of torch.mm, square and at the shapes of scoring; the linear layers' share; shares of whole passes.

    The linear layers are timed as they run: on one core, where processes work side by side.
    """
    dtype = next(bench.lm.model.parameters()).dtype
    device = bench.lm.device

    def rate(n: int, i: int, o: int, repeats: int = 7) -> float:
        x, w = torch.randn(n, i, device=device, dtype=dtype), torch.randn(o, i, device=device, dtype=dtype)
        times = [timed(lambda: torch.mm(x, w.T))[0] for _ in range(repeats)]
        return 2 * n * i * o / statistics.median(times)

    square = max(rate(size, size, size) for size in (1024, 2048, 4096))
    probes = some_probes(bench, 4)
    score_ours(bench, probes)
    shape = model_shape(bench.lm, bench.config)
    together = bench.lm
    bench.lm = replace(together, processes=1)
    base = {name: [BASE] for name in bench.contexts}
    with threads(1 if together.processes > 1 else None):
        with _timed_linears(bench) as bare:
            list(score_sets(Engine.of(bench.lm), bench.contexts, [], base))
        with _timed_linears(bench) as calls:
            score_ours(bench, probes)
        thin = {d for c in calls if c.adapted for n, i, o in [c.dims] for d in ((n, i, RANK), (n, RANK, o))}
        ideal = {dims: 2 * math.prod(dims) / rate(*dims) for dims in {c.dims for c in [*bare, *calls]} | thin}
        square_there = max(rate(size, size, size) for size in (1024, 2048))
    bench.lm = together
    spent = sum(call.seconds for call in calls)
    work = sum(2 * math.prod(call.dims) for call in calls)
    least = sum(ideal[call.dims] for call in calls)
    of_adapters = sum(
        ideal[n, i, RANK] + ideal[n, RANK, o] for n, i, o in (call.dims for call in calls if call.adapted)
    )
    seconds, _ = timed(lambda: score_ours(bench, probes))
    operations = shape.scoring(*context_tokens(bench.lm, bench.contexts), len(probes))
    tasks = bench.pool.names[: max(2, together.processes)]
    training_s, _ = timed(lambda: bench.train(tasks))
    training_operations = sum(shape.training(*run_tokens(bench.lm, bench.steps(task))) for task in tasks)
    few, many = (rate(rows, shape.width, 1536) for rows in (256, 2048))
    return {
        "square mm, GFLOP/s": square / 1e9,
        "square mm where linear layers are timed, GFLOP/s": square_there / 1e9,
        "mm of 256 rows, GFLOP/s": few / 1e9,
        "mm of 2048 rows, GFLOP/s": many / 1e9,
        "mm at scoring's shapes, GFLOP/s": work / least / 1e9,
        "linear layers with their adapters, GFLOP/s": work / spent / 1e9,
        "linear layers of the base model alone, share of mm at those shapes": (
            sum(ideal[call.dims] for call in bare) / sum(call.seconds for call in bare)
        ),
        "linear layers with adapters, products of both, share of mm at those shapes": (least + of_adapters) / spent,
        "linear layers with adapters, products of the former alone": least / spent,
        "linear layers, share of square mm": work / spent / square_there,
        "scoring, model FLOPs / time / square mm": operations / seconds / square,
        "training, model FLOPs / time / square mm": training_operations / training_s / square,
    }


@dataclass(frozen=True)
class Call:
    """A call of a linear module: tokens, in and out; whether an adapter ran with it; its seconds."""

    dims: tuple[int, int, int]
    adapted: bool
    seconds: float


@contextlib.contextmanager
def _timed_linears(bench: Bench) -> Iterator[list[Call]]:
    """Within, every call of a decoder layer's linear module is timed, with whatever is patched on it."""
    calls: list[Call] = []
    call = torch.nn.Module.__call__
    linears = {m for m in bench.lm.layers.modules() if isinstance(m, torch.nn.Linear)}

    def timing(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self not in linears:
            return call(self, *args, **kwargs)
        seconds, out = timed(lambda: call(self, *args, **kwargs))
        dims = args[0].numel() // args[0].shape[-1], self.in_features, self.out_features
        calls.append(Call(dims, "forward" in self.__dict__, seconds))
        return out

    torch.nn.Module.__call__ = timing
    try:
        yield calls
    finally:
        torch.nn.Module.__call__ = call


# --- memory ---


def memory(bench: Bench) -> dict[str, Any]:
    """Peak memory of scoring beyond model and adapters, and its seconds, by number of probes; a process each."""
    found = {}
    for count in (8, 16, 32, 64):
        command = [sys.executable, __file__, "--memory-of", str(count), "--last-layers", str(bench.args.last_layers),
                   "--rows", str(bench.args.rows)]  # fmt: skip
        for flag in ("model", "config", "tasks"):
            if getattr(bench.args, flag):
                command += [f"--{flag}", str(getattr(bench.args, flag))]
        found[count] = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )
        screen.print(count, found[count])
    return {
        "by probes": found, "memory, 64 against 8": found[64]["bytes"] / found[8]["bytes"],
        "seconds, 64 against 8": found[64]["seconds"] / found[8]["seconds"],
    }  # fmt: skip


def memory_of(bench: Bench, count: int) -> dict[str, float]:
    """Working memory and seconds of scoring with hidden states, block by block as the run directory gets them."""
    probes = some_probes(bench, count)
    names = {name: [p.name for p in probes] for name in bench.contexts}
    # The positions of a set's share of the common sample: n of them times n probes do not grow with n.
    sampled = {
        name: np.arange(min(2000 // count, sum(r.response_tokens for r in rows)))
        for name, rows in bench.contexts.items()
    }
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what making the probes left behind
    adapters = (
        count * sum(w.numel() for w in probes[0].weights.values()) * next(bench.lm.model.parameters()).element_size()
    )
    before = resident_memory()
    clock = Clock()
    for _ in score_sets(Engine.of(bench.lm), bench.contexts, probes, names, sampled):
        pass
    return {"bytes": max(clock.peak() - before - adapters, 1 << 20), "adapters": adapters, "seconds": clock.seconds}


# --- lengths ---


def lengths(bench: Bench) -> dict[str, Any]:
    """Tokens a second on rows of one length, a quarter of them response, in batches of equal lengths for both sides.

    Scoring: the model alone against transformers with SDPA, output layer on the response tokens on both sides; then
    `--probes` (4) probes against PEFT with SDPA. Training: two probes against two PEFT loops, on all layers. Rows begin
    alike on a share of their tokens that `--shared` gives (0: not at all).
    """
    found = {}
    for length in map(int, bench.args.lengths.split(",")):
        sets = {f"set-{k}": rows_of_length(bench, length, k) for k in range(2)}
        pairs = [length_pair(bench, sets) for _ in range(bench.args.repeats)]
        found[length] = {key: statistics.median(pair[key] for pair in pairs) for key in pairs[0]} | {"pairs": pairs}
        screen.print(length, {k: round(v, 2) for k, v in found[length].items() if k != "pairs"})
    return found


def rows_of_length(bench: Bench, length: int, seed: int) -> list[Encoded]:
    """About 4,096 tokens, and two rows at least."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(bench.vocabulary, size=(max(2, 4096 // length), length), dtype=np.int32)
    ids[:, : int(bench.args.shared * length)] = ids[0, : int(bench.args.shared * length)]
    return [Encoded(row, np.arange(length) >= length * 3 // 4, False) for row in ids]


def length_pair(bench: Bench, sets: dict[str, list[Encoded]]) -> dict[str, float]:
    """Ratios of tokens a second, ours to theirs, of everything once, in turn."""
    rows = [row for of_set in sets.values() for row in of_set]
    tokens = sum(len(row.ids) for row in rows)
    step = max(1, 2048 // len(rows[0].ids))
    batched = _batched(rows, step)
    trainer = Trainer(bench.lm, bench.config)
    some = [trainer.train(f"probe-{i}", [rows[i : i + 1]]) for i in range(min(bench.args.probes or 4, len(rows)))]
    seconds = {}
    for name, probes in (("base", []), ("probes", some)):
        wanted = {key: [p.name for p in probes] or [BASE] for key in sets}
        seconds[f"scoring {name}"], _ = timed(
            lambda p=probes, w=wanted: list(score_sets(Engine.of(bench.lm), sets, p, w))
        )
    steps = {name: _batched(of_set, step) for name, of_set in sets.items()}
    seconds["training"], _ = timed(lambda: list(train_steps(bench, trainer, steps)))
    for attention in ("sdpa", "eager"):
        plain = bench.plain_model(attention=attention).eval()
        if attention == "sdpa":
            seconds["SDPA base"], _ = timed(lambda m=plain: [plain_labels(bench, m, rows) for rows in batched])
        if attention == "sdpa":
            peft = peft_of(plain, some)
            seconds["SDPA probes"], _ = timed(
                lambda m=peft: [plain_labels(bench, switched(m, p), rows) for p in some for rows in batched]
            )
            plain = bench.plain_model(attention=attention).eval()
        peft = on_all_layers(plain, trainer.settings)
        seconds[f"PEFT {attention}"], _ = timed(lambda m=peft: peft_loop(bench, m, batched))
    return {
        "scoring, tokens/s": tokens / seconds["scoring base"],
        "scoring / SDPA": seconds["SDPA base"] / seconds["scoring base"],
        "scoring probes / PEFT with SDPA": seconds["SDPA probes"] / seconds["scoring probes"],
        "training, tokens/s": tokens / seconds["training"],
        "training / PEFT with SDPA": seconds["PEFT sdpa"] / seconds["training"],
        "training / PEFT with eager": seconds["PEFT eager"] / seconds["training"],
    }


def train_steps(bench: Bench, trainer: Trainer, steps: dict[str, list[list[Encoded]]]) -> Iterator[Probe]:
    """Probes on given rows, side by side as `train_probes` has them."""
    work = Training(bench.config, trainer.seed, None, max(steps.values(), key=tokens_of))
    jobs = [Job(name, tokens_of(of_set), (name, of_set)) for name, of_set in steps.items()]
    yield from Engine.of(bench.lm).workers.map(work, jobs, QUIET)


def plain_labels(bench: Bench, model: Any, rows: Sequence[Encoded]) -> torch.Tensor:
    """Label log-probabilities of rows of one length, the output layer on their response tokens alone."""
    ids = torch.from_numpy(np.stack([row.ids for row in rows]).astype(np.int64)).to(bench.lm.device)
    first = int(rows[0].response.argmax())
    base = getattr(model, "base_model", model)
    decoder = base.model.model if hasattr(base, "peft_config") or hasattr(base, "disable_adapter_layers") else base
    head = bench.lm.model.get_output_embeddings()
    with torch.inference_mode():
        hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state[:, first - 1 : -1]
        parts = [
            head(part).float().log_softmax(-1).gather(-1, label[..., None])
            for part, label in zip(hidden, ids[:, first:], strict=True)
        ]
    return torch.cat(parts)


def peft_of(model: Any, probes: Sequence[Probe]) -> Any:
    """The model with these adapters by PEFT, trainable."""
    from peft import PeftModel, set_peft_model_state_dict

    found = None
    for probe in probes:
        if found is None:
            found = PeftModel(model, probe.settings, adapter_name=probe.name)
        else:
            found.add_adapter(probe.name, probe.settings)
        set_peft_model_state_dict(found, probe.weights, adapter_name=probe.name)
    return found


def switched(model: Any, probe: Probe) -> Any:
    model.set_adapter(probe.name)
    return model


def on_all_layers(model: Any, settings: Any) -> Any:
    """The model with a fresh adapter by PEFT on all layers, whatever layers ours has."""
    from peft import get_peft_model

    settings = copy.copy(settings)
    settings.layers_to_transform = None
    return get_peft_model(model, settings)


def peft_loop(bench: Bench, model: Any, batches: Sequence[Sequence[Encoded]]) -> None:
    """A plain training loop: labels into the model, AdamW on the adapter."""
    parameters = [p for n, p in model.named_parameters() if "lora_" in n]
    optimiser = torch.optim.AdamW([p.requires_grad_() for p in parameters], lr=1e-4, fused=True)
    model.train()
    for rows in batches:
        ids, response = padded(rows, bench.pad(), bench.lm.device)
        model(input_ids=ids, labels=torch.where(response, ids, -100), use_cache=False).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()


def ratios(pairs: list[dict[str, Any]], other: str) -> dict[str, Any]:
    found = [pair["ours"] / pair[other] for pair in pairs]
    return {
        "ours": statistics.median(p["ours"] for p in pairs), other: statistics.median(p[other] for p in pairs),
        "ratio": statistics.median(found), "lowest ratio": min(found), "highest ratio": max(found), "pairs": pairs,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--last-layers", type=int, default=0, help="0: all")
    parser.add_argument("--random", choices=sorted(SIZES), help="random weights of this size, random rows")
    parser.add_argument("--layers", type=int, help="with --random: fewer layers, to try it on a small machine")
    parser.add_argument("--contexts", type=int, default=64, help="with --random: so many")
    parser.add_argument("--probes", type=int, help="scoring and divergence: so many")
    parser.add_argument("--tasks", type=int, default=None, help="the first so many tasks")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=3, help="tasks that are trained both ways")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lengths", default="64,128,256,512,1024,2048", help="lengths: tokens of a row")
    parser.add_argument("--whole", action="store_true", help="ours runs whole and padded, as what cannot be packed")
    parser.add_argument("--shared", type=float, default=0.0, help="lengths: share of the tokens that rows begin with")
    parser.add_argument("--parts", default="training,scoring")
    parser.add_argument("--out", type=Path, default=Path("engine.json"))
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = (RandomBench if args.random else Bench)(args, Path(folder))
        if args.memory_of:
            print(json.dumps(memory_of(bench, args.memory_of)))
            sys.exit()
        for part in args.parts.split(","):
            screen.rule(part)
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            bench.facts[part] = globals()[part](bench)
            if torch.cuda.is_available():
                bench.facts[part]["peak GPU memory, GiB"] = torch.cuda.max_memory_allocated() / 2**30
            screen.print({k: v for k, v in bench.facts[part].items() if k != "pairs"})
            args.out.write_text(json.dumps(bench.facts, indent=1) + "\n")
