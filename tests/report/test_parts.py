"""Figures and tables of a finished run, and the page's way out of trouble."""

import builtins
import importlib.util
import json
import shutil
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from support.finished import finished_run

pytest.importorskip("plotly")
pytest.importorskip("torch")

from taskpgm import UserError, load_run, plot
from taskpgm.cli.report import report_line
from taskpgm.mixture.affinity import given_affinity
from taskpgm.report import build, history, sides
from taskpgm.report.field import Field, correlation
from taskpgm.report.material import Material


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("run") / "one", n=5, targets=2, jsd=True)


def test_frames_are_the_arrays(folder):
    run = load_run(folder)
    assert run.mixture.frame()["weight"].tolist() == run.mixture.weights.tolist()
    gains = run.gains.frame().pivot(index="task", columns="set", values="gain")
    G = run.affinity.matrices["G"]
    np.testing.assert_array_equal(gains.loc[list(run.affinity.tasks), list(run.affinity.sets)].to_numpy(), G)
    pairs = run.affinity.frame().pivot(index="task", columns="set", values="jsd")
    np.testing.assert_array_equal(
        pairs.loc[list(run.affinity.tasks), list(run.affinity.tasks)], run.affinity.matrices["jsd"]
    )


def test_frames_without_pandas_are_lists(folder, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pandas" else found(name))
    run = load_run(folder)
    assert run.mixture.frame()["weight"] == run.mixture.weights.tolist()
    assert run.gains.frame()["gain"] == run.affinity.matrices["G"].ravel().tolist()
    with pytest.raises(UserError, match="was given"):
        given_affinity(np.eye(2)).gains.frame()


def test_edges_are_beyond_two_standard_errors(folder):
    affinity = load_run(folder).affinity
    edges, unsure = Field(affinity).edges
    G, error = affinity.matrices["G"], affinity.errors["G"]
    n = len(affinity.tasks)
    hurt = {(i, j) for i in range(n) for j in range(n) if i != j and G[i, j] < -2 * error[i, j]}
    assert {(e.first, e.second) for e in edges if e.kind == "interfering"} == hurt
    replicates = np.array([correlation(S) for S in affinity.without])
    B = len(replicates)
    spread = np.sqrt((B - 1) / B * ((replicates - replicates.mean(axis=0)) ** 2).sum(axis=0))
    alike = {
        (i, j) for i in range(n) for j in range(i + 1, n) if correlation(affinity.S)[i, j] > max(2 * spread[i, j], 0)
    }
    assert {(e.first, e.second) for e in edges if e.kind == "redundant"} == alike
    positive = sum(correlation(affinity.S)[i, j] > 0 for i in range(n) for j in range(i + 1, n))
    negative = sum(G[i, j] < 0 for i in range(n) for j in range(n) if i != j)
    assert len(edges) + unsure == positive + negative


def test_correlation_is_that_of_features():
    """S = A Aᵀ: the correlation of rows of A after their mean over tasks is taken away."""
    A = np.random.default_rng(0).normal(size=(6, 9))
    centred = A - A.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(correlation(A @ A.T), unit @ unit.T, atol=1e-12)


def test_margins_add_up_to_zero(folder):
    from taskpgm.report.reasons import _parts

    explanation = Material(load_run(folder)).explanation
    for margin in explanation.margins:
        assert sum(value for _, value in _parts(margin, explanation.nu)) == pytest.approx(0, abs=1e-6)


def test_curves_that_are_flat_or_explode_are_named():
    falling, flat, exploding = [3, 2, 1.5, 1.2, 1.1], [2.0] * 8, [2, 2, 3, 5, 9]
    assert [history.flat(c) for c in (falling, flat)] == [False, True]
    assert [history.exploding(c) for c in (falling, flat, exploding, [1, float("nan"), 1])] == [
        False,
        False,
        True,
        True,
    ]


def test_a_run_beside_another_says_what_differs(folder, tmp_path):
    other = tmp_path / "two"
    shutil.copytree(folder, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["settings"]["budget"]["max_epochs"] = 2.0
    (other / "manifest.json").write_text(json.dumps(manifest))
    shares, gains, settings = sides.sections(Material(load_run(folder)), Material(load_run(other)), ("one", "two"))
    assert shares.sentences[0].startswith("0% of the budget")
    assert "correlate by 1.00" in gains.sentences[0]
    assert settings.tables[0].rows == [["budget.max_epochs", "4.0", "2.0"]]
    assert "one beside two" in build.write_report(folder, other).read_text(encoding="utf-8")


def test_a_mixture_of_other_settings_is_not_explained(folder, tmp_path):
    other = tmp_path / "old"
    shutil.copytree(folder, other)
    mixture = json.loads((other / "mixture.json").read_text())
    mixture["energy"]["value"] += 0.1
    (other / "mixture.json").write_text(json.dumps(mixture))
    sections = build.sections(Material(load_run(other)))
    assert "another version made it" in sections[3].sentences[0]
    assert sections[0].pictures


def test_a_failure_to_draw_is_a_sentence(folder, tmp_path, monkeypatch):
    assert "no report: " in report_line(tmp_path / "nothing")
    monkeypatch.setattr(build, "write_report", lambda out: 1 / 0)
    assert "ZeroDivisionError" in report_line(folder)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "plotly" else found(name))
    assert "pip install 'taskpgm[report]'" in report_line(folder)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium: apt-get install chromium")
def test_figures_are_written_as_svg(folder, tmp_path):
    pytest.importorskip("kaleido")
    paths = build.write_figures(folder, tmp_path / "figures")
    assert {"shares-picture.svg", "graph.svg", "matrix.svg"} <= {path.name for path in paths}
    for path in paths:
        assert ET.parse(path).getroot().tag.endswith("svg")


def test_figures_without_kaleido_say_what_to_install(folder, tmp_path, monkeypatch):
    kept = builtins.__import__

    def without(name, *rest, **more):
        if name == "kaleido":
            raise ModuleNotFoundError("kaleido")
        return kept(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "kaleido", raising=False)
    with pytest.raises(UserError, match="need kaleido"):
        build.write_figures(folder, tmp_path)


def test_figures_without_a_browser_say_what_to_install(folder, tmp_path, monkeypatch):
    import plotly.io

    pytest.importorskip("kaleido")

    def no_browser(*_):
        raise RuntimeError("Kaleido requires Google Chrome")

    monkeypatch.setattr(plotly.io, "write_images", no_browser)
    with pytest.raises(UserError, match="Chrome or Chromium"):
        build.write_figures(folder, tmp_path)


def test_figures_are_plotly_s(folder):
    run = load_run(folder)
    assert [type(make(run)).__name__ for make in (plot.graph, plot.matrix, plot.shares, plot.gains)] == ["Figure"] * 4
