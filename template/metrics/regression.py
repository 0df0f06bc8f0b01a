"""How far predicted numbers are from true ones: ``Regression``.

    regression = Regression().update(pred, y)
    return {"rmse": regression.rmse(), "r2": regression.r2()}
    return {"regression": regression}              # all of them, by the names mae, mse, rmse, r2 and pearson
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from .accumulators import Metric, Score

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on


class Regression(Metric):
    """MAE, MSE, RMSE, R² and Pearson's correlation in one pass: nothing but eight sums is kept. They are sums of distances
    from the mean, so that values far from 0 lose no digits.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    pending: list[tuple[int, torch.Tensor]]  # (count, other sums) of batches, not yet brought to the host
    sums_of_all: list[Any]  # count, means of pred and y, their squares, product, |error|, error²

    names = ("mae", "mse", "rmse", "r2", "pearson")

    def update(self, pred: torch.Tensor, y: torch.Tensor) -> Self:
        """Add one batch; nothing waits for the device.

        Args:
            pred, y: numbers of one shape; [B, 1] and [B] go together.

        Raises:
            ValueError: the shapes would broadcast, or do not fit.
        """
        if pred.shape != y.shape and pred.squeeze(-1).shape != y.squeeze(-1).shape:
            raise ValueError("Regression takes pred and y of one shape; got pred "
                             f"{tuple(pred.shape)} and y {tuple(y.shape)}.")
        if y.numel():
            wide = torch.float32 if pred.device.type == "mps" else torch.float64  # mps has no float64
            p_N, y_N = pred.detach().reshape(-1).to(wide), y.detach().reshape(-1).to(wide)
            error_N, mean_p, mean_y = p_N - y_N, p_N.mean(), y_N.mean()
            p_N, y_N = p_N - mean_p, y_N - mean_y
            sums = [mean_p, mean_y, p_N @ p_N, y_N @ y_N, p_N @ y_N, error_N.abs().sum(), error_N @ error_N]
            self.pending.append((y.numel(), torch.stack(sums)))
        return self

    def fetch(self) -> None:
        """Bring what came since the last call to the host."""
        pending, self.pending = self.pending, []
        numbers = torch.stack([sums for _, sums in pending]).tolist() if pending else []
        for (count, _), sums in zip(pending, numbers):
            self._add([count, *sums])

    def _add(self, other):
        """Two sets of sums as one."""
        count, others = self.sums_of_all[0], other[0]
        if not count or not others:
            self.sums_of_all = list(other) if others else self.sums_of_all
            return
        total = count + others
        (_, mean_p, mean_y, *mine), (_, other_p, other_y, *theirs) = self.sums_of_all, other
        step_p, step_y, weight = other_p - mean_p, other_y - mean_y, count * others / total
        between = [step_p * step_p * weight, step_y * step_y * weight, step_p * step_y * weight, 0.0, 0.0]
        self.sums_of_all = [total, mean_p + step_p * others / total, mean_y + step_y * others / total,
                            *(a + b + c for a, b, c in zip(mine, theirs, between))]

    def merge(self, other: Regression) -> None:
        if other.sums_of_all[0]:
            self.fetch()
            self._add(other.sums_of_all)
        self.pending += other.pending

    def reset(self) -> None:
        self.pending = []
        self.sums_of_all = [0, *[0.0] * 7]

    def state_dict(self) -> dict[str, Any]:
        self.fetch()
        return {"sums": list(self.sums_of_all)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self.sums_of_all = list(state["sums"])

    def fresh(self) -> Regression:
        return Regression()

    def evidence(self) -> list[Any]:
        self.fetch()
        return self.sums_of_all

    def compute(self) -> dict[str, float]:
        return {name: _FORMULAS[name](self.evidence()) for name in self.names}

    def mae(self) -> Score:
        return Score(self, _mae)

    def mse(self) -> Score:
        return Score(self, _mse)

    def rmse(self) -> Score:
        return Score(self, _rmse)

    def r2(self) -> Score:
        """1 minus the share of the variance that is left; NaN for less than two samples. Where all labels are alike, 1 if
        they are met, else 0, as in scikit-learn."""
        return Score(self, _r2)

    def pearson(self) -> Score:
        """Correlation, -1 to 1; NaN where predictions or labels are all alike."""
        return Score(self, _pearson)


def _mae(sums):
    return sums[6] / sums[0] if sums[0] else math.nan


def _mse(sums):
    return sums[7] / sums[0] if sums[0] else math.nan


def _rmse(sums):
    return math.sqrt(_mse(sums))


def _r2(sums):
    count, variance, left = sums[0], sums[4], sums[7]
    if count < 2:
        return math.nan
    return 1 - left / variance if variance else float(not left)


def _pearson(sums):
    _, _, _, of_pred, of_y, product, *_ = sums
    if not of_pred or not of_y:
        return math.nan
    return max(-1.0, min(1.0, product / math.sqrt(of_pred) / math.sqrt(of_y)))


_FORMULAS = {"mae": _mae, "mse": _mse, "rmse": _rmse, "r2": _r2, "pearson": _pearson}
