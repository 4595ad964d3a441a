"""Packages import from those below them alone, modules in no circle, and nothing below `lm` imports torch."""

import ast
from pathlib import Path

import taskpgm

ROOT = Path(taskpgm.__file__).parent
# From the ground up: a package imports from itself and from those before it.
LAYERS = (
    "top",
    "mixture",
    "data",
    "pool",
    "chat",
    "export",
    "workers",
    "lm",
    "probes",
    "trainer",
    "evaluation",
    "pipeline",
    "report",
    "cli",
)
WITH_TORCH = LAYERS[LAYERS.index("lm") :]
HEAVY = {"torch", "transformers", "peft", "accelerate", "trl", "lm_eval"}
# Runs work in processes, each with one of torch's threads.
ALLOWED = {("processes.py", "torch"), ("executor.py", "torch"), ("desk.py", "torch")}


def modules() -> dict[str, Path]:
    """Dotted name inside of the package -> file, but for the package's own `__init__` and `__main__`."""
    found = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in ROOT.rglob("*.py")}
    return {name: path for name, path in found.items() if not name.endswith("__init__") and name != "__main__"}


def imports(path: Path, everywhere: bool) -> set[str]:
    """Dotted names that a module imports: when it is loaded, or also inside of functions and for types alone."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def layer(name: str) -> int:
    return LAYERS.index(name.split(".")[0] if name.split(".")[0] in LAYERS else "top")


def own_imports(name: str, path: Path, everywhere: bool) -> set[str]:
    known = modules()
    return {found.removeprefix("taskpgm.") for found in imports(path, everywhere)} & (known.keys() - {name})


def test_packages_import_from_those_below_them() -> None:
    upward = [
        f"{name} imports {other}"
        for name, path in modules().items()
        for other in own_imports(name, path, everywhere=True)
        if layer(other) > layer(name)
    ]
    assert not upward


def test_no_modules_import_each_other() -> None:
    arrows = {name: own_imports(name, path, everywhere=True) for name, path in modules().items()}
    while ground := {name for name, others in arrows.items() if not others}:
        arrows = {name: others - ground for name, others in arrows.items() if name not in ground}
    assert not arrows


def test_nothing_below_lm_imports_torch() -> None:
    heavy = [
        f"{name} imports {other}"
        for name, path in modules().items()
        if name.split(".")[0] not in WITH_TORCH
        for other in imports(path, everywhere=True) & HEAVY
        if (path.name, other) not in ALLOWED
    ]
    assert not heavy
