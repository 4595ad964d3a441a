"""The command line: arguments, exit codes, printing. Imports no torch until a stage needs it.

Long because every command declares and documents its own options.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from taskpgm.cli.bars import shown
from taskpgm.config import Config, EnergyConfig, load_config
from taskpgm.errors import UserError
from taskpgm.system import wait_passively

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
    wait_passively()
    try:
        app()
    except UserError as error:
        _fail("Error", str(error), 2)
    except SystemExit as error:
        if error.code != 130:  # what typer makes of Ctrl-C
            raise
        _fail("Stopped", "Finished work is kept; the same command goes on from there.", 130)
    except ModuleNotFoundError as error:
        _fail("Error", f"This needs {error.name}, which is not installed: pip install 'taskpgm[lm]'.", 1)
    except (OSError, MemoryError) as error:
        _fail("Error", f"{str(error) or type(error).__name__}. {_remedy(error)}", 1)


def _remedy(error: Exception) -> str:
    """What a user can do about a failing machine."""
    if isinstance(error, PermissionError) or "Read-only file system" in str(error):
        return "Name another place, or make this one writable."
    kept = "Finished work is kept; the same command goes on from there."
    full = "No space left" in str(error)  # not always with an errno: safetensors has its own error
    return f"Free some space on that disk. {kept}" if full else kept


OptionalConfig = Annotated[
    Path | None, typer.Argument(help="The experiment's YAML file; not needed with --affinity.", metavar="[MIX.YAML]")
]
AffinityFile = Annotated[
    Path | None, typer.Option(help="A symmetric affinity matrix: .csv with names, .npy or .npz.", metavar="FILE")
]
Knob = Annotated[
    float | None,
    typer.Option("--t", help="With --affinity: utility against redundancy (0 least redundant, 1 uniform).", min=0),
]


@app.command()
def init(
    files: Annotated[list[Path], typer.Argument(help="Data files or folders, one a task.", metavar="FILES...")],
) -> None:
    """Print a commented configuration, filled in from the files given."""
    from taskpgm.cli.template import write_template

    text, notes = write_template(files)
    print(text, end="")
    for note in notes:
        errors.print(note, style="yellow", markup=False, highlight=False)


@app.command()
def check(
    config: ConfigFile,
    show: Annotated[
        int, typer.Option(help="Print so many rows of every set as the model sees them, what is learned marked.", min=0)
    ] = 0,
    exact: Annotated[
        bool, typer.Option("--exact", help="Tokenise every row of large sets too, instead of a sample of each.")
    ] = False,
) -> None:
    """Read everything, tokenise a sample of each set, train nothing; show what a run would use."""
    from taskpgm.cli.tables import pool_view, rows_view
    from taskpgm.data.export import check_format
    from taskpgm.pipeline.inspection import inspect
    from taskpgm.pipeline.stages import allowed_shares

    settings = load_config(config)
    with shown(errors) as progress:
        found = inspect(settings, progress, exact=exact)
    allowed_shares(found.pool, settings)
    check_format(found.pool, settings.export.format, found.encoder.has_template)
    if show:
        marked = screen.no_color or not screen.is_terminal
        screen.print(rows_view(found.pool, found.encoder, show, marked=marked), soft_wrap=True)
    screen.print(pool_view(found.pool, settings), crop=False)
    for note in found.notes:
        screen.print(note, markup=False, highlight=False)
    screen.print("[green]ok[/]: ready to run" if found.runnable else "[green]ok[/] but for the model")


@app.command()
def run(config: ConfigFile, out: Out) -> None:
    """Everything: probes, scores, mixture, training set."""
    _run(load_config(config), out)


@app.command()
def demo(out: Out = Path("runs/demo")) -> None:
    """The main job on an embedded model and generated tasks: no file, no network."""
    from taskpgm.cli.demo import write_demo

    _run(write_demo(out), out)


@app.command()
def estimate(
    config: ConfigFile,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write it there.", metavar="FILE")] = None,
) -> None:
    """Time, memory and disk of a run on this machine, before anything is spent: counts, and a trial of seconds."""
    started = time.perf_counter()
    from taskpgm.cli.tables import estimate_table
    from taskpgm.files import write_json
    from taskpgm.probes.cost import estimate_run

    importing = time.perf_counter() - started
    with shown(errors) as progress:
        found = estimate_run(load_config(config), progress)
    found = replace(found, seconds={"start": importing, **found.seconds})
    screen.print(estimate_table(found))
    if json_file:
        write_json(json_file, found.to_dict())


@app.command()
def compare(
    config: ConfigFile,
    out: Out,
    mixtures: Annotated[
        str,
        typer.Option(
            help="The first is judged against the others: taskpgm, uniform, size, size:CAP, temperature:T, random, "
            "smart, or a weights file (.json, .yaml)."
        ),
    ] = "taskpgm,uniform,size",
    seeds: Annotated[int, typer.Option(help="Trainings of each mixture.", min=1)] = 3,
    budgets: Annotated[
        str, typer.Option(help="Also train uniform at these multiples of the budget: 0.5,2,4; gives the equivalence.")
    ] = "",
    trainer: Annotated[str, typer.Option(help="engine (this project's) or trl (SFTTrainer).")] = "engine",
    method: Annotated[str, typer.Option(help="lora, or full to train every weight of the model.")] = "lora",
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak of the schedule; as the probes', or 5e-5 for full.", min=0)
    ] = None,
    accuracy: Annotated[bool, typer.Option(help="Mark answers too: options, verifiers, exact match.")] = True,
    rows: Annotated[int | None, typer.Option(help="Rows a set to evaluate at most.", min=1)] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the adapters, or with --method full the models.")] = False,
    harness: Annotated[
        str, typer.Option(help="Also run these tasks of lm-evaluation-harness on every adapter: arc_easy,my_task.")
    ] = "",
    include: Annotated[
        Path | None, typer.Option(help="Folder or file of the harness's local tasks.", metavar="PATH")
    ] = None,
) -> None:
    """Does it work? Train every mixture at the same budget, evaluate it on held-out rows, and say what differs."""
    from taskpgm.cli.html import write_picture
    from taskpgm.cli.tables import comparison_view
    from taskpgm.evaluation.baselines import parse_mixtures
    from taskpgm.evaluation.compare import CompareOptions
    from taskpgm.pipeline.run import compare_run

    if trainer not in ("engine", "trl"):
        raise UserError(f"--trainer is engine or trl, not {trainer!r}.")
    if learning_rate == 0:
        raise UserError("--learning-rate 0 trains nothing; give a positive one, or leave it out.")
    if method not in ("lora", "full"):
        raise UserError(f"--method is lora or full, not {method!r}.")
    options = CompareOptions(
        parse_mixtures(mixtures), seeds, tuple(_values(budgets, "--budgets")) if budgets else (), trainer, method,
        learning_rate, accuracy, keep, rows, tuple(task for task in harness.split(",") if task), include,
    )  # fmt: skip
    with _session(load_config(config), out) as session:
        comparison, facts = compare_run(session, options)
    screen.print(comparison_view(comparison), crop=False)
    if equivalence := facts.get("budget equivalence"):
        screen.print(f"budget equivalence: {equivalence['sentence']}", markup=False, highlight=False)
    pictured = _has("plotly")
    if pictured:
        write_picture(comparison, out / "comparison.html")
    screen.print(
        f"{out}/comparison.json" + (f", {out}/comparison.html" if pictured else ""), markup=False, highlight=False
    )


@app.command()
def predict(
    config: ConfigFile,
    out: Out,
    mixtures: Annotated[
        str, typer.Option(help="As for compare; what was compared before is added.")
    ] = "taskpgm,uniform,size",
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
            screen.print(
                f"rank correlation of {name} with what was measured: {value:.2f} ({ranks['mixtures']} mixtures)"
            )
    screen.print(f"{out}/prediction.json", markup=False, highlight=False)


@app.command()
def probe(config: ConfigFile, out: Out) -> None:
    """Train the warm start and one adapter a task; finished ones are kept."""
    from taskpgm.pipeline.stages import make_pool, make_probes

    with _session(load_config(config), out) as session:
        make_probes(session, make_pool(session))
    facts = session.artifacts.recorded("probe")
    screen.print(f"{facts['trained_tokens']} tokens trained in {facts['seconds']:.0f} s: {out}/adapters", markup=False)


@app.command()
def score(config: ConfigFile, out: Out) -> None:
    """Score every probe on the shared contexts; finished blocks are kept."""
    from taskpgm.pipeline.stages import make_pool, make_scores

    with _session(load_config(config), out) as session:
        make_scores(session, make_pool(session))
    facts = session.artifacts.recorded("score")
    screen.print(f"{facts['scored_tokens']} tokens scored in {facts['seconds']:.0f} s: {out}/scores.npz", markup=False)


@app.command()
def solve(
    out: Out,
    config: OptionalConfig = None,
    affinity: AffinityFile = None,
    t: Knob = None,
    ridge: Annotated[
        float, typer.Option(help="Adds this times K's mean curvature on the simplex to its diagonal.", min=0)
    ] = 0.0,
    knob: Annotated[
        str | None,
        typer.Option(help="Also solve for these knob values (t or prior) into path.json: 0.1,1,10."),
    ] = None,
) -> None:
    """Find the mixture, from a run's scores or from an affinity matrix of your own; takes no model."""
    from taskpgm.files import write_json
    from taskpgm.mixture.path import trace_path

    if affinity is not None:
        energy, bounds = _solve_matrix(out, config, affinity, _energy(t, ridge), None, False), None
    else:
        from taskpgm.pipeline.run import solve_run

        with _session(_required(config), out) as session:
            result = solve_run(session)
        _show(out, result.affinity)
        energy, bounds = result.energy, result.mixture.bounds
    if knob is not None:
        path = trace_path(energy, _values(knob, "--knob"), bounds)
        write_json(out / "path.json", path.to_dict())
        screen.print(f"{len(path.values)} solutions along the knob: {out}/path.json", markup=False)


@app.command()
def select(
    out: Out,
    k: Annotated[int, typer.Option("-k", help="Use at most so many tasks.", min=1)],
    config: OptionalConfig = None,
    affinity: AffinityFile = None,
    t: Knob = None,
    ridge: Annotated[
        float, typer.Option(help="Adds this times K's mean curvature on the simplex to its diagonal.", min=0)
    ] = 0.0,
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="Look at every set; at most 20 tasks.")] = False,
    sample: Annotated[bool, typer.Option("--sample", help="Also write the selection's training set.")] = False,
) -> None:
    """Choose at most k tasks, with a bound on what the best choice could reach, and solve the mixture on them.

    Written to DIR/selections/kK; the run's own mixture stays as it is.
    """
    from taskpgm.cli.tables import selection_table
    from taskpgm.pipeline.run import select_run

    if affinity is not None:
        _solve_matrix(out, config, affinity, _energy(t, ridge), k, exhaustive)
        return
    with _session(_required(config), out) as session:
        result, selection, folder = select_run(session, k, exhaustive, sample)
    screen.print(selection_table(selection), crop=False)
    _show(folder, result.affinity)
    if sample:
        screen.print(f"{len(result.plan)} rows: {folder}/train.jsonl", markup=False, highlight=False)
    else:
        screen.print("its training set: the same command with --sample", highlight=False)
    screen.print(
        f"The run's own mixture is what it was; `selection: {{k: {k}}}` in {config} and `taskpgm sample` make this one "
        "the run's.",
        markup=False, highlight=False,
    )  # fmt: skip


@app.command()
def explain(config: ConfigFile, out: Out) -> None:
    """Why the mixture is what it is: marginal energies, leave-one-out, interchangeable tasks, into explanation.json."""
    from taskpgm.cli.tables import explanation_table
    from taskpgm.pipeline.run import explain_run

    with _session(load_config(config), out) as session:
        explanation = explain_run(session)
    screen.print(explanation_table(explanation), crop=False)


@app.command()
def sample(config: ConfigFile, out: Out) -> None:
    """Find the mixture from the scores and write the training set; takes no model."""
    from taskpgm.pipeline.run import sample_run

    with _session(load_config(config), out) as session:
        result = sample_run(session)
    _show(out, result.affinity)
    screen.print(f"{len(result.plan)} rows: {out}/train.jsonl", markup=False)


def _run(config: Config, out: Path) -> None:
    from taskpgm.pipeline.run import run_session

    with _session(config, out) as session:
        result = run_session(session)
    _show(out, result.affinity)
    screen.print(f"{len(result.plan)} rows: {out}/train.jsonl", markup=False)


def _show(out: Path, affinity: Any) -> None:
    from taskpgm.cli.tables import knob_lines, mixture_table, relation_lines, verdict_lines

    data = json.loads((out / "mixture.json").read_text(encoding="utf-8"))
    screen.print(mixture_table(data), crop=False)
    for line in (*knob_lines(data), *verdict_lines(data), *relation_lines(affinity)):
        screen.print(line, highlight=False)
    certificate = data["certificate"]
    screen.print(
        f"certified: gap {certificate['gap']:.1e}, stationarity {certificate['stationarity']:.1e}; {out}/mixture.json",
        markup=False,
        highlight=False,
    )


def _required(config: Path | None) -> Config:
    if config is None:
        raise UserError("Give the experiment's MIX.YAML, or a matrix with --affinity FILE.")
    return load_config(config)


def _energy(t: float | None, ridge: float) -> EnergyConfig:
    if t is None:
        raise UserError(
            "An affinity matrix needs --t: utility against redundancy, such as 2; see docs/how-to-choose.md."
        )
    return EnergyConfig(kind="affinity", t=t, ridge=ridge)


def _solve_matrix(
    out: Path, config: Path | None, file: Path, energy: EnergyConfig, k: int | None, exhaustive: bool
) -> Any:
    from taskpgm.cli.tables import selection_table
    from taskpgm.mixture.affinity import read_affinity
    from taskpgm.mixture.energies import build_energy
    from taskpgm.pipeline.run import solve_affinity

    if config is not None:
        raise UserError(f"Give either {config} or --affinity {file}, not both.")
    affinity = read_affinity(file)
    _, selection = solve_affinity(affinity, energy, out, k, exhaustive)
    if selection:
        screen.print(selection_table(selection), crop=False)
    _show(out, affinity)
    return build_energy(None, affinity, energy)


def _values(text: str, option: str) -> list[float]:
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        raise UserError(f"{option} takes numbers with commas between, such as 0.1,1,10, not {text!r}.") from None


def _has(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


@contextmanager
def _session(config: Config, out: Path) -> Iterator[Any]:
    from taskpgm.pipeline.stages import open_session

    with shown(errors) as progress, open_session(config, out, progress) as session:
        yield session


def _fail(word: str, sentence: str, code: int) -> None:
    errors.print(Text.assemble((f"{word}: ", "bold red"), sentence))
    sys.exit(code)
