"""A run that goes on with other numbers of processes: ``torchrun --nproc-per-node 2 -m resume_job <folder> 9``.

24 samples an update, whatever the number of processes: batches of 4, accumulated so often that it comes to that.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from ranks import Tiny, hand_back
from tiny import tiny_data, tiny_model, weights
from torch.utils.data import DataLoader, TensorDataset

from template import Callback
from template.callbacks.history import History

EPOCHS = 6
UPDATES = 18


class Leave(Callback):
    """After an update: with an error, which saves nothing, or by a signal to the last rank, which saves."""

    def __init__(self, update, by_signal):
        self.update, self.by_signal = update, by_signal

    def on_after_step(self, model):
        if model.global_step == self.update:
            model.wait_for_saves()
            if not self.by_signal:
                raise ZeroDivisionError
            if model.world.rank == model.world.size - 1:
                os.kill(os.getpid(), signal.SIGTERM)


def trainer(ckpt_dir, leave=None, by_signal=False, dropout=0.0, more=(), **attributes):
    size = int(os.environ.get("WORLD_SIZE", "1"))
    built = Tiny(tiny_model(dropout=dropout), ckpt_dir=str(ckpt_dir), save_per_steps=2, log_per_step=1,
                 accumulate_steps=6 // size, lr_scheduler_type="cosine", warm_up_updates=3,
                 train_loader=DataLoader(TensorDataset(*tiny_data()), 4, shuffle=True),
                 callbacks=[History(png=False), Leave(leave, by_signal), *more])
    built.optimizer_list = [torch.optim.AdamW(built.model_list[0].parameters(), 0.02)]
    for name, value in attributes.items():
        setattr(built, name, value)
    return built


def leg(ckpt_dir, leave=None, by_signal=False, use_tb=True, **attributes):
    """Go on where the run stands, until it leaves or its end. Returns ``(where it went on, the trainer)``."""
    built = trainer(ckpt_dir, leave, by_signal, **attributes)
    built.check_init(use_tb=use_tb)
    built.load_state("auto")
    began = built.global_step
    try:
        built.fit(EPOCHS)
    except (ZeroDivisionError, SystemExit):
        pass
    return began, built


def with_dropout():
    """Stopped twice and not at all; each rank draws numbers of its own."""
    _, whole = leg("whole", use_tb=False, dropout=0.3)
    legs = [leg("parts", *stop, use_tb=False, dropout=0.3) for stop in [(5, False), (10, True), ()]]
    return {"whole": weights(whole), "parts": weights(legs[-1][1]), "began": [began for began, _ in legs],
            "next number": torch.rand(3), "epoch": legs[-1][1].epochs_done}


def default_run(epochs):
    """Without seed, folder and name; the other ranks' clocks go wrong."""
    built = Tiny(seed=None, callbacks=[History(png=False)])
    if os.environ["RANK"] != "0":
        built.ckpt_dir = "./check_point/2001-01-01_00-00-00"
    built.check_init()
    own = built.seed, built.ckpt_dir, built.run_name
    built.load_state("auto")
    built.fit(epochs)
    return {"own": own, "then": (built.seed, built.ckpt_dir, built.run_name), "updates": built.global_step,
            "seeded alike": weights(built)}


if __name__ == "__main__":
    folder, update, by_signal = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "signal"
    began, built = leg(folder / "run", update, by_signal)
    found = {"began": began, "reached": built.global_step, "weights": weights(built), "run_name": built.run_name}
    if os.environ["WORLD_SIZE"] == "2":
        found |= {"dropout": with_dropout(), "default": [default_run(1), default_run(2)]}
    hand_back(found)
