"""Makes `Scores`: every probe's label log-probabilities on the shared contexts.

The unit of work is a block: one context set under one probe, (T_set,) log-probabilities and, if divergences are
asked for, the last hidden states at the set's sampled positions. Blocks do not depend on each other, but for small
sets that share batches (`joining`): without a warm start a new task costs its own probe on all sets, and all probes on
its own set and on those that are joined with it.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskpgm.chat.encoder import ChatEncoder, Encoded
from taskpgm.config import Config
from taskpgm.errors import UserError
from taskpgm.lm.batching import batches, split_on_oom
from taskpgm.lm.engine import Engine, as_engine
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.packing import Packed, ends, pack
from taskpgm.pool.task_pool import TaskPool
from taskpgm.probes.cache import BASE, WARM, Block, BlockCache, Blocks
from taskpgm.probes.divergence import label_logp
from taskpgm.probes.diverging import Hidden, check_divergences_possible, measure_divergences, sample_positions
from taskpgm.probes.joining import joined_sets
from taskpgm.probes.options import encode_options
from taskpgm.probes.probe import Probe, Use, installed
from taskpgm.progress import QUIET, Progress
from taskpgm.scores import Divergences, Scores, context_groups
from taskpgm.system import Clock, release_memory
from taskpgm.types import Floats, Ints
from taskpgm.workers.dispatch import Do, Job

ADAPTER_MEMORY = 2 << 30  # bytes of adapters that the model carries at a time: a guess


def score_sets(
    engine: Engine,
    contexts: Mapping[str, list[Encoded]],
    probes: Sequence[Probe],
    missing: Mapping[str, Sequence[str]],
    sampled: Mapping[str, Ints] | None = None,
    progress: Progress = QUIET,
    joined: Sequence[Sequence[str]] | None = None,
) -> Iterator[tuple[str, Blocks]]:
    """Blocks of one set after another, as they are done; a set may come several times, with other probes.

    Args:
        contexts: encoded contexts by set.
        missing: probe names (or BASE) still to score, by set.
        sampled: by set, the positions at which hidden states are kept, as indices into the set's columns.
        joined: the sets in groups that share batches; left out: each is alone.
    """
    joined = joined or [[name] for name in contexts]
    sizes = sizes_of(rows_of(contexts, joined))
    passes = sum(len(_wanted_by_any(missing, g)) * sum(len(contexts[name]) for name in g) for g in joined)
    with progress.stage("scoring", passes, "pass"):
        for chunk in _chunks(probes):
            wanted: dict[str, list[str]] = {
                name: [p.name for p in chunk if p.name in missing[name]] for name in contexts
            }
            for name in contexts:
                if BASE in missing[name] and (not chunk or chunk[0] is probes[0]):
                    wanted[name].append(BASE)  # last, so that it shares the probes' prefix
            groups = [group for group in joined if any(wanted[name] for name in group)]
            parts = scoring_parts(len(groups), engine.workers.count(progress))
            jobs = [
                _job(_Sets([_Set(n, contexts[n], sampled.get(n) if sampled else None) for n in group], some))
                for group in groups
                for some in split_probes(_wanted_by_any(wanted, group), parts)
            ]
            for blocks in engine.workers.map(Scoring(tuple(chunk), sizes), jobs, progress):
                for name in dict.fromkeys(name for _, name in blocks):
                    new = {key: block for key, block in blocks.items() if key[1] == name and key[0] in wanted[name]}
                    if new:
                        yield name, new


def rows_of(contexts: Mapping[str, list[Encoded]], joined: Sequence[Sequence[str]]) -> list[list[Encoded]]:
    """Rows of each group of sets."""
    return [[row for name in group for row in contexts[name]] for group in joined]


def _wanted_by_any(wanted: Mapping[str, Sequence[str]], group: Sequence[str]) -> list[str]:
    """Probes that any set of a group is still to be scored under; the base model's name last."""
    names = list(dict.fromkeys(probe for name in group for probe in wanted[name]))
    return sorted(names, key=lambda name: name == BASE)


def scoring_parts(sets: int, workers: int) -> int:
    """In how many parts the probes of a set are scored: enough for two jobs a worker, if there are several workers."""
    return math.ceil(2 * workers / sets) if workers > 1 and sets else 1


def split_probes(names: Sequence[str], parts: int) -> Iterator[list[str]]:
    """Names in parts of like size; the base model's stays with the last probes."""
    most = max(1, math.ceil((len(names) - (BASE in names)) / parts))
    probes = [name for name in names if name != BASE]
    groups = [probes[start : start + most] for start in range(0, len(probes), most)] or [[]]
    groups[-1] += [BASE] * (BASE in names)
    yield from groups


def _job(one: "_Sets") -> Job:
    tokens = sum(ends(row) for part in one.parts for row in part.rows)
    more = f" and {len(one.parts) - 1} more sets" if len(one.parts) > 1 else ""
    return Job(f"scoring {one.parts[0].name!r}{more}", tokens * len(one.names), one)


def score_contexts(engine: Engine | LanguageModel, pool: TaskPool, probes: Sequence[Probe], config: Config) -> Scores:
    """Scores of all probes (one a task and seed) on all contexts of the pool, kept in memory; see `make_scores`."""
    names = [*(p.name for p in probes), BASE]
    cache = BlockCache({s.name: {name: name for name in names} for s in pool.all})
    return make_scores(as_engine(engine), pool, probes, config, cache).scores


class Scored(NamedTuple):
    """Scores, and what it took to make them."""

    scores: Scores
    seconds: float  # of all blocks, those included that were there
    contexts: int
    context_tokens: int
    scored_tokens: int


def make_scores(engine: Engine, pool: TaskPool, probes: Sequence[Probe], config: Config, cache: BlockCache) -> Scored:
    """Scores of all probes on all contexts of the pool; the model is loaded only if a block is missing.

    Args:
        engine: the base model.
        probes: one a task and seed, with the warm starts that they were trained from, if any.
        cache: blocks that are done; what is made is added, set by set.

    Raises:
        UserError: scores that are not finite, or divergences of a model that cannot have them.
    """
    encoder = ChatEncoder(engine.tokenizer, config.probes.max_length)
    contexts = encode_contexts(encoder, pool, config.contexts.positions)
    options = encode_options(encoder, pool, config)
    names = [
        [p.name for task in pool.names for p in probes if (p.task, p.seed) == (task, seed)]
        for seed in range(config.probes.seeds)
    ]
    assert all(len(of_seed) == len(pool.names) for of_seed in names), "one probe for every task and seed"
    sample: dict[str, tuple[Ints, Floats]] = {}
    if config.affinity.kind == "jsd":
        of_tasks = {name: contexts[name] for name in pool.names}
        sample = sample_positions(of_tasks, config.affinity.jsd_positions, config.seed)
    columns = {name: sample[name][0] if name in sample else None for name in contexts}
    base = starts(probes)
    contexts |= {name: one.answers for name, one in options.items()}
    scored_rows = {name: options[name].rows if name in options else rows for name, rows in contexts.items()}
    joined = joined_sets(pool, config)
    blocks, seconds = make_blocks(engine, scored_rows, joined, probes, BASE in base, columns, cache)
    for probe, name in [key for key in blocks if key[1] in options]:
        blocks[probe, name] = Block(options[name].logp(blocks[probe, name].logp).astype(np.float32))
    divergences = None
    if sample:

        def hidden(name: str) -> dict[str, Hidden]:
            found = cache.usable(name, {p.name: columns[name] for p in probes})
            return {probe: _hidden(block, probe) for probe, (block, _) in found.items()}

        divergences = measure_divergences(engine, contexts, sample, hidden, names, engine.progress)
    lengths = {name: [1] * len(one.counts) for name, one in options.items()}
    scores = assemble(pool.names, contexts, blocks, names, divergences, base, lengths)
    tokens = sum(len(row.ids) for rows in scored_rows.values() for row in rows)
    scored = tokens * (len(probes) + (BASE in base))
    return Scored(scores, seconds, sum(map(len, contexts.values())), tokens, scored)


def make_blocks(
    engine: Engine, contexts: Mapping[str, list[Encoded]], joined: Sequence[Sequence[str]], probes: Sequence[Probe],
    with_base: bool, columns: Mapping[str, Ints | None], cache: BlockCache,
) -> tuple[Blocks, float]:  # fmt: skip
    """All blocks without their hidden states (n probes' would not fit), and the seconds that they took in all."""
    everyone = [p.name for p in probes] + [BASE] * with_base
    wanted = {name: {probe: columns[name] if probe != BASE else None for probe in everyone} for name in contexts}
    blocks: Blocks = {}
    seconds: dict[tuple[str, str], float] = {}
    some = False
    for name in contexts:
        some |= bool(cache.read(name))
        for probe, (block, spent) in cache.usable(name, wanted[name]).items():
            blocks[probe, name], seconds[probe, name] = Block(block.logp), spent
    missing = {name: [probe for probe in everyone if (probe, name) not in blocks] for name in contexts}
    if any(missing.values()):
        if some:
            count, of = sum(map(len, missing.values())), len(everyone) * len(contexts)
            engine.progress.say(f"scoring {count} of {of} blocks; the others are there")
        sampled = {name: at for name, at in columns.items() if at is not None}
        clock = Clock()
        for name, new in score_sets(engine, contexts, probes, missing, sampled, engine.progress, joined):
            spent = clock.seconds / len(new)
            cache.keep(name, {probe: block for (probe, _), block in new.items()}, wanted[name], spent)
            blocks |= {key: Block(block.logp) for key, block in new.items()}
            seconds |= dict.fromkeys(new, spent)
            clock = Clock()
    return blocks, sum(seconds.values())


def starts(probes: Sequence[Probe]) -> list[str]:
    """Name of what the probes of each seed start from: their warm start, or the base model."""
    warm = {p.seed: p.name for p in probes if p.task == WARM}
    return [warm.get(seed, BASE) for seed in sorted({p.seed for p in probes})]


def encode_contexts(encoder: ChatEncoder, pool: TaskPool, positions: int | None = None) -> dict[str, list[Encoded]]:
    """Encoded contexts of every set, tasks first, each up to so many response tokens."""
    encoded = {s.name: encoder.encode([row.conversation for row in s.contexts]) for s in pool.all}
    return {name: [row.until(positions) for row in rows if row is not None] for name, rows in encoded.items()}


def assemble(
    tasks: Sequence[str],
    contexts: Mapping[str, list[Encoded]],
    blocks: Mapping[tuple[str, str], Block],
    names: Sequence[Sequence[str]],
    divergences: Divergences | None = None,
    base: Sequence[str] | None = None,
    lengths: Mapping[str, Sequence[int]] | None = None,
) -> Scores:
    """Scores from all blocks; `names[s][i]` is the probe of task i under seed s, `base[s]` what it started from.

    Contexts fall into jackknife groups, see `context_groups`.

    Args:
        lengths: columns of each context, of sets whose columns are not the contexts' response tokens.
    """
    sets = tuple(contexts)
    own = {name: [row.response_tokens for row in rows] for name, rows in contexts.items()}
    counts = list((own | dict(lengths or {})).values())
    logp = [
        np.stack([np.concatenate([blocks[name, s].logp for s in sets]) for name in (start, *of_seed)])
        for start, of_seed in zip(base or [BASE] * len(names), names, strict=True)
    ]
    flat = [c for of_set in counts for c in of_set]
    context = np.repeat(np.arange(len(flat)), flat)
    position = np.concatenate([np.arange(c) for c in flat])
    seeds = len(names)
    return Scores(
        tasks=tuple(tasks),
        sets=sets,
        logp=np.concatenate(logp, axis=1).astype(np.float64),
        context=np.tile(context, seeds),
        position=np.tile(position, seeds),
        seed=np.repeat(np.arange(seeds), len(context)),
        context_set=np.repeat(np.arange(len(sets)), [len(c) for c in counts]),
        context_group=np.concatenate(context_groups([len(c) for c in counts], len(tasks))),
        divergences=divergences,
    )


class _Set(NamedTuple):
    """One set."""

    name: str
    rows: list[Encoded]
    kept: Ints | None = None  # positions at which hidden states are kept


class _Sets(NamedTuple):
    """Sets to be scored together under some probes."""

    parts: list[_Set]
    names: Sequence[str]  # of the probes, or BASE


class Sizes(NamedTuple):
    """Tokens, response tokens of the largest set, and of the longest row."""

    tokens: int
    responses: int
    longest: int

    def memory(self, lm: LanguageModel) -> float:
        """Bytes, roughly, that scoring the largest set takes beyond the model."""
        tokens, responses, longest = self
        return lm.memory(min(tokens, max(lm.token_budget, longest)), longest, min(responses, lm.token_budget))


@dataclass(frozen=True)
class Scoring:
    """Scoring of sets under these probes."""

    probes: tuple[Probe, ...]
    sizes: Sizes
    alone: bool = False

    @contextlib.contextmanager
    def opened(self, lm: LanguageModel, progress: Progress) -> Iterator[Do]:
        """Within, what gives the blocks of some sets."""
        of_name: dict[str, Probe | None] = {probe.name: probe for probe in self.probes} | {BASE: None}
        with installed(lm, self.probes) as use:

            def do(job: _Sets, progress: Progress) -> Blocks:
                probes = [of_name[name] for name in job.names]
                if any(part.kept is not None for part in job.parts):
                    check_divergences_possible(lm, [probe for probe in probes if probe])
                blocks = _score(lm, use, job.parts, probes, progress)
                release_memory()
                return blocks

            yield do

    def memory(self, lm: LanguageModel) -> float:
        """Bytes, roughly, that scoring the largest set takes beyond the model."""
        return self.sizes.memory(lm)


def _score(
    lm: LanguageModel, use: Use, parts: Sequence[_Set], probes: Sequence[Probe | None], progress: Progress
) -> Blocks:
    """Blocks of these sets: every batch runs the shared layers once, then the rest under each probe."""
    rows = [row for part in parts for row in part.rows]
    order = {id(row): i for i, row in enumerate(rows)}
    logp: list[dict[int, NDArray[np.float32]]] = [{} for _ in probes]
    hidden: list[dict[int, NDArray[np.float32]]] = [{} for _ in probes]
    keeping = any(part.kept is not None for part in parts)
    shared = lm.shared_prefix(rows)

    def run(batch: Sequence[Encoded]) -> None:
        cuts = np.cumsum([row.response_tokens for row in batch])[:-1]
        places = [order[id(row)] for row in batch]
        packed = pack(batch, shared, lm.device)
        for k, (logp_R, hidden_Rd) in enumerate(_score_batch(lm, use, packed, probes, keeping)):
            logp[k].update(zip(places, np.split(logp_R, cuts), strict=True))
            hidden[k].update(zip(places, np.split(hidden_Rd, cuts), strict=True))
            progress.advance(len(batch))

    for batch in batches([ends(row) for row in rows], lm.token_budget, shared):
        split_on_oom([rows[i] for i in batch], run, progress)
    blocks: Blocks = {}
    start = 0
    for part in parts:
        at, start = range(start, start + len(part.rows)), start + len(part.rows)
        for probe, logp_of, hidden_of in zip(probes, logp, hidden, strict=True):
            logp_T = np.concatenate([logp_of[i] for i in at])
            _check_finite(logp_T, probe, part.name)
            kept = None if part.kept is None else np.concatenate([hidden_of[i] for i in at])[part.kept]
            blocks[probe.name if probe else BASE, part.name] = Block(logp_T, kept)
    return blocks


def _check_finite(logp_T: NDArray[np.float32], probe: Probe | None, name: str) -> None:
    if not np.isfinite(logp_T).all():
        who = f"probe of task {probe.task!r}" if probe else "base model"
        raise UserError(
            f"The {who} gives log-probabilities on {name!r} that are not finite; use model.dtype bfloat16 or "
            "float32, or a lower probes.learning_rate."
        )


@torch.inference_mode()
def _score_batch(
    lm: LanguageModel, use: Use, packed: Packed, probes: Sequence[Probe | None], keep_hidden: bool
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """(R,) log-probabilities and (R, d or 0) hidden states of a batch under each probe, row by row."""
    entering: dict[int, Tensor | None] = {}
    for probe in probes:
        first = probe.first_layer(len(lm.layers)) if probe else max(entering, default=0)
        if first not in entering:
            with use(None):
                entering[first] = lm.trunk(packed, first)
        logp, hidden = [], []
        with use(probe):
            for logits, labels, states in lm.response_logits(packed, entering[first], first):
                logp.append(label_logp(logits, labels).cpu().numpy())
                if keep_hidden and states is not None:
                    hidden.append(states.float().cpu().numpy())
        yield (
            np.concatenate(logp),
            np.concatenate(hidden) if hidden else np.zeros((len(packed.labels_R), 0), np.float32),
        )


def _chunks(probes: Sequence[Probe]) -> Iterator[Sequence[Probe]]:
    """Probes in groups that the model can carry at once."""
    if not probes:
        yield ()
        return
    size = max(sum(w.numel() * 4 for w in p.weights.values()) for p in probes)
    step = max(1, ADAPTER_MEMORY // max(1, size))
    for start in range(0, len(probes), step):
        yield probes[start : start + step]


def sizes_of(groups: Sequence[Sequence[Encoded]]) -> Sizes:
    """Of these groups of rows."""
    return Sizes(
        max(sum(ends(row) for row in rows) for rows in groups),
        max(sum(row.response_tokens for row in rows) for rows in groups),
        max(ends(row) for rows in groups for row in rows),
    )


def _hidden(block: Block, probe: str) -> Hidden:
    assert block.hidden is not None, f"no hidden states kept for {probe}"
    return block.hidden
