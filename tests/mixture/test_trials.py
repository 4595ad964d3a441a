"""Results of a user's own runs, read and described."""

import numpy as np
import pytest

from taskpgm.errors import UserError
from taskpgm.mixture.trials import Metric, parse_metrics, read_trials

TEXT = "name,a,b,loss,accuracy\nfirst,1,1,2.0,0.5\n,3,1,1.5,0.75\n,1,3,2.5,0.25\n"


def written(folder, text=TEXT):
    path = folder / "results.csv"
    path.write_text(text.replace("3,1", "1.5,0.5").replace("1,3", "0.5,1.5"), encoding="utf-8")
    return path


def test_metrics_are_parsed():
    assert parse_metrics("loss") == (Metric("loss"),)
    assert parse_metrics("a:max, b:min:2.5") == (Metric("a", -1.0), Metric("b", 1.0, 2.5))


@pytest.mark.parametrize("text", ["", "a,a", "a:up", "a:max:0", "a:max:-1", "a:max:x", "a::1:2"])
def test_metrics_that_are_none_are_told(text):
    with pytest.raises(UserError, match="--metric"):
        parse_metrics(text)


def test_results_are_read_as_shares_and_one_loss(tmp_path):
    trials = read_trials(written(tmp_path), parse_metrics("loss:min:2,accuracy:max"))
    assert trials.tasks == ("a", "b")
    assert trials.names == ("first", "row 3", "row 4")
    np.testing.assert_allclose(trials.mixtures, [[0.5, 0.5], [0.75, 0.25], [0.25, 0.75]])
    np.testing.assert_allclose(trials.losses, [4 - 0.5, 3 - 0.75, 5 - 0.25])


@pytest.mark.parametrize(
    ("text", "metric", "said"),
    [
        ("a,b,loss\n1,1,2\n", "loss", "at least 3"),
        (TEXT, "perplexity", "no column 'perplexity'"),
        (TEXT.replace("2.5", "n/a"), "loss,accuracy:max", "line 4: loss is 'n/a'"),
        (TEXT.replace("2.5", "nan"), "loss,accuracy:max", "not a number"),
        (TEXT.replace("first,1,1", "first,-1,3"), "loss,accuracy:max", "negative"),
        (TEXT.replace("2.5", "2.5,9"), "loss,accuracy:max", "Row 4 of .* more cells than the header has columns"),
        (TEXT, "loss", "sum to"),  # accuracy is then taken for a task
        ("a,loss\n1,2\n1,2\n1,3\n", "loss", "at least two tasks"),
    ],
)
def test_results_that_are_none_are_told(tmp_path, text, metric, said):
    with pytest.raises(UserError, match=said):
        read_trials(written(tmp_path, text), parse_metrics(metric))


def test_tasks_that_are_known_must_be_there_and_other_columns_not(tmp_path):
    with pytest.raises(UserError, match="no column 'c', which is a task"):
        read_trials(written(tmp_path), parse_metrics("loss,accuracy"), ("a", "b", "c"))
    with pytest.raises(UserError, match="neither tasks nor metrics: accuracy"):
        read_trials(written(tmp_path), parse_metrics("loss"), ("a", "b"))
