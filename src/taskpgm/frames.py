"""Tables for notebooks."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any


def frame(columns: Mapping[str, Sequence[Any]]) -> Any:
    """A pandas.DataFrame of these columns where pandas is installed, otherwise the columns as lists by name."""
    if importlib.util.find_spec("pandas") is None:
        return {name: list(values) for name, values in columns.items()}
    import pandas

    return pandas.DataFrame(dict(columns))
