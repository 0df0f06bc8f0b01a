"""``Regression`` against scikit-learn and scipy, also where values are far from 0."""

import math

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from accumulated import WAYS, split, values
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from template import Regression


def expected(pred, y):
    pred, y = pred.double().numpy(), y.double().numpy()
    return {"mae": sk.mean_absolute_error(y, pred), "mse": sk.mean_squared_error(y, pred),
            "rmse": sk.root_mean_squared_error(y, pred), "r2": sk.r2_score(y, pred), "pearson": pearsonr(pred, y).statistic}


@st.composite
def cases(draw):
    count = draw(st.integers(3, 40))
    seed, offset = draw(st.integers(0, 10**6)), draw(st.sampled_from([0.0, 1.0, -1e3, 1e7]))
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(count, generator=generator, dtype=torch.float64)
    pred = draw(st.sampled_from([-1.0, 0.5, 1.0])) * y + torch.randn(count, generator=generator, dtype=torch.float64)
    return pred + offset, y + offset, draw(st.integers(1, 12))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(cases())
def test_they_equal_scikit_learn_and_scipy_in_one_pass(case):
    pred, y, size = case
    for way in ("anew", "once", "restored"):
        assert values(Regression, split((pred, y), size), way) == pytest.approx(expected(pred, y), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_they_are_the_same_however_the_epoch_is_split(way, offset):
    """A sum of squares would have lost all digits at 1e9."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(50, generator=generator, dtype=torch.float64) + offset
    pred = y + 0.3 * torch.randn(50, generator=generator, dtype=torch.float64)
    assert values(Regression, split((pred, y), 7), way) == pytest.approx(expected(pred, y), rel=1e-6)
    naive = 1 - ((pred - y)**2).sum() / ((y**2).sum() - y.sum()**2 / 50)
    assert offset == 0 or abs(naive - expected(pred, y)["r2"]) > 1e-3
    found = values(lambda: Regression().r2(), split((pred, y), 7), way)
    assert found == pytest.approx({"m": expected(pred, y)["r2"]}, rel=1e-6)


def test_half_precision_is_summed_in_double_precision():
    y = torch.full((5000,), 100.0).half()
    found = Regression().update(y + 1, y).compute()
    assert found["mae"] == found["mse"] == 1.0


def test_columns_and_rows_do_not_broadcast():
    y = torch.arange(4.0)
    assert Regression().update(y[:, None] + 1, y).mae().compute() == 1
    with pytest.raises(ValueError, match=r"one shape; got pred \(4, 4\) and y \(4,\)"):
        Regression().update(y + y[:, None], y)


def test_what_has_no_value():
    assert all(map(math.isnan, Regression().compute().values()))
    alike = Regression().update(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0])).compute()
    assert alike["r2"] == 0 == sk.r2_score([3.0, 3.0], [1.0, 2.0]) and math.isnan(alike["pearson"])
    assert Regression().update(torch.tensor([3.0, 3.0]), torch.tensor([3.0, 3.0])).r2().compute() == 1
    empty = Regression().update(torch.zeros(0), torch.zeros(0))
    empty.merge(Regression().update(torch.tensor([1.0]), torch.tensor([3.0])))
    assert empty.mae().compute() == 2 and np.isnan(empty.r2().compute())
