"""The stages of a run: functions that take values and return values, and make only what the run directory lacks.

    pool      rows of all sets, split                      pool/, overlap.json
    probes    a warm start, then one adapter a task        warm/, adapters/<task>/ (….1/ for a second seed)
    scores    every probe on every context                 blocks/<set>.npz, scores.npz
    solve     affinities, energy, mixture                  affinity.npz, mixture.json
    sample    rows of the training set                     train.jsonl

`solve` and what follows read scores and rows, and never load the model.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskpgm.config import Config, TaskConfig
from taskpgm.errors import UserError
from taskpgm.evaluation.result import FinishedRun, Result
from taskpgm.export.train_file import Format, check_format, choose_format, trainer_units, write_train_jsonl
from taskpgm.files import KEY_FILE, Parts, digest, loaded, read_json
from taskpgm.lm.checkpoint import read_skeleton
from taskpgm.mixture.affinity import Affinity, measure_affinity
from taskpgm.mixture.bounds import Bounds, Group, make_bounds
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.energy import Energy
from taskpgm.mixture.expected import expected_change
from taskpgm.mixture.knob import choose_t
from taskpgm.mixture.limits import keep_tasks
from taskpgm.mixture.optimum import nearest_to_uniform
from taskpgm.mixture.selection import select_tasks
from taskpgm.mixture.solve import Mixture, solve_mixture
from taskpgm.pipeline.directory import differing, stale_because
from taskpgm.pipeline.inspection import inspect, late_lengths
from taskpgm.pipeline.keys import block_keys, data_parts, has_warm_start, mixture_parts, other_scores, score_parts
from taskpgm.pipeline.session import Session
from taskpgm.pipeline.starts import adapter_folder, ended_sentence, kept_sentence, parts_of_probe, parts_of_warm_start
from taskpgm.pool.plan import (
    RowPlan,
    budget_of,
    distinct_mixture,
    plan_rows,
    size_mixture,
    supply_bounds,
    uniform_mixture,
)
from taskpgm.pool.task_pool import TaskPool
from taskpgm.probes.cache import BASE, WARM, BlockCache, read_training
from taskpgm.probes.options import check_options
from taskpgm.scores import Scores
from taskpgm.system import Clock

if TYPE_CHECKING:
    from taskpgm.probes.probe import Probe


# Rows


def make_pool(session: Session) -> TaskPool:
    """Rows of all sets, split; read again if a source, the tokenizer or a setting of theirs changed."""
    artifacts, wanted = session.artifacts, {**data_parts(session.config), "model": session.engine.fingerprint}
    folder = artifacts / "pool"
    there = "pool" in artifacts.manifest.get("stages", {}) and (artifacts / "overlap.json").is_file()
    if not artifacts.is_stale("pool", folder, wanted) and there:
        return _of_parts(session, loaded(TaskPool.load, folder, *late_lengths(session.config), session.progress))
    clock = Clock()
    found = inspect(session.config, session.progress, artifacts.path)
    for note in found.notes:
        session.progress.say(note)
    with artifacts.folder(folder, wanted, "pool") as scratch:
        found.pool.save(scratch)
    artifacts.write_json("overlap.json", found.pool.overlap_table())
    tokens = sum(s.tokens for s in found.pool.all)
    artifacts.record("pool", wanted, clock, tokens=tokens, chat_template=found.encoder.has_template)
    return _of_parts(session, TaskPool.load(folder, *late_lengths(session.config), session.progress))


def _of_parts(session: Session, pool: TaskPool) -> TaskPool:
    """The pool, by whose rows workers are given parts of a GPU."""
    session.engine.part = partial(_gpu_part, session.config, pool)
    return pool


def recorded_pool(session: Session) -> TaskPool:
    """The pool as the last `probe` read it; the model's files are not looked at.

    Raises:
        UserError: its sources or settings changed since.
    """
    artifacts = session.artifacts
    found = artifacts.recorded("pool")["parts"]
    if why := differing(found, {**data_parts(session.config), "model": found["model"]}):
        raise UserError(f"{artifacts.path} was made with other data ({why}); run `taskpgm run` to bring it up to date.")
    vars(session.engine)["fingerprint"] = found["model"]
    return _of_parts(
        session, loaded(TaskPool.load, artifacts / "pool", *late_lengths(session.config), session.progress)
    )


# Probes


def make_probes(session: Session, pool: TaskPool) -> None:
    """One finished adapter for every task and probe seed; those are trained that are missing or out of date."""
    config, artifacts = session.config, session.artifacts
    allowed_shares(pool, config)  # what cannot be solved or written later is said before anything is trained
    check_format(pool, config.export.format, artifacts.recorded("pool")["chat_template"])
    check_options(pool, config)
    for seed in range(config.probes.seeds):
        if has_warm_start(config):
            _make_warm_start(session, pool, seed)
        stale = [
            task
            for task in config.tasks
            if artifacts.is_stale(
                f"the probe of {task.name!r}", adapter_folder(artifacts, task.name, seed),
                parts_of_probe(session, pool, task, seed),
            )
        ]  # fmt: skip
        if stale:
            _make_probes(session, pool, stale, seed)
    _record_probes(session)


def _gpu_part(config: Config, pool: TaskPool, kind: str) -> float:
    from taskpgm.probes.cost import gpu_part

    return gpu_part(config, pool, kind)


def _make_warm_start(session: Session, pool: TaskPool, seed: int) -> None:
    """The adapter that the probes of a seed start from."""
    artifacts, folder = session.artifacts, adapter_folder(session.artifacts, WARM, seed)
    parts = parts_of_warm_start(session, pool, seed)
    assert parts is not None, "there is to be one"
    if not artifacts.is_stale("the warm start", folder, parts):
        if said := kept_sentence(pool, parts):
            session.progress.say(said)
        return
    from taskpgm.probes.training import train_warm_start

    clock = Clock()
    rows = {task.name: task.train for task in pool.tasks}
    probe = train_warm_start(session.engine, rows, session.config, seed, session.progress)
    with artifacts.folder(folder, parts, "probe") as scratch:
        probe.save(scratch, seconds=clock.seconds, peak_memory=clock.peak())


def _make_probes(session: Session, pool: TaskPool, tasks: Sequence[TaskConfig], seed: int) -> None:
    """Adapters of these tasks: those that are brought are checked, the others trained."""
    from taskpgm.probes.probe import check_adapter, load_own_probe, load_probe
    from taskpgm.probes.training import train_probes

    config, artifacts, engine = session.config, session.artifacts, session.engine
    clock = Clock()

    def save(task: TaskConfig, probe: "Probe") -> None:
        parts = parts_of_probe(session, pool, task, seed)
        with artifacts.folder(adapter_folder(artifacts, task.name, seed), parts, "probe") as scratch:
            probe.save(scratch, seconds=clock.seconds, peak_memory=clock.peak())

    for task in tasks:
        if task.adapter:
            probe = load_probe(Path(task.adapter), task.name, seed)
            model = read_skeleton(config.model) if engine.workers.elsewhere else engine.lm.model
            check_adapter(model, config.model.path, probe)
            save(task, probe)
    trained = {task.name: task for task in tasks if not task.adapter}
    if trained:
        start = load_own_probe(adapter_folder(artifacts, WARM, seed), WARM, seed) if has_warm_start(config) else None
        rows = {name: pool[name].train for name in trained}
        ended: dict[str, str] = {}
        for probe in train_probes(engine, rows, config, seed, start, session.progress):
            save(trained[probe.task], probe)
            ended |= {probe.task: probe.ended} if probe.ended else {}
            clock = Clock()
        if ended:
            session.progress.say(ended_sentence(ended, len(trained)))


def _record_probes(session: Session) -> None:
    """Say in the manifest which probes there are, those that the settings ask for."""
    artifacts = session.artifacts
    folders = _adapter_folders(session)
    records = [read_training(folder) for folder in folders]
    artifacts.record(
        "probe", {artifacts.name(folder): artifacts.key(folder) for folder in folders},
        seconds=sum(r["seconds"] for r in records), peak_memory=max(r["peak_memory"] for r in records),
        trained_tokens=sum(r["trained_tokens"] for r in records),
    )  # fmt: skip


def _adapter_folders(session: Session) -> list[Path]:
    names = [*([WARM] if has_warm_start(session.config) else []), *(task.name for task in session.config.tasks)]
    seeds = range(session.config.probes.seeds)
    return [adapter_folder(session.artifacts, name, seed) for seed in seeds for name in names]


def load_probes(session: Session, seed: int = 0) -> "list[Probe]":
    """The finished probes of one probe seed, in the order of the tasks."""
    from taskpgm.probes.probe import load_own_probe

    tasks = session.config.tasks
    return [load_own_probe(adapter_folder(session.artifacts, task.name, seed), task.name, seed) for task in tasks]


# Scores


def make_scores(session: Session, pool: TaskPool) -> Scores:
    """Scores of all finished probes on all contexts; only blocks that are missing or out of date are run.

    Raises:
        UserError: a probe is missing or out of date.
    """
    from taskpgm.probes import scoring
    from taskpgm.probes.probe import load_own_probe

    config, artifacts = session.config, session.artifacts
    _check_probes(session, pool)
    adapters = _adapter_keys(session)
    if artifacts.differs("probe", adapters):  # fewer seeds than before, or stopped before they were recorded
        _record_probes(session)
    wanted = score_parts(config, pool, adapters)
    if (artifacts / "scores.npz").exists() and artifacts.differs("score", wanted) is None:
        return loaded(Scores.load, artifacts / "scores.npz", config.energy.loss)
    artifacts.forget("score")
    clock = Clock()
    probes = [probe for seed in range(config.probes.seeds) for probe in load_probes(session, seed)]
    if has_warm_start(config):
        seeds = range(config.probes.seeds)
        probes += [load_own_probe(adapter_folder(artifacts, WARM, seed), WARM, seed) for seed in seeds]
    adapters = {p.name: artifacts.key(adapter_folder(artifacts, p.task, p.seed)) for p in probes} | {BASE: BASE}
    cache = BlockCache(block_keys(config, session.engine.fingerprint, pool, adapters), artifacts / "blocks")
    made = scoring.make_scores(session.engine, pool, probes, config, cache)
    with artifacts.file("scores.npz") as scratch:
        made.scores.save(scratch)
    artifacts.record(
        "score", wanted, seconds=made.seconds, peak_memory=clock.peak(), contexts=made.contexts,
        context_tokens=made.context_tokens, scored_tokens=made.scored_tokens,
        positions=len(made.scores.position) // config.probes.seeds,
    )  # fmt: skip
    return replace(made.scores, loss=config.energy.loss)


def recorded_scores(session: Session, pool: TaskPool) -> Scores:
    """The scores that the run directory holds.

    Raises:
        UserError: probes, contexts or their settings changed since.
    """
    artifacts = session.artifacts
    found = artifacts.recorded("score")["parts"]
    _check_probes(session, pool)
    if why := other_scores(found, session.config, pool, _adapter_keys(session)):
        raise UserError(f"The scores in {artifacts.path} were made with other {why}; run `taskpgm score`.")
    return loaded(Scores.load, artifacts / "scores.npz", session.config.energy.loss)


def _adapter_keys(session: Session) -> dict[str, str]:
    artifacts = session.artifacts
    return {artifacts.name(folder): artifacts.key(folder) for folder in _adapter_folders(session)}


def _check_probes(session: Session, pool: TaskPool) -> None:
    """Errors if a probe is missing or out of date."""
    config, artifacts = session.config, session.artifacts
    for seed in range(config.probes.seeds):
        warm = adapter_folder(artifacts, WARM, seed)
        wanted = parts_of_warm_start(session, pool, seed)
        if wanted is not None and (why := stale_because(warm, wanted)):
            raise UserError(
                f"The warm start in {artifacts.path} is not up to date ({why}); run `taskpgm probe`, then "
                "`taskpgm score`."
            )
        for task in config.tasks:
            parts = parts_of_probe(session, pool, task, seed)
            if why := stale_because(adapter_folder(artifacts, task.name, seed), parts):
                raise UserError(
                    f"The probe of task {task.name!r} in {artifacts.path} is not up to date ({why}); "
                    "run `taskpgm probe`, then `taskpgm score`."
                )


# Mixture and training set


def allowed_shares(pool: TaskPool, config: Config) -> Bounds:
    """Least and largest share of every task and group, by the configuration and the supply.

    Raises:
        UserError: no mixture keeps them all.
    """
    lo, hi = supply_bounds(pool, config)  # raises if the budget exceeds the supply
    return make_bounds(
        pool.names, lo, {task.name: task.max_share for task in config.tasks}, hi,
        [Group(g.name, g.tasks, g.min_share, g.max_share) for g in config.groups],
    )  # fmt: skip


def choose_energy(scores: Scores, affinity: Affinity, pool: TaskPool, config: Config) -> Energy:
    """The energy that the configuration asks for; a knob t that it leaves open is chosen by prediction."""
    if config.energy.kind == "affinity" and config.energy.t is None and affinity.kind != "ratio":
        return choose_t(scores, affinity, config.energy, allowed_shares(pool, config))
    by_size = config.energy.reference == "size"
    reference = size_mixture(pool, config.budget.unit) if by_size else distinct_mixture(pool)
    energy = build_energy(scores, affinity, config.energy, config.target_weights, reference, budget_of(pool, config))
    return keep_tasks(energy, scores, config.energy, allowed_shares(pool, config))


def solve(pool: TaskPool, scores: Scores, config: Config, exhaustive: bool = False) -> Result:
    """The certified mixture and the rows that it takes, from the scores and nothing else; nothing is written.

    Args:
        exhaustive: if tasks are selected, look at every set of them.

    Raises:
        UserError: a setting that the energy cannot take, or bounds that no mixture keeps.
    """
    affinity, k = measure_affinity(scores, config.affinity), config.selection.k
    if k:
        config = config.model_copy(update={"energy": config.energy.unlimited("A selection of k tasks")})
    energy = choose_energy(scores, affinity, pool, config)
    bounds = allowed_shares(pool, config)
    selection = select_tasks(energy, bounds, k, exhaustive) if k else None
    references = {
        "uniform": uniform_mixture(pool),
        "size-proportional": size_mixture(pool, config.budget.unit),
    }
    mixture = solve_mixture(energy, bounds, references, selection.chosen if selection else None)
    if energy.kind == "likelihood" and config.targets and not config.option_targets:
        uniform = nearest_to_uniform(bounds)
        found = expected_change(scores, config.target_weights, mixture.weights, uniform, budget_of(pool, config))
        mixture = replace(mixture, expected=found)
    plan = plan_rows(pool, mixture.shares, config)
    return Result(pool, scores, affinity, energy, mixture, plan, selection)


def keep_mixture(session: Session, result: Result, clock: Clock) -> None:
    """Write the mixture as the run's own: `affinity.npz`, `mixture.json`, `selection.json` if tasks were selected."""
    artifacts = session.artifacts
    if not mixture_is_there(session, result):
        artifacts.forget("solve")
    with artifacts.file("affinity.npz") as path:
        result.affinity.save(path)
    if result.selection:
        artifacts.write_json("selection.json", result.selection.to_dict())
    else:
        (artifacts / "selection.json").unlink(missing_ok=True)
    artifacts.write_json("mixture.json", counted(result.mixture, result.plan))
    if artifacts.differs("probe", _adapter_keys(session)):
        _record_probes(session)
    artifacts.record("solve", mixture_parts(session.config, artifacts.manifest["stages"]), clock)


def mixture_is_there(session: Session, result: Result) -> bool:
    """Whether the run directory has this mixture and the rows that it takes."""
    written = session.artifacts / "mixture.json"
    same = json.loads(json.dumps(counted(result.mixture, result.plan)))
    with suppress(OSError, ValueError):
        return read_json(written) == same
    return False


def training_set_is_there(session: Session, result: Result) -> bool:
    """Whether the run's `train.jsonl` has the rows of this mixture, in the format that is asked for."""
    same = session.artifacts.differs("sample", _training_set(session, result)) is None
    return same and (session.artifacts / "train.jsonl").exists()


def _training_set(session: Session, result: Result) -> Parts:
    """What the run's training set depends on."""
    counts = [[task.name, task.count] for task in result.plan.tasks]
    return {
        "rows": digest(session.artifacts.recorded("pool")["parts"]),
        "mixture": digest([counts, session.config.seed]),
        "format": _layout(session, result),
    }


def _layout(session: Session, result: Result) -> Format:
    has_template = session.artifacts.recorded("pool")["chat_template"]
    return choose_format(result.pool, result.plan, session.config.export.format, has_template)


def keep_training_set(session: Session, result: Result, clock: Clock, name: str = "train.jsonl") -> None:
    """Write the rows of the plan; the run's own, `train.jsonl`, is recorded."""
    artifacts, layout = session.artifacts, _layout(session, result)
    if name == "train.jsonl" and not training_set_is_there(session, result):
        artifacts.forget("sample")
    with artifacts.file(name) as path:
        write_train_jsonl(path, result.pool, result.plan, layout)
    if name == "train.jsonl":
        tokens = sum(task.tokens for task in result.plan.tasks)
        artifacts.record("sample", _training_set(session, result), clock, rows=len(result.plan), response_tokens=tokens)


def keep_apart(
    session: Session, folder: str, facts: Mapping[str, dict[str, Any]], result: Result, sample: bool = True
) -> None:
    """Write another mixture than the run's own into a folder below the run, with what it depends on.

    Args:
        facts: what belongs to it, by file name.
        sample: also write its training set; one that is there already is always brought up to date.
    """
    artifacts = session.artifacts
    (artifacts / folder / KEY_FILE).unlink(missing_ok=True)
    for name, data in (*facts.items(), ("mixture.json", counted(result.mixture, result.plan))):
        artifacts.write_json(f"{folder}/{name}", data)
    if sample or (artifacts / folder / "train.jsonl").exists():
        keep_training_set(session, result, Clock(), f"{folder}/train.jsonl")
    artifacts.write_json(f"{folder}/{KEY_FILE}", mixture_parts(session.config, artifacts.manifest["stages"]))


def counted(mixture: Mixture, plan: RowPlan) -> dict[str, Any]:
    """mixture.json: the mixture, and what the training set holds of each task."""
    data = mixture.to_dict()
    units = trainer_units(plan)
    for task in data["tasks"]:
        planned = asdict(plan[task["name"]])
        task |= {key: planned[key] for key in ("count", "tokens", "rows", "epochs", "row_share", "token_share")}
        task["draw_probability"] = units[task["name"]].draw_probability
        task |= {"replaced": planned["replaced"]} if planned["replaced"] else {}
    budget = {"unit": plan.unit, "size": plan.budget, "rows": len(plan)}
    if plan.unit == "tokens":
        budget["tokens"] = sum(task.tokens for task in plan.tasks)
    return {**data, "budget": budget}


def finished_run(session: Session, result: Result) -> FinishedRun:
    """The run, to be compared with other mixtures or predicted."""
    artifacts, engine = session.artifacts, session.engine
    return FinishedRun(session.config, result, engine, lambda: load_probes(session), artifacts.path)
