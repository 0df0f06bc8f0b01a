"""Weights that are divided among processes: ``torchrun --nproc-per-node 2 -m sharded_job <folder> 9``."""

import errno
import os
import shutil
import sys
from pathlib import Path

import resume_job
import torch
from ranks import Tiny, hand_back
from tiny import tiny_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import EMA, SWA, Callback
from template.callbacks.history import History

EPOCHS = 2
BATCH = 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(12, 12), nn.LayerNorm(12)

    def forward(self, x):
        return x + self.layer(self.norm(x)).relu()


def deep_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 12), Block(), Block(), nn.Linear(12, 3))


WAYS = {
    "whole": {},
    "by class": {"blocks": (Block,)},
    "by one class": {"blocks": Block, "reshard_after_forward": False},
    "by number": {"blocks": 100},
}


def deep(batch_size, eval_samples=23, model=None, samples=60, **attributes):
    trainer = Tiny(model or deep_model(), accumulate_steps=2, clip_grad=0.5, key_metric="tol_loss",
                   train_loader=DataLoader(TensorDataset(*tiny_data(samples)), batch_size, shuffle=True),
                   eval_loader=DataLoader(TensorDataset(*tiny_data(eval_samples, seed=5)), 10), **attributes)
    trainer.optimizer_list = [torch.optim.AdamW(trainer.model_list[0].parameters(), 0.02)]
    return trainer


def whole_weights(trainer):
    """As ``tiny.weights``; on every rank."""
    values = [value for model in trainer.model_list for value in model.state_dict().values()]
    values = [value.full_tensor() if hasattr(value, "full_tensor") else value for value in values]
    return torch.cat([value.detach().double().flatten() for value in values])


def train(trainer, name):
    trainer.ckpt_dir, trainer.callbacks = f"check_point/{name}", [History(png=False), *(trainer.callbacks or [])]
    trainer.check_init(use_tb=False)
    trainer.fit(EPOCHS)
    return {"weights": whole_weights(trainer), "eval": dict(trainer.eval_result), "best": dict(trainer.best_metric)}


def in_parts(name, **attributes):
    """What each rank keeps, besides how it trains."""
    trainer = deep(BATCH, parallel="fsdp", parallel_options=dict(WAYS[name]), **attributes)
    found = train(trainer, name)
    own = sum(p.to_local().numel() for p in trainer.model_list[0].parameters())
    gathered = sum(type(part).__name__.startswith("FSDP") for part in trainer.model_list[0].modules())
    return found | {"own": own, "all": sum(p.numel() for p in trainer.model_list[0].parameters()), "gathered": gathered}


# --- a disk that takes nothing, on the last rank ------------------------------------------------------------------------


class FullDisk(Callback):
    """Between two updates a write of the parts fails as the kernel says it: when files are opened, or their folder made."""

    def __init__(self, updates, what):
        self.updates, self.what = updates, what
        self.undo = None

    def on_after_step(self, model):
        from torch.distributed.checkpoint.filesystem import FileSystem

        if model.world.rank != model.world.size - 1:
            return
        if self.undo is not None:
            self.undo()
            self.undo = None
        if model.global_step in self.updates:
            owner, name = (FileSystem, "create_stream") if self.what == "file" else (Path, "mkdir")
            before = vars(owner)[name]

            def fails(*args, **kwargs):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[-1]))

            setattr(owner, name, fails)
            self.undo = lambda: setattr(owner, name, before)


class Steps(Callback):
    """Which update ``last.pth`` is of, after each."""

    def __init__(self):
        self.found = []

    def on_before_step(self, model):
        if model.world.is_main:
            model.wait_for_saves()
            path = model.path_of("last.pth")
            self.found.append(torch.load(path, weights_only=True)["global_step"] if path.exists() else 0)


def full_disk(what):
    steps = Steps()
    trainer = deep(BATCH, parallel="fsdp", save_per_steps=1, keep_checkpoints=1, callbacks=[steps, FullDisk([2, 3], what)])
    found = train(trainer, f"full {what}")
    return found | {"steps": steps.found, "failed": len(trainer.checkpoints.saver.failed)}


# --- from kind to kind --------------------------------------------------------------------------------------------------


def leg(folder, *stop, average=None, **attributes):
    average = EMA(0.9) if average is None else average
    options = {"keep_checkpoints": 1, "key_metric": "tol_loss", "more": [average]} | attributes
    began, built = resume_job.leg(folder, *stop, use_tb=False, **options)
    return {"began": began, "reached": built.global_step, "weights": whole_weights(built), "average": whole_average(average)}


def whole_average(average):
    """On every rank."""
    values = [value for _, value in sorted(average.state_dict()["average"]["values"].items())]
    values = [value.full_tensor() if hasattr(value, "full_tensor") else value for value in values]
    return torch.cat([torch.empty(0, dtype=torch.float64), *(value.double().flatten() for value in values)])


def kinds(folder):
    """DDP, FSDP2, DDP."""
    return [leg(folder, 5, True), leg(folder, 9, True, parallel="fsdp", parallel_options={"blocks": 50}), leg(folder)]


# --- averages of weights ------------------------------------------------------------------------------------------------

AVERAGES = {"EMA": lambda: EMA(0.9, every=2), "SWA": lambda: SWA(start=2)}


def averaged(name, parallel):
    """With BatchNorm, whose statistics are of rank 0's batches for the one and of all for the other, and with a last batch
    that one rank gets nothing of."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 12, bias=False), nn.BatchNorm1d(12), Block(), nn.Linear(12, 3))
    average = AVERAGES[name]()
    trainer = deep(BATCH, model=model, samples=58, parallel=parallel, callbacks=[average],
                   parallel_options={"blocks": (Block,)} if parallel == "fsdp" else {})
    found, name = train(trainer, f"{name} {parallel}"), f"{name} {parallel}.pth"
    average.save(name)
    predicted = trainer.predict(tiny_data(9, seed=6)[0])
    trainer.save_state(f"whole {name}")
    trainer.use_best()
    return found | {"predicted": predicted, "best weights": whole_weights(trainer)}


def continued(folder, name):
    """Stopped twice and not at all."""
    options = {"parallel": "fsdp", "parallel_options": {"blocks": 50}}
    legs = [leg(folder / name, *stop, average=AVERAGES[name](), **options) for stop in [(5, False), (10, True), ()]]
    return {"legs": legs, "whole": leg(folder / f"whole {name}", average=AVERAGES[name](), **options)}


if __name__ == "__main__":
    folder, update, by_signal = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "signal"
    found = {"leg": leg(folder / "run", update, by_signal, parallel="fsdp")}
    if os.environ["RANK"] == "0":
        shutil.copytree(folder / "run", folder / f"after {os.environ['WORLD_SIZE']}")
    found["few"] = train(deep(BATCH, 7, parallel="fsdp"), "few")
    if os.environ["WORLD_SIZE"] == "2":
        found |= {"ways": {name: in_parts(name) for name in WAYS}, "kinds": kinds(folder / "kinds")}
        found |= {"full file": full_disk("file"), "full folder": full_disk("folder")}
        found |= {f"{name} {parallel}": averaged(name, parallel) for name in AVERAGES for parallel in ("ddp", "fsdp")}
        found |= {f"{name} continued": continued(folder / "continued", name) for name in AVERAGES}
    hand_back(found)
