"""A person's own picture or text after an evaluation.

    def faces(trainer):
        return trainer.model_list[0](noise)          # [N, 3, H, W]; or a matplotlib figure, a PIL image, a text

    trainer.callbacks = [SampleOutputs(faces)]

It is shown in TensorBoard, below the cell of a notebook, and in ``samples/faces.png`` of the run's folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ..data.seeding import rng_kept
from ..hooks import Callback
from ..metrics.modes import eval_mode
from ..output.pictures import Pictures, moment_of

if TYPE_CHECKING:
    from ..template import TemplateModel


class SampleOutputs(Callback):
    """Calls ``fn(trainer)`` after an evaluation and shows what it returns. A run without an ``eval_loader``, as of a GAN,
    has it called at the end of each epoch.

    The models are in eval mode, without gradients, with the weights that were evaluated. Random numbers that it draws, and
    modes that it changes, are put back. With several processes it is called in all of them, and rank 0 shows what it made.

    Args:
        fn: returns a figure, an image, a text, or None for nothing; a dict ``{name: any of these}`` for several.
        every: evaluations from one call to the next, at least 1.
        keep_all: a file for each time, ``samples/faces_epoch3.png``, or in the middle of an epoch
            ``samples/faces_epoch3_update120.png``; False keeps the newest one.

    Raises:
        TypeError, ValueError: ``fn`` is no function, or ``every`` no number of at least 1.
    """

    def __init__(self, fn: Callable[[Any], Any], every: int = 1, keep_all: bool = False) -> None:
        if not callable(fn):
            raise TypeError(f"SampleOutputs needs a function of the trainer, got {fn!r}.")
        if type(every) is not int or every < 1:
            raise ValueError(f"every must be a whole number of at least 1, got {every!r}.")
        self.fn = fn
        self.every = every
        self.keep_all = keep_all
        self.evaluations = 0
        self._pictures = Pictures("samples")

    @property
    def name(self) -> str:
        """Of the function; "samples" for one without a name."""
        name = getattr(self.fn, "__name__", getattr(getattr(self.fn, "func", None), "__name__", "samples"))
        return "samples" if name == "<lambda>" else name

    def on_eval_result(self, model: TemplateModel, result: dict[str, Any]) -> None:
        self._look(model, "evaluation")

    def on_epoch_end(self, model: TemplateModel, results: dict[str, Any]) -> None:
        if model.eval_loader is None:
            with model.lifetime.weights.for_use():
                self._look(model, "epoch")

    def _look(self, model, behind):
        self.evaluations += 1
        if self.evaluations % self.every:
            return
        try:
            with rng_kept(), eval_mode(model.model_list), torch.no_grad():
                made = self.fn(model)
            for name, picture in (made if isinstance(made, dict) else {self.name: made}).items():
                if picture is not None:
                    file = f"{name}_{moment_of(model)}".replace(" ", "").replace(",", "_") if self.keep_all else None
                    self._pictures.show(model, str(name), picture, file=file)
        except Exception as error:
            raise RuntimeError(f"SampleOutputs called {self.name}(trainer) after the {behind}, and could not show what it "
                               f"returns: {type(error).__name__}: {error}") from error

    def state_dict(self) -> dict[str, Any]:
        return {"evaluations": self.evaluations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.evaluations = state["evaluations"]
