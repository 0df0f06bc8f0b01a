"""Hyper-parameters: three runs with other settings, which are stored with each run, listed and compared.

    python examples/features/hyper_parameters.py                # ten seconds; needs scikit-learn for its data
    python examples/features/hyper_parameters.py --resume auto  # go on where it stopped
    python -m template.tools.runs --where "lr<1e-2" --sort acc  # the same list in the terminal
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
from template.tools.runs import list_runs  # noqa: E402

pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
held_out = torch.arange(len(y)) % 5 == 0
train_set, eval_set = TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])


# %% the training
class Trainer(TemplateModel):
    def __init__(self, lr, width):
        super().__init__()
        net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        self.model_list = [net]
        self.optimizer_list = [torch.optim.Adam(net.parameters(), lr)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader, self.eval_loader = DataLoader(train_set, 32, shuffle=True), DataLoader(eval_set, 256)
        self.ckpt_dir = f"check_point/hyper_parameters/lr{lr}-width{width}"
        self.key_metric, self.overwrite = "acc", True   # the folder of an earlier run with these settings is used again


# %% run
def main(epochs=8, resume: str | None = None):
    for lr, width in ((1e-4, 64), (3e-3, 16), (3e-3, 128)):
        seed_everything(0)
        trainer = Trainer(lr, width)
        trainer.check_init(arg={"lr": lr, "width": width})      # printed, and stored in config.json and the checkpoints
        if resume:
            trainer.load_state(resume)
        trainer.fit(epochs)

    runs = sorted(list_runs("check_point/hyper_parameters"), key=lambda run: run.value("acc"))
    for run in runs:
        print(f"lr {run.value('lr'):<6} width {run.value('width'):<3} best acc {run.value('acc'):.3f} in {run.name}")
    trainer = Trainer(runs[-1].value("lr"), runs[-1].value("width"))
    trainer.load_state(Path("check_point/hyper_parameters", runs[-1].name, "best.pth"), optim=False)
    acc = (trainer.predict(x[held_out]).argmax(1) == y[held_out]).float().mean()
    most = eval_set.tensors[1].bincount().max() / len(eval_set)
    print(f"accuracy {acc:.3f} (at least 0.93; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
