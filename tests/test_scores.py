"""Jackknife groups of contexts that are counted apart."""

import numpy as np
import pytest

from taskpgm.scores import context_groups


@pytest.mark.parametrize(
    ("counts", "tasks", "groups"),
    [([32, 32, 32], 2, 16), ([12, 12, 12], 2, 12), ([2, 2, 2, 32, 20], 3, 16), ([2, 3, 2, 9], 3, 9), ([4, 6], 2, 4)],
)
def test_every_group_has_contexts_of_what_the_mixture_is_measured_on(counts, tasks, groups):
    found = context_groups(counts, tasks)
    assert [len(of_set) for of_set in found] == counts
    for of_set, count in zip(found[tasks:] or found, counts[tasks:] or counts, strict=True):
        sizes = np.bincount(of_set, minlength=groups)
        assert len(sizes) == groups
        assert sizes.max() - sizes.min() <= 1  # in turn
        assert sizes.min() == count // groups
    small = [of_set for of_set in found if len(of_set) < groups]
    assert all(len(set(of_set.tolist())) == len(of_set) for of_set in small)  # no group holds a small set twice
    sizes = np.bincount(np.concatenate(small or [np.arange(groups)]), minlength=groups)
    assert sizes.max() - sizes.min() <= 1  # small sets are spread over all groups


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_jackknife_over_few_contexts_is_too_wide_by_a_known_factor(count):
    """Of a mean over sets of a few contexts each: the expected variance is c/(c−1) · (B−1)/B of the true one."""
    rng = np.random.default_rng(count)
    tasks, B, draws = 8, 16, 4000
    groups = context_groups([count] * tasks + [32], tasks)[:tasks]
    x = rng.standard_normal((draws, tasks, count))
    replicates = []
    for b in range(B):
        kept = np.array([of_set != b for of_set in groups])
        replicates.append(((x * kept).sum(-1) / kept.sum(-1)).mean(-1))
    jackknife = (B - 1) * np.var(replicates, axis=0)
    true = 1 / (tasks * count)
    assert np.mean(jackknife) / true == pytest.approx(count / (count - 1) * (B - 1) / B, rel=0.05)
