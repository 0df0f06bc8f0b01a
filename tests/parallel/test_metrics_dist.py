"""Every accumulator over several processes, in the evaluation and in the training: ``metrics_job.py``."""

import pytest
import torch
from metrics_job import All, metrics
from ranks import in_ranks

from template.metrics.epoch import EpochMetrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """``(results by rank, folder)``."""
    return in_ranks(2, "metrics_job", tmp_path_factory)[:2]


@pytest.fixture(scope="module")
def ranks(job):
    return job[0]


def of_all(batches):
    """The values of what all ranks predicted, as one batch."""
    epoch = EpochMetrics()
    pred, y = (torch.cat(parts) for parts in zip(*batches))
    epoch.update(metrics(pred, y), len(y))
    return epoch.compute()


@pytest.mark.parametrize("run", ["whole", "chained"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_metrics_of_the_training_are_those_of_the_predictions_of_all_ranks(ranks, run, epoch):
    results = [rank[run][epoch] for rank in ranks]
    expected = of_all([batch for result in results for batch in result["seen"]])
    assert sum(len(y) for result in results for _, y in result["seen"]) == 53
    for result in results:
        found = {name: value for name, value in result["train"].items() if name != "tol_loss"}
        assert found == pytest.approx(expected, rel=1e-6)


def test_metrics_of_the_evaluation_are_those_of_one_process(job):
    alone = All()
    alone.load_state(job[1] / "whole/last.pth", optim=False)
    alone.check_init(use_tb=False)
    expected = alone.test()
    for rank in job[0]:
        assert rank["whole"][-1]["eval"] == pytest.approx(expected, rel=1e-6)


def test_each_loader_of_a_chain_is_divided_among_the_ranks(ranks):
    assert [rank["steps"] for rank in ranks] == [2 * (4 + 3)] * 2


def test_ranks_that_go_on_in_the_middle_of_an_epoch_come_to_the_same_bits(ranks):
    for rank in ranks:
        for one, other in zip(rank["whole"], rank["continued"]):
            assert one["train"] == other["train"] and one["eval"] == other["eval"]


def test_the_best_of_the_training_is_known_on_every_rank(ranks):
    for rank in ranks:
        accuracies = [epoch["train"]["acc"] for epoch in rank["whole"]]
        assert rank["best"]["train/acc"] == max(accuracies) and [epoch["score"] for epoch in rank["whole"]] == accuracies
