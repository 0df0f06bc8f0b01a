"""A training as a user writes it, with everything that a restart must bring back: ``python fault_job.py 0``.

The argument is the number of workers. It says on stderr where it is, so that ``test_faults.py`` can aim;
``fault_moments.py`` runs it with something going wrong.
"""

import random
import sys
import time

import numpy as np
import torch
from tiny import tiny_data
from torch import nn
from torch.utils.data import DataLoader, Dataset

from template import Callback
from template.callbacks.history import History
from template.template import TemplateModel

EPOCHS = 4
UPDATES = 28  # 53 samples in batches of 4, two to an update: 7 an epoch, the last one of a single sample
SAVE_PER_STEPS = 3


class Augmented(Dataset):
    """Every sample is read with noise from each of the three generators."""

    def __init__(self, num_samples=53, seed=0):
        self.x, self.y = tiny_data(num_samples, seed=seed)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        time.sleep(0.0005)
        x = self.x[index] + 0.1 * torch.randn(6)
        return x * float(np.random.uniform(0.9, 1.1)) * random.uniform(0.9, 1.1), self.y[index]


class AverageWeights(Callback):
    """An exponential mean of the weights, which is what gets evaluated."""

    def __init__(self, decay=0.9):
        self.decay = decay
        self.average = None
        self._trained = None

    def on_after_step(self, model):
        own = model.model_list[0].state_dict()
        if self.average is None:
            self.average = {name: value.clone() for name, value in own.items()}
        for name, value in self.average.items():
            value.lerp_(own[name], 1 - self.decay)

    def on_eval_start(self, model):
        own = model.model_list[0]
        self._trained = {name: value.clone() for name, value in own.state_dict().items()}
        if self.average is not None:
            own.load_state_dict(self.average)

    def on_eval_end(self, model):
        model.model_list[0].load_state_dict(self._trained)

    def state_dict(self):
        return {"average": self.average}

    def load_state_dict(self, state):
        self.average = state["average"]


class Told(Callback):
    """Says where training is."""

    def on_batch(self, model, batch):
        say(f"batch {model.epoch} {model.batches_done}")

    def on_after_step(self, model):
        say(f"update {model.global_step}")

    def on_eval_batch(self, model, batch):
        say(f"eval {model.epoch}")
        time.sleep(0.002)


def say(where):
    sys.stderr.write(where + "\n")  # one write: a line of two threads stays in one piece


class Job(TemplateModel):
    """Attributes by keyword."""

    def __init__(self, num_workers=0, **attributes):
        super().__init__()
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3))
        self.model_list = [model]
        self.optimizer_list = [torch.optim.AdamW(model.parameters(), 0.02)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader = DataLoader(Augmented(), 4, shuffle=True, num_workers=num_workers)
        self.eval_loader = DataLoader(Augmented(23, seed=5), 4)
        self.ckpt_dir = "run"
        self.seed = 3
        self.lr_scheduler_type = "cosine"
        self.warm_up_updates = 5
        self.accumulate_steps = 2
        self.save_per_steps = SAVE_PER_STEPS
        self.keep_checkpoints = 2
        self.log_per_step = 2
        self.callbacks = [AverageWeights(), Told(), History(png=False)]
        for name, value in attributes.items():
            setattr(self, name, value)


def main(num_workers):
    say("check_init")
    trainer = Job(num_workers)
    trainer.check_init()
    say("load_state")
    path = trainer.load_state("auto")
    say(f"resumed {trainer.global_step} {path}")
    for _ in trainer.epochs(EPOCHS):
        trainer.train_loop()
        trainer.eval()
    print("finished")


if __name__ == "__main__":
    main(int(sys.argv[1]))
