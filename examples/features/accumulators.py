"""Accumulators, two ways: made anew for each batch in ``metric``, or made once; and by hand, without a trainer.

    python examples/features/accumulators.py                # five seconds; needs scikit-learn for its data
    python examples/features/accumulators.py --resume auto  # go on where they stopped

F1 and AUROC are no means over batches. An accumulator keeps what adds up, such as counts, and computes once at the end.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import Confusion, Mean, Stored, TemplateModel, TopK, run_main, seed_everything  # noqa: E402

pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
held_out = torch.arange(len(y)) % 5 == 0
train_set, eval_set = TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])


# %% the training, once with each
class Anew(TemplateModel):
    def __init__(self):
        super().__init__()
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.model_list = [net]
        self.optimizer_list = [torch.optim.Adam(net.parameters(), 3e-3)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader, self.eval_loader = DataLoader(train_set, 32, shuffle=True), DataLoader(eval_set, 50)
        self.key_metric = "acc"
        self.ckpt_dir = f"check_point/accumulators-{type(self).__name__}"

    def metric(self, pred, y):
        confusion = Confusion(10).update(pred, y)           # several scores of one count
        return {
            "acc": confusion.accuracy(),
            "f1": confusion.f1("macro"),
            "top2": TopK(2).update(pred, y),
            "sure": Mean().update(pred.softmax(1).amax(1).mean(), len(y)),      # a mean, with a weight
            "auc": Stored(partial(roc_auc_score, multi_class="ovr")).update(pred.softmax(1), y),   # keeps all of them
        }


class Once(Anew):
    metric = TemplateModel.metric                           # the default one updates eval_metrics

    def __init__(self):
        super().__init__()
        self.eval_metrics = {"acc": Confusion(10).accuracy(), "f1": Confusion(10).f1("macro"), "top2": TopK(2)}


# %% run
def main(epochs=8, resume: str | None = None):
    results = []
    for kind in (Anew, Once):
        seed_everything(0)
        trainer = kind()
        trainer.check_init()
        if resume:
            trainer.load_state(resume)
        trainer.fit(epochs)
        results.append(trainer.test())
        print(f"{kind.__name__}: {results[-1]}")
    assert all(results[0][name] == results[1][name] for name in ("acc", "f1", "top2"))

    parts = []                                              # in a loop of your own
    for images, labels in trainer.eval_loader:
        parts.append(Confusion(10).update(trainer.predict(images), labels))
    assert sum(parts).f1("macro").compute() == results[0]["f1"]
    acc = results[0]["acc"]
    most = eval_set.tensors[1].bincount().max() / len(eval_set)
    print(f"accuracy {acc:.3f} (at least 0.93; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
