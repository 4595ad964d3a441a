"""`Engine`: the base model of an experiment, read only as far as it is needed, and the workers that carry it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from taskpgm.config import ModelConfig, WorkersConfig
from taskpgm.errors import UserError
from taskpgm.lm.checkpoint import load_tokenizer, model_fingerprint
from taskpgm.progress import QUIET, Progress

if TYPE_CHECKING:
    from taskpgm.lm.model import LanguageModel
    from taskpgm.workers.executor import Workers


class Engine:
    """Fingerprint, tokenizer, weights and workers of a model, each made when first asked for; imports torch for the
    last two.

    Args:
        config: which model.
        progress: hears when the model is read, and a sentence if it has to be run the slow way, and why.
        workers: what works with it.
    """

    def __init__(self, config: ModelConfig, progress: Progress = QUIET, workers: WorkersConfig | None = None) -> None:
        self.config = config
        self.progress = progress
        self.settings = workers or WorkersConfig()
        self.part: Callable[[str], float] = lambda kind: 1.0  # of a kind of GPU, what a worker on a cluster is given

    @classmethod
    def of(cls, lm: "LanguageModel", progress: Progress = QUIET) -> "Engine":
        """Engine of a model that is in memory."""
        engine = cls(ModelConfig(path=lm.name, device=str(lm.device)), progress)
        vars(engine).update(lm=lm, tokenizer=lm.tokenizer)
        return engine

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the base model's files and precision."""
        with self.progress.stage("opening the model"):  # a GGUF file is converted when it is first used
            return model_fingerprint(self.config)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer; no weights are read."""
        return load_tokenizer(self.config)

    @cached_property
    def lm(self) -> "LanguageModel":
        """The base model in memory, of this process."""
        from taskpgm.lm.loading import load_model

        processes = self.config.processes or (self.settings.count if self.settings.backend != "ray" else None)
        with self.progress.stage("loading the model"):
            lm = load_model(self.config.model_copy(update={"processes": processes}), self.progress)
        if lm.precision_note:
            self.progress.say(lm.precision_note)
        if not lm.plain_head:
            self.progress.say(
                f"{self.config.path!r} is run whole and padded, which takes two to four times as long: "
                f"{lm.whole_because}."
            )
        if self.config.quantization:
            size = lm.model.get_memory_footprint() / 2**20
            self.progress.say(f"{self.config.path!r} is held in {self.config.quantization}: {size:,.0f} MiB")
        if self.config.device_map and len(lm.devices) == 1:
            self.progress.say(f"model.device_map is not used: {lm.device} is the one device here")
        return lm

    @cached_property
    def workers(self) -> "Workers":
        """What does independent work with the model."""
        from taskpgm.lm.devices import local_devices
        from taskpgm.workers.executor import Workers

        given = "lm" in vars(self)  # a model that is in memory
        opening = OpenModel(self.config, "" if given else self.fingerprint)
        return Workers(
            self.settings,
            lambda: self.lm,
            opening,
            [] if given else local_devices(self.config),
            lambda kind: self.part(kind),
        )

    def close(self) -> None:
        """End the workers."""
        if "workers" in vars(self):
            self.workers.end()


def as_engine(model: "Engine | LanguageModel", progress: Progress = QUIET) -> Engine:
    """The engine, or that of a model in memory."""
    return model if isinstance(model, Engine) else Engine.of(model, progress)


@dataclass(frozen=True)
class OpenModel:
    """Loads the driver's model in a worker, from the worker's own files."""

    config: ModelConfig
    fingerprint: str

    def __call__(self) -> "LanguageModel":
        """The model.

        Raises:
            UserError: there is none, or another one than the driver has.
        """
        from taskpgm.lm.loading import load_model
        from taskpgm.system import usable_cores

        if self.fingerprint and (found := model_fingerprint(self.config)) != self.fingerprint:
            raise UserError(
                f"the model {self.config.path!r} is another one here (fingerprint {found[:8]}) than the driver's "
                f"({self.fingerprint[:8]}); download the same files, or set model.revision."
            )
        lm = load_model(self.config.model_copy(update={"processes": None}))
        return replace(lm, processes=usable_cores() if lm.device.type == "cpu" else 1)  # a worker a core, at most
