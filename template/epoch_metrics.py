"""What the loop collects: the losses of an epoch's batches, and the metrics of an evaluation.

    losses = RunningLosses()
    losses.update({"tol_loss": loss}, num_samples)     # an append: no kernel, no wait for the device
    means = losses.window()                            # one wait, {"tol_loss": float}

The accumulators that ``metric()`` returns are in ``metrics.py``.
"""

import torch

from .metrics import Confusion, Mean, Metric, Score, one_number, to_floats, to_number


class RunningLosses:
    """Training losses: means over the window since the last log point, and over the epoch.

    ``update`` appends detached scalars; ``fetch`` brings all new ones to the host in one copy.
    """

    def __init__(self):
        self.reset()

    def update(self, losses, num_samples):
        kept = {}
        for name, loss in losses.items():
            kept[name] = loss.detach() if type(loss) is torch.Tensor and loss.dim() == 0 else one_number(loss, name)
        self.pending.append((kept, num_samples))

    def fetch(self):
        """The window so far: ``[({name: float}, num_samples), …]``, one entry per batch."""
        pending, self.pending = self.pending, []
        fetched = iter(to_floats([value for losses, _ in pending for value in losses.values()]))
        self.recent += [(dict(zip(losses, fetched)), num_samples) for losses, num_samples in pending]
        return self.recent

    def window(self):
        """Means over the window's samples by name; the next window begins."""
        sums = {}
        for losses, num_samples in self.fetch():
            for name, value in losses.items():
                total, weight = sums.get(name, (0.0, 0))
                sums[name] = total + value * num_samples, weight + num_samples
        for name, (total, weight) in sums.items():
            old_total, old_weight = self.totals.get(name, (0.0, 0))
            self.totals[name] = old_total + total, old_weight + weight
        self.recent = []
        return _means(sums)

    def compute(self):
        """Means over the samples of the epoch, as of the last ``window``."""
        return _means(self.totals)

    def reset(self):
        self.pending = []
        self.recent = []
        self.totals = {}

    def state_dict(self):
        return {"recent": [[dict(losses), num_samples] for losses, num_samples in self.fetch()],
                "totals": {name: list(pair) for name, pair in self.totals.items()}}

    def load_state_dict(self, state):
        self.reset()
        self.recent = [(dict(losses), num_samples) for losses, num_samples in state["recent"]]
        self.totals = {name: tuple(pair) for name, pair in state["totals"].items()}


def _means(totals):
    return {name: total / weight for name, (total, weight) in totals.items()}


class EpochMetrics:
    """Collects the dicts that ``metric()`` or ``loss_per_batch`` return, batch by batch.

    ``Metric`` and torchmetrics objects accumulate as they define it, everything else as a mean over samples.
    """

    def __init__(self):
        self.totals = {}

    def update(self, values, num_samples):
        for name, value in values.items():
            total = self.totals.get(name)
            if not is_accumulator(value):
                if total is None:
                    total = self.totals[name] = Mean()
                total.update(one_number(value, name), num_samples)
            elif total is None:
                self.totals[name] = value
            elif total is not value and isinstance(value, Confusion):
                self.totals[name] = total + value  # a new object: scores may share the old one
            elif total is not value:
                if not hasattr(total, "merge"):
                    raise TypeError(
                        f"metric {name!r} returned a new {type(value).__name__} for each batch, which cannot be merged. "
                        "Make it once in __init__ and update it in metric()."
                    )
                total.merge(value)

    def compute(self):
        """``{name: number or tensor}``; a metric that computes to a dict adds its own names."""
        results = {}
        for name, total in self.totals.items():
            value = total.compute()
            for key, part in (value.items() if isinstance(value, dict) else [(name, value)]):
                results[key] = to_number(part)
        return results

    def reset(self):
        for total in self.totals.values():
            total.reset()
        self.totals = {}

    def reduce(self, all_gather):
        """Make every rank's totals those of all ranks together, in new objects: several scores may share the user's.

        Args:
            all_gather: takes this rank's ``{name: state}`` and returns the list of all ranks', in rank order.
        """
        own = {name: total for name, total in self.totals.items() if isinstance(total, Metric)}
        gathered = all_gather({name: total.state_dict() for name, total in own.items()})
        for total in own.values():
            total.reset()  # one that the user made once starts the next epoch empty
        for name, total in own.items():
            first, *others = [_like(total, states[name]) for states in gathered if name in states]
            for other in others:
                first.merge(other)
            self.totals[name] = first


def _like(metric, state):
    """A metric of the same kind holding ``state``."""
    other = metric.fresh()
    other.load_state_dict(state)
    return other


def distinct_sources(metrics):
    """What is to be updated: several scores may share one ``Confusion``, which must see a batch once."""
    sources = (metric.confusion if isinstance(metric, Score) else metric for metric in metrics)
    return {id(source): source for source in sources}.values()


def is_accumulator(value):
    """Ours, or anything with torchmetrics' ``compute`` and ``reset``."""
    if isinstance(value, (torch.Tensor, float, int)):
        return False
    return isinstance(value, Metric) or (hasattr(value, "compute") and hasattr(value, "reset"))
