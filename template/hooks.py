"""Named moments of training, and the table of who wants to hear of them.

A callback overrides the moments it cares about::

    class PrintLoss(Callback):
        def on_log(self, model, values):
            print(model.global_step, values["tol_loss"])

    trainer.callbacks = [PrintLoss()]

The table is built once, so a moment nobody listens to costs an empty loop. Callbacks return nothing: what the
loop needs a result from is a method of ``TemplateModel`` to override, not an event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .template import TemplateModel

EVENTS = (
    "on_run_start",    # (model)          once in a process, before its first training batch and behind a load_state
    "on_train_start",  # (model)          before the first batch of an epoch
    "on_batch",        # (model, batch)   before the forward of each training batch, which is on the device
    "on_before_step",  # (model)          gradients are complete and unscaled, not yet clipped
    "on_after_step",   # (model)          the weights were updated, global_step counts the update
    "on_log",          # (model, values)  every log_per_step updates: means over the window, floats on the host
    "on_train_end",    # (model, result)  means over the epoch's samples
    "on_eval_start",   # (model)
    "on_eval_batch",   # (model, batch)   after the batch was scored
    "on_eval_predictions",  # (model, batch, predictions, labels, losses)  the same, with what was predicted
    "on_eval_result",  # (model, result)  losses and metrics of the whole evaluation
    "on_eval_end",     # (model)          clean-up: also after an error in the evaluation
    "on_epoch_end",    # (model, results) the epoch counts as done and is not saved yet: {"train/tol_loss": …, "eval/acc": …}
    "on_exit",         # (model)          clean-up: training is over, stopped or failed
)


Listeners = tuple[Callable[..., object], ...]


class Callback:
    """Base class with every event as a no-op.

    A callback writes its own state, the weights between ``on_eval_start`` and ``on_eval_end``, the gradients in
    ``on_before_step`` and ``model.should_stop``; nothing else of the model. One with state defines ``state_dict()``
    and ``load_state_dict(state)`` and travels in the checkpoint.

    The default set (progress bar, TensorBoard, history) hears of everything first, and then the others in the order of your
    list. A class with a negative ``order`` comes before the default set; those of one ``order`` stay as they were listed.
    """

    order: int = 0

    def on_run_start(self, model: TemplateModel) -> None:
        pass

    def on_train_start(self, model: TemplateModel) -> None:
        pass

    def on_batch(self, model: TemplateModel, batch: Any) -> None:
        pass

    def on_before_step(self, model: TemplateModel) -> None:
        pass

    def reads_gradients(self, model: TemplateModel) -> bool:
        """Whether ``on_before_step`` looks at gradients, or writes them, before the coming step. Where none does,
        ``compile = "step"`` has no gradients that outlive the update, and does not call it."""
        return True

    def on_after_step(self, model: TemplateModel) -> None:
        pass

    def on_log(self, model: TemplateModel, values: dict[str, float]) -> None:
        pass

    def on_train_end(self, model: TemplateModel, result: dict[str, float]) -> None:
        pass

    def on_eval_start(self, model: TemplateModel) -> None:
        pass

    def on_eval_batch(self, model: TemplateModel, batch: Any) -> None:
        pass

    def on_eval_predictions(self, model: TemplateModel, batch: Any, predictions: Any, labels: Any, losses: Any) -> None:
        """After ``on_eval_batch``, of the forward that was done already; see ``run/eval_predictions.py``.

        Args:
            predictions: what ``inference`` gave, [N, …] on the device; None where only your own code knows it.
            labels: the batch's, [N, …]; None where there are none, or only your own code knows them.
            losses: of each sample, a float tensor [N]; None where the criterion does not tell.
        """

    def on_eval_result(self, model: TemplateModel, result: dict[str, Any]) -> None:
        pass

    def on_eval_end(self, model: TemplateModel) -> None:
        pass

    def on_epoch_end(self, model: TemplateModel, results: dict[str, Any]) -> None:
        pass

    def on_exit(self, model: TemplateModel) -> None:
        pass


class Hooks:
    """For each event a tuple of bound methods, in the callbacks' order; an event nobody overrides is ``()``.

    Raises:
        ValueError: a callback has a method named ``on_…`` that is no event.
        TypeError: its ``order`` is no number.
    """

    on_run_start: Listeners
    on_train_start: Listeners
    on_batch: Listeners
    on_before_step: Listeners
    on_after_step: Listeners
    on_log: Listeners
    on_train_end: Listeners
    on_eval_start: Listeners
    on_eval_batch: Listeners
    on_eval_predictions: Listeners
    on_eval_result: Listeners
    on_eval_end: Listeners
    on_epoch_end: Listeners
    on_exit: Listeners

    def __init__(self, callbacks: Iterable[Any] = ()) -> None:
        self._have_begun: list[Any] = getattr(self, "_have_begun", [])  # whose on_run_start was called
        self.callbacks = tuple(sorted(callbacks, key=_order_of))  # which leaves those of one order as they are
        for callback in self.callbacks:
            unknown = [name for name in dir(callback) if name.startswith("on_") and name not in EVENTS]
            if unknown:
                raise ValueError(
                    f"A callback's on_… methods must be events. {type(callback).__name__} has {unknown}; the events "
                    f"are {list(EVENTS)}. Rename the method, or drop the 'on_' if it is a helper."
                )
        for event in EVENTS:
            setattr(self, event, tuple(self._listeners(event)))

    def begin_run(self, model: TemplateModel) -> None:
        """Tell each callback once that the run begins, also one that was added later."""
        for call in self.on_run_start:
            if not any(call == other for other in self._have_begun):
                self._have_begun.append(call)
                call(model)

    def reader_of_gradients(self, model: TemplateModel) -> str:
        """The name of a callback whose ``on_before_step`` looks at the gradients of the coming step, or ""."""
        for call in self.on_before_step:
            owner = getattr(call, "__self__", call)
            if getattr(owner, "reads_gradients", Callback().reads_gradients)(model):
                return type(owner).__name__
        return ""

    def remove(self, callback: Any) -> None:
        """Take a callback out, also while an event is being handed round."""
        self.set([other for other in self.callbacks if other is not callback])

    def set(self, callbacks: Sequence[Any]) -> None:
        """Have these callbacks listen from the next event on."""
        Hooks.__init__(self, callbacks)

    def _listeners(self, event):
        no_op = getattr(Callback, event)
        for callback in self.callbacks:
            method = getattr(callback, event, None)
            if method is not None and getattr(method, "__func__", None) is not no_op:
                yield method


def _order_of(callback):
    order = getattr(callback, "order", 0)
    if not isinstance(order, (int, float)):
        raise TypeError(f"A callback's order must be a number, got {order!r} from {type(callback).__name__}. Negative comes "
                        "before the default set, 0 is its place behind it.")
    return order


def run_all(listeners: Iterable[Callable[..., object]], *args: Any) -> None:
    """Call every listener of a clean-up event even if one fails; raise the first failure at the end."""
    failure = None
    for listener in listeners:
        try:
            listener(*args)
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure
