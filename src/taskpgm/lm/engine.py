"""`Engine`: the base model of an experiment, read only as far as it is needed."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from taskpgm.config import ModelConfig
from taskpgm.lm.checkpoint import load_tokenizer, model_fingerprint
from taskpgm.types import Say, Tell, say_nothing, tell_nobody

if TYPE_CHECKING:
    from taskpgm.lm.model import LanguageModel


class Engine:
    """Fingerprint, tokenizer and weights of a model, each read when it is first asked for; imports torch for the last.

    Args:
        config: which model.
        tell: hears of progress.
        say: is told in a sentence if the model has to be run the slow way, and why.
    """

    def __init__(self, config: ModelConfig, tell: Tell = tell_nobody, say: Say = say_nothing) -> None:
        self.config = config
        self.tell = tell
        self.say = say

    @classmethod
    def of(cls, lm: "LanguageModel", tell: Tell = tell_nobody, say: Say = say_nothing) -> "Engine":
        """Engine of a model that is in memory."""
        engine = cls(ModelConfig(path=lm.name), tell, say)
        vars(engine).update(lm=lm, tokenizer=lm.tokenizer)
        return engine

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the base model's files and precision."""
        self.tell("opening the model", 0, 1)  # a GGUF file is converted when it is first used
        found = model_fingerprint(self.config)
        self.tell("opening the model", 1, 1)
        return found

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer; no weights are read."""
        return load_tokenizer(self.config)

    @cached_property
    def lm(self) -> "LanguageModel":
        """The base model in memory."""
        from taskpgm.lm.loading import load_model

        self.tell("loading the model", 0, 1)
        lm = load_model(self.config)
        self.tell("loading the model", 1, 1)
        if not lm.plain_head:
            self.say(
                f"{self.config.path!r} is run whole and padded, which takes two to four times as long: "
                f"{lm.whole_because}."
            )
        return lm
