"""What ``metric()`` gives on training batches, over an epoch: in the checkpoint, over the ranks, apart from the evaluation.

    totals = TrainTotals(own={}, make=function of nothing)       # run/train_metrics.py asks metric() and hands its values on
    totals.update({"acc": Confusion(3).update(pred, y).accuracy()}, num_samples)
    totals.compute(world)                                        # {"acc": 0.93}

Accumulators that ``metric()`` returns may be those of the evaluation, made once. What they saw of a training batch is taken
out of them at once, so that an evaluation in the middle of an epoch finds them empty.
"""

from ..data.nested import to_device
from ..parallel.ranks import ALONE
from .accumulators import Mean, Metric
from .epoch import EpochMetrics, is_accumulator, like, merge_states, state_of


class TrainTotals(EpochMetrics):
    """``EpochMetrics`` with a state, whose accumulators are its own.

    Args:
        own: ``{name: accumulator}`` that nobody else updates.
        make: function of nothing that gives values as ``metric()`` does. It is asked where a run goes on behind the last
            batch of an epoch: the checkpoint has the numbers, and not the objects that compute from them.
    """

    def __init__(self, own, make):
        super().__init__()
        self.own, self.make = own, make
        self.waiting = {}  # by name: states of accumulators that were not seen since they were loaded

    def update(self, values, num_samples):
        returned = [value for name, value in values.items() if is_accumulator(value) and self.own.get(name) is not value]
        super().update(values, num_samples)
        for value in returned:
            value.reset()  # behind all of them: several scores may share one Confusion

    def _add(self, name, value, weight, sums):
        if is_accumulator(value) and self.own.get(name) is not value:
            if not isinstance(value, Metric):
                raise TypeError(
                    f"metric() returned {name!r}, a {type(value).__name__} of your own, which belongs to the evaluation. "
                    f"Give the training another one: self.train_metrics = {{{name!r}: …}}.")
            if name not in self.totals:
                self.totals[name] = self._first(name, value)
            self.totals[name].merge(value)
            return
        if not is_accumulator(value) and name in self.waiting:
            self.totals[name] = self._first(name, Mean())
        super()._add(name, value, weight, sums)

    def _first(self, name, value):
        """An empty accumulator like ``value``, with what was loaded for it."""
        total = value.fresh()
        for state in self.waiting.pop(name, ()):
            total.merge(like(value, state))
        return total

    def fetch(self):
        """What waits on the device comes to the host, so that it does not grow with the length of an epoch."""
        for total in self.totals.values():
            if hasattr(total, "fetch"):
                total.fetch()

    def compute(self, world=ALONE):
        if world.any(bool(self.waiting)):
            made = self.make()
            for name, value in made.items():
                if name in self.waiting:
                    self.totals[name] = self._first(name, value if isinstance(value, Metric) else Mean())
            for value in filter(is_accumulator, made.values()):
                value.reset()  # it may be the evaluation's
            self.waiting = {}
            self.first_batch = {name: number for name, number in self.first_batch.items() if name in self.totals}
        return super().compute(world)

    def reset(self):
        super().reset()
        self.waiting = {}

    def state_dict(self, world=ALONE):
        """Of every rank, because what they have is only added up at the end of an epoch."""
        totals = self.waiting | {name: [state_of(total)] for name, total in self.totals.items()}
        return {"ranks": world.gather({"totals": totals, "first": dict(self.first_batch), "batches": self.num_batches})}

    def load_state_dict(self, state, world=ALONE):
        self.reset()
        ranks = state["ranks"]
        if len(ranks) == world.size:
            found = [ranks[world.rank]]
        else:  # the first one has all of it; when a name came first is then known for it alone
            found = ranks if world.rank == 0 else []
        self.num_batches = max(rank["batches"] for rank in ranks)
        for rank in found:
            for name, saved in rank["totals"].items():
                self.waiting.setdefault(name, []).extend(saved)
                self.first_batch[name] = min(self.first_batch.get(name, rank["first"][name]), rank["first"][name])
        for name in [name for name in self.waiting if name in self.own]:
            self._load_own(name, self.waiting.pop(name))

    def _load_own(self, name, states):
        total = self.totals[name] = self.own[name]
        if isinstance(total, Metric):
            first, *others = [like(total, state) for state in states]
            for other in others:
                first.merge(other)
            total.load_state_dict(first.state_dict())
            return
        parts = total.items(keep_base=True) if hasattr(total, "items") else [(None, total)]
        for key, part in parts:  # torchmetrics' objects, or those of its MetricCollection
            first, *others = [state if key is None else state[key] for state in states]
            part.reset()
            for state_name, value in to_device(first, part.device).items():
                setattr(part, state_name, value)
            part._update_count = 1  # it warns of a compute() before any update()
            if others:
                device = part.device
                merge_states(part, others).to(device)
