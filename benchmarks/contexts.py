"""How many contexts a mixture needs: its errors and its distance from the final one, by contexts a set.

    python benchmarks/contexts.py MIX.YAML --out RUN_DIRECTORY

Takes a finished run and no model: the first m contexts of every set are those that `contexts.per_set: m` would choose.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from taskpgm.config import load_config
from taskpgm.mixture.affinity import measure_affinity
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.solve import solve_mixture
from taskpgm.pipeline.run import load_run
from taskpgm.pipeline.stages import allowed_shares
from taskpgm.scores import Scores


def first_contexts(scores: Scores, most: int) -> Scores:
    """The scores on the first so many contexts of every set."""
    place = np.zeros(len(scores.context_set), dtype=int)
    for name in range(len(scores.sets)):
        own = scores.context_set == name
        place[own] = np.arange(own.sum())
    kept = place < most
    number = np.cumsum(kept) - 1
    columns = kept[scores.context]
    groups = min(16, most, *np.bincount(scores.context_set[kept]))
    return replace(
        scores, logp=scores.logp[:, columns], context=number[scores.context[columns]],
        position=scores.position[columns], seed=scores.seed[columns], context_set=scores.context_set[kept],
        context_group=place[kept] % groups, divergences=None,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    config = load_config(args.config)
    found = load_run(args.out)
    scores, bounds = found.scores, allowed_shares(found.pool, config)
    weights = config.target_weights
    largest = int(np.bincount(scores.context_set).max())
    table = Table("contexts a set", "largest error of p", "mean error of p", "largest change to all", width=90)
    rows = []
    for most in sorted({2**k for k in range(2, 12) if 2**k < largest} | {largest}):
        part = first_contexts(scores, most)
        energy = build_energy(part, measure_affinity(part, config.affinity), config.energy, weights)
        rows.append((most, solve_mixture(energy, bounds)))
    for most, mixture in rows:
        change = np.abs(mixture.weights - rows[-1][1].weights).max()
        error = mixture.standard_error
        table.add_row(str(most), f"{error.max():.3f}", f"{error.mean():.3f}", f"{change:.3f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
