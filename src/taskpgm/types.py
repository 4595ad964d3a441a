"""What many modules name: arrays, seeds."""

import hashlib

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def derive_seed(seed: int, *names: str) -> int:
    """63-bit seed from the run seed and names, the same on every machine."""
    digest = hashlib.blake2b("/".join([str(seed), *names]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
