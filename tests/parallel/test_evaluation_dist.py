"""An evaluation by several processes gives the numbers of one, whatever is accumulated and however it comes out uneven.

The evaluations are those of ``evaluation_job.py``.
"""

import pytest
import torch
from evaluation_job import ALIKE, evaluate
from ranks import in_ranks
from sklearn.metrics import accuracy_score, f1_score, precision_score, roc_auc_score
from tiny import tiny_data, tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """``(results by rank, folder, stdout, stderr)``."""
    return in_ranks(3, "evaluation_job", tmp_path_factory)


@pytest.mark.parametrize("name", ALIKE)
def test_every_rank_gets_the_numbers_of_one_process(name, ranks):
    alone = evaluate(name)
    assert len(alone["eval"]) > 1
    for results in ranks[0]:
        for part, expected in alone.items():
            assert list(results[name][part]) == list(expected)
            for key, value in expected.items():
                expected_value = value if isinstance(value, list) else pytest.approx(value, rel=1e-6)
                assert results[name][part][key] == expected_value, key


def test_the_numbers_are_those_of_scikit_learn_over_all_samples(ranks):
    model, (x, y) = tiny_model().eval(), tiny_data(23, seed=5)
    with torch.no_grad():
        pred = model(x)
    for name in ("per batch, two batches and a short one", "eval_metrics"):
        found, kind = ranks[0][-1][name]["eval"], "macro" if "per batch" in name else "weighted"
        assert found["f1"] == pytest.approx(f1_score(y, pred.argmax(1), average=kind))
        assert found["acc"] == pytest.approx(accuracy_score(y, pred.argmax(1)))
        assert found["auc"] == pytest.approx(roc_auc_score(y == 0, pred[:, 0]))
        assert found["tol_loss"] == pytest.approx(torch.nn.functional.cross_entropy(pred, y).item())


def test_the_default_accuracy_and_functions_by_name_are_those_of_scikit_learn(ranks):
    model = tiny_model().eval()
    for name, count in (("by name", 23), ("ignored labels", 43)):
        x, y = tiny_data(count, seed=5)
        with torch.no_grad():
            pred, counts = model(x), torch.ones(count, dtype=torch.bool)
        if name == "ignored labels":
            counts[::3] = counts[10:20] = False
        for results in ranks[0]:
            found = results[name]["eval"]
            assert found["acc"] == accuracy_score(y[counts], pred.argmax(1)[counts])
            assert found["tol_loss"] == pytest.approx(torch.nn.functional.cross_entropy(pred[counts], y[counts]).item())
            if name == "by name":
                assert found["precision"] == pytest.approx(precision_score(y, pred.argmax(1), average="macro"))
                assert found["auc"] == pytest.approx(roc_auc_score(y, pred.softmax(1), multi_class="ovr"))


def test_early_stopping_ends_all_ranks_after_the_same_epoch(ranks):
    (one, *others) = [results["early"] for results in ranks[0]]
    assert one["stopped"] and 2 < one["epochs_done"] < 20
    assert all(other == one for other in others)


def test_a_metric_that_raises_at_the_end_of_the_epoch_ends_all_ranks_with_its_message(ranks):
    results, _, _, stderr = ranks
    assert results[0]["raising"] == "ArithmeticError: no score of 23 samples", "the samples of all ranks"
    for rank in range(1, len(results)):
        assert results[rank]["raising"] == "SystemExit: 1"
        assert f"rank {rank} ends, because rank 0: ArithmeticError: no score of 23 samples" in stderr


def test_an_accumulator_that_cannot_be_merged_is_refused_with_what_can(ranks):
    for results in ranks[0]:
        assert results["not merged"].startswith("TypeError: Several processes need metrics that can be merged: Mean, ")
