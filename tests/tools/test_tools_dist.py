"""Tools that every rank calls say the same on all of them, and what one process says."""

import os

import pytest
import torch
from ranks import in_ranks
from tiny import tiny_model, tiny_trainer

from template.tools.find_lr import find_lr

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="gloo as on Linux")]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    results, *_ = in_ranks(2, "tools_job", tmp_path_factory)
    return results


def test_training_on_ends_with_the_same_bits_in_two_processes(ranks):
    for rank in ranks:
        assert rank["same"] and rank["best"][0] == rank["best"][1]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])


def test_all_ranks_are_told_the_same(ranks):
    for name in ("losses", "suggestion", "overfit", "soup"):
        assert ranks[0][name] == ranks[1][name]


def test_a_sweep_of_two_processes_is_that_of_one_with_two_batches_an_update(ranks):
    trainer = tiny_trainer(model=tiny_model(dropout=0.0), accumulate_steps=2, clip_grad=1.0)
    found = find_lr(trainer, num_updates=20, highest=1.0)
    assert ranks[0]["losses"] == pytest.approx(found.losses, rel=1e-4)


def test_a_batch_size_is_searched_in_one_process(ranks):
    assert "runs in one process, and there are 2" in ranks[0]["refused"]
