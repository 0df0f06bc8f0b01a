"""Mistakes that show on the first batch: what is looked at while the first update is done.

``Preflight`` rides along on the first real training batch: no extra forward, no second start of the workers; then it removes
itself. It does not change a bit of the training. What certainly breaks the run is an error, what may be meant is a
``UserWarning``. What a criterion is given is looked at in ``criterion_inputs.py``, what can be seen without data in
``checks.py``.
"""

import torch
from torch import nn

from ..checkpoint import own_objects
from ..checkpoint.state import refuse_unsavable
from ..data.lengths import numbers_of_workers
from ..data.nested import sketch
from ..data.seeding import capture_rng, restore_rng, rng_kept
from ..hooks import Callback
from ..metrics.best import find_name, follows_training, resolve_key
from ..output.warn import warn
from ..update.guard import fetch_losses
from .checks import parameter_names, some, what_is_missing
from .criterion_inputs import check_criterion_inputs
from .explain import explain, in_words
from .half_precision import refuse_overflow
from .layers_and_schedulers import watch_norms

_OF_CHECK = "The first eval batch, in eval mode"


def _look_at_next_backward(stepper, names):
    """Tell gradients that are left from the first update, unless ``train_step`` drops them before the second one."""

    def backward(*args, **kwargs):
        del stepper.backward  # the method of the class is there again
        left = [names.get(p, "?") for p in stepper.parameters() if p.requires_grad and p.grad is not None]
        if left:
            warn(f"{some(left)} still hold gradients after the update, which leak into the next one: a loss that was not "
                 "theirs went through them. Name the optimizer in train_step: backward(loss, i); or call zero_grad() of "
                 "theirs before backward().")
        stepper.backward(*args, **kwargs)

    stepper.backward = backward


def preflight(model):
    """The callbacks that look at the first batch: one, or none when ``model.preflight`` is off."""
    return [Preflight()] if model.preflight else []


def look_apart(model, batch):
    """Look at the first batch where the update is one graph, in which nobody can listen: forward and backward are done once
    more before it, and nothing of them stays."""
    for callback in [one for one in model.hooks.callbacks if isinstance(one, Preflight)]:
        buffers = [(buffer, buffer.clone()) for part in model.model_list for buffer in part.buffers()]
        try:
            with rng_kept(), torch.compiler.set_stance("force_eager"):
                model.train_step(batch)
            callback.on_before_step(model)
        finally:
            for buffer, value in buffers:
                buffer.copy_(value)
            model.stepper.drop_gradients()
            callback.stop_listening(model)


class Preflight(Callback):
    """Scores one eval batch before the first update, listens to the criterion on the first training batches, and looks at
    their gradients; after the first update it is gone."""

    def __init__(self):
        self.undo = []
        self.has_gradient = set()
        self.is_to_score = False
        self.batches = []      # of the first update
        self.looked_at = None  # "The first training batch: …" of which an error is explained

    def on_train_start(self, model):
        model.lifetime.explain = lambda error: explain(error, self._lines(model, error))
        self._listen_to_criterion(model)
        self.undo += watch_norms(model)
        self.is_to_score = model.eval_loader is not None
        if not (any(numbers_of_workers(model.train_loader)) and 0 in numbers_of_workers(model.eval_loader)):
            self._score_one_batch(model)

    def on_batch(self, model, batch):
        """The check comes only here where the evaluation is read in this process: files that it opens must not be open yet
        when the workers of the training are started."""
        self._score_one_batch(model)
        self.looked_at = "The first training batch", batch
        self.batches.append(batch)

    def _lines(self, model, error):
        """What is said of an error: the batch, what may be missing, and how to go on without the check."""
        if self.looked_at is None:
            return []
        name, batch = self.looked_at
        is_check = name == _OF_CHECK and "preflight" not in str(error)
        return [f"{name}: {sketch(batch, with_dtypes=True)}", *what_is_missing(model),
                *(["preflight = False leaves out this check before training."] if is_check else [])]

    def _listen_to_criterion(self, model):
        """A module tells what it is given; a function is seen where the default ``loss_per_batch`` calls it."""
        if isinstance(model.criterion, nn.Module):
            handle = model.criterion.register_forward_pre_hook(check_criterion_inputs)  # it can be pickled
            self.undo.append(handle.remove)
        elif model.criterion is not None:
            model.lifetime.look_at_criterion = check_criterion_inputs
            self.undo.append(lambda: setattr(model.lifetime, "look_at_criterion", None))

    def _score_one_batch(self, model):
        """``metric()`` that raises or lacks ``key_metric`` shows itself now. RNG, counters and metrics are put back.

        It stops the run where ``fit`` will evaluate, and where one batch tells: an AUROC may need more than one. Else it is
        not known whether there will be an evaluation: many have a loader that they never evaluate.
        """
        if not self.is_to_score:
            return
        self.is_to_score = False
        rng, counter, key = capture_rng(), model.global_step_eval, model.key_metric
        put_own_back = own_objects.way_back(model)

        def look(batch):
            self.looked_at = _OF_CHECK, batch

        try:
            result = model.evaluator.score_first_batch(look)
        except Exception as error:
            restore_rng(rng)
            if model.lifetime.will_evaluate and not model.evaluator.is_computing:
                raise
            self._warn_of(model, error)
        else:
            self._look_at_names(model, result)
        finally:
            restore_rng(rng)
            put_own_back()
            model.global_step_eval, model.key_metric = counter, key
        self.looked_at = None

    def _warn_of(self, model, error):
        what = ("The metrics could not be computed from the first eval batch alone. If they do not need more than that, "
                "eval() will raise this error:" if model.evaluator.is_computing else
                "The first eval batch could not be scored in eval mode. Training goes on; eval() would raise this error:")
        if model.is_main:
            warn(f"{what}\n{in_words(error, self._lines(model, error))}")

    def _look_at_names(self, model, result):
        """Some batches may lack a metric, so a name that is missing here is a warning."""
        names = [name for name, value in result.items() if isinstance(value, float)]
        key = None if follows_training(model) else model.key_metric
        if names and follows_training(model):
            return
        if names and (key is None or find_name(key, names)):
            resolve_key(model, result)
        elif model.is_main:
            asked = "" if key is None else f"key_metric {key!r} is not among them. If no batch gives it, "
            warn(f"The first eval batch gave {names}. {asked or 'Without any loss or metric '}eval() will raise an error.")
        for callback in model.hooks.callbacks:
            if hasattr(callback, "look_for_monitor"):
                callback.look_for_monitor(list(result), of_training=False)

    def reads_gradients(self, model):
        """``look_apart`` shows them to it, where it is asked."""
        return False

    def on_before_step(self, model):
        if model.amp and not model.skip_non_finite and self.batches:
            refuse_overflow(model, self.batches)
        self.batches = []
        self.has_gradient.update(p for p in model.stepper.parameters() if p.grad is not None)

    def on_after_step(self, model):
        self._remove(model)
        refuse_unsavable(model, model.hooks.callbacks, with_loader=True)
        fetch_losses(model)
        self._check_gradients(model)
        losses = [name for losses, _ in model.running_losses.recent[:1] for name in losses]
        self._check_names(model, [f"train/{name}" for name in (*losses, *model.running_losses.metrics.names())])

    def _check_gradients(self, model):
        names = parameter_names(model)
        optimized = [p for p in model.stepper.parameters() if p.requires_grad]
        without = {p: names.get(p, "?") for p in optimized if p not in self.has_gradient}
        if without and self.has_gradient:  # else train_step stepped by itself, and nobody saw the gradients
            later = _of_later_turns(model, without) if model._overrides("train_step") else {}
            if later:
                model.hooks.set([*model.hooks.callbacks, LaterTurns(later)])
            _warn_of([name for p, name in without.items() if p not in later],
                     "got no gradient from the first update. Unless later updates reach them, they are not trained")
        if any(p.grad is not None for p in optimized):
            _look_at_next_backward(model.stepper, names)

    def _check_names(self, model, names):
        for callback in model.hooks.callbacks:
            if hasattr(callback, "look_for_monitor"):
                callback.look_for_monitor(names, of_training=True)
        if follows_training(model) and find_name(model.key_metric, names) is None:
            warn(f"key_metric is {model.key_metric!r}, and the first batch of the training gave {names}. If no batch gives "
                 "it, an error ends the training behind the epoch. Set key_metric to one of these, or train_metrics = True "
                 "for what metric() gives.")
        if model.lr_scheduler_type == "loss" and model.eval_loader is None and "train/tol_loss" not in names:
            names = [name.removeprefix("train/") for name in names]
            warn("lr_scheduler_type='loss' follows 'tol_loss' of train_step where there is no eval_loader, and train_step "
                 f"gave {names}, so the rate never falls. Add that entry.")

    def on_exit(self, model):
        self._remove(model)

    def _remove(self, model):
        self.looked_at, self.batches, model.lifetime.explain = None, [], None
        self.stop_listening(model)
        model.hooks.remove(self)

    def stop_listening(self, model):
        while self.undo:
            self.undo.pop()()


class LaterTurns(Callback):
    """Waits, at most for an epoch, until optimizers without a gradient in the first update have one: where the critic of a
    GAN is updated first, the generator has none.

    Args:
        waiting: ``{parameter: its name}``.
    """

    def __init__(self, waiting):
        self.waiting = waiting

    def on_before_step(self, model):
        self.waiting = {p: name for p, name in self.waiting.items() if p.grad is None}
        if not self.waiting:
            model.hooks.remove(self)

    def on_train_end(self, model, result):
        model.hooks.remove(self)
        _warn_of(list(self.waiting.values()), "got no gradient in the first epoch. They are not trained")

    def on_exit(self, model):
        model.hooks.remove(self)


def _of_later_turns(model, without):
    """Those of ``without`` whose optimizer has no other parameters."""
    groups = [[p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
              for optimizer in model.stepper.optimizers]
    return {p: without[p] for group in groups if all(p in without for p in group) for p in group}


def _warn_of(names, what):
    if names:
        warn(f"{some(names)} {what}: look for parts that forward() does not use, for .detach() or for an early return.")
