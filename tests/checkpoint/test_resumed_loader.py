"""A run that stopped in the middle of an epoch goes on with a loader that is another one by then."""

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template.checkpoint import files
from template.data.loaders import TensorLoader
from template.hooks import Callback

X, Y = tiny_data(40)
EPOCHS = 3


class Samples(TensorDataset):
    """Not read by slicing."""


LOADERS = {
    "sliced": lambda size, **options: DataLoader(TensorDataset(X, Y), size, shuffle=True, **options),
    "sample by sample": lambda size, **options: DataLoader(Samples(X, Y), size, shuffle=True, **options),
    "TensorLoader": lambda size, **options: TensorLoader(X, Y, batch_size=size, shuffle=True, **options),
    "dict": lambda size, **options: {"long": DataLoader(TensorDataset(X, Y), size, shuffle=True, **options),
                                     "short": DataLoader(TensorDataset(X[:15], Y[:15]), size, shuffle=True)},
}


class Noted(Callback):
    """Which samples each update of each epoch saw, and how far the epoch was at its end."""

    def __init__(self, leave_at=None):
        self.leave_at, self.batches, self.ends = leave_at, [], []

    def on_batch(self, model, batch):
        self.batches.append((model.epoch, batch))

    def on_after_step(self, model):
        if model.global_step == self.leave_at:
            raise KeyboardInterrupt

    def on_train_end(self, model, result):
        self.ends.append((model.batches_done, len(model.train_batches)))

    def samples(self, epoch):
        """In their order; of a dict of loaders those of the longer one."""
        parts = [batch["long"] if isinstance(batch, dict) else batch for number, batch in self.batches if number == epoch]
        return [row for x, _ in parts for row in (X[None] == x[:, None]).all(2).nonzero()[:, 1].tolist()]


class Trainer(Tiny):
    def loss_per_batch(self, batch):
        x, y = batch["long"] if isinstance(batch, dict) else batch
        loss = self.criterion(self.inference(x), y)
        return loss + self.inference(batch["short"][0]).square().mean() if isinstance(batch, dict) else loss

    def count_samples(self, batch):
        return len((batch["long"] if isinstance(batch, dict) else batch)[0])


def made(loader, folder, leave_at=None, **attributes):
    noted, model = Noted(leave_at), tiny_model(dropout=0.0)
    trainer = Trainer(model, train_loader=loader, eval_loader=None, ckpt_dir=folder, callbacks=[noted], preflight=False,
                      **{"lr_scheduler_type": "cosine", **attributes})
    trainer.check_init(use_tb=False)
    return trainer, noted


def left(loader, folder, update, **attributes):
    """A run that is cut after ``update`` updates; the file is from there."""
    trainer, noted = made(loader, folder, update + 1, save_per_steps=update, **attributes)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(EPOCHS)
    return noted


def gone_on(loader, folder, **attributes):
    trainer, noted = made(loader, folder, **attributes)
    trainer.load_state("auto")
    begun = trainer.global_step, trainer.batches_done
    trainer.fit(EPOCHS)
    return trainer, noted, begun


def whole_orders(kind):
    trainer, noted = made(LOADERS[kind](8), "whole")
    trainer.fit(EPOCHS)
    return {epoch: noted.samples(epoch) for epoch in range(1, EPOCHS + 1)}


@pytest.mark.parametrize("size", [3, 4, 5, 10, 16, 40, 64])
@pytest.mark.parametrize("kind", LOADERS)
def test_with_another_batch_size_each_sample_comes_once_in_its_epoch(kind, size, capsys, fake_tqdm):
    """Left after 2 of the 5 batches of the second epoch."""
    orders = whole_orders(kind)
    before = left(LOADERS[kind](8), "run", 7)
    capsys.readouterr()
    fake_tqdm.clear()
    trainer, after, (step, batches) = gone_on(LOADERS[kind](size), "run")
    told = capsys.readouterr().out
    assert f"batch_size 8 -> {size}: the 24 samples that are left of the epoch come in batches of {size}, each once" in told
    assert step == 7 and sorted(orders[2]) == list(range(40))
    assert before.samples(2)[:16] + after.samples(2) == orders[2], "the same order, dealt anew"
    assert after.samples(3) == orders[3]
    updates = [sum(number == epoch for number, _ in after.batches) for epoch in (2, 3)]
    assert updates == [-(-24 // size), -(-40 // size)] and trainer.global_step == 7 + sum(updates)
    assert after.ends == [(-(-40 // size),) * 2] * 2 and batches + updates[0] == len(trainer.train_batches)
    for bar, own in zip(fake_tqdm, updates, strict=True):
        assert bar.updates == own and bar.options["initial"] + own == bar.options["total"]
    schedule = trainer.lr_schedule.schedulers[0]
    assert schedule.last_epoch == schedule.total and trainer.optimizer_list[0].param_groups[0]["lr"] == pytest.approx(0)


@pytest.mark.parametrize("size", [3, 7, 16])
@pytest.mark.parametrize("kind", LOADERS)
def test_drop_last_leaves_out_what_is_left_of_the_whole_epoch(kind, size):
    left(LOADERS[kind](8), "run", 7)
    trainer, after, _ = gone_on(LOADERS[kind](size, drop_last=True), "run")
    assert len(after.samples(2)) == 24 // size * size and len(after.samples(3)) == 40 // size * size
    assert after.ends[0][0] == after.ends[0][1] or kind == "dict"


@pytest.mark.parametrize("kind", LOADERS)
def test_a_run_with_another_batch_size_may_be_left_again_and_ends_with_the_same_bits(kind):
    """Once it was left in the epoch that was dealt anew, and once in the one after it."""
    results = []
    for folder, stops in (("once", []), ("again", [9, 17])):
        left(LOADERS[kind](8), folder, 7)
        for update in stops:
            trainer, _ = made(LOADERS[kind](5), folder, update + 1, save_per_steps=update)
            trainer.load_state("auto")
            with pytest.raises(KeyboardInterrupt):
                trainer.fit(EPOCHS)
        trainer, _, (step, _) = gone_on(LOADERS[kind](5), folder)
        assert step == (stops or [7])[-1]
        results.append((weights(trainer), trainer.global_step, trainer.batches_done))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1:] == results[1][1:]


@pytest.mark.parametrize(("accumulate_steps", "update", "done"), [(1, 7, 16), (3, 3, 24)])
def test_the_weights_are_those_of_a_plain_loop_over_such_batches(accumulate_steps, update, done):
    """Left after ``done`` samples of the second epoch."""
    orders = whole_orders("sliced")
    options = {"accumulate_steps": accumulate_steps, "lr_scheduler_type": None}
    left(LOADERS["sliced"](8), "run", update, **options)
    trainer, *_ = gone_on(LOADERS["sliced"](5), "run", **options)
    model = tiny_model(dropout=0.0)
    plain = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for order, size in [(orders[1], 8), (orders[2][:done], 8), (orders[2][done:], 5), (orders[3], 5)]:
        for start in range(0, len(order), size * accumulate_steps):
            chosen = order[start:start + size * accumulate_steps]
            plain.zero_grad()
            nn.functional.cross_entropy(model(X[chosen]), Y[chosen]).backward()
            plain.step()
    expected = nn.utils.parameters_to_vector(model.parameters()).double()
    torch.testing.assert_close(weights(trainer), expected, rtol=1e-4, atol=1e-5)


def test_a_file_from_before_counts_batches_as_it_did():
    left(LOADERS["sliced"](8), "run", 7)
    saved = files.read("run/last.pth")
    assert saved["batch"] == 2 and saved.pop("position")["samples"] == 16
    files.write(saved, "old.pth")
    trainer, noted = made(LOADERS["sliced"](5), "new")
    trainer.load_state("old.pth")
    assert trainer.batches_done == 2
    trainer.train_loop()
    assert len(noted.samples(2)) == 30


def test_another_length_or_order_is_told_and_the_run_goes_on_as_far_into_it(capsys):
    left(LOADERS["sliced"](8), "run", 7)
    capsys.readouterr()
    trainer, noted, _ = gone_on(DataLoader(TensorDataset(X[:32], Y[:32]), 8, shuffle=True), "run")
    told = capsys.readouterr().out
    assert ("length of the data set 40 -> 32; samples per epoch 40 -> 32: the epoch goes on after the first 16 samples of "
            "the order as it is now, so samples may come twice in this epoch or not at all") in told
    assert len(noted.samples(2)) == 16 and sorted(noted.samples(3)) == list(range(32))


def test_taking_the_weights_alone_begins_the_epoch_at_its_first_sample():
    left(LOADERS["sliced"](8), "run", 7)
    trainer, noted = made(LOADERS["sliced"](64), "new")
    trainer.load_state("run/last.pth")
    assert trainer.batches_done == 0 and trainer.train_batches.position(2, 0)["samples"] == 16
    trainer.load_state("run/last.pth", optim=False)
    assert trainer.train_batches.position(2, 0)["samples"] == 0
    trainer.train_loop()
    assert len(noted.batches[0][1][0]) == 40
