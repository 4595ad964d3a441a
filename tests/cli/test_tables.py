"""Tables in a terminal of 80 columns: no name is broken or cut, and every number is there."""

import io
import re
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console
from support.pools import make_config, make_pool

from taskpgm.cli.listing import Listing
from taskpgm.cli.mixtures import drawn_lines, mixture_table, token_lines
from taskpgm.cli.tables import comparison_view, pool_view
from taskpgm.evaluation.statistics import Measurement, compare_measurements

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
        cells = [f"{0.75 / (i + 1):.1%}", "10.0–25.0%", "1234", "2.50", "12.5%", "6.2%"]
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


def test_what_was_read_of_three_hundred_sets_is_legible():
    lengths = {f"t{i}": [3] * (i + 2) for i in range(316)}
    pool = make_pool(lengths)
    noted = [
        replace(task, notes=("not read: extra", *([f"odd {task.name}"] if i < 40 else [])))
        for i, task in enumerate(pool.tasks)
    ]
    pool = replace(pool, tasks=tuple(noted))
    config = make_config(pool, examples=3)
    short, whole = (shown(pool_view(pool, config, everything)) for everything in (False, True))
    assert len(short.splitlines()) < 70
    assert "296 more (--all)" in short
    between = sum(i + 2 for i in range(10, 306))
    assert re.search(rf"296 more \(--all\) +task +{between}", short)
    assert re.search(r"^ t315 .*\n.*\n.*\n", short, re.M)  # the largest
    assert re.search(r"^ t0 ", short, re.M)  # the smallest
    assert "t0, t1 and 314 more: not read: extra" in short
    assert "18 more notes (--all)" in short  # of the format, what all say, and what forty say: 24 are shown
    assert all(re.search(rf"^ t{i} ", whole, re.M) for i in range(316))
    assert "t7: odd t7" in whole


def test_a_comparison_begins_with_the_difference_from_uniform_on_the_targets():
    runs = [
        Measurement(name, seed, {"a": 1 + 0.1 * seed + shift, "g": 2 + shift + 0.01 * seed * shift}, rows=10)
        for name, shift in (("taskpgm", 0.0), ("size", 0.2), ("uniform", 0.1))
        for seed in range(3)
    ]
    comparison = compare_measurements(runs, ["a"], ["g"])
    text = " ".join(shown(comparison_view(comparison)).split())
    (difference,) = (d for d in comparison.differences if (d.quantity, d.other) == ("targets", "uniform"))
    assert text.startswith("taskpgm on the targets: lower than uniform by 0.10")
    assert "both corrected for 2 comparisons" in text
    assert difference.corrected_interval[0] < difference.estimate.low
    assert "3 seeds are few: --seeds 5 would narrow the intervals by" in text
    assert "losses are means over tokens; taskpgm was chosen by the loss per_row (energy.loss)" in text
    assert "by the loss per_token" in " ".join(shown(comparison_view(comparison, "per_token")).split())


def shares(rows, tokens, unit="examples"):
    tasks = [{"name": name, "row_share": r, "token_share": t} for name, r, t in zip("abc", rows, tokens, strict=True)]
    return {"tasks": tasks, "budget": {"unit": unit}}


def test_shares_of_rows_and_tokens_that_differ_twofold_are_named():
    (line,) = token_lines(shares([0.21, 0.59, 0.2], [0.9, 0.06, 0.04]))
    assert line.startswith("b has 59.0% of the rows and 6.0% of the response tokens (twofold apart too: 2 more tasks)")
    assert "budget.tokens" in line
    assert token_lines(shares([0.4, 0.3, 0.3], [0.55, 0.25, 0.2])) == []
    assert token_lines(shares([0.996, 0.003, 0.001], [0.995, 0.001, 0.004])) == []  # of next to nothing
    (line,) = token_lines(shares([0.2, 0.4, 0.4], [0.5, 0.25, 0.25], "tokens"))
    assert line.startswith("a has 20.0% of the rows and 50.0% of the response tokens: ")
    assert "budget.examples" in line


@pytest.mark.parametrize(("unit", "named"), [("examples", True), ("tokens", False)])
def test_check_names_whose_equal_share_of_rows_is_another_of_tokens(unit, named):
    pool = make_pool({"a": [2] * 8, "b": [8] * 4, "c": [10] * 4})
    text = " ".join(shown(pool_view(pool, make_config(pool, **{unit: 3})), width=400).split())
    said = "with equal shares a has 33.3% of the rows and 10.0% of the response tokens"
    assert (said in text) is named


def test_how_close_a_plan_came_and_what_it_passed_over() -> None:
    data = {"tasks": [{"name": "a", "replaced": 12}, {"name": "b"}], "budget": {"unit": "tokens", "size": 2000}}
    assert drawn_lines(data) == ["drawn rows that did not fit, replaced by the next: a 12"]
    data["budget"] |= {"tokens": 1998}
    assert drawn_lines(data)[0] == "1,998 response tokens of the budget's 2,000 (-0.10%)"
    assert drawn_lines({"tasks": [{"name": "a"}]}) == []
