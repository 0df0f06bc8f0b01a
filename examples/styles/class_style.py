"""Class style: a subclass of the template says what is special about this training, and the loop stays in sight.

    python examples/styles/class_style.py
"""

import torch
from digits import EPOCHS, LR, PATIENCE, SEED, figure, make_loaders, make_net
from torch import nn

from template import EarlyStopping, TemplateModel


class Trainer(TemplateModel):
    def __init__(self):
        super().__init__()
        net = make_net()
        self.model_list = [net]
        self.optimizer_list = [torch.optim.Adam(net.parameters(), lr=LR)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader, self.eval_loader = make_loaders()
        self.seed = SEED
        self.key_metric = "tol_loss"
        self.train_metrics = True


if __name__ == "__main__":
    trainer = Trainer()
    trainer.callbacks = [EarlyStopping(patience=PATIENCE, restore_best=True)]
    trainer.check_init()
    for _ in trainer.epochs(EPOCHS):
        trainer.train_loop()
        trainer.eval()

    best = trainer.history[trainer.best_epoch["tol_loss"] - 1]
    print(f"best epoch {best['epoch']}: val_loss {best['eval/tol_loss']}, val_acc {best['eval/acc']}")
    print(figure(best["eval/acc"]))
