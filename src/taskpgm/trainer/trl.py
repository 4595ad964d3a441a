"""What every use of TRL's SFTTrainer here shares: rows tokenised and masked by us, and a model left as it was."""

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from taskpgm.chat.encoder import Encoded
from taskpgm.errors import UserError
from taskpgm.lm.quiet import peft_quiet

IGNORED = -100  # label of a token that is not to be predicted


def import_trl() -> Any:
    """The package `trl`; importing it takes seconds, and draws random numbers.

    Raises:
        UserError: it, or something that it needs, is not installed.
    """
    try:
        import datasets  # noqa: F401 (TRL needs it, and says so less clearly)

        with peft_quiet():
            import trl
    except ImportError as error:
        raise UserError(
            f"Training with TRL needs {error.name}, which is not installed; pip install 'taskpgm[lm,trl]'."
        ) from error
    return trl


def columns(row: Encoded) -> dict[str, list[int]]:
    """The row as SFTTrainer takes it: token ids, and labels at response tokens alone."""
    return {"input_ids": row.ids.tolist(), "labels": np.where(row.response, row.ids, IGNORED).tolist()}


@contextlib.contextmanager
def as_before(model: Any) -> Iterator[None]:
    """Afterwards the model, its settings and the random generators are as before: trainers patch and reseed them."""
    settings = [model.config, model.config.get_text_config(), model.generation_config]
    before = [copy.deepcopy(vars(one)) for one in settings]
    patched = vars(model).get("forward")
    generators = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(generators[0])
            np.random.set_state(generators[1])
            vars(model).pop("forward", None)
            if patched is not None:
                model.forward = patched
            for one, values in zip(settings, before, strict=True):
                vars(one).clear()
                vars(one).update(values)
            model.eval().requires_grad_(False)
