"""Workers of a DataLoader end with the loop that reads it, also where an error ends it."""

import gc
import multiprocessing

import pytest
import torch
from odd_loaders import Augmented
from torch.utils.data import DataLoader, Dataset, IterableDataset

from template.data.loaders import make_batches

CPU = torch.device("cpu")


class Broken(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index == 17:
            raise ValueError("a file that cannot be read")
        return torch.ones(6), index


class BrokenStream(IterableDataset):
    def __iter__(self):
        yield torch.ones(6)
        raise ValueError("a file that cannot be read")


@pytest.mark.slow
@pytest.mark.parametrize("dataset", [Broken(), BrokenStream()], ids=["by number", "stream"])
def test_workers_are_gone_behind_an_error_of_the_dataset(dataset):
    """The error holds itself. What ends only as garbage takes five seconds of waiting for each worker."""
    gc.collect()
    gc.disable()
    try:
        batches = make_batches(DataLoader(dataset, 4, num_workers=2), 3, CPU)
        with pytest.raises(ValueError, match="cannot be read"):
            list(batches.epoch(1))
        assert multiprocessing.active_children() == []
    finally:
        gc.enable()


@pytest.mark.slow
def test_workers_are_gone_where_the_loop_is_left_and_persistent_ones_stay_for_the_next_epoch():
    for options, left in (({}, 0), ({"persistent_workers": True}, 2)):
        batches = make_batches(DataLoader(Augmented(12), 4, num_workers=2, **options), 3, CPU)
        for _ in batches.epoch(1):
            break
        assert len(multiprocessing.active_children()) == left
        assert len(list(batches.epoch(2))) == 3
    del batches
    assert multiprocessing.active_children() == []
