"""Trainings that come out alike in any number of processes: ``torchrun --nproc-per-node 2 -m training_job``.

Each entry of ``ALIKE`` makes a trainer for batches of a given size; a single process takes one that is as many times larger
as there are ranks.
"""

import math
import os

import torch
from ranks import DEVICE, Tiny, hand_back
from tiny import tiny_data, tiny_model, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import EMA, SWA, Callback, Checkpoints, EarlyStopping, TensorLoader, build_optimizer
from template.callbacks.history import History
from template.template import TemplateModel

EPOCHS = 2
BATCH = 4


class Noted(Callback):
    """What each epoch gave, and how many exchanges between the ranks there were until each log point."""

    def __init__(self):
        self.losses, self.updates, self.exchanges = [], 0, []

    def on_log(self, model, values):
        if model.world.size > 1:
            self.exchanges.append((model.global_step, model.world.watch.exchanges))

    def on_after_step(self, model):
        self.updates += 1

    def on_train_end(self, model, result):
        self.losses.append(dict(result))


def loader(batch_size, num_samples=53, seed=0, **options):
    return DataLoader(TensorDataset(*tiny_data(num_samples, seed=seed)), batch_size, shuffle=True, **options)


def tiny(batch_size, num_samples=53, **attributes):
    return Tiny(tiny_model(dropout=0.0), train_loader=loader(batch_size, num_samples), **attributes)


def with_adamw(batch_size):
    trainer = tiny(batch_size, lr_scheduler_type="cosine", warm_up_updates=3)
    trainer.optimizer_list = [torch.optim.AdamW(trainer.model_list[0].parameters(), 0.02)]
    return trainer


def with_muon(batch_size):
    """Muon rounds to bf16, so that its steps differ by more than the gradients do."""
    trainer = tiny(batch_size, warm_up_updates=3, warm_up_momentum=0.8, warm_up_bias_lr=1e-3, clip_grad=1.0)
    kind = "Muon" if hasattr(torch.optim, "Muon") else "AdamW"
    trainer.optimizer_list = build_optimizer(kind, trainer.model_list, 1e-4, weight_decay=0.1)
    return trainer


class Words(Tiny):
    """Sequences of unequal lengths: the loss is a mean over words, and so is everything."""

    def __init__(self, batch_size):
        super().__init__(nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7)))
        generator = torch.Generator().manual_seed(2)
        words = torch.randint(7, (37, 9), generator=generator)
        lengths = torch.randint(2, 9, (37, 1), generator=generator)
        y = words.roll(-1, 1).masked_fill(torch.arange(9) >= lengths, -100)
        self.train_loader = DataLoader(TensorDataset(words, y), batch_size, shuffle=True)
        self.eval_loader = DataLoader(TensorDataset(words[:11], y[:11]), 4)

    def loss_per_batch(self, batch):
        words, y = batch
        return nn.functional.cross_entropy(self.inference(words).transpose(1, 2), y)

    def eval_scores_per_batch(self, batch):
        return {}

    def count_samples(self, batch):
        return (batch[1] != -100).sum()


class TwoLoaders(Tiny):
    """A labelled and a shorter unlabelled set."""

    def __init__(self, batch_size):
        super().__init__(tiny_model(dropout=0.0))
        self.train_loader = {"labelled": loader(batch_size, 48), "other": loader(batch_size, 24, seed=7)}

    def loss_per_batch(self, batch):
        if not isinstance(batch, dict):
            return super().loss_per_batch(batch)
        labelled, other = super().loss_per_batch(batch["labelled"])["tol_loss"], self.inference(batch["other"][0])
        return {"tol_loss": labelled + 0.1 * other.square().mean(), "labelled": labelled}


class Chain(Tiny):
    """Two models, each with an optimizer of its own; the second one is used through its own attribute."""

    def __init__(self, batch_size):
        super().__init__()
        torch.manual_seed(4)
        self.encoder, self.head = nn.Sequential(nn.Linear(6, 12), nn.Tanh()), nn.Linear(12, 3)
        self.model_list = [self.encoder, self.head]
        self.optimizer_list = [torch.optim.AdamW(self.encoder.parameters(), 0.02),
                               torch.optim.SGD(self.head.parameters(), 0.1, momentum=0.9)]
        self.train_loader = loader(batch_size)

    def inference(self, x):
        return self.head(self.encoder(x))


class Gan(TemplateModel):
    """Two updates per batch; the noise stands in the data."""

    def __init__(self, batch_size):
        super().__init__()
        torch.manual_seed(4)
        self.generator = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6))
        self.discriminator = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1))
        self.model_list = [self.generator, self.discriminator]
        self.optimizer_list = [torch.optim.Adam(model.parameters(), 0.005) for model in self.model_list]
        self.train_loader = DataLoader(TensorDataset(tiny_data()[0], tiny_data(seed=9)[0]), batch_size, shuffle=True)
        self.seed, self.device = 3, DEVICE

    def train_step(self, batch):
        noise, real = batch
        fake = self.generator(noise)
        of_real, of_fake = self.discriminator(real), self.discriminator(fake.detach())
        loss_d = nn.functional.softplus(-of_real).mean() + nn.functional.softplus(of_fake).mean()
        self.backward(loss_d, 1)
        self.update(1)
        loss_g = nn.functional.softplus(-self.discriminator(fake)).mean()
        self.backward(loss_g, 0)
        self.update(0)
        return {"tol_loss": loss_g, "discriminator": loss_d}


class WithNan(Tiny):
    """One sample is not finite: only the rank that reads it sees so in its loss."""

    def __init__(self, batch_size):
        super().__init__(tiny_model(dropout=0.0), skip_non_finite=2)
        x, y = tiny_data()
        x[31] = math.nan
        self.train_loader = DataLoader(TensorDataset(x, y), batch_size, shuffle=True)


ALIKE = {
    "sgd": tiny,
    "adamw": with_adamw,
    "accumulated": lambda batch_size: tiny(batch_size, accumulate_steps=2),
    "nominal batch": lambda batch_size: tiny(batch_size, nominal_batch_size=40, warm_up_updates=3),
    "muon and adamw": lambda batch_size: with_muon(batch_size),
    "one sample left": lambda batch_size: tiny(batch_size, 49, log_per_step=1),
    "clipped": lambda batch_size: tiny(batch_size, clip_grad=0.1),
    "words": Words,
    "two loaders": TwoLoaders,
    "chain": Chain,
    "gan": Gan,
    "gan, accumulated": lambda batch_size: accumulated(Gan(batch_size)),
    "skips": WithNan,
    "in memory": lambda batch_size: in_memory(batch_size),
    "weights in the criterion": lambda batch_size: with_temperature(batch_size),
    "unfrozen later": lambda batch_size: unfrozen_later(batch_size),
    "a group added later": lambda batch_size: added_later(batch_size),
    "lbfgs": lambda batch_size: with_lbfgs(batch_size),
    "lbfgs, accumulated": lambda batch_size: accumulated(with_lbfgs(batch_size)),
    "sum": lambda batch_size: with_sum(batch_size),
    "sum, accumulated": lambda batch_size: accumulated(with_sum(batch_size)),
    "unlabelled": lambda batch_size: Unlabelled(batch_size),
    "unlabelled, accumulated": lambda batch_size: accumulated(Unlabelled(batch_size)),
    "filled again": lambda batch_size: filled_again(batch_size),
    "averaged": lambda batch_size: tiny(batch_size, callbacks=[EMA(0.9)]),
    "mean of the weights": lambda batch_size: tiny(batch_size, callbacks=[SWA(1, swa_lr=0.05)]),
}


def with_sum(batch_size):
    trainer = tiny(batch_size, criterion=nn.CrossEntropyLoss(reduction="sum"))
    trainer.optimizer_list = [torch.optim.SGD(trainer.model_list[0].parameters(), 0.01)]
    return trainer


class Unlabelled(Tiny):
    """Half of the labels are missing, so some batches of a rank have none: their loss is a mean over nothing."""

    def __init__(self, batch_size):
        super().__init__(tiny_model(dropout=0.0))
        x, y = tiny_data()
        y[::2] = -1
        self.train_loader = DataLoader(TensorDataset(x, y), batch_size, shuffle=True)
        self.criterion = nn.CrossEntropyLoss(ignore_index=-1)

    def count_samples(self, batch):
        return (batch[1] >= 0).sum()


class FilledAgain:
    """Each batch is in the same memory, the short last one too."""

    def __init__(self, batch_size):
        self.batch_size, self.memory = batch_size, [part[:batch_size].clone() for part in tiny_data()]

    def __len__(self):
        return -(-53 // self.batch_size)

    def __iter__(self):
        for parts in zip(*(part.split(self.batch_size) for part in tiny_data())):
            yield [memory[:len(part)].copy_(part) for memory, part in zip(self.memory, parts)]


def filled_again(batch_size):
    trainer = tiny(batch_size)
    trainer.train_loader = FilledAgain(batch_size)
    return trainer


def accumulated(trainer):
    trainer.accumulate_steps = 2
    return trainer


class Tempered(nn.Module):
    """A criterion with a weight of its own, which is learned."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, pred, y):
        return nn.functional.cross_entropy(pred / self.temperature, y)


def with_temperature(batch_size):
    trainer = tiny(batch_size)
    trainer.criterion = Tempered()
    trainer.optimizer_list[0].add_param_group({"params": list(trainer.criterion.parameters())})
    return trainer


class Unfreeze(Callback):
    def on_train_start(self, model):
        model.model_list[0].requires_grad_(model.epoch > 1)
        model.model_list[0][-1].requires_grad_()


def unfrozen_later(batch_size):
    trainer = tiny(batch_size, callbacks=[Unfreeze()], preflight=False)
    Unfreeze().on_train_start(trainer)
    return trainer


def with_lbfgs(batch_size):
    """In float64: differences of gradients, which it divides by, make much of the order of summation."""
    trainer = Tiny(tiny_model(dropout=0.0).double(), train_loader=loader(batch_size), clip_grad=1.0)
    trainer.optimizer_list = [torch.optim.LBFGS(trainer.model_list[0].parameters(), 0.1, max_iter=3, history_size=4)]
    return trainer


class AddGroup(Callback):
    """The first layer is trained from epoch 2 on, in a group of its own."""

    def on_train_start(self, model):
        optimizer, first = model.optimizer_list[0], model.model_list[0][0]
        if model.epoch == 2:
            first.requires_grad_(True)
            optimizer.add_param_group({"params": first.parameters(), "lr": 0.05})


def added_later(batch_size):
    trainer = tiny(batch_size, callbacks=[AddGroup()], lr_scheduler_type="cosine", clip_grad=0.5)
    first, *_, last = trainer.model_list[0]
    first.requires_grad_(False)
    trainer.optimizer_list = [torch.optim.SGD(last.parameters(), 0.1, momentum=0.9)]
    return trainer


def in_memory(batch_size):
    trainer = tiny(batch_size)
    trainer.train_loader = TensorLoader(*tiny_data(), batch_size=batch_size, shuffle=True)
    return trainer


def run(name, batch_size):
    """Train one of ``ALIKE`` in this folder."""
    return train(ALIKE[name](batch_size), name)


def train(trainer, name, fit=lambda trainer: trainer.fit(EPOCHS)):
    noted = Noted()
    trainer.ckpt_dir, trainer.callbacks = f"check_point/{name}", [noted, History(png=False), *(trainer.callbacks or [])]
    trainer.check_init(use_tb=False)
    fit(trainer)
    return {"weights": weights(trainer), "losses": noted.losses, "updates": noted.updates, "eval": dict(trainer.eval_result),
            "best": dict(trainer.best_metric), "skipped": trainer.skipped_updates, "exchanges": noted.exchanges}


# --- what only several processes do -------------------------------------------------------------------------------------


class Unused(Tiny):
    """A layer that forward() passes by."""

    def __init__(self, **attributes):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.spare = nn.Linear(6, 3), nn.Linear(6, 3)

            def forward(self, x):
                return self.used(x)

        torch.manual_seed(1)
        super().__init__(Model(), train_loader=loader(BATCH), preflight=False, **attributes)


class Normed(Tiny):
    """Each rank normalises by the batches that it has seen."""

    def __init__(self, batch_size=BATCH, **attributes):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        super().__init__(model, train_loader=loader(batch_size, 52), **attributes)
        self.callbacks = [self.Buffers()]

    class Buffers(Callback):
        def __init__(self):
            self.trained, self.evaluated = [], []

        def on_train_end(self, model, result):
            self.trained.append(model.model_list[0][1].running_mean.clone())

        def on_eval_batch(self, model, batch):
            self.evaluated.append(model.model_list[0][1].running_mean.clone())


class Script2021(Tiny):
    """The loop of 2021: no ``epochs()``, and the subclass counts."""

    def fit(self, epochs):
        for _ in range(epochs):
            self.epoch += 1
            self.train_loop()
            self.eval_loop(save_per_epochs=1)
        self.print_best_metrics()


def only_several(size):
    results = {}
    results["bf16"] = train(tiny(BATCH, amp="bf16"), "bf16")
    results["unused"] = caught(lambda: train(Unused(), "unused"))
    options = {"find_unused_parameters": True}
    results["unused, searched"] = train(Unused(parallel_options=options), "unused, searched")
    rank = int(os.environ["RANK"])
    results["each alone"] = train(tiny(BATCH, parallel=None), f"alone{rank}")
    for name, options in {"normed": {}, "normed apart": {"broadcast_buffers": False}}.items():
        trainer = Normed(parallel_options=options)
        results[name] = train(trainer, name)
        results[name] |= {"trained": trainer.callbacks[2].trained, "evaluated": trainer.callbacks[2].evaluated}
    results["2021"] = train(Script2021(tiny_model(dropout=0.0), train_loader=loader(BATCH)), "2021")
    swa, trainer = SWA(2), Normed()
    trainer.callbacks = [swa]
    results["mean normed"] = train(trainer, "mean normed") | {"statistics": swa.state_dict()["statistics"]}
    best = Checkpoints("tol_loss", top_k=1)
    stopping = EarlyStopping("train/tol_loss", patience=1, min_delta=100.0, restore_best=True)
    results["restored"] = train(tiny(BATCH, callbacks=[stopping, best]), "restored") | {"files": [str(best.files[0])]}
    if DEVICE == "cuda":
        results["synced"] = train(Normed(sync_batchnorm=True), "synced")
    return results


def caught(call):
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    size = int(os.environ["WORLD_SIZE"])
    found = {name: run(name, BATCH) for name in ALIKE}
    hand_back(found | (only_several(size) if size == 2 else {}))
