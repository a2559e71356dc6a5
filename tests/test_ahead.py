"""A thread that works ahead of a loop: order, room, errors, and all the ways to end it."""

import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest

from bvdm_data.datasets.device_loader import Prefetcher


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "bvdm_data ahead"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    assert threads() == []


def until(true):
    """Wait until something is true, which comes soon."""
    for _ in range(500):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it never became true")


@pytest.mark.parametrize("room", [1, 3, 50])
def test_results_come_in_their_order_and_then_the_end(room):
    made = Prefetcher(iter(range(20)), lambda number: number**2, room)
    assert iter(made) is made
    assert list(made) == [number**2 for number in range(20)]
    assert list(made) == []


def test_an_empty_source_makes_nothing():
    assert list(Prefetcher(iter(()), str, 1)) == []


@pytest.mark.parametrize("room", [1, 2, 5])
def test_no_more_is_made_than_there_is_room_for_and_one_that_waits(room):
    made = []
    ahead = Prefetcher(iter(range(100)), made.append, room)
    until(lambda: len(made) == room + 1)
    time.sleep(0.3)
    assert len(made) == room + 1
    next(ahead)
    until(lambda: len(made) == room + 2)
    ahead.close()


def test_work_is_done_in_one_other_thread():
    found = set(Prefetcher(iter(range(5)), lambda _: threading.get_ident(), 2))
    assert len(found) == 1
    assert threading.get_ident() not in found


@pytest.mark.parametrize("where", ["source", "work"])
def test_an_error_comes_after_what_was_made_before_it(where):
    def source():
        yield from (1, 2)
        if where == "source":
            raise KeyError("lost")
        yield 0

    def work(number):
        if number == 0:
            raise KeyError("lost")
        return number

    ahead = Prefetcher(source(), work, 1)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(KeyError, match="lost"):
        next(ahead)
    assert list(ahead) == []


def test_an_end_that_the_work_raises_is_no_end_of_the_loop():
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(Prefetcher(iter([1]), lambda _: next(iter(())), 1))


def test_a_closed_loop_says_so_and_does_not_end_as_if_it_were_over():
    ahead = Prefetcher(iter(range(100)), str, 2)
    assert next(ahead) == "0"
    ahead.close()
    ahead.close()
    assert threads() == []
    with pytest.raises(RuntimeError, match="the loop was closed ahead of its end"):
        next(ahead)


def test_who_waits_hears_that_another_thread_has_closed_the_loop():
    go = threading.Event()
    ahead = Prefetcher(iter([1]), lambda _: go.wait(), 1)
    closing = threading.Thread(target=ahead.close)
    closing.start()
    with pytest.raises(RuntimeError, match="the loop was closed"):
        next(ahead)
    go.set()
    closing.join()


def test_the_source_is_closed_with_the_loop():
    closed = []

    def source():
        try:
            yield from range(100)
        finally:
            closed.append(threading.current_thread().name)

    ahead = Prefetcher(source(), str, 1)
    next(ahead)
    ahead.close()
    assert closed == ["bvdm_data ahead"]


def test_a_loop_that_is_lost_ends_its_thread():
    def leave():
        for number in Prefetcher(iter(range(100)), int, 1):
            if number == 2:
                break

    leave()
    assert threads() == []


def test_a_loop_that_is_lost_in_a_circle_ends_its_thread():
    ahead = Prefetcher(iter(range(100)), int, 1)
    circle = [ahead]
    circle.append(circle)
    lost = weakref.ref(ahead)
    del ahead, circle
    gc.collect()
    assert lost() is None
    assert threads() == []


def test_a_loop_that_is_lost_in_its_own_thread_does_not_wait_for_itself():
    held, gone = [], threading.Event()

    def work(_):
        gone.wait()
        held.clear()

    held.append(Prefetcher(iter(range(3)), work, 1))
    (thread,) = threads()
    gone.set()
    thread.join(timeout=60)
    assert not thread.is_alive()


@pytest.mark.parametrize("state", ["full", "busy"])
def test_the_interpreter_exits_while_a_thread_is_ahead(state):
    # Waits for room, or is in the middle of an item.
    script = f"""
import threading
from bvdm_data.datasets.device_loader import Ahead
begun = threading.Event()
def work(number):
    begun.set()
    if {state == "busy"} and number:
        threading.Event().wait(0.5)
    return number
ahead = Ahead(iter(range(100)), work, 1)
begun.wait()
print(next(ahead), flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
