"""The part of a report on trial runs: its numbers are those of the response surface."""

from dataclasses import replace

import numpy as np
import pytest
from support.models import make_model
from support.runs import experiment

from taskpgm import load_config, load_run
from taskpgm.cli.refine import choice_line
from taskpgm.evaluation.refine import RefineOptions
from taskpgm.pipeline.refine import refine_run
from taskpgm.pipeline.session import open_session
from taskpgm.report.build import sections
from taskpgm.report.material import Material
from taskpgm.report.trials import SURFACE, section


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("tried")
    with open_session(load_config(experiment(root, make_model(root / "model"))), root / "run") as session:
        return root / "run", refine_run(session, RefineOptions(runs=2, seeds=1))


def test_trials_and_surface_are_shown_as_they_were_measured(run):
    folder, found = run
    part = section(Material(load_run(folder)))
    fitted, measured = part.pictures[0].figure.data
    assert list(measured.x) == list(found.trials.losses)
    expected = [found.surrogate.loss(p) for p in found.trials.mixtures]
    np.testing.assert_allclose(fitted.x, expected)
    np.testing.assert_allclose(fitted.error_x.array, [1.96 * found.surrogate.error(p) for p in found.trials.mixtures])
    line = part.pictures[1].figure.data[1]
    assert line.y[-1] == pytest.approx(found.surrogate.loss(found.choice.p))
    assert found.sentence[1:] in part.sentences[0]
    assert [row[0] for row in part.tables[0].rows] == sorted(
        found.mixture.tasks, key=lambda task: -found.choice.p[found.mixture.tasks.index(task)]
    )
    assert sections(Material(load_run(folder)))[-1].name == "trials"


def test_a_choice_that_is_held_back_is_said(run):
    material = Material(load_run(run[0]))
    surface = material.optional(SURFACE)
    choice = {**surface["choice"], "uniform": False}
    for held in (True, False):
        found = {**surface, "choice": {**choice, "held": held}}
        material.optional = lambda name, found=found: found
        assert any("is not believed" in sentence for sentence in section(material).sentences) == held
        assert ("is not believed" in choice_line(found)) == held


def test_trials_of_another_mixture_are_said_to_be(run):
    material = Material(load_run(run[0]))
    assert "another mixture" not in " ".join(section(material).sentences)
    surface = material.optional(SURFACE)
    turned = material.mixture.weights[::-1]
    material.mixture = replace(material.mixture, weights=turned)
    (tried,) = [list(one["weights"].values()) for one in surface["trials"] if one["name"] == "taskpgm"]
    part = np.maximum(turned - tried, 0).sum()  # what has moved, as it has come
    assert f"spends {part:.1%} of the budget otherwise" in section(material).sentences[0]


def test_without_trials_there_is_no_such_part(run, tmp_path):
    material = Material(load_run(run[0]))
    material.optional = lambda name: None
    assert section(material) is None
