"""`Demand`: operations, tokens and bytes of a run, counted before it, whatever machine does it.

With P weights in the linear layers of a decoder layer, L layers of which the first F carry no adapter, Q weights of the
last layer that see only the tokens that predict a response, width d, vocabulary V, and per task the T tokens that all
steps run (a shared prefix once a batch) and the U of them that are distinct rows, R response tokens,

    training   2P·F·U + 4(P·(L − F) − Q)·T + 4(dV + Q)·R            forward, and backward without weight gradients
    scoring    2P·F·C + (n + 1)·(2(P·(L − F) − Q)·C + 2(dV + Q)·R)  C context tokens, the trunk once for all probes
    divergence n·2dV·J + n²/2·J·V                                   J sampled positions; the last term is logarithms
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import nn

from taskpgm.chat.encoder import ChatEncoder, Encoded
from taskpgm.config import Config
from taskpgm.lm.batching import batches
from taskpgm.lm.lora import sizes
from taskpgm.lm.memory import training_memory
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.packing import ends
from taskpgm.lm.quantized import held_bytes
from taskpgm.pool.drawing import Joined
from taskpgm.pool.task_pool import Row, TaskPool
from taskpgm.probes.adapted import adapted_layers
from taskpgm.probes.cache import BASE, WARM
from taskpgm.probes.joining import joined_sets
from taskpgm.probes.options import encode_options
from taskpgm.probes.schedule import Schedule, probe_schedule, warm_start_schedule
from taskpgm.probes.scoring import encode_contexts, rows_of, scoring_parts, sizes_of, split_probes

PYTHON = 400e6  # bytes of a process with torch and transformers
SAMPLED_ROWS = 32  # of a task, from which its lengths and its shared prefix are read: a guess


@dataclass(frozen=True)
class Shape:
    """The model's sizes that operations depend on."""

    layer: float  # P, mean weights in the linear layers of a decoder layer
    layers: int  # L
    first: int  # F, lowest layer with an adapter
    width: int  # d
    vocabulary: int  # V
    answering: float = 0.0  # Q

    def training(self, run: int, distinct: int, responses: int) -> float:
        """Operations of training on `run` tokens, `distinct` of them once through the trunk."""
        rest = 4 * (self.layer * (self.layers - self.first) - self.answering) * run
        answers = 4 * (self.width * self.vocabulary + self.answering) * responses
        return 2 * self.layer * self.first * distinct + rest + answers

    def scoring(self, tokens: int, responses: int, probes: int) -> float:
        """Operations of scoring contexts under so many probes (the base model counts as one)."""
        one = 2 * (self.layer * (self.layers - self.first) - self.answering) * tokens
        one += 2 * (self.width * self.vocabulary + self.answering) * responses
        return 2 * self.layer * self.first * tokens + probes * one

    def divergence(self, positions: int, probes: int) -> float:
        """Operations of all pairs' divergences; a logarithm and its sum count as eight."""
        head = 2 * self.width * self.vocabulary * positions * probes
        return head + 8 * probes * (probes + 1) / 2 * positions * self.vocabulary


class Piece(NamedTuple):
    """A job: operations, and optimiser steps of a training or layers that scoring runs, each once a batch."""

    operations: float
    steps: int


@dataclass(frozen=True)
class Demand:
    """What a run asks for."""

    shape: Shape
    seeds: int
    warm: Piece | None  # of each seed
    probes: tuple[Piece, ...]  # of each seed, one a task that is trained
    sets: tuple[tuple[int, int], ...]  # by sets that are scored together, (tokens run, response tokens) of one pass
    batch: int  # tokens of a batch
    scored: int  # adapters, and the base model, that every set is scored under
    positions: int  # at which divergences are measured; 0: none are
    tasks: int
    trained_tokens: int
    run_tokens: int
    scored_tokens: int
    disk: int  # bytes of the run directory
    adapters: int  # bytes of all adapters in memory, twice: as they are kept, and as the model carries them

    def scoring(self, workers: int) -> list[Piece]:
        """Every job of scoring, as `score_sets` makes them for so many workers."""
        names = [str(i) for i in range(self.scored - (self.warm is None))] + [BASE] * (self.warm is None)
        sizes = [len(part) for part in split_probes(names, scoring_parts(len(self.sets), workers))]
        return [self._scoring(tokens, responses, size) for tokens, responses in self.sets for size in sizes]

    def _scoring(self, tokens: int, responses: int, probes: int) -> Piece:
        layers = self.shape.first + probes * (self.shape.layers - self.shape.first)
        return Piece(self.shape.scoring(tokens, responses, probes), layers * math.ceil(tokens / self.batch))

    @property
    def operations(self) -> dict[str, float]:
        """By stage, of the whole run."""
        found = {"train the warm start": self.seeds * self.warm.operations} if self.warm else {}
        found["train probes"] = self.seeds * math.fsum(piece.operations for piece in self.probes)
        found["score contexts"] = math.fsum(self.shape.scoring(*one, self.scored) for one in self.sets)
        if self.positions:
            found["divergences"] = self.seeds * self.shape.divergence(self.positions, self.tasks)
        return found


def model_shape(lm: LanguageModel, config: Config) -> Shape:
    """Sizes of this model under this configuration."""
    head = lm.model.get_output_embeddings().weight
    weights, depth = _linear_weights(lm.layers), len(lm.layers)
    last = lm.last_feed_forward if lm.plain_head else None
    first, answering = config.probes.lora.first_layer(depth), _linear_weights(last) if last else 0.0
    return Shape(weights / depth, depth, first, head.shape[1], head.shape[0], answering)


def _linear_weights(module: nn.Module) -> float:
    linear = [m for m in module.modules() if getattr(m, "weight", None) is not None and m.weight.ndim == 2]
    return float(sum(math.prod(sizes(m)) for m in linear))


def count_demand(lm: LanguageModel, pool: TaskPool, config: Config) -> Demand:
    """The demand of a run on these tasks; of the model's weights only the shapes are read."""
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length, lm.limits)
    shape, contexts = model_shape(lm, config), scored_rows(encoder, pool, config)
    trainings, seeds = trainings_of(pool, config), config.probes.seeds
    run = {name: _tokens_to_run(lm, encoder, *training) for name, training in trainings.items()}
    pieces = {name: Piece(shape.training(*run[name]), len(schedule)) for name, (_, schedule) in trainings.items()}
    warm = pieces.pop(WARM, None)
    adapters = (len(pool.tasks) + (warm is not None)) * seeds
    scored = adapters + (warm is None)
    columns = sum(row.response_tokens for task in pool.tasks for row in contexts[task.name])
    positions = min(columns, config.affinity.jsd_positions) if config.affinity.kind == "jsd" else 0
    responses = sum(row.response_tokens for rows in contexts.values() for row in rows)
    weights, each = adapter_weights(lm, config), lm.dtype.itemsize
    joined = rows_of(contexts, joined_sets(pool, config))
    return Demand(
        shape, seeds, warm, tuple(pieces.values()), tuple(context_tokens(lm, rows) for rows in joined),
        lm.token_budget, scored, positions, len(pool.tasks),
        trained_tokens=seeds * sum(
            rows[int(i)].tokens for rows, schedule in trainings.values() for step in schedule for i in step
        ),
        run_tokens=seeds * sum(tokens for tokens, *_ in run.values()),
        scored_tokens=sum(len(r.ids) for rows in contexts.values() for r in rows) * scored,
        disk=adapters * (4 * weights + 4 * responses + 4 * positions * shape.width) + pool.bytes,
        adapters=adapters * weights * (4 + each),
    )  # fmt: skip


def counted_memory(lm: LanguageModel, pool: TaskPool, config: Config, demand: Demand) -> float:
    """Bytes that a machine's workers take together, by the sizes of the model and of its batches; rather too many."""
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length, lm.limits)
    longest = [
        longest_step(encoder, pool[name].train, schedule)
        for name, (_, schedule) in trainings_of(pool, config).items()
        if name != WARM
    ]
    training = training_memory(lm, [[step] for step in longest], demand.shape.first) if longest else 0.0
    scoring = sizes_of(scored_groups(encoder, pool, config)).memory(lm)
    weights = held_bytes(lm.model, config.model.quantization)
    return PYTHON + weights + max(lm.processes * training, lm.processes * scoring + demand.adapters)


def adapter_weights(lm: LanguageModel, config: Config) -> int:
    """Weights of one adapter: r·(in + out) of every adapted linear layer."""
    lora = config.probes.lora
    return lora.r * sum(sum(sizes(module)) for module in adapted_layers(lm, lora).values())


def scored_rows(encoder: ChatEncoder, pool: TaskPool, config: Config) -> dict[str, list[Encoded]]:
    """What is scored, by set: contexts, or their answer options."""
    options = {name: one.rows for name, one in encode_options(encoder, pool, config).items()}
    return encode_contexts(encoder, pool, config.contexts.positions) | options


def scored_groups(encoder: ChatEncoder, pool: TaskPool, config: Config) -> list[list[Encoded]]:
    """The same, the rows of sets that share batches together."""
    return rows_of(scored_rows(encoder, pool, config), joined_sets(pool, config))


def run_tokens(lm: LanguageModel, steps: Sequence[Sequence[Encoded]]) -> tuple[int, int, int]:
    """(tokens run, distinct tokens, response tokens) of training on these steps."""
    rows = [row for step in steps for row in step]
    shared = lm.shared_prefix(rows)
    run = sum(_packed_tokens([ends(row) for row in step], shared, lm.token_budget) for step in steps)
    distinct = shared + sum(ends(row) - shared for row in {id(row): row for row in rows}.values())
    return run, distinct, sum(row.response_tokens for row in rows)


def context_tokens(lm: LanguageModel, rows: Sequence[Encoded]) -> tuple[int, int]:
    """(tokens run, response tokens) of one pass over contexts that are scored together."""
    run = _packed_tokens([ends(row) for row in rows], lm.shared_prefix(rows), lm.token_budget)
    return run, sum(row.response_tokens for row in rows)


def trainings_of(pool: TaskPool, config: Config) -> dict[str, tuple[Sequence[Row], Schedule]]:
    """Rows of every training of one probe seed, and their schedules; the warm start by its name."""
    found: dict[str, tuple[Sequence[Row], Schedule]] = {
        task.name: (pool[task.name].train, schedule_of(pool, task.name, config))
        for task in config.tasks
        if not task.adapter
    }
    if config.probes.warm_start and len(found) == len(pool.tasks):
        tasks = [task.train for task in pool.tasks]
        found[WARM] = (Joined(tasks), warm_start_schedule(tasks, config, seed=0))
    return found


def schedule_of(pool: TaskPool, task: str, config: Config) -> Schedule:
    """Of a task's first probe."""
    return probe_schedule(pool[task].train, config, task, seed=0)


def longest_step(encoder: ChatEncoder, rows: Sequence[Row], schedule: Schedule) -> list[Encoded]:
    """The rows of the optimiser step that has the most tokens."""
    step = max(schedule, key=lambda step: sum(rows[int(i)].tokens for i in step))
    return encode_rows(encoder, [rows[int(i)] for i in step])


def encode_rows(encoder: ChatEncoder, rows: Sequence[Row]) -> list[Encoded]:
    """Those that can be encoded."""
    return [row for row in encoder.encode([row.conversation for row in rows]) if row is not None]


def _tokens_to_run(
    lm: LanguageModel, encoder: ChatEncoder, train: Sequence[Row], schedule: Schedule
) -> tuple[int, int, int]:
    """As `run_tokens` of one probe's training; lengths and the shared prefix are read from some of its rows."""
    used = [int(i) for step in schedule for i in step]
    rows = encode_rows(encoder, [train[i] for i in used[:SAMPLED_ROWS]])
    shared, length = lm.shared_prefix(rows), float(np.mean([ends(row) for row in rows]))
    per_step = max(1, math.ceil(len(used) / len(schedule) * (length - shared) / lm.token_budget))
    run = len(used) * (length - shared) + per_step * len(schedule) * shared
    distinct = len(set(used)) * (length - shared) + shared
    responses = sum(train[i].response_tokens for i in used)
    return round(run), round(distinct), responses


def _packed_tokens(lengths: Sequence[int], shared: int, budget: int) -> int:
    return sum(shared + sum(lengths[i] - shared for i in batch) for batch in batches(lengths, budget, shared))
