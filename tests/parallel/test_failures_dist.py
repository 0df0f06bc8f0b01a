"""One of several processes fails: the others end with it, all save when asked to leave, and restarts lose nothing.

A short form runs with all tests; the long one, with figures at its end, is ``make faults``. The job is ``failing_job.py``.
"""

import os
import random
import signal
import time

import pytest
from failing_job import EPOCHS, SAVE_PER_STEPS, UPDATES
from fault_results import LONG, comparable, differences, history, times
from ranks import TORCHRUN, Process, free_port, handed_back, once, start_ranks, start_torchrun, torchrun

from template.checkpoint.files import read

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run of two ranks that nobody disturbed."""
    def run(folder):
        assert [rank.end() for rank in start_ranks(2, "-m", "failing_job", cwd=folder)] == [0, 0]

    folder = once(tmp_path_factory, "undisturbed ranks", run)
    assert read(folder / "run/last.pth")["global_step"] == UPDATES
    return folder


def assert_same_end(folder, undisturbed, was_killed=False):
    """Everything that the run left is what it would have left undisturbed, to the bit. A kill in the middle of a write
    leaves a temporary file, which a start ten minutes later removes."""
    for name in ("last", "best", f"epoch{EPOCHS}"):
        one, other = (read(path / f"run/{name}.pth") for path in (folder, undisturbed))
        one, other = (comparable(state) for state in (one, other))
        assert differences(one, other) == []
    assert history(folder / "run") == history(undisturbed / "run")
    assert was_killed or not list((folder / "run").glob(".*.tmp"))


class Told:
    """What a rank wrote until now, over all its starts."""

    def __init__(self, folder, rank):
        self.path = folder / f"told.{rank}"

    def lines(self):
        return self.path.read_text().splitlines() if self.path.exists() else []

    def last(self, word):
        """The last line that begins with ``word``, without it."""
        found = [line for line in self.lines() if line.startswith(word + " ")]
        return found[-1].split()[1:] if found else None

    def reached(self):
        update = self.last("update")
        return int(update[0]) if update else 0

    def wait_for(self, word, count, process=None):
        """Until a line that begins with ``word`` stands there that often; False when ``process`` ended before."""
        deadline = time.monotonic() + 120
        while sum(line.split()[0] == word for line in self.lines()) < count:
            if process is not None and process.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"no {word} in {self.lines()}"
            time.sleep(0.002)
        return True


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 0] if LONG else [1])
def test_an_error_on_one_rank_ends_all_within_seconds_with_its_traceback_alone(rank, tmp_path):
    done = torchrun(2, "-m", "failing_job", cwd=tmp_path, env={"FAULT": f"error {rank} 13"}, check=False)
    assert time.time() - float(Told(tmp_path, rank).last("fault")[0]) < 20
    assert done.returncode == 1
    error = f"ZeroDivisionError: in rank {rank}"
    assert done.stderr.count(f"[rank{rank}]: Traceback") == 1 and f"\n[rank{rank}]: {error}\n" in done.stderr
    assert f"[rank{1 - rank}]: " not in done.stderr
    assert f"\nrank {1 - rank} ends, because rank {rank}: {error}\n" in done.stderr
    assert (error in (tmp_path / "run/log.txt").read_text()) == (rank == 0)
    assert read(tmp_path / "run/last.pth")["global_step"] == 12, "nothing is saved after it"


def test_a_wish_to_stop_and_a_loss_that_is_not_finite_on_one_rank_end_all_at_one_place(tmp_path):
    ranks = start_ranks(2, "-m", "failing_job", "stop_and_nan", cwd=tmp_path)
    assert [rank.end() for rank in ranks] == [1, 1], "by the loss"
    for results in handed_back(tmp_path, 2):
        assert results == {"epochs_done": 2, "global_step": 14, "stopped": True}
    assert read(tmp_path / "stopped/last.pth")["should_stop"]
    assert "FloatingPointError: The loss must stay finite; it is nan in epoch 2, batch 10" in ranks[0].stderr
    assert ranks[0].stderr.count("Traceback") == 1
    assert ranks[1].stderr == "rank 1 ends with the FloatingPointError of rank 0\n"
    assert read(tmp_path / "spoiled/last.pth")["global_step"] == 8, "the state with the NaN is not saved"


# --- signals ----------------------------------------------------------------------------------------------------------


def test_sigterm_on_one_rank_or_to_torchrun_saves_and_stops_all_and_nothing_is_lost(undisturbed, tmp_path):
    ranks = start_ranks(2, "-m", "failing_job", cwd=tmp_path, env={"FAULT": "signal 1 11"})
    assert [rank.end() for rank in ranks] == [143, 143]
    reached = {Told(tmp_path, rank).reached() for rank in range(2)}
    (stopped_at,) = reached
    assert 11 <= stopped_at <= 12, "at the next exchange"
    assert f"Stopped by a signal; saved at epoch 2, update {stopped_at}" in ranks[0].stdout
    assert "Traceback" not in ranks[0].stderr + ranks[1].stderr

    process = start_torchrun(2, "-m", "failing_job", cwd=tmp_path)
    Told(tmp_path, 0).wait_for("update", stopped_at + 8, process)
    process.send(signal.SIGTERM)
    assert process.end() != 0
    assert Told(tmp_path, 0).last("resumed")[0] == Told(tmp_path, 1).last("resumed")[0] == str(stopped_at)
    again = {Told(tmp_path, rank).reached() for rank in range(2)}
    (stopped_at,) = again
    assert f"saved at epoch {read(tmp_path / 'run/last.pth')['epoch']}, update {stopped_at}" in process.stdout

    assert [rank.end() for rank in start_ranks(2, "-m", "failing_job", cwd=tmp_path)] == [0, 0]
    assert Told(tmp_path, 1).last("resumed")[0] == str(stopped_at)
    assert_same_end(tmp_path, undisturbed)


# --- kills ------------------------------------------------------------------------------------------------------------

MARKERS = {  # how often each is said at most before the kill, and how many seconds later it comes at most
    "start": (1, 3.0), "resumed": (1, 0.2), "update": (12, 0.03), "eval": (4, 0.01),
}


def kill_at_a_moment(folder, rank, start, rng, process, markers):
    """SIGKILL for one rank after its ``start``-th start; False when all ended before."""
    told, marker = Told(folder, rank), rng.choice(markers)
    if not told.wait_for("start", start, process):
        return False
    count, seconds = MARKERS[marker]
    if marker != "start":
        before = sum(line.startswith(marker) for line in told.lines())
        if not told.wait_for(marker, before + rng.randint(1, count), process):
            return False
    time.sleep(rng.uniform(0, seconds))
    os.kill(int(told.last("start")[0]), signal.SIGKILL)
    return True


def done_again(told):
    """How many updates each restart had to do again."""
    reached, found = 0, []
    for word, *rest in map(str.split, told.lines()):
        if word == "resumed":
            found.append(reached - int(rest[0]))
        reached = int(rest[0]) if word in ("resumed", "update") else reached
    return found[1:]


@pytest.mark.parametrize("chain", times(1, 20))
def test_torchrun_restarts_after_the_kills_of_both_ranks_and_ends_with_the_same_bits(chain, undisturbed, tmp_path,
                                                                                     record_property):
    rng = random.Random(chain)
    process = start_torchrun(2, "-m", "failing_job", cwd=tmp_path, options=["--standalone", "--max-restarts=3"])
    markers = sorted(MARKERS) if LONG else ["update"]
    kills = [kill_at_a_moment(tmp_path, rank, start, rng, process, markers)
             for start, rank in enumerate(rng.sample([0, 1], 2), 1)]
    assert process.end() == 0, process.stderr
    assert kills[0]
    assert_same_end(tmp_path, undisturbed, was_killed=True)
    again = done_again(Told(tmp_path, 0))
    assert max(again, default=0) <= 2 * SAVE_PER_STEPS
    for name, value in {"ranks: kills under torchrun --max-restarts": sum(kills),
                        "ranks: runs that were killed, same bits": 1,
                        "largest number of updates that ranks did again after a kill": max(again, default=0)}.items():
        record_property(name, value)


# --- two machines -----------------------------------------------------------------------------------------------------


def test_two_nodes_train_on_after_one_was_killed_and_started_again(undisturbed, tmp_path):
    """Two agents of torchrun, each with one rank; the second one is killed with its rank, as when its machine is gone.

    Agents that share their store with the ranks, which is the default, tell its address in the first round alone (seen with
    torch 2.13): who comes later waits in vain.
    """
    options = ["--nnodes", 2, "--nproc-per-node", 1, "--max-restarts", 3, "--rdzv-backend", "c10d", "--rdzv-id", "nodes",
               "--rdzv-endpoint", f"localhost:{free_port()}",
               "--rdzv-conf", "keep_alive_interval=1,keep_alive_max_attempt=3"]

    def agent(name):
        environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "AGENT": name}
        return Process(name, [*TORCHRUN, *options, "-m", "failing_job"], tmp_path, environment)

    first = agent("first")
    time.sleep(1)  # its store is the meeting place
    second = agent("second")
    told = [Told(tmp_path, rank) for rank in range(2)]
    assert told[0].wait_for("update", 11, first)
    assert {one.last("start")[1] for one in told} == {"first", "second"}, "one rank on each"
    (worker,) = [int(one.last("start")[0]) for one in told if one.last("start")[1] == "second"]
    second.send(signal.SIGKILL, worker)
    again = agent("again")
    assert (first.end(), again.end()) == (0, 0), first.stderr + again.stderr
    assert second.end() == -signal.SIGKILL
    assert {one.last("start")[1] for one in told} == {"first", "again"}
    assert all(int(one.last("resumed")[0]) >= 6 for one in told), "from a checkpoint"
    assert_same_end(tmp_path, undisturbed)
