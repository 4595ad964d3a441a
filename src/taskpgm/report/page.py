"""The page: sections rendered by jinja2 into one file that needs no network and keeps a strict content policy.

Plotly's script and the figures lie in the file compressed. The page's own script unpacks them; scripts run by their
hashes and by nothing else, so text from data cannot run whatever it holds.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from taskpgm.files import atomic_file
from taskpgm.report.parts import Picture, Section

PLOTLY = "plotly-cartesian.min.js"  # Plotly's bundle of plane figures, as its npm package has it


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page to `path`."""
    pictures = [picture for section in sections for picture in section.pictures]
    script, style = _asset("page.js"), _asset("page.css")
    plotly = _asset(PLOTLY)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(_asset("page.html.j2"))
    text = template.render(
        title=title,
        lead=lead,
        sections=sections,
        style=style,
        script=script,
        plotly=_packed(plotly),
        data={picture.name: _packed(_data(picture)) for picture in pictures},
        policy=_policy(script, plotly),
    )
    with atomic_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def _policy(*scripts: str) -> str:
    """Scripts by their hashes, styles of this file, pictures that Plotly draws from data, and no request at all."""
    allowed = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    # Plotly sets styles on what it draws, and its heat maps are images made in the page.
    rest = "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"


def _data(picture: Picture) -> str:
    """JSON of a figure and its table."""
    found = {
        "figure": json.loads(picture.figure.to_json()),
        "table": picture.table,
        "names": picture.names,
        "title": picture.title,
        "follows": picture.follows,
    }
    return json.dumps(found, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else list(value)


@cache
def _packed(text: str) -> str:
    """Gzip of the text in base64."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _asset(name: str) -> str:
    return (files("taskpgm.report") / name).read_text(encoding="utf-8")
