"""How data is dealt out to several processes: exactly as one process reads it, or refused with the rank that differs.

The trainings and evaluations are those of ``dealing_job.py``.
"""

import pytest
import torch
from dealing_job import ALIKE, BATCH, EVALUATIONS, REFUSED, evaluate, key_of_some, placed, train
from ranks import in_ranks
from tiny import tiny_data, tiny_model
from torch import nn

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results by rank."""
    return in_ranks(3, "dealing_job", tmp_path_factory)[0]


def plain_loop(rounds, epochs):
    """Weights after updates over whole rounds, each ``(x, y)``: independent of the template."""
    model = tiny_model(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for x, y in rounds * epochs:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, torch.cat([p.detach().double().flatten() for p in model.parameters()])


# --- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALIKE)
def test_samples_are_weighed_by_what_the_batches_hold_and_short_rounds_count_as_in_one_process(name, ranks):
    alone = train(ALIKE[name](BATCH * len(ranks)), name)
    for results in ranks:
        torch.testing.assert_close(results[name]["weights"], alone["weights"], rtol=1e-5, atol=1e-6)
        assert results[name]["updates"] == alone["updates"]
        assert torch.equal(results[name]["weights"], ranks[0][name]["weights"])


def test_ready_batches_and_samples_that_are_left_out_train_like_a_plain_loop_over_the_whole_rounds(ranks):
    x, y = tiny_data(29)
    _, expected = plain_loop(list(zip(x.split(BATCH * len(ranks)), y.split(BATCH * len(ranks)))), 2)
    torch.testing.assert_close(ranks[-1]["ready batches"]["weights"], expected, rtol=1e-5, atol=1e-6)
    kept = [[index for index in chosen.tolist() if index not in (5, 6, 7, 13, 20)]
            for chosen in torch.arange(29).split(BATCH * len(ranks))]
    _, expected = plain_loop([(x[chosen], y[chosen]) for chosen in kept], 2)
    torch.testing.assert_close(ranks[-1]["some left out"]["weights"], expected, rtol=1e-5, atol=1e-6)


def test_batchnorm_and_a_standard_deviation_train_whatever_is_left_for_the_last_round(ranks):
    for count, found in ranks[0]["short"].items():
        assert torch.isfinite(found).all(), count
        is_parameter = torch.ones(len(found), dtype=torch.bool)
        is_parameter[72:89] = False  # what BatchNorm has counted, each rank by itself
        for results in ranks[1:]:
            assert torch.equal(results["short"][count][is_parameter], found[is_parameter]), count


# --- evaluations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVALUATIONS)
def test_stored_predictions_pair_with_a_table_and_entries_of_some_batches_count_as_in_one_process(name, ranks):
    alone = evaluate(name)
    for results in ranks:
        for part, expected in alone.items():
            assert list(results["evaluations"][name][part]) == list(expected)
            assert results["evaluations"][name][part] == pytest.approx(expected, rel=1e-6)


def test_they_are_the_numbers_of_a_plain_loop_over_the_batches(ranks):
    model = tiny_model().eval()
    with torch.no_grad():
        batches = [(model(x), places) for x, places in placed(23)]
    some = [(pred.max().item(), len(y)) for pred, y in batches if y.max() % 3 == 0]
    late = [(pred.mean().item(), len(y)) for pred, y in batches if y.max() > 8]
    for results in ranks:
        found = results["evaluations"]["23"]["test"]
        assert found["paired"] == found["once"] == 23 * 24 / 2, "each row of the table meets its own prediction"
        for key, values in (("of some", some), ("late", late)):
            assert len(values) < len(batches)
            assert found[key] == pytest.approx(sum(value * count for value, count in values) / sum(n for _, n in values))


def test_an_entry_that_rank_zero_never_sees_can_decide_what_is_best(ranks):
    alone = key_of_some()
    for results in ranks:
        assert list(results["key"]) == list(alone) and results["key"]["late"] == alone["late"] == 1.0


# --- what is compared ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_ranks_that_would_read_different_data_all_end_with_words_before_they_train_on_it(name, ranks):
    where, _ = REFUSED[name]
    for results in ranks:
        reached, message, updates = results["refused"][name]
        assert (reached, message) == tuple(ranks[0]["refused"][name][:2]) and reached == where
        assert updates == 0 or where in ("train_loader", "eval_loader", "test")
        if "distributed" in name:
            assert "has a DistributedSampler" in message and "shuffle=True" in message
        else:
            assert "on rank 0 and" in message or "on ranks 0, 1 and" in message
            assert "torch.Generator().manual_seed(0)" in message and "Divided(loader)" in message
            assert TOLD.get(name, "differs") in message


TOLD = {"lengths": "length of its data set is 32 on rank 0 and 40 on rank 1", "made up": "first batch that is read from it",
        "split for test": "test_loader differs", "test(loader)": "test(loader) differs", "eval_loader later": "eval_loader"}


# --- divided already ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [32, 41])
def test_a_loader_that_is_divided_already_trains_and_scores_each_sample_once(count, ranks):
    x, y = tiny_data(count)
    parts = [torch.arange(rank, count, len(ranks)).split(BATCH) for rank in range(len(ranks))]
    rounds = [torch.cat([part[number] for part in parts if number < len(part)]) for number in range(len(parts[0]))]
    model, expected = plain_loop([(x[chosen], y[chosen]) for chosen in rounds], 1)
    for results in ranks:
        found = results["divided"][count]
        torch.testing.assert_close(found["weights"], expected, rtol=1e-5, atol=1e-6)
        assert found["updates"] == len(rounds)
        with torch.no_grad():
            pred = model(x)
        assert found["eval"]["tol_loss"] == pytest.approx(nn.functional.cross_entropy(pred, y).item(), rel=1e-5)
        assert found["eval"]["acc"] == pytest.approx((pred.argmax(1) == y).float().mean().item())
        if count == 41:
            assert results["fsdp"] == pytest.approx(found["eval"], rel=1e-5)


def test_a_divided_loader_goes_on_in_the_midst_of_an_epoch_where_each_rank_was(ranks):
    for results in ranks:
        found = results["resumed"]
        for at in (1, 2):  # three ranks add up in an order that depends on how often DDP was called
            torch.testing.assert_close(found[at], found["whole"], rtol=1e-5, atol=1e-7)
