"""Optimizers whose ``step`` takes a closure: LBFGS, which evaluates the loss several times per step, and SAM.

    self.optimizer_list = [torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")]

The closure runs ``train_step`` (by default ``loss_per_batch``) over the whole accumulation group again. It gives the
gradients, clipped and averaged over the ranks like the first ones, and returns the loss that they belong to. If it is called
before the weights have moved, it returns what the loop has computed already, so an update costs as many forwards as in a
plain loop. ``on_before_step`` comes once, before the step.

An optimizer is given a closure if its ``step`` requires one, if it has ``first_step`` and ``second_step`` as SAM does, or if
it says so: ``optimizer.takes_closure = True``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from .stepper import Stepper


def takes_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``step`` shall be given a closure."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    is_required = closure is not None and closure.default is inspect.Parameter.empty
    return is_required or _moves_first(optimizer) or getattr(optimizer, "takes_closure", False)


def _moves_first(optimizer):
    """SAM and its relatives move the weights before they ask for the loss."""
    return hasattr(optimizer, "first_step") and hasattr(optimizer, "second_step")


class ClosureStepper(Stepper):
    """A ``Stepper`` that gives closures to the optimizers which take them.

    Args:
        evaluate: function of a micro-batch that calls ``backward`` with its loss: the trainer's ``train_step``.
        optimizers, *args: those of ``Stepper``.

    Raises:
        ValueError: ``amp`` is "fp16", whose loss scaler cannot work with a closure.
    """

    keeps_group = True

    def __init__(self, evaluate: Callable[[Any], Any], optimizers: list[torch.optim.Optimizer], *args: Any) -> None:
        super().__init__(optimizers, *args)
        self._evaluate = evaluate
        self._group: Any = None  # the micro-batches of the present update, and their number of samples
        self._losses: dict[int, list[torch.Tensor]] = {i: [] for i, one in enumerate(optimizers) if takes_closure(one)}
        self._asked_for: set[int] = set()    # optimizers that train_step updated for the present micro-batch
        self._stepped: set[int] = set()      # optimizers that train_step stepped by itself, with a closure of its own
        self._stepping: int | None = None    # the optimizer whose step we are in
        self._is_again = False               # within a closure
        for i in self._losses:
            optimizers[i].register_step_post_hook(lambda *_, i=i: self._note_step(i))

    def set_amp(self, amp):
        if amp == "fp16":
            names = [type(one).__name__ for one in self.optimizers if takes_closure(one)]
            raise ValueError(f"amp = 'fp16' does not go with {names[0]}, which evaluates the loss within its step: the loss "
                             "scaler of torch cannot do that. Set amp = 'bf16' or None, or use another optimizer.")
        super().set_amp(amp)

    def _note_step(self, index):
        if self._stepping != index:
            self._stepped.add(index)

    def _weighted(self, group, total):
        self._group = group, total
        for entry in super()._weighted(group, total):
            self._asked_for.clear()
            yield entry

    def backward(self, loss, index=None, retain_graph=None):
        super().backward(loss, index, retain_graph)
        if type(self._weight) is not float or self._weight:
            for i, losses in self._losses.items():
                if index is None or index == i:
                    losses.append(loss.detach() * self._weight)

    def update(self, index=None, step=True):
        if self._is_again:
            return
        chosen = self._losses.keys() if index is None else self._losses.keys() & {index}
        for i in chosen & self._asked_for:
            raise ValueError(
                f"One train_step called update({i}) twice, and {type(self.optimizers[i]).__name__} takes a closure: it is "
                f"not known which part of train_step belongs to it. Call optimizer_list[{i}].step(closure) with a closure "
                f"of your own, and then update({i}, step=False)."
            )
        self._asked_for |= chosen
        if step and self._stepped and self._group_complete:
            self._update_the_others(index)
        else:
            super().update(index, step)
        if self._group_complete:
            for i in chosen:
                self._losses[i].clear()

    def _update_the_others(self, index):
        """Than those that ``train_step`` stepped by itself."""
        for i in self._all if index is None else (index,):
            super().update(i, step=i not in self._stepped)

    def finish_group(self):
        super().finish_group()
        self._forget()

    def forget_group(self):
        super().forget_group()
        self._forget()

    def _forget(self):
        self._group = None
        self._asked_for.clear()
        self._stepped.clear()
        for losses in self._losses.values():
            losses.clear()

    # --- the step with a closure ----------------------------------------------------------------------------------

    def _step(self, index):
        if index not in self._losses:
            super()._step(index)
        elif self._has_gradients(index):  # else train_step stepped it by itself, by first_step and second_step
            self._stepping = index
            try:
                self.optimizers[index].step(self._closure(index))
            finally:
                self._stepping = None

    def _closure(self, index):
        known = None if _moves_first(self.optimizers[index]) else self._loss(index)
        versions = self._versions(index)

        def closure():
            nonlocal known
            first, known = known, None
            if first is not None and versions == self._versions(index):
                return first
            return self._evaluate_again(index)

        return closure

    def _versions(self, index):
        """A number that grows with each change of a parameter, and whether its gradient is still there."""
        return [(p._version, p.data_ptr(), p.grad is None) for p in self.parameters([index])]

    def _evaluate_again(self, index):
        """Gradients of the group at the present weights, for one optimizer; those of the others stay as they are."""
        own = list(self.parameters([index]))
        kept = {p: p.grad for p in self.parameters() if p.grad is not None}
        for p in (*kept, *own):
            p.grad = None
        self._losses[index].clear()
        guard, self.guard, self._is_again = self.guard, None, True
        try:
            with torch.enable_grad():
                for batch, _ in super()._weighted(*self._group):
                    self._evaluate(batch)
        finally:
            self.guard, self._is_again, self._updated = guard, False, True
            for p in kept.keys() - set(own):
                p.grad = kept[p]
        if self.parallel is not None:
            self.parallel.complete(own)
        if self.clip is not None:
            self.clip(own)
        return self._loss(index)

    def _loss(self, index):
        """What the gradients belong to: the mean over the group's samples, of all ranks, or their sum."""
        losses = self._losses[index]
        loss = torch.stack(losses).sum() if losses else torch.zeros((), device=self.device)
        if self.parallel is not None:  # all ranks decide alike
            loss = loss.double()  # of one kind on all of them: a rank may have no sample, and no loss
            dist.all_reduce(loss)
            loss /= self.parallel.world.size
        return loss
