"""A program of somebody who annotates everything: it sets, overrides and calls much of what there is, and passes mypy and
pyright in their strict modes. ``utils`` is the folder, copied beside it.

    python typed_job.py --epochs 2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from utils import (
    Callback,
    Confusion,
    EarlyStopping,
    History,
    KerasModel,
    Logger,
    Mean,
    Profile,
    ProgressBar,
    Stored,
    TemplateModel,
    TensorBoard,
    TensorLoader,
    WarmUpLR,
    option,
    parse_options,
    seed_everything,
)
from utils.keras_model import StepRunner
from utils.metrics import Metric
from utils.tools.consolidate import consolidate
from utils.tools.launch import launch
from utils.tools.throughput import throughput


@dataclass
class Options:
    """Options of the program."""

    epochs: int = option(2, "passes over the data")
    resume: str | None = option(None, "a checkpoint to go on from")


class Largest(Metric):
    """The largest score of the epoch."""

    def __init__(self) -> None:
        self.largest = float("-inf")

    def update(self, pred: Tensor) -> Largest:
        self.largest = max(self.largest, float(pred.max()))
        return self

    def merge(self, other: Largest) -> None:
        self.largest = max(self.largest, other.largest)

    def compute(self) -> float:
        return self.largest

    def reset(self) -> None:
        self.largest = float("-inf")

    def state_dict(self) -> dict[str, Any]:
        return {"largest": self.largest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.largest = state["largest"]


class Watch(Callback):
    """Overrides every event."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.calls = 0

    def on_train_start(self, model: TemplateModel) -> None:
        print(f"epoch {model.epoch} on rank {model.world.rank} of {model.world.size}")

    def on_batch(self, model: TemplateModel, batch: Any) -> None:
        self.calls += model.count_samples(batch)

    def on_before_step(self, model: TemplateModel) -> None:
        self.calls += model.optimizer_list[0].param_groups[0]["lr"] > 0

    def on_after_step(self, model: TemplateModel) -> None:
        self.calls += model.global_step

    def on_log(self, model: TemplateModel, values: dict[str, float]) -> None:
        self.losses.append(values["tol_loss"])
        if model.writer is not None:
            model.writer.add_scalar("own/loss", values["tol_loss"], model.global_step)

    def on_train_end(self, model: TemplateModel, result: dict[str, float]) -> None:
        print(f"{result['tol_loss']:.3f} after {model.batches_done} batches")

    def on_eval_start(self, model: TemplateModel) -> None:
        self.calls = 0

    def on_eval_batch(self, model: TemplateModel, batch: Any) -> None:
        self.calls += 1

    def on_eval_result(self, model: TemplateModel, result: dict[str, Any]) -> None:
        model.should_stop = result["clean/acc"] > 2

    def on_eval_end(self, model: TemplateModel) -> None:
        print(f"{self.calls} batches, {model.global_step_eval} until now")

    def on_exit(self, model: TemplateModel) -> None:
        if model.is_main:
            model.path_of("losses.txt").write_text(str(self.losses))

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = state["losses"]


def share_right(pred: Tensor, y: Tensor) -> float:
    return float((pred.argmax(1) == y).float().mean())


class Trainer(TemplateModel):
    def __init__(self, options: Options) -> None:
        super().__init__()
        x = torch.randn(40, 4)
        y = (x[:, 0] > 0).to(torch.int64)
        model = nn.Linear(4, 2)
        self.model_list = [model]
        self.optimizer_list = [torch.optim.SGD(model.parameters(), 0.1)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader = TensorLoader(x, y, batch_size=5, shuffle=True)
        self.eval_loader = {"clean": DataLoader(TensorDataset(x, y), 8), "noisy": [(x + torch.randn(40, 4), y)]}
        self.device = torch.device("cpu")
        self.ckpt_dir = "check_point/typed"
        self.run_name = "typed"
        self.log_per_step = 1
        self.seed = 3
        self.callbacks = [EarlyStopping("clean/acc", patience=3), Watch(), History(png=False), ProgressBar(show=False),
                          TensorBoard(images=2), Profile(updates=1, after=1)]
        self.accumulate_steps = 2
        self.amp = "bf16"
        self.clip_grad = {"norm": 1, "norm_type": 2.0}
        self.skip_non_finite = 2
        self.compile = "reduce-overhead" if options.epochs > 100 else False
        self.parallel = None
        self.parallel_options = {"find_unused_parameters": True}
        self.lr_scheduler_type = "cosine"
        self.lr_scheduler_args = {"final_ratio": 0.1}
        self.warm_up_epoch = 1
        self.key_metric = "clean/acc"
        self.key_metric_mode = {"clean/acc": "max"}
        self.save_per_steps = 10
        self.save_per_seconds = 30
        self.keep_checkpoints = 2

    def inference(self, x: Tensor) -> Tensor:
        pred: Tensor = self.model_list[0](x)
        return pred

    def loss_per_batch(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, y = batch
        loss = self.criterion(self.inference(x), y)
        return {"tol_loss": loss, "again": loss.detach()}

    def metric(self, pred: Tensor, y: Tensor) -> dict[str, Any]:
        confusion = Confusion(2).update(pred, y)
        return {"acc": confusion.accuracy(), "f1": confusion.f1("binary"), "right": Stored(share_right).update(pred, y),
                "mean": Mean().update(pred.mean(), len(pred)), "largest": Largest().update(pred)}

    def train_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        with self.autocast():
            losses = self.loss_per_batch(batch)
        self.backward(losses["tol_loss"], 0)
        self.update(0)
        return losses

    def count_samples(self, batch: tuple[Tensor, Tensor]) -> int:
        return len(batch[0])

    def eval_scores_per_batch(self, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
        x, y = batch
        return self.metric(self.inference(x), y)

    def predict(self, loader: Any, labels: bool = False) -> Tensor:
        logits: Tensor = super().predict(loader, labels)  # Any: it is what the models return, joined
        return logits.softmax(1)


class OwnLoss(TemplateModel):
    """A model that returns its loss, or a bare one; a schedule and a warm-up of one's own; a dict of loaders."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model_list = nn.ModuleList([model])
        self.optimizer_list = [torch.optim.AdamW(model.parameters())]
        self.criterion = None
        self.train_loader = {"a": [torch.zeros(2, 2)], "b": [torch.ones(2, 2)]}
        self.test_loader = None
        self.lr_scheduler_list = [torch.optim.lr_scheduler.StepLR(self.optimizer_list[0], 3)]
        self.warm_up_scheduler_list = [WarmUpLR(self.optimizer_list[0], 3, init_lr=1e-5)]
        self.eval_metrics = {"f1": Confusion(2).f1()}
        self.clip_grad = 1.0

    def loss_per_batch(self, batch: dict[str, Tensor]) -> Tensor:
        loss: Tensor = self.inference(batch["a"]).mean()
        return loss


def train(options: Options) -> float:
    seed_everything(3)
    trainer = Trainer(options)
    trainer.check_init(arg=options)
    found: str | None = trainer.load_state(options.resume) if options.resume else None
    trainer.change_lr([0.2])
    print(found)
    for epoch in trainer.epochs(options.epochs):
        losses = trainer.train_loop(write_params=epoch == 1)
        score: float = trainer.eval()
        print(losses["tol_loss"], score)
    trainer.save_state(trainer.path_of("own.pth"))
    print(trainer.predict([torch.randn(5, 4)]).shape, trainer.test([(torch.randn(5, 4), torch.zeros(5).long())])["acc"])
    print(trainer.best_epoch["clean/acc"], trainer.num_parameters(), trainer.updates_per_epoch(), trainer.skipped_updates)
    trainer.print_best_metrics()
    with Logger("own.txt"):
        print("done")
    return trainer.fit(options.epochs)["clean/acc"]


def train_on_two_processes(options: Options) -> float:
    scores: dict[int, float] = launch(train, 2, options)
    return scores[0]


class Step(StepRunner):
    def __call__(self, batch: tuple[Tensor, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
        loss: Tensor = self.loss_fn(self.net(batch[0]), batch[1])
        if self.stage == "train":
            self.accelerator.backward(loss)
            self.optimizer.step()
        return {f"{self.stage}_loss": loss}, {}


def fit_as_in_keras(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    model = KerasModel(net, nn.CrossEntropyLoss(), {"f1": Confusion(2).f1()}, torch.optim.Adam(net.parameters(), 1e-3))
    model.StepRunner = Step
    history = model.fit(batches, batches, epochs=2, monitor="val_loss", callbacks=[EarlyStopping("train_loss")], seed=3)
    print(history["val_loss"], model.history["lr"], model.predict(batches).shape, model(torch.zeros(1, 4)))
    model.save_ckpt("net.pt")
    model.load_ckpt("net.pt")
    score: float = model.evaluate(batches, quiet=True)["val_loss"]
    return score


def limit_of(trainer: TemplateModel) -> str:
    figures: dict[str, Any] = throughput(trainer)
    return f"{figures['limit']}, {figures['samples_per_second']} samples/s"


def make_whole(run: str) -> None:
    consolidate(f"{run}/last.pth", f"{run}/whole.pth")


if __name__ == "__main__":
    print(train(parse_options(Options)))
