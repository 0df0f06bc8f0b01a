"""k-fold cross-validation, and the line that one publishes: mean and spread over the folds.

    python examples/beyond/kfold.py                     # a quarter of a minute on two cores; needs scikit-learn for its data
    python examples/beyond/kfold.py --k 10 --folder check_point/ten

Where it was stopped or killed, the same command goes on, with --resume or without: folds that are done are read.

Each of 178 wines is scored by a network that was not trained on it. The folds have each class in its share. Means and
scales of the columns are those of the training set of each fold: with those of all wines, the folds would know each other
a little.

The figure is the mean accuracy over the folds, beside always saying the most frequent class. `kfold` also gives the
prediction for every sample, here for one table of confusion over all wines.
"""

# %% data
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_wine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import Confusion, TemplateModel, run_main  # noqa: E402
from template.tools.kfold import kfold  # noqa: E402

rows, classes = load_wine(return_X_y=True)
wines = TensorDataset(torch.tensor(rows, dtype=torch.float32), torch.tensor(classes))


# %% the network
class Scaled(nn.Module):
    """Rows in the units of the data in: their means and scales are a part of the model."""

    def __init__(self, rows):
        super().__init__()
        self.register_buffer("mean", rows.mean(0))
        self.register_buffer("std", rows.std(0))

    def forward(self, rows):
        return (rows - self.mean) / self.std


class Trainer(TemplateModel):
    def __init__(self, train_set, eval_set, width):
        super().__init__()
        net = nn.Sequential(Scaled(train_set[:][0]), nn.Linear(13, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 3))
        self.model_list = [net]
        self.optimizer_list = [torch.optim.AdamW(net.parameters(), 5e-3, weight_decay=0.05)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader = DataLoader(train_set, 32, shuffle=True)
        self.eval_loader = DataLoader(eval_set, 64)
        self.lr_scheduler_type, self.keep_checkpoints = "cosine", 1


# %% run
def main(k=5, epochs=25, width=32, seed=0, folder="check_point/kfold", resume: str | None = None):
    found = kfold(lambda *sets: Trainer(*sets, width), wines, k, epochs, stratify=True, seed=seed, ckpt_dir=folder)
    print("rows are true, columns are predicted, each wine by the fold that did not see it:")
    print(Confusion(3).update(found.predictions, wines.tensors[1]).compute())
    most = wines.tensors[1].bincount().max().item() / len(wines)
    print(f"{k}-fold cross-validation: accuracy {found.mean['acc']:.3f} ± {found.std['acc']:.3f}")
    print(f"accuracy {found.mean['acc']:.3f} (at least 0.94; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
