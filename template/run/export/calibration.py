"""Which range of values the 256 numbers of an 8-bit tensor stand for: its histogram, and four ways to choose from it.

    histogram = Histogram()
    for batch in batches:
        histogram.add(values)
    low, high = RANGES["entropy"](histogram)

Each way answers what to do with rare large values: keep them, and all others get coarser steps, or clip them. The ranges are
for unsigned 8-bit numbers with a zero point, as activations get them. Nothing here knows of models; needs numpy alone.
"""

from __future__ import annotations

import numpy as np
import torch

LEVELS = 256
_BINS = 2048     # on each side of 0
_CANDIDATES = 128


class Histogram:
    """Of all values that were added, in bins whose width is a power of two, so that it does not depend on their order.

    Attributes:
        width: of a bin.
        counts: [2 * 2048], the bin ``i`` from ``(i - 2048) * width`` on.
        low, high: the extreme values, and at most and at least 0, which every range holds.
    """

    def __init__(self) -> None:
        self.width, self.counts = 0.0, np.zeros(2 * _BINS, dtype=np.int64)
        self.low = self.high = 0.0

    def add(self, values: torch.Tensor) -> None:
        values = values.detach().float().flatten()
        if not values.numel():
            return
        low, high = (bound.item() for bound in torch.aminmax(values))
        if not np.isfinite([low, high]).all():
            raise ValueError("Calibration needs finite values, and a batch led to inf or nan inside of the model. Look at "
                             "the data, or at layers that overflow.")
        largest = max(-low, high)
        if largest:
            self._widen(largest)
            index = torch.floor(values / self.width).long().clamp_(-_BINS, _BINS - 1) + _BINS
            self.counts += torch.bincount(index, minlength=2 * _BINS).cpu().numpy()
        else:
            self.counts[_BINS] += values.numel()
        self.low, self.high = min(self.low, low), max(self.high, high)

    def _widen(self, largest):
        needed = 2.0 ** np.ceil(np.log2(largest / _BINS))
        if not self.width:
            self.width = needed
        while self.width < needed:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros_like(self.counts)
            self.counts[_BINS // 2:_BINS // 2 + _BINS] = pairs
            self.width *= 2

    @property
    def centres(self) -> np.ndarray:
        return (np.arange(2 * _BINS) - _BINS + 0.5) * self.width


def largest(histogram: Histogram) -> tuple[float, float]:
    """All values that were seen."""
    return histogram.low, histogram.high


def percentile(histogram: Histogram, percent: float = 99.99) -> tuple[float, float]:
    """So many percent of the values: the same share is cut off at both ends, where there are values on both sides of 0.

    Source: Wu et al., "Integer Quantization for Deep Learning Inference", 2020, section 5.1 (percentile calibration).
    """
    total = histogram.counts.sum()
    if not total or not histogram.width:
        return largest(histogram)
    two_sided = histogram.low < 0 < histogram.high
    cut = (1 - percent / 100) * total / (2 if two_sided else 1)
    edges = (np.arange(2 * _BINS + 1) - _BINS) * histogram.width
    below = np.concatenate([[0], np.cumsum(histogram.counts)])
    high = edges[np.searchsorted(below, total - cut)] if histogram.high > 0 else 0.0
    low = edges[max(np.searchsorted(below, cut, side="right") - 1, 0)] if histogram.low < 0 else 0.0
    return float(max(min(low, 0.0), histogram.low)), float(min(max(high, 0.0), histogram.high))


def mean_squared_error(histogram: Histogram) -> tuple[float, float]:
    """The range whose rounding and clipping change the values least, of 128 parts of the whole range.

    Source: Nagel et al., "A White Paper on Neural Network Quantization", 2021, section 3.1 (MSE range setting).
    """
    low, high = largest(histogram)
    if not histogram.width or low == high:
        return low, high
    used = histogram.counts > 0
    values, counts = histogram.centres[used], histogram.counts[used]
    best, best_error = (low, high), np.inf
    for part in np.arange(_CANDIDATES, 0, -1) / _CANDIDATES:
        error = (counts * (values - rounded(values, low * part, high * part)) ** 2).sum()
        if error < best_error:
            best, best_error = (float(low * part), float(high * part)), error
    return best


def rounded(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """``values`` as 8-bit numbers of this range say them."""
    scale = (high - low) / (LEVELS - 1)
    zero = round(-low / scale)
    return (np.clip(np.round(values / scale) + zero, 0, LEVELS - 1) - zero) * scale


def entropy(histogram: Histogram) -> tuple[float, float]:
    """The threshold of ``|value|`` whose 8-bit distribution tells least from the whole one, by Kullback-Leibler divergence.

    Values on one side of 0 have all 256 levels there; on two sides, 128 for the absolute values.

    Source: Migacz, "8-bit Inference with TensorRT", GTC 2017 (calibration by entropy).
    """
    low, high = largest(histogram)
    if not histogram.width or low == high:
        return low, high
    absolute = histogram.counts[_BINS:] + histogram.counts[_BINS - 1::-1]
    levels = LEVELS // 2 if low < 0 < high else LEVELS
    absolute[0] = absolute[1]  # the zeros of a ReLU are exact in every range, and would drown the rest
    if not absolute.any():
        return low, high
    last = int(np.flatnonzero(absolute)[-1]) + 1
    if last <= levels:
        return low, high
    ends = np.unique(np.linspace(levels, last, min(_CANDIDATES, last - levels + 1)).round().astype(int))
    found = [divergence(absolute, int(end), levels) for end in ends]
    threshold = float(ends[int(np.argmin(found))] * histogram.width)
    return max(low, -threshold), min(high, threshold)


def divergence(counts: np.ndarray, end: int, levels: int) -> float:
    """Of the first ``end`` bins, the rest clipped into the last of them, from the same in ``levels`` levels."""
    reference = counts[:end].astype(float)
    kept = reference.copy()                      # without the clipped values, as the levels are built
    reference[-1] += counts[end:].sum()
    place = np.arange(end) * levels // end       # the level of each bin
    is_used = kept > 0
    total, used = np.bincount(place, kept, levels), np.bincount(place, is_used, levels)
    spread = np.where(is_used, (total / np.maximum(used, 1))[place], 0.0)
    p, q = reference / reference.sum(), spread / max(spread.sum(), 1e-300)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))).sum())


RANGES = {"max": largest, "percentile": percentile, "mse": mean_squared_error, "entropy": entropy}
