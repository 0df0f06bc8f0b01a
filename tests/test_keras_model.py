"""``KerasModel`` against a plain loop of PyTorch; kill and resume, several processes, steps of one's own."""

import copy

import pytest
import torch
from tiny import tiny_data, tiny_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import KerasModel

BATCH = 10


def loaders(shuffle=False):
    """53 training and 23 validation samples: both end with a short batch."""
    return (DataLoader(TensorDataset(*tiny_data()), BATCH, shuffle=shuffle),
            DataLoader(TensorDataset(*tiny_data(23, seed=5)), BATCH))


def right(pred, y):
    return (pred.argmax(1) == y).float().mean()


def model_of(net=None, metrics=None, **kwargs):
    net = tiny_model(dropout=0.0) if net is None else net
    kwargs.setdefault("optimizer", torch.optim.SGD(net.parameters(), 0.1, momentum=0.9))
    return KerasModel(net, nn.CrossEntropyLoss(), {"acc": right} if metrics is None else metrics, **kwargs)


def fitted(model, epochs=2, **kwargs):
    train, val = loaders()
    return model.fit(train, val, epochs=epochs, **({"plot": False, "seed": 3, "patience": None} | kwargs))


def plain_loop(epochs):
    """Means over samples, as a person would publish them; the weights of each epoch."""
    net = tiny_model(dropout=0.0)
    optimizer, criterion = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), nn.CrossEntropyLoss()
    train, val = loaders()
    rows, weights = [], []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "lr": 0.1}
        for part, loader in (("train", train), ("val", val)):
            total = {"loss": 0.0, "acc": 0.0, "count": 0}
            for x, y in loader:
                with torch.set_grad_enabled(part == "train"):
                    pred = net(x)
                    loss = criterion(pred, y)
                if part == "train":
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                total["loss"] += loss.item() * len(y)
                total["acc"] += right(pred, y).item() * len(y)
                total["count"] += len(y)
            row |= {f"{part}_{name}": total[name] / total["count"] for name in ("loss", "acc")}
        rows.append(row)
        weights.append(copy.deepcopy(net.state_dict()))
    return rows, weights


def test_its_numbers_and_weights_are_those_of_a_plain_loop():
    rows, weights = plain_loop(4)
    model = model_of()
    fitted(model, 4)
    history = model.history
    assert history["epoch"] == [1, 2, 3, 4]
    for name in ("train_loss", "val_loss", "train_acc", "val_acc", "lr"):
        assert history[name] == pytest.approx([row[name] for row in rows], abs=1e-12), name
    best = min(range(4), key=lambda epoch: rows[epoch]["val_loss"])
    for name, value in model.net.state_dict().items():
        assert torch.equal(value, weights[best][name])
