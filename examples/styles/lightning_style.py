"""Lightning style: the subclass of class_style.py, run by Lightning's Trainer with Lightning's callbacks.

    pip install lightning
    python examples/styles/lightning_style.py
"""

import lightning
import torch
from class_style import Trainer
from digits import EPOCHS, PATIENCE, figure
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from template.tools.lightning import as_lightning

if __name__ == "__main__":
    module = as_lightning(Trainer())
    checkpoint = ModelCheckpoint(monitor="val_loss", mode="min")
    stopping = EarlyStopping(monitor="val_loss", mode="min", patience=PATIENCE)
    lightning.Trainer(max_epochs=EPOCHS, callbacks=[checkpoint, stopping]).fit(module)

    module.load_state_dict(torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"])
    best = min(module.history, key=lambda row: row["val_loss"])
    print(f"best epoch {best['epoch']}: val_loss {best['val_loss']}, val_acc {best['val_acc']}")
    print(figure(best["val_acc"]))
