"""A search for hyper-parameters: trials that optuna chooses, bad ones end early, and the winner is tested once.

    python examples/beyond/search.py                     # half a minute on two cores; needs optuna and scikit-learn
    python examples/beyond/search.py --trials 30         # reads the 12 that are done, and adds 18
    python examples/beyond/search.py --folder check_point/other

Where it was stopped or killed, the same command goes on, with --resume or without: trials that are done are read.

Settings are chosen by the images of the evaluation, so a value there is too good to publish: the best of many is partly
luck. The figure is the accuracy of the winner on images that the search has not seen, beside that of the settings of the
worst trial.
"""

# %% data
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import TemplateModel, build_optimizer, run_main  # noqa: E402
from template.tools.search import search  # noqa: E402

pixels, labels = load_digits(return_X_y=True)
digits = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
train, held_out, test = random_split(digits, [300, 500, 997], torch.Generator().manual_seed(0))


# %% the network, by its settings
class Trainer(TemplateModel):
    def __init__(self, optimizer, lr, width, dropout):
        super().__init__()
        net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 10))
        self.model_list = [net]
        self.optimizer_list = build_optimizer(optimizer, net, lr=lr)
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader = DataLoader(train, 32, shuffle=True)
        self.eval_loader = DataLoader(held_out, 500)
        self.key_metric, self.keep_checkpoints = "acc", 1


SPACE = {"optimizer": ["SGD", "AdamW"], "lr": ("log", 1e-4, 0.1), "width": (8, 128), "dropout": (0.0, 0.5)}


# %% run
def main(trials=12, epochs=10, seed=0, folder="check_point/search", resume: str | None = None):
    found = search(lambda settings: Trainer(**settings), SPACE, trials, epochs, seed=seed, ckpt_dir=folder)

    x, y = test[:]
    worst = min((row for row in found.rows if row["state"] != "failed"), key=lambda row: row["acc"])
    accuracy = []
    for name, settings in ((found.best_trial, found.best_params), (f"trial{worst['trial']}", worst)):
        trainer = Trainer(**{key: settings[key] for key in SPACE})
        trainer.load_state(f"{folder}/{name}/best.pth", optim=False)
        accuracy.append((trainer.predict(x).argmax(1) == y).double().mean())
    print(f"the best trial has {found.best_value:.3f} where it was chosen, and {accuracy[0]:.3f} on other images")
    print(f"accuracy {accuracy[0]:.3f} (at least 0.88; worst trial {accuracy[1]:.3f})")


if __name__ == "__main__":
    run_main(main)
