"""Batches that are mappings but no dicts, or objects of classes: counted, moved, copied and given to the model."""

from collections import ChainMap, OrderedDict, UserDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model, weights
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader

from template.data.nested import copied, count_samples, first_tensor, to_device


class ReadOnly(Mapping):
    def __init__(self, values):
        self._values = values

    def __getitem__(self, name):
        return self._values[name]

    def __iter__(self):
        return iter(self._values)

    def __len__(self):
        return len(self._values)


class Encoding(UserDict):
    """Its entries are attributes too, and an unknown one is an error without a text, as in transformers."""

    def __getattr__(self, name):
        if name == "data" or name not in self.data:
            raise AttributeError
        return self.data[name]

    def to(self, device):
        self.data = {name: value.to(device) for name, value in self.data.items()}
        return self


@dataclass(frozen=True)
class Record:
    x: torch.Tensor
    y: torch.Tensor
    name: str = "train"


class Moving:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def to(self, device):
        return Moving(self.x.to(device), self.y.to(device))


class Graphs:
    """Four nodes of each graph in one long tensor."""

    def __init__(self, x, y):
        self.x, self.y, self.num_graphs = x.repeat_interleave(4, 0), y, len(y)

    def to(self, device):
        self.x, self.y = self.x.to(device), self.y.to(device)
        return self


MAPPINGS = {
    "dict": dict, "OrderedDict": OrderedDict, "UserDict": UserDict, "Encoding": Encoding, "ReadOnly": ReadOnly,
    "MappingProxyType": MappingProxyType, "ChainMap": lambda values: ChainMap({"x": values["x"]}, values),
}
OBJECTS = {"dataclass": Record, "with to()": Moving, "graphs": Graphs,
           **{name: lambda x, y, kind=kind: kind({"x": x, "y": y}) for name, kind in MAPPINGS.items()}}


class OwnLoss(nn.Module):
    """Takes ``(x, y)``, or one object that has these."""

    def __init__(self):
        super().__init__()
        self.net = tiny_model(dropout=0.0)

    def forward(self, x, y=None):
        if y is None:
            x, y = (x.x[::4] if isinstance(x, Graphs) else x.x), x.y
        return nn.functional.cross_entropy(self.net(x), y)


def batches(make):
    """Of ten, and three at the end: with two per update each has its true weight only if its samples are counted."""
    x, y = tiny_data()
    return [make(*pair) for pair in zip(x.split(10), y.split(10))]


def trained(make, criterion=None, model=None):
    trainer = Tiny(OwnLoss() if model is None else model, train_loader=batches(make), eval_loader=batches(make),
                   criterion=criterion, accumulate_steps=2)
    trainer.check_init(use_tb=False)
    losses = trainer.train_loop(), trainer.eval()
    return weights(trainer), losses


@pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS)
def test_a_model_with_a_loss_of_its_own_is_trained_as_by_a_plain_loop(make):
    model = OwnLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    x, y = tiny_data()
    for part in zip(x.split(20), y.split(20)):
        optimizer.zero_grad()
        model(*part).backward()
        optimizer.step()
    found, (losses, score) = trained(make)
    assert torch.allclose(found, torch.cat([p.detach().double().flatten() for p in model.parameters()]), atol=1e-6)
    assert score == pytest.approx(model(x, y).item(), rel=1e-5)


@pytest.mark.parametrize("kind", MAPPINGS.values(), ids=MAPPINGS)
def test_a_mapping_of_inputs_beside_labels_is_spread_too(kind):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny_model(dropout=0.0)

        def forward(self, x):
            return self.net(x)

    expected = trained(lambda x, y: ({"x": x}, y), nn.CrossEntropyLoss(), Named())
    found = trained(lambda x, y: (kind({"x": x}), y), nn.CrossEntropyLoss(), Named())
    assert torch.equal(found[0], expected[0]) and found[1] == expected[1]


def tensors(batch):
    return [batch[name] if isinstance(batch, Mapping) else getattr(batch, name) for name in ("x", "y")]


@pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS)
def test_it_is_counted_moved_and_copied(make):
    batch = make(*tiny_data(10))
    assert count_samples(batch) == 10
    again = copied(batch)
    tensors(batch)[1].fill_(7)
    assert type(again) is type(batch) or isinstance(again, dict)
    assert not (tensors(again)[1] == 7).any()
    kept = copied(again)
    moved = to_device(again, "meta")
    assert type(moved) is type(batch) or isinstance(moved, dict)
    assert [part.device.type for part in tensors(moved)] == ["meta", "meta"]
    if not isinstance(again, Encoding | Graphs):  # which move themselves
        assert [part.device.type for part in tensors(again)] == ["cpu", "cpu"]
    assert torch.equal(tensors(kept)[0][0], tiny_data(10)[0][0])


def test_what_lies_deeper_is_moved_too():
    batch = UserDict(inputs=UserDict(x=torch.zeros(2)), records=[Record(torch.zeros(2), torch.zeros(2))])
    moved = to_device(batch, "meta")
    assert moved["inputs"]["x"].is_meta and moved["records"][0].x.is_meta and moved["records"][0].name == "train"
    assert first_tensor(batch) is batch["inputs"]["x"]


def test_packed_sequences_beside_labels_weigh_their_sequences():
    x, y = tiny_data(6)
    batch = (pack_sequence([row[: 6 - i] for i, row in enumerate(x)]), y)
    assert count_samples(batch) == 6 and count_samples(batch[0]) == 6
    moved = to_device(batch, "meta")
    assert moved[0].data.is_meta and moved[1].is_meta


def test_a_mapping_that_a_collate_function_of_workers_makes_arrives():
    x, y = tiny_data(10)
    loader = DataLoader(list(zip(x, y)), 5, num_workers=1, collate_fn=collate)
    trainer = Tiny(OwnLoss(), train_loader=loader, eval_loader=None, criterion=None)
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    assert trainer.global_step == 2


def collate(samples):
    return Encoding(x=torch.stack([x for x, _ in samples]), y=torch.stack([y for _, y in samples]))


def test_a_mapping_that_the_default_methods_cannot_split_is_named():
    trainer = Tiny(train_loader=batches(lambda x, y: UserDict(x=x, y=y)), eval_loader=None)
    trainer.check_init(use_tb=False)
    with pytest.raises(TypeError, match=r"this one is a UserDict with keys \['x', 'y'\]"):
        trainer.train_loop()
