"""The verdict on setups that can learn, and on those that are broken in a known way."""

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model, tiny_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template.tools.overfit import overfit


def set_up(trainer):
    trainer.check_init(use_tb=False)
    return trainer


def test_a_sound_setup_learns_a_batch_by_heart(capsys):
    verdict = overfit(tiny_trainer(warm_up_updates=1000, total_epochs=2), updates=150)
    assert verdict.can_learn and verdict.after < 0.1 * verdict.before and verdict.scores["acc"][1] == 1.0
    assert not (verdict.no_gradient or verdict.zero_gradient or verdict.not_moved)
    printed = capsys.readouterr().out
    assert "The model can learn: the loss went from" in printed and "nothing of it was kept" in printed


def test_losses_are_those_of_a_plain_loop_on_the_same_batch():
    model = tiny_model(dropout=0.0)
    trainer = tiny_trainer(model=tiny_model(dropout=0.0), train_loader=DataLoader(TensorDataset(*tiny_data()), 10))
    verdict = overfit(trainer, updates=12)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    (x, y), losses = [part[:10] for part in tiny_data()], []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert verdict.losses == pytest.approx(losses, rel=1e-5)


def test_a_loss_that_cannot_reach_zero_is_judged_by_the_accuracy():
    verdict = overfit(tiny_trainer(criterion=nn.CrossEntropyLoss(label_smoothing=0.3)), updates=150)
    assert verdict.can_learn and verdict.after > 0.1 * verdict.before


def test_labels_that_contradict_each_other_cannot_be_learned():
    x = torch.ones(12, 6)
    y = torch.arange(12) % 3
    verdict = overfit(tiny_trainer(model=tiny_model(dropout=0.0), train_loader=DataLoader(TensorDataset(x, y), 12)))
    assert not verdict.can_learn and "did not learn" in verdict.text and verdict.after > 0.9


class Parts(nn.Module):
    """One part is left out of forward, one is behind a dead ReLU, and one works."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.dead = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(6, 3)
        nn.init.constant_(self.dead.bias, -1000.0)

    def forward(self, x):
        return self.used(x) + self.dead(x).relu()


def test_parameters_without_a_gradient_and_with_zeros_are_named():
    trainer = Tiny(model=Parts(), preflight=False)
    trainer.optimizer_list = [torch.optim.SGD(trainer.model_list[0].parameters(), 0.1)]
    verdict = overfit(set_up(trainer), updates=10)
    assert verdict.no_gradient == ["model_list[0].unused.weight", "model_list[0].unused.bias"]
    assert verdict.zero_gradient == ["model_list[0].dead.weight", "model_list[0].dead.bias"]
    assert "unused.weight" in verdict.text and "dead.weight" in verdict.text
    assert set(verdict.not_moved) == {*verdict.no_gradient, *verdict.zero_gradient}


def test_a_rate_of_zero_is_told_by_parameters_that_do_not_move():
    trainer = Tiny()
    trainer.optimizer_list = [torch.optim.SGD(trainer.model_list[0].parameters(), 0.0)]
    verdict = overfit(set_up(trainer), updates=10)
    assert not verdict.can_learn and len(verdict.not_moved) == 4 and "did not move: their rate is 0" in verdict.text


def test_a_rate_of_its_own_makes_a_timid_run_learn():
    trainer = Tiny()
    trainer.optimizer_list = [torch.optim.SGD(trainer.model_list[0].parameters(), 1e-7)]
    set_up(trainer)
    assert not overfit(trainer, updates=100).can_learn
    assert overfit(trainer, updates=200, lr=0.5).can_learn


def test_a_training_that_diverges_is_called_so():
    verdict = overfit(tiny_trainer(criterion=lambda pred, y: pred.pow(4).sum(1).mean()), updates=100, lr=1e3)
    assert not verdict.can_learn and "diverged" in verdict.text and "find_lr" in verdict.text


def test_several_batches_accumulate_and_go_round():
    verdict = overfit(tiny_trainer(accumulate_steps=2), batches=3, updates=7)
    assert len(verdict.losses) == 7 and "on 3 batches" in verdict.text


def test_a_metric_that_cannot_be_computed_from_one_batch_does_not_hide_the_losses(capsys):
    class Fussy(Tiny):
        def metric(self, pred, y):
            raise ValueError("one class only")

    verdict = overfit(set_up(Fussy(preflight=False)), updates=150)
    assert verdict.can_learn and not verdict.scores and "one class only" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    ({"batches": 0}, "batches must be a whole number"), ({"updates": "many"}, "updates must be a whole number"),
    ({"lr": -1}, "lr must be a rate above 0"),
])
def test_arguments_that_do_not_fit_are_refused_in_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        overfit(tiny_trainer(), **arguments)
