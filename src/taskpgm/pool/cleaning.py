"""What copies held-out rows leaves the training rows, and what copies contexts leaves the validation rows."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from taskpgm.config import Config
from taskpgm.errors import UserError
from taskpgm.pool.copies import Leaks, Mask, Members, equal_copies, first_of_equal
from taskpgm.pool.near import NearSeeker
from taskpgm.pool.ranking import SplitSet
from taskpgm.pool.rowfiles import RowFiles
from taskpgm.system import usable_cores


def without_leaks(sets: Sequence[SplitSet], config: Config, files: RowFiles) -> Leaks:
    """Leave out validation rows that copy contexts, and training rows that copy what any set holds out.

    Args:
        sets: tasks and targets; changed.
        config: its data says what a copy is, and whether copies within a task leave too.
        files: where the rows lie.

    Raises:
        UserError: a task keeps no training row; or near without its package.
    """
    near = config.data.duplicates == "near"
    seeker = NearSeeker(files, config.model.processes or usable_cores()) if near else None
    copies = seeker.copies if seeker else equal_copies
    train, contexts, validation = (
        [one.sides[side].members for one in sets] for side in ("train", "contexts", "validation")
    )
    of_held = copies(train, [_held_out(one) for one in sets])
    of_contexts = copies(validation, contexts)
    for one, in_train, in_validation in zip(sets, of_held.rows, of_contexts.rows, strict=True):
        _leave_out(one, in_train, in_validation)
    if config.data.within_tasks:
        for one in sets:
            rows = one.sides["train"].members
            _keep(one, seeker.firsts(rows) if seeker else first_of_equal(rows))
    return of_held.leaks


def _held_out(one: SplitSet) -> Members:
    """Contexts and validation, each row once."""
    both = [one.sides[side] for side in ("contexts", "validation")]
    _, once = np.unique(np.concatenate([side.keys for side in both]), return_index=True)
    entries, forms = (np.concatenate(parts)[once] for parts in zip(*(side.members for side in both), strict=True))
    return Members(entries, forms)


def _leave_out(one: SplitSet, of_train: Mask, of_validation: Mask) -> None:
    """Have these rows leave, and count them."""
    if len(of_train) and of_train.all():
        raise UserError(
            f"Task {one.own.source.name!r} has no training row left: all {len(of_train)} copy held-out rows of its own "
            "or other sets; take fewer contexts, add data, leave out the task or the set that it repeats, or set "
            "data.duplicates to a narrower sense."
        )
    train, validation = one.sides["train"].of(~of_train), one.sides["validation"].of(~of_validation)
    one.sides |= {"train": train, "validation": validation}
    one.counts = replace(one.counts, train_dropped=int(of_train.sum()), validation_dropped=int(of_validation.sum()))
    _count_cut(one)


def _keep(one: SplitSet, rows: Mask) -> None:
    """Have all training rows but these leave, and count them."""
    one.sides |= {"train": one.sides["train"].of(rows)}
    one.counts = replace(one.counts, repeats=int((~rows).sum()))
    _count_cut(one)


def _count_cut(one: SplitSet) -> None:
    cut = sum(int(side.costs["truncated"].sum()) for side in one.sides.values())
    one.counts = replace(one.counts, truncated=cut)
