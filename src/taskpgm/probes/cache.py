"""`Block`: one context set under one probe; `BlockCache`: those that are done, in files or in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskpgm.files import atomic_file, loaded, read_json
from taskpgm.types import Ints

BASE = "base"  # the name of the base model's blocks
WARM = "~warm"  # the task of the adapter that probes start from; no task can have this name
TRAINING = "training.json"  # beside an adapter: losses of every step, tokens, seconds, memory


def read_training(folder: Path) -> dict[str, Any]:
    """What the training of an adapter left beside it.

    Raises:
        UserError: it is missing or damaged; the whole folder is then made again.
    """
    return loaded(lambda there: read_json(there / TRAINING), folder)


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
    """A stored block with the hidden states at the wanted columns, and its seconds; None if it lacks some."""
    if stored is None:
        return None
    block, columns, seconds = stored
    if wanted is None:
        return Block(block.logp), seconds
    if columns is None or block.hidden is None or not np.isin(wanted, columns).all():
        return None
    place = {int(column): i for i, column in enumerate(columns)}
    return Block(block.logp, block.hidden[[place[int(column)] for column in wanted]]), seconds


Stored = tuple[Block, Ints | None, float]  # a block, the columns of its hidden states, and the seconds that it took


class BlockCache:
    """Blocks that are done, by set and probe.

    Args:
        keys: by set and probe, what a block is made of; blocks of other keys are not found, and dropped in time.
        folder: where to keep them, a file a set; in memory if left out.
    """

    def __init__(self, keys: Mapping[str, Mapping[str, str]], folder: Path | None = None) -> None:
        self.keys = keys
        self.folder = folder
        self.kept: dict[str, dict[str, Stored]] = {}

    def read(self, name: str) -> dict[str, Stored]:
        """Blocks of a set by key."""
        return self.kept.get(name, {}) if self.folder is None else loaded(read_blocks, self.folder / f"{name}.npz")

    def usable(self, name: str, columns: Mapping[str, Ints | None]) -> dict[str, tuple[Block, float]]:
        """Blocks of a set by probe, with the seconds that they took, if they are done.

        Args:
            columns: by probe, at which columns of the set hidden states are wanted.
        """
        stored = self.read(name)
        found = {probe: usable(stored.get(self.keys[name][probe]), wanted) for probe, wanted in columns.items()}
        return {probe: one for probe, one in found.items() if one is not None}

    def keep(self, name: str, blocks: Mapping[str, Block], columns: Mapping[str, Ints | None], seconds: float) -> None:
        """Add blocks of a set, by probe, each of which took so many seconds."""
        current = set(self.keys[name].values())
        kept = {key: stored for key, stored in self.read(name).items() if key in current}
        kept |= {self.keys[name][probe]: (block, columns[probe], seconds) for probe, block in blocks.items()}
        if self.folder is None:
            self.kept[name] = kept
        else:
            write_blocks(self.folder / f"{name}.npz", kept)
