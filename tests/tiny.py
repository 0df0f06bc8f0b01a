"""A tiny classification job for tests, and what independent results are compared with."""

import os
from pathlib import Path

import fork_server
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template.data.loaders import make_batches
from template.hooks import Callback
from template.template import TemplateModel

ROOT = Path(__file__).resolve().parent.parent
PATH = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/jobs")))  # as PYTHONPATH of a job
CPU = torch.device("cpu")


def tiny_data(num_samples=53, num_features=6, num_classes=3, seed=0):
    """Features [N, F] and labels [N] that a linear model can mostly learn."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_samples, num_features, generator=generator)
    y = (x @ torch.randn(num_features, num_classes, generator=generator)).argmax(1)
    return x, y


def tiny_model(seed=1, dropout=0.2):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Dropout(dropout), nn.ReLU(), nn.Linear(16, 3))


class Tiny(TemplateModel):
    """53 training and 23 eval samples in batches of 10: both end with a short one. Attributes by keyword."""

    def __init__(self, model=None, **attributes):
        super().__init__()
        model = tiny_model() if model is None else model
        self.model_list = [model]
        self.optimizer_list = [torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader = DataLoader(TensorDataset(*tiny_data()), 10, shuffle=True)
        self.eval_loader = DataLoader(TensorDataset(*tiny_data(23, seed=5)), 10)
        self.seed = 3
        for name, value in attributes.items():
            setattr(self, name, value)


class Rates(Callback):
    """Notes the rates of the first optimizer's groups, update by update."""

    def __init__(self):
        self.rates = []

    def on_before_step(self, model):
        self.rates.append([float(group["lr"]) for group in model.optimizer_list[0].param_groups])


def tiny_trainer(use_tb=False, **attributes):
    """A ``Tiny`` after ``check_init``."""
    trainer = Tiny(**attributes)
    trainer.check_init(use_tb=use_tb)
    return trainer


def whole_and_continued(build, epochs, cut):
    """The trainer of one run, and that of a run that was ended after ``cut`` epochs and continued by new
    objects. ``build(ckpt_dir)`` makes a trainer after ``check_init``."""
    whole = build("whole")
    whole.fit(epochs)
    build("parts").fit(cut)
    continued = build("parts")
    continued.load_state("auto")
    continued.fit(epochs)
    return whole, continued


def weights(trainer):
    """All parameters and buffers of all models as one vector, for bit-exact comparison."""
    values = [value for model in trainer.model_list for value in model.state_dict().values()]
    return torch.cat([value.detach().double().flatten() for value in values])


def run_python(*args, cwd, env=None, check=True, timeout=300):
    """Run this Python with the given arguments; returns the CompletedProcess with text output. See ``fork_server.py``."""
    full = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", **(env or {})}
    done = fork_server.run_python(args, cwd=cwd, env=full, timeout=timeout)
    if check and done.returncode:
        raise AssertionError(f"{args} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def stream(loader, epoch, seed=3, start=0):
    """Batches as nested lists of numbers, which compare exactly."""
    batches = loader if hasattr(loader, "epoch") and hasattr(loader, "first") else make_batches(loader, seed, CPU)
    return [plain(batch) for batch in batches.epoch(epoch, start)]


def plain(value):
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value
