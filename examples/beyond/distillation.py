"""Knowledge distillation: a small network learns from a large one, and does better than it does from the labels alone.

    python examples/beyond/distillation.py                     # half a minute on two cores; needs scikit-learn for its data
    python examples/beyond/distillation.py --resume auto       # go on where it stopped

The teacher is trained, then frozen: it computes in eval mode, has no optimizer, and lies in no checkpoint of the student.
There are labels for sixty images alone, and the teacher, which saw more, says of a thousand what it takes them for. The
student's loss is ``weight * (KL divergence from the teacher at a temperature) + (1 - weight) * (cross entropy)``.

The figure is the student's accuracy on images that neither saw, beside that of the same network from its labels alone.
Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

# %% data
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import TemplateModel, run_main, seed_everything  # noqa: E402

UNLABELLED = -100   # which cross_entropy ignores


def digits(labelled):
    """For the teacher 1000 images with labels, for the student the same with ``labelled`` of them, and 797 to test with."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(pixels, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    few = y[:1000].clone()
    few[labelled:] = UNLABELLED
    return TensorDataset(x[:1000], y[:1000]), TensorDataset(x[:1000], few), TensorDataset(x[1000:], y[1000:])


# %% the networks
def make_net(width):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 10))


class Trainer(TemplateModel):
    def __init__(self, net, train, test, folder):
        super().__init__()
        self.model_list = [net]
        self.optimizer_list = [torch.optim.AdamW(net.parameters(), 1e-2, weight_decay=1e-2)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader, self.eval_loader = DataLoader(train, 50, shuffle=True), DataLoader(test, 400)
        self.lr_scheduler_type, self.ckpt_dir, self.keep_checkpoints = "cosine", folder, 1


class Student(Trainer):
    def __init__(self, net, teacher, train, test, folder, weight, temperature=3.0):
        super().__init__(net, train, test, folder)
        self.teacher = teacher.to(self.device).eval().requires_grad_(False)
        self.temperature, self.weight = temperature, weight

    def loss_per_batch(self, batch):
        x, y = batch
        scores = self.inference(x)
        soft, wanted = (z.div(self.temperature).log_softmax(1) for z in (scores, self.teacher(x)))
        like_teacher = kl_div(soft, wanted, reduction="batchmean", log_target=True) * self.temperature ** 2
        by_labels = cross_entropy(scores, y, reduction="sum") / len(y)      # a batch may have no label at all
        return {"tol_loss": self.weight * like_teacher + (1 - self.weight) * by_labels, "kl": like_teacher}


# %% run
def trained(trainer, epochs, resume):
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    return trainer


def main(epochs=30, width=16, teacher_width=256, labelled=60, seed=0, resume: str | None = None):
    full, few, test = digits(labelled)
    seed_everything(seed)
    teacher = trained(Trainer(make_net(teacher_width), full, test, "check_point/distillation"), epochs, resume)

    found = {"teacher": teacher}
    for name, weight in (("student", 0.9), ("alone", 0.0)):     # the same network, images, labels and updates
        seed_everything(seed)
        folder = teacher.path_of(name)
        found[name] = trained(Student(make_net(width), teacher.model_list[0], few, test, folder, weight), epochs, resume)

    accuracy = {name: trainer.test()["acc"] for name, trainer in found.items()}
    most = test.tensors[1].bincount().max().item() / len(test)
    print("accuracy of", ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items()), f"most frequent {most:.3f}")
    print(f"accuracy {accuracy['student']:.3f} (at least 0.92; same network without a teacher {accuracy['alone']:.3f})")


if __name__ == "__main__":
    run_main(main)
