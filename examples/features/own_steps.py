"""Steps of your own, three ways: the loss of a batch, the whole training step, the scores of an evaluation batch.

    python examples/features/own_steps.py                # ten seconds; needs scikit-learn for its data
    python examples/features/own_steps.py --resume auto  # go on where they stopped
"""

# %% data
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import TemplateModel, TopK, run_main, seed_everything  # noqa: E402

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
        self.key_metric = "acc"
        self.ckpt_dir = f"check_point/own_steps-{type(self).__name__}"

    def metric(self, pred, y):
        return {"acc": TopK(1).update(pred, y)}


class Mixup(Trainer):
    """1. The loss of a batch. ``eval()`` takes it as well, where nothing is to be mixed."""

    def loss_per_batch(self, batch):
        images, labels = batch
        if not self.model_list[0].training:
            return self.criterion(self.inference(images), labels)
        other, share = torch.randperm(len(labels), device=labels.device), torch.rand(()).clamp(min=0.7)
        pred = self.inference(share * images + (1 - share) * images[other])
        return share * self.criterion(pred, labels) + (1 - share) * self.criterion(pred, labels[other])


class Adversarial(Trainer):
    """2. The whole training step, up to its gradients: here with images that were changed to raise the loss."""

    def train_step(self, batch):
        images, labels = batch
        images = images.clone().requires_grad_()
        with self.autocast():                               # does nothing unless ``amp`` is set
            clean = self.criterion(self.inference(images), labels)
        self.backward(clean)                                # in place of clean.backward()
        worse = images.detach() + 0.05 * images.grad.sign()
        with self.autocast():
            robust = self.criterion(self.inference(worse), labels)
        self.backward(robust)                               # adds up; update() of several optimizers: basics/gan.py
        return {"tol_loss": (clean + robust).detach(), "clean": clean.detach(), "robust": robust.detach()}


class Averaged(Trainer):
    """3. The scores of an evaluation batch: the mean over shifted copies of each image."""

    def eval_scores_per_batch(self, batch):
        images, labels = batch
        shifts = [torch.roll(images.reshape(-1, 8, 8), shift, 2).flatten(1) for shift in (-1, 0, 1)]
        weights = 0.1, 0.8, 0.1
        pred = sum(weight * self.inference(shifted).softmax(1) for weight, shifted in zip(weights, shifts))
        return {**self.metric(pred, labels), "one_view": TopK(1).update(self.inference(images), labels)}


# %% run
def main(epochs=15, resume: str | None = None):
    results = {}
    for kind in (Mixup, Adversarial, Averaged):
        seed_everything(0)
        trainer = kind()
        trainer.check_init()
        if resume:
            trainer.load_state(resume)
        trainer.fit(epochs)
        results[kind.__name__] = trainer.test()["acc"]
    print(", ".join(f"{name} {acc:.3f}" for name, acc in results.items()))
    acc = min(results.values())
    most = eval_set.tensors[1].bincount().max() / len(eval_set)
    print(f"accuracy {acc:.3f} (at least 0.93; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
