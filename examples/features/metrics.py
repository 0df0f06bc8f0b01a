"""Metrics: what is counted over the whole evaluation, what is a mean, and scores of scikit-learn and torchmetrics.

    python examples/features/metrics.py                   # ten seconds; needs scikit-learn and torchmetrics
    python examples/features/metrics.py --resume auto     # go on where it stopped
"""

# %% data
import sys
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassF1Score

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import Confusion, Stored, TemplateModel, TopK, run_main, seed_everything  # noqa: E402

pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
held_out = torch.arange(len(y)) % 5 == 0
train_set, eval_set = TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])


# %% the training
class Trainer(TemplateModel):
    def __init__(self):
        super().__init__()
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.model_list = [net]
        self.optimizer_list = [torch.optim.Adam(net.parameters(), 3e-3)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader, self.eval_loader = DataLoader(train_set, 32, shuffle=True), DataLoader(eval_set, 256)
        self.f1 = MulticlassF1Score(num_classes=10)                 # an object of torchmetrics is made once
        self.train_metrics = {"acc": Confusion(10).accuracy()}      # of the training: "train/acc"
        self.key_metric = "acc"                                     # decides which epoch is best
        self.ckpt_dir = "check_point/metrics"

    def metric(self, pred, y):
        """Of one batch: scores [B, 10] and labels [B]."""
        confusion = Confusion(10).update(pred, y)
        self.f1.update(pred, y)
        return {
            "acc": confusion.accuracy(),                    # counted, and computed once at the end
            "recall": confusion.recall("macro"),
            "top3": TopK(3).update(pred, y),
            "sure": pred.softmax(1).amax(1).mean(),         # a number: the mean over samples
            "auc": Stored(partial(roc_auc_score, multi_class="ovr")).update(pred.softmax(1), y),
            "f1": self.f1,
        }


# %% run
def main(epochs=10, resume: str | None = None):
    seed_everything(0)
    trainer = Trainer()
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    trainer.print_best_metrics()
    result = trainer.test()
    print(result)
    most = eval_set.tensors[1].bincount().max() / len(eval_set)
    print(f"accuracy {result['acc']:.3f} (at least 0.93; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
