"""Going on in the middle of an epoch with a loader that was another one when the run stopped: every sample comes once where
that can be, and else it is said what has changed."""

import itertools
import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from odd_loaders import Augmented, EvenFirst, GrowingBatches, Stateful
from tiny import stream
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

from template.data.loaders import TensorLoader, make_batches
from template.data.position import order_of
from template.data.shares import Share

CPU = torch.device("cpu")


def tensors(count):
    return TensorDataset(torch.arange(count), torch.arange(count) * 2)


DEALT = {  # loaders of samples that are their own index
    "map": lambda n, size, drop_last=False: DataLoader(Augmented(n), size, shuffle=True, drop_last=drop_last),
    "in order": lambda n, size, drop_last=False: DataLoader(Augmented(n), size, drop_last=drop_last),
    "own sampler": lambda n, size, drop_last=False: DataLoader(
        Augmented(n), size, sampler=EvenFirst(n), drop_last=drop_last),
    "sliced": lambda n, size, drop_last=False: DataLoader(tensors(n), size, shuffle=True, drop_last=drop_last),
    "BatchSampler": lambda n, size, drop_last=False: DataLoader(
        tensors(n), batch_sampler=BatchSampler(RandomSampler(range(n)), size, drop_last)),
    "TensorLoader": lambda n, size, drop_last=False: TensorLoader(
        *tensors(n).tensors, batch_size=size, shuffle=True, drop_last=drop_last),
    "TensorLoader in order": lambda n, size, drop_last=False: TensorLoader(
        *tensors(n).tensors, batch_size=size, drop_last=drop_last),
}


def indices(batch):
    """Of the samples in a batch as ``stream`` gives it."""
    return batch[0] if isinstance(batch[0], list) else [batch[0]]


def dealt(samples, size, drop_last):
    """By hand: the next ``size`` ones, until there are none."""
    batches = [samples[start:start + size] for start in range(0, len(samples), size)]
    return [batch for batch in batches if len(batch) == size or not drop_last]


def whole_order(kind, count, epoch, seed):
    """In one batch as large as the data set."""
    (batch,) = stream(DEALT[kind](count, count), epoch, seed)
    return indices(batch)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(DEALT)), st.integers(1, 40),
       st.lists(st.tuples(st.integers(1, 12), st.integers(0, 4)), min_size=2, max_size=4), st.booleans(),
       st.integers(1, 9), st.integers(0, 2**40))
def test_with_other_batch_sizes_the_rest_of_the_epoch_is_dealt_and_every_sample_comes_once(
        kind, count, legs, drop_last, epoch, seed):
    """One epoch in several legs: each has another batch size and does some batches."""
    order, done, start, position, is_over = whole_order(kind, count, epoch, seed), 0, 0, None, False
    for size, wanted in legs:
        assume(not drop_last or size <= count)
        batches = make_batches(DEALT[kind](count, size, drop_last), seed, CPU)
        start, notes = batches.go_on(position, epoch, start)
        got = [indices(batch) for batch in stream(batches, epoch, start=start)]
        assert got == ([] if is_over else dealt(order[done:], size, drop_last))
        assert start + len(got) == len(batches), "progress ends where an epoch ends"
        changed = position is not None and size != position["order"]["batch_size"]
        assert bool(notes) == (changed and not is_over and done > 0)
        taken = got[:wanted]
        done, start, is_over = done + sum(map(len, taken)), start + len(taken), is_over or len(taken) == len(got)
        position = batches.position(epoch, start)
        is_over = is_over and start > 0
        assert stream(batches, epoch + 1) == stream(DEALT[kind](count, size, drop_last), epoch + 1, seed)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(list(DEALT)), st.integers(1, 50), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3),
       st.integers(1, 3), st.integers(0, 3), st.integers(0, 4))
def test_so_it_is_among_any_number_of_processes_before_and_after(kind, count, size, then, ranks, ranks_then, rounds, more):
    def given_to(rank, number, size, position, start):
        batches = make_batches(DEALT[kind](count, size), 3, CPU, share=Share(rank, number))
        start, _ = batches.go_on(position, 2, start)
        got = []
        for batch in batches.epoch(2, start):
            batch, is_spare = batch if hasattr(batch, "is_spare") else (batch, False)
            got.append([] if is_spare else indices([part.tolist() for part in batch[:1]]))
        return batches, start, got

    order, done, start, position = whole_order(kind, count, 2, 3), [], 0, None
    for number, batch_size, wanted in ((ranks, size, rounds), (ranks_then, then, more), (1, 7, 99)):
        all_ranks = [given_to(rank, number, batch_size, position, start) for rank in range(number)]
        assert len({(begun, len(got)) for _, begun, got in all_ranks}) == 1, "equal numbers of batches"
        batches, start, _ = all_ranks[0]
        assert all(rank.position(2, start + number) == batches.position(2, start + number) for rank, _, _ in all_ranks)
        taken = list(zip(*(got[:wanted] for _, _, got in all_ranks)))
        done += [index for parts in taken for index in itertools.chain(*parts)]
        start += len(taken) * number
        position = batches.position(2, start)
    assert done == order, "one, two or three processes see what one would, in its order"


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.integers(1, 30), st.integers(1, 30), *[st.integers(1, 9)] * 4, st.integers(0, 6), st.integers(0, 6))
def test_a_dict_of_loaders_goes_on_with_each_of_them_until_the_longest_is_through(
        long, short, size_long, size_short, then_long, then_short, steps, more):
    def joint(size_long, size_short):
        return make_batches({"a": DEALT["map"](long, size_long), "b": DEALT["sliced"](short, size_short)}, 3, CPU)

    first = joint(size_long, size_short)
    before = stream(first, 2)[:steps]
    then = joint(then_long, then_short)
    start, _ = then.go_on(first.position(2, len(before)), 2, len(before))
    after = stream(then, 2, start=start)
    assert start + len(after) == len(then)
    seen = {name: [indices(batch[name]) for batch in before + after] for name in "ab"}
    is_over = len(before) == len(first) > 0
    rounds = {}
    for name, count, size_then in (("a", long, then_long), ("b", short, then_short)):
        flat = list(itertools.chain(*seen[name]))
        rounds[name] = [flat[begin:begin + count] for begin in range(0, len(flat), count)]
        assert all(sorted(part) == list(range(count)) for part in rounds[name] if len(part) == count), name
        assert all(len(set(part)) == len(part) for part in rounds[name]), "each sample once in each round"
        assert not after or {len(batch) for batch in seen[name][len(before):]} <= {size_then, *range(1, size_then)}
    whole = {"a": len(rounds["a"][0]) == long, "b": len(rounds["b"][0]) == short}
    assert is_over or all(whole.values()), "every loader is read to its end once"
    assert not (is_over and after)
    assert stream(then, 3) == stream(joint(then_long, then_short), 3)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 9), st.integers(1, 3), st.integers(1, 3))
def test_a_dict_of_the_same_loaders_goes_on_as_if_it_had_not_stopped(long, short, steps, ranks, ranks_then):
    def joint(ranks):
        loaders = {"a": DEALT["map"](long, 4), "b": DEALT["sliced"](short, 3)}
        return [make_batches(loaders, 3, CPU, share=Share(rank, ranks)) for rank in range(ranks)]

    whole = stream(joint(1)[0], 2)
    for number in (1, 2):  # stopped twice at one place: what a checkpoint says of it stays the same
        (first,) = joint(1)
        start, notes = first.go_on(first.position(2, min(steps, len(whole))), 2, min(steps, len(whole)))
        assert notes == [] and stream(first, 2, start=start) == whole[steps:], number
        assert first.position(2, start) == joint(1)[0].position(2, start)
    several = joint(ranks)
    done = [index for step in list(zip(*(batches.epoch(2) for batches in several)))[:steps]
            for batch in step for index in taken_from(batch, "a")]
    position, start = several[0].position(2, min(steps, len(several[0])) * ranks), min(steps, len(several[0])) * ranks
    then = joint(ranks_then)
    starts = {batches.go_on(position, 2, start)[0] for batches in then}
    assert len(starts) == 1
    done += [index for step in zip(*(batches.epoch(2, starts.copy().pop()) for batches in then))
             for batch in step for index in taken_from(batch, "a")]
    assert done[:long] == whole_order("map", long, 2, 3)


def taken_from(batch, name):
    batch, is_spare = batch if hasattr(batch, "is_spare") else (batch, False)
    return [] if is_spare else batch[name][0].tolist()


# --- what has changed is said -----------------------------------------------------------------------------------------


class Iterated(IterableDataset):
    def __init__(self, count=40):
        self.count = count

    def __iter__(self):
        return iter(range(self.count))


class Buckets(BatchSampler):
    """A sampler of batches of one's own."""


def buckets(size):
    return DataLoader(tensors(40), batch_sampler=Buckets(RandomSampler(range(40)), size, False))


def of_tensors(count=40, size=8, **options):
    return DataLoader(tensors(count), size, **{"shuffle": True, **options})


OTHERWISE = "so samples may come twice in this epoch or not at all"


@pytest.mark.parametrize(("before", "after", "goes_on_at", "note"), [
    (of_tensors(), of_tensors(size=5), 3,
     "batch_size 8 -> 5: the 24 samples that are left of the epoch come in batches of 5, each once"),
    (of_tensors(), of_tensors(size=64), 0, "batch_size 8 -> 64: the 24 samples that are left .* batches of 64, each once"),
    (of_tensors(), of_tensors(size=None), 16, "batch_size 8 -> None; .*batch_sampler BatchSampler -> None: the 24 samples"),
    (of_tensors(), of_tensors(size=5, drop_last=True), 4, "batch_size 8 -> 5; drop_last False -> True: the 24 samples"),
    (of_tensors(), of_tensors(48), 2,
     f"length of the data set 40 -> 48; samples per epoch 40 -> 48: .* after the first 16 samples .*{OTHERWISE}"),
    (of_tensors(), of_tensors(10), 2, f"length of the data set 40 -> 10; .* after the first 10 samples .*{OTHERWISE}"),
    (of_tensors(), of_tensors(shuffle=False), 2,
     f"sampler RandomSampler -> SequentialSampler: .* after the first 16 samples of the order as it is now, {OTHERWISE}"),
    (of_tensors(), of_tensors(size=4, shuffle=False), 4,
     "sampler RandomSampler -> SequentialSampler; batch_size 8 -> 4: the"),
    (of_tensors(), DataLoader(tensors(40), 8, sampler=EvenFirst(40)), 2,
     "sampler RandomSampler -> EvenFirst: the epoch goes"),
    (of_tensors(), TensorLoader(torch.zeros(40), batch_size=4, shuffle=True), 4,
     f"train_loader DataLoader -> TensorLoader; .*batch_size 8 -> 4.* after the first 16 samples of the order .*{OTHERWISE}"
     ),
    (TensorLoader(torch.zeros(40), batch_size=8), TensorLoader(torch.zeros(40), batch_size=8, shuffle=True), 2,
     f"^shuffle False -> True: the epoch goes on after the first 16 samples .*{OTHERWISE}"),
    (of_tensors(), buckets(4), 4,
     f"batch_sampler BatchSampler -> Buckets.* after the first 4 batches of the loader .*{OTHERWISE}"),
    (buckets(8), buckets(4), 4,
     "^batch_size 8 -> 4; batches per epoch 5 -> 10: the epoch goes on after the first 4 batches"),
    (DataLoader(Iterated(), 8), DataLoader(Iterated(), 5), 3,
     "^batch_size 8 -> 5: the epoch goes on after the first 3 batches"),
    (DataLoader(Iterated(), 8), DataLoader(Iterated(), 8, num_workers=2), 2,
     "^num_workers 0 -> 2: the epoch goes on after"),
    ([0] * 9, [0] * 12, 2, "^batches per epoch 9 -> 12: the epoch goes on after the first 2 batches"),
    (DataLoader(tensors(21), batch_sampler=GrowingBatches(21)), DataLoader(tensors(36), batch_sampler=GrowingBatches(36)), 2,
     "length of the data set 21 -> 36; batches per epoch 6 -> 8: the epoch goes on after the first 2 batches"),
    (Stateful(11, 5), Stateful(7, 5), 2, "^batches per epoch 11 -> 7: the loader goes on as its own state says"),
    ({"a": of_tensors()}, of_tensors(), 2,
     "^train_loader a dict of loaders -> DataLoader: the epoch goes on at the same number"),
    (of_tensors(), {"a": of_tensors()}, 2,
     "^train_loader DataLoader -> a dict of loaders: the epoch goes on at the same number"),
    ({"a": of_tensors()}, {"a": of_tensors(), "b": of_tensors(10)}, 2,
     r"^loaders \['a'\] -> \['a', 'b'\]: a new one begins at"),
    ({"a": of_tensors(), "b": of_tensors(10)}, {"a": of_tensors(), "b": of_tensors(10, 5)}, 2, None),  # b had begun anew
    ({"a": of_tensors(), "b": of_tensors(20)}, {"a": of_tensors(), "b": of_tensors(20, 5)}, 2,
     "^b: batch_size 8 -> 5: the 4 samples that are left of the epoch come in batches of 5, each once"),
], ids=itertools.count())
def test_what_has_changed_is_told_with_what_it_means(before, after, goes_on_at, note):
    start = 2
    position = make_batches(before, 3, CPU).position(2, start)
    batches = make_batches(after, 3, CPU)
    at, notes = batches.go_on(position, 2, start)
    assert at == goes_on_at
    if note is None:
        assert notes == []
    else:
        assert len(notes) == 1 and re.search(note, notes[0]), notes


@pytest.mark.parametrize("make", [
    lambda: of_tensors(), lambda: DEALT["map"](23, 5), lambda: DEALT["TensorLoader"](23, 5), lambda: buckets(4),
    lambda: DataLoader(Iterated(), 8), lambda: [0] * 9, lambda: Stateful(), lambda: of_tensors(size=None),
    lambda: {"a": of_tensors(), "b": [0] * 3}, lambda: DataLoader(tensors(21), batch_sampler=GrowingBatches(21)),
])
def test_the_same_loader_goes_on_at_the_same_batch_and_nothing_is_told(make):
    for start in range(4):
        position = make_batches(make(), 3, CPU).position(2, start)
        assert make_batches(make(), 3, CPU).go_on(position, 2, start) == (start, [])
        assert make_batches(make(), 3, CPU).go_on(None, 2, start) == (start, []), "a file from before"


def test_between_two_epochs_nothing_is_told_whatever_changed():
    position = make_batches(of_tensors(), 3, CPU).position(2, 0)
    for loader in (of_tensors(48), of_tensors(size=5), [0] * 4, {"a": of_tensors()}):
        assert make_batches(loader, 3, CPU).go_on(position, 2, 0) == (0, [])


@pytest.mark.parametrize("after", [of_tensors(size=5), of_tensors(48), of_tensors(shuffle=False), [0] * 7],
                         ids=["batch size", "length", "order", "list"])
def test_an_epoch_that_was_read_to_its_end_stays_at_its_end(after):
    position = make_batches(of_tensors(), 3, CPU).position(2, 5)
    batches = make_batches(after, 3, CPU)
    assert batches.go_on(position, 2, 5) == (len(batches), []) and list(batches.epoch(2, len(batches))) == []


def test_a_data_set_that_grew_at_its_end_and_is_not_shuffled_still_gives_every_sample_once():
    position = make_batches(of_tensors(shuffle=False), 3, CPU).position(2, 3)
    batches = make_batches(of_tensors(60, 8, shuffle=False), 3, CPU)
    start, _ = batches.go_on(position, 2, 3)
    assert [index for batch in stream(batches, 2, start=start) for index in batch[0]] == list(range(24, 60))


def test_what_is_kept_of_a_loader_is_plain_data_without_anything_of_one_process():
    for loader in (of_tensors(), DEALT["TensorLoader"](40, 8), buckets(4), DataLoader(Iterated(), 8), [0], Stateful()):
        order = order_of(loader)
        assert all(value is None or type(value) in (int, str, bool) for value in order.values())
        one, two = (make_batches(loader, 3, CPU, share=Share(rank, 2)).position(2, 4) for rank in range(2))
        assert one == two and one["order"] == order
