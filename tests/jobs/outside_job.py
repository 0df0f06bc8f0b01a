"""Losses that do not take the way through a model's call, and what else ranks could drift apart by:
``torchrun --nproc-per-node 2 -m outside_job``.

The ranks train each case of ``CASES``; so does ``plain`` in one process, by a loop that knows nothing of the template.
"""

import os

import torch
from ranks import Tiny, hand_back
from tiny import tiny_data
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from template import Callback

EPOCHS, BATCH, SAMPLES = 2, 4, 59  # batches of this size on each rank
RANK, SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Dropout(0.0), nn.Tanh())
        self.head, self.expert = nn.Linear(16, 3), nn.Linear(16, 3)

    def encode(self, x):
        return self.encoder(x)

    def forward(self, x):
        hidden = self.encoder(x)
        return self.head(hidden) + self.expert(hidden)


def by_parts(net, x, y):
    hidden = net.encode(x)
    return cross_entropy(net.head(hidden) + 0.1 * net.expert(hidden), y)


def by_call_and_parts(net, x, y):
    return cross_entropy(net(x), y) + 0.1 * cross_entropy(net.expert(net.encode(x)), y) + net.head.weight.square().sum() / 50


def by_samples(net, x, y):
    """An expert for some samples: a rank may have none of them, and so may the whole update."""
    hidden = net.encode(x)
    chosen = (x[:, 0] > 1.3).nonzero()[:, 0]
    out = net.head(hidden)
    return cross_entropy(out.index_add(0, chosen, net.expert(hidden[chosen])) if len(chosen) else out, y)


def with_penalty(net, x, y):
    x = x.clone().requires_grad_()
    out = net(x)
    (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return cross_entropy(out, y) + 0.1 * gradient.square().sum(1).mean()


class Evaluating(Callback):
    """For fine-tuning: the mode of an evaluation, with gradients."""

    def on_train_start(self, model):
        model.net.eval()


class Freeze(Callback):
    """A part is frozen after an update, or from the beginning, and unfrozen later."""

    def __init__(self, part, frozen_at, unfrozen_at):
        self.part, self.frozen_at, self.unfrozen_at = part, frozen_at, unfrozen_at

    def begin(self, net):
        getattr(net, self.part).requires_grad_(self.frozen_at > 0)

    def on_after_step(self, model):
        if model.global_step in (self.frozen_at, self.unfrozen_at):
            getattr(model.net, self.part).requires_grad_(model.global_step == self.unfrozen_at)


class Look(Callback):
    """Gradients that rank 0 alone asks for, as for a picture of what the model looks at."""

    def on_after_step(self, model):
        if RANK == 0:
            x = torch.ones(2, 6, requires_grad=True)
            model.net(x).sum().backward()
            assert x.grad is not None
            for p in model.net.parameters():
                p.grad = None


SMALL = {"bucket_cap_mb": 0.0004}  # most gradients in a bucket of their own
CASES = {  # loss, attributes of the trainer, callback
    "called": (lambda net, x, y: cross_entropy(net(x), y), {}, None),
    "forward": (lambda net, x, y: cross_entropy(net.forward(x), y), {}, None),
    "parts": (by_parts, {}, None),
    "parts, accumulated": (by_parts, {"accumulate_steps": 2}, None),
    "parts, small buckets": (by_parts, {"parallel_options": SMALL}, None),
    "parts, unused searched": (by_parts, {"parallel_options": {"find_unused_parameters": True}}, None),
    "parts, static graph": (by_parts, {"parallel_options": {"static_graph": True}}, None),
    "mixed": (by_call_and_parts, {}, None),
    "mixed, accumulated": (by_call_and_parts, {"accumulate_steps": 3}, None),
    "by samples": (by_samples, {"parallel_options": SMALL}, None),
    "functional": (lambda net, x, y: cross_entropy(functional_call(net, dict(net.named_parameters()), (x,)), y), {}, None),
    "checkpointed": (lambda net, x, y: cross_entropy(net.head(checkpoint(net.encode, x, use_reentrant=False)), y),
                     {"accumulate_steps": 2}, None),
    "penalty": (with_penalty, {}, None),
    "in eval mode": (lambda net, x, y: cross_entropy(net(x), y), {}, Evaluating),
    "head frozen": (by_parts, {}, lambda: Freeze("head", 2, 5)),
    "encoder frozen": (by_call_and_parts, {"accumulate_steps": 2}, lambda: Freeze("encoder", 1, 3)),
    "frozen, small buckets": (by_call_and_parts, {"parallel_options": SMALL}, lambda: Freeze("encoder", 3, 6)),
    "frozen for good": (by_parts, {}, lambda: Freeze("expert", 1, None)),
    "called, frozen": (lambda net, x, y: cross_entropy(net(x), y), {}, lambda: Freeze("head", 2, 5)),
    "called, frozen at first": (lambda net, x, y: cross_entropy(net(x), y), {"accumulate_steps": 2},
                                lambda: Freeze("encoder", 0, 2)),
    "called, looked at": (lambda net, x, y: cross_entropy(net(x), y), {}, Look),
}


def net(seed=1):
    torch.manual_seed(seed)
    return Net()


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), 0.02)


def vector(module):
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in module.parameters()]
    return torch.cat([p.detach().double().flatten() for p in whole])


def plain(name, num_ranks):
    """The weights that one process ends with, whose batches are as large as those of the ranks together."""
    loss, attributes, callback = CASES[name]

    class Place:
        net, global_step = net(), 0

    callback, count = callback and callback(), attributes.get("accumulate_steps", 1)
    if isinstance(callback, Freeze):
        callback.begin(Place.net)
    optimizer = optimizer_of(Place.net)
    batches = list(zip(*(part.split(num_ranks * BATCH) for part in tiny_data(SAMPLES))))
    for _ in range(EPOCHS):
        Place.net.train()
        if callback:
            callback.on_train_start(Place)
        for first in range(0, len(batches), count):
            group = batches[first:first + count]
            samples = sum(len(y) for _, y in group)
            optimizer.zero_grad()
            for x, y in group:
                (loss(Place.net, x, y) * len(y) / samples).backward()
            optimizer.step()
            Place.global_step += 1
            if callback:
                callback.on_after_step(Place)
    return vector(Place.net)


class Trainer(Tiny):
    def __init__(self, loss, callback=None, **attributes):
        super().__init__(net(1 + RANK), preflight=False, eval_loader=None, log_per_step=1, **attributes)
        self.net, self.loss = self.model_list[0], loss
        self.optimizer_list = [optimizer_of(self.net)]
        self.train_loader = DataLoader(TensorDataset(*tiny_data(SAMPLES)), BATCH)
        self.callbacks = [callback] if callback else []
        if isinstance(callback, Freeze):
            callback.begin(self.net)

    def loss_per_batch(self, batch):
        return self.loss(self.net, *batch)


def train(name, loss, callback=None, **attributes):
    trainer = Trainer(loss, callback, **attributes)
    trainer.ckpt_dir = f"check_point/{name}"
    trainer.check_init(use_tb=False)
    trainer.fit(EPOCHS)
    return trainer


def continued(ckpt_dir, *stops):
    """The weights after a training that new objects went on with behind each of ``stops``; buckets of several gradients."""
    for stop in stops:
        trainer = Trainer(by_call_and_parts, Freeze("head", 6, 8), parallel_options={"bucket_cap_mb": 0.001}, clip_grad=0.5)
        trainer.ckpt_dir = ckpt_dir
        trainer.check_init(use_tb=False)
        trainer.load_state("auto")
        trainer.fit(stop)
    return vector(trainer.net)


def caught(call):
    try:
        call()
        return "nothing was raised"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def without_expert(net, x, y):
    """Its call promises gradients that never come; the last layer is frozen meanwhile."""
    if not net.head.weight.requires_grad:
        net(x)
        return cross_entropy(net.head(net.encode(x)), y)
    return cross_entropy(net(x), y)


def unreached():
    trainer = Trainer(without_expert, Freeze("head", 3, None), ckpt_dir="check_point/unreached")
    trainer.check_init(use_tb=False)
    return {"error": caught(lambda: trainer.fit(EPOCHS)), "updates": trainer.global_step}


# --- weights and buffers that differ ----------------------------------------------------------------------------------


class Hurt(Callback):
    """The last rank alone drops a gradient."""

    def __init__(self, update):
        self.update = update

    def on_before_step(self, model):
        if model.global_step + 1 == self.update and RANK == SIZE - 1:
            model.net.head.bias.grad.zero_()


class Holding(nn.Module):
    """Buffers of every kind, other ones on each rank; one of them is replaced in every forward."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
        values = torch.arange(6) + 10 * RANK
        for dtype in (torch.int16, torch.uint16, torch.uint32, torch.float8_e4m3fn, torch.bfloat16, torch.uint8, torch.int64,
                      torch.float64, torch.complex64):
            self.register_buffer("of_" + str(dtype).partition(".")[2], values.to(dtype))
        self.register_buffer("boolean", values % 3 == RANK)
        self.register_buffer("expanded", torch.full((1, 1), 1.0 + RANK).expand(2, 3))
        self.register_buffer("transposed", (torch.arange(6.0) + RANK).view(2, 3).t())
        self.register_buffer("sparse", (torch.eye(3) * (1 + RANK)).to_sparse())
        self.register_buffer("scalar", torch.tensor(1.0 + RANK))
        self.register_buffer("nothing", torch.zeros(0))
        self.register_buffer("absent", None)
        self.register_buffer("replaced", torch.zeros(()))

    def forward(self, x):
        self.replaced = 0.5 * self.replaced + x.mean()
        return self.layer(x)


def comparable(buffers):
    dense = {name: value.to_dense() if value.is_sparse else value for name, value in buffers.items()}
    plain = {name: torch.view_as_real(value) if value.is_complex() else value.double() for name, value in dense.items()}
    return {name: value.contiguous() for name, value in plain.items()}


def holding():
    torch.manual_seed(1)
    trainer = Tiny(Holding(), preflight=False, eval_loader=None, ckpt_dir="check_point/holding",
                   train_loader=DataLoader(TensorDataset(*tiny_data(SAMPLES)), BATCH))
    trainer.check_init(use_tb=False)
    at_start = comparable({name: value.clone() for name, value in trainer.model_list[0].named_buffers()})
    trainer.fit(1)
    return {"at start": at_start, "at the end": comparable(dict(trainer.model_list[0].named_buffers()))}


class SparseWords(Tiny):
    """An embedding with sparse gradients and its own optimizer."""

    def __init__(self, batch_size):
        torch.manual_seed(1)
        embedding, head = nn.Embedding(40, 8, sparse=True), nn.Linear(8, 3)
        words = torch.randint(40, (SAMPLES, 5), generator=torch.Generator().manual_seed(2))
        super().__init__(embedding, preflight=False, eval_loader=None, ckpt_dir="check_point/sparse")
        self.model_list = [embedding, head]
        self.optimizer_list = [torch.optim.SparseAdam(embedding.parameters(), 0.02), torch.optim.SGD(head.parameters(), 0.1)]
        self.train_loader = DataLoader(TensorDataset(words, tiny_data(SAMPLES)[1]), batch_size)

    def inference(self, x):
        return self.model_list[1](self.model_list[0](x).mean(1))


def sparse_words(batch_size=BATCH):
    trainer = SparseWords(batch_size)
    trainer.check_init(use_tb=False)
    trainer.fit(EPOCHS)
    return vector(nn.ModuleList(trainer.model_list))


# --- weights in parts -------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, pred, y):
        return cross_entropy(pred * self.scale, y)


def with_criterion(**attributes):
    trainer = Trainer(by_parts, **attributes)
    trainer.criterion = Scaled()
    trainer.optimizer_list[0].add_param_group({"params": trainer.criterion.parameters()})
    trainer.check_init(use_tb=False)


def in_parts():
    called = CASES["called"][0]
    trainer = train("fsdp", called, parallel="fsdp")
    found = {"called": vector(trainer.net), "save_model": caught(lambda: trainer.save_model("model.pth")),
             "criterion": caught(lambda: with_criterion(parallel="fsdp")),
             "mixed": vector(train("fsdp mixed", by_call_and_parts, parallel="fsdp").net),
             "in eval mode": vector(train("fsdp eval", called, Evaluating(), parallel="fsdp").net)}
    for name, loss in {"parts": by_parts, "forward": CASES["forward"][0],
                       "a weight": lambda net, x, y: net.head.weight.square().sum() / 50 + cross_entropy(net(x), y)}.items():
        found[name] = caught(lambda loss=loss, name=name: train(f"fsdp {name}", loss, parallel="fsdp"))
    return found


if __name__ == "__main__":
    found = {name: vector(train(name, loss, callback and callback(), **attributes).net)
             for name, (loss, attributes, callback) in CASES.items()}
    found["unreached"] = unreached()
    found["differ at once"] = caught(lambda: train("at once", by_parts, Hurt(1)))
    found["differ later"] = caught(lambda: train("later", by_parts, Hurt(3), save_per_steps=2))
    found |= {"whole": continued("check_point/whole", 3), "continued": continued("check_point/continued", 1, 3)}
    hand_back(found | {"holding": holding(), "sparse": sparse_words(), "fsdp": in_parts()})
