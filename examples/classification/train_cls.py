"""Classify any dataset of (x, y), with all settings in a YAML file. Real handwritten digits are the data.

    python examples/classification/train_cls.py                           # twenty seconds on two cores; needs scikit-learn
    python examples/classification/train_cls.py --lr0 1e-3 --epochs 50    # and: pip install jsonargparse pyyaml
    python examples/classification/train_cls.py --resume auto             # continue where it stopped
    python examples/classification/train_cls.py --config my.yml           # other settings; --print-config writes a file

For data of your own, replace ``digits()`` by two datasets and ``network()`` by your model. Accuracy and F1 are those of
scikit-learn, over the whole evaluation.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, f1_score
from torch import nn
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import Stored, TemplateModel  # noqa: E402
from template.tools.configure import configure  # noqa: E402
from template.tools.training_keys import TrainingKeys  # noqa: E402

SETTINGS = Path(__file__).with_name("cls.yml")


@dataclass
class Keys(TrainingKeys):
    """The keys of the file; the last ones are those of this trainer."""

    width: int = 32
    """Channels of the first layer."""
    label_smoothing: float = 0.0
    """Share of the probability that is spread over all classes."""
    seed: int | None = None
    """Of weights, order and augmentation; null: one is drawn."""
    resume: str | None = None
    """auto, or the path of a checkpoint: continue that run."""


def digits():
    """1,438 images [1, 8, 8] in [0, 1] to train on and 359 to evaluate on, split at random but always alike."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out, rest = order[: len(order) // 5], order[len(order) // 5 :]
    return [TensorDataset(images[part], torch.tensor(labels)[part]) for part in (rest, held_out)]


def network(channels, width, num_classes):
    """For images of any size."""
    def block(channels_in, channels_out):
        return [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]

    return nn.Sequential(*block(channels, width), *block(width, 2 * width), nn.MaxPool2d(2), *block(2 * width, 4 * width),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(16 * width, num_classes))


class Classifier(TemplateModel):
    def __init__(self, keys: Keys, train_set, eval_set):
        super().__init__()
        self.keys = keys
        x, _ = train_set[0]
        num_classes = 1 + max(int(y) for _, y in train_set)
        self.model_list = [network(len(x), keys.width, num_classes)]
        self.criterion = nn.CrossEntropyLoss(label_smoothing=keys.label_smoothing)
        self.train_loader, self.eval_loader = keys.loaders(train_set, eval_set)
        self.key_metric = "acc"
        self.eval_metrics = {"acc": Stored(of_classes(accuracy_score)),
                             "f1": Stored(of_classes(partial(f1_score, average="macro")))}
        keys.apply(self)


def of_classes(score):
    """A score of scikit-learn that takes classes, for logits."""
    return lambda logits, y: score(y, logits.argmax(1))


def main(argv=None):
    train_set, eval_set = digits()
    trainer = configure(Classifier, argv, config=SETTINGS, train_set=train_set, eval_set=eval_set)
    trainer.check_init()
    if trainer.keys.resume:
        trainer.load_state(trainer.keys.resume)
    for _ in trainer.epochs(trainer.total_epochs):
        trainer.train_loop()
        trainer.eval()
    acc, labels = trainer.test()["acc"], eval_set.tensors[1]
    trainer.keys.after_training(trainer)
    print(f"accuracy {acc:.4f} (at least 0.98; most frequent class {labels.bincount().max() / len(labels):.3f})")
    return trainer


if __name__ == "__main__":
    main()
