"""What is counted or fetched many batches at a time gives what each batch alone would give."""

import copy

import pytest
import sklearn.metrics as sk
import torch

from template.metrics.accumulators import Confusion, Mean, Score
from template.metrics.epoch import EpochMetrics

CLASSES = 4


def epoch(num_batches=150, size=3, ignored=None):
    """More batches than wait for being counted."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(num_batches):
        pred = torch.randn(size, CLASSES, generator=generator)
        y = torch.randint(CLASSES, (size,), generator=generator)
        yield pred, y if ignored is None else torch.where(torch.rand(size, generator=generator) < 0.2, ignored, y)


@pytest.mark.parametrize("num_batches", [1, 63, 64, 65, 150])
def test_a_confusion_of_many_small_batches_is_that_of_scikit_learn(num_batches):
    confusion, labels, guesses = Confusion(CLASSES), [], []
    for pred, y in epoch(num_batches):
        confusion.update(pred, y)
        labels += y.tolist()
        guesses += pred.argmax(1).tolist()
        for part in (y, pred):
            part.fill_(0)  # the loader fills its memory again
    expected = sk.confusion_matrix(labels, guesses, labels=range(CLASSES))
    assert confusion.counts_CC.tolist() == expected.tolist()
    assert confusion.state_dict()["cells"][:-1].tolist() == expected.flatten().tolist()


def test_classes_that_were_given_as_numbers_may_be_overwritten_too():
    confusion, pred, y = Confusion(2), torch.tensor([0, 1]), torch.tensor([1, 1])
    confusion.update(pred, y)
    pred.fill_(0)
    y.fill_(0)
    assert confusion.counts_CC.tolist() == [[0, 0], [1, 1]]


def test_large_batches_do_not_wait_and_ignored_or_wrong_labels_are_noticed_whenever_they_came():
    confusion = Confusion(2).update(torch.zeros(1, 2, 300, 300), torch.zeros(1, 300, 300, dtype=torch.uint8))
    assert not confusion._waiting and confusion.counts_CC.tolist() == [[90_000, 0], [0, 0]]
    confusion = Confusion(CLASSES, ignore_index=255)
    batches = list(epoch(70, ignored=255))
    for pred, y in batches:
        confusion.update(pred, y.to(torch.uint8))
    assert confusion.counts_CC.sum() == sum(int((y != 255).sum()) for _, y in batches)
    confusion = Confusion(CLASSES)
    for pred, y in batches:
        confusion.update(pred, y)
    with pytest.raises(ValueError, match="outside"):
        confusion.compute()


def test_copies_sums_and_restored_states_do_not_share_what_waits():
    first, second = (Confusion(CLASSES).update(*batch) for batch in epoch(2))
    total, alike = first + second, copy.copy(first)
    alike.update(*next(epoch(1)))
    assert [int(part.counts_CC.sum()) for part in (first, second, total, alike)] == [3, 3, 6, 6]
    restored = Confusion(CLASSES)
    restored.load_state_dict(total.state_dict())
    restored.update(*next(epoch(1)))
    restored.merge(first)
    assert restored.counts_CC.sum() == 12 and total.counts_CC.sum() == 6
    total.reset()
    assert total.counts_CC.sum() == 0


def test_ten_scores_of_one_confusion_are_summed_up_once_for_a_batch(monkeypatch):
    sums, add = [], Confusion.__add__
    monkeypatch.setattr(Confusion, "__add__", lambda self, other: sums.append(1) or add(self, other))
    metrics, whole = EpochMetrics(), Confusion(CLASSES)
    for pred, y in epoch(10):
        confusion = Confusion(CLASSES).update(pred, y)
        whole.update(pred, y)
        metrics.update({"matrix": confusion, "acc": confusion.accuracy(), "f1": confusion.f1(), "iou": confusion.iou(),
                        "f1 of each": confusion.f1(None), "kappa": confusion.kappa()}, 3)
    assert len(sums) == 9
    result = metrics.compute()
    assert result["matrix"].tolist() == whole.counts_CC.tolist()
    for name, score in (("acc", whole.accuracy()), ("f1", whole.f1()), ("iou", whole.iou()), ("kappa", whole.kappa())):
        assert result[name] == score.compute()
    assert [name for name in result if name.startswith("f1 of")] == [f"f1 of each/{number}" for number in range(CLASSES)]


def test_scores_of_different_confusions_stay_apart():
    metrics = EpochMetrics()
    for _, y in epoch(5):
        right, wrong = Confusion(CLASSES).update(y, y), Confusion(CLASSES).update((y + 1) % CLASSES, y)
        metrics.update({"right": right.accuracy(), "wrong": wrong.accuracy()}, 3)
    assert metrics.compute() == {"right": 1.0, "wrong": 0.0}


def test_a_mean_over_many_batches_is_the_same_sum_read_at_once_or_at_the_end():
    class OnDevice(torch.Tensor):
        """One on the CPU is read at once."""

    values = torch.rand(200, generator=torch.Generator().manual_seed(2))
    metrics, alone = EpochMetrics(), Mean()
    for number, value in enumerate(values):
        metrics.update({"tensor": value, "number": number, "double": value.double() / 3}, number % 5)
        alone.update(value.as_subclass(OnDevice), number % 5)
    assert not metrics.totals["tensor"].pending and len(alone.pending) == 200
    weights = [number % 5 for number in range(200)]
    result = metrics.compute()
    assert result["tensor"] == alone.compute()
    assert result["number"] == sum(n * w for n, w in enumerate(weights)) / sum(weights)
    thirds = (values.double() / 3).tolist()
    assert result["double"] == pytest.approx(sum(v * w for v, w in zip(thirds, weights)) / sum(weights))


def test_values_on_a_device_wait_for_the_end():
    total = Mean()
    for _ in range(3):
        total.update(torch.zeros((), device="meta"))  # whoever asks for its value gets an error
    assert len(total.pending) == 3


def test_scores_per_class_have_the_names_of_an_empty_confusion_of_the_same_kind():
    confusion = Confusion(2, names=["cat", "dog"]).update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    score = confusion.fresh().f1(None)
    assert isinstance(score, Score) and score.args[1] == ["cat", "dog"]
    assert Confusion(3).names_of_classes == ["0", "1", "2"]
    with pytest.raises(ValueError, match="one entry for each of 3 classes"):
        Confusion(3, names=["a"])


def test_scores_of_one_confusion_and_of_several_count_each_batch_once():
    """Which scores share a confusion may differ from batch to batch, and one may be absent."""
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randint(3, (8,), generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(5)]
    total = EpochMetrics()
    for number, (pred, y) in enumerate(batches):
        one, other = Confusion(3).update(pred, y), Confusion(3).update(pred, y)
        scores = {"acc": one.accuracy(), "f1": (other if number == 2 else one).f1(), "kappa": other.kappa(),
                  "iou": one.iou()}
        if number == 3:
            del scores["f1"]
        total.update(scores, 8)
        assert one.counts_CC.sum() == other.counts_CC.sum() == 8  # what metric() keeps is as it was
    all_of_them, without_one = Confusion(3), Confusion(3)
    for number, (pred, y) in enumerate(batches):
        all_of_them.update(pred, y)
        if number != 3:
            without_one.update(pred, y)
    expected = {"acc": all_of_them.accuracy(), "f1": without_one.f1(), "kappa": all_of_them.kappa(),
                "iou": all_of_them.iou()}
    assert total.compute() == {name: score.compute() for name, score in expected.items()}
