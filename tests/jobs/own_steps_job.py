"""Scripts that do by themselves what the template does for several processes, or that go another way than its own step:
``torchrun --nproc-per-node 2 -m own_steps_job``."""

import torch
import torch.distributed as dist
from ranks import Tiny, hand_back
from sharded_job import deep_model, whole_weights
from tiny import tiny_data
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from training_job import BATCH, Gan, Normed, loader

from template import Callback, Divided
from template.callbacks.history import History


def train(trainer, name, **attributes):
    for key, value in attributes.items():
        setattr(trainer, key, value)
    trainer.ckpt_dir, trainer.callbacks = f"check_point/{name}", [History(png=False), *(trainer.callbacks or [])]
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    return whole_weights(trainer)


class TwoRates(Tiny):
    """Each half of a model has an optimizer and a loss of its own. What the model says is looked at before the update."""

    def __init__(self, batch_size):
        net = deep_model()
        super().__init__(net, train_loader=loader(batch_size, 48), clip_grad=0.5, accumulate_steps=2)
        first, *others = net.children()
        self.optimizer_list = [torch.optim.Adam(first.parameters(), 0.01),
                               torch.optim.SGD([p for part in others for p in part.parameters()], 0.1)]

    def train_step(self, batch):
        loss = self.loss_per_batch(batch)["tol_loss"]
        self.backward(loss, 0, retain_graph=True)
        self.backward(2 * loss, 1)
        with torch.no_grad():
            self.inference(batch[0])
        self.update()
        return {"tol_loss": loss}


class Book(nn.Module):
    """A buffer that forwards change, and that the next ones compute with."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(6))
        self.seen = []  # how each forward of the training found it

    def forward(self, x):
        if self.training:
            self.seen.append(self.mean.tolist())
            self.mean.lerp_(x.mean(0), 0.2)
        return self.layer(x - self.mean)


class Steps(Tiny):
    def train_step(self, batch):
        losses = self.loss_per_batch(batch)
        self.backward(losses["tol_loss"])
        return losses


class ByHand(Tiny):
    def train_step(self, batch):
        losses, (optimizer,) = self.loss_per_batch(batch), self.optimizer_list
        losses["tol_loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        return losses


class Random(IterableDataset):
    """Samples that are made of the global random numbers."""

    def __iter__(self):
        for _ in range(32):
            yield torch.randn(6), 1


class Seen(Callback):
    """Which parameters a model has behind an evaluation."""

    def on_eval_result(self, model, result):
        held = {p for optimizer in model.optimizer_list for group in optimizer.param_groups for p in group["params"]}
        self.are_trained = all(p in held for p in model.model_list[0].parameters())


def books(**attributes):
    book = Book()
    train(Steps(book, train_loader=loader(BATCH, 48)), f"book {attributes}", **attributes)
    return book.seen


def normed(wrapped):
    """An evaluation of one batch, which only rank 0 has."""
    trainer = Normed()
    trainer.callbacks = []
    trainer.eval_loader = DataLoader(TensorDataset(*tiny_data(5)), 5)
    if wrapped:
        trainer.model_list = [DistributedDataParallel(trainer.model_list[0])]
    return train(trainer, f"normed {wrapped}")


def divided_before():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net = deep_model()
    fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    train(Tiny(net), "divided before")


def said(call):
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return f"{error}"
    return "nothing"


if __name__ == "__main__":
    dist.init_process_group("gloo")  # as a script does that wraps its model itself
    seen = Seen()
    parts = {"parallel": "fsdp", "parallel_options": {"blocks": 50}}
    found = {"gan": train(Gan(BATCH), "gan", parallel="fsdp"),
             "two": train(TwoRates(BATCH), "two", callbacks=[seen], **parts), "are trained": seen.are_trained,
             "books": books(), "books apart": books(parallel_options={"broadcast_buffers": False}),
             "wrapped": normed(True), "plain": normed(False),
             "by hand": said(lambda: train(ByHand(), "by hand")),
             "same": said(lambda: train(Tiny(train_loader=Divided(DataLoader(Random(), BATCH))), "same")),
             "divided before": said(divided_before)}
    hand_back(found)
    dist.destroy_process_group()
