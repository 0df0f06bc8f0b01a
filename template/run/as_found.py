"""A trainer that something looks at by training it: afterwards it is as it was, to the bit.

    with as_found(trainer):                    # tools/find_lr.py, tools/overfit.py, …
        as_in_training(trainer)
        for losses in updates(trainer, batches_again_and_again(trainer)):
            …                                  # {"tol_loss": …} of each update

Back go weights, buffers, gradients and modes, optimizers, schedules, the loss scaler, all random generators, counters,
best values, what callbacks and metrics hold, and the place in the data; also after an error, Ctrl-C or SIGTERM. Meanwhile
callbacks and schedules hear nothing, and nothing is written: not to the log, not to TensorBoard.

The copies are on the host: as much memory as the models and the states of their optimizers take, with Adam three times the
models. What a data set or another object of your own keeps goes back if it has ``state_dict`` and ``load_state_dict``.
"""

from __future__ import annotations

import copy
import itertools
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from ..data.in_memory import TensorLoader
from ..data.seeding import GENERATORS, own_generators, put_back, rng_kept, state_of
from ..hooks import Callback, Hooks
from ..metrics.accumulators import Metric
from ..metrics.epoch import RunningLosses
from ..metrics.modes import train_mode
from ..output.event_writer import NoWriter, WriterOfRun
from ..output.speed import Speed
from ..update.guard import SkipGuard
from ..update.schedule import Schedule
from ..update.stepper import Stepper, make_clip
from ..update.user_schedulers import Watched
from .checks import require_init
from .counting import SampleCounter
from .defaults import follow_reduction, loss_dict
from .setup import batches_to_train

if TYPE_CHECKING:
    from ..template import TemplateModel

_LONG = 10_000  # entries: such a list holds data, and is copied without a look at them


@contextmanager
def as_found(trainer: TemplateModel, call: str = "as_found()") -> Iterator[None]:
    """Around what trains or changes a ``TemplateModel`` only to learn something of it. Every rank has to call it.

    Args:
        call: what a person called, for messages.

    Raises:
        RuntimeError: ``check_init`` was not called.
        ValueError: weights are divided among the ranks, or a model does not know its shapes yet.
    """
    require_init(trainer)
    trainer.world.begin(call)
    if trainer.is_sharded:
        raise ValueError(f"{call} needs whole weights, and under parallel='fsdp' each rank holds a part of them. Call it "
                         "with parallel = 'ddp' or in one process.")
    _refuse_lazy(trainer, call)
    kept = _Kept(trainer)
    try:
        with rng_kept(), nothing_written(trainer):
            kept.drop_gradients()
            yield
    except _AskedToLeave:
        pass
    finally:
        with _uninterrupted():
            kept.put_back()
    trainer.lifetime.leave_when_asked()


def as_in_training(trainer: TemplateModel) -> None:
    """What ``train_loop`` does before an epoch's first update, without a word to callbacks, schedules and the guard."""
    stepper = trainer.stepper
    stepper.before_step = stepper.after_update = lambda: None
    stepper.clip, stepper.guard, stepper.speed = make_clip(trainer.clip_grad), None, Speed()
    trainer.epoch = max(trainer.epoch, trainer.epochs_done + 1)
    follow_reduction(trainer, trainer.criterion)
    train_mode(trainer.model_list)


def batches_again_and_again(trainer: TemplateModel, loader: Any = None) -> Iterator[Any]:
    """Of epoch after epoch of ``loader``, None: ``train_loader``, as training gets them, without an end.

    Raises:
        ValueError: the loader gives no batch.
    """
    batches = batches_to_train(trainer, trainer.train_loader if loader is None else loader)
    for epoch in itertools.count(1):
        count = 0
        for batch in batches.epoch(epoch):
            count += 1
            yield batch
        if not count:
            raise ValueError("train_loader must give batches, and it gave none. Look at the size of its dataset, and "
                             "whether it can be read only once.")


def updates(trainer: TemplateModel, batches: Iterable[Any]) -> Iterator[dict[str, float]]:
    """Update after update as in training. Yields the means of its losses over its samples, of all ranks: a wait for the
    device each time."""
    stepper, losses = trainer.stepper, RunningLosses()
    losses.world, losses.adds_up = trainer.world, trainer.running_losses.adds_up
    for group in stepper.groups(batches):
        for batch, num_samples in group:
            losses.update(loss_dict(trainer.train_step(batch), needs_total=False), num_samples)
        stepper.finish_group()
        means = losses.window()
        look_for_signal(trainer)
        yield means


def look_for_signal(trainer: TemplateModel) -> None:
    """Between two steps of what may take long: a SIGTERM or Ctrl-C that the run was asked to end with ends it here."""
    if trainer.lifetime.stop_request.signal:
        raise _AskedToLeave


def loss_of(losses: dict[str, float]) -> float:
    """The one that is trained on, or the sum of all where ``train_step`` has no ``tol_loss``."""
    return losses["tol_loss"] if "tol_loss" in losses else sum(losses.values())


def planned_rates(trainer: TemplateModel) -> list[list[float]]:
    """The rate of each group of each optimizer that the run is planned with: where a warm-up ends, where schedules begin."""
    return [[float(group.get("max_lr", group.get("initial_lr", group["lr"]))) for group in optimizer.param_groups]
            for optimizer in trainer.optimizer_list]


class _AskedToLeave(BaseException):
    """SIGTERM or Ctrl-C came while the run holds the signals: it is left as soon as everything is back."""


def _refuse_lazy(trainer, call):
    for i, model in enumerate(trainer.model_list):
        names = [name for name, p in itertools.chain(model.named_parameters(), model.named_buffers()) if is_lazy(p)]
        if names:
            raise ValueError(f"{call} must know the shapes of all weights, and model_list[{i}] learns that of {names[0]!r} "
                             "from its first batch. Call the model once on a batch before check_init().")


@contextmanager
def nothing_written(trainer: TemplateModel) -> Iterator[None]:
    """What is printed goes to the console alone; what the user's own code gives to ``writer`` goes nowhere."""
    logger, own = trainer.stdout_logger, vars(trainer)
    log, logger.log, writer = logger.log, None, own["_writer"]
    own["_writer"] = WriterOfRun()
    own["_writer"].set(None if writer.own is None else NoWriter())
    try:
        yield
    finally:
        own["_writer"] = writer
        logger.log = log


@contextmanager
def _uninterrupted():
    """A Ctrl-C that comes meanwhile is raised afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []
    before = signal.signal(signal.SIGINT, lambda *args: came.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    if came:
        signal.raise_signal(signal.SIGINT)


# --- what is kept -----------------------------------------------------------------------------------------------------

_WITH_ATTRIBUTES = (torch.nn.Module, torch.optim.Optimizer, LRScheduler, torch.amp.GradScaler, Callback, Metric, Stepper,
                    RunningLosses, SampleCounter, Schedule, Watched, SkipGuard, Speed, Hooks)
_DATA = (DataLoader, Dataset, TensorLoader)


class _Kept:
    """Everything of a trainer that training changes: containers with what is in them, tensors with their values.

    It follows containers, and the attributes of the kinds of objects that are named above. All goes back into the same
    objects, because compiled steps, graphs and the user's own code hold these.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.containers = {}   # id: (container, its entries)
        self.tensors = {}      # id: (tensor, its values on the host, requires_grad)
        self.gradients = []    # (leaf, its gradient)
        self.generators = {}   # id: (generator, state)
        self.others = []       # (object with load_state_dict, its state)
        self.batches = trainer.train_batches
        self.place = copy.deepcopy(self.batches.state_dict())
        loaders = (trainer.train_loader, trainer.eval_loader, trainer.test_loader)
        parts = [part for loader in loaders for part in (loader.values() if isinstance(loader, dict) else [loader])]
        self.loaders = {id(loader) for loader in (self.batches, *loaders, *parts)}
        for loader in parts:
            self._keep_generators(loader)
        schedulers = [one for one in (*trainer.lr_scheduler_list, *trainer.warm_up_scheduler_list)
                      if hasattr(one, "__dict__")]
        self.schedulers = {id(one) for one in schedulers}  # of any kind, also with no base class
        self._keep([vars(trainer), *schedulers])

    def _keep(self, roots):
        waiting, seen = deque(roots), {}
        while waiting:
            part = waiting.popleft()
            if id(part) not in seen:
                seen[id(part)] = part
                waiting += self._note(part)

    def _note(self, part):
        """Keep one object; returns what it holds."""
        kind = type(part)
        if kind in _VALUES or id(part) in self.loaders or isinstance(part, _DATA):
            return ()
        if isinstance(part, torch.Tensor):
            self._keep_tensor(part)
        elif isinstance(part, dict):
            return self._keep_container(part, list(dict.items(part)), list(dict.values(part)))
        elif isinstance(part, (list, deque, set)):
            return self._keep_container(part, list(part), list(part) if len(part) <= _LONG else ())
        elif isinstance(part, tuple):
            return part if len(part) <= _LONG else ()
        elif isinstance(part, GENERATORS):
            self.generators[id(part)] = part, state_of(part)
        elif isinstance(part, _WITH_ATTRIBUTES) or id(part) in self.schedulers:
            return [vars(part)]
        elif all(callable(getattr(kind, name, None)) for name in ("state_dict", "load_state_dict")):
            self.others.append((part, copy.deepcopy(part.state_dict())))
        return ()

    def _keep_container(self, container, entries, inner):
        self.containers[id(container)] = container, entries
        return inner

    def _keep_tensor(self, tensor):
        self.tensors[id(tensor)] = tensor, _on_host(tensor.detach()), tensor.requires_grad
        if tensor.is_leaf and tensor.grad is not None:
            self.gradients.append((tensor, tensor.grad))

    def _keep_generators(self, loader):
        for generator in own_generators(loader):
            self.generators[id(generator)] = generator, state_of(generator)

    def drop_gradients(self):
        for tensor, _ in self.gradients:
            tensor.grad = None

    def put_back(self):
        for container, entries in self.containers.values():
            _refill(container, entries)
        with torch.no_grad():
            for tensor, values, requires_grad in self.tensors.values():
                _set_values(tensor, values)
                if tensor.is_leaf:
                    tensor.requires_grad_(requires_grad)
                    tensor.grad = None
        for tensor, gradient in self.gradients:
            tensor.grad = gradient
        for part, state in self.others:
            part.load_state_dict(state)
        for generator, state in self.generators.values():
            put_back(generator, state)
        if self.place:
            self.batches.load_state_dict(self.place, self.trainer.batches_done)


_VALUES = {int, float, bool, str, bytes, complex, type(None)}


def _on_host(tensor):
    return tensor.clone() if tensor.device.type == "cpu" else tensor.cpu()


def _refill(container, entries):
    if isinstance(container, dict):
        for key in container.keys() - {key for key, _ in entries}:
            del container[key]
        if not all(key is old for key, (old, _) in zip(container, entries)):  # the trainer's are at no moment gone
            dict.clear(container)
        dict.update(container, entries)
    elif isinstance(container, set):
        container.clear()
        container.update(entries)
    else:
        container.clear()
        container.extend(entries)


def _is_same(one, other):
    if one.layout is not torch.strided or not torch.equal(one, other):
        return False
    one, other = (torch.view_as_real(part) if part.is_complex() else part for part in (one, other))
    return not one.is_floating_point() or torch.equal(one.signbit(), other.signbit())  # 0.0 equals -0.0


def _set_values(tensor, values):
    """In place, and only where a bit changed: expanded tensors and files that are mapped to be read cannot be written to."""
    is_same_kind = tensor.shape == values.shape and tensor.dtype == values.dtype and tensor.layout == values.layout
    if not is_same_kind:
        tensor.data = values.to(tensor.device)
    elif not _is_same(tensor, values.to(tensor.device)):
        with torch.inference_mode() if tensor.is_inference() else nullcontext():
            tensor.copy_(values)
