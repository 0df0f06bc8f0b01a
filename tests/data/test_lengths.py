"""A loader whose ``len()`` says another number of batches than it gives: seen after an epoch, said, and planned with."""

import math

import pytest
import torch
from tiny import CPU, Tiny, stream, tiny_data, tiny_trainer, weights
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from template.data.loaders import make_batches

X, Y = tiny_data(40)


class Lying:
    """``gives`` batches of five; ``len()`` says another number."""

    def __init__(self, says, gives=8):
        self.says, self.gives = says, gives

    def __len__(self):
        return self.says

    def __iter__(self):
        return iter(list(zip(X.split(5), Y.split(5)))[:self.gives])


class LyingSampler:
    def __len__(self):
        return 100

    def __iter__(self):
        return iter(torch.randperm(40).tolist())


class Shards(IterableDataset):
    """Knows its length; but each of three workers drops the last batch of its own share."""

    def __len__(self):
        return 40

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        yield from list(zip(X, Y))[info.id::info.num_workers]


def rates_of(trainer, epochs):
    """The learning rate of every update."""
    rates, train_step = [], trainer.train_step

    def noted(batch):
        rates.append(trainer.optimizer_list[0].param_groups[0]["lr"])
        return train_step(batch)

    trainer.train_step = noted
    trainer.fit(epochs)
    return rates


def cosine(loader, **attributes):
    return tiny_trainer(train_loader=loader, eval_loader=None, lr_scheduler_type="cosine", **attributes)


@pytest.mark.slow
@pytest.mark.parametrize("says, loader", [
    (20, Lying(20)), (3, Lying(3)), (20, DataLoader(TensorDataset(X, Y), 5, sampler=LyingSampler())),
    (8, DataLoader(Shards(), 5, num_workers=3, drop_last=True)),
], ids=["20 for 8", "3 for 8", "a sampler", "workers that drop their last batches"])
def test_it_is_said_once_and_the_schedule_ends_with_the_run(says, loader, capsys):
    trainer = cosine(loader)
    rates = rates_of(trainer, 10)
    gives = len(rates) // 10
    assert gives == (6 if says == 8 else 8)
    printed = capsys.readouterr().out
    assert printed.count(f"gave {gives} batches, and its len() says {says}. Learning rates and progress go by {gives}") == 1
    assert trainer.updates_per_epoch() == gives
    assert trainer.optimizer_list[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
    at, left = gives / (10 * says), 9 * gives  # behind the first epoch the rest of the cosine in the updates that are left
    parts = [step / (10 * says) for step in range(gives)] + [at + (1 - at) * step / left for step in range(left)]
    assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * part)) / 2 for part in parts], rel=1e-6)


def test_a_schedule_per_update_with_accumulation_takes_it_too():
    trainer = cosine(Lying(20), accumulate_steps=3)
    rates = rates_of(trainer, 6)
    assert trainer.updates_per_epoch() == 3 and len(rates) == 6 * 8
    assert trainer.optimizer_list[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9) and rates[-8] > 1e-3


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("says", [20, 3])
def test_a_continued_run_knows_it_and_ends_with_the_same_bits(says, cut):
    def build(folder):
        return cosine(Lying(says), ckpt_dir=folder, total_epochs=6)

    whole = build("whole")
    whole.fit(6)
    first = build("parts")
    for _ in range(cut):
        first.train_loop()
    first.close()
    continued = build("parts")
    continued.load_state("auto")
    assert continued.updates_per_epoch() == 8
    continued.fit(6)
    assert torch.equal(weights(whole), weights(continued))
    assert whole.lr_schedule.state_dict() == continued.lr_schedule.state_dict()


def test_so_does_one_that_is_continued_in_the_middle_of_an_epoch():
    class Cut(Exception):
        pass

    def build(folder, stop_at=None):
        trainer = cosine(Lying(20), ckpt_dir=folder, total_epochs=4, save_per_steps=3)
        trainer.step_to_stop_at = stop_at
        step = trainer.train_step

        def train_step(batch):
            if trainer.global_step == trainer.step_to_stop_at:
                raise Cut
            return step(batch)

        trainer.train_step = train_step
        return trainer

    whole = build("whole")
    whole.fit(4)
    with pytest.raises(Cut):
        build("parts", 8 + 5).fit(4)
    continued = build("parts")
    continued.load_state("auto")
    assert 0 < continued.batches_done < 8 and continued.updates_per_epoch() == 8
    continued.fit(4)
    assert torch.equal(weights(whole), weights(continued))


def test_a_length_that_is_right_later_counts_again(capsys):
    loader = Lying(20)
    trainer = cosine(loader)
    trainer.total_epochs = 4
    trainer.train_loop()
    assert trainer.updates_per_epoch() == 8
    loader.gives = 6
    trainer.train_loop()
    assert trainer.updates_per_epoch() == 6
    loader.says = 6  # as somebody does who changes the loader between epochs
    trainer.train_loop()
    assert trainer.updates_per_epoch() == 6
    loader.says = loader.gives = 7
    trainer.train_loop()
    assert trainer.updates_per_epoch() == 7 and capsys.readouterr().out.count("len() says") == 1


@pytest.mark.parametrize("loader", [
    Lying(8), [(X, Y)] * 3, DataLoader(TensorDataset(X, Y), 7), iter,
], ids=["iterable", "list", "DataLoader", "no length"])
def test_nothing_is_said_of_a_loader_that_gives_what_it_says_or_says_nothing(loader, capsys):
    if loader is iter:
        class Endless:
            def __iter__(self):
                return iter([(X, Y)] * 3)
        loader = Endless()
    tiny_trainer(train_loader=loader, eval_loader=None).fit(2)
    assert "len()" not in capsys.readouterr().out


def test_an_epoch_of_which_only_the_end_was_read_tells_nothing():
    batches = make_batches(Lying(20), 3, CPU)
    assert len(stream(batches, 1, start=3)) == 5 and batches.note_length(8) == [] and len(batches) == 20
    assert len(stream(batches, 1)) == 8 and len(batches.note_length(8)) == 1 and len(batches) == 8
    assert batches.note_length(8) == []


def test_a_dict_of_loaders_gives_as_many_as_it_says():
    trainer = Tiny(train_loader={"a": Lying(4), "b": Lying(2)}, eval_loader=None)
    trainer.loss_per_batch = lambda batch: trainer.model_list[0](batch["a"][0]).square().mean()
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    assert trainer.global_step == trainer.updates_per_epoch() == 4
