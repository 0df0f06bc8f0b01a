"""CIFAR-10 with a small residual network, mixed precision and test-time mirroring. Run it from the repository root.

    python -m demo_cifar10.train                        # downloads CIFAR-10 (170 MB) into data/ the first time
    python -m demo_cifar10.train --data-dir /datasets   # with a copy of the archive or the extracted folder
    python -m demo_cifar10.train --resume auto          # continue the newest run where it stopped
    python -m demo_cifar10.train --synthetic --epochs 1 # only tries the program: random images, no data
    tensorboard --logdir runs

No accuracy and no time are claimed: the defaults follow published recipes for this network (batch 512, one cycle, label
smoothing), and no run on CIFAR-10 has been measured by this project yet.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

if not __package__:  # started as `python demo_cifar10/train.py`: Python looks for imports in this folder, not in its parent
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from demo_cifar10.data import IMAGE_SHAPE, URL, load_cifar10, make_loaders, random_data
from demo_cifar10.model import ResNet9
from template import option, parse_options, seed_everything
from template.template import TemplateModel


@dataclass
class Options:
    """Train a ResNet-9 on CIFAR-10."""

    epochs: int = option(24, "passes over the training data")
    batch_size: int = option(512, "images per update")
    lr: float = option(0.4, "highest learning rate of the cycle")
    weight_decay: float = option(5e-4, "SGD's weight decay")
    width: int = option(64, "channels of the first stage")
    amp: str = option("auto", "bf16, fp16 or off; auto: bf16 on a GPU that computes in it, else off")
    seed: int = option(0, "of weights, order and augmentation")
    data_dir: str = option("data", "the archive, the extracted folder, or the folder that holds either")
    url: str = option(URL, "where the archive is downloaded from; its MD5 is checked")
    synthetic: bool = option(False, "random images instead of CIFAR-10, to try the program")
    resume: str | None = option(None, "auto, or the path of a checkpoint")


class Cifar10(TemplateModel):
    def __init__(self, options, train, test):
        super().__init__()
        model = ResNet9(options.width).to(self.device, memory_format=torch.channels_last)
        self.model_list = [model]
        self.optimizer_list = [torch.optim.SGD(model.parameters(), options.lr, momentum=0.9, nesterov=True,
                                               weight_decay=options.weight_decay)]
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        self.train_loader, self.eval_loader = make_loaders(train, test, options.batch_size, self.device)

        folder = Path(self.ckpt_dir)  # runs of their own, so that `--resume auto` continues one of the same kind
        self.ckpt_dir = str(folder.parent / ("cifar10_synthetic" if options.synthetic else "cifar10") / folder.name)
        self.seed = options.seed
        self.amp = amp_of(options.amp, self.device)
        self.lr_scheduler_type = "onecycle"
        self.lr_scheduler_args = {"pct_start": 0.2}
        self.key_metric = "acc_on_noise" if options.synthetic else "acc"  # no line of a smoke run looks like a result
        self.keep_checkpoints = 2
        self.log_per_step = 20

    def inference(self, x):
        """Logits [B, 10]. In evaluation the mean of those of the image and of its mirror image."""
        model = self.model_list[0]
        return model(x) if model.training else (model(x) + model(x.flip(-1))) / 2

    def metric(self, pred, y):
        return {self.key_metric: (pred.argmax(1) == y).float().mean()}


def amp_of(name, device):
    """The value of ``TemplateModel.amp`` for the option: None, "bf16" or "fp16"."""
    if name not in ("auto", "bf16", "fp16", "off"):
        raise ValueError(f"--amp must be auto, bf16, fp16 or off, got {name!r}.")
    if name == "auto":  # older GPUs only emulate bf16
        is_cuda = torch.device(device).type == "cuda"
        return "bf16" if is_cuda and torch.cuda.get_device_capability(device) >= (8, 0) else None
    return None if name == "off" else name


def main():
    options = parse_options(Options)
    seed_everything(options.seed)  # before the model draws its weights
    train, test = random_data() if options.synthetic else load_cifar10(options.data_dir, options.url)
    trainer = Cifar10(options, train, test)
    trainer.check_init(arg=options)
    if options.resume:
        trainer.load_state(options.resume)
    else:
        trainer.get_model_info(torch.zeros(1, *IMAGE_SHAPE))

    what = "SYNTHETIC RUN, this is NOT CIFAR-10 but random images with random labels" if options.synthetic else "CIFAR-10"
    print(f"{what}: {len(train[1]):,} to train, {len(test[1]):,} to test. Mixed precision: {trainer.amp or 'off'}.")
    for _ in trainer.epochs(options.epochs):
        trainer.train_loop()
        trainer.eval()

    trainer.print_best_metrics()
    if options.synthetic:
        print("SYNTHETIC RUN: the program works. The accuracy above is meaningless: there was nothing to learn.")


if __name__ == "__main__":
    main()
