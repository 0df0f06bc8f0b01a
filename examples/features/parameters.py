"""The settings that most trainings need: attributes of the trainer, and arguments of fit(), eval() and test().

    python examples/features/parameters.py                # five seconds; needs scikit-learn for its data
    python examples/features/parameters.py --resume auto  # go on where it stopped
"""

# %% data
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import ProgressBar, TemplateModel, run_main  # noqa: E402

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
        self.optimizer_list = [torch.optim.Adam(net.parameters(), 1e-2)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader, self.eval_loader = DataLoader(train_set, 32, shuffle=True), DataLoader(eval_set, 256)
        # where and how; docs/attributes.md lists all of them
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.ckpt_dir = "check_point/parameters"    # folder of the run
        self.seed = 0                               # of the order of the data; of the weights too: see main()
        self.log_per_step = 10                      # updates between two log points, for TensorBoard and the progress bar
        self.callbacks = [ProgressBar(show=False)]  # it replaces the one that is there
        # the update
        self.accumulate_steps = 2                   # batches per update
        self.amp = "bf16"                           # mixed precision
        self.clip_grad = 1.0
        # the learning rate
        self.lr_scheduler_type = "cosine"
        self.warm_up_epoch = 1
        # what is best, what is kept
        self.key_metric = "acc"
        self.keep_checkpoints = 2                   # epoch9.pth and epoch10.pth, beside best.pth and last.pth


# %% run
def main(epochs=10, resume: str | None = None):
    torch.manual_seed(0)
    trainer = Trainer()
    trainer.check_init(use_tb=True)                 # False: no TensorBoard events
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs, save_per_epochs=1)          # epoch<N>.pth for each of them; fit(updates=500) counts updates

    trainer.use_best()                              # the weights of best.pth
    other = trainer.test(DataLoader(train_set, 256))    # any loader
    print("on the training data:", other)
    acc = trainer.test()["acc"]
    most = eval_set.tensors[1].bincount().max() / len(eval_set)
    print(f"accuracy {acc:.3f} (at least 0.93; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
