"""Several processes that train together, in mixed precision.

    python examples/features/several_processes.py                           # twenty seconds; starts two of them itself
    python examples/features/several_processes.py --resume auto             # go on where they stopped
    torchrun --nproc-per-node 2 examples/features/several_processes.py      # the usual way: the processes are there

Nothing in the training is written for several processes: the same file trains in one. On GPUs, start one process for each.
"""

# %% data
import os
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import TemplateModel, run_main, seed_everything  # noqa: E402
from template.tools.launch import launch  # noqa: E402

pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
held_out = torch.arange(len(y)) % 5 == 0
train_set, eval_set = TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])


# %% the training
class Trainer(TemplateModel):
    def __init__(self):
        super().__init__()
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.model_list = [net]
        self.optimizer_list = [torch.optim.Adam(net.parameters(), 3e-3)]
        self.criterion = nn.CrossEntropyLoss()
        # each process reads its own share of the batches, so that an update has 16 samples times the processes
        self.train_loader, self.eval_loader = DataLoader(train_set, 16, shuffle=True), DataLoader(eval_set, 64)
        self.amp = "bf16"                       # or "fp16", which scales the loss; the weights stay float32
        self.parallel = "auto"                  # "ddp" where there are several processes; "fsdp" divides the weights
        self.clip_grad = 1.0                    # of the gradients of all processes
        self.ckpt_dir = "check_point/several_processes"


# %% run
def train(epochs, resume):
    """In every process."""
    seed_everything(0)
    trainer = Trainer()
    trainer.check_init()                        # prints and writes in one of them
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    acc = trainer.test()["acc"]                 # over the data of all of them: the same number in each
    if trainer.is_main:
        print(f"{trainer.world.size} processes, {trainer.global_step} updates")
    return acc, trainer.is_main


def main(epochs=10, processes=2, resume: str | None = None):
    if processes == 1 or "RANK" in os.environ:  # torchrun has started them
        acc, is_main = train(epochs, resume)
    else:
        acc, is_main = launch(train, processes, epochs, resume)[0]
    if not is_main:
        return
    most = eval_set.tensors[1].bincount().max() / len(eval_set)
    print(f"accuracy {acc:.3f} (at least 0.93; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
