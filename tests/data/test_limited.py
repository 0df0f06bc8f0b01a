"""limit_train_batches and limit_eval_batches: the first batches of each epoch, and no others are read."""

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_trainer, weights
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from template.callbacks.history import History
from template.data.limited import limited
from template.data.loaders import make_batches
from template.data.shares import Share


def read(limit, share=None, epoch=1, start=0, num_samples=53):
    loader = DataLoader(TensorDataset(torch.arange(num_samples)), 10, shuffle=True)
    batches = make_batches(loader, 3, torch.device("cpu"), share=share or Share())
    return [batch for batch in limited(batches, limit, "limit_train_batches").epoch(epoch, start)]


def numbers(batches):
    return [batch[0].tolist() for batch in batches]


@pytest.mark.parametrize("limit, count", [(2, 2), (6, 6), (100, 6), (0.5, 3), (1.0, 6), (0.01, 1)])
def test_the_first_batches_of_the_epochs_own_order_are_read(limit, count):
    for epoch in (1, 2):
        assert numbers(read(limit, epoch=epoch)) == numbers(read(None, epoch=epoch))[:count]
    assert numbers(read(limit, start=1)) == numbers(read(None))[1:count]


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_ranks_read_exactly_these_together(limit):
    parts = [read(limit, Share(rank, 2, divides=False, with_spares=False)) for rank in (0, 1)]
    found = [(batch.batch if hasattr(batch, "is_spare") else batch)[0].tolist() for part in parts for batch in part]
    assert sorted(found) == sorted(numbers(read(None))[:limit])
    parts = [read(limit, Share(rank, 2)) for rank in (0, 1)]  # in training they compute together
    assert len(parts[0]) == len(parts[1]) == -(-limit // 2)
    counted = [batch for part in parts for batch in part if not getattr(batch, "is_spare", False)]
    assert len(counted) == limit


class Stream(IterableDataset):
    reads = 0

    def __iter__(self):
        x, y = tiny_data()
        for place in range(10 ** 9):
            Stream.reads += 1
            yield x[place % 53], y[place % 53]


def test_a_stream_gets_epochs_and_is_read_no_further():
    Stream.reads = 0
    trainer = tiny_trainer(train_loader=DataLoader(Stream(), 10), limit_train_batches=4, lr_scheduler_type="cosine",
                           preflight=False)
    trainer.fit(2)
    assert (trainer.epochs_done, trainer.global_step, Stream.reads) == (2, 8, 80)
    assert trainer.optimizer_list[0].param_groups[0]["lr"] == pytest.approx(0.0)


def test_a_share_of_a_stream_is_refused():
    with pytest.raises(ValueError, match="limit_train_batches = 0.1 is a share of an epoch, and this loader has no len"):
        tiny_trainer(train_loader=DataLoader(Stream(), 10), limit_train_batches=0.1)


@pytest.mark.parametrize("limit", [0, -1, 1.5, 0.0, True, "2"])
def test_a_limit_that_is_no_number_of_batches_and_no_share_is_refused(limit):
    with pytest.raises(ValueError, match="limit_eval_batches must be a number of batches"):
        tiny_trainer(limit_eval_batches=limit)


def test_an_evaluation_scores_the_first_batches():
    x, y = tiny_data(23, seed=5)
    trainer = tiny_trainer(limit_eval_batches=2)
    trainer.eval()
    model = trainer.model_list[0].eval()
    assert trainer.eval_result["acc"] == pytest.approx((model(x[:20]).argmax(1) == y[:20]).float().mean().item())
    assert trainer.global_step_eval == 2
    assert trainer.test() == trainer.eval_result  # it stands for test_loader here
    trainer.limit_eval_batches = None
    trainer.eval()
    assert trainer.eval_result["acc"] == pytest.approx((model(x).argmax(1) == y).float().mean().item())


def test_a_limit_may_change_during_the_training_and_counts_from_the_next_epoch_on():
    trainer = tiny_trainer(limit_train_batches=2)
    trainer.fit(1)
    assert trainer.global_step == 2 and trainer.updates_per_epoch() == 2
    trainer.limit_train_batches = 0.5
    trainer.fit(2)
    assert trainer.global_step == 5
    trainer.limit_train_batches = None
    trainer.fit(3)
    assert trainer.global_step == 11


@pytest.mark.parametrize("accumulate_steps", [1, 3])
def test_a_limited_run_that_is_continued_ends_with_the_same_bits(accumulate_steps):
    def build(folder):
        trainer = Tiny(ckpt_dir=folder, limit_train_batches=4, accumulate_steps=accumulate_steps,
                       callbacks=[History(png=False)])
        trainer.check_init(use_tb=False)
        return trainer

    whole = build("whole")
    whole.fit(3)
    build("run").fit(updates=whole.global_step // 2)
    again = build("run")
    again.load_state("auto")
    again.fit(3)
    assert torch.equal(weights(again), weights(whole)) and again.epochs_done == 3
