"""A run with a tracker, which kills itself: ``python -m tracker_job Wandb 30 6 '{"project": "p"}'``.

Twelve epochs of six updates, each logged, with evaluations in their middle and pictures. Update 0: no kill. Else the run
waits six updates earlier until the tracker was handed everything, so many seconds more, and kills itself at the update.
"""

import json
import os
import signal
import sys
import time

import torch
from tiny import Tiny

import template
from template.callbacks.history import History

EPOCHS = 12


class Kill(template.Callback):
    """SIGKILL to the whole process, behind an update."""

    def __init__(self, update, pause, tracker):
        self.update, self.pause, self.tracker = update, pause, tracker

    def on_after_step(self, model):
        if model.global_step == self.update - 6:
            ends = time.monotonic() + 60
            while self.tracker._sender is not None and self.tracker._sender._sent < self.tracker._points.journal.count:
                assert time.monotonic() < ends, list(self.tracker._sender.notes)
                time.sleep(0.02)
            time.sleep(self.pause)
        if model.global_step == self.update:
            os.kill(os.getpid(), signal.SIGKILL)


class Record(template.Callback):
    """What a run without a kill hands out: ``{curve: {update or epoch: value}}``."""

    def __init__(self):
        self.curves = {}

    def note(self, before, values, x):
        for name, value in values.items():
            if isinstance(value, float):
                self.curves.setdefault(f"{before}{name}", {})[x] = value

    def on_log(self, model, values):
        self.note("train/", values, model.global_step)
        self.note("", {"lr": model.optimizer_list[0].param_groups[0]["lr"]}, model.global_step)

    def on_eval_result(self, model, result):
        self.note("eval/", result, model.global_step)

    def on_epoch_end(self, model, results):
        self.note("epoch/", results, model.epoch)
        self.note("best/", model.best_metric, model.epoch)


def noise(model):
    return torch.rand(3, 8, 8)


def trainer(ckpt_dir, *callbacks):
    """It saves at evaluations, and every seven updates."""
    built = Tiny(ckpt_dir=ckpt_dir, log_per_step=1, eval_per_steps=4, save_per_steps=7, lr_scheduler_type="cosine",
                 total_epochs=EPOCHS,
                 callbacks=[History(png=False), *callbacks, template.SampleOutputs(noise, keep_all=True)])
    built.check_init(use_tb=False, arg={"width": 16, "data": {"name": "tiny"}})
    return built


def expected():
    """Of a run that is not killed, and has no tracker."""
    record = Record()
    trainer("whole", record).fit(EPOCHS)
    return record.curves


if __name__ == "__main__":
    name, update, pause, options = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), json.loads(sys.argv[4])
    tracker = getattr(template, name)(**options)
    run = trainer("exp", tracker, Kill(update, pause, tracker))
    run.load_state("auto")
    run.fit(EPOCHS)
