"""Trainings of many mixtures at once, for a GPU: `compare`'s own, in stacks of adapters that share every batch.

What comes out is what `compare` measures one by one, but for rounding (tests/lm/test_abreast.py, and --check below),
and is kept where `compare`, `refine` and the other benchmarks look for it.

    python benchmarks/stacked.py MIX.YAML RUN [--mixtures uniform,size,taskpgm] [--seeds 1] [--check]

--check trains one by one too and prints both losses and times.
"""

import argparse
import json
import time
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from taskpgm.config import load_config
from taskpgm.data.chat import ChatEncoder, tokens_of
from taskpgm.evaluation.compare import CompareOptions, Trainings, mixture_weights, plan_steps, training_run
from taskpgm.evaluation.loss import SetEvaluation, losses_of
from taskpgm.lm.abreast import Stack
from taskpgm.lm.packing import ends
from taskpgm.lm.trunk import Trunk
from taskpgm.pipeline.run import solved
from taskpgm.pipeline.stages import finished_run, open_session
from taskpgm.probes.probe import adapter_seed, lora_settings
from taskpgm.probes.training import _initial_weights, learning_rate_factor
from taskpgm.progress import QUIET

TOKENS = 40_000  # of a step of a stack: 48 GiB of activations of 8 layers of SmolLM2-135M would be 100,000
MOST = 64  # adapters in a stack


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
