"""Several loaders: two that are read together in training, and several evaluations with metrics of their own.

    python examples/features/several_loaders.py                # five seconds; needs scikit-learn for its data
    python examples/features/several_loaders.py --resume auto  # go on where it stopped

Only 100 images have labels here. The others are trained on by consistency: a noisy image is to get the scores of the clean
one.
"""

# %% data
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import Confusion, TemplateModel, TopK, run_main, seed_everything  # noqa: E402

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
        few, rest = Subset(train_set, range(100)), TensorDataset(train_set.tensors[0][100:])
        self.train_loader = {"labeled": DataLoader(few, 20, shuffle=True), "unlabeled": DataLoader(rest, 64, shuffle=True)}
        noisy = TensorDataset(x[held_out] + 0.2 * torch.randn(int(held_out.sum()), 64), y[held_out])
        self.eval_loader = {"clean": DataLoader(eval_set, 256), "noisy": DataLoader(noisy, 256)}
        self.eval_metrics = {"clean": {"acc": Confusion(10).accuracy()}, "noisy": {"top1": TopK(1), "top2": TopK(2)}}
        self.key_metric = "clean/acc"
        self.ckpt_dir = "check_point/several_loaders"

    def loss_per_batch(self, batch):
        if not isinstance(batch, dict):                 # in an evaluation, one loader after the other
            return super().loss_per_batch(batch)
        (images, labels), (unlabeled,) = batch["labeled"], batch["unlabeled"]    # the shorter one starts over
        fit = self.criterion(self.inference(images), labels)
        clean, noisy = self.inference(torch.cat([unlabeled, unlabeled + 0.2 * torch.randn_like(unlabeled)])).chunk(2)
        consistent = nn.functional.mse_loss(noisy.softmax(1), clean.softmax(1).detach())
        return {"tol_loss": fit + consistent, "fit": fit, "consistent": consistent}

    def count_samples(self, batch):                     # what such a batch weighs in the means
        return len(batch["labeled"][1]) if isinstance(batch, dict) else super().count_samples(batch)


# %% run
def main(epochs=15, resume: str | None = None):
    seed_everything(0)
    trainer = Trainer()
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    result = trainer.test()
    print(result)
    acc = result["clean/acc"]
    most = eval_set.tensors[1].bincount().max() / len(eval_set)
    print(f"accuracy {acc:.3f} (at least 0.7; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
