"""The outputs that a training batch's loss was computed of, handed out once more for its metrics.

    forwards = LossForward(models)
    with forwards.recording():
        loss = loss_per_batch(batch)             # runs the network, in the user's own code
    with forwards.replaying():
        eval_scores_per_batch(batch)             # asks for the same outputs, and gets them without their graph

No network runs a second time. In train mode an output is random (dropout), and the one that was trained on counts. What
cannot be known is an error, ``ForwardUnknown``: a model that the loss called twice, or not at all, or with other shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch

from ..data.nested import sketch


class ForwardUnknown(ValueError):
    """It cannot be known which output of a model the metrics are about."""


class LossForward:
    """Stands before the calls of each model while a loss is computed, and while its metrics are: also before their hooks,
    which have seen the batch already when its metrics ask.

    Args:
        models: those whose outputs count.
    """

    def __init__(self, models):
        models = list(dict.fromkeys(models))
        self.models = [model for model in models if not isinstance(model, torch.jit.ScriptModule)]
        self.is_complete = len(self.models) == len(models)  # nothing can stand before a scripted model
        self.records = []         # (model, arguments, output)
        self.is_replaying = False
        self.other_inputs = None  # a model and what it was given where that is not what the metrics ask for
        self.compares = True      # the values of inputs: this waits for the device, so it is done for the first batch alone

    def recording(self):
        self.records.clear()
        return _Standing(self, is_replaying=False)

    def replaying(self):
        return _Standing(self, is_replaying=True)

    def guarded(self, model, call):
        is_inside = False  # ddp calls the model again, within its wrapper

        def answer(*args, **kwargs):
            nonlocal is_inside
            if self.is_replaying:
                return self._recorded(model, (args, kwargs))
            if is_inside:
                return call(*args, **kwargs)
            is_inside = True
            output = call(*args, **kwargs)
            is_inside = False  # after an error nothing is recorded any more
            self.records.append((model, (args, kwargs), output))
            return output

        return answer

    def _recorded(self, model, inputs):
        own = [record for record in self.records if record[0] is model]
        name = type(model).__name__
        if len(own) != 1:
            raise ForwardUnknown(f"loss_per_batch called the model {name} {len(own)} times")
        _, before, output = own[0]
        old, new = _tensors(before), _tensors(inputs)
        if [tensor.shape for tensor in old] != [tensor.shape for tensor in new]:
            raise ForwardUnknown(f"loss_per_batch gave the model {name} {sketch(before[0])}, and the metrics ask for its "
                                 f"output of {sketch(inputs[0])}")
        if self.compares and not all(one is other or torch.equal(one, other.to(one)) for one, other in zip(old, new)):
            self.other_inputs = name
        return detached(output)


class _Standing:
    """Before the models only within: what copies or pickles them meanwhile must not find it. A class: a generator function
    costs a batch 5 us more."""

    def __init__(self, forwards, is_replaying):
        self.forwards, self.is_replaying = forwards, is_replaying

    def __enter__(self):
        forwards = self.forwards
        forwards.is_replaying = self.is_replaying
        self.before = [(model, model._compiled_call_impl) for model in forwards.models]  # module.compile() and ddp have one
        for model, call in self.before:
            model._compiled_call_impl = forwards.guarded(model, call or model._call_impl)

    def __exit__(self, *error):
        for model, call in self.before:
            if call is None:
                del model._compiled_call_impl  # the class has None
            else:
                model._compiled_call_impl = call


def _tensors(value):
    """All tensors of a nesting, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def detached(value):
    """The same nesting without the graph, which a metric that keeps predictions would keep alive."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, (list, tuple)):
        parts = [detached(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, Mapping):
        new = copy.copy(value)
        for key in value:
            new[key] = detached(value[key])  # type: ignore[index]
        return new
    attributes = getattr(value, "__dict__", {})
    if any(isinstance(part, torch.Tensor) for part in attributes.values()):
        new = copy.copy(value)
        for name, part in attributes.items():
            object.__setattr__(new, name, detached(part) if isinstance(part, torch.Tensor) else part)
        return new
    return value
