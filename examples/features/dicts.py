"""Dicts in and out: batches by name, models that take keyword arguments and return a dict, with or without their loss.

    python examples/features/dicts.py                # five seconds; needs scikit-learn for its data
    python examples/features/dicts.py --resume auto  # go on where they stopped

This is how the models and data sets of Hugging Face come.
"""

# %% data
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import Confusion, TemplateModel, run_main, seed_everything  # noqa: E402

pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
held_out = torch.arange(len(y)) % 5 == 0
ink = x.reshape(-1, 4, 2, 4, 2).sum((2, 4)).flatten(1)         # how much of it, in 16 places
samples = [{"image": image, "ink": part, "labels": label} for image, part, label in zip(x, ink, y)]
train_set, eval_set = ([sample for sample, out in zip(samples, held_out) if out == kind] for kind in (False, True))


# %% the network
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.ink, self.head = nn.Linear(64, 64), nn.Linear(16, 16), nn.Linear(80, 10)

    def forward(self, image, ink, labels=None):
        """image [B, 64] and ink [B, 16] in, a dict with logits [B, 10] out."""
        hidden = torch.cat([self.image(image), self.ink(ink)], 1).relu()
        logits = self.head(hidden)
        out = {"logits": logits, "hidden": hidden}
        return out if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), **out}


# %% the training
class OwnLoss(TemplateModel):
    """The model returns its loss: no criterion."""

    def __init__(self):
        super().__init__()
        net = Net()
        self.model_list = [net]
        self.optimizer_list = [torch.optim.Adam(net.parameters(), 3e-3)]
        self.criterion = None
        self.train_loader, self.eval_loader = DataLoader(train_set, 32, shuffle=True), DataLoader(eval_set, 256)
        self.key_metric = "acc"
        self.ckpt_dir = f"check_point/dicts-{type(self).__name__}"

    def metric(self, pred, y):                  # y is the entry "labels"; the model got the others
        return {"acc": Confusion(10).update(pred["logits"], y).accuracy()}


class ByName(OwnLoss):
    """A loss of several entries."""

    def loss_per_batch(self, batch):
        out = self.model_list[0](batch["image"], batch["ink"])
        fit, sparse = nn.functional.cross_entropy(out["logits"], batch["labels"]), out["hidden"].mean()
        return {"tol_loss": fit + 0.01 * sparse, "fit": fit, "sparse": sparse}


# %% run
def main(epochs=10, resume: str | None = None):
    results = {}
    for kind in (OwnLoss, ByName):
        seed_everything(0)
        trainer = kind()
        trainer.check_init()
        if resume:
            trainer.load_state(resume)
        trainer.fit(epochs)
        results[kind.__name__] = trainer.test()["acc"]
    pred = trainer.predict(trainer.eval_loader)         # a dict of tensors; a loss for each batch
    print({name: tuple(part.shape) for name, part in pred.items()}, results)
    acc = min(results.values())
    most = y[held_out].bincount().max() / held_out.sum()
    print(f"accuracy {acc:.3f} (at least 0.93; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
