"""How long a report takes to make and to open: synthetic finished runs of 14 and 316 tasks, in Chromium.

    OMP_NUM_THREADS=1 python benchmarks/page.py [--tries 5] [--tasks 14 316]

From the start of navigation to the first text on the screen, to the figures that are on the screen, and to every
figure, also those further down; the page draws these while the reader does nothing. Medians, each try in a fresh
browser. Prints Markdown.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.finished import finished_run

from taskpgm.report.build import write_report

# Asked at every frame, by the browser itself: that costs the page less than asking from outside.
WATCH = """
const shown = () => [...document.querySelectorAll('.plot')].filter(one => {
  const box = one.getBoundingClientRect();
  return box.top < innerHeight && box.bottom > 0;
});
const look = () => {
  const found = window.found ??= {};
  const ready = document.readyState !== 'loading' && shown().length;
  if (!found.opened && ready && shown().every(one => one.querySelector('svg.main-svg')))
    requestAnimationFrame(() => found.opened = performance.now());
  if (document.documentElement?.dataset.drawn === 'all') found.all = performance.now();
  else requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""
TEXT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def opened(path):
    """Seconds to the first text, to the figures on the screen, to all, in a browser of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.add_init_script(WATCH)
        page.goto(path.as_uri(), wait_until="commit")
        page.wait_for_selector("html[data-drawn=all]", state="attached", timeout=120_000)
        page.wait_for_function("() => window.found.opened && window.found.all")
        found = [page.evaluate(what) / 1000 for what in (TEXT, "window.found.opened", "window.found.all")]
        browser.close()
    return found


def row(folder, n, tries):
    run = finished_run(folder / str(n), n=n, targets=6, seeds=2, contexts=2, compared=True)
    start = time.perf_counter()
    path = write_report(run)
    made = time.perf_counter() - start
    times = [statistics.median(one) for one in zip(*(opened(path) for _ in range(tries)), strict=True)]
    cells = " | ".join(f"{seconds:.2f} s" for seconds in times)
    return f"| {n} | {made:.1f} s | {path.stat().st_size / 1e6:.1f} MB | {cells} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--tasks", type=int, nargs="+", default=[14, 316])
    options = parser.parse_args()
    print("| tasks | to make | page | first text | figures on the screen | every figure |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for n in options.tasks:
            print(row(Path(folder), n, options.tries), flush=True)


if __name__ == "__main__":
    main()
