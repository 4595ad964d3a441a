"""The optimiser on an affinity matrix of your own: NumPy and SciPy, no model, no torch.

python examples/optimiser_on_a_matrix.py
"""

import numpy as np

from taskpgm import build_energy, explain, select_tasks, solve_mixture, verify
from taskpgm.config import EnergyConfig
from taskpgm.mixture.affinity import given_affinity

names = ("sums", "more-sums", "algebra", "poems")
similarity = np.array(
    [
        [1.00, 0.90, 0.40, 0.05],  # sums and more-sums nearly repeat each other
        [0.90, 1.00, 0.40, 0.05],
        [0.40, 0.40, 1.00, 0.10],
        [0.05, 0.05, 0.10, 1.00],  # poems stand alone
    ]
)
energy = build_energy(None, given_affinity(similarity, names), EnergyConfig(kind="affinity", t=0.5))
mixture = solve_mixture(energy)
for task, share in mixture.shares.items():
    print(f"{task:10} {share:6.1%}")
print(f"certified: duality gap {mixture.certificate.gap:.1e}")
print(f"verified by code that shares nothing with the solver: {verify(energy, mixture).passed}")

selection = select_tasks(energy, k=2)
print(f"the best two: {', '.join(selection.chosen)}, at least {selection.certified:.0%} of the best pair's value")
print(f"interchangeable: {explain(energy, mixture).clusters}")
