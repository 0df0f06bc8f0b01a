"""However a loss is computed, ranks train as one process does; and where weights drift apart all the same, it is said.

The job is ``outside_job.py``; its ``plain`` is a loop that knows nothing of the template.
"""

import pytest
import torch
from outside_job import BATCH, CASES, plain, sparse_words
from ranks import in_ranks

from template.checkpoint.files import read

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """``(results by rank, the folder)``."""
    return in_ranks(2, "outside_job", tmp_path_factory)[:2]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_any_way_to_a_loss_trains_like_a_plain_loop_over_the_whole_batches(name, ranks):
    results, _ = ranks
    expected = plain(name, len(results))
    for result in results:
        close(result[name], expected)
        assert torch.equal(result[name], results[0][name])


def test_a_layer_that_a_call_promised_and_the_loss_left_out_is_named_before_the_update_also_after_another_was_frozen(ranks):
    for result in ranks[0]:
        assert "these got none: ['expert.weight', 'expert.bias']. Freeze them" in result["unreached"]["error"]
        assert result["unreached"]["updates"] == 3


def test_a_sparse_embedding_keeps_its_sparse_gradients_and_its_optimizer(ranks):
    results, _ = ranks
    expected = sparse_words(BATCH * len(results))
    for result in results:
        close(result["sparse"], expected)


def test_a_continued_run_ends_with_the_same_bits_and_close_to_them_where_three_ranks_may_round_in_another_order(ranks):
    for result in ranks[0]:
        close(result["continued"], result["whole"])
        assert torch.equal(result["continued"], ranks[0][0]["continued"])
        assert torch.equal(result["continued"], result["whole"]) or len(ranks[0]) > 2


def test_weights_that_differ_after_the_first_update_end_the_run_with_names_and_ranks(ranks):
    results, folder = ranks
    expected = ("RanksDiffer: All ranks must hold the same weights. After update 1 those of 'model_list[0].head.bias' are "
                f"different on rank {len(results) - 1} from rank 0, by up to 0.0")
    for result in results:
        assert result["differ at once"].startswith(expected)
    assert not (folder / "check_point/at once/last.pth").exists()


def test_weights_that_differ_later_are_never_saved(ranks):
    results, folder = ranks
    for result in results:
        assert "After update 4 those of 'model_list[0].head.bias' are different" in result["differ later"]
    assert read(folder / "check_point/later/last.pth")["global_step"] == 2


def test_buffers_of_every_kind_become_those_of_rank_zero_at_the_start_and_in_each_update(ranks):
    main, *others = [result["holding"] for result in ranks[0]]
    assert main["at start"]["of_int16"].tolist() == [0, 1, 2, 3, 4, 5]
    assert main["at start"]["expanded"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert main["at the end"]["replaced"] != 0
    for other in others:
        assert main["at start"].keys() == other["at start"].keys() and len(main["at start"]) == 16
        for moment, buffers in main.items():
            for name, value in buffers.items():
                assert torch.equal(value, other[moment][name]), (moment, name)


def test_weights_in_parts_take_the_models_call_in_any_mode_and_say_so_about_other_ways(ranks):
    results, _ = ranks
    for result in results:
        found = result["fsdp"]
        close(found["called"], plain("called", len(results)))
        close(found["in eval mode"], plain("in eval mode", len(results)))
        close(found["mixed"], plain("mixed", len(results)))
        for name in ("parts", "forward", "a weight"):
            assert found[name].startswith("ValueError: Under parallel='fsdp' weights are divided among the ranks"), name
        assert "optimizer_list[0] holds 1 other as well, of shape (1,)" in found["criterion"]
        assert found["save_model"].startswith("ValueError: save_model() pickles whole models")
