"""Several processes hold the same weights: they are made equal at the start, and it is seen when they are not any more.

    make_equal(model.parameters())           # rank 0's values on every rank, of any dtype
    buffers = Buffers([model])               # those of the models, which are made equal again and again
    buffers.make_equal()
    require_equal_weights(trainer)           # raises where a rank holds others

Gradients are the same on all ranks, see ``gradients.py``, so weights stay the same without being sent. A rank that changes
weights or gradients alone would train a model of its own, and its result would look fine. So a digest of the weights, which
reads each of them once, is compared after the first update and at every checkpoint. Buffers are not compared: the statistics
of BatchNorm come from a rank's own batches until rank 0's are taken.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from ..hooks import Callback

_AT_ONCE = 1 << 26  # bytes that are sent together
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def make_equal(tensors):
    """Rank 0's values on every rank. Backends know few dtypes, so the bytes are sent.

    Args:
        tensors: an iterable of tensors, in one order on all ranks, of any dtype; also expanded or sparse ones.
    """
    tensors = list(tensors)
    dense = [_written(tensor.detach()) for tensor in tensors if _is_dense(tensor)]
    for group in _groups([tensor for tensor in dense if tensor.numel()]):
        copies = [tensor.contiguous() for tensor in group]  # the same memory where it is contiguous
        _send_bytes([_bytes(copy) for copy in copies])
        for tensor, copy in zip(group, copies):
            if tensor is not copy and tensor.data_ptr() != copy.data_ptr():
                tensor.copy_(copy)
    for tensor in tensors:
        if not _is_dense(tensor):
            found = [tensor.cpu()]
            dist.broadcast_object_list(found, 0, device=tensor.device)
            with torch.no_grad():
                tensor.copy_(found[0].to(tensor.device))


def _is_dense(tensor):
    return tensor.layout is torch.strided and not tensor.is_quantized


def _written(tensor):
    """The part of an expanded tensor that lies in the memory: every place of it once."""
    for dimension, stride in enumerate(tensor.stride()):
        if not stride and tensor.shape[dimension] > 1:
            tensor = tensor.narrow(dimension, 0, 1)
    return tensor


def _groups(tensors):
    """What is sent together: of one device, and not much more than ``_AT_ONCE``."""
    groups, size, device = [], 0, None
    for tensor in tensors:
        if not groups or tensor.device != device or size > _AT_ONCE:
            groups.append([])
            size, device = 0, tensor.device
        groups[-1].append(tensor)
        size += tensor.numel() * tensor.element_size()
    return groups


def _bytes(tensor):
    """The memory of a contiguous tensor."""
    tensor = tensor.resolve_conj().resolve_neg() if tensor.is_complex() else tensor
    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)  # an expanded one may have strides of 0


def _send_bytes(parts):
    """Rank 0's, of one device."""
    flat = torch.cat(parts)
    dist.broadcast(flat, 0)
    if dist.get_rank():
        torch._foreach_copy_(parts, flat.split([len(part) for part in parts]))


class Buffers:
    """The buffers of modules, which are made equal at every update: their memory is looked up once.

    Args:
        modules: whose buffers; one that is set to another tensor later, as in ``self.average = …``, is found again.
    """

    def __init__(self, modules):
        self._homes = [(part._buffers, name) for module in modules for part in module.modules() for name in part._buffers]
        self._known, self._groups, self._others = [], [], []

    def make_equal(self):
        """Rank 0's on every rank, also where no gradients are wanted."""
        if not self._homes:
            return
        found = [home.get(name) for home, name in self._homes]
        if len(found) != len(self._known) or any(map(_is_other, found, self._known)):
            self._look_at(found)
        for parts in self._groups:
            _send_bytes(parts)
        if self._others:
            make_equal(self._others)

    def _look_at(self, found):
        self._known = found
        tensors = [tensor for tensor in found if tensor is not None]
        plain = [tensor for tensor in tensors if _is_dense(tensor) and tensor.is_contiguous() and not tensor.is_complex()]
        self._others = [tensor for tensor in tensors if all(tensor is not one for one in plain)]
        self._groups = [list(map(_bytes, group)) for group in _groups([tensor for tensor in plain if tensor.numel()])]


def _is_other(one, other):
    return one is not other


# --- the net below everything -------------------------------------------------------------------------------------------


class SameWeights(Callback):
    """Compares the weights of all ranks behind the first update; then it is gone."""

    def on_after_step(self, model):
        model.hooks.remove(self)
        require_equal_weights(model)


class RanksDiffer(RuntimeError):
    """The ranks hold different weights."""


def require_equal_weights(trainer):
    """Compare a digest of each weight between the ranks. On every rank; it waits for the device once.

    Args:
        trainer: a ``TemplateModel``. What is divided among the ranks (FSDP2) is not compared.

    Raises:
        RanksDiffer: on every rank, where some weight differs.
    """
    world = trainer.world
    if world.size == 1:
        return
    weights = _weights(trainer)
    digests = world.gather(_digests(weights))
    differing = [name for name in digests[0] if any(other.get(name) != digests[0][name] for other in digests)]
    if not differing:
        return
    first = differing[0]
    ranks = [rank for rank, own in enumerate(digests) if own.get(first) != digests[0][first]]
    many = f" and of {len(differing) - 1} more parameter{'s' * (len(differing) > 2)}" if len(differing) > 1 else ""
    raise RanksDiffer(
        f"All ranks must hold the same weights. After update {trainer.global_step} those of {first!r}{many} are different "
        f"on rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))} from rank 0{_how_far(weights[first], first, world)}. "
        "This state is not saved. Some code changed weights or gradients on one rank alone, or on each rank with its own "
        "random numbers. Look for `if trainer.is_main`, `if rank == 0` and torch.randn in callbacks, optimizers and "
        f"train_step, and do the same on every rank.{_hint(trainer)} To train each process on its own, set parallel = None."
    )


def _hint(trainer):
    if not trainer._overrides("train_step"):
        return ""
    return (" In a train_step of your own call self.backward(loss) and self.update(): loss.backward() and optimizer.step() "
            "leave each rank with the gradients of its own batches.")


def _weights(trainer):
    """``{name: parameter}`` of all that this rank holds whole."""
    modules = {f"model_list[{i}]": model for i, model in enumerate(trainer.model_list)}
    if isinstance(trainer.criterion, nn.Module):
        modules["criterion"] = trainer.criterion
    named = {f"{prefix}.{name}": p for prefix, module in modules.items() for name, p in module.named_parameters()}
    known = {id(p) for p in named.values()}
    for i, optimizer in enumerate(trainer.optimizer_list):  # what is in no model is updated, too
        held = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in known]
        named |= {f"optimizer_list[{i}], parameter {number} outside of the models": p for number, p in enumerate(held)}
    return {name: p for name, p in named.items() if not hasattr(p, "to_local")}


def _digests(weights):
    """``{name: whole number}``: the sum of the bits of each weight, so that a NaN equals itself."""
    sums = {name: _sum_of_bits(p.detach()) for name, p in weights.items()}
    numbers = {}
    for device in {total.device for total in sums.values()}:
        own = {name: total for name, total in sums.items() if total.device == device}
        numbers |= dict(zip(own, torch.stack(list(own.values())).tolist()))
    return numbers


def _sum_of_bits(tensor):
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.view(_BITS[tensor.element_size()]).sum(dtype=torch.int64)


def _how_far(weight, name, world):
    """By how much, in words; where a rank lacks the weight there is nothing to compare."""
    shapes = world.gather((name, tuple(weight.shape), str(weight.dtype)))
    if any(other != shapes[0] for other in shapes):
        return ""
    own = weight.detach().clone()
    make_equal([own])
    distance = (weight.detach() - own).abs().max().item() if own.numel() else 0.0
    return f", by up to {max(world.gather(distance)):.3g}"
