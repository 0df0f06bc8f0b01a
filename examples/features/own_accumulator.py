"""An accumulator of your own: is the network as sure as it is right? Sums need two methods, all else needs six.

    python examples/features/own_accumulator.py                # five seconds; needs scikit-learn for its data
    python examples/features/own_accumulator.py --resume auto  # go on where it stopped

The calibration error: Naeini et al. (2015), "Obtaining well calibrated probabilities using Bayesian binning".
"""

# %% data
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import Metric, TemplateModel, TopK, run_main, seed_everything  # noqa: E402

pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
held_out = torch.arange(len(y)) % 5 == 0
train_set, eval_set = TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])


# %% the accumulators
class Calibration(Metric):
    """How far confidence and accuracy are apart, over bins of confidence. ``compute`` may give one value or a dict."""

    sums = ("count", "sure", "right")           # begin as 0, are added over batches and processes, and are saved

    def update(self, pred, y):                  # scores [B, C] and labels [B]
        confidence, guess = pred.softmax(1).max(1)
        bins = nn.functional.one_hot((confidence * 10).long().clamp(max=9), 10).double()        # [B, 10]
        self.count = self.count + bins.sum(0)                                                   # not in place
        self.sure = self.sure + confidence.double() @ bins
        self.right = self.right + (guess == y).double() @ bins
        return self

    def compute(self):                          # once, at the end of the evaluation
        total = self.count.sum()
        return {"error": (self.sure - self.right).abs().sum() / total, "confidence": self.sure.sum() / total}


class Largest(Metric):
    """Does not add up, so that it says itself how two of them become one, and what is saved."""

    def reset(self):
        self.value = torch.tensor(-torch.inf)

    def update(self, values):
        self.value = torch.maximum(self.value.to(values.device), values.max())
        return self

    def merge(self, other):
        self.update(other.value)

    def compute(self):
        return self.value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


# %% the training
class Trainer(TemplateModel):
    def __init__(self):
        super().__init__()
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.model_list = [net]
        self.optimizer_list = [torch.optim.Adam(net.parameters(), 3e-3)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader, self.eval_loader = DataLoader(train_set, 32, shuffle=True), DataLoader(eval_set, 50)
        self.key_metric = "acc"
        self.ckpt_dir = "check_point/own_accumulator"

    def metric(self, pred, y):
        losses = nn.functional.cross_entropy(pred, y, reduction="none")
        return {"acc": TopK(1).update(pred, y), "calibration": Calibration().update(pred, y),
                "worst": Largest().update(losses)}


# %% run
def main(epochs=10, resume: str | None = None):
    seed_everything(0)
    trainer = Trainer()
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    result = trainer.test()
    print({name: round(float(value), 3) for name, value in result.items()})
    acc = result["acc"]
    most = eval_set.tensors[1].bincount().max() / len(eval_set)
    print(f"accuracy {acc:.3f} (at least 0.93; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
