"""Contrastive pre-training with a queue of keys (MoCo): features from images without labels, then a classifier from few.

    python examples/vision/contrastive.py                   # ten seconds on two cores; needs scikit-learn
    python examples/vision/contrastive.py --resume auto     # go on where it stopped
    python examples/vision/contrastive.py --full            # a wider network, 500 epochs, a longer queue

The network is trained to tell two views of one digit from views of others, and sees no label. Then a linear classifier is
trained on its features of fifty labelled digits, five of each class. The figure is its accuracy on digits that are held out,
as a mean over ten choices of the fifty. The better one of the same on pixels and on the untrained network is to be beaten.
"""

# %% data
import copy
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import TemplateModel, TensorLoader, run_main, seed_everything  # noqa: E402


def digits():
    """Images [N, 1, 8, 8] in [0, 1] and labels [N]: four fifths to train on, and a fifth that is held out."""
    pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = pixels.float().reshape(-1, 1, 8, 8) / 16
    return [(images[part], labels[part]) for part in (order[len(order) // 5:], order[:len(order) // 5])]


def view(images):
    """Turned by up to 15 degrees, scaled, moved by up to a pixel, brightened or darkened, with noise."""
    def drawn(low, high):
        return low + (high - low) * torch.rand(len(images), device=images.device)

    angle, scale, bright = drawn(-0.26, 0.26), drawn(0.8, 1.2), drawn(0.6, 1.4)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    turned = torch.stack([cos, -sin, drawn(-0.25, 0.25), sin, cos, drawn(-0.25, 0.25)], 1).reshape(-1, 2, 3)
    seen = grid_sample(images, affine_grid(turned, images.shape, align_corners=False), align_corners=False)
    return seen * bright[:, None, None, None] + 0.1 * torch.randn_like(seen)


# %% the networks
def make_encoder(width):
    """Images [B, 1, H, W] to features [B, 4 width]. No BatchNorm: it would tell which images were in one batch."""
    def block(inputs, outputs, stride):
        return [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()]

    return nn.Sequential(*block(1, width, 1), *block(width, 2 * width, 2), *block(2 * width, 4 * width, 2),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten())


class MoCo(nn.Module):
    """After He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2019, arXiv:1911.05722."""

    def __init__(self, width, queue_size, momentum=0.99, temperature=0.2, dim=64):
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        self.encoder = make_encoder(width)
        self.leader = nn.Sequential(self.encoder, nn.Linear(4 * width, 4 * width), nn.ReLU(), nn.Linear(4 * width, dim))
        self.follower = copy.deepcopy(self.leader).requires_grad_(False)
        self.register_buffer("queue", normalize(torch.randn(queue_size, dim)))      # buffers travel in the checkpoint
        self.register_buffer("place", torch.zeros((), dtype=torch.long))            # of the oldest key

    def forward(self, view, other):
        """Scores [B, 1 + queue_size]: column 0 is the other view of the same image."""
        queries = normalize(self.leader(view))
        with torch.no_grad():
            for mine, leading in zip(self.follower.parameters(), self.leader.parameters()):
                mine.lerp_(leading, (1 - self.momentum) * self.training)
            keys = normalize(self.follower(other))
        queue = self.queue.clone()                  # backward needs it as it was
        if self.training:
            places = (self.place + torch.arange(len(keys), device=keys.device)) % len(queue)
            self.queue.index_copy_(0, places, keys)
            self.place.copy_((places[-1] + 1) % len(queue))
        return torch.cat([(queries * keys).sum(1, keepdim=True), queries @ queue.T], 1) / self.temperature


# %% the training
class Contrastive(TemplateModel):
    def __init__(self, images, width, queue_size):
        super().__init__()
        net = MoCo(width, queue_size)
        self.model_list = [net]
        self.optimizer_list = [torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 3e-3, weight_decay=1e-2)]
        self.train_loader = TensorLoader(images, batch_size=128, shuffle=True, transform=lambda x: (view(x), view(x)))
        self.lr_scheduler_type, self.warm_up_epoch = "cosine", 2
        self.ckpt_dir, self.keep_checkpoints = "check_point/contrastive", 1

    def loss_per_batch(self, batch):
        scores = self.model_list[0](*batch)
        first = torch.zeros_like(scores[:, 0], dtype=torch.long)
        return {"tol_loss": cross_entropy(scores, first), "found": (scores.argmax(1) == 0).float().mean()}

    def inference(self, images):
        return self.model_list[0].encoder(images)


def probe(train, held_out, labels, truth, per_class=5, choices=10):
    """Accuracy of a linear classifier on a few labelled rows of features, as a mean over ``choices`` of these."""
    score, random = 0.0, torch.Generator().manual_seed(0)
    for _ in range(choices):
        order = torch.randperm(len(labels), generator=random)
        few = torch.cat([order[labels[order] == label][:per_class] for label in range(10)])
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(train[few], labels[few])
        score += classifier.score(held_out, truth) / choices
    return score


# %% run
def main(epochs=30, width=24, queue_size=512, seed=0, resume: str | None = None):
    (images, labels), (held_out, truth) = digits()
    seed_everything(seed)
    trainer = Contrastive(images, width, queue_size)
    trainer.check_init()

    def probed():
        return probe(*(trainer.predict(TensorLoader(part, batch_size=256)) for part in (images, held_out)), labels, truth)

    trivial = max(probed(), probe(images.flatten(1), held_out.flatten(1), labels, truth))
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    print(f"accuracy {probed():.3f} (at least 0.88; pixels or untrained network {trivial:.3f})")


if __name__ == "__main__":
    run_main(main, full={"epochs": 500, "width": 64, "queue_size": 1024})
