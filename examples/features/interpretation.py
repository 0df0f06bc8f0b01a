"""Interpretation: which samples does the network get wrong, and which digits does it confuse?

    python examples/features/interpretation.py                # ten seconds; needs scikit-learn and matplotlib
    python examples/features/interpretation.py --resume auto  # go on where it stopped

After every fifth evaluation, pictures and tables are written to the folder of the run and to TensorBoard.
"""

# %% data
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import Confusion, Interpret, TemplateModel, run_main, seed_everything  # noqa: E402

pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(digits)
held_out = torch.arange(len(y)) % 5 == 0
train_set, eval_set = TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])


# %% the training
class Trainer(TemplateModel):
    def __init__(self):
        super().__init__()
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.model_list = [net]
        self.optimizer_list = [torch.optim.Adam(net.parameters(), 3e-3)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader, self.eval_loader = DataLoader(train_set, 32, shuffle=True), DataLoader(eval_set, 256)
        self.ckpt_dir = "check_point/interpretation"
        self.callbacks = [Interpret(k=16, every=5)]     # the 16 samples with the largest loss, and the confusion matrix


# %% run
def main(epochs=10, resume: str | None = None):
    seed_everything(0)
    trainer = Trainer()
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)

    pred, labels = trainer.predict(trainer.eval_loader, labels=True)
    matrix = Confusion(10).update(pred, labels).compute()
    matrix.fill_diagonal_(0)
    true, guessed = divmod(int(matrix.argmax()), 10)
    print(f"most often, a {true} is taken for a {guessed}: {matrix[true, guessed]:.0f} times")
    acc = (pred.argmax(1) == labels).float().mean()
    most = eval_set.tensors[1].bincount().max() / len(eval_set)
    print(f"accuracy {acc:.3f} (at least 0.93; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
