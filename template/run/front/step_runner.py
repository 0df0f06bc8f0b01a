"""Steps of a user's own for ``KerasModel``, in the form that torchkeras gave them, and what they call.

    class MyStep(StepRunner):
        def __call__(self, batch):                       # a batch on the device
            x, y = batch
            with self.accelerator.autocast():
                loss = self.loss_fn(self.net(x), y)
            if self.stage == "train" and self.optimizer is not None:
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
            return {f"{self.stage}_loss": loss}, {}      # (losses and what else is averaged over samples, metrics)

    model = KerasModel(net, loss_fn, step_runner=MyStep)

``backward`` and ``optimizer.step`` are those of the trainer, so accumulation, mixed precision, several processes,
checkpoints and resuming go with such a step as with any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from ...data.nested import to_device
from ...metrics.epoch import is_accumulator
from ...parallel.ranks import default_device

if TYPE_CHECKING:
    from ...template import TemplateModel


class StepRunner:
    """One batch: forward, and in training backward and update. Write ``__call__`` anew for a step of your own.

    Args:
        net: the network.
        loss_fn: ``loss_fn(pred, y) -> loss``.
        accelerator: what carries out ``backward``, ``autocast`` and the like, see ``Accelerator``.
        stage: "train" or "val".
        metrics_dict: metrics by name, of this stage alone.
        optimizer: in training; None where nothing is to be updated.
        lr_scheduler: in training; your step steps it.
        **kwargs: what else ``KerasModel`` was given.
    """

    def __init__(self, net: Any, loss_fn: Any, accelerator: Any = None, stage: str = "train",
                 metrics_dict: Mapping[str, Any] | None = None, optimizer: Any = None, lr_scheduler: Any = None,
                 **kwargs: Any) -> None:
        self.net = net
        self.loss_fn = loss_fn
        self.accelerator: Any = Accelerator() if accelerator is None else accelerator
        self.stage = stage
        self.metrics_dict: dict[str, Any] = dict(metrics_dict or {})
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.kwargs = kwargs
        net.train(stage == "train")

    def __call__(self, batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """``(losses, metrics)`` of a batch, each with names that begin with the stage: "train_loss", "val_acc"."""
        x, y = batch
        with self.accelerator.autocast():
            pred = self.net(x)
            loss = self.loss_fn(pred, y)
        if self.stage == "train" and self.optimizer is not None:
            self.accelerator.backward(loss)
            self.optimizer.step()
            if self.lr_scheduler is not None:
                self.lr_scheduler.step()
            self.optimizer.zero_grad()
        metrics = {}
        for name, metric in self.metrics_dict.items():
            if is_accumulator(metric):
                metric.update(pred.detach(), y)
            else:
                metrics[f"{self.stage}_{name}"] = metric(pred.detach(), y)
        return {f"{self.stage}_loss": loss.detach()}, metrics


class Accelerator:
    """What steps written for torchkeras call of accelerate's object of that name, answered by the trainer.

    ``gather`` and the like give what this process has: the values of all processes are brought together at the end of the
    epoch, weighted by their samples, so nothing counts twice.

    Args:
        trainer: the ``TemplateModel`` that trains; None: nobody does, and ``backward`` is that of the loss.
    """

    def __init__(self, trainer: TemplateModel | None = None) -> None:
        self.trainer = trainer

    # --- the update -----------------------------------------------------------------------------------------------

    def autocast(self, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
        """The context of mixed precision, as ``fit(mixed_precision)`` says."""
        return nullcontext() if self.trainer is None else self.trainer.autocast()

    def backward(self, loss: torch.Tensor, retain_graph: bool | None = None) -> None:
        """Add the gradients of ``loss``, weighted by the batch's share of its update."""
        with torch.autocast(self.device.type, enabled=False):  # the step as a whole is within it
            if self.trainer is None:
                loss.backward(retain_graph=retain_graph)
            else:
                self.trainer.backward(loss, retain_graph=retain_graph)

    @property
    def sync_gradients(self) -> bool:
        """Whether this batch is the last one of its update."""
        return self.trainer is None or self.trainer.stepper.is_group_complete

    def clip_grad_norm_(self, parameters: Iterable[torch.Tensor], max_norm: float, norm_type: float = 2.0) -> torch.Tensor:
        """Clip the gradients of the whole update to a total norm; returns the norm before. On the batches before its last
        one nothing is clipped."""
        parameters, scale = self._complete(parameters)
        limit = max_norm * scale if self.sync_gradients else float("inf")
        return clip_grad_norm_(parameters, limit, norm_type) / scale

    def clip_grad_value_(self, parameters: Iterable[torch.Tensor], clip_value: float) -> None:
        """Clip each element of the gradients of the whole update."""
        parameters, scale = self._complete(parameters)
        if self.sync_gradients:
            clip_grad_value_(parameters, clip_value * scale)

    def _complete(self, parameters):
        """The parameters as a list, whose gradients are those of all processes, and the scale of the loss in fp16: clipping
        scaled gradients at a scaled limit is the same."""
        parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        stepper = None if self.trainer is None else self.trainer.stepper
        if stepper is not None and stepper.parallel is not None and self.sync_gradients:
            stepper.parallel.complete(parameters)
        return parameters, stepper.scaler.get_scale() if stepper is not None and stepper.is_scaled else 1.0

    def accumulate(self, *models: Any) -> AbstractContextManager[Any]:
        """Nothing: the trainer accumulates, see ``fit(gradient_accumulation_steps)``."""
        return nullcontext()

    no_sync = accumulate

    # --- several processes ----------------------------------------------------------------------------------------

    def gather(self, tensor: Any) -> Any:
        """What this process has, see above."""
        return tensor

    def reduce(self, tensor: Any, reduction: str = "sum", scale: float = 1.0) -> Any:
        """What this process has, see above."""
        return tensor

    gather_for_metrics = gather

    def pad_across_processes(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        """What this process has: nothing is gathered."""
        return tensor

    def wait_for_everyone(self) -> None:
        """Until all processes are here."""
        if self.num_processes > 1:
            torch.distributed.barrier()

    @property
    def num_processes(self) -> int:
        return 1 if self.trainer is None else self.trainer.world.size

    @property
    def process_index(self) -> int:
        return 0 if self.trainer is None else self.trainer.world.rank

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0

    is_local_main_process = is_main_process

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print in the first process alone."""
        if self.is_main_process:
            print(*args, **kwargs)

    # --- objects --------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return torch.device(default_device() if self.trainer is None else self.trainer.device)

    @property
    def mixed_precision(self) -> str:
        return "no" if self.trainer is None else self.trainer.amp or "no"

    @property
    def gradient_accumulation_steps(self) -> int:
        return 1 if self.trainer is None else self.trainer.accumulate_steps

    def prepare(self, *objects: Any) -> Any:
        """The objects, those with tensors on the device. ``fit`` has prepared network, optimizer and data already."""
        prepared = tuple(to_device(one, self.device) if isinstance(one, (torch.Tensor, torch.nn.Module)) else one
                         for one in objects)
        return prepared[0] if len(prepared) == 1 else prepared

    def unwrap_model(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """The model itself, which nothing is wrapped around."""
        return model

    def get_state_dict(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return dict(model.state_dict())

    def save(self, state: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        """``torch.save`` in the first process alone."""
        if self.is_main_process:
            torch.save(state, path)
