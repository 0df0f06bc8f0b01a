"""Cross-validation: train on all folds of a dataset but one, and evaluate on that one, for each of them.

    def make_trainer(train_set, eval_set):
        return Digits(DataLoader(train_set, 64, shuffle=True), DataLoader(eval_set, 256))

    result = kfold(make_trainer, dataset, k=5, epochs=20, stratify=labels, ckpt_dir="check_point/digits-5-fold")
    print(result.mean["acc"], result.std["acc"], result.predictions.shape)

It chooses no settings and averages no weights: what it says is how well this way of training does on data that it has not
seen. Where the order of samples is time, folds at random look into the future: split by hand there.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, Subset, TensorDataset

from ..output.run_folder import as_dict, temporary_name
from ..output.text_table import text_table
from ..output.warn import warn
from ..run.trials import Trials, require_weights

if TYPE_CHECKING:
    from ..template import TemplateModel

_PREDICTIONS = "predictions.pt"
_MOST_CLASSES = 0.5  # of the samples: labels with more different values than that are no classes


@dataclass
class KFold:
    """What ``kfold`` found. ``print`` shows it as a table."""

    rows: list[dict[str, Any]]
    """For each fold its number, its samples, its result and its seconds."""
    mean: dict[str, float]
    """``{loss or metric: mean over the folds}``."""
    std: dict[str, float]
    """The same for the standard deviation, with k - 1 below."""
    folds: torch.Tensor
    """[N]: in which fold each sample is evaluated, 1 to k."""
    predictions: Any
    """What ``inference`` gave for each sample, from the fold that was not trained on it, in the dataset's order; None with
    ``predict=False``."""
    ckpt_dir: str

    def __str__(self) -> str:
        ends = [{"fold": name, **values} for name, values in (("mean", self.mean), ("std", self.std))]
        return text_table([*self.rows, *ends])


def kfold(make_trainer: Callable[[Any, Any], TemplateModel], dataset: Any, k: int = 5, epochs: int | None = None, *,
          stratify: Any = None, groups: Any = None, seed: int = 0, ckpt_dir: str | Path | None = None,
          weights: str = "last", predict: bool = True, arg: Any = None, updates: int | None = None) -> KFold:
    """Train and evaluate k times, each time on another k-th of ``dataset``. Called again with the same ``ckpt_dir`` it reads
    the folds that are done, and goes on with the one that was cut short, to the same bits.

    Fold i has the folder ``<ckpt_dir>/fold<i>`` and the TensorBoard run ``<name of ckpt_dir>/fold<i>``. Its weights are
    drawn from ``seed + i``, and so are its order of data and its augmentation: the spread holds the chance of both data and
    start.

    Args:
        make_trainer: function of (train_set, eval_set), each a ``Subset`` of the dataset, that returns a new trainer with a
            new model, before ``check_init``. Its loaders read these sets; it may put transforms around them.
        dataset: with a length and samples by number. It is never copied.
        k: number of folds, at least 2.
        epochs: of each fold; None: the trainer's ``total_epochs``. The folds are trained by ``trainer.fit(epochs)``.
        stratify: the class of each sample [N], or True for the dataset's own labels: every fold gets its share of every
            class.
        groups: of what each sample is [N], a patient for example: no group is trained on in one fold and evaluated in it.
        seed: of the folds, and with a fold's number added of its training.
        ckpt_dir: the folder of all folds; None: a new one with a time stamp.
        weights: the results and predictions are those of the "last" epoch, or of the "best" one. The best epoch was chosen
            on the same samples that it is scored on, so that its result is a little too good to publish.
        predict: also gather the predictions.
        arg: options to store with each run, for ``check_init``.
        updates: the length of each run in updates, in the place of ``epochs``.

    Raises:
        ValueError: sizes that do not fit, a trainer that reads other data than its fold's, or one with a model that another
            fold was trained with.
    """
    require_weights(weights)
    count = _length(dataset)
    labels = _labels_of(dataset) if stratify is True else stratify
    numbers_N = fold_numbers(count, k, labels, groups, seed)
    digest = hashlib.sha256(numbers_N.numpy().tobytes()).hexdigest()[:16]
    settings = {"samples": count, "k": k, "seed": seed, "folds": digest, "weights": weights}
    with Trials("kfold", ckpt_dir, settings) as trials:
        rows, parts = [], []
        for number in range(1, k + 1):
            make = _Maker(make_trainer, dataset, numbers_N != number, numbers_N == number)
            note = trials.run(f"fold{number}", make, seed + number, epochs, {**as_dict(arg), "fold": number}, weights,
                              _predictor(make.sizes[1]) if predict else None, updates)
            if predict:
                parts.append(_read_predictions(trials.folder / f"fold{number}" / _PREDICTIONS))
            rows.append({"fold": number, "train": make.sizes[0], "eval": make.sizes[1], **note["result"],
                         "epochs": note["epochs"], "seconds": note["seconds"]})
        names = [name for name in note["result"] if all(name in row for row in rows)]
        indices = [(numbers_N == number).nonzero()[:, 0] for number in range(1, k + 1)]
        found = KFold(rows, {name: statistics.fmean(row[name] for row in rows) for name in names},
                      {name: _deviation([row[name] for row in rows]) for name in names}, numbers_N,
                      in_order(parts, indices) if predict else None, str(trials.folder))
    print(found)
    return found


# --- the folds --------------------------------------------------------------------------------------------------------


def fold_numbers(count: int, k: int, labels: Any = None, groups: Any = None, seed: int = 0) -> torch.Tensor:
    """The fold [N] of each of ``count`` samples, 1 to k, at random.

    Without groups all folds have the same size, and the same number of samples of each class, to within one sample. Groups
    stay whole: from the largest to the smallest each one goes where fewest samples (of its classes) are.

    Raises:
        ValueError: k does not suit the number of samples or of groups, or labels are no classes.
    """
    if not isinstance(k, int) or isinstance(k, bool) or not 2 <= k <= count:
        raise ValueError(f"k must be a whole number from 2 to the number of samples, {count}; got {k!r}.")
    generator = np.random.default_rng(seed)
    shuffled_N = generator.permutation(count)
    classes_N = np.zeros(count, dtype=np.int64) if labels is None else _classes(labels, count, k)
    numbers_N = np.empty(count, dtype=np.int64)
    if groups is None:
        sorted_N = shuffled_N[np.argsort(classes_N[shuffled_N], kind="stable")]
        numbers_N[sorted_N] = np.arange(count) % k + 1  # dealt class by class, like cards
        return torch.from_numpy(numbers_N)
    groups_N = _column(groups, count, "groups")
    names, groups_N, sizes_G = np.unique(groups_N, return_inverse=True, return_counts=True)
    if len(names) < k:
        raise ValueError(f"Each fold needs a group of its own, and there are {len(names)} groups for k={k}. Lower k.")
    counts_GC = np.zeros((len(names), classes_N.max() + 1))
    np.add.at(counts_GC, (groups_N, classes_N), 1)
    weights_C, held_KC, fold_G = 1 / counts_GC.sum(0) ** 2, np.zeros((k, counts_GC.shape[1])), np.empty(len(names), int)
    order_G = generator.permutation(len(names))
    for group in order_G[np.argsort(-sizes_G[order_G], kind="stable")]:
        costs = zip(held_KC @ (weights_C * counts_GC[group]), held_KC.sum(1))  # of squares of the shares, if it goes there
        fold_G[group] = min(range(k), key=list(costs).__getitem__)
        held_KC[fold_G[group]] += counts_GC[group]
    numbers_N[:] = fold_G[groups_N] + 1
    found = np.bincount(numbers_N, minlength=k + 1)[1:]
    if found.max() > 1.5 * count / k:
        warn(f"Groups stay whole, so the folds differ in size, from {found.min()} to {found.max()} samples; the largest "
             f"group has {sizes_G.max()}. The mean over the folds counts each of them alike.")
    return torch.from_numpy(numbers_N)


def _column(values, count, name):
    """One entry for each sample, as an array [N]."""
    column = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if column.ndim == 2 and column.shape[1] == 1:
        column = column[:, 0]
    if column.shape != (count,):
        raise ValueError(f"{name} must have one entry for each of the {count} samples; got the shape "
                         f"{list(column.shape)}. Give a list, array or tensor [N].")
    return column


def _classes(labels, count, k):
    """Labels as numbers from 0 on, the classes being what is different."""
    column = _column(labels, count, "stratify")
    names, classes_N, sizes_C = np.unique(column, return_inverse=True, return_counts=True)
    if len(names) > max(_MOST_CLASSES * count, 2) or column.dtype.kind == "f" and not np.all(column == np.round(column)):
        raise ValueError(f"stratify must hold classes, and it holds {len(names)} different values among {count} samples, "
                         f"for example {column[0]}. For a regression leave it out, or give bins of the target: "
                         "torch.bucketize(y, torch.quantile(y, torch.tensor([0.25, 0.5, 0.75]))).")
    if sizes_C.max() < k:
        raise ValueError(f"Every class has fewer than k={k} samples, so none can be in all folds. Lower k to "
                         f"{sizes_C.max()} or less, or leave stratify out.")
    if sizes_C.min() < k:
        rare = {str(name): int(size) for name, size in zip(names, sizes_C) if size < k}
        warn(f"With k={k} some folds lack a class: {rare} samples. Metrics that need every class are not defined there.")
    return classes_N


def _labels_of(dataset):
    """The last entry of every sample, without reading samples where the dataset has its labels at hand."""
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[-1]
    if isinstance(dataset, Subset):
        return _column(_labels_of(dataset.dataset), len(dataset.dataset), "stratify")[np.asarray(dataset.indices)]
    if hasattr(dataset, "targets"):
        return dataset.targets
    sample = dataset[0]
    if not isinstance(sample, (tuple, list)) or len(sample) < 2:
        raise ValueError(f"stratify=True takes the last entry of each sample as its class, and a sample is a "
                         f"{type(sample).__name__}. Give the classes themselves: stratify=[…].")
    return [dataset[index][-1] for index in range(len(dataset))]


def _length(dataset):
    if isinstance(dataset, DataLoader):
        raise TypeError("kfold divides a dataset, and got a DataLoader. Give loader.dataset.")
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(f"kfold needs a dataset with a length and samples by number; {type(dataset).__name__} is read from "
                        "its beginning only. Read its samples into a list.")
    if isinstance(dataset, (tuple, Mapping)):
        raise TypeError(f"kfold needs a dataset of samples, and got a {type(dataset).__name__} of {len(dataset)}. For "
                        "arrays of inputs and labels give TensorDataset(x, y).")
    return len(dataset)


# --- is a fold trained on its own samples? ----------------------------------------------------------------------------


class _Noted(list):
    """The indices of a ``Subset``, which know whether somebody looked at them."""

    was_read = False

    def __getitem__(self, index):
        self.was_read = True
        return super().__getitem__(index)

    def __iter__(self):
        self.was_read = True
        return super().__iter__()

    def __len__(self):
        self.was_read = True
        return super().__len__()


class _Maker:
    """``make_trainer`` of one fold, and a look at what the trainer's loaders read."""

    def __init__(self, make_trainer, dataset, train_N, eval_N):
        self.make_trainer, self.dataset, self.masks = make_trainer, dataset, (train_N, eval_N)
        self.sizes = [int(mask.sum()) for mask in self.masks]

    def __call__(self):
        train_set, eval_set = (Subset(self.dataset, _Noted(mask.nonzero()[:, 0].tolist())) for mask in self.masks)
        trainer = self.make_trainer(train_set, eval_set)
        eval_loader = getattr(trainer, "eval_loader", None) or getattr(trainer, "test_loader", None)
        for name, loader, own, other in (("train", getattr(trainer, "train_loader", None), train_set, eval_set),
                                         ("eval", eval_loader, eval_set, train_set)):
            if loader is not None:
                self._require(name, [_behind(part) for part in _each(loader)], own, other)
        return trainer

    def _require(self, name, behind, own, other):
        """Every loader reads ``own``, as far as can be seen."""
        rule = (f"make_trainer(train_set, eval_set) must build {name}_loader from the {name}_set that it is given, which is "
                "another one for each fold")
        help_ = f"Write: trainer.{name}_loader = DataLoader({name}_set, …)."
        for chain in behind:
            if any(part is own for part in chain):
                continue
            if any(part is other for part in chain):
                raise ValueError(f"{rule}; it reads the other one. What is trained on would be evaluated too. {help_}")
            if any(part is self.dataset for part in chain):
                raise ValueError(f"{rule}; it reads the whole dataset. What is trained on would be evaluated too. {help_}")
        if not own.indices.was_read and not any(part is own for chain in behind for part in chain):
            raise ValueError(f"{rule}; nothing has looked at it, so the trainer reads data of its own. {help_}")


def _each(loader) -> Iterator[Any]:
    yield from loader.values() if isinstance(loader, dict) else [loader]


def _behind(loader):
    """The dataset of a loader, and what that is made of."""
    chain, part = [], getattr(loader, "dataset", loader)
    while part is not None and not any(part is other for other in chain):
        chain.append(part)
        part = getattr(part, "dataset", None)
    return chain


# --- predictions ------------------------------------------------------------------------------------------------------


def _predictor(count):
    """What keeps the predictions of a fold in its folder, as a function of (trainer, folder)."""

    def keep(trainer, folder):
        loader = trainer.eval_loader if trainer.eval_loader is not None else trainer.test_loader
        found = _plain(trainer.predict(_unshuffled(loader)))
        if any(len(leaf) != count for leaf in _leaves(found)):
            raise ValueError(f"Out-of-fold predictions need one output for each of the {count} samples; predict gave "
                             f"{sorted({len(leaf) for leaf in _leaves(found)})}. Where inference gives something else, call "
                             "kfold(…, predict=False).")
        if trainer.is_main:
            path = folder / _PREDICTIONS
            temporary = temporary_name(path)
            torch.save(found, temporary)
            temporary.replace(path)
        trainer.world.any(False)  # the others read it

    return keep


def _read_predictions(path):
    if not path.exists():
        raise ValueError(f"{path} is not there, because that fold was trained with predict=False. Call kfold with it again, "
                         "or with another ckpt_dir.")
    return torch.load(path, weights_only=True)


def _unshuffled(loader):
    """The same batches in the dataset's order."""
    if isinstance(loader, dict) or getattr(loader, "shuffle", False) is True:
        raise ValueError("Out-of-fold predictions stand in the dataset's order, so eval_loader must be one loader that does "
                         "not shuffle. Build it so, or call kfold(…, predict=False).")
    if not isinstance(loader, DataLoader) or isinstance(loader.sampler, SequentialSampler):
        return loader
    return DataLoader(loader.dataset, loader.batch_size or 64, collate_fn=loader.collate_fn, num_workers=loader.num_workers)


def _plain(found):
    """Tuples with names, dataclasses and objects of tensors as dicts: what is written holds no classes."""
    if isinstance(found, Mapping) or hasattr(found, "_asdict") or hasattr(found, "__dict__") and not isinstance(
            found, torch.Tensor):
        parts = found if isinstance(found, Mapping) else found._asdict() if hasattr(found, "_asdict") else vars(found)
        return {name: _plain(part) for name, part in parts.items() if part is not None}
    return type(found)(_plain(part) for part in found) if type(found) in (tuple, list) else found


def _leaves(found) -> Iterator[Any]:
    """The tensors of an output, and lists with an entry for each sample."""
    if isinstance(found, torch.Tensor) or isinstance(found, list) and not any(isinstance(x, torch.Tensor) for x in found):
        yield found
    elif isinstance(found, (tuple, list)):
        for part in found:
            yield from _leaves(part)
    elif isinstance(found, Mapping):
        for part in found.values():
            yield from _leaves(part)


def in_order(parts: Sequence[Any], indices: Sequence[torch.Tensor]) -> Any:
    """The outputs of all folds as one, sample by sample where ``indices`` say that it belongs."""
    first = parts[0]
    if isinstance(first, torch.Tensor):
        joined = torch.cat(list(parts))
        return torch.empty_like(joined).index_copy_(0, torch.cat(list(indices)), joined)
    if isinstance(first, Mapping):
        return {name: in_order([part[name] for part in parts], indices) for name in first}
    if isinstance(first, list) and not any(isinstance(part, torch.Tensor) for part in first):
        placed = dict(zip(torch.cat(list(indices)).tolist(), (entry for part in parts for entry in part)))
        return [placed[index] for index in range(len(placed))]
    return type(first)(in_order([part[i] for part in parts], indices) for i in range(len(first)))


def _deviation(values):
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
