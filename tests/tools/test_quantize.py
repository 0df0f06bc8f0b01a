"""Quantized models against PyTorch, onnxruntime and ranges that NumPy computes; QAT killed and resumed."""

import copy
import itertools
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_trainer, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import EMA, KerasModel
from template.hooks import Callback
from template.tools import quantize
from template.tools.quantize import _Captured, _set_mode, ptq, qat

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("torchao")


def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 4, 4, generator=generator)
    return TensorDataset(x, (x.mean((1, 2, 3)) > 0).long())


def small_cnn():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6, eps=1e-3, momentum=0.2), nn.ReLU(),
                         nn.Flatten(), nn.Dropout(0.3), nn.Linear(96, 2))


def cnn_trainer(model=None, **attributes):
    model = small_cnn() if model is None else model
    return tiny_trainer(**{"model": model, "train_loader": DataLoader(images(50, 1), 8, shuffle=True),
                           "eval_loader": DataLoader(images(21, 2), 8), "ckpt_dir": "run", **attributes})


@pytest.fixture(autouse=True)
def one_thread():
    """Fake quantization of tiny tensors by several threads waits for them, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trained(own_folder):
    trainer = cnn_trainer()
    trainer.fit(2)
    return trainer


def run_file(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


# --- after the training -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ptq_says_what_an_evaluation_says_and_the_file_has_the_same_metrics(trained, capsys):
    before, rng = weights(trained), torch.get_rng_state()
    found = ptq(trained, batches=3)
    assert torch.equal(weights(trained), before) and torch.equal(torch.get_rng_state(), rng)
    assert found.before == pytest.approx({name: trained.test()[name] for name in found.before})
    assert found.onnx == pytest.approx(found.after, abs=1e-3)
    assert found.after["tol_loss"] == pytest.approx(found.before["tol_loss"], abs=0.02)
    x, y = images(21, 2).tensors
    assert found.onnx["acc"] == pytest.approx((run_file(found.path, x).argmax(1) == y).float().mean().item())
    assert "int8 in onnxruntime" in capsys.readouterr().out
    nodes = {str(node.target) for node in found.module.graph.nodes}
    assert "quantized_decomposed.dequantize_per_channel.default" in nodes
    assert not any("batch_norm" in name or "num_batches" in name for name in nodes)      # folded
    first = next(node for node in found.module.graph.nodes if "quantize_per_tensor" in str(node.target))
    seen = torch.cat([x for x, _ in trained.train_batches.epoch(1)][:3])
    assert first.args[1] == pytest.approx((seen.max() - seen.min()).item() / 255, rel=1e-5)  # the range of the batches
    assert first.args[2] == round(-seen.min().item() / first.args[1])


@pytest.mark.slow
def test_another_method_path_and_weights(trained):
    found = ptq(trained, batches=3, path="other.onnx", method="mse", weights="best", loader="eval")
    assert found.path == "other.onnx" and found.onnx == pytest.approx(found.after, abs=1e-3)
    assert found.after["tol_loss"] == pytest.approx(found.before["tol_loss"], abs=0.05)
    assert "best.pth" in found.weights


@pytest.mark.slow
def test_the_model_of_fit_is_quantized_and_goes_on(own_folder):
    net = small_cnn()
    model = KerasModel(net, nn.CrossEntropyLoss(), optimizer=torch.optim.SGD(net.parameters(), 0.1))
    data = DataLoader(images(50, 1), 8, shuffle=True), DataLoader(images(21, 2), 8)
    settings = {"plot": False, "patience": None, "tensorboard": False, "nominal_batch_size": 16, "seed": 3}
    model.fit(*data, epochs=1, callbacks=[EMA(decay=0.9)], **settings)
    found = ptq(model.trainer, batches=3)
    assert found.onnx == pytest.approx(found.after, abs=1e-3)
    assert found.before["tol_loss"] == pytest.approx(model.evaluate(data[1], quiet=True)["val_loss"])
    assert len(model.fit(*data, epochs=1, callbacks=[EMA(decay=0.9)], **settings)) == 2


@pytest.mark.slow
def test_onnxruntime_quantizes_by_itself(trained):
    found = ptq(trained, batches=9, method="entropy", backend="onnxruntime")     # 9: also the short last batch
    assert found.after == {} and found.module is None
    assert found.onnx["tol_loss"] == pytest.approx(found.before["tol_loss"], abs=0.05)


@pytest.mark.slow
def test_losses_that_call_the_only_model_directly_are_those_of_the_quantized_one(own_folder):
    trainer = cnn_trainer()
    seen = []

    def loss_per_batch(batch):
        seen.append(type(trainer.model_list[0]).__name__)
        return nn.functional.cross_entropy(trainer.model_list[0](batch[0]), batch[1])

    trainer.loss_per_batch = loss_per_batch
    trainer.evaluator.writes_losses = True
    found = ptq(trainer, batches=2)
    assert "_StandIn" in seen and "Sequential" in seen
    assert found.after["tol_loss"] != found.before["tol_loss"]
    assert trainer.model_list[0].__class__ is nn.Sequential


@pytest.mark.parametrize("call", [ptq, lambda trainer: qat(trainer, 1)])
def test_a_model_with_nothing_to_quantize_is_refused(call, own_folder):
    def loader():
        return DataLoader(TensorDataset(torch.randint(0, 9, (20, 1)), torch.randint(0, 2, (20,))), 8)

    model = nn.Sequential(nn.Embedding(9, 2), nn.Flatten())
    trainer = cnn_trainer(model, train_loader=loader(), eval_loader=loader(), preflight=False)
    with pytest.raises(ValueError, match="found none among Embedding, Flatten"):
        call(trainer)
    assert not list(trainer.path_of(".").glob("*.onnx"))


@pytest.mark.parametrize("arguments, message", [
    ({"method": "best"}, "method must be one of 'max', 'percentile', 'mse', 'entropy'; got 'best'"),
    ({"loader": "test"}, "loader must be one of 'train', 'eval'"),
    ({"backend": "onnxruntime", "method": "mse"}, "got 'mse'. Take one of these"),
    ({"batches": 0}, "batches must be"),
    ({"percent": 0.9999}, "percent must be above 50"),
    ({"weights": "gone.pth"}, "no file 'gone.pth'"),
])
def test_arguments_that_do_not_fit_are_refused(arguments, message, own_folder):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ptq(cnn_trainer(), **arguments)


def test_without_torchao_it_says_what_to_install(own_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e.quantizer", None)
    with pytest.raises(ImportError, match="pip install torchao"):
        ptq(cnn_trainer())


# --- training on ------------------------------------------------------------------------------------------------------


def read_equal(*files):
    one, other = (torch.load(file)["model0"] for file in files)
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


class StopAt(Callback):
    def __init__(self, update):
        self.update = update

    def on_after_step(self, model):
        if model.global_step == self.update:
            raise KeyboardInterrupt


@pytest.fixture
def few_patterns(monkeypatch):
    """torchao traces 108 patterns of a convolution with BatchNorm, for half a minute; here those that ``small_cnn`` has."""
    from torchao.quantization.pt2e import qat_utils

    def of_conv2d(helper):
        return lambda graph, conv, *args, **options: (
            helper(graph, conv, *args, **options) if conv is nn.functional.conv2d else graph)

    def per_channel_without_bias(*options):
        return [chosen for chosen in itertools.product(*options) if chosen[:2] == (True, False)]

    for name in ("_fuse_conv_bn_qat_helper", "_fold_conv_bn_qat_helper"):
        monkeypatch.setattr(qat_utils, name, of_conv2d(getattr(qat_utils, name)))
    monkeypatch.setattr(qat_utils, "itertools", SimpleNamespace(product=per_channel_without_bias))


class Trained(Exception):
    """The conversion after the training need not be done twice."""


def no_conversion(*_):
    raise Trained


@pytest.mark.slow
def test_qat_that_was_killed_ends_with_the_same_bits(own_folder, few_patterns, monkeypatch):
    states, lasts = [], []
    for name, update in (("whole", None), ("parts", 9)):
        trainer = cnn_trainer(ckpt_dir=name, save_per_steps=1)
        trainer.fit(2)
        before = weights(trainer)
        if update:
            with pytest.raises((KeyboardInterrupt, SystemExit)):
                qat(trainer, 2, callbacks=[StopAt(update)])
            monkeypatch.setattr(quantize, "_converted", no_conversion)
            with pytest.raises(Trained):
                qat(trainer, 2)
        else:
            found = qat(trainer, 2)
            assert found.onnx == pytest.approx(found.after, abs=1e-3)
            assert not any("batch_norm" in str(node.target) for node in found.module.graph.nodes), "it is folded"
        assert torch.equal(weights(trainer), before)
        states.append(torch.load(f"{name}/qat/last.pth"))
        trainer.fit(3)                                                           # the training itself goes on
        lasts.append(weights(trainer))
    whole, parts = states
    for part in ("model0", "optimizer_list0"):
        assert str(whole[part]) == str(parts[part]), part
    assert all(torch.equal(value, parts["model0"][name]) for name, value in whole["model0"].items())
    assert whole["global_step"] == parts["global_step"] == 14
    assert read_equal("whole/qat/best.pth", "parts/qat/best.pth")
    assert torch.equal(*lasts)
    with pytest.raises(ValueError, match="a QAT that began with other weights"):
        qat(trainer, 2)
    untouched = cnn_trainer(ckpt_dir="untouched")
    untouched.fit(3)
    assert torch.equal(weights(untouched), lasts[0])


def test_train_and_eval_keep_the_settings_of_dropout_and_batchnorm(own_folder):
    """torchao's own switch puts p = 0.5, momentum = 0.1 and eps = 1e-5 there."""
    model = small_cnn()
    x = torch.randn(4, 1, 4, 4)
    program = torch.export.export(copy.deepcopy(model).train(), (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    captured = _Captured(program.module())
    batches = [torch.randn(8, 1, 4, 4) for _ in range(3)]
    for batch in batches:
        outputs = []
        for one in (captured, model):
            one.eval()
            with torch.no_grad():
                one(batch), one(batch)                   # must change nothing
            one.train()
            torch.manual_seed(5)
            outputs.append(one(batch))
        assert torch.equal(*outputs)
    ours = {name.removeprefix("graph."): value for name, value in captured.state_dict().items()}
    assert all(torch.equal(ours[name], value) for name, value in model.state_dict().items())
    captured.eval(), model.eval()
    assert torch.allclose(captured(x), model(x), atol=1e-6)


class AsksItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small_cnn()

    def forward(self, x):
        return self.net(x) if self.training else 2 * self.net(x)


def test_qat_refuses_a_model_that_goes_another_way_in_eval_mode(own_folder):
    with pytest.raises(ValueError, match="forward.. asks for self.training"):
        qat(cnn_trainer(AsksItself()), 1)


class Follows(nn.Module):
    """The mean of what it has seen in training, as a codebook follows its inputs."""

    def __init__(self):
        super().__init__()
        self.net = small_cnn()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen.lerp_(x.mean(), 0.1)
        return self.net(x)


def test_qat_refuses_a_model_that_would_change_its_buffers_in_eval_mode_too(own_folder):
    with pytest.raises(ValueError, match=r"changes \['models.0.seen'\] in eval mode too"):
        qat(cnn_trainer(Follows()), 1)


def test_a_mode_is_switched_where_operators_say_it():
    model = nn.Sequential(nn.Dropout1d(0.4), nn.Linear(3, 4), nn.AlphaDropout(0.2))
    graph = torch.export.export(model.train(), (torch.randn(5, 2, 3),)).module()
    x = torch.randn(5, 2, 3)
    for training in (False, True, False):
        _set_mode(graph, training)
        torch.manual_seed(0)
        ours = graph(x)
        torch.manual_seed(0)
        assert torch.equal(ours, model.train(training)(x))
