"""The scores of a ``Confusion`` beside F1, against scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from accumulated import WAYS, split, values
from hypothesis import given, settings
from hypothesis import strategies as st

from template import Confusion
from template.metrics.epoch import EpochMetrics

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning",
                                        "ignore:y_pred contains classes not in y_true", "ignore::RuntimeWarning",
                                        "ignore:A single label was found")


@st.composite
def labels(draw):
    """(number of classes, predicted and true classes, batch size)."""
    num_classes, count = draw(st.integers(2, 5)), draw(st.integers(1, 30))
    numbers = st.lists(st.integers(0, num_classes - 1), min_size=count, max_size=count).map(torch.tensor)
    return num_classes, draw(numbers), draw(numbers), draw(st.integers(1, 10))


def specificities(y, pred, classes):
    """Recall of "not this class"."""
    return [sk.recall_score(y != c, pred != c, zero_division=0) for c in classes]


def expected(y, pred, num_classes):
    classes = range(num_classes)
    seen = [c for c in classes if c in y or c in pred]
    options = {"labels": list(classes), "zero_division": 0}
    return {
        "balanced": sk.balanced_accuracy_score(y, pred),
        "matthews": sk.matthews_corrcoef(y, pred),
        "iou macro": sk.jaccard_score(y, pred, average="macro", labels=seen, zero_division=0),
        "iou micro": sk.jaccard_score(y, pred, average="micro", **options),
        "iou weighted": sk.jaccard_score(y, pred, average="weighted", **options),
        "dice": sk.f1_score(y, pred, average="macro", labels=seen, zero_division=0),
        "specificity": np.mean(specificities(y, pred, seen)),
        **{f"iou/{c}": value for c, value in enumerate(sk.jaccard_score(y, pred, average=None, **options))},
        **{f"f1/{c}": value for c, value in enumerate(sk.f1_score(y, pred, average=None, **options))},
        **{f"specificity/{c}": value for c, value in enumerate(specificities(y, pred, classes))},
        "kappa": sk.cohen_kappa_score(y, pred, labels=list(classes)),
        "linear": sk.cohen_kappa_score(y, pred, labels=list(classes), weights="linear"),
        "quadratic": sk.cohen_kappa_score(y, pred, labels=list(classes), weights="quadratic"),
    }


def scores_of(confusion):
    return {"balanced": confusion.balanced_accuracy(), "matthews": confusion.matthews(),
            **{f"iou {average}": confusion.iou(average) for average in ("macro", "micro", "weighted")},
            "dice": confusion.dice(), "specificity": confusion.specificity(), "iou": confusion.iou(None),
            "f1": confusion.f1(None), "specificity of each": confusion.specificity(None), "kappa": confusion.kappa(),
            "linear": confusion.kappa("linear"), "quadratic": confusion.kappa("quadratic")}


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(labels())
def test_all_scores_equal_scikit_learn(case):
    num_classes, pred, y, size = case
    epoch, confusion = EpochMetrics(), Confusion(num_classes)
    for pred_B, y_B in split((pred, y), size):
        epoch.update(scores_of(confusion.update(pred_B, y_B)), 1)
    computed = {name.replace("specificity of each", "specificity"): value for name, value in epoch.compute().items()}
    assert computed == pytest.approx(expected(y.numpy(), pred.numpy(), num_classes), rel=1e-9, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("score", ["matthews", "balanced_accuracy", "kappa", "iou", "specificity"])
def test_they_are_the_same_however_the_epoch_is_split(way, score):
    generator = torch.Generator().manual_seed(4)
    pred, y = torch.randint(3, (2, 41), generator=generator)
    whole = getattr(Confusion(3).update(pred, y), score)().compute()
    found = values(lambda: getattr(Confusion(3), score)(), split((pred, y), 7), way)
    assert found == {"m": pytest.approx(whole, rel=1e-12)}


@pytest.mark.parametrize("way", WAYS)
def test_labels_to_ignore_count_nowhere(way):
    generator = torch.Generator().manual_seed(4)
    pred, y = torch.randint(3, (2, 41), generator=generator)
    y[::4] = 255
    found = values(lambda: Confusion(3, ignore_index=255), split((pred, y), 7), way)["m"]
    assert found.tolist() == sk.confusion_matrix(y[y != 255], pred[y != 255], labels=[0, 1, 2]).tolist()


def test_other_labels_outside_are_still_an_error():
    with pytest.raises(ValueError, match="saw 1 labels or predictions outside"):
        Confusion(3, ignore_index=255).update(torch.tensor([0, 1, 2]), torch.tensor([0, 255, 3])).compute()


def test_classes_have_names():
    confusion = Confusion(2, names=["cat", "dog"]).update(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
    epoch = EpochMetrics()
    epoch.update({"iou": confusion.iou(None), "acc": confusion.accuracy()}, 3)
    assert epoch.compute() == {"iou/cat": 0.5, "iou/dog": 0.5, "acc": pytest.approx(2 / 3)}
    with pytest.raises(ValueError, match=r"one entry for each of 3 classes, got \['cat', 'dog'\]"):
        Confusion(3, names=["cat", "dog"])


@pytest.mark.parametrize("ask, reason", [
    (lambda c: c.iou("mean"), "average must be one of"), (lambda c: c.specificity("binary"), "needs two classes, got 3"),
    (lambda c: c.kappa("cubic"), "weights must be None, 'linear' or 'quadratic', got 'cubic'"),
])
def test_unknown_words_are_refused(ask, reason):
    with pytest.raises(ValueError, match=reason):
        ask(Confusion(3))


def test_nothing_seen_is_nan():
    confusion = Confusion(3)
    scores = confusion.balanced_accuracy, confusion.matthews, confusion.kappa, confusion.iou, confusion.specificity
    assert all(np.isnan(score().compute()) for score in scores)
