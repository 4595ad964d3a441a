"""`Probe`: one adapter, its files in PEFT's format, and the model under it."""

import contextlib
import copy
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from taskpgm.config import Config
from taskpgm.errors import UserError, first_line
from taskpgm.files import damaged
from taskpgm.lm.batching import out_of_memory
from taskpgm.lm.lora import HARMLESS, changed_settings, low_rank, patched
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.quiet import import_peft, peft_quiet
from taskpgm.probes.cache import TRAINING, read_training
from taskpgm.types import Brief, derive_seed

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
# Starts of an adapter that leave the base model's weights alone. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take theirs out
# of these, so an adapter that began so means something else on the base itself, and loading it would change the base.
STARTS = (True, False, "gaussian", "eva", "orthogonal")
STARTED_BY = {"eva_config", "corda_config", "lora_ga_config", "loftq_config"}  # of use only before training
BY_PEFT = {"use_dora", "rank_pattern", "alpha_pattern", "lora_bias"}  # what PEFT applies to an adapter on its own
IDLE = {"qalora_group_size", "megatron_core", "runtime_config"}  # nothing without another setting


@dataclass(frozen=True, repr=False)
class Probe(Brief):
    """A task's adapter: PEFT settings and weights on the CPU, and how training went."""

    task: str
    seed: int  # which of `probes.seeds`
    settings: Any  # peft.LoraConfig
    weights: dict[str, Tensor]
    losses: tuple[float, ...] = ()  # mean response loss of every step, nats a token
    trained_tokens: int = 0  # tokens that went through the training pass, prompts included
    ended: str = ""  # why before its time: "flat" or "out of rows"

    @property
    def name(self) -> str:
        """Name among all probes."""
        return f"{self.task}__{self.seed}"

    def first_layer(self, depth: int) -> int:
        """Lowest decoder layer that the adapter changes; 0 if it reaches outside of the layers."""
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
        settings = copy.copy(self.settings)
        for name, value in vars(self.settings).items():
            if isinstance(value, set):  # PEFT would write it in another order in every process
                setattr(settings, name, sorted(value))
        settings.save_pretrained(str(folder))
        record = {
            "task": self.task,
            "seed": self.seed,
            "trained_tokens": self.trained_tokens,
            **({"ended": self.ended} if self.ended else {}),
            **facts,
            "losses": self.losses,
        }
        (folder / TRAINING).write_text(json.dumps(record) + "\n")


def load_probe(folder: Path, task: str, seed: int = 0) -> Probe:
    """Probe from a folder in PEFT format, written by this tool or by the user's own training.

    Raises:
        UserError: no LoRA adapter there, weights that are not safetensors or not finite, or settings that change more
            than the layers that the adapter is on.
    """
    from safetensors.torch import load_file

    who = f"Task {task!r}: adapter {folder}"
    if not (folder / SETTINGS).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{who} needs {SETTINGS} and {WEIGHTS}; save it with PEFT's save_pretrained.")
    with _readable(who):
        given = dict(json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
        weights = load_file(folder / WEIGHTS)
    _check_kind(given, who)
    with _readable(who), peft_quiet():
        settings = import_peft().PeftConfig.from_pretrained(str(folder))
    _check_settings(settings, given, who)
    _check_weights(weights, who)
    settings.init_lora_weights = True  # how it began is past
    for name in STARTED_BY & vars(settings).keys():  # older versions of PEFT lack some
        setattr(settings, name, getattr(type(settings)(), name))
    record = read_training(folder) if (folder / TRAINING).is_file() else {}
    return Probe(task, seed, settings, weights, tuple(record.get("losses", ())), record.get("trained_tokens", 0))


def load_own_probe(folder: Path, task: str, seed: int = 0) -> Probe:
    """The same of a probe that a run has made, or taken over.

    Raises:
        UserError: it is damaged.
    """
    try:
        return load_probe(folder, task, seed)
    except UserError as error:
        why = first_line(error.__cause__) if error.__cause__ else str(error).partition("; ")[0]
        raise damaged(folder, why) from error


@contextlib.contextmanager
def _readable(who: str) -> Iterator[None]:
    """Within, whatever fails says that the adapter cannot be read."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{who} cannot be read ({first_line(error)}); save it again.") from error


def _check_kind(given: dict[str, Any], who: str) -> None:
    """Errors for adapters that are no LoRA, or one that belongs to another base than the model as it is."""
    kind, start = given.get("peft_type"), given.get("init_lora_weights", True)
    if kind != "LORA":
        raise UserError(f"{who} is {kind}; probes are LoRA. Leave `adapter` out to train one.")
    if start not in STARTS:
        raise UserError(
            f"{who} began with init_lora_weights: {start}, which takes its start out of the base model's weights, so "
            "it does not belong to the base itself; convert it to plain LoRA with PEFT: "
            "save_pretrained(folder, path_initial_model_for_weight_conversion=...)."
        )


def _check_settings(settings: Any, given: dict[str, Any], who: str) -> None:
    """Errors for settings under which the weights are not an update of some layers of the base."""
    names = {field.name for field in dataclasses.fields(settings)}
    changed = sorted(changed_settings(settings) - HARMLESS - STARTED_BY - BY_PEFT - IDLE)
    unknown = [name for name in sorted(given.keys() - names) if given[name]]
    for name in (*changed, *unknown):
        why = "which probes cannot have" if name in names else "which the installed PEFT does not know"
        raise UserError(
            f"{who} sets {name}: {json.dumps(given.get(name))[:80]}, {why}; train it as LoRA on linear layers without "
            "that, or leave `adapter` out to train one."
        )


def _check_weights(weights: dict[str, Tensor], who: str) -> None:
    for key, weight in weights.items():
        if ".lora_" not in key:
            raise UserError(
                f"{who} holds {key!r}, a weight of the base model itself; save it without (save_embedding_layers=False "
                "in PEFT), or leave `adapter` out to train one."
            )
        if not weight.isfinite().all():
            raise UserError(
                f"{who} has a weight that is not finite in {key!r}; train it again, or leave `adapter` out."
            )


def check_adapter(model: Any, name: str, probe: Probe) -> None:
    """Whether the adapter has every weight that its settings ask for on this model, and no other.

    Args:
        model: the base model, or its skeleton; left as it was.
        name: how messages call it.

    Raises:
        UserError: the first weight that is missing, of another shape, or of no layer.
    """
    with _peft_installed(model, name, [probe]):
        pass


def check_adapters(config: Config, model: Any) -> list[str]:
    """Notes on the adapters that tasks bring, each checked on the model (or its skeleton) if there is one.

    Raises:
        UserError: an adapter that is none, or that does not fit.
    """
    notes = []
    for task in config.tasks:
        if task.adapter:
            probe = load_probe(Path(task.adapter), task.name)
            if model is not None:
                check_adapter(model, config.model.path, probe)
            base = probe.settings.base_model_name_or_path
            if base and Path(base).name != Path(config.model.path).name:
                notes.append(
                    f"{task.name}: its adapter names {base!r} as its base; the model here is {config.model.path!r}"
                )
    return notes


def adapter_seed(config: Config, seed: int) -> int:
    """Seed of the initial weights that all adapters of one of the `probes.seeds` share."""
    return derive_seed(config.seed, "adapter", str(seed))


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
        raise _misfit(probes, lm.name, first_line(error)) from error
    plain = {name: update for name, update in updates.items() if update is not None}
    with (
        patched(list(plain.values())) as switch,
        _peft_installed(lm.model, lm.name, [p for p in probes if p.name not in plain]) as peft,
    ):

        def use(probe: Probe | None) -> contextlib.AbstractContextManager[None]:
            if probe is None or probe.name in plain:
                return switch.use(plain[probe.name] if probe else None)
            return _peft_switched(peft, probe)

        yield use


class _Carried(NamedTuple):
    """A PEFT model, and the names of the probes in it: PEFT takes no dots in them, nor `lora_`."""

    model: Any
    names: dict[str, str]  # of a probe -> of its adapter


@contextlib.contextmanager
def _peft_installed(model: Any, name: str, probes: Sequence[Probe]) -> Iterator[_Carried]:
    """Within, the model carries these probes as PEFT adapters, none of them active."""
    peft = import_peft()
    names = {probe.name: f"probe{i}" for i, probe in enumerate(probes)}
    peft_model = None
    try:
        with peft_quiet():
            for probe in probes:
                adapter = names[probe.name]
                try:
                    settings = copy.deepcopy(probe.settings)  # which PEFT may change
                    if peft_model is None:
                        peft_model = peft.PeftModel(model, settings, adapter_name=adapter)
                    else:
                        peft_model.add_adapter(adapter, settings)
                    loaded = peft.set_peft_model_state_dict(peft_model, probe.weights, adapter_name=adapter)
                except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
                    if out_of_memory(error):
                        raise
                    raise _misfit([probe], name, _first_reason(error)) from error
                if strange := _not_matched(loaded, adapter):
                    raise _misfit([probe], name, strange)
        model.requires_grad_(False)
        if peft_model is not None:
            peft_model.base_model.disable_adapter_layers()
        yield _Carried(peft_model, names)
    finally:
        if peft_model is not None:
            peft_model.unload()


@contextlib.contextmanager
def _peft_switched(carried: _Carried, probe: Probe) -> Iterator[None]:
    carried.model.set_adapter(carried.names[probe.name])
    carried.model.base_model.enable_adapter_layers()
    try:
        yield
    finally:
        carried.model.base_model.disable_adapter_layers()


def _not_matched(loaded: Any, adapter: str) -> str | None:
    """First weight that only the model or only the adapter has."""
    missing = [key for key in loaded.missing_keys if f".{adapter}" in key and "lora_" in key]
    found = [f"it has {key}, which the model has no place for" for key in loaded.unexpected_keys]
    found += [f"it lacks {key.replace(f'.{adapter}', '')}, which its settings ask for" for key in missing]
    return next(iter(found), None)


def _first_reason(error: BaseException) -> str:
    """The first thing that a message says, behind a title that ends with a colon."""
    title, *rest = str(error).splitlines() or [type(error).__name__]
    return rest[0].strip().rstrip(".") if title.endswith(":") and rest else first_line(error)


def _misfit(probes: Sequence[Probe], name: str, why: str) -> UserError:
    tasks = " or ".join(repr(probe.task) for probe in probes[:3])
    return UserError(
        f"The adapter of task {tasks} does not fit {name!r} ({why}); save it whole, from the same base, or leave "
        "`adapter` out to train one."
    )
