"""The order of data is a function of (seed, epoch), the randomness of a batch of (seed, epoch, batch); nothing else."""

import multiprocessing
import os
import pickle
import random
import re
from collections import OrderedDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_loaders import SAMPLES, Augmented, EvenFirst, GrowingBatches, Stateful, mixing
from tiny import Tiny, plain, stream, tiny_data, weights
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
)

from template.data.copied_ahead import copied_ahead, one_ahead
from template.data.loaders import TensorLoader, make_batches
from template.data.nested import first_tensor, is_on, loader_length, pinned, to_device
from template.data.seeding import derive, put_back, state_of
from template.data.shares import Share
from template.hooks import Callback

CPU = torch.device("cpu")


class AugmentedAtOnce(Augmented):
    """The same through ``__getitems__``, as datasets with a fast path have it."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def loader_options():
    return {
        "in order": dict(batch_size=5),
        "shuffled": dict(batch_size=5, shuffle=True),
        "drop_last": dict(batch_size=5, shuffle=True, drop_last=True),
        "generator": dict(batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(99)),
        "own sampler": dict(batch_size=5, sampler=EvenFirst(SAMPLES)),
        "own sampler with generator": dict(batch_size=5, sampler=EvenFirst(SAMPLES, torch.Generator().manual_seed(7))),
        "weighted": dict(batch_size=5, sampler=WeightedRandomSampler(torch.ones(SAMPLES), 17)),
        "own batch_sampler": dict(batch_sampler=GrowingBatches(SAMPLES)),
        "batch_sampler of torch": dict(batch_sampler=BatchSampler(
            RandomSampler(range(SAMPLES), generator=torch.Generator()), 4, drop_last=False)),
        "no batching": dict(batch_size=None, shuffle=True),
    }


KINDS = list(loader_options())


def make_loader(kind="shuffled", dataset=None, **options):
    options = {**loader_options()[kind], **options}
    if kind != "no batching":
        options.setdefault("collate_fn", mixing)
    return DataLoader(Augmented() if dataset is None else dataset, **options)


def indices(batches):
    return [index for batch in batches for index in (batch[0] if isinstance(batch[0], list) else [batch[0]])]


# --- map-style DataLoader -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_is_a_function_of_seed_and_epoch_alone(kind):
    used = make_batches(make_loader(kind), 3, CPU)
    torch.manual_seed(0)
    first, second = stream(used, 1), stream(used, 2)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    assert stream(make_loader(kind), 2) == second    # a new process that starts with epoch 2
    assert stream(used, 1) == first                  # again, after others
    assert stream(make_loader(kind), 1) == first
    assert stream(make_loader(kind), 1, seed=4) != first
    assert first != second
    if kind != "in order":
        assert indices(first) != indices(second) != indices(stream(make_loader(kind), 2, seed=4))


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_comes_as_often_as_the_loader_itself_would_give_it(kind):
    batches = stream(make_loader(kind), 1)
    own = [plain(batch) for batch in make_loader(kind)]
    assert len(batches) == len(own) == len(make_batches(make_loader(kind), 3, CPU))
    assert [len(batch) for batch in batches] == [len(batch) for batch in own]
    if kind == "in order":
        assert indices(batches) == list(range(SAMPLES))
    elif kind == "drop_last":
        assert len(set(indices(batches))) == len(indices(batches)) == 20
    elif kind == "weighted":
        assert len(indices(batches)) == 17
    else:
        assert sorted(indices(batches)) == list(range(SAMPLES))


def test_all_randomness_of_samples_and_collate_function_differs_between_batches():
    numbers = [number for epoch in (1, 2) for batch in stream(make_loader(), epoch)
               for part in batch[1:4] for number in part]
    assert len(set(numbers)) == len(numbers) == 2 * 3 * SAMPLES


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [dict(num_workers=1), dict(num_workers=2, prefetch_factor=3)], ids=["1", "2"])
def test_the_stream_is_the_same_for_any_number_of_workers(kind, workers):
    expected = stream(make_loader(kind), 2)
    assert stream(make_loader(kind, **workers), 2) == expected


@pytest.mark.slow
def test_the_stream_is_the_same_for_workers_that_are_spawned():
    spawned = make_loader(num_workers=1, multiprocessing_context="spawn")
    assert stream(spawned, 2) == stream(make_loader(), 2)


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_the_stream_is_the_same_for_persistent_workers_over_epochs_breaks_and_resumed_ones(persistent):
    single = make_batches(make_loader(), 3, CPU)
    several = make_batches(make_loader(num_workers=2, persistent_workers=persistent), 3, CPU)
    assert stream(several, 1) == stream(single, 1)
    iterator = several.epoch(2)
    next(iterator)           # left in the middle
    assert stream(several, 2, start=2) == stream(single, 2, start=2)
    assert stream(several, 3) == stream(single, 3)
    assert stream(several, 1) == stream(single, 1)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(KINDS), st.integers(1, 30), st.integers(0, 2**63 - 1), st.integers(0, 23))
def test_from_batch_k_on_it_is_the_tail_of_the_stream_and_reads_none_of_the_skipped_samples(kind, epoch, seed, start):
    whole = stream(make_loader(kind), epoch, seed)
    dataset = Augmented()
    assert stream(make_loader(kind, dataset), epoch, seed, start) == whole[start:]
    assert dataset.read == indices(whole[start:])


def test_a_dataset_with_getitems_gives_the_same_stream():
    assert stream(make_loader(dataset=AugmentedAtOnce()), 1) == stream(make_loader(), 1)


@pytest.mark.parametrize("make", [
    lambda: make_loader("shuffled"),
    lambda: make_loader("generator", num_workers=1),
    lambda: make_loader("own sampler"),
    lambda: make_loader("no batching"),
    lambda: TensorLoader(torch.arange(23.0), batch_size=5, shuffle=True, transform=lambda x: x + torch.rand(())),
    lambda: [torch.arange(3.0), torch.arange(2.0)],
    lambda: DataLoader(Shuffling(), 4),
    lambda: {"a": make_loader("shuffled"), "b": [torch.zeros(1)] * 3},
], ids=["shuffled", "one worker", "own sampler", "no batching", "TensorLoader", "list", "IterableDataset", "dict"])
def test_iterating_leaves_the_global_generator_of_torch_alone(make):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    batches = make_batches(make(), 3, CPU)
    batches.first()
    drawn = []
    for _ in batches.epoch(1):
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append(torch.rand(()).item())  # a dropout mask of the training, say
        before = torch.get_rng_state()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert drawn == [torch.rand(()).item() for _ in drawn] and len(drawn) > 1


def test_a_generator_of_the_user_is_given_back_as_it_was():
    generator = torch.Generator().manual_seed(99)
    before = generator.get_state()
    stream(make_loader("shuffled", generator=generator), 1)
    stream(make_loader("own sampler", sampler=EvenFirst(SAMPLES, generator)), 1)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("options", [{}, dict(num_workers=2), dict(num_workers=2, persistent_workers=True)],
                         ids=["no workers", "workers", "persistent workers"])
def test_the_first_batch_is_that_of_an_epoch_0_and_where_there_are_workers_one_of_them_reads_it(options):
    dataset = Augmented()
    batches = make_batches(make_loader(dataset=dataset, **options), 3, CPU)
    first = plain(batches.first())
    assert dataset.read == ([] if options else first[0])
    assert first == stream(make_loader(), 0)[0]
    assert multiprocessing.active_children() == []  # which has ended
    assert stream(batches, 1) == stream(make_loader(), 1)


class Epochs:
    """A sampler that is told the epoch, as those for several processes are."""

    def __init__(self):
        self.epoch = None

    def __len__(self):
        return 4

    def __iter__(self):
        return iter([(self.epoch + i) % 4 for i in range(4)])

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_samplers_are_told_the_epoch():
    batches = make_batches(DataLoader(TensorDataset(torch.arange(4)), 2, sampler=Epochs()), 3, CPU)
    assert stream(batches, 2) == [[[2, 3]], [[0, 1]]] and stream(batches, 5) == [[[1, 2]], [[3, 0]]]


def test_the_samplers_of_a_loader_with_an_iteration_of_its_own_are_told_the_epoch_too():
    class Own(DataLoader):
        def __iter__(self):
            return (batch[0] for batch in super().__iter__())

    data = TensorDataset(torch.arange(4))
    for loader in (Own(data, 2, sampler=Epochs()), Own(data, batch_sampler=BatchSampler(Epochs(), 2, False))):
        assert stream(loader, 2) == [[2, 3], [0, 1]] and stream(loader, 5) == [[1, 2], [3, 0]]


class Opened(Dataset):
    """Needs ``worker_init_fn`` to open it in every worker."""

    file = None

    def __len__(self):
        return 4

    def __getitem__(self, index):
        assert get_worker_info().dataset is self
        return index, self.file


def open_file(worker_id):
    get_worker_info().dataset.file = 100 + worker_id


def test_worker_init_fn_finds_the_dataset_of_the_user():
    batches = stream(DataLoader(Opened(), 2, num_workers=2, worker_init_fn=open_file), 1)
    assert batches == [[[0, 1], [100, 100]], [[2, 3], [101, 101]]]


class Broken(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        torch.rand(3)
        raise KeyError("a broken sample")


def test_after_a_broken_sample_the_generator_of_torch_is_as_it_was():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with pytest.raises(KeyError, match="a broken sample"):
        stream(DataLoader(Broken(), 2), 1)
    assert torch.equal(torch.get_rng_state(), before)


# --- datasets with generators of their own ----------------------------------------------------------------------------


class Jitter:
    """A transform that keeps its generators to itself."""

    def __init__(self):
        self.rngs = {"numpy": np.random.default_rng(), "old numpy": np.random.RandomState()}
        self.random, self.torch = random.Random(), torch.Generator()

    def __call__(self, index):
        return (index, self.rngs["numpy"].normal(), self.rngs["old numpy"].normal(), self.random.gauss(0, 1),
                torch.randn((), generator=self.torch).item())


class Transformed(Dataset):
    def __init__(self):
        self.transform = Jitter()

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return self.transform(int(index))


def jittered(dataset=None, **options):
    return DataLoader(Transformed() if dataset is None else dataset, 5, shuffle=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", [lambda: None, lambda: Subset(Subset(Transformed(), range(SAMPLES)), range(SAMPLES))],
                         ids=["in .transform", "through Subset"])
def test_generators_of_a_dataset_give_one_stream_for_any_number_of_workers_and_restarts(dataset):
    used = make_batches(jittered(dataset()), 3, CPU)
    whole = {epoch: stream(used, epoch) for epoch in (1, 2)}
    assert stream(used, 1) == whole[1]
    assert stream(jittered(dataset()), 2, start=3) == whole[2][3:]  # a new process
    workers = make_batches(jittered(dataset(), num_workers=2, persistent_workers=True), 3, CPU)
    assert stream(workers, 1) == whole[1]
    assert stream(workers, 2, start=2) == whole[2][2:]
    assert stream(jittered(dataset(), num_workers=1), 2) == whole[2]
    numbers = [number for batches in whole.values() for batch in batches for part in batch[1:] for number in part]
    assert len(set(numbers)) == len(numbers) == 2 * 4 * SAMPLES  # every batch has draws of its own


def test_a_pickled_dataset_as_spawned_workers_get_it_seeds_its_own_generators_not_those_it_was_copied_with():
    batches = make_batches(jittered(), 3, CPU)
    whole = stream(batches, 2)
    pickled = pickle.loads(pickle.dumps(batches.dataset))
    tagged = [(derive(3, 2, number), indices) for number, indices in enumerate(batches._lists(2))]
    assert [plain(pickled[batch]) for batch in tagged] == whole


class Mixup:
    """A collate function with a generator of its own."""

    def __init__(self):
        self.rng = np.random.default_rng()

    def __call__(self, samples):
        return [*default_collate(samples), torch.tensor(self.rng.beta(1.0, 1.0))]


def test_generators_of_a_collate_function_give_one_stream_too():
    whole = stream(make_loader(collate_fn=Mixup()), 2)
    assert stream(make_loader(collate_fn=Mixup()), 2) == whole
    assert stream(make_loader(collate_fn=Mixup(), num_workers=2), 2, start=2) == whole[2:]


# --- what is iterated and replayed ----------------------------------------------------------------------------------


class Shuffling(IterableDataset):
    """Draws its order and its augmentation from the global generators; may be told the epoch."""

    def __init__(self):
        self.told = None

    def __iter__(self):
        order = torch.randperm(SAMPLES).tolist()
        for index in order:
            yield index, random.random(), np.random.rand(), torch.rand(()).item()

    def set_epoch(self, epoch):
        self.told = epoch


class Subclassed(DataLoader):
    def __iter__(self):
        for batch in super().__iter__():
            yield [*batch, torch.rand(())]


REPLAYED = {
    "IterableDataset": lambda: DataLoader(Shuffling(), 5),
    "IterableDataset, drop_last": lambda: DataLoader(Shuffling(), 5, drop_last=True),
    "IterableDataset in a worker": lambda: DataLoader(Shuffling(), 5, num_workers=1),
    "and with a generator": lambda: DataLoader(Shuffling(), 5, num_workers=1, generator=torch.Generator().manual_seed(99)),
    "a DataLoader's subclass": lambda: Subclassed(Augmented(), 5, shuffle=True),
    "the subclass with a generator": lambda: Subclassed(Augmented(), 5, shuffle=True,
                                                        generator=torch.Generator().manual_seed(99)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", REPLAYED)
def test_what_is_iterated_is_replayed_as_a_function_of_seed_and_epoch(kind):
    used = make_batches(REPLAYED[kind](), 3, CPU)
    first, second = stream(used, 1), stream(used, 2)
    torch.manual_seed(1)
    assert stream(REPLAYED[kind](), 2) == second
    assert stream(REPLAYED[kind](), 2, start=2) == second[2:]
    assert stream(used, 1) == first
    assert indices(first) != indices(second) != indices(stream(REPLAYED[kind](), 2, seed=4))
    if "drop_last" not in kind:
        assert sorted(indices(first)) == list(range(SAMPLES))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 99), max_size=8), st.integers(0, 9))
def test_a_list_of_batches_comes_as_it_is(numbers, start):
    loader = [torch.tensor([number]) for number in numbers]
    assert stream(loader, 1, start=start) == [[number] for number in numbers][start:]
    assert len(make_batches(loader, 3, CPU)) == len(numbers)


def test_an_iterable_that_starts_anew_each_time_may_draw_random_numbers():
    class Batches:
        def __iter__(self):
            return ([torch.rand(2), random.random()] for _ in range(4))

    first = stream(Batches(), 1)
    assert first == stream(Batches(), 1) != stream(Batches(), 2)
    assert stream(Batches(), 1, start=3) == first[3:]
    assert loader_length(make_batches(Batches(), 3, CPU)) is None


def test_an_iterable_dataset_or_loader_is_told_the_epoch():
    loader = DataLoader(Shuffling(), 5)
    stream(loader, 7)
    assert loader.dataset.told == 7

    class Told(list):
        def set_epoch(self, epoch):
            self.epoch = epoch

    loader = Told([torch.zeros(1)])
    stream(loader, 8)
    assert loader.epoch == 8


# --- iterables with a state of their own ------------------------------------------------------------------------------


class Joint(Tiny):
    """Sums the losses of a dict's batches."""

    def loss_per_batch(self, batch):
        parts = batch.values() if isinstance(batch, dict) else [batch]
        return sum(super(Joint, self).loss_per_batch(part)["tol_loss"] for part in parts)

    def count_samples(self, batch):
        """Those of the first loader: the batches of the others are smaller."""
        return super().count_samples(next(iter(batch.values())) if isinstance(batch, dict) else batch)


class StopAt(Callback):
    def __init__(self, update):
        self.update = update

    def on_after_step(self, model):
        if model.global_step == self.update:
            raise KeyboardInterrupt


def stateful_trainer(ckpt_dir, loader, **attributes):
    trainer = Joint(ckpt_dir=ckpt_dir, train_loader=loader, eval_loader=None, **attributes)
    trainer.check_init(use_tb=False)
    return trainer


def continued(make_loader, update, **attributes):
    """A run of two epochs, and one that was interrupted in ``update`` and continued by new objects."""
    whole = stateful_trainer("whole", make_loader(), **attributes)
    whole.fit(2)
    with pytest.raises(KeyboardInterrupt):
        stateful_trainer("cut", make_loader(), **attributes, save_per_steps=update, callbacks=[StopAt(update + 1)]).fit(2)
    again = stateful_trainer("cut", make_loader(), **attributes)
    again.load_state("auto")
    assert again.global_step == update
    again.fit(2)
    return whole, again


@pytest.mark.parametrize("accumulate_steps, update, read", [(1, 14, range(3, 11)), (4, 4, range(4, 11))])
def test_an_iterable_with_a_state_is_put_back_and_reads_none_of_the_skipped_batches(accumulate_steps, update, read):
    whole, again = continued(Stateful, update, accumulate_steps=accumulate_steps)
    assert again.train_loader.read == list(read)
    assert torch.equal(weights(again), weights(whole)) and again.global_step == whole.global_step


def test_an_iterable_with_a_state_is_put_back_also_when_the_seed_comes_from_the_file():
    """No seed was set: the new process draws another one, and takes that of the checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        stateful_trainer("cut", Stateful(), seed=None, save_per_steps=14, callbacks=[StopAt(15)]).fit(2)
    again = stateful_trainer("cut", Stateful(), seed=None)
    again.load_state("auto")
    again.fit(2)
    assert again.train_loader.read == list(range(3, 11)) and again.global_step == 22


def test_the_state_of_an_iterable_stands_in_the_checkpoint_also_of_those_in_a_dict():
    def loaders():
        return {"a": Stateful(11), "list": [tiny_data(5)] * 11, "b": Stateful(11, size=3)}

    assert make_batches(Stateful(), 3, CPU).state_dict() == {"loader": {"position": 0}}
    whole, again = continued(loaders, 14)
    saved = torch.load("cut/last.pth")["loader"]
    assert saved == {"a": {"loader": {"position": 11}}, "list": {}, "b": {"loader": {"position": 11}}}
    assert [again.train_loader[name].read for name in "ab"] == [list(range(3, 11))] * 2
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.parametrize("update", [11, 16, 19])
def test_a_shorter_iterable_of_a_dict_goes_on_with_the_same_batches(update):
    """At the end of an epoch, in the first and in the second round of the shorter one."""
    whole, again = continued(lambda: {"long": Stateful(11), "short": Stateful(7, size=3)}, update)
    assert torch.equal(weights(again), weights(whole))
    assert again.train_loader["short"].read == whole.train_loader["short"].read[update:]


def test_an_iterable_with_a_state_that_was_read_ahead_is_not_taken_for_exact():
    """The group is read before its first forward: when its second batch breaks, the first was not trained on yet."""
    whole = stateful_trainer("whole", Stateful(), accumulate_steps=2)
    whole.fit(1)
    cut = stateful_trainer("cut", Stateful(), accumulate_steps=2)
    cut.train_loader.broken = 5
    with pytest.raises(KeyError):
        cut.fit(1)
    assert os.path.exists("cut/crashed.pth")
    again = stateful_trainer("cut", Stateful(), accumulate_steps=2)
    assert again.load_state("auto") is None
    again.fit(1)
    assert torch.equal(weights(again), weights(whole))


def test_an_iterable_without_a_state_is_read_again_from_its_start():
    class Plain:
        def __init__(self):
            self.inner = Stateful()

        def __iter__(self):
            return iter(self.inner)

    whole, again = continued(Plain, 14)
    assert again.train_loader.inner.read == list(range(11))
    assert torch.equal(weights(again), weights(whole))


def test_a_state_that_an_iterable_refuses_leaves_it_where_it_was():
    class Refusing(Stateful):
        def load_state_dict(self, state):
            if state["position"] != 0:
                raise ValueError("of another data set")
            super().load_state_dict(state)

    stateful_trainer("run", Stateful()).fit(1)
    trainer = stateful_trainer("other", Refusing())
    with pytest.raises(ValueError, match="of another data set"):
        trainer.load_state("run/last.pth")
    trainer.fit(1)
    assert trainer.train_loader.read == list(range(11)) and trainer.global_step == 11


# --- what cannot be continued exactly is told -------------------------------------------------------------------------


class Iterated(IterableDataset):
    def __iter__(self):
        return iter(zip(*tiny_data(20)))


class Batches:
    def __iter__(self):
        return iter([tiny_data(5)])


class Private:
    """A sampler with generators that nobody can seed."""

    def __len__(self):
        return SAMPLES

    def __iter__(self):
        return iter(random.Random().sample(range(SAMPLES), SAMPLES))


class PrivateBatches(Private):
    def __iter__(self):
        yield from [torch.tensor(random.Random().sample(range(SAMPLES), 4)) for _ in range(5)]


data = TensorDataset(*tiny_data(SAMPLES))


@pytest.mark.parametrize("loader", [
    [tiny_data(5)], (tiny_data(5),), TensorLoader(*tiny_data(20), batch_size=5, shuffle=True), Stateful(),
    DataLoader(data, 5, shuffle=True), DataLoader(data, 5, sampler=RandomSampler(data, generator=torch.Generator())),
    DataLoader(data, 5, num_workers=2, persistent_workers=True), DataLoader(Iterated(), 5), DataLoader(data, None),
    *[make_loader(kind) for kind in KINDS], {"a": DataLoader(data, 5), "b": [tiny_data(5)]},
    DataLoader(TensorDataset(torch.arange(4)), 2, sampler=Epochs()), DataLoader(data, 5, in_order=False),
])
def test_of_a_loader_that_continues_exactly_nothing_is_told(loader):
    assert make_batches(loader, 3, CPU).notes() == []


@pytest.mark.parametrize("loader, note", [
    (Batches(), "reads Batches from its start again, .* This is exact if the same batches come again"),
    (DataLoader(Iterated(), 5, num_workers=2), "go on with num_workers=2: the order"),
    (DataLoader(data, 5, sampler=Private()), "gave two different orders for the same epoch, .* Let it draw from"),
    (DataLoader(data, batch_sampler=PrivateBatches()), "PrivateBatches gave two different orders"),
    (DataLoader(data, batch_sampler=BatchSampler(Private(), 4, False)), "Private gave two different orders"),
    (DataLoader(data, 5, num_workers=1, in_order=False), "in_order=False.*Set in_order=True"),
    ({"a": [tiny_data(5)], "b": DataLoader(data, 5, sampler=Private())}, "^b: Private gave two different orders"),
], ids=["iterable", "IterableDataset", "sampler", "batch_sampler", "sampler in a batch_sampler", "in_order", "dict"])
def test_what_a_loader_cannot_continue_exactly_is_told(loader, note):
    (told,) = make_batches(loader, 3, CPU).notes()
    assert re.search(note, told)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_webdataset_which_shuffles_by_itself_is_told_of_in_one_note_that_says_what_helps(num_workers):
    kind = type("WebDataset", (Iterated,), {"__module__": "webdataset.compat"})
    (note,) = make_batches(DataLoader(kind(), 5, num_workers=num_workers), 3, CPU).notes()
    assert "continue from the end of an epoch" in note and ".shuffle(1000, seed=1)" in note
    assert ("Keep num_workers=2 too" in note) == (num_workers == 2)
    own = type("WebLoader", (Batches,), {"__module__": "webdataset.compat"})
    assert make_batches(own(), 3, CPU).notes()[0].startswith("webdataset shuffles")


class Held(Private):
    """A sampler with a generator of its own, unseeded, under a name of its own."""

    def __init__(self, rng, draw):
        self.rng, self.draw = rng, draw

    def __iter__(self):
        return iter(self.draw(self.rng))


HELD = {
    "torch": lambda: Held(torch.Generator().manual_seed(random.SystemRandom().getrandbits(30)),
                          lambda rng: torch.randperm(SAMPLES, generator=rng).tolist()),
    "numpy": lambda: Held(np.random.default_rng(), lambda rng: rng.permutation(SAMPLES).tolist()),
    "numpy's old one": lambda: Held(np.random.RandomState(), lambda rng: rng.permutation(SAMPLES).tolist()),
    "random": lambda: Held(random.Random(), lambda rng: rng.sample(range(SAMPLES), SAMPLES)),
}


@pytest.mark.parametrize("make", HELD.values(), ids=HELD)
def test_a_generator_that_a_sampler_holds_draws_an_order_of_seed_and_epoch_and_goes_on_as_it_was(make):
    one, other, untouched = make(), make(), make()
    put_back(untouched.rng, state_of(one.rng))
    streams = [stream(DataLoader(data, 5, sampler=sampler), epoch) for sampler in (one, other) for epoch in (1, 2)]
    assert streams[0] == streams[2] != streams[1] == streams[3]
    assert list(one) == list(untouched), "what the person draws from it is not changed"
    assert stream(DataLoader(data, batch_sampler=BatchSampler(make(), 5, False)), 1) == streams[0]


def test_persistent_workers_over_an_iterable_dataset_are_told_of_too():
    notes = make_batches(DataLoader(Iterated(), 5, num_workers=1, persistent_workers=True), 3, CPU).notes()
    assert len(notes) == 2 and "set persistent_workers=False" in notes[1]


def test_notes_are_printed_when_the_run_begins_and_stand_in_its_log(capsys):
    trainer = Tiny(ckpt_dir="run", train_loader=DataLoader(data, 5, sampler=Private()))
    trainer.check_init(use_tb=False)
    assert "  resume: Private gave two different orders for the same epoch" in capsys.readouterr().out
    assert "resume: Private" in Path("run/log.txt").read_text()
    Tiny().check_init(use_tb=False)
    assert "resume:" not in capsys.readouterr().out


def test_looking_for_notes_starts_no_worker_reads_no_sample_and_leaves_the_generators_alone():
    dataset = Augmented()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    make_batches(DataLoader(dataset, 5, sampler=EvenFirst(SAMPLES), num_workers=2), 3, CPU).notes()
    assert dataset.read == [] and torch.equal(torch.get_rng_state(), before)


# --- several loaders at once ----------------------------------------------------------------------------------------


def joint(long=SAMPLES, short=7, **options):
    return {name: make_loader(dataset=Augmented(count), **options) for name, count in (("long", long), ("short", short))}


def test_a_dict_of_loaders_gives_a_batch_of_each_until_the_longest_is_through():
    batches = make_batches(joint(), 3, CPU)  # 5 and 2 batches
    epoch = stream(batches, 1)
    assert len(batches) == len(epoch) == 5 and all(list(batch) == ["long", "short"] for batch in epoch)
    assert sorted(indices(batch["long"] for batch in epoch)) == list(range(SAMPLES))
    short = [batch["short"] for batch in epoch]
    rounds = [indices(short[:2]), indices(short[2:4])]
    assert all(sorted(round_) == list(range(7)) for round_ in rounds)
    assert rounds[0] != rounds[1]                                  # it starts over in another order
    assert [batch["long"] for batch in epoch] == stream(joint()["long"], 1)
    assert short[:2] == stream(joint()["short"], 1)
    assert stream(joint(), 1) == epoch != stream(joint(), 2)
    assert plain(batches.first()) == stream(joint(), 0)[0]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 7), st.integers(1, 5))
def test_a_dict_of_loaders_resumes_at_any_batch_without_reading_the_skipped(long, short, start, epoch):
    whole = stream(joint(long, short), epoch)
    assert len(whole) == max(-(-long // 5), -(-short // 5))
    resumed = joint(long, short)
    assert stream(resumed, epoch, start=start) == whole[start:]
    for name, loader in resumed.items():
        assert loader.dataset.read == indices(batch[name] for batch in whole[start:])


def test_loaders_of_any_kind_may_be_joined():
    def loaders():
        return {"map": make_loader(), "tensors": TensorLoader(torch.arange(9.0), batch_size=4, shuffle=True),
                "list": [torch.zeros(1), torch.ones(1)]}

    whole = stream(loaders(), 2)
    assert [batch["list"] for batch in whole] == [[0.0], [1.0], [0.0], [1.0], [0.0]]
    assert stream(loaders(), 2, start=3) == whole[3:]


# --- nested batches -------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", ["x", "y"])


class Graph:
    def __init__(self, device="cpu"):
        self.device = device

    def to(self, device):
        return Graph(device)


def test_to_device_moves_every_tensor_and_keeps_the_nesting():
    x = torch.zeros(2)
    batch = {"a": x, "b": [x, (x, "text")], "c": Pair(x, {"d": x}), "e": None, "f": 3, "g": OrderedDict(z=x), "h": Graph()}
    moved = to_device(batch, torch.device("meta"))
    assert type(moved) is dict and list(moved) == list(batch) and batch["a"] is x
    tensors = [moved["a"], moved["b"][0], moved["b"][1][0], moved["c"].x, moved["c"].y["d"], moved["g"]["z"]]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert (type(moved["b"]), type(moved["b"][1]), type(moved["c"]), type(moved["g"])) == (list, tuple, Pair, OrderedDict)
    assert (moved["b"][1][1], moved["e"], moved["f"]) == ("text", None, 3)
    assert moved["h"].device == torch.device("meta")


def test_a_packed_sequence_moves_itself_because_its_batch_sizes_stay():
    packed = pack_sequence([torch.zeros(3), torch.zeros(2)])
    moved = to_device((packed, torch.zeros(2)), torch.device("meta"))[0]
    assert moved.data.device.type == "meta" and moved.batch_sizes.device.type == "cpu"


def test_batches_arrive_on_the_device():
    for loader in (make_loader(), TensorLoader(torch.zeros(4), batch_size=2), [torch.zeros(2)], {"a": [torch.zeros(2)]}):
        batches = make_batches(loader, 3, torch.device("meta"))
        for batch in (batches.first(), next(iter(batches.epoch(1)))):
            assert first_tensor(batch).device.type == "meta"


def test_on_a_cpu_copied_ahead_hands_batches_through_one_by_one():
    read = []

    def batches():
        for number in range(3):
            read.append(number)
            yield {"x": torch.full((2,), number), "name": str(number)}

    made = list(zip(batches(), range(3)))
    read.clear()
    through = copied_ahead((batch for batch, _ in made), CPU)
    for (batch, _), passed in zip(made, through):
        assert passed["x"] is batch["x"] and passed["name"] == batch["name"]
    through = copied_ahead(batches(), CPU)
    for number in range(3):
        assert next(through)["x"].tolist() == [number] * 2 and read == list(range(number + 1))  # none is read ahead
    assert list(through) == []


def test_on_a_gpu_a_batch_is_begun_before_it_is_asked_for_unless_reading_on_may_overwrite_it():
    """``one_ahead`` with notes in the place of copies; batches 2 and 3 are on the GPU already."""
    def noted(needs_no_copy):
        notes = []

        def batches():
            for number in range(5):
                notes.append(f"read {number}")
                yield number

        def begin(batch):
            notes.append(f"begin {batch}")
            return batch, "event"

        def finish(batch, event):
            return batch

        given = []
        for batch in one_ahead(batches(), begin, finish, needs_no_copy):
            notes.append(f"use {batch}")
            given.append(batch)
        assert given == list(range(5))
        return notes

    ahead = noted(False)
    assert all(ahead.index(f"begin {number + 1}") < ahead.index(f"use {number}") for number in range(4))
    careful = noted(lambda batch: batch in (2, 3))
    assert all(careful.index(f"use {number}") < careful.index(f"read {number + 1}") for number in (2, 3))
    assert careful.index("begin 1") < careful.index("use 0") and careful.index("begin 2") < careful.index("use 1")


def test_a_tensor_on_the_device_is_found_however_deep_it_lies():
    meta, cpu = torch.device("meta"), torch.zeros(1)
    there = torch.zeros(1, device="meta")
    assert is_on({"a": [cpu, (3, Pair("text", there))]}, meta) and is_on(there, meta)
    assert not is_on({"a": [cpu, (3, Pair("text", cpu))]}, meta) and not is_on("text", meta)


class OneBuffer:
    """Fills one tensor again and again."""

    def __init__(self):
        self.memory = torch.zeros(2)

    def __len__(self):
        return 4

    def __iter__(self):
        for number in torch.randperm(99)[:4].tolist():
            yield self.memory.fill_(number)


def test_one_loader_by_two_names_gives_two_batches_also_when_it_fills_its_tensor_again():
    loader = OneBuffer()
    got = stream({"a": loader, "b": loader}, 1)
    assert got == stream({"a": OneBuffer(), "b": OneBuffer()}, 1)
    again = [batch for batch in make_batches({"a": OneBuffer(), "b": loader}, 3, CPU).epoch(1)]
    assert all(batch["b"] is loader.memory for batch in again), "two loaders cost no copy"


def test_a_process_keeps_its_own_batch_while_it_reads_those_of_the_others():
    def given(rank, size):
        batches = make_batches(OneBuffer(), 3, CPU, share=Share(rank, size)).epoch(1)
        return [(plain(batch), is_spare) for batch, is_spare in batches]

    whole = stream(OneBuffer(), 1)
    assert [given(rank, 2) for rank in range(2)] == [[(whole[0], False), (whole[2], False)],
                                                     [(whole[1], False), (whole[3], False)]]
    three = [given(rank, 3) for rank in range(3)]
    assert [batches[0] for batches in three] == [(batch, False) for batch in whole[:3]]
    assert [is_spare for _, (_, is_spare) in three] == [False, True, True] and three[0][1][0] == whole[3]


def test_copied_ahead_lets_an_error_of_the_data_through():
    def batches():
        yield torch.zeros(2)
        raise KeyError("a broken sample")

    through = copied_ahead(batches(), CPU)
    assert next(through).tolist() == [0.0, 0.0]
    with pytest.raises(KeyError, match="a broken sample"):
        next(through)


def test_pinned_leaves_what_is_no_tensor_of_the_host_as_it_is():
    class Recorded(torch.Tensor):
        def pin_memory(self):
            return "pinned"

    host, elsewhere = torch.zeros(2).as_subclass(Recorded), torch.zeros(2, device="meta")
    assert pinned((host, elsewhere, 3)) == ("pinned", elsewhere, 3)
    assert pinned([host, "text"]) == ["pinned", "text"] and pinned({"x": host})["x"] is host


@pytest.mark.parametrize(("batch", "length"), [
    (torch.zeros(4, 2), 4), ((torch.zeros(3), torch.zeros(9)), 3), ({"n": 7, "x": [torch.tensor(1.0), torch.zeros(5)]}, 5),
    (Pair("text", torch.zeros(6)), 6), ("text", None), (torch.tensor(1.0), None), ([], None),
])
def test_the_first_tensor_with_a_dimension_tells_the_size_of_a_batch(batch, length):
    tensor = first_tensor(batch)
    assert (None if tensor is None else len(tensor)) == length
