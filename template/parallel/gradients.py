"""The gradients of several processes as one: DistributedDataParallel, FSDP2, or an average at the update.

    parallel = make_parallel(trainer, device, has_own_step=False, has_own_count=False)
    mean = parallel.mean(num_samples, is_even)     # of the update's samples, over the ranks
    parallel.exchange_gradients(is_last)           # before each forward
    loss = loss * num_samples / mean               # the average of such losses is the mean over all samples
    loss.backward()                                # exchanges gradients meanwhile
    parallel.complete(parameters)                  # now they are those of all ranks

- "ddp": each rank holds everything; torch's ``DistributedDataParallel`` averages gradients while others are computed. What
  it does not see, because the loss took another way than ``self.net(x)``, is averaged at the update.
- "fsdp": each rank holds a part of weights, gradients and optimizer states (``fully_shard``).
- A ``train_step`` of your own (GANs, several backwards) gets plain averages when an optimizer is updated: whatever it
  does is right, and nothing overlaps.

A model is wrapped in place, so that ``self.net(x)`` in a subclass takes the same way as ``self.model_list[0](x)``.
"""

import re
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .equality import Buffers, make_equal

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
    _leave_to_us(models)
    modules = [*models, *([trainer.criterion] if isinstance(trainer.criterion, nn.Module) else [])]
    for module in modules:
        make_equal([*module.parameters(), *module.buffers()])
    if trainer.parallel == "fsdp":
        parallel = Sharded(models, modules, trainer.optimizer_list, world, device, **options)
    elif has_own_step:
        parallel = Averaged(modules, world, device, options.get("broadcast_buffers", True))
    else:
        parallel = Replicated(models, modules, world, device, options)
    parallel.has_own_count = has_own_count
    return parallel


def _leave_to_us(models):
    """What scripts for several processes do to a model by themselves.

    Raises:
        ValueError: weights are divided already.
    """
    for i, model in enumerate(models):
        for part in model.modules():
            if isinstance(part, DistributedDataParallel):  # it would exchange everything a second time, in evaluations too
                part.require_backward_grad_sync = part.broadcast_buffers = False
            if type(part).__name__ == "FullyShardedDataParallel" or any(
                    hasattr(p, "to_local") for p in part.parameters(recurse=False)):
                raise ValueError(
                    f"model_list must hold plain models, and the weights of model_list[{i}] are divided among the processes "
                    f"already: {type(part).__name__} in it went through fully_shard or FullyShardedDataParallel. Leave that "
                    "away and set parallel = 'fsdp': then check_init() divides them, see parallel_options.")


class Averaged:
    """Gradients are averaged when an optimizer is updated.

    Args:
        modules: models and criterion, whose buffers become rank 0's before an evaluation.
        begins_alike: they become so before the first forward of each update too, as with DDP. A train_step may update
            between two forwards of one graph, which needs the buffers as they are.
    """

    is_sharded = False
    has_own_count = False  # equally long batches may weigh differently

    def __init__(self, modules, world, device, begins_alike=False):
        self.world = world
        self.device = device
        self.buffers = Buffers(modules)
        self.begins_alike = begins_alike

    def mean(self, count, is_even):
        """The mean of an update's samples over the ranks: a number, or a tensor on a GPU, which nobody waits for.

        Args:
            is_even: the ranks have batches of one length.
        """
        self.world.begin_update()
        if self.begins_alike:
            self.buffers.make_equal()
        if is_even and not self.has_own_count:
            return count
        total = torch.full((), float(count), device=self.device)
        dist.all_reduce(total)
        mean = total / self.world.size
        if not mean.is_cuda:
            return mean.item()
        return mean.clamp_(min=torch.finfo(mean.dtype).tiny)  # 0 would make the weights of the losses NaN

    def exchange_gradients(self, wanted):
        """Whether the next backward shall exchange gradients: only the last of an accumulation group does. Called before
        its forward."""

    def leaves(self, parameters):
        """What the graph of a loss ends in for these parameters."""
        return parameters

    def complete(self, parameters):
        """Called before an update of ``parameters``: their gradients become those of all ranks."""
        parameters = [p for p in parameters if p.requires_grad or p.grad is not None]  # frozen within a group
        for dtype in dict.fromkeys(p.dtype for p in parameters):
            self._average([p for p in parameters if p.dtype == dtype])

    @torch.no_grad()
    def _average(self, parameters):
        """In one exchange, with a flag for each parameter that has a gradient: what has none anywhere stays without."""
        has = parameters[0].new_tensor([p.grad is not None for p in parameters])
        parts = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters]
        flat = torch.cat([has, *(part.reshape(-1) for part in parts)])
        dist.all_reduce(flat)
        has, *parts = flat.split([len(parameters), *(p.numel() for p in parameters)])
        is_sure = all(p.grad is not None for p in parameters)  # else the flags are read, which waits for the device
        for p, part, count in zip(parameters, parts, [1] * len(parameters) if is_sure else has.tolist()):
            if count:
                part = part.view_as(p).div_(self.world.size)
                if p.grad is None or p.grad.is_sparse:
                    p.grad = part.clone() if p.grad is None else part.to_sparse(1)
                else:
                    p.grad.copy_(part)

    def before_evaluation(self):
        """Buffers that the forwards of a rank have changed (statistics of BatchNorm) become rank 0's, which a checkpoint
        has."""
        self.buffers.make_equal()


class Replicated(Averaged):
    """Each model in a ``DistributedDataParallel`` of its own, see ``Wrapped``.

    Once a model was called, DDP exchanges all its gradients, whatever else the loss is made of. The rest is averaged at
    the update: models that were not called, as in ``self.net.forward(x)`` or ``self.net.head(features)``, and what is in no
    model (weights of a criterion). As with DDP itself, all ranks run the same program: what one rank calls, each one calls.

    Args:
        options: of ``DistributedDataParallel``. With ``broadcast_buffers`` (or ``forward_sync_buffers``) False each rank
            keeps its own buffers between two evaluations; else they become rank 0's at every update.
    """

    def __init__(self, models, modules, world, device, options):
        super().__init__(modules, world, device)
        self.shares_buffers = options.pop("broadcast_buffers", options.pop("forward_sync_buffers", True))
        options = {"device_ids": [device.index] if device.type == "cuda" else None, "init_sync": False} | options
        self.wrapped = [Wrapped(model, options) for model in models]

    def exchange_gradients(self, wanted):
        for one in self.wrapped:
            one.begin(wanted)

    def complete(self, parameters):
        exchanged = set().union(*(one.end() for one in self.wrapped))
        super().complete(p for p in parameters if id(p) not in exchanged)
        if self.shares_buffers:
            self.buffers.make_equal()


class Wrapped:
    """A model whose calls take the way through a ``DistributedDataParallel`` while gradients are made for an update, in
    train and in eval mode. Other calls stay as they are, also those with gradients that a callback makes on one rank alone.

    DDP asks only once which parameters are trainable. So a new one is made when some were frozen or unfrozen since the last
    update, and none where nothing is trainable.
    """

    def __init__(self, model, options):
        self.model, self.options = model, options
        self.inner = model._compiled_call_impl or model._call_impl
        self.is_open = self.is_inside = self.was_called = False
        self.wrapper = None
        self._make()
        model._compiled_call_impl = self._call

    def _make(self):
        if self.wrapper is not None:
            del self.wrapper.reducer, self.wrapper.logger  # its hooks and buckets go now, not when Python collects cycles
            self.wrapper = None
        named = dict(self.model.named_parameters())
        self.parameters = list(named.values())
        self.is_trainable = self._is_trainable()
        trainable = {name: p for name, p in named.items() if p.requires_grad}
        self.names, self.ids = list(trainable), {id(p) for p in trainable.values()}
        if trainable:
            self.wrapper = DistributedDataParallel(self.model, **self.options)
            self.wrapper.broadcast_buffers = False  # ``Buffers`` knows more dtypes; as an argument it is deprecated

    def _is_trainable(self):
        return [p.requires_grad for p in self.parameters]

    def begin(self, is_last):
        """A forward for an update begins, the last one before it, or one of an accumulation group."""
        if is_last and self._is_trainable() != self.is_trainable:
            self._make()
        if self.wrapper is not None:
            self.wrapper.require_backward_grad_sync = is_last  # what its no_sync() sets, for a forward and its backward
        self.is_open, self.was_called = True, False

    def end(self):
        """The ids of the parameters whose gradients the backward has exchanged."""
        self.is_open = False
        if not self.was_called:
            return set()
        with self._explained():
            self.wrapper._check_reducer_finalized()  # before gradients are used that were not sent
        return self.ids

    def _call(self, *args, **kwargs):
        if not self.is_open or self.is_inside or self.wrapper is None or not torch.is_grad_enabled():
            return self.inner(*args, **kwargs)
        self.is_inside = self.was_called = True
        try:
            with self._explained():
                return self.wrapper(*args, **kwargs)
        finally:
            self.is_inside = False

    @contextmanager
    def _explained(self):
        """torch tells indices where a person needs names."""
        try:
            yield
        except RuntimeError as error:
            if "Expected to have finished reduction" not in str(error):
                raise
            indices = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
            unused = [self.names[int(index)] for index in indices[1].split()] if indices else ["some parameters"]
            raise ValueError(
                f"Under DDP every trainable parameter needs a gradient in every update, and these got none: {unused[:5]}"
                f"{f' and {len(unused) - 5} more' if len(unused) > 5 else ''}. Freeze them with requires_grad_(False), or "
                "set parallel_options = {'find_unused_parameters': True}, which costs a walk through the graph per update."
            ) from error


class Sharded(Averaged):
    """FSDP2: weights, gradients and optimizer states are divided among the ranks.

    Args:
        blocks: which parts are gathered at a time: module classes (``(TransformerBlock,)``), or a number: every module of
            at least so many parameters that holds no smaller one of that size. None: each model as a whole.
        **options: of ``fully_shard``: ``mp_policy``, ``reshard_after_forward``, ``offload_policy``, …

    Raises:
        ValueError: ``blocks`` finds nothing, an optimizer has a state already, or parameters that belong to no model.
    """

    is_sharded = True

    def __init__(self, models, modules, optimizers, world, device, blocks=None, **options):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        super().__init__(modules, world, device)
        _require_own(models, optimizers)
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
            optimizer.register_step_pre_hook(lambda *_: let_go(models))  # a forward behind the backward has gathered them
        self.homes = _homes(models)

    def leaves(self, parameters):
        """The gathered weights: gradients arrive there, and are divided among the ranks behind the backward."""
        homes = [self.homes.get(id(p), (None, {"p": p}, "p")) for p in parameters]  # one of no model was added later
        for part in dict.fromkeys(part for part, _, _ in homes if part is not None):
            part.unshard()
        return [held[name] for _, held, name in homes]

    def exchange_gradients(self, wanted):
        for model in self.models:
            model.set_requires_gradient_sync(wanted)

    def complete(self, parameters):
        """The backward has done it."""


def _homes(models):
    """``{id(parameter): (what gathers it, the dict that holds it, its name there)}`` of models that are divided."""
    from torch.distributed.fsdp import FSDPModule

    parts = [part for model in models for part in model.modules() if isinstance(part, FSDPModule)]  # inner ones last
    gathers = {module: part for part in parts for module in part.modules()}
    return {id(p): (part, module._parameters, name)
            for module, part in gathers.items() for name, p in module._parameters.items()}


def part_of(tensor):
    """What this rank holds of a tensor that is divided (a ``DTensor``), in the same memory; any other as it is."""
    return tensor.detach().to_local() if hasattr(tensor, "to_local") else tensor


def let_go(models):
    """What forwards have gathered of divided weights is let go: each rank's parts are in the modules again, and the next
    forward gathers them as they are then. FSDP2 itself keeps what an evaluation has gathered until the next backward."""
    from torch.distributed.fsdp import FSDPModule

    for model in models:
        for part in model.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def _require_own(models, optimizers):
    """What belongs to no model would not be divided, and no optimizer takes both kinds at once."""
    own = {id(p) for model in models for p in model.parameters()}
    for i, optimizer in enumerate(optimizers):
        others = [tuple(p.shape) for group in optimizer.param_groups for p in group["params"] if id(p) not in own]
        if others:
            raise ValueError(
                f"Under parallel='fsdp' an optimizer may hold parameters of model_list only, and optimizer_list[{i}] holds "
                f"{len(others)} other{'s' * (len(others) > 1)} as well, of shape {', '.join(map(str, others[:5]))}. For "
                "parameters of a criterion, make them a part of a model that uses them in its forward(), or set "
                "parallel = 'ddp'.")


@contextmanager
def explained(parallel):
    """Around what trains and evaluates: torch's error about divided weights, in words of this folder.

    Raises:
        ValueError: under fsdp a part of a model was used outside of the model's call.
    """
    try:
        yield
    except RuntimeError as error:
        if parallel is None or not parallel.is_sharded or "mixed torch.Tensor and DTensor" not in str(error):
            raise
        raise ValueError(
            "Under parallel='fsdp' weights are divided among the ranks, and only the call of a whole model gathers them: "
            "self.net(x). Here a part of a model was used by itself, as in self.net.forward(x), self.net.head(x) or "
            "self.net.weight. Move that computation into the model's forward(), give the part as one of "
            "parallel_options = {'blocks': (PartsClass,)} or as a model of its own in model_list, or set parallel = 'ddp', "
            "where any way is right.") from error


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
