"""One forward per eval batch in every documented way of writing the subclass, and as many as asked for elsewhere."""

import pytest
import torch
from tiny import Tiny, tiny_data
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from template.metrics.one_forward import OneForward

NUM_BATCHES = 3  # 23 samples in batches of 10


class Counting(nn.Module):
    """Counts how often its forward really ran."""

    def __init__(self, num_in=6, num_out=3, dropout=0.0):
        super().__init__()
        torch.manual_seed(num_in)
        self.layer, self.dropout = nn.Linear(num_in, num_out), nn.Dropout(dropout)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layer(self.dropout(x))


class Default(Tiny):
    def __init__(self, model=None, **attributes):
        super().__init__(model=Counting() if model is None else model, preflight=False, **attributes)


class CallsTheModel(Default):
    def loss_per_batch(self, batch):
        x, y = batch
        return self.criterion(self.model_list[0](x), y)


class CallsInference(Default):
    def loss_per_batch(self, batch):
        x, y = batch
        return {"tol_loss": self.criterion(self.model_list[0](x), y), "l2": x.square().mean()}

    def eval_scores_per_batch(self, batch):
        x, y = batch
        pred = self.inference(x)
        return self.metric(pred, y)


class Converts(Default):
    """Each method makes its own float copy of the input."""

    dtype = torch.uint8

    def __init__(self):
        super().__init__()
        x, y = tiny_data(23, seed=5)
        self.eval_loader = DataLoader(TensorDataset((x * 20 + 100).to(self.dtype), y), 10)

    def loss_per_batch(self, batch):
        return self.criterion(self.inference(batch[0].to(torch.float32)), batch[1])

    def eval_scores_per_batch(self, batch):
        return self.metric(self.inference(batch[0].to(torch.float32)), batch[1])


class ConvertsFloat64(Converts):
    dtype = torch.float64


class DefaultOnBytes(Default):
    """The default methods convert uint8 themselves."""

    def __init__(self):
        super().__init__()
        x, y = tiny_data(23, seed=5)
        self.eval_loader = DataLoader(TensorDataset((x * 20 + 100).to(torch.uint8), y), 10)


class Chained(Default):
    def __init__(self):
        models = [Counting(6, 4), Counting(4, 3)]
        super().__init__(model_list=models, optimizer_list=[torch.optim.SGD(nn.ModuleList(models).parameters(), 0.1)])


class DictBatch(Default):
    def __init__(self):
        super().__init__()
        self.eval_loader = DataLoader([{"x": x, "y": y} for x, y in zip(*tiny_data(23, seed=5))], 10)

    def loss_per_batch(self, batch):
        return self.criterion(self.inference(batch["x"]), batch["y"])

    def eval_scores_per_batch(self, batch):
        return self.metric(self.inference(batch["x"]), batch["y"])


class OwnLoss(Default):
    """The model takes the batch by keyword and returns its loss; the metric wants its logits."""

    class Net(Counting):
        def forward(self, x, labels):
            logits = super().forward(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    def __init__(self):
        super().__init__(model=self.Net(), criterion=None)
        self.eval_loader = DataLoader([{"x": x, "labels": y} for x, y in zip(*tiny_data(23, seed=5))], 10)

    def eval_scores_per_batch(self, batch):
        return self.metric(self.inference(batch)["logits"], batch["labels"])


class UnderAutocast(Default):
    def __init__(self):
        super().__init__(amp="bf16")


WAYS = [Default, CallsTheModel, CallsInference, Converts, ConvertsFloat64, DefaultOnBytes, Chained, DictBatch, OwnLoss,
        UnderAutocast]


BOTH_WRITTEN = [CallsInference, Converts, ConvertsFloat64, DictBatch, OwnLoss]  # loss_per_batch and eval_scores_per_batch


@pytest.mark.parametrize("one_forward", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_batch_costs_one_forward_and_two_where_the_subclass_wrote_both_methods_and_does_not_ask_for_one(way, one_forward):
    trainer = way()
    trainer.one_forward = one_forward
    trainer.check_init(use_tb=False)
    score = trainer.eval()
    forwards = NUM_BATCHES * (2 if way in BOTH_WRITTEN and not one_forward else 1)
    assert [model.calls for model in trainer.model_list] == [forwards] * len(trainer.model_list)
    correct = total = 0
    with torch.no_grad():  # by hand
        for batch in trainer.eval_loader:
            x, y = batch.values() if isinstance(batch, dict) else batch
            x = x.float()
            for model in trainer.model_list:
                with trainer.autocast():
                    x = model.layer(x)
            correct += (x.argmax(1) == y).sum().item()
            total += len(y)
    assert score == pytest.approx(correct / total)


def test_training_runs_every_forward():
    trainer = CallsTheModel()
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    assert trainer.model_list[0].calls == 6


class McDropout(Default):
    num_passes = 5

    def loss_per_batch(self, batch):
        self.model_list[0].dropout.train()
        return super().loss_per_batch(batch)

    def eval_scores_per_batch(self, batch):
        x, y = batch
        passes = torch.stack([self.inference(x) for _ in range(self.num_passes)])
        self.spreads.append(passes.std(0).min().item())
        return self.metric(passes.mean(0), y)


def test_several_passes_over_one_input_really_run():
    trainer = McDropout(model=Counting(dropout=0.5))
    trainer.spreads = []
    trainer.check_init(use_tb=False)
    trainer.eval()
    assert trainer.model_list[0].calls == NUM_BATCHES * (1 + 5)
    assert min(trainer.spreads) > 0  # no pass equals another


def test_another_input_is_another_forward():
    class Flips(Default):
        def eval_scores_per_batch(self, batch):
            return self.metric(self.inference(batch[0]) + self.inference(-batch[0]), batch[1])

    for one_forward, forwards in ((False, 3), (True, 2)):
        trainer = Flips(one_forward=one_forward)
        trainer.check_init(use_tb=False)
        trainer.eval()
        assert trainer.model_list[0].calls == forwards * NUM_BATCHES


# --- the object alone -------------------------------------------------------------------------------------------------


def record_then_replay(model, first, second, between=lambda output: None):
    """The output of the second call after the first was recorded."""
    with OneForward([model]) as forwards, torch.no_grad():
        with forwards.recording():
            between(first(model))
        with forwards.replaying():
            return second(model)


def test_an_input_that_was_changed_in_place_is_noticed():
    model, x = Counting(), torch.ones(2, 6)
    result = record_then_replay(model, lambda m: m(x), lambda m: m(x.mul_(2)))
    assert model.calls == 2 and torch.equal(result, model.layer(x))


def test_an_input_copy_that_was_changed_in_place_is_noticed():
    """The copy that was recorded now equals another input, but gave another output."""
    model, x = Counting(), torch.ones(2, 6)

    def changes_its_copy(m):
        copy = x.clone()
        m(copy)
        copy.mul_(2)

    result = record_then_replay(model, changes_its_copy, lambda m: m(x * 2))
    assert torch.equal(result, model.layer(x * 2))


def test_a_dict_input_with_an_entry_replaced_is_noticed():
    class Takes(Counting):
        def forward(self, inputs):
            return super().forward(inputs["x"])

    model, inputs = Takes(), {"x": torch.ones(2, 6)}

    def again(m):
        inputs["x"] = inputs["x"] * 3
        return m(inputs)

    result = record_then_replay(model, lambda m: m(inputs), again)
    assert model.calls == 2 and torch.equal(result, model.layer(torch.full((2, 6), 3.0)))


@pytest.mark.parametrize("several", [list, lambda samples: dict(enumerate(samples))])
def test_a_list_or_a_dict_goes_in_as_it_does_in_the_training(several):
    class OfImages(Counting):  # as torchvision's detectors have them
        def forward(self, images, targets=None):
            images = images.values() if isinstance(images, dict) else images
            return super().forward(torch.stack(list(images)))

    class Detector(Default):
        def count_samples(self, batch):
            return len(batch[1])

        def loss_per_batch(self, batch):
            x, y = batch
            return self.criterion(self.inference(x), y)

    def lists(samples):
        x, y = zip(*samples)
        return several(x), torch.stack(y)

    train, held_out = (DataLoader(TensorDataset(*tiny_data(24, seed=seed)), 8, collate_fn=lists) for seed in (0, 1))
    trainer = Detector(OfImages(), train_loader=train, eval_loader=held_out)
    trainer.check_init()
    trainer.fit(1)
    assert trainer.model_list[0].calls == 6 and trainer.eval_result["acc"] > 0


def test_an_output_that_was_changed_in_place_is_not_handed_out():
    model, x = Counting(), torch.ones(2, 6)
    result = record_then_replay(model, lambda m: m(x), lambda m: m(x), between=lambda output: output.zero_())
    assert model.calls == 2 and torch.equal(result, model.layer(x))


@pytest.mark.parametrize("second", [
    lambda m, x: m(x.double().float() + 1), lambda m, x: m(x[:1]), lambda m, x: m(x=x), lambda m, x: m.train()(x),
])
def test_what_is_not_the_same_call_runs(second):
    model, x = Counting().eval(), torch.ones(2, 6)
    record_then_replay(model, lambda m: m(x), lambda m: second(m, x))
    assert model.calls == 2


def test_outside_of_recording_and_replaying_every_call_runs():
    model, x = Counting().eval(), torch.ones(2, 6)
    with OneForward([model]) as forwards:
        model(x)
        with forwards.recording():
            model(x)
        with forwards.replaying():
            model(x)  # the recorded one
        with forwards.replaying():
            model(x)
        model(x)
    assert model.calls == 4


def test_forward_is_the_models_own_again_also_after_an_error():
    model = Counting()
    bound = Counting()
    own = bound.forward = lambda x: x  # somebody's patch on the instance
    with pytest.raises(ZeroDivisionError):
        with OneForward([model, bound, model]):
            assert "forward" in vars(model)
            1 / 0  # noqa: B018
    assert "forward" not in vars(model) and bound.forward is own

    class Broken(Default):
        def eval_scores_per_batch(self, batch):
            raise OSError("broken")

    trainer = Broken()
    trainer.check_init(use_tb=False)
    with pytest.raises(OSError):
        trainer.eval()
    assert "forward" not in vars(trainer.model_list[0])


def test_hooks_of_the_user_still_see_the_calls():
    trainer = Default()
    seen = []
    trainer.model_list[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    trainer.check_init(use_tb=False)
    trainer.eval()
    assert len(seen) >= NUM_BATCHES


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x).tanh()


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [lambda model, backend: model.compile(backend=backend) or model,
                                      lambda model, backend: torch.compile(model, backend=backend)])
def test_a_compiled_model_works_and_runs_once_per_batch(compiled):
    runs = []

    def backend(graph, example_inputs):
        def run(*args):
            runs.append(1)
            return graph(*args)

        return run

    plain = Plain()
    expected = Default(model=plain)
    expected.check_init(use_tb=False)
    score = expected.eval()
    trainer = Default(model=compiled(plain, backend))
    trainer.check_init(use_tb=False)
    assert trainer.eval() == score
    assert len(runs) == NUM_BATCHES
    trainer.model_list[0](torch.ones(10, 6))  # is still the compiled one
    assert len(runs) == NUM_BATCHES + 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_is_left_alone():
    model = torch.jit.script(nn.Linear(6, 3))
    trainer = Default(model=model)
    trainer.check_init(use_tb=False)
    assert 0 <= trainer.eval() <= 1
