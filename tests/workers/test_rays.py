"""A whole run on a Ray cluster against the same run in turn, byte for byte; nodes that vanish in the middle.

One cluster of several nodes on this machine for all tests: starting one takes seconds.
"""

import json
import os
import sys

import pytest
from support.heard import Heard
from support.jobs import Products, Tool, open_no_tool, open_tool, some_jobs
from support.runs import experiment

ray = pytest.importorskip("ray")
pytest.importorskip("torch")
from taskpgm.config import WorkersConfig  # noqa: E402
from taskpgm.config_file import load_config, parse_config  # noqa: E402
from taskpgm.errors import UserError  # noqa: E402
from taskpgm.evaluation.settings import CompareOptions  # noqa: E402
from taskpgm.pipeline.run import compare_mixtures, run  # noqa: E402
from taskpgm.workers.executor import Workers  # noqa: E402

QUICK = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
FILES = ("mixture.json", "train.jsonl", "overlap.json")
OPTIONS = CompareOptions(mixtures=("taskpgm", "uniform"), seeds=2, accuracy=False)


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    path = os.pathsep.join(part for part in sys.path if part)  # workers import the tests' helpers too
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": path}
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": QUICK, "include_dashboard": False}
    )
    made.nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory, model_folders):
    """The experiment, and what it gives in turn, in two processes, and in a comparison."""
    folder = tmp_path_factory.mktemp("data")
    config = load_config(experiment(folder, model_folders["llama"], affinity={"kind": "jsd"}))
    config = with_workers(config, {"backend": "serial"}, warm_start=True)
    run(config, folder / "serial", Heard())
    compare_mixtures(config, folder / "serial", OPTIONS, Heard())
    return config, folder / "serial"


def with_workers(config, workers, **probes):
    data = config.model_dump(exclude_none=True)
    data["probes"] |= probes
    return parse_config(data | {"workers": workers})


def same_bytes(one, other):
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def measured(folder):
    records = [json.loads(path.read_text()) for path in (folder / "compare").glob("*.json")]
    return {(r["mixture"], r["seed"]): r["sets"] for r in records}


def test_two_processes_give_the_same_bytes(in_turn, tmp_path):
    config, expected = in_turn
    run(with_workers(config, {"backend": "local", "count": 2}), tmp_path / "run", Heard())
    same_bytes(tmp_path / "run", expected)


@pytest.mark.cluster
def test_nodes_vanish_in_the_middle_of_everything_and_the_bytes_are_the_same(cluster, in_turn, tmp_path):
    config, expected = in_turn
    heard, stop = Losing(cluster), tmp_path / "run"
    run(with_workers(config, {"backend": "ray"}), stop, heard)
    compare_mixtures(with_workers(config, {"backend": "ray"}), stop, OPTIONS, heard)
    same_bytes(stop, expected)
    assert measured(stop) == measured(expected)
    assert heard.lost == ["training probes", "scoring", "comparing, 4 trainings"]
    for stage in heard.lost:  # each time every piece was counted once
        assert heard.done[stage] == heard.totals[stage]


class Losing(Heard):
    """Removes a node without grace after the first piece of some stages, and adds another one."""

    def __init__(self, cluster):
        super().__init__()
        self.cluster, self.lost = cluster, []

    def count(self, pieces):
        super().count(pieces)
        if self.now.split(",")[0] in ("training probes", "scoring", "comparing") and self.now not in self.lost:
            self.lost.append(self.now)
            self.cluster.remove_node(self.cluster.nodes.pop(0), allow_graceful=False)
            self.cluster.nodes.append(self.cluster.add_node(num_cpus=1))


def rays(opening=open_tool, **settings):
    return Workers(WorkersConfig(backend="ray", **settings), Tool, opening)


@pytest.mark.cluster
def test_jobs_of_lost_workers_errors_and_sentences(cluster, tmp_path):
    one, heard = rays(), Heard()
    try:
        with heard.stage("products", 3):
            found = {name: rest for name, *rest in one.map(Products(("job3",), 1, str(tmp_path)), some_jobs(), heard)}
        assert found.keys() == {"job3", "job50", "job200"}
        assert heard.done == {"products": 3}
        assert any("was lost" in said and "job3 is done again" in said for said in heard.said)
        with pytest.raises(UserError, match="^job50 is wrong; mend it.$"):
            list(one.map(Products(wrong="job50"), some_jobs(), heard))
        with pytest.raises(UserError, match=r"job3 was lost with 3 workers, the last on node [\d.]+ \("):
            list(one.map(Products(("job3",), 9, str(tmp_path)), some_jobs([3]), heard))
    finally:
        one.end()


@pytest.mark.cluster
def test_a_worker_without_the_model_names_its_node(cluster):
    one = rays(open_no_tool)
    with pytest.raises(UserError, match=r"^On node [\d.]+ \(\w+\): there is no model here"):
        list(one.map(Products(), some_jobs([3]), Heard()))
    one.end()


class Joining(Heard):
    """Adds a node after the first piece."""

    def __init__(self, cluster):
        super().__init__()
        self.cluster, self.node = cluster, None

    def say(self, sentence):
        if self.node is None:
            self.node = self.cluster.add_node(num_cpus=2)


@pytest.mark.cluster
def test_nodes_that_join_are_used(cluster):
    one, heard = rays(), Joining(cluster)
    try:
        pids = {pid for *_, pid in one.map(Products(seconds=0.5), some_jobs(range(2, 60)), heard)}
    finally:
        one.end()
        cluster.remove_node(heard.node)
    assert len(pids) >= 3


@pytest.mark.cluster
def test_a_part_of_a_gpu_is_asked_for(cluster):
    node = cluster.add_node(num_cpus=2, num_gpus=1)
    one = rays(gpus=0.5)
    try:
        found = list(one.map(Products(), some_jobs(), Heard()))
        assert len(found) == 3
        assert one.crew.room() == 2
    finally:
        one.end()
        cluster.remove_node(node)


@pytest.mark.cluster
@pytest.mark.parametrize(("kind", "room"), [("H100", 4), ("unheard-of", 1)])
def test_workers_share_gpus_of_a_kind_that_is_known(kind, room, cluster):
    node = cluster.add_node(num_cpus=4, num_gpus=1, resources={f"accelerator_type:{kind}": 1})
    one = rays()
    one.part = lambda name: 0.25 if name == "h100" else 1.0
    try:
        assert len(list(one.map(Products(), some_jobs(), Heard()))) == 3
        assert one.crew.room() == room
    finally:
        one.end()
        cluster.remove_node(node)


@pytest.mark.cluster
def test_no_cluster_is_told_with_a_remedy(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match="No Ray cluster at 127.0.0.1:1 .*ray start --head"):
        list(rays(address="127.0.0.1:1").map(Products(), some_jobs(), Heard()))
