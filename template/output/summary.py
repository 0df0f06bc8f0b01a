"""A table of layers, output shapes and parameters that can be believed.

    print_summary(trainer, torch.randn(1, 1, 8, 8))

torchinfo is asked first where it is installed, then torchsummary, the usual choice, which fails on embeddings, LSTMs, dict
inputs and attention. Both miscount some models' parameters, so a table is shown only when its total is the true one. Else
our own table, made with hooks, is printed. Every attempt runs on a copy: no BatchNorm statistic moves, no hook stays.
"""

import contextlib
import copy
import io
import re
from collections.abc import Mapping

import torch


def print_summary(trainer, example):
    """Print the table for each model of ``trainer.model_list``.

    Args:
        example: what the first model takes: a tensor with batch dimension, a tuple of them or a dict of them.
    """
    device = torch.device(trainer.device)
    for model in trainer.model_list:
        own = copy.deepcopy(model).to(device).eval()
        args, kwargs = ((), example) if isinstance(example, Mapping) else (
            (tuple(example), {}) if isinstance(example, (list, tuple)) else ((example,), {}))
        args = tuple(value.to(device) for value in args)
        kwargs = {name: value.to(device) for name, value in kwargs.items()}
        with torch.no_grad(), torch.random.fork_rng():
            example = copy.deepcopy(own)(*args, **kwargs)  # the next model's input; also: a bad example fails here
            print(torchinfo_table(own, args, kwargs) or _torchsummary(own, args, kwargs) or layer_table(own, args, kwargs))


def torchinfo_table(model, args, kwargs):
    """That of torchinfo, or None where it is not installed, fails or miscounts."""
    try:
        import torchinfo  # type: ignore  # optional
        table = str(torchinfo.summary(copy.deepcopy(model), input_data=kwargs or args, verbose=0))
    except Exception:  # absent, or it raises whatever a layer that it does not know makes it raise
        return None
    return _if_right(table, model)


def _torchsummary(model, args, kwargs):
    if kwargs or not all(isinstance(arg, torch.Tensor) and arg.dtype == torch.float32 for arg in args):
        return None  # it feeds float32 noise of the given shapes
    printed = io.StringIO()
    try:
        from torchsummary import summary  # type: ignore  # optional, without types
        with contextlib.redirect_stdout(printed):
            summary(copy.deepcopy(model), [tuple(arg.shape[1:]) for arg in args], device=args[0].device.type)
    except Exception:
        return None
    return _if_right(printed.getvalue().rstrip(), model)


def _if_right(table, model):
    """The table if its parameter total is the true one (torchinfo counts tied weights twice), else None."""
    total = re.search(r"Total params: ([\d,]+)", table)
    true_total = sum(p.numel() for p in model.parameters())
    return table if total is not None and int(total[1].replace(",", "")) == true_total else None


def layer_table(model, args, kwargs):
    """Our own table: one line per module without children and per module with parameters of its own."""
    model = copy.deepcopy(model)
    shapes = {}

    def noting(name):
        def note(part, inputs, output):  # returns None: anything else would take the output's place
            shapes.setdefault(name, _shape(output))

        return note

    handles = [part.register_forward_hook(noting(name)) for name, part in model.named_modules()]
    try:
        model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    lines = [f"{'layer':40s} {'output shape':26s} {'parameters':>12s}", "-" * 80]
    for name, part in model.named_modules():
        own = sum(p.numel() for p in part.parameters(recurse=False))
        if own or not any(True for _ in part.children()):
            lines.append(f"{f'{name} ({type(part).__name__})'.strip():40s} {shapes.get(name, '-'):26s} {own:12,d}")
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return "\n".join([*lines, "-" * 80, f"Total params: {total:,}  Trainable: {trainable:,}"])


def _shape(output):
    """The shape of the first tensor in a layer's output, as text."""
    if isinstance(output, torch.Tensor):
        return str(list(output.shape))
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return next((_shape(part) for part in parts), type(output).__name__)
