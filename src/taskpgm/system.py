"""Time, memory, versions and hardware, for the manifest."""

import contextlib
import ctypes
import math
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from taskpgm import __version__

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Files of a control group: its limit, and what is taken of it; versions 2 and 1.
MEMORY_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


class Clock:
    """Seconds and peak memory since it was made, of this process and of those that it works beside."""

    def __init__(self) -> None:
        _reset_peak_memory()
        BESIDE.restart()
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds."""
        return time.perf_counter() - self._started

    def peak(self) -> int:
        """Largest resident memory in bytes."""
        return _peak_memory() + BESIDE.peak


class Beside:
    """Memory that processes forked from this one took for themselves, as far as they have told."""

    def __init__(self) -> None:
        self.of_process: dict[int, int] = {}  # bytes, by process number, of those that run
        self.peak = 0

    def restart(self) -> None:
        """Count the peak anew, from what is taken now."""
        self.peak = sum(self.of_process.values())

    def told(self, process: int, taken: int) -> None:
        """A process took so many bytes at most."""
        self.of_process[process] = max(taken, self.of_process.get(process, 0))
        self.peak = max(self.peak, sum(self.of_process.values()))

    def ended(self, process: int) -> None:
        """A process is gone."""
        self.of_process.pop(process, None)


BESIDE = Beside()


def environment() -> dict[str, Any]:
    """Versions and hardware, for the manifest."""
    versions = {}
    for package in ("numpy", "scipy", "torch", "transformers", "peft", "datasets", "tokenizers"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    hardware: dict[str, Any] = {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()}
    hardware["processor"] = _processor()
    torch = sys.modules.get("torch")
    if torch is not None and torch.accelerator.is_available():
        module = torch.get_device_module(torch.accelerator.current_accelerator())
        hardware["gpu"] = getattr(module, "get_device_name", lambda: str(torch.accelerator.current_accelerator()))()
    return {"taskpgm": __version__, "python": platform.python_version(), "versions": versions, "hardware": hardware}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _reset_peak_memory() -> None:
    """Start measuring `peak_memory` anew, if the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """Largest resident memory of this process in bytes, since the last reset if the system can."""
    if (peak := _bytes("/proc/self/status", "VmHWM:")) is not None:
        return peak
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_memory() -> int:
    """Resident memory of this process in bytes, now; 0 if the system does not say."""
    return _bytes("/proc/self/status", "VmRSS:") or 0


def release_memory() -> None:
    """Give the system back what the C allocator holds and nothing uses, if it can (glibc)."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def available_memory() -> float:
    """Bytes that may still be taken, of the machine's memory and of the control groups'; infinite if unknown."""
    free = [_number(g / limit) - _number(g / used, 0.0) for limit, used in MEMORY_LIMITS for g in control_groups(limit)]
    return min(_bytes("/proc/meminfo", "MemAvailable:") or math.inf, max(0.0, min(free, default=math.inf)))


def total_memory() -> float:
    """Bytes of memory, of the machine and of the control groups; infinite if unknown."""
    limits = [_number(group / limit) for limit, _ in MEMORY_LIMITS for group in control_groups(limit)]
    return min(_bytes("/proc/meminfo", "MemTotal:") or math.inf, min(limits, default=math.inf))


def usable_cores() -> int:
    """Cores that this process may keep busy: those of its affinity mask, and no more than its control groups' quota.

    A quota of 1.5 cores counts as 2, as in Go and the JVM.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_quota((group / "cpu.max").read_text().split()) for group in control_groups("cpu.max")]
    for group in control_groups("cpu.cfs_quota_us"):  # version 1
        quotas.append(_quota([(group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")]))
    return max(1, min(cores, *(math.ceil(quota) for quota in quotas if math.isfinite(quota)), cores))


def _quota(given: list[str]) -> float:
    """Cores of (microseconds, in a period of so many); "max" and -1 are no limit."""
    try:
        quota, period = (float(number) for number in given)
    except ValueError:
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def control_groups(name: str) -> list[Path]:
    """Folders of this process's control groups that hold a file of that name: its own, and those above it.

    In a container they are mounted where the machine's own are; their paths may be those of the machine.
    """
    found: dict[Path, None] = {}
    lines = ["0::/"]
    with contextlib.suppress(OSError):
        lines += (PROC / "self" / "cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for mount in (CGROUPS, CGROUPS / controllers):
            own = mount / path.lstrip("/")
            for group in (own, *own.parents):
                if group.is_relative_to(mount) and (group / name).is_file():
                    found[group] = None
    return list(found)


def wait_passively() -> None:
    """Have OpenMP's threads sleep where they wait for each other, unless OMP_WAIT_POLICY says otherwise.

    By default they spin: beside another busy process a run takes twice the time. Heard only before torch is loaded.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _bytes(path: str, field: str) -> int | None:
    """Bytes of a field that Linux gives in kB."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return None


def _number(path: Path, missing: float = math.inf) -> float:
    """The number that a file holds."""
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        return float(path.read_text())
    return missing
