"""An exponential moving average of the weights, which evaluations, ``best.pth``, ``test`` and ``predict`` use.

    ema = EMA(decay=0.999)
    trainer.callbacks = [ema]
    trainer.fit(30)                       # trains as without it, bit for bit; what is scored and kept is the average
    ema.save("average.pth")               # trainer.load_state("average.pth", optim=False) takes it

``last.pth`` and ``epoch<N>.pth`` hold the weights of the training, and the average beside them. It does not change the
training, and needs the memory of the weights once more.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..checkpoint.state import floating_tensors
from ..hooks import Callback
from ..update.averages import DoneSteps, WeightAverage

if TYPE_CHECKING:
    from ..template import TemplateModel


class EMA(Callback):
    """``average = decay * average + (1 - decay) * weights`` behind the updates, beginning with the weights after the first.

    Updates that are skipped (``skip_non_finite``, an overflow under fp16) do not count. Buffers of floating-point numbers,
    such as the statistics of BatchNorm, are averaged too; those of whole numbers stay the training's. Averages of half
    precision weights are kept in float32.

    Args:
        decay: share of the average that stays, from 0 to 1; 0.999 looks back over some 1000 updates.
        every: updates between two of these; the average then looks back ``every`` times as far.
        warm_up: begin with a smaller decay, ``(1 + n) / (10 + n)`` at the n-th time, so that the first weights are forgotten
            sooner. False: ``decay`` from the start.

    Raises:
        ValueError: a bad argument.
    """

    def __init__(self, decay: float = 0.999, every: int = 1, warm_up: bool = True) -> None:
        if not isinstance(decay, (int, float)) or isinstance(decay, bool) or not 0 <= decay < 1:
            raise ValueError(f"decay must be a number of at least 0 and less than 1, got {decay!r}. Usual values are 0.99 "
                             "to 0.9999.")
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every must be a whole number of updates of at least 1, got {every!r}.")
        self.decay = decay
        self.every = every
        self.warm_up = warm_up
        self.updates: int = 0  # that were done, and not skipped, since the average began
        self._average = WeightAverage()
        self._steps = DoneSteps()
        self._is_to_look = True  # at the models' tensors, before the next update
        self._model: Any = None

    # --- events ---------------------------------------------------------------------------------------------------

    def on_train_start(self, model: TemplateModel) -> None:
        self._steps.watch(model.optimizer_list)
        self._steps.take()  # a tool may have stepped meanwhile
        self._is_to_look = True

    def on_after_step(self, model: TemplateModel) -> None:
        is_done, found_inf = self._steps.take()
        if not is_done:
            return
        self.updates += 1
        if self._is_to_look or self._average.is_stale:
            self._average.follow(floating_tensors(model))
            self._is_to_look = False
        if not self._average.num:
            self._average.begin(found_inf)
        elif self.updates % self.every == 0:
            if found_inf is None:
                self._average.move(get_ema_multi_avg_fn(self.present_decay))
            else:
                self._average.move_unless(found_inf, self.present_decay)

    def on_exit(self, model: TemplateModel) -> None:
        self._steps.close()

    # --- use ------------------------------------------------------------------------------------------------------

    @property
    def present_decay(self) -> float:
        """``decay``, or what the warm-up has reached.

        Source: ``num_updates`` of TensorFlow's ``ExponentialMovingAverage``.
        """
        num = self._average.num
        return min(self.decay, (1 + num) / (10 + num)) if self.warm_up else self.decay

    def weights_for_use(self, model: TemplateModel | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """``[(tensor of a model, its average)]``; empty before the first update."""
        if self._average.num and self._is_to_look:
            self._average.follow(floating_tensors(self._model()), only_known=True)
        return self._average.pairs()

    def weights_of(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """The averaged weights of a model, or of a part of it, by name; before the first update the weights as they are. So
        a target network or a teacher needs no copy::

            with torch.no_grad():
                targets = torch.func.functional_call(net, ema.weights_of(net), (x,))

        Buffers are copies: a BatchNorm in training mode changes them, and not the average.
        """
        averages = {id(tensor): value.to(tensor.dtype) for tensor, value in self.weights_for_use()}
        own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        weights = {name: averages.get(id(tensor), tensor.detach()) for name, tensor in own.items()}
        return weights | {name: weights[name].clone() for name, _ in module.named_buffers()}

    def save(self, path: str | Path) -> None:
        """Write the average to ``path``, with the counters, as ``save_state(path, optim=False)`` writes weights: then
        ``load_state(path, optim=False)`` takes it. Rank 0 writes, whether the others call it too or not;
        under fsdp every rank has to call it.

        Raises:
            RuntimeError: there is no average yet.
        """
        model = self._model() if self._model is not None else None
        if model is None or not self._average.num:
            raise RuntimeError("EMA.save() writes the average of a training, and there is none yet: it begins with the "
                               "first update. Put the EMA into callbacks, train, and save then.")
        model.lifetime.weights.save(path)

    def attach(self, model: TemplateModel) -> None:
        """``check_init`` tells whose weights these are."""
        self._model = weakref.ref(model)

    # --- resume ---------------------------------------------------------------------------------------------------

    def start_afresh(self) -> None:
        """The next update begins a new average: the training goes on with other weights."""
        self.updates, self._average = 0, WeightAverage()
        self._is_to_look = True

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": self._average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self._is_to_look = state["updates"], True
        self._average.load_state_dict(state["average"])

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a trainer is as before ``check_init``: nothing is attached to its optimizers."""
        return vars(self) | {"_model": None, "_steps": DoneSteps()}
