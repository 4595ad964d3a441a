"""The documents keep up with the code."""

import ast
import importlib.util
import re
from pathlib import Path
from statistics import median

import pytest
from support.benchmarks import load_benchmark

import taskpgm

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "examples").rglob("*.py")])
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_api_page_has_every_public_name_once() -> None:
    listed = re.findall(r"^::: taskpgm\.(\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(f"{module}.{name}" for name, module in taskpgm._HOME.items())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:[\w-]+/)+[\w-]+\.py)\b", text)
    places = (ROOT, ROOT / "src" / "taskpgm")
    assert not [name for name in named if not any((place / name).is_file() for place in places)]


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_benchmarks_and_examples_import_what_there_is(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "taskpgm":
            module = importlib.import_module(str(node.module))
            names = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not [name for name in names if not importlib.util.find_spec(f"{node.module}.{name}")]


def test_links_out_of_the_site_lead_somewhere() -> None:
    """`mkdocs build --strict` checks those inside."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
        links += re.findall(r'(?:src|srcset)="([^"]+)"', page.read_text(encoding="utf-8"))
        assert not [link for link in links if not (ROOT / link).exists()], page


def test_every_decision_says_what_why_and_instead_of_what() -> None:
    decisions = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8").split("\n### ")[1:]
    for decision in decisions:
        assert re.findall(r"^- \*\*(\w[\w ]*):\*\*", decision, re.M) == ["Chosen", "Because", "Instead of"], decision


def test_the_lead_of_the_results_says_what_their_table_says() -> None:
    module = load_benchmark("results_picture")
    lead = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    text = (ROOT / "docs" / "trainings.md").read_text(encoding="utf-8")
    settings, rows = module.read_table(text)
    targets, tasks = (sorted(value for value, _, _ in values) for values in rows)
    assert f"by {-targets[-1]:g} to {-targets[0]:g} % (median {-median(targets):.1f} %)" in lead
    assert f"from {-tasks[0]:g} % below to {tasks[-1]:g} % above uniform (median {median(tasks):.1f} %" in lead
    told = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    assert f"interval excludes zero in {told[sum(high < 0 for _, _, high in rows[0])]}" in lead
    assert f"in {told[len(settings)]} settings of six seeds each" in lead
    drawn = module.draw(settings, rows)
    assert [list(trace.x) for trace in drawn.data] == [[value for value, _, _ in values] for values in rows]
