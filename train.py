"""Handwritten digits, start to finish: the script to copy and change. Needs scikit-learn for its data.

    python train.py                         # ten seconds on two cores
    python train.py --resume auto           # continue the newest run where it stopped
    python train.py --lr 1e-3 --epochs 60
    python train.py --epochs 1 --profile    # which operators the time goes to
    tensorboard --logdir runs
"""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import Confusion, EarlyStopping, Profile, TemplateModel, option, parse_options, seed_everything


@dataclass
class Options:
    """Train a small CNN on scikit-learn's 1,797 handwritten digits."""

    epochs: int = option(30, "passes over the training data")
    batch_size: int = option(64, "samples per update")
    lr: float = option(3e-3, "learning rate after the warm-up")
    weight_decay: float = option(1e-2, "AdamW's weight decay")
    patience: int = option(15, "epochs without a better accuracy before stopping early")
    seed: int = option(0, "of weights, order and augmentation; the held-out fifth is always the same")
    resume: str | None = option(None, "auto, or the path of a checkpoint")
    profile: bool = option(False, "record a few updates and print the most expensive operators")


def digits_loaders(batch_size: int):
    """Train and eval loader: 1,438 and 359 images [1, 8, 8] in [0, 1], split at random but always alike."""
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(digits)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out, rest = order[: len(order) // 5], order[len(order) // 5 :]
    train, test = (TensorDataset(images[part], labels[part]) for part in (rest, held_out))
    return DataLoader(train, batch_size, shuffle=True), DataLoader(test, 256)


def small_cnn():
    def block(channels_in, channels_out):
        return [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]

    return nn.Sequential(*block(1, 32), *block(32, 64), nn.MaxPool2d(2), *block(64, 128), nn.AdaptiveAvgPool2d(2),
                         nn.Flatten(), nn.Dropout(0.3), nn.Linear(512, 10))


class Digits(TemplateModel):
    def __init__(self, options: Options):
        super().__init__()
        model = small_cnn()
        self.model_list = [model]
        self.optimizer_list = [torch.optim.AdamW(model.parameters(), options.lr, weight_decay=options.weight_decay)]
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        self.train_loader, self.eval_loader = digits_loaders(options.batch_size)

        self.seed = options.seed
        self.lr_scheduler_type = "cosine"
        self.warm_up_epoch = 2
        self.key_metric = "acc"
        self.keep_checkpoints = 3
        self.callbacks = [EarlyStopping(patience=options.patience), *([Profile()] if options.profile else [])]

    def metric(self, pred, y):
        confusion = Confusion(10).update(pred, y)
        return {"acc": confusion.accuracy(), "f1": confusion.f1("macro")}


def main():
    options = parse_options(Options)
    seed_everything(options.seed)  # before the model draws its weights
    trainer = Digits(options)
    trainer.check_init(arg=options)
    if options.resume:
        trainer.load_state(options.resume)
    else:
        trainer.get_model_info(torch.zeros(1, 1, 8, 8))

    for epoch in trainer.epochs(options.epochs):
        trainer.train_loop(write_params=epoch % 10 == 0)
        trainer.eval()


if __name__ == "__main__":
    main()
