"""Which batches of a loader are whose: together the ranks see what one process sees, for any number of them."""

import random
import re
from itertools import zip_longest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_loaders import Augmented, EvenFirst, GrowingBatches, Stateful, mixing
from tiny import CPU, plain, stream, tiny_data
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

from template.data.lengths import notes_on_last_round
from template.data.loaders import TensorLoader, make_batches
from template.data.shares import Share, Uneven, divided_lengths

# --- the rule, on lists of indices ------------------------------------------------------------------------------------

KINDS = {"lists": list, "ranges": lambda indices: indices, "tensors": lambda indices: torch.tensor(list(indices))}


def batches_of(lengths, kind="ranges"):
    """Consecutive indices in batches of these lengths."""
    ends = [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    return [KINDS[kind](range(*pair)) for pair in zip(ends, ends[1:])]


def dealt(batches, size, first=0, **options):
    """``[[(number, [index, …], mark), …] of rank 0, …]``."""
    shares = [Share(rank, size, **options).of(batches[first:], first) for rank in range(size)]
    return [[(number, [int(index) for index in indices], mark) for number, indices, mark in share] for share in shares]


def counted(entry):
    """The indices of an entry that count."""
    return [] if entry is None or entry[2] else entry[1]


def indices_of(batches):
    return [int(index) for batch in batches for index in batch]


lengths = st.lists(st.integers(1, 6), min_size=1, max_size=14)
sizes = st.integers(1, 5)
kinds = st.sampled_from(sorted(KINDS))


@settings(deadline=None, max_examples=150)
@given(lengths, sizes, kinds, st.integers(0, 13))
def test_a_round_of_all_ranks_is_a_batch_of_one_process_that_is_as_many_times_as_large(lengths, size, kind, first):
    batches = batches_of(lengths, kind)
    ranks = dealt(batches, size, first)
    rounds = [[index for entry in entries for index in counted(entry)] for entries in zip(*ranks)]
    assert rounds == [indices_of(batches[start:start + size]) for start in range(first, len(batches), size)]
    seen = indices_of(batches[first:])
    assert sorted(index for entries in ranks for entry in entries for index in counted(entry)) == seen
    assert {len(entries) for entries in ranks} == {Share(0, size).rounds(len(batches[first:]))}, "equal numbers of rounds"


@settings(deadline=None, max_examples=150)
@given(lengths, st.integers(2, 5), kinds)
def test_the_samples_of_a_last_round_are_divided_evenly_and_who_gets_none_takes_a_spare(lengths, size, kind):
    batches = batches_of(lengths, kind)
    for number, entries in enumerate(zip(*dealt(batches, size))):
        part = batches[number * size:(number + 1) * size]
        counts, before = [len(counted(entry)) for entry in entries], [len(batch) for batch in part]
        assert [entry[0] for entry in entries] == [number * size + rank for rank in range(size)]
        if len(part) == size and (before[-1] > 1 or max(before) == 1):
            assert counts == before, "a round in which each rank has a batch is left as it is"
        else:
            some = [count for count in counts if count]
            assert max(some) - min(some) <= 1 and counts == sorted(counts, reverse=True)
            if max(before) > 1:
                assert min(some) > 1, "no rank gets one sample where two or none would do"
                assert len(some) == size or max(some) <= 3, "and no rank gets none where each could have two"
            else:
                assert max(some) == 1, "batches of one stay batches of one"
        for (_, indices, mark), count in zip(entries, counts):
            assert mark is (None if len(set(counts)) == 1 else count == 0)
            assert count or set(indices) <= set(indices_of(part)), "a spare is of samples of the round"
            assert count or len(indices) == min(2, counts[0]), "and as fit for BatchNorm as what the first rank gets"


@settings(deadline=None, max_examples=150)
@given(lengths, st.integers(2, 5), kinds)
def test_what_a_batch_sampler_of_somebody_s_own_put_together_stays_together(lengths, size, kind):
    batches = batches_of(lengths, kind)
    shares = [Share(rank, size).of(batches, is_dealt=False) for rank in range(size)]
    in_turn = [entry for entries in zip(*shares) for entry in entries if not entry[2]]
    assert [indices_of([indices]) for _, indices, _ in in_turn] == [indices_of([batch]) for batch in batches]


@pytest.mark.parametrize("count, size, dealt_out", [
    (1, 3, [1, 0, 0]), (2, 2, [2, 0]), (3, 2, [3, 0]), (3, 3, [3, 0, 0]), (4, 3, [2, 2, 0]), (5, 3, [3, 2, 0]),
    (7, 3, [3, 2, 2]), (9, 8, [3, 2, 2, 2, 0, 0, 0, 0])])
def test_so_many_samples_are_divided_like_this(count, size, dealt_out):
    assert divided_lengths(count, size) == dealt_out


@settings(deadline=None, max_examples=150)
@given(lengths, sizes, sizes, kinds, st.integers(0, 14))
def test_going_on_with_another_number_of_ranks_covers_exactly_the_rest(lengths, before, after, kind, rounds):
    batches = batches_of(lengths, kind)
    done = min(rounds * before, len(batches))
    first = [entry for entries in dealt(batches, before) for entry in entries[:rounds]]
    rest = [entry for entries in dealt(batches, after, done) for entry in entries]
    indices = sorted(index for entry in first + rest for index in counted(entry))
    assert indices == indices_of(batches)


@settings(deadline=None, max_examples=150)
@given(lengths, sizes, kinds, st.booleans())
def test_an_evaluation_gives_every_batch_whole_and_once(lengths, size, kind, with_spares):
    batches = batches_of(lengths, kind)
    ranks = dealt(batches, size, divides=False, with_spares=with_spares)
    in_turn = [entry for entries in zip_longest(*ranks) for entry in entries if counted(entry)]
    assert [counted(entry) for entry in in_turn] == [indices_of([batch]) for batch in batches]
    assert [entry[0] for entry in in_turn] == list(range(len(batches)))
    spares = [entry for entries in ranks for entry in entries if entry[2]]
    assert len(spares) == (-len(batches) % size if with_spares else 0)
    assert all(len(indices) <= 2 for _, indices, _ in spares)


def test_single_samples_that_are_no_lists_are_dealt_out_one_by_one():
    """``batch_size=None``: what the sampler gives is one index."""
    ranks = [Share(rank, 2).of([7, 8, 9]) for rank in range(2)]
    assert ranks == [[(0, 7, False), (2, 9, False)], [(1, 8, False), (3, 9, True)]], "nobody knows how much each holds"


def test_one_process_gets_all_as_it_is():
    batches = [[0, 1], [2]]
    assert Share().of(batches, 4) == [(4, [0, 1], None), (5, [2], None)] and Share().rounds(3) == 3


@pytest.mark.parametrize("count, batch_size, size, note", [
    (10, 4, 2, r"has 2 samples for 2 ranks, and 1 of them computes what does not count\. drop_last=True .* of 2 samples"),
    (9, 4, 2, r"has 1 sample for 2 ranks, and 1 .* single sample\. drop_last=True .* of 1 sample, in every epoch"),
    (19, 4, 4, r"has 3 samples for 4 ranks, and 3 of them compute what"),
    (11, 4, 2, r"has 3 samples for 2 ranks, and 1 of them"),
    (12, 4, 2, None), (13, 4, 2, None), (16, 4, 2, None), (10, 4, 1, None), (7, 1, 2, None)])
def test_it_is_said_what_ranks_without_a_sample_do_and_what_drop_last_would_change(count, batch_size, size, note):
    for loader in (TensorLoader(torch.zeros(count), batch_size=batch_size), DataLoader(range(count), batch_size)):
        told = notes_on_last_round(loader, size)
        assert len(told) == (note is not None) and (note is None or re.search(note, told[0]))
        assert notes_on_last_round(DataLoader(range(count), batch_size, drop_last=True), size) == []
    assert notes_on_last_round([1, 2], size) == notes_on_last_round({"a": loader}, size) == []


# --- every kind of loader ---------------------------------------------------------------------------------------------


def shares_of(loader, size, epoch=1, start=0, seed=3, **options):
    """For each rank its stream: ``[(batch as nested lists, mark), …]``."""
    streams = []
    for rank in range(size):
        batches = make_batches(loader() if callable(loader) else loader, seed, CPU, share=Share(rank, size, **options))
        parts = [part if type(part) is Uneven else Uneven(part, None) for part in batches.epoch(epoch, start)]
        streams.append([(plain(batch), mark) for batch, mark in parts])
    assert not options.get("with_spares", True) or len({len(entries) for entries in streams}) == 1
    return streams


def samples_in_order(streams):
    """Of all ranks together what counts, round by round, rank by rank; a sample is a tuple."""
    return [sample for entries in zip_longest(*streams) for entry in entries if entry is not None and not entry[1]
            for sample in zip(*entry[0])]


def batches_in_order(streams):
    return [entry[0] for entries in zip_longest(*streams) for entry in entries if entry is not None and not entry[1]]


class Iterated(IterableDataset):
    def __iter__(self):
        order = torch.randperm(23).tolist()  # of the global generator, which is seeded per epoch
        return iter([(index, torch.tensor([index])) for index in order])


LOADERS = {
    "in order": lambda: DataLoader(TensorDataset(*tiny_data(23)), 4),
    "shuffled": lambda: DataLoader(TensorDataset(*tiny_data(23)), 4, shuffle=True),
    "without the last": lambda: DataLoader(TensorDataset(*tiny_data(23)), 4, shuffle=True, drop_last=True),
    "sample by sample": lambda: DataLoader(list(zip(*tiny_data(23))), 4, shuffle=True),
    "in memory": lambda: TensorLoader(*tiny_data(23), batch_size=4, shuffle=True),
    "in memory, in order": lambda: TensorLoader(*tiny_data(23), batch_size=4),
    "own sampler": lambda: DataLoader(TensorDataset(*tiny_data(23)), 4, sampler=EvenFirst(23)),
    "own sampler with a generator": lambda: DataLoader(
        list(zip(*tiny_data(23))), 4, sampler=EvenFirst(23, torch.Generator().manual_seed(8))),
    "own batch sampler": lambda: DataLoader(list(zip(*tiny_data(23))), batch_sampler=GrowingBatches(23)),
    "own batch sampler, sliced": lambda: DataLoader(TensorDataset(*tiny_data(23)), batch_sampler=GrowingBatches(23)),
    "batch sampler of torch": lambda: DataLoader(
        list(zip(*tiny_data(23))), batch_sampler=BatchSampler(RandomSampler(range(23)), 5, drop_last=False)),
}


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_together_the_ranks_see_the_samples_of_one_process_in_its_order(loader, size):
    whole = samples_in_order([[(batch, None) for batch in stream(loader(), 1)]])
    assert len(whole) >= 20
    assert samples_in_order(shares_of(loader, size)) == whole
    start = size
    rest = samples_in_order([[(batch, None) for batch in stream(loader(), 1, start=start)]])
    assert samples_in_order(shares_of(loader, size, start=start)) == rest
    assert samples_in_order(shares_of(loader, size, start=1)) == \
        samples_in_order([[(batch, None) for batch in stream(loader(), 1, start=1)]]), "as another number of ranks left it"


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_an_evaluation_gives_the_ranks_the_batches_of_one_process(loader, size):
    whole = stream(loader(), 0)
    assert batches_in_order(shares_of(loader, size, 0, divides=False, with_spares=False)) == whole
    assert batches_in_order(shares_of(loader, size, 0, divides=False)) == whole


@pytest.mark.parametrize("size", [2, 3])
def test_loaders_that_are_iterated_are_read_by_all_ranks_and_dealt_out(size):
    batches = [list(zip(range(start, start + 3), range(3))) for start in range(0, 21, 3)]
    for loader in (lambda: batches, lambda: DataLoader(Iterated(), 4)):
        whole = stream(loader(), 1)
        streams = shares_of_endless(loader, size)
        assert batches_in_order(streams) == whole
        assert len({len(entries) for entries in streams}) == 1
        assert [[mark for _, mark in entries] for entries in streams] == \
            [[rank + first >= len(whole) for first in range(0, len(whole), size)] for rank in range(size)]
        assert batches_in_order(shares_of_endless(loader, size, start=size)) == whole[size:]


def shares_of_endless(loader, size, start=0):
    """Of loaders that may have no length."""
    streams = []
    for rank in range(size):
        parts = list(make_batches(loader(), 3, CPU, share=Share(rank, size)).epoch(1, start))
        streams.append([(plain(part.batch), part.is_spare) for part in parts])
    return streams


def test_a_loader_with_state_goes_on_where_other_ranks_left_it():
    whole = plain(Stateful().batches)
    ranks = [make_batches(Stateful(), 3, CPU, share=Share(rank, 2)) for rank in range(2)]
    reading = [batches.epoch(1) for batches in ranks]
    begun = [plain(next(batches).batch) for _ in range(2) for batches in reading]
    assert begun == whole[:4] and all(batches.is_at(4) for batches in ranks)
    saved = ranks[0].state_dict()
    rest = []
    for rank in range(3):
        loader = Stateful()
        batches = make_batches(loader, 3, CPU, share=Share(rank, 3))
        batches.load_state_dict(saved, 4)
        rest.append([(plain(part.batch), part.is_spare) for part in batches.epoch(1, 4)])
        assert loader.read == list(range(4, 11)), "what was trained on is not read again"
    assert batches_in_order(rest) == whole[4:] and [entries[-1][1] for entries in rest] == [False, True, True]


def test_loaders_in_a_dict_are_shared_out_together():
    def loaders():
        return {"long": DataLoader(TensorDataset(*tiny_data(24)), 2, shuffle=True),
                "short": TensorLoader(*tiny_data(16, seed=1), batch_size=4, shuffle=True)}

    whole = stream(loaders(), 1)
    for size in (2, 4):  # both loaders come out even
        assert batches_in_order(shares_of(loaders, size)) == whole
        assert batches_in_order(shares_of(loaders, size, start=4)) == whole[4:]


@pytest.mark.parametrize("short", [8, 7, 19], ids=["divided", "one sample left", "as many rounds, one sample left"])
@pytest.mark.parametrize("size", [2, 3])
def test_in_a_dict_every_sample_of_the_longer_loader_counts_once_where_nothing_comes_out_even(size, short):
    def loaders():
        return {"long": DataLoader(TensorDataset(*tiny_data(23)), 3, shuffle=True),
                "short": TensorLoader(*tiny_data(short, seed=1), batch_size=3, shuffle=True)}

    streams = shares_of(loaders, size)
    long = sorted(sample for entries in streams for batch, mark in entries if not mark for sample in zip(*batch["long"]))
    assert long == sorted(zip(*plain(tiny_data(23))))


@pytest.mark.slow
def test_workers_read_each_rank_its_share():
    def loader():
        return DataLoader(Augmented(), 4, shuffle=True, collate_fn=mixing, num_workers=2)

    alone = stream(DataLoader(Augmented(), 4, shuffle=True, collate_fn=mixing), 1)
    assert batches_in_order(shares_of(loader, 2, divides=False)) == alone


def leaving_out(samples):
    """A collate function of somebody's own: samples that could not be read are None."""
    return torch.utils.data.default_collate([sample for sample in samples if sample is not None])


MARKS = {
    "collated by default": (lambda: DataLoader(list(zip(*tiny_data(16))), 4), None),
    "sliced": (lambda: DataLoader(TensorDataset(*tiny_data(16)), 4), None),
    "in memory": (lambda: TensorLoader(*tiny_data(16), batch_size=4), None),
    "in memory, transformed": (lambda: TensorLoader(*tiny_data(16), batch_size=4, transform=noisy), False),
    "a collate function": (lambda: DataLoader(list(zip(*tiny_data(16))), 4, collate_fn=leaving_out), False),
    "ready batches": (lambda: DataLoader([tiny_data(4), tiny_data(1), tiny_data(4), tiny_data(2)], batch_size=None), False),
    "a list": (lambda: [tiny_data(4), tiny_data(1), tiny_data(4), tiny_data(2)], False),
}


@pytest.mark.parametrize("loader, mark", MARKS.values(), ids=MARKS)
def test_batches_count_as_equally_long_only_where_no_code_can_have_changed_their_length(loader, mark):
    assert [[mark for _, mark in entries] for entries in shares_of(loader, 2)] == [[mark, mark]] * 2


# --- randomness of the data's code ------------------------------------------------------------------------------------


def noisy(x, y):
    return x + torch.randn_like(x) * random.random() + float(np.random.rand()), y


def test_the_augmentation_of_a_batch_depends_on_its_number_and_not_on_who_reads_it():
    loaders = {
        "in memory": lambda: TensorLoader(*tiny_data(24), batch_size=4, shuffle=True, transform=noisy),
        "samples": lambda: DataLoader(Augmented(24), 4, shuffle=True, collate_fn=mixing),
    }
    for loader in loaders.values():
        whole = stream(loader(), 2)
        for size in (2, 3):
            assert batches_in_order(shares_of(loader, size, 2)) == whole
            assert batches_in_order(shares_of(loader, size, 2, start=size)) == whole[size:]
    assert stream(loader(), 1) != whole


def test_ranks_that_divide_a_last_round_augment_their_parts_each_in_its_own_way():
    batch = torch.zeros(8, 2), torch.zeros(8)
    streams = shares_of(lambda: TensorLoader(*batch, batch_size=8, transform=noisy), 2)
    (one, _), (other, _) = streams[0][0], streams[1][0]
    assert len(one[0]) == len(other[0]) == 4 and one[0] != other[0]


def test_the_first_batch_to_look_at_is_the_same_on_all_ranks():
    for loader in (*LOADERS.values(), lambda: Stateful().batches):
        firsts = [plain(make_batches(loader(), 3, CPU, share=Share(rank, 3)).first()) for rank in range(3)]
        assert firsts[0] == firsts[1] == firsts[2]
