"""Gradient accumulation, two ways: so many batches for an update, or so many samples. Both give what one large batch gives.

    python examples/features/accumulation.py                # ten seconds; needs scikit-learn for its data
    python examples/features/accumulation.py --resume auto  # go on where they stopped
"""

# %% data
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import TemplateModel, run_main, seed_everything  # noqa: E402

pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
held_out = torch.arange(len(y)) % 5 == 0
train_set, eval_set = TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])


# %% the training
class Trainer(TemplateModel):
    def __init__(self, batch_size, name="large_batch"):
        super().__init__()
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).double()   # so that one can compare
        self.model_list = [net]
        self.optimizer_list = [torch.optim.Adam(net.parameters(), 3e-3)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader = DataLoader(train_set, batch_size, shuffle=True)
        self.eval_loader = DataLoader(eval_set, 256)
        self.seed = 0                                   # the same order of the samples in all of them
        self.ckpt_dir = f"check_point/accumulation-{name}"


# %% run
def main(epochs=6, resume: str | None = None):
    trainers = []
    for batch_size, setting in ((32, {}), (8, {"accumulate_steps": 4}), (8, {"nominal_batch_size": 32})):
        seed_everything(0)
        trainer = Trainer(batch_size, *setting)
        for name, value in setting.items():
            setattr(trainer, name, value)               # trainer.accumulate_steps = 4: batches of an update
        trainer.check_init()                            # trainer.nominal_batch_size = 32: samples of an update
        if resume:
            trainer.load_state(resume)
        trainer.fit(epochs)
        trainers.append(trainer)
    whole = trainers[0].model_list[0].state_dict()
    for trainer in trainers:
        away = max((weight - whole[name]).abs().max().item() for name, weight in trainer.model_list[0].state_dict().items())
        print(f"{trainer.global_step} updates; weights at most {away:.0e} away from those of the large batch")
    acc = min(trainer.test()["acc"] for trainer in trainers)
    most = eval_set.tensors[1].bincount().max() / len(eval_set)
    print(f"accuracy {acc:.3f} (at least 0.93; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
