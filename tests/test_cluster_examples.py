"""The examples for clusters: the script starts Ray for real under stand-ins of Slurm's commands; the manifest parses."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

EXAMPLES = Path(__file__).parents[1] / "examples" / "cluster"


def command(folder, name, script):
    path = folder / name
    path.write_text("#!/usr/bin/env bash\n" + script)
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


@pytest.mark.cluster
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_slurm_script_starts_ray_runs_and_ends_it(tmp_path):
    """Two nodes on this machine; `taskpgm` asks the cluster for its size."""
    pytest.importorskip("ray")
    where = Path(sys.executable).parent
    command(tmp_path, "scontrol", "echo one; echo two\n")
    # Options of srun have a value behind `=` but for -w.
    command(
        tmp_path, "srun",
        'while [[ $1 == -* ]]; do if [[ $1 == -w ]]; then shift; fi; shift; done\n'
        'if [[ $1 == hostname ]]; then echo 127.0.0.1; else exec "$@"; fi\n',
    )  # fmt: skip
    ask = (
        "import ray, sys, time; ray.init(log_to_driver=False)\n"
        "for _ in range(60):\n"
        "    if ray.cluster_resources().get('CPU') == 2: break\n"
        "    time.sleep(0.5)\n"
        "print(sys.argv[1:], ray.cluster_resources()['CPU'])\n"
    )
    (tmp_path / "ask.py").write_text(ask)
    command(tmp_path, "taskpgm", f'exec {sys.executable} {tmp_path}/ask.py "$@"\n')
    slurm = {
        "SLURM_JOB_NODELIST": "x[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "RAY_PORT": "26379",
    }
    env = os.environ | slurm | {"PATH": f"{tmp_path}:{where}:{os.environ['PATH']}"}
    env.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        ["bash", str(EXAMPLES / "slurm.sh"), "mix.yaml", "runs/first"], env=env, capture_output=True, text=True,
        timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "['run', 'mix.yaml', '--out', 'runs/first'] 2.0" in done.stdout


def test_the_manifest_is_a_rayjob_whose_workers_ask_for_what_they_are_limited_to():
    job = yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        for container in group["template"]["spec"]["containers"]:
            assert container["resources"]["limits"] == container["resources"]["requests"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
