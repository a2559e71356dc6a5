"""The bar over all parts of a fit: what it counts, what it foretells, and what it prints."""

import itertools
import time

import pytest

from bvdm_data.fitting import progress as bars
from bvdm_data.fitting.progress import Progress, format_seconds, open_bar


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that stands still; ``clock[0] += 1`` moves it on."""
    now = [100.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    return now


def test_time_left_follows_the_parts(clock):
    work = Progress({"reading": 10, "painter": 100, "pairs": 30, "memory": 20}, shown=False)
    assert work.measure_left() == 160
    reading = work.start("reading", 5)
    clock[0] += 4
    assert work.measure_left() == 6 + 150
    reading.update()
    for _ in range(2):
        clock[0] += 8
        reading.update()
    # Eight seconds a unit, two units left; so short a part foretells nothing.
    assert reading.measure_left() == 16
    assert work.measure_left() == 16 + 150
    painter = work.start("painter", 101)
    painter.update()
    for _ in range(2):
        clock[0] += 2
        painter.update()
    # Twice as slow as planned, and so is what is ahead.
    assert (painter.measure_rate(), painter.measure_left()) == (2, 196)
    assert work.measure_left() == pytest.approx(196 + 50 * 2)
    painter.close()
    assert (painter.measure_seconds(), painter.measure_left()) == (4, 0)
    # Most of it was done before, which foretells nothing.
    assert work.measure_left() == 50
    assert work.measure_spent() == 24


def test_deadlines_bound_the_time_left(clock):
    work = Progress({"painter": 100, "memory": 60}, shown=False)
    painter = work.start("painter", 1000, until=clock[0] + 90)
    painter.update()
    clock[0] += 30
    painter.update()
    assert (painter.measure_left(), work.measure_left()) == (60, 120)


def test_parts_that_stall_stay_finite(clock):
    work = Progress({"memory": 5}, shown=False)
    work.start("memory")
    clock[0] += 50
    assert work.measure_left() == 0


def test_lines_name_part_and_time(capsys, monkeypatch):
    monkeypatch.setattr(bars, "_LINE", 0.02)
    with Progress({"painter": 100, "page": 50}) as work:
        work.say("hello")
        part = open_bar(work, "painter-7", 10)
        part.set_postfix(loss="0.5")
        part.update()
        time.sleep(0.2)
    out, err = capsys.readouterr()
    first, *lines = err.splitlines()
    assert (out, first) == ("", "hello")
    assert "min left: painter 1/10, loss 0.5" in lines[-1]
    with Progress({"painter": 1}, shown=False) as work:
        work.say("hello")
        work.start("painter")
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_shown_share_never_falls(capsys, monkeypatch):
    left = itertools.chain([0.0], itertools.repeat(1000.0))
    monkeypatch.setattr(bars, "_LINE", 0.02)
    monkeypatch.setattr(Progress, "measure_left", lambda _: next(left))
    with Progress({"painter": 1}) as work:
        work.start("painter")
        time.sleep(0.2)
    shown = [line[:4] for line in capsys.readouterr().err.splitlines()]
    assert len(shown) > 2
    assert set(shown) == {"100%"}


def test_screens_have_one_changing_line(capsys, monkeypatch):
    monkeypatch.setattr(bars, "_EVERY", 0.02)
    monkeypatch.setattr(bars.sys.stderr, "isatty", lambda: True, raising=False)
    with Progress({"reading": 100}) as work:
        work.start("reading", 4)
        time.sleep(0.2)
        work.say("hello")
    err = capsys.readouterr().err
    assert "[" in err
    assert "reading 0/4" in err
    # What is said stands on a line of its own; the bar goes back to where it began.
    assert err.count("\n") == 1
    assert all(len(line) <= 80 for line in err.replace("\n", "\r").split("\r"))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (100, "2 min"), (5399, "90 min"), (9e3, "2.5 h")],
)
def test_times_are_told_in_words(seconds, words):
    assert format_seconds(seconds) == words
