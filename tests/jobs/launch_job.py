"""Functions that ``launch`` runs in new processes: ``python -m launch_job`` has them imported there."""

import os
import time

import torch
from ranks import Tiny
from tiny import tiny_data, tiny_model, weights
from torch.utils.data import DataLoader, TensorDataset

from template.callbacks.history import History
from template.tools.launch import launch


def train(batch_size, epochs=1, ckpt_dir="run"):
    trainer = Tiny(tiny_model(dropout=0.0), ckpt_dir=ckpt_dir, callbacks=[History(png=False)],
                   train_loader=DataLoader(TensorDataset(*tiny_data()), batch_size, shuffle=True))
    trainer.check_init(use_tb=False)
    best = trainer.fit(epochs)
    return {"weights": weights(trainer), "rank": trainer.world.rank, "updates": trainer.global_step, "best": best}


def fail(message):
    if os.environ["RANK"] == "1":
        raise ZeroDivisionError(message)
    return train(4)


def once_more(marker):
    """The first time a rank fails."""
    if os.environ["RANK"] == "1" and not os.path.exists(marker):
        open(marker, "w").close()
        raise ZeroDivisionError("the first time")
    return os.environ["TORCHELASTIC_RESTART_COUNT"]


def error_of(*args, **options):
    """How ``launch`` ends, and after how many seconds."""
    started = time.time()
    try:
        launch(*args, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}", time.time() - started


if __name__ == "__main__":  # a program, whose functions new processes import
    torch.save(launch(train, 2, 4, epochs=2, ckpt_dir="launched"), "results.pth")
