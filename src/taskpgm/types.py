"""What many modules name: arrays, seeds, short reprs."""

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def derive_seed(seed: int, *names: str) -> int:
    """63-bit seed from the run seed and names, the same on every machine."""
    digest = hashlib.blake2b("/".join([str(seed), *names]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Brief:
    """A dataclass whose `repr` fits a line or two, whatever it holds: sizes and first items instead of all of them.

    Use with `@dataclass(repr=False)`.
    """

    def __repr__(self) -> str:
        parts = (f"{field.name}={_brief(getattr(self, field.name))}" for field in fields(cast(Any, self)))
        return f"{type(self).__name__}({', '.join(parts)})"


def _brief(value: Any) -> str:
    """At most some fifty characters of a value."""
    if isinstance(value, np.ndarray):
        return f"<{'×'.join(map(str, value.shape))} {value.dtype}>"
    if isinstance(value, Mapping | tuple | list):
        pairs = isinstance(value, Mapping)
        first = ", ".join(f"{one!r}: {_brief(value[one])}" if pairs else _brief(one) for one in list(value)[:2])
        left, right = "()" if isinstance(value, tuple) else "[]" if isinstance(value, list) else "{}"
        return f"{left}{first}{f', … {len(value)} in all' if len(value) > 2 else ''}{right}"
    if is_dataclass(value):
        return f"{type(value).__name__}(…)"
    text = repr(value)
    return text if len(text) <= 50 else text[:49] + "…"
