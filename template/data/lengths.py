"""How many samples and batches a loader says it has, without reading any data.

    batch_sizes(DataLoader(range(10), 4))       # ({4, 2}, True): there are no others
    numbers_of_workers({"a": loader, "b": other})
"""

from torch.utils.data import DataLoader, IterableDataset

from .agreement import Divided
from .chained import Chained
from .in_memory import TensorLoader
from .nested import loader_length
from .shares import divided_lengths


def numbers_of_workers(loader):
    """The ``num_workers`` of a loader, or of each one in a dict of loaders; 0 where there is no such thing."""
    return [getattr(part, "num_workers", 0) for part in parts_of_loader(loader)]


def parts_of_loader(loader):
    """The loaders in a dict or a ``Chained``, or the only one there is."""
    several = loader.loaders if isinstance(loader, Chained) else loader
    return list(several.values()) if isinstance(several, dict) else [loader]


def batch_sizes(loader, num_ranks=1):
    """``(how many samples a batch of a loader may have, whether these are all)``, as far as the loader itself tells.

    Args:
        loader: as for ``make_batches``, or None.
        num_ranks: the last batches are divided among so many processes.
    """
    if loader is None:
        return set(), True
    if isinstance(loader, (dict, Chained)):
        parts = [batch_sizes(part, num_ranks) for part in parts_of_loader(loader)]
        return set().union(*(sizes for sizes, _ in parts)), all(are_all for _, are_all in parts)
    if isinstance(loader, Divided):
        return batch_sizes(loader.loader)[0], False
    size, count = _size_and_count(loader)
    if size is None or count is None:
        return {size} - {None}, False
    count -= count % size if loader.drop_last else 0
    found, in_last_round = {size, count % size or size}, count % (size * num_ranks)
    return found | set(divided_lengths(in_last_round, num_ranks, size == 1)) - {0}, True


def _size_and_count(loader):
    """``(samples of a batch, samples that an epoch takes)``, None where that is not known. Without a size no data set is
    asked for its length."""
    size = getattr(loader, "batch_size", None)
    if not isinstance(size, int) or size < 1:
        return None, None
    if isinstance(loader, TensorLoader):
        return size, len(loader.tensors[0])
    is_map = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    return size, loader_length(loader.sampler) if is_map else None


def notes_on_last_round(loader, num_ranks):
    """In words, that some ranks have nothing to do in the last update of an epoch, and what ``drop_last`` would change."""
    size, count = _size_and_count(loader) if num_ranks > 1 else (None, None)
    if count is None or loader.drop_last or not count % size:
        return []
    left = count % (size * num_ranks)
    idle = divided_lengths(left, num_ranks, size == 1).count(0)
    if not idle:
        return []
    single = " BatchNorm can do nothing with a single sample." if left == 1 else ""
    return [f"The last update of an epoch has {left} sample{'s' * (left > 1)} for {num_ranks} ranks, and {idle} of them "
            f"compute{'s' * (idle == 1)} what does not count.{single} drop_last=True in train_loader leaves out the last "
            f"batch, of {count % size} sample{'s' * (count % size > 1)}, in every epoch."]
