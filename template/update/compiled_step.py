"""``compile = "step"``: forward, loss, backward, clipping and optimizer of an update as one compiled graph.

    train_step = stepper.around(trainer.train_step)    # a CompiledStepper
    losses = train_step(batch)                         # the weights have changed
    stepper.finish_group()                             # schedules, counters

The graph changes weights, buffers and the optimizer's own state where they are, so checkpoints, schedules and callbacks find
what they find after an update that is not compiled. Rates, momentum and weight decay are values that the graph is given, so
another rate compiles nothing. Each shape of a batch has a graph of its own.

Where something comes between backward and step (a callback that reads gradients, the next micro-batch of an accumulation
group, ``skip_non_finite``), or where ``step_rules.py`` does not know the optimizer, the graph ends with the gradients, and
``Stepper`` does the step. What torch cannot capture at all runs as with ``compile = True``. Each of these is told once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from .step_rules import NotCaptured, Plan, apply, has_hooks
from .stepper import Stepper

NUM_SHAPES = 8  # batches of more shapes than this are not worth a graph each
NUM_AGAIN = 4   # so often may a graph be compiled for batches of one shape
NOT_CAPTURED = 'compile = "step": The update is not captured; the models alone are compiled, as with compile = True.'
_BACKEND = "inductor"
STEP_APART = 'compile = "step": The optimizers step outside of the graph.'


class CompiledStepper(Stepper):
    """A ``Stepper`` whose update is one compiled graph where that is possible.

    Args:
        losses_of: function of a batch, ``{"tol_loss": …}``.
        plain: the ``train_step`` that calls this and ``backward``; any other one runs as it is.
        obstacle: function of nothing: a sentence that says why the coming batch cannot be captured, or "".
        reader: function of nothing: who is given the gradients before the coming step, or "".
        look: function of a batch, called before the first update: what looks for mistakes, with a backward of its own.
        *args: those of ``Stepper``.
    """

    def __init__(self, losses_of: Callable[[Any], dict[str, Any]], plain: Any, obstacle: Callable[[], str],
                 reader: Callable[[], str], look: Callable[[Any], None], *args: Any) -> None:
        super().__init__(*args)
        self._losses_of = losses_of
        self._plain = plain
        self._obstacle = obstacle
        self._reader = reader
        self._look: Callable[[Any], None] | None = look
        self._told: set[str] = set()
        self._plan: Any = None                  # a Plan of the optimizers as they are now
        self._whole = Graph(self._trace_whole)  # up to the step
        self._part = Graph(self._trace_part)    # up to the gradients

    def around(self, train_step):
        is_plain = getattr(train_step, "__func__", None) is self._plain
        return partial(self._train, train_step) if is_plain else train_step

    @contextmanager
    def measured(self):
        """Graphs stay. What is forgotten is how many there are, and that there is none for a batch of another size."""
        graphs = [(graph, vars(graph) | {"_seen": dict(graph._seen)}) for graph in (self._whole, self._part)]
        with super().measured():
            self._look = None  # the training has its mistakes looked for, and not this
            try:
                yield
            finally:
                for graph, own in graphs:
                    vars(graph).update(own | {"_call": graph._call})

    def _train(self, train_step, batch):
        if type(self._weight) is not float or not self._weight:
            return train_step(batch)  # nothing to follow
        try:
            if reason := self._part.failure or self._obstacle():
                raise NotCaptured(reason)
            if self.is_scaled:
                raise NotCaptured("amp = 'fp16' scales the loss, and looks at the gradients of each update.")
            if self._look is not None:
                look, self._look = self._look, None
                look(batch)
            return self._do(batch)
        except NotCaptured as reason:
            self._tell(f"{NOT_CAPTURED} {reason}")
            return train_step(batch)

    def _do(self, batch):
        try:
            if self._can_be_whole():
                return self._do_whole(batch)
        except NotCaptured as reason:
            if self._whole.futile:
                self._part.failure = self._whole.futile
                raise
            losses = self._do_part(batch)
            self._tell(f"{STEP_APART} {reason}")
            return losses
        return self._do_part(batch)

    def _tell(self, text):
        if text not in self._told:
            self._told.add(text)
            print(text)

    # --- all in one graph -----------------------------------------------------------------------------------------

    def _can_be_whole(self):
        """Whether nothing stands between backward and step."""
        if not self._group_complete or self._weight != 1.0:
            return False  # accumulation
        if self._whole.failure:
            raise NotCaptured(self._whole.failure)
        if self.guard is not None:
            raise NotCaptured("skip_non_finite looks at the gradients of each update.")
        if reader := self._reader():
            raise NotCaptured(f"on_before_step of {reader} is given the gradients.")
        if self._plan is None or not self._plan.holds():
            self._plan = Plan(self.optimizers)
        self._plan.require_no_hooks()
        return not self._plan.has_gradients()

    def _do_whole(self, batch):
        plan = self._plan
        try:
            losses = self._whole(batch, plan.numbers(), plan.parameters, plan.state, plan.rules)
        except BaseException:
            plan.take_back()
            raise
        plan.count()
        self._updated = True
        return losses

    def _trace_whole(self, batch, numbers, parameters, state, rules):
        losses, gradients = self._trace_part(batch, parameters, None)
        if any(gradient is None for gradient in gradients):
            torch._dynamo.graph_break(msg="A parameter gets no gradient.")
        if self.clip is not None:
            self.clip([_Gradient(gradient) for gradient in gradients])
        apply(rules, numbers, parameters, gradients, state)
        return losses

    # --- up to the gradients --------------------------------------------------------------------------------------

    def _do_part(self, batch):
        parameters = [p for p in dict.fromkeys(self.parameters()) if p.requires_grad]
        if has_hooks(parameters):
            raise NotCaptured("A parameter has hooks on its gradient.")
        weight = None if self._weight == 1.0 else torch.tensor(self._weight, dtype=torch.float64)
        losses, gradients = self._part(batch, parameters, weight)
        if self.guard is not None:
            self.guard.watch(losses["tol_loss"])
        for p, gradient in zip(parameters, gradients):
            if p.grad is None:
                p.grad = gradient
            elif gradient is not None:
                p.grad += gradient
        return losses

    def _trace_part(self, batch, parameters, weight):
        with torch.enable_grad():
            with self.autocast():
                losses = self._losses_of(batch)
            loss = losses["tol_loss"]
            if weight is not None:
                loss = loss * weight
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return {name: _detached(value) for name, value in losses.items()}, gradients


class Graph:
    """A function that is compiled for each shape of its inputs, in one piece or not at all.

    ``torch.compile`` traces a backward only while a setting of it is on. It is off between captures, so that a call that
    needs a new graph comes to ``_capture``, which counts them. A hook that a module is given later is such a call too.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._call: Any = None
        self._seen: dict[Any, int] = {}  # how often a graph was captured, by the shapes of the batch and the parameters
        self.failure = ""                # why there is no graph any more
        self.futile = ""                 # the same where no part of it is worth a graph either

    def __call__(self, *args):
        """
        Raises:
            NotCaptured: there is no graph for this, and nothing was computed.
        """
        with torch.no_grad():
            if self._call is not None:
                try:
                    return self._call(*args)
                except torch._dynamo.exc.Unsupported:
                    pass  # a new shape
            return self._capture(args)

    def _capture(self, args):
        if self._call is None:
            self._call = torch.compile(self._function, backend=_without_checkpoints, fullgraph=True, dynamic=False,
                                       recompile_limit=1000, isolate_recompiles=True)
        self._count(args)
        settings = torch._dynamo.config.patch(trace_autograd_ops=True, skip_nnmodule_hook_guards=False)
        try:
            with settings, warnings.catch_warnings():  # what an lru_cache of ours holds depends on its arguments alone
                warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`", UserWarning)
                return self._call(*args)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            own = getattr(error, "inner_exception", None)
            self.failure = str(own) if isinstance(own, NotCaptured) else _in_words(error)
            raise NotCaptured(self.failure) from error

    def _count(self, args):
        batch = args[0]
        key = tuple((leaf.shape, leaf.dtype) for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor))
        again = self._seen[key] = self._seen.get(key, 0) + 1
        if len(self._seen) > NUM_SHAPES:
            self.futile = f"Batches come in more than {NUM_SHAPES} shapes, and each needs a graph. Pad them."
        elif again > NUM_AGAIN:
            self.futile = (f"It was compiled {NUM_AGAIN} times for batches of one shape. Something in the batch or in "
                           "loss_per_batch is another number in each update, such as self.global_step. Make it a tensor.")
        if self.futile:
            self.failure = self.futile
            raise NotCaptured(self.failure)


def _without_checkpoints(graph, inputs):
    """torch's compiler. Layers that the backward pass computes again are refused: nobody has shown that the graph drops the
    same units both times."""
    if any(node.target is torch.ops.higher_order.tag_activation_checkpoint for node in graph.graph.nodes):
        raise NotCaptured("Activation checkpointing (torch.utils.checkpoint) computes layers again in the backward pass.")
    return torch._dynamo.lookup_backend(_BACKEND)(graph, inputs)


def missing_torch() -> str:
    """Why this torch cannot capture an update, or ""."""
    import torch._dynamo

    if torch._dynamo.config.disable:
        return "torch.compile is switched off (TORCHDYNAMO_DISABLE)."
    is_new = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
    return "" if is_new else f"It needs torch 2.13, and this is {torch.__version__}."


class _Gradient:
    """What clipping asks of a parameter. torch cannot capture a ``SimpleNamespace`` (seen with 2.13)."""

    def __init__(self, grad):
        self.grad = grad


def _detached(value):
    return value.detach() if isinstance(value, torch.Tensor) else value


def _in_words(error):
    """One line of what torch says, and where in the user's code it is."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation: ")]
    inner = tuple(f'File "{path}' for path in (os.path.dirname(torch.__file__), __file__))
    places = [line for line in lines if line.startswith('File "') and not line.startswith(inner)]
    text = (told or lines)[0].removeprefix("User-inserted graph break. Message: ")
    return f"{text} ({places[-1]})" if places else text
