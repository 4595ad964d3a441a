"""`Material`: a finished run and what its figures need beyond the files, worked out when it is first asked for."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from taskpgm.errors import UserError
from taskpgm.evaluation.statistics import Comparison, Measurement, compare_measurements
from taskpgm.mixture.bounds import Bounds
from taskpgm.mixture.energy import Energy
from taskpgm.mixture.explanation import Explanation, explain
from taskpgm.pipeline.finished import FinishedDirectory
from taskpgm.pipeline.stages import choose_energy
from taskpgm.pool.plan import copies
from taskpgm.report.examples import Examples, of_tasks
from taskpgm.types import Floats

SAME = 5e-4  # of the budget: mixtures that are no further apart are one
EXPLAINED = 64  # of more tasks than this, leaving each out takes minutes: `taskpgm explain` does it
LEFT_OUT = 16  # of the heaviest of them, on the page


class Material:
    """A finished run; nothing is written."""

    def __init__(self, run: FinishedDirectory) -> None:
        self.run = run
        self.mixture, self.affinity = run.mixture, run.affinity
        self.tasks = self.mixture.tasks
        self.targets = self.affinity.sets[len(self.tasks) :]
        self.command = f"{run.path / 'mix.yaml' if (run.path / 'mix.yaml').exists() else 'MIX.YAML'} --out {run.path}"

    @cached_property
    def stored(self) -> dict[str, Any]:
        """mixture.json."""
        return self.run.read_json("mixture.json")

    @cached_property
    def bounds(self) -> Bounds:
        """The mixture's bounds."""
        return self.mixture.bounds

    @cached_property
    def energy(self) -> Energy:
        """What the mixture minimises, from the scores.

        Raises:
            UserError: it is not what mixture.json records.
        """
        energy = choose_energy(self.run.scores, self.affinity, self.run.pool, self.run.config)
        recorded = float(self.mixture.energy["value"])
        if not np.isclose(energy.value(self.mixture.weights), recorded, rtol=1e-6):
            raise UserError(
                f"The energy of the mixture is {energy.value(self.mixture.weights):.6g} by the scores, but "
                f"{recorded:.6g} in mixture.json: another version made it; `taskpgm sample {self.command}` makes "
                "it anew."
            )
        return energy

    @cached_property
    def order(self) -> list[int]:
        """Tasks, heaviest first."""
        return [int(i) for i in np.lexsort((np.array(self.tasks), -self.mixture.weights))]

    @cached_property
    def unit(self) -> str:
        """Of the energy."""
        return "nats a token" if self.mixture.energy["kind"] in ("likelihood", "gain") else "units of energy"

    @cached_property
    def explanation(self) -> Explanation:
        """Why the shares are what they are; of many tasks, the heaviest are left out."""
        most = None if len(self.tasks) <= EXPLAINED else LEFT_OUT
        return explain(self.energy, self.mixture, most, copies(self.run.pool))

    @cached_property
    def examples(self) -> tuple[dict[str, Examples], list[str]]:
        """(rows that each task helps and hurts most, why there are fewer than could be)."""
        return of_tasks(self.run, self.targets)

    @cached_property
    def target_weights(self) -> Floats:
        """(sets,) what each set counts."""
        return self.run.scores.target_weights(self.run.config.target_weights)

    @cached_property
    def comparison(self) -> Comparison | None:
        """What `compare` measured, if it ran."""
        if not (self.run.path / "comparison.json").exists():
            return None
        data = self.run.comparison
        known = Measurement.__dataclass_fields__
        runs = [Measurement(**{k: v for k, v in one.items() if k in known}) for one in data["measurements"]]
        return compare_measurements(
            runs, data["tasks"], data["targets"], data["weights"] if data["targets"] else None, data["level"]
        )

    def elsewhere(self, weights: Mapping[str, float]) -> float:
        """Which part of the budget these weights, by task, spend otherwise than the mixture; 0 if there are none."""
        own = self.mixture.shares
        return 0.5 * sum(abs(weights.get(t, 0.0) - own.get(t, 0.0)) for t in {*weights, *own}) if weights else 0.0

    def optional(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the directory, if it is there.

        Raises:
            UserError: it is damaged.
        """
        return self.run.read_json(name) if (self.run.run / name).exists() else None
