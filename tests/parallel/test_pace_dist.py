"""Several ranks evaluate, stop and end in the middle of an epoch together. What they do stands in ``pace_job.py``."""

import pytest
import torch
from pace_job import found
from ranks import in_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return in_ranks(2, "pace_job", tmp_path_factory)[0]


def test_evaluations_within_an_epoch_change_no_bit_and_come_on_all_ranks(ranks):
    for results in ranks:
        assert results["same"] and results["ends"] == [1, 2, 3, 4]
        assert results["at"] == [2, 3, 4, 6, 8, 9, 10, 12]  # 3 rounds an epoch


def test_all_ranks_stop_at_the_update_at_which_they_learn_of_the_wish_of_one_and_go_on_there_to_the_same_bits(ranks):
    step = ranks[0]["stopped"][0]
    assert 4 <= step <= 6  # the next log point at the latest
    for results in ranks:
        assert results["stopped"] == (step, step // 3, "now") or results["stopped"] == (step, step // 3 - 1, "now")
        assert results["began"] == step and results["continued"]


def test_a_run_of_updates_ends_alike_and_as_in_one_process(ranks):
    alone = found()
    for results in ranks:
        assert results["updates"][:2] == (4, 2) and torch.equal(results["updates"][2], ranks[0]["updates"][2])
    assert alone["updates"][:2] == (4, 1)
    for limit in (1, 3):
        for results in ranks:
            assert results[f"limit {limit}"][0] == 2 and alone[f"limit {limit}"][0] == 3  # 3 batches in rounds of 2
            assert results[f"limit {limit}"] == ranks[0][f"limit {limit}"]
            assert results[f"fresh {limit}"] == pytest.approx(alone[f"fresh {limit}"], rel=1e-6)
