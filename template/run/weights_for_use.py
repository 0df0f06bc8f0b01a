"""Which weights evaluations, predictions, ``best.pth`` and exports get, where these are not those of the training.

    with trainer.lifetime.weights.for_use():         # averaged weights are in the models, if there are any
        …
    with trainer.lifetime.weights.of_training():     # around the making of a state to continue from
        …

There are two kinds of sources: schedule-free optimizers (``update/schedule_free.py``), and a callback with these methods, as
in ``callbacks/ema.py`` and ``callbacks/swa.py``:

- ``weights_for_use(model)`` gives ``[(tensor of a model, its value for use)]``, or an empty list while there is nothing;
- ``attach(model)`` is called by ``check_init``;
- ``start_afresh()`` is called when the training goes on with weights that have nothing to do with those before.

Values are copied into the models' own tensors, whose memory compiled code and optimizers hold. The training's values are
kept for as long as others are in their place. Under FSDP2 the tensors and their values are divided alike, and each rank
copies its parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoint import files, state
from ..parallel.gradients import let_go, part_of
from ..parallel.ranks import ALONE
from ..update import schedule_free

if TYPE_CHECKING:
    from ..template import TemplateModel


class WeightsForUse:
    """Of one ``TemplateModel``, also before ``check_init``, where there are no callbacks yet."""

    def __init__(self, trainer: TemplateModel):
        self.trainer = trainer
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []  # the training's values, while others are in their place

    @contextmanager
    def for_use(self, always: bool = False) -> Iterator[None]:
        """The weights for use are in the models; afterwards, also after an error, those of the training, to the last bit.

        Weights that ``use_best()`` or ``load_state(optim=False)`` took are used as they are. Within another one of these
        nothing happens: what is in the models stays there.

        Args:
            always: a callback's weights also where others were taken.
        """
        trainer = self.trainer
        with schedule_free.averaged(trainer.optimizer_list or ()):
            pairs = [] if self._kept or trainer.lifetime.only_looks and not always else self._from_callbacks()
            with self.in_place(pairs):
                yield

    @contextmanager
    def in_place(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[None]:
        """For a source that has to compute with its own weights: these values are in these tensors."""
        if not pairs:
            yield
            return
        make_buffers_equal = self.trainer.stepper.parallel.before_evaluation if self.trainer.is_sharded else lambda: None
        make_buffers_equal()
        pairs = [(part_of(tensor), part_of(value)) for tensor, value in pairs]
        self._kept = [(tensor, tensor.detach().clone()) for tensor, _ in pairs]
        try:
            self._copy(pairs)
            make_buffers_equal()  # averages of buffers become rank 0's, as the buffers did
            yield
        finally:
            self._copy(self._kept)
            self._kept = []

    def save(self, path: str | Path) -> None:
        """Write the weights for use of a callback to ``path``, as ``save_state(path, optim=False)`` writes weights; on rank
        0, whether the others call it too or not. Under fsdp every rank has to call it."""
        trainer = self.trainer
        world = trainer.world if trainer.is_sharded else ALONE
        world.begin("save() of an average")
        if trainer.is_sharded or trainer.is_main:
            trainer.checkpoints.wait()
            with self.for_use(always=True):
                saved = state.collect(trainer, optim=False, world=world)
                world.from_main(lambda: files.write(saved, path))
            trainer.lifetime.say(f"save the averaged weights at {path}")

    @contextmanager
    def of_training(self) -> Iterator[None]:
        """Those of the training are in the models, also in the midst of an evaluation. Under a schedule-free optimizer every
        file holds its average, and what it trains at travels in its state."""
        in_use = [(tensor, tensor.detach().clone()) for tensor, _ in self._kept]
        with schedule_free.averaged_to_continue(self.trainer.optimizer_list):
            try:
                self._copy(self._kept)
                yield
            finally:
                self._copy(in_use)

    def start_afresh(self) -> None:
        """The training goes on with weights that were taken for use: averages until now are of others."""
        for callback in _sources(self.trainer.hooks.callbacks):
            callback.start_afresh()

    @torch.no_grad()
    def _copy(self, pairs):
        if pairs:
            tensors, values = zip(*pairs)
            torch._foreach_copy_(tensors, values)
            if self.trainer.is_sharded:
                let_go(self.trainer.model_list)

    def _from_callbacks(self):
        callbacks = _sources(self.trainer.hooks.callbacks) if self.trainer.hooks is not None else []
        return [pair for callback in callbacks for pair in callback.weights_for_use(self.trainer)]


def attach_sources(trainer: TemplateModel, callbacks: Iterable[Any]) -> None:
    """Tell a source among the callbacks whose weights these are, and look whether it is the only one.

    Raises:
        ValueError: there are two, or an optimizer does not go with the way in which the models are trained.
    """
    sources = _sources(callbacks)
    if trainer.is_sharded:
        schedule_free.refuse_sharded(trainer.optimizer_list)
    if sources:
        optimizers = schedule_free.switchable(trainer.optimizer_list)
        names = [type(one).__name__ for one in (*sources, *optimizers)]
        if len(names) > 1:
            raise ValueError(
                f"One average at most can be in the models when they are evaluated and used; there are {len(names)}: "
                f"{', '.join(names)}. Leave all but one of them out of callbacks and optimizer_list.")
    for callback in sources:
        callback.attach(trainer)


def _sources(callbacks):
    return [callback for callback in callbacks if hasattr(callback, "weights_for_use")]
