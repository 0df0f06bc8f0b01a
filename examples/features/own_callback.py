"""A callback of your own: count what the network forgets, and stop the training when it is good enough.

    python examples/features/own_callback.py                # five seconds; needs scikit-learn for its data
    python examples/features/own_callback.py --resume auto  # go on where it stopped

The events and what a callback may write are listed in docs/callbacks.md. Forgetting: Toneva et al. (2019), arXiv:1812.05159.
"""

# %% data
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import Callback, TemplateModel, run_main, seed_everything  # noqa: E402

pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
held_out = torch.arange(len(y)) % 5 == 0
train_set, eval_set = TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])


# %% the callbacks
class Forgotten(Callback):
    """How often a held-out sample was right in one evaluation, and wrong in the next one."""

    def __init__(self):
        self.times, self.before, self.now = 0, {}, {}

    def on_eval_start(self, model):
        self.now = {}

    def on_eval_predictions(self, model, batch, predictions, labels, losses):      # of the forward that was done already
        right = predictions.argmax(1) == labels
        self.now |= zip(model.evaluator.sample_indices, right.tolist())

    def on_epoch_end(self, model, results):
        right = {}
        for part in model.world.gather(self.now):               # each process evaluated its share
            right |= part
        self.times += sum(was and not right[sample] for sample, was in self.before.items())
        self.before = right
        if model.writer is not None:
            model.writer.add_scalar("mine/forgotten", self.times, model.global_step)

    def state_dict(self):                                       # travels in the checkpoint
        return {"times": self.times, "before": self.before}

    def load_state_dict(self, state):
        self.times, self.before = state["times"], state["before"]


class GoodEnough(Callback):
    def __init__(self, acc):
        self.acc = acc

    def on_epoch_end(self, model, results):
        if results["eval/acc"] >= self.acc:
            model.should_stop = True                            # after this epoch; "now": in the midst of one


# %% the training
class Trainer(TemplateModel):
    def __init__(self):
        super().__init__()
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.model_list = [net]
        self.optimizer_list = [torch.optim.Adam(net.parameters(), 3e-3)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader, self.eval_loader = DataLoader(train_set, 32, shuffle=True), DataLoader(eval_set, 256)
        self.ckpt_dir = "check_point/own_callback"


# %% run
def main(epochs=20, resume: str | None = None):
    seed_everything(0)
    trainer, forgotten = Trainer(), Forgotten()
    trainer.callbacks = [forgotten, GoodEnough(0.965)]
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    print(f"{trainer.epochs_done} epochs; {forgotten.times} times, a sample that was right became wrong")
    acc = trainer.test()["acc"]
    most = eval_set.tensors[1].bincount().max() / len(eval_set)
    print(f"accuracy {acc:.3f} (at least 0.93; most frequent class {most:.3f})")


if __name__ == "__main__":
    run_main(main)
