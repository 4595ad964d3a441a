"""docs/report-light.png and docs/report-dark.png: two views of a finished demo's page, in Chromium.

python benchmarks/report_pictures.py runs/demo
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parents[1] / "docs"


def shoot(page: Path) -> None:
    """The first question in light, how tasks relate in dark."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for name, scheme, height, at in (("light", "light", 980, None), ("dark", "dark", 860, "#relations")):
            opened = browser.new_page(viewport={"width": 1000, "height": height}, color_scheme=scheme)
            opened.goto(page.resolve().as_uri())
            if at:
                opened.locator(at).evaluate("element => element.scrollIntoView()")
            opened.wait_for_timeout(3000)  # figures are drawn as they come into view
            opened.screenshot(path=DOCS / f"report-{name}.png")
        browser.close()


if __name__ == "__main__":
    shoot(Path(sys.argv[1]) / "report.html")
