"""The samples that stand out in an evaluation are those that a loop over all of them finds."""

import csv
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import Tiny, tiny_data
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from template import Interpret, TemplateModel
from template.callbacks import interpret as module

X, Y = tiny_data(83, seed=5)


@pytest.fixture
def pictures():
    """For a test that looks at a picture of the counts."""


@pytest.fixture(autouse=True)
def drawn_where_asked_for(request, monkeypatch):
    """Drawing the counts takes ten times as long as the evaluation."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(module, "_draw_confusion", lambda *_: None)


def run(callback, use_tb=False, kind=Tiny, **attributes):
    attributes = {"eval_loader": DataLoader(TensorDataset(X, Y), 10, shuffle=True), "preflight": False, **attributes}
    trainer = kind(callbacks=[callback], **attributes)
    trainer.check_init(use_tb=use_tb)
    trainer.eval()
    return trainer


def losses_of(trainer, x=X, y=Y):
    model = trainer.model_list[0].eval()
    with torch.no_grad():
        pred = model(x)
    return F.cross_entropy(pred, y, reduction="none"), pred.argmax(1)


@pytest.mark.parametrize("k", [1, 7, 200])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("at_once", [1, 3, 16])
def test_samples_and_counts_are_those_of_all_losses(k, largest, at_once, monkeypatch):
    monkeypatch.setattr(module, "_BATCHES_AT_ONCE", at_once)
    callback = Interpret(k=k, largest=largest)
    trainer = run(callback)
    losses, predicted = losses_of(trainer)
    order = losses.argsort(descending=largest, stable=True)[:k]
    assert [sample["index"] for sample in callback.samples] == order.tolist()
    assert [sample["score"] for sample in callback.samples] == pytest.approx(losses[order].tolist())
    assert [sample["label"] for sample in callback.samples] == Y[order].tolist()
    assert [sample["prediction"] for sample in callback.samples] == predicted[order].tolist()
    assert np.array_equal(callback.confusion[""], confusion_matrix(Y, predicted))


@pytest.mark.slow
def test_the_files_hold_the_same(pictures):
    callback = Interpret(k=5, class_names=["ant", "bee", "cow"])
    trainer = run(callback, use_tb=True)
    with open(trainer.path_of("interpret/largest_loss.csv")) as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == [sample["index"] for sample in callback.samples]
    assert [row["label"] for row in rows] == [["ant", "bee", "cow"][sample["label"]] for sample in callback.samples]
    with open(trainer.path_of("interpret/confusion.csv")) as file:
        table = list(csv.reader(file))
    assert table[0] == ["true \\ predicted", "ant", "bee", "cow"]
    assert [[int(cell) for cell in row[1:]] for row in table[1:]] == callback.confusion[""].tolist()
    assert trainer.path_of("interpret/confusion.png").stat().st_size > 5000
    trainer.writer.flush()
    tags = EventAccumulator(trainer.writer.log_dir).Reload().Tags()
    assert tags["images"] == ["interpret/confusion"]
    assert set(tags["tensors"]) == {"interpret/largest_loss/text_summary", "interpret/confusion/text_summary"}
    before = trainer.path_of("interpret/largest_loss.csv").read_bytes()
    trainer.test()
    assert trainer.path_of("interpret/test_largest_loss.csv").read_bytes() == before


def test_a_score_of_ones_own_decides_and_names_the_files():
    def margin(pred, y):
        best = pred.topk(2, 1).values
        return best[:, 0] - best[:, 1]

    callback = Interpret(k=4, largest=False, score=margin)
    trainer = run(callback)
    expected = margin(trainer.model_list[0].eval()(X).detach(), Y).argsort()[:4]
    assert [sample["index"] for sample in callback.samples] == expected.tolist()
    assert trainer.path_of("interpret/smallest_margin.csv").exists()


def test_a_score_that_is_no_column_is_refused_with_its_shape():
    with pytest.raises(ValueError, match=r"shape \(10, 3\)"):
        run(Interpret(score=lambda pred, y: pred))


@pytest.mark.parametrize("ignored", [-100, 255, 0])
def test_labels_that_are_ignored_are_left_out(ignored):
    y = Y.clamp(min=1)
    y[::2] = ignored
    callback = Interpret(k=100, largest=False)
    run(callback, criterion=nn.CrossEntropyLoss(ignore_index=ignored), eval_loader=DataLoader(TensorDataset(X, y), 10))
    assert sorted(sample["index"] for sample in callback.samples) == list(range(1, 83, 2))
    assert callback.confusion[""].sum() == 41


def test_several_labels_of_a_sample_are_written_as_the_whole_numbers_that_they_are(capsys):
    net = nn.Linear(6, 6)
    y = torch.stack([Y, 2 - Y], 1)
    callback = Interpret(k=1)
    run(callback, model=nn.Sequential(net, nn.Unflatten(1, (3, 2))), criterion=nn.CrossEntropyLoss(),
        optimizer_list=[torch.optim.SGD(net.parameters(), 0.1)],
        eval_loader=DataLoader(TensorDataset(X, y), 10), train_loader=DataLoader(TensorDataset(X[:20], y[:20]), 10))
    assert callback.samples[0]["label"] == str(y[callback.samples[0]["index"]].tolist())


@pytest.mark.parametrize("largest, first", [(True, 4), (False, 82)])
def test_a_loss_that_is_nan_is_the_largest(largest, first):
    x = X.clone()
    x[4] = math.nan
    callback = Interpret(k=83, largest=largest, score=lambda pred, y: pred.sum(1) * 0 + torch.arange(len(y), 0, -1))
    run(callback, eval_loader=DataLoader(TensorDataset(x, Y), 83), key_metric="acc")
    assert callback.samples[0]["index"] == first


class Pictured(TemplateModel):
    """Images, of which the network sees the mean."""

    def __init__(self, images, callbacks, extra=None):
        super().__init__()
        self.model_list = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(images.shape[1], 3))]
        self.optimizer_list = [torch.optim.SGD(self.model_list[0].parameters(), 0.1)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader = DataLoader(TensorDataset(images + 0.1, Y[:len(images)]), 10)
        self.eval_loader = DataLoader(TensorDataset(images, Y[:len(images)]), 10)
        self.callbacks, self.preflight, self.seed = callbacks, False, 1


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_drawn_and_kept_as_they_were(channels):
    images = torch.randn(30, channels, 9, 9)
    callback = Interpret(k=6)
    trainer = Pictured(images, [callback])
    trainer.check_init(use_tb=False)
    trainer.eval()
    for sample in callback.samples:
        assert torch.equal(sample["sample"], images[sample["index"]])
    assert trainer.path_of("interpret/largest_loss.png").stat().st_size > 5000


def test_without_matplotlib_tables_are_written_and_the_command_that_helps_is_told(pictures, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    trainer = run(Interpret(k=3))
    assert "The confusion matrix is not drawn" in capsys.readouterr().out
    assert sorted(path.name for path in trainer.path_of("interpret").iterdir()) == ["confusion.csv", "largest_loss.csv"]


def test_texts_are_shown(capsys):
    texts = [f"text {number}" for number in range(83)]
    samples = [(x, text, y) for x, text, y in zip(X, texts, Y)]

    class OfTexts(Tiny):
        def inference(self, x):
            return super().inference(x[0] if isinstance(x, tuple) else x)

    callback = Interpret(k=3)
    run(callback, kind=OfTexts, eval_loader=DataLoader(samples, 10), train_loader=DataLoader(samples[:20], 10))
    assert [sample["sample"] for sample in callback.samples] == [f"text {sample['index']}" for sample in callback.samples]
    assert callback.samples[0]["sample"] in capsys.readouterr().out


def test_one_logit_for_each_sample_has_two_classes():
    net = nn.Linear(6, 1)
    y = (Y > 0).float()[:, None]
    callback = Interpret(k=3)
    run(callback, model=net, optimizer_list=[torch.optim.SGD(net.parameters(), 0.1)], criterion=nn.BCEWithLogitsLoss(),
        eval_loader=DataLoader(TensorDataset(X, y), 10), train_loader=DataLoader(TensorDataset(X[:20], y[:20]), 10))
    expected = confusion_matrix(y.flatten(), (net(X) > 0).flatten())
    assert np.array_equal(callback.confusion[""], expected)


def test_regression_has_samples_and_no_counts():
    net = nn.Linear(6, 2)
    y = torch.randn(83, 2)
    callback = Interpret(k=3)
    run(callback, model=net, optimizer_list=[torch.optim.SGD(net.parameters(), 0.1)], criterion=nn.MSELoss(),
        eval_loader=DataLoader(TensorDataset(X, y), 10), train_loader=DataLoader(TensorDataset(X[:20], y[:20]), 10))
    losses = (net(X) - y).square().mean(1)
    assert [sample["index"] for sample in callback.samples] == losses.topk(3).indices.tolist()
    assert callback.confusion == {}


def test_several_loaders_have_a_column_and_a_matrix_each():
    callback = Interpret(k=30)
    trainer = run(callback, eval_loader={"near": DataLoader(TensorDataset(X, Y), 10), "far": DataLoader(
        TensorDataset(X + 1, Y), 10)}, key_metric="near/acc")
    header = trainer.path_of("interpret/largest_loss.csv").read_text().splitlines()[0]
    assert header == "index,score,label,prediction,loader"
    assert set(callback.confusion) == {"near/", "far/"} and trainer.path_of("interpret/confusion_far.csv").exists()
    near, far = losses_of(trainer)[0], losses_of(trainer, X + 1)[0]
    assert [sample["score"] for sample in callback.samples] == pytest.approx(torch.cat([near, far]).topk(30).values.tolist())


def test_losses_that_nobody_knows_are_told_once():
    class Own(Tiny):
        def loss_per_batch(self, batch):
            return self.inference(batch[0]).square().mean()

    with pytest.warns(UserWarning, match=r"Interpret\(score=.* self.note_predictions\(pred, y, losses\)") as told:
        trainer = run(Interpret(), kind=Own)
        trainer.eval()
    assert len(told) == 1

    class Told(Own):
        def loss_per_batch(self, batch):
            pred = self.inference(batch[0])
            self.note_predictions(pred, batch[1], pred.square().mean(1))
            return pred.square().mean()

    callback = Interpret(k=2)
    trainer = run(callback, kind=Told)
    expected = trainer.model_list[0].eval()(X).square().mean(1).topk(2)
    assert [sample["index"] for sample in callback.samples] == expected.indices.tolist()


def test_every_second_evaluation_and_no_more_in_memory_than_k():
    callback = Interpret(k=2, every=2)
    trainer = run(callback)
    first = callback.samples
    with torch.no_grad():
        trainer.model_list[0][0].weight.mul_(2)
    trainer.eval()
    assert callback.samples is first
    trainer.eval()
    assert callback.samples is not first and len(callback.samples) == 2
    assert not callback._pending and not callback._kept


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 8), st.integers(1, 9), st.booleans())
def test_equal_scores_are_taken_in_the_order_of_the_data(scores, k, batch_size, largest):
    """Whatever the scores, the batches and k: the same scores as a sort gives."""
    callback = Interpret(k=k, largest=largest)
    for start in range(0, len(scores), batch_size):
        part = torch.tensor(scores[start:start + batch_size], dtype=torch.float32)
        callback._pick([part], part, range(start, start + len(part)), None, None, None, "")
    callback._fetch()
    found = [kept["score"] for kept in callback._kept]
    assert found == sorted(scores, reverse=largest)[:k]
    assert all(scores[kept["index"]] == kept["score"] for kept in callback._kept)
    assert len({kept["index"] for kept in callback._kept}) == len(found)


@pytest.mark.parametrize("arguments", [{"k": 0}, {"k": 2.5}, {"every": 0}])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="whole number of at least 1, got"):
        Interpret(**arguments)
