"""Everything on at once: averages, early stopping, the best files, pictures, statistics, evaluations within an epoch,
training metrics, accumulation, clipping and a schedule. A run that was cut in the middle of an epoch ends as one that was
not."""

import pytest
import torch
from everything_job import UPDATES, left, run, trained
from ranks import history, in_ranks
from tiny import weights


@pytest.fixture(scope="module", params=["EMA", "SWA"])
def whole(request, tmp_path_factory):
    """``(the average, what a run that was never cut left, its weights at the end)``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        trainer = run("run", average=request.param)
        assert trainer.global_step == UPDATES and trainer.best_epoch["acc"] < trainer.epochs_done
        return request.param, left("run"), weights(trainer), trained("run")


@pytest.mark.slow
@pytest.mark.parametrize("update, how, reached", [(9, "now", 9), (15, "error", 15), (17, "evaluation", 18)])
def test_a_run_that_was_cut_ends_with_the_same_bits_and_the_same_files(whole, update, how, reached):
    average, expected, at_the_end, _ = whole
    assert run("run", update, how, average=average).global_step == reached
    trainer = run("run", average=average)
    assert trainer.global_step == UPDATES and torch.equal(weights(trainer), at_the_end)
    found = left("run")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == value, name


def test_a_run_without_the_callbacks_trains_the_same_weights(whole):
    run("plain", plain=True)
    for name, value in trained("plain").items():
        assert torch.equal(value, whole[3][name]), name


@pytest.mark.slow
def test_two_ranks_do_the_same_and_train_what_one_process_trains(tmp_path_factory):
    (one, other), folder, _, _ = in_ranks(2, "everything_job", tmp_path_factory)
    for rank in (one, other):
        assert rank["cut"] in (9, 10, 11, 12) and rank["error"] == 15, "at the latest at the next log point"
        for name in ("whole", "after the cut", "after the error"):
            assert torch.equal(rank[name], one["whole"]), name
    expected = left(folder / "whole")
    for name in ("now", "error"):
        assert left(folder / name) == expected, name
    for name, value in trained(folder / "plain").items():
        assert torch.equal(value, trained(folder / "whole")[name]), name
    run("alone", dropout=0.0)
    for name, value in trained("alone").items():
        torch.testing.assert_close(value, trained(folder / "no dropout")[name], rtol=1e-3, atol=1e-4)
    for row, same in zip(history("alone"), history(folder / "no dropout"), strict=True):
        assert row.keys() == same.keys()
        assert row.get("train/tol_loss", 0) == pytest.approx(same.get("train/tol_loss", 0), rel=1e-3)
