"""Checkpoints and early stopping: keep the best weights, stop when nothing gets better, save and load by hand.

    python examples/features/checkpoints.py                # five seconds; needs scikit-learn for its data
    python examples/features/checkpoints.py --resume auto  # go on where it stopped
"""

# %% data
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import EarlyStopping, TemplateModel, run_main, seed_everything  # noqa: E402

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
        self.ckpt_dir = "check_point/checkpoints"
        self.key_metric = "acc"                     # best.pth has the weights of the best accuracy
        self.keep_checkpoints = 3                   # and the newest three epoch<N>.pth stay
        self.save_per_steps = 100                   # last.pth is also written within an epoch
        self.callbacks = [EarlyStopping("tol_loss", patience=3)]    # by the loss of the evaluation


# %% run
def main(epochs=40, resume: str | None = None):
    seed_everything(0)
    trainer = Trainer()
    trainer.check_init()
    if resume:
        trainer.load_state(resume)                  # "auto": the newest file that is whole; or a path
    trainer.fit(epochs)
    print("files:", *sorted(path.name for path in trainer.path_of(".").glob("*.pth")))

    trainer.use_best()                              # touches no counter and no file
    acc = trainer.test()["acc"]
    net = Trainer().model_list[0]                   # in plain PyTorch, without a trainer
    net.load_state_dict(torch.load(trainer.path_of("best.pth"), weights_only=True)["model0"])
    assert torch.equal(net.eval()(x[held_out]), trainer.predict(x[held_out]))
    most = eval_set.tensors[1].bincount().max() / len(eval_set)
    print(f"accuracy {acc:.3f} (at least 0.93; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
