"""What `taskpgm export` prints."""

from rich.console import RenderableType

from taskpgm.cli.listing import Listing
from taskpgm.export.targets import TARGETS
from taskpgm.export.write import Export


def targets_table() -> RenderableType:
    """Every target, what it is, and how it may be told amounts."""
    rows = [[name, target.title, ", ".join(target.by)] for name, target in TARGETS.items()]
    return Listing(["--to", "writes", "--by"], rows, left=frozenset(("writes", "--by")))


def export_table(export: Export) -> RenderableType:
    """Every task that has rows, its file, and how many rows of it are in the plan."""
    total = sum(count for _, _, count in export.tasks)
    rows = [[name, stem, str(count), f"{count / total:.1%}"] for name, stem, count in export.tasks]
    return Listing(["task", "file", "rows", "of rows"], rows, left=frozenset(("file",)))
