"""Weights and gradients: how large they are, how they are distributed, and what flows through each layer.

    python examples/features/weights_and_gradients.py                # ten seconds; needs scikit-learn and tensorboard
    python examples/features/weights_and_gradients.py --resume auto  # go on where it stopped
    tensorboard --logdir runs
"""

# %% data
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import LayerStatistics, Monitor, TemplateModel, run_main, seed_everything  # noqa: E402

pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
held_out = torch.arange(len(y)) % 5 == 0
train_set, eval_set = TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])


# %% the training
class Trainer(TemplateModel):
    def __init__(self):
        super().__init__()
        body, head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()), nn.Linear(64, 10)
        self.model_list = [body, head]
        groups = [{"params": part.parameters(), "name": name} for name, part in (("body", body), ("head", head))]
        self.optimizer_list = [torch.optim.Adam(groups, 3e-3)]      # "grad_norm/body" has its name from here
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader, self.eval_loader = DataLoader(train_set, 32, shuffle=True), DataLoader(eval_set, 256)
        self.log_per_step = 20
        self.ckpt_dir = "check_point/weights_and_gradients"
        self.norms = Monitor()                              # of gradients, weights and updates, at each log point
        self.layers = LayerStatistics(every=100)            # of the outputs of each layer and of their gradients
        self.callbacks = [self.norms, self.layers]


# %% run
def main(epochs=10, resume: str | None = None):
    seed_everything(0)
    trainer = Trainer()
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    for epoch in trainer.epochs(epochs):
        trainer.train_loop(write_params=epoch in (1, epochs))   # histograms of every weight and gradient in these epochs
        trainer.eval()

    # All of it is in TensorBoard, under the scalars and the histograms. The newest values are attributes, too.
    for name, value in trainer.norms.values.items():
        print(f"{name:<20} {value:.2e}")                    # an update_ratio of about 1e-3 is often a good one
    for layer, seen in trainer.layers.values.items():
        print(f"layer {layer}: {seen['output']['zeros']:4.0%} zeros, gradients spread by {seen['gradient']['std']:.1e}")
    acc = trainer.test()["acc"]
    most = eval_set.tensors[1].bincount().max() / len(eval_set)
    print(f"accuracy {acc:.3f} (at least 0.93; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
