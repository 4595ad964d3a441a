"""Times of the numerical half, beside other solvers, all at an equal certified gap. Prints Markdown.

    OMP_NUM_THREADS=2 python benchmarks/solver.py [mixture large path jackknife greedy likelihood] [--scores scores.npz]

Every time is the median of several runs and covers everything a caller waits for: from ψ and K as arrays to weights
whose gap is known. The gap is the same for all, 1e-9 relative (likelihood: 1e-6 nats): a library's tolerances are
tightened until its answer, made feasible, meets it, and only that setting is timed; where none meets it, it says so.
"""

import argparse
import statistics
import time
from pathlib import Path

import clarabel
import cvxpy
import numpy as np
import osqp
import piqp
from scipy import sparse

from taskpgm.config import EnergyConfig
from taskpgm.mixture.affinity import given_affinity
from taskpgm.mixture.bounds import simplex
from taskpgm.mixture.certificate import duality_gap, quadratic_scale
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.energy import Energy, field_energy
from taskpgm.mixture.maximiser import maximise
from taskpgm.mixture.optimum import minimise
from taskpgm.mixture.path import trace_path
from taskpgm.mixture.selection import price, select_tasks
from taskpgm.mixture.solve import solve_mixture
from taskpgm.scores import Scores

T_KNOB = 2.0


def names(n):
    return tuple(f"t{i}" for i in range(n))


def affinities(n, rng):
    """S of four shapes, with entries near those of real ratio matrices: a large common part and structure on it."""
    topics = rng.normal(size=(n, 40))
    noise = rng.normal(size=(n, 2 * n))
    dense = 1 + 0.1 * topics @ topics.T / 40 + 0.1 * noise @ noise.T / (2 * n)
    Q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    spectrum = (Q * np.logspace(0, -14, n)) @ Q.T
    copy = rng.integers(0, n // 2, size=n)
    return {
        "dense": dense,
        "low-rank": 1 + 0.1 * topics @ topics.T / 40,
        "ill-conditioned": 0.5 * (spectrum + spectrum.T),
        "duplicates": dense[np.ix_(copy, copy)],
    }


def energies(n, rng, scores=None):
    made = {kind: _affinity_energy(S) for kind, S in affinities(n, rng).items()}
    if scores is not None:  # the quadratic field of the run's likelihood at uniform: its ratio affinity, with targets
        u = np.full(len(scores.tasks), 1 / len(scores.tasks))
        field = build_energy(scores, None, EnergyConfig(prior=0)).field_at(u)
        made = {f"real, n = {len(u)}": field_energy(scores.tasks, *field)}
    return made


def _affinity_energy(S):
    return build_energy(None, given_affinity(S), EnergyConfig(kind="affinity", t=T_KNOB))


def median(call, repeats):
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def feasible(p):
    p = np.clip(p, 0, None)
    return p / p.sum()


def relative_gap(energy, p):
    gap = duality_gap(energy.gradient(p), p, simplex(energy.tasks))
    return gap / (quadratic_scale(energy, p) if energy.quadratic else 1.0)


# --- the others -------------------------------------------------------------------------------------------------------


def by_cvxpy(solver, **settings):
    def solve(energy, tolerance):
        n = len(energy.tasks)
        p = cvxpy.Variable(n)
        objective = 0.5 * cvxpy.quad_form(p, cvxpy.psd_wrap(energy.K)) - energy.psi @ p
        problem = cvxpy.Problem(cvxpy.Minimize(objective), [cvxpy.sum(p) == 1, p >= 0])
        problem.solve(solver=solver, **{name: f(tolerance) for name, f in settings.items()})
        return p.value

    return solve


def same(tolerance):
    return tolerance


OSQP = {"eps_abs": same, "eps_rel": same, "max_iter": lambda _: 100_000, "polishing": lambda _: True}
CLARABEL = {"tol_gap_abs": same, "tol_gap_rel": same, "tol_feas": same}


def piqp_directly(energy, tolerance):
    n = len(energy.tasks)
    solver = piqp.DenseSolver()
    solver.settings.eps_abs = solver.settings.eps_rel = tolerance
    solver.settings.max_iter = 500
    solver.setup(energy.K, -energy.psi, np.ones((1, n)), np.ones(1), None, None, None, np.zeros(n), np.ones(n))
    solver.solve()
    return solver.result.x


def clarabel_directly(energy, tolerance):
    n = len(energy.tasks)
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
    A = sparse.csc_matrix(np.vstack([np.ones(n), -np.eye(n)]))
    cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(n)]
    P = sparse.csc_matrix(np.triu(energy.K))
    solver = clarabel.DefaultSolver(P, -energy.psi, A, np.r_[1, np.zeros(n)], cones, settings)
    return np.array(solver.solve().x)


def osqp_directly(energy, tolerance):
    n = len(energy.tasks)
    solver = osqp.OSQP()
    A = sparse.csc_matrix(np.vstack([np.ones(n), np.eye(n)]))
    solver.setup(sparse.csc_matrix(np.triu(energy.K)), -energy.psi, A, np.r_[1, np.zeros(n)], np.ones(n + 1),
                 verbose=False, eps_abs=tolerance, eps_rel=tolerance, max_iter=100_000, polishing=True)  # fmt: skip
    return solver.solve(raise_error=False).x


OTHERS = {
    "cvxpy + OSQP": by_cvxpy(cvxpy.OSQP, **OSQP),
    "cvxpy + Clarabel": by_cvxpy(cvxpy.CLARABEL, **CLARABEL),
    "PIQP": piqp_directly,
    "Clarabel": clarabel_directly,
    "OSQP": osqp_directly,
}


def other_time(solve, energy, repeats, patience=10.0):
    """Median milliseconds at the loosest tolerance that meets the gap, in words; or that none does."""
    best = np.inf
    for tolerance in (1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12):
        start = time.perf_counter()
        try:
            p = solve(energy, tolerance)
            gap = relative_gap(energy, feasible(np.asarray(p, dtype=np.float64)))
        except (cvxpy.SolverError, TypeError, ValueError):
            gap = np.inf
        best = min(best, gap) if np.isfinite(gap) else best
        took = time.perf_counter() - start
        if gap <= 1e-9:
            return f"{median(lambda tolerance=tolerance: solve(energy, tolerance), repeats):.1f}"
        if took > patience:
            break
    return f"not reached (gap {best:.0e})" if np.isfinite(best) else "failed"


# --- the tables -------------------------------------------------------------------------------------------------------


def mixture(scores, n=316, repeats=5, others=OTHERS):
    """One mixture: solve and gap; with its whole certificate (curvature by eigenvalues) in the second column."""
    print(f"\n### One mixture, n = {n}, ms\n")
    print("| energy | taskpgm | with certificate | " + " | ".join(others) + " |")
    print("|---|" + "---|" * (2 + len(others)))
    for kind, energy in energies(n, np.random.default_rng(0), scores).items():
        ours = median(lambda energy=energy: minimise(energy, simplex(energy.tasks)), repeats)
        fresh = lambda energy=energy: solve_mixture(field_energy(energy.tasks, energy.psi, energy.K))  # noqa: E731
        whole = median(fresh, repeats)
        assert relative_gap(energy, minimise(energy, simplex(energy.tasks)).p) <= 1e-9
        cells = [other_time(solve, energy, max(repeats - 2, 1)) for solve in others.values()]
        print(f"| {kind} | {ours:.1f} | {whole:.1f} | " + " | ".join(cells) + " |", flush=True)


def large(scores):
    if scores is None:
        mixture(None, 2000, 3, {"PIQP": piqp_directly, "cvxpy + OSQP": OTHERS["cvxpy + OSQP"]})


def path(scores, n=316):
    """50 values of t from 0 to 5: warm-started, and PIQP 50 times."""
    print(
        f"\n### Path of 50 values of t, n = {n}, ms\n\n"
        "| energy | taskpgm | PIQP, 50 times | largest gap |\n|---|---|---|---|"
    )
    values = np.linspace(0, 5, 50)
    for kind, energy in energies(n, np.random.default_rng(0), scores).items():
        ours = median(lambda energy=energy: trace_path(energy, values), 3)
        theirs = median(lambda energy=energy: [piqp_directly(energy.with_knob(t), 1e-9) for t in values], 3)
        worst = trace_path(energy, values).relative_gap.max()
        print(f"| {kind} | {ours:.0f} | {theirs:.0f} | {worst:.0e} |", flush=True)


def jackknife(scores, n=316):
    """16 re-solves of energies as far apart as leaving out a sixteenth of 1,000 contexts makes them."""
    print(f"\n### Jackknife, 16 re-solves, n = {n}, ms\n\n| energy | taskpgm | PIQP, 16 times |\n|---|---|---|")
    rng = np.random.default_rng(1)
    for kind, S in affinities(n, np.random.default_rng(0)).items():
        energy = _affinity_energy(S)
        start = minimise(energy, simplex(energy.tasks))
        scale = float(np.abs(S - S.mean()).max())
        replicates = []
        for _ in range(16):
            X = rng.normal(size=(n, n)) / np.sqrt(1000 * 15)
            replicates.append(_affinity_energy(S + 0.1 * scale * (X @ X.T)))
        ours = median(lambda: [minimise(one, simplex(one.tasks), start) for one in replicates], 3)  # noqa: B023
        theirs = median(lambda: [piqp_directly(one, 1e-9) for one in replicates], 3)  # noqa: B023
        print(f"| {kind} | {ours:.0f} | {theirs:.0f} |", flush=True)


def greedy(scores, n=1000, k=100, check=120):
    """Greedy, pricing included, and whether a smaller run takes the order of re-solving for every candidate."""
    print(
        f"\n### Greedy, n = {n}, k = {k}\n\n| energy | s | chosen | re-solves | γ | certified | order of n = {check} |"
    )
    print("|---|---|---|---|---|---|---|")
    for kind, S in (affinities(n, np.random.default_rng(0)) | {"pushing": pushing(n)}).items():
        energy = S if isinstance(S, Energy) else _affinity_energy(S)
        seconds = median(lambda energy=energy: select_tasks(energy, k=k), 1) / 1e3
        s = select_tasks(energy, k=k)
        small = field_energy(energy.tasks[:check], energy.psi[:check], energy.K[:check, :check])
        order = [small.tasks.index(task) for task in select_tasks(small, k=20).chosen]
        agreed = "same" if order == slow_order(price(small), len(order)) else "differs"
        print(f"| {kind} | {seconds:.2f} | {len(s.chosen)} | {s.resolved} | {s.gamma:.1e} |",
              f"{s.certified:.3f} | {agreed} |",
              flush=True)  # fmt: skip


def pushing(n):
    """An energy whose later choices push earlier ones to zero: positively correlated tasks, uneven utilities."""
    rng = np.random.default_rng(5)
    A = np.abs(rng.normal(size=(n, 60))) ** 3
    K = A @ A.T / 60 + 0.01 * np.eye(n)
    return field_energy(names(n), K @ rng.dirichlet(np.full(n, 0.05)) + 0.02 * rng.random(n), K)


def slow_order(pricing, k):
    order = []
    for _ in range(k):
        left = [j for j in range(len(pricing.b)) if j not in order]
        values = np.array([maximise(pricing, [*order, j])[1] for j in left])
        order.append(left[int(np.flatnonzero(values >= values.max() * (1 - 1e-11))[0])])
    return order


def likelihood(scores):
    """Newton against EM to a gap of 1e-6 nats, from uniform, without and with a prior."""
    print(
        "\n### Exact likelihood, gap 1e-6 nats\n\n"
        "| n | T | prior κ | taskpgm, ms | EM, ms | EM steps | largest difference |"
    )
    print("|---|---|---|---|---|---|---|")
    for n, T in ((32, 5000), (316, 50_000)):
        for prior in (0.0, 0.05, 1.0):
            energy = (
                likelihood_energy(n, T, prior)
                if scores is None
                else build_energy(scores, None, EnergyConfig(prior=prior))
            )
            box = simplex(energy.tasks)
            ours = median(lambda energy=energy, box=box: minimise(energy, box), 1 if n > 100 else 5)
            p = minimise(energy, box).p
            start = time.perf_counter()
            q, steps, gap = expectation_maximisation(energy, seconds=30)
            theirs = 1e3 * (time.perf_counter() - start)
            reached = f"{theirs:.0f}" if gap <= 1e-6 else f"> {theirs:.0f} (gap {gap:.0e})"
            print(f"| {n} | {T} | {prior} | {ours:.1f} | {reached} | {steps} | {np.abs(p - q).max():.0e} |", flush=True)
        if scores is not None:
            break


def likelihood_energy(n, T, prior):
    """Probes with specialities: 20 topics, each token of one, each probe good at some; neighbours much alike."""
    rng = np.random.default_rng(3)
    topic = rng.integers(0, 20, size=T)
    skill = 0.5 * rng.normal(size=(n, 20))
    logp = -2 + skill[:, topic] + 0.7 * rng.normal(size=T) + 0.3 * rng.normal(size=(n, T))
    logp = np.minimum(logp, -1e-4)
    top = logp.max(axis=0)
    zero, u = np.zeros(n), np.full(n, 1 / n)
    return Energy("likelihood", names(n), zero, zero, np.zeros((n, n)), np.exp(logp - top), np.full(T, 1 / T), top, u,
                  prior=prior)  # fmt: skip


def expectation_maximisation(energy, seconds, tolerance=1e-6):
    p = np.full(len(energy.tasks), 1 / len(energy.tasks))
    box, start, steps = simplex(energy.tasks), time.perf_counter(), 0
    while True:
        ratio = energy.likelihoods @ (energy.omega / (p @ energy.likelihoods))
        gradient = -ratio - (energy.prior * energy.reference / p if energy.prior else 0.0)
        gap = duality_gap(gradient, p, box)
        if gap <= tolerance or time.perf_counter() - start > seconds:
            return p, steps, gap
        p = (p * ratio + energy.prior * energy.reference) / (1 + energy.prior)
        steps += 1


TABLES = {"mixture": mixture, "large": large, "path": path, "jackknife": jackknife, "greedy": greedy,
          "likelihood": likelihood}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", help=f"any of {', '.join(TABLES)}; all where left out")
    parser.add_argument("--scores", type=Path, help="scores.npz of a run: real energies instead of random ones")
    arguments = parser.parse_args()
    scores = Scores.load(arguments.scores) if arguments.scores else None
    for table in arguments.tables or TABLES:
        TABLES[table](scores)


if __name__ == "__main__":
    main()
