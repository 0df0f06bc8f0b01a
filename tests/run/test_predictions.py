"""``predict``: every kind of data and output, the same numbers as the models themselves give."""

import types
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model, tiny_trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from template import TensorLoader

Pair = namedtuple("Pair", "first, second")
X, Y = tiny_data(23, seed=5)


@dataclass
class Record:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


class Gives(nn.Module):
    """Returns what ``make`` makes of the input and the output of a tiny model."""

    def __init__(self, make):
        super().__init__()
        self.inner, self.make = tiny_model(dropout=0.0), make

    def forward(self, x):
        return self.make(x, self.inner(x))


def predicted(make, data, **attributes):
    trainer = Tiny(model=Gives(make))
    vars(trainer).update(attributes)
    return trainer.predict(data), trainer.model_list[0].inner(X).detach()


@pytest.mark.parametrize("data", [
    X, X.double(), X.numpy(), X.numpy().astype(np.float64), TensorDataset(X), TensorDataset(X, Y), [X[:9], X[9:]],
    [(X[:9],), (X[9:],)], [(X[:9], Y[:9]), (X[9:], Y[9:])], DataLoader(TensorDataset(X, Y), 4),
    DataLoader(TensorDataset(X), 4), [X.double()], (X[i:i + 2] for i in range(0, 23, 2)),
], ids=["tensor", "float64", "array", "float64 array", "dataset", "dataset with labels", "list", "list of 1",
        "list of pairs", "loader with labels", "loader", "list of float64", "generator"])
def test_every_kind_of_data_gives_a_row_for_each_sample(data):
    given, expected = predicted(lambda x, y: y, data)
    torch.testing.assert_close(given, expected)


class Rows(Dataset):
    """Samples that are no batches: of 23 rows with 6 numbers."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        return X[index]


def test_a_dataset_is_read_sample_by_sample_and_not_taken_for_batches():
    given, expected = predicted(lambda x, y: y, Rows())
    torch.testing.assert_close(given, expected)


def test_a_large_tensor_is_read_in_batches_of_the_evaluations_size():
    sizes = []
    given, expected = predicted(lambda x, y: sizes.append(len(x)) or y, X, eval_loader=DataLoader(TensorDataset(X, Y), 5))
    assert sizes == [5, 5, 5, 5, 3]
    torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("make, parts", [
    (lambda x, y: (y, x), lambda out: (type(out) is tuple, *out)),
    (lambda x, y: [y, x], lambda out: (type(out) is list, *out)),
    (lambda x, y: Pair(y, x), lambda out: (type(out) is Pair, out.first, out.second)),
    (lambda x, y: {"logits": y, "x": x}, lambda out: (type(out) is dict, out["logits"], out["x"])),
    (lambda x, y: OrderedDict(logits=y, x=x), lambda out: (list(out) == ["logits", "x"], out["logits"], out["x"])),
    (lambda x, y: Record(y), lambda out: (type(out) is Record and out.loss is None, out.logits, X)),
    (lambda x, y: types.SimpleNamespace(logits=y, x=x), lambda out: (True, out.logits, out.x)),
    (lambda x, y: (y, (x, x)), lambda out: (out[1][0].equal(out[1][1]), out[0], out[1][0])),
], ids=["tuple", "list", "namedtuple", "dict", "OrderedDict", "dataclass", "object", "nested"])
def test_outputs_of_several_parts_are_joined_part_by_part(make, parts):
    given, expected = predicted(make, X.split(9))
    is_right, first, second = parts(given)
    assert is_right
    torch.testing.assert_close(first, expected)
    assert torch.equal(second, X)


def test_a_list_with_an_entry_for_each_sample_stays_one_list():
    given, expected = predicted(lambda x, y: [{"boxes": row} for row in y], X.split(9))
    torch.testing.assert_close(torch.stack([entry["boxes"] for entry in given]), expected)


def test_anything_else_is_a_list_with_one_output_for_each_batch():
    given, expected = predicted(lambda x, y: torch.distributions.Categorical(logits=y), X.split(9))
    assert [len(output.probs) for output in given] == [9, 9, 5]
    torch.testing.assert_close(torch.cat([output.probs for output in given]), expected.softmax(1))


def test_one_number_for_each_batch_gives_as_many_numbers():
    given, _ = predicted(lambda x, y: x.sum(), X.split(9))
    torch.testing.assert_close(given, torch.stack([part.sum() for part in X.split(9)]))


def identity(data, **options):
    """What ``predict`` gives for models that return their input."""
    trainer = Tiny(model=Gives(lambda x, y: x))
    return trainer.predict(data, **options)


SHUFFLED = {
    "DataLoader": lambda: DataLoader(TensorDataset(X, Y), 4, shuffle=True),
    "not sliced": lambda: DataLoader(list(zip(X, Y)), 4, shuffle=True),
    "subset": lambda: DataLoader(TensorDataset(X, Y), 4, sampler=SubsetRandomSampler(range(5, 20))),
    "weighted": lambda: DataLoader(TensorDataset(X, Y), 4, sampler=WeightedRandomSampler(torch.ones(23), 30)),
    "TensorLoader": lambda: TensorLoader(X, Y, batch_size=4, shuffle=True),
}


@pytest.mark.parametrize("kind", SHUFFLED)
def test_labels_belong_to_the_predictions_also_from_a_loader_that_shuffles(kind):
    x, y = identity(SHUFFLED[kind](), labels=True)
    expected = {tuple(row): label for row, label in zip(X.tolist(), Y.tolist())}
    assert [expected[tuple(row)] for row in x.tolist()] == y.tolist()
    assert x.tolist() != X.tolist()


@pytest.mark.parametrize("kind", SHUFFLED)
def test_a_loader_that_shuffles_is_told_of_where_nobody_can_know_its_order(kind):
    with pytest.warns(UserWarning, match=r"in no order that you can know\. Call predict\(loader, labels=True\)"):
        identity(SHUFFLED[kind]())


@pytest.mark.parametrize("data, expected", [
    ([(X[:9], X[:9], Y[:9]), (X[9:], X[9:], Y[9:])], Y),
    ([(X[:9], Y[:9].numpy()), (X[9:], Y[9:].numpy())], Y),
    ([(X[:9], (Y[:9], -Y[:9])), (X[9:], (Y[9:], -Y[9:]))], (Y, -Y)),
    ([(X[:2], ["a", "b"]), (X[2:3], ["c"])], ["a", "b", "c"]),
    (TensorDataset(X, Y), Y),
], ids=["two inputs", "arrays", "two labels", "text", "dataset"])
def test_labels_may_be_anything_that_is_last_in_a_batch(data, expected):
    trainer = Tiny(model=Gives(lambda x, y: x))
    trainer.inference = lambda x: x
    labels = trainer.predict(data, labels=True)[1]
    same = [torch.equal(*pair) if isinstance(pair[0], torch.Tensor) else pair[0] == pair[1]
            for pair in (zip(labels, expected) if isinstance(expected, tuple) else [(labels, expected)])]
    assert same and all(same)


@pytest.mark.parametrize("name", ["labels", "label"])
def test_labels_of_a_dict_are_the_entry_of_that_name(name):
    trainer = Tiny(model=Gives(lambda x, y: x))
    trainer.inference = lambda batch: batch["x"]
    x, y = trainer.predict([{"x": X[:9], name: Y[:9]}, {"x": X[9:], name: Y[9:]}], labels=True)
    assert torch.equal(x, X) and torch.equal(y, Y)


class Refills:
    """Gives every batch in the same memory."""

    def __iter__(self):
        x, y = torch.empty(5, 6), torch.empty(5, dtype=torch.long)
        for start in range(0, 20, 5):
            x.copy_(X[start:start + 5]), y.copy_(Y[start:start + 5])
            yield x, y


def test_predictions_and_labels_of_a_loader_that_fills_its_memory_again_are_kept():
    x, y = identity(Refills(), labels=True)
    assert torch.equal(x, X[:20]) and torch.equal(y, Y[:20])


@pytest.mark.parametrize("data", [X, [(X,)], [{"x": X}]], ids=["tensor", "inputs alone", "dict"])
def test_labels_that_are_not_there_are_refused_in_words(data):
    trainer = Tiny(inference=lambda batch: X)
    with pytest.raises(ValueError, match=r"takes batches \(x, …, y\), or dicts with an entry labels or label; got"):
        trainer.predict(data, labels=True)


def test_outputs_of_different_lengths_are_refused_in_words():
    with pytest.raises(ValueError, match=r"other dimensions must be the same; got \[\(5,\), \(9,\)\]\. Pad the inputs"):
        predicted(lambda x, y: y @ y.T, X.split(9))


def test_a_loader_without_batches_is_refused_in_words():
    with pytest.raises(ValueError, match="predict needs at least one batch"):
        predicted(lambda x, y: y, [])


def test_it_says_once_that_the_best_weights_are_others(capsys):
    trainer = tiny_trainer(key_metric="acc")
    trainer.fit(2)
    trainer.best_epoch["acc"] = 1
    capsys.readouterr()
    trainer.predict(X)
    trainer.predict(X)
    assert capsys.readouterr().out == ("predict uses the weights of now, epoch 2. The best ones are of epoch 1: "
                                       "trainer.use_best() takes them.\n")
    trainer.best_epoch["acc"] = 2
    trainer.evaluator.told_weights = False
    trainer.predict(X)
    assert not capsys.readouterr().out
