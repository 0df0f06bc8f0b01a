"""Other trainers on the job of the hand-written loops, each in so far as it can be imported here.

    python -m pip install lightning accelerate pytorch-ignite skorch poutyne keras     # beside torch; any of them
    python -m benchmarks.loop --only peers

Each runs as its documentation shows it: its progress bar or table, its own evaluation every epoch, and what it logs and
saves when nobody says otherwise. The time that ``fit`` takes before its first epoch is not counted. Its checkpoints, where
it writes any, promise less than those of the template and of the equipped loop.
"""

import os
import time
from importlib.util import find_spec

from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from .by_hand import EVAL_BATCH, LOG_EVERY, Contender, score


class NotedSampler(RandomSampler):
    """Notes when the first epoch since ``is_fresh`` was set begins."""

    is_fresh, started = True, 0.0

    def __iter__(self):
        if self.is_fresh:
            self.is_fresh, self.started = False, time.perf_counter()
        return super().__iter__()


class Peer(Contender):
    """Subclasses define ``prepare`` and ``fit``, which trains and evaluates so many epochs more."""

    def __init__(self, job, folder):
        os.chdir(folder)
        self.job, self.updates = job, job.updates
        train, held_out = (TensorDataset(*part) for part in job.data())
        self.sampler = NotedSampler(train)
        self.train_loader = DataLoader(train, job.batch_size, sampler=self.sampler)
        self.eval_loader = DataLoader(held_out, EVAL_BATCH)
        self.model, self.criterion = job.model(), nn.CrossEntropyLoss()
        self.optimizer = job.optimizer(self.model.parameters())
        self.prepare()

    def epochs(self, count):
        self.sampler.is_fresh = True
        self.fit(count)
        return (time.perf_counter() - self.sampler.started) / (count * self.updates)

    def result(self):
        return score(self.model, self.eval_loader, self.criterion)


class Lightning(Peer):
    options = {}

    def prepare(self):
        import lightning

        peer = self

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = peer.model

            def training_step(self, batch, index):
                x, y = batch
                loss = peer.criterion(self.net(x), y)
                peer.log_training(self, loss)
                return loss

            def validation_step(self, batch, index):
                x, y = batch
                pred = self.net(x)
                self.log("eval_loss", peer.criterion(pred, y), prog_bar=True)
                self.log("accuracy", (pred.argmax(1) == y).float().mean(), prog_bar=True)

            def configure_optimizers(self):
                return peer.optimizer

        self.module = Module()
        self.trainer = lightning.Trainer(accelerator="cpu", devices=1, max_epochs=0, log_every_n_steps=LOG_EVERY,
                                         **self.options)

    def log_training(self, module, loss):
        module.log("loss", loss, prog_bar=True)

    def fit(self, count):
        self.trainer.fit_loop.max_epochs += count
        self.trainer.fit(self.module, self.train_loader, self.eval_loader)


class LightningOff(Lightning):
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
               "num_sanity_val_steps": 0}

    def log_training(self, module, loss):
        pass


class Fabric(Peer):
    def prepare(self):
        from lightning.fabric import Fabric

        self.fabric = Fabric(accelerator="cpu", devices=1)
        self.wrapped, self.wrapped_optimizer = self.fabric.setup(self.model, self.optimizer)
        self.loaders = self.fabric.setup_dataloaders(self.train_loader, self.eval_loader)

    def fit(self, count):
        for _ in range(count):
            self.wrapped.train()
            for x, y in self.loaders[0]:
                self.wrapped_optimizer.zero_grad()
                self.fabric.backward(self.criterion(self.wrapped(x), y))
                self.wrapped_optimizer.step()
            score(self.wrapped, self.loaders[1], self.criterion)


class Accelerate(Peer):
    def prepare(self):
        from accelerate import Accelerator

        self.accelerator = Accelerator(cpu=True)
        self.prepared = self.accelerator.prepare(self.model, self.optimizer, self.train_loader, self.eval_loader)

    def fit(self, count):
        model, optimizer, train_loader, eval_loader = self.prepared
        for _ in range(count):
            model.train()
            for x, y in train_loader:
                optimizer.zero_grad()
                self.accelerator.backward(self.criterion(model(x), y))
                optimizer.step()
            score(model, eval_loader, self.criterion)


class Ignite(Peer):
    def prepare(self):
        from ignite.contrib.handlers import ProgressBar
        from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
        from ignite.metrics import Accuracy, Loss, RunningAverage

        self.trainer = create_supervised_trainer(self.model, self.optimizer, self.criterion)
        evaluator = create_supervised_evaluator(self.model, {"accuracy": Accuracy(), "loss": Loss(self.criterion)})
        RunningAverage(output_transform=lambda loss: loss).attach(self.trainer, "loss")
        ProgressBar().attach(self.trainer, ["loss"])
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(self.eval_loader))

    def fit(self, count):
        self.trainer.run(self.train_loader, max_epochs=self.trainer.state.epoch + count)


class Skorch(Peer):
    def prepare(self):
        from skorch import NeuralNetClassifier
        from skorch.helper import predefined_split

        self.net = NeuralNetClassifier(
            self.model, criterion=nn.CrossEntropyLoss, optimizer=lambda parameters, lr: self.optimizer,
            lr=self.job.learning_rate, batch_size=self.job.batch_size, iterator_train__sampler=self.sampler,
            iterator_valid__batch_size=EVAL_BATCH, train_split=predefined_split(self.eval_loader.dataset),
        ).initialize()
        self.model = self.net.module_

    def fit(self, count):
        self.net.partial_fit(self.train_loader.dataset, None, epochs=count)


class Poutyne(Peer):
    def prepare(self):
        from poutyne import Model

        self.wrapper = Model(self.model, self.optimizer, self.criterion, batch_metrics=["accuracy"])

    def fit(self, count):
        self.wrapper.fit_generator(self.train_loader, self.eval_loader, epochs=count)


class Keras(Peer):
    def prepare(self):
        os.environ["KERAS_BACKEND"] = "torch"
        import keras

        linear = [layer for layer in self.model if isinstance(layer, nn.Linear)]
        self.network = keras.Sequential([keras.Input(self.job.shape),
                                         *[keras.layers.Dense(layer.out_features, "relu") for layer in linear[:-1]],
                                         keras.layers.Dense(linear[-1].out_features)])
        weights = [tensor.detach().numpy() for layer in linear for tensor in (layer.weight.T, layer.bias)]
        self.network.set_weights(weights)
        self.network.compile(keras.optimizers.SGD(self.job.learning_rate, momentum=0.9),
                             keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])

    def fit(self, count):
        self.network.fit(self.train_loader, epochs=count, validation_data=self.eval_loader)

    def result(self):
        loss, accuracy = self.network.evaluate(self.eval_loader, verbose=0)
        return float(loss), float(accuracy)


PEERS = {  # what the row says: (module, class)
    "Lightning Fabric, a loop of one's own": ("lightning", Fabric),
    "accelerate, a loop of one's own": ("accelerate", Accelerate),
    "skorch, its table": ("skorch", Skorch),
    "poutyne, its bar and accuracy": ("poutyne", Poutyne),
    "ignite, its bar": ("ignite", Ignite),
    "Lightning, everything off": ("lightning", LightningOff),
    "Lightning, bar, log and checkpoints": ("lightning", Lightning),
    "Keras on torch, its bar and accuracy": ("keras", Keras),
}


def present():
    """``{what the row says: (class,)}`` of those that can be imported."""
    return {what: (kind,) for what, (module, kind) in PEERS.items() if find_spec(module)}


def told():
    """One line: the versions of those that are here, the names of the others."""
    from importlib.metadata import packages_distributions, version

    modules = dict.fromkeys(module for module, _ in PEERS.values())
    here = [f"{module} {version(packages_distributions()[module][0])}" for module in modules if find_spec(module)]
    absent = [module for module in modules if not find_spec(module)]
    return "; ".join(["peers: " + (", ".join(here) or "none"), *(["not installed: " + ", ".join(absent)] if absent else [])])
