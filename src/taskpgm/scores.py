"""`Scores`: what every probe says on the shared contexts. NumPy only; the narrow waist.

Shapes: n tasks, T columns (positions, once for every probe seed), C contexts, B jackknife groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from taskpgm.types import Brief, Floats, Ints

MOST_GROUPS = 16
LossBy = Literal["per_row", "per_token"]


def context_groups(contexts: Sequence[int], tasks: int) -> list[Ints]:
    """Jackknife group of each context of every set, 0..B-1.

    B = min(16, contexts of the smallest set that the mixture is measured on: a target, or a task if there are none). A
    set goes through the groups in turn. Sets of fewer than B contexts go through them one set after another, so that
    every group has its part of them.

    Such a set of c contexts loses 1/c of itself with a group, not 1/B: the variance of its mean comes out
    c/(c−1) · (B−1)/B times too large, never too small.

    Args:
        contexts: how many each set has, tasks first.
        tasks: how many of the sets are tasks.
    """
    B = min(MOST_GROUPS, *(contexts[tasks:] or contexts), MOST_GROUPS)
    found, so_far = [], 0
    for count in contexts:
        start = so_far if count < B else 0
        so_far += count if count < B else 0
        found.append((start + np.arange(count)) % B)
    return found


@dataclass(frozen=True, repr=False)
class Divergences(Brief):
    """Jensen–Shannon sums over sampled positions, kept apart by probe seed and jackknife group.

    total[s, b] sums JSD(P_i, P_j) in nats over the sampled positions of group b, weighted, under the probes of seed s;
    D is the mean over seeds of Σ_b total / Σ_b weight.
    """

    total_SBNN: Floats
    weight_B: Floats
    positions: int


@dataclass(frozen=True, repr=False)
class Scores(Brief):
    """Label log-probabilities ℓ of n probes, and of what they start from, on one shared pool of contexts.

    A column t is one label token of one context, under the probes of one seed; with k seeds every position has k
    columns, so that means over columns are means over positions and seeds alike.
    """

    tasks: tuple[str, ...]  # n names, in the order of rows 1..n of logp
    sets: tuple[str, ...]  # the tasks, then the targets
    logp: Floats  # (n+1, T) log P_i(y_t | x, y_<t) in nats; row 0 what probes start from: base or warm
    context: Ints  # (T,) which context, 0..C-1
    position: Ints  # (T,) index of the label within its context, 0..
    seed: Ints  # (T,) which probe seed, 0..k-1
    context_set: Ints  # (C,) which set
    context_group: Ints  # (C,) which jackknife group, 0..B-1, stratified by set
    divergences: Divergences | None = None
    loss: LossBy = "per_row"  # how ω spreads a set's weight; a setting, not saved

    @property
    def groups(self) -> int:
        """B, the number of jackknife groups."""
        return int(self.context_group.max()) + 1

    def omega(
        self,
        set_weights: Floats,
        without_group: int | None = None,
        without_seed: int | None = None,
        only_group: int | None = None,
    ) -> Floats:
        """(T,) position weights ω, Σω = 1 unless `only_group`.

        per_row: a set's weight, spread evenly over its contexts, then over their columns, so that long answers do not
        drown short ones. per_token: spread evenly over all its columns, Σ NLL / Σ tokens, as trainers average losses.
        A group alone keeps its part of ω, times B, so that the mean over groups is ω: a mean within the group would
        leave out the sets that have no context there, and count the contexts of the others by who is beside them.

        Args:
            set_weights: (sets,) non-negative, sums to one.
            without_group: leave out the contexts of one jackknife group.
            without_seed: leave out the columns of one probe seed.
            only_group: keep only the contexts of one jackknife group.
        """
        kept_C = self.context_group != (-1 if without_group is None else without_group)
        kept_T = kept_C[self.context] & (self.seed != (-1 if without_seed is None else without_seed))
        set_T = self.context_set[self.context]
        by_row = self.loss == "per_row"
        divisor = self._spread(kept_C, kept_T) if by_row else self._columns_of_sets(kept_T)[set_T]
        weight = set_weights[set_T] * kept_T
        omega = np.divide(weight, divisor, out=np.zeros_like(weight), where=divisor > 0)
        return omega if only_group is None else self.groups * omega * (self.context_group[self.context] == only_group)

    def _columns_of_sets(self, kept_T: NDArray[np.bool_]) -> Ints:
        """(sets,) columns that are kept of each set."""
        return np.bincount(self.context_set[self.context[kept_T]], minlength=len(self.sets))

    def _spread(self, kept_C: NDArray[np.bool_], kept_T: NDArray[np.bool_]) -> Ints:
        """(T,) contexts that are kept of a column's set, times columns that are kept of its context."""
        contexts_of_set = np.bincount(self.context_set[kept_C], minlength=len(self.sets))
        columns_of_context = np.bincount(self.context[kept_T], minlength=len(self.context_set))
        return contexts_of_set[self.context_set[self.context]] * columns_of_context[self.context]

    def target_weights(self, weights: Mapping[str, float]) -> Floats:
        """(sets,) w, sums to one: `weights` of the targets, normalised; equal over the tasks if there are none."""
        if len(self.sets) == len(self.tasks):
            return self.task_weights()
        w = np.array([0.0] * len(self.tasks) + [weights.get(name, 1.0) for name in self.sets[len(self.tasks) :]])
        return np.asarray(w / w.sum())

    def without_targets(self) -> "Scores":
        """The same on the tasks' own contexts, for a mixture that is chosen without the targets."""
        kept_C = self.context_set < len(self.tasks)
        kept_T = kept_C[self.context]
        counts = np.bincount(self.context_set[kept_C], minlength=len(self.tasks))
        return replace(
            self, sets=self.tasks, logp=self.logp[:, kept_T], context=self.context[kept_T],
            position=self.position[kept_T], seed=self.seed[kept_T], context_set=self.context_set[kept_C],
            context_group=np.concatenate(context_groups([int(count) for count in counts], len(self.tasks))),
        )  # fmt: skip

    def task_weights(self) -> Floats:
        """(sets,) uniform over the tasks, zero on targets: the pool on which affinities are measured."""
        weights = np.zeros(len(self.sets))
        weights[: len(self.tasks)] = 1 / len(self.tasks)
        return weights

    def save(self, path: Path | str) -> None:
        """Write all arrays to one .npz file (not atomic; the store does that)."""
        extra: dict[str, Any] = {}
        if self.divergences is not None:
            d = self.divergences
            extra = {"jsd_total": d.total_SBNN, "jsd_weight": d.weight_B, "jsd_positions": np.array(d.positions)}
        with Path(path).open("wb") as file:
            np.savez_compressed(
                file, tasks=np.array(self.tasks), sets=np.array(self.sets),
                logp=self.logp, context=self.context, position=self.position, seed=self.seed,
                context_set=self.context_set, context_group=self.context_group, **extra,
            )  # fmt: skip

    @classmethod
    def load(cls, path: Path | str, loss: LossBy = "per_row") -> "Scores":
        """Scores written by `save`."""
        with np.load(path, allow_pickle=False) as z:
            jsd = Divergences(z["jsd_total"], z["jsd_weight"], int(z["jsd_positions"])) if "jsd_total" in z else None
            return cls(
                tuple(map(str, z["tasks"])), tuple(map(str, z["sets"])), z["logp"], z["context"],
                z["position"], z["seed"], z["context_set"], z["context_group"], jsd, loss,
            )  # fmt: skip
