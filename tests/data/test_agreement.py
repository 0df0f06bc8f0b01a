"""What ranks compare before they read: the same data passes, whatever is different is named with the rank that has it."""

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import Thread, in_threads
from tiny import CPU, tiny_data
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
)

from template.data.agreement import Divided, _alike, facts_of, first_batch, order_of_first, require_same
from template.data.in_memory import TensorLoader
from template.data.lengths import batch_sizes
from template.data.loaders import make_batches
from template.data.shares import Share


def compared(*loaders, of=facts_of):
    """What each rank raises, or None."""
    facts = [of(loader) for loader in loaders]  # before the threads: they share the generators
    return in_threads(len(facts), lambda world: require_same(world.gather, "train_loader", facts[world.rank]))


def beginning(loader):
    lists = list(loader.batch_sampler)
    return facts_of(loader) | order_of_first(lists, loader.dataset)


class Files(Dataset):
    """What it is made of stands in its attributes; nobody may read it."""

    def __init__(self, files, **columns):
        self.files, self.transform, self.cache = files, str.upper, {}
        vars(self).update(columns)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        raise AssertionError("A sample was read")


class Table:
    """As pandas has it."""

    def __init__(self, index):
        self.index, self.iloc = np.array(index), None

    def __len__(self):
        return len(self.index)


NAMES = [f"{number}.png" for number in range(40)]
x, y = tiny_data(40)
order = random.Random(0).sample(range(40), 40)
shuffled = [NAMES[place] for place in order]
PATHS = [list(map(Path, names)) for names in (NAMES, shuffled)]
SPLITS = [Subset(Files(NAMES), range(8)), Subset(Files(NAMES), range(8, 16))]


def load(data, batch_size=4, **options):
    return lambda: DataLoader(data, batch_size, **options)


DIFFERENT = {  # loaders of two ranks, and what the message says of them
    "lengths": (load(range(32)), load(range(40)), "the length of its data set is 32"),
    "batch sizes": (load(range(40)), load(range(40), 5), "its number of batches is 10"),
    "drop_last": (load(range(40)), load(range(40), drop_last=True), "its drop_last is False"),
    "kinds": (load(range(40)), lambda: list(range(40)), "its type is 'DataLoader'"),
    "files": (load(Files(NAMES)), load(Files(shuffled)), "what files of its data set holds is"),
    "paths": (load(Files(PATHS[0])), load(Files(PATHS[1])), "what files of its data set holds is"),
    "pairs": (load(Files([(name, 0) for name in NAMES])), load(Files([(name, 1) for name in NAMES])), "what files of its"),
    "an array": (load(Files(NAMES, label=np.arange(40))), load(Files(NAMES, label=np.arange(40)[::-1])), "what label"),
    "a table": (load(Files(NAMES, df=Table(range(40)))), load(Files(NAMES, df=Table(order))), "what df of its"),
    "tensors": (load(TensorDataset(x, y)), load(TensorDataset(x, y.flip(0))), r"what tensors\[1\] of its data set holds is"),
    "in memory": (lambda: TensorLoader(x, batch_size=4), lambda: TensorLoader(x[order], batch_size=4), r"tensors\[0\]"),
    "a split": (load(SPLITS[0]), load(SPLITS[1]), "what its first batches hold is"),
    "a split of a split": (load(Subset(Subset(Files(NAMES), order), range(8))),
                           load(Subset(Subset(Files(NAMES), range(40)), range(8))), "of the data set in its data set holds"),
    "one of several": (load(ConcatDataset([Files(NAMES), Files(NAMES)])),
                       load(ConcatDataset([Files(NAMES), Files(shuffled)])), "number 1 of the data sets in its data set"),
    "an order": (load(Files(NAMES), sampler=order), load(Files(NAMES), sampler=range(40)), "what its first batches hold is"),
}


@pytest.mark.parametrize("one, other, told", DIFFERENT.values(), ids=DIFFERENT)
def test_a_rank_with_other_data_or_another_order_is_named_on_every_rank_with_what_to_do(one, other, told):
    of = beginning if isinstance(one(), DataLoader) and isinstance(other(), DataLoader) else facts_of
    assert compared(one(), one(), one(), of=of) == [None] * 3
    errors = compared(one(), one(), other(), of=of)
    assert [type(error) for error in errors] == [ValueError] * 3 and len({str(error) for error in errors}) == 1
    with pytest.raises(ValueError, match=f"train_loader differs: .*{told}.* on ranks 0, 1 and .* on rank 2. Build the same"):
        raise errors[0]
    assert "generator=torch.Generator().manual_seed(0)" in str(errors[0]) and "Divided(loader)" in str(errors[0])


def test_loaders_of_two_sizes_are_told_by_rank():
    assert "the length of its data set is 32 on rank 0 and 40 on rank 1." in str(
        compared(DataLoader(range(32), 4), DataLoader(range(40), 4))[0])


def test_what_ranks_may_have_of_their_own_is_no_difference():
    """Caches, generators, open files, settings; and the last digits of what each has computed."""
    ranks = [Files(NAMES, rank=rank, cache={rank: 1}, log=[rank] * 3, rng=random.Random(rank), scaled=x * (1 + 1e-6 * rank),
                   lengths=np.arange(3) + rank, opened=object(), nothing=None, kind=Files) for rank in range(2)]
    assert compared(*[DataLoader(dataset, 4) for dataset in ranks], of=beginning) == [None, None]


def test_a_nan_is_like_a_nan_and_one_is_like_no_other():
    assert _alike([float("nan"), 1], [float("nan"), 1]) and not _alike([1.0], [float("nan")]) and not _alike([1, 2], [1])
    assert not _alike([1.0], [1.01]) and not _alike(["a"], ["b"]) and not _alike([1], None)


BATCHES = [[x[:4], y[:4]], {"image": x[:4], "label": y[:4]}, [("a", 1), ("b", 2)], x.to(torch.bfloat16)[:4], "text", 3,
           np.arange(4), torch.eye(3).to_sparse(), torch.zeros(0, 3), {"nested": [[{"deep": y}]]}, [object()]]


def test_first_batches_of_any_nesting_are_compared():
    for batch in BATCHES:
        assert compared(batch, batch, of=first_batch) == [None, None]
    changed = [[x[:4], y[4:8]], {"image": x[4:8], "label": y[:4]}, [("a", 1), ("b", 3)],
               x.to(torch.bfloat16)[4:8], "other", 4, np.arange(1, 5),
               torch.eye(2).to_sparse(), torch.zeros(0, 4), {"nested": [[{"deep": y + 1}]]}]
    for one, other in zip(BATCHES, changed):
        assert "first batch" in str(compared(one, other, of=first_batch)[1])


# --- where it is asked -----------------------------------------------------------------------------------------------


def test_a_single_process_compares_nothing():
    asked = []
    share = Share(gather=lambda value: asked.append(value) or [value])
    for loader in (DataLoader(TensorDataset(x, y), 4, shuffle=True), DataLoader(list(zip(x, y)), 4), [[x, y]]):
        list(make_batches(loader, 3, CPU, share=share).epoch(1))
    assert asked == []


def test_a_loader_that_is_read_compares_once_an_epoch_and_a_shorter_one_that_starts_over_does_not():
    asked = []
    share = Share(0, 2, gather=lambda value: asked.append(value) or [value] * 2)
    for loader in (DataLoader(TensorDataset(x, y), 4, shuffle=True), DataLoader(list(zip(x, y)), 4), [[x, y]] * 4,
                   TensorLoader(x, y, batch_size=4)):
        batches = make_batches(loader, 3, CPU, share=share)
        for epoch in (1, 2):
            list(batches.epoch(epoch))
            assert len(asked) == epoch
        asked.clear()
    loaders = {"long": TensorLoader(x, batch_size=2), "short": TensorLoader(x[:4], batch_size=2)}
    joint = make_batches(loaders, 3, CPU, share=share)
    assert len(list(joint.epoch(1))) == 10
    assert [facts["which loader it is"] for facts in asked] == ["the loader['long']", "the loader['short']"]


@pytest.mark.parametrize("wrap", [lambda sampler, data: {"sampler": sampler, "batch_size": 4},
                                  lambda sampler, data: {"batch_sampler": torch.utils.data.BatchSampler(sampler, 4, False)}],
                         ids=["sampler", "batch_sampler"])
def test_a_distributed_sampler_is_refused_for_whatever_is_shared_and_taken_where_it_is_said_to_divide(wrap):
    data = TensorDataset(x, y)
    loader = DataLoader(data, **wrap(DistributedSampler(data, 2, 0), data))
    with pytest.raises(ValueError, match="test.loader. has a DistributedSampler.*a second time.*shuffle=True"):
        make_batches(loader, 3, CPU, share=Share(0, 2, name="test(loader)"))
    with pytest.raises(ValueError, match="loader.'a'. has a DistributedSampler"):
        make_batches({"a": loader}, 3, CPU, share=Share(0, 2))
    assert len(list(make_batches(loader, 3, CPU).epoch(1))) == 5, "one process reads what it is given"
    share = Share(0, 2, gather=lambda value: [value, value if isinstance(value, bool) else None])  # other data there
    assert len(list(make_batches(Divided(loader), 3, CPU, share=share).epoch(1))) == 5


# --- divided already ---------------------------------------------------------------------------------------------------


class Part(IterableDataset):
    """What belongs to one rank; each takes as many as it has."""

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


def rounds_of(samples_by_rank, with_spares=True, start=0, epoch=1):
    """For each rank ``[(samples of a batch, is_spare), …]``, read at the same time."""
    def read(world):
        share = Share(world.rank, world.size, with_spares=with_spares, gather=world.gather, name="train_loader")
        batches = make_batches(Divided(DataLoader(Part(samples_by_rank[world.rank]), 2)), 3, CPU, share=share)
        return [(batch.tolist(), is_spare) for batch, is_spare in batches.epoch(epoch, start)]

    return in_threads(len(samples_by_rank), read)


def test_each_rank_reads_its_own_and_goes_along_with_spares_until_all_are_through():
    parts = [[0, 1, 2, 3, 4], [10, 11], [20, 21, 22]]
    assert rounds_of(parts) == [
        [([0, 1], False), ([2, 3], False), ([4], False)],
        [([10, 11], False), ([10, 11], True), ([10, 11], True)],
        [([20, 21], False), ([22], False), ([22], True)]]
    assert rounds_of(parts, with_spares=False) == [
        [([0, 1], False), ([2, 3], False), ([4], False)], [([10, 11], False)], [([20, 21], False), ([22], False)]]
    assert rounds_of(parts[:1] + parts[2:], start=2) == [[([2, 3], False), ([4], False)], [([22], False), ([22], True)]]


@pytest.mark.parametrize("lengths, asked", [([3, 2], 1), ([2, 2], 2), ([1, 1], 3), ([9, 1], 1)],
                         ids=["true", "too short", "much too short", "too long"])
def test_lengths_save_the_question_before_each_batch_and_nothing_is_lost_where_they_are_not_true(lengths, asked):
    class Told(Part):
        def __len__(self):
            return 2 * lengths[self.samples[0] // 10]

    def read(world):
        questions = []
        share = Share(world.rank, 2, gather=lambda value: questions.append(value) or world.gather(value))
        batches = make_batches(Divided(DataLoader(Told(parts[world.rank]), 2)), 3, CPU, share=share)
        batches.agree()
        del questions[:]
        found = [(batch.tolist(), is_spare) for batch, is_spare in batches.epoch(1)]
        return found, len(questions), len(batches)

    parts = [[0, 1, 2, 3, 4], [10, 11]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of a length that is not true
        (one, questions, length), (other, *also) = in_threads(2, read)
    assert [entry for entry in one if not entry[1]] == [([0, 1], False), ([2, 3], False), ([4], False)]
    assert [entry for entry in other if not entry[1]] == [([10, 11], False)]
    assert len(one) == len(other) == max(3, *lengths) and also == [questions, length] and length == max(lengths)
    assert questions == asked + 1, "and whether the first batches are different ones"


def test_a_rank_that_gets_nothing_at_all_is_told_so(monkeypatch):
    monkeypatch.setattr(Thread, "patience", 1)  # the other one waits for it
    error = rounds_of([[0, 1], []])[1]
    assert type(error) is ValueError and "a batch in every epoch, and train_loader gave rank 1 none" in str(error)


def test_the_longest_part_is_the_length_that_all_plan_with():
    def length(world):
        share = Share(world.rank, world.size, gather=world.gather)
        batches = make_batches(Divided(DataLoader(range(4 * (world.rank + 1)), 2)), 3, CPU, share=share)
        batches.agree()
        return len(batches)

    assert in_threads(3, length) == [6, 6, 6]


def test_in_one_process_it_is_the_loader_itself():
    loader = DataLoader(TensorDataset(x, y), 4, sampler=RandomSampler(x))
    divided = Divided(loader)
    one, other = [[part.tolist() for part in batch] for batch in make_batches(divided, 3, CPU).epoch(1)], [
        [part.tolist() for part in batch] for batch in make_batches(loader, 3, CPU).epoch(1)]
    assert one == other and len(divided) == 10 and divided.dataset is loader.dataset and divided.batch_size == 4
    assert batch_sizes(divided, 2) == ({4, 40 % 4 or 4}, False)
    with pytest.raises(AttributeError):
        divided.nonsense  # noqa: B018


def test_one_of_several_loaders_cannot_be_divided():
    with pytest.raises(ValueError, match="dict of loaders, in which Divided.loader. cannot be used"):
        make_batches({"a": Divided([1]), "b": [2]}, 3, CPU, share=Share(0, 2, gather=lambda value: [value] * 2))
