"""What an accumulator gives of an epoch, however it is split: into batches, among ranks, made anew or once, restored."""

import io

import torch
from ranks import in_threads

from template.metrics.epoch import EpochMetrics

WAYS = ("anew", "once", "restored", "2 ranks", "3 ranks")


def values(make, batches, way):
    """``{name: value}``, of an accumulator that is called "m".

    Args:
        make: function of nothing that gives an empty one.
        batches: of arguments of its ``update``.
    """
    if way.endswith("ranks"):
        size = int(way[0])
        results = in_threads(size, lambda world: _of_rank(make, batches[world.rank::size], world))
        for result in results:
            if isinstance(result, Exception):
                raise result
        assert all(str(result) == str(results[0]) for result in results)
        return results[0]
    if way == "restored":
        metric = make()
        for arguments in batches:
            metric.update(*arguments)
            buffer = io.BytesIO()
            torch.save(metric.state_dict(), buffer)
            metric = make()
            metric.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
        epoch = EpochMetrics()
        epoch.update({"m": metric}, 1)
        return epoch.compute()
    epoch, once = EpochMetrics(), make()
    for arguments in batches:
        epoch.update({"m": (once if way == "once" else make()).update(*arguments)}, 1)
    return epoch.compute()


def _of_rank(make, batches, world):
    epoch = EpochMetrics()
    for arguments in batches:
        epoch.update({"m": make().update(*arguments)}, 1)
    return epoch.compute(world)


def split(tensors, size):
    """Batches of ``size``, the last one shorter."""
    return list(zip(*(tensor.split(size) for tensor in tensors)))
