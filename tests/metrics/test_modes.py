"""Looking at a model changes nothing of it."""

from collections import deque

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_trainer, weights
from torch import nn

from template.metrics.modes import eval_mode, modes_of, restore_modes, unchanged


class Merging(nn.Module):
    """A low-rank adapter that is merged into the weight in eval mode, by ``train()``, as adapters are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Linear(6, 3)
        self.A, self.B = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.zeros(3, 2))
        self.merged = False

    def train(self, mode=True):
        if mode == self.merged:
            with torch.no_grad():
                self.base.weight.add_(self.B @ self.A, alpha=-1 if mode else 1)
            self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        return self.base(x) if self.merged else self.base(x) + x @ self.A.T @ self.B.T


def test_an_adapter_that_is_merged_for_evaluations_is_trained_as_by_hand():
    def by_hand():
        model = Merging()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for batch in range(6):
            x, y = tiny_data(10, seed=batch)
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            if batch % 2:
                model.eval()
                model.train()
        return model

    model = Merging()
    loader = [[tiny_data(10, seed=number) for number in range(first, first + 2)] for first in (0, 2, 4)]
    trainer = Tiny(model=model, optimizer_list=[torch.optim.SGD(model.parameters(), 0.1)], train_loader=loader[0])
    trainer.check_init(use_tb=False)
    for batches in loader:
        trainer.train_loader = batches
        trainer.train_loop()
        trainer.eval()
    assert model.B.abs().max() > 0
    assert torch.allclose(model.B, by_hand().B, atol=1e-6)


class Noting(nn.Module):
    """Notes how its mode is set."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.told = []

    def train(self, mode=True):
        self.told.append(mode)
        return super().train(mode)


def test_every_part_is_told_by_train_and_eval_and_gets_its_own_mode_back():
    frozen, free = Noting(nn.Dropout()), Noting(nn.Dropout())
    model = Noting(frozen, free)
    frozen.eval()
    free.parts[0].eval()
    before = modes_of([model])
    model.told.clear(), frozen.told.clear(), free.told.clear()
    with pytest.raises(KeyError), eval_mode([model]):
        assert not any(modes_of([model]).values())
        raise KeyError
    assert modes_of([model]) == before
    assert model.told == [False, True] and frozen.told[-1] is False and free.told[-1] is True
    restore_modes(before)
    assert modes_of([model]) == before


class Recurrent(nn.Module):
    """Keeps a hidden state, a list, a counter and a buffer from one forward to the next."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.cell, self.head = nn.RNNCell(6, 8), nn.Linear(8, 3)
        self.hidden, self.seen, self.calls, self.recent = None, [], 0, deque(maxlen=3)
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.total += 1
        self.seen.append(len(x))
        self.recent.append(len(x))
        mean = None if self.hidden is None else self.hidden.mean(0, keepdim=True).expand(len(x), -1)
        hidden = self.cell(x, mean)
        self.hidden = hidden.detach()
        self.last_attention = hidden
        return self.head(hidden)


def test_unchanged_leaves_attributes_lists_buffers_and_tensors_as_they_were():
    model = Recurrent()
    model(torch.randn(4, 6))
    hidden, copy_of_hidden, seen = model.hidden, model.hidden.clone(), model.seen
    del model.last_attention
    with unchanged([model]):
        model(torch.randn(5, 6))
        model.hidden = model.hidden * 2
        hidden.zero_()  # in place
        model.new = 1
    assert model.hidden is hidden and torch.equal(hidden, copy_of_hidden)
    assert model.seen is seen and seen == [4] and list(model.recent) == [4] and model.calls == 1 and model.total == 1
    assert not hasattr(model, "new") and not hasattr(model, "last_attention")


@pytest.mark.parametrize("preflight", [True, False])
def test_the_check_before_training_leaves_no_hidden_state_in_the_model(preflight):
    model = Recurrent()
    trainer = Tiny(model=model, optimizer_list=[torch.optim.SGD(model.parameters(), 0.1)], preflight=preflight)
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    assert model.seen == [10, 10, 10, 10, 10, 3] and model.calls == 6 and model.total == 6


def test_the_check_before_training_changes_no_bit_of_what_a_stateful_model_learns():
    def trained(preflight):
        model = Recurrent()
        trainer = Tiny(model=model, optimizer_list=[torch.optim.SGD(model.parameters(), 0.1)], preflight=preflight, seed=3)
        trainer.check_init(use_tb=False)
        trainer.train_loop()
        return weights(trainer)

    assert torch.equal(trained(True), trained(False))


class Focal:
    """A criterion with an attribute, which the training may read and set."""

    def __init__(self):
        self.gamma, self.calls = 2.0, 0

    def __call__(self, pred, y):
        self.calls += 1
        return nn.functional.cross_entropy(pred, y) * self.gamma


def test_a_criterion_that_is_no_module_stays_itself_during_the_check():
    criterion, seen = Focal(), []

    class Trainer(Tiny):
        def loss_per_batch(self, batch):
            seen.append((self.criterion is criterion, self.criterion.gamma))
            self.criterion.gamma = 3.0
            return super().loss_per_batch(batch)

    trainer = Trainer(criterion=criterion)
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    assert all(same for same, _ in seen) and criterion.gamma == 3.0 and seen[-1][1] == 3.0


def test_evaluations_predictions_and_tests_leave_every_generator_as_they_found_it():
    import random

    import numpy as np

    trainer = tiny_trainer()
    trainer.train_loop()

    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), np.random.get_state()[2], random.getstate()

    for look in (trainer.eval, trainer.test, lambda: trainer.predict(trainer.eval_loader)):
        before = states()
        look()
        assert states() == before


def test_draws_of_the_user_after_evaluations_do_not_repeat_themselves():
    import numpy as np

    trainer, drawn = tiny_trainer(), []
    for _ in trainer.epochs(4):
        trainer.train_loop()
        trainer.eval()
        drawn.append(np.random.rand())
    assert len(set(drawn)) == 4
