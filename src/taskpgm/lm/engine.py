"""`Engine`: the base model of an experiment, read only as far as it is needed."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from taskpgm.config import ModelConfig
from taskpgm.lm.checkpoint import load_tokenizer, model_fingerprint
from taskpgm.progress import QUIET, Progress

if TYPE_CHECKING:
    from taskpgm.lm.model import LanguageModel


class Engine:
    """Fingerprint, tokenizer and weights of a model, each read when it is first asked for; imports torch for the last.

    Args:
        config: which model.
        progress: hears when the model is read, and a sentence if it has to be run the slow way, and why.
    """

    def __init__(self, config: ModelConfig, progress: Progress = QUIET) -> None:
        self.config = config
        self.progress = progress

    @classmethod
    def of(cls, lm: "LanguageModel", progress: Progress = QUIET) -> "Engine":
        """Engine of a model that is in memory."""
        engine = cls(ModelConfig(path=lm.name), progress)
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
        """The base model in memory."""
        from taskpgm.lm.loading import load_model

        with self.progress.stage("loading the model"):
            lm = load_model(self.config)
        if not lm.plain_head:
            self.progress.say(
                f"{self.config.path!r} is run whole and padded, which takes two to four times as long: "
                f"{lm.whole_because}."
            )
        return lm
