"""Regression: predict a number from the other columns of a CSV file, and then for new rows.

    python examples/basics/regression.py                      # ten seconds on two cores; needs scikit-learn
    python examples/basics/regression.py --csv my.csv         # a header, then numbers; the last column is predicted
    python examples/basics/regression.py --resume auto        # go on where it stopped

Without a file it takes scikit-learn's diabetes data: how far the disease went in a year, of 442 people, from age, sex, body
mass, blood pressure and six values of their blood. A linear model is hard to beat there, so its R2 is printed beside.
"""

# %% data
import io
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import EarlyStopping, Regression, TemplateModel, run_main, seed_everything  # noqa: E402


def diabetes_csv():
    """The text of a CSV file, in the units that were measured."""
    data, file = load_diabetes(scaled=False), io.StringIO()
    np.savetxt(file, np.column_stack([data.data, data.target]), "%g", ",", comments="",
               header=",".join([*data.feature_names, "progression"]))
    file.seek(0)
    return file


def parts_of(csv):
    """Two thirds of the rows to train on, a sixth to stop by and a sixth to test with, as datasets of ``(row, number)``."""
    table = torch.from_numpy(np.loadtxt(csv, np.float32, delimiter=",", skiprows=1, ndmin=2))
    rows = TensorDataset(table[:, :-1], table[:, -1])
    return random_split(rows, [2 / 3, 1 / 6, 1 / 6], torch.Generator().manual_seed(0))


# %% the network
class Net(nn.Module):
    """Rows [B, F] in, numbers [B] out, both in the units of the file: the scales are part of the model, and are saved."""

    def __init__(self, x, y, width):
        super().__init__()
        for name, values in {"x": x, "y": y}.items():
            self.register_buffer(f"{name}_mean", values.mean(0))
            self.register_buffer(f"{name}_std", values.std(0).clamp(min=1e-8))
        self.layers = nn.Sequential(nn.Linear(x.shape[1], width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 1))

    def forward(self, x):
        scaled = self.layers((x - self.x_mean) / self.x_std)
        return scaled.squeeze(1) * self.y_std + self.y_mean


class Trainer(TemplateModel):
    def __init__(self, train, held_out, width):
        super().__init__()
        net = Net(*train[:], width)
        self.model_list = [net]
        self.optimizer_list = [torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.1)]
        self.criterion = nn.MSELoss()
        self.train_loader, self.eval_loader = DataLoader(train, 32, shuffle=True), DataLoader(held_out, 256)
        scores = Regression()
        self.eval_metrics = {"r2": scores.r2(), "mae": scores.mae()}
        self.key_metric, self.ckpt_dir, self.keep_checkpoints = "r2", "check_point/regression", 1
        self.callbacks = [EarlyStopping(patience=20)]


# %% run
def main(csv: str | None = None, epochs=100, width=64, seed=0, resume: str | None = None):
    train, held_out, test = parts_of(csv or diabetes_csv())
    seed_everything(seed)
    trainer = Trainer(train, held_out, width)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    for _ in trainer.epochs(epochs):
        trainer.train_loop()
        trainer.eval()

    trainer.use_best()
    result = trainer.test(DataLoader(test, 256))
    rows, numbers = test[:]
    guesses = trainer.predict(rows[:4])         # a tensor or an array; for a file of new rows, np.loadtxt as above
    print("predicted", *(f"{guess:.0f} (true: {number:.0f})" for guess, number in zip(guesses, numbers)))
    (x, y), mean = train[:], train[:][1].mean()
    linear = LinearRegression().fit(x, y).score(rows, numbers)
    of_mean = Regression().update(mean.expand(len(numbers)), numbers).compute()
    print(f"{len(test)} rows that were not trained on: R2 {result['r2']:.3f}, of a linear model {linear:.3f}; "
          f"mean absolute error {result['mae']:.1f}, of always the mean {of_mean['mae']:.1f}")
    print(f"R2 {result['r2']:.3f} (at least 0.4; mean of the training {of_mean['r2']:.3f})")
    return trainer


if __name__ == "__main__":
    run_main(main)
