"""Evaluations that come out alike in any number of processes: ``torchrun --nproc-per-node 2 -m evaluation_job``."""

from functools import partial

import torch
from ranks import Tiny, hand_back
from sklearn.metrics import precision_score, roc_auc_score
from tiny import tiny_data
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAUROC, MulticlassF1Score

from template import Confusion, EarlyStopping, Mean, Stored, TensorLoader
from template.callbacks.history import History
from template.metrics.accumulators import Metric


def loader(num_samples, batch_size=10, seed=5):
    return DataLoader(TensorDataset(*tiny_data(num_samples, seed=seed)), batch_size)


def auc(pred, y):
    """Of class 0 against the others: how many of all pairs are in order."""
    pairs = pred[y == 0, 0][:, None] - pred[y != 0, 0]
    return ((pairs > 0).float() + (pairs == 0) / 2).mean()


class PerBatch(Tiny):
    """Accumulators that are made anew for each batch."""

    def metric(self, pred, y):
        confusion = Confusion(3).update(pred, y)
        correct = (pred.argmax(1) == y).float()
        return {"acc": confusion.accuracy(), "f1": confusion.f1("macro"), "counts": confusion,
                "auc": Stored(auc).update(pred, y),
                "of class 0": Mean().update(correct[y == 0].sum() / (y == 0).sum().clamp(min=1), (y == 0).sum()),
                "plain": correct.mean(), "number": correct.sum().item() / len(y)}


class MadeOnce(Tiny):
    """The same ones for all batches, and a loss with an entry of its own."""

    def __init__(self, **attributes):
        super().__init__(**attributes)
        self.confusion, self.mean, self.stored = Confusion(3), Mean(), Stored(auc)
        self.torchmetrics = MulticlassAUROC(3)

    def loss_per_batch(self, batch):
        losses = super().loss_per_batch(batch)
        return {**losses, "half": losses["tol_loss"] / 2}

    def metric(self, pred, y):
        self.confusion.update(pred, y)
        self.torchmetrics.update(pred, y)
        return {"acc": self.confusion.accuracy(), "recall": self.confusion.recall("weighted"),
                "mean": self.mean.update((pred.argmax(1) == y).float().mean(), len(y)), "auc": self.stored.update(pred, y),
                "torchmetrics": self.torchmetrics}


def with_eval_metrics(eval_loader):
    confusion = Confusion(3)
    return Tiny(eval_loader=eval_loader, key_metric="acc", eval_metrics={
        "acc": confusion.accuracy(), "f1": confusion.f1("weighted"), "auc": Stored(auc), "auroc": MulticlassAUROC(3),
        "f1 again": MulticlassF1Score(3, average="weighted"),
        "several": MetricCollection({name: MulticlassF1Score(3, average=name) for name in ("micro", "macro")})})


class WithMeanMetric(Tiny):
    def __init__(self, **attributes):
        super().__init__(**attributes)
        self.words = MeanMetric()

    def metric(self, pred, y):
        self.words.update(pred.max(1).values)
        return {"confidence": self.words}


class ByName(Tiny):
    """Functions of scikit-learn, and the default accuracy."""

    def metric(self, pred, y):
        classes = pred.argmax(1)
        return {**super().metric(pred, y), "precision": Stored(partial(precision_score, average="macro")).update(classes, y),
                "auc": Stored(partial(roc_auc_score, multi_class="ovr")).update(pred.softmax(1), y)}


class Ignoring(Tiny):
    """The default accuracy and loss where some labels do not count."""

    def count_samples(self, batch):
        return (batch[1] != -100).sum()


def partly_ignored(num_samples, batch_size=10):
    """Every third label counts for nothing, and all of the second batch."""
    x, y = tiny_data(num_samples, seed=5)
    y[::3] = y[batch_size:2 * batch_size] = -100
    return DataLoader(TensorDataset(x, y), batch_size)


SIZES = {"two batches and a short one": 23, "one short batch": 7, "one sample more": 31, "five batches": 50}
ALIKE = {
    **{f"per batch, {name}": lambda size=size: PerBatch(eval_loader=loader(size), key_metric="f1")
       for name, size in SIZES.items()},
    **{f"made once, {name}": lambda size=size: MadeOnce(eval_loader=loader(size), key_metric="auc")
       for name, size in SIZES.items()},
    "eval_metrics": lambda: with_eval_metrics(loader(23)),
    "eval_metrics, one batch": lambda: with_eval_metrics(loader(9)),
    "several loaders": lambda: PerBatch(eval_loader={"near": loader(23), "far": loader(8, 3, seed=6)}, key_metric="near/f1"),
    "in memory": lambda: PerBatch(eval_loader=TensorLoader(*tiny_data(23, seed=5), batch_size=4), key_metric="acc"),
    "by name": lambda: ByName(eval_loader=loader(23), key_metric="acc"),
    "ignored labels": lambda: Ignoring(eval_loader=partly_ignored(43)),
    "a list": lambda: PerBatch(eval_loader=list(loader(23, 4)), key_metric="acc"),
    "confidence": lambda: WithMeanMetric(eval_loader=loader(23)),
}


def evaluate(name):
    trainer = ALIKE[name]()
    trainer.ckpt_dir, trainer.callbacks = f"check_point/{name}", [History(png=False)]
    trainer.check_init(use_tb=False)
    return {"eval": plain(trainer.test()), "again": plain(trainer.test()),
            "other": plain(trainer.test(loader(17, 4, seed=8)))}


def plain(result):
    return {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in result.items()}


def stopped_early():
    trainer = Tiny(ckpt_dir="check_point/early", key_metric="tol_loss", optimizer_list=None,
                   callbacks=[EarlyStopping(patience=2), History(png=False)])
    trainer.optimizer_list = [torch.optim.SGD(trainer.model_list[0].parameters(), 0.001)]
    trainer.check_init(use_tb=False)
    trainer.fit(20)
    return {"epochs_done": trainer.epochs_done, "stopped": trainer.should_stop, "updates": trainer.global_step}


class NoSuchState:
    """An accumulator of somebody's own, which nobody can merge."""

    def update(self, *args): ...

    def compute(self):
        return 0.0

    def reset(self): ...


class Raising(Metric):
    def __init__(self):
        self.count = 0

    def update(self, pred, y):
        self.count += len(y)
        return self

    def merge(self, other):
        self.count += other.count

    def compute(self):
        raise ArithmeticError(f"no score of {self.count} samples")

    def reset(self):
        self.count = 0

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def ends(metric):
    trainer = Tiny(ckpt_dir="check_point/ends", eval_metrics={"score": metric}, preflight=False,
                   callbacks=[History(png=False)])
    trainer.check_init(use_tb=False)
    try:
        trainer.test()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    found = {name: evaluate(name) for name in ALIKE}
    found |= {"early": stopped_early(), "not merged": ends(NoSuchState()), "raising": ends(Raising())}
    hand_back(found)
