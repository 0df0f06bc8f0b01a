"""What several processes tell each other, as far as one process can show it; the rest is in the ``*_dist.py`` files."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from template.parallel import ranks as distributed
from template.parallel.ranks import Alone


def started(store, size, order):
    """Names of the parts of ``store`` that the ranks of one start agree on; they come in this order."""
    with ThreadPoolExecutor(size) as threads:
        parts = [threads.submit(distributed._of_this_start, store, rank, size) for rank in order]
        parts = dict(zip(order, [part.result(timeout=30) for part in parts]))
    parts[0].set("key", "of rank 0")
    return parts, [part.get("key").decode() for part in parts.values()]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]], ids=str)
def test_ranks_that_are_started_again_find_nothing_of_those_before_in_a_store_that_outlives_them(order):
    store, before = dist.HashStore(), []
    for _ in range(3):
        parts, found = started(store, 3, order)
        assert found == ["of rank 0"] * 3
        assert not any(part.check(["address"]) for part in parts.values())
        parts[1].set("address", "of rank 1")
        assert all(part.get("address") == b"of rank 1" for part in parts.values())
        before.append(parts[0])


def test_a_start_that_was_killed_half_way_does_not_disturb_the_next():
    """Rank 1 has said that it is there, and rank 0 answered; then both were gone."""
    store = dist.HashStore()
    store.set("here/1", "number of a process that is gone")
    with ThreadPoolExecutor(2) as threads:
        main = threads.submit(distributed._of_this_start, store, 0, 2)
        store.wait(["name/number of a process that is gone"])
        assert not main.done()
        other = threads.submit(distributed._of_this_start, store, 1, 2)
        main.result(30).set("key", "value")
        assert other.result(30).get("key") == b"value"


def test_ranks_that_do_not_come_are_named(monkeypatch):
    monkeypatch.setattr(distributed, "TIMEOUT", distributed.timedelta(seconds=0.05))
    with pytest.raises(RuntimeError, match=r"Ranks \[1, 2\] of 3 did not come within 0:00:00.05"):
        distributed._of_this_start(dist.HashStore(), 0, 3)


def test_one_process_agrees_with_itself():
    world = Alone()
    assert (world.rank, world.size, world.is_main, world.signal) == (0, 1, True, None)
    assert world.gather(3) == [3] and world.share(4) == 4 and world.from_main(lambda: 5) == 5
    assert world.any(True) is True and world.any(0) is False
    assert not world.is_lost(RuntimeError("gloo"))
    world.wish = 15
    assert world.signal == 15
    with pytest.raises(ZeroDivisionError):
        world.from_main(lambda: 1 / 0)


def test_each_process_of_a_machine_has_its_own_gpu(monkeypatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert distributed.own_device(cuda) == cuda and not distributed.is_asked_for()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert distributed.is_asked_for()
    assert distributed.own_device(cuda) == torch.device("cuda", 2)
    assert distributed.own_device(torch.device("cuda", 0)) == torch.device("cuda", 0) and distributed.own_device(cpu) == cpu
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert distributed.default_device() == "cuda:2"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="this is number 2 on a machine with 2"):
        distributed.join(torch.device("cuda", 2))
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distributed.default_device() == "cuda" and type(distributed.join(cuda)) is Alone
