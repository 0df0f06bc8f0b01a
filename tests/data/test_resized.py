"""The same samples in batches of another size."""

import pytest
import torch
from tiny import tiny_data
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from template import TensorLoader
from template.data.resized import batch_size_of, num_samples_of, with_batch_size

DATA = TensorDataset(*tiny_data(20))


def pairs(batch):
    return {"x": torch.stack([x for x, _ in batch]), "y": torch.tensor([int(y) for _, y in batch])}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(10))


def test_data_set_order_and_collate_function_stay():
    loader = DataLoader(DATA, 4, sampler=WeightedRandomSampler([1.0] * 20, 20), collate_fn=pairs, drop_last=True)
    other = with_batch_size(loader, 7)
    assert other.dataset is DATA and other.sampler is loader.sampler and other.drop_last and loader.batch_size == 4
    assert [len(batch["x"]) for batch in other] == [7, 7] and num_samples_of(other) == 20
    assert [len(batch["x"]) for batch in with_batch_size(loader, 7, drop_last=False)] == [7, 7, 6]


def test_workers_and_their_options_stay():
    loader = DataLoader(DATA, 4, num_workers=2, prefetch_factor=3, timeout=5)
    other = with_batch_size(loader, 8)
    assert (other.num_workers, other.prefetch_factor, other.timeout) == (2, 3, 5)


def test_tensor_loaders_and_iterated_data_sets_have_sizes_too():
    loader = TensorLoader(*tiny_data(20), batch_size=4, shuffle=True)
    assert [len(x) for x, _ in with_batch_size(loader, 15)] == [15, 5] and loader.batch_size == 4
    assert num_samples_of(loader) == 20
    stream = DataLoader(Stream(), 4)
    assert [len(batch) for batch in with_batch_size(stream, 6)] == [6, 4] and num_samples_of(stream) is None


class Own(DataLoader):
    def __iter__(self):
        return iter([])


class OwnBatches(BatchSampler):
    pass


@pytest.mark.parametrize("loader, what", [
    ([1, 2], "got list"), (DataLoader(DATA, None), "of its own makes"), (Own(DATA, 4), "a subclass of DataLoader"),
    (DataLoader(DATA, batch_sampler=OwnBatches(SequentialSampler(DATA), 4, False)), "of its own makes"),
    ({"a": DataLoader(DATA, 4)}, "got dict"),
], ids=["list", "single", "subclass", "batch_sampler", "dict"])
def test_what_makes_its_batches_itself_is_refused_in_words(loader, what):
    for ask in (batch_size_of, lambda one: with_batch_size(one, 8)):
        with pytest.raises(ValueError, match=f"needs a DataLoader with a batch_size.*{what}"):
            ask(loader)
