"""`Block`: one context set under one probe, as scored and as kept in the run directory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskpgm.files import atomic_file
from taskpgm.types import Ints


@dataclass(frozen=True)
class Block:
    """One set under one probe."""

    logp: NDArray[np.float32]  # (T_set,) context by context, position by position
    hidden: NDArray[np.float32] | None = None  # (P_set, d) last hidden states at the sampled positions


Blocks = dict[tuple[str, str], Block]  # (probe name or BASE, set) -> block


def read_blocks(path: Path) -> dict[str, tuple[Block, Ints | None, float]]:
    """Blocks of one set by key, with the columns of their hidden states and the seconds they took."""
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as z:
        arrays = {name: z[name] for name in z.files}
    keys = {name.split("/")[0] for name in arrays}
    return {
        k: (
            Block(arrays[f"{k}/logp"], arrays.get(f"{k}/hidden")),
            arrays.get(f"{k}/columns"),
            float(arrays[f"{k}/seconds"]),
        )
        for k in keys
    }


def write_blocks(path: Path, blocks: Mapping[str, tuple[Block, Ints | None, float]]) -> None:
    """Replace the blocks of one set."""
    arrays: dict[str, Any] = {}
    for key, (block, columns, seconds) in blocks.items():
        arrays |= {f"{key}/logp": block.logp, f"{key}/seconds": np.array(seconds)}
        if block.hidden is not None and columns is not None:
            arrays |= {f"{key}/hidden": block.hidden, f"{key}/columns": columns}
    with atomic_file(path) as scratch, scratch.open("wb") as file:
        np.savez(file, **arrays)


def usable(stored: tuple[Block, Ints | None, float] | None, wanted: Ints | None) -> tuple[Block, float] | None:
    """A stored block with the hidden states at the wanted columns, and its seconds; None where it lacks some."""
    if stored is None:
        return None
    block, columns, seconds = stored
    if wanted is None:
        return Block(block.logp), seconds
    if columns is None or block.hidden is None or not np.isin(wanted, columns).all():
        return None
    place = {int(column): i for i, column in enumerate(columns)}
    return Block(block.logp, block.hidden[[place[int(column)] for column in wanted]]), seconds
