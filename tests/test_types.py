"""Short reprs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from support.numerics import synthetic_scores

from taskpgm.config import AffinityConfig, EnergyConfig
from taskpgm.mixture.affinity import measure_affinity
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.solve import solve_mixture
from taskpgm.types import Brief


@dataclass(repr=False)
class Thing(Brief):
    what: Any


def test_a_repr_says_sizes_and_first_items():
    assert repr(Thing(np.zeros((2, 3)))) == "Thing(what=<2×3 float64>)"
    assert repr(Thing(("a", "b", "c"))) == "Thing(what=('a', 'b', … 3 in all))"
    assert repr(Thing({"a": 1})) == "Thing(what={'a': 1})"
    assert repr(Thing([])) == "Thing(what=[])"
    assert repr(Thing(Thing(1))) == "Thing(what=Thing(…))"
    assert len(repr(Thing("x" * 1000))) < 70


def test_reprs_of_large_things_are_short():
    scores = synthetic_scores(np.random.default_rng(0), n=30, targets=2)
    energy = build_energy(scores, None, EnergyConfig())
    mixture = solve_mixture(energy)
    for thing in (
        scores,
        energy,
        mixture,
        mixture.bounds,
        mixture.certificate,
        measure_affinity(scores, AffinityConfig()),
    ):
        assert len(repr(thing)) < 800, repr(thing)
    assert "and 26 more" in repr(mixture)
