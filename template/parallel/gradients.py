"""The gradients of several processes as one: DistributedDataParallel, FSDP2, or an average at the update.

    parallel = make_parallel(trainer, device, has_own_step=False, has_own_count=False)
    mean = parallel.mean(num_samples, is_even)     # of the update's samples, over the ranks
    loss = loss * num_samples / mean               # the average of such losses is the mean over all samples
    loss.backward()                                # exchanges gradients meanwhile

- "ddp": each rank holds everything; torch's ``DistributedDataParallel`` averages gradients while others are computed.
- "fsdp": each rank holds a part of weights, gradients and optimizer states (``fully_shard``).
- A ``train_step`` of your own (GANs, several backwards) gets plain averages when an optimizer is updated: whatever it
  does is right, and nothing overlaps.

A model is wrapped in place, so that ``self.net(x)`` in a subclass takes the same way as ``self.model_list[0](x)``.
"""

import re

import torch
import torch.distributed as dist
from torch import nn

MODES = ("auto", "ddp", "fsdp", None)


def make_parallel(trainer, device, has_own_step, has_own_count):
    """What the stepper of a ``TemplateModel`` needs among several processes. The models are made equal on all of them, and
    wrapped.

    Args:
        has_own_step: the subclass has a ``train_step`` of its own.
        has_own_count: it has a ``count_samples`` of its own.

    Raises:
        ValueError: an option that cannot be.
    """
    models, world, options = trainer.model_list, trainer.world, dict(trainer.parallel_options)
    for module in [*models, *([trainer.criterion] if isinstance(trainer.criterion, nn.Module) else [])]:
        make_equal(module)
    if trainer.parallel == "fsdp":
        parallel = Sharded(models, trainer.optimizer_list, world, device, **options)
    elif has_own_step:
        parallel = Averaged(world, device)
    else:
        parallel = Replicated(models, world, device, options)
    parallel.has_own_count = has_own_count
    return parallel


def make_equal(model, only_buffers=False):
    """Rank 0's weights and buffers on every rank."""
    with torch.no_grad():
        for tensor in [*([] if only_buffers else model.parameters()), *model.buffers()]:
            dist.broadcast(tensor, 0)


class Averaged:
    """Gradients are averaged when an optimizer is updated."""

    is_sharded = False
    has_own_count = False  # equally long batches may weigh differently

    def __init__(self, world, device):
        self.world = world
        self.device = device
        self.exchanged = set()  # ids of parameters whose gradients a backward exchanges

    def mean(self, count, is_even):
        """The mean of an update's samples over the ranks: a number, or a tensor on a GPU, which nobody waits for.

        Args:
            is_even: the ranks have batches of one length.
        """
        self.world.begin_update()
        if is_even and not self.has_own_count:
            return count
        total = torch.full((), float(count), device=self.device)
        dist.all_reduce(total)
        mean = total / self.world.size
        if not mean.is_cuda:
            return mean.item()
        return mean.clamp_(min=torch.finfo(mean.dtype).tiny)  # 0 would make the weights of the losses NaN

    def exchange_gradients(self, wanted):
        """Whether the next backward shall exchange gradients: only the last of an accumulation group does."""

    def complete(self, parameters):
        """Called before an update of ``parameters``: their gradients become those of all ranks, unless they are already."""
        parameters = [p for p in parameters if p.requires_grad and id(p) not in self.exchanged]
        for dtype in dict.fromkeys(p.dtype for p in parameters):
            self._average([p for p in parameters if p.dtype == dtype])

    def _average(self, parameters):
        """In one exchange, with a flag for each parameter that has a gradient: what has none anywhere stays without."""
        has = parameters[0].new_tensor([p.grad is not None for p in parameters])
        parts = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters]
        flat = torch.cat([has, *(part.reshape(-1) for part in parts)])
        dist.all_reduce(flat)
        has, *parts = flat.split([len(parameters), *(p.numel() for p in parameters)])
        has = has.tolist()
        for p, part, count in zip(parameters, parts, has):
            if count:
                part = part.view_as(p).div_(self.world.size)
                p.grad = part.clone() if p.grad is None or p.grad.is_sparse else p.grad.copy_(part)

    def before_evaluation(self, models):
        """Buffers that the forwards of a rank have changed (statistics of BatchNorm) become rank 0's, which a checkpoint
        has."""
        for model in models:
            make_equal(model, only_buffers=True)


class Replicated(Averaged):
    """Each model in a ``DistributedDataParallel`` of its own; what is frozen when it is made, or in no model (weights of a
    criterion), is averaged at the update."""

    def __init__(self, models, world, device, options):
        super().__init__(world, device)
        options = {"device_ids": [device.index] if device.type == "cuda" else None, "init_sync": False} | options
        self.wrappers = [_wrap(model, options) for model in models if any(p.requires_grad for p in model.parameters())]
        self.exchanged |= {id(p) for model in models for p in model.parameters() if p.requires_grad}

    def exchange_gradients(self, wanted):
        for wrapper in self.wrappers:
            wrapper.require_backward_grad_sync = wanted  # what its no_sync() sets, for a forward and its backward


def _wrap(model, options):
    inner = model._compiled_call_impl or model._call_impl
    wrapper = nn.parallel.DistributedDataParallel(model, **options)
    is_inside = False

    def call(*args, **kwargs):
        nonlocal is_inside
        if is_inside or not (torch.is_grad_enabled() and model.training):
            return inner(*args, **kwargs)
        is_inside = True
        try:
            return wrapper(*args, **kwargs)
        except RuntimeError as error:
            _explain_unused(model, error)
            raise
        finally:
            is_inside = False

    model._compiled_call_impl = call
    return wrapper


def _explain_unused(model, error):
    """torch tells indices where a person needs names."""
    if "Expected to have finished reduction" not in str(error):
        return
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    indices = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
    unused = [names[int(index)] for index in indices[1].split()] if indices else ["some parameters"]
    raise ValueError(
        f"Under DDP every trainable parameter needs a gradient in every update, and these got none: {unused[:5]}"
        f"{f' and {len(unused) - 5} more' if len(unused) > 5 else ''}. Freeze them with requires_grad_(False), or set "
        "parallel_options = {'find_unused_parameters': True}, which costs a walk through the graph per update."
    ) from error


class Sharded(Averaged):
    """FSDP2: weights, gradients and optimizer states are divided among the ranks.

    Args:
        blocks: which parts are gathered at a time: module classes (``(TransformerBlock,)``), or a number: every module of
            at least so many parameters that holds no smaller one of that size. None: each model as a whole.
        **options: of ``fully_shard``: ``mp_policy``, ``reshard_after_forward``, ``offload_policy``, …

    Raises:
        ValueError: ``blocks`` finds nothing, or an optimizer has a state already.
    """

    is_sharded = True

    def __init__(self, models, optimizers, world, device, blocks=None, **options):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        super().__init__(world, device)
        if any(optimizer.state for optimizer in optimizers):
            raise ValueError("Under parallel='fsdp' optimizers must be fresh when check_init() is called; one has a state.")
        options.setdefault("mesh", init_device_mesh(device.type, (world.size,)))
        before = [dict(model.named_parameters(remove_duplicate=False)) for model in models]
        for model in models:
            for part in _blocks(model, blocks):
                fully_shard(part, **options)
            fully_shard(model, **options)
        self.models = models
        new = {}
        for model, old in zip(models, before):
            now = dict(model.named_parameters(remove_duplicate=False))
            new |= {id(p): now[name] for name, p in old.items()}
        for optimizer in optimizers:  # they hold what the models held before
            for group in optimizer.param_groups:
                group["params"] = [new.get(id(p), p) for p in group["params"]]
        self.exchanged |= {id(p) for p in new.values()}

    def exchange_gradients(self, wanted):
        for model in self.models:
            model.set_requires_gradient_sync(wanted)


def _blocks(model, blocks):
    """The parts of a model that are sharded one by one, inner ones first."""
    if blocks is None:
        return []
    parts = [part for part in model.modules() if part is not model]
    if isinstance(blocks, int):
        large = [part for part in parts if _size(part) >= blocks and not isinstance(part, (nn.ModuleList, nn.ModuleDict))]
        found = [part for part in large if not any(other in large for other in part.modules() if other is not part)]
    else:
        kinds = tuple(blocks) if isinstance(blocks, (list, tuple)) else blocks
        found = [part for part in parts if isinstance(part, kinds)]
    if not found:
        raise ValueError(f"parallel_options['blocks'] = {blocks!r} fits no part of {type(model).__name__}. Give classes of "
                         "its parts, or a smaller number of parameters.")
    return found[::-1]


def _size(part):
    return sum(p.numel() for p in part.parameters())
