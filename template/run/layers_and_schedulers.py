"""Parts that would stop a run in torch's words, at its start or at the end of its first epoch. ``check_init`` finds them, or
the first training batch where only a batch can tell.

    check_parts(trainer)                    # lazy layers without weights, schedulers that nobody can step
    undo = watch_norms(trainer)             # on the first batch: BatchNorm, where the last batch will have one sample
"""

import inspect

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..data.lengths import batch_sizes
from ..output.warn import warn
from ..update.lr_scheduler import FACTORS


def check_parts(model):
    """What can be seen of models, schedulers and loaders without running anything.

    Raises:
        ValueError, TypeError: a layer has no weights yet, or a scheduler cannot be stepped by the loop.
    """
    _check_lazy(model)
    _check_schedulers(model)
    if _last_batch_is_single(model) and (model.compile or not model.preflight):
        layers = [name for name, layer in _norms(model) if isinstance(layer, nn.BatchNorm1d)]
        if layers:
            warn(f"{_of_one_sample(model)}. {layers[0]} (BatchNorm1d) stops with an error there if it gets one "
                          f"value per channel. {_CURE}")


def _check_lazy(model):
    modules = {f"model_list[{i}]": part for i, part in enumerate(model.model_list)}
    if isinstance(model.criterion, nn.Module):
        modules["criterion"] = model.criterion
    for prefix, part in modules.items():
        for name, layer in part.named_modules():
            if any(map(is_lazy, (*layer.parameters(recurse=False), *layer.buffers(recurse=False)))):
                raise ValueError(
                    f"A model needs its weights before check_init(), and {prefix}{'.' * bool(name)}{name} "
                    f"({type(layer).__name__}) has none yet: their sizes come with the first input. Run one batch through "
                    "the model where you build it, before the optimizer: `with torch.no_grad(): model(x)`. Or load weights "
                    "first, with load_state(path, optim=False)."
                )


def _check_schedulers(model):
    for i, scheduler in enumerate(model.lr_scheduler_list or ()):
        kind = type(scheduler).__name__
        if isinstance(scheduler, ReduceLROnPlateau):
            if model.lr_scheduler_interval == "update":
                _tell_plateau(f"lr_scheduler_list[{i}] ({kind})")
            continue
        try:
            parameters = inspect.signature(scheduler.step).parameters.values()
        except (AttributeError, TypeError, ValueError):
            parameters = ()
        needed = [p.name for p in parameters
                  if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if needed:
            raise TypeError(
                f"The loop calls step() of a scheduler without arguments, and lr_scheduler_list[{i}] ({kind}) needs "
                f"{needed}. Leave lr_scheduler_list at None and step it yourself: in your loop behind train_loop(), or per "
                "update in on_after_step of a callback. Or take a schedule of the template, e.g. lr_scheduler_type = "
                "'cosine' with warm_up_epoch."
            )
    if model.lr_scheduler_list is None and model.lr_scheduler_type in ("metric", "loss"):
        if model.lr_scheduler_interval == "update":
            _tell_plateau(f"lr_scheduler_type = {model.lr_scheduler_type!r}")


def _tell_plateau(what):
    warn(f"lr_scheduler_interval = 'update' has no effect on {what}: a plateau schedule looks at evaluations, so "
                  "it steps once per epoch, and its patience counts epochs.")


def check_length(model, updates_per_epoch):
    """A schedule per update over the run needs to know how many updates there are.

    Raises:
        ValueError: the loader does not tell.
    """
    per_update = model.lr_scheduler_interval in (None, "update")
    counts_epochs = model.total_epochs is not None and model.total_updates is None
    is_named = model.lr_scheduler_list is None and model.lr_scheduler_type in FACTORS
    if is_named and per_update and counts_epochs and updates_per_epoch is None:
        raise ValueError(
            f"lr_scheduler_type={model.lr_scheduler_type!r} per update needs the number of updates of an epoch, and this "
            "train_loader has no len(). Count updates, with trainer.updates(n) or fit(updates=n), set "
            "lr_scheduler_interval='epoch', or give the loader a __len__."
        )


# --- BatchNorm and a last batch of one sample ---------------------------------------------------------------------------

_CURE = "Set drop_last=True in the loader, or another batch_size."


def watch_norms(model):
    """Until the returned functions are called, a BatchNorm that gets one value per channel and sample is refused, where the
    last batch of the epoch will have one sample: there is no variance of one value."""
    if not _last_batch_is_single(model) or model.compile:  # hooks would have the model compiled again
        return []

    def look(name):
        def hook(layer, given):
            x = given[0]
            if layer.training and x.dim() > 1 and x.numel() == x.shape[0] * x.shape[1]:
                raise ValueError(f"{_of_one_sample(model)}, and {name} ({type(layer).__name__}) would get one value per "
                                 f"channel of it, of which there is no variance. {_CURE}")
        return hook

    return [layer.register_forward_pre_hook(look(name)).remove for name, layer in _norms(model)]


def _norms(model):
    return [(f"model_list[{i}]{'.' * bool(name)}{name}", layer) for i, part in enumerate(model.model_list)
            for name, layer in part.named_modules()
            if isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm)]


def _last_batch_is_single(model):
    sizes, are_all = batch_sizes(model.train_loader)
    return are_all and 1 in sizes and max(sizes) > 1 and model.world.size == 1


def _of_one_sample(model):
    return f"The last batch of train_loader will have 1 sample, the others up to {max(batch_sizes(model.train_loader)[0])}"
