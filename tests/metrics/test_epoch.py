"""What is collected over an epoch keeps its values, also where somebody writes into the same memory again."""

import pytest
import torch
from tiny import Tiny, tiny_data
from torch import nn

from template.metrics.accumulators import Mean, Stored
from template.metrics.epoch import EpochMetrics, RunningLosses, per_sample


class OneBuffer:
    """Evaluation batches in the same memory each time."""

    def __init__(self, x, y, batch_size):
        self.x, self.y, self.batch_size = x, y, batch_size
        self.memory = x[:batch_size].clone(), y[:batch_size].clone()

    def __iter__(self):
        for parts in zip(self.x.split(self.batch_size), self.y.split(self.batch_size)):
            yield [memory[:len(part)].copy_(part) for memory, part in zip(self.memory, parts)]


@pytest.mark.parametrize("as_array", [False, True])
def test_stored_labels_are_not_overwritten_by_a_loader_that_fills_its_tensors_again(as_array):
    x, y = tiny_data(23)

    class Trainer(Tiny):
        def metric(self, pred, y):
            return {"right": self.right.update(pred.argmax(1), y.numpy() if as_array else y)}

    trainer = Trainer(eval_loader=OneBuffer(x, y, 5), key_metric_mode="max")
    trainer.right = Stored(lambda pred, y: (pred == y).double().mean())
    trainer.check_init(use_tb=False)
    result = trainer.test()
    trainer.model_list[0].eval()
    expected = (trainer.model_list[0](x).argmax(1) == y).double().mean().item()
    assert 0 < expected < 1 and result["right"] == pytest.approx(expected)


def test_a_running_sum_that_is_logged_beside_the_loss_keeps_the_value_of_its_batch():
    losses, total, weight = RunningLosses(), torch.zeros(()), torch.ones((), requires_grad=True)
    for value in (1.0, 2.0, 3.0):
        total += value  # in place
        losses.update({"tol_loss": weight * value, "total": total, "plain": torch.tensor(value)}, 2)
    assert [entry["total"] for entry, _ in losses.fetch()] == [1, 3, 6]
    assert losses.window() == {"tol_loss": 2, "total": pytest.approx(10 / 3), "plain": 2}


class OnDevice(torch.Tensor):
    """One on the CPU is read at once."""


@pytest.mark.parametrize("logged", [
    lambda p: p[0], lambda p: p[1:], lambda p: p[1].detach(), lambda p: p[1].data, lambda p: p.sum() * 1,
    lambda p: p[1].detach().as_subclass(OnDevice),
], ids=["entry", "part", "detached", "data", "computed", "on a device"])
@pytest.mark.parametrize("parameter", [torch.nn.Parameter, torch.Tensor.requires_grad_])
def test_a_parameter_that_is_logged_beside_the_loss_keeps_the_value_of_its_batch(logged, parameter):
    losses, values = RunningLosses(), parameter(torch.zeros(2))
    for _ in range(3):
        losses.update({"tol_loss": values.square().sum(), "value": logged(values)}, 2)
        values.data += 0.5  # an update that leaves no trace, as that of a fused optimizer
    assert [entry["value"] for entry, _ in losses.fetch()] in ([0, 0.5, 1], [0, 1, 2])


@pytest.mark.parametrize("make", [torch.nn.Parameter, torch.Tensor.requires_grad_])
def test_a_parameter_of_one_number_does_too(make):
    losses, scale = RunningLosses(), make(torch.tensor(0.0))
    for _ in range(3):
        losses.update({"tol_loss": scale * 1, "scale": scale}, 2)
        scale.data += 0.5
    assert [entry["scale"] for entry, _ in losses.fetch()] == [0, 0.5, 1]


@pytest.mark.parametrize("weight", [4, 0.25, torch.tensor(4), torch.tensor(0.25), torch.tensor([0.25])])
def test_a_sum_is_divided_by_its_weight_also_where_that_is_a_tensor_below_one(weight):
    assert float(per_sample({"tol_loss": torch.tensor(2.0)}, weight)["tol_loss"]) == 2 / float(weight)
    assert float(per_sample({"tol_loss": torch.tensor(0.0)}, weight * 0)["tol_loss"]) == 0


def test_a_metric_that_is_updated_in_place_keeps_the_value_of_its_batch_too():
    metrics, mean, value = EpochMetrics(), Mean(), torch.zeros(())
    for _ in range(3):
        value += 1
        metrics.update({"running": value}, 1)
        mean.update(value)
    assert metrics.compute() == {"running": 2} and mean.compute() == 2


def test_values_on_a_device_that_nobody_wrote_into_are_kept_as_they_are_which_costs_nothing():
    mean, value = Mean(), torch.tensor(3.0).as_subclass(OnDevice)
    mean.update(value)
    with torch.inference_mode():
        inference = nn.functional.mse_loss(torch.ones(2), torch.zeros(2)).as_subclass(OnDevice)
    mean.update(inference)
    assert mean.pending[0][0] is value and mean.pending[1][0] is inference and mean.compute() == 2
