"""The mixture of an affinity matrix of your own: NumPy and SciPy, no model, no torch.

    python examples/optimiser_on_a_matrix.py

Four tasks, of which the first two nearly repeat each other and the last stands alone.
"""

import numpy as np

from taskpgm import build_energy, make_bounds, select_tasks, solve_mixture, verify
from taskpgm.config import EnergyConfig
from taskpgm.mixture.affinity import given_affinity

TASKS = ("sums", "more-sums", "algebra", "poems")
S = np.array(
    [
        [1.00, 0.90, 0.40, 0.05],
        [0.90, 1.00, 0.40, 0.05],
        [0.40, 0.40, 1.00, 0.10],
        [0.05, 0.05, 0.10, 1.00],
    ]
)


def main() -> None:
    """Print three mixtures: of all tasks, within bounds, and of at most two tasks."""
    energy = build_energy(None, given_affinity(S, TASKS), EnergyConfig(kind="affinity", t=0.5))
    show("t = 0.5", solve_mixture(energy).shares)

    bounded = solve_mixture(energy, make_bounds(TASKS, {"poems": 0.4}))
    show("poems at least 40 %", bounded.shares)
    print("shadow prices:", {name: f"{price:.1e}" for name, price in bounded.shadow_prices.items()})

    selection = select_tasks(energy, k=2)
    show("two tasks", solve_mixture(energy, chosen=selection.chosen).shares)
    print(f"the two reach at least {selection.certified:.0%} of what the best two could")
    print(f"certificate: gap {bounded.certificate.gap:.0e}; other code agrees: {verify(energy, bounded).passed}")


def show(title: str, shares: dict[str, float]) -> None:
    """One line: the mixture's shares."""
    print(f"{title}:", ", ".join(f"{task} {share:.1%}" for task, share in shares.items()))


if __name__ == "__main__":
    main()
