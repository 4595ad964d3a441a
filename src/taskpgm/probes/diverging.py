"""Divergences between probes: at which positions, and measured through the workers, set by set."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from taskpgm.chat.encoder import Encoded
from taskpgm.errors import UserError
from taskpgm.lm.engine import Engine
from taskpgm.lm.model import LanguageModel
from taskpgm.probes.divergence import jsd_matrix
from taskpgm.probes.probe import Probe
from taskpgm.progress import QUIET, Progress
from taskpgm.scores import Divergences, context_groups
from taskpgm.types import Floats, Ints, derive_seed
from taskpgm.workers.dispatch import Do, Job

Hidden = NDArray[np.float32]  # (P, d) last hidden states at the sampled positions of a set
Read = Callable[[str], Mapping[str, Hidden]]  # hidden states of a set by probe


def sample_positions(
    contexts: Mapping[str, list[Encoded]], positions: int, seed: int
) -> dict[str, tuple[Ints, Floats]]:
    """For every task set, indices into its columns and their weights: the sample on which divergences are computed.

    Each set gets an equal part of `positions`. If it has no more columns than that, all are taken with weight ω;
    else they are drawn with probability ω, once for all pairs: unbiased, and ln 2 − JSD stays positive semidefinite.
    The draw depends only on the set, so a new task only shortens it.
    """
    sample = {}
    for name, rows in contexts.items():
        lengths = np.array([row.response_tokens for row in rows])
        omega = np.repeat(1 / (len(rows) * lengths), lengths)
        part = max(1, positions // len(contexts))
        if len(omega) <= part:
            sample[name] = (np.arange(len(omega)), omega / len(contexts))
        else:
            rng = np.random.default_rng(derive_seed(seed, "positions", name))
            drawn = np.searchsorted(np.cumsum(omega), rng.random(part) * omega.sum(), side="right")
            sample[name] = (np.minimum(drawn, len(omega) - 1), np.full(part, 1 / (part * len(contexts))))
    return sample


def measure_divergences(
    engine: Engine,
    contexts: Mapping[str, list[Encoded]],
    sample: Mapping[str, tuple[Ints, Floats]],
    hidden: Callable[[str], Mapping[str, Hidden]],
    names: Sequence[Sequence[str]],
    progress: Progress = QUIET,
) -> Divergences:
    """JSD between all pairs of probes at the sampled positions of the task sets, seed by seed.

    Args:
        contexts: those of all sets, since the groups follow from the smallest one.
        hidden: last hidden states of a set at its sampled positions, by probe; asked for set by set.
    """
    group_of = dict(zip(contexts, context_groups([len(rows) for rows in contexts.values()], len(sample)), strict=True))
    groups = int(max(of_set.max() for of_set in group_of.values())) + 1
    n = len(names[0])
    weight, jobs = np.zeros(groups), []
    for name, (columns, weights) in sample.items():
        lengths = [row.response_tokens for row in contexts[name]]
        group = np.repeat(group_of[name], lengths)[columns]
        weight_PB = np.zeros((len(columns), groups))
        weight_PB[np.arange(len(columns)), group] = weights
        weight += weight_PB.sum(0)
        jobs.append(Job(f"the divergences on {name!r}", len(columns), _Sampled(name, weight_PB, hidden, names)))
    with progress.stage("divergences", len(sample), "set"):
        found = dict(engine.workers.map(Diverging(), jobs, progress))
    total = np.zeros((len(names), groups, n, n))
    for name in sample:  # in this order, whichever was done first
        total += found[name]
    return Divergences(total, weight, sum(len(c) for c, _ in sample.values()))


class _Sampled:
    """The sampled positions of one set; hidden states are read when it is their turn, and pickled as they are."""

    def __init__(self, name: str, weight_PB: Floats, read: Read, names: Sequence[Sequence[str]]) -> None:
        self.name, self.weight_PB, self.read, self.names = name, weight_PB, read, names

    def states(self) -> list[NDArray[np.float32]]:
        """(N, P, d) of each seed."""
        of_set = self.read(self.name)
        return [np.stack([of_set[probe] for probe in of_seed]) for of_seed in self.names]

    def __reduce__(self) -> Any:
        return _Given, (self.name, self.weight_PB, self.states())


class _Given:
    """The same in a worker."""

    def __init__(self, name: str, weight_PB: Floats, states: list[NDArray[np.float32]]) -> None:
        self.name, self.weight_PB, self._states = name, weight_PB, states

    def states(self) -> list[NDArray[np.float32]]:
        """(N, P, d) of each seed."""
        return self._states


@dataclass(frozen=True)
class Diverging:
    """Divergences of the probes on a set; a job has their hidden states."""

    alone: bool = False

    @contextlib.contextmanager
    def opened(self, lm: LanguageModel, progress: Progress) -> Iterator[Do]:
        """Within, what gives a set's name and its (seeds, B, N, N) sums."""
        head = lm.model.get_output_embeddings()

        def do(job: "_Sampled | _Given", progress: Progress) -> tuple[str, Floats]:
            sums = []
            for hidden_NPd in job.states():
                with torch.inference_mode():
                    of_seed = jsd_matrix(
                        torch.from_numpy(hidden_NPd), lambda h: head(h.to(lm.device, head.weight.dtype)),
                        torch.from_numpy(job.weight_PB), head.weight.shape[0],
                    )  # fmt: skip
                sums.append(of_seed.numpy())
            progress.advance()
            return job.name, np.stack(sums)

        yield do

    def memory(self, lm: LanguageModel) -> float:
        """Bytes, roughly: a block of logits, and what is made of it."""
        return float(256 << 20)


def check_divergences_possible(lm: LanguageModel, probes: Sequence[Probe]) -> None:
    """Raise UserError if last hidden states do not determine a probe's distribution."""
    for probe in probes:
        if probe.changes_head or not lm.plain_head:
            raise UserError(
                f"affinity.kind jsd needs one plain output layer, which the probe of task {probe.task!r} on "
                f"{lm.name!r} does not have; use affinity.kind ratio or pmi."
            )
