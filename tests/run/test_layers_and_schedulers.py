"""What would stop a run late or in torch's words is told at its start, and what works is left alone."""

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_trainer, weights
from torch import nn
from torch.optim import lr_scheduler as torch_schedulers
from torch.utils.data import DataLoader, TensorDataset

from template.data.in_memory import TensorLoader

# --- lazy layers --------------------------------------------------------------------------------------------------------


def lazy():
    torch.manual_seed(1)
    return nn.Sequential(nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Linear(16, 3))


def test_a_lazy_layer_without_weights_is_refused_with_its_name():
    model = lazy()
    with pytest.raises(ValueError, match=r"model_list\[0\]\.0 \(LazyLinear\) has none yet.*Run one batch"):
        Tiny(model=model, optimizer_list=[torch.optim.SGD(model.parameters(), 0.1)]).check_init(use_tb=False)


def test_a_lazy_model_that_saw_a_batch_trains_and_is_continued():
    def build(ckpt_dir):
        model = lazy()
        model(tiny_data(10)[0])
        trainer = Tiny(model=model, ckpt_dir=ckpt_dir)
        trainer.check_init(use_tb=False)
        return trainer

    whole, continued = build("whole"), build("parts")
    whole.fit(3)
    continued.load_state("whole/epoch1.pth")
    continued.fit(3)
    assert torch.equal(weights(whole), weights(continued))


def test_weights_can_be_loaded_into_lazy_layers():
    source = lazy()
    source(tiny_data(10)[0])
    tiny_trainer(model=source).save_state("weights.pth", optim=False)
    trainer = Tiny(model=lazy(), optimizer_list=None)
    trainer.load_state("weights.pth", optim=False)
    assert torch.equal(weights(trainer), torch.cat([value.double().flatten() for value in source.state_dict().values()]))
    trainer.optimizer_list = [torch.optim.SGD(trainer.model_list[0].parameters(), 0.1)]
    trainer.check_init(use_tb=False)
    trainer.fit(1)


# --- BatchNorm ----------------------------------------------------------------------------------------------------------


def normed():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


class Pooled(nn.Module):
    """A BatchNorm over what is left of an image: all of it, or one value per channel."""

    def __init__(self, size):
        super().__init__()
        torch.manual_seed(1)
        self.pool, self.norm, self.head = nn.AdaptiveAvgPool2d(size), nn.BatchNorm2d(6), nn.Linear(6, 3)

    def forward(self, x):
        image = x[:, :, None, None] * torch.arange(1.0, 10.0).view(3, 3)
        return self.head(self.norm(self.pool(image)).mean((2, 3)))


def loader(count, kind=DataLoader, **options):
    data = tiny_data(count)
    return kind(*data, batch_size=10, **options) if kind is TensorLoader else kind(TensorDataset(*data), 10, **options)


REFUSED = {
    "1d": lambda: (normed(), loader(21)),
    "in memory": lambda: (normed(), loader(21, TensorLoader)),
    "one pixel": lambda: (Pooled(1), loader(21)),
}
FINE = {
    "no short batch": lambda: (normed(), loader(20)),
    "two samples": lambda: (normed(), loader(22)),
    "drop_last": lambda: (normed(), loader(21, drop_last=True)),
    "several pixels": lambda: (Pooled(2), loader(21)),
    "frozen statistics": lambda: (frozen(), loader(21)),
}


def frozen():
    model = normed()
    model[1].eval()
    return model


@pytest.mark.parametrize("name", REFUSED)
def test_a_last_batch_of_one_sample_is_refused_before_the_first_update(name):
    model, batches = REFUSED[name]()
    trainer = tiny_trainer(model=model, train_loader=batches)
    with pytest.raises(ValueError, match=r"1 sample, the others up to 10, and model_list\[0\]\.(1|norm) .*drop_last=True"):
        trainer.fit(1)
    assert trainer.global_step == 0
    alone = tiny_trainer(model=REFUSED[name]()[0], train_loader=[tiny_data(10), tiny_data(1)], preflight=False)
    with pytest.raises(ValueError, match="more than 1 value per channel"):  # which is what torch says of it, later
        alone.fit(1)


@pytest.mark.parametrize("name", FINE)
def test_what_torch_can_normalise_is_left_alone(name):
    model, batches = FINE[name]()
    trainer = tiny_trainer(model=model, train_loader=batches)
    trainer.fit(1)
    assert trainer.global_step == len(batches)
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_without_the_look_at_the_first_batch_it_is_a_warning():
    with pytest.warns(UserWarning, match="BatchNorm1d.*drop_last=True"):
        tiny_trainer(model=normed(), train_loader=loader(21), preflight=False)


# --- schedulers and loaders ---------------------------------------------------------------------------------------------


class LikeTimms:
    """The shape of timm's schedulers."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, epoch, metric=None):
        raise AssertionError("nobody calls it")

    def step_update(self, num_updates, metric=None):
        raise AssertionError("nobody calls it")


def test_a_scheduler_whose_step_needs_arguments_is_refused_with_what_to_do():
    trainer = Tiny()
    trainer.lr_scheduler_list = [LikeTimms(trainer.optimizer_list[0])]
    with pytest.raises(TypeError, match=r"lr_scheduler_list\[0\] \(LikeTimms\) needs \['epoch'\].*step it yourself"):
        trainer.check_init(use_tb=False)


@pytest.mark.parametrize("own", [True, False])
def test_a_plateau_per_update_is_told_to_step_per_epoch(own):
    trainer = Tiny(lr_scheduler_interval="update", lr_scheduler_type=None if own else "loss")
    if own:
        trainer.lr_scheduler_list = [torch_schedulers.ReduceLROnPlateau(trainer.optimizer_list[0], patience=0)]
    with pytest.warns(UserWarning, match="no effect on lr_scheduler_(list|type).*once per epoch"):
        trainer.check_init(use_tb=False)


class WithoutLength:
    def __iter__(self):
        return iter([tiny_data(10), tiny_data(10)])


def test_a_schedule_per_update_over_epochs_of_a_loader_without_length_is_refused_before_the_first_batch():
    with pytest.raises(ValueError, match=r"this train_loader has no len\(\)"):
        tiny_trainer(train_loader=WithoutLength(), lr_scheduler_type="cosine", total_epochs=3)
    trainer = tiny_trainer(train_loader=WithoutLength(), lr_scheduler_type="cosine")  # it may yet count updates
    with pytest.raises(ValueError, match=r"this train_loader has no len\(\). Count updates, with trainer.updates\(n\)"):
        trainer.fit(2)
    assert trainer.global_step == 0
    trainer.fit(updates=3)
    assert trainer.optimizer_list[0].param_groups[0]["lr"] == pytest.approx(0.0)
    trainer = tiny_trainer(train_loader=WithoutLength(), lr_scheduler_type="cosine", lr_scheduler_interval="epoch")
    trainer.fit(2)
    assert trainer.epochs_done == 2 and trainer.optimizer_list[0].param_groups[0]["lr"] == pytest.approx(0.0)
