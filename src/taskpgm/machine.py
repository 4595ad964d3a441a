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
    if torch is not None and torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    return {"taskpgm": __version__, "python": platform.python_version(), "versions": versions, "hardware": hardware}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _reset_peak_memory() -> None:
    """Start measuring `peak_memory` anew, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """Largest resident memory of this process in bytes, since the last reset where the system can."""
    if (peak := _bytes("/proc/self/status", "VmHWM:")) is not None:
        return peak
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_memory() -> int:
    """Resident memory of this process in bytes, now; 0 where the system does not say."""
    return _bytes("/proc/self/status", "VmRSS:") or 0


def release_memory() -> None:
    """Give the system back what the C allocator holds and nothing uses, where it can (glibc)."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def available_memory() -> float:
    """Bytes that may still be taken, of the machine's memory and of the control group's; infinite where unknown."""
    free = _number("/sys/fs/cgroup/memory.max") - _number("/sys/fs/cgroup/memory.current", 0.0)
    return min(_bytes("/proc/meminfo", "MemAvailable:") or math.inf, max(0.0, free))


def total_memory() -> float:
    """Bytes of memory, of the machine and of the control group; infinite where unknown."""
    return min(_bytes("/proc/meminfo", "MemTotal:") or math.inf, _number("/sys/fs/cgroup/memory.max"))


def _bytes(path: str, field: str) -> int | None:
    """Bytes of a field that Linux gives in kB."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return None


def _number(path: str, missing: float = math.inf) -> float:
    """The number that a file holds."""
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        return float(Path(path).read_text())
    return missing
