"""`Affinity`: how alike tasks are, four ways, each with its sampling error.

Legend of shape suffixes: N tasks, T columns (positions times seeds), J sets (tasks, then targets), B groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from taskpgm.config import AffinityConfig
from taskpgm.errors import UserError
from taskpgm.frames import frame
from taskpgm.mixture import jackknife
from taskpgm.mixture.jackknife import EVERYTHING, Fold
from taskpgm.mixture.sheets import not_a_number, number, read_sheet
from taskpgm.scores import Scores
from taskpgm.types import Brief, Floats

LN2 = float(np.log(2))


@dataclass(frozen=True, eq=False, repr=False)
class Gains(Brief):
    """Nats a token that each task's probe gains on each set over what it started from, with standard errors."""

    tasks: tuple[str, ...]
    sets: tuple[str, ...]
    G: Floats  # (n, sets)
    standard_error: Floats | None  # (n, sets)

    def frame(self) -> Any:
        """One row a task and set: gain and standard error; a pandas table, without pandas lists by column."""
        return _pairs(self.tasks, self.sets, {"gain": self.G}, {"gain": self.standard_error})


@dataclass(frozen=True, eq=False, repr=False)
class Affinity(Brief):
    """The chosen affinity S with its jackknife replicates, and every matrix that was measured.

    `matrices` holds M (n+1, sets), G (n, sets), pmi_own, pmi_base, ratio and, if divergences were scored, jsd (the
    divergences D in nats, not the affinity 1 − D/ln 2), each (n, n); `errors` holds their standard errors. A user's
    own matrix has no replicates and only `matrices["given"]`.
    """

    tasks: tuple[str, ...]
    sets: tuple[str, ...]
    kind: str  # ratio, jsd, pmi_own, pmi_base or given
    S: Floats  # (n, n)
    without: Floats  # (B, n, n) S without the contexts of one group
    only: Floats  # (B, n, n) S on only the contexts of one group
    seeds: Floats  # (k, n, n) S without one probe seed; empty with a single seed
    matrices: Mapping[str, Floats] = field(default_factory=dict)
    errors: Mapping[str, Floats] = field(default_factory=dict)

    @property
    def gains(self) -> Gains:
        """What each probe gains on each set.

        Raises:
            UserError: a matrix of the user's own, which has none.
        """
        if "G" not in self.matrices:
            raise UserError("This affinity was given, not measured from scores, so there are no gains.")
        return Gains(self.tasks, self.sets, self.matrices["G"], self.errors.get("G"))

    def frame(self) -> Any:
        """One row a pair of tasks: S and all that was measured, with errors; a pandas table, or lists by column."""
        n = len(self.tasks)
        square = {name: M[:, :n] for name, M in self.matrices.items() if len(M) == n}
        return _pairs(self.tasks, self.tasks, {"S": self.S, **square}, {k: e[:, :n] for k, e in self.errors.items()})

    def save(self, path: Path | str) -> None:
        """Write all arrays to one .npz file (not atomic; the store does that)."""
        arrays: dict[str, Any] = {**self.matrices, **{f"{name}_se": error for name, error in self.errors.items()}}
        with Path(path).open("wb") as file:
            np.savez_compressed(
                file, tasks=np.array(self.tasks), sets=np.array(self.sets), kind=np.array(self.kind), S=self.S,
                S_without=self.without, S_only=self.only, S_seeds=self.seeds, **arrays,
            )  # fmt: skip

    @classmethod
    def load(cls, path: Path | str) -> "Affinity":
        """Affinity written by `save`."""
        with np.load(path, allow_pickle=False) as z:
            errors = {name.removesuffix("_se"): z[name] for name in z.files if name.endswith("_se")}
            own = ("tasks", "sets", "kind", "S", "S_without", "S_only", "S_seeds")
            matrices = {name: z[name] for name in z.files if name not in own and not name.endswith("_se")}
            return cls(
                tuple(map(str, z["tasks"])), tuple(map(str, z["sets"])), str(z["kind"]), z["S"], z["S_without"],
                z["S_only"], z["S_seeds"], matrices, errors,
            )  # fmt: skip


def _pairs(
    tasks: tuple[str, ...], sets: tuple[str, ...], values: Mapping[str, Floats], errors: Mapping[str, Floats | None]
) -> Any:
    """Long table of matrices: task, set, then each value and its error."""
    columns: dict[str, Any] = {"task": [t for t in tasks for _ in sets], "set": [s for _ in tasks for s in sets]}
    for name, M in values.items():
        columns[name] = M.ravel().tolist()
        if (error := errors.get(name)) is not None:
            columns["standard_error" if name == "gain" else f"{name}_se"] = error.ravel().tolist()
    return frame(columns)


def measure_affinity(scores: Scores, config: AffinityConfig) -> Affinity:
    """Affinity S of the kind that `config` names, and all other matrices that the scores allow.

    S is ratio: E_ω[R Rᵀ], R_i = P_i/P̄; jsd: 1 − D/ln 2; pmi against the owner: ½[(M_ij − M_jj) + (M_ji − M_ii)], or
    against what probes start from: ½(G_ij + G_ji). All on the contexts of the tasks, never on those of targets.

    Raises:
        UserError: `kind: jsd` on scores without divergences.
    """
    kind = f"pmi_{config.reference}" if config.kind == "pmi" else config.kind
    if kind == "jsd" and scores.divergences is None:
        raise UserError(
            "affinity.kind is 'jsd' but the scores hold no divergences; score the contexts again with "
            "affinity.kind: jsd, or use ratio, which needs none."
        )
    ratios_NT = label_ratios(scores)
    logp_TN = np.ascontiguousarray(scores.logp.T)

    def measure(folds: list[Fold]) -> list[dict[str, Floats]]:
        return [_measure_fold(scores, logp_TN, ratios_NT, fold) for fold in folds]

    (full,) = measure([EVERYTHING])
    without = measure(jackknife.without_folds(scores))
    only = measure(jackknife.only_folds(scores))
    seeds = measure(jackknife.seed_folds(scores))
    errors = {}
    if without:
        for name in full:
            by_seed = [fold[name] for fold in seeds if name in fold]
            errors[name] = jackknife.standard_error([fold[name] for fold in without], by_seed)
    n = len(scores.tasks)
    stack = {
        name: np.array([_similarity(kind, fold) for fold in folds]).reshape(-1, n, n)
        for name, folds in (("without", without), ("only", only), ("seeds", seeds))
    }
    S = _similarity(kind, full)
    return Affinity(scores.tasks, scores.sets, kind, S, matrices=full, errors=errors, **stack)


def mean_logp(scores: Scores, fold: Fold = EVERYTHING, logp_TN: Floats | None = None) -> Floats:
    """(n+1, sets) M: mean over the contexts of set j, each context the mean of its positions, of ℓ_i."""
    T = scores.logp.shape[1]
    set_T = scores.context_set[scores.context]
    weight_T = jackknife.omega_of(scores, np.ones(len(scores.sets)), fold)
    weight_JT = csr_array((weight_T, (set_T, np.arange(T))), shape=(len(scores.sets), T))
    return np.ascontiguousarray((weight_JT @ (scores.logp.T if logp_TN is None else logp_TN)).T)


def label_ratios(scores: Scores) -> Floats:
    """(n, T) R_i = P_i(y_t)/P̄(y_t), P̄ the uniform ensemble of the probes; a softmax times n, so it cannot overflow."""
    logp_NT = scores.logp[1:]
    ratio_NT = np.exp(logp_NT - logp_NT.max(axis=0))
    ratio_NT *= len(logp_NT) / ratio_NT.sum(axis=0)
    return np.asarray(ratio_NT)


def pmi_own(M: Floats) -> Floats:
    """(n, n) ½[(M_ij − M_jj) + (M_ji − M_ii)]: symmetric, zero diagonal, normally ≤ 0. M is (n+1, sets)."""
    n = M.shape[0] - 1
    probes = M[1:, :n]
    lost = probes - np.diag(probes)  # what probe i loses on task j against j's own probe
    return 0.5 * (lost + lost.T)


def pmi_base(M: Floats) -> Floats:
    """(n, n) ½(G_ij + G_ji), diagonal G_ii: pointwise mutual information of label and task given the input."""
    n = M.shape[0] - 1
    G = M[1:, :n] - M[0, :n]
    return 0.5 * (G + G.T)


def _measure_fold(scores: Scores, logp_TN: Floats, ratios_NT: Floats, fold: Fold) -> dict[str, Floats]:
    M = mean_logp(scores, fold, logp_TN)
    weight_T = jackknife.omega_of(scores, scores.task_weights(), fold)
    kept_T = weight_T > 0
    scaled_NT = ratios_NT[:, kept_T] * np.sqrt(weight_T[kept_T])
    measured = {
        "M": M,
        "G": M[1:] - M[0],
        "pmi_own": pmi_own(M),
        "pmi_base": pmi_base(M),
        "ratio": scaled_NT @ scaled_NT.T,
    }
    if scores.divergences is not None:
        measured["jsd"] = _mean_divergence(scores, fold)
    return measured


def _mean_divergence(scores: Scores, fold: Fold) -> Floats:
    d = scores.divergences
    assert d is not None
    kept_B = np.ones(len(d.weight_B), dtype=bool)
    if fold.without_group is not None:
        kept_B[fold.without_group] = False
    if fold.only_group is not None:
        kept_B = np.arange(len(kept_B)) == fold.only_group
    if not d.weight_B[kept_B].any():
        kept_B[:] = True  # a group that the draw of positions missed says nothing of its own: the pooled mean stands in
    kept_S = np.arange(len(d.total_SBNN)) != fold.without_seed
    return np.asarray(d.total_SBNN[kept_S].mean(axis=0)[kept_B].sum(axis=0) / d.weight_B[kept_B].sum())


def _similarity(kind: str, measured: Mapping[str, Floats]) -> Floats:
    """S from a fold's matrices."""
    return 1 - measured["jsd"] / LN2 if kind == "jsd" else measured[kind]


def read_affinity(path: Path | str, names: tuple[str, ...] | None = None) -> Affinity:
    """Affinity from a user's own symmetric matrix: .npy, .npz or CSV.

    A CSV carries the names in its header row, and may repeat them as its first column. An .npz carries the matrix as
    `S` (or as its only square array) and the names as `tasks` or `names`. An .npy has none: they are `names`, or
    task-1, task-2, ...

    Raises:
        UserError: unreadable, not square, NaN or infinite entries, asymmetric, or names that do not match.
    """
    path = Path(path)
    try:
        matrix, found = _READERS[path.suffix.lower()](path)
    except KeyError:
        raise UserError(f"Cannot tell what {path} is; give an affinity as .csv, .npy or .npz.") from None
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"Cannot read an affinity matrix from {path}: {error.strerror or error}; check it.") from error
    except ValueError as error:
        raise UserError(f"Cannot read an affinity matrix from {path}: {' '.join(str(error).split())}.") from error
    return given_affinity(matrix, names or found, str(path))


def given_affinity(S: Floats, names: tuple[str, ...] | None = None, where: str = "The affinity matrix") -> Affinity:
    """Affinity from a symmetric matrix (n, n) with the names of its rows; symmetric to 1e-8 of its largest entry.

    Raises:
        UserError: not square, NaN or infinite entries, asymmetric, or names that are none or do not match.
    """
    S = np.asarray(S, dtype=np.float64)
    if S.ndim != 2 or S.shape[0] != S.shape[1] or S.size == 0:
        raise UserError(f"{where} has shape {S.shape}; an affinity is a square matrix, one row and one column a task.")
    tasks = tuple(f"task-{i + 1}" for i in range(len(S))) if names is None else tuple(names)
    if len(tasks) != len(S):
        raise UserError(f"{where} has {len(S)} rows but {len(tasks)} names; give one name a row.")
    for name in tasks:
        if not name.strip():
            raise UserError(f"{where} names a task {name!r}; give every task a name that can be read.")
        if tasks.count(name) > 1:
            raise UserError(f"{where} names {name!r} twice; every task needs a name of its own.")
    if not np.isfinite(S).all():
        i, j = np.argwhere(~np.isfinite(S))[0]
        raise UserError(f"{where} has {S[i, j]} at ({tasks[i]!r}, {tasks[j]!r}); every entry must be a finite number.")
    difference = np.abs(S - S.T)
    if difference.max() > 1e-8 * np.abs(S).max():
        i, j = np.unravel_index(difference.argmax(), S.shape)
        raise UserError(
            f"{where} is not symmetric: ({tasks[i]!r}, {tasks[j]!r}) is {S[i, j]:.6g} but ({tasks[j]!r}, {tasks[i]!r}) "
            f"is {S[j, i]:.6g}; symmetrise it as ½(S + Sᵀ) if both directions count alike."
        )
    S = 0.5 * (S + S.T)
    none = np.empty((0, *S.shape))
    return Affinity(tasks, tasks, "given", S, none, none, none, {"given": S})


def _read_csv(path: Path) -> tuple[Floats, tuple[str, ...]]:
    (_, header), *body = read_sheet(path) or [(1, [])]
    if not body:
        raise UserError(f"{path} holds no matrix; its first row gives the names, then one row a task.")
    if all(number(cell) is not None for cell in header):
        raise UserError(f"{path} starts with numbers; its first row must give the names of the tasks.")
    labelled = not all(number(row[0]) is not None for _, row in body) or (
        header[0] == "" and len(header) == len(body) + 1
    )
    names = tuple(header[1:] if labelled and len(header) == len(body[0][1]) else header)
    cells = [(line, row[1:] if labelled else row) for line, row in body]
    for line, row in cells:
        if len(row) != len(names):
            raise UserError(f"{path}, line {line} has {len(row)} values but the header names {len(names)} tasks.")
        for cell in row:
            if number(cell) is None:
                raise UserError(f"{path}, line {line}: a value {not_a_number(cell)}.")
    if labelled:
        for name, (_, row) in zip(names, body, strict=False):
            if row[0] != name:
                raise UserError(
                    f"{path} names a column {name!r} but the row in its place {row[0]!r}; rows and columns must "
                    "carry the same names in the same order."
                )
    return np.array([[float(cell) for cell in row] for _, row in cells]), names


def _read_npy(path: Path) -> tuple[Floats, None]:
    return np.load(path, allow_pickle=False), None


def _read_npz(path: Path) -> tuple[Floats, tuple[str, ...] | None]:
    with np.load(path, allow_pickle=False) as z:
        square = [name for name in z.files if z[name].ndim == 2 and z[name].shape[0] == z[name].shape[1]]
        key = "S" if "S" in z.files else square[0] if len(square) == 1 else None
        if key is None:
            raise UserError(f"{path} holds {', '.join(z.files)}; name the affinity matrix S.")
        names = next((tuple(map(str, z[name])) for name in ("tasks", "names") if name in z.files), None)
        return z[key], names


_READERS = {".csv": _read_csv, ".npy": _read_npy, ".npz": _read_npz}
