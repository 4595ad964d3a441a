"""`train_probes`: one adapter a task, all trained alike from the same base and the same start, side by side.

Sources: LoRA (arXiv 2106.09685) as PEFT implements it; AdamW, linear warm-up over a twentieth of the steps, linear
decay to zero, gradient norm clipped at one. The model stays in evaluation mode: no dropout, so a probe depends only on
its rows, their order and the run seed.
"""

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from taskpgm.chat.encoder import ChatEncoder, Encoded, tokens_of
from taskpgm.config import Config
from taskpgm.errors import UserError, first_line
from taskpgm.lm.batching import batches, out_of_memory
from taskpgm.lm.engine import Engine, as_engine
from taskpgm.lm.lora import LowRank, flatten, low_rank, patched
from taskpgm.lm.memory import Fit, fitting, recomputing, training_memory
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.packing import ends, pack
from taskpgm.lm.quiet import import_peft, peft_quiet
from taskpgm.lm.trunk import Trunk
from taskpgm.pool.drawing import Joined
from taskpgm.pool.task_pool import Row
from taskpgm.probes.adapted import lora_settings
from taskpgm.probes.cache import WARM
from taskpgm.probes.probe import Probe, adapter_seed
from taskpgm.probes.schedule import encoded_steps, is_flat, probe_schedule, warm_start_schedule
from taskpgm.progress import QUIET, Progress
from taskpgm.system import release_memory
from taskpgm.workers.dispatch import Do, Job


def train_probes(
    engine: Engine | LanguageModel,
    rows: Mapping[str, Sequence[Row]],
    config: Config,
    seed: int = 0,
    start: Probe | None = None,
    progress: Progress = QUIET,
) -> Iterator[Probe]:
    """One probe for each task in `rows`, yielded as its training ends: side by side.

    Args:
        engine: the base model, in memory or with its workers; unchanged when the iterator is exhausted or closed.
        rows: training rows by task; a task with fewer than the probe size repeats its own.
        seed: which of the `probes.seeds`: draws the initialisation, shared by all tasks, and the schedules.
        start: the adapter that they all start from, see `train_warm_start`; a fresh one if left out.

    Raises:
        UserError: a loss that is not finite, with the task and the step.
    """
    engine = as_engine(engine, progress)
    encoder = ChatEncoder(engine.tokenizer, config.probes.max_length)
    steps = {
        task: encoded_steps(encoder, task_rows, probe_schedule(task_rows, config, task, seed))
        for task, task_rows in rows.items()
    }
    jobs = [Job(f"probe {task!r}", tokens_of(of_task), (task, of_task)) for task, of_task in steps.items()]
    work = Training(config, seed, start, _largest(steps.values()))
    with progress.stage("training probes", sum(map(len, steps.values())), "step"):
        yield from engine.workers.map(work, jobs, progress)


@dataclass(frozen=True)
class Training:
    """Trainings of adapters that are all alike; a job is an adapter's name and the rows of its steps."""

    config: Config
    seed: int
    start: Probe | None
    largest: Sequence[Sequence[Encoded]]  # the steps of the training that takes most memory
    alone: bool = False

    @contextlib.contextmanager
    def opened(self, lm: LanguageModel, progress: Progress) -> Iterator[Do]:
        """Within, what trains an adapter."""
        trainer = Trainer(replace(lm, processes=1) if self.alone else lm, self.config, self.seed, self.start)

        trainer.ends_early = ends_early = self.config.probes.early_stop and not self.alone

        def do(job: tuple[str, Sequence[Sequence[Encoded]]], progress: Progress) -> Probe:
            trainer.progress = progress
            probe = trainer.train(*job)
            out_of_rows = ends_early and len(job[1]) < self.config.probe_steps
            return replace(probe, ended=probe.ended or "out of rows" * out_of_rows)

        yield do

    def memory(self, lm: LanguageModel) -> float:
        """Bytes, roughly, of a training."""
        return training_memory(lm, [self.largest], self.config.probes.lora.first_layer(len(lm.layers)))


def _largest(trainings: Iterable[Sequence[Sequence[Encoded]]]) -> Sequence[Sequence[Encoded]]:
    """The steps of the training that has the largest one."""
    return max(trainings, key=lambda steps: max((tokens_of([step]) for step in steps), default=0), default=())


def train_warm_start(
    engine: Engine,
    rows: Mapping[str, Sequence[Row]],
    config: Config,
    seed: int = 0,
    progress: Progress = QUIET,
) -> Probe:
    """An adapter trained on a uniform sample of all tasks, three times as long as a probe.

    Args:
        rows: training rows by task.
        seed: which of the `probes.seeds`.

    Raises:
        UserError: a loss that is not finite, with the step.
    """
    tasks = list(rows.values())
    encoder = ChatEncoder(engine.tokenizer, config.probes.max_length)
    steps = encoded_steps(encoder, Joined(tasks), warm_start_schedule(tasks, config, seed))
    work = Training(config, seed, None, steps, alone=True)  # on all cores
    with progress.stage("training the warm start", len(steps), "step"):
        (probe,) = engine.workers.map(work, [Job("the warm start", tokens_of(steps), (WARM, steps))], progress)
    return probe


class Trainer:
    """Trains adapters of one base alike: the same initialisation, schedule and number of steps, other rows.

    The float32 weights of an adapter, and AdamW's two moments, are one flat tensor each. The layers use a copy in the
    model's precision, whose gradient is added up in float32 over the batches of a step.
    """

    def __init__(
        self, lm: LanguageModel, config: Config, seed: int = 0, start: Probe | None = None, progress: Progress = QUIET
    ) -> None:
        self.lm = lm
        self.config = config.probes
        self.seed = seed
        self.progress = progress
        self.first = config.probes.lora.first_layer(len(lm.layers))
        self.settings = lora_settings(lm, config.probes.lora)
        self.initial = start.weights if start else _initial_weights(lm, self.settings, adapter_seed(config, seed))
        self.ends_early = False  # True for probes under `probes.early_stop`: ends where `is_flat`
        self.limit = lm.token_budget  # tokens of a batch; shrinks when memory runs out
        self.recompute = False  # True when memory ran out with single rows

    def train(self, name: str, steps: Sequence[Sequence[Encoded]], trunk: Trunk | None = None) -> Probe:
        """The adapter trained on these rows, step by step; each is a piece of the stage that is open.

        Args:
            trunk: of rows that these are among, to share activations below the adapter with other trainings.

        Raises:
            UserError: a loss that is not finite, with the adapter's name and the step.
        """
        master = torch.nn.Parameter(flatten(self.initial).to(self.lm.device))
        update, gradient = self._update()
        rows = [row for step in steps for row in step]
        trunk = trunk or Trunk(self.lm, self.first, self.lm.shared_prefix(rows))
        trunk.fill(rows, self.progress)
        with patched([update]) as switch, switch.use(update):
            losses = self.descend(name, steps, trunk, master, update.pieces, gradient.pieces)
        weights = update.weights(master.detach().cpu())
        release_memory()
        done = tokens_of(steps[: len(losses)])
        return Probe(name, self.seed, self.settings, weights, losses, done, "flat" if len(losses) < len(steps) else "")

    def descend(
        self, name: str, steps: Sequence[Sequence[Encoded]], trunk: Trunk, master: torch.nn.Parameter,
        pieces: Sequence[Tensor], gradients: Sequence[Tensor],
    ) -> tuple[float, ...]:  # fmt: skip
        """Mean loss of every step, while `master` is moved by AdamW.

        Args:
            master: float32 weights, one flat tensor.
            pieces: the same in the model's precision; what the model's modules read, on their devices.
            gradients: where a backward pass leaves the gradients of `pieces`.

        Raises:
            UserError: a loss that is not finite, with the name and the step.
        """
        to_come = 12 * master.numel()  # bytes of its gradient and AdamW's moments
        fit = fitting(self.lm, [row for step in steps for row in step], trunk.first, to_come)
        optimiser = torch.optim.AdamW([master], lr=self.config.learning_rate, weight_decay=0.0, fused=True)
        losses = []
        for number, rows in enumerate(steps):
            optimiser.param_groups[0]["lr"] = self.config.learning_rate * learning_rate_factor(number, len(steps))
            master.grad = torch.zeros_like(master) if master.grad is None else master.grad.zero_()
            loss = self._gradient(rows, trunk, fit, master.grad, gradients, f"{_titled(name)}, step {number + 1}")
            norm = float(torch.nn.utils.clip_grad_norm_([master], 1.0))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise UserError(
                    f"Training {_titled(name)} has loss {loss:.4g} and gradient norm {norm:.4g} at step {number + 1} "
                    f"of {len(steps)}; lower the learning rate ({self.config.learning_rate:g}; probes.learning_rate, "
                    "or compare's --learning-rate) or use model.dtype bfloat16 or float32. Finished probes are kept."
                )
            optimiser.step()
            with torch.no_grad():
                for piece, of_master in zip(pieces, _parts(master, pieces), strict=True):
                    piece.copy_(of_master)
            losses.append(loss)
            self.progress.advance()
            if self.ends_early and is_flat(losses, len(steps)):
                self.progress.advance(len(steps) - len(losses))
                break
        return tuple(losses)

    def _update(self) -> tuple[LowRank, LowRank]:
        """The update that the layers use, and what collects its gradient, in the same layout."""
        update = low_rank(self.lm.model, self.settings, self.initial)
        assert update is not None, "probes are plain LoRA"
        gradient = update.zeros()
        pairs = zip((*update.left, *update.right), (*gradient.left, *gradient.right), strict=True)
        for weight, of_weight in pairs:
            weight.requires_grad_().grad = of_weight
        return update, gradient

    def _gradient(
        self, rows: Sequence[Encoded], trunk: Trunk, fit: "Fit", total: Tensor, of_batch: Sequence[Tensor], where: str
    ) -> float:
        """Mean loss; its gradient goes to `total`. Smaller batches, then recomputed activations, if memory runs out."""
        longest = max(len(row.ids) for row in rows)
        while True:
            tokens, recompute = min(fit.tokens, self.limit, tokens_of([rows])), fit.recompute or self.recompute
            try:
                return _accumulate(self.lm, rows, trunk, Fit(tokens, recompute), total, of_batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if recompute and tokens <= longest:
                    raise UserError(
                        f"A row of {longest} tokens does not fit into memory in {where} ({first_line(error)}); lower "
                        "probes.max_length, or set probes.lora.last_layers. Finished probes are kept."
                    ) from error
            if tokens > longest:
                self.limit = tokens // 2
                self.progress.say(f"out of memory in {where}: going on with {self.limit} tokens a batch")
            else:
                self.recompute = True
                self.progress.say(
                    f"out of memory in {where}: going on with activations computed again in the backward pass"
                )
            for one in (total, *of_batch):
                one.zero_()


def learning_rate_factor(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step: up over a twentieth of the steps, then down to zero."""
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)


def _accumulate(
    lm: LanguageModel, rows: Sequence[Encoded], trunk: Trunk, fit: Fit, total: Tensor, of_batch: Sequence[Tensor]
) -> float:
    """Mean loss over the response tokens of `rows`; its gradient is added to `total`, through `of_batch`."""
    labels = sum(row.response_tokens for row in rows)
    loss_sum = 0.0
    for batch in batches([ends(row) for row in rows], fit.tokens, trunk.shared):
        packed = pack([rows[i] for i in batch], trunk.shared, lm.device)
        entering = trunk.entering(packed)
        with recomputing(lm, packed, trunk.first) if fit.recompute else contextlib.nullcontext():
            loss = sum(
                torch.nn.functional.cross_entropy(z.float(), y, reduction="sum")
                for z, y, _ in lm.response_logits(packed, entering, trunk.first)
            )
        (loss / labels).backward()
        for of_total, piece in zip(_parts(total, of_batch), of_batch, strict=True):
            of_total += piece.to(total.device)
            piece.zero_()
        loss_sum += float(loss.detach())
    return loss_sum / labels


def _parts(flat: Tensor, pieces: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Views of a flat tensor, one for each of the pieces that have its layout."""
    return flat.split([len(piece) for piece in pieces])


def _initial_weights(lm: LanguageModel, settings: Any, seed: int) -> dict[str, Tensor]:
    """A fresh adapter of PEFT: A drawn from the seed, B zero."""
    peft = import_peft()
    with peft_quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        peft_model = peft.get_peft_model(lm.model, copy.deepcopy(settings))  # which PEFT may change
    weights = {k: v.detach().cpu().clone() for k, v in peft.get_peft_model_state_dict(peft_model).items()}
    peft_model.unload()
    lm.model.requires_grad_(False)
    return weights


def _titled(name: str) -> str:
    return "the warm start" if name == WARM else f"probe {name!r}"
