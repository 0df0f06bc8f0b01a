"""What each layer of a model costs: output shape, parameters, memory and floating point operations (FLOPs).

    found = summary(trainer)                           # on its first training batch; prints a table
    found = summary(model, torch.randn(1, 3, 32, 32))  # any model; a dict goes in as keyword arguments
    found.flops, found.parameters

A multiplication and an addition count as two operations, as torch's ``flop_counter`` counts them: products of matrices,
convolutions, attention and recurrent layers. Additions, normalisations and activations count for nothing, and the
backward pass, which costs about twice as much again, is not looked at. One forward pass runs in eval mode; statistics of
BatchNorm, hooks and random numbers are as before.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..data.nested import to_device
from ..data.seeding import rng_kept
from ..data.shares import Uneven
from ..metrics.modes import eval_mode, unchanged
from ..output.summary import torchinfo_table
from ..output.text_table import text_table
from ..run.as_found import as_found, batches_again_and_again, nothing_written
from ..run.defaults import call_model, input_of

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass
class Layer:
    """One module: what it holds and does itself, without its parts."""

    name: str
    kind: str
    """Its class."""
    output: str
    """Shape of what it returned first; "-" where it was not called."""
    parameters: int
    parameter_bytes: int
    """Of parameters and buffers."""
    output_bytes: int
    """Of all its outputs, over all its calls; what it passes on unchanged is counted again."""
    flops: int
    calls: int


@dataclass
class Summary:
    """The layers, and what they come to."""

    rows: list[Layer]
    parameters: int
    """Each counted once, also where layers share it."""
    trainable: int
    parameter_bytes: int
    """Of parameters and buffers."""
    output_bytes: int
    """Of all layers without parts: about what training keeps for the backward pass, for this batch."""
    flops: int
    """Of the forward pass, for this batch."""

    def table(self) -> str:
        return text_table([{"layer": row.name, "class": row.kind, "output": row.output, "parameters": row.parameters,
                            "MB": row.parameter_bytes / 1e6, "output MB": row.output_bytes / 1e6,
                            "FLOPs": _short(row.flops)} for row in self.rows])

    def totals(self) -> str:
        return (f"{self.parameters:,} parameters, {self.trainable:,} of them trainable, {self.parameter_bytes / 1e6:.4g} MB "
                f"with buffers; outputs {self.output_bytes / 1e6:.4g} MB and {_short(self.flops)}FLOPs for this batch, "
                "forward")


def summary(model: Any, example: Any = None) -> Summary:
    """Run one batch forward and print what the layers cost: the table of torchinfo where it is installed and right, else our
    own, and the totals. ``print(found.table())`` shows our own one.

    Args:
        model: a ``TemplateModel`` after ``check_init``, or any module.
        example: what the model takes, with batch dimension: a tensor, a tuple of positional or a dict of keyword arguments.
            None: the first batch of the trainer's ``train_loader``, which goes through its own ``loss_per_batch`` where
            it has one.

    Raises:
        ValueError: there is no example for a module by itself.
    """
    if isinstance(model, nn.Module):
        if example is None:
            raise ValueError("summary(model, example) needs an example of what the model takes: a tensor with batch "
                             "dimension, a tuple of positional or a dict of keyword arguments. Only a trainer has a batch.")
        first = next(model.parameters(), None)
        example = to_device(example, first.device if first is not None else torch.device("cpu"))
        if any(is_lazy(p) for p in model.parameters()):
            model = copy.deepcopy(model)  # it learns its shapes now, which cannot be taken back
        with rng_kept(), unchanged([model]):
            found = _look({"": model}, lambda: call_model(model, example))
            _tell(found, [model], example)
        return found
    trainer = model
    with as_found(trainer, "summary()"):
        run = trainer.inference
        if example is None:
            batch = next(batches_again_and_again(trainer))
            example = batch.batch if type(batch) is Uneven else batch
            if trainer.evaluator.writes_losses:  # which alone knows what the models are given
                run = trainer.loss_per_batch
            else:
                example = input_of(example, trainer.input_dtype)
        example = to_device(example, torch.device(trainer.device))
        models = {f"model_list[{i}]" if len(trainer.model_list) > 1 else "": one for i, one in enumerate(trainer.model_list)}
        with trainer.autocast():
            found = _look(models, lambda: run(example))
        if trainer.is_main:
            with nothing_written(trainer):
                _tell(found, list(models.values()) if run == trainer.inference else [], example)
    return found


def _look(models: dict[str, nn.Module], run: Any) -> Summary:
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, custom_mapping=_more_formulas())
    ledger = _Ledger(counter)
    named = [(".".join(filter(None, (prefix, name))), part) for prefix, model in models.items()
             for name, part in model.named_modules()]
    with contextlib.ExitStack() as stack:
        for model in models.values():
            stack.callback(setattr, model, "_compiled_call_impl", model._compiled_call_impl)
            model._compiled_call_impl = None  # compiled code hides its layers
        for _, part in named:
            stack.callback(part.register_forward_pre_hook(ledger.enter, prepend=True).remove)
            stack.callback(part.register_forward_hook(ledger.leave).remove)
        stack.enter_context(_plain_attention())
        stack.enter_context(eval_mode(models.values()))
        stack.enter_context(torch.no_grad())
        with counter:
            run()
    return _sum(named, ledger, list(models.values()), int(counter.get_total_flops()))


class _Ledger:
    """What was counted while each module was at work, without what its parts did."""

    def __init__(self, counter):
        self.counter = counter
        self.open: list[list[int]] = []  # for each module at work: [count at its beginning, of it what its parts did]
        self.flops: dict[nn.Module, int] = {}
        self.calls: dict[nn.Module, int] = {}
        self.shapes: dict[nn.Module, str] = {}
        self.bytes: dict[nn.Module, int] = {}

    def enter(self, part, inputs):
        self.open.append([int(self.counter.get_total_flops()), 0])

    def leave(self, part, inputs, output):
        began, of_parts = self.open.pop()
        done = int(self.counter.get_total_flops()) - began
        if self.open:
            self.open[-1][1] += done
        self.flops[part] = self.flops.get(part, 0) + done - of_parts
        self.calls[part] = self.calls.get(part, 0) + 1
        tensors = list(_tensors(output))
        self.shapes.setdefault(part, str(list(tensors[0].shape)) if tensors else type(output).__name__)
        self.bytes[part] = self.bytes.get(part, 0) + sum(tensor.nbytes for tensor in tensors)


def _sum(named, ledger, models, flops):
    rows, leaves = [], 0
    for name, part in named:
        own = list(part.parameters(recurse=False))
        is_leaf = not any(True for _ in part.children())
        if is_leaf:
            leaves += ledger.bytes.get(part, 0)
        if own or is_leaf or ledger.flops.get(part, 0):
            held = sum(tensor.nbytes for tensor in (*own, *part.buffers(recurse=False)))
            rows.append(Layer(name or type(part).__name__, type(part).__name__, ledger.shapes.get(part, "-"),
                              sum(p.numel() for p in own), held, ledger.bytes.get(part, 0), ledger.flops.get(part, 0),
                              ledger.calls.get(part, 0)))
    parameters = list({id(p): p for model in models for p in model.parameters()}.values())
    buffers = list({id(b): b for model in models for b in model.buffers()}.values())
    return Summary(rows, sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad),
                   sum(tensor.nbytes for tensor in (*parameters, *buffers)), leaves, flops)


def _tensors(output):
    """Those in a nested output, also in one that is an object (a ``ModelOutput`` is a dict)."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, (list, tuple)):
        for part in output:
            yield from _tensors(part)
    else:
        for part in vars(output).values() if hasattr(output, "__dict__") else ():
            yield from _tensors(part) if isinstance(part, (torch.Tensor, list, tuple, dict)) else ()


def _tell(found, models, example):
    table = None
    if len(models) == 1:
        args, kwargs = ((), dict(example)) if isinstance(example, Mapping) else (
            (tuple(example), {}) if isinstance(example, (list, tuple)) else ((example,), {}))
        with contextlib.suppress(Exception), rng_kept():  # a model that cannot be copied
            table = torchinfo_table(copy.deepcopy(models[0]).eval(), args, kwargs)
    print(table or found.table())
    print(found.totals())


def _short(number) -> str:
    for size, unit in _UNITS:
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} "


# --- what torch's counter leaves out ------------------------------------------------------------------------------------


def _more_formulas():
    """Recurrent layers as one kernel, and attention on the CPU, which torch 2.13 counts as nothing."""
    aten = torch.ops.aten

    def rnn_cudnn(input_shape, weight_shapes, *args, out_shape=None, **kwargs):
        return _recurrent(input_shape, weight_shapes)

    def rnn_mkldnn(input_shape, *args, out_shape=None, **kwargs):
        return _recurrent(input_shape, args[:4])

    def attention(query, key, value, *args, out_shape=None, **kwargs):
        batch = 1
        for size in query[:-2]:
            batch *= size
        return 2 * batch * query[-2] * key[-2] * (query[-1] + value[-1])

    formulas = {"_cudnn_rnn": rnn_cudnn, "mkldnn_rnn_layer": rnn_mkldnn,
                "_scaled_dot_product_flash_attention_for_cpu": attention}
    return {getattr(aten, name): formula for name, formula in formulas.items() if hasattr(aten, name)}


def _recurrent(input_shape, weight_shapes):
    """Each entry of each weight matrix is used once in every step of every sequence."""
    steps = 1
    for size in input_shape[:-1]:
        steps *= size
    return 2 * steps * sum(shape[0] * shape[1] for shape in weight_shapes if len(shape) == 2)


@contextlib.contextmanager
def _plain_attention():
    """Without the kernel for whole layers of a transformer, in which nothing is counted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
