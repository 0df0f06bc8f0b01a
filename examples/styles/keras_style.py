"""Keras style: no loop and no subclass; ``fit`` does it all.

    python examples/styles/keras_style.py
"""

import torch
from digits import EPOCHS, LR, PATIENCE, SEED, figure, make_loaders, make_net
from torch import nn

from template import Confusion, KerasModel

if __name__ == "__main__":
    train_loader, val_loader = make_loaders()
    net = make_net()
    model = KerasModel(net, nn.CrossEntropyLoss(), {"acc": Confusion(10).accuracy()},
                       torch.optim.Adam(net.parameters(), lr=LR))
    history = model.fit(train_loader, val_loader, epochs=EPOCHS, patience=PATIENCE, monitor="val_loss",
                        ckpt_path="check_point/keras_style.pth", seed=SEED)

    best = min(range(len(history)), key=lambda row: history["val_loss"][row])
    print(f"best epoch {history['epoch'][best]}: val_loss {history['val_loss'][best]}, val_acc {history['val_acc'][best]}")
    print(figure(history["val_acc"][best]))
