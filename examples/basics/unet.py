"""Segmentation by a U-Net: which pixel belongs to what?

    python examples/basics/unet.py                            # half a minute on two cores; needs torch alone
    python examples/basics/unet.py --folder my_data           # my_data/images/1.png, my_data/masks/1.png, …; needs pillow
    python examples/basics/unet.py --resume auto              # go on where it stopped
    python examples/basics/unet.py --full                     # a wider network and more images, for a GPU

The images are made here: discs, squares and diamonds of any gray on an uneven ground, with noise. The figure is the mean IoU
(intersection over union) of the classes, beside the better of two trivial answers: all is ground; all that is bright or dark
is a disc. After each evaluation, TensorBoard and samples/predictions.png in the folder of the run show images, the true and
the predicted classes.
"""

# %% data
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import Confusion, SampleOutputs, TemplateModel, TensorLoader, run_main, seed_everything  # noqa: E402

CLASSES = ["ground", "disc", "square", "diamond"]


def made(count, size, seed):
    """Images [N, 1, size, size] and the class of each pixel [N, size, size]."""
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    slope = 0.3 * (torch.rand(count, 2, 1, 1, generator=random) - 0.5)
    images = 0.5 + slope[:, 0] * (x / size - 0.5) + slope[:, 1] * (y / size - 0.5)
    masks = torch.zeros(count, size, size, dtype=torch.long)
    for image, mask in zip(images, masks):
        for _ in range(3):
            (cx, cy, radius, gray), kind = torch.rand(4, generator=random), torch.randint(1, 4, (), generator=random)
            dx, dy, radius = (x - cx * size).abs(), (y - cy * size).abs(), 5 + 6 * radius
            inside = (torch.hypot(dx, dy), torch.maximum(dx, dy), dx + dy)[kind - 1] < radius
            image[inside], mask[inside] = 0.2 * gray + 0.7 * (gray > 0.5), kind
    return (images + 0.08 * torch.randn(images.shape, generator=random))[:, None], masks


def read(folder, names):
    """The same from gray images, and masks whose pixels are numbers of classes, all of one size that 4 divides."""
    from PIL import Image
    images, masks = ([np.array(Image.open(Path(folder, kind, name)).convert("L")) for name in names]
                     for kind in ("images", "masks"))
    return torch.tensor(np.stack(images))[:, None] / 255, torch.tensor(np.stack(masks)).long()


def flipped(images, masks):
    return (images.flip(-1), masks.flip(-1)) if torch.rand(()) < 0.5 else (images, masks)


# %% the network
def block(channels_in, channels_out):
    return nn.Sequential(*(layer for inputs in (channels_in, channels_out) for layer in (
        nn.Conv2d(inputs, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU())))


class UNet(nn.Module):
    """Images [B, 1, H, W] in, scores [B, C, H, W] out. After Ronneberger et al., "U-Net", 2015, arXiv:1505.04597."""

    def __init__(self, width, num_classes):
        super().__init__()
        self.down = nn.ModuleList([block(1, width), block(width, 2 * width)])
        self.bottom = block(2 * width, 4 * width)
        self.up = nn.ModuleList([block(6 * width, 2 * width), block(3 * width, width)])
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x):
        kept = []
        for down in self.down:
            kept.append(down(x))
            x = nn.functional.max_pool2d(kept[-1], 2)
        x = self.bottom(x)
        for up in self.up:
            x = up(torch.cat([nn.functional.interpolate(x, scale_factor=2), kept.pop()], 1))
        return self.head(x)


# %% the training
class Trainer(TemplateModel):
    def __init__(self, train, held_out, num_classes, width):
        super().__init__()
        net = UNet(width, num_classes)
        self.model_list = [net]
        self.optimizer_list = [torch.optim.AdamW(net.parameters(), 1e-2, weight_decay=1e-2)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader = TensorLoader(*train, batch_size=16, shuffle=True, transform=flipped)
        self.eval_loader = TensorLoader(*held_out, batch_size=50)
        confusion = Confusion(num_classes, names=CLASSES if num_classes == 4 else None)
        self.eval_metrics = {"iou": confusion.iou("macro"), "class": confusion.iou(None)}
        self.lr_scheduler_type, self.key_metric = "onecycle", "iou"
        self.ckpt_dir, self.keep_checkpoints = "check_point/unet", 1
        self.callbacks = [SampleOutputs(predictions)]


def predictions(trainer):
    """Six images, below them the true classes, and below these the predicted ones."""
    images, masks = (tensor[:6].to(trainer.device) for tensor in trainer.eval_loader.tensors)
    scores = trainer.inference(images)
    rows = images.clamp(0, 1), *(classes[:, None] / (scores.shape[1] - 1) for classes in (masks, scores.argmax(1)))
    return torch.cat([torch.cat(list(row), 2) for row in rows], 1)  # [1, 3 H, 6 W]


# %% run
def main(folder: str | None = None, epochs=8, count=400, size=48, width=8, resume: str | None = None):
    if folder is None:
        train, held_out = made(count, size, seed=1), made(count // 4, size, seed=2)
    else:
        names = sorted(path.name for path in Path(folder, "images").glob("*.png"))
        train, held_out = read(folder, names[len(names) // 5:]), read(folder, names[:len(names) // 5])
    num_classes = 1 + int(train[1].max())
    seed_everything(0)
    trainer = Trainer(train, held_out, num_classes, width)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)

    images, masks = held_out
    differs = (images[:, 0] - images.median()).abs() > 0.25
    trivial = max(Confusion(num_classes).update(guess.long(), masks).iou("macro").compute()
                  for guess in (torch.zeros_like(masks), differs))
    print(f"mean IoU {trainer.test()['iou']:.3f} (at least 0.75; trivial answer {trivial:.3f})")
    return trainer


if __name__ == "__main__":
    run_main(main, full={"epochs": 30, "count": 4000, "width": 32})
