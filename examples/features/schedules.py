"""Learning rate schedules: by name, with a warm-up, and one of your own.

    python examples/features/schedules.py                # ten seconds; needs scikit-learn for its data
    python examples/features/schedules.py --resume auto  # go on where it stopped
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
    def __init__(self, name):
        super().__init__()
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.model_list = [net]
        self.optimizer_list = [torch.optim.Adam(net.parameters(), 1e-2)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader, self.eval_loader = DataLoader(train_set, 32, shuffle=True), DataLoader(eval_set, 256)
        self.ckpt_dir = f"check_point/schedules-{name}"
        if name == "own":                               # any scheduler of torch, one per optimizer
            own = torch.optim.lr_scheduler.LambdaLR(self.optimizer_list[0], lambda step: 0.99 ** step)
            self.lr_scheduler_list, self.lr_scheduler_interval = [own], "update"
        else:
            self.lr_scheduler_type = name               # over the whole run, update by update; "metric" waits for a plateau
        if name == "cosine":
            self.lr_scheduler_args = {"final_ratio": 0.01}
            self.warm_up_epoch = 0.5                    # a fraction counts updates


# %% run
def main(epochs=6, resume: str | None = None):
    results = {}
    for name in ("cosine", "onecycle", "own"):
        seed_everything(0)
        trainer = Trainer(name)
        trainer.check_init()
        if resume:
            trainer.load_state(resume)
        trainer.fit(epochs)
        trainer.print_final_lr()
        results[name] = trainer.test()["acc"]
    print(", ".join(f"{name} {acc:.3f}" for name, acc in results.items()))
    acc = min(results.values())
    most = eval_set.tensors[1].bincount().max() / len(eval_set)
    print(f"accuracy {acc:.3f} (at least 0.93; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
