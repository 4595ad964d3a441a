"""Affinities against plain loops, theory and SciPy; their errors against a bootstrap and known truth."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from support.numerics import names, random_truth, synthetic_scores

from taskpgm.config import AffinityConfig
from taskpgm.errors import UserError
from taskpgm.mixture.affinity import Affinity, given_affinity, mean_logp, measure_affinity, read_affinity
from taskpgm.mixture.jackknife import Fold, standard_error


def plain_means(scores, keep=lambda context: True):
    """M by loops: mean of the positions of a context, then of the contexts of a set."""
    M = np.zeros((len(scores.tasks) + 1, len(scores.sets)))
    for j in range(len(scores.sets)):
        means = []
        for c in np.flatnonzero(scores.context_set == j):
            if keep(c):
                means.append(scores.logp[:, scores.context == c].mean(axis=1))
        M[:, j] = np.mean(means, axis=0)
    return M


def test_means_weigh_contexts_evenly_whatever_their_length():
    scores = synthetic_scores(np.random.default_rng(0), n=3, targets=2, longest=7, seeds=2)
    np.testing.assert_allclose(mean_logp(scores), plain_means(scores), atol=1e-12)
    group = scores.context_group
    np.testing.assert_allclose(
        mean_logp(scores, Fold(without_group=3)), plain_means(scores, lambda c: group[c] != 3), atol=1e-12
    )
    np.testing.assert_allclose(
        mean_logp(scores, Fold(only_group=3)), plain_means(scores, lambda c: group[c] == 3), atol=1e-12
    )


def test_pmi_by_its_definition_fills_both_triangles():
    scores = synthetic_scores(np.random.default_rng(1), n=4, targets=1)
    M = plain_means(scores)
    base, probes = M[0], M[1:]
    a = measure_affinity(scores, AffinityConfig(kind="pmi"))
    for i in range(4):
        for j in range(4):
            own = 0.5 * ((probes[i, j] - probes[j, j]) + (probes[j, i] - probes[i, i]))
            assert a.S[i, j] == pytest.approx(own, abs=1e-12)
            gain = 0.5 * ((probes[i, j] - base[j]) + (probes[j, i] - base[i]))
            assert a.matrices["pmi_base"][i, j] == pytest.approx(gain, abs=1e-12)
    assert (np.diag(a.S) == 0).all()
    assert (a.S == a.S.T).all()
    np.testing.assert_allclose(np.diag(a.matrices["pmi_base"]), np.diag(a.matrices["G"]), atol=1e-12)
    assert a.kind == "pmi_own"


def test_ratio_by_loops_and_semidefinite_on_task_contexts_only():
    scores = synthetic_scores(np.random.default_rng(2), n=4, targets=2, seeds=2)
    a = measure_affinity(scores, AffinityConfig())
    S = np.zeros((4, 4))
    for c in np.flatnonzero(scores.context_set < 4):
        columns = np.flatnonzero(scores.context == c)
        for t in columns:
            P = np.exp(scores.logp[1:, t])
            R = P / P.mean()
            S += np.outer(R, R) / len(columns) / 16 / 4
    np.testing.assert_allclose(a.S, S, rtol=1e-12)
    assert np.linalg.eigvalsh(a.S)[0] > 0


def test_log_probabilities_far_below_underflow_keep_their_ratios():
    """A trap of summed log-probabilities: exp of −2000 is zero, the ratio of two such is not."""
    scores = synthetic_scores(np.random.default_rng(3), n=3)
    low = replace(scores, logp=scores.logp - 2000.0)
    for kind in ("ratio", "pmi"):
        np.testing.assert_allclose(
            measure_affinity(low, AffinityConfig(kind=kind)).S,
            measure_affinity(scores, AffinityConfig(kind=kind)).S,
            atol=1e-9,
        )


@pytest.mark.parametrize("seeds", [1, 3])
def test_jsd_is_a_weighted_mean_of_group_sums(seeds):
    scores = synthetic_scores(np.random.default_rng(4), n=4, jsd=True, seeds=seeds)
    a = measure_affinity(scores, AffinityConfig(kind="jsd"))
    d = scores.divergences

    def expected(of_seeds, groups):
        each = [sum(d.total_SBNN[s, b] for b in groups) / sum(d.weight_B[b] for b in groups) for s in of_seeds]
        return 1 - sum(each) / len(each) / np.log(2)

    everyone, rest = range(seeds), [b for b in range(16) if b != 5]
    np.testing.assert_allclose(a.S, expected(everyone, range(16)), atol=1e-14)
    np.testing.assert_allclose(np.diag(a.S), 1)
    np.testing.assert_allclose(a.without[5], expected(everyone, rest), atol=1e-14)
    np.testing.assert_allclose(a.only[5], expected(everyone, [5]), atol=1e-14)
    if seeds > 1:
        np.testing.assert_allclose(a.seeds[1], expected([0, 2], range(16)), atol=1e-14)
    assert set(a.errors) == {"M", "G", "pmi_own", "pmi_base", "ratio", "jsd"}


def test_jsd_without_divergences_says_so():
    with pytest.raises(UserError, match="divergences"):
        measure_affinity(synthetic_scores(np.random.default_rng(0)), AffinityConfig(kind="jsd"))


def test_replicates_equal_measuring_what_is_left():
    """Leaving a group out equals scores in which its contexts never were."""
    rng = np.random.default_rng(5)
    scores = synthetic_scores(rng, n=3, contexts=20)
    a = measure_affinity(scores, AffinityConfig())
    kept_T = scores.context_group[scores.context] != 2
    kept_C = np.flatnonzero(scores.context_group != 2)
    renumber = np.full(len(scores.context_set), -1)
    renumber[kept_C] = np.arange(len(kept_C))
    smaller = replace(
        scores, logp=scores.logp[:, kept_T], context=renumber[scores.context[kept_T]],
        position=scores.position[kept_T], seed=scores.seed[kept_T],
        context_set=scores.context_set[kept_C], context_group=np.zeros(len(kept_C), dtype=int),
    )  # fmt: skip
    np.testing.assert_allclose(a.without[2], measure_affinity(smaller, AffinityConfig()).S, rtol=1e-12)


def test_jackknife_of_a_mean_is_the_textbook_standard_error():
    x = np.random.default_rng(6).normal(size=(16, 3))
    without = [(x.sum(0) - x[b]) / 15 for b in range(16)]
    np.testing.assert_allclose(standard_error(without), x.std(axis=0, ddof=1) / 4, rtol=1e-12)


def test_jackknife_agrees_with_a_bootstrap_over_groups():
    """On average over draws within 15 %: resample whole groups of contexts, in every set alike."""
    rng = np.random.default_rng(7)
    ratios = []
    for _ in range(8):
        scores = synthetic_scores(rng, n=3, contexts=16)
        a = measure_affinity(scores, AffinityConfig())
        groups_M = np.array([mean_logp(scores, Fold(only_group=b)) for b in range(16)])
        draws = rng.integers(0, 16, size=(400, 16))
        boot_M = groups_M[draws].mean(axis=1)
        boot_S = a.only[draws].mean(axis=1)
        correction = np.sqrt(16 / 15)  # the bootstrap's variance of a mean has divisor B, not B − 1
        ratios.append(np.mean(a.errors["M"] / (correction * boot_M.std(axis=0))))
        ratios.append(np.mean(a.errors["ratio"] / (correction * boot_S.std(axis=0))))
    assert abs(np.mean(ratios) - 1) < 0.05
    assert np.abs(np.array(ratios) - 1).max() < 0.15


def test_intervals_of_means_gains_and_ratios_cover_the_truth():
    """Coverage of nominal 95 % intervals between 90 and 99 % on synthetic scores with known truth."""
    rng = np.random.default_rng(8)
    truth = random_truth(rng, 3)
    large = synthetic_scores(np.random.default_rng(9), n=3, contexts=20_000, truth=truth)
    expected = dict(measure_affinity(large, AffinityConfig()).matrices)
    expected["M"], expected["G"] = truth, truth[1:] - truth[0]
    quantile = stats.t.ppf(0.975, 15)
    hits = {name: [] for name in ("M", "G", "ratio", "pmi_base")}
    for _ in range(150):
        a = measure_affinity(synthetic_scores(rng, n=3, truth=truth), AffinityConfig())
        for name, hit in hits.items():
            hit.append(np.abs(a.matrices[name] - expected[name]) <= quantile * a.errors[name])
    for name, hit in hits.items():
        assert 0.90 <= np.mean(hit) <= 0.99, (name, np.mean(hit))


def test_probe_seeds_add_their_spread():
    rng = np.random.default_rng(10)
    scores = synthetic_scores(rng, n=3, seeds=3)
    a = measure_affinity(scores, AffinityConfig())
    assert a.seeds.shape == (3, 3, 3)
    contexts_only = standard_error(a.without)
    total = standard_error(a.without, a.seeds)
    np.testing.assert_allclose(a.errors["ratio"], total)
    assert (total >= contexts_only).all()
    # Delete-one-seed of a mean over seeds is the standard error of that mean.
    by_seed = np.array([plain_means_of_seed(scores, s) for s in range(3)])
    spread = by_seed.std(axis=0, ddof=1) / np.sqrt(3)
    context_part = standard_error([mean_logp(scores, Fold(without_group=b)) for b in range(16)])
    np.testing.assert_allclose(a.errors["M"], np.sqrt(context_part**2 + spread**2), rtol=1e-9)


def plain_means_of_seed(scores, s):
    M = np.zeros((len(scores.tasks) + 1, len(scores.sets)))
    for j in range(len(scores.sets)):
        members = np.flatnonzero(scores.context_set == j)
        M[:, j] = np.mean(
            [scores.logp[:, (scores.context == c) & (scores.seed == s)].mean(axis=1) for c in members], axis=0
        )
    return M


def test_save_and_load(tmp_path):
    a = measure_affinity(synthetic_scores(np.random.default_rng(11), jsd=True, targets=2), AffinityConfig(kind="jsd"))
    a.save(tmp_path / "affinity.npz")
    b = Affinity.load(tmp_path / "affinity.npz")
    assert (a.tasks, a.sets, a.kind) == (b.tasks, b.sets, b.kind)
    for name in a.matrices:
        np.testing.assert_array_equal(a.matrices[name], b.matrices[name])
        np.testing.assert_array_equal(a.errors[name], b.errors[name])
    for part in ("S", "without", "only", "seeds"):
        np.testing.assert_array_equal(getattr(a, part), getattr(b, part))


S3 = np.array([[1.0, 0.2, 0.1], [0.2, 1.0, 0.5], [0.1, 0.5, 1.0]])


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", "-labelled.csv", "-corner.csv", "-semicolons.csv"])
def test_reads_a_matrix_from_anywhere(tmp_path, suffix):
    path = tmp_path / f"S{suffix}"
    rows = [",".join(map(str, row)) for row in S3]
    labelled = [f"{name},{row}" for name, row in zip("abc", rows, strict=True)]
    if suffix == ".npy":
        np.save(path, S3)
    elif suffix == ".npz":
        np.savez(path, S=S3, tasks=np.array(["a", "b", "c"]))
    elif suffix == ".csv":
        path.write_text("\n".join(["a,b,c", *rows]))
    elif "semicolons" in suffix:
        path.write_text("\n".join([",a,b,c", *labelled]).replace(",", ";") + "\n;;;\n")
    else:
        path.write_text("\n".join(["task,a,b,c" if "corner" in suffix else ",a,b,c", *labelled]))
    a = read_affinity(path)
    np.testing.assert_array_equal(a.S, S3)
    assert a.tasks == (("task-1", "task-2", "task-3") if suffix == ".npy" else ("a", "b", "c"))
    assert a.kind == "given"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,0.5\n0.4,1", "not symmetric"),
        ("a,b\n1,0.5\n0,1", "not symmetric"),  # only the upper triangle filled
        ("a,b\n1,nan\nnan,1", "finite"),
        ("a,b\n1,inf\ninf,1", "finite"),
        ("a,a\n1,0\n0,1", "twice"),
        ("x,a,b\na,1,0\nc,0,1", "same names"),
        ("a,b\n1,0\n0,one", "'one'"),
        ("a,b\n1,0\n0", "line 3"),
        ("a,b\n\n1,0\n\n0,x", "line 5: a value is 'x'"),
        ("a;b\n1;0,5\n0,5;1", "with a point: 0.5"),
        (",a,\na,1,0\n,0,1", "names a task ''"),
        ("a,b,c\n1,0,0\n0,1,0", "square"),
        ("1,2\n3,4", "names"),
        ("a,b", "no matrix"),
        ("", "no matrix"),
    ],
)
def test_wrong_matrices_get_one_sentence(tmp_path, text, words):
    path = tmp_path / "S.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_affinity(path)
    assert "\n" not in str(caught.value)


def test_unreadable_files_get_one_sentence(tmp_path):
    (tmp_path / "S.npy").write_bytes(b"not numpy")
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=S3, b=S3)
    for name in ("S.npy", "objects.npy", "missing.csv", "S.txt", "two.npz"):
        with pytest.raises(UserError):
            read_affinity(tmp_path / name)
    with pytest.raises(UserError, match="names"):
        given_affinity(S3, names(2))
    with pytest.raises(UserError, match="square"):
        given_affinity(np.ones((2, 3)))


def test_scores_without_targets_are_those_of_the_tasks_only():
    """Against a loop over columns, and by the energy of the tasks, which targets never enter."""
    scores = synthetic_scores(np.random.default_rng(31), targets=2)
    own = scores.without_targets()
    kept = [t for t in range(scores.logp.shape[1]) if scores.context_set[scores.context[t]] < 4]
    assert own.sets == own.tasks == scores.tasks
    np.testing.assert_array_equal(own.logp, scores.logp[:, kept])
    np.testing.assert_array_equal(own.context_set[own.context], [scores.context_set[scores.context[t]] for t in kept])
    np.testing.assert_allclose(measure_affinity(own, AffinityConfig()).S, measure_affinity(scores, AffinityConfig()).S)


def test_a_matrix_that_is_not_there_is_named_without_an_errno(tmp_path):
    with pytest.raises(UserError, match=r"S\.csv: No such file or directory; check it\.$"):
        read_affinity(tmp_path / "S.csv")
