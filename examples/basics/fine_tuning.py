"""Fine-tuning, or transfer learning: a network that knows the digits 0 to 4 learns 5 to 9 from five images of each.

    python examples/basics/fine_tuning.py                     # half a minute on two cores; needs scikit-learn for its data
    python examples/basics/fine_tuning.py --resume auto       # go on where it stopped

1. Pretrain on 0 to 4.
2. Put a new head on it, and train the head alone for two epochs. The body is frozen, and so is its BatchNorm.
3. Unfreeze the body in epoch 3: a second group of parameters, which has the head's rate in the last layer of the body and
   less in each one before, and go on with both.

It prints the accuracy on images that were not trained on, as the mean of three seeds, beside that of the same network from
scratch and of always guessing the most frequent digit.
"""

# %% data
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import TemplateModel, run_main, seed_everything  # noqa: E402
from template.update.optimizers import param_groups  # noqa: E402

pixels, digits = load_digits(return_X_y=True)
images, labels = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(digits)
old, new = labels < 5, labels >= 5


def loaders(images, labels, count):
    """To train on ``count`` images of each digit, and to evaluate on 300 others."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    few = torch.cat([order[labels[order] == digit][:count] for digit in labels.unique()])
    others = order[~torch.isin(order, few)][:300]
    train, held_out = (TensorDataset(images[part], labels[part]) for part in (few, others))
    return DataLoader(train, 16, shuffle=True), DataLoader(held_out, 256)


# %% the network: a body, which is kept, and a head
def make_body():
    def block(channels_in, channels_out, stride=1):
        return [nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]

    return nn.Sequential(*block(1, 32), *block(32, 32), *block(32, 64, 2), *block(64, 64), *block(64, 128, 2),
                         *block(128, 64), nn.Flatten())


class Trainer(TemplateModel):
    def __init__(self, body, train_loader, eval_loader, folder, seed):
        super().__init__()
        self.net = nn.Sequential()
        self.net.body, self.net.head = body, nn.Linear(256, 5)
        self.model_list = [self.net]
        self.optimizer_list = [torch.optim.AdamW(param_groups(self.net, {"": 3e-3}), weight_decay=1e-2)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader, self.eval_loader = train_loader, eval_loader
        self.lr_scheduler_type = "cosine"
        self.ckpt_dir = f"{folder}{seed}"
        self.keep_checkpoints = 1
        self.seed = seed


# %% fine-tuning: the head alone for two epochs, then both
class FineTuned(Trainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.net.body.requires_grad_(False)
        self.net.body.eval()                # BatchNorm keeps its statistics: train_loop leaves a frozen part in eval mode
        self.optimizer_list = [torch.optim.AdamW(param_groups(self.net, {"head": 3e-3}), weight_decay=1e-2)]

    def unfreeze(self):
        self.net.body.requires_grad_(True)
        self.net.body.train()
        (optimizer,) = self.optimizer_list
        for group in param_groups(self.net, {"body": 3e-3}, layer_decay=0.75, beside=optimizer):
            optimizer.add_param_group(group)    # the schedule takes it in


# %% run
def begun(trainer, resume):
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    return trainer


def compare(seed, pretrain_epochs, epochs, resume):
    """The accuracy of fine-tuning and of training from scratch on digits that neither was trained on."""
    train_loader, eval_loader = loaders(images[new], labels[new] - 5, 5)
    seed_everything(seed)
    body = make_body()
    pretrained = begun(Trainer(body, *loaders(images[old], labels[old], 100), "check_point/fine_tuning", seed), resume)
    pretrained.fit(pretrain_epochs)

    tuned = begun(FineTuned(body, train_loader, eval_loader, pretrained.path_of("tuned"), seed), resume)  # a run in its run
    for epoch in tuned.epochs(epochs):
        if epoch >= 3:
            tuned.unfreeze()
        tuned.train_loop()
        tuned.eval()

    seed_everything(seed)
    scratch = begun(Trainer(make_body(), train_loader, eval_loader, pretrained.path_of("scratch"), seed), resume)
    scratch.fit(epochs)
    return tuned.test()["acc"], scratch.test()["acc"]


def main(seeds=3, pretrain_epochs=5, epochs=10, resume: str | None = None):
    results = torch.tensor([compare(seed, pretrain_epochs, epochs, resume) for seed in range(seeds)], dtype=torch.float64)
    tuned, scratch = results.mean(0).tolist()
    most = (labels[new].bincount().max() / new.sum()).item()
    print(f"digits 5 to 9 from 25 images, mean of {seeds} seeds: fine-tuned {tuned:.3f}, from scratch {scratch:.3f}")
    print(f"accuracy {tuned:.3f} (at least 0.8; most frequent digit {most:.3f})")


if __name__ == "__main__":
    run_main(main)
