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
from typer.testing import CliRunner

pytest.importorskip("plotly")
pytest.importorskip("torch")

from taskpgm import UserError, load_run, plot
from taskpgm.cli.main import app
from taskpgm.cli.mixtures import relation_lines
from taskpgm.cli.report import report_line
from taskpgm.mixture.affinity import given_affinity
from taskpgm.pipeline.run import balance_curve
from taskpgm.report import build, choices, history, outcome, page, reasons, relations, shares, sides, style
from taskpgm.report.field import Field, correlation
from taskpgm.report.gains import _overall, _sentences
from taskpgm.report.material import Material
from taskpgm.report.parts import Table, joined


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


def test_names_are_shown_as_they_are(tmp_path):
    """Plotly knows no entity of quotes, and the page escapes its lines itself."""
    names = ["say \"a\" & 'b'", "<b>x", "plain"]
    material = Material(load_run(finished_run(tmp_path / "run", n=3, targets=2, names=names)))
    shown = set(shares.figure(material).layout.yaxis.ticktext)
    assert shown == {"say \"a\" &amp; 'b'", "&lt;b&gt;x", "plain"}
    assert not [line for line in choices.section(material).sentences if "&lt;" in line or "&amp;" in line]


def test_small_shares_are_told_apart_on_the_axis(folder):
    """0.5 % and 1 % are not both "1%"; what a figure leaves out of many tasks is said."""
    axis = shares.figure(Material(load_run(folder))).layout.xaxis
    assert axis.tickformat == ".2~%"  # d3: up to two decimals, no zeros at their end


def test_many_tasks_are_said_to_be_the_first(tmp_path):
    section = shares.section(Material(load_run(finished_run(tmp_path / "run", n=70, targets=1))))
    assert section.pictures[0].title.endswith("the first 60 of 70 tasks, all in the CSV")


def test_bars_of_long_names_do_not_lie_on_each_other():
    alike = [f"as in {letter} with an end that is the same in both names" for letter in "ab"]
    assert len(set(reasons._labels(["utility", *alike, "prior"]))) == 4
    (label,) = reasons._labels([alike[0]])
    assert label.startswith("as in …")


def test_shares_of_rows_and_of_tokens_are_said_beside_the_share(folder):
    run = load_run(folder)
    section = shares.section(Material(run))
    table = next(one for one in section.tables if one.title == "All shares")
    found = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    hover = "".join(shares.figure(Material(run)).data[-1].customdata)
    rows, tokens = len(run.plan), sum(one.tokens for one in run.plan.tasks)
    for one in run.plan.tasks:
        assert found[one.name]["of rows"] == f"{one.count / rows:.2%}"
        assert found[one.name]["of response tokens"] == f"{one.tokens / tokens:.2%}"
        assert f"{one.count / rows:.1%} of the rows, {one.tokens / tokens:.1%} of the response tokens" in hover
    assert {"95% CI", "size"} <= set(table.header)


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
    assert {(e.first, e.second) for e in edges if e.kind == "alike"} == alike
    positive = sum(correlation(affinity.S)[i, j] > 0 for i in range(n) for j in range(i + 1, n))
    negative = sum(G[i, j] < 0 for i in range(n) for j in range(n) if i != j)
    assert len(edges) + unsure == positive + negative


@pytest.mark.parametrize("near", [0.3, 0.9])
def test_the_page_and_the_terminal_call_the_same_tasks_redundant(near):
    """Features of four tasks, the first two alike by so much: pairs are counted one by one."""
    A = np.random.default_rng(0).normal(size=(4, 400))
    A[1] = near * A[0] + np.sqrt(1 - near**2) * A[1]
    affinity = given_affinity(A @ A.T, tuple("abcd"))
    centred = A - A.mean(axis=0)
    count = sum(np.corrcoef(centred[[i, j]])[0, 1] >= 0.5 for i in range(4) for j in range(i))
    said, line = relations._redundant(Field(affinity)), relation_lines(affinity)[0]
    assert said.startswith(f"{count} redundant pair, of" if count else "No two tasks are redundant")
    assert line.startswith("redundant: a and b" if count else "no two tasks are redundant")


@pytest.mark.parametrize("span", [1.05, 1.4, 2, 3, 6, 30, 4000])
@pytest.mark.parametrize("low", [1, 1.6, 2.1, 16, 95])
def test_an_axis_in_powers_has_three_labels_or_is_a_plain_one(low, span):
    axis = style.log_ticks(low, low * span)
    inside = [value for value in axis.get("tickvals", ()) if low <= value <= low * span]
    assert len(inside) >= 3 or axis == {}
    assert axis or span < 5


def test_words_of_a_table_stand_at_their_left_and_numbers_at_their_right():
    table = Table("", ["set", "other", "rows", "change"], [["a", "b", "1,024", "+0.5"], ["c", "", "7", "-1 ± 2 %"]])
    assert table.words == {0, 1}


def test_names_beside_a_matrix_have_room():
    for n in (14, 44, 45, 60, 89, 120):
        field = Field(given_affinity(np.eye(n) + 0.1, tuple(f"t{i}" for i in range(n))))
        figure = relations.matrix(field)
        assert len(figure.layout.yaxis2.ticktext) * 13 < 0.84 * (figure.layout.height - 50 - 120)


def test_correlation_is_that_of_features():
    """S = A Aᵀ: the correlation of rows of A after their mean over tasks is taken away."""
    A = np.random.default_rng(0).normal(size=(6, 9))
    centred = A - A.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(correlation(A @ A.T), unit @ unit.T, atol=1e-12)


def test_margins_add_up_to_zero(folder):
    explanation = Material(load_run(folder)).explanation
    figure = reasons.margin_figure(explanation.margins, explanation.nu, "nats")
    for margin, bars in zip(explanation.margins, figure.data, strict=True):
        values = [value for _, value in reasons._parts(margin, explanation.nu)]
        assert sum(values) == pytest.approx(0, abs=1e-6)
        ends = [base + y for base, y in zip(bars.base, bars.y, strict=True)]
        np.testing.assert_allclose(bars.base, [0, *ends[:-1]], atol=1e-12)
        assert ends[-1] == pytest.approx(0, abs=1e-6)


def test_the_balance_s_curve_is_the_probes_loss_at_each_mixture(folder):
    run = load_run(folder)
    picture = next(p for p in build.sections(Material(run))[4].pictures if p.name == "balance")
    points = balance_curve(run.pool, run.scores, run.config, picture.table["balance"]).points
    lines = {trace.name: list(trace.y) for trace in picture.figure.data}
    at = [[_loss(run.scores, list(one.weights.values()), j) for j in range(7)] for one in points]
    start = [_loss(run.scores, [0.2] * 5, j) for j in range(7)]
    targets, tasks = (np.mean([row[part] for row in at], axis=1) for part in (slice(5, 7), slice(0, 5)))
    np.testing.assert_allclose(lines["targets"], targets / np.mean(start[5:]) - 1)
    np.testing.assert_allclose(lines["tasks"], tasks / np.mean(start[:5]) - 1)
    np.testing.assert_allclose(lines["worst task"], np.max(np.divide(at, start)[:, :5], axis=1) - 1)
    here = picture.table["balance"].index(run.config.energy.balance)
    assert points[here].weights == pytest.approx(run.mixture.shares, abs=1e-6)
    lines = " ".join(build.sections(Material(run))[4].sentences)
    held = [one["name"] for one in Material(run).energy.settings["limits"] if one["price"] > 0]
    assert f"in this mixture {joined(held) or 'no task'} would lose more without" in lines


def _loss(scores, weights, j):
    """Mean over contexts, then over their tokens, of −log Σ_i p_i P_i."""
    own = scores.context_set[scores.context] == j
    logp, context = scores.logp[1:, own], scores.context[own]
    loss = -np.log(np.array(weights) @ np.exp(logp))
    return np.mean([loss[context == c].mean() for c in np.unique(context)])


def test_few_that_help_are_said_to_be_few(folder):
    material = Material(load_run(folder))
    weights = np.array([0.5, 0.5])
    gains = np.array([[1.0, 1], [-1, -1], [-2, -1], [-1, 0], [-3, -2]])
    material.target_weights = np.r_[np.zeros(5), weights]
    sets = material.affinity.sets[5:]
    assert _overall(material, gains, sets).startswith("Only 1 of 5 tasks helps the targets on the whole; task 0 helps")
    assert _overall(material, -gains, sets).startswith("4 of 5 tasks help the targets on the whole; task 4 helps")
    harm = -np.abs(gains) - np.arange(5)[:, None]
    assert _overall(material, harm, sets).startswith(
        "No task helps the targets on the whole; task 0 hurts least, -1.000"
    )


def test_what_hurts_is_not_said_to_help(folder):
    material = Material(load_run(folder))
    gains = np.array([[0.2, -1.0], [-0.1, -2.0], [0.1, -3.0], [0.0, -0.5], [0.0, -2.5]])
    _, first, second = _sentences(material, gains, None, material.affinity.sets[5:])
    assert first == "target 0: helped most by task 0 (+0.20), hurt most by task 1 (-0.10), in nats a token."
    assert second == "target 1: hurt most by task 2 (-3.00), in nats a token."


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
    manifest["settings"]["contexts"]["validation"] = 16
    (other / "manifest.json").write_text(json.dumps(manifest))
    shares, gains, settings = sides.sections(Material(load_run(folder)), Material(load_run(other)), ("one", "two"))
    assert shares.sentences[0].startswith("0% of the budget")
    assert "correlate by 1.00" in gains.sentences[0]
    assert settings.tables[0].rows == [["contexts.validation", "32", "16"]]
    assert "one beside two" in build.write_report(folder, other).read_text(encoding="utf-8")


@pytest.mark.parametrize("others", [0, 1])
def test_a_page_is_written_where_asked_and_the_run_is_left_alone(others, folder, tmp_path):
    runs = [folder, shutil.copytree(folder, tmp_path / "two")][: 1 + others]
    usual = build.write_report(*runs)
    expected = usual.read_bytes()
    usual.unlink()
    before = sorted(folder.rglob("*"))
    arguments = [*map(str, runs), "--out", str(tmp_path / "new" / "page.html")]
    assert CliRunner().invoke(app, ["report", *arguments]).exit_code == 0
    assert (tmp_path / "new" / "page.html").read_bytes() == expected
    assert sorted(folder.rglob("*")) == before


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
def test_figures_of_two_runs_are_all_written(folder, tmp_path, monkeypatch):
    pytest.importorskip("kaleido")
    some = build.sections(Material(load_run(folder)))[:1]
    monkeypatch.setattr(build, "sections", lambda _: some)
    other = shutil.copytree(folder, tmp_path / "two" / "one")
    result = CliRunner().invoke(app, ["report", str(folder), str(other), "--figures", str(tmp_path / "f")])
    assert result.exit_code == 0, result.output
    found = {str(path.relative_to(tmp_path / "f")) for path in (tmp_path / "f").rglob("*.svg")}
    assert found == {"both-shares.svg", "both-gains.svg", "one-1/shares-picture.svg", "one-2/shares-picture.svg"}
    assert all(name in result.output for name in found)


@pytest.mark.parametrize(("loss", "words"), [("per_row", "means over rows"), ("per_token", "means over tokens")])
def test_the_loss_that_chose_the_mixture_is_named(loss, words, tmp_path):
    run = load_run(finished_run(tmp_path / "run", n=3, targets=1, energy={"loss": loss}))
    assert words in build._lead(run)
    assert f"energy.loss: {loss}" in build._lead(run)


def test_plotly_s_bundle_is_of_the_version_that_plotly_brings():
    from plotly.offline import get_plotlyjs_version

    assert f"v{get_plotlyjs_version()}" in page._asset(page.PLOTLY)[:200]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium: apt-get install chromium")
def test_figures_are_written_as_png(folder, tmp_path, monkeypatch):
    pytest.importorskip("kaleido")
    some = build.sections(Material(load_run(folder)))[:1]
    monkeypatch.setattr(build, "sections", lambda _: some)
    (path,) = build.write_figures(folder, tmp_path, "png")
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    size = [int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")]
    assert size == [2000, 2 * some[0].pictures[0].figure.layout.height]


def test_figures_as_files_have_no_controls():
    import plotly.graph_objects as go

    figure = go.Figure(layout={"sliders": [{"active": 1}], "updatemenus": [{"active": 0}]})
    assert not {"sliders", "updatemenus"} & build._still(figure).to_dict()["layout"].keys()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium: apt-get install chromium")
def test_figures_are_written_as_svg(folder, tmp_path):
    pytest.importorskip("kaleido")
    paths = build.write_figures(folder, tmp_path / "figures")
    assert {"shares-picture.svg", "graph.svg", "matrix.svg"} <= {path.name for path in paths}
    height = {p.name: p.figure.layout.height for s in build.sections(Material(load_run(folder))) for p in s.pictures}
    for path in paths:
        root = ET.parse(path).getroot()
        assert root.tag.endswith("svg")
        assert [float(root.get(side)) for side in ("width", "height")] == [1000, height[path.stem] or 500]


def test_a_format_without_figures_is_not_ignored(folder):
    result = CliRunner().invoke(app, ["report", str(folder), "--format", "png"])
    assert isinstance(result.exception, UserError)
    assert "add --figures" in str(result.exception)


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

    def no_browser(*_, **__):
        raise RuntimeError("Kaleido requires Google Chrome")

    monkeypatch.setattr(plotly.io, "write_images", no_browser)
    with pytest.raises(UserError, match="Chrome or Chromium"):
        build.write_figures(folder, tmp_path)


def test_figures_are_plotly_s(folder):
    run = load_run(folder)
    assert [type(make(run)).__name__ for make in (plot.graph, plot.matrix, plot.shares, plot.gains)] == ["Figure"] * 4


def test_a_comparison_of_another_mixture_is_said_to_be(tmp_path):
    folder = finished_run(tmp_path / "run", n=3, targets=1, compared=True)
    own = load_run(folder).mixture.shares
    path, said = folder / "comparison.json", []
    names = list(own)
    moved = own | {names[0]: own[names[0]] - 0.02, names[1]: own[names[1]] + 0.02}
    for weights in ({}, own, moved):  # earlier versions did not write any
        data = json.loads(path.read_text())
        for one in data["measurements"]:
            one["weights"] = weights if one["mixture"] == "taskpgm" else dict.fromkeys(own, 1 / 3)
        path.write_text(json.dumps(data))
        said.append(outcome.section(Material(load_run(folder))).sentences[0])
    assert said[0] == said[1]
    assert "another mixture" in said[2]
    assert "spends 2.0% of the budget otherwise" in said[2]
