"""Callbacks hear the predictions, labels and per-sample losses of an evaluation, of the forward that was done anyway."""

from functools import partial

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from template import Callback, TensorLoader

X, Y = tiny_data(23, seed=5)


class Heard(Callback):
    """Keeps everything."""

    def __init__(self):
        self.batches, self.indices, self.prefixes = [], [], []

    def on_eval_predictions(self, model, batch, predictions, labels, losses):
        self.batches.append((predictions, labels, losses))
        indices = model.evaluator.sample_indices
        self.indices += [] if indices is None else list(indices)
        self.prefixes.append(model.evaluator.prefix)

    def column(self, number):
        return torch.cat([batch[number] for batch in self.batches])


def heard_by(kind=Tiny, forwards=None, **attributes):
    """What is heard of one evaluation; the model's forwards in it are appended to ``forwards``."""
    heard = Heard()
    trainer = kind(preflight=False, callbacks=[heard], **attributes)
    trainer.check_init(use_tb=False)
    if forwards is not None:
        trainer.model_list[0][0].register_forward_hook(lambda *args: forwards.append(1))
    trainer.test()
    return heard


def expected():
    with torch.no_grad():
        return tiny_model().eval()(X)


class WritesLoss(Tiny):
    def loss_per_batch(self, batch):
        x, y = batch
        loss = self.criterion(self.inference(x), y)
        return {"tol_loss": loss + 1.0, "entropy": loss}


class WritesMetric(Tiny):
    def metric(self, pred, y):
        return {"right": (pred.argmax(1) == y).float().mean()}


class WritesScores(Tiny):
    def eval_scores_per_batch(self, batch):
        return {"score": float(len(batch[0]))}


class WritesOtherLoss(Tiny):
    def loss_per_batch(self, batch):
        x, y = batch
        return (self.inference(x) ** 2).mean()


class WritesAll(Tiny):
    def loss_per_batch(self, batch):
        self.pred = self.inference(batch[0])
        return {"tol_loss": self.criterion(self.pred, batch[1])}

    def eval_scores_per_batch(self, batch):
        return {"acc": (self.pred.argmax(1) == batch[1]).float().mean()}


class Tells(WritesAll):
    def eval_scores_per_batch(self, batch):
        self.note_predictions(self.pred, batch[1])
        return super().eval_scores_per_batch(batch)


class TellsLosses(WritesAll):
    def eval_scores_per_batch(self, batch):
        self.note_predictions(self.pred, batch[1], batch[1] * 2.0)
        return super().eval_scores_per_batch(batch)


@pytest.mark.parametrize("kind", [Tiny, WritesLoss, WritesMetric, WritesScores, Tells])
def test_predictions_labels_and_losses_are_those_of_a_plain_loop_at_one_forward_a_batch(kind):
    forwards = []
    heard, pred = heard_by(kind, forwards), expected()
    assert len(forwards) == len(heard.batches) == 3
    torch.testing.assert_close(heard.column(0), pred)
    assert torch.equal(heard.column(1), Y)
    torch.testing.assert_close(heard.column(2), F.cross_entropy(pred, Y, reduction="none"))
    assert heard.indices == list(range(23))


def test_losses_that_the_criterion_does_not_give_are_not_told_as_if_it_did():
    heard = heard_by(WritesOtherLoss)
    assert heard.batches[0][0] is not None and all(losses is None for _, _, losses in heard.batches)


def test_a_subclass_that_writes_everything_is_told_of_only_as_far_as_it_tells():
    assert heard_by(WritesAll).batches == [(None, None, None)] * 3
    assert torch.equal(heard_by(TellsLosses).column(2), Y * 2.0)


def test_a_model_that_returns_its_own_loss_shows_what_it_returned():
    class Own(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            return {"loss": out.pow(2).mean(), "logits": out}

    loader, others = [{"x": X[:10]}, {"x": X[10:]}], [{"x": X[10:]}]

    class OwnNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Own(6, 3)

        def forward(self, x):
            return self.inner(x)

    heard = heard_by(model=OwnNet(), criterion=None, eval_loader=loader, train_loader=others)
    assert heard.batches[0][0]["logits"].shape == (10, 3) and heard.batches[0][1:] == (None, None)


def test_nobody_hears_the_check_before_the_training_or_a_score_without_events():
    heard = Heard()
    trainer = Tiny(callbacks=[heard])
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    trainer.evaluator.score()
    assert heard.batches == []


def test_results_are_the_same_bits_with_and_without_a_listener():
    results = []
    for callbacks in ([], [Heard()]):
        for kind in (Tiny, WritesLoss, WritesScores):
            trainer = kind(callbacks=callbacks, key_metric="tol_loss", preflight=False)
            trainer.check_init(use_tb=False)
            trainer.fit(2)
            results.append((kind, trainer.eval_result, trainer.running_losses.compute()))
    assert results[:3] == results[3:]


# --- losses of each sample ---------------------------------------------------------------------------------------------


def of_one(criterion, pred, y):
    """The loss of each sample, as if it were a batch by itself."""
    return torch.stack([criterion(pred[i:i + 1], y[i:i + 1]) for i in range(len(pred))])


def losses_for(criterion, pred, y):
    from template.run.eval_predictions import losses_by_sample
    return losses_by_sample(criterion)(pred, y)


class Focal(nn.Module):
    def __init__(self, reduction="mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, pred, y):
        values = F.cross_entropy(pred, y, reduction="none")
        values = (1 - (-values).exp()) ** 2 * values
        return values if self.reduction == "none" else getattr(values, self.reduction)()


def _focal(pred, y, reduction="mean"):
    return Focal(reduction)(pred, y)


IMAGES, MASKS = torch.randn(5, 4, 6, 7), torch.randint(4, (5, 6, 7))


@pytest.mark.parametrize("criterion, pred, y", [
    (nn.CrossEntropyLoss(label_smoothing=0.1), torch.randn(5, 4), torch.randint(4, (5,))),
    (nn.CrossEntropyLoss(), IMAGES, MASKS),
    (nn.CrossEntropyLoss(), torch.randn(5, 4), torch.randn(5, 4).softmax(1)),
    (nn.CrossEntropyLoss(reduction="sum"), IMAGES, MASKS),
    (nn.MSELoss(), torch.randn(5, 3), torch.randn(5, 3)),
    (nn.MSELoss(reduction="sum"), torch.randn(5, 3), torch.randn(5, 3)),
    (nn.KLDivLoss(reduction="batchmean"), torch.randn(5, 3).log_softmax(1), torch.randn(5, 3).softmax(1)),
    (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0])), torch.randn(5, 1), torch.randint(2, (5, 1))),
    (F.cross_entropy, torch.randn(5, 4), torch.randint(4, (5,))),
    (partial(F.cross_entropy, label_smoothing=0.2), torch.randn(5, 4), torch.randint(4, (5,))),
    (Focal(), torch.randn(5, 4), torch.randint(4, (5,))),
    (_focal, torch.randn(5, 4), torch.randint(4, (5,))),
])
def test_the_loss_of_a_sample_is_what_the_criterion_gives_for_it_alone(criterion, pred, y):
    as_float = y.float() if isinstance(criterion, nn.BCEWithLogitsLoss) else y
    torch.testing.assert_close(losses_for(criterion, pred, y), of_one(criterion, pred, as_float))


def test_pixels_to_be_ignored_do_not_count_in_the_mean_of_their_sample():
    masks = MASKS.clone()
    masks[0, :3], masks[1] = 255, 255
    losses = losses_for(nn.CrossEntropyLoss(ignore_index=255), IMAGES, masks)
    alone = of_one(nn.CrossEntropyLoss(ignore_index=255), IMAGES, masks)
    torch.testing.assert_close(losses[[0, 2, 3, 4]], alone[[0, 2, 3, 4]])
    assert losses[1] == 0


def test_class_weights_are_those_of_torch_without_reduction():
    pred, y, weight = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, -100]), torch.tensor([1.0, 2.0, 5.0])
    losses = losses_for(nn.CrossEntropyLoss(weight=weight), pred, y)
    plain = F.cross_entropy(pred, y, reduction="none")
    torch.testing.assert_close(losses, plain * torch.tensor([1.0, 2.0, 5.0, 5.0, 0.0]))


@pytest.mark.parametrize("criterion", [lambda pred, y: F.cross_entropy(pred, y), nn.Sequential(nn.Identity())])
def test_a_criterion_that_reduces_nobody_knows_how_has_no_losses_of_samples(criterion):
    from template.run.eval_predictions import losses_by_sample
    assert losses_by_sample(criterion) is None


def test_a_label_beyond_the_classes_in_a_loss_of_ones_own_is_no_error():
    class FromOne(Tiny):
        """Labels 1, 2, 3."""

        def loss_per_batch(self, batch):
            return self.criterion(self.inference(batch[0]), batch[1] - 1)

    loader = DataLoader(TensorDataset(X, Y + 1), 10)
    heard = heard_by(FromOne, eval_loader=loader, train_loader=DataLoader(TensorDataset(X, Y + 1), 10))
    assert all(losses is None for _, _, losses in heard.batches)


# --- which samples these are -------------------------------------------------------------------------------------------


class Samples(Dataset):
    def __len__(self):
        return 23

    def __getitem__(self, index):
        return X[index], Y[index]


SUBSET = [7, 3, 3, 20, 11, 0, 5]
LOADERS = {
    "in order": lambda: DataLoader(Samples(), 10),
    "shuffled": lambda: DataLoader(Samples(), 10, shuffle=True),
    "workers": lambda: DataLoader(Samples(), 4, shuffle=True, num_workers=1),
    "one by one": lambda: DataLoader(Samples(), 1, shuffle=True),
    "sliced, shuffled": lambda: DataLoader(TensorDataset(X, Y), 10, shuffle=True),
    "sliced subset": lambda: DataLoader(Subset(TensorDataset(X, Y), SUBSET), 3, shuffle=True),
    "in memory": lambda: TensorLoader(X, Y, batch_size=10),
    "in memory, shuffled": lambda: TensorLoader(X, Y, batch_size=10, shuffle=True),
    "a list": lambda: list(DataLoader(TensorDataset(X, Y), 10)),
}


@pytest.mark.parametrize("name", LOADERS)
def test_an_index_leads_to_the_sample_in_the_data(name):
    loader, heard = LOADERS[name](), Heard()
    trainer = Tiny(preflight=False, callbacks=[heard], eval_loader=loader)
    trainer.check_init(use_tb=False)
    for _ in range(2):
        trainer.test()
    data = getattr(loader, "dataset", None) or Samples()
    x = torch.stack([data[index][0] for index in heard.indices])
    with torch.no_grad():
        torch.testing.assert_close(tiny_model().eval()(x), heard.column(0))
    assert sorted(heard.indices) == sorted(2 * list(range(len(data))))
    if "shuffled" in name:
        assert heard.indices != sorted(heard.indices)


def test_where_a_collate_function_leaves_samples_out_the_numbers_are_running():
    def every_second(samples):
        return torch.stack([x for x, _ in samples[::2]]), torch.stack([y for _, y in samples[::2]])

    assert heard_by(eval_loader=DataLoader(Samples(), 10, shuffle=True, collate_fn=every_second)).indices == list(range(12))


def test_several_loaders_have_numbers_and_a_name_each():
    heard = heard_by(eval_loader={"near": DataLoader(Samples(), 10), "far": TensorLoader(X, Y, batch_size=23, shuffle=True)})
    assert heard.prefixes == ["near/"] * 3 + ["far/"]
    assert heard.indices[:23] == list(range(23)) and sorted(heard.indices[23:]) == list(range(23))
