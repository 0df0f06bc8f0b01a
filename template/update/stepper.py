"""How one update is carried out: accumulation, mixed precision, clipping, the order of the optimizers.

    for group in stepper.groups(batches):           # the micro-batches of one update
        for batch, num_samples in group:
            with stepper.autocast():
                loss = …
            stepper.backward(loss)                  # weighted by the micro-batch's share of the group's samples
        stepper.finish_group()

A *micro-batch* is what the loader gives; an *update* is one step of the optimizers, over ``accumulate_steps`` micro-batches.
What is switched off is not called at all: a call costs an update about 1 us where the caches hold other things.
"""

import time
from contextlib import contextmanager, nullcontext
from itertools import islice
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from ..data.nested import Fresh, copied
from ..data.shares import Uneven
from ..output.speed import Speed
from ..output.warn import warn
from . import unlabelled
from .built_settings import settings_of
from .schedule_free import train_mode

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NOTHING = nullcontext()


class Stepper:
    """Built once by ``check_init``.

    Args:
        optimizers: list of optimizers; zeroed and stepped from the last to the first.
        device: ``torch.device`` of the models.
        accumulate_steps: micro-batches per update, at least 1.
        amp: None, "bf16" or "fp16"; fp16 scales the loss.
        clip_grad: see ``make_clip``.
        count_samples: function of a batch, its weight in means and in its accumulation group.
        before_step: called before the clipping, with gradients complete and unscaled.
        after_update: called once per update, also a skipped one.
        guard: decides whether an update is done, see ``guard.py``; None: every one is.
        parallel: makes the gradients of all ranks one, see ``parallel/gradients.py``; None in a single process.

    Raises:
        ValueError: unknown ``amp``, or a ``clip_grad`` that ``make_clip`` refuses.
    """

    keeps_group = False  # a group of one batch is handed on as it is

    def __init__(self, optimizers, device, accumulate_steps=1, amp=None, clip_grad=None,
                 count_samples=len, before_step=lambda: None, after_update=lambda: None, guard=None, parallel=None):
        self.optimizers = optimizers
        self.accumulate_steps = accumulate_steps
        self.device = device
        self.set_amp(amp)
        self.clip = make_clip(clip_grad)
        self.count_samples = count_samples
        self.before_step = before_step
        self.after_update = after_update
        self.guard = guard
        self.parallel = parallel
        self.speed = Speed()
        self.is_between_updates = True  # no update is begun and not finished: weights and random generators are exact
        self.num_groups = [len(optimizer.param_groups) for optimizer in optimizers]  # others may be added
        self.built = settings_of(optimizers)
        self._all = tuple(range(len(optimizers)))[::-1]
        self._skipped_before = 0      # updates, by the runs that this one continues
        self.adds_up = False          # losses are sums over a micro-batch's samples, not means
        self._weight = 1.0            # of the present micro-batch within its group
        self._has_samples = True      # the present group has some that count
        self._is_told = False         # that one had none
        self._group_complete = True   # the present micro-batch is the last of its group
        self._scaler_stepped = set()  # optimizers that were stepped at the present loss scale
        self._updated = False         # the user's train_step did the update of this group itself

    def set_amp(self, amp):
        """Train in mixed precision from the next update on, or no more.

        Args:
            amp: None, "bf16" or "fp16".
        """
        check_amp(amp)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == "fp16")
        self.is_scaled = self.scaler.is_enabled()
        self._autocast_args = (self.device.type, AMP_DTYPES[amp]) if amp else None

    def set_guard(self, guard):
        """Skip updates by another guard, or none; those that were skipped stay counted."""
        self._skipped_before, self.guard = self.skipped, guard

    def autocast(self):
        return torch.autocast(*self._autocast_args) if self._autocast_args else _NOTHING

    def groups(self, batches):
        """Yield an iterator over (batch, num_samples) per update.

        The group is read before its first forward, so that every micro-batch, of a short last group too, gets its true
        weight: the update follows the mean over the group's samples, or their sum where losses add up. A loader that may
        fill its tensors again has each batch copied before the next one is read.

        A micro-batch of no samples adds nothing to the gradients. A group of no samples at all has no gradient to follow, so
        it changes no weight; it counts as an update, because schedules and progress were planned with it.
        """
        train_mode(self.optimizers)
        may_reuse, batches = not isinstance(batches, Fresh), iter(batches)
        while True:
            started, group, total = time.perf_counter(), [], 0
            is_even = True  # on all ranks
            for batch in islice(batches, self.accumulate_steps):
                is_spare = False
                if type(batch) is Uneven:
                    (batch, is_spare), is_even = batch, False
                num_samples = 0 if is_spare else self.count_samples(batch)
                if hasattr(num_samples, "item"):  # a count of tokens: a tensor, or numpy's number
                    num_samples = num_samples.item()
                if may_reuse and len(group) < self.accumulate_steps - 1:
                    batch = copied(batch)
                group.append((batch, num_samples))
                total += num_samples
            if not group:
                return
            self.speed.samples += total
            self.speed.updates += 1
            self.speed.waited += time.perf_counter() - started
            self._weight, self._group_complete, self._updated = 1.0, True, False
            self.is_between_updates = False
            is_agreed = True  # by all ranks
            if self.parallel is not None:
                is_agreed = self.parallel.has_own_count or not is_even
                total = self.parallel.mean(total, is_even)
            self._has_samples = isinstance(total, torch.Tensor) or total != 0 or not is_agreed
            if not self._has_samples:
                self._tell_no_samples(len(group))
            is_alone = len(group) == 1 and self.parallel is None and self._has_samples and not self.keeps_group
            yield group if is_alone else self._weighted(group, total)
            self.is_between_updates = True

    def _weighted(self, group, total):
        for position, (batch, num_samples) in enumerate(group, 1):
            self._weight = self._share(num_samples, total)
            self._group_complete = position == len(group)
            self._updated = False
            if self.parallel is not None:
                self.parallel.exchange_gradients(self._group_complete)
            yield batch, num_samples

    def _share(self, num_samples, total):
        """What the loss of a micro-batch is multiplied with; the ranks' gradients are averaged afterwards."""
        if not num_samples:
            return 0.0
        if self.adds_up:
            return 1.0 if self.parallel is None else float(self.parallel.world.size)
        return num_samples / total

    def _tell_no_samples(self, count):
        if not self._is_told:
            self._is_told = True
            of = "the batch" if count == 1 else f"all {count} batches"
            warn(f"count_samples() gave 0 for {of} of an update, so there is nothing to follow and no weight was "
                          "changed. This is said once.")

    def around(self, train_step):
        """What the loop calls in the place of ``train_step``."""
        return train_step

    @contextmanager
    def measured(self):
        """Updates in here are not those of a training: the next one behind it finds what it would have found without."""
        own = dict(vars(self))
        try:
            yield
        finally:
            vars(self).update(own)
            for name in vars(self).keys() - own:
                delattr(self, name)

    def backward(self, loss, index=None, retain_graph=None):
        """Add the gradients of ``loss``, a 0-dim tensor: the mean over the micro-batch's samples, or their sum where losses
        add up.

        Args:
            index: only into the parameters of this optimizer (a generator's loss leaves the discriminator alone);
                None for all.
            retain_graph: True where another backward goes through the same graph; as torch's.

        Raises:
            ValueError: the loss cannot be differentiated.
        """
        if not (isinstance(loss, torch.Tensor) and loss.requires_grad):
            raise ValueError(
                f"The loss must be a tensor that depends on a trainable parameter, got {_describe(loss)}. Look for "
                ".item(), .detach(), torch.no_grad() or float() on its way, or for frozen parameters."
            )
        if type(self._weight) is float and not self._weight and self.parallel is None:
            return  # whatever the loss is: a mean over nothing is not even a number
        if self.guard is not None:
            self.guard.watch(loss)
        if type(self._weight) is not float or self._weight != 1.0:
            loss = loss * self._weight
        if self.is_scaled:
            loss = self.scaler.scale(loss)
        inputs = None if index is None else [p for p in self.parameters([index]) if p.requires_grad]
        if inputs is not None and self.parallel is not None:
            inputs = self.parallel.leaves(inputs)
        loss.backward(retain_graph=retain_graph, inputs=inputs)

    def parameters(self, chosen=None):
        """Those of the optimizers ``chosen`` (None: all), of groups that were added later too; a generator."""
        chosen = range(len(self.optimizers)) if chosen is None else chosen
        return (p for i in chosen for group in self.optimizers[i].param_groups for p in group["params"])

    def update(self, index=None, step=True):
        """Step one optimizer, or all from the last to the first, and drop its gradients.

        Nothing happens before the group's last micro-batch, so a ``train_step`` reads the same with accumulation.

        Args:
            index: of the optimizer; None: all.
            step: False where ``train_step`` stepped it by itself: only the gradients are dropped.
        """
        self._updated = True
        if not self._group_complete:
            return
        chosen = self._all if index is None else (index,)
        if not (self._has_samples and step):
            for i in chosen:
                _zero_grad(self.optimizers[i])
            return
        if self.parallel is not None:
            self.parallel.complete(self.parameters(chosen))
        stepped = self._unscaled(chosen) if self.is_scaled else chosen
        self.before_step()
        if self.guard is None or self.guard.allows(() if self.is_scaled else self.parameters(stepped)):
            if self.clip is not None:
                self.clip(self.parameters(chosen))
            for i in stepped:
                self._step(i)
        for i in chosen:
            _zero_grad(self.optimizers[i])

    def _step(self, index):
        if self.is_scaled:
            self.scaler.step(self.optimizers[index])
        else:
            unlabelled.step(self.optimizers[index])

    def _unscaled(self, chosen):
        """Of ``chosen`` those that the scaler can step, their gradients unscaled. That these overflow is usual, and the
        scaler's own business."""
        stepped = [i for i in chosen if self._can_step(i)]
        for i in stepped:
            self.scaler.unscale_(self.optimizers[i])
        return stepped

    def _can_step(self, index):
        """A scaler refuses an optimizer without gradients, and a second step at one scale."""
        if not self._has_gradients(index):
            return False
        if index in self._scaler_stepped:
            waiting = [i for i in range(len(self.optimizers)) if i != index and self._has_gradients(i)]
            if waiting:
                raise ValueError(
                    f"Under amp='fp16' optimizer {index} cannot be updated twice in one train_step while optimizer "
                    f"{waiting[0]} holds gradients of the present loss scale. Call update({waiting[0]}) first, use "
                    f"backward(loss, {index}), or amp='bf16'."
                )
            self._update_scale()
        self._scaler_stepped.add(index)
        return True

    def _has_gradients(self, index):
        return any(p.grad is not None for p in self.parameters([index]))

    def _update_scale(self):
        """Once for all optimizers: gradients that wait to be unscaled belong to the scale they were made with."""
        if self._scaler_stepped:
            self.scaler.update()
            self._scaler_stepped.clear()

    @property
    def is_group_complete(self):
        """Whether the present micro-batch is the last of its group."""
        return self._group_complete

    def leave_update(self):
        """The present ``train_step`` updates where it likes, or nowhere: ``finish_group`` does not do it."""
        self._updated = True

    def finish_group(self):
        """End of a group: update all optimizers unless ``train_step`` did."""
        if not self._updated:
            self.update()
        if self.is_scaled:
            self._update_scale()
        if self.guard is not None:
            self.guard.finish_group()
        self.after_update()

    def forget_group(self):
        """Drop what an update that was cut short left: gradients, and what loss scaler and guard noted of it. Where it was
        cut within the step of an optimizer, some of its weights have moved."""
        self.drop_gradients()
        if self._scaler_stepped:
            self.scaler.update(self.scaler.get_scale())
            self._scaler_stepped.clear()
        if self.guard is not None:
            self.guard.forget_group()
        self.is_between_updates = True

    def drop_gradients(self):
        for optimizer in self.optimizers:
            _zero_grad(optimizer)

    @property
    def skipped(self):
        """Updates that the guard skipped in the whole training."""
        return self._skipped_before + (self.guard.skipped if self.guard is not None else 0)

    def state_dict(self):
        return {"scaler": self.scaler.state_dict(), "skipped": self.skipped, "built": self.built}

    def load_state_dict(self, state):
        self.forget_group()
        self._skipped_before = state.get("skipped", 0)
        if self.guard is not None:
            self.guard.skipped = 0
        if self.is_scaled and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def check_amp(amp):
    if amp not in (None, *AMP_DTYPES):
        raise ValueError(f"amp must be None or one of {list(AMP_DTYPES)}, got {amp!r}.")


def make_clip(clip_grad: Any):
    """A function that clips the gradients of an iterable of parameters in place, or None.

    Args:
        clip_grad: None (off), a number (largest total L2 norm over all parameters), ``{"norm": 1.0, "norm_type": 1.0}``
            (total p-norm) or ``{"value": 0.5}`` (each element).

    Raises:
        ValueError: anything else.
    """
    if clip_grad is None:
        return None
    options = clip_grad if isinstance(clip_grad, dict) else {"norm": clip_grad}
    limit: Any = options.get("norm", options.get("value"))
    power = options.get("norm_type", 2.0)
    known = set(options) in ({"norm"}, {"norm", "norm_type"}, {"value"})
    if not known or not _is_positive(limit) or not _is_positive(power):
        raise ValueError(
            'clip_grad must be None, a positive number (L2 norm), {"norm": x, "norm_type": p} or {"value": x}, '
            f"got {clip_grad!r}."
        )
    if "value" in options:
        return lambda parameters: clip_grad_value_(_to_clip(parameters), limit)
    return lambda parameters: clip_grad_norm_(_to_clip(parameters), limit, power)


def _to_clip(parameters):
    """What torch's functions can clip in place: a sparse gradient by its values, one for each row that was looked up. Its
    other rows are 0, which changes neither a norm nor what is clipped. 0.1 us for each parameter."""
    parts = []
    for p in parameters:
        gradient = p.grad
        if gradient is not None and gradient.is_sparse:
            p.grad = gradient = gradient.coalesce()
            if gradient._nnz():
                parts.append(SimpleNamespace(grad=gradient._values()))
        else:
            parts.append(p)
    return parts


def _zero_grad(optimizer):
    """``zero_grad(set_to_none=True)``; torch's own spends 10 us on a label for the profiler."""
    if type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad or "zero_grad" in vars(optimizer):
        optimizer.zero_grad(set_to_none=True)  # somebody's own
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _is_positive(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _describe(value):
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)} with requires_grad={value.requires_grad}"
    return f"{value!r} of type {type(value).__name__}"
