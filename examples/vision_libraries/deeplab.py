"""Segmentation by DeepLabV3+ of segmentation-models-pytorch, with the library's losses and a pretrained encoder on request.

    python examples/vision_libraries/deeplab.py                         # a minute and a half on one core
    python examples/vision_libraries/deeplab.py --folder VOC2012        # a folder as that of Pascal VOC, see below
    python examples/vision_libraries/deeplab.py --pretrained            # begin with an encoder that the library downloads
    python examples/vision_libraries/deeplab.py --resume auto           # go on where it stopped
    python examples/vision_libraries/deeplab.py --full                  # a pretrained ResNet-50, larger images, for a GPU

It needs ``pip install segmentation-models-pytorch``; ``make examples-vision`` installs it. The images are made here: discs,
squares and diamonds, whose edges are void, as in Pascal VOC. There, images are in JPEGImages/<name>.jpg, classes in
SegmentationClass/<name>.png, and names in ImageSets/Segmentation/train.txt and val.txt. The figure is the mean IoU
(intersection over union), beside the better of two trivial answers: all is ground; all that is bright or dark is a disc.
samples/predictions.png in the folder of the run shows images, and the true and the predicted classes.
"""

# %% data
import sys
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import max_pool2d
from torch.utils.data import DataLoader, Dataset, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from examples.basics import unet  # noqa: E402
from template import Confusion, SampleOutputs, TemplateModel, run_main, seed_everything  # noqa: E402

VOID = 255  # pixels that do not count


def made(count, size, seed):
    """Images [N, 3, size, size] and the class of each pixel [N, size, size], void where two classes meet."""
    images, masks = unet.made(count, size, seed)
    tints = 0.1 * torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(seed))
    classes = masks[:, None].float()
    is_edge = max_pool2d(classes, 3, 1, 1) != -max_pool2d(-classes, 3, 1, 1)
    return (images + tints).clamp(0, 1), masks.masked_fill(is_edge[:, 0], VOID)


class PascalVOC(Dataset):
    """The same from a folder as that of VOC2012; images and masks are resized to a square."""

    def __init__(self, folder, part, size):
        self.folder, self.size = Path(folder), size
        self.names = (self.folder / f"ImageSets/Segmentation/{part}.txt").read_text(encoding="utf-8").split()

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        name, size = self.names[index], (self.size, self.size)
        image = Image.open(self.folder / f"JPEGImages/{name}.jpg").convert("RGB").resize(size)
        mask = Image.open(self.folder / f"SegmentationClass/{name}.png").resize(size, Image.Resampling.NEAREST)
        return torch.tensor(np.array(image)).permute(2, 0, 1) / 255, torch.tensor(np.array(mask)).long()


# %% the training
class Loss(nn.Module):
    """Dice and cross-entropy, as the library has them: Dice looks at each class as a whole, so small ones count as much."""

    def __init__(self):
        super().__init__()
        self.dice = smp.losses.DiceLoss("multiclass", ignore_index=VOID)
        self.cross_entropy = smp.losses.SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=VOID)

    def forward(self, scores, masks):
        return self.dice(scores, masks) + self.cross_entropy(scores, masks)


class Trainer(TemplateModel):
    def __init__(self, train, held_out, num_classes, encoder, pretrained, batch_size, lr):
        super().__init__()
        net = smp.DeepLabV3Plus(encoder, encoder_weights="imagenet" if pretrained else None, classes=num_classes,
                                decoder_channels=256 if pretrained else 64)
        self.model_list = [net]
        self.optimizer_list = [torch.optim.AdamW([
            {"params": net.encoder.parameters(), "lr": lr * (0.1 if pretrained else 1)},
            {"params": [*net.decoder.parameters(), *net.segmentation_head.parameters()]}], lr)]
        self.criterion = Loss()
        self.train_loader = DataLoader(train, batch_size, shuffle=True, drop_last=True)
        self.eval_loader = DataLoader(held_out, 50)
        confusion = Confusion(num_classes, ignore_index=VOID)
        self.eval_metrics = {"iou": confusion.iou("macro"), "class": confusion.iou(None)}
        self.lr_scheduler_type, self.key_metric = "onecycle", "iou"
        self.ckpt_dir, self.keep_checkpoints = "check_point/deeplab", 1
        self.callbacks = [SampleOutputs(predictions, every=2)]


def predictions(trainer):
    """Six images, below them the true classes, and below these the predicted ones."""
    images, masks = (torch.stack(part).to(trainer.device)
                     for part in zip(*(trainer.eval_loader.dataset[number] for number in range(6))))
    scores = trainer.inference(images)
    rows = images, *((classes / scores.shape[1]).clamp(0, 1)[:, None].expand_as(images)
                     for classes in (masks, scores.argmax(1)))
    return torch.cat([torch.cat(list(row), 2) for row in rows], 1)  # [3, 3 H, 6 W]


# %% run
def main(folder: str | None = None, epochs=6, count=400, size=48, encoder="resnet18", pretrained=False, batch_size=8,
         lr=3e-3, seed=0, resume: str | None = None):
    if folder is None:
        train, held_out = TensorDataset(*made(count, size, seed=1)), TensorDataset(*made(count // 4, size, seed=2))
        num_classes = len(unet.CLASSES)
    else:
        train, held_out, num_classes = PascalVOC(folder, "train", size), PascalVOC(folder, "val", size), 21
    seed_everything(seed)
    trainer = Trainer(train, held_out, num_classes, encoder, pretrained, batch_size, lr)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)

    guesses = [Confusion(num_classes, ignore_index=VOID) for _ in range(2)]
    for image, mask in held_out:
        gray = image.mean(0)
        for guess, confusion in zip((torch.zeros_like(mask), (gray - gray.median()).abs() > 0.25), guesses):
            confusion.update(guess.long()[None], mask[None])
    trivial = max(confusion.iou("macro").compute() for confusion in guesses)
    print(f"mean IoU {trainer.test()['iou']:.3f} (at least 0.7; trivial answer {trivial:.3f})")


if __name__ == "__main__":
    run_main(main, full={"encoder": "resnet50", "pretrained": True, "size": 320, "epochs": 50, "lr": 1e-3})
