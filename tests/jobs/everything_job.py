"""A training with all callbacks and settings at once: ``torchrun --nproc-per-node 2 -m everything_job``."""

import hashlib
import os
import re
import signal
from pathlib import Path

import torch
from ranks import Tiny, hand_back, history
from tiny import tiny_data, tiny_model, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import (
    EMA,
    SWA,
    Callback,
    Checkpoints,
    Csv,
    EarlyStopping,
    Interpret,
    JsonLines,
    LayerStatistics,
    LearningRateFloor,
    LivePlot,
    Monitor,
    Notify,
    SampleOutputs,
    StopAfter,
    build_optimizer,
)
from template.callbacks.history import History
from template.checkpoint.files import read

EPOCHS = 4
UPDATES = {"SWA": 24, "EMA": 25}  # the nominal batch makes smaller updates during the warm-up
NOTED = "states.txt"


class Cut(Callback):
    """Ends the run behind an update: "now" as a callback may, "error" as a crash does, "kill" as SIGKILL does, or
    "evaluation": by an error in the first evaluation from then on."""

    def __init__(self, update, how):
        self.update, self.how = update, how

    def on_after_step(self, model):
        if model.global_step == self.update and self.how == "now":
            model.should_stop = "now"
        if model.global_step == self.update and self.how == "error":
            model.wait_for_saves()
            raise ZeroDivisionError
        if model.global_step == self.update and self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    def on_eval_batch(self, model, batch):
        if model.global_step >= self.update and self.how == "evaluation":
            model.wait_for_saves()
            raise ZeroDivisionError


def drawn(trainer):
    return f"{torch.rand(2).tolist()} at update {trainer.global_step}"


def callbacks(average):
    told = Notify(f"echo $NOTIFY_STATE >> {NOTED}")
    own = [SWA(start=2)] if average == "SWA" else [EMA(decay=0.9), JsonLines(), Csv(), told]
    return [*own, Monitor(), LayerStatistics(every=3), Interpret(k=4, every=3), SampleOutputs(drawn),
            LivePlot(where="terminal"), EarlyStopping(patience=8, restore_best=True),
            Checkpoints("eval/tol_loss", top_k=2), StopAfter(hours=500), LearningRateFloor(1e-9)]


def update_of(model, average):
    """An optimizer and how many batches an update takes; beside EMA by roles, and by a nominal batch that rises."""
    if average == "SWA":
        return {"optimizer_list": [torch.optim.AdamW(model.parameters(), 0.02)],
                "accumulate_steps": 2 // int(os.environ.get("WORLD_SIZE", "1"))}
    return {"optimizer_list": build_optimizer("Muon", model, lr=0.02, weight_decay=0.05, adamw={"fused": True}),
            "nominal_batch_size": 10, "warm_up_bias_lr": 0.03}


def build(folder, cut=0, how="now", plain=False, average="EMA", dropout=0.2):
    """A trainer after ``check_init``: with everything on, or without callbacks and measurements (``plain``)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), *tiny_model(dropout=dropout))
    watching = {} if plain else {"train_metrics": True, "eval_per_steps": 4, "key_metric": "acc"}
    trainer = Tiny(model, ckpt_dir=str(folder), save_per_steps=1 if how in ("error", "kill") else None, log_per_step=3,
                   clip_grad=0.5, lr_scheduler_type="cosine", warm_up_updates=3, **update_of(model, average),
                   train_loader=DataLoader(TensorDataset(*tiny_data()), 5, shuffle=True), **watching)
    trainer.callbacks = [History(png=False), *([] if plain else callbacks(average)), *([Cut(cut, how)] if cut else [])]
    trainer.check_init(use_tb=False)
    return trainer


def run(folder, *args, **options):
    """Go on to the end, or to the cut. Returns the trainer."""
    trainer = build(folder, *args, **options)
    trainer.load_state("auto")
    try:
        trainer.fit(EPOCHS)
    except ZeroDivisionError:
        pass
    return trainer


def trained(folder):
    """The parameters that the training ended with, by name: neither averaged nor those of the best epoch."""
    state = read(Path(folder) / "last.pth")["model0"]
    return {name: value for name, value in state.items() if "running" not in name and "tracked" not in name}


def left(folder):
    """What the run left: its curves, every number of its checkpoints, and the contents of what its callbacks wrote, times
    apart."""
    folder = Path(folder)
    pictures = [path for name in ("interpret", "samples") for path in sorted((folder / name).iterdir())]
    points = [path.read_text() for path in sorted(folder.glob("numbers.*"))]
    digests = [row.split(",") for row in (folder / "digests.csv").read_text().split()[1:]]
    return {"history": history(folder),
            "digests": [row for row in digests if row[1] == "0"],  # within an epoch a run that is cut saves more
            "points": [re.sub(r'"(time|crc)": [^,}]+', "", text) for text in points],
            "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures},
            **{path.name: numbers(path) for path in sorted(folder.glob("*.pth"))
               if path.name not in ("previous.pth", "crashed.pth")}}


def numbers(file):
    """All numbers of a checkpoint, in the order in which they stand there."""
    def of(value):
        if isinstance(value, dict):
            return [number for name, part in value.items() if name not in ("seconds", "rng") for number in of(part)]
        if isinstance(value, (list, tuple)):
            return [number for part in value for number in of(part)]
        if isinstance(value, torch.Tensor):
            return value.double().flatten().tolist()
        return [float(value)] if isinstance(value, (int, float)) else []

    return of(read(file))


if __name__ == "__main__":
    whole = run("whole")
    found = {"whole": weights(whole), "cut": run("now", 9).global_step, "error": run("error", 15, "error").global_step}
    found |= {"after the cut": weights(run("now")), "after the error": weights(run("error"))}
    run("plain", plain=True)
    run("no dropout", average="SWA", dropout=0.0)
    hand_back(found)
