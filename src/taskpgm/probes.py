"""`Probe`: one adapter a task, trained alike from the same base and the same start: a warm one, or a fresh adapter.

Sources: LoRA (arXiv 2106.09685) as PEFT implements it; AdamW, linear warm-up over a twentieth of the steps, linear
decay to zero, gradient norm clipped at one. The model stays in evaluation mode: no dropout, so a probe depends on its
rows, their order and the run seed alone.
"""

import contextlib
import hashlib
import heapq
import itertools
import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskpgm.adapters import LowRank, flatten, low_rank, patched
from taskpgm.blocks import WARM
from taskpgm.chat import ChatEncoder, Encoded
from taskpgm.config import Config, LoraConfig
from taskpgm.errors import UserError, first_line
from taskpgm.executor import Tick, Warn, side_by_side
from taskpgm.lm import LanguageModel, Trunk, batches, out_of_memory
from taskpgm.machine import release_memory
from taskpgm.packing import ends, pack
from taskpgm.tasks import Row, Tell, tell_nobody

WEIGHTS, SETTINGS, TRAINING = "adapter_model.safetensors", "adapter_config.json", "training.json"


@dataclass(frozen=True)
class Probe:
    """A task's adapter: PEFT settings and weights on the CPU, and how training went."""

    task: str
    seed: int  # which of `probes.seeds`
    settings: Any  # peft.LoraConfig
    weights: dict[str, Tensor]
    losses: tuple[float, ...] = ()  # mean response loss of every step, nats a token
    trained_tokens: int = 0  # tokens that went through the training pass, prompts included

    @property
    def name(self) -> str:
        """Name of the adapter inside the model (PEFT takes no dots)."""
        return f"{self.task.replace('.', '~')}__{self.seed}"

    def first_layer(self, depth: int) -> int:
        """Lowest decoder layer that the adapter changes; 0 where it reaches outside of the layers."""
        found = [re.search(r"\.(?:layers|h|blocks?|layer)\.(\d+)\.", key) for key in self.weights]
        return min((int(m.group(1)) if m else 0 for m in found), default=depth - 1)

    @property
    def changes_head(self) -> bool:
        """Whether the adapter changes the output embedding or a module as a whole."""
        return any("lm_head" in key or "embed" in key or "wte" in key for key in self.weights)

    def save(self, folder: Path, **facts: Any) -> None:
        """Write PEFT's files and `training.json`, which also gets `facts`, into an existing folder."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        try:
            save_file(self.weights, folder / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk comes as one of these
            raise OSError(f"{folder / WEIGHTS}: {error}") from error
        self.settings.save_pretrained(str(folder))
        record = {
            "task": self.task,
            "seed": self.seed,
            "trained_tokens": self.trained_tokens,
            **facts,
            "losses": self.losses,
        }
        (folder / TRAINING).write_text(json.dumps(record) + "\n")


def load_probe(folder: Path, task: str, seed: int = 0) -> Probe:
    """Probe from a folder in PEFT format, written by this tool or by the user's own training.

    Raises:
        UserError: no LoRA adapter there, or its weights are not safetensors.
    """
    from peft import PeftConfig
    from safetensors.torch import load_file

    if not (folder / SETTINGS).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(
            f"Task {task!r}: adapter {folder} needs {SETTINGS} and {WEIGHTS}; save it with PEFT's save_pretrained."
        )
    try:
        settings = PeftConfig.from_pretrained(str(folder))
        weights = load_file(folder / WEIGHTS)
    except Exception as error:
        raise UserError(f"Task {task!r}: adapter {folder} cannot be read ({error}); save it again.") from error
    if settings.peft_type != "LORA" or settings.bias != "none" or settings.modules_to_save:
        raise UserError(
            f"Task {task!r}: adapter {folder} is {settings.peft_type}, bias={getattr(settings, 'bias', None)!r}; "
            "probes are LoRA without biases or whole modules. Leave `adapter` out to train one."
        )
    record = json.loads((folder / TRAINING).read_text()) if (folder / TRAINING).is_file() else {}
    return Probe(task, seed, settings, weights, tuple(record.get("losses", ())), record.get("trained_tokens", 0))


def train_probes(
    lm: LanguageModel,
    rows: Mapping[str, Sequence[Row]],
    config: Config,
    seed: int = 0,
    tell: Tell = tell_nobody,
    warn: Callable[[str], None] = warnings.warn,
    start: Probe | None = None,
) -> Iterator[Probe]:
    """One probe for each task in `rows`, yielded as its training ends: side by side on a CPU's cores.

    Args:
        lm: the base model; unchanged when the iterator is exhausted or closed.
        rows: training rows by task; a task with fewer than the probe size repeats its own.
        seed: which of the `probes.seeds`: draws the initialisation, shared by all tasks, and the orders.
        start: the adapter that they all start from, see `train_warm_start`; a fresh one where left out.

    Raises:
        UserError: a loss that is not finite, with the task and the step.
    """
    trainer = Trainer(lm, config, seed, warn, start)
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length)
    orders = {
        task: training_order(
            [row.response_tokens for row in of_task], config, derive_seed(config.seed, "order", task, str(seed))
        )
        for task, of_task in rows.items()
    }
    steps = {task: encoded_steps(encoder, rows[task], order) for task, order in orders.items()}
    total, done = sum(map(len, steps.values())), itertools.count(1)

    def work(task: str, tick: Tick, warn: Warn) -> Probe:
        trainer.warn = warn
        return trainer.train(task, steps[task], tick)

    yield from side_by_side(
        work, sorted(steps, key=lambda task: -tokens_of(steps[task])), lm.processes,
        training_memory(lm, list(steps.values()), trainer.first), lambda: tell("training probes", next(done), total),
        warn,
    )  # fmt: skip


def train_warm_start(
    lm: LanguageModel,
    rows: Mapping[str, Sequence[Row]],
    config: Config,
    seed: int = 0,
    tell: Tell = tell_nobody,
    warn: Callable[[str], None] = warnings.warn,
) -> Probe:
    """An adapter trained on a uniform sample of all tasks, three times as long as a probe.

    Args:
        rows: training rows by task.
        seed: which of the `probes.seeds`.

    Raises:
        UserError: a loss that is not finite, with the step.
    """
    every = [row for of_task in rows.values() for row in of_task]
    order = warm_order([[row.response_tokens for row in of_task] for of_task in rows.values()], config, seed)
    steps = encoded_steps(ChatEncoder(lm.tokenizer, config.probes.max_length), every, order)
    done = itertools.count(1)
    trainer = Trainer(lm, config, seed, warn)
    return trainer.train(WARM, steps, lambda: tell("training the warm start", next(done), len(steps)))


def warm_order(response_tokens: Sequence[Sequence[int]], config: Config, seed: int) -> list[NDArray[np.int64]]:
    """Rows of every optimiser step of a warm start, counted through all tasks one after another.

    The next row is always of the task that has spent least so far, ties in random order; a task goes through its rows
    in shuffled epochs.
    """
    rng = np.random.default_rng(derive_seed(config.seed, "warm start", str(seed)))
    offsets = np.cumsum([0, *map(len, response_tokens)])
    queue = [(0.0, float(rng.random()), task) for task in range(len(response_tokens))]
    heapq.heapify(queue)
    upcoming: list[list[int]] = [[] for _ in response_tokens]
    found: list[int] = []
    costs: list[float] = []
    total = 0.0
    while total < config.warm_size:
        spent, _, task = heapq.heappop(queue)
        upcoming[task] = upcoming[task] or rng.permutation(len(response_tokens[task])).tolist()
        row = upcoming[task].pop()
        costs.append(1.0 if config.budget.unit == "examples" else float(response_tokens[task][row]))
        total += costs[-1]
        found.append(int(offsets[task]) + row)
        heapq.heappush(queue, (spent + costs[-1], float(rng.random()), task))
    return _equal_steps(np.array(found), np.cumsum(costs), config.steps_of(config.warm_size))


def training_order(response_tokens: Sequence[int], config: Config, seed: int) -> list[NDArray[np.int64]]:
    """Row indices of every optimiser step: whole shuffled epochs, cut at the probe size, in equal steps.

    The size and the steps are counted in the unit of the budget, examples or response tokens, and are the same for
    every task, up to the one row that crosses the end.

    Args:
        response_tokens: of each of the task's training rows.
    """
    rng = np.random.default_rng(seed)
    cost = np.ones(len(response_tokens)) if config.budget.unit == "examples" else np.array(response_tokens, dtype=float)
    epochs = math.ceil(config.probe_size / cost.sum())
    order = np.concatenate([rng.permutation(len(cost)) for _ in range(epochs)])
    spent = np.cumsum(cost[order])
    order = order[: int(np.searchsorted(spent, config.probe_size)) + 1]
    return _equal_steps(order, spent[: len(order)], config.probe_steps)


def _equal_steps(order: NDArray[np.int64], spent: NDArray[np.float64], steps: int) -> list[NDArray[np.int64]]:
    """The order cut into so many steps, equal in what is spent up to each row."""
    steps = min(steps, len(order))
    cuts = np.searchsorted(spent, np.arange(1, steps) * spent[-1] / steps, side="left") + 1
    return [step for step in np.split(order, np.minimum(cuts, len(order))) if len(step)]


def lora_settings(lm: LanguageModel, lora: LoraConfig) -> Any:
    """PEFT's LoraConfig for this model: explicit module names, and the last layers where asked for.

    Raises:
        UserError: a target module that no decoder layer has, or more last layers than the model has.
    """
    import peft

    depth = len(lm.layers)
    if (lora.last_layers or 0) > depth:
        raise UserError(f"probes.lora.last_layers is {lora.last_layers}, but {lm.name!r} has {depth} layers; lower it.")
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in lm.layers.named_modules()
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
    }
    targets = linear if lora.target_modules == "all-linear" else set(lora.target_modules)
    if unknown := targets - linear:
        raise UserError(
            f"probes.lora.target_modules names {sorted(unknown)[0]!r}, which no layer of {lm.name!r} has; "
            f"its linear modules are {', '.join(sorted(linear))}."
        )
    last = None if lora.last_layers is None else list(range(depth - lora.last_layers, depth))
    conv = any(type(module).__name__ == "Conv1D" for module in lm.layers.modules())
    return peft.LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, target_modules=sorted(targets), layers_to_transform=last,
        task_type="CAUSAL_LM", fan_in_fan_out=conv, base_model_name_or_path=lm.name,
    )  # fmt: skip


Use = Callable[["Probe | None"], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def installed(lm: LanguageModel, probes: Sequence[Probe]) -> Iterator[Use]:
    """Within, the model carries these probes; `with use(probe)` it is under one of them, else it is the base model.

    Raises:
        UserError: an adapter that does not fit the model.
    """
    try:
        updates = {p.name: low_rank(lm.model, p.settings, p.weights) for p in probes}
    except ValueError as error:
        raise _misfit(probes, lm, first_line(error)) from error
    plain = {name: update for name, update in updates.items() if update is not None}
    with (
        patched(list(plain.values())) as switch,
        _peft_installed(lm, [p for p in probes if p.name not in plain]) as peft,
    ):

        def use(probe: Probe | None) -> contextlib.AbstractContextManager[None]:
            if probe is None or probe.name in plain:
                return switch.use(plain[probe.name] if probe else None)
            return _peft_switched(peft, probe)

        yield use


@contextlib.contextmanager
def _peft_installed(lm: LanguageModel, probes: Sequence[Probe]) -> Iterator[Any]:
    """Within, the model carries these probes as PEFT adapters, none of them active."""
    from peft import PeftModel, set_peft_model_state_dict

    peft_model = None
    try:
        with _peft_quiet():
            for probe in probes:
                try:
                    if peft_model is None:
                        peft_model = PeftModel(lm.model, probe.settings, adapter_name=probe.name)
                    else:
                        peft_model.add_adapter(probe.name, probe.settings)
                    loaded = set_peft_model_state_dict(peft_model, probe.weights, adapter_name=probe.name)
                except (ValueError, RuntimeError) as error:
                    if out_of_memory(error):
                        raise
                    raise _misfit([probe], lm, first_line(error)) from error
                if strange := _not_matched(loaded, probe):
                    raise _misfit([probe], lm, strange)
        lm.model.requires_grad_(False)
        if peft_model is not None:
            peft_model.base_model.disable_adapter_layers()
        yield peft_model
    finally:
        if peft_model is not None:
            peft_model.unload()


@contextlib.contextmanager
def _peft_switched(peft_model: Any, probe: Probe) -> Iterator[None]:
    peft_model.set_adapter(probe.name)
    peft_model.base_model.enable_adapter_layers()
    try:
        yield
    finally:
        peft_model.base_model.disable_adapter_layers()


def derive_seed(seed: int, *names: str) -> int:
    """63-bit seed from the run seed and names, the same on every machine."""
    digest = hashlib.blake2b("/".join([str(seed), *names]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Trainer:
    """Trains adapters of one base alike: the same initialisation, schedule and number of steps, other rows.

    The float32 weights of an adapter, and AdamW's two moments, are one flat tensor each. The layers use a copy in the
    model's precision, whose gradient is added up in float32 over the batches of a step.
    """

    def __init__(
        self, lm: LanguageModel, config: Config, seed: int = 0, warn: Callable[[str], None] = warnings.warn,
        start: Probe | None = None,
    ) -> None:  # fmt: skip
        self.lm = lm
        self.config = config.probes
        self.seed = seed
        self.warn = warn
        self.first = _first_adapted(config.probes.lora, len(lm.layers))
        self.settings = lora_settings(lm, config.probes.lora)
        fresh = derive_seed(config.seed, "adapter", str(seed))
        self.initial = start.weights if start else _initial_weights(lm, self.settings, fresh)
        self.budget = lm.token_budget  # tokens a batch; shrinks when memory runs out

    def train(
        self, name: str, steps: Sequence[Sequence[Encoded]], tell: Callable[[], None] = lambda: None,
        trunk: Trunk | None = None,
    ) -> Probe:  # fmt: skip
        """The adapter trained on these rows, step by step; `tell` is called after each.

        Args:
            trunk: of rows that these are among, to share activations below the adapter with other trainings.

        Raises:
            UserError: a loss that is not finite, with the adapter's name and the step.
        """
        master = torch.nn.Parameter(flatten(self.initial).to(self.lm.device))
        update, gradient = self._update(master)
        rows = [row for step in steps for row in step]
        trunk = trunk or Trunk(self.lm, self.first, self.lm.shared_prefix(rows))
        trunk.fill(rows, self.warn)
        with patched([update]) as switch, switch.use(update):
            losses = self.descend(name, steps, trunk, master, update.flat, gradient, tell)
        weights = update.weights(master.detach().cpu())
        release_memory()
        return Probe(name, self.seed, self.settings, weights, losses, tokens_of(steps))

    def descend(
        self, name: str, steps: Sequence[Sequence[Encoded]], trunk: Trunk, master: torch.nn.Parameter, flat: Tensor,
        gradient: Tensor, tell: Callable[[], None] = lambda: None,
    ) -> tuple[float, ...]:  # fmt: skip
        """Mean loss of every step, while `master` is moved by AdamW.

        Args:
            master: float32 weights, one flat tensor.
            flat: the same in the model's precision; what the model's modules read.
            gradient: where a backward pass leaves the gradient of `flat`.

        Raises:
            UserError: a loss that is not finite, with the name and the step.
        """
        optimiser = torch.optim.AdamW([master], lr=self.config.learning_rate, weight_decay=0.0, fused=True)
        losses = []
        for number, rows in enumerate(steps):
            optimiser.param_groups[0]["lr"] = self.config.learning_rate * schedule(number, len(steps))
            master.grad = torch.zeros_like(master) if master.grad is None else master.grad.zero_()
            loss = self._gradient(rows, trunk, master.grad, gradient, f"{_titled(name)}, step {number + 1}")
            norm = float(torch.nn.utils.clip_grad_norm_([master], 1.0))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise UserError(
                    f"Training {_titled(name)} has loss {loss:.4g} and gradient norm {norm:.4g} at step {number + 1} "
                    f"of {len(steps)}; lower the learning rate ({self.config.learning_rate:g}; probes.learning_rate, "
                    "or compare's --learning-rate) or use model.dtype bfloat16 or float32. Finished probes are kept."
                )
            optimiser.step()
            with torch.no_grad():
                flat.copy_(master)
            losses.append(loss)
            tell()
        return tuple(losses)

    def _update(self, master: Tensor) -> tuple[LowRank, Tensor]:
        """The update that the layers use, and the flat tensor that collects its gradient."""
        flat = master.detach().to(next(self.lm.model.parameters()).dtype, copy=True)
        gradient = torch.zeros_like(flat)
        update, collected = (low_rank(self.lm.model, self.settings, self.initial, t) for t in (flat, gradient))
        assert update is not None, "probes are plain LoRA"
        assert collected is not None, "probes are plain LoRA"
        for weights, gradients in ((update.left, collected.left), (update.right, collected.right)):
            for weight, of_weight in zip(weights, gradients, strict=True):
                weight.requires_grad_().grad = of_weight
        return update, gradient

    def _gradient(self, rows: Sequence[Encoded], trunk: Trunk, total: Tensor, of_batch: Tensor, where: str) -> float:
        """Mean loss; its gradient goes to `total`. Smaller batches where memory runs out."""
        longest = max(len(row.ids) for row in rows)
        while True:
            try:
                return _accumulate(self.lm, rows, trunk, self.budget, total, of_batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or self.budget <= longest:
                    raise
            self.budget //= 2
            total.zero_()
            of_batch.zero_()
            self.warn(f"out of memory in {where}: going on with {self.budget} tokens a batch")


def _titled(name: str) -> str:
    return "the warm start" if name == WARM else f"probe {name!r}"


def tokens_of(steps: Sequence[Sequence[Encoded]]) -> int:
    """Tokens of all rows of these steps, prompts included."""
    return sum(len(row.ids) for step in steps for row in step)


def training_memory(lm: LanguageModel, trainings: Sequence[Sequence[Sequence[Encoded]]], first: int) -> float:
    """Bytes, roughly, that any of these trainings takes beyond the model, from layer `first` on."""
    steps = [step for training in trainings for step in training]
    responses = max(sum(int(row.response.sum()) for row in step) for step in steps)
    return lm.memory(min(max(tokens_of([step]) for step in steps), lm.token_budget), responses, first)


def encoded_steps(encoder: ChatEncoder, rows: Sequence[Row], order: Sequence[NDArray[np.int64]]) -> list[list[Encoded]]:
    """Encoded rows of every optimiser step; a row that comes again is the same object."""
    used = sorted({int(i) for step in order for i in step})
    encoded = dict(zip(used, encoder.encode([rows[i].messages for i in used]), strict=True))
    return [[row for i in step if (row := encoded[int(i)]) is not None] for step in order]


def _accumulate(
    lm: LanguageModel, rows: Sequence[Encoded], trunk: Trunk, token_budget: int, total: Tensor, of_batch: Tensor
) -> float:
    """Mean loss over the response tokens of `rows`; its gradient is added to `total`, through `of_batch`."""
    labels = sum(int(row.response.sum()) for row in rows)
    loss_sum = 0.0
    for batch in batches([ends(row) for row in rows], token_budget, trunk.shared):
        packed = pack([rows[i] for i in batch], trunk.shared, lm.device)
        blocks = lm.response_logits(packed, trunk.entering(packed), trunk.first)
        loss = sum(
            (torch.nn.functional.cross_entropy(z.float(), y, reduction="sum") for z, y, _ in blocks),
            start=torch.zeros((), device=lm.device),
        )
        (loss / labels).backward()
        total += of_batch
        of_batch.zero_()
        loss_sum += float(loss.detach())
    return loss_sum / labels


def _initial_weights(lm: LanguageModel, settings: Any, seed: int) -> dict[str, Tensor]:
    """A fresh adapter of PEFT: A drawn from the seed, B zero."""
    from peft import get_peft_model, get_peft_model_state_dict

    with _peft_quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        peft_model = get_peft_model(lm.model, settings)
    weights = {k: v.detach().cpu().clone() for k, v in get_peft_model_state_dict(peft_model).items()}
    peft_model.unload()
    lm.model.requires_grad_(False)
    return weights


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step: up over a twentieth of the steps, then down to zero."""
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)


def _first_adapted(lora: LoraConfig, depth: int) -> int:
    return 0 if lora.last_layers is None else depth - lora.last_layers


def _not_matched(loaded: Any, probe: Probe) -> str | None:
    """First weight that only the model or only the adapter has."""
    missing = [key for key in loaded.missing_keys if f".{probe.name}." in key and "lora_" in key]
    return next(iter([*loaded.unexpected_keys, *missing]), None)


def _misfit(probes: Sequence[Probe], lm: LanguageModel, why: str) -> UserError:
    tasks = " or ".join(repr(probe.task) for probe in probes[:3])
    return UserError(f"The adapter of task {tasks} does not fit {lm.name!r} ({why}); is it of the same base?")


@contextlib.contextmanager
def _peft_quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
