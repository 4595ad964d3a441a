"""`Probe`: one adapter a task, trained alike from the same base and the same initialisation.

Sources: LoRA (arXiv 2106.09685) as PEFT implements it; AdamW, linear warm-up over a twentieth of the steps, linear
decay to zero, gradient norm clipped at one. The model stays in evaluation mode: no dropout, so a probe depends on its
rows, their order and the run seed alone.
"""

import contextlib
import hashlib
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

from taskpgm.chat import ChatEncoder, Encoded
from taskpgm.config import Config, LoraConfig
from taskpgm.errors import UserError, first_line
from taskpgm.lm import LanguageModel, batches, out_of_memory, padded
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
) -> Iterator[Probe]:
    """One probe for each task in `rows`, yielded as its training ends.

    Args:
        lm: the base model; unchanged when the iterator is exhausted or closed.
        rows: training rows by task; a task with fewer than the probe size repeats its own.
        seed: which of the `probes.seeds`: draws the initialisation, shared by all tasks, and the orders.

    Raises:
        UserError: a loss that is not finite, with the task and the step.
    """
    from peft import get_peft_model, get_peft_model_state_dict

    settings = lora_settings(lm, config.probes.lora)
    with _peft_quiet(), torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, "adapter", str(seed)))
        peft_model = get_peft_model(lm.model, settings)
    parameters = [p for p in peft_model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    orders = {
        task: training_order(
            [row.response_tokens for row in of_task], config, derive_seed(config.seed, "order", task, str(seed))
        )
        for task, of_task in rows.items()
    }
    progress = _Progress(sum(map(len, orders.values())), tell)
    trainer = _Trainer(lm, parameters, _first_adapted(config.probes.lora, len(lm.layers)), config, progress, warn)
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length)
    try:
        for task, order in orders.items():
            with torch.no_grad():
                for parameter, initial in zip(parameters, start, strict=True):
                    parameter.copy_(initial)
            steps = _encoded_steps(encoder, rows[task], order)
            losses = trainer.train(task, steps)
            weights = {k: v.detach().cpu().clone() for k, v in get_peft_model_state_dict(peft_model).items()}
            yield Probe(
                task, seed, settings, weights, tuple(losses), sum(len(row.ids) for step in steps for row in step)
            )
    finally:
        peft_model.unload()
        lm.model.requires_grad_(False)


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
    spent = spent[: len(order)]
    steps = min(config.probe_steps, len(order))
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


@contextlib.contextmanager
def installed(lm: LanguageModel, probes: Sequence[Probe]) -> Iterator[Any]:
    """Within, the model carries these probes as PEFT adapters; select one with `set_adapter(probe.name)`."""
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
                    raise _misfit(probe, lm, first_line(error)) from error
                if strange := _not_matched(loaded, probe):
                    raise _misfit(probe, lm, strange)
        lm.model.requires_grad_(False)
        yield peft_model
    finally:
        if peft_model is not None:
            peft_model.unload()


def derive_seed(seed: int, *names: str) -> int:
    """63-bit seed from the run seed and names, the same on every machine."""
    digest = hashlib.blake2b("/".join([str(seed), *names]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass
class _Progress:
    """Steps done over all tasks."""

    total: int
    tell: Tell
    done: int = 0

    def step(self) -> None:
        self.done += 1
        self.tell("training probes", self.done, self.total)


@dataclass
class _Trainer:
    """The training loop; its token budget shrinks when memory runs out."""

    lm: LanguageModel
    parameters: list[Tensor]
    first: int
    config: Config
    progress: _Progress
    warn: Callable[[str], None]
    budget: int = 0

    def train(self, task: str, steps: list[list[Encoded]]) -> list[float]:
        """Mean response loss of every step, after training the parameters in place."""
        rate = self.config.probes.learning_rate
        optimiser = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=0.0)
        losses = []
        for number, rows in enumerate(steps):
            optimiser.param_groups[0]["lr"] = rate * _schedule(number, len(steps))
            loss = self._gradient(rows, f"probe {task!r}, step {number + 1}")
            norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, 1.0))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise UserError(
                    f"Probe {task!r} has loss {loss:.4g} and gradient norm {norm:.4g} at step {number + 1} of "
                    f"{len(steps)}; lower probes.learning_rate ({rate:g}) or use model.dtype bfloat16 or float32. "
                    "Finished probes are kept."
                )
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss)
            self.progress.step()
        return losses

    def _gradient(self, rows: list[Encoded], where: str) -> float:
        """Mean loss; its gradient is left in the parameters. Smaller batches where memory runs out."""
        self.budget = self.budget or self.lm.token_budget
        longest = max(len(row.ids) for row in rows)
        while True:
            try:
                return _accumulate(self.lm, rows, self.first, self.budget)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or self.budget <= longest:
                    raise
            self.budget //= 2
            for parameter in self.parameters:
                parameter.grad = None
            self.warn(f"out of memory in {where}: going on with {self.budget} tokens a batch")


def _encoded_steps(encoder: ChatEncoder, rows: Sequence[Row], order: list[NDArray[np.int64]]) -> list[list[Encoded]]:
    used = sorted({int(i) for step in order for i in step})
    encoded = dict(zip(used, encoder.encode([rows[i].messages for i in used]), strict=True))
    return [[row for i in step if (row := encoded[int(i)]) is not None] for step in order]


def _accumulate(lm: LanguageModel, rows: list[Encoded], first: int, token_budget: int) -> float:
    """Mean loss over the response tokens of `rows`; its gradient is added to the parameters'."""
    total = sum(int(row.response.sum()) for row in rows)
    loss_sum = 0.0
    for batch in batches([len(row.ids) for row in rows], token_budget):
        ids, response = padded([rows[i] for i in batch], lm.tokenizer.pad_token_id, lm.device)
        prefix = lm.prefix(ids, first)
        blocks = lm.response_logits(ids, response, prefix, first)
        loss = sum(
            (torch.nn.functional.cross_entropy(z.float(), y, reduction="sum") for z, y, _ in blocks),
            start=torch.zeros((), device=lm.device),
        )
        (loss / total).backward()
        loss_sum += float(loss.detach())
    return loss_sum / total


def _schedule(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)


def _first_adapted(lora: LoraConfig, depth: int) -> int:
    return 0 if lora.last_layers is None else depth - lora.last_layers


def _not_matched(loaded: Any, probe: Probe) -> str | None:
    """First weight that only the model or only the adapter has."""
    missing = [key for key in loaded.missing_keys if f".{probe.name}." in key and "lora_" in key]
    return next(iter([*loaded.unexpected_keys, *missing]), None)


def _misfit(probe: Probe, lm: LanguageModel, why: str) -> UserError:
    return UserError(f"The adapter of task {probe.task!r} does not fit {lm.name!r} ({why}); is it of the same base?")


@contextlib.contextmanager
def _peft_quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
