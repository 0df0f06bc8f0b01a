"""Image classification by a ResNet: shifted and noisy copies, label smoothing, SGD with a cosine schedule, averaged weights.

    python examples/vision/resnet.py                          # half a minute on two cores; needs scikit-learn for its data
    python examples/vision/resnet.py --folder my_images       # my_images/<class>/<any>.png or .jpg; needs pillow
    python examples/vision/resnet.py --resume auto            # go on where it stopped
    python examples/vision/resnet.py --full                   # wider, 100 epochs, bf16 and channels_last, for a GPU

The data are scikit-learn's 1,797 handwritten digits, 8 by 8 pixels, and the figure is the accuracy on the fifth that is held
out. interpret/ in the folder of the run shows the images with the largest losses, and which class is taken for which.
"""

# %% data
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import EMA, Interpret, TemplateModel, TensorLoader, build_optimizer, run_main, seed_everything  # noqa: E402


def digits():
    """Images [N, 1, 8, 8] in [0, 1], their classes [N], and the names of the classes."""
    from sklearn.datasets import load_digits
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels), list("0123456789")


def read(folder, size):
    """The same from a folder for each class: images [N, 3, size, size]."""
    from PIL import Image
    names = sorted(path.name for path in Path(folder).iterdir() if path.is_dir())
    files = [(path, label) for label, name in enumerate(names) for path in sorted(Path(folder, name).iterdir())]
    pixels = [np.array(Image.open(path).convert("RGB").resize((size, size))) for path, _ in files]
    return torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2) / 255, torch.tensor([label for _, label in files]), names


def shifted(images, labels):
    """Each image by up to an eighth of its size in each direction, and with noise."""
    size, most = images.shape[-1], images.shape[-1] // 8
    y, x = (torch.arange(size, device=images.device) + torch.randint(-most, most + 1, (len(images), 1), device=images.device)
            for _ in range(2))
    rows = torch.arange(len(images), device=images.device)[:, None, None]
    images = images[rows, :, y.clamp(0, size - 1)[:, :, None], x.clamp(0, size - 1)[:, None]].permute(0, 3, 1, 2)
    return images + 0.05 * torch.randn_like(images), labels


# %% the network
class Block(nn.Module):
    """Two convolutions beside a shortcut. After He et al., "Deep Residual Learning", 2015, arXiv:1512.03385."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        nn.init.zeros_(self.branch[-1].weight)          # each block begins as its shortcut
        self.shortcut = nn.Identity() if (inputs, stride) == (outputs, 1) else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return nn.functional.relu(self.branch(x) + self.shortcut(x))


def resnet(channels, num_classes, width, blocks):
    """Images [B, channels, H, W] in, scores [B, num_classes] out; three stages, each at half the resolution."""
    layers = [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for stage in range(3):
        for number in range(blocks):
            outputs = width * 2 ** stage
            layers.append(Block(inputs, outputs, stride=2 if stage and not number else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes))


# %% the training
class Trainer(TemplateModel):
    def __init__(self, train, held_out, names, width, blocks, epochs):
        super().__init__()
        net = resnet(train[0].shape[1], len(names), width, blocks)
        self.model_list = [net]
        self.optimizer_list = build_optimizer("SGD", net, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        self.train_loader = TensorLoader(*train, batch_size=64, shuffle=True, transform=shifted)
        self.eval_loader = TensorLoader(*held_out, batch_size=256)
        self.lr_scheduler_type, self.warm_up_epoch = "cosine", 1
        self.ckpt_dir, self.keep_checkpoints = "check_point/resnet", 1
        self.callbacks = [EMA(0.98), Interpret(class_names=names, every=epochs)]


# %% run
def main(folder: str | None = None, size=64, epochs=15, width=24, blocks=1, amp: str | None = None, channels_last=False,
         seed=0, resume: str | None = None):
    images, labels, names = digits() if folder is None else read(folder, size)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out, train = order[:len(order) // 5], order[len(order) // 5:]
    seed_everything(seed)
    trainer = Trainer((images[train], labels[train]), (images[held_out], labels[held_out]), names, width, blocks, epochs)
    trainer.amp, trainer.channels_last = amp, channels_last
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    most_frequent = (labels[held_out] == labels[train].mode().values).float().mean()
    print(f"accuracy {trainer.test()['acc']:.3f} (at least 0.96; most frequent class {most_frequent:.3f})")
    return trainer


if __name__ == "__main__":
    run_main(main, full={"epochs": 100, "width": 64, "blocks": 2, "amp": "bf16", "channels_last": True})
