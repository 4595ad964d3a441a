"""docs/demo.svg: what a finished demo printed, drawn by Rich.

python benchmarks/demo_picture.py runs/demo
"""

import io
import json
import sys
from pathlib import Path

from rich.console import Console

from taskpgm import load_run
from taskpgm.cli.mixtures import mixture_view


def draw(run: Path, picture: Path) -> None:
    """The mixture of the run as the terminal shows it, and where its files lie."""
    found = load_run(run)
    console = Console(record=True, width=108, file=io.StringIO(), force_terminal=True)
    data = json.loads((run / "mixture.json").read_text(encoding="utf-8"))
    console.print(mixture_view(data, found.affinity, doubts=found.doubts), crop=False)
    for line in (run / "mixture.json", f"{len(found.plan)} rows: {run}/train.jsonl", run / "report.html"):
        console.print(str(line), markup=False, highlight=False)
    console.save_svg(str(picture), title="taskpgm demo")


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(__file__).parents[1] / "docs" / "demo.svg")
