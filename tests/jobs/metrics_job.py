"""Every accumulator in the evaluation and in the training of several processes:
``torchrun --nproc-per-node 2 -m metrics_job``."""

import shutil

import torch
from ranks import DEVICE, Tiny, hand_back
from tiny import tiny_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import (
    BinaryScores,
    Chained,
    Confusion,
    Mean,
    MultiLabel,
    Perplexity,
    Regression,
    Stored,
    TopK,
    by_group,
)


def accuracy(pred, y):
    return (pred.argmax(1) == y).double().mean()


class All(Tiny):
    """Each accumulator, made anew for each batch, in both; weights and order of the data are those of one process."""

    def __init__(self, **attributes):
        super().__init__(**{"train_loader": train_loader(), "train_metrics": True, "key_metric": "train/acc", **attributes})
        self.seen = []

    def loss_per_batch(self, batch):
        pred = self.inference(batch[0])
        if torch.is_grad_enabled():
            self.seen.append((pred.detach().cpu(), batch[1].cpu()))
        return nn.functional.cross_entropy(pred, batch[1])

    def metric(self, pred, y):
        return metrics(pred, y)


def metrics(pred, y):
    confusion, several = Confusion(3).update(pred, y), MultiLabel(3).update(pred, nn.functional.one_hot(y, 3))
    return {"acc": confusion.accuracy(), "iou": confusion.iou(None), "kappa": confusion.kappa(),
            "matthews": confusion.matthews(), "top2": TopK(2).update(pred, y),
            "scores": BinaryScores().update(pred[:, 0], y == 0),
            "regression": Regression().update(pred.sum(1), y), "perplexity": Perplexity().update(pred, y),
            "several": several.f1("macro"), "exact": several.exact_match(), "kept": Stored(accuracy).update(pred, y),
            "mean": Mean().update(accuracy(pred, y), len(y)), "plain": accuracy(pred, y),
            "of": by_group(Confusion(3).accuracy(), y % 2).update(pred, y)}


def train_loader():
    return DataLoader(TensorDataset(*tiny_data(53)), 4, shuffle=True)


class KeepsMiddle:
    """A checkpoint from within the first epoch."""

    def on_after_step(self, model):
        if model.global_step == 5:
            model.checkpoints.wait()
            if model.is_main:
                shutil.copy(model.path_of("last.pth"), "middle.pth")
            model.world.gather(0)


def run(folder, load=None, **attributes):
    trainer = All(ckpt_dir=folder, save_per_steps=2, log_per_step=3, device=DEVICE, **attributes)
    trainer.check_init(use_tb=False)
    if load:
        trainer.load_state(load)
    results = []
    for _ in trainer.epochs(2):
        results.append({"train": trainer.train_loop(), "score": trainer.eval(), "eval": dict(trainer.eval_result)})
        results[-1]["seen"], trainer.seen = trainer.seen, []
    return results, trainer


def main():
    whole, trainer = run("whole", callbacks=[KeepsMiddle()])
    best = dict(trainer.best_metric)
    continued, _ = run("parts", "middle.pth")
    x, y = tiny_data(53)
    both = Chained([DataLoader(TensorDataset(x[:30], y[:30]), 4), DataLoader(TensorDataset(x[30:], y[30:]), 4)])
    chained, trainer = run("chained", train_loader=both)
    hand_back({"whole": whole, "continued": continued, "best": best, "chained": chained, "steps": trainer.global_step})


if __name__ == "__main__":
    main()
