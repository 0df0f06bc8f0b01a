"""Tools among several processes, and the training behind them: ``torchrun --nproc-per-node 2 -m tools_job``."""

import torch
from ranks import Tiny, hand_back
from tiny import tiny_model, weights

from template.tools.find_batch_size import find_batch_size
from template.tools.find_lr import find_lr
from template.tools.overfit import overfit
from template.tools.soup import soup
from template.tools.summary import summary


def build(name):
    trainer = Tiny(tiny_model(dropout=0.0), ckpt_dir=name, clip_grad=1.0, lr_scheduler_type="cosine", total_epochs=3)
    trainer.check_init(use_tb=False)
    return trainer


def refused(call, trainer):
    try:
        call(trainer)
    except ValueError as error:
        return str(error)


def main():
    untouched = build("untouched")
    untouched.fit(3)
    trainer = build("looked_at")
    found = find_lr(trainer, num_updates=20, highest=1.0)
    trainer.train_loop()
    trainer.eval()
    verdict = overfit(trainer, updates=10)
    trainer.train_loop()
    trainer.eval()
    trainer.wait_for_saves()
    trainer.world.gather(None)
    mixed = soup(trainer, ["looked_at/epoch1.pth", "looked_at/epoch2.pth"], how="greedy")
    layers = summary(trainer)
    words = refused(find_batch_size, trainer)
    trainer.fit(3)
    hand_back({"same": torch.equal(weights(untouched), weights(trainer)), "weights": weights(trainer),
               "best": [untouched.best_metric, trainer.best_metric], "losses": found.losses, "suggestion": found.suggestion,
               "overfit": verdict.losses, "soup": [mixed.score, mixed.scores, mixed.weights], "flops": layers.flops,
               "refused": words})


if __name__ == "__main__":
    main()
