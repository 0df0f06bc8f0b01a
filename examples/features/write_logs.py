"""Logging: TensorBoard, a CSV file, a line of JSON for each point, log.txt, and numbers of your own.

    python examples/features/write_logs.py                # five seconds; needs scikit-learn and tensorboard
    python examples/features/write_logs.py --resume auto  # go on where it stopped
    tensorboard --logdir runs

The trackers Wandb(), Trackio(), SwanLab() and MLflow() are callbacks as well: docs/trackers.md.
"""

# %% data
import logging
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import JsonLines, LogRecords, TemplateModel, run_main, seed_everything  # noqa: E402

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
        self.train_loader, self.eval_loader = DataLoader(train_set, 32, shuffle=True), DataLoader(eval_set, 256)
        self.log_per_step = 10                          # updates between two points of a curve
        self.ckpt_dir = "check_point/write_logs"
        self.callbacks = [JsonLines(), LogRecords()]    # numbers.jsonl; records of Python's logging stand in log.txt too

    def loss_per_batch(self, batch):
        images, labels = batch
        scores = self.inference(images)
        # tol_loss is trained on; every entry is averaged, printed and drawn
        return {"tol_loss": self.criterion(scores, labels), "largest_score": scores.amax(1).mean()}


# %% run
def main(epochs=10, resume: str | None = None):
    seed_everything(0)
    trainer = Trainer()
    trainer.check_init(arg={"epochs": epochs})          # options are printed, and stored in config.json
    if resume:
        trainer.load_state(resume)
    for epoch in trainer.epochs(epochs):
        trainer.train_loop(write_params=epoch == epochs)    # histograms of weights and gradients in the last epoch
        trainer.eval()
        if trainer.writer is not None:                  # the SummaryWriter of the run
            trainer.writer.add_scalar("mine/norm", trainer.model_list[0][0].weight.norm(), trainer.global_step)
        logging.getLogger(__name__).info("epoch %d is over", epoch)

    print("files:", *sorted(path.name for path in trainer.path_of(".").iterdir() if path.suffix not in (".pth", ".lock")))
    acc = trainer.test()["acc"]
    most = eval_set.tensors[1].bincount().max() / len(eval_set)
    print(f"accuracy {acc:.3f} (at least 0.93; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
