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
        (TEXT.replace("2.5", "nan"), "loss,accuracy:max", "loss is nan; take that run out"),
        (TEXT.replace("first,1,1", "first,-1,3"), "loss,accuracy:max", "negative"),
        (TEXT.replace("2.5", "2.5,9"), "loss,accuracy:max", "line 4 has 6 cells where the header names 5"),
        (TEXT, "loss", "sum to"),  # accuracy is then taken for a task
        ("a,b,loss\n1,0,2\n\n0,1,x\n1,0,3\n", "loss", "line 4: loss is 'x'"),
        ("a,b,loss\n1,0,2\n0,1,\n1,0,3\n", "loss", "line 3: loss is empty; fill it in"),
        ("a;b;loss\n1;0;2,5\n0;1;2\n1;0;3\n", "loss", "with a point: 2.5"),
        ("a,b,loss\n1,0,2\n0%,1,2\n1,0,3\n", "loss", "leave out the sign %"),
        ("a,b,loss\n1,0,2\n0,1,inf\n1,0,3\n", "loss", "take that run out"),
        (",a,b,loss\n0,1,0,2\n1,0,1,2\n2,1,0,3\n", "loss", "Column 1 .* has no name"),
        ("run,a,b,loss\nr1,1,0,2\nr2,0,1,2\nr3,1,0,3\n", "loss", "one that names the runs is called name"),
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


def table(rows, separator=","):
    return "\n".join(separator.join(map(str, row)) for row in rows) + "\n"


ROWS = [("a", "b", "loss"), (0.5, 0.5, 2.0), (0.25, 0.75, 1.5), (1, 0, 2.5)]


@pytest.mark.parametrize(
    "text",
    [
        table(ROWS, ";"),
        table(ROWS, "\t"),
        "\ufeff" + table(ROWS).replace("\n", "\r\n"),
        table([(f" {cell} " for cell in row) for row in ROWS]),
        table([(*row, "", "") for row in ROWS]),  # spreadsheets write separators behind the last cell
        table([*ROWS[:2], ("", "", ""), *ROWS[2:]]) + "\n\n",
        table([(*(f'"{cell}"' for cell in row),) for row in ROWS]),
    ],
)
def test_results_are_read_however_spreadsheets_write_them(tmp_path, text):
    (tmp_path / "r.csv").write_text(text, encoding="utf-8", newline="")
    trials = read_trials(tmp_path / "r.csv", parse_metrics("loss"))
    assert trials.tasks == ("a", "b")
    np.testing.assert_array_equal(trials.mixtures, [row[:2] for row in ROWS[1:]])
    assert trials.losses == (2.0, 1.5, 2.5)


@pytest.mark.parametrize("times", [1, 100])
@pytest.mark.parametrize("values", [(0.551, 0.553, 0.552), (1e-4, 1e-4, 1e-4), (1e-4, 2e-4, 3e-4)])
def test_a_column_that_spoils_sums_of_one_or_a_hundred_is_no_task(tmp_path, times, values):
    weights = [(0.5, 0.5), (0.25, 0.75), (1, 0)]
    rows = [(times * a, times * b, more, 2 + a) for (a, b), more in zip(weights, values, strict=True)]
    (tmp_path / "r.csv").write_text(table([("a", "b", "rate", "loss"), *rows]))
    with pytest.raises(UserError, match="without the column 'rate'"):
        read_trials(tmp_path / "r.csv", parse_metrics("loss"))
    assert read_trials(tmp_path / "r.csv", parse_metrics("loss,rate:max:0.1")).tasks == ("a", "b")


@pytest.mark.parametrize(
    "rows", [[(0.333, 0.333, 0.333), (0.5, 0.25, 0.25), (0.14, 0.14, 0.71)], [(50, 30, 20), (20, 30, 50), (0, 30, 70)]]
)
def test_rounded_weights_and_counts_of_rows_are_weights(tmp_path, rows):
    (tmp_path / "r.csv").write_text(table([("a", "b", "c", "loss"), *((*row, k) for k, row in enumerate(rows))]))
    np.testing.assert_allclose(
        read_trials(tmp_path / "r.csv", parse_metrics("loss")).mixtures, [np.divide(row, sum(row)) for row in rows]
    )


def test_runs_of_one_mixture_alone_tell_nothing(tmp_path):
    (tmp_path / "r.csv").write_text(table([("a", "b", "loss"), (0.4, 0.6, 2), (40.01, 60, 2.1), (2, 3, 2.05)]))
    with pytest.raises(UserError, match="sum to"):
        read_trials(tmp_path / "r.csv", parse_metrics("loss"))
    (tmp_path / "r.csv").write_text(table([("a", "b", "loss"), (0.4, 0.6, 2), (0.4004, 0.6, 2.1), (0.4, 0.6, 2.05)]))
    with pytest.raises(UserError, match="all 3 runs have the same mixture"):
        read_trials(tmp_path / "r.csv", parse_metrics("loss"))


@pytest.mark.parametrize("third", ["0.3", "0.30000000000000004"])
def test_runs_that_are_all_alike_good_tell_nothing(tmp_path, third):
    """A mixture far from uniform was chosen: a metric without spread has no scale either."""
    (tmp_path / "r.csv").write_text(f"a,b,accuracy\n0.2,0.8,0.3\n0.5,0.5,0.3\n0.6,0.4,{third}\n")
    with pytest.raises(UserError, match="accuracy is the same in all 3 runs"):
        read_trials(tmp_path / "r.csv", parse_metrics("accuracy:max"))


def test_text_in_another_encoding_is_told(tmp_path):
    (tmp_path / "r.csv").write_bytes("ä,b,loss\n".encode("latin-1"))
    with pytest.raises(UserError, match="not text in UTF-8; save it again"):
        read_trials(tmp_path / "r.csv", parse_metrics("loss"))
