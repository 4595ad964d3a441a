"""Sets that are scored together."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.probing import all_blocks, setup

from taskpgm.files import digest
from taskpgm.lm.engine import Engine
from taskpgm.probes.joining import CUT, JOINED, SMALL, join
from taskpgm.probes.scoring import score_sets

SIZES = st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 3000), min_size=1, max_size=40)


@given(sizes=SIZES)
def test_small_sets_are_joined_in_order_and_large_ones_are_alone(sizes):
    groups = join(sizes)
    assert sorted(name for group in groups for name in group) == sorted(sizes)
    assert all(len(group) == 1 for group in groups if any(sizes[name] >= SMALL for name in group))
    small = [group for group in groups if sizes[group[0]] < SMALL]
    assert [name for group in small for name in group] == [name for name in sizes if sizes[name] < SMALL]
    for group, following in itertools.zip_longest(small, small[1:]):
        together = sum(sizes[name] for name in group)
        assert together <= JOINED
        full = following is None or together + sizes[following[0]] > JOINED
        assert full or int(digest(group[-1])[:8], 16) % CUT == 0  # only a cut ends a group early


@given(sizes=SIZES, name=st.text(min_size=5, max_size=6), tokens=st.integers(1, 3000), place=st.integers(0, 40))
def test_a_set_more_changes_groups_up_to_the_next_cut_alone(sizes, name, tokens, place):
    items = list(sizes.items())
    items.insert(place, (name, tokens))
    before, after = join(sizes), join(dict(items))
    changed = [other for group in before if group not in after for other in group]
    names = [other for other, size in items if size < SMALL]
    at = names.index(name) if name in names else None
    cuts = [i for i, other in enumerate(names) if int(digest(other)[:8], 16) % CUT == 0]
    for other in changed:
        assert at is not None
        first = max((cut + 1 for cut in cuts if cut < at), default=0)
        last = min((cut for cut in cuts if cut > at), default=len(names))
        assert first <= names.index(other) <= last


def test_what_is_missing_is_made_with_the_same_batches(model_folders):
    lm, rows, probes = setup(model_folders["llama"], last_layers=2)
    joined = [list(rows)]
    all_there = all_blocks(lm, rows, probes, joined=joined)
    missing = {"sums": [probes[1].name], "sky": []}
    done = list(score_sets(Engine.of(lm), rows, probes, missing, joined=joined))
    assert [(name, list(blocks)) for name, blocks in done] == [("sums", [(probes[1].name, "sums")])]
    np.testing.assert_array_equal(done[0][1][probes[1].name, "sums"].logp, all_there[probes[1].name, "sums"].logp)
