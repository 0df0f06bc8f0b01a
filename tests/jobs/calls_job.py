"""Calls that not every rank makes: ``WORLD_SIZE=2 … python -m calls_job <name of a function below>``."""

import os
import sys
import time

import torch
from ranks import Tiny, hand_back
from tiny import tiny_data, tiny_model
from torch.utils.data import DataLoader, TensorDataset

from template import Callback
from template.parallel import watch
from template.tools.throughput import throughput

RANK = int(os.environ["RANK"])


def made(ckpt_dir="run", callbacks=(), **attributes):
    attributes = {"eval_loader": DataLoader(TensorDataset(*tiny_data(24)), 4), **attributes}
    trainer = Tiny(tiny_model(), ckpt_dir=ckpt_dir, callbacks=list(callbacks), log_per_step=5,
                   train_loader=DataLoader(TensorDataset(*tiny_data(48)), 4, shuffle=True), **attributes)
    trainer.check_init(use_tb=False)
    print(f"apart {time.time()}", file=sys.stderr, flush=True)
    return trainer


# --- what one rank may do alone ---------------------------------------------------------------------------------------


class Stops(Callback):
    """On the last rank alone."""

    def on_eval_result(self, model, result):
        model.should_stop = model.world.rank == model.world.size - 1


def allowed():
    """Each of them in a trainer of its own."""
    watch.STANDS_SECONDS, watch.TELLS_SECONDS = 0.5, 2.5
    found = {}

    trainer = made("in epochs")
    for epoch in trainer.epochs(5):
        trainer.train_loop()
        trainer.eval()
        if trainer.is_main and epoch == 2:
            trainer.should_stop = True
    found["in epochs"] = trainer.epochs_done, trainer.should_stop

    trainer = made("before epochs")
    trainer.should_stop = RANK == 1
    trainer.fit(3)
    found["before epochs"] = trainer.epochs_done, trainer.should_stop

    trainer = made("in fit", [Stops()])
    trainer.fit(5)
    found["in fit"] = trainer.epochs_done, trainer.should_stop

    trainer = made("in a plain loop")
    for _ in range(5):
        trainer.train_loop()
        score = trainer.eval()
        if RANK == 1 and trainer.epoch == 2:
            trainer.should_stop = True
        assert trainer.eval() == score
    trainer.close()
    found["in a plain loop"] = trainer.epochs_done, trainer.should_stop

    class Writes(Callback):
        """In the middle of an epoch, on rank 0, which is slow in the second one."""

        def on_after_step(self, model):
            if model.is_main and model.global_step == 4:
                model.save_state("middle.pth")
                model.save_model("model.pth")
            if model.is_main and model.global_step == model.updates_per_epoch() + 2:
                time.sleep(6)

    trainer = made("saves", [Writes()])
    for epoch in trainer.epochs(2):
        trainer.train_loop()
        if trainer.is_main:
            trainer.save_state(f"behind{epoch}.pth")
            trainer.predict(torch.zeros(3, 6))
        trainer.eval()
    found["saves"] = trainer.epochs_done, trainer.should_stop
    found["losses"] = trainer.eval_result["tol_loss"]
    found["weights"] = trainer.model_list[0].state_dict()
    hand_back(found)


# --- what every rank has to call --------------------------------------------------------------------------------------


def test():
    trainer = made()
    for _ in trainer.epochs(3):
        trainer.train_loop()
        trainer.eval()
        if trainer.is_main:
            trainer.test()


class Tests(Callback):
    """While the others train on."""

    def on_after_step(self, model):
        if model.global_step == 2 and model.is_main:
            model.test()


def callback():
    made(callbacks=[Tests()]).fit(3)


def load():
    trainer = made()
    if trainer.is_main:
        trainer.load_state("auto")
    trainer.fit(2)


def leaves():
    trainer = made()
    for epoch in trainer.epochs(3):
        trainer.train_loop()
        trainer.eval()
        if RANK == 1 and epoch == 2:
            break


def measures():
    trainer = made()
    if trainer.is_main:
        throughput(trainer)
    trainer.fit(1)


def saves_sharded():
    trainer = made(parallel="fsdp")
    trainer.train_loop()
    if trainer.is_main:
        trainer.save_state("state.pth")
    trainer.eval()


def ends_before():
    if RANK == 1:
        print(f"apart {time.time()}", file=sys.stderr, flush=True)
        sys.exit(0)
    made()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
