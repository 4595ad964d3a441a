"""The examples for clusters: the script is bash's; the manifest parses."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

# Fields of KubeRay's `ray.io/v1` types that the example may use, with their kinds.
RAYJOB = {
    "entrypoint": str, "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int, "backoffLimit": int,
    "activeDeadlineSeconds": int, "submissionMode": str, "rayClusterSpec": dict,
}  # fmt: skip
RAYCLUSTER = {"rayVersion": str, "headGroupSpec": dict, "workerGroupSpecs": list, "enableInTreeAutoscaling": bool}
HEAD = {"rayStartParams": dict, "template": dict, "serviceType": str}
WORKERS = {
    "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "numOfHosts": int,
    "rayStartParams": dict, "template": dict,
}  # fmt: skip
EXAMPLES = Path(__file__).parents[1] / "examples" / "cluster"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_slurm_script_parses():
    assert subprocess.run(["bash", "-n", str(EXAMPLES / "slurm.sh")]).returncode == 0


def test_the_manifest_is_a_rayjob_whose_workers_ask_for_what_they_are_limited_to():
    job = yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    for found, known in ((job["spec"], RAYJOB), (cluster, RAYCLUSTER), (cluster["headGroupSpec"], HEAD)):
        has_fields(found, known)
    for group in cluster["workerGroupSpecs"]:
        has_fields(group, WORKERS)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        for container in group["template"]["spec"]["containers"]:
            assert container["resources"]["limits"] == container["resources"]["requests"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_head_and_workers_have_the_ray_that_is_tested():
    cluster = yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    pins = (EXAMPLES.parents[1] / "constraints.txt").read_text().splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins


def has_fields(found, known):
    for name, value in found.items():
        assert type(value) is known[name], name
