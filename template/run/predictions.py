"""What the models say of data: ``trainer.predict(x)``, or with the labels ``trainer.predict(loader, labels=True)``."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from ..data.agreement import Divided
from ..data.loaders import make_batches
from ..data.nested import copied, sketch
from ..data.seeding import rng_kept
from ..metrics.modes import eval_mode
from ..output.warn import warn
from ..parallel.gradients import let_go
from .defaults import LABELS, input_of, label_name, parameter_dtype

if TYPE_CHECKING:
    from ..template import TemplateModel

_BATCH_SIZE = 64  # where no loader tells one


def predict(trainer: TemplateModel, loader: Iterable[Any] | np.ndarray | Dataset[Any], labels: bool = False) -> Any:
    """``inference`` on every batch of ``loader``, joined, on the CPU; works before ``check_init`` too.

    The weights are those of now: after a training, of its last epoch. ``use_best()`` before it takes the best ones. One rank
    may call it alone, except under fsdp.

    Args:
        loader: batches ``x``, ``(x,)`` or ``(x, …, y)``, whose label is left off, or dicts, which go in whole. A tensor or
            array [N, …], or a ``Dataset`` of such samples, is read in batches of the evaluation's size.
        labels: return the labels too, in the order of the predictions. They are the last part of a batch, or the entry
            "labels" or "label" of a dict. A loader that shuffles needs this: reading it again gives another order.

    Returns:
        The predictions, or with ``labels=True`` the pair (predictions, labels), each of them one of these:
        A tensor [N, …]. Where the models return a tuple, a dict or an object of tensors, the same with each of these joined;
        where they return a list of one entry for each sample, as detection models do, the whole list; of anything else a
        list with one output for each batch.

    Raises:
        ValueError: ``loader`` gave no batch, outputs that cannot be joined, or no labels where they are wanted.
    """
    if trainer.is_sharded:
        trainer.world.begin("predict()")
    _tell_weights(trainer)
    is_set_up = trainer.stepper is not None
    device = torch.device(trainer.device) if is_set_up else _device_of(trainer.model_list)
    dtype = parameter_dtype(trainer.model_list)
    autocast = trainer.autocast() if is_set_up else nullcontext()
    with trainer.lifetime.weights.for_use(), rng_kept(), eval_mode(trainer.model_list), torch.no_grad(), autocast:
        batches = make_batches(_as_loader(loader, trainer), 0, device)
        own = copied if batches.may_reuse else _as_it_is  # such a loader may fill the memory of its batches again
        outputs, wanted = [], []
        for batch in batches.epoch(0):
            outputs.append(own(_to_cpu(trainer.inference(input_of(batch, dtype)))))
            if labels:
                wanted.append(own(_to_cpu(_labels_of(batch))))
        if not outputs:
            raise ValueError("predict needs at least one batch, and the loader gave none. Look at the size of its dataset, "
                             "and whether it can be read only once.")
        predictions = joined(outputs)  # a copy, before other weights come back: an output may be a view of a weight
    if trainer.is_sharded:
        let_go(trainer.model_list)
    if not labels and _shuffles(loader):
        warn("predict() read a loader that shuffles, so its rows are in no order that you can know. Call predict(loader, "
             "labels=True), which returns the labels in the same order, or predict(loader.dataset), or give a loader with "
             "shuffle=False.")
    return (predictions, joined(wanted)) if labels else predictions


def _labels_of(batch):
    """The last part of a batch ``(x, …, y)``, or a dict's entry of that name; an array as a tensor."""
    if isinstance(batch, Mapping):
        y = batch[label] if (label := label_name(batch)) else None
    else:
        y = batch[-1] if isinstance(batch, (list, tuple)) and len(batch) > 1 else None
    if y is None:
        raise ValueError(f"predict(…, labels=True) takes batches (x, …, y), or dicts with an entry {' or '.join(LABELS)}; "
                         f"got {sketch(batch)}. Give a loader that has the labels, or leave labels=False.")
    return torch.as_tensor(y) if isinstance(y, np.ndarray) and y.dtype.kind in "biuf" else y


def _shuffles(loader):
    """Whether each reading of a loader has another order, as far as it can be seen."""
    loader = loader.loader if isinstance(loader, Divided) else loader
    sampler = getattr(loader, "sampler", None)
    samplers = sampler, getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    return bool(getattr(loader, "shuffle", False)) or any(
        isinstance(one, (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)) for one in samplers)


def _as_it_is(part):
    return part


def _as_loader(data, trainer):
    """Batches of a tensor, an array or a ``Dataset``; anything else gives batches itself."""
    sizes = (getattr(loader, "batch_size", None) for loader in (trainer.eval_loader, trainer.train_loader))
    size = next((size for size in sizes if isinstance(size, int) and size > 0), _BATCH_SIZE)
    if isinstance(data, np.ndarray):
        data = torch.as_tensor(data)
    if isinstance(data, torch.Tensor):
        return data.split(size)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return DataLoader(data, size)
    return data


def _device_of(models):
    """Where they are as long as ``check_init`` has moved none."""
    return next((p.device for model in models for p in model.parameters()), torch.device("cpu"))


def _tell_weights(trainer):
    """Once a run, where the best weights are others than these."""
    evaluator, best = trainer.evaluator, trainer.best_epoch.get(trainer.key_metric)
    if evaluator is None or evaluator.told_weights or trainer.lifetime.only_looks or best in (None, trainer.epochs_done):
        return
    evaluator.told_weights = True
    trainer.lifetime.say(f"predict uses the weights of now, epoch {trainer.epochs_done}. The best ones are of epoch {best}: "
                         "trainer.use_best() takes them.")


# --- outputs of several batches as one --------------------------------------------------------------------------------


def joined(outputs: list[Any]) -> Any:
    """The outputs of all batches as one of the same kind.

    Raises:
        ValueError: tensors whose shapes differ in more than their first dimension.
    """
    first = outputs[0]
    if isinstance(first, torch.Tensor):
        return _joined_tensors(outputs)
    if isinstance(first, list) and not any(isinstance(part, torch.Tensor) for part in first):
        return [part for output in outputs for part in output]  # an entry for each sample
    if isinstance(first, (tuple, list)):
        parts = [joined(list(column)) for column in zip(*outputs, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    if isinstance(first, Mapping):
        return {key: joined([output[key] for output in outputs]) for key in first}
    if names := _names_of(first):
        new = copy.copy(first)
        for name in names:
            object.__setattr__(new, name, joined([getattr(output, name) for output in outputs]))
        return new
    return first if all(output is first for output in outputs) else list(outputs)  # None, or what is none of the data


def _joined_tensors(outputs) -> Any:
    if not outputs[0].dim():
        return torch.stack(outputs)
    shapes = sorted({tuple(output.shape[1:]) for output in outputs})
    if len(shapes) > 1:
        raise ValueError("predict joins the outputs of all batches along their first dimension, and their other dimensions "
                         f"must be the same; got {shapes[:3]}. Pad the inputs to one length, or call inference(x) for each "
                         "batch.")
    return torch.cat(outputs)


def _names_of(output) -> list[str]:
    """Of the parts of an object: a dataclass's fields, or attributes where all are tensors (or None)."""
    if dataclasses.is_dataclass(output):
        return [field.name for field in dataclasses.fields(output)]
    attributes = getattr(output, "__dict__", {})
    are_tensors = all(value is None or isinstance(value, torch.Tensor) for value in attributes.values())
    return list(attributes) if are_tensors else []


def _to_cpu(output):
    """Every tensor of an output on the CPU, so that a GPU does not have to hold all of them."""
    if isinstance(output, torch.Tensor):
        return output.cpu()
    if isinstance(output, (tuple, list)):
        parts = [_to_cpu(part) for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    if isinstance(output, Mapping):
        return {key: _to_cpu(value) for key, value in output.items()}
    if names := _names_of(output):
        output = copy.copy(output)
        for name in names:
            object.__setattr__(output, name, _to_cpu(getattr(output, name)))
    return output
