"""N processes with batches of b train like one with batches of N times b, up to the order of summation: gloo on the CPU.

The trainings are those of ``training_job.py``.
"""

import math

import pytest
import torch
from ranks import epochs_told, history, in_ranks
from tiny import stream, tiny_model, weights
from torch import nn
from training_job import ALIKE, BATCH, EPOCHS, Normed, Unused, loader, run, tiny, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def ranks(request, tmp_path_factory):
    """``(results by rank, folder, stdout, stderr)``."""
    return in_ranks(request.param, "training_job", tmp_path_factory)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return in_ranks(2, "training_job", tmp_path_factory)


# --- like one process -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALIKE)
def test_several_processes_train_like_one_with_a_batch_as_large_as_theirs_together(name, ranks):
    results, folder, *_ = ranks
    alone, main = run(name, BATCH * len(results)), results[0][name]
    torch.testing.assert_close(main["weights"], alone["weights"], rtol=1e-5, atol=1e-6)
    assert main["updates"] == alone["updates"] > 4 and main["skipped"] == alone["skipped"]
    assert not alone["eval"] or main["eval"] == pytest.approx(alone["eval"], rel=1e-5)
    assert main["best"] == pytest.approx(alone["best"], rel=1e-5)
    for row, expected in zip(history(folder / "check_point" / name), history(f"check_point/{name}"), strict=True):
        if alone["skipped"]:  # its mean leaves out the losses that are not finite, which one process has more of
            del row["train/tol_loss"], expected["train/tol_loss"]
        assert row == pytest.approx(expected, rel=1e-5)
    if not alone["skipped"]:
        assert main["losses"] == [pytest.approx(losses, rel=1e-5) for losses in alone["losses"]]


@pytest.mark.parametrize("name", ALIKE)
def test_all_ranks_hold_the_same_weights_and_see_the_same_results(name, ranks):
    main, *others = [results[name] for results in ranks[0]]
    for other in others:
        assert torch.equal(other["weights"], main["weights"])
        assert {key: other[key] for key in ("losses", "updates", "eval", "best", "skipped")} == {
            key: main[key] for key in ("losses", "updates", "eval", "best", "skipped")}


def test_a_log_point_is_one_exchange_and_an_update_without_one_none(two):
    (five, before), (seven, after) = two[0][0]["sgd"]["exchanges"][:2]
    assert (five, seven, after - before) == (5, 7, 1)


def test_a_plain_loop_over_the_whole_batches_ends_with_the_same_weights(two):
    """Independent of the template: its order alone is taken from the seeds."""
    model = tiny_model(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for epoch in range(1, EPOCHS + 1):
        batches = stream(loader(BATCH), epoch)
        for number in range(0, len(batches), 2):
            xs, ys = zip(*batches[number:number + 2])
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.tensor(sum(xs, []))), torch.tensor(sum(ys, []))).backward()
            optimizer.step()
    expected = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    torch.testing.assert_close(two[0][0]["sgd"]["weights"], expected, rtol=1e-5, atol=1e-6)


def test_rank_zero_alone_prints_and_every_line_comes_once(two):
    _, folder, stdout, _ = two
    assert epochs_told((folder / "check_point/sgd/log.txt").read_text()) == [1, 2]
    trainings = len(ALIKE) + 8
    assert len(epochs_told(stdout)) == EPOCHS * trainings
    assert "2 processes (ddp): a batch of 4 on each makes 8 samples per update; learning rates stay as set" in stdout


# --- what only several processes do -------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_on_one_rank_skips_the_update_on_all(two):
    assert [results["skips"]["skipped"] for results in two[0]] == [EPOCHS, EPOCHS]
    assert two[2].count("Skipped an update") == EPOCHS


def test_bf16_trains_close_to_float32_and_alike_on_all_ranks(two):
    one, other = [results["bf16"] for results in two[0]]
    assert torch.equal(one["weights"], other["weights"])
    assert not torch.equal(one["weights"], two[0][0]["sgd"]["weights"])
    assert one["losses"][-1] == pytest.approx(two[0][0]["sgd"]["losses"][-1], rel=0.02)


def test_unused_parameters_are_named_and_what_helps_as_well(two):
    for results in two[0]:
        assert "ValueError" in results["unused"] and "['spare.weight', 'spare.bias']" in results["unused"]
        assert "parallel_options = {'find_unused_parameters': True}" in results["unused"]
    trainer = Unused()
    trainer.train_loader = loader(2 * BATCH)
    alone = train(trainer, "alone")
    torch.testing.assert_close(two[0][0]["unused, searched"]["weights"], alone["weights"], rtol=1e-5, atol=1e-6)


def test_without_parallel_each_process_trains_on_its_own(two):
    alone = train(tiny(BATCH), "alone")
    for results in two[0]:
        assert torch.equal(results["each alone"]["weights"], alone["weights"])
        assert results["each alone"]["updates"] == alone["updates"] == 2 * two[0][0]["sgd"]["updates"]


def test_a_script_of_2021_trains_in_several_processes_as_it_is(two):
    assert torch.equal(two[0][0]["2021"]["weights"], two[0][0]["sgd"]["weights"])
    assert torch.equal(two[0][1]["2021"]["weights"], two[0][0]["2021"]["weights"])
    assert history(two[1] / "check_point/2021") == history(two[1] / "check_point/sgd")


def test_statistics_of_a_mean_of_weights_are_those_over_the_batches_of_all_ranks(two):
    one, other = [results["mean normed"] for results in two[0]]
    model, last = Normed().model_list[0], two[1] / "check_point/mean normed/last.pth"  # the mean of one epoch
    model.load_state_dict(torch.load(last, weights_only=True)["model0"])
    batches = [torch.tensor(x) for x, _ in stream(loader(BATCH, 52), 0)]
    batches[-1:] = batches[-1].split(2)  # the last round is divided
    with torch.no_grad():
        hidden = [model[0](x) for x in batches]
    for result in (one, other):
        expected = torch.stack([h.mean(0) for h in hidden]).mean(0)
        torch.testing.assert_close(result["statistics"]["model0.1.running_mean"], expected, rtol=1e-5, atol=1e-6)
        expected = torch.stack([h.var(0) for h in hidden]).mean(0)
        torch.testing.assert_close(result["statistics"]["model0.1.running_var"], expected, rtol=1e-5, atol=1e-6)
    assert one["eval"] == other["eval"]


def test_the_best_weights_are_restored_on_all_ranks_and_rank_zero_writes_them(two):
    one, other = [results["restored"] for results in two[0]]
    saved = torch.load(two[1] / "check_point/restored/best_train_tol_loss.pth", weights_only=True)
    best = torch.cat([value.double().flatten() for value in saved["model0"].values()])
    assert saved["epoch"] == 1 and torch.equal(one["weights"], best) and torch.equal(other["weights"], best)
    assert one["files"] == other["files"] and (two[1] / one["files"][0]).is_file()


@pytest.mark.parametrize("name", ["normed", "normed apart"])
def test_evaluation_and_checkpoint_use_the_batchnorm_statistics_of_rank_zero(name, two):
    results, folder, *_ = two
    one, other = [result[name] for result in results]
    for epoch in range(EPOCHS):  # each had batches of its own, and takes rank 0's statistics at the update or later
        assert torch.equal(one["trained"][epoch], other["trained"][epoch]) == (name == "normed")
        assert torch.equal(one["trained"][epoch], results[0]["normed"]["trained"][epoch])
    assert all(torch.equal(mean, one["evaluated"][0]) for mean in (one["trained"][0], one["evaluated"][1]))
    last = one["trained"][-1]
    assert torch.equal(one["evaluated"][-1], last) and torch.equal(other["evaluated"][-1], last)
    trainer = Normed()
    trainer.check_init(use_tb=False)
    trainer.load_state(folder / f"check_point/{name}/last.pth")
    assert torch.equal(trainer.model_list[0][1].running_mean, last)
    assert torch.equal(weights(trainer), one["weights"])
    assert trainer.test() == pytest.approx(one["eval"], rel=1e-6)
    assert math.isfinite(one["eval"]["tol_loss"])
