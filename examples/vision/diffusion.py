"""A small diffusion model that draws digits of a class that is asked for: flow matching, averaged weights.

    python examples/vision/diffusion.py                     # half a minute on two cores; needs scikit-learn and torchmetrics
    python examples/vision/diffusion.py --resume auto       # go on where it stopped
    python examples/vision/diffusion.py --full              # a wider and deeper network, 1000 epochs, 100 steps

The network learns where to go from a mixture of image and noise, and drawing begins at noise and goes there in small steps.
The figure is the Fréchet distance between features of real and of drawn images, here those of a small classifier that the
script trains first. The trivial answer is images whose pixels are drawn one by one, each as the digits have it.
samples/digits.png in the folder of the run shows drawings, ten of each class.
"""

# %% data
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import EMA, KerasModel, SampleOutputs, TemplateModel, TensorLoader, run_main, seed_everything  # noqa: E402

pixels, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1, torch.tensor(labels)  # in [-1, 1]


# %% the networks
class Velocity(nn.Module):
    """Images [B, 1, 8, 8], times [B] from 0 (noise) to 1 (image) and classes [B] in, the way to go [B, 1, 8, 8] out.

    Dense layers are enough for 8 by 8 pixels. For larger images, put a U-Net in their place.
    """

    def __init__(self, width, depth):
        super().__init__()
        self.register_buffer("frequencies", torch.pi * 2.0 ** torch.arange(6), persistent=False)
        self.time, self.label = nn.Linear(12, width), nn.Embedding(10, width)
        self.first, self.last = nn.Linear(64, width), nn.Linear(width, 64)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(),
                                                  nn.Linear(2 * width, width)) for _ in range(depth))

    def forward(self, x, times, labels):
        angles = times[:, None] * self.frequencies
        told = self.time(torch.cat([angles.sin(), angles.cos()], 1)) + self.label(labels)
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = h + block(h + told)
        return self.last(h).reshape(x.shape)


def make_judge(epochs):
    """Images to features [B, 32]: the last layer but one of a network that tells the digits apart."""
    features = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.Tanh())
    net = nn.Sequential(features, nn.Linear(32, 10))
    classifier = KerasModel(net, nn.CrossEntropyLoss(), optimizer=torch.optim.Adam(net.parameters(), 3e-3))
    classifier.fit(TensorLoader(images, labels, batch_size=64, shuffle=True), epochs=epochs, seed=0,
                   ckpt_path="check_point/diffusion_judge.pth")
    features.num_features = 32          # which the distance asks for
    return features.eval().requires_grad_(False)


# %% the training
class Diffusion(TemplateModel):
    """After Lipman et al., "Flow Matching for Generative Modeling", 2022, arXiv:2210.02747, with straight ways."""

    def __init__(self, judge, width, depth, steps):
        super().__init__()
        net = Velocity(width, depth)
        self.model_list = [net]
        self.optimizer_list = [torch.optim.AdamW(net.parameters(), 2e-3)]
        self.train_loader = TensorLoader(images, labels, batch_size=128, shuffle=True)
        self.eval_loader = TensorLoader(images, labels, torch.randn(images.shape), batch_size=600)  # always the same noise
        self.lr_scheduler_type, self.warm_up_epoch = "cosine", 1
        self.distance, self.steps = FrechetInceptionDistance(judge), steps
        self.key_metric, self.key_metric_mode = "frechet", "min"
        self.ckpt_dir, self.keep_checkpoints = "check_point/diffusion", 1
        self.callbacks = [EMA(0.99), SampleOutputs(digits)]

    def loss_per_batch(self, batch):
        images, labels, *_ = batch
        noise, times = torch.randn_like(images), torch.rand(len(images), device=images.device)
        mixed = torch.lerp(noise, images, times[:, None, None, None])
        return nn.functional.mse_loss(self.inference((mixed, times, labels)), images - noise)

    def draw(self, noise, labels):
        x = noise
        for time in torch.arange(self.steps, device=noise.device) / self.steps:
            x = x + self.inference((x, time.expand(len(x)), labels)) / self.steps
        return x.clamp(-1, 1)

    def eval_scores_per_batch(self, batch):
        images, labels, noise = batch
        self.distance.to(images.device).update(images, real=True)
        self.distance.update(self.draw(noise, labels), real=False)
        return {"frechet": self.distance}


def digits(trainer):
    """Ten drawings of each class, in a row."""
    noise = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(1)).to(trainer.device)
    drawn = trainer.draw(noise, torch.arange(100, device=trainer.device) // 10) / 2 + 0.5
    framed = nn.functional.pad(drawn, (1, 1, 1, 1), value=0.3)
    return torch.cat([torch.cat(list(row), 2) for row in framed.split(10)], 1)


# %% run
def main(epochs=40, width=192, depth=3, steps=20, judge_epochs=10, eval_every=20, seed=0, resume: str | None = None):
    seed_everything(0)
    judge = make_judge(judge_epochs)
    seed_everything(seed)               # a seed counts for one trainer, and the classifier had its own
    trainer = Diffusion(judge, width, depth, steps)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    for epoch in trainer.epochs(epochs):
        trainer.train_loop()
        if epoch % eval_every == 0:     # drawing takes longer than an epoch of training
            trainer.eval()
    by_pixel = torch.stack([pixel[torch.randperm(len(pixel))] for pixel in images.flatten(1).T], 1).reshape(images.shape)
    trivial = FrechetInceptionDistance(judge)
    trivial.update(images, real=True)
    trivial.update(by_pixel, real=False)
    print(f"frechet {trainer.test()['frechet']:.3f} (at most 0.4; pixels one by one {trivial.compute():.3f})")
    return trainer


if __name__ == "__main__":
    run_main(main, full={"epochs": 1000, "width": 512, "depth": 6, "steps": 100, "eval_every": 100})
