"""Scores against the plain loop: one row at a time, no batch, no padding, full logits."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from support.heard import Heard
from support.models import ARCHITECTURES, devices, run_short_of_memory
from support.probing import all_blocks, labels_of, plain_loop, setup

from taskpgm.chat.encoder import Encoded
from taskpgm.lm.engine import Engine
from taskpgm.probes.diverging import measure_divergences, sample_positions
from taskpgm.probes.probe import Probe
from taskpgm.probes.scoring import BASE, assemble, score_sets


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("last_layers", [None, 2])
@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("joined", [None, [["sums", "sky"]]])
def test_scores_are_those_of_the_plain_loop(architecture, last_layers, device, joined, model_folders, tmp_path):
    folder = model_folders[architecture]
    lm, rows, probes = setup(folder, device=device, last_layers=last_layers)
    assert lm.plain_head
    blocks = all_blocks(lm, rows, probes, joined=joined)
    moved = 0.0
    for probe in [None, *probes]:
        adapter = None
        if probe:
            adapter = tmp_path / probe.task
            adapter.mkdir()
            probe.save(adapter)
        for name, of_set in rows.items():
            expected = np.concatenate(
                [
                    lp[np.arange(len(lp)), labels_of(r)]
                    for lp, r in zip(plain_loop(folder, adapter, of_set), of_set, strict=True)
                ]
            )
            found = blocks[probe.name if probe else BASE, name].logp
            np.testing.assert_allclose(found, expected, atol=1e-4)
            moved = max(moved, float(np.abs(found - blocks[BASE, name].logp).max()))
    assert moved > 0.1  # the probes differ from the base, so the comparison means something


@pytest.mark.parametrize("device", devices())
def test_divergences_are_scipys_on_full_distributions(device, model_folders, tmp_path):
    folder = model_folders["qwen2"]
    lm, rows, probes = setup(folder, device=device)
    sample = sample_positions(rows, 10_000, seed=0)
    blocks = all_blocks(lm, rows, probes, {n: c for n, (c, _) in sample.items()})
    names = [[p.name for p in probes]]
    hidden = {n: {p.name: blocks[p.name, n].hidden for p in probes} for n in rows}
    found = measure_divergences(Engine.of(lm), rows, sample, hidden.__getitem__, names)
    full = []
    for probe in probes:
        (tmp_path / probe.task).mkdir()
        probe.save(tmp_path / probe.task)
        full.append({n: plain_loop(folder, tmp_path / probe.task, of_set) for n, of_set in rows.items()})
    expected = np.mean(
        [
            np.mean(
                [
                    np.mean([jensenshannon(np.exp(p), np.exp(q)) ** 2 for p, q in zip(a, b, strict=True)])
                    for a, b in zip(full[0][n], full[1][n], strict=True)
                ]
            )
            for n in rows
        ]
    )
    d = found.total_SBNN[0].sum(0) / found.weight_B.sum()
    np.testing.assert_allclose(d[0, 1], expected, rtol=1e-4)
    np.testing.assert_allclose(found.weight_B.sum(), 1.0)
    assert d[0, 1] == d[1, 0]
    assert d[0, 0] == 0
    assert 1e-3 < expected < math.log(2)


def test_sampled_positions_are_unbiased_and_prefixes(model_folders):
    lengths = [1, 2, 9]
    rows = {"a": [Encoded(np.arange(n + 1, dtype=np.int32), np.arange(n + 1) > 0, False) for n in lengths]}
    (columns, weights), expected = sample_positions(rows, 10, 1)["a"], [1 / 3, *[1 / 6] * 2, *[1 / 27] * 9]
    counts = np.zeros(12)
    for seed in range(3000):
        np.add.at(counts, sample_positions(rows, 10, seed)["a"][0], 1 / 30000)
    np.testing.assert_allclose(counts, expected, atol=6e-3)
    np.testing.assert_allclose(weights.sum(), 1)
    shorter, _ = sample_positions(rows, 5, 1)["a"]
    np.testing.assert_array_equal(shorter, columns[:5])
    exact, omega = sample_positions(rows, 12, 1)["a"]
    np.testing.assert_array_equal(exact, np.arange(12))
    np.testing.assert_allclose(omega, expected)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_rows_scores_do_not_depend_on_its_batch_mates(data, model_folders):
    lm, rows, probes = _SETUP.get("llama") or _SETUP.setdefault("llama", setup(model_folders["llama"], last_layers=2))
    pool = list(itertools.chain(*rows.values()))
    chosen = [pool[i] for i in data.draw(st.lists(st.integers(0, len(pool) - 1), min_size=1, max_size=8, unique=True))]
    found = all_blocks(lm, {"x": chosen}, probes[:1])[probes[0].name, "x"].logp
    alone = [all_blocks(lm, {"x": [row]}, probes[:1])[probes[0].name, "x"].logp for row in chosen]
    np.testing.assert_allclose(found, np.concatenate(alone), atol=1e-4)


_SETUP: dict = {}


def test_a_set_scored_later_or_in_parts_gives_the_same_blocks(model_folders):
    lm, rows, probes = setup(model_folders["mistral"])
    whole = all_blocks(lm, rows, probes)
    for name, probe in itertools.product(rows, probes):
        part = dict(score_sets(Engine.of(lm), rows, [probe], {n: [probe.name] * (n == name) for n in rows}))
        np.testing.assert_array_equal(part[name][probe.name, name].logp, whole[probe.name, name].logp)


def test_assembled_columns_name_their_context_position_and_seed(model_folders):
    lm, rows, probes = setup(model_folders["llama"])
    blocks = all_blocks(lm, rows, probes)
    names = [[p.name for p in probes], [p.name for p in reversed(probes)]]
    scores = assemble(tuple(rows), rows, blocks, names)
    assert scores.logp.shape == (3, 2 * sum(int(r.response.sum()) for of_set in rows.values() for r in of_set))
    flat = list(itertools.chain(*rows.values()))
    for t in (0, 5, scores.logp.shape[1] - 1):
        row = flat[scores.context[t]]
        offset = sum(int(r.response.sum()) for r in rows["sums"] if scores.context_set[scores.context[t]] == 1)
        within = sum(int(r.response.sum()) for r in flat[: scores.context[t]]) + scores.position[t] - offset
        set_name = scores.sets[scores.context_set[scores.context[t]]]
        for i in range(2):
            assert scores.logp[i + 1, t] == blocks[names[scores.seed[t]][i], set_name].logp[within]
        assert scores.position[t] < row.response.sum()
    assert set(scores.context_group) == {0, 1}


def test_a_probe_of_another_rank_scores_beside_the_others(model_folders, tmp_path):
    folder = model_folders["llama"]
    lm, rows, probes = setup(folder, last_layers=1)
    _, _, others = setup(folder, r=2, target_modules=["q_proj", "v_proj"])
    mixed = [probes[0], Probe("sky", 0, others[1].settings, others[1].weights)]
    blocks = all_blocks(lm, rows, mixed)
    (tmp_path / "a").mkdir()
    mixed[1].save(tmp_path / "a")
    expected = plain_loop(folder, tmp_path / "a", rows["sky"])
    expected = np.concatenate(
        [lp[np.arange(len(lp)), labels_of(r)] for lp, r in zip(expected, rows["sky"], strict=True)]
    )
    np.testing.assert_allclose(blocks[mixed[1].name, "sky"].logp, expected, atol=1e-4)
    np.testing.assert_array_equal(
        blocks[probes[0].name, "sky"].logp, all_blocks(lm, rows, probes)[probes[0].name, "sky"].logp
    )


def test_out_of_memory_halves_the_batch_and_is_told(model_folders, monkeypatch):
    lm, rows, probes = setup(model_folders["llama"], last_layers=2)
    expected = all_blocks(lm, rows, probes)
    run_short_of_memory(monkeypatch, 1)
    heard = Heard()
    names = {name: [p.name for p in probes] for name in rows}
    for name, blocks in score_sets(Engine.of(lm), rows, probes, names, progress=heard):
        for probe, _ in blocks:
            np.testing.assert_allclose(blocks[probe, name].logp, expected[probe, name].logp, atol=1e-4)
    assert any("out of memory with 2 rows in a batch" in sentence for sentence in heard.said)
