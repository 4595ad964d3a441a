"""The page in a real browser: it draws, works, keeps to itself, and says what the files say."""

import csv
import io
import json
import re
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
from taskpgm.report.field import Field  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--no-first-run"]
SECTIONS = ["shares", "relations", "gains", "reasons", "choices", "rows", "history", "outcome"]
WINDOW, DRAWN = {"width": 1280, "height": 900}, "html[data-drawn=all]"
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
    """Opens a report, each once: page, console errors, requests."""

    @cache
    def of(name: str):
        page, errors, requests = browser.new_page(viewport=WINDOW, color_scheme="light"), [], []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(reports[name].as_uri())
        page.wait_for_selector(DRAWN, state="attached", timeout=60_000)
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


def test_the_slider_leaves_the_strongest_edges(opened, reports):
    page, *_ = opened("fourteen")
    shown = "document.getElementById('graph')._fullData.filter(t => t.visible === true).length"
    page.fill("#graph-figure input[type=range]", "0")
    few = page.evaluate(shown)
    page.focus("#graph-figure input[type=range]")
    for _ in range(9):
        page.keyboard.press("ArrowRight")
    run = load_run(reports["fourteen"].parent)
    kinds = [edge.kind for edge in Field(run.affinity).edges[0]]
    most = max(kinds.count(kind) for kind in set(kinds))
    assert page.inner_text("#graph-figure output") == str(most)
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
            page.wait_for_selector(DRAWN, state="attached", timeout=60_000)
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
    page, *_ = opened(name)
    page.set_viewport_size({"width": 380, "height": 900})
    if name == "two":  # opened on one, not turned into one
        page.reload()
        page.wait_for_selector(DRAWN, state="attached", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    page.locator("#shares-picture").scroll_into_view_if_needed()  # figures follow when they are seen
    page.wait_for_function("() => document.getElementById('shares-picture')._fullLayout.width <= 380")
    assert page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 14
    page.set_viewport_size(WINDOW)


# All rules once; what depends on colours in the dark too.
@pytest.mark.parametrize(("scheme", "options"), [("light", {}), ("dark", {"runOnly": ["color-contrast"]})])
def test_axe_finds_no_serious_violation(opened, scheme, options):
    import axe_core_python

    page, *_ = opened("fourteen")
    page.emulate_media(color_scheme=scheme)
    page.evaluate((Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("options => axe.run({ resultTypes: ['violations'], ...options })", options)["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in serious] == []


def test_dark_light_and_print(opened):
    page, *_ = opened("fourteen")
    page.emulate_media(color_scheme="dark")
    page.locator("#shares-picture").scroll_into_view_if_needed()
    colour = "document.getElementById('shares-picture')._fullLayout.font.color"
    dark, light = "#e6edf3", "#1f2328"
    page.wait_for_function(f"() => {colour} === '{dark}'")
    page.evaluate("document.getElementById('theme').click()")
    page.wait_for_function(f"() => {colour} === '{light}'")
    page.click("#theme")  # which scrolls up
    page.wait_for_function(f"() => {colour} === '{dark}'")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    looks = "[...document.querySelectorAll('.plot')].map(d => [d._fullLayout.font.color, d._fullLayout.width <= 704])"
    assert page.evaluate(looks) == [[light, True]] * page.locator(".plot").count()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_function(f"() => {colour} === '{dark}'")
    assert page.pdf()[:4] == b"%PDF"


def test_printing_draws_what_was_not_yet_seen(browser, reports):
    page = browser.new_page(viewport=WINDOW)
    page.add_init_script("window.requestIdleCallback = () => 0")  # a reader who prints before the page was idle
    page.goto(reports["two"].as_uri())
    page.wait_for_selector("#shares-picture svg", state="attached")
    plots = page.locator(".plot").count()
    assert page.locator(".plot:has(svg)").count() < plots
    printed = f"() => dispatchEvent(new Event('beforeprint')) && document.querySelectorAll('.plot:has(svg)').length === {plots}"
    page.wait_for_function(printed)  # again until all data are unpacked, as the page asks for
    assert page.locator("#trouble").is_hidden()
    page.close()


def test_a_screen_reader_hears_names_and_data_instead_of_axis_labels(opened):
    page, *_ = opened("fourteen")
    heard = page.locator("#relations").aria_snapshot()
    assert '- heading "How do the tasks relate?" [level=2]' in heard
    assert '- combobox "Task (How do the tasks relate?)"' in heard
    assert '- slider "edges of each kind, strongest first, at most:' in heard
    assert '- group "Show"' in heard
    assert '- radio "gain G"' in heard
    pictures = [line for line in heard.splitlines() if re.search("- '?img", line)]
    assert [line.split('"')[1].split(" (chart")[0] for line in pictures] == page.locator(
        "#relations figcaption"
    ).all_inner_texts()
    assert not any(line.endswith(":") for line in pictures)  # nothing inside is read
    whole = page.locator("body").aria_snapshot()
    assert len(re.findall("- '?img", whole)) == page.locator(".plot").count()
    assert "graphics-document" not in whole
    for role in ("table", "img", "button", "link", "slider", "combobox", "article", "region"):
        assert not re.search(rf"- {role}(:| \[|$)", whole, re.M), f"{role} without a name"


def test_the_data_of_a_figure_unfold_as_a_table(opened, reports):
    page, *_ = opened("fourteen")
    page.click("#matrix-figure summary")
    page.wait_for_selector("#matrix-figure tr")
    shown = page.evaluate(
        "[...document.querySelectorAll('#matrix-figure tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    affinity = load_run(reports["fourteen"].parent).affinity
    at = [affinity.tasks.index(task) for task in shown[0][1:]]
    assert [row[0] for row in shown[1:]] == shown[0][1:]
    name = {"affinity S": "S", "gain G": "G"}[shown[0][0]]
    values = affinity.S if name == "S" else affinity.matrices["G"]
    np.testing.assert_allclose(np.array([row[1:] for row in shown[1:]], float), values[np.ix_(at, at)], rtol=1e-3)
    page.click("#matrix-figure summary")
