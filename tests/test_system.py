"""Cores and memory of containers, and how threads wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from taskpgm import system

SAY_POLICY = "import os; from taskpgm.system import wait_passively as w; w(); print(os.environ['OMP_WAIT_POLICY'])"


def write_groups(root: Path, files: dict[str, str], cgroup: str, monkeypatch: pytest.MonkeyPatch) -> None:
    under = {f"sys/{name}": text for name, text in files.items()} | {"proc/self/cgroup": cgroup}
    for name, text in under.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    monkeypatch.setattr(system, "CGROUPS", root / "sys")
    monkeypatch.setattr(system, "PROC", root / "proc")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize(
    ("files", "cgroup", "cores"),
    [
        ({"cpu.max": "max 100000"}, "0::/", 8),
        ({"cpu.max": "300000 100000"}, "0::/", 3),
        ({"cpu.max": "150000 100000"}, "0::/", 2),
        ({"cpu.max": "5000 100000"}, "0::/", 1),
        ({"cpu.max": "1600000 100000"}, "0::/", 8),
        ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000", "c/cpu.max": "100000 100000"}, "0::/a/b", 4),
        ({"cpu.max": "200000 100000"}, "0::/docker/of-the-machine", 2),
        ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", 3),
        ({"cpu,cpuacct/x/cpu.cfs_quota_us": "-1", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}, "2:cpu,cpuacct:/x", 8),
        ({}, "0::/", 8),
    ],
)
def test_threads_follow_the_quota(
    files: dict[str, str], cgroup: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_groups(tmp_path, files, cgroup, monkeypatch)
    assert system.usable_cores() == cores


def test_memory_follows_the_groups_of_both_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a/memory.max": "5000", "a/memory.current": "1000", "a/b/memory.max": "max", "a/b/memory.current": "900"}
    write_groups(tmp_path, files, "0::/a/b", monkeypatch)
    assert (system.total_memory(), system.available_memory()) == (5000, 4000)
    files = {"memory/x/memory.limit_in_bytes": "3000", "memory/x/memory.usage_in_bytes": "2500"}
    write_groups(tmp_path / "old", files, "5:memory:/x", monkeypatch)
    assert (system.total_memory(), system.available_memory()) == (3000, 500)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity masks")
def test_threads_follow_the_affinity_mask() -> None:
    one = next(iter(os.sched_getaffinity(0)))
    code = f"import os; os.sched_setaffinity(0, [{one}]); from taskpgm.system import usable_cores as u; print(u())"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "1\n"


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_passively_unless_the_user_says_otherwise(given: str | None, expected: str) -> None:
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    env |= {"OMP_WAIT_POLICY": given} if given else {}
    done = subprocess.run([sys.executable, "-c", SAY_POLICY], env=env, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == expected


def test_importing_the_package_writes_no_environment() -> None:
    code = "import os; b = dict(os.environ); import taskpgm, taskpgm.pipeline.run; assert b == dict(os.environ)"
    subprocess.run([sys.executable, "-c", code], check=True)
