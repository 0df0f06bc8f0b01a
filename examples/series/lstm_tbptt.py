"""An LSTM that forecasts tomorrow's load, by truncated backpropagation through time: its state goes on from batch to batch.

    python examples/series/lstm_tbptt.py                       # half a minute on two cores; needs torch alone
    python examples/series/lstm_tbptt.py --csv load.csv        # a row for three hours, a column for each meter, a header
    python examples/series/lstm_tbptt.py --resume auto         # go on where it stopped, with the state that it had

A batch is the same two days of all meters, and the next one is the two days behind. The gradient goes back through these
two days, and the state goes on. Only so can it tell a Friday from a Monday: nothing in the data says which day it is.

Where a series begins is said by the data: ``is_first`` in a batch makes the state zero. So it is right at the start of an
epoch and of an evaluation. The training's state is a buffer of the network, which is in every checkpoint, and an
evaluation has another one. Such a network must see each batch once, so loss and metrics are those of one forward, as the
template computes them where it is left to it. One process trains it, because two would need meters of their own.

The figure is the mean absolute error, in standard deviations, on the last fifth of the time, beside the forecast "as
yesterday".
"""

# %% data
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import Regression, TemplateModel, run_main, seed_everything  # noqa: E402

DAY = 8     # values, one for three hours


def made_load(meters, weeks, seed=0):
    """Made: load [T, M] with two peaks a day, quiet weekends that begin anywhere, and weather."""
    chance = np.random.default_rng(seed)
    steps = np.arange(weeks * 7 * DAY)[:, None] + chance.integers(0, 7, meters) * DAY
    hour, day = steps % DAY * 24 / DAY, steps // DAY % 7
    daily = np.exp(-((hour - 8) / 2.5) ** 2) + 1.4 * np.exp(-((hour - 19) / 3) ** 2)
    weekend = np.exp(-((hour - 13) / 4) ** 2) * 0.8
    weather = np.zeros(steps.shape)
    for t in range(1, len(steps)):
        weather[t] = 0.95 * weather[t - 1] + 0.03 * chance.normal(size=meters)
    return np.where(day < 5, daily, weekend) + weather + 0.05 * chance.normal(size=steps.shape)


class Windows(torch.utils.data.Dataset):
    """Of a table [T, M], one after the other: ``({"load": [M, W], "is_first": [M]}, load of a day later [M, W])``."""

    def __init__(self, table, length):
        self.table, self.length = table, length

    def __len__(self):
        return (len(self.table) - DAY) // self.length

    def __getitem__(self, number):
        if number >= len(self):
            raise IndexError(number)
        x, later = (self.table[first:][:self.length].T for first in (number * self.length, number * self.length + DAY))
        return {"load": x, "is_first": torch.full((len(x),), number == 0)}, later


# %% the network
class CarriedLSTM(nn.Module):
    """Load [B, T] and whether it is the beginning [B] in, forecasts [B, T] out. It remembers the states of the B series."""

    def __init__(self, series, width, carries=True):
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, width, batch_first=True), nn.Linear(width, 1)
        self.carries = carries
        self.register_buffer("state", torch.zeros(2, 1, series, width))                 # travels in checkpoints
        self.register_buffer("state_of_eval", torch.zeros(2, 1, series, width), persistent=False)

    def forward(self, load, is_first):
        state = self.state if self.training else self.state_of_eval
        begun = state * ~is_first[:, None] if self.carries else torch.zeros_like(state)
        hidden, reached = self.lstm(load[..., None], (begun[0], begun[1]))
        state.copy_(torch.stack(reached).detach())      # here the gradient ends
        return load + self.head(hidden)[..., 0]         # what differs from yesterday


class Trainer(TemplateModel):
    def __init__(self, table, length, width, carries=True):
        super().__init__()
        net = CarriedLSTM(table.shape[1], width, carries)
        self.model_list = [net]
        self.optimizer_list = [torch.optim.Adam(net.parameters(), 1e-2)]
        self.criterion = nn.L1Loss()
        cut = len(table) // 5 * 4
        self.train_loader = DataLoader(Windows(table[:cut], length), None)              # in this order, and no other
        self.eval_loader = DataLoader(Windows(table[cut:], length), None)
        self.eval_metrics = {"mae": Regression().mae()}
        self.clip_grad, self.lr_scheduler_type = 1.0, "cosine"
        self.key_metric, self.ckpt_dir, self.keep_checkpoints = "mae", "check_point/lstm_tbptt", 1


# %% run
def main(csv: str | None = None, meters=32, weeks=40, epochs=8, length=2 * DAY, width=48, seed=0,
         resume: str | None = None):
    table = np.loadtxt(csv, delimiter=",", skiprows=1, ndmin=2) if csv else made_load(meters, weeks)
    table = torch.tensor((table - table.mean(0)) / table.std(0), dtype=torch.float32)
    errors = {}
    for carries in (True, False):
        seed_everything(seed)
        trainer = Trainer(table, length, width, carries)
        if errors:
            trainer.ckpt_dir = "check_point/lstm_tbptt/forgets"
        trainer.check_init()
        if resume:
            trainer.load_state(resume)
        trainer.fit(epochs)
        errors[carries] = trainer.test()["mae"]
    yesterday = torch.stack([later - inputs["load"] for inputs, later in trainer.eval_loader.dataset]).abs().mean()
    print(f"mean absolute error: state carried {errors[True]:.3f}, begun anew with every batch {errors[False]:.3f}")
    print(f"error {errors[True]:.3f} (at most 0.3; as yesterday {yesterday:.3f})")


if __name__ == "__main__":
    run_main(main)
