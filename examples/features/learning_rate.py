"""Find a learning rate: one short sweep, before the training and from the same weights.

    python examples/features/learning_rate.py                # ten seconds; needs scikit-learn and matplotlib
    python examples/features/learning_rate.py --resume auto  # go on where it stopped
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
from template.tools.find_lr import find_lr  # noqa: E402

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
        self.optimizer_list = [torch.optim.Adam(net.parameters(), 1e-5)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader, self.eval_loader = DataLoader(train_set, 32, shuffle=True), DataLoader(eval_set, 256)
        self.lr_scheduler_type = "cosine"
        self.ckpt_dir = "check_point/learning_rate"


# %% run
def main(epochs=10, resume: str | None = None):
    seed_everything(0)
    trainer = Trainer()                             # 1e-5 is far too small
    trainer.check_init()
    if resume and trainer.load_state(resume):
        trainer.fit(epochs)
    else:
        found = find_lr(trainer, lowest=1e-6, highest=1.0)      # the trainer is as before then, to the bit
        trainer.change_lr([found.suggestion])                   # one rate per optimizer
        trainer.fit(epochs)
        found.plot(trainer.path_of("rates.png"))                # loss over rate, in the folder of the run

    acc = trainer.test()["acc"]
    most = eval_set.tensors[1].bincount().max() / len(eval_set)
    print(f"accuracy {acc:.3f} (at least 0.93; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
