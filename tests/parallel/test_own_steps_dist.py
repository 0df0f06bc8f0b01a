"""A train_step of one's own, and scripts that divide or wrap things themselves, train like one process, or say what to do.

The job is ``own_steps_job.py``.
"""

import pytest
import torch
from own_steps_job import TwoRates, train
from ranks import in_ranks
from training_job import BATCH, Gan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return in_ranks(2, "own_steps_job", tmp_path_factory)[0]


@pytest.mark.parametrize("name, make", [("gan", Gan), ("two", TwoRates)])
def test_weights_in_parts_get_the_gradients_of_a_loss_for_one_optimizer_as_in_one_process(name, make, ranks, tmp_path,
                                                                                         monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = train(make(2 * BATCH), name)
    for result in ranks:
        torch.testing.assert_close(result[name], expected, rtol=1e-5, atol=2e-6)


def test_behind_an_evaluation_a_model_in_parts_has_the_parameters_that_are_trained(ranks):
    assert [result["are trained"] for result in ranks] == [True, True]


def test_each_update_of_an_own_step_begins_with_the_buffers_of_rank_zero_unless_they_shall_be_apart(ranks):
    one, other = ranks
    assert one["books"] == other["books"] and one["books"][0] != one["books"][-1]
    assert one["books apart"][:1] == other["books apart"][:1] and one["books apart"][1:6] != other["books apart"][1:6]


def test_a_model_that_the_script_has_wrapped_in_ddp_trains_as_it_would_without_also_where_a_rank_has_nothing_to_score(ranks):
    for result in ranks:
        torch.testing.assert_close(result["wrapped"], result["plain"], rtol=0, atol=0)


@pytest.mark.parametrize("name, words", [
    ("by hand", "In a train_step of your own call self.backward(loss) and self.update()"),
    ("same", "train_loader begins with the same batch on ranks 0, 1"),
    ("divided before", "the weights of model_list[0] are divided among the processes already"),
])
def test_what_would_train_wrongly_ends_all_ranks_with_what_to_do(name, words, ranks):
    for result in ranks:
        assert words in result[name]
