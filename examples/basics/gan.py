"""A GAN that draws handwritten digits: two networks, two optimizers, and a figure that says whether it works.

    python examples/basics/gan.py                     # half a minute on two cores; needs scikit-learn for its data
    python examples/basics/gan.py --resume auto       # go on where it stopped
    python examples/basics/gan.py --full              # wider networks, 500 epochs

The losses of a GAN do not say how good its images are. So it is judged by the Fréchet distance between features of real and
of drawn images, here those of a small classifier that the script trains first. The trivial answer to compare with is images
whose pixels are drawn one by one, each as the digits have it. samples/digits.png in the folder of the run shows drawings.
"""

# %% data
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import EMA, KerasModel, Metric, SampleOutputs, TemplateModel, run_main, seed_everything  # noqa: E402

NOISE = 32
pixels, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1, torch.tensor(labels)  # in [-1, 1]


# %% the networks
def make_generator(width):
    def block(inputs):
        return [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]

    return nn.Sequential(*block(NOISE), *block(width), nn.Linear(width, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))


def make_discriminator(width):
    def block(inputs):
        return [nn.Linear(inputs, width), nn.LeakyReLU(0.2), nn.Dropout(0.3)]

    return nn.Sequential(nn.Flatten(), *block(64), *block(width), nn.Linear(width, 1))


def make_judge(epochs):
    """Images to features [B, 32]: the last layer but one of a network that tells the digits apart."""
    features = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.Tanh())
    net = nn.Sequential(features, nn.Linear(32, 10))
    classifier = KerasModel(net, nn.CrossEntropyLoss(), optimizer=torch.optim.Adam(net.parameters(), 3e-3))
    loader = DataLoader(TensorDataset(images, labels), 64, shuffle=True)
    classifier.fit(loader, epochs=epochs, seed=0, ckpt_path="check_point/gan_judge.pth")
    return features.eval().requires_grad_(False)


# %% the figure
class Frechet(Metric):
    """The distance between two normal distributions, as which features [B, F] of real and of drawn images are seen.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017, arXiv:1706.08500.
    """

    sums = ("real", "drawn")            # products of (1, features): number, sums and squares in one matrix [1 + F, 1 + F]

    def update(self, real, drawn):
        for name, features in {"real": real, "drawn": drawn}.items():
            with_one = nn.functional.pad(features.double(), (1, 0), value=1.0)
            setattr(self, name, getattr(self, name) + with_one.T @ with_one)
        return self

    def compute(self):
        (mean, cov), (mean_drawn, cov_drawn) = ((m[0, 1:], m[1:, 1:] - m[0, 1:].outer(m[0, 1:]))
                                                for m in (self.real / self.real[0, 0], self.drawn / self.drawn[0, 0]))
        root = torch.linalg.eigvals(cov @ cov_drawn).real.clamp(min=0).sqrt().sum()
        return (mean - mean_drawn).square().sum() + cov.trace() + cov_drawn.trace() - 2 * root


# %% the training
def digits(trainer):
    return trainer.inference(trainer.eval_loader.dataset.tensors[1][:40].to(trainer.device)) / 2 + 0.5


class Gan(TemplateModel):
    def __init__(self, judge, width):
        super().__init__()
        self.judge = judge
        self.model_list = [make_generator(width), make_discriminator(width)]
        self.optimizer_list = [torch.optim.Adam(model.parameters(), 1e-3, betas=(0.5, 0.99)) for model in self.model_list]
        self.train_loader = DataLoader(TensorDataset(images), 64, shuffle=True, drop_last=True)
        self.eval_loader = DataLoader(TensorDataset(images, torch.randn(len(images), NOISE)), 256)  # always the same noise
        self.key_metric, self.key_metric_mode = "frechet", "min"
        self.ckpt_dir, self.keep_checkpoints = "check_point/gan", 1
        self.callbacks = [EMA(0.98), SampleOutputs(digits)]

    def inference(self, noise):
        return self.model_list[0](noise)

    def train_step(self, batch):
        (real,), (_, discriminator) = batch, self.model_list
        drawn = self.inference(torch.randn(len(real), NOISE, device=real.device))

        loss_d = softplus(-discriminator(real)).mean() + softplus(discriminator(drawn.detach())).mean()
        self.backward(loss_d, 1)        # gradients for the discriminator alone, which is optimizer_list[1]
        self.update(1)

        loss_g = softplus(-discriminator(drawn)).mean()
        self.backward(loss_g, 0)
        self.update(0)
        return {"discriminator": loss_d, "generator": loss_g}

    def eval_scores_per_batch(self, batch):
        real, noise = batch
        return {"frechet": Frechet().update(self.judge(real), self.judge(self.inference(noise)))}


# %% run
def main(epochs=60, width=128, judge_epochs=10, resume: str | None = None):
    seed_everything(0)
    judge = make_judge(judge_epochs)
    seed_everything(0)                  # a seed counts for one trainer, and the classifier had it
    gan = Gan(judge, width)
    gan.check_init()
    if resume:
        gan.load_state(resume)
    gan.fit(epochs)
    by_pixel = torch.stack([pixel[torch.randperm(len(pixel))] for pixel in images.flatten(1).T], 1).reshape(images.shape)
    trivial = Frechet().update(gan.judge(images), gan.judge(by_pixel)).compute()
    print(f"frechet {gan.test()['frechet']:.3f} (at most 1.5; pixels one by one {trivial:.3f})")


if __name__ == "__main__":
    run_main(main, full={"epochs": 500, "width": 256})
