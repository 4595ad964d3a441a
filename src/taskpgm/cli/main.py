"""The command line: arguments, exit codes, printing. Imports no torch until a stage needs it.

Long because every command declares and documents its own options.
"""

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from rich.console import Console
from rich.text import Text

import taskpgm
from taskpgm.cli.bars import shown
from taskpgm.cli.options import (
    All,
    Choice,
    Comparing,
    ConfigFile,
    Exporting,
    Matrix,
    Mixtures,
    OptionalConfig,
    Out,
    Placing,
    Refining,
    Training,
    bundled,
    numbers,
)
from taskpgm.config import Config
from taskpgm.config_file import load_config
from taskpgm.errors import UserError
from taskpgm.files import loaded, read_json
from taskpgm.system import wait_passively

UNLIMITED = "This {} keeps no limit on tasks' losses: the usual one (energy.max_task_loss) is left out."
KEPT = "Finished work is kept; the same command goes on from there."
# What commands are for: panels of the help.
START, PROOF, LOOK, HAND_OVER, STAGES = "Start", "Does it work?", "Look at it", "Hand it over", "Stage by stage"
UNBROKEN = 100_000  # columns of what is no terminal: a line of a file is never broken

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _console(**options: Any) -> Console:
    console = Console(**options)
    return console if console.is_terminal else Console(**options, width=UNBROKEN)


screen = _console()
errors = _console(stderr=True)


class StoppedError(Exception):
    """Ctrl-C, with what was kept."""


def main() -> None:
    """Entry point: 0 when all is well, 2 for wrong input or settings, 1 for a failing machine, 130 when interrupted."""
    wait_passively()
    _show_anything()
    try:
        app()
    except UserError as error:
        _fail("Error", str(error), 2)
    except StoppedError as stopped:
        _fail("Stopped", str(stopped), 130)
    except SystemExit as error:
        if error.code != 130:  # what typer makes of Ctrl-C
            raise
        _fail("Stopped", KEPT, 130)
    except ModuleNotFoundError as error:
        _fail("Error", f"This needs {error.name}, which is not installed: pip install 'taskpgm[lm]'.", 1)
    except (OSError, MemoryError) as error:
        _fail("Error", f"{str(error) or type(error).__name__}. {_remedy(error)}", 1)


def _show_anything() -> None:
    """Have an output show ? for what its encoding lacks, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _remedy(error: Exception) -> str:
    """What a user can do about a failing machine."""
    if isinstance(error, FileNotFoundError) and _is_removed():
        return "The folder that this was started in is gone; change to one that is there."
    if isinstance(error, PermissionError) or "Read-only file system" in str(error):
        return "Name another place, or make this one writable."
    full = "No space left" in str(error)  # not always with an errno: safetensors has its own error
    return f"Free some space on that disk. {KEPT}" if full else KEPT


def _is_removed() -> bool:
    """Whether the working directory is no more."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _version(asked: bool) -> None:
    if asked:
        print(f"taskpgm {taskpgm.__version__}")
        raise typer.Exit


@app.callback()
def taskpgm_command(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """How much of each task to fine-tune on: measured with probes, certified, sampled. Type first:

    [cyan]taskpgm demo[/]                            a whole run in minutes\n
    [cyan]taskpgm init data/*.jsonl > mix.yaml[/]    a configuration for your files\n
    [cyan]taskpgm run mix.yaml --out runs/first[/]   the mixture and train.jsonl
    """


@app.command(rich_help_panel=START)
def init(
    files: Annotated[list[Path], typer.Argument(help="Data files or folders, one a task.", metavar="FILES...")],
) -> None:
    """Print a commented configuration, filled in from the files given."""
    from taskpgm.cli.template import write_template

    with shown(errors) as progress:
        text, notes = write_template(files, progress)
    typer.echo(text.encode(), nl=False)  # UTF-8, as configurations are read, wherever it goes
    for note in notes:
        errors.print(note, style="yellow", markup=False, highlight=False)


@app.command(rich_help_panel=START)
def check(
    config: ConfigFile,
    show: Annotated[
        int, typer.Option(help="Print so many rows of every set as the model sees them, what is learned marked.", min=0)
    ] = 0,
    exact: Annotated[
        bool, typer.Option("--exact", help="Tokenise every row of large sets too, instead of a sample of each.")
    ] = False,
    everything: All = False,
) -> None:
    """Read everything, tokenise a sample of each set, train nothing; show what a run would use."""
    from taskpgm.cli.tables import pool_view, rows_view
    from taskpgm.export.train_file import check_format
    from taskpgm.pipeline.inspection import inspect, stops_here
    from taskpgm.pipeline.stages import allowed_shares
    from taskpgm.probes.options import check_options

    settings = load_config(config)
    with shown(errors) as progress:
        found = inspect(settings, progress, exact=exact)
    allowed_shares(found.pool, settings)
    check_format(found.pool, settings.export.format, found.encoder.has_template)
    check_options(found.pool, settings)
    if show:
        marked = screen.no_color or not screen.is_terminal
        screen.print(rows_view(found.pool, found.encoder, show, marked=marked), soft_wrap=True)
    screen.print(pool_view(found.pool, settings, everything), crop=False)
    for note in found.notes:
        screen.print(note, markup=False, highlight=False)
    stopped = stops_here(settings)
    if stopped:
        screen.print(f"a run on this machine would stop: {stopped}", markup=False, highlight=False)
    if found.runnable and not stopped:
        screen.print("[green]ok[/]: ready to run")
    else:
        screen.print(f"[green]ok[/] but for {'this machine' if found.runnable else 'the model'}")


@app.command(rich_help_panel=START)
def run(
    config: ConfigFile,
    out: Out,
    trial: Annotated[
        bool,
        typer.Option("--trial", help="Then train uniform and this mixture once each and correct it: refine --runs 2."),
    ] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be made, why, and how long it takes; make nothing.")
    ] = False,
    everything: All = False,
) -> None:
    """Everything: probes, scores, mixture, training set."""
    if dry:
        _look_ahead(load_config(config), out, trial)
        return
    _run(load_config(config), out, everything)
    if trial:
        _refine(out, config, Refining(runs=2))


@app.command(rich_help_panel=PROOF)
@bundled
def refine(out: Out, trials: Refining, config: OptionalConfig = None) -> None:
    """Spend a few trial runs, correct the mixture by what they measure, and confirm it on fresh seeds and rows.

    Written to DIR/refined; the run's own mixture stays as it is.
    """
    _refine(out, config, trials)


def _refine(out: Path, config: Path | None, trials: Refining) -> None:
    from taskpgm.cli.refine import choice_line, refinement_lines, task_lines, trials_table
    from taskpgm.pipeline.refine import refine_run

    if trials.results is not None:
        surface, lines = _refine_results(out, config, trials)
    else:
        options = trials.options
        with _session(_required(config), out) as session:
            found = refine_run(session, options)
        surface, lines = found.surface(), refinement_lines(found, out)
    _show(out / "refined", None)
    screen.print(trials_table(surface), crop=False)
    _print(choice_line(surface), *task_lines(surface), *lines)


def _refine_results(out: Path, config: Path | None, trials: Refining) -> tuple[dict[str, Any], list[str]]:
    from taskpgm.cli.refine import metric_lines
    from taskpgm.pipeline.refine import refine_results

    metrics = trials.metrics
    assert trials.results is not None, "results are given"
    with _session(load_config(config), out) if config else nullcontext() as session:
        surface, _ = refine_results(trials.results, metrics, session, out)
    probes = "" if config else "; without probes: with MIX.YAML of a run, theirs would be used too"
    return surface, [
        *metric_lines(metrics),
        f"fitted to {len(surface['trials'])} runs, nothing trained{probes}",
        f"{out}/refined{'/train.jsonl' if config else ''}",
    ]


@app.command(rich_help_panel=START)
def demo(out: Out = Path("runs/demo"), everything: All = False) -> None:
    """The main job on an embedded model and generated tasks: no file, no network."""
    from taskpgm.cli.demo import write_demo

    _run(write_demo(out), out, everything)


@app.command(rich_help_panel=START)
@bundled
def estimate(
    config: ConfigFile,
    place: Placing,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write it there.", metavar="FILE")] = None,
) -> None:
    """Time, memory, disk and money of a run before anything is spent: operations counted, rates tried in seconds."""
    started = time.perf_counter()
    from taskpgm.cli.tables import estimate_view
    from taskpgm.files import write_json
    from taskpgm.probes.cost import Place, estimate_run

    importing = time.perf_counter() - started
    with shown(errors) as progress:
        found = estimate_run(load_config(config), progress, Place(**vars(place)))
    found = replace(found, seconds={"start": importing, **found.seconds})
    screen.print(estimate_view(found), crop=False)
    if json_file:
        write_json(json_file, found.to_dict())


@app.command(rich_help_panel=LOOK)
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="A run directory, or two to see side by side.", metavar="DIR [DIR]")
    ],
    figures: Annotated[
        Path | None, typer.Option(help="Also write every figure there, for papers.", metavar="FOLDER")
    ] = None,
    kind: Annotated[Literal["svg", "png"] | None, typer.Option("--format", help="Of the figures' files; svg.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The page; report.html in the run directory if left out.", metavar="FILE")
    ] = None,
) -> None:
    """One self-contained page of a finished run: what to train on, how sure, how tasks relate, why, and how it ran."""
    from taskpgm.cli.report import check_installed

    if len(runs) > 2:
        raise UserError(f"A report shows one run, or two side by side, not {len(runs)}; give at most two folders.")
    if kind and not figures:
        raise UserError(f"--format {kind} is for --figures, which was not given; add --figures FOLDER.")
    check_installed()
    from taskpgm.report.build import summary, write_figures, write_report

    screen.print(str(write_report(runs[0], *runs[1:], path=out)), markup=False, highlight=False, soft_wrap=True)
    if figures:
        written = write_figures(runs[0], figures, kind or "svg", *runs[1:])
        screen.print(summary(written, figures), markup=False, highlight=False)


@app.command(rich_help_panel=PROOF)
@bundled
def compare(config: ConfigFile, out: Out, comparing: Comparing) -> None:
    """Train every mixture at the same budget, evaluate it on held-out rows, and say what differs."""
    from taskpgm.cli.report import report_line
    from taskpgm.cli.tables import comparison_view
    from taskpgm.pipeline.run import compare_run

    options, settings = comparing.options, load_config(config)
    with _session(settings, out) as session:
        comparison, facts = compare_run(session, options)
    screen.print(comparison_view(comparison, settings.energy.loss), crop=False)
    if equivalence := facts.get("budget equivalence"):
        _print(f"budget equivalence: {equivalence['sentence']}")
    _print(f"{out}/comparison.json", report_line(out))


@app.command(rich_help_panel=HAND_OVER)
@bundled
def train(
    run: Annotated[Path, typer.Argument(help="A finished run directory.", metavar="DIR")],
    training: Training,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write; DIR/trained if left out.", metavar="OUT")
    ] = None,
) -> None:
    """Train the model on the run's training set with TRL's SFTTrainer; started again, it goes on."""
    from taskpgm.pipeline.train import TrainOptions
    from taskpgm.pipeline.train import train as train_model

    options = TrainOptions(**vars(training))
    with shown(errors) as progress:
        trained = train_model(run, out, options, progress)
    first, last = trained.losses[0], trained.losses[-1]
    screen.print(f"loss {first:.3f} at the first step, {last:.3f} at the last: {trained.folder}", markup=False)
    screen.print(trained.loading, markup=False, highlight=False, soft_wrap=True)


@app.command(rich_help_panel=PROOF)
def predict(
    config: ConfigFile,
    out: Out,
    mixtures: Mixtures = "taskpgm,uniform,size",
    merged: Annotated[
        bool, typer.Option(help="Also evaluate the probes merged with the weights (runs the model).")
    ] = True,
) -> None:
    """What mixtures would reach, without training: the probes' ensemble, their gains, and the probes merged."""
    from taskpgm.cli.tables import prediction_table
    from taskpgm.evaluation.baselines import parse_mixtures
    from taskpgm.pipeline.run import predict_run

    with _session(load_config(config), out) as session:
        found, ranks = predict_run(session, parse_mixtures(mixtures), merged)
    screen.print(prediction_table(found), crop=False)
    for name, value in ranks.items():
        if name != "mixtures":
            _print(f"rank correlation of {name} with what was measured: {value:.2f} ({ranks['mixtures']} mixtures)")
    _print(f"{out}/prediction.json")


@app.command(rich_help_panel=PROOF)
def form(config: ConfigFile, out: Out) -> None:
    """How much of the predicted gain on targets with choices is the form of answers: scores their options.

    Written to DIR/form.json, and shown by the report.
    """
    from taskpgm.cli.mixtures import form_view
    from taskpgm.pipeline.form import form_run

    with _session(load_config(config), out) as session:
        found = form_run(session)
    screen.print(form_view(found), crop=False)
    _print(f"{out}/form.json")


@app.command(rich_help_panel=STAGES)
def probe(config: ConfigFile, out: Out) -> None:
    """Train the warm start and one adapter a task; finished ones are kept."""
    from taskpgm.pipeline.stages import make_pool, make_probes

    with _session(load_config(config), out) as session:
        make_probes(session, make_pool(session))
    facts = session.artifacts.recorded("probe")
    _print(f"{facts['trained_tokens']} tokens trained in {facts['seconds']:.0f} s: {out}/adapters")


@app.command(rich_help_panel=STAGES)
def score(config: ConfigFile, out: Out) -> None:
    """Score every probe on the shared contexts; finished blocks are kept."""
    from taskpgm.pipeline.stages import make_pool, make_scores

    with _session(load_config(config), out) as session:
        session.artifacts.recorded("probe")  # before anything is written to a folder that was mistyped
        make_scores(session, make_pool(session))
    facts = session.artifacts.recorded("score")
    _print(f"{facts['scored_tokens']} tokens scored in {facts['seconds']:.0f} s: {out}/scores.npz")


@app.command(rich_help_panel=STAGES)
@bundled
def solve(
    out: Out,
    matrix: Matrix,
    config: OptionalConfig = None,
    knob: Annotated[
        str | None,
        typer.Option(help="Also solve for these knob values (t or prior) into path.json: 0.1,1,10."),
    ] = None,
    balance: Annotated[
        str | None,
        typer.Option(help="Also show what targets gain and tasks lose at these balances: 0,0.25,0.5,0.75,1."),
    ] = None,
    everything: All = False,
) -> None:
    """Find the mixture, from a run's scores or from an affinity matrix of your own; takes no model."""
    from taskpgm.mixture.path import check_knob

    values = numbers(knob, "--knob") if knob is not None else []
    check_knob(values)
    if matrix.affinity is not None:
        if balance is not None:
            raise UserError("--balance weighs targets against tasks by a run's scores; a matrix has none.")
        _, energy, bounds = _solve_matrix(out, config, matrix, None, everything)
    else:
        from taskpgm.cli.mixtures import balance_view
        from taskpgm.pipeline.run import balance_run, solve_run
        from taskpgm.pipeline.stages import choose_energy, training_set_is_there

        matrix.check_unused()
        settings = _required(config)
        free = settings.energy.unlimited("--knob") if knob is not None else None
        with _session(settings, out) as session:
            curve = balance_run(session, numbers(balance, "--balance")) if balance is not None else None
            result = solve_run(session)
            current = training_set_is_there(session, result)
        _show(out, result.affinity, everything, out)
        if not current and (out / "train.jsonl").exists():
            _print(f"{out}/train.jsonl has the rows of another mixture: `taskpgm sample` writes those of this one")
        if curve:
            screen.print(balance_view(curve), crop=False)
            if settings.energy.limited:
                _print("Balances above 0 keep the limits on tasks' losses (energy.max_task_loss, max_loss).")
        energy, bounds = result.energy, result.mixture.bounds
        if free is not None and settings.energy.limited:
            unlimited = settings.model_copy(update={"energy": free})
            energy = choose_energy(result.scores, result.affinity, result.pool, unlimited)
            _print(UNLIMITED.format("path along the knob"))
    if knob is not None:
        _trace(out, energy, values, bounds, everything)


def _trace(out: Path, energy: Any, values: list[float], bounds: Any, everything: bool) -> None:
    from taskpgm.cli.mixtures import path_view
    from taskpgm.files import write_json
    from taskpgm.mixture.path import trace_path

    path = trace_path(energy, values, bounds)
    write_json(out / "path.json", path.to_dict())
    screen.print(path_view(path, everything), crop=False)
    _print(f"{len(path.values)} solutions along the knob: {out}/path.json")


@app.command(rich_help_panel=LOOK)
@bundled
def select(out: Out, choice: Choice, matrix: Matrix, config: OptionalConfig = None, everything: All = False) -> None:
    """Choose at most k tasks, with a bound on what the best choice could reach, and solve the mixture on them.

    Written to DIR/selections/kK; the run's own mixture stays as it is.
    """
    from taskpgm.cli.mixtures import selection_view
    from taskpgm.pipeline.run import select_run

    if matrix.affinity is not None:
        if choice.sample:
            raise UserError("--sample draws the rows of a run; a matrix has none. Leave out --sample.")
        _solve_matrix(out, config, matrix, choice, everything)
        return
    matrix.check_unused()
    k = choice.k
    settings = _required(config)
    with _session(settings, out) as session:
        result, selection, folder = select_run(session, k, choice.exhaustive, choice.sample)
    screen.print(selection_view(selection, everything), crop=False)
    _show(folder, result.affinity, everything, out)
    if settings.energy.limited:
        _print(UNLIMITED.format("selection"))
    _print(
        f"{result.plan.described}: {folder}/train.jsonl"
        if (folder / "train.jsonl").exists()
        else "its training set: the same command with --sample",
        f"The run's own mixture is what it was; `selection: {{k: {k}}}` in {config} and `taskpgm sample` make this one "
        "the run's.",
    )


@app.command(rich_help_panel=LOOK)
@bundled
def explain(out: Out, matrix: Matrix, config: OptionalConfig = None, everything: All = False) -> None:
    """Why the mixture is what it is: interchangeable tasks, what each one is worth, marginal energies.

    Written to DIR/explanation.json.
    """
    from taskpgm.cli.mixtures import explanation_view
    from taskpgm.files import write_json
    from taskpgm.mixture.explanation import explain as explain_mixture
    from taskpgm.pipeline.run import explain_run

    if matrix.affinity is not None:
        mixture, energy, _ = _solve_matrix(out, config, matrix, None, everything)
        explanation, kind = explain_mixture(energy, mixture), energy.kind
        write_json(out / "explanation.json", explanation.to_dict())
    else:
        matrix.check_unused()
        with _session(_required(config), out) as session:
            explanation, kind = explain_run(session), session.config.energy.kind
    screen.print(explanation_view(explanation, kind, everything), crop=False)
    _print(f"marginal energies of every task, and the rest: {out}/explanation.json")


@app.command(rich_help_panel=STAGES)
def sample(config: ConfigFile, out: Out, everything: All = False) -> None:
    """Find the mixture from the scores and write the training set; takes no model."""
    from taskpgm.pipeline.run import sample_run

    with _session(load_config(config), out) as session:
        result = sample_run(session)
    _show(out, result.affinity, everything, out)
    _print(f"{result.plan.described}: {out}/train.jsonl")


@app.command(rich_help_panel=HAND_OVER)
@bundled
def export(
    exporting: Exporting,
    run: Annotated[Path | None, typer.Argument(help="A finished run directory.", metavar="RUN")] = None,
) -> None:
    """Hand the mixture to a trainer: its rows, the trainer's own config, and how to start."""
    from taskpgm.cli.handover import export_table, targets_table
    from taskpgm.export.handover import By
    from taskpgm.pipeline.finished import export_run

    if exporting.show:
        screen.print(targets_table(), crop=False)
        return
    to, out, by = exporting.to, exporting.out, exporting.by
    if run is None or not to or out is None:
        raise UserError("Give a run directory, --to and --out: taskpgm export runs/first --to trl --out exports/trl.")
    if by not in ("rows", "counts", "shares"):
        raise UserError(f"--by is rows, counts or shares, not {by!r}.")
    found = export_run(run, to, out, cast(By, by), exporting.lossy, exporting.force)
    screen.print(export_table(found), crop=False)
    _print(f"{to}: {found.sees}")
    for note in found.notes:
        screen.print(note, style="yellow", markup=False, highlight=False)
    _print(f"how to start: {out}/HOWTO.md")


def _look_ahead(config: Config, out: Path, trial: bool) -> None:
    from taskpgm.cli.outlook import UP_TO_DATE, look_ahead, outlook_line, outlook_view, seconds_of

    if trial:
        raise UserError("--dry-run looks at the run alone; leave out --trial.")
    with shown(errors) as progress:
        steps = look_ahead(config, out, progress)
        seconds = seconds_of(steps, config, progress)
    if not steps:
        _print(f"{UP_TO_DATE}: a run would make nothing again")
        return
    screen.print(outlook_view(steps, seconds), crop=False)
    _print(outlook_line(seconds))


def _run(config: Config, out: Path, everything: bool) -> None:
    from taskpgm.cli.report import report_line
    from taskpgm.evaluation.form import questions
    from taskpgm.pipeline.run import run_session

    with _session(config, out) as session:
        result = run_session(session)
        made = session.artifacts.made
    _show(out, result.affinity, everything, out)
    if not made:
        _print("up to date: nothing had to be made again")
    if config.energy.kind == "likelihood" and questions(result.pool, config) and not (out / "form.json").exists():
        _print(f"targets with choices: `taskpgm form MIX.YAML --out {out}` says how much of their gain is form")
    _print(f"{result.plan.described}: {out}/train.jsonl")
    _print(report_line(out))


def _show(out: Path, affinity: Any, everything: bool = False, run: Path | None = None) -> None:
    """The mixture that lies in `out`, and what there is to say of it; `run` is the run directory that it comes from."""
    from taskpgm.cli.mixtures import mixture_view
    from taskpgm.pipeline.finished import load_run

    data = loaded(read_json, out / "mixture.json")
    doubts = load_run(run).doubts if run else ()
    screen.print(mixture_view(data, affinity, everything, doubts), crop=False)
    _print(f"{out}/mixture.json")


def _print(*lines: str) -> None:
    """Sentences, as they stand."""
    for line in lines:
        screen.print(line, markup=False, highlight=False)


def _required(config: Path | None) -> Config:
    if config is None:
        raise UserError(
            "Give the experiment's MIX.YAML, or a file of your own: a matrix (--affinity) or results (--from)."
        )
    return load_config(config)


def _solve_matrix(
    out: Path, config: Path | None, matrix: Matrix, choice: Choice | None, everything: bool
) -> tuple[Any, Any, Any]:
    """(mixture, energy, bounds) of a matrix, shown."""
    from taskpgm.cli.mixtures import selection_view
    from taskpgm.mixture.affinity import read_affinity
    from taskpgm.mixture.energies import build_energy
    from taskpgm.pipeline.run import solve_affinity

    settings = matrix.energy
    assert matrix.affinity is not None, "a matrix is given"
    if config is not None:
        raise UserError(f"Give either {config} or --affinity {matrix.affinity}, not both.")
    affinity = read_affinity(matrix.affinity)
    k, exhaustive = (choice.k, choice.exhaustive) if choice else (None, False)
    mixture, selection = solve_affinity(affinity, settings, out, k, exhaustive)
    if selection:
        screen.print(selection_view(selection, everything), crop=False)
    _show(out, affinity, everything)
    return mixture, build_energy(None, affinity, settings), mixture.bounds


@contextmanager
def _session(config: Config, out: Path) -> Iterator[Any]:
    from taskpgm.pipeline.directory import kept_work
    from taskpgm.pipeline.session import open_session

    with shown(errors) as progress, open_session(config, out, progress) as session:
        try:
            yield session
        except KeyboardInterrupt:
            raise StoppedError(kept_work(out, config)) from None


def _fail(word: str, sentence: str, code: int) -> None:
    errors.print(Text.assemble((f"{word}: ", "bold red"), sentence))
    sys.exit(code)
