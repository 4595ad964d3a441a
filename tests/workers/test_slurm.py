"""The script for Slurm, submitted to a Slurm of two nodes on this machine: Debian's `slurm-wlm`, and munge at work."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.drivers import Driver, until
from support.runs import experiment

pytest.importorskip("ray")
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "cluster" / "slurm.sh"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
DAEMONS = ("slurmctld", "slurmd", "sbatch", "munge")


def is_there():
    installed = all(shutil.which(name, path=PATH) for name in DAEMONS)
    return installed and subprocess.run(["munge", "-n"], capture_output=True).returncode == 0


pytestmark = [pytest.mark.cluster, pytest.mark.skipif(not is_there(), reason="needs Slurm and a munged that runs")]
SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/%n.pid
SlurmctldPidFile={folder}/controller.pid
SlurmdLogFile={folder}/%n.log
SlurmctldLogFile={folder}/controller.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=1 State=UNKNOWN
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=1 State=UNKNOWN
PartitionName=all Nodes=one,two Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def slurm(tmp_path):
    """Runs a command of Slurm's."""
    port, first, second = free_ports(3)
    settings, folder = tmp_path / "slurm.conf", tmp_path / "slurm"
    for name in ("state", "spool-one", "spool-two"):
        (folder / name).mkdir(parents=True)
    user = subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()
    settings.write_text(
        SETTINGS.format(
            host=socket.gethostname().split(".")[0], folder=folder, user=user, port=port, first=first, second=second
        )
    )
    # What `srun` starts finds this Python and `taskpgm` first, and the code that is tested.
    (tmp_path / "taskpgm").write_text(f'#!/bin/sh\nexec {sys.executable} -m taskpgm "$@"\n')
    (tmp_path / "taskpgm").chmod(0o755)
    env = os.environ | {
        "SLURM_CONF": str(settings), "PATH": f"{tmp_path}:{PATH}", "PYTHONPATH": os.pathsep.join(part for part in sys.path if part),
        "RAY_PORT": str(free_ports(1)[0]),
    }  # fmt: skip
    env.pop("RAY_ADDRESS", None)

    def call(*command):
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    daemons = [["slurmctld", "-D"], ["slurmd", "-D", "-N", "one"], ["slurmd", "-D", "-N", "two"]]
    processes = [subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) for command in daemons]
    try:
        until(lambda: "2 idle" in " ".join(call("sinfo", "--noheader", "--format=%D %T").split()), 60, "two idle nodes")
        yield call
    finally:
        for process in processes[::-1]:
            process.terminate()
            process.wait(30)


def test_the_script_runs_on_two_nodes_and_gives_the_same_bytes(slurm, tmp_path, model_folders):
    config = experiment(tmp_path, model_folders["llama"], workers={"backend": "serial"})
    assert Driver("run", config, "--out", tmp_path / "in-turn", log=tmp_path / "log").ended()[0] == 0
    settings = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(settings | {"workers": {"backend": "ray"}}))
    log = tmp_path / "job"
    told = slurm(
        "sbatch", "--parsable", "--nodes=2", "--cpus-per-task=1", "--gpus-per-node=0", f"--output={log}", str(SCRIPT),
        str(config), str(tmp_path / "run"),
    )  # fmt: skip
    job = told.strip()

    def state():
        found = dict(part.split("=", 1) for part in slurm("scontrol", "show", "job", job).split() if "=" in part)
        return found if found["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING") else None

    found = until(state, 300, "the end of the job")
    assert (found["JobState"], found["ExitCode"]) == ("COMPLETED", "0:0"), log.read_text()
    assert log.read_text().count("Ray runtime started") == 2
    for name in ("mixture.json", "train.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "in-turn" / name).read_bytes()
