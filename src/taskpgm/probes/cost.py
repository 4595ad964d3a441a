"""`RunEstimate`: what a run will take in time, memory, disk and money, on this machine or on workers elsewhere.

Operations are counted (`demand`), rates tried or taken from a table (`trial`, `rates`). Jobs are spread over workers as
a run spreads them, the longest first.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from taskpgm.chat.encoder import ChatEncoder
from taskpgm.config import Config
from taskpgm.errors import UserError
from taskpgm.lm.devices import local_devices
from taskpgm.lm.loading import load_model, skeleton
from taskpgm.lm.model import LanguageModel
from taskpgm.pool.remembered import LengthFile
from taskpgm.pool.task_pool import TaskPool, load_tasks
from taskpgm.probes.demand import Demand, count_demand, counted_memory
from taskpgm.probes.options import check_options
from taskpgm.probes.probe import check_adapters
from taskpgm.probes.rates import DEVICES, Rates, product_rates, sheet, sheet_rates
from taskpgm.probes.trial import try_here
from taskpgm.progress import QUIET, Progress
from taskpgm.system import Clock

SHARING = 4  # workers of one GPU at most
READING = 2e9  # bytes of a model that a worker reads in a second: a guess, where none is read


@dataclass(frozen=True)
class Place:
    """Where a run is to be, and how closely it is looked at."""

    workers: int | None = None  # that work side by side; as many as a run here would have if left out
    device: str | None = None  # one of `rates.DEVICES`; what this machine has if left out
    price: float | None = None  # of a device for an hour, in any money
    quick: bool = False  # nothing is run and no weight is read: rates from a matrix product


@dataclass(frozen=True)
class RunEstimate:
    """Seconds by stage, bytes, and what they are made of."""

    seconds: dict[str, float]  # by stage
    memory: int  # bytes: of a run here the largest resident memory, or the GPU's; elsewhere of each worker
    disk: int  # bytes of the run directory
    trained_tokens: int  # tokens of all probes' rows, prompts included
    run_tokens: int  # of these, those that are run: a shared prefix once a batch
    scored_tokens: int  # context tokens times probes
    tera_operations: dict[str, float]  # by stage, 1e12 floating point operations
    giga_operations_per_second: dict[str, float]  # by stage, of all workers together
    workers: int  # that probes and scores are spread over
    device: str  # cpu, cuda, or the device asked for
    devices: float  # that the workers take: half as many as workers if two share one; of a CPU, cores
    elsewhere: bool  # on workers or devices that this machine does not have
    rates: str  # where they are from
    price: float | None = None  # of a device for an hour

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return math.fsum(self.seconds.values())

    @property
    def device_hours(self) -> float:
        """Hours that are paid for: every device from start to end."""
        return self.devices * self.total / 3600

    @property
    def money(self) -> float | None:
        """What they cost."""
        return None if self.price is None else self.price * self.device_hours

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        found = {**asdict(self), "total_seconds": self.total, "device_hours": self.device_hours}
        return found if self.price is None else {**found, "money": self.money}


def estimate_run(config: Config, progress: Progress = QUIET, place: Place | None = None) -> RunEstimate:
    """Estimate of `taskpgm run`; reads all rows, trains nothing that is kept.

    Raises:
        UserError: what a run would raise for its data or its model; a device that nothing is known of, or that the
            model does not fit.
    """
    place = place or Place()
    quick = place.quick or place.device is not None
    clock = Clock()
    lm = skeleton(config.model, *_elsewhere(place)) if quick else load_model(_counted(config).model)
    loading = clock.seconds
    check_adapters(config, lm.model)
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length, lm.limits)
    pool = load_tasks(config, encoder.lengths, progress, memory=LengthFile(lambda: encoder.fingerprint))
    reading = clock.seconds - loading
    check_options(pool, config)
    demand = count_demand(lm, pool, config)
    workers = place.workers or _workers(config, lm)
    if quick:
        rates, memory = _rates(lm, config, place), _memory(lm, pool, config, demand, place)
        loading += sum(w.numel() * w.element_size() for w in lm.model.parameters()) / READING
    else:
        rates, memory = try_here(lm, pool, config, demand, progress)
    seconds = {"load the model": loading, "read tasks": reading} | spread(demand, rates, workers)
    operations = demand.operations
    return RunEstimate(
        seconds, int(memory), demand.disk, demand.trained_tokens, demand.run_tokens, demand.scored_tokens,
        tera_operations={k: v / 1e12 for k, v in operations.items()},
        giga_operations_per_second={k: v / 1e9 / seconds[k] for k, v in operations.items() if seconds[k]},
        workers=workers, device=place.device or lm.device.type, devices=workers * _part(config),
        elsewhere=bool(place.workers or place.device), rates=rates.source, price=place.price,
    )  # fmt: skip


def gpu_part(config: Config, pool: TaskPool, device: str) -> float:
    """The part of a GPU that a worker is given: 1/k, with the most workers, up to four, whose memory fits together.

    One if nothing is known of the device. More than four would share its time, not its memory. Not measured on a GPU.
    """
    if device not in DEVICES:
        return 1.0
    memory = DEVICES[device].memory
    lm = skeleton(config.model, torch.device("cuda"), memory)
    needed = counted_memory(lm, pool, config, count_demand(lm, pool, config))
    return 1 / max(1, min(SHARING, math.floor(0.9 * memory / needed)))


def spread(demand: Demand, rates: Rates, workers: int) -> dict[str, float]:
    """Seconds by stage of so many workers: a warm start is alone, probes and scores go to who is free."""
    seconds = {}
    if demand.warm:
        seconds["train the warm start"] = demand.seeds * rates.warm.seconds(*demand.warm)
    seconds["train probes"] = demand.seeds * makespan(
        [rates.probes.seconds(*piece) for piece in demand.probes], workers
    )
    seconds["score contexts"] = makespan([rates.scoring.seconds(*job) for job in demand.scoring(workers)], workers)
    if "divergences" in demand.operations:
        seconds["divergences"] = demand.operations["divergences"] / rates.divergence / min(workers, demand.tasks)
    return seconds


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Seconds until all is done by so many workers, each of which takes the longest that is left."""
    busy = [0.0] * max(1, min(workers, len(seconds)))
    for one in sorted(seconds, reverse=True):
        heapq.heapreplace(busy, busy[0] + one)
    return max(busy)


def _counted(config: Config) -> Config:
    """The configuration with as many processes as `workers.count` lets a run here have, as `Engine` loads it."""
    settings = config.workers
    count = {"ray": None, "serial": 1}.get(settings.backend, settings.count)
    processes = config.model.processes or count
    return config.model_copy(update={"model": config.model.model_copy(update={"processes": processes})})


def _workers(config: Config, lm: LanguageModel) -> int:
    """Workers that a run has: of a cluster those that are asked for, else those of this machine."""
    if config.workers.backend == "serial":
        return 1
    if config.workers.backend == "ray" and config.workers.count:
        return config.workers.count
    return max(lm.processes, len(local_devices(config.model)[: config.workers.count]))


def _part(config: Config) -> float:
    """Of a device, what a worker takes."""
    return config.workers.gpus or 1.0


def _elsewhere(place: Place) -> tuple[torch.device | None, float | None]:
    """Device and bytes of memory that a model which is not read would have."""
    return (torch.device("cuda"), sheet(place.device).memory) if place.device else (None, None)


def _rates(lm: LanguageModel, config: Config, place: Place) -> Rates:
    if place.device:
        return sheet_rates(place.device, len(lm.layers), min(1.0, _part(config)))
    if lm.device.type != "cpu":
        raise UserError(
            f"--quick knows what this machine's {lm.device.type} does by its name alone; add --device, or leave "
            "--quick out: a trial takes seconds."
        )
    return product_rates(lm)


def _memory(lm: LanguageModel, pool: TaskPool, config: Config, demand: Demand, place: Place) -> float:
    memory = counted_memory(lm, pool, config, demand)
    part = _part(config) if config.model.device_map else min(1.0, _part(config))  # spread over several, or on one
    if place.device and memory > (has := sheet(place.device).memory * part):
        raise UserError(
            f"A worker takes about {memory / 1e9:.0f} GB, but there are {has / 1e9:.0f} GB on (its part of) a "
            f"{place.device}; name a larger device, or set model.device_map or model.quantization."
        )
    return memory
