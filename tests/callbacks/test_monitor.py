"""The norms of ``Monitor`` are those of a plain loop, at log points alone and without a wait of their own."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import Tiny, tiny_data, tiny_model, weights
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from template import Callback, Monitor

LOADER = DataLoader(TensorDataset(*tiny_data(40)), 10)


class Kept(Monitor):
    def __init__(self, **options):
        super().__init__(**options)
        self.all = []

    def on_log(self, model, values):
        super().on_log(model, values)
        self.all.append((model.global_step, self.values))


def grouped(**attributes):
    model = tiny_model(dropout=0.0)
    groups = [{"params": model[0].parameters(), "name": "body"},
              {"params": model[3].parameters(), "name": "head", "lr": 0.01}]
    optimizer = torch.optim.SGD(groups, 0.1, momentum=0.9)
    return Tiny(model=model, optimizer_list=[optimizer], **{"train_loader": LOADER, "log_per_step": 1, **attributes})


def by_hand(accumulate=1, clip=None):
    """``[{tag: value}, …]`` of every update."""
    model, found = tiny_model(dropout=0.0), []
    parts = {"body": list(model[0].parameters()), "head": list(model[3].parameters())}
    optimizer = torch.optim.SGD([{"params": parts["body"]}, {"params": parts["head"], "lr": 0.01}], 0.1, momentum=0.9)
    batches = list(LOADER)
    for start in range(0, len(batches), accumulate):
        for x, y in batches[start:start + accumulate]:
            (F.cross_entropy(model(x), y) / accumulate).backward()
        parts["total"] = parts["body"] + parts["head"]

        def norm(values):
            return float(torch.cat([value.detach().flatten() for value in values]).norm())

        row = {f"grad_norm/{name}": norm(p.grad for p in part) for name, part in parts.items()}
        row |= {f"weight_norm/{name}": norm(part) for name, part in parts.items()}
        before = {name: [p.detach().clone() for p in part] for name, part in parts.items()}
        if clip:
            nn.utils.clip_grad_norm_(parts["total"], clip)
        optimizer.step()
        optimizer.zero_grad()
        row |= {f"update_ratio/{name}": norm(p - b for p, b in zip(part, before[name])) / norm(before[name])
                for name, part in parts.items()}
        found.append(row)
    return found


@pytest.mark.parametrize("accumulate, clip, amp", [(1, None, None), (2, None, None), (1, 0.1, None), (1, None, "fp16")])
def test_norms_are_those_of_a_plain_loop(accumulate, clip, amp):
    monitor = Kept()
    trainer = grouped(callbacks=[monitor], accumulate_steps=accumulate, clip_grad=clip, amp=amp)
    trainer.check_init()
    if amp:  # a scaled loss in full precision, to compare with
        trainer.stepper._autocast_args = None
    trainer.train_loop()
    expected = by_hand(accumulate, clip)
    assert [step for step, _ in monitor.all] == list(range(1, len(expected) + 1))
    for (_, row), hand in zip(monitor.all, expected):
        assert row == pytest.approx(hand, rel=1e-3 if amp else 1e-4)
    trainer.writer.flush()
    events = EventAccumulator(trainer.writer.log_dir).Reload()
    assert [point.step for point in events.Scalars("grad_norm/total")] == list(range(1, len(expected) + 1))
    assert events.Scalars("update_ratio/head")[-1].value == pytest.approx(monitor.values["update_ratio/head"])


def test_only_updates_at_log_points_are_looked_at_and_weights_end_the_same():
    monitor, copies = Kept(), []

    class Counts(Callback):
        def on_before_step(self, model):
            copies.append(bool(monitor._before))

    plain, looked = grouped(log_per_step=3), grouped(log_per_step=3, callbacks=[monitor, Counts()])
    for trainer in (plain, looked):
        trainer.check_init(use_tb=False)
        trainer.fit(2)
    assert copies == [False, False, True, False, False, True, False, False]
    assert [step for step, _ in monitor.all] == [3, 4, 6, 8]
    assert torch.equal(weights(plain), weights(looked))


def test_a_skipped_update_changes_nothing():
    (x, y), monitor = next(iter(LOADER)), Monitor()
    trainer = grouped(callbacks=[monitor], preflight=False, skip_non_finite=2, log_per_step=2)
    trainer.train_loader = [(x, y), (x * float("nan"), y)]
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    assert trainer.skipped_updates == 1
    assert monitor.values["update_ratio/total"] == 0 and monitor.values["weight_norm/total"] > 0


def test_without_the_ratio_nothing_is_copied():
    monitor = Monitor(ratio=False)
    trainer = grouped(callbacks=[monitor])
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    assert set(monitor.values) == {"grad_norm/body", "grad_norm/head", "grad_norm/total"}


def test_optimizers_that_are_updated_one_by_one_have_a_norm_each():
    class Alternating(Tiny):
        def __init__(self, **attributes):
            super().__init__(**attributes)
            other = nn.Linear(6, 1)
            self.model_list = [*self.model_list, other]
            self.optimizer_list = [*self.optimizer_list, torch.optim.SGD(other.parameters(), 0.1)]
            self.norms = []

        def inference(self, x):
            return self.model_list[0](x)

        def train_step(self, batch):
            x, y = batch
            second = self.model_list[1](x).square().mean()
            self.backward(second, 1)
            self.norms.append(torch.cat([p.grad.flatten() for p in self.model_list[1].parameters()]).norm().item())
            self.update(1)
            loss = self.criterion(self.model_list[0](x), y)
            self.backward(loss, 0)
            self.update(0)
            return {"tol_loss": loss, "second": second}

    monitor = Monitor()
    trainer = Alternating(callbacks=[monitor], log_per_step=1)
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    values = monitor.values
    assert values["grad_norm/1"] == pytest.approx(trainer.norms[-1], rel=1e-5)
    assert values["grad_norm/total"] == pytest.approx((values["grad_norm/0"]**2 + values["grad_norm/1"]**2) ** 0.5, rel=1e-5)


def test_sparse_gradients_count():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(10, 4, sparse=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.table(x).mean(1))

    model = Words()
    x, y = torch.randint(10, (20, 5)), torch.randint(3, (20,))
    monitor = Monitor()
    trainer = Tiny(model=model, optimizer_list=[torch.optim.SGD(model.parameters(), 0.0)], callbacks=[monitor],
                   log_per_step=1, train_loader=DataLoader(TensorDataset(x, y), 20), eval_loader=None)
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    F.cross_entropy(model(x), y).backward()
    dense = [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in model.parameters()]
    norm = float(torch.cat([gradient.flatten() for gradient in dense]).norm())
    assert monitor.values["grad_norm/total"] == pytest.approx(norm, rel=1e-5)
