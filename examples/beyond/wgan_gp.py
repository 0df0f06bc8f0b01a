"""A WGAN with gradient penalty draws digits: a critic that measures a distance, four updates of it for one of the generator.

    python examples/beyond/wgan_gp.py                     # half a minute on two cores; needs scikit-learn and torchmetrics
    python examples/beyond/wgan_gp.py --resume auto       # go on where it stopped
    python examples/beyond/wgan_gp.py --full              # wider networks, 2000 epochs

The critic is kept from being steep by a penalty on its gradient at points between real and drawn images, and this penalty
is differentiated again for the update. The critic's distance begins near 1 and falls to a half, while drawings turn into
digits.

The figure is the Fréchet distance between features of real and of drawn images, here those of a small classifier that the
script trains first. The trivial answer is images whose pixels are drawn one by one, each as the digits have it.
samples/digits.png in the folder of the run shows drawings.
Source: Gulrajani et al., "Improved Training of Wasserstein GANs", 2017, arXiv:1704.00028.
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

NOISE = 32
pixels, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1, torch.tensor(labels)  # in [-1, 1]


# %% the networks
def make_generator(width):
    def block(inputs):
        return [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]

    return nn.Sequential(*block(NOISE), *block(width), nn.Linear(width, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))


def make_critic(width):
    """Without BatchNorm: the penalty is about each image by itself."""
    def block(inputs):
        return [nn.Linear(inputs, width), nn.LeakyReLU(0.2)]

    return nn.Sequential(nn.Flatten(), *block(64), *block(width), nn.Linear(width, 1))


def make_judge(epochs):
    """Images to features [B, 32]: the last layer but one of a network that tells the digits apart."""
    features = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.Tanh())
    net = nn.Sequential(features, nn.Linear(32, 10))
    classifier = KerasModel(net, nn.CrossEntropyLoss(), optimizer=torch.optim.Adam(net.parameters(), 3e-3))
    classifier.fit(TensorLoader(images, labels, batch_size=64, shuffle=True), epochs=epochs, seed=0,
                   ckpt_path="check_point/wgan_gp_judge.pth")
    features.num_features = 32          # which the distance asks for
    return features.eval().requires_grad_(False)


# %% the training
def digits(trainer):
    return trainer.inference(trainer.eval_loader.tensors[1][:40].to(trainer.device)) / 2 + 0.5


class WGAN(TemplateModel):
    def __init__(self, judge, width, critic_updates=4, penalty=10.0):
        super().__init__()
        self.critic_updates, self.penalty = critic_updates, penalty
        self.model_list = [make_generator(width), make_critic(width)]
        self.optimizer_list = [torch.optim.Adam(model.parameters(), 1e-3, betas=(0.5, 0.9)) for model in self.model_list]
        self.train_loader = TensorLoader(images, batch_size=64, shuffle=True, drop_last=True)
        self.eval_loader = TensorLoader(images, torch.randn(len(images), NOISE), batch_size=600)    # always the same noise
        self.distance = FrechetInceptionDistance(judge)
        self.key_metric, self.key_metric_mode = "frechet", "min"
        self.ckpt_dir, self.keep_checkpoints = "check_point/wgan_gp", 1
        self.callbacks = [EMA(0.99), SampleOutputs(digits)]

    def inference(self, noise):
        return self.model_list[0](noise)

    def steepness(self, real, drawn):
        """How far the critic's slope is from 1, at a point between each real and each drawn image."""
        between = torch.lerp(drawn, real, torch.rand(len(real), 1, 1, 1, device=real.device)).requires_grad_()
        slope, = torch.autograd.grad(self.model_list[1](between).sum(), between, create_graph=True)
        return (slope.flatten(1).norm(dim=1) - 1).square().mean()

    def train_step(self, batch):
        (real,), critic = batch, self.model_list[1]
        drawn = self.inference(torch.randn(len(real), NOISE, device=real.device))
        if (self.global_step + 1) % (self.critic_updates + 1):
            drawn = drawn.detach()
            distance, steepness = critic(real).mean() - critic(drawn).mean(), self.steepness(real, drawn)
            self.backward(self.penalty * steepness - distance, 1)   # gradients for the critic, which is optimizer_list[1]
            self.update(1)
            return {"critic_distance": distance, "penalty": steepness}
        self.backward(-critic(drawn).mean(), 0)
        self.update(0)
        return {}

    def eval_scores_per_batch(self, batch):
        real, noise = batch
        self.distance.to(real.device).update(real, real=True)
        self.distance.update(self.inference(noise), real=False)
        return {"frechet": self.distance}


# %% run
def main(epochs=150, width=128, judge_epochs=10, eval_every=25, seed=0, resume: str | None = None):
    seed_everything(0)
    judge = make_judge(judge_epochs)
    seed_everything(seed)               # a seed counts for one trainer, and the classifier had its own
    gan = WGAN(judge, width)
    gan.check_init()
    if resume:
        gan.load_state(resume)
    for epoch in gan.epochs(epochs):
        gan.train_loop()
        if epoch % eval_every == 0:     # the images change little in an epoch of 28 updates
            gan.eval()
    by_pixel = torch.stack([pixel[torch.randperm(len(pixel))] for pixel in images.flatten(1).T], 1).reshape(images.shape)
    trivial = FrechetInceptionDistance(judge)
    trivial.update(images, real=True)
    trivial.update(by_pixel, real=False)
    print(f"frechet {gan.test()['frechet']:.3f} (at most 0.8; pixels one by one {trivial.compute():.3f})")


if __name__ == "__main__":
    run_main(main, full={"epochs": 2000, "width": 512, "eval_every": 100})
