"""What is told of stages, and the lines that a log gets."""

import contextlib
import io
import re
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from rich.console import Console
from support.heard import Heard

from taskpgm.cli.bars import shown
from taskpgm.progress import Lines, Progress, duration, many, plain_lines


def test_a_stage_within_another_is_not_told():
    heard = Heard()
    with heard.stage("outer", 2):
        for _ in range(2):
            with heard.stage("inner", 5):
                heard.advance(5)
            heard.advance()
    assert heard.totals == {"outer": 2}
    assert heard.done == {"outer": 2}
    assert heard.ended == [("outer", True)]


def test_a_stage_that_breaks_is_told_as_such_and_the_next_one_is_heard():
    heard = Heard()
    with contextlib.suppress(ValueError), heard.stage("first", 2):
        heard.advance()
        raise ValueError
    with heard.stage("second", 1):
        heard.advance()
    assert heard.ended == [("first", False), ("second", True)]
    assert heard.done == {"first": 1, "second": 1}


def test_one_of_a_thing_is_no_plural():
    said = [many(count, noun) for count, noun in ((1, "row"), (0, "row"), (12_000, "pass"), (1, "pass"), (3, ""))]
    assert said == ["1 row", "0 rows", "12,000 passes", "1 pass", "3"]
    with Lines(stream := io.StringIO()).stage("reading", 1, "part"):
        pass
    assert stream.getvalue().startswith("reading: 1 part\n")


def test_a_log_gets_a_line_at_the_start_and_the_end_and_now_and_then_between():
    stream = io.StringIO()
    lines = Lines(stream, between=0.05)
    with lines.stage("training probes", 8, "step"):
        lines.advance(2)
        while stream.getvalue().count("\n") < 4:
            time.sleep(0.01)
        with lines.stage("running the shared layers", 5):
            before = stream.getvalue().count("\n")
            while stream.getvalue().count("\n") < before + 2:
                time.sleep(0.01)
        lines.say("out of memory: going on with halves")
    first, *between, said, last = stream.getvalue().splitlines()
    assert first == "training probes: 8 steps"
    far = r"training probes: 2 of 8 steps after \d+ s, about \d+ s left( \(running the shared layers\))?"
    assert all(re.fullmatch(far, line) for line in between)
    assert any("(running the shared layers)" in line for line in between)
    assert said == "out of memory: going on with halves"
    assert re.fullmatch(r"training probes: done in \d+ s", last)
    assert threading.active_count() == 1 or not any(t.name.endswith("(_beat)") for t in threading.enumerate())


def test_the_number_of_workers_stands_behind_the_name():
    stream = io.StringIO()
    lines = Lines(stream, between=0.05)
    lines.workers(7)  # no stage is open
    with lines.stage("training probes", 8, "step"):
        lines.workers(2)
        while "2 workers" not in stream.getvalue():
            time.sleep(0.01)
        with lines.stage("inner"):
            lines.workers(9)
        lines.workers(1)
    with lines.stage("divergences", 1, "set"):
        pass
    text = stream.getvalue()
    assert "training probes (2 workers): 0 of 8 steps after" in text.replace(":  ", ": ")
    assert "training probes (1 worker): done in 0 s\n" in text
    assert "divergences: done in" in text
    assert "7 workers" not in text
    assert "9 workers" not in text


def test_a_log_says_how_far_a_stopped_stage_came():
    stream = io.StringIO()
    lines = Lines(stream)
    with contextlib.suppress(KeyboardInterrupt), lines.stage("scoring", 3, "set"):
        lines.advance()
        raise KeyboardInterrupt
    assert stream.getvalue() == "scoring: 3 sets\nscoring: stopped at 1 of 3 sets after 0 s\n"


def test_sentences_that_nobody_shows_are_warnings():
    with pytest.warns(UserWarning, match="made again"):
        Progress().say("pool is made again")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_gets_bars_and_a_file_gets_lines(terminal):
    stream = io.StringIO()
    with shown(Console(file=stream, force_terminal=terminal, width=80)) as progress:
        with progress.stage("scoring", 3, "set"):
            progress.workers(64)
            progress.advance(3)
        with progress.stage("loading the model"):
            progress.say("a sentence [not] markup")
    text = stream.getvalue()
    assert ("3/3 sets" in text) == terminal
    assert "scoring (64 workers)" in text
    assert ("scoring: 3 sets\n" in text) != terminal
    assert "a sentence [not] markup" in text


def test_a_script_hears_on_standard_error_and_a_notebook_among_its_output(monkeypatch):
    assert plain_lines().stream is sys.stderr
    ipython = pytest.importorskip("IPython")
    assert plain_lines().stream is sys.stderr  # imported, but no notebook
    monkeypatch.setattr(ipython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    assert plain_lines().stream is sys.stdout


def test_durations():
    assert [duration(s) for s in (0.4, 59, 61, 3599, 7500)] == ["0 s", "59 s", "1 min 1 s", "59 min 59 s", "2 h 5 min"]
