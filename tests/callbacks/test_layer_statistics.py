"""The statistics of layers are those of whole updates, and hooks are there only while one is looked at."""

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import Tiny, tiny_data, tiny_model, weights
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from template import LayerStatistics

LOADER = DataLoader(TensorDataset(*tiny_data(40)), 10)


def num_hooks(model):
    return sum(len(part._forward_hooks) for part in model.modules())


def run(callback, epochs=1, kind=Tiny, use_tb=False, **attributes):
    trainer = kind(**{"model": tiny_model(dropout=0.0), "callbacks": [callback], "train_loader": LOADER, "log_per_step": 1,
                      **attributes})
    trainer.check_init(use_tb=use_tb)
    trainer.fit(epochs)
    return trainer


def by_hand(accumulate):
    """Outputs and their gradients of the first update, by layer."""
    model, found = tiny_model(dropout=0.0), {}
    for x, y in list(LOADER)[:accumulate]:
        for name, layer in model.named_children():
            x = layer(x)
            x.retain_grad()
            found.setdefault(name, []).append(x)
        (F.cross_entropy(x, y) / accumulate).backward()
    return {name: {"output": torch.cat([part.detach().flatten() for part in parts]),
                   "gradient": torch.cat([part.grad.flatten() for part in parts])} for name, parts in found.items()}


@pytest.mark.parametrize("accumulate, amp", [(1, None), (4, None), (2, "fp16")])
def test_they_are_those_of_the_whole_update(accumulate, amp):
    callback = LayerStatistics(every=100)

    class Full(Tiny):
        def train_step(self, batch):
            self.stepper._autocast_args = None  # a scaled loss in full precision, to compare with
            return super().train_step(batch)

    run(callback, kind=Full, accumulate_steps=accumulate, amp=amp)
    expected = by_hand(accumulate)
    assert list(callback.values) == list(expected) == ["0", "1", "2", "3"]
    for layer, kinds in expected.items():
        for kind, values in kinds.items():
            assert callback.values[layer][kind] == pytest.approx(
                {"mean": values.mean().item(), "std": values.std(correction=0).item(),
                 "zeros": (values == 0).float().mean().item()}, rel=1e-3, abs=1e-7), (layer, kind)


def test_scalars_and_histograms_reach_tensorboard_at_their_update():
    trainer = run(LayerStatistics(every=3), epochs=2, use_tb=True, log_per_step=2)
    trainer.writer.flush()
    events = EventAccumulator(trainer.writer.log_dir, {"histograms": 0}).Reload()
    assert [point.step for point in events.Scalars("output_mean/0")] == [0, 3, 6]
    first = events.Histograms("outputs/0")[0].histogram_value
    values = by_hand(1)["0"]["output"].numpy()
    assert (first.num, first.min, first.max) == (len(values), pytest.approx(values.min()), pytest.approx(values.max()))
    filled = [count for count in first.bucket if count]
    expected = [count for count in np.histogram(values, 64)[0] if count]
    assert sum(filled) == len(values) and abs(len(filled) - len(expected)) <= 2


def test_hooks_are_there_only_in_the_updates_that_are_looked_at():
    seen = []

    class Counting(Tiny):
        def train_step(self, batch):
            seen.append(num_hooks(self.model_list[0]) > 0)
            return super().train_step(batch)

    trainer = run(LayerStatistics(every=3), kind=Counting)
    assert seen == [True, False, False, True] and num_hooks(trainer.model_list[0]) == 0


@pytest.mark.parametrize("by", ["fit", "train_loop"])
def test_hooks_are_gone_after_an_error(by):
    class Broken(Tiny):
        def train_step(self, batch):
            self.criterion(self.inference(batch[0]), batch[1])
            raise OSError("gone")

    trainer = Broken(callbacks=[LayerStatistics()], preflight=False)
    trainer.check_init(use_tb=False)
    with pytest.raises(OSError):
        trainer.fit(1) if by == "fit" else trainer.train_loop()
    assert num_hooks(trainer.model_list[0]) == 0


def test_the_training_ends_with_the_same_bits():
    ends = [weights(run(callback, epochs=2, model=tiny_model())) for callback in
            (LayerStatistics(every=2), LayerStatistics(every=1000000, outputs=False))]
    assert torch.equal(*ends)


def test_layers_that_return_several_things_or_are_called_twice_or_work_in_place():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.shared = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 5)
            self.act, self.head = nn.ReLU(inplace=True), nn.Linear(5, 3)

        def forward(self, x):
            out, _ = self.rnn(x[:, None])
            out = self.act(self.shared(out[:, 0]))
            return self.head(self.act(self.shared(out)))

    callback = LayerStatistics(every=1)
    run(callback, model=Net())
    assert set(callback.values) == {"rnn", "shared", "act", "head"}
    assert callback.values["act"]["output"]["zeros"] > 0 and callback.values["shared"]["output"]["zeros"] == 0


def test_a_compiled_model_is_refused_with_what_to_do():
    trainer = Tiny(callbacks=[LayerStatistics()], train_loader=LOADER)
    trainer.check_init(use_tb=False)
    trainer.model_list[0][0].compile()
    with pytest.raises(ValueError, match="compiled Linear .* compile = False"):
        trainer.train_loop()


@pytest.mark.parametrize("arguments", [{"every": 0}, {"outputs": False, "gradients": False}])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="got"):
        LayerStatistics(**arguments)
