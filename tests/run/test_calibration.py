"""Ranges of 8-bit numbers against NumPy, SciPy and loops written out, on small arrays."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy as divergence_of

from template.run.export.calibration import RANGES, Histogram, divergence, rounded


def histogram_of(*parts):
    histogram = Histogram()
    for part in parts:
        histogram.add(torch.as_tensor(part, dtype=torch.float32))
    return histogram


@pytest.fixture
def normal():
    return np.random.default_rng(0).normal(size=20_000).astype(np.float32)


def test_a_histogram_counts_as_numpy_does_in_any_order_of_the_batches(normal):
    parts = [normal[:100], 40 * normal[100:200], normal[200:]]
    one, other = histogram_of(*parts), histogram_of(*reversed(parts))
    edges = (np.arange(4097) - 2048) * one.width
    assert np.array_equal(one.counts, np.histogram(np.concatenate(parts), edges)[0])
    assert np.array_equal(one.counts, other.counts) and one.width == other.width
    assert one.low == min(p.min() for p in parts) and one.high == max(p.max() for p in parts)


def test_max_keeps_every_value_and_zero():
    assert RANGES["max"](histogram_of([1.0, 2.5])) == (0.0, 2.5)
    assert RANGES["max"](histogram_of([-3.0, 2.0], [4.0])) == (-3.0, 4.0)


@pytest.mark.parametrize("name", RANGES)
def test_zeros_alone_have_the_range_zero(name):
    assert RANGES[name](histogram_of(torch.zeros(9))) == (0.0, 0.0)


def test_percentile_is_numpys_quantile_to_a_bin(normal):
    two_sided, one_sided = histogram_of(normal), histogram_of(abs(normal))
    assert RANGES["percentile"](two_sided, 99.0) == pytest.approx(np.quantile(normal, [0.005, 0.995]),
                                                                  abs=two_sided.width)
    assert RANGES["percentile"](one_sided, 99.0) == pytest.approx((0.0, np.quantile(abs(normal), 0.99)), abs=one_sided.width)
    assert RANGES["percentile"](two_sided, 100.0) == RANGES["max"](two_sided)


def test_mse_finds_the_range_that_a_search_over_the_values_themselves_finds(normal):
    values = np.append(normal, 60.0)  # one outlier
    low, high = RANGES["mse"](histogram_of(values))
    errors = {part: ((values - rounded(values, values.min() * part, 60.0 * part)) ** 2).mean()
              for part in np.arange(1, 129) / 128}
    best = min(errors, key=errors.get)
    assert best < 1 and high < 60.0
    assert ((values - rounded(values, low, high)) ** 2).mean() <= 1.02 * errors[best] < errors[1.0]


def test_mse_of_few_exact_levels_keeps_the_whole_range():
    assert RANGES["mse"](histogram_of(np.arange(256))) == (0.0, 255.0)


def test_rounding_is_that_of_torch(normal):
    scale, zero = (3.0 + 1.5) / 255, round(1.5 / ((3.0 + 1.5) / 255))
    expected = torch.fake_quantize_per_tensor_affine(torch.tensor(normal), scale, zero, 0, 255)
    assert np.allclose(rounded(normal, -1.5, 3.0), expected.numpy(), atol=1e-6)


def loops(counts, end, levels):
    """The divergence as the talk describes it, bin by bin."""
    reference = [float(count) for count in counts[:end]]
    reference[-1] += sum(counts[end:])
    spread = [0.0] * end
    for level in range(levels):
        own = [i for i in range(end) if i * levels // end == level and counts[i] > 0]
        for i in own:
            spread[i] = sum(counts[j] for j in own) / len(own)
    return divergence_of(np.array(reference), np.maximum(np.array(spread) / sum(spread), 1e-12))


def test_entropy_minimizes_the_divergence_that_loops_and_scipy_compute():
    counts = np.random.default_rng(1).poisson(100 * np.exp(-np.arange(60) / 6))
    for end in (16, 17, 30, 60):
        assert divergence(counts, end, 16) == pytest.approx(loops(counts, end, 16), rel=1e-3)


def test_entropy_clips_a_rare_outlier_and_keeps_a_range_that_is_evenly_filled(normal):
    low, high = RANGES["entropy"](histogram_of(normal, [60.0]))
    assert 2.0 < high < 10.0 and low == normal.min()
    even = np.random.default_rng(2).uniform(0, 1, 200_000)
    assert RANGES["entropy"](histogram_of(even))[1] > 0.95


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="inf or nan inside of the model"):
        histogram_of([1.0, float("inf")])
