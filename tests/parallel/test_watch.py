"""Which ranks are apart, and which are merely slow: two watches over one store."""

import sys
import threading
import time

import pytest
import torch.distributed as dist

from template.parallel import watch as module
from template.parallel.watch import Watch, are_apart, difference, named, own_line


@pytest.fixture
def two(monkeypatch):
    """The watches of rank 0 and rank 1, which look as soon as they can."""
    monkeypatch.setattr(module, "STANDS_SECONDS", 0.0)
    monkeypatch.setattr(module, "TELLS_SECONDS", 2.5)
    store = dist.HashStore()
    watches = [Watch(rank, 2) for rank in range(2)]
    for watch in watches:
        watch.start(store)
    yield watches
    for watch in watches:
        watch.end()
        assert not watch._thread.is_alive()


def waits(watch, call):
    watch.call = call
    watch.begin_exchange()


def comes(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize(("one", "other", "apart"), [
    ((5, 16), (5, 16), False),
    ((6, 16), (5, 16), False),     # the other one may be slow in what comes before the exchange
    ((6, 17), (5, 16), False),     # or far behind
    ((6, 16), (5, 17), True),      # one skipped the update, the other one the exchange
    ((5, 17), (9, 16), True),
], ids=str)
def test_ranks_are_apart_when_each_began_what_the_other_one_skipped(one, other, apart):
    assert are_apart(one, other) == are_apart(other, one) == apart


def test_a_wait_in_an_exchange_for_a_rank_in_an_update_is_known_to_be_in_vain(two, capfd):
    waits(two[0], "test()")
    two[1].call = "train_loop()"
    two[1].updates += 1
    assert comes(lambda: two[0].verdict)
    assert "Rank 0 is at test_watch.py:" in two[0].verdict and "last call: test()" in two[0].verdict
    assert "Rank 1 is at test_watch.py:" in two[0].verdict and "last call: train_loop()" in two[0].verdict


def test_a_slow_rank_is_told_once_for_each_call_and_never_given_up(two, capfd):
    waits(two[0], "eval()")
    two[1].call = "train_loop()"
    said = []
    assert comes(lambda: said.append(capfd.readouterr().err) or any("come there yet" in text for text in said))
    time.sleep(2.5)
    said = "".join(said) + capfd.readouterr().err
    assert said.count("have not come there yet") == 1
    assert "rank 1 at test_watch.py:" in said and "(last call: train_loop())" in said
    assert two[0].verdict is two[1].verdict is None


def test_a_rank_without_a_sign_of_life_is_given_up(two, monkeypatch):
    two[1].end()
    monkeypatch.setattr(module, "GIVES_UP_SECONDS", 1.5)
    waits(two[0], "eval()")
    assert comes(lambda: two[0].verdict)
    assert two[0].verdict.startswith("Rank 1 has shown no sign of life")


def test_nothing_is_written_while_there_is_progress_or_the_training_is_over(monkeypatch):
    monkeypatch.setattr(module, "STANDS_SECONDS", 0.0)
    watch = Watch(0, 1)
    watch.start(dist.HashStore())
    watch.is_over = True
    time.sleep(2.2)
    assert watch._signs == 1
    watch.begin_exchange()
    assert comes(lambda: watch._signs > 1)
    watch.end()


def test_places_and_ranks_in_words():
    assert named([3]) == "rank 3" and named([1, 2]) == "ranks 1, 2"
    assert named(list(range(7))) == "ranks 0, 1, 2, 3, 4 and 2 more"
    assert "Rank 0 is at a. Ranks 1, 2 are at b. Look" in difference({0: "a", 1: "b", 2: "b"})


def test_the_line_that_is_shown_is_the_users_innermost_one():
    done = threading.Event()

    def waits_here():
        done.wait()  # in a file of Python

    thread = threading.Thread(target=waits_here)
    thread.start()
    line = own_line(sys._current_frames()[thread.ident])
    done.set()
    thread.join()
    assert line == f"test_watch.py:{waits_here.__code__.co_firstlineno + 1} in waits_here"
