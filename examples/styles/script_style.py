"""Script style: everything in one file, from top to bottom, and nothing but PyTorch.

    python examples/styles/script_style.py
"""

import torch
from digits import EPOCHS, LR, PATIENCE, SEED, device, figure, make_loaders, make_net
from torch import nn

train_loader, val_loader = make_loaders()
net = make_net()
loss_fn = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(net.parameters(), lr=LR)

torch.manual_seed(SEED)  # from here on dropout draws from it
history, best_loss, best_epoch = [], float("inf"), 0
for epoch in range(1, EPOCHS + 1):
    # train
    net.train()
    train_loader.sampler.set_epoch(epoch)
    loss_sum, right, count = 0.0, 0, 0
    for x, y in train_loader:
        x, y = x.to(device), y.to(device)
        pred = net(x)
        loss = loss_fn(pred, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(y)  # the last batch is shorter than the others, and counts for less
        right += (pred.argmax(1) == y).sum().item()
        count += len(y)
    row = {"epoch": epoch, "train_loss": loss_sum / count, "train_acc": right / count}

    # validate
    net.eval()
    loss_sum, right, count = 0.0, 0, 0
    with torch.no_grad():
        for x, y in val_loader:
            x, y = x.to(device), y.to(device)
            pred = net(x)
            loss_sum += loss_fn(pred, y).item() * len(y)
            right += (pred.argmax(1) == y).sum().item()
            count += len(y)
    row |= {"val_loss": loss_sum / count, "val_acc": right / count}
    history.append(row)
    print(", ".join(f"{name} {value:.6g}" for name, value in row.items()))

    # keep the best weights, and stop when it does not get better
    if row["val_loss"] < best_loss:
        best_loss, best_epoch = row["val_loss"], epoch
        torch.save(net.state_dict(), "script_style.pth")
    elif epoch - best_epoch >= PATIENCE:
        break

net.load_state_dict(torch.load("script_style.pth", weights_only=True))
print(f"best epoch {best_epoch}: val_loss {best_loss}, val_acc {history[best_epoch - 1]['val_acc']}")
print(figure(history[best_epoch - 1]["val_acc"]))
