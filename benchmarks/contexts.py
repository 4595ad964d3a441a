"""How many contexts a mixture needs: its errors and its distance from the final one, by contexts a set.

    python benchmarks/contexts.py MIX.YAML --out RUN_DIRECTORY [--keep-targets]

Takes a finished run and no model: the first m contexts of every set are those that `contexts.per_set: m` would choose.
With `--keep-targets` all contexts of the targets stay, as under `contexts.per_target`.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from taskpgm.config_file import load_config
from taskpgm.mixture.affinity import measure_affinity
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.solve import solve_mixture
from taskpgm.pipeline.finished import load_run
from taskpgm.pipeline.stages import allowed_shares
from taskpgm.scores import Scores, context_groups


def first_contexts(scores: Scores, most: int, keep_targets: bool = False) -> Scores:
    """The scores on the first so many contexts of every set, or of every task."""
    place = np.zeros(len(scores.context_set), dtype=int)
    for name in range(len(scores.sets)):
        own = scores.context_set == name
        place[own] = np.arange(own.sum())
    kept = (place < most) | (keep_targets & (scores.context_set >= len(scores.tasks)))
    number = np.cumsum(kept) - 1
    columns = kept[scores.context]
    counts = [int(count) for count in np.bincount(scores.context_set[kept])]
    return replace(
        scores, logp=scores.logp[:, columns], context=number[scores.context[columns]],
        position=scores.position[columns], seed=scores.seed[columns], context_set=scores.context_set[kept],
        context_group=np.concatenate(context_groups(counts, len(scores.tasks))), divergences=None,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep-targets", action="store_true")
    args = parser.parse_args()
    config = load_config(args.config)
    found = load_run(args.out)
    scores, bounds = found.scores, allowed_shares(found.pool, config)
    weights = config.target_weights
    largest = int(np.bincount(scores.context_set).max())
    table = Table(
        "contexts a set",
        "largest error of p",
        "mean error of p",
        "largest change to all",
        "error of S",
        "of G",
        width=100,
    )
    rows = []
    for most in sorted({2**k for k in range(1, 12) if 2**k < largest} | {largest}):
        part = first_contexts(scores, most, args.keep_targets)
        affinity = measure_affinity(part, config.affinity)
        energy = build_energy(part, affinity, config.energy, weights)
        rows.append((most, solve_mixture(energy, bounds), affinity))
    for most, mixture, affinity in rows:
        change = np.abs(mixture.weights - rows[-1][1].weights).max()
        error = mixture.standard_error
        n = len(affinity.tasks)
        errors = [f"{affinity.errors[name][:, :n].mean():.3f}" for name in (affinity.kind, "G")]
        table.add_row(str(most), f"{error.max():.3f}", f"{error.mean():.3f}", f"{change:.3f}", *errors)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
