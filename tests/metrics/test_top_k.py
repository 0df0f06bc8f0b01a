"""``TopK`` and ``Perplexity``."""

import math

import pytest
import sklearn.metrics as sk
import torch
from accumulated import WAYS, split, values
from hypothesis import given, settings
from hypothesis import strategies as st

from template import Perplexity, TopK


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(3, 6), st.integers(1, 7), st.integers(1, 4))
def test_top_k_equals_scikit_learn(seed, count, num_classes, size, k):
    generator = torch.Generator().manual_seed(seed)
    pred, y = torch.randn(count, num_classes, generator=generator), torch.randint(num_classes, (count,), generator=generator)
    k = min(k, num_classes - 1)
    expected = sk.top_k_accuracy_score(y, pred, k=k, labels=range(num_classes))
    assert values(lambda: TopK(k), split((pred, y), size), "anew") == {"m": pytest.approx(expected)}
    assert TopK(1).update(pred, y).compute() == pytest.approx(sk.accuracy_score(y, pred.argmax(1)))


@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_same_however_the_epoch_is_split_and_counts_pixels(way):
    generator = torch.Generator().manual_seed(1)
    pred, y = torch.randn(20, 5, 3, generator=generator), torch.randint(5, (20, 3), generator=generator)
    y[::3] = -100
    flat, labels = pred.movedim(1, -1).reshape(-1, 5)[(y != -100).flatten()], y[y != -100]
    expected = sk.top_k_accuracy_score(labels, flat, k=2, labels=range(5))
    found = values(lambda: TopK(2, ignore_index=-100), split((pred, y), 3), way)
    assert found == {"m": pytest.approx(expected)}


def test_equal_scores_and_nan_get_no_credit():
    assert TopK(1).update(torch.zeros(4, 4), torch.tensor([0, 1, 2, 3])).compute() == 0.25
    assert TopK(2).update(torch.zeros(4, 4), torch.tensor([0, 1, 2, 3])).compute() == 0.5
    assert TopK(3).update(torch.full((2, 4), math.nan), torch.tensor([0, 3])).compute() == 0.0
    one = torch.tensor([[math.nan, 1.0, 2.0]])
    assert [TopK(k).update(one, torch.tensor([2])).compute() for k in (1, 2)] == [0, 1]


def test_what_does_not_fit_is_refused_in_words():
    with pytest.raises(ValueError, match="saw 1 labels that are no classes"):
        TopK(1).update(torch.zeros(2, 3), torch.tensor([0, 3])).compute()
    with pytest.raises(ValueError, match=r"got pred \(2, 3\) and y \(2, 3\)"):
        TopK(1).update(torch.zeros(2, 3), torch.zeros(2, 3).long())
    with pytest.raises(ValueError, match="k must be a whole number of at least 1, got 0"):
        TopK(0)
    assert math.isnan(TopK(1).compute())


@pytest.mark.parametrize("way", WAYS)
def test_perplexity_is_that_of_all_tokens(way):
    generator = torch.Generator().manual_seed(1)
    logits, tokens = 3 * torch.randn(20, 6, 9, generator=generator), torch.randint(1, 9, (20, 6), generator=generator)
    tokens[:7, 2:] = 0  # padding: batches have different numbers of tokens
    counted = tokens != 0
    nll = sk.log_loss(tokens[counted], logits[counted].double().softmax(1), labels=range(9))
    found = values(lambda: Perplexity(ignore_index=0), split((logits, tokens), 3), way)
    assert found == {"m": pytest.approx(math.exp(nll), rel=1e-6)}
    found = values(lambda: Perplexity(ignore_index=0, class_dim=1), split((logits.movedim(-1, 1), tokens), 3), way)
    assert found == {"m": pytest.approx(math.exp(nll), rel=1e-6)}


def test_perplexity_of_nothing_and_of_other_shapes():
    assert math.isnan(Perplexity().compute())
    with pytest.raises(ValueError, match=r"got \(2, 9, 4\) and \(2, 4\)\. For logits \[B, V, T\] write"):
        Perplexity().update(torch.zeros(2, 9, 4), torch.zeros(2, 4).long())
