"""Everything on at once: averages, early stopping, the best files, pictures, statistics, evaluations within an epoch,
training metrics, accumulation, clipping and a schedule; beside EMA also Muon and AdamW by roles, a nominal batch, trackers
and messages. A run that was cut in the middle of an epoch ends as one that was not."""

from pathlib import Path

import pytest
import torch
from everything_job import NOTED, UPDATES, left, run, trained
from ranks import ENVIRONMENT, history, in_ranks
from tiny import run_python, weights


@pytest.fixture(scope="module", params=["EMA", "SWA"])
def whole(request, tmp_path_factory):
    """``(the average, what a run that was never cut left, its weights at the end)``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        trainer = run("run", average=request.param)
        assert trainer.global_step == UPDATES[request.param] and trainer.best_epoch["acc"] < trainer.epochs_done
        return request.param, left("run"), weights(trainer), trained("run")


@pytest.mark.slow
@pytest.mark.parametrize("update, how, reached", [(9, "now", 9), (15, "error", 15), (17, "evaluation", None),
                                                  (14, "kill", None)])
def test_a_run_that_was_cut_ends_with_the_same_bits_and_the_same_files(whole, update, how, reached):
    average, expected, at_the_end, _ = whole
    if how == "kill":
        program = f"from everything_job import run; run('run', {update}, 'kill', average={average!r})"
        assert run_python("-c", program, cwd=Path.cwd(), env=ENVIRONMENT, check=False).returncode == -9
    else:
        cut = run("run", update, how, average=average)
        assert cut.global_step == reached or how == "evaluation" and update <= cut.global_step < UPDATES[average]
    trainer = run("run", average=average)
    assert trainer.global_step == UPDATES[average] and torch.equal(weights(trainer), at_the_end)
    found = left("run")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == value, name
    if average == "EMA":
        told = {"now": "stopped", "kill": None}.get(how, "crashed")
        assert Path(NOTED).read_text().split() == [told, "finished"][told is None:]


def test_a_run_without_the_callbacks_trains_the_same_weights(whole):
    run("plain", plain=True, average=whole[0])
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
    run("alone", average="SWA", dropout=0.0)
    for name, value in trained("alone").items():
        torch.testing.assert_close(value, trained(folder / "no dropout")[name], rtol=1e-3, atol=1e-4)
    for row, same in zip(history("alone"), history(folder / "no dropout"), strict=True):
        assert row.keys() == same.keys()
        assert row.get("train/tol_loss", 0) == pytest.approx(same.get("train/tol_loss", 0), rel=1e-3)
