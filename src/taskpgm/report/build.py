"""`write_report`: the page of one run, or of two side by side; `write_figures`: its figures as files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from taskpgm.errors import UserError
from taskpgm.pipeline.finished import FinishedDirectory, load_run
from taskpgm.progress import many
from taskpgm.report import choices, gains, history, outcome, reasons, relations, rows, shares, sides, trials
from taskpgm.report.field import Field
from taskpgm.report.material import Material
from taskpgm.report.page import write_page
from taskpgm.report.parts import Section, joined

Make = Callable[[], Section]
WIDTH = 1000  # pixels, of a figure as a file
LOSSES = {
    "per_row": "Losses that chose the mixture are means over rows, long and short alike",
    "per_token": "Losses that chose the mixture are means over tokens, so that long rows count more",
}


def write_report(folder: Path, other: Path | None = None, *, path: Path | None = None) -> Path:
    """Path of the page that was written.

    Args:
        folder: a run.
        other: another one, to be shown beside it.
        path: where to write; into the first run's folder if left out.

    Raises:
        UserError: a folder that is no finished run.
    """
    run = load_run(folder)
    if other is None:
        path = path or folder / "report.html"
        write_page(path, f"Mixture of {folder.resolve().name}", _lead(run), sections(Material(run)))
        return path
    names = sides.names_of(folder, other)
    path = path or folder / f"report-beside-{other.resolve().name}.html"
    lead = f"{folder} beside {other}"
    write_page(
        path, f"{names[0]} beside {names[1]}", lead, sides.sections(Material(run), Material(load_run(other)), names)
    )
    return path


def _lead(run: FinishedDirectory) -> str:
    config, mixture = run.config, run.mixture
    targets = f"served to {many(len(config.targets), 'target')}" if config.targets else "served to themselves"
    return (
        f"{many(len(mixture.tasks), 'task')}, {targets}; a budget of {config.budget.size:,} {config.budget.unit}; "
        f"{Path(config.model.path).name}. {LOSSES[config.energy.loss]} (energy.loss: {config.energy.loss})."
    )


def sections(material: Material) -> list[Section]:
    """The eight questions in order, one that cannot be answered says why; then the trial runs, if there were some."""
    field = Field(material.affinity)
    makers: dict[str, Make] = {
        "What should I train on, and how sure is it?": lambda: shares.section(material),
        "How do the tasks relate?": lambda: relations.section(material, field),
        "What helps what?": lambda: gains.section(material),
        "Why this share?": lambda: reasons.section(material),
        "Could it be different?": lambda: choices.section(material),
        "Is the data all right?": lambda: rows.section(material),
        "How did it run?": lambda: history.section(material),
        "Did it work?": lambda: outcome.section(material),
    }
    tried = trials.section(material)
    return [*(_section(title, k, make) for k, (title, make) in enumerate(makers.items())), *([tried] if tried else [])]


def _section(title: str, number: int, make: Make) -> Section:
    try:
        return make()
    except UserError as error:
        return Section(f"section-{number + 1}", title, [f"Not shown: {error}"])


def write_figures(folder: Path, to: Path, kind: str = "svg", other: Path | None = None) -> list[Path]:
    """Paths of the figures of a run, as "svg" or, 2000 pixels wide, as "png", drawn by Chrome or Chromium.

    Of two runs: those that show both, and each run's own in a folder of its name.

    Raises:
        UserError: no run there, kaleido is not installed, or no browser is found.
    """
    first = Material(load_run(folder))
    if other is None:
        return _drawn(_figures(sections(first)), to, kind)
    second, names = Material(load_run(other)), sides.names_of(folder, other)
    figures = _figures(sides.sections(first, second, names))
    for name, material in zip(sides.folders_of(folder, other), (first, second), strict=True):
        figures |= {f"{name}/{of}": figure for of, figure in _figures(sections(material)).items()}
    return _drawn(figures, to, kind)


def _figures(parts: Sequence[Section]) -> dict[str, Any]:
    return {picture.name: _still(picture.figure) for section in parts for picture in section.pictures}


def _still(figure: Any) -> Any:
    """The figure as it stands, without its controls."""
    figure.layout.updatemenus, figure.layout.sliders = [], []  # update_layout keeps those that are there
    return figure


def _drawn(figures: dict[str, Any], to: Path, kind: str) -> list[Path]:
    try:
        import choreographer.errors
        import kaleido  # noqa: F401  # plotly draws with it
        import plotly.io
    except ModuleNotFoundError:
        raise UserError("Figures as files need kaleido; pip install 'taskpgm[report]'.") from None
    paths = [to / f"{name}.{kind}" for name in figures]
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        plotly.io.write_images(
            list(figures.values()),
            paths,
            width=WIDTH,
            height=[figure.layout.height for figure in figures.values()],  # which plotly would not heed by itself
            scale=2 if kind == "png" else 1,
        )
    except (choreographer.errors.ChromeNotFoundError, RuntimeError):  # the latter is how plotly passes it on
        raise UserError(
            "Figures as files are drawn by Chrome or Chromium, and none was found; install one, such as Debian's "
            "package chromium, or take the figures from the page."
        ) from None
    return paths


def summary(written: Sequence[Path], to: Path) -> str:
    """What was written, in a sentence."""
    return f"{many(len(written), 'figure')} in {to}: {joined([str(path.relative_to(to)) for path in written], 60)}"
