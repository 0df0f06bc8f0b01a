"""Data in memory: a TensorLoader gives what slicing gives, and a DataLoader that is sliced what it would give itself."""

import io
import random
import sys
import traceback
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Tiny, plain, stream, tiny_data, tiny_trainer, weights
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)

from template.data.loaders import TensorLoader, make_batches
from template.data.seeding import ORDER, derive, sample_rng
from template.hooks import Callback

CPU = torch.device("cpu")

# --- TensorLoader ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 45), st.booleans(), st.booleans(), st.integers(0, 2**63 - 1), st.integers(0, 12))
def test_a_tensor_loader_gives_what_slicing_gives(count, batch_size, shuffle, drop_last, seed, start):
    x, y = torch.randn(count, 3), torch.arange(count)
    loader = TensorLoader(x, y, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last)
    batches = list(make_batches(loader, seed, CPU).epoch(2))
    chunks = [part for part in torch.arange(count).split(batch_size) if not drop_last or len(part) == batch_size]
    assert [len(labels) for _, labels in batches] == [len(part) for part in chunks]
    assert len(loader) == len(make_batches(loader, seed, CPU)) == len(batches)
    assert all(torch.equal(features, x[labels]) for features, labels in batches)
    order = [label for _, labels in batches for label in labels.tolist()]
    assert len(set(order)) == len(order)
    if not shuffle:
        assert order == list(range(len(order)))
    assert stream(loader, 2, seed, start) == [plain(batch) for batch in batches][start:]


def test_a_tensor_loader_shuffles_by_seed_and_epoch():
    def loader():
        return TensorLoader(torch.arange(50), batch_size=8, shuffle=True)

    used = make_batches(loader(), 3, CPU)
    orders = [stream(used, epoch) for epoch in (1, 2)] + [stream(loader(), 1, seed=4)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert stream(loader(), 2) == orders[1] and stream(used, 1) == orders[0]
    generator = torch.Generator().manual_seed(derive(3, 1, -1))
    assert [number for batch in orders[0] for number in batch[0]] == torch.randperm(50, generator=generator).tolist()


def test_the_transform_is_seeded_per_batch_and_may_return_any_batch():
    def transform(x, y):
        return {"x": x + torch.rand(x.shape), "y": y, "n": np.random.rand(), "r": random.random()}

    def loader():
        return TensorLoader(torch.zeros(23), torch.arange(23), batch_size=5, shuffle=True, transform=transform)

    whole = stream(loader(), 1)
    assert stream(loader(), 1, start=3) == whole[3:]
    assert stream(loader(), 2) != whole
    noise = [number for batch in whole for number in (*batch["x"], batch["n"], batch["r"])]
    assert len(set(noise)) == len(noise)
    with sample_rng(derive(3, 1, 2)):
        assert whole[2]["x"] == torch.rand(5).tolist()


def test_generators_of_a_tensor_loaders_transform_give_one_stream():
    class Noise:
        def __init__(self):
            self.rng = np.random.default_rng()

        def __call__(self, x):
            return (x, torch.from_numpy(self.rng.normal(size=len(x))))

    def loader():
        return TensorLoader(torch.arange(23), batch_size=5, shuffle=True, transform=Noise())

    whole = stream(loader(), 1)
    assert stream(loader(), 1, start=2) == whole[2:]


@pytest.mark.parametrize("shuffle", [False, True])
def test_what_is_done_to_a_batch_in_place_does_not_reach_the_data(shuffle):
    x = torch.ones(10)
    loader = TensorLoader(x, batch_size=4, shuffle=shuffle, transform=lambda x: (x.mul_(2),))
    for (batch,) in make_batches(loader, 3, CPU).epoch(1):
        batch.mul_(5)
    assert x.tolist() == [1.0] * 10


def test_on_its_own_a_tensor_loader_follows_the_global_generator_like_a_data_loader():
    loader = TensorLoader(torch.arange(40), batch_size=8, shuffle=True)
    torch.manual_seed(0)
    first, second = [plain(batch) for batch in loader], [plain(batch) for batch in loader]
    torch.manual_seed(0)
    assert [plain(batch) for batch in loader] == first != second
    assert sorted(number for batch in second for number in batch[0]) == list(range(40))


@pytest.mark.parametrize(("tensors", "options", "said"), [
    ((), {"batch_size": 4}, r"one length, got lengths \[\]"),
    ((torch.zeros(3), torch.zeros(4)), {"batch_size": 4}, r"one length, got lengths \[3, 4\]"),
    ((torch.zeros(3),), {"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ((torch.zeros(3),), {"batch_size": 2.5}, "batch_size must be a whole number of at least 1, got 2.5"),
])
def test_a_tensor_loader_that_cannot_be_is_refused(tensors, options, said):
    with pytest.raises(ValueError, match=said):
        TensorLoader(*tensors, **options)


def test_a_tensor_loader_moves_its_tensors_once():
    assert TensorLoader(torch.zeros(3), batch_size=2, device="meta").tensors[0].device.type == "meta"
    x = torch.zeros(3)
    assert TensorLoader(x, batch_size=2).tensors[0] is x


# --- TensorLoader.from_dataset ----------------------------------------------------------------------------------------


class Pictures:
    """Samples (image, its mean, label): a tensor, a numpy array and a number."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(4)
        self.images = torch.randint(256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        return image, image.numpy().mean((1, 2), dtype=np.float32), int(image[0, 0, 0])


@pytest.mark.parametrize("count", [1, 256, 600])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_from_a_dataset_every_sample_is_read_once_in_its_order(count, num_workers):
    data = Pictures(count)
    images, means, labels = TensorLoader.from_dataset(data, num_workers, batch_size=8).tensors
    assert torch.equal(images, data.images) and images.dtype == torch.uint8
    assert means.tolist() == [image.mean((1, 2), dtype=np.float32).tolist() for image in data.images.numpy()]
    assert labels.tolist() == [int(image[0, 0, 0]) for image in data.images] and labels.dtype == torch.int64


def test_options_given_to_from_dataset_are_those_of_the_loader():
    def double(x):
        return (2 * x,)

    made = TensorLoader.from_dataset(list(torch.arange(10)), batch_size=4, shuffle=True, drop_last=True, transform=double)
    by_hand = TensorLoader(torch.arange(10), batch_size=4, shuffle=True, drop_last=True, transform=double)
    assert stream(made, 2) == stream(by_hand, 2) and len(made) == 2


@pytest.mark.parametrize("samples, expected", [
    ([torch.arange(3) + i for i in range(300)], [torch.arange(3) + torch.arange(300)[:, None]]),
    ([np.full((2, 2), i, np.float32) for i in range(5)], [torch.arange(5.0)[:, None, None].expand(5, 2, 2)]),
    ([1, 2, 3], [torch.tensor([1, 2, 3])]),
    ([0.5, 1.5], [torch.tensor([0.5, 1.5], dtype=torch.float64)]),
    ([True, False], [torch.tensor([True, False])]),
    ([(np.int16(i), -float(i)) for i in range(4)], [torch.arange(4).short(), -torch.arange(4).double()]),
], ids=["tensors", "arrays", "integers", "floats", "booleans", "pairs"])
def test_samples_may_be_tensors_arrays_or_numbers_alone_or_in_tuples(samples, expected):
    tensors = TensorLoader.from_dataset(samples, batch_size=2).tensors
    assert [tensor.dtype for tensor in tensors] == [tensor.dtype for tensor in expected]
    assert all(torch.equal(tensor, wanted) for tensor, wanted in zip(tensors, expected))


@pytest.mark.parametrize("sample, named", [
    ({"x": torch.zeros(2)}, "got dict: {'x': tensor"), ("text", "got str: text"),
    ((1.0, "text"), r"got tuple: \(1.0, 'text'\)"), (((1, 2), 3), r"got tuple: \(\(1, 2\), 3\)"),
], ids=["dict", "text", "text in a tuple", "tuples in a tuple"])
def test_samples_of_other_kinds_are_refused_with_the_kind_and_what_to_do(sample, named):
    with pytest.raises(TypeError, match=f"needs samples that are tensors, arrays or numbers.*{named}.*use a DataLoader"):
        TensorLoader.from_dataset([sample] * 3, batch_size=2)


@pytest.mark.parametrize("samples, shapes", [
    ([torch.zeros(2), torch.zeros(3)], r"\[2\] at entry 0 and \[3\] at entry 1"),
    ([np.zeros(2), np.zeros((2, 1))], r"\[2\] at entry 0 and \[2, 1\] at entry 1"),
    ([torch.zeros(4)] * 256 + [torch.zeros(5)] * 4, r"\[\(4,\), \(5,\)\]"),
    ([torch.zeros(4)] * 256 + [torch.zeros(1)] * 4, r"\[\(4,\), \(1,\)\]"),  # which would broadcast
    ([(torch.zeros(2),), (torch.zeros(2), 1)], "each element in list of batch should be of equal size"),
], ids=["tensors", "arrays", "in a later reading batch", "that broadcasts", "lengths of tuples"])
def test_samples_of_different_shapes_are_refused_with_the_shapes(samples, shapes):
    with pytest.raises(ValueError, match=f"^TensorLoader.from_dataset needs samples of one shape, got .*{shapes}.*Crop"):
        TensorLoader.from_dataset(samples, batch_size=2)


@pytest.mark.slow
def test_what_a_worker_refuses_is_the_same_error():
    shapes = r"(?s)needs samples of one shape, got .*\[2\] at entry 0 and \[3\].*Crop or pad"
    with pytest.raises(ValueError, match=shapes) as refused:
        TensorLoader.from_dataset([torch.zeros(2), torch.zeros(3)], num_workers=1, batch_size=2)
    traceback.clear_frames(refused.tb)  # torch's make a cycle that holds the worker: its collection would wait 5 seconds
    with pytest.raises(TypeError, match="(?s)needs samples that are tensors, arrays or numbers.*got str: text") as refused:
        TensorLoader.from_dataset(["text"], num_workers=1, batch_size=2)
    traceback.clear_frames(refused.tb)


class Screen(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_bar_of_from_dataset_is_drawn_on_a_terminal_alone(is_terminal, monkeypatch):
    screen = Screen(is_terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    TensorLoader.from_dataset(list(range(600)), batch_size=2)
    assert ("reading 600 samples" in screen.getvalue() and "/3" in screen.getvalue()) == is_terminal
    assert bool(screen.getvalue()) == is_terminal


def test_from_dataset_needs_no_tqdm(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert TensorLoader.from_dataset(list(range(300)), batch_size=2).tensors[0].tolist() == list(range(300))
    assert capsys.readouterr() == ("", "")


# --- a DataLoader over a TensorDataset --------------------------------------------------------------------------------

SHAPES = [(), (2,), (0,), (2, 3), (1, 2, 3), (3, 1, 2)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool, torch.int8, torch.uint8, torch.int64,
          torch.complex64]


class Listed:
    """A sampler or batch sampler of the user."""

    def __init__(self, listed):
        self.listed = listed

    def __len__(self):
        return len(self.listed)

    def __iter__(self):
        yield from self.listed


class RandomBatches:
    """Batches of 1, 2 or 3 indices, which it draws from all three global generators; one list is filled again and again."""

    def __init__(self, count, as_tensor):
        self.count, self.as_tensor = count, as_tensor

    def __len__(self):
        return 4

    def __iter__(self):
        batch = []
        for size in (3, 1, 2, 3):
            batch[:] = [int(np.random.randint(self.count)), random.randrange(self.count) - self.count,
                        int(torch.randint(self.count, ()))][:size]
            yield torch.tensor(batch) if self.as_tensor else batch


SAMPLERS = {  # of a dataset: the options of its loader
    "in order": lambda data: {},
    "shuffled": lambda data: {"shuffle": True},
    "shuffled with a generator": lambda data: {"shuffle": True, "generator": torch.Generator().manual_seed(9)},
    "a generator of the sampler": lambda data: {"sampler": RandomSampler(data, generator=torch.Generator())},
    "weighted": lambda data: {"sampler": WeightedRandomSampler(torch.arange(1.0, len(data) + 1), 2 * len(data))},
    "a random part": lambda data: {"sampler": SubsetRandomSampler(range(0, len(data), 2))},
    "own, from the end": lambda data: {"sampler": Listed([-1 - i for i in range(len(data))])},
    "own, numpy": lambda data: {"sampler": Listed(np.arange(len(data))[::-1])},
    "own, tensors": lambda data: {"sampler": Listed(torch.arange(len(data)).flip(0))},
    "batches of torch": lambda data: {"batch_sampler": BatchSampler(SubsetRandomSampler(range(len(data))), 3, True)},
    "own batches": lambda data: {"batch_sampler": RandomBatches(len(data), as_tensor=False)},
    "own batches as tensors": lambda data: {"batch_sampler": RandomBatches(len(data), as_tensor=True)},
}


def random_tensor(shape, dtype, requires_grad=False):
    """Any bits that the dtype has values for."""
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    tensor = (100 * torch.randn(shape)).to(dtype) if dtype != torch.uint8 else torch.randint(256, shape, dtype=dtype)
    return tensor.requires_grad_(requires_grad and (dtype.is_floating_point or dtype.is_complex))


def loader_over(dataset, kind, batch_size=4, drop_last=False, **options):
    chosen = SAMPLERS[kind](dataset)
    batched = {} if "batch_sampler" in chosen else {"batch_size": batch_size, "drop_last": drop_last}
    return DataLoader(dataset, **batched, **chosen, **options)


def described(batch):
    """Everything about a batch that a training can see."""
    assert not isinstance(batch, torch.Tensor)
    return type(batch), [(type(part), part.dtype, part.shape, part.stride(), part.is_contiguous(), part.requires_grad,
                          part.device, part.tolist()) for part in batch]


def read(loader, slice_tensors=True, epoch=1, start=0, seed=3):
    return [described(batch) for batch in make_batches(loader, seed, CPU, slice_tensors).epoch(epoch, start)]


def no_sample_is_read():
    return mock.patch.object(TensorDataset, "__getitem__", side_effect=AssertionError("a sample was read by itself"))


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(st.data())
def test_a_sliced_loader_gives_the_batches_that_it_would_give_sample_by_sample(data):
    count = data.draw(st.integers(1, 30), "samples")
    kinds = st.tuples(st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.booleans())
    dataset = TensorDataset(*[random_tensor((count, *shape), dtype, requires_grad) for shape, dtype, requires_grad
                              in data.draw(st.lists(kinds, min_size=1, max_size=3), "tensors")])
    for form in data.draw(st.lists(st.sampled_from([list, torch.tensor, np.array]), max_size=2), "subsets"):
        places = st.integers(-len(dataset), len(dataset) - 1)
        dataset = Subset(dataset, form(data.draw(st.lists(places, min_size=1, max_size=35), "indices")))
    loader = loader_over(dataset, data.draw(st.sampled_from(sorted(SAMPLERS)), "sampler"),
                         data.draw(st.integers(1, 35), "batch size"), data.draw(st.booleans(), "drop_last"))
    position = data.draw(st.integers(0, 2**63 - 1), "seed"), data.draw(st.integers(0, 99), "epoch")
    start = data.draw(st.integers(0, 10), "start")
    whole = read(loader, slice_tensors=False, seed=position[0], epoch=position[1])
    with no_sample_is_read():
        assert read(loader, seed=position[0], epoch=position[1]) == whole
        assert read(loader, seed=position[0], epoch=position[1], start=start) == whole[start:]
        assert len(make_batches(loader, 3, CPU)) == len(loader)


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_batches_of_a_sliced_loader_are_those_of_torch_under_the_epochs_seed(kind, drop_last):
    """Torch's own iteration is what they are compared with here."""
    dataset = random_split(TensorDataset(*tiny_data()), [30, 23], torch.Generator().manual_seed(1))[1]
    loader = loader_over(dataset, kind, 4, drop_last)
    with no_sample_is_read():
        ours = read(loader, epoch=7)
    seed = derive(3, 7, ORDER)
    generator = getattr(loader.sampler, "generator", None) or loader.generator
    with sample_rng(seed):
        # an iterator of torch's draws one number before its order: from the loader's generator, or from the global one
        iterator = iter(loader)
        for part in (torch.default_generator, generator):
            if part is not None:
                part.manual_seed(seed)
        assert ours == [described(batch) for batch in iterator]
    assert len(ours) >= 3


def test_a_short_last_batch_and_one_batch_for_all_come_as_views_of_nothing():
    x = torch.arange(5.0)
    for batch_size, lengths in ((4, [4, 1]), (5, [5]), (99, [5])):
        for shuffle in (False, True):
            batches = [batch for batch, in make_batches(DataLoader(TensorDataset(x), batch_size, shuffle), 3, CPU).epoch(1)]
            assert [len(batch) for batch in batches] == lengths
            for batch in batches:
                batch.mul_(7)
    assert x.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_with_drop_last_a_loader_that_is_too_small_gives_nothing():
    for count in (0, 3):
        assert read(DataLoader(TensorDataset(torch.zeros(count, 2)), 4, drop_last=True)) == []


@pytest.mark.parametrize("options", [
    {"sampler": Listed([0, 6])}, {"sampler": Listed([0, -7])}, {"batch_sampler": Listed([[0, 1], [6]])},
    {"batch_sampler": Listed([torch.tensor([2, -7])])},
], ids=["sampler", "sampler from the end", "batch sampler", "batch sampler from the end"])
def test_an_index_out_of_range_is_an_error_as_it_is_without_slices(options):
    loader = DataLoader(TensorDataset(torch.zeros(6, 2)), **options)
    for slice_tensors in (False, True):
        with pytest.raises(IndexError):
            read(loader, slice_tensors)


@pytest.mark.parametrize("chosen", [[6], [0, -7]], ids=str)
def test_an_index_of_a_subset_that_is_out_of_range_is_an_error_too(chosen):
    loader = DataLoader(Subset(TensorDataset(torch.zeros(6, 2)), chosen), 2)
    for slice_tensors in (False, True):
        with pytest.raises(IndexError):
            read(loader, slice_tensors)
    with pytest.raises(IndexError):
        read(DataLoader(Subset(TensorDataset(torch.zeros(6, 2)), [1, 2]), 2, sampler=Listed([0, 2])))


# --- what must not be sliced ------------------------------------------------------------------------------------------


class Doubled(TensorDataset):
    def __getitem__(self, index):
        return tuple(2 * part for part in super().__getitem__(index))


class Shifted(Subset):
    def __getitem__(self, index):
        return tuple(part + 100 for part in super().__getitem__(index))

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Louder(torch.Tensor):
    """Its samples are not what its rows are."""

    def __getitem__(self, index):
        return super().__getitem__(index) * 10


def with_a_count(samples):
    return [*default_collate(samples), torch.tensor(len(samples))]


def samples_of(*tensors, **options):
    return DataLoader(TensorDataset(*tensors), 4, **options)


ROWS = torch.arange(18.0).reshape(6, 3)
NOT_SLICED = {
    "a TensorDataset of one's own": lambda: DataLoader(Doubled(ROWS), 4),
    "within a Subset": lambda: DataLoader(Subset(Doubled(ROWS), [3, 1]), 4),
    "a Subset of one's own": lambda: DataLoader(Shifted(TensorDataset(ROWS), [3, 1]), 4),
    "around a Subset": lambda: DataLoader(Subset(Shifted(TensorDataset(ROWS), [3, 1, 0]), [2, 1]), 4),
    "collate_fn": lambda: samples_of(ROWS, collate_fn=with_a_count),
    "no batches": lambda: DataLoader(TensorDataset(ROWS), None),
    "channels last": lambda: samples_of(torch.randn(6, 3, 2, 2).to(memory_format=torch.channels_last)),
    "transposed": lambda: samples_of(torch.arange(18).reshape(3, 6).t()),
    "expanded": lambda: samples_of(ROWS, torch.ones(1, 2).expand(6, 2)),
    "a tensor class of one's own": lambda: samples_of(ROWS, ROWS.as_subclass(Louder)),
    "a list": lambda: DataLoader(list(zip(ROWS, range(6))), 4),
}


@pytest.mark.parametrize("kind", NOT_SLICED)
def test_what_slices_might_change_is_read_sample_by_sample(kind, monkeypatch):
    loader, asked = NOT_SLICED[kind](), []
    wanted = [described(batch) for batch in loader]  # torch's own
    index_select = torch.Tensor.index_select
    monkeypatch.setattr(torch.Tensor, "index_select", lambda *args: asked.append(args) or index_select(*args))
    assert read(loader) == wanted and asked == []


def test_sparse_tensors_are_refused_by_torch_as_they_are_without_slices():
    loader = samples_of((ROWS * (ROWS > 8)).to_sparse())
    for slice_tensors in (False, True):
        with pytest.raises(RuntimeError, match="sparse"):
            read(loader, slice_tensors)


def test_a_worker_that_the_user_asked_for_reads_the_samples(tmp_path):
    def touch(worker_id):
        (tmp_path / f"worker{worker_id}").touch()

    loader = samples_of(ROWS, num_workers=1, worker_init_fn=touch)
    assert read(loader) == [described(batch) for batch in samples_of(ROWS)]
    assert [path.name for path in tmp_path.iterdir()] == ["worker0"]


def test_switched_off_samples_are_read_one_by_one_also_for_evaluations(monkeypatch):
    reads = []
    getitem = TensorDataset.__getitem__
    monkeypatch.setattr(TensorDataset, "__getitem__", lambda self, index: reads.append(index) or getitem(self, index))
    for slice_tensors, expected in ((True, 0), (False, 53 + 23)):
        trainer = tiny_trainer(slice_tensors=slice_tensors, preflight=False)
        trainer.fit(1)
        assert len(reads) == expected
    for slice_tensors, expected in ((True, 0), (False, 9)):
        trainer = tiny_trainer(slice_tensors=slice_tensors)
        reads.clear()
        trainer.test(DataLoader(TensorDataset(*tiny_data(9)), 4))
        assert len(reads) == expected


# --- and what else a training sees of it ------------------------------------------------------------------------------


def test_what_the_user_does_to_the_tensors_between_epochs_is_seen():
    x = torch.arange(4.0)
    dataset = TensorDataset(x)
    batches = make_batches(DataLoader(dataset, 3), 3, CPU)
    assert stream(batches, 1) == [[[0.0, 1.0, 2.0]], [[3.0]]]
    x.neg_()
    assert stream(batches, 2) == [[[0.0, -1.0, -2.0]], [[-3.0]]]
    dataset.tensors = (torch.arange(7), torch.arange(7) % 2)
    assert stream(batches, 3) == [[[0, 1, 2], [0, 1, 0]], [[3, 4, 5], [1, 0, 1]], [[6], [0]]]


@pytest.mark.parametrize("shuffle", [False, True])
def test_what_is_done_to_a_batch_of_a_sliced_loader_does_not_reach_the_dataset(shuffle):
    x, y = tiny_data()
    before = x.clone(), y.clone()

    def spoil(batch):
        batch[0].mul_(3)
        batch[1].zero_()
        return torch.nn.functional.cross_entropy(trainer.inference(batch[0]), batch[1])

    trainer = tiny_trainer(train_loader=DataLoader(TensorDataset(x, y), 10, shuffle=shuffle), loss_per_batch=spoil,
                           eval_loader=DataLoader(TensorDataset(x, y), 60))
    trainer.fit(1)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


def test_reading_slices_leaves_the_generators_of_torch_and_of_the_user_alone():
    dataset, own = TensorDataset(*tiny_data()), torch.Generator().manual_seed(6)
    for options in ({"shuffle": True}, {"shuffle": True, "generator": own},
                    {"sampler": RandomSampler(dataset, generator=own)}):
        before = torch.get_rng_state(), own.get_state()
        for _ in make_batches(DataLoader(dataset, 10, **options), 3, CPU).epoch(1):
            assert torch.equal(torch.get_rng_state(), before[0])
        assert torch.equal(torch.get_rng_state(), before[0]) and torch.equal(own.get_state(), before[1])


@pytest.mark.parametrize("attributes", [{}, {"accumulate_steps": 4}], ids=["plain", "accumulated"])
def test_a_training_on_slices_ends_in_the_bits_of_one_without(attributes):
    """Dropout and the shuffled order included."""
    ends = []
    for slice_tensors in (True, False):
        trainer = tiny_trainer(ckpt_dir=f"run_{slice_tensors}", slice_tensors=slice_tensors, **attributes)
        trainer.fit(3)
        ends.append((weights(trainer), trainer.best_metric, trainer.eval_result))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1:] == ends[1][1:]


@pytest.mark.parametrize("first", [True, False], ids=["on, then off", "off, then on"])
def test_slices_may_be_switched_on_or_off_in_the_middle_of_an_epoch(first):
    class Interrupt(Callback):
        def on_after_step(self, model):
            if model.global_step == 10:
                raise KeyboardInterrupt

    whole = tiny_trainer(ckpt_dir="whole", slice_tensors=first)
    whole.fit(3)
    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(ckpt_dir="cut", slice_tensors=first, save_per_steps=3, callbacks=[Interrupt()]).fit(3)
    again = tiny_trainer(ckpt_dir="cut", slice_tensors=not first)
    again.load_state("auto")
    assert (again.global_step, again.batches_done) == (9, 3)
    again.fit(3)
    assert torch.equal(weights(again), weights(whole)) and again.best_metric == whole.best_metric


class TheLoadersOrder:
    """The order of a shuffled TensorLoader, from its docstring's words: a function of (seed, epoch)."""

    def __init__(self, count, seed):
        self.count, self.seed, self.epoch = count, seed, None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.count

    def __iter__(self):
        generator = torch.Generator().manual_seed(derive(self.seed, self.epoch, ORDER))
        yield from torch.randperm(self.count, generator=generator).tolist()


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_tensor_loader_and_a_data_loader_of_one_order_train_to_the_same_bits(shuffle):
    x, y = tiny_data()
    samples, sampler = list(zip(x, y)), TheLoadersOrder(len(x), Tiny().seed) if shuffle else None
    loaders = {
        "TensorLoader": TensorLoader(x, y, batch_size=10, shuffle=shuffle),
        "from_dataset": TensorLoader.from_dataset(samples, batch_size=10, shuffle=shuffle),
        "sliced": DataLoader(TensorDataset(x, y), 10, sampler=sampler),
        "samples": DataLoader(samples, 10, sampler=sampler),
    }
    ends = {}
    for name, loader in loaders.items():
        trainer = tiny_trainer(ckpt_dir=name, train_loader=loader)
        trainer.fit(3)
        ends[name] = weights(trainer)
    assert all(torch.equal(end, ends["samples"]) for end in ends.values())


# --- several batches that are copied at once, as in an evaluation ---------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("columns, batch_size", [(16, 4), (16, 5), (3, 4)], ids=["aligned", "of five", "of odd rows"])
def test_an_evaluation_reads_the_batches_of_a_training_and_a_change_of_one_reaches_no_other(shuffle, columns, batch_size):
    x, y = torch.arange(26.0 * columns).reshape(26, columns), torch.arange(26)
    loader = TensorLoader(x.clone(), y.clone(), batch_size=batch_size, shuffle=shuffle)
    expected = [(x.clone(), y.clone()) for x, y in loader.epoch(3, 1, start=1)]
    with torch.no_grad():
        for number, batch in enumerate(loader.epoch(3, 1, start=1)):
            for part, of_training in zip(batch, expected[number], strict=True):
                assert torch.equal(part, of_training) and part._version == 0 and not part._is_view()
                part.mul_(-1)
    assert number == len(expected) - 1
    assert torch.equal(loader.tensors[0], x) and torch.equal(loader.tensors[1], y)


def test_batches_of_an_evaluation_begin_at_addresses_as_round_as_those_of_a_training():
    for columns in (16, 5, 3, 1):
        loader = TensorLoader(torch.zeros(64, columns), torch.zeros(64, dtype=torch.int64), batch_size=8)
        with torch.no_grad():
            assert all(part.data_ptr() % 64 == 0 for batch in loader.epoch(0, 0) for part in batch)


def test_a_batch_that_is_kept_keeps_a_quarter_of_a_megabyte_at_most():
    loader = TensorLoader(torch.zeros(4096, 1024), batch_size=8)
    with torch.no_grad():
        sizes = {batch[0].untyped_storage().nbytes() for batch in loader.epoch(0, 0)}
    assert sizes == {2**18}
    assert {batch[0].untyped_storage().nbytes() for batch in loader.epoch(0, 0)} == {8 * 4096}  # of a training


def test_an_input_of_an_evaluation_can_be_attacked_in_place():
    """FGSM: gradients of the input, which is then changed where it is."""
    loader = TensorLoader(torch.ones(64, 16), batch_size=4)
    with torch.no_grad():
        for (x,) in loader.epoch(0, 0):
            with torch.enable_grad():
                weight = torch.full((16,), 2.0, requires_grad=True)
                x.mul_(weight)
                x.sum().backward()
            assert torch.equal(weight.grad, torch.full((16,), 4.0))
