"""Two optimizers that ask for the loss more than once in a step: SAM and LBFGS. `train_loop` gives them the closure.

    python examples/beyond/sam_and_lbfgs.py                     # half a minute on two cores; needs scikit-learn for its data
    python examples/beyond/sam_and_lbfgs.py --resume auto       # go on where it stopped

SAM looks for weights in whose neighbourhood the loss is low too. It trains on digits of whose labels a third is wrong,
beside the same Adam without it. The template knows it by `first_step`; any other optimizer says `takes_closure = True`.

LBFGS finds the minimum of a logistic regression, on all rows at once. It is known: scikit-learn's is printed beside.

The figure is the accuracy by SAM on images with true labels, beside the most frequent class.
"""

# %% data
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import TemplateModel, TensorLoader, run_main, seed_everything  # noqa: E402


def noisy_digits(count=1000, wrong=1 / 3):
    """``count`` images to train on, of whose labels a third is another digit, and the others to test with."""
    chance, (pixels, labels) = torch.Generator().manual_seed(0), load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=chance)
    x, y = torch.tensor(pixels, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    is_wrong = torch.rand(count, generator=chance) < wrong
    other = (y[:count] + torch.randint(1, 10, (count,), generator=chance)) % 10
    return TensorDataset(x[:count], torch.where(is_wrong, other, y[:count])), TensorDataset(x[count:], y[count:])


# %% SAM
class SAM(torch.optim.Optimizer):
    """Steps of another optimizer, by the gradient at the worst place within ``rho`` of the weights.

    Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", 2021, arXiv:2010.01412.
    """

    def __init__(self, base, rho=0.05):
        self.base, self.steps_back = base, []
        super().__init__(base.param_groups, {"rho": rho})
        self.param_groups, self.state = base.param_groups, base.state   # one set of rates and moments, for both

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.base.param_groups, self.base.state = self.param_groups, self.state

    @torch.no_grad()
    def first_step(self):
        reached = [(p, group["rho"]) for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p, _ in reached]).norm() + 1e-12
        self.steps_back = [(p, p.grad * rho / norm) for p, rho in reached]
        for p, step in self.steps_back:
            p.add_(step)

    @torch.no_grad()
    def second_step(self):
        for p, step in self.steps_back:
            p.sub_(step)
        self.base.step()

    def step(self, closure):
        self.first_step()
        loss = closure()
        self.second_step()
        return loss


class Classifier(TemplateModel):
    def __init__(self, train, test, rho, folder, width):
        super().__init__()
        net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
        adam = torch.optim.Adam(net.parameters(), 1e-3)
        self.model_list = [net]
        self.optimizer_list = [SAM(adam, rho) if rho else adam]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader, self.eval_loader = DataLoader(train, 50, shuffle=True), DataLoader(test, 400)
        self.ckpt_dir, self.keep_checkpoints = folder, 1


# %% LBFGS
class Logistic(TemplateModel):
    """Logistic regression with an L2 penalty, on standardized columns, in one batch."""

    def __init__(self, x, y, folder):
        super().__init__()
        net = nn.Linear(x.shape[1], 1).double()
        self.model_list = [net]
        self.optimizer_list = [torch.optim.LBFGS(net.parameters(), max_iter=10, line_search_fn="strong_wolfe")]
        self.criterion = nn.BCEWithLogitsLoss()
        self.train_loader = TensorLoader(x, y, batch_size=len(x))
        self.ckpt_dir, self.keep_checkpoints = folder, 1

    def loss_per_batch(self, batch):
        x, y = batch
        fit = self.criterion(self.inference(x)[:, 0], y)
        return {"tol_loss": fit + self.model_list[0].weight.square().sum() / (2 * len(x)), "fit": fit}


# %% run
def trained(trainer, epochs, resume):
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    return trainer


def main(epochs=25, width=256, rho=0.3, lbfgs_epochs=6, seed=0, resume: str | None = None):
    (train, test), accuracy, folder = noisy_digits(), {}, "check_point/sam_and_lbfgs"
    for name, radius, place in (("SAM", rho, folder), ("Adam", None, f"{folder}/adam")):
        seed_everything(seed)
        accuracy[name] = trained(Classifier(train, test, radius, place, width), epochs, resume).test()["acc"]

    x, y = map(torch.from_numpy, load_breast_cancer(return_X_y=True))
    x, y = (x - x.mean(0)) / x.std(0), y.double()
    seed_everything(seed)
    lbfgs = trained(Logistic(x, y, f"{folder}/lbfgs"), lbfgs_epochs, resume)
    found = lbfgs.test(lbfgs.train_loader)["tol_loss"]
    known = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(x, y)
    best = lbfgs.criterion(torch.from_numpy(known.decision_function(x)), y) + (known.coef_ ** 2).sum() / (2 * len(x))
    print(f"LBFGS: the loss is {found:.8f} after {lbfgs_epochs} steps; the least there is, by scikit-learn, is {best:.8f}")
    most = test.tensors[1].bincount().max().item() / len(test)
    print(f"a third of the labels is wrong: accuracy by SAM {accuracy['SAM']:.3f}, by Adam alone {accuracy['Adam']:.3f}")
    print(f"accuracy {accuracy['SAM']:.3f} (at least 0.85; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
