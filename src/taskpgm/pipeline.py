"""The stages in order, each resuming from what the run directory holds; with `compare.py` what touches the store.

    pool      rows of all sets, split                      pool/, overlap.json
    probe     a warm start, then one adapter a task        warm/, adapters/<task>/ (….1/ for a second seed)
    score     every probe on every context                 blocks/<set>.npz, scores.npz
    solve     affinities, energy, mixture                  affinity.npz, mixture.json
    sample    rows of the training set                     train.jsonl

`solve` and `sample` read scores and rows and never load the model.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from taskpgm.affinity import Affinity, measure_affinity
from taskpgm.blocks import BASE, WARM, Block, read_blocks, usable, write_blocks
from taskpgm.bounds import Bounds, Group, make_bounds
from taskpgm.checkpoint import limits_of, model_fingerprint, read_skeleton
from taskpgm.config import Config, EnergyConfig, Source, TaskConfig
from taskpgm.conversations import READING_VERSION, title_of
from taskpgm.energy import Energy, build_energy
from taskpgm.errors import UserError
from taskpgm.export import check_format, choose_format, trainer_units, write_train_jsonl
from taskpgm.files import asked_of, files_of
from taskpgm.knob import choose_t
from taskpgm.machine import Clock, environment, wait_passively
from taskpgm.mixture import Mixture, solve_mixture
from taskpgm.plan import RowPlan, plan_rows, size_mixture, supply_bounds, uniform_mixture
from taskpgm.scores import Ints, Scores
from taskpgm.selection import Selection, select_tasks
from taskpgm.store import (
    RunDirectory,
    atomic_file,
    atomic_folder,
    differing,
    digest,
    files_digest,
    path_digest,
    stale_because,
)
from taskpgm.tasks import TaskPool, Tell, load_tasks, tell_nobody

if TYPE_CHECKING:
    from taskpgm.chat import ChatEncoder, Encoded
    from taskpgm.lm import LanguageModel
    from taskpgm.probes import Probe

Say = Callable[[str], None]
Parts = dict[str, str]


@dataclass(frozen=True)
class Result:
    """What a run leaves behind, in memory; the same is in the run directory."""

    pool: TaskPool
    scores: Scores
    affinity: Affinity
    energy: Energy
    mixture: Mixture
    plan: RowPlan
    selection: Selection | None = None  # where `selection.k` asks for one


def run(config: Config, out: Path | str, tell: Tell = tell_nobody, say: Say = lambda _: None) -> Result:
    """All stages on the directory `out`, from task files to `train.jsonl`; what is done already is not done again.

    Args:
        config: the experiment.
        out: run directory, made if missing.
        tell: progress, called with (what, done, total).
        say: told in a sentence what is done again and why, and of what went otherwise than planned.

    Raises:
        UserError: wrong input or settings, or another process on `out`; finished work is kept.
    """
    with RunDirectory(out) as directory:
        stages = Stages(config, directory, tell, say)
        stages.probe()
        stages.score()
        return stages.sample()


class Stages:
    """The stages of one experiment on one run directory. The model is loaded when a stage first needs it."""

    def __init__(
        self, config: Config, directory: RunDirectory, tell: Tell = tell_nobody, say: Say = lambda _: None
    ) -> None:
        wait_passively()
        self.config = config
        self.directory = directory
        self.tell = tell
        self.say = say
        self.manifest: dict[str, Any] = directory.manifest()
        self._lm: LanguageModel | None = None
        self._pool: TaskPool | None = None
        self._fingerprint: str | None = None

    # --- pool ---

    def pool(self) -> TaskPool:
        """Rows of all sets, split; read again where a source, the tokenizer or a setting of theirs changed."""
        if self._pool is not None:
            return self._pool
        wanted = {**self._data_parts(), "model": self.fingerprint}
        folder = self.directory / "pool"
        if self._why_again("pool", stale_because(folder, wanted)) is None and "pool" in self.manifest.get("stages", {}):
            self._pool = TaskPool.load(folder)
            return self._pool
        started = Clock()
        found = inspect(self.config, self.tell)
        self._pool = found.pool
        self._invalidate("pool")
        with atomic_folder(folder, wanted) as scratch:
            self._pool.save(scratch)
        write_json(self.directory / "overlap.json", self._pool.overlap_table())
        tokens = sum(row.tokens for s in self._pool.all for row in (*s.train, *s.contexts, *s.validation))
        self._record("pool", wanted, started, tokens=tokens, chat_template=found.encoder.has_template)
        return self._pool

    def _recorded_pool(self) -> TaskPool:
        """The pool as the last `probe` or `score` read it; an error where its sources or settings changed since."""
        if self._pool is None:
            found = self._stage("pool")["parts"]
            wanted = {**self._data_parts(), "model": found["model"]}
            if why := differing(found, wanted):
                raise UserError(
                    f"{self.directory.path} was made with other data ({why}); run `taskpgm run` to bring it up to date."
                )
            self._pool, self._fingerprint = TaskPool.load(self.directory / "pool"), found["model"]
        return self._pool

    def _data_parts(self) -> Parts:
        """What the pool depends on, but for the model: every source and the settings of the split."""
        config = self.config
        parts = {
            f"data of {source.name!r}": digest([_source_settings(source), _source_digest(source)])
            for source in (*config.tasks, *config.targets)
        }
        order = [[s.name for s in config.tasks], [s.name for s in config.targets]]
        model = [config.model.path, config.model.revision]
        return {
            **parts,
            "list of tasks and targets": digest(order),
            "how rows are read": digest(READING_VERSION),
            "model setting": digest(model),
            "seed": digest(config.seed),
            "contexts": digest(config.contexts.model_dump()),
            "probes.max_length": digest(config.probes.max_length),
        }

    # --- probe ---

    def probe(self) -> None:
        """One finished adapter for every task and probe seed; trains those that are missing or out of date."""
        pool = self.pool()
        allowed_shares(pool, self.config)  # what cannot be solved or written later is said before anything is trained
        check_format(pool, self.config.export.format, self._stage("pool")["chat_template"])
        for seed in range(self.config.probes.seeds):
            self._warm_start(pool, seed)
            stale = []
            for task in self.config.tasks:
                why = stale_because(self._adapter(task.name, seed), self._probe_parts(pool, task, seed))
                if self._why_again(f"the probe of {task.name!r}", why) is not None:
                    stale.append(task)
            if stale:
                self._invalidate("probe")
                self._make_probes(pool, stale, seed)
        self._record_probes(pool)

    def _warm_start(self, pool: TaskPool, seed: int) -> None:
        """The adapter that the probes of a seed start from, trained if it is missing or out of date."""
        from taskpgm.training import train_warm_start

        if not self._warm:
            return
        why = stale_because(self._adapter(WARM, seed), self._warm_parts(pool, seed))
        if self._why_again("the warm start", why) is not None:
            started = Clock()
            self._invalidate("probe")
            rows = {task.name: task.train for task in pool.tasks}
            probe = train_warm_start(self.lm, rows, self.config, seed, self.tell, self.say)
            with atomic_folder(self._adapter(WARM, seed), self._warm_parts(pool, seed)) as folder:
                probe.save(folder, seconds=started.seconds, peak_memory=started.peak())

    @property
    def _warm(self) -> bool:
        """Whether probes start from a warm start: not beside the user's own, which started elsewhere."""
        return self.config.probes.warm_start and not any(task.adapter for task in self.config.tasks)

    def _make_probes(self, pool: TaskPool, tasks: Sequence[TaskConfig], seed: int) -> None:
        from taskpgm.probes import check_adapter, load_probe
        from taskpgm.training import train_probes

        started = Clock()
        for task in tasks:
            if task.adapter:
                probe = load_probe(Path(task.adapter), task.name, seed)
                check_adapter(self.lm.model, self.config.model.path, probe)
                self._save_probe(pool, task, probe, started)
        rows = {task.name: pool[task.name].train for task in tasks if not task.adapter}
        by_name = {task.name: task for task in tasks}
        if rows:
            start = load_probe(self._adapter(WARM, seed), WARM, seed) if self._warm else None
            for probe in train_probes(self.lm, rows, self.config, seed, self.tell, self.say, start):
                self._save_probe(pool, by_name[probe.task], probe, started)
                started = Clock()

    def trained(self, seed: int = 0) -> "list[Probe]":
        """The finished probes of one probe seed, in the order of the tasks."""
        from taskpgm.probes import load_probe

        return [load_probe(self._adapter(task.name, seed), task.name, seed) for task in self.config.tasks]

    def _save_probe(self, pool: TaskPool, task: TaskConfig, probe: "Probe", started: "Clock") -> None:
        with atomic_folder(self._adapter(task.name, probe.seed), self._probe_parts(pool, task, probe.seed)) as folder:
            probe.save(folder, seconds=started.seconds, peak_memory=started.peak())

    def _record_probes(self, pool: TaskPool) -> None:
        from taskpgm.probes import TRAINING

        folders = self._adapters()
        records = [json.loads((folder / TRAINING).read_text()) for folder in folders]
        parts = {str(folder.relative_to(self.directory.path)): self._parts_digest(folder) for folder in folders}
        self._record(
            "probe", parts,
            seconds=sum(r["seconds"] for r in records), peak_memory=max(r["peak_memory"] for r in records),
            trained_tokens=sum(r["trained_tokens"] for r in records),
        )  # fmt: skip

    def _adapter(self, task: str, seed: int) -> Path:
        number = f".{seed}" if seed else ""
        if task == WARM:
            return self.directory / f"warm{number}"
        return self.directory / f"adapters{number}" / task

    def _adapters(self) -> list[Path]:
        return [self._adapter(name, s) for s in range(self.config.probes.seeds) for name in self._trained_names]

    @property
    def _trained_names(self) -> list[str]:
        return [*([WARM] if self._warm else []), *(task.name for task in self.config.tasks)]

    def _parts_digest(self, folder: Path) -> str:
        return digest(json.loads((folder / "key.json").read_text()))

    def _probe_parts(self, pool: TaskPool, task: TaskConfig, seed: int) -> Parts:
        if task.adapter:
            if not Path(task.adapter).is_dir():
                raise UserError(f"Task {task.name!r}: adapter {task.adapter} is no folder; check the path.")
            return {"model": self.fingerprint, "adapter": path_digest(Path(task.adapter))}
        settings = self.config.probes.model_dump(include={"lora", "learning_rate"})
        settings |= {"unit": self.config.budget.unit, "size": self.config.probe_size, "steps": self.config.probe_steps}
        return {
            "model": self.fingerprint,
            "training rows": pool[task.name].train_key,
            "seed": digest([self.config.seed, seed]),
            "probes": digest(settings),
            "probes.max_length": digest(self.config.probes.max_length),
            "warm start": digest(self._warm_parts(pool, seed) if self._warm else None),
        }

    def _warm_parts(self, pool: TaskPool, seed: int) -> Parts:
        """What a warm start depends on."""
        settings = self.config.probes.model_dump(include={"lora", "learning_rate", "max_length"})
        size = self.config.warm_size
        settings |= {"unit": self.config.budget.unit, "size": size, "steps": self.config.steps_of(size)}
        return {
            "model": self.fingerprint,
            "training rows": digest([(task.name, task.train_key) for task in pool.tasks]),
            "seed": digest([self.config.seed, seed]),
            "probes": digest(settings),
        }

    # --- score ---

    def score(self) -> Scores:
        """Scores of all finished probes on all contexts; only blocks that are missing or out of date are run.

        Raises:
            UserError: a probe is missing or out of date.
        """
        pool = self.pool()
        self._check_probes(pool)
        wanted = self._score_parts(pool)
        path = self.directory / "scores.npz"
        if path.exists() and differing(self._stage("score", {}).get("parts", {}), wanted) is None:
            return Scores.load(path)
        self._invalidate("score")
        return self._make_scores(pool, path, wanted)

    def _make_scores(self, pool: TaskPool, path: Path, wanted: Parts) -> Scores:
        from taskpgm.chat import ChatEncoder, load_tokenizer
        from taskpgm.probes import load_probe
        from taskpgm.scoring import assemble, encode_contexts, measure_divergences, sample_positions, starts

        started = Clock()
        config, seeds = self.config, range(self.config.probes.seeds)
        probes = [probe for s in seeds for probe in self.trained(s)]
        names = [[probe.name for probe in probes if probe.seed == s] for s in seeds]
        if self._warm:
            probes += [load_probe(self._adapter(WARM, s), WARM, s) for s in seeds]
        contexts = encode_contexts(ChatEncoder(load_tokenizer(config.model), config.probes.max_length), pool)
        sample = {}
        if config.affinity.kind == "jsd":
            of_tasks = {name: contexts[name] for name in pool.names}
            sample = sample_positions(of_tasks, config.affinity.jsd_positions, config.seed)
        blocks, seconds = self._blocks(pool, contexts, probes, {name: columns for name, (columns, _) in sample.items()})
        divergences = None
        if sample:
            adapters = self._adapter_digests(probes)

            def hidden(name: str) -> Any:
                return self._hidden_states(pool, name, sample[name][0], adapters)

            divergences = measure_divergences(self.lm, contexts, sample, hidden, names, self.tell)
        scores = assemble(pool.names, contexts, blocks, names, divergences, starts(probes))
        with atomic_file(path) as scratch:
            scores.save(scratch)
        tokens = sum(len(row.ids) for rows in contexts.values() for row in rows)
        self._record(
            "score", wanted, seconds=seconds, peak_memory=started.peak(), contexts=sum(map(len, contexts.values())),
            context_tokens=tokens, scored_tokens=tokens * (len(probes) + (not self._warm)),
            positions=len(scores.position) // len(seeds),
        )  # fmt: skip
        return scores

    def _score_parts(self, pool: TaskPool) -> Parts:
        keys = {str(f.relative_to(self.directory.path)): self._parts_digest(f) for f in self._adapters()}
        jsd = self.config.affinity.jsd_positions if self.config.affinity.kind == "jsd" else 0
        return {
            "probes": digest(keys),
            "contexts": digest([(s.name, s.context_key) for s in pool.all]),
            "affinity.jsd_positions": digest(jsd),
        }

    def _check_probes(self, pool: TaskPool) -> None:
        for seed in range(self.config.probes.seeds):
            why = self._warm and stale_because(self._adapter(WARM, seed), self._warm_parts(pool, seed))
            if why:
                raise UserError(
                    f"The warm start in {self.directory.path} is not up to date ({why}); run `taskpgm probe`, then "
                    "`taskpgm score`."
                )
            for task in self.config.tasks:
                why = stale_because(self._adapter(task.name, seed), self._probe_parts(pool, task, seed))
                if why:
                    raise UserError(
                        f"The probe of task {task.name!r} in {self.directory.path} is not up to date ({why}); "
                        "run `taskpgm probe`, then `taskpgm score`."
                    )

    def _blocks(
        self, pool: TaskPool, contexts: "Mapping[str, list[Encoded]]", probes: "Sequence[Probe]",
        columns: Mapping[str, Ints],
    ) -> tuple[dict[tuple[str, str], Block], float]:  # fmt: skip
        """All blocks without their hidden states, and the seconds that they took in all.

        Those that are in the store are not made again; hidden states stay in the store, since n probes' would not fit.
        """
        from taskpgm.scoring import check_divergences_possible, score_sets

        adapters = self._adapter_digests(probes)
        keys = {name: self._block_keys(pool, name, adapters) for name in contexts}
        everyone = [p.name for p in probes] + [BASE] * (not self._warm)
        blocks: dict[tuple[str, str], Block] = {}
        seconds: dict[tuple[str, str], float] = {}
        some = False
        for name in contexts:
            stored = read_blocks(self._block_file(name))
            some |= bool(stored)
            for probe in everyone:
                found = usable(stored.get(keys[name][probe]), columns.get(name) if probe != BASE else None)
                if found is not None:
                    blocks[probe, name], seconds[probe, name] = Block(found[0].logp), found[1]
        missing = {name: [p for p in everyone if (p, name) not in blocks] for name in contexts}
        if any(missing.values()):
            if some:
                count, of = sum(map(len, missing.values())), len(everyone) * len(contexts)
                self.say(f"scoring {count} of {of} blocks; the others are there")
            if columns:
                check_divergences_possible(self.lm, probes)
            clock = Clock()
            for name, new in score_sets(self.lm, contexts, probes, missing, columns, self.tell, self.say):
                spent = clock.seconds / len(new)
                self._keep_blocks(name, keys[name], new, columns.get(name), spent)
                blocks |= {k: Block(block.logp) for k, block in new.items()}
                seconds |= dict.fromkeys(new, spent)
                clock = Clock()
        return blocks, sum(seconds.values())

    def _keep_blocks(
        self, name: str, keys: Mapping[str, str], new: Mapping[tuple[str, str], Block], columns: Ints | None,
        seconds: float,
    ) -> None:  # fmt: skip
        """Add blocks to the file of their set, which keeps those that are still of use."""
        current = set(keys.values())
        kept = {k: stored for k, stored in read_blocks(self._block_file(name)).items() if k in current}
        kept |= {keys[probe]: (block, columns if probe != BASE else None, seconds) for (probe, _), block in new.items()}
        write_blocks(self._block_file(name), kept)

    def _block_file(self, name: str) -> Path:
        return self.directory / "blocks" / f"{name}.npz"

    def _adapter_digests(self, probes: "Sequence[Probe]") -> dict[str, str]:
        return {p.name: self._parts_digest(self._adapter(p.task, p.seed)) for p in probes} | {BASE: BASE}

    def _block_keys(self, pool: TaskPool, name: str, adapters: Mapping[str, str]) -> dict[str, str]:
        """By probe (and BASE), what a block of this set is made of."""
        made_of = [pool[name].context_key, self.config.probes.max_length]
        return {probe: digest([self.fingerprint, adapter, *made_of]) for probe, adapter in adapters.items()}

    def _hidden_states(self, pool: TaskPool, name: str, columns: Ints, adapters: Mapping[str, str]) -> dict[str, Any]:
        """Last hidden states of a set at these columns, by probe, from the store."""
        stored, keys = read_blocks(self._block_file(name)), self._block_keys(pool, name, adapters)
        found = {probe: usable(stored[keys[probe]], columns) for probe in adapters if probe != BASE}
        return {probe: block[0].hidden for probe, block in found.items() if block}

    # --- solve ---

    def solve(self) -> Result:
        """Affinities, energy and the certified mixture, written to `affinity.npz` and `mixture.json`.

        Raises:
            UserError: no scores, scores of other data or probes, or a setting that the energy cannot take.
        """
        started = Clock()
        pool, scores, affinity, energy, bounds = self.problem()
        k = self.config.selection.k
        selection = select_tasks(energy, bounds, k) if k else None
        references = {
            "uniform": uniform_mixture(pool),
            "size-proportional": size_mixture(pool, self.config.budget.unit),
        }
        mixture = solve_mixture(energy, bounds, references, selection.chosen if selection else None)
        plan = plan_rows(pool, mixture.shares, self.config)
        with atomic_file(self.directory / "affinity.npz") as path:
            affinity.save(path)
        if selection:
            write_json(self.directory / "selection.json", selection.to_dict())
        else:
            (self.directory / "selection.json").unlink(missing_ok=True)
        write_json(self.directory / "mixture.json", _counted(mixture, plan))
        self._record("solve", {"scores": digest(self._stage("score")["parts"])}, started)
        return Result(pool, scores, affinity, energy, mixture, plan, selection)

    def problem(self) -> tuple[TaskPool, Scores, Affinity, Energy, Bounds]:
        """What there is to solve, from the rows and the scores that the run directory holds."""
        pool = self._recorded_pool()
        scores = self._recorded_scores(pool)
        config = self.config
        affinity = measure_affinity(scores, config.affinity)
        weights = {target.name: target.weight for target in config.targets}
        reference = (
            size_mixture(pool, config.budget.unit) if config.energy.reference == "size" else uniform_mixture(pool)
        )
        bounds = allowed_shares(pool, config)
        if config.energy.kind == "affinity" and config.energy.t is None and affinity.kind != "ratio":
            energy = choose_t(scores, affinity, config.energy, bounds)
        else:
            energy = build_energy(scores, affinity, config.energy, weights, reference)
        return pool, scores, affinity, energy, bounds

    def _recorded_scores(self, pool: TaskPool) -> Scores:
        """The scores that `score` wrote; an error where probes, contexts or their settings changed since."""
        found = self._stage("score")["parts"]
        self._check_probes(pool)
        wanted = self._score_parts(pool)
        if self.config.affinity.kind != "jsd":
            wanted["affinity.jsd_positions"] = found["affinity.jsd_positions"]
        if why := differing(found, wanted):
            raise UserError(f"The scores in {self.directory.path} were made with other {why}; run `taskpgm score`.")
        return Scores.load(self.directory / "scores.npz")

    # --- sample ---

    def sample(self) -> Result:
        """The training set `train.jsonl` in the mixture's proportions; solves first, which takes no model."""
        result = self.solve()
        started = Clock()
        config = self.config.export
        layout = choose_format(result.pool, result.plan, config.format, self._stage("pool")["chat_template"])
        with atomic_file(self.directory / "train.jsonl") as path:
            write_train_jsonl(path, result.pool, result.plan, layout)
        tokens = sum(task.tokens for task in result.plan.tasks)
        self._record(
            "sample", {"solve": digest(result.mixture.shares)}, started, rows=len(result.plan), response_tokens=tokens
        )
        return result

    # --- what the stages share ---

    @property
    def lm(self) -> "LanguageModel":
        """The base model, loaded on first use."""
        if self._lm is None:
            from taskpgm.lm import load_model

            self.tell("loading the model", 0, 1)
            self._lm = load_model(self.config.model)
            self.tell("loading the model", 1, 1)
            if not self._lm.plain_head:
                self.say(
                    f"{self.config.model.path!r} is run whole and padded, which takes two to three times as long: "
                    f"{self._lm.whole_because}."
                )
        return self._lm

    @property
    def fingerprint(self) -> str:
        """Hash of the base model's files."""
        if self._fingerprint is None:
            self.tell("opening the model", 0, 1)  # a GGUF file is converted when it is first used
            self._fingerprint = model_fingerprint(self.config.model)
            self.tell("opening the model", 1, 1)
        return self._fingerprint

    def _stage(self, name: str, default: Any = None) -> Any:
        found = self.manifest.get("stages", {}).get(name, default)
        if found is None:
            before = {"pool": "probe", "solve": "solve"}.get(name, name)
            raise UserError(
                f"{self.directory.path} has no finished stage {name!r}; run `taskpgm {before}` or `taskpgm run` first."
            )
        return found

    def _why_again(self, what: str, why: str | None) -> str | None:
        """`why`, said aloud where something is there but cannot be used."""
        if why not in (None, "missing"):
            self.say(f"{what} is made again: {why} changed")
        return why

    def _invalidate(self, stage: str) -> None:
        """Take a stage out of the manifest before its files change, so that a crash leaves none that does not match."""
        stages = self.manifest.get("stages", {})
        if stages.pop(stage, None) is not None:
            self.directory.write_manifest(self.manifest)

    def _record(self, stage: str, parts: Parts, started: "Clock | None" = None, **facts: Any) -> None:
        if started is not None:
            facts = {"seconds": started.seconds, "peak_memory": started.peak(), **facts}
        facts["seconds"] = round(facts["seconds"], 3)
        stages = {**self.manifest.get("stages", {}), stage: {"parts": parts, **facts}}
        self.manifest = {
            **environment(),
            "model": {"path": self.config.model.path, "fingerprint": self.fingerprint},
            "settings": self.config.model_dump(mode="json"),
            "stages": stages,
        }
        self.directory.write_manifest(self.manifest)


class Inspection(NamedTuple):
    """What `check` shows and a run begins with."""

    pool: TaskPool
    encoder: "ChatEncoder"  # of its rows
    runnable: bool  # there is a model beside the tokenizer
    notes: list[str]  # on the model, and on the adapters that were brought


def inspect(config: Config, tell: Tell = tell_nobody) -> Inspection:
    """All rows and their lengths, the model by its shapes, and brought adapters on it; no weight of the model is read.

    Raises:
        UserError: what a run would raise for its model, its adapters or its data.
    """
    from taskpgm.chat import ChatEncoder, load_tokenizer
    from taskpgm.probes import check_adapters

    tell("opening the model", 0, 1)
    tokenizer = load_tokenizer(config.model)
    skeleton = read_skeleton(config.model)
    notes = check_adapters(config, skeleton)
    tell("opening the model", 1, 1)
    if skeleton is None:
        notes.append(f"{config.model.path} holds a tokenizer alone: rows can be counted, but a run needs the model")
    encoder = ChatEncoder(tokenizer, config.probes.max_length, limits_of(skeleton) if skeleton is not None else None)
    return Inspection(load_tasks(config, encoder.lengths, tell), encoder, skeleton is not None, notes)


def solve_affinity(
    affinity: Affinity, config: EnergyConfig, out: Path | str, k: int | None = None, exhaustive: bool = False
) -> tuple[Mixture, Selection | None]:
    """Mixture, and selection of at most k tasks, from a matrix alone, written to `out`: no model, no rows, no counts.

    Raises:
        UserError: a k that the tasks do not allow, or no value of `config.t`.
    """
    with RunDirectory(out) as directory:
        energy = build_energy(None, affinity, config)
        selection = select_tasks(energy, None, k, exhaustive) if k else None
        mixture = solve_mixture(energy, None, {"uniform": None}, selection.chosen if selection else None)
        if selection:
            write_json(directory / "selection.json", selection.to_dict())
        write_json(directory / "mixture.json", mixture.to_dict())
        return mixture, selection


def write_json(path: Path, data: Any) -> None:
    """Data as JSON in UTF-8, in one piece or not at all."""
    with atomic_file(path) as scratch:
        scratch.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _counted(mixture: Mixture, plan: RowPlan) -> dict[str, Any]:
    """mixture.json: the mixture, and what the training set holds of each task."""
    data = mixture.to_dict()
    units = trainer_units(plan)
    for task in data["tasks"]:
        planned = asdict(plan[task["name"]])
        task |= {key: planned[key] for key in ("count", "tokens", "rows", "epochs", "row_share", "token_share")}
        task["draw_probability"] = units[task["name"]].draw_probability
    return {**data, "budget": {"unit": plan.unit, "size": plan.budget, "rows": len(plan)}}


def allowed_shares(pool: TaskPool, config: Config) -> Bounds:
    """Least and largest share of every task and group, by the configuration and the supply.

    Raises:
        UserError: no mixture keeps them all.
    """
    lo, hi = supply_bounds(pool, config)  # raises where the budget exceeds the supply
    return make_bounds(
        pool.names, lo, {task.name: task.max_share for task in config.tasks}, hi,
        [Group(g.name, g.tasks, g.min_share, g.max_share) for g in config.groups],
    )  # fmt: skip


def _source_settings(source: Source) -> dict[str, Any]:
    return source.model_dump(include={"subset", "split", "columns"})


def _source_digest(source: Source) -> list[str]:
    """Hashes of the files that a source reads; a hub id stands for itself."""
    asked = [asked_of(source, title_of(source))]
    if validation := getattr(source, "validation", None):
        asked.append(asked_of(source, title_of(source), validation))
    return [files_digest(files.paths) if (files := files_of(one)) else one.path for one in asked]
