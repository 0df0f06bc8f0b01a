"""Copies of a trainer: they predict and can be called, and do not train on in silence."""

import copy
import pickle

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_trainer, weights
from torch.utils.data import DataLoader

from template import EarlyStopping

X, _ = tiny_data(23, seed=5)
WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda trainer: pickle.loads(pickle.dumps(trainer))}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_of_a_training_predicts_and_is_another_object(way):
    trainer = tiny_trainer(callbacks=[EarlyStopping("acc")], clip_grad=1.0)
    trainer.fit(2)
    before = weights(trainer)
    other = WAYS[way](trainer)
    assert torch.equal(other.predict(X), trainer.predict(X))
    assert (other.epoch, other.global_step, other.best_metric, other.clip_grad) == (
        trainer.epoch, trainer.global_step, trainer.best_metric, 1.0)
    with torch.no_grad():
        other.model_list[0][0].weight.zero_()
    assert torch.equal(weights(trainer), before)
    held = {id(p) for group in other.optimizer_list[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in other.model_list[0].parameters()}
    trainer.fit(3)  # the original goes on


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_of_a_training_is_not_trained(way):
    trainer = tiny_trainer()
    trainer.fit(1)
    other = WAYS[way](trainer)
    with pytest.raises(RuntimeError, match="check_init"):
        other.train_loop()
    with pytest.raises(RuntimeError, match=f"the copy of one that had done {trainer.global_step} updates"):
        other.check_init()


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_from_before_the_training_trains_as_the_original_does(way):
    trainer = Tiny(seed=1, preflight=False, log_per_step=7)
    other = WAYS[way](trainer)
    for one in (trainer, other):
        one.check_init(use_tb=False)
        one.fit(1)
    assert other.log_per_step == 7
    assert torch.equal(weights(trainer), weights(other))


class Collates(Tiny):
    """A subclass whose own method makes the batches: workers that are spawned get the whole trainer."""

    def collate(self, samples):
        x, y = zip(*samples)
        return torch.stack(x) * self.scale, torch.stack(y)

    def loss_per_batch(self, batch):
        self.seen.append(batch[0])
        return super().loss_per_batch(batch)


@pytest.mark.slow
def test_spawned_workers_may_call_a_method_of_the_trainer():
    trainer = Collates(seed=1, preflight=False)
    trainer.scale, trainer.seen = 2.0, []
    data = trainer.train_loader.dataset
    trainer.train_loader = DataLoader(data, 16, collate_fn=trainer.collate, num_workers=1, multiprocessing_context="spawn")
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    assert torch.equal(torch.cat(trainer.seen), 2 * torch.stack([x for x, _ in data]))
