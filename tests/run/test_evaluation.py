"""An evaluation scores what the subclass wrote, with the weights and attributes that are there, and something."""

import pytest
import torch
from tiny import Tiny, tiny_data
from torch import nn

X, Y = tiny_data(20)


class Regression(Tiny):
    """Targets are 0; the model gives what its attributes say."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.head, self.offsets = nn.Parameter(torch.ones(())), "main", {"main": 0.0, "other": 7.0}
            self.dropout = nn.Dropout(0.5)

        def forward(self, x):
            return self.dropout(torch.ones(len(x))) * self.weight + self.offsets[self.head]

    def __init__(self, **attributes):
        net = self.Net()
        super().__init__(model=net, optimizer_list=[torch.optim.SGD(net.parameters(), 0.0)], preflight=False,
                         criterion=nn.MSELoss(), eval_loader=[(X, torch.zeros(20))], train_loader=[(X, torch.zeros(20))],
                         **attributes)
        self.net = net

    def metric(self, pred, y):
        return {"mae": (pred - y).abs().mean()}


class AveragedWeights(Regression):
    """Scores with weights of 0, which stand for averaged ones."""

    def loss_per_batch(self, batch):
        return self.criterion(self.inference(batch[0]), batch[1])

    def eval_scores_per_batch(self, batch):
        with torch.no_grad():
            self.net.weight.zero_()
            scores = self.metric(self.inference(batch[0]), batch[1])
            self.net.weight.fill_(1.0)
        return scores


class OtherHead(AveragedWeights):
    def eval_scores_per_batch(self, batch):
        self.net.head = "other"
        scores = self.metric(self.inference(batch[0]), batch[1])
        self.net.head = "main"
        return scores


class ChangedEntry(AveragedWeights):
    def eval_scores_per_batch(self, batch):
        self.net.offsets["main"] = 7.0
        scores = self.metric(self.inference(batch[0]), batch[1])
        self.net.offsets["main"] = 0.0
        return scores


class MonteCarlo(AveragedWeights):
    def eval_scores_per_batch(self, batch):
        self.net.dropout.train()
        passes = torch.stack([self.inference(batch[0]) for _ in range(2)])
        self.net.dropout.eval()
        return {"mae": passes.std(0).mean()}


class HeadOfTheLossAlone(Regression):
    """Wrote the loss alone, with another head than the default scores see."""

    def loss_per_batch(self, batch):
        self.net.head = "other"
        loss = self.criterion(self.net(batch[0]), batch[1])
        self.net.head = "main"
        return loss


@pytest.mark.parametrize("one_forward", [False, True])
@pytest.mark.parametrize("way, mae", [(AveragedWeights, 0.0), (OtherHead, 8.0), (ChangedEntry, 8.0),
                                      (HeadOfTheLossAlone, 1.0)])
def test_scores_are_those_of_the_model_as_it_is_when_they_are_asked_for(way, mae, one_forward):
    trainer = way(one_forward=one_forward)
    trainer.check_init(use_tb=False)
    assert trainer.eval() == pytest.approx(mae)


@pytest.mark.parametrize("one_forward", [False, True])
def test_dropout_that_is_switched_on_for_the_scores_is_random(one_forward):
    trainer = MonteCarlo(one_forward=one_forward)
    trainer.check_init(use_tb=False)
    assert trainer.eval() > 0.1


def test_the_default_methods_ask_the_network_once_and_score_what_they_took_the_loss_of():
    outputs = iter([torch.full((20,), 3.0), torch.full((20,), 5.0)])

    class Random(Regression):
        def inference(self, x):
            return next(outputs) + 0 * self.net(x)

    trainer = Random()
    trainer.check_init(use_tb=False)
    assert trainer.eval() == 3.0 and trainer.eval_result["tol_loss"] == 9.0


# --- loaders that give nothing ----------------------------------------------------------------------------------------


class Once:
    """Can be read once, as many streams of data."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def __iter__(self):
        return self.batches


@pytest.mark.parametrize("loader", [lambda: Once([]), lambda: Once([(X, Y)])], ids=["empty", "once"])
def test_an_epoch_without_a_batch_is_an_error_that_names_the_loader(loader):
    trainer = Tiny(train_loader=loader(), eval_loader=None)
    trainer.check_init(use_tb=False)
    with pytest.raises(ValueError, match=r"train_loader \(a Once\) gave none in epoch [12]"):
        trainer.fit(3)


@pytest.mark.parametrize("as_dict", [False, True])
def test_an_evaluation_without_a_batch_is_an_error_that_names_the_loader(as_dict):
    loader = Once([(X, Y)])
    trainer = Tiny(eval_loader={"val": loader} if as_dict else loader, preflight=False)
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    trainer.eval()
    name = ".val. of the loaders" if as_dict else "the loader"
    with pytest.raises(ValueError, match=f"An evaluation needs batches, and {name} gave none"):
        trainer.eval()
