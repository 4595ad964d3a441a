"""Response surfaces of results that a user has, without a model."""

import json

import numpy as np
import pytest

from taskpgm.evaluation.baselines import read_weights
from taskpgm.mixture.bounds import simplex
from taskpgm.mixture.surrogate import Features
from taskpgm.mixture.trials import parse_metrics, read_trials
from taskpgm.pipeline.refine import refine_results, surface_of


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_more_is_better_gives_the_same_mixture_as_less_is_better(tmp_path):
    random = np.random.default_rng(0)
    rows = [(p, 2 + 3 * p[0] + 0.05 * random.standard_normal()) for p in random.dirichlet(np.ones(3), 12)]
    lines = [",".join(map(repr, (*p.tolist(), float(y), float(-y)))) for p, y in rows]
    path = written(tmp_path / "results.csv", "x,y,z,loss,score\n" + "\n".join(lines) + "\n")
    found = []
    for metric, unused in (("loss", 4), ("score:max", 3)):
        table = [line.split(",") for line in path.read_text().splitlines()]
        one = tmp_path / f"{unused}.csv"
        one.write_text("\n".join(",".join(c for i, c in enumerate(row) if i != unused) for row in table))
        found.append(
            surface_of(read_trials(one, parse_metrics(metric)), Features(tuple("xyz")), simplex(tuple("xyz")), 0.2)
        )
    (surface, mixture), (_, other) = found
    np.testing.assert_allclose(mixture.weights, other.weights, atol=1e-9)
    assert mixture.weights[0] < 0.2  # x raises the loss
    assert surface["one hundredth more"]["x"]["change"] > 0 > surface["choice"]["loss"] - surface["uniform"]["loss"]
    assert surface["from uniform to choice"][0]["loss"] == pytest.approx(surface["uniform"]["loss"])
    assert surface["from uniform to choice"][-1]["loss"] == pytest.approx(surface["choice"]["loss"])


def test_noise_alone_is_uniform(tmp_path):
    random = np.random.default_rng(3)
    lines = [",".join(map(repr, [*p.tolist(), float(random.normal(5, 0.1))])) for p in random.dirichlet(np.ones(3), 10)]
    path = written(tmp_path / "results.csv", "x,y,z,loss\n" + "\n".join(lines) + "\n")
    surface, mixture = refine_results(path, parse_metrics("loss"), None, tmp_path / "out")
    assert surface["choice"]["uniform"]
    np.testing.assert_allclose(mixture.weights, 1 / 3)
    kept = json.loads((tmp_path / "out/refined/response_surface.json").read_text())
    assert len(kept["trials"]) == 10
    assert read_weights(tmp_path / "out/refined/mixture.json", tuple("xyz")) == pytest.approx(mixture.shares)
