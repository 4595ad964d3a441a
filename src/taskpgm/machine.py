"""Time, memory, versions and hardware, for the manifest."""

import contextlib
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from taskpgm import __version__


class Clock:
    """Seconds and peak memory since it was made."""

    def __init__(self) -> None:
        _reset_peak_memory()
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds."""
        return time.perf_counter() - self._started

    def peak(self) -> int:
        """Largest resident memory in bytes."""
        return _peak_memory()


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
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
