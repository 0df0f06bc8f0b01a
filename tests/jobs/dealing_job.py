"""Data and evaluations that several processes divide: ``torchrun --nproc-per-node 2 -m dealing_job``.

Each entry of ``ALIKE`` makes a trainer for batches of a given size; a single process takes one that is as many times larger
as there are ranks. ``EVALUATIONS`` and ``REFUSED`` are of one size.
"""

import os
import random

import numpy as np
import torch
from ranks import Tiny, hand_back
from tiny import tiny_data, tiny_model, weights
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    Subset,
    TensorDataset,
    default_collate,
    random_split,
)

from template import Callback, Divided, Mean, Stored
from template.callbacks.history import History

BATCH = 4
RANK, SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


# --- trained like one process ------------------------------------------------------------------------------------------


def ready(num_samples, batch_size):
    """Batches that are samples of the data set, the last one short."""
    return DataLoader(list(zip(*(part.split(batch_size) for part in tiny_data(num_samples)))), batch_size=None)


class SomeBroken(Dataset):
    """Samples that cannot be read are None, and the collate function leaves them out."""

    def __len__(self):
        return 29

    def __getitem__(self, index):
        x, y = tiny_data(29)
        return None if index in (5, 6, 7, 13, 20) else (x[index], y[index])


def without_none(samples):
    return default_collate([sample for sample in samples if sample is not None])


class Spread(Tiny):
    """A loss that is NaN for a single sample."""

    def loss_per_batch(self, batch):
        pred = self.inference(batch[0])
        return nn.functional.cross_entropy(pred, batch[1]) + 0.01 * pred.std(0).sum()


ALIKE = {
    "ready batches": lambda batch_size: tiny(ready(29, batch_size)),
    "ready batches, accumulated": lambda batch_size: tiny(ready(29, batch_size), accumulate_steps=2),
    "some left out": lambda batch_size: tiny(DataLoader(SomeBroken(), batch_size, collate_fn=without_none)),
    **{f"{count} samples": lambda batch_size, count=count: tiny(DataLoader(TensorDataset(*tiny_data(count)), batch_size))
       for count in (10, 11, 13, 17)},
    "summed": lambda batch_size: tiny(DataLoader(TensorDataset(*tiny_data(10)), batch_size),
                                      criterion=nn.CrossEntropyLoss(reduction="sum")),
    "held generator": lambda batch_size: tiny(DataLoader(list(zip(*tiny_data(22))), batch_size, sampler=Held(22))),
}


def tiny(train_loader, **attributes):
    return Tiny(tiny_model(dropout=0.0), train_loader=train_loader, eval_loader=None, **attributes)


class Held(Sampler):
    """With a generator of its own, under a name of its own, that nobody seeded."""

    def __init__(self, count):
        self.count, self.rng = count, np.random.default_rng()

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter(self.rng.permutation(self.count).tolist())


def train(trainer, name, epochs=2):
    trainer.ckpt_dir, trainer.callbacks = f"check_point/{name}", [History(png=False), *(trainer.callbacks or ())]
    trainer.check_init(use_tb=False)
    trainer.fit(epochs)
    return {"weights": weights(trainer), "updates": trainer.global_step, "eval": dict(trainer.eval_result)}


def short_rounds():
    """Networks and losses that need two samples, where the last batch, or the last round, is short."""
    found = {}
    for count in [count for count in (10, 11, 13, 16, 19) if count % (BATCH * SIZE) != 1]:  # that one is single
        loader = DataLoader(TensorDataset(*tiny_data(count)), BATCH, shuffle=True)
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        found[count] = train(Spread(model, train_loader=loader, eval_loader=None), f"short {count}")["weights"]
    return found


# --- evaluated like one process ------------------------------------------------------------------------------------------


TABLE = [f"row {number}" for number in range(50)]


def pairs_with_table(pred, places):
    """What pairs predictions with a table by position: how many rows in a row are its own, as digits of what is found."""
    return float(sum((number + 1) * int(TABLE[number] == f"row {int(place)}") for number, place in enumerate(places)))


class Placed(Tiny):
    """The label of a sample is its place in the table; some entries are of some batches alone."""

    def __init__(self, **attributes):
        super().__init__(key_metric="paired", preflight=False, **attributes)
        self.once = Stored(lambda pred, y: pairs_with_table(pred, y))

    def loss_per_batch(self, batch):
        pred = self.inference(batch[0])
        losses = {"tol_loss": pred.square().mean()}
        return losses | ({"late": pred.mean()} if batch[1].max() > 8 else {})

    def eval_scores_per_batch(self, batch):
        x, y = batch
        pred = self.inference(x)
        found = {"paired": Stored(pairs_with_table).update(pred, y), "once": self.once.update(pred, y)}
        if y.max() % 3 == 0:
            found["of some"] = pred.max()
        if 4 <= y.max() < 12:
            too = Stored(pairs_with_table).update(pred, y)
            found = {"second": Mean().update(pred.min(), len(y)), **found, "paired too": too}
        return found


def placed(count, batch_size=4, seed=5):
    return DataLoader(TensorDataset(tiny_data(count, seed=seed)[0], torch.arange(count)), batch_size)


class Streamed(IterableDataset):
    """The same for every rank, which the template divides."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(placed(self.count).dataset)


EVALUATIONS = {
    "23": lambda: placed(23), "one batch": lambda: placed(3), "many": lambda: placed(41, 3),
    "several": lambda: {"near": placed(23), "far": placed(9, 2, 6)},
    "a list": lambda: list(placed(23)), "streamed": lambda: DataLoader(Streamed(23), 4),
    "streamed by workers": lambda: DataLoader(Streamed(23), 4, num_workers=1),
}


def evaluate(name):
    trainer = Placed(ckpt_dir=f"check_point/eval {name}", eval_loader=EVALUATIONS[name](), callbacks=[History(png=False)])
    trainer.key_metric = "near/paired" if name == "several" else "paired"
    trainer.check_init(use_tb=False)
    return {"test": trainer.test(), "again": trainer.test(), "other": trainer.test(placed(17))}


def key_of_some():
    """What decides is returned by the second batch alone, which rank 0 never sees."""
    trainer = Placed(ckpt_dir="check_point/key", eval_loader=placed(15, 5), callbacks=[History(png=False)])
    trainer.eval_scores_per_batch = lambda batch: {"late": 1.0} if 5 in batch[1] else {"early": 2.0}
    trainer.loss_per_batch = lambda batch: trainer.inference(batch[0]).square().mean()
    trainer.key_metric, trainer.key_metric_mode, trainer.train_loader = "late", "max", placed(8)
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    return dict(trainer.best_metric)


# --- compared before they are read ----------------------------------------------------------------------------------------


data = TensorDataset(*tiny_data(32))


class ByRank(IterableDataset):
    """Each rank has every so manieth sample, and they have unequally many."""

    def __init__(self, count):
        self.samples = TensorDataset(*tiny_data(count))

    def __iter__(self):
        return iter([self.samples[number] for number in range(RANK, len(self.samples), SIZE)])


class MadeUp(IterableDataset):
    """Random numbers, which nobody seeds."""

    def __iter__(self):
        for value in np.random.default_rng().normal(size=(8, 6)):
            yield torch.tensor(value, dtype=torch.float32), 1


def unseeded(count):
    return random.SystemRandom().sample(range(32), count)


def by_hand(train_loader=None, **attributes):
    return tiny(DataLoader(data, BATCH) if train_loader is None else train_loader, **attributes)


def with_eval(eval_loader, **attributes):
    trainer = by_hand(**attributes)
    trainer.eval_loader = eval_loader
    return trainer


REFUSED = {  # what it is refused for, and where: before training, or when it is read
    "split": ("check_init", lambda: by_hand(DataLoader(Subset(data, unseeded(24)), BATCH, shuffle=True))),
    "random_split": ("check_init", lambda: by_hand(DataLoader(
        random_split(data, [24, 8], torch.Generator().manual_seed(RANK))[0], BATCH))),
    "split for evaluation": ("check_init", lambda: with_eval(DataLoader(Subset(data, unseeded(8)), BATCH))),
    "split for test": ("check_init", lambda: with_eval(DataLoader(data, 8), test_loader=DataLoader(
        Subset(data, unseeded(8)), BATCH))),
    "an order": ("check_init", lambda: by_hand(DataLoader(data, BATCH, sampler=unseeded(24)))),
    "lengths": ("check_init", lambda: by_hand(DataLoader(TensorDataset(*tiny_data(32 + 8 * RANK)), BATCH))),
    "no evaluation on one": ("check_init", lambda: with_eval(DataLoader(data, 8) if RANK else None)),
    "distributed": ("check_init", lambda: by_hand(DataLoader(data, BATCH, sampler=DistributedSampler(data, SIZE, RANK)))),
    "distributed evaluation": ("check_init", lambda: with_eval(
        DataLoader(data, BATCH, sampler=DistributedSampler(data, SIZE, RANK)))),
    "by rank": ("fit", lambda: by_hand(DataLoader(ByRank(32), BATCH))),
    "by rank for evaluation": ("fit", lambda: with_eval(DataLoader(ByRank(32), BATCH))),
    "made up": ("fit", lambda: by_hand(DataLoader(MadeUp(), BATCH))),
    "a list": ("fit", lambda: by_hand([tuple(part[chosen] for part in data.tensors) for chosen in torch.tensor(
        unseeded(32)).split(4)])),
    "test(loader)": ("test", lambda: (with_eval(DataLoader(data, 8)), DataLoader(Subset(data, unseeded(8)), BATCH))),
    "test(distributed)": ("test", lambda: (with_eval(DataLoader(data, 8)), DataLoader(
        data, BATCH, sampler=DistributedSampler(data, SIZE, RANK)))),
    "train_loader later": ("train_loader", lambda: (by_hand(), DataLoader(Subset(data, unseeded(24)), BATCH))),
    "eval_loader later": ("eval_loader", lambda: (with_eval(DataLoader(data, 8)), DataLoader(
        Subset(data, unseeded(8)), BATCH))),
}


def refused(name):
    """``(where, message)``."""
    where, make = REFUSED[name]
    trainer = make()
    trainer, loader = trainer if isinstance(trainer, tuple) else (trainer, None)
    trainer.ckpt_dir, trainer.callbacks, reached = f"check_point/refused {name}", [History(png=False)], "check_init"
    try:
        trainer.check_init(use_tb=False)
        reached = where
        if where == "test":
            trainer.test(loader)
        elif where != "check_init":
            if loader is not None:
                setattr(trainer, where, loader)
            trainer.fit(1)
        return "nothing", "nothing was refused"
    except ValueError as error:
        updates = trainer.global_step
        return reached, f"{error}", updates


# --- divided already ------------------------------------------------------------------------------------------------------


def divided(count, **attributes):
    trainer = by_hand(Divided(DataLoader(ByRank(count), BATCH)), **attributes)
    trainer.eval_loader = Divided(DataLoader(ByRank(count), BATCH))
    return trainer


class SaveMidway(Callback):
    """In the second epoch, where some ranks have nothing left already."""

    def __init__(self, at):
        self.at = at

    def on_after_step(self, model):
        if model.epoch == 2 and model.batches_done == self.at * SIZE:
            model.save_state(f"midway {self.at}.pth")


def divided_and_resumed():
    """The weights at the end of one run, and of those that go on from the midst of its second epoch."""
    count = BATCH * SIZE + 1  # the first rank has a batch more than the others
    whole = divided(count, callbacks=[SaveMidway(1), SaveMidway(2)])
    found = {"whole": train(whole, "divided whole", 3)["weights"]}
    for at in (1, 2):
        trainer = divided(count)
        trainer.ckpt_dir, trainer.callbacks = f"check_point/divided {at}", [History(png=False)]
        trainer.check_init(use_tb=False)
        trainer.load_state(f"midway {at}.pth")
        trainer.fit(3)
        found[at] = weights(trainer)
    return found


def divided_and_sharded():
    """Under fsdp all take part in every forward, also in those of an evaluation."""
    trainer = divided(41, parallel="fsdp", ckpt_dir="check_point/divided fsdp", callbacks=[History(png=False)])
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    return trainer.eval_result


if __name__ == "__main__":
    found = {name: train(make(BATCH), name) for name, make in ALIKE.items()}
    found |= {"short": short_rounds(), "key": key_of_some(), "evaluations": {name: evaluate(name) for name in EVALUATIONS}}
    found["refused"] = {name: refused(name) for name in REFUSED}
    found["divided"] = {count: train(divided(count), f"divided {count}", 1) for count in (32, 41)}
    found["fsdp"] = divided_and_sharded()
    found["resumed"] = divided_and_resumed()
    hand_back(found)
