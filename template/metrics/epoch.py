"""What the loop collects: the losses of an epoch's batches, and the metrics of an evaluation.

    losses = RunningLosses()
    losses.update({"tol_loss": loss}, num_samples)     # an append: no kernel, no wait for the device
    means = losses.window()                            # one wait, {"tol_loss": float}

The accumulators that ``metric()`` returns are in ``accumulators.py``.
"""

import copy

import torch

from ..data.nested import to_device
from ..parallel.ranks import ALONE, OtherRankFailed
from .accumulators import Confusion, Mean, Metric, Score, Stored, is_read_at_once, one_number, to_floats, to_number
from .confusion_scores import Parts


class NoTrainMetrics:
    """Where nobody asked for metrics of the training."""

    def see(self, pred, y):
        """The template's own loss is computed of these."""

    note = see

    def recording(self, batch):
        return _NOTHING

    def take(self, losses, num_samples):
        """A batch was trained on."""

    def fetch(self):
        """A log point: what waits on the device comes to the host."""

    forget = reset = fetch

    def names(self):
        return []

    def compute(self, world=ALONE):
        return {}

    def state_dict(self, world=ALONE):
        return {}

    def load_state_dict(self, state, world=ALONE):
        """There is nothing that could take it."""


class _Nothing:
    """Cheaper than ``nullcontext()``, which is made anew for each batch."""

    def __enter__(self):
        pass

    def __exit__(self, *error):
        pass


_NOTHING = _Nothing()


class RunningLosses:
    """Training losses: means over the window since the last log point, and over the epoch.

    ``update`` appends detached scalars; ``fetch`` brings all new ones to the host in one copy.
    """

    def __init__(self):
        self.world = ALONE
        self.adds_up = False  # losses are sums over a batch's samples, not means
        self.metrics = NoTrainMetrics()  # of the training, see run/train_metrics.py
        self.names = set()  # of all losses that there were
        self.result = {}    # of the epoch that was trained last
        self.reset()

    def update(self, losses, num_samples):
        if self.adds_up:
            losses = per_sample(losses, num_samples)
        kept = {}
        for name, loss in losses.items():
            is_computed = type(loss) is torch.Tensor and not (loss.is_leaf or loss._is_view()) and loss.dim() == 0
            kept[name] = loss.detach() if is_computed else _own_number(loss, name)
        self.pending.append((kept, num_samples))
        self.metrics.take(kept, num_samples)

    def fetch(self):
        """The window so far: ``[({name: float}, num_samples), …]``, an entry per batch of any rank, in the order of data."""
        pending, self.pending = self.pending, []
        self.metrics.fetch()
        if not pending:  # on every rank: they train on equally many batches. An exchange costs 0.2 ms, a busy machine 5
            return self.recent
        new = self._on_host(pending)
        if self.world.size > 1:
            new = [entry for batches in zip(*self.world.gather(new)) for entry in batches]
        self.recent += new
        return self.recent

    @staticmethod
    def _on_host(pending):
        """In one copy."""
        fetched = iter(to_floats([value for losses, _ in pending for value in losses.values()]))
        return [(dict(zip(losses, fetched)), num_samples) for losses, num_samples in pending]

    def window(self):
        """Means over the window's samples by name; the next window begins."""
        sums = {}
        for losses, num_samples in self.fetch():
            if not num_samples:  # of a rank that had nothing in its share
                continue
            for name, value in losses.items():
                total, weight = sums.get(name, (0.0, 0))
                sums[name] = total + value * num_samples, weight + num_samples
        for name, (total, weight) in sums.items():
            old_total, old_weight = self.totals.get(name, (0.0, 0))
            self.totals[name] = old_total + total, old_weight + weight
        self.recent = []
        return _means(sums)

    def forget(self, count):
        """The newest ``count`` batches, which will be trained on again."""
        for entries in (self.pending, self.recent):  # a save brought them to the host
            newest = entries[max(len(entries) - count, 0):]
            del entries[len(entries) - len(newest):]
            count -= len(newest)
        self.metrics.forget()

    def compute(self):
        """Means over the samples of the epoch, as of the last ``window``, and the metrics of the training."""
        self.names |= self.totals.keys()
        self.result = _means(self.totals) | self.metrics.compute(self.world)
        return dict(self.result)

    def reset(self):
        self.pending = []
        self.recent = []
        self.totals = {}
        self.metrics.reset()

    def state_dict(self, world=None):
        """Args:
            world: the ranks whose losses it shall hold; None: all.
        """
        is_of_all = world is None or world.size == self.world.size
        recent = self.fetch() if is_of_all else [*self.recent, *self._on_host(self.pending)]
        metrics = self.metrics.state_dict(self.world if world is None else world)
        return {"recent": [[dict(losses), num_samples] for losses, num_samples in recent],
                "totals": {name: list(pair) for name, pair in self.totals.items()}} | metrics

    def load_state_dict(self, state):
        self.reset()
        self.recent = [(dict(losses), num_samples) for losses, num_samples in state["recent"]]
        self.totals = {name: tuple(pair) for name, pair in state["totals"].items()}
        self.metrics.load_state_dict(state, self.world)


def _own_number(loss, name):
    """What ``loss`` is now: it may be a parameter or a part of one, into which the optimizer writes."""
    is_to_wait = isinstance(loss, torch.Tensor) and not is_read_at_once(loss)
    return one_number(loss.detach().clone() if is_to_wait else loss, name)


def per_sample(losses, num_samples):
    """Sums over a batch's samples as means."""
    count = num_samples + (num_samples == 0) if isinstance(num_samples, torch.Tensor) else num_samples or 1
    return {name: loss / count for name, loss in losses.items()}


def _means(totals):
    return {name: total / weight for name, (total, weight) in totals.items()}


class EpochMetrics:
    """Collects the dicts that ``metric()`` or ``loss_per_batch`` return, batch by batch.

    ``Metric`` and torchmetrics objects accumulate as they define it, everything else as a mean over samples.
    """

    def __init__(self):
        self.totals = {}
        self.first_batch = {}  # by name: in which of this rank's batches it came first
        self.num_batches = 0

    def update(self, values, num_samples):
        number, self.num_batches = self.num_batches, self.num_batches + 1
        weight = one_number(num_samples, "weight of a Mean")
        totals, sums = self.totals, {}
        before = batch = both = None  # a confusion, that of this batch, and their sum: ten scores of them take it from here
        for name, value in values.items():
            total = totals.get(name)
            if type(total) is Mean and (type(value) is torch.Tensor or not is_accumulator(value)):
                total.take(one_number(value, name), weight)  # Mean.update, without looking twice
            elif type(total) is Score and type(value) is Score:
                if total.confusion is not before or value.confusion is not batch:
                    before, batch = total.confusion, value.confusion
                    both = before if before is batch else _sum(before, batch, sums)  # one, if the user made it once
                total.confusion = both
            else:
                self._add(name, value, weight, sums)
                if total is None:
                    self.first_batch[name] = number
                if isinstance(totals[name], Stored):
                    totals[name].note_batch(number)

    def _add(self, name, value, weight, sums):
        total = self.totals.get(name)
        if not is_accumulator(value):
            if total is None:
                total = self.totals[name] = Mean()
            total.update(one_number(value, name), weight)
        elif total is None:
            self.totals[name] = value
        elif total is not value:
            self.totals[name] = _merged(name, total, value, sums)

    def compute(self, world=ALONE):
        """``{name: number or tensor}`` of all ranks; a metric that computes to a dict adds its own names."""
        if world.size == 1:
            return self._computed()
        seen = world.gather({name: (number, state_of(self.totals[name])) for name, number in self.first_batch.items()})
        found = _in_order([{name: number for name, (number, _) in states.items()} for states in seen])
        own, failure = {}, None
        try:
            for name in [name for name, rank in found.items() if rank == world.rank]:
                states = {rank: states[name][1] for rank, states in enumerate(seen) if name in states}
                own[name] = _computed(name, _joined(self.totals[name], states, world.rank))
        except Exception as error:
            failure = error
        told = world.gather((own, failure and f"{type(failure).__name__}: {failure}"))
        for rank, (_, reason) in enumerate(told):
            if reason is not None:
                raise failure or OtherRankFailed(f"rank {rank}: {reason}")
        return {key: value for name, rank in found.items() for key, value in told[rank][0][name].items()}

    def _computed(self):
        return {key: value for name, total in self.totals.items() for key, value in _computed(name, total).items()}

    def reset(self):
        for total in self.totals.values():
            total.reset()
        self.totals, self.first_batch, self.num_batches = {}, {}, 0


def _merged(name, total, value, sums):
    """What came before and the same metric of another batch, as one.

    Args:
        sums: of the confusions that both are scores of, filled here: ten scores of one are summed up once.
    """
    if isinstance(value, Score) and isinstance(total, Score):  # of a subclass: the others are merged in ``update``
        if total.confusion is not value.confusion:
            total.confusion = _sum(total.confusion, value.confusion, sums)
    elif isinstance(value, Confusion):
        return _sum(total, value, sums)
    elif hasattr(total, "merge"):
        total.merge(value)
    else:
        raise TypeError(
            f"metric {name!r} returned a new {type(value).__name__} for each batch, which cannot be merged. "
            "Make it once in __init__ and update it in metric()."
        )
    return total


def _sum(total, value, sums):
    """A new object: scores may share the old one."""
    key = id(total), id(value)
    if key not in sums:
        sums[key] = total + value, total  # which stays alive, and so no other has its id
    return sums[key][0]


def _in_order(first_batches):
    """``{name: rank}`` in the order in which one process would see the names for the first time, and who did see it then.
    That rank has the object to compute with: the others may never have made it.

    Args:
        first_batches: for each rank ``{name: which of its batches had it first}``. Batches are dealt out in turn.
    """
    first = {}
    for rank, numbers in enumerate(first_batches):
        for position, (name, number) in enumerate(numbers.items()):
            first[name] = min(first.get(name, (number, rank, position)), (number, rank, position))
    return {name: first[name][1] for name in sorted(first, key=first.__getitem__)}


def _computed(name, total):
    """What one accumulator gives; one that computes to a dict adds its own names, behind this one where they are parts."""
    value = total.compute()
    if isinstance(value, Parts):
        value = {f"{name}/{part}": number for part, number in value.items()}
    return {key: to_number(part) for key, part in (value.items() if isinstance(value, dict) else [(name, value)])}


def state_of(metric):
    """On the host; torchmetrics' objects keep theirs in ``metric_state``."""
    if isinstance(metric, Metric):
        return metric.state_dict()
    if isinstance(metric, torch.nn.ModuleDict):  # torchmetrics' MetricCollection
        return {name: state_of(part) for name, part in metric.items(keep_base=True)}
    if not hasattr(metric, "metric_state"):
        raise TypeError("Several processes need metrics that can be merged: Mean, Stored, Confusion or torchmetrics' "
                        f"objects; got a {type(metric).__name__}.")
    return to_device(dict(metric.metric_state), torch.device("cpu"))


def _joined(metric, states, own_rank):
    """A metric of the same kind that holds all of ``states``, by rank. A new object: several scores may share the user's."""
    if isinstance(metric, Metric):
        first, *others = [like(metric, state) for state in states.values()]
        for other in others:
            first.merge(other)
        return first
    others = [state for rank, state in states.items() if rank != own_rank]
    if isinstance(metric, torch.nn.ModuleDict):
        metric = copy.deepcopy(metric)
        for name, part in metric.items(keep_base=True):  # each with a state of its own from here on
            merge_states(part, [state[name] for state in others])
        return metric
    return merge_states(copy.deepcopy(metric), others)


def merge_states(metric, states):
    """Take the states of other ranks into one of torchmetrics' objects."""
    device = metric.device
    metric.cpu()
    metric.distributed_available_fn = lambda: False  # it would gather by itself
    for state in states:
        metric.merge_state(state)
    return metric.to(device)


def like(metric, state):
    """A metric of the same kind holding ``state``."""
    other = metric.fresh()
    other.load_state_dict(state)
    return other


def of_loader(metrics, name):
    """Those of one of several loaders, where ``eval_metrics`` has a dict for each; else all."""
    return metrics.get(name, {}) if has_one_for_each_loader(metrics) else metrics


def has_one_for_each_loader(metrics):
    """Whether ``eval_metrics`` is ``{loader: {name: accumulator}}``."""
    return any(isinstance(part, dict) for part in metrics.values())


def all_of(metrics):
    """The accumulators of ``{name: accumulator}`` and of ``{loader: {name: accumulator}}``."""
    return [one for part in metrics.values() for one in (part.values() if isinstance(part, dict) else [part])]


def updated(metrics, pred, y):
    """``{name: accumulator}``, each of which has now seen a batch once."""
    for source in distinct_sources(metrics.values()):
        source.update(pred, y)
    return dict(metrics)


def distinct_sources(metrics):
    """What is to be updated: several scores may share one ``Confusion``, which must see a batch once."""
    sources = (metric.confusion if isinstance(metric, Score) else metric for metric in metrics)
    return {id(source): source for source in sources}.values()


def is_accumulator(value):
    """Ours, or anything with torchmetrics' ``compute`` and ``reset``."""
    if isinstance(value, (torch.Tensor, float, int)):
        return False
    return isinstance(value, Metric) or (hasattr(value, "compute") and hasattr(value, "reset"))
