"""Function style: the same steps as functions, which the next script can import.

    python examples/styles/function_style.py
"""

import torch
from digits import EPOCHS, LR, PATIENCE, SEED, device, figure, make_loaders, make_net
from torch import nn


def run_epoch(net, loader, loss_fn, optimizer=None):
    """``(mean loss, accuracy)`` over the samples; trains where an optimizer is given, and only looks where none is."""
    net.train(optimizer is not None)
    loss_sum, right, count = 0.0, 0, 0
    with torch.set_grad_enabled(optimizer is not None):
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            pred = net(x)
            loss = loss_fn(pred, y)
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            loss_sum += loss.item() * len(y)
            right += (pred.argmax(1) == y).sum().item()
            count += len(y)
    return loss_sum / count, right / count


def train_model(net, optimizer, loss_fn, train_loader, val_loader, epochs, patience, path):
    """Train until ``val_loss`` has not fallen for ``patience`` epochs; returns the history, with the best weights loaded."""
    history, best = [], None
    for epoch in range(1, epochs + 1):
        train_loader.sampler.set_epoch(epoch)
        train_loss, train_acc = run_epoch(net, train_loader, loss_fn, optimizer)
        val_loss, val_acc = run_epoch(net, val_loader, loss_fn)
        history.append({"epoch": epoch, "train_loss": train_loss, "train_acc": train_acc,
                        "val_loss": val_loss, "val_acc": val_acc})
        print(", ".join(f"{name} {value:.6g}" for name, value in history[-1].items()))
        if best is None or val_loss < best["val_loss"]:
            best = history[-1]
            torch.save(net.state_dict(), path)
        elif epoch - best["epoch"] >= patience:
            break
    net.load_state_dict(torch.load(path, weights_only=True))
    return history


if __name__ == "__main__":
    train_loader, val_loader = make_loaders()
    net = make_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    torch.manual_seed(SEED)  # from here on dropout draws from it
    history = train_model(net, optimizer, nn.CrossEntropyLoss(), train_loader, val_loader, EPOCHS, PATIENCE,
                          "function_style.pth")
    best = min(history, key=lambda row: row["val_loss"])
    print(f"best epoch {best['epoch']}: val_loss {best['val_loss']}, val_acc {best['val_acc']}")
    print(figure(best["val_acc"]))
