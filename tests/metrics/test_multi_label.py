"""``MultiLabel`` against scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from accumulated import WAYS, split, values
from hypothesis import given, settings
from hypothesis import strategies as st

from template import MultiLabel
from template.metrics.epoch import EpochMetrics

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")


def scores_of(multi):
    return {"acc": multi.accuracy(), "exact": multi.exact_match(), "micro": multi.f1("micro"),
            "weighted": multi.f1("weighted"), "precision": multi.precision("micro"), "iou": multi.iou("micro"),
            "f1": multi.f1(None), "recall": multi.recall(None), "macro": multi.f1("macro"),
            "macro_precision": multi.precision("macro"), "macro_iou": multi.iou("macro")}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 25), st.integers(1, 5), st.integers(1, 7))
def test_all_scores_equal_scikit_learn(seed, count, num_labels, size):
    generator = torch.Generator().manual_seed(seed)
    pred, y = torch.randn(count, num_labels, generator=generator), torch.randint(2, (count, num_labels), generator=generator)
    epoch, multi = EpochMetrics(), MultiLabel(num_labels)
    for pred_B, y_B in split((pred, y), size):
        epoch.update(scores_of(multi.update(pred_B, y_B)), 1)
    said, true = (pred > 0).int().numpy(), y.numpy()
    options = {"zero_division": 0}
    if num_labels == 1:  # scikit-learn takes a column for classes
        said, true = said[:, 0], true[:, 0]
        options |= {"pos_label": 1, "average": "binary"}
    expected = {"acc": 1 - sk.hamming_loss(true, said), "exact": sk.accuracy_score(true, said)}
    if num_labels > 1:
        expected |= {"micro": sk.f1_score(true, said, average="micro", **options),
                     "precision": sk.precision_score(true, said, average="micro", **options),
                     "iou": sk.jaccard_score(true, said, average="micro", **options)}
        expected |= {"macro": sk.f1_score(true, said, average="macro", **options),
                     "macro_precision": sk.precision_score(true, said, average="macro", **options),
                     "macro_iou": sk.jaccard_score(true, said, average="macro", **options)}
        expected |= {f"f1/{i}": value for i, value in enumerate(sk.f1_score(true, said, average=None, **options))}
        expected |= {f"recall/{i}": value for i, value in enumerate(sk.recall_score(true, said, average=None, **options))}
        if true.any():
            expected["weighted"] = sk.f1_score(true, said, average="weighted", **options)
    found = epoch.compute()
    if not (said.any() or true.any()):
        expected.pop("iou", None)  # of nothing
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("score", ["accuracy", "exact_match", "f1", "specificity", "balanced_accuracy", "dice"])
def test_they_are_the_same_however_the_epoch_is_split(way, score):
    generator = torch.Generator().manual_seed(4)
    pred, y = torch.randn(41, 4, generator=generator), torch.randint(2, (41, 4), generator=generator).float()
    y[::5, 1] = -1
    whole = getattr(MultiLabel(4, ignore_index=-1).update(pred, y), score)().compute()
    found = values(lambda: getattr(MultiLabel(4, ignore_index=-1), score)(), split((pred, y), 7), way)
    assert found == {"m": pytest.approx(whole, rel=1e-12)}
    known = y[:, 1] != -1
    if score == "balanced_accuracy":
        columns = [(y[:, i], pred[:, i] > 0) if i != 1 else (y[known, 1], pred[known, 1] > 0) for i in range(4)]
        assert whole == pytest.approx(np.mean([sk.balanced_accuracy_score(*column) for column in columns]))


def test_a_label_that_never_occurs_counts_with_its_zero_and_one_that_is_nowhere_known_does_not():
    y = torch.tensor([[1, 0, -1], [0, 0, -1], [1, 0, -1]])
    pred = torch.tensor([[1.0, -1, 1], [-1, -1, 1], [-1, -1, 1]])
    true, said = y[:, :2].numpy(), (pred[:, :2] > 0).int().numpy()
    found = MultiLabel(3, ignore_index=-1).update(pred, y)
    assert found.f1("macro").compute() == pytest.approx(sk.f1_score(true, said, average="macro", zero_division=0))
    assert found.specificity("macro").compute() == 1.0


def test_probabilities_decisions_and_pixels():
    y = torch.tensor([[1, 0], [0, 1]])
    pred = torch.tensor([[0.6, 0.4], [0.4, 0.6]])
    assert MultiLabel(2, threshold=0.5).update(pred, y).exact_match().compute() == 1
    assert MultiLabel(2).update(pred > 0.5, y).accuracy().compute() == 1
    pixels = (pred > 0.5).long()[..., None].expand(2, 2, 3), y[..., None].expand(2, 2, 3)
    assert MultiLabel(2).update(*pixels).compute().tolist() == [[[3, 0], [0, 3]]] * 2


def test_what_does_not_fit_is_refused_in_words():
    with pytest.raises(ValueError, match=r"one shape \[B, 2, …\]; got pred \(3, 2\) and y \(3,\)"):
        MultiLabel(2).update(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="saw 1 labels that are neither 0 nor 1"):
        MultiLabel(2).update(torch.zeros(1, 2), torch.tensor([[0, 2]])).compute()
    with pytest.raises(ValueError, match="classes that exclude each other"):
        MultiLabel(2).kappa()
