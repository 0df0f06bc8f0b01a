"""``BinaryScores`` against scikit-learn and scipy."""

import math

import pytest
import sklearn.metrics as sk
import torch
from accumulated import WAYS, split, values
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from template import BinaryScores


@st.composite
def cases(draw):
    """Scores, many of them alike, and labels of both classes."""
    count = draw(st.integers(2, 40))
    scores = draw(st.lists(st.one_of(st.integers(-3, 3), st.floats(-1e6, 1e6, width=32)), min_size=count, max_size=count))
    y = draw(st.lists(st.integers(0, 1), min_size=count, max_size=count).filter(lambda y: len(set(y)) == 2))
    return torch.tensor(scores, dtype=torch.float32), torch.tensor(y), draw(st.integers(1, 10))


def expected(scores, y):
    scores, y = scores.numpy(), y.numpy()
    return {"auroc": sk.roc_auc_score(y, scores), "average_precision": sk.average_precision_score(y, scores),
            "ks": ks_2samp(scores[y == 1], scores[y == 0]).statistic}


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(cases())
def test_they_equal_scikit_learn_and_scipy_also_where_scores_are_alike(case):
    scores, y, size = case
    for way in ("anew", "once"):
        assert values(BinaryScores, split((scores, y), size), way) == pytest.approx(expected(scores, y), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_they_are_the_same_however_the_epoch_is_split(way, dtype):
    generator = torch.Generator().manual_seed(1)
    scores, y = torch.randn(50, generator=generator).to(dtype), torch.randint(2, (50,), generator=generator)
    assert values(BinaryScores, split((scores, y), 7), way) == pytest.approx(expected(scores, y), rel=1e-9)
    assert values(lambda: BinaryScores().ks(), split((scores, y), 7), way) == {"m": pytest.approx(expected(scores, y)["ks"])}


def test_single_scores_share_what_is_kept():
    scores = BinaryScores().update(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    assert scores.auroc().compute() == 0.75 and scores.average_precision().compute() == pytest.approx(0.8333333)
    assert scores.ks().compute() == 0.5


@pytest.mark.parametrize("shape", ["[B, 1]", "[B, 2]", "labels as floats", "bool"])
def test_shapes_and_dtypes_that_mean_the_same(shape):
    generator = torch.Generator().manual_seed(1)
    scores, y = torch.randn(50, generator=generator), torch.randint(2, (50,), generator=generator)
    pred = {"[B, 1]": scores[:, None], "[B, 2]": torch.stack([torch.zeros(50), scores], 1)}.get(shape, scores)
    given_y = {"[B, 1]": y[:, None], "labels as floats": y.float(), "bool": y.bool()}.get(shape, y)
    assert BinaryScores().update(pred, given_y).compute() == pytest.approx(expected(scores, y))


def test_labels_to_ignore_count_nowhere_and_others_are_an_error():
    scores, y = torch.tensor([0.1, 0.9, 0.4, 0.35, 0.8]), torch.tensor([0, -100, 0, 1, 1])
    assert BinaryScores(ignore_index=-100).update(scores, y).auroc().compute() == 0.75
    with pytest.raises(ValueError, match="saw 1 labels that are neither 0 nor 1"):
        BinaryScores().update(scores, y).compute()


def test_what_cannot_be_computed_is_nan_or_an_error_in_words():
    assert all(map(math.isnan, BinaryScores().compute().values()))
    only_ones = BinaryScores().update(torch.tensor([0.2, 0.1]), torch.tensor([1, 1]))
    assert math.isnan(only_ones.auroc().compute()) and only_ones.average_precision().compute() == 1
    with pytest.raises(ValueError, match="saw 1 scores that are NaN"):
        BinaryScores().update(torch.tensor([0.2, math.nan]), torch.tensor([1, 0])).compute()
    with pytest.raises(ValueError, match=r"got pred \(4, 3\) and y \(4,\)"):
        BinaryScores().update(torch.zeros(4, 3), torch.zeros(4))
