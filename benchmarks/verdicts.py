"""How often a verdict says 'better' where it is not: synthetic scores whose population optimum is the reference.

    OMP_NUM_THREADS=1 python benchmarks/verdicts.py [draws]

The tasks are exchangeable in the population, so uniform minimises every energy; a verdict of 'better than uniform'
is an error. Prints Markdown: the rate, with twice its binomial standard error at 5 %.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.numerics import synthetic_scores

from taskpgm.config import AffinityConfig, EnergyConfig
from taskpgm.mixture.affinity import measure_affinity
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.solve import solve_mixture

ENERGIES = {
    "likelihood, κ = 0": (EnergyConfig(prior=0), AffinityConfig()),
    "likelihood, κ = 0.05": (EnergyConfig(prior=0.05), AffinityConfig()),
    "likelihood, κ = 1": (EnergyConfig(prior=1), AffinityConfig()),
    "affinity, ratio, t = 2": (EnergyConfig(kind="affinity"), AffinityConfig()),
    "affinity, pmi own, t = 2": (EnergyConfig(kind="affinity", t=2), AffinityConfig(kind="pmi")),
}


def rate(n, contexts, configs, draws):
    energy_config, affinity_config = configs
    rng = np.random.default_rng(n * 1000 + contexts)
    truth = np.full((n + 1, n), -2.0)
    truth[1:] += 0.3 * np.eye(n)
    wrong = 0
    for _ in range(draws):
        scores = synthetic_scores(rng, n=n, contexts=contexts, truth=truth)
        energy = build_energy(scores, measure_affinity(scores, affinity_config), energy_config)
        wrong += solve_mixture(energy, references={"uniform": None}).verdicts[0].better
    return wrong / draws


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("draws", nargs="?", type=int, default=500)
    draws = parser.parse_args().draws
    sizes = [(3, 16), (3, 64), (8, 16), (8, 64)]
    print(f"| energy | {' | '.join(f'n = {n}, {m} contexts' for n, m in sizes)} |\n|---|{'---|' * len(sizes)}")
    for name, configs in ENERGIES.items():
        rates = [f"{rate(n, m, configs, draws):.3f}" for n, m in sizes]
        print(f"| {name} | {' | '.join(rates)} |", flush=True)
    print(f"\n{draws} draws each: a rate of 0.050 is measured to ± {2 * (0.05 * 0.95 / draws) ** 0.5:.3f}.")


if __name__ == "__main__":
    main()
