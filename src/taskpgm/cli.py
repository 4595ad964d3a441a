"""The command line: arguments, exit codes, printing. Imports no torch until a stage needs it."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from taskpgm.config import Config, load_config
from taskpgm.errors import UserError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="How much of each task to fine-tune on: measured with probes, certified, sampled.",
)  # fmt: skip
screen = Console()
errors = Console(stderr=True)

ConfigFile = Annotated[
    Path, typer.Argument(help="The experiment's YAML file; `taskpgm init` writes one.", metavar="MIX.YAML")
]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Run directory; made if missing, resumed if not.", metavar="DIR")
]


def main() -> None:
    """Entry point: 0 when all is well, 2 for wrong input or settings, 1 for a failing machine, 130 when interrupted."""
    try:
        app()
    except UserError as error:
        _fail("Error", str(error), 2)
    except KeyboardInterrupt:
        _fail("Stopped", "Finished work is kept; the same command goes on from there.", 130)
    except ModuleNotFoundError as error:
        _fail("Error", f"This needs {error.name}, which is not installed: pip install 'taskpgm[lm]'.", 1)
    except (OSError, MemoryError) as error:
        what = str(error) or type(error).__name__
        _fail("Error", f"{what}. Finished work is kept; the same command goes on from there.", 1)


@app.command()
def init(
    files: Annotated[list[Path], typer.Argument(help="Data files or folders, one a task.", metavar="FILES...")],
) -> None:
    """Print a commented configuration, filled in from the files given."""
    from taskpgm.template import write_template

    print(write_template(files), end="")


@app.command()
def check(config: ConfigFile) -> None:
    """Read and tokenise everything, train nothing; show what a run would use."""
    from taskpgm.chat import ChatEncoder, load_tokenizer
    from taskpgm.pipeline import allowed_shares
    from taskpgm.summary import pool_view
    from taskpgm.tasks import load_tasks

    settings = load_config(config)
    with _bars() as bars:
        encoder = ChatEncoder(load_tokenizer(settings.model), settings.probes.max_length)
        pool = load_tasks(settings, encoder.lengths, bars.tell)
    allowed_shares(pool, settings)
    screen.print(pool_view(pool, settings))
    screen.print("[green]ok[/]: ready to run")


@app.command()
def run(config: ConfigFile, out: Out) -> None:
    """Everything: probes, scores, mixture, training set."""
    _run(load_config(config), out)


@app.command()
def demo(out: Out = Path("runs/demo")) -> None:
    """The main job on an embedded model and generated tasks: no file, no network."""
    from taskpgm.demo import write_demo

    _run(write_demo(out), out)


@app.command()
def probe(config: ConfigFile, out: Out) -> None:
    """Train one adapter a task; finished ones are kept."""
    with _stages(load_config(config), out) as (stages, _):
        stages.probe()
    facts = stages.manifest["stages"]["probe"]
    screen.print(f"{facts['trained_tokens']} tokens trained in {facts['seconds']:.0f} s: {out}/adapters")


@app.command()
def score(config: ConfigFile, out: Out) -> None:
    """Score every probe on the shared contexts; finished blocks are kept."""
    with _stages(load_config(config), out) as (stages, _):
        stages.score()
    facts = stages.manifest["stages"]["score"]
    screen.print(f"{facts['scored_tokens']} tokens scored in {facts['seconds']:.0f} s: {out}/scores.npz")


@app.command()
def solve(config: ConfigFile, out: Out) -> None:
    """Find the mixture from the scores; takes no model."""
    with _stages(load_config(config), out) as (stages, _):
        result = stages.solve()
    _show(out, result)


@app.command()
def sample(config: ConfigFile, out: Out) -> None:
    """Find the mixture from the scores and write the training set; takes no model."""
    with _stages(load_config(config), out) as (stages, _):
        result = stages.sample()
    _show(out, result)
    screen.print(f"{len(result.plan)} rows: {out}/train.jsonl")


def _run(config: Config, out: Path) -> None:
    with _stages(config, out) as (stages, _):
        stages.probe()
        stages.score()
        result = stages.sample()
    _show(out, result)
    screen.print(f"{len(result.plan)} rows: {out}/train.jsonl")


def _show(out: Path, result: Any) -> None:
    from taskpgm.summary import mixture_table, relation_lines, verdict_lines

    data = json.loads((out / "mixture.json").read_text(encoding="utf-8"))
    screen.print(mixture_table(data))
    for line in (*verdict_lines(data), *relation_lines(result.affinity)):
        screen.print(line, highlight=False)
    certificate = data["certificate"]
    screen.print(
        f"certified: gap {certificate['gap']:.1e}, stationarity {certificate['stationarity']:.1e}; {out}/mixture.json",
        highlight=False,
    )


class _Bars:
    """One progress bar for each thing that is told about."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.bars: dict[str, TaskID] = {}

    def tell(self, what: str, done: int, total: int) -> None:
        if what not in self.bars:
            self.bars[what] = self.progress.add_task(what, total=total)
        self.progress.update(self.bars[what], completed=done, total=total)

    def say(self, sentence: str) -> None:
        self.progress.console.print(sentence, style="yellow", highlight=False)


@contextmanager
def _bars() -> Iterator[_Bars]:
    columns = (
        TextColumn("{task.description:20}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors) as progress:
        yield _Bars(progress)


@contextmanager
def _stages(config: Config, out: Path) -> Iterator[tuple[Any, _Bars]]:
    from taskpgm.pipeline import Stages
    from taskpgm.store import RunDirectory

    with RunDirectory(out) as directory, _bars() as bars:
        yield Stages(config, directory, bars.tell, bars.say), bars


def _fail(word: str, sentence: str, code: int) -> None:
    errors.print(f"[bold red]{word}:[/] ", end="")
    errors.print(sentence, markup=False, highlight=False)
    sys.exit(code)
