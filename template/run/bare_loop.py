"""A trainer's loop against a bare one over the same loader and models, and what each part of an update costs.

    with as_found(trainer):                        # tools/throughput.py
        found = compared(trainer)
    print(found)

Both loops run in turns, in the same minute, so that whatever else the machine does slows down both. The bare loop is what
one would write by hand: read, copy to the device, forward, loss, backward, step. Where the time goes is measured in turns of
their own, because looking at a clock costs time too.

Copies of the callbacks hear of batches, updates and log points, as in training. Those that show or send something are left
out, and what goes to TensorBoard or to the run's folder is written to a folder that is deleted. Schedules do not step.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ..data.in_memory import TensorLoader
from ..data.nested import Fresh, to_device
from ..hooks import EVENTS, Hooks
from ..metrics.epoch import RunningLosses
from ..output.event_writer import make_writer
from ..update.schedule_free import train_mode
from ..update.stepper import AMP_DTYPES, make_clip
from .as_found import as_in_training, look_for_signal
from .defaults import call_model, loss_dict
from .setup import batches_to_train

if TYPE_CHECKING:
    from ..template import TemplateModel

_WARM_UP = 3          # updates of each loop that are not counted
_ROUNDS = 5           # in each of which every loop has one turn
_SECONDS_EACH = 1.0   # at most, for a turn
_UPDATES_EACH = 100
_SHOWS_OR_SENDS = {"ProgressBar", "LivePlot", "Tracker"}  # these classes, and what is made from them
PARTS = ("reading data", "copy to the device", "forward and loss", "backward", "optimizer", "callbacks and logging",
         "the template itself")
_DATA, _COPY, _FORWARD, _BACKWARD, _OPTIMIZER, _CALLBACKS, _REST = PARTS


@dataclass
class Comparison:
    """What the two loops took. ``print`` shows it as tables."""

    trainer: list[float]
    """Seconds an update of the trainer's loop took, of each round."""
    bare: list[float]
    """The same for the bare loop; empty where there can be none, and ``notes`` says why."""
    parts: dict[str, list[float]]
    """``{part: seconds an update}`` of the trainer's loop, of each round, in the order in which they come."""
    updates: int
    """Of a round."""
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""

    @property
    def ratio(self) -> float | None:
        """How much longer an update of the trainer takes: the median over the rounds. None without a bare loop."""
        return statistics.median(self._ratios) if self.bare else None

    @property
    def _ratios(self):
        return [mine / bare for mine, bare in zip(self.trainer, self.bare)]

    def shares(self) -> dict[str, float]:
        """What each part takes of an update, from 0 to 1; together 1."""
        means = {part: statistics.median(seconds) for part, seconds in self.parts.items()}
        return {part: value / sum(means.values()) for part, value in means.items()}

    def __str__(self) -> str:
        rows = [_row("your trainer, ms an update", self.trainer, 1000)]
        if self.bare:
            rows += [_row("a bare loop, ms an update", self.bare, 1000), _row("your trainer / a bare loop", self._ratios, 1)]
        rounds = f"{len(self.trainer)} rounds of {self.updates} updates, in turns"
        parts, shares = {part: statistics.median(own) for part, own in self.parts.items()}, self.shares()
        table = [{"where the time goes": part, "ms": f"{1000 * parts[part]:.3f}", "share": f"{shares[part]:.0%}"}
                 for part in self.parts]
        table.append({"where the time goes": "together", "ms": f"{1000 * sum(parts.values()):.3f}", "share": "100%"})
        title = f"Your trainer against a bare loop over the same data and models ({rounds}):"
        return "\n".join([title, _aligned(rows), "", _aligned(table), *self.notes])


def _row(what, values, factor):
    numbers = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
    return {"": what} | {name: f"{factor * value:.3f}" for name, value in numbers.items()}


def _aligned(rows):
    """A table of texts: the first column is words, the others are numbers."""
    first, *others = rows[0]
    width = max(len(row[first]) for row in rows)
    return "\n".join(row[first].ljust(width) + "".join(row[name].rjust(10) for name in others)
                     for row in ({name: name for name in rows[0]}, *rows))


def compared(trainer: TemplateModel) -> Comparison:
    """Run both loops in turns. Call it within ``as_found(trainer)``, which puts everything back."""
    as_in_training(trainer)
    heard, notes = _heard(trainer)
    losses = RunningLosses()
    losses.world, losses.adds_up = trainer.world, trainer.running_losses.adds_up
    vars(trainer)["running_losses"] = losses  # as_found puts the trainer's back
    if trainer.train_metrics:
        notes.append("train_metrics are not computed here.")
    with contextlib.ExitStack() as stack:
        _let_write_elsewhere(trainer, stack)
        for call in heard["on_train_start"]:
            call(trainer)
        clock = _Clock(torch.device(trainer.device))
        plain, timed = _Trained(trainer, heard), _Trained(trainer, heard, clock)
        bare, why = _bare_loop(trainer)
        notes += [why] if why else []
        count = _count(trainer, plain)
        for loop in filter(None, (bare, timed)):
            _seconds(trainer, loop, _WARM_UP)
        found = Comparison([], [], {part: [] for part in PARTS}, count, notes)
        for _ in range(_ROUNDS):
            found.trainer.append(_seconds(trainer, plain, count))
            if bare is not None:
                found.bare.append(_seconds(trainer, bare, count))
            clock.start()
            _seconds(trainer, timed, count)
            for part, seconds in clock.stop().items():
                found.parts[part].append(seconds / count)
    if trainer.compile == "step":
        notes.append('compile = "step": "forward and loss" is the time of the graph, which also has the backward pass and, '
                     "where it can, the optimizer. The bare loop has the models compiled, as with compile = True.")
    if torch.device(trainer.device).type != "cpu":
        notes.append("The parts are timed with a wait for the device between them, so together they are longer than an "
                     "update in training, where copies and kernels go on beside the host's work.")
    return found


def _count(trainer, loop):
    """Updates of a turn: as many as fit, the same on all ranks."""
    _seconds(trainer, loop, _WARM_UP)
    seconds = _seconds(trainer, loop, _WARM_UP)
    return trainer.world.share(max(_WARM_UP, min(_UPDATES_EACH, int(_SECONDS_EACH / max(seconds, 1e-9)))))


def _seconds(trainer, loop, count):
    """An update's, in a turn of ``count`` of them."""
    device = torch.device(trainer.device)
    with loop.installed() if isinstance(loop, _Trained) else contextlib.nullcontext():
        _wait(device)
        started = time.perf_counter()
        for _ in itertools.islice(loop, count):
            look_for_signal(trainer)
        _wait(device)
        return (time.perf_counter() - started) / count


def _wait(device):
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


# --- the trainer's loop -------------------------------------------------------------------------------------------------


class _Clock:
    """Whose turn it is. The time within a part that begins inside of another one is that of the inner part alone."""

    def __init__(self, device):
        self.device = device
        self.start()

    def start(self):
        self.seconds, self.parts = dict.fromkeys(PARTS, 0.0), [_REST]
        self.mark = time.perf_counter()

    def stop(self):
        self._take()
        return self.seconds

    def _take(self):
        _wait(self.device)
        now = time.perf_counter()
        self.seconds[self.parts[-1]] += now - self.mark
        self.mark = now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args, **kwargs):
            self._take()
            self.parts.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._take()
                self.parts.pop()

        return call


class _Trained:
    """``train_loop``, update after update. An iterator.

    Args:
        heard: ``{event: methods of callbacks}``.
        clock: what is told of each part; None: none.
    """

    def __init__(self, trainer, heard, clock=None):
        def timed(part, function):
            return function if clock is None else clock.timed(part, function)

        self.trainer, self.timed = trainer, timed
        self.step = timed(_FORWARD, trainer.stepper.around(trainer.train_step))
        self.log = timed(_CALLBACKS, self._log)
        self.heard = {event: [timed(_CALLBACKS, call) for call in calls] for event, calls in heard.items()}
        stepper = trainer.stepper
        self.own = {"backward": timed(_BACKWARD, stepper.backward), "update": timed(_OPTIMIZER, stepper.update),
                    "before_step": self._before_step}
        self.updates = self._run(self._batches(clock is not None))

    def __iter__(self):
        return self.updates

    @contextlib.contextmanager
    def installed(self):
        """The stepper calls this loop's functions."""
        own = vars(self.trainer.stepper)
        before = dict(own)
        own.update(self.own)
        try:
            yield
        finally:
            for name in self.own:
                del own[name]
            own.update({name: before[name] for name in self.own if name in before})

    def _batches(self, is_timed):
        trainer = self.trainer
        batches = batches_to_train(trainer, trainer.train_loader)
        in_two = is_timed and trainer.world.size == 1 and hasattr(batches, "read") and not getattr(batches, "has_state", 0)
        for epoch in itertools.count(1):
            read = batches.read(epoch) if in_two else batches.epoch(epoch)
            yield read, not isinstance(read, Fresh) and getattr(batches, "may_reuse", True), in_two

    def _read(self, batches, in_two):
        following, batches = self.timed(_DATA, next), iter(batches)
        device = torch.device(self.trainer.device)
        copied = self.timed(_COPY, to_device)
        while True:
            try:
                batch = following(batches)
            except StopIteration:
                return
            yield copied(batch, device) if in_two else batch

    def _run(self, epochs):
        trainer, heard = self.trainer, self.heard
        stepper, losses = trainer.stepper, trainer.running_losses
        for batches, may_reuse, in_two in epochs:
            is_empty = True
            read = self._read(batches, in_two)
            for group in stepper.groups(read if may_reuse else Fresh(read)):
                is_empty = False
                for batch, num_samples in group:
                    for call in heard["on_batch"]:
                        call(trainer, batch)
                    losses.update(loss_dict(self.step(batch), needs_total=False), num_samples)
                stepper.finish_group()
                trainer.global_step += 1
                for call in heard["on_after_step"]:
                    call(trainer)
                if trainer.global_step % trainer.log_per_step == 0:
                    self.log()
                yield
            if is_empty:
                raise ValueError("train_loader must give batches, and it gave none. Look at the size of its dataset.")

    def _before_step(self):
        for call in self.heard["on_before_step"]:
            call(self.trainer)

    def _log(self):
        trainer = self.trainer
        values = trainer.running_losses.window()
        for call in self.heard["on_log"]:
            call(trainer, values)


def _heard(trainer):
    """``({event: methods of copies of the callbacks}, what was left out)``. The callbacks themselves hear nothing. Those of
    the template that look at a first batch and are gone are left out without a word."""
    copies, not_called, not_copied, package = [], [], [], __name__.removesuffix("run.bare_loop")
    for callback in trainer.hooks.callbacks:
        kind = type(callback)
        if kind.__module__.startswith((f"{package}run.", f"{package}parallel.")):
            continue
        if {base.__name__ for base in kind.__mro__} & _SHOWS_OR_SENDS:
            not_called.append(kind.__name__)
            continue
        try:
            copies.append(copy.deepcopy(callback, _stays(trainer)))
        except Exception:  # an open file, a thread: whatever somebody's own code holds
            not_copied.append(kind.__name__)
    hooks = Hooks(copies)
    notes = [f"Not called, because it would show or send something: {', '.join(not_called)}."] if not_called else []
    notes += [f"Not called, because it cannot be copied: {', '.join(not_copied)}."] if not_copied else []
    return {event: getattr(hooks, event) for event in EVENTS}, notes


def _stays(trainer):
    """What a copy of a callback shares with the callback, as a memo for ``copy.deepcopy``."""
    parts = [trainer, trainer.criterion, trainer.train_loader, trainer.eval_loader, trainer.writer, *trainer.optimizer_list]
    for model in trainer.model_list:
        parts += [*model.modules(), *model.parameters(), *model.buffers()]
    return {id(part): part for part in parts}


def _let_write_elsewhere(trainer, stack):
    """What callbacks write goes to a folder that is deleted, what they print nowhere."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="throughput-", ignore_cleanup_errors=True))
    own = vars(trainer)
    is_written = trainer.writer is not None
    own["ckpt_dir"] = folder  # as_found puts it back
    writer = make_writer(folder) if is_written else None
    own["_writer"].set(writer)
    if writer is not None:
        stack.callback(writer.close)
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
    stack.enter_context(contextlib.redirect_stderr(io.StringIO()))


# --- the bare loop ------------------------------------------------------------------------------------------------------


def _bare_loop(trainer) -> tuple[Iterator[None] | None, str]:
    """``(the loop, "")``, or ``(None, why there is none)``."""
    if trainer._overrides("train_step"):
        return None, ("There is no bare loop to compare with, because this trainer has a train_step of its own: a loop that "
                      "is written for any trainer cannot know what it does in which order.")
    if trainer.world.size > 1:
        return None, "There is no bare loop to compare with among several processes. Start one process to compare."
    loop = _bare(trainer)
    try:
        next(loop)
    except Exception as error:
        return None, (f"There is no bare loop to compare with: these data and models need more than a plain one does "
                      f"({type(error).__name__}: {error}).")
    return loop, ""


def _bare(trainer):
    """What one writes by hand, as an iterator of updates."""
    device, accumulate, clip = torch.device(trainer.device), trainer.accumulate_steps, make_clip(trainer.clip_grad)
    optimizers = trainer.optimizer_list
    scaler = torch.amp.GradScaler(device.type, enabled=trainer.amp == "fp16")
    dtype = AMP_DTYPES.get(trainer.amp)
    train_mode(optimizers)
    loss_of, count = None, 0
    for batch in itertools.chain.from_iterable(_bare_epochs(trainer)):
        batch = to_device(batch, device)
        if loss_of is None:
            loss_of = _loss_function(trainer, batch)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = loss_of(batch)
        scaler.scale(loss / accumulate if accumulate > 1 else loss).backward()
        count += 1
        if count % accumulate:
            continue
        if clip is not None:
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            clip(p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
        for optimizer in optimizers:
            scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        scaler.update()
        yield


def _bare_epochs(trainer):
    """The user's loader as it is. One of the template's own kinds (a dict of loaders, …) as training reads it."""
    loader = trainer.train_loader
    if isinstance(loader, DataLoader):
        loader = copy.copy(loader)
        loader._iterator = None  # persistent workers are this one's, and end with it
    elif not isinstance(loader, (TensorLoader, list, tuple)) and (isinstance(loader, dict) or _is_own(loader)):
        batches = batches_to_train(trainer, loader)
        for epoch in itertools.count(1):
            yield batches.epoch(epoch)
    while True:
        yield loader


def _is_own(loader):
    """``Chained`` and ``Divided``, which are no iterables."""
    return not hasattr(loader, "__iter__")


def _loss_function(trainer, batch):
    """``criterion(model(x), y)`` where that is what the trainer does, else the user's own ``loss_per_batch``."""
    criterion, models = trainer.criterion, trainer.model_list

    def own(batch):
        return loss_dict(trainer.loss_per_batch(batch))["tol_loss"]

    def plain(batch):
        x, y = batch
        for model in models:
            x = call_model(model, x)
        return criterion(x, y)

    is_default = not (trainer._overrides("loss_per_batch") or trainer._overrides("inference"))
    if not is_default or not isinstance(criterion, nn.Module) or not isinstance(batch, (list, tuple)) or len(batch) != 2:
        return own
    try:
        with torch.no_grad(), torch.autocast(batch[0].device.type, AMP_DTYPES.get(trainer.amp), enabled=bool(trainer.amp)):
            plain(batch)
    except Exception:  # labels or inputs of a kind that the template converts
        return own
    return plain
