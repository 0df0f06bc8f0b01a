"""Several optimizers: one for the body and another one for the output layer, with a schedule for each.

    python examples/features/several_optimizers.py                # five seconds; needs scikit-learn for its data
    python examples/features/several_optimizers.py --resume auto  # go on where it stopped
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

pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
held_out = torch.arange(len(y)) % 5 == 0
train_set, eval_set = TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])


# %% the training
class Trainer(TemplateModel):
    def __init__(self):
        super().__init__()
        body, head = nn.Sequential(nn.Linear(64, 64), nn.ReLU()), nn.Linear(64, 10)
        self.model_list = [body, head]                  # the data goes through them in this order
        self.optimizer_list = [torch.optim.SGD(body.parameters(), 0.1, momentum=0.9),
                               torch.optim.Adam(head.parameters(), 3e-3)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader, self.eval_loader = DataLoader(train_set, 32, shuffle=True), DataLoader(eval_set, 256)
        self.lr_scheduler_type = "cosine"               # of every optimizer, from its own rate; or lr_scheduler_list
        self.ckpt_dir = "check_point/several_optimizers"

    # Both are updated from one loss. To update them from losses of their own, write train_step(batch) with
    # backward(loss, i) and update(i), as in examples/basics/gan.py.


# %% run
def main(epochs=10, resume: str | None = None):
    seed_everything(0)
    trainer = Trainer()
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    trainer.print_final_lr()
    acc = trainer.test()["acc"]
    most = eval_set.tensors[1].bincount().max() / len(eval_set)
    print(f"accuracy {acc:.3f} (at least 0.93; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
