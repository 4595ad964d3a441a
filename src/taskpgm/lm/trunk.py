"""`Trunk`: activations below the adapters, run once a row while there is memory to keep them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from taskpgm.chat.encoder import Encoded
from taskpgm.lm.batching import batches, split_on_oom
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.packing import Packed, ends, pack
from taskpgm.progress import Progress


class Trunk:
    """Activations of rows of one set that enter layer `first`, each row run once while there is memory to keep it.

    Shapes: N tokens of the packed rows, d hidden size.
    """

    def __init__(self, lm: LanguageModel, first: int, shared: int, memory: int = 1 << 30) -> None:
        self.lm = lm
        self.first = first
        self.shared = shared
        self.memory = memory  # bytes that may still be kept
        self.kept: dict[int, tuple[Encoded, Tensor]] = {}  # the row too, so that its id stays its own
        self.prefix: Tensor | None = None

    def fill(self, rows: Sequence[Encoded], progress: Progress) -> None:
        """Run these rows now, in full batches: fewer passes than one for every small step that they come in."""
        if self.first == 0 or not self.lm.plain_head:
            return
        new = list({id(row): row for row in rows if id(row) not in self.kept}.values())
        with progress.stage("running the shared layers", len(new), "row"):
            for batch in batches([ends(row) for row in new], self.lm.token_budget, self.shared):
                some = [new[i] for i in batch]
                split_on_oom(some, lambda part: self.entering(pack(part, self.shared, self.lm.device)), progress)
                progress.advance(len(some))
                if any(id(row) not in self.kept for row in some):
                    return  # memory is full: what is not kept is run when it is needed

    def entering(self, packed: Packed) -> Tensor | None:
        """(N, d) activations that enter layer `first`, as `LanguageModel.trunk` gives them."""
        if self.first == 0 or not self.lm.plain_head:
            return None
        rests = {id(row): self.kept[id(row)][1] for row in packed.rows if id(row) in self.kept}
        missing = list({id(row): row for row in packed.rows if id(row) not in rests}.values())
        if missing:
            batch = pack(missing, self.shared, self.lm.device)
            run = self.lm.trunk(batch, self.first)
            assert run is not None
            self.prefix = run[: self.shared]
            cuts = [ends(row) - self.shared for row in missing]
            for row, rest in zip(missing, run[self.shared :].split(cuts), strict=True):
                rests[id(row)] = rest
                if self.memory >= rest.nbytes:
                    self.kept[id(row)] = (row, rest)
                    self.memory -= rest.nbytes
        assert self.prefix is not None
        return torch.cat([self.prefix, *(rests[id(row)] for row in packed.rows)])
