"""A training of several processes in which something goes wrong: ``torchrun --nproc-per-node 2 -m failing_job``.

    FAULT="error 1 13"      rank 1 raises after update 13; or "signal" (SIGTERM to itself)

Each rank writes to ``told.<rank>`` where it is, so that ``test_failures_dist.py`` can aim.
"""

import os
import signal
import time

import torch
from ranks import Tiny, hand_back
from tiny import tiny_data, tiny_model
from torch.utils.data import DataLoader, TensorDataset

from template import Callback
from template.callbacks.history import History

EPOCHS = 5
UPDATES = 35  # 53 samples, two ranks with batches of 4
SAVE_PER_STEPS = 3
RANK = int(os.environ.get("RANK", "0"))


def say(where):
    with open(f"told.{RANK}", "a") as file:
        file.write(where + "\n")


class Told(Callback):
    """Says where training is, and does what ``FAULT`` asks for."""

    def __init__(self):
        what, rank, update = (os.environ.get("FAULT") or "nothing -1 0").split()
        self.fault = what if int(rank) == RANK else None
        self.update = int(update)

    def on_batch(self, model, batch):
        time.sleep(0.01)

    def on_after_step(self, model):
        say(f"update {model.global_step}")
        if model.global_step == self.update and self.fault:
            say(f"fault {time.time()}")
            if self.fault == "error":
                raise ZeroDivisionError(f"in rank {RANK}")
            os.kill(os.getpid(), signal.SIGTERM)

    def on_eval_batch(self, model, batch):
        say(f"eval {model.epoch}")


def job(ckpt_dir="run", **attributes):
    trainer = Tiny(tiny_model(), ckpt_dir=ckpt_dir, save_per_steps=SAVE_PER_STEPS, log_per_step=2, keep_checkpoints=2,
                   train_loader=DataLoader(TensorDataset(*tiny_data()), 4, shuffle=True),
                   callbacks=[Told(), History(png=False)], lr_scheduler_type="cosine")
    trainer.optimizer_list = [torch.optim.AdamW(trainer.model_list[0].parameters(), 0.02)]
    for name, value in attributes.items():
        setattr(trainer, name, value)
    return trainer


def main():
    say(f"start {os.getpid()} {os.environ.get('AGENT')}")
    trainer = job()
    trainer.check_init(use_tb=False)
    path = trainer.load_state("auto")
    say(f"resumed {trainer.global_step} {path}")
    trainer.fit(EPOCHS)
    say("finished")


# --- "python -m failing_job stop_and_nan" ---------------------------------------------------------------------------------


class Stops(Callback):
    """On one rank alone, in the middle of an epoch."""

    def on_after_step(self, model):
        if model.global_step == 10 and model.world.rank == 1:
            model.should_stop = True


class Spoiled(Tiny):
    """The loss is NaN on rank 1, in update 12 and no other."""

    def loss_per_batch(self, batch):
        losses = super().loss_per_batch(batch)
        if self.global_step == 11 and self.world.rank == 1:
            losses["tol_loss"] = losses["tol_loss"] * float("nan")
        return losses


def stop_and_nan():
    trainer = job("stopped", callbacks=[Stops(), History(png=False)])
    trainer.check_init(use_tb=False)
    trainer.fit(EPOCHS)
    hand_back({"epochs_done": trainer.epochs_done, "global_step": trainer.global_step, "stopped": trainer.should_stop})
    trainer = Spoiled(tiny_model(), ckpt_dir="spoiled", save_per_steps=4, callbacks=[History(png=False)],
                      train_loader=DataLoader(TensorDataset(*tiny_data()), 4, shuffle=True))
    trainer.check_init(use_tb=False)
    trainer.fit(EPOCHS)


if __name__ == "__main__":
    import sys

    stop_and_nan() if "stop_and_nan" in sys.argv else main()
