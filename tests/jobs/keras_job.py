"""Small ``KerasModel`` objects; ``python -m keras_job`` writes to ``results.pth`` what ``fit_ddp`` gives a program."""

import torch
from tiny import tiny_data, tiny_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import History, KerasModel

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


def plain(callbacks=(), **kwargs):
    """Arguments of a ``fit`` that draws nothing and writes no events."""
    return {"plot": False, "seed": 3, "patience": None, "tensorboard": False} | kwargs | {
        "callbacks": [*callbacks, History(png=False)]}


def fitted(model, epochs=2, shuffle=False, **kwargs):
    return model.fit(*loaders(shuffle), epochs=epochs, **plain(**kwargs))


def weights_of(model):
    return [value.clone() for value in model.net.state_dict().values()]


def are_equal(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


if __name__ == "__main__":
    model = model_of()
    model.fit_ddp(2, *loaders(), epochs=2, **plain())
    torch.save({"history": model.history, "weights": weights_of(model)}, "results.pth")
