"""The trainer of a ``KerasModel`` whose step is the user's own: see ``step_runner.py`` for the step.

    class Trainer(BySteps, TemplateModel): ...

A step is made anew for each epoch and each evaluation. It is given the optimizers and the scheduler as ``OptimizerOfStep``
and ``SchedulerOfStep``, whose ``step()`` is the update of the trainer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...metrics.epoch import is_accumulator
from ..train_metrics import TrainMetrics
from .fit_by_loss import ByLoss
from .step_runner import Accelerator

if TYPE_CHECKING:
    from ...keras_model import KerasModel
    from ...template import TemplateModel


class BySteps(ByLoss):
    """Trains one with a ``StepRunner`` of the user's own, which is made anew for each epoch and each evaluation."""

    gives_metrics = False  # the step alone knows which

    def __init__(self, model: KerasModel) -> None:
        super().__init__(model)
        self.step_class, self.step_arguments = model.StepRunner, dict(model.kwargs)
        self.accelerator = Accelerator(self)
        self.metrics_of = {stage: copy.deepcopy(model.metrics_dict) for stage in ("train", "val")}
        self.scheduler: Any = None
        self.train_scores: dict[str, Any] = {}
        self._val_scores: dict[str, Any] = {}
        self._runners: dict[str, Any] = {}  # by stage
        self._epoch_of_runner = -1
        optimizers = [one for one in model.kwargs.values() if isinstance(one, torch.optim.Optimizer)]
        self.optimizer_list = [model.optimizer, *optimizers]
        trained = {p for optimizer in self.optimizer_list for group in optimizer.param_groups for p in group["params"]}
        networks = [one for one in model.kwargs.values() if isinstance(one, nn.Module)]
        self.model_list = [model.net, *(one for one in networks if trained & set(one.parameters()))]
        self._others = [one for one in networks if not trained & set(one.parameters())]

    def set_metrics(self, metrics):
        """The step has them."""

    def take_scheduler(self, scheduler):
        self.scheduler = scheduler

    def begin(self):
        for part in (*self._others, *self.metrics_of["train"].values(), *self.metrics_of["val"].values()):
            if isinstance(part, nn.Module):
                part.to(torch.device(self.device))
        own = {name: metric for name, metric in self.metrics_of["train"].items() if is_accumulator(metric)}
        self.running_losses.metrics = StepMetrics(self, own)

    def objects(self):
        parts = {"lr_scheduler": self.scheduler, **self.step_arguments}
        return {name: part for name, part in parts.items() if not isinstance(part, (nn.Module, torch.optim.Optimizer))
                and hasattr(part, "state_dict") and hasattr(part, "load_state_dict")}

    def begin_evaluation(self):
        self._runners.pop("val", None)

    def _runner(self, stage):
        if stage not in self._runners:
            is_train, arguments = stage == "train", dict(self.step_arguments)
            for name, value in arguments.items():
                if isinstance(value, torch.optim.Optimizer):
                    index = next(i for i, one in enumerate(self.optimizer_list) if one is value)
                    arguments[name] = OptimizerOfStep(self, index)
            scheduler = SchedulerOfStep(self, self.scheduler) if is_train and self.scheduler is not None else None
            self._runners[stage] = self.step_class(
                net=self.model_list[0], loss_fn=self.criterion, accelerator=self.accelerator, stage=stage,
                metrics_dict=self.metrics_of[stage], optimizer=OptimizerOfStep(self) if is_train else None,
                lr_scheduler=scheduler, **arguments)
        return self._runners[stage]

    def _answer(self, stage, batch):
        """``(losses, scores)``."""
        answer = self._runner(stage)(batch)
        if not (isinstance(answer, tuple) and len(answer) == 2 and all(isinstance(part, Mapping) for part in answer)):
            raise TypeError("A StepRunner must return two dicts, (losses, metrics), with names as "
                            f"'{stage}_loss'; got {answer!r}.")
        losses = named(answer[0], stage)
        return losses, scores_of(answer[1], losses, self.metrics_of[stage], stage)

    def train_step(self, batch: Any) -> Any:
        if self._epoch_of_runner != self.epoch:
            self._epoch_of_runner = self.epoch
            self._runners.pop("train", None)
        self.stepper.leave_update()
        with self.autocast():
            losses, self.train_scores = self._answer("train", batch)
        return losses

    def loss_per_batch(self, batch: Any) -> Any:
        """Of an evaluation."""
        losses, self._val_scores = self._answer("val", batch)
        return losses

    def eval_scores_per_batch(self, batch: Any) -> Mapping[str, Any]:
        return self._val_scores


class OptimizerOfStep:
    """An optimizer as a step sees it: its ``step`` is the trainer's update.

    Args:
        trainer: the ``TemplateModel`` that trains.
        index: of the optimizer in its ``optimizer_list``.
    """

    def __init__(self, trainer: TemplateModel, index: int = 0) -> None:
        self.trainer = trainer
        self.index = index
        self.optimizer = trainer.optimizer_list[index]

    def step(self, closure: Any = None) -> None:
        """Update at the last batch of an accumulation group, with complete, unscaled and clipped gradients."""
        if closure is not None:
            raise TypeError("optimizer.step() of a step of your own takes no closure. Leave the step to KerasModel, which "
                            "calls the network as often as such an optimizer asks for.")
        self.trainer.update(self.index)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop gradients, unless those of an accumulation group are being added up. After an update they are gone."""
        if self.trainer.stepper.accumulate_steps == 1:
            self.optimizer.zero_grad(set_to_none)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the optimizer's: ``param_groups``, ``state_dict()``, …"""
        return getattr(self.optimizer, name)


class SchedulerOfStep:
    """A scheduler as a step sees it: it steps where an update was done."""

    def __init__(self, trainer: TemplateModel, scheduler: Any) -> None:
        self.trainer = trainer
        self.scheduler = scheduler

    def step(self, *args: Any, **kwargs: Any) -> None:
        if self.trainer.stepper.is_group_complete:
            self.scheduler.step(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the scheduler's."""
        return getattr(self.scheduler, name)


class StepMetrics(TrainMetrics):
    """Metrics of the training that a step gave, in the place of those that a trainer asks ``metric()`` for.

    Args:
        trainer: with ``train_scores``, what its step gave of the present batch.
        own: ``{name: accumulator}`` that the step updates.
    """

    def __init__(self, trainer: Any, own: dict[str, Any]) -> None:
        super().__init__(trainer, own)
        self.needs_batch = False

    def _values(self, given, batch):
        return self.trainer.train_scores

    def _make(self):
        """Behind the last batch of an epoch: what is no accumulator is a mean."""
        return dict.fromkeys(self.totals.waiting, 0.0)


def named(values: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """What a step gave, by the names of a ``TemplateModel``: "train_loss" is "tol_loss", and "val_acc" is "acc"."""
    short = {name.removeprefix(f"{stage}_"): value for name, value in values.items()}
    return {"tol_loss" if name == "loss" else name: value for name, value in short.items()}


def scores_of(metrics: Mapping[str, Any], losses: Mapping[str, Any], own: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """What counts of the second part of a step's answer: the accumulators that it updated, and plain numbers, which are
    averaged over samples.

    Args:
        metrics: as the step gave them.
        losses: the first part, by the names of a ``TemplateModel``.
        own: the metrics that the step was given.
    """
    scores = {name: metric for name, metric in own.items()
              if is_accumulator(metric) and getattr(metric, "_update_count", 1)}  # torchmetrics' count of them
    plain = {name: value for name, value in named(metrics, stage).items() if name != "lr"}
    return {name: value for name, value in (plain | scores).items() if name not in losses}
