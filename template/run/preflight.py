"""Mistakes that show on the first batch: what is looked at while the first update is done.

``Preflight`` rides along on the first real training batch: no extra forward, no second start of the workers; then it removes
itself. It does not change a bit of the training. What certainly breaks the run is an error, what may be meant is a
``UserWarning``. What a criterion is given is looked at in ``criterion_inputs.py``, what can be seen without data in
``checks.py``.
"""

import sys

from torch import nn

from ..data.seeding import capture_rng, restore_rng
from ..hooks import Callback
from ..update.guard import fetch_losses
from .checks import parameter_names, resolve_key, some, warn
from .criterion_inputs import check_criterion_inputs


def preflight(model):
    """The callbacks that look at the first batch: one, or none when ``model.preflight`` is off."""
    return [Preflight()] if model.preflight else []


class Preflight(Callback):
    """Scores one eval batch before the first update, listens to the criterion on the first training batches, and looks at
    their gradients; after the first update it is gone."""

    def __init__(self):
        self.undo = []
        self.has_gradient = set()

    def on_train_start(self, model):
        self._listen_to_criterion(model)
        if model.eval_loader is not None:
            self._score_one_batch(model)

    def _listen_to_criterion(self, model):
        """A module tells what it is given; a function is seen where the default ``loss_per_batch`` calls it."""
        if isinstance(model.criterion, nn.Module):
            handle = model.criterion.register_forward_pre_hook(lambda module, args: check_criterion_inputs(module, args))
            self.undo.append(handle.remove)
        elif model.criterion is not None:
            model.lifetime.look_at_criterion = check_criterion_inputs
            self.undo.append(lambda: setattr(model.lifetime, "look_at_criterion", None))

    def _score_one_batch(self, model):
        """``metric()`` that raises or lacks ``key_metric`` shows itself now. RNG, counters and metrics are put back."""
        rng, counter, key = capture_rng(), model.global_step_eval, model.key_metric
        try:
            result = model.evaluator.score_first_batch()
            resolve_key(model, result)
        except Exception:
            print("The evaluation of one batch failed, before training began (preflight = False skips this):",
                  file=sys.stderr)
            raise
        finally:
            restore_rng(rng)
            model.global_step_eval, model.key_metric = counter, key

    def on_before_step(self, model):
        self.has_gradient.update(p for p in model.stepper.parameters() if p.grad is not None)

    def on_after_step(self, model):
        self._remove(model)
        fetch_losses(model)
        self._check_gradients(model)

    def _check_gradients(self, model):
        names = parameter_names(model)
        optimized = [p for p in model.stepper.parameters() if p.requires_grad]
        without = [names.get(p, "?") for p in optimized if p not in self.has_gradient]
        if without:
            warn(f"{some(without)} got no gradient from the first update, so they are not trained. Look for parts that "
                  "forward() does not use, for .detach() or for an early return.")
        left = [names.get(p, "?") for p in optimized if p.grad is not None]
        if left:
            warn(f"{some(left)} still hold gradients after the update, which leak into the next one: a loss that was not "
                  "theirs went through them. Name the optimizer in train_step: backward(loss, i).")

    def on_exit(self, model):
        self._remove(model)

    def _remove(self, model):
        while self.undo:
            self.undo.pop()()
        model.hooks.remove(self)
