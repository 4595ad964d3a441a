"""Rows grouped into batches, and halves of batches if memory runs out."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskpgm.chat.encoder import Encoded
from taskpgm.errors import UserError, first_line
from taskpgm.lm.devices import empty_cache
from taskpgm.progress import Progress


def logit_rows(vocabulary: int, device: torch.device, each: int = 1) -> int:
    """Rows of float32 logits, `each` at a time, that fit into a block of 30 MiB, or of 1 GiB on a GPU.

    On a CPU larger blocks come fresh from the system, page by page, whenever they are allocated: half as fast.
    """
    return max(1, ((30 << 20) if device.type == "cpu" else (1 << 30)) // (4 * vocabulary * each))


def batches(lengths: Sequence[int], token_budget: int, shared: int = 0) -> Iterator[list[int]]:
    """Indices grouped so that rows of like length share a batch of at most `token_budget` tokens.

    Args:
        lengths: tokens of each row, `shared` of which a batch holds only once.
    """
    batch: list[int] = []
    tokens = shared
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and tokens + lengths[i] - shared > token_budget:
            yield batch
            batch, tokens = [], shared
        batch.append(i)
        tokens += lengths[i] - shared
    if batch:
        yield batch


def padded(rows: Sequence[Encoded], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, L) token ids padded on the right and the (B, L) mask of response tokens."""
    longest = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), longest), pad, dtype=np.int64)
    response = np.zeros((len(rows), longest), dtype=bool)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = row.ids
        response[i, : len(row.ids)] = row.response
    return torch.from_numpy(ids).to(device), torch.from_numpy(response).to(device)


def split_on_oom(items: Sequence[Encoded], work: Callable[[Sequence[Encoded]], Any], progress: Progress) -> list[Any]:
    """Results of `work` on all items, or on halves of them, and halves of these, if memory runs out."""
    try:
        return [work(items)]
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        if len(items) == 1:
            raise UserError(
                f"A row of {len(items[0].ids)} tokens does not fit into memory ({first_line(error)}); lower "
                "probes.max_length, or use a smaller model or model.dtype bfloat16. Finished work is kept."
            ) from error
    empty_cache()
    progress.say(f"out of memory with {len(items)} rows in a batch: going on with halves")
    middle = len(items) // 2
    return split_on_oom(items[:middle], work, progress) + split_on_oom(items[middle:], work, progress)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
