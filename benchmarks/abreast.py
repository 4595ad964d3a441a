"""Steps of several adapters in one batch, beside one adapter after another; same rows, no shared prefix, in turn.

    python benchmarks/abreast.py [--model M] [--adapters 1,2,4,8] [--rows 8] [--length 96] [--repeats 5]

Rows are random ids, a quarter of them responses. Seconds are of a forward and backward pass of all adapters.
"""

import argparse
import dataclasses
import statistics
import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from taskpgm.config import LoraConfig, ModelConfig
from taskpgm.data.chat import Encoded
from taskpgm.lm.abreast import add_gradients
from taskpgm.lm.loading import load_model
from taskpgm.lm.lora import LowRank, low_rank
from taskpgm.lm.model import LanguageModel
from taskpgm.probes.probe import lora_settings
from taskpgm.probes.training import _initial_weights


def adapters(lm: LanguageModel, count: int) -> list[LowRank]:
    """Fresh ones, that ask for gradients."""
    settings = lora_settings(lm, LoraConfig())
    found = [low_rank(lm.model, settings, _initial_weights(lm, settings, seed)) for seed in range(count)]
    for weight in (w for update in found for w in (*update.left, *update.right)):
        weight.requires_grad_()
    return found


def seconds(lm: LanguageModel, updates: list[LowRank], rows: list[list[Encoded]], together: bool) -> float:
    """Of one step of all adapters."""
    started = time.perf_counter()
    for some in [slice(None)] if together else [slice(i, i + 1) for i in range(len(updates))]:
        add_gradients(lm, updates[some], rows[some])
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ModelConfig().path)
    parser.add_argument("--adapters", default="1,2,4,8")
    parser.add_argument("--rows", type=int, default=8, help="of an adapter's step")
    parser.add_argument("--length", type=int, default=96, help="tokens of a row")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    lm = dataclasses.replace(load_model(ModelConfig(path=args.model)), processes=1)
    rng, shape = np.random.default_rng(0), (args.rows, args.length)
    view = Table("adapters", "tokens each", "one after another, s", "in one batch, s", "ratio, lowest to highest")
    for count in map(int, args.adapters.split(",")):
        updates = adapters(lm, count)
        ids = [rng.integers(1000, 30000, shape, dtype=np.int32) for _ in updates]
        response = np.arange(args.length) >= args.length * 3 // 4
        rows = [[Encoded(row, response, False) for row in of_one] for of_one in ids]
        seconds(lm, updates, rows, True)
        pairs = [[seconds(lm, updates, rows, together) for together in (False, True)] for _ in range(args.repeats)]
        ratios = [apart / together for apart, together in pairs]
        apart, together = (statistics.median(column) for column in zip(*pairs, strict=True))
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        view.add_row(str(count), str(args.rows * args.length), f"{apart:.2f}", f"{together:.2f}", spread)
    Console().print(view)
