"""docs/results.svg: the default against uniform, of the table of all settings in docs/trainings.md, drawn by Plotly.

python benchmarks/results_picture.py
"""

import re
from pathlib import Path

import plotly.graph_objects as go

DOCS = Path(__file__).parents[1] / "docs"
NUMBER = r"[−+]?\d+\.\d"
CELL = re.compile(rf"\**({NUMBER})\** \(({NUMBER}) to ({NUMBER})\)")
# The table's first two rows; colours that colour-blind readers tell apart (Okabe and Ito).
ROWS = {"on the targets": "#0072B2", "on the tasks": "#D55E00"}


def read_table(text: str) -> tuple[list[str], list[list[tuple[float, float, float]]]]:
    """Settings, and of every row that is drawn (difference, low, high) by setting, in percent."""
    table = [line for line in text.split("## All settings")[1].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (table[0], *table[2 : 2 + len(ROWS)])]
    numbers = [[CELL.fullmatch(cell) for cell in row[1:]] for row in cells[1:]]
    return cells[0][1:], [[_triple(match) for match in row] for row in numbers]


def _triple(match: re.Match[str] | None) -> tuple[float, float, float]:
    assert match, "a cell of the table that is no difference with its interval"
    value, low, high = (float(group.replace("−", "-")) for group in match.groups())
    return value, low, high


def draw(settings: list[str], rows: list[list[tuple[float, float, float]]]) -> go.Figure:
    """Points with their intervals, one line a setting."""
    figure = go.Figure()
    names = settings
    for (label, colour), values, symbol, lift in zip(
        ROWS.items(), rows, ("circle", "diamond"), (0.12, -0.12), strict=True
    ):
        x, low, high = (list(column) for column in zip(*values, strict=True))
        figure.add_scatter(
            x=x, y=[len(names) - k + lift for k in range(len(names))], mode="markers", name=label,
            marker={"color": colour, "size": 10, "symbol": symbol},
            error_x={"array": [h - v for h, v in zip(high, x, strict=True)], "symmetric": False,
                     "arrayminus": [v - w for v, w in zip(x, low, strict=True)], "color": colour},
        )  # fmt: skip
    figure.add_vline(0, line={"color": "#777777", "dash": "dot"})
    figure.update_yaxes(tickvals=[len(names) - k for k in range(len(names))], ticktext=names)
    figure.update_xaxes(
        title="loss of the default against uniform: difference in %, 95 % interval; left is better",
        ticksuffix=" %",
        zeroline=True,
        zerolinecolor="#777777",
    )
    figure.update_layout(
        template="simple_white", width=760, height=420, font={"size": 14}, margin={"l": 10, "r": 20, "t": 10, "b": 10},
        legend={"orientation": "h", "y": 1.12},
    )  # fmt: skip
    return figure


if __name__ == "__main__":
    found = read_table((DOCS / "trainings.md").read_text(encoding="utf-8"))
    draw(*found).write_image(DOCS / "results.svg")
