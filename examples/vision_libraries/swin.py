"""Image classification by a Swin transformer of timm, with timm's mixup, and a rate for each layer that is pretrained.

    python examples/vision_libraries/swin.py                            # a minute on one core
    python examples/vision_libraries/swin.py --folder my_images         # my_images/train/<class>/<any>.jpg, my_images/val/…
    python examples/vision_libraries/swin.py --folder my_images --pretrained --model convnext_tiny      # any model of timm
    python examples/vision_libraries/swin.py --resume auto              # go on where it stopped
    python examples/vision_libraries/swin.py --folder my_images --full  # pretrained, in bf16, for a GPU

It needs ``pip install timm scikit-learn``; ``make examples-vision`` installs them. The data are scikit-learn's 1,797
handwritten digits, 8 by 8 pixels, for which the transformer is a small one that sees every pixel. The figure is the accuracy
on the fifth that is held out, beside the most frequent class. ``--pretrained`` begins with weights that timm downloads.
"""

# %% data
import sys
from pathlib import Path

import timm
import torch
from timm.data import Mixup, create_dataset, create_transform, resolve_model_data_config
from timm.loss import SoftTargetCrossEntropy
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import EMA, TemplateModel, run_main, seed_everything  # noqa: E402


def digits():
    """Datasets of images [1, 8, 8] with their classes, for training and held out, and the labels of both."""
    from sklearn.datasets import load_digits
    pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
    images, order = pixels.reshape(-1, 1, 8, 8).float() / 8 - 1, torch.randperm(len(labels), generator=torch.Generator())
    parts = order[len(order) // 5:], order[:len(order) // 5]
    return *(TensorDataset(images[part], labels[part]) for part in parts), *(labels[part] for part in parts)


def read(folder, net):
    """The same from folders train/ and val/ with a folder for each class, with the augmentation that timm trains with."""
    settings = resolve_model_data_config(net)
    parts = [create_dataset("", root=Path(folder, name), transform=create_transform(**settings, is_training=name == "train"))
             for name in ("train", "val")]
    return *parts, *(torch.tensor([label for _, label in part.reader.samples]) for part in parts)


# %% the training
class Trainer(TemplateModel):
    def __init__(self, train, held_out, net, lr, layer_decay, batch_size):
        super().__init__()
        groups = param_groups_layer_decay(net, weight_decay=0.05, layer_decay=layer_decay)
        for group in groups:        # the schedules of timm read lr_scale, and those of torch do not
            group["lr"] = lr * group["lr_scale"]
        self.model_list = [net]
        self.optimizer_list = [torch.optim.AdamW(groups, lr)]
        self.criterion = nn.CrossEntropyLoss()
        self.mixup = Mixup(mixup_alpha=0.2, label_smoothing=0.1, num_classes=net.num_classes)
        self.soft_loss = SoftTargetCrossEntropy()
        self.train_loader = DataLoader(train, batch_size, shuffle=True, drop_last=True)     # mixup takes pairs
        self.eval_loader = DataLoader(held_out, batch_size)
        self.lr_scheduler_type, self.warm_up_epoch, self.clip_grad = "cosine", 2, 5.0
        self.ckpt_dir, self.keep_checkpoints = "check_point/swin", 1
        self.callbacks = [EMA(0.99)]

    def loss_per_batch(self, batch):
        images, labels = batch
        if not self.model_list[0].training:
            return self.criterion(self.inference(images), labels)
        images, targets = self.mixup(images, labels)    # two images in one, and for each class the share that it has
        return self.soft_loss(self.inference(images), targets)


# %% run
def main(folder: str | None = None, model="swin_tiny_patch4_window7_224", epochs=20, width=32, lr=3e-3, batch_size=32,
         pretrained=False, amp: str | None = None, seed=0, resume: str | None = None):
    if pretrained and folder is None:
        raise SystemExit("The digits have 8 by 8 pixels, and pretrained weights are for larger images. Give --folder, too.")
    seed_everything(seed)
    if folder is None:
        train, held_out, *labels = digits()
        net = timm.create_model(model, num_classes=10, in_chans=1, img_size=8, patch_size=1, window_size=4,
                                embed_dim=width, depths=(2, 2), num_heads=(2, 4), drop_path_rate=0.0)
    else:
        num_classes = sum(path.is_dir() for path in Path(folder, "train").iterdir())
        net = timm.create_model(model, pretrained=pretrained, num_classes=num_classes)
        train, held_out, *labels = read(folder, net)
    trainer = Trainer(train, held_out, net, lr, 0.75 if pretrained else 1.0, batch_size)
    trainer.amp = amp
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    most_frequent = (labels[1] == labels[0].mode().values).float().mean()
    print(f"accuracy {trainer.test()['acc']:.3f} (at least 0.85; most frequent class {most_frequent:.3f})")


if __name__ == "__main__":
    run_main(main, full={"epochs": 50, "lr": 5e-4, "pretrained": True, "amp": "bf16"})
