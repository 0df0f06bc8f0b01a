"""Calls that only some ranks make: they need no others, or all ranks end within seconds and say who was where."""

import os
import re
import time

import pytest
import torch
from ranks import handed_back, once, start_ranks, torchrun

from template.checkpoint.files import read

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="gloo as on Linux")]


@pytest.fixture(scope="module", params=[2, 3])
def allowed(request, tmp_path_factory):
    """What each rank found, the folder, what the ranks said."""
    def run(folder):
        ranks = start_ranks(request.param, "-m", "calls_job", "allowed", cwd=folder)
        assert [rank.end() for rank in ranks] == [0] * request.param, "\n".join(rank.stderr for rank in ranks)

    folder = once(tmp_path_factory, f"allowed calls {request.param}", run)
    said = [(folder / f"rank{rank}.stderr.txt").read_text() for rank in range(request.param)]
    return handed_back(folder, request.param), folder, said


STOPPED_AFTER = {"in epochs": 2, "before epochs": 0, "in fit": 1, "in a plain loop": 2}  # epochs


@pytest.mark.parametrize(("where", "epochs_done"), STOPPED_AFTER.items())
def test_all_ranks_stop_when_one_of_them_was_asked_to(allowed, where, epochs_done):
    assert [found[where] for found in allowed[0]] == [(epochs_done, True)] * len(allowed[0])


def test_rank_0_saves_and_predicts_alone_and_the_training_goes_on_as_without(allowed):
    results, folder, _ = allowed
    assert [found["saves"] for found in results] == [(2, False)] * len(results)
    for found in results[1:]:
        assert found["losses"] == results[0]["losses"]
        assert all(torch.equal(value, results[0]["weights"][name]) for name, value in found["weights"].items())
    behind, last = read(folder / "behind2.pth"), read(folder / "saves/last.pth")
    assert behind["global_step"] == last["global_step"] and "rng_of_other_ranks" not in behind
    assert all(torch.equal(value, last["model0"][name]) for name, value in behind["model0"].items())
    assert read(folder / "middle.pth")["global_step"] == 4
    assert (folder / "model.pth").exists()


def test_a_rank_that_is_slow_is_waited_for_which_is_said_once(allowed):
    _, _, said = allowed
    (line,) = [line for text in said for line in text.splitlines()
               if "rank 0 at calls_job.py" in line and "in on_after_step" in line]
    assert re.match(r"rank 1 has been at calls_job.py:\d+ in allowed \(last call: train_loop\(\); epoch 2, update \d+\) for "
                    r"\d+ s, and others have not come there yet: rank 0 at calls_job.py:\d+ in on_after_step ", line), line


def apart(name, tmp_path, num_ranks=2):
    """The ranks after they ended by themselves: what each said, at most 25 seconds after they set out."""
    ranks = start_ranks(num_ranks, "-m", "calls_job", name, cwd=tmp_path)
    codes = [rank.end(timeout=100) for rank in ranks]
    assert time.time() - float(re.findall(r"^apart (.+)$", ranks[0].stderr, re.M)[-1]) < 25
    assert 1 in codes and set(codes) <= {0, 1}
    return [rank.stderr for rank in ranks]


@pytest.mark.parametrize(("name", "num_ranks", "main", "others"), [
    ("test", 3, "in test .last call: test.*", r"in test .last call: epochs\(3\)"),
    ("load", 2, r"in load .last call: load_state\(\)", r"in load .last call: epochs\(2\)"),
    ("measures", 2, r"in measures .last call: throughput\(\)", r"in measures .last call: epochs\(1\)"),
    ("saves_sharded", 2, r"in saves_sharded .last call: save_state\(\)", r"in saves_sharded .last call: eval\(\)"),
])
def test_ranks_that_meet_in_different_calls_end_at_once_and_say_where_each_is(name, num_ranks, main, others, tmp_path):
    said = apart(name, tmp_path, num_ranks)
    who = "Rank 1 is" if num_ranks == 2 else "Ranks? 1.* (is|are)"
    assert re.search(rf"RanksDiffer: Every rank .* Rank 0 is at calls_job.py:\d+ {main}.*\. "
                     rf"{who} at calls_job.py:\d+ {others}", said[0]), said[0]
    for rank in range(1, num_ranks):
        assert f"rank {rank} ends with the RanksDiffer of rank 0\n" in said[rank]


def test_a_rank_that_evaluates_alone_while_the_others_wait_for_its_gradients_ends_all_within_seconds(tmp_path):
    said = apart("callback", tmp_path)
    where = (r"Rank 0 is at calls_job.py:\d+ in on_after_step .last call: test\(\); epoch 1, update 2\). Rank 1 is at "
             r"calls_job.py:\d+ in callback .last call: train_loop\(\); epoch 1, update 2\)")
    assert re.search(rf"RanksDiffer: Every rank .*{where}", said[0])
    assert re.search(rf"rank 1 ends.*{where}", said[1])


def test_a_rank_that_leaves_the_loop_alone_ends_the_others(tmp_path):
    said = apart("leaves", tmp_path)
    assert re.search(r"rank 0 ends, because another rank is gone: .* This rank is at calls_job.py:\d+ in leaves .last call: "
                     r"epochs\(3\); epoch 2, update 12\), which needs every rank", said[0])


def test_under_torchrun_it_is_known_which_rank_has_left(tmp_path):
    done = torchrun(2, "-m", "calls_job", "leaves", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert re.search(r"rank 0 ends, because the program of rank 1 has ended; this rank is at calls_job.py", done.stderr)


def test_a_rank_that_ends_before_check_init_is_named_and_under_torchrun_ends_the_others(tmp_path):
    done = torchrun(2, "-m", "calls_job", "ends_before", cwd=tmp_path, check=False)
    assert time.time() - float(re.findall(r"^apart (.+)$", done.stderr, re.M)[0]) < 40
    assert done.returncode == 1
    assert "rank 0 has waited 5 s in check_init() for rank 1, and waits 10 minutes at most." in done.stderr
    assert "RuntimeError: The program of rank 1 ended before it called check_init(), which every rank has" in done.stderr
