"""Stochastic weight averaging: the mean of the weights at the ends of the last epochs, with BatchNorm statistics of its own.

    trainer.callbacks = [SWA(start=0.75)]                # of the last quarter of the run
    trainer.callbacks = [SWA(start=30, swa_lr=0.01)]     # from epoch 30 on, at a constant learning rate
    trainer.callbacks = [SWA(start=0.75, every=500)]     # of every 500th update in the last quarter, for runs of few epochs
    trainer.fit(40)

From its start on, evaluations, ``best.pth``, ``test`` and ``predict`` use the mean. ``last.pth`` and ``epoch<N>.pth`` hold
the weights of the training, and the mean beside them. Without ``swa_lr`` it does not change the training.

Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018.
"""

from __future__ import annotations

import copy
import math
import weakref
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_swa_multi_avg_fn
from torch.utils.data import DataLoader

from ..checkpoint.state import floating_tensors
from ..data.loaders import make_batches
from ..data.nested import loader_length
from ..data.seeding import rng_kept
from ..data.shares import Share, Uneven
from ..hooks import Callback
from ..metrics.modes import eval_mode, unchanged
from ..output.warn import warn
from ..update.averages import WeightAverage
from ..update.lr_scheduler import set_rate

if TYPE_CHECKING:
    from ..template import TemplateModel


class SWA(Callback):
    """The mean over the ends of epochs, or over every so many updates, from ``start`` on.

    Statistics of BatchNorm belong to weights, and those of the training do not fit the mean. They are computed anew whenever
    weights are added to it, by a pass over the training's data without gradients: as
    ``torch.optim.swa_utils.update_bn`` does it, as many batches as an epoch has, in an order of their own. Models without
    BatchNorm need no pass.

    Args:
        start: share of the run behind which averaging begins (0.75: in the last quarter), which needs the run's length, in
            epochs or in updates; or the number of the first epoch that is averaged, a whole number of at least 1.
        swa_lr: learning rate of all parameter groups from then on, in place of the schedule's; None leaves it.
        every: average every so many updates, in place of the ends of epochs: for runs of few epochs, or without an end.

    Raises:
        ValueError: a bad argument, or a share of a run whose length is not known.
    """

    def __init__(self, start: float = 0.75, swa_lr: float | None = None, every: int | None = None) -> None:
        is_number = isinstance(start, (int, float)) and not isinstance(start, bool)
        if not is_number or not (0 < start < 1 or isinstance(start, int) and start >= 1):
            raise ValueError("start must be a share of the run between 0 and 1, such as 0.75, or the number of an epoch, "
                             f"such as 30; got {start!r}.")
        if swa_lr is not None and (not isinstance(swa_lr, (int, float)) or isinstance(swa_lr, bool) or swa_lr <= 0):
            raise ValueError(f"swa_lr must be a learning rate above 0, or None to leave it as it is; got {swa_lr!r}.")
        if every is not None and (type(every) is not int or every < 1):
            raise ValueError("every must be a whole number of updates of at least 1, or None for the ends of epochs; got "
                             f"{every!r}.")
        self.start = start
        self.swa_lr = swa_lr
        self.every = every
        self._average = WeightAverage()
        self._statistics: dict[str, torch.Tensor] = {}  # of BatchNorm, for the mean
        self._statistics_of = 0                         # how many weights the mean that they belong to is of
        self._is_active = False                         # what comes now is averaged
        self._from_update: float | None = None          # the number of updates behind which that begins; None: an epoch
        self._last_epoch = 0                            # that was; a run that goes on with its evaluation ends it again
        self._is_told = False
        self._model: Any = None

    @property
    def averaged_epochs(self) -> int:
        """How many weights the mean is of: ends of epochs, or with ``every`` of so many updates."""
        return self._average.num

    # --- events ---------------------------------------------------------------------------------------------------

    def on_train_start(self, model: TemplateModel) -> None:
        self._from_update = self._first_update(model)
        if self._average.num:
            self._is_active = True
        elif self._from_update is not None:
            self._is_active = model.global_step >= self._from_update
        else:
            self._is_active = model.epoch >= self._first_epoch(model)
        self._set_rates(model)

    def on_after_step(self, model: TemplateModel) -> None:
        if self._from_update is not None and model.global_step >= self._from_update:
            self._is_active = True
        if self.every and model.global_step % self.every == 0 and self._is_due(model):
            self._add(model)
        self._set_rates(model)  # a schedule may have stepped

    def on_train_end(self, model: TemplateModel, result: dict[str, float]) -> None:
        if not self.every and model.epoch > self._last_epoch and self._is_due(model):
            self._last_epoch = model.epoch
            self._add(model)

    def _is_due(self, model):
        return self._is_active and (self._from_update is None or model.global_step > self._from_update)

    def _add(self, model):
        """The present weights, to the mean."""
        self._average.follow(_parameters(model))
        if self._average.num:
            self._average.move(get_swa_multi_avg_fn())
        else:
            self._average.begin()
        self._renew_statistics(model)

    def _first_update(self, model):
        """Behind how many updates averaging begins, where ``start`` is a share of these; None: it is about epochs."""
        if isinstance(self.start, int) or model.total_updates is None:
            return None
        first, per_epoch = self.start * model.total_updates, model.updates_per_epoch()
        if not self.every and (per_epoch is None or model.total_updates // per_epoch * per_epoch <= first):
            raise ValueError(
                f"SWA(start={self.start}) averages the ends of epochs, and none of them lies behind update {first:g} of "
                f"{model.total_updates}. Say every how many updates: "
                f"SWA({self.start}, every={max(round((model.total_updates - first) / 10), 1)}).")
        return first

    def _first_epoch(self, model):
        if isinstance(self.start, int):
            if model.total_epochs is not None and self.start > model.total_epochs and not self._is_told:
                self._is_told = True
                warn(f"SWA(start={self.start}) averages from epoch {self.start} on, and this run ends with epoch "
                     f"{model.total_epochs}, so nothing is averaged. Choose an earlier epoch, or a share such as 0.75.")
            return self.start
        if model.total_epochs is None:
            raise ValueError(f"SWA(start={self.start}) begins behind that share of the run, and its length is not known. "
                             "Loop over trainer.epochs(n) or trainer.updates(n), set total_epochs, or give the number of an "
                             "epoch: SWA(start=30).")
        return math.floor(self.start * model.total_epochs) + 1

    def _set_rates(self, model):
        if self._is_active and self.swa_lr is not None:
            for optimizer in model.optimizer_list:
                for group in optimizer.param_groups:
                    set_rate(group, self.swa_lr)

    # --- statistics of BatchNorm ------------------------------------------------------------------------------------

    def _renew_statistics(self, model):
        layers = {part for own in model.model_list for part in own.modules()
                  if isinstance(part, _BatchNorm) and part.track_running_stats and part.training}
        modules = [*model.model_list, *([model.criterion] if isinstance(model.criterion, nn.Module) else [])]
        if not layers:
            self._statistics, self._statistics_of = {}, self._average.num
            return
        with model.lifetime.weights.in_place(self._average.pairs()), unchanged(modules), rng_kept(), torch.no_grad():
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # a plain mean over the batches
            count = self._forward_all(model, layers)
            if count is None:
                return
            tensors = {id(tensor): name for name, tensor in floating_tensors(model).items()}
            own = {tensors[id(buffer)]: buffer.detach().clone() for layer in layers
                   for buffer in (layer.running_mean, layer.running_var)}
        counts = model.world.gather(count)
        if not sum(counts):
            warn("SWA found no batch in train_loader for the statistics of BatchNorm: it can be read only once. They stay "
                 "those of the training, which do not fit the mean of the weights.")
            own = {}
        elif len(counts) > 1:
            own = _mean_over_ranks(model.world, own, counts)
        self._statistics, self._statistics_of = own, self._average.num

    def _forward_all(self, model, layers):
        """The number of batches; None where the run was asked to end meanwhile."""
        world = model.world
        share = Share(world.rank, world.size, gather=world.gather, name="train_loader")
        loader = _with_workers_of_its_own(model.train_loader)
        batches = make_batches(loader, model.seed, torch.device(model.device), model.slice_tensors, share)
        of_epoch = loader_length(model.train_batches)
        most, count = max(model.batches_done // world.size, 1) if of_epoch is None else of_epoch, 0
        for batch in islice(batches.epoch(0), most):
            if world.size == 1 and model.lifetime.stop_request.signal:
                return None
            batch, is_spare = batch if type(batch) is Uneven else (batch, False)
            counts = not is_spare or model.sync_batchnorm
            if counts or model.is_sharded:  # where each forward gathers weights of all ranks
                with model.autocast(), nullcontext() if counts else eval_mode(layers):
                    model.evaluator.forward(batch)
            count += counts
        return count

    # --- use ------------------------------------------------------------------------------------------------------

    def weights_for_use(self, model: TemplateModel) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """``[(tensor of a model, its value in the mean)]``; empty before the start."""
        if not self._average.num:
            return []
        tensors = floating_tensors(model)
        self._average.follow(tensors, only_known=True)
        if self._statistics_of != self._average.num:  # a signal had cut it short
            self._renew_statistics(model)
        statistics = [(tensors[name], value.to(tensors[name].device)) for name, value in self._statistics.items()
                      if name in tensors]
        return [*self._average.pairs(), *statistics]

    def save(self, path: str | Path) -> None:
        """Write the mean to ``path``, with the counters, as ``save_state(path, optim=False)`` writes weights: then
        ``load_state(path, optim=False)`` takes it. Rank 0 writes, whether the others call it too or not;
        under fsdp every rank has to call it.

        Raises:
            RuntimeError: nothing was averaged yet.
        """
        model = self._model() if self._model is not None else None
        if model is None or not self._average.num:
            raise RuntimeError("SWA.save() writes the mean of a training, and there is none yet: it begins at the end of "
                               f"the first epoch behind start={self.start}. Put the SWA into callbacks and train before.")
        model.lifetime.weights.save(path)

    def attach(self, model: TemplateModel) -> None:
        """``check_init`` tells whose weights these are."""
        self._model = weakref.ref(model)

    # --- resume ---------------------------------------------------------------------------------------------------

    def start_afresh(self) -> None:
        """The training goes on with other weights."""
        self._average, self._statistics, self._statistics_of, self._last_epoch = WeightAverage(), {}, 0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average.state_dict(), "statistics": dict(self._statistics),
                "statistics_of": self._statistics_of, "last_epoch": self._last_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average.load_state_dict(state["average"])
        self._statistics = {name: value.clone() for name, value in state["statistics"].items()}
        self._statistics_of, self._last_epoch = state["statistics_of"], state["last_epoch"]

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a trainer is as before ``check_init``."""
        return vars(self) | {"_model": None}


def _parameters(model):
    return {name: tensor for name, tensor in floating_tensors(model).items() if isinstance(tensor, nn.Parameter)}


def _with_workers_of_its_own(loader):
    """Those of the training, where they are kept from epoch to epoch, know how far they are."""
    if isinstance(loader, dict):
        return {name: _with_workers_of_its_own(part) for name, part in loader.items()}
    if not (isinstance(loader, DataLoader) and loader.persistent_workers):
        return loader
    other = copy.copy(loader)
    vars(other).update(persistent_workers=False, _iterator=None)  # DataLoader refuses the assignment
    return other


def _mean_over_ranks(world, own, counts):
    """Of the batches of all ranks. On every rank."""
    parts = world.gather({name: value.cpu() for name, value in own.items()})
    return {name: torch.stack([part[name] * (count / sum(counts)) for part, count in zip(parts, counts)]).sum(0).to(value)
            for name, value in own.items()}
