"""Jackknife groups of contexts that are counted apart; position weights per row and per token."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from support.numerics import synthetic_scores

from taskpgm.config import AffinityConfig
from taskpgm.mixture.affinity import measure_affinity
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


@pytest.mark.parametrize("group", [None, 0, 3])
def test_a_loss_per_token_is_the_mean_over_tokens(group):
    """M is Σ log P / Σ tokens of a set, as trainers report a loss; without a group, of the contexts that are left."""
    rng = np.random.default_rng(0)
    scores = replace(synthetic_scores(rng, n=3, targets=2, contexts=8, longest=9), loss="per_token")
    for j in range(len(scores.sets)):
        weights = np.eye(len(scores.sets))[j]
        found = scores.logp @ scores.omega(weights, without_group=group)
        total, tokens = np.zeros(len(scores.logp)), 0
        for t in range(len(scores.context)):
            c = scores.context[t]
            if scores.context_set[c] == j and (group is None or scores.context_group[c] != group):
                total, tokens = total + scores.logp[:, t], tokens + 1
        np.testing.assert_allclose(found, total / tokens, rtol=1e-12)
    mixed = scores.omega(np.array([0.5, 0, 0, 0.25, 0.25]), without_group=group)
    assert mixed.sum() == pytest.approx(1)


def test_errors_per_token_are_those_of_a_jackknife_by_hand():
    rng = np.random.default_rng(1)
    scores = replace(synthetic_scores(rng, n=3, contexts=16, longest=9), loss="per_token")
    affinity = measure_affinity(scores, AffinityConfig())
    G = np.zeros((scores.groups, 3, 3))
    for b, j in product(range(scores.groups), range(3)):
        kept = (scores.context_set[scores.context] == j) & (scores.context_group[scores.context] != b)
        G[b, :, j] = (scores.logp[1:, kept] - scores.logp[0, kept]).mean(axis=1)
    expected = np.sqrt((scores.groups - 1) * G.var(axis=0))
    np.testing.assert_allclose(affinity.errors["G"], expected, rtol=1e-9)


def test_rows_of_one_length_weigh_the_same_either_way():
    scores = synthetic_scores(np.random.default_rng(2), n=2, contexts=6, longest=1)
    per_token = replace(scores, loss="per_token")
    np.testing.assert_allclose(per_token.omega(np.array([0.3, 0.7])), scores.omega(np.array([0.3, 0.7])))
