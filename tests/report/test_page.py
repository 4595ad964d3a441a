"""The page in a real browser: it draws, works, keeps to itself, and says what the files say."""

import csv
import io
import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from support.finished import HOSTILE, finished_run

pytest.importorskip("plotly")
pytest.importorskip("torch")
sync_api = pytest.importorskip("playwright.sync_api")

from taskpgm import load_run  # noqa: E402
from taskpgm.report.build import write_report  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--no-first-run"]
SECTIONS = ["shares", "relations", "gains", "reasons", "choices", "rows", "history", "outcome"]
SHAPES = {
    "two": {"n": 2, "targets": 0, "names": [HOSTILE, "plain"]},
    "fourteen": {"n": 14, "targets": 4, "seeds": 2, "compared": True, "jsd": True},
    "many": {
        "n": 316,
        "targets": 6,
        "contexts": 2,
        "seeds": 2,
        "compared": True,
        "jsd": True,
        "energy": {"kind": "gain"},
    },
}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: write_report(finished_run(folder / name, **shape)) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def opened(browser, reports):
    """Opens a report, once for each way to look at it: page, console errors, requests."""

    @cache
    def of(name: str, width: int = 1280, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page, errors, requests = context.new_page(), [], []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(reports[name].as_uri())
        page.wait_for_selector("html[data-drawn=all]", state="attached", timeout=60_000)
        return page, errors, requests

    return of


@pytest.mark.parametrize("name", SHAPES)
def test_every_section_draws_without_an_error_or_a_request(opened, reports, name):
    page, errors, requests = opened(name)
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.eval_on_selector_all("main > section", "all => all.map(one => one.id)") == SECTIONS
    plots = page.eval_on_selector_all(
        ".plot", "all => all.map(one => [one.id, one.querySelectorAll('svg.main-svg').length])"
    )
    assert len(plots) >= 8
    ids = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
    assert len(set(ids)) == len(ids)
    assert all(count for _, count in plots)
    assert all(
        page.eval_on_selector_all("main > section", "all => all.map(one => one.querySelector('p').textContent.length)")
    )
    assert reports[name].stat().st_size < 6e6
    assert "{{" not in page.inner_text("main")


def test_what_is_missing_is_said_with_the_command_that_measures_it(opened):
    page, *_ = opened("two")
    assert "taskpgm compare" in page.inner_text("#outcome")
    assert "No targets were given" in page.inner_text("#gains")
    assert "probes.seeds: 2" in page.inner_text("#choices")


def test_of_many_tasks_the_heaviest_are_left_out(opened, reports):
    page, *_ = opened("many")
    run = load_run(reports["many"].parent)
    rows = _saved(page, "dropped")[1:]
    heaviest = [run.mixture.tasks[i] for i in np.argsort(-run.mixture.weights, kind="stable")[:16]]
    assert {row[0] for row in rows} == set(heaviest)
    terms = _saved(page, "margin")[1:]
    sums = {task: sum(float(row[2]) for row in terms if row[0] == task) for task in run.mixture.tasks}
    np.testing.assert_allclose(list(sums.values()), 0, atol=1e-5)
    assert "the 16 heaviest are left out" in page.inner_text("#reasons")


def test_text_from_data_does_not_run(opened):
    page, *_ = opened("two")
    assert page.evaluate("window.ran") is None
    assert HOSTILE in page.inner_text("#shares")
    assert "<img src=x" in page.inner_text("#reasons")
    assert page.eval_on_selector_all("img", "all => all.length") == 0
    policy = page.get_attribute("meta[http-equiv]", "content")
    assert "script-src 'sha256-" in policy
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.split("style-src")[0]
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.ran = 3' }))"
    )
    assert page.evaluate("window.ran") is None


def test_numbers_are_those_of_the_files(opened, reports):
    page, *_ = opened("fourteen")
    run = load_run(reports["fourteen"].parent)
    order = np.argsort(-run.mixture.weights, kind="stable")
    drawn = page.evaluate("[...document.getElementById('shares-picture')._fullData.at(-1).x]")
    np.testing.assert_allclose(drawn, run.mixture.weights[order])
    stored = json.loads((run.path / "mixture.json").read_text())["tasks"]
    assert drawn == pytest.approx(sorted((task["weight"] for task in stored), reverse=True))
    found = {}
    for label in page.locator("#matrix-figure label").all():
        label.locator("input").check()
        name, names, z, error = page.evaluate(
            "(t => [t.name, [...t.x], t.z.map(row => [...row]), t.customdata.map(row => [...row])])"
            "(document.getElementById('matrix')._fullData.find(t => t.type === 'heatmap' && t.visible === true))"
        )
        found[name] = names, np.array(z), np.array(error)
    with np.load(run.path / "affinity.npz") as arrays:
        for name, key in {"affinity S": "S", "gain G": "G", "PMI, own probe": "pmi_own", "JSD (nats)": "jsd"}.items():
            names, z, error = found[name]
            at = [run.mixture.tasks.index(task) for task in names]
            np.testing.assert_allclose(z, arrays[key][np.ix_(at, at)])
            np.testing.assert_allclose(error, arrays["ratio_se" if key == "S" else f"{key}_se"][np.ix_(at, at)])
        gains = page.evaluate(
            "document.getElementById('gains-picture')._fullData.map(t => [[...t.y], t.z.map(r => [...r])])"
        )
        tasks, z = gains[0]
        at = [run.mixture.tasks.index(task) for task in tasks]
        np.testing.assert_allclose(z, arrays["G"][at][:, 14:])
    difference = next(
        d for d in run.comparison["differences"] if d["other"] == "uniform" and d["quantity"] == "targets"
    )
    assert page.evaluate("document.getElementById('differences')._fullData[0].x[0]") == pytest.approx(
        difference["estimate"]["mean"]
    )


def test_the_slider_leaves_the_strongest_edges(opened):
    page, *_ = opened("fourteen")
    shown = "document.getElementById('graph')._fullData.filter(t => t.visible === true).length"
    page.fill("#graph-figure input[type=range]", "0")
    few = page.evaluate(shown)
    page.focus("#graph-figure input[type=range]")
    for _ in range(9):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("#graph-figure output") == "100 %"
    assert page.evaluate(shown) > few


def test_the_switch_shows_another_matrix_and_its_data(opened):
    page, *_ = opened("fourteen")
    page.check("#matrix-figure label:has-text('gain G') input")
    assert (
        page.evaluate("document.getElementById('matrix')._fullData.filter(t => t.visible === true).map(t => t.name)")[0]
        == "gain G"
    )
    rows = _saved(page, "matrix")
    assert rows[0][0] == "gain G"
    assert len(rows) == 15


def test_a_click_on_a_task_shows_it(opened):
    page, *_ = opened("fourteen")
    page.locator("#graph").scroll_into_view_if_needed()
    places = page.evaluate(
        "(() => { const d = document.getElementById('graph'), t = d._fullData.at(-1), l = d._fullLayout, b = d.getBoundingClientRect();"
        " return [...t.x].map((x, i) => [b.left + l._size.l + l.xaxis.d2p(x), b.top + l._size.t + l.yaxis.d2p(t.y[i])]); })()"
    )
    page.mouse.move(*places[5])
    page.wait_for_timeout(200)  # a point is found by hovering
    page.mouse.click(*places[5])
    page.wait_for_selector("#relations .panel[data-task='task 5']", state="visible")
    assert page.locator("#reasons .panel[data-task='task 5']").is_visible()
    assert page.evaluate(
        "document.getElementById('margin')._fullData.filter(t => t.visible === true).map(t => t.name)"
    ) == ["task 5"]
    said = page.inner_text("#relations .panel[data-task='task 5']").lower()
    assert "its own rows" in said
    assert "task 5: " in said
    page.select_option("#reasons select.task", "task 7")
    assert page.locator("#relations .panel[data-task='task 7']").is_visible()
    assert not page.locator("#relations .panel[data-task='task 5']").is_visible()


def test_every_figure_is_saved_as_csv(opened, reports):
    page, *_ = opened("fourteen")
    names = page.eval_on_selector_all(".plot", "all => all.map(one => one.id)")
    saved = {}
    for number, name in enumerate(names):
        if number % 8 == 7:  # Chromium asks before a page saves an eleventh file
            page.reload()
            page.wait_for_selector("html[data-drawn=all]", state="attached", timeout=60_000)
        saved[name] = _saved(page, name)
    assert all(len(rows) > 1 and len({len(row) for row in rows}) == 1 for rows in saved.values())
    shares = {row[0]: float(row[1]) for row in saved["shares-picture"][1:]}
    assert shares == pytest.approx(load_run(reports["fourteen"].parent).mixture.shares)


def _saved(page, name: str) -> list[list[str]]:
    with page.expect_download() as download:
        page.click(f"#{name}-figure a.csv")
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    return list(csv.reader(io.StringIO(text)))


@pytest.mark.parametrize("name", SHAPES)
def test_nothing_scrolls_sideways_on_a_phone(opened, name):
    page, *_ = opened(name, width=380)
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    assert page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 14


# All rules once; what depends on colours in the dark too.
@pytest.mark.parametrize(("scheme", "options"), [("light", {}), ("dark", {"runOnly": ["color-contrast"]})])
def test_axe_finds_no_serious_violation(opened, scheme, options):
    import axe_core_python

    page, *_ = opened("fourteen", scheme=scheme)
    page.evaluate((Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("options => axe.run({ resultTypes: ['violations'], ...options })", options)["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in serious] == []


def test_dark_light_and_print(opened):
    page, *_ = opened("fourteen", scheme="dark")
    colour = "document.getElementById('shares-picture')._fullLayout.font.color"
    dark = page.evaluate(colour)
    page.click("#theme")
    assert page.evaluate(colour) != dark
    page.click("#theme")
    assert page.evaluate(colour) == dark
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(colour) == dark
    assert page.pdf()[:4] == b"%PDF"
