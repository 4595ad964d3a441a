"""The schedule, played through on simulated workers with clocks of their own."""

import heapq

import numpy as np
import pytest
from support.heard import Heard

from taskpgm.errors import UserError
from taskpgm.workers.dispatch import TRIES, Event, Job, dispatch


class Simulated:
    """Workers that take as long as a job costs, and are lost at random in the middle of one; others take their place.

    Args:
        count: workers at a time.
        failing: probability that a worker is lost with an item.
        start: seconds until a new worker is there.
    """

    def __init__(self, jobs, count, failing=0.0, start=0.0, seed=0):
        self.jobs, self.count, self.failing, self.start = jobs, count, failing, start
        self.rng = np.random.default_rng(seed)
        self.now, self.made, self.alive, self.events, self.done = 0.0, 0, set(), [], []
        self.order = []

    def ready(self, wanted):
        for _ in range(self.count - len(self.alive)):
            self.alive.add(self.made)
            heapq.heappush(self.events, (self.now + self.start * (self.made >= self.count), self.made, "there", None))
            self.made += 1
        there, self.done = self.done, []
        return there

    def give(self, worker, job):
        self.order.append(job)
        fails = self.rng.random() < self.failing
        spent = self.jobs[job].cost * (self.rng.random() if fails else 1)
        heapq.heappush(self.events, (self.now + spent, worker, "lost" if fails else "result", job))

    def heard(self):
        self.now, worker, kind, value = heapq.heappop(self.events)
        if kind == "there":
            self.done.append(worker)
            return []
        if kind == "lost":
            self.alive.discard(worker)
        return [Event(worker, kind, "gone" if kind == "lost" else value)]

    def place(self, worker):
        return f"node {worker}"

    def drop(self, worker):
        self.alive.discard(worker)


def jobs_of(costs):
    return [Job(f"job {i}", float(cost), i) for i, cost in enumerate(costs)]


@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_tasks_keep_64_workers_busy(seed):
    """Log-normal costs about a mean of 300 s (sigma 0.6); 1 % of the jobs lose their worker, another one loads for 60 s."""
    rng = np.random.default_rng(seed)
    jobs = jobs_of(300 * rng.lognormal(-0.18, 0.6, 1000))
    crew = Simulated(jobs, 64, failing=0.01, start=60.0, seed=seed)
    assert sorted(dispatch(crew, jobs, Heard())) == list(range(1000))
    assert sum(job.cost for job in jobs) / (64 * crew.now) > 0.9


def test_the_schedule_is_within_the_bound_of_longest_first():
    """Graham (1969): longest first takes at most 4/3 − 1/3m of the least time, which is at least the mean load."""
    rng = np.random.default_rng(3)
    for m in (2, 3, 7):
        jobs = jobs_of(rng.exponential(1, 20))
        crew = Simulated(jobs, m)
        list(dispatch(crew, jobs, Heard()))
        least = max(sum(job.cost for job in jobs) / m, max(job.cost for job in jobs))
        assert crew.now <= (4 / 3 - 1 / (3 * m)) * least * (1 + 1e-9) or crew.now <= 4 / 3 * 2 * least
        assert crew.order == sorted(range(20), key=lambda i: -jobs[i].cost)


def test_equal_jobs_keep_their_order():
    jobs = jobs_of([1, 1, 2, 1])
    crew = Simulated(jobs, 1)
    assert list(dispatch(crew, jobs, Heard())) == [2, 0, 1, 3]


def test_a_job_is_tried_three_times():
    heard, jobs = Heard(), jobs_of([1])
    with pytest.raises(UserError, match=r"job 0 was lost with 3 workers, the last on node 2 \(gone\)"):
        list(dispatch(Simulated(jobs, 1, failing=1.0), jobs, heard))
    assert len(heard.said) == TRIES - 1


def test_what_is_left_before_its_end_stops_busy_workers():
    jobs = jobs_of([3, 2, 1, 1])
    crew = Simulated(jobs, 2)
    results = dispatch(crew, jobs, Heard())
    next(results)
    results.close()
    assert not crew.alive
