"""`Merging`: losses of merged probes, one a mixture, as work that any worker can do."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskpgm.data.chat import Encoded
from taskpgm.lm.model import LanguageModel
from taskpgm.probes.options import Options
from taskpgm.probes.probe import Probe
from taskpgm.probes.scoring import set_logp, sizes_of
from taskpgm.progress import Progress
from taskpgm.workers.dispatch import Do


@dataclass(frozen=True)
class Merging:
    """A job is a mixture's name and its merged probe."""

    contexts: Mapping[str, list[Encoded]]  # by set
    shares: Mapping[str, float]  # what each set weighs
    options: Mapping[str, Options]  # of sets that are scored by options
    alone: bool = False

    @contextlib.contextmanager
    def opened(self, lm: LanguageModel, progress: Progress) -> Iterator[Do]:
        """Within, what gives a mixture's name and its loss."""

        def do(job: tuple[str, Probe], progress: Progress) -> tuple[str, float]:
            name, probe = job
            logp = set_logp(lm, probe, self.contexts)
            progress.advance()
            return name, -sum(self.shares[one] * self._mean(one, logp[one]) for one in self.contexts)

        yield do

    def _mean(self, name: str, logp: NDArray[np.float32]) -> float:
        if name in self.options:
            return float(self.options[name].logp(logp).mean())
        lengths = [row.response_tokens for row in self.contexts[name]]
        return float(np.mean([part.mean() for part in np.split(logp, np.cumsum(lengths)[:-1])]))

    def memory(self, lm: LanguageModel) -> float:
        """Bytes, roughly."""
        return sizes_of(list(self.contexts.values())).memory(lm)
