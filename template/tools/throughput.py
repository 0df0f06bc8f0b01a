"""What limits the speed of a training: the data, the host or the device, and what to change.

    trainer.check_init()
    throughput(trainer)                  # half a minute at most; prints a table and advice
    throughput(trainer, compare=True)    # and against a bare loop: what does each part of an update cost?

Weights, optimizers, random numbers and counters are as before when it returns; no callback hears of it. It says nothing
about evaluation, and on a machine that does other things meanwhile its times are theirs too.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoint.plain_data import HostCopy
from ..checkpoint.state import apply, collect
from ..metrics.modes import modes_of, restore_modes
from ..run.as_found import as_found, nothing_written
from ..run.bare_loop import compared
from ..run.checks import require_init
from ..update.schedule_free import averaged, loading
from ..update.stepper import make_clip

if TYPE_CHECKING:
    from ..template import TemplateModel

_WARM_UP = 3                # updates that are not counted
_SECONDS_EACH = 5.0         # at most, for each of the measurements
_UPDATES_EACH = 200
_WAITS_FOR_DATA = 0.2       # from this share of the time on, data is the limit
_SAME_FOR_ANY_BATCH = 0.6   # from this share of an update on, the host is


def throughput(model: TemplateModel, compare: bool = False) -> dict[str, Any]:
    """Measure a ``TemplateModel`` after ``check_init``. Among several processes every rank has to call it.

    Args:
        compare: run the trainer's loop and a bare one, over the same data and models, in turns, and tell what each part of
            an update costs; see ``run/bare_loop.py``. It takes up to half a minute more.

    Returns:
        ``{"data", "update", "fixed", "both"}``: seconds an update takes to read, to compute on a batch that is there, to
        compute on a batch of one or two samples (None where that fails), and in training; "samples_per_second"; and
        "limit": "data", "host" or "device". With ``compare`` also "comparison", a ``Comparison``: its ``ratio``,
        ``shares()``, and the times of each round.

    Raises:
        RuntimeError: ``check_init`` was not called.
        ValueError: with ``compare``: weights are divided among the ranks.
    """
    require_init(model)
    model.world.begin("throughput()")
    with averaged(model.optimizer_list), model.stepper.measured():
        figures = _measured(model)
    figures["limit"] = _limit(figures)
    with nothing_written(model):
        _tell(model, figures)
    if compare:
        with as_found(model, "throughput(compare=True)"), model.stepper.measured():
            figures["comparison"] = compared(model)
        with nothing_written(model):
            print(f"\n{figures['comparison']}")
    return figures


def _measured(model):
    """The times, with everything as before."""
    before, stepper, speed = HostCopy().fill(collect(model)), model.stepper, dict(vars(model.stepper.speed))
    moments = stepper.before_step, stepper.after_update, stepper.clip
    stepper.before_step = stepper.after_update = lambda: None
    stepper.clip = make_clip(model.clip_grad)
    modes = modes_of(model.model_list)
    try:
        for part in model.model_list:
            part.train()
        return _measure(model)
    finally:
        stepper.before_step, stepper.after_update, stepper.clip = moments
        for optimizer in model.optimizer_list:
            optimizer.zero_grad()
        with loading(model.optimizer_list, resumes=False):
            apply(model, before)
        vars(stepper.speed).update(speed)
        restore_modes(modes)


def _measure(model):
    device = torch.device(model.device)
    batch = next(iter(_batches(model)))
    few = _few_samples(batch)
    samples = model.count_samples(batch) * model.accumulate_steps
    both = _seconds(device, _updates(model, _batches(model)), model.world)
    return {
        "data": _seconds(device, _reading(model), model.world),
        "update": _seconds(device, _updates(model, itertools.repeat(batch)), model.world),
        "fixed": _seconds_or_none(device, _updates(model, itertools.repeat(few)), model.world),
        "both": both,
        "samples_per_second": float(samples / both),
    }


def _batches(model):
    """Of epoch after epoch, as training gets them."""
    return itertools.chain.from_iterable(model.train_batches.epoch(epoch) for epoch in itertools.count(1))


def _reading(model):
    batches = _batches(model)
    while True:
        for _ in range(model.accumulate_steps):
            next(batches)
        yield


def _updates(model, batches):
    train_step = model.stepper.around(model.train_step)
    for group in model.stepper.groups(batches):
        for batch, _ in group:
            train_step(batch)
        model.stepper.finish_group()
        yield


def _few_samples(batch):
    """The first two samples (BatchNorm refuses one) of a nested batch."""
    if isinstance(batch, torch.Tensor):
        return batch[:2] if batch.dim() else batch
    if isinstance(batch, dict):
        return {name: _few_samples(part) for name, part in batch.items()}
    return type(batch)([_few_samples(part) for part in batch]) if type(batch) in (list, tuple) else batch


def _seconds(device, steps, world):
    """Per step, the first few left out. All ranks do the same number of steps."""
    for _ in itertools.islice(steps, _WARM_UP):
        pass
    _wait(device)
    started = time.perf_counter()
    for count, _ in enumerate(steps, 1):
        if count == _UPDATES_EACH or world.any(time.perf_counter() - started > _SECONDS_EACH):
            break
    _wait(device)
    return (time.perf_counter() - started) / count


def _seconds_or_none(device, steps, world):
    try:
        return _seconds(device, steps, world)
    except Exception as error:  # somebody's network or loss needs a batch of a certain size
        print(f"throughput: a batch of two samples cannot be trained on ({type(error).__name__}: {error}).")
        return None


def _wait(device):
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


# --- what it means --------------------------------------------------------------------------------------------------


def _limit(figures):
    if figures["both"] - figures["update"] > _WAITS_FOR_DATA * figures["both"]:
        return "data"
    if figures["fixed"] is not None and figures["fixed"] > _SAME_FOR_ANY_BATCH * figures["update"]:
        return "host"
    return "device"


def _tell(model, figures):
    samples = round(figures["samples_per_second"] * figures["both"])
    rows = [("reading its data", figures["data"]), ("computing, with the data there", figures["update"]),
            ("the same with two samples", figures["fixed"]), ("both, as in training", figures["both"])]
    print(f"An update of {samples} samples on {model.device}: {figures['samples_per_second']:,.0f} samples/s")
    for what, seconds in rows:
        if seconds is not None:
            print(f"  {what:<32}{1000 * seconds:>9.2f} ms")
    print({"data": "The data is the limit: the device waits for it.",
           "host": "The host is the limit: most of an update does not depend on the size of the batch.",
           "device": "The device is the limit: it computes most of the time."}[figures["limit"]])
    for advice in _ADVICE[figures["limit"]](model, figures):
        print(f"  - {advice}")


def _about_data(model, figures):
    loader = model.train_loader
    if not isinstance(loader, DataLoader):
        return ["Make the loader faster: several processes that read, batches prepared ahead."]
    advice = []
    cpus = os.cpu_count() or 1
    wanted = min(cpus, round(loader.num_workers * figures["data"] / figures["update"]) if loader.num_workers else cpus)
    if wanted > loader.num_workers:
        advice.append(f"DataLoader(num_workers={wanted}, persistent_workers=True); it has {loader.num_workers}, the machine "
                      f"{cpus} CPUs.")
    if torch.device(model.device).type == "cuda" and not loader.pin_memory:
        advice.append("DataLoader(pin_memory=True): copies to the GPU go on beside its work.")
    return [*advice, "TensorLoader.from_dataset(dataset, …) where all samples fit in memory and have one shape; random "
                     "augmentation then goes into its transform, for whole batches.",
            "Do once what is done to a sample in every epoch: decode, resize and store it."]


def _about_host(model, figures):
    advice = ["A larger batch, with the learning rate that goes with it."]
    if not model.compile:
        advice.append('compile = True; on a GPU compile = "reduce-overhead" takes most of the host\'s work away.')
    slow = [type(optimizer).__name__ for optimizer in model.optimizer_list
            if "fused" in optimizer.defaults and not optimizer.defaults["fused"]]
    return advice + [f"{name}(…, fused=True): one kernel for all parameters." for name in dict.fromkeys(slow)]


def _about_device(model, figures):
    is_gpu, advice = torch.device(model.device).type == "cuda", []
    if is_gpu and model.amp is None:
        advice.append('amp = "bf16" (or "fp16" on older GPUs).')
    if is_gpu and model.matmul_precision is None:
        advice.append('matmul_precision = "high": float32 products in TF32.')
    if is_gpu and model.amp and not model.channels_last and _has_convolutions(model):
        advice.append("channels_last = True.")
    if not model.compile:
        advice.append("compile = True.")
    return [*advice, "callbacks = [Profile()] shows which operators the time goes to."]


def _has_convolutions(model):
    return any(isinstance(part, nn.Conv2d) for models in model.model_list for part in models.modules())


_ADVICE = {"data": _about_data, "host": _about_host, "device": _about_device}
