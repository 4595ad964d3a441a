"""Tables in a terminal of 80 columns: no name is broken or cut, and every number is there."""

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console
from support.pools import make_config, make_pool

from taskpgm.cli.listing import Listing
from taskpgm.cli.mixtures import mixture_table
from taskpgm.cli.tables import pool_view

NAMES = {
    "short": ["sums", "sky"],
    "long": ["a_task_with_a_name_of_some_forty_letters_", "sky"],
    "wide": ["数学" * 12, "代码 [b]题"],
    "longer than the terminal": ["x" * 100, "sky [b] of two words and more words than fit beside any number at all"],
}


def shown(view, width=80):
    console = Console(width=width, file=io.StringIO())
    console.print(view, crop=False)
    return console.file.getvalue()


def mixture(names):
    references = {"uniform": 0.125, "size-proportional": 0.0625}
    return {
        "replicates": [[]] * 40,
        "tasks": [
            {"name": name, "weight": 0.75 / (i + 1), "references": references, "count": 1234, "epochs": 2.5, "at_bound": False, "interval": [0.1, 0.25]}
            for i, name in enumerate(names)
        ],
    }  # fmt: skip


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_names_and_numbers_are_whole_at_80_columns(names):
    text = shown(mixture_table(mixture(names)))
    lines = text.splitlines()
    for i, name in enumerate(names):
        at = next(k for k, line in enumerate(lines) if line.strip().startswith(name))
        row = lines[at] if len(lines[at].strip()) > len(name) else lines[at + 1]
        cells = [f"{0.75 / (i + 1):.1%}", "10.0 – 25.0%", "1234", "2.50", "12.5%", "6.2%"]
        assert re.search(r"\s.*".join(map(re.escape, cells)), row), row
    assert max(cell_len(line) for line in lines) <= max(80, *map(cell_len, names))


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_what_was_read_is_whole_at_80_columns(names):
    pool = make_pool({name: [3, 4, 5] for name in names})
    text = shown(pool_view(pool, make_config(pool, examples=3)))
    assert all(any(line.strip().startswith(name) for line in text.splitlines()) for name in names)
    assert len(re.findall(r"task +3 +3 +0 +0 +9 +4\.0", text)) == len(names)


def test_a_table_stays_one_table_where_there_is_room():
    listing = Listing(["task", "gain"], [["a" * 60, "1.5"], ["b", "22.5"]])
    assert [line.split() for line in shown(listing).splitlines() if line.strip()][::2] == [
        ["task", "gain"],
        ["a" * 60, "1.5"],
    ]
    narrow = shown(listing, width=30).splitlines()
    assert [line.rstrip() for line in narrow] == ["task", "gain", "────", "a" * 60, " 1.5", "b", "22.5"]


def test_cells_of_several_lines_keep_them_together():
    listing = Listing(
        ["without", "lost", "who"], [["a" * 70, "1", "b +1%\nc d +2%"], ["b", "22", ""]], frozenset({"who"})
    )
    lines = [line.rstrip() for line in shown(listing).splitlines()]
    assert lines[3:] == ["a" * 70, "   1  b +1%", "      c d +2%", "b", "  22"]
