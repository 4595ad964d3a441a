"""What many modules name: arrays, progress, seeds."""

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Tell = Callable[[str, int, int], None]  # progress: (what, done, total)
Tick = Callable[[], None]  # one more piece of the work is done
Say = Callable[[str], None]  # a sentence for the user

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def say_nothing(sentence: str) -> None:
    """Sentences that nobody hears."""


def tell_nobody(what: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


def derive_seed(seed: int, *names: str) -> int:
    """63-bit seed from the run seed and names, the same on every machine."""
    digest = hashlib.blake2b("/".join([str(seed), *names]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
