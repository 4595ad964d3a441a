"""Pairs of rows that are nearly the same text, by MinHash."""

from collections.abc import Callable
from typing import Any


def near_pairs(count: int, data_of: Callable[[int], list[Any]]) -> list[tuple[int, int]]:
    """Pairs."""
    raise NotImplementedError
