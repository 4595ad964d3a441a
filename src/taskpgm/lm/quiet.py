"""Other libraries kept quiet while a model is read or adapted: what matters of what they say is an error of ours."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def transformers_quiet() -> Iterator[None]:
    """Within, transformers shows neither bars nor reports."""
    from transformers.utils import logging as of_transformers

    level, bars = of_transformers.get_verbosity(), of_transformers.is_progress_bar_enabled()
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    try:
        with bitsandbytes_quiet():
            yield
    finally:
        of_transformers.set_verbosity(level)
        if bars:
            of_transformers.enable_progress_bar()


def import_peft() -> Any:
    """The package `peft`, which imports bitsandbytes wherever it is installed."""
    with bitsandbytes_quiet():
        import peft
    return peft


@contextlib.contextmanager
def peft_quiet() -> Iterator[None]:
    """Within, PEFT's warnings are not shown."""
    with warnings.catch_warnings(), bitsandbytes_quiet():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def bitsandbytes_quiet() -> Iterator[None]:
    """Within, bitsandbytes can be imported without a warning or a download.

    On some processors it asks the package `kernels` for compiled code from the hub, and warns if there is none.
    """
    log = logging.getLogger("bitsandbytes")
    level, hidden = log.level, "kernels" not in sys.modules and "bitsandbytes" not in sys.modules
    log.setLevel(logging.ERROR)
    if hidden:
        sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        log.setLevel(level)
        if hidden:
            sys.modules.pop("kernels", None)
