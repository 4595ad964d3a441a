"""How long a report takes to make and to open: synthetic finished runs of 14 and 316 tasks, in Chromium.

    OMP_NUM_THREADS=1 python benchmarks/page.py [--tries 3] [--tasks 14 316]

From the start of navigation to the first figures on the screen, and to every figure drawn, also those further down; the
best of the tries, each in a fresh browser. Prints Markdown.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.finished import finished_run

from taskpgm.report.build import write_report

NOW = "new Promise(done => requestAnimationFrame(() => done(performance.now())))"
FIRST, ALL = ".plot svg.main-svg", "html[data-drawn=all]"


def opened(path):
    """(seconds to the first figure, seconds to all) in a browser of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(path.as_uri(), wait_until="commit")
        found = []
        for selector in (FIRST, ALL):
            page.wait_for_selector(selector, state="attached", timeout=120_000)
            found.append(page.evaluate(NOW) / 1000)
        browser.close()
    return found


def row(folder, n, tries):
    run = finished_run(folder / str(n), n=n, targets=6, seeds=2, contexts=2, compared=True)
    start = time.perf_counter()
    path = write_report(run)
    made = time.perf_counter() - start
    first, drawn = (min(times) for times in zip(*(opened(path) for _ in range(tries)), strict=True))
    return f"| {n} | {made:.1f} s | {path.stat().st_size / 1e6:.1f} MB | {first:.2f} s | {drawn:.2f} s |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--tasks", type=int, nargs="+", default=[14, 316])
    options = parser.parse_args()
    print("| tasks | to make | page | first figure | every figure |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for n in options.tasks:
            print(row(Path(folder), n, options.tries), flush=True)


if __name__ == "__main__":
    main()
