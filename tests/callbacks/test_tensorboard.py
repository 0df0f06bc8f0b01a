"""What TensorBoard's own reader finds in the event files."""

import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import Tiny, tiny_data, tiny_trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from template.callbacks.tensorboard import TensorBoard
from template.hooks import Callback
from template.template import TemplateModel


def events(folder):
    """What one run of the TensorBoard user interface holds: the event files right in ``folder``."""
    accumulator = EventAccumulator(str(folder), size_guidance={"histograms": 0, "images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


SPEED = ["speed/samples_per_second", "speed/ms_per_update", "speed/data_wait", "speed/peak_memory_gb"]


def scalars(folder):
    """``{tag: [(x, value), …]}``"""
    found = events(folder)
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def near(points):
    return [(x, pytest.approx(value, rel=1e-6)) for x, value in points]


def runs():
    """Every folder that TensorBoard shows as a run."""
    return sorted({str(path.parent.relative_to("runs")) for path in Path("runs").rglob("events.out.tfevents.*")})


class Windows(Callback):
    def __init__(self):
        self.seen = []

    def on_log(self, model, values):
        self.seen.append((model.global_step, values["tol_loss"]))


def test_training_and_evaluation_share_one_chart_by_epoch_and_updates_have_their_own():
    windows = Windows()
    trainer = tiny_trainer(use_tb=True, ckpt_dir="mine", log_per_step=2, callbacks=[windows], lr_scheduler_type="cosine",
                           lr_scheduler_interval="epoch")
    trained, evaluated, rates = [], [], []
    for epoch in trainer.epochs(3):
        rates.append(trainer.optimizer_list[0].param_groups[0]["lr"])
        trained.append((epoch, trainer.train_loop()["tol_loss"]))
        acc = trainer.eval()
        evaluated.append((epoch, trainer.eval_result["tol_loss"], acc))
    assert runs() == ["mine", "mine/eval", "mine/train"]
    assert scalars("runs/mine/train") == {"epoch/tol_loss": near(trained)}
    assert scalars("runs/mine/eval") == {
        "epoch/tol_loss": near([(epoch, loss) for epoch, loss, _ in evaluated]),
        "epoch/acc": near([(epoch, acc) for epoch, _, acc in evaluated]),
    }
    own = scalars("runs/mine")
    assert set(own) == {"update/tol_loss", "lr/0", *SPEED}
    assert [x for tag in SPEED for x, _ in own[tag]] == [6, 12, 18] * 4  # in a short epoch once
    assert own["update/tol_loss"] == near(windows.seen)
    assert [x for x, _ in own["update/tol_loss"]] == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert own["lr/0"] == near([(2 * i + 2, rates[i // 3]) for i in range(9)])


def test_every_loss_and_every_optimizer_has_its_curve():
    class Two(Tiny):
        def loss_per_batch(self, batch):
            loss = super().loss_per_batch(batch)["tol_loss"]
            return {"tol_loss": loss, "half": loss / 2}

    trainer = Two(ckpt_dir="mine")
    model = trainer.model_list[0]
    trainer.optimizer_list = [torch.optim.SGD(model[0].parameters(), 0.1), torch.optim.SGD(model[3].parameters(), 0.3)]
    trainer.check_init()
    trainer.fit(1)
    own = scalars("runs/mine")
    assert {"update/half", "lr/0", "lr/1"} <= set(own) and own["lr/1"][0][1] == pytest.approx(0.3)
    assert scalars("runs/mine/train")["epoch/half"] == near(
        [(x, value / 2) for x, value in scalars("runs/mine/train")["epoch/tol_loss"]])


def test_histograms_of_weights_and_gradients_have_their_step():
    trainer = tiny_trainer(use_tb=True, ckpt_dir="mine")
    trainer.model_list[0][0].bias.requires_grad_(False)
    trainer.train_loop(write_params=True)
    after_first = {name: value.clone() for name, value in trainer.model_list[0].named_parameters()}
    trainer.train_loop()
    trainer.train_loop(write_params=True)
    trainer.close()
    found = events("runs/mine")
    assert set(found.Tags()["histograms"]) == {f"{kind}/{name}" for kind in ("weights", "grads")
                                               for name in ("0/weight", "3/weight", "3/bias")}  # the frozen one has none
    assert [event.step for event in found.Histograms("weights/0/weight")] == [6, 18]
    assert [event.step for event in found.Histograms("grads/0/weight")] == [0, 12]
    for tag, name in (("weights/0/weight", "0.weight"), ("weights/3/bias", "3.bias")):
        values = after_first[name].double()
        histogram = found.Histograms(tag)[0].histogram_value
        assert (histogram.min, histogram.max, histogram.num) == (values.min(), values.max(), values.numel())
        assert histogram.sum == pytest.approx(values.sum().item(), abs=1e-5)


def test_gradients_in_histograms_are_those_before_clipping():
    class Keep(Callback):
        grads = None

        def on_before_step(self, model):
            self.grads = self.grads if self.grads is not None else model.model_list[0][3].bias.grad.clone()

    keep = Keep()
    trainer = tiny_trainer(use_tb=True, ckpt_dir="mine", callbacks=[keep], clip_grad=1e-3, eval_loader=None)
    trainer.train_loop(write_params=True)
    trainer.close()
    (event,) = events("runs/mine").Histograms("grads/3/bias")
    assert event.histogram_value.max == pytest.approx(keep.grads.max().item())


class Gan(TemplateModel):
    def __init__(self):
        super().__init__()
        self.model_list = [nn.Linear(4, 6), nn.Linear(6, 1)]
        self.optimizer_list = [torch.optim.Adam(model.parameters()) for model in self.model_list]
        self.train_loader = DataLoader(TensorDataset(tiny_data()[0]), 10)
        self.ckpt_dir = "mine"

    def train_step(self, batch):
        (real,) = batch
        generator, discriminator = self.model_list
        fake = generator(torch.randn(len(real), 4))
        self.backward(F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(fake.detach())).mean(), 1)
        self.update(1)
        loss = F.softplus(-discriminator(fake)).mean()
        self.backward(loss, 0)
        self.update(0)
        return loss


def test_both_networks_of_a_gan_have_gradient_histograms():
    trainer = Gan()
    trainer.check_init()
    trainer.train_loop(write_params=True)
    trainer.close()
    found = events("runs/mine")
    assert set(found.Tags()["histograms"]) == {f"{kind}/{i}/{name}" for kind in ("weights", "grads") for i in (0, 1)
                                               for name in ("weight", "bias")}
    assert [len(found.Histograms(f"grads/{i}/bias")) for i in (0, 1)] == [1, 1]


@pytest.mark.parametrize("spoil", [lambda grad: grad.fill_(float("inf")), lambda grad: grad[0].fill_(float("nan"))])
def test_gradients_that_are_not_finite_do_not_end_the_training(spoil):
    """As in the first update under fp16, which the scaler then leaves out."""

    class Spoil(TensorBoard):
        def on_before_step(self, model):
            if model.global_step == 0:
                spoil(model.model_list[0][3].bias.grad)
            super().on_before_step(model)
            if model.global_step == 0:
                model.model_list[0][3].bias.grad.zero_()

    trainer = tiny_trainer(use_tb=True, ckpt_dir="mine", callbacks=[Spoil()], eval_loader=None)
    trainer.train_loop(write_params=True)
    trainer.close()
    assert {"grads/0/weight", "grads/3/weight"} <= set(events("runs/mine").Tags()["histograms"])


def test_sparse_gradients_have_a_histogram_too():
    model = nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 3))
    data = TensorDataset(torch.randint(0, 9, (20, 5)), torch.randint(0, 3, (20,)))
    trainer = tiny_trainer(use_tb=True, ckpt_dir="mine", optimizer_list=[torch.optim.SGD(model.parameters(), 0.1)],
                           model_list=[model], train_loader=DataLoader(data, 10), eval_loader=None)
    trainer.train_loop(write_params=True)
    trainer.close()
    assert "grads/0/weight" in events("runs/mine").Tags()["histograms"]


def test_hyperparameters_stand_in_the_runs_own_folder():
    trainer = Tiny(ckpt_dir="mine")
    trainer.check_init(arg={"lr": 0.1, "layers": [16, 3], "name": "tiny", "resume": None})
    trainer.fit(2)
    assert runs() == ["mine", "mine/eval", "mine/train"]  # add_hparams would have opened one more
    found = events("runs/mine")
    from tensorboard.plugins.hparams import plugin_data_pb2
    start = plugin_data_pb2.HParamsPluginData.FromString(
        found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content).session_start_info
    assert start.hparams["lr"].number_value == 0.1 and start.hparams["layers"].string_value == "[16, 3]"
    assert start.hparams["name"].string_value == "tiny"
    own = scalars("runs/mine")
    assert own["hparam/best_acc"] == near([(2, trainer.best_metric["acc"])])
    assert own["hparam/best_tol_loss"] == near([(2, trainer.best_metric["tol_loss"])])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_graph_comes_with_get_model_info_and_changes_nothing():
    trainer = tiny_trainer(use_tb=True, ckpt_dir="mine")
    trainer.model_list[0].eval()
    trainer.model_list[0][1].train()
    modes = [part.training for part in trainer.model_list[0].modules()]
    rng = torch.get_rng_state()
    trainer.get_model_info(torch.zeros(1, 6))
    trainer.close()
    assert "Linear" in str(events("runs/mine").Graph())
    assert [part.training for part in trainer.model_list[0].modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_graph_that_cannot_be_traced_is_told_and_training_goes_on(capsys):
    class Odd(Tiny):
        def inference(self, x):
            if not isinstance(x, torch.Tensor) or torch.jit.is_tracing():
                raise NotImplementedError("no tracing here")
            return super().inference(x)

    trainer = Odd(ckpt_dir="mine")
    trainer.check_init()
    trainer.get_model_info(torch.zeros(1, 6))
    assert "The graph is not written: this model cannot be traced (NotImplementedError" in capsys.readouterr().out
    trainer.fit(1)


def test_images_of_the_first_eval_batch_are_written():
    images = torch.rand(20, 3, 5, 7)
    data = TensorDataset(images, torch.randint(0, 3, (20,)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(105, 3))
    trainer = tiny_trainer(use_tb=True, ckpt_dir="mine", model=model, callbacks=[TensorBoard(images=4)],
                           train_loader=DataLoader(data, 10), eval_loader=DataLoader(TensorDataset(*data[:12]), 6))
    trainer.fit(2)
    found = events("runs/mine")
    assert found.Tags()["images"] == ["images"]
    written = found.Images("images")
    assert [event.step for event in written] == [1, 2]
    shown = torch.from_numpy(np.array(Image.open(io.BytesIO(written[0].encoded_image_string)))).permute(2, 0, 1) / 255
    first = images[:4]
    expected = torch.cat(list((first - first.min()) / (first.max() - first.min())), dim=2)  # four side by side
    torch.testing.assert_close(shown, expected, atol=1 / 255, rtol=0)


def test_no_name_on_disk_has_a_letter_that_windows_refuses():
    trainer = Tiny(ckpt_dir="mine", eval_loader={"a": DataLoader(TensorDataset(*tiny_data(9)), 3),
                                                 "b": DataLoader(TensorDataset(*tiny_data(9, seed=2)), 3)})
    trainer.key_metric = "acc"
    trainer.check_init(arg={"lr": 0.1})
    trainer.fit(1)
    assert set(scalars("runs/mine/eval")) == {f"epoch/{name}/{value}" for name in "ab" for value in ("acc", "tol_loss")}
    names = [path.name for path in Path("runs").rglob("*")]
    assert len(names) >= 5 and not [name for name in names if re.search(r'[|&:<>"?*\\]', name)]


@pytest.mark.parametrize("off", [{"use_tb": False}, {"writer": None}])
def test_switched_off_it_writes_nothing(off):
    trainer = Tiny(callbacks=[TensorBoard(images=2)])
    if "writer" in off:
        trainer.writer = None
    trainer.check_init(use_tb=off.get("use_tb", True), arg={"lr": 0.1})
    trainer.get_model_info(torch.zeros(1, 6))
    trainer.train_loop(write_params=True)
    trainer.eval()
    trainer.close()
    assert trainer.writer is None and not os.path.exists("runs")


def test_an_evaluation_alone_leaves_no_empty_run():
    trainer = Tiny()
    trainer.check_init(arg={"lr": 0.1})
    trainer.test()
    trainer.close()
    assert not os.path.exists("runs")


def test_the_users_own_writer_is_used():
    class Own(Tiny):
        def __init__(self):
            super().__init__()
            self.writer = SummaryWriter("elsewhere/logs")

    trainer = Own()
    trainer.check_init()
    trainer.writer.add_scalar("mine", 1.0, 0)
    trainer.fit(1)
    assert not os.path.exists("runs")
    assert {"mine", "update/tol_loss"} <= set(scalars("elsewhere/logs"))
    assert "epoch/acc" in scalars("elsewhere/logs/eval")


def test_without_the_package_it_says_so_once_and_trains(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard" or name == "torch.utils.tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    trainer = Tiny()
    trainer.check_init(arg={"lr": 0.1})
    trainer.get_model_info(torch.zeros(1, 6))
    trainer.fit(2)
    said = capsys.readouterr().out
    assert said.count("TensorBoard events are not written: the package is missing. pip install tensorboard") == 1
    assert trainer.epochs_done == 2 and not os.path.exists("runs")


def test_a_run_that_was_killed_and_resumed_shows_every_update_and_epoch_once():
    class Killed(Exception):
        pass

    class Kill(Callback):
        def on_log(self, model, values):
            if model.global_step == 17:
                raise Killed

    whole = tiny_trainer(use_tb=True, ckpt_dir="whole", log_per_step=1)
    whole.fit(4)
    trainer = tiny_trainer(use_tb=True, ckpt_dir="mine", log_per_step=1, save_per_steps=4, callbacks=[Kill()])
    with pytest.raises(Killed):  # events up to update 17 are on disk, the last checkpoint is that of update 16
        trainer.fit(4)
    again = tiny_trainer(use_tb=True, ckpt_dir="mine", log_per_step=1, save_per_steps=4)
    again.load_state("auto")
    again.fit(4)
    assert runs() == sorted(f"{run}{part}" for run in ("mine", "whole") for part in ("", "/eval", "/train"))
    for part in ("", "/train", "/eval"):
        mine, whole = scalars(f"runs/mine{part}"), scalars(f"runs/whole{part}")
        speeds = [[step for step, _ in run.pop(tag, [])] for run in (mine, whole) for tag in SPEED]
        assert mine == whole and speeds[:4] == speeds[4:]
