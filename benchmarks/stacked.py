"""Trainings of many mixtures at once, for a GPU: `compare`'s own, in stacks of adapters that share every batch.

What comes out is what `compare` measures one by one, but for rounding (tests/evaluation/test_stacked.py, and --check
below), and is kept where `compare`, `refine` and the other benchmarks look for it.

    python benchmarks/stacked.py MIX.YAML RUN [--mixtures uniform,size,taskpgm] [--seeds 1] [--check]

--check trains one by one too and prints both losses and times.

Products with the base's weights serve all rows together; the thin ones of the adapters are batched. Small steps leave a
GPU idle, so this pays there (docs/performance.md); a CPU gains nothing. Every adapter's part of a batch is filled up to
the same number of tokens, so that a batch is a stack of blocks.

Shapes: K adapters, n tokens of a block, N = K·n of the packed batch, P weights of an adapter, R response tokens;
r rank, in and out a layer's sizes, d hidden size.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskpgm.chat.encoder import ChatEncoder, Encoded, tokens_of
from taskpgm.config_file import load_config
from taskpgm.evaluation.compare import Trainings, mixture_weights, plan_steps, training_run
from taskpgm.evaluation.loss import SetEvaluation, losses_of
from taskpgm.evaluation.settings import CompareOptions
from taskpgm.lm.batching import batches
from taskpgm.lm.forwards import Forward, replaced
from taskpgm.lm.lora import flatten, low_rank
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.packing import Packed, ends, pack
from taskpgm.lm.trunk import Trunk
from taskpgm.pipeline.run import solved
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import finished_run
from taskpgm.probes.adapted import lora_settings
from taskpgm.probes.probe import adapter_seed
from taskpgm.probes.training import _initial_weights, learning_rate_factor
from taskpgm.progress import QUIET

TOKENS = 40_000  # of a step of a stack: 48 GiB of activations of 8 layers of SmolLM2-135M would be 100,000
MOST = 64  # adapters in a stack


@dataclass(frozen=True)
class _Whole(LanguageModel):
    """The model, its last layer run on all tokens: blocks stay equal."""

    @property
    def last_feed_forward(self) -> nn.Module | None:
        return None


class Stack:
    """K plain LoRA adapters of the same layers of a model on one device: what their layers read, and its gradients.

    Raises:
        ValueError: adapters that are not plain LoRA, or a model that does not run packed or is on several devices.
    """

    def __init__(self, lm: LanguageModel, settings: Any, weights: Sequence[Mapping[str, Tensor]]) -> None:
        if not lm.plain_head or len(lm.devices) > 1:
            raise ValueError(f"a stack needs a model that runs packed: {lm.whole_because or 'several devices'}")
        first = low_rank(lm.model, settings, weights[0])
        if first is None:
            raise ValueError("a stack's adapters are plain LoRA")
        self.lm = _Whole(**vars(lm))
        self.modules, self.scale = first.modules, first.scale
        self.master_KP = torch.stack([flatten(one) for one in weights]).to(lm.device)  # float32
        self.copy_KP = self.master_KP.to(lm.dtype)  # what the layers read
        self.gradient_KP = torch.zeros_like(self.copy_KP)
        self.hidden_size = int(lm.model.config.get_text_config().hidden_size)
        shapes = [t.shape for pair in zip(first.left, first.right, strict=True) for t in pair]
        views, gradients = (_views(flat, shapes) for flat in (self.copy_KP, self.gradient_KP))
        for view, gradient in zip(views, gradients, strict=True):
            view.requires_grad_().grad = gradient
        self.left_Kri, self.right_Kor = views[::2], views[1::2]

    def __len__(self) -> int:
        return len(self.master_KP)

    def update(self) -> None:
        """The layers read what the float32 weights are now."""
        with torch.no_grad():
            self.copy_KP.copy_(self.master_KP)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within, block k of a batch runs under adapter k: y = Wx + s·B_k(A_k x)."""
        parts = zip(self.modules, self.left_Kri, self.right_Kor, strict=True)
        with replaced({m: _updated(m.forward, left, right, self.scale) for m, left, right in parts}):
            yield

    def add_gradients(self, rows: Sequence[Sequence[Encoded]], trunk: Trunk | None = None) -> Tensor:
        """(K,) mean losses of the adapters on their own rows; each one's gradient is added to its `gradient_KP`.

        Args:
            rows: of every adapter.
            trunk: of rows that these are among, without a shared prefix.
        """
        packed, owner_R = self._packed(rows, trunk)
        entering_Nd, first = (trunk.entering(packed), trunk.first) if trunk else (None, 0)
        with self.applied():
            blocks = self.lm.response_logits(packed, entering_Nd, first)
            losses = [nn.functional.cross_entropy(z.float(), y, reduction="none") for z, y, _ in blocks]
        labels_K = torch.bincount(owner_R, minlength=len(self) + 1)[: len(self)]
        sums_K = torch.zeros(len(self) + 1, device=owner_R.device).index_add(0, owner_R, torch.cat(losses))
        means_K = sums_K[: len(self)] / labels_K
        means_K.sum().backward()
        return means_K.detach()

    @torch.inference_mode()
    def logp(self, rows: Sequence[Encoded], trunk: Trunk | None = None, tokens: int = 1 << 17) -> list[Tensor]:
        """(K, R) log-probabilities of the response tokens of every row, under each adapter, on the CPU.

        Args:
            trunk: of a set that the rows belong to, without a shared prefix.
            tokens: of a batch at most, all adapters together.
        """
        found: list[Tensor] = [torch.zeros(len(self), 0)] * len(rows)
        for batch in batches([ends(row) for row in rows], max(1, tokens // len(self))):
            some = [rows[i] for i in batch]
            packed = pack(some * len(self), 0, self.lm.device)
            entering_Nd, first = (trunk.entering(packed), trunk.first) if trunk else (None, 0)
            with self.applied():
                blocks = [
                    -nn.functional.cross_entropy(z.float(), y, reduction="none")
                    for z, y, _ in self.lm.response_logits(packed, entering_Nd, first)
                ]
            logp_KR = torch.cat(blocks).view(len(self), -1).cpu()
            for i, part in zip(batch, logp_KR.split([row.response_tokens for row in some], 1), strict=True):
                found[i] = part
        return found

    def _packed(self, rows: Sequence[Sequence[Encoded]], trunk: Trunk | None) -> tuple[Packed, Tensor]:
        """One batch of equal blocks, and whose each response token is: K for those that only fill."""
        lengths = [[ends(row) for row in of_one] for of_one in rows]
        most, longest = max(map(sum, lengths)), max(map(max, lengths))
        all_rows: list[Encoded] = []
        owner: list[int] = []
        for k, of_one in enumerate(rows):
            missing = most - sum(lengths[k])
            fill = [_filler(min(longest, missing - start)) for start in range(0, missing, longest)]
            if trunk and trunk.first:
                for row in fill:
                    if id(row) not in trunk.kept:
                        trunk.kept[id(row)] = row, self.copy_KP.new_zeros(ends(row), self.hidden_size)
            all_rows += [*of_one, *fill]
            owner += [k] * sum(row.response_tokens for row in of_one) + [len(rows)] * len(fill)
        return pack(all_rows, 0, self.lm.device), torch.tensor(owner, device=self.lm.device)


_FILLERS: dict[int, Encoded] = {}


def _filler(tokens: int) -> Encoded:
    """The row of that many tokens that counts for nothing; always the same object."""
    if tokens not in _FILLERS:
        response = np.arange(tokens + 1) == tokens
        _FILLERS[tokens] = Encoded(np.zeros(tokens + 1, np.int32), response, False)
    return _FILLERS[tokens]


def _views(flat_KP: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """(K, …) tensors of these shapes, one after another in P."""
    parts = flat_KP.split([shape.numel() for shape in shapes], 1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]


def _updated(forward: Forward, left_Kri: Tensor, right_Kor: Tensor, scale: float) -> Forward:
    def updated(x: Tensor) -> Tensor:
        x_Kni = x.reshape(len(left_Kri), -1, x.shape[-1])
        y_Kno = forward(x_Kni)
        # In place: what the layer gave is nobody else's, and its backward does not need it.
        return y_Kno.baddbmm_(x_Kni @ left_Kri.mT, right_Kor.mT, alpha=scale).view(*x.shape[:-1], -1)

    return updated


class StackedTrainings(Trainings):
    """Trains what is asked for together, those of as many steps as each other in stacks."""

    tokens = TOKENS

    def _made(self, todo, what):
        steps = {path: plan_steps(self.rows, run.plan, run.config) for path, run in todo.items()}
        for stack in self._stacks(steps):
            started = time.perf_counter()
            runs = [todo[path] for path in stack]
            trained = self._train(runs, [steps[path] for path in stack])
            middle = time.perf_counter()
            sets = self._evaluate(trained)
            took = {"train": middle - started, "evaluate": time.perf_counter() - middle}
            said = f"{len(stack)} trainings of {len(steps[stack[0]])} steps in {took['train']:.1f} s"
            print(f"{what}: {said}, evaluated in {took['evaluate']:.1f} s", flush=True)
            seconds = {part: all_of_it / len(stack) for part, all_of_it in took.items()}
            for k, path in enumerate(stack):
                tokens = tokens_of([[self.rows[key] for key in step] for step in steps[path]])
                found = {"trained_tokens": tokens, "seconds": seconds, "sets": {n: one[k] for n, one in sets.items()}}
                yield path, self.record(runs[k], found), None

    def _stacks(self, steps):
        """Lists of trainings of equal length, none with too many tokens in a step."""
        length = {key: ends(row) for key, row in self.rows.items()}
        largest = {path: max(sum(length[key] for key in step) for step in of_run) for path, of_run in steps.items()}
        stack = []
        for path in sorted(steps, key=lambda path: (len(steps[path]), largest[path])):
            full = len(stack) == MOST or (len(stack) + 1) * largest[path] > self.tokens
            if stack and (full or len(steps[path]) != len(steps[stack[0]])):
                yield stack
                stack = []
            stack.append(path)
        if stack:
            yield stack

    @cached_property
    def lm(self):
        return self.run.engine.lm

    @cached_property
    def trunk(self):
        first = self.run.config.probes.lora.first_layer(len(self.lm.layers))
        return Trunk(self.lm, first, 0, 40 << 30)

    @cached_property
    def evaluated(self):
        """Rows to evaluate, as tokens, and what lies below the adapters."""
        encoder = ChatEncoder(self.lm.tokenizer, self.run.config.probes.max_length, self.lm.limits)
        found = {}
        for name, rows in self.sets.items():
            kept = [one for one in encoder.encode([row.conversation for row in rows]) if one]
            self.trunk.fill(kept, QUIET)
            found[name] = kept
        return found

    @cached_property
    def initial(self):
        """Fresh adapters by seed."""
        return {}

    def _train(self, runs, steps):
        lm, config = self.lm, runs[0].config.probes
        settings = lora_settings(lm, config.lora)
        for seed in {adapter_seed(run.config, 0) for run in runs} - self.initial.keys():
            self.initial[seed] = _initial_weights(lm, settings, seed)
        stack = Stack(lm, settings, [self.initial[adapter_seed(run.config, 0)] for run in runs])
        self.trunk.fill([self.rows[key] for of_run in steps for step in of_run for key in step], QUIET)
        master = torch.nn.Parameter(stack.master_KP)
        master.grad = torch.zeros_like(master)
        optimiser = torch.optim.AdamW([master], lr=config.learning_rate, weight_decay=0.0, fused=True)
        count, losses = len(steps[0]), []
        for number in range(count):
            optimiser.param_groups[0]["lr"] = config.learning_rate * learning_rate_factor(number, count)
            stack.gradient_KP.zero_()
            rows = [[self.rows[key] for key in of_run[number]] for of_run in steps]
            losses.append(stack.add_gradients(rows, self.trunk))
            master.grad.copy_(stack.gradient_KP)
            norm = master.grad.norm(dim=1, keepdim=True)
            master.grad.mul_((1 / (norm + 1e-6)).clamp(max=1))
            optimiser.step()
            stack.master_KP = master.detach()
            stack.update()
        if not torch.stack(losses).isfinite().all():
            raise ValueError("a loss is not finite")
        return stack

    def _evaluate(self, stack):
        found = {}
        for name, rows in self.evaluated.items():
            logp = stack.logp(rows, self.trunk, 3 * self.tokens)
            by_adapter = ([row[k].numpy() for row in logp] for k in range(len(stack)))
            found[name] = [vars(SetEvaluation(**losses_of(name, of_one))) for of_one in by_adapter]
        return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mix", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--mixtures", default="uniform,size,taskpgm")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    names = args.mixtures.split(",")
    with open_session(load_config(args.mix), args.run, QUIET) as session:
        finished = finished_run(session, solved(session))
        options = CompareOptions(tuple(names), args.seeds, accuracy=False)
        found = {}
        for kind in (StackedTrainings, Trainings) if args.check else (StackedTrainings,):
            trainings = kind(finished, options)
            runs = [
                training_run(finished, name, weights, seed)
                for seed in range(args.seeds)
                for name, weights in mixture_weights(finished.config, finished.result, names, seed).items()
            ]
            if args.check:
                for run in runs:
                    trainings.path(run).unlink(missing_ok=True)
            started = time.perf_counter()
            found[kind] = trainings.measurements(runs, "comparing")
            print(f"{kind.__name__}: {len(runs)} trainings, {time.perf_counter() - started:.1f} s", flush=True)
    for several in zip(*found.values(), strict=True):
        means = [float(np.mean(list(one.loss.values()))) for one in several]
        print(json.dumps([several[0].mixture, several[0].seed, *(round(mean, 4) for mean in means)]))


if __name__ == "__main__":
    main()
