"""Models on their device, in their memory format, compiled: the same numbers, names and files, and what is told of it."""

import copy
import pickle
import re

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model, tiny_trainer, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template.run.prepare import COMPILE_MODES, MATMUL_PRECISIONS, STEP, check_device, prepare

CPU = torch.device("cpu")


class Net(nn.Module):
    """A model of one's own, which a trainer calls by keyword."""

    def __init__(self):
        super().__init__()
        self.inner = tiny_model(dropout=0.0)

    def forward(self, x):
        return self.inner(x) * 2


@pytest.mark.parametrize("device, message", [
    ("gpu", r"must be the name of one device: .* '' for the default; got 'gpu'\. Leave device unset"), (True, "got True"),
    ("0,1", "got '0,1'. One process .* there is 1 for 2. torchrun --nproc-per-node 2 starts one for each"),
    ("cuda:0,1", "torchrun --nproc-per-node 2"), ("0,", "got '0,'"), ("-1", "got '-1'"),
])
def test_a_device_that_is_none_is_refused_in_words(device, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer(device=device)


@pytest.mark.parametrize("count, device, is_there", [
    (0, "cuda", False), (0, torch.device("cuda", 0), False), (1, "cuda", True), (1, "cuda:0", True), (1, "cuda:1", False),
])
def test_a_gpu_that_is_not_there_is_refused_in_words(monkeypatch, count, device, is_there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if is_there:
        check_device(device)
        return
    with pytest.raises(ValueError, match=rf"device = '{device}' must be a GPU .* torch sees {count or 'none'} here"):
        check_device(device)


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def no_graphs():
    """As in a new process."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def without_kernels(monkeypatch):
    """Graphs are captured, and run by torch as they are: no compiler takes its seconds."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode=None: real(function, backend="eager"))


def full_batches():
    """Batches of one shape for the training and for the evaluation."""
    return {"train_loader": DataLoader(TensorDataset(*tiny_data(50)), 10, shuffle=True),
            "eval_loader": DataLoader(TensorDataset(*tiny_data(20, seed=5)), 10)}


# --- compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("build", [lambda: tiny_model(dropout=0.0), Net], ids=["nn.Sequential", "a class of one's own"])
def test_a_compiled_model_trains_like_an_eager_one_and_leaves_clean_checkpoints(build):
    eager = tiny_trainer(ckpt_dir="eager", model=build())
    eager.fit(2)
    assert graphs() == 0
    compiled = tiny_trainer(ckpt_dir="compiled", model=build(), compile=True)
    compiled.fit(2)
    assert graphs() >= 2  # with gradients, and without them for the evaluation
    assert not torch.equal(weights(compiled), weights_of(build()))
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=1e-4, atol=1e-5)
    assert compiled.eval_result["tol_loss"] == pytest.approx(eager.eval_result["tol_loss"], rel=1e-4)
    names = list(torch.load("compiled/last.pth")["model0"])
    assert names == list(torch.load("eager/last.pth")["model0"]) and not [name for name in names if "_orig_mod" in name]
    again = tiny_trainer(ckpt_dir="eager", model=build(), compile=True)  # compiled from now on
    again.load_state("auto")
    assert torch.equal(weights(again), weights(eager))
    again.fit(3)
    assert again.epochs_done == 3


def weights_of(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


@pytest.mark.parametrize("model, name", [(tiny_model(dropout=0.0), "input"), (Net(), "x"), (nn.Linear(6, 3), "input")],
                         ids=["nn.Sequential", "a class of one's own", "a layer of torch"])
@pytest.mark.parametrize("by_keyword", [False, True])
def test_a_model_of_any_kind_is_compiled_in_one_graph(model, name, by_keyword, without_kernels):
    model, x = copy.deepcopy(model), tiny_data(10)[0]
    expected = model(x)
    prepare([model], CPU, compile=True)
    for _ in range(3):
        assert torch.equal(model(**{name: x}) if by_keyword else model(x), expected)
        assert graphs() == 1 and not torch._dynamo.utils.counters["graph_break"]


def test_a_compiled_model_is_pickled_copied_and_saved_as_the_plain_one(without_kernels):
    trainer = tiny_trainer(ckpt_dir="run", model=Net(), compile=True, **full_batches())
    trainer.fit(1)
    (model,) = trainer.model_list
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(other) is Net and list(other.state_dict()) == list(Net().state_dict())
        assert torch.equal(weights_of(other), weights_of(model))
    before = graphs()
    x = tiny_data(10)[0]
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(x), model.forward(x)) and graphs() == before  # copies are plain
    trainer.save_model("whole.pth")
    loaded = torch.load("whole.pth", weights_only=False)["model0"]
    assert type(loaded) is Net and torch.equal(weights_of(loaded), weights_of(model))


@pytest.mark.parametrize("compile", [True, *COMPILE_MODES])
def test_the_mode_is_given_to_torch(compile, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, mode=None: asked.append(mode) or function)
    tiny_trainer(compile=compile, model=tiny_model(dropout=0.0)).train_loop()
    assert asked == [None if compile is True else compile]


# --- and told ---------------------------------------------------------------------------------------------------------


def told(capsys):
    """What was said of compiling, with seconds as S."""
    lines = [line for line in capsys.readouterr().out.splitlines() if "compil" in line]
    return [re.sub(r"\d+\.\d s", "S", line) for line in lines]


@pytest.mark.slow
def test_the_first_update_tells_that_it_compiles_and_each_epoch_what_was_compiled_in_it(without_kernels, capsys):
    trainer = tiny_trainer(ckpt_dir="run", compile=True, preflight=False, **full_batches())
    trainer.train_loop()
    assert told(capsys) == ["torch.compile: the first update compiles, which takes a while.",
                            "torch.compile: the first update took S, with 1 graph compiled."]
    trainer.eval()
    (line,) = told(capsys)
    assert line.startswith("torch.compile: 1 more graph compiled in epoch 1. Evaluation and a short last batch need one")
    for _ in range(2):
        trainer.train_loop()
        trainer.eval()
    assert told(capsys) == []


@pytest.mark.slow
def test_batches_of_other_shapes_tell_how_many_graphs_they_cost(without_kernels, capsys):
    x, y = tiny_data(50)
    trainer = tiny_trainer(compile=True, preflight=False, eval_loader=None, ckpt_dir="run",
                           train_loader=[(x[:10], y[:10]), (x[:7], y[:7]), (x[:1], y[:1])])
    trainer.train_loop()
    *first, last = told(capsys)
    assert len(first) == 2
    more = graphs() - 1
    assert more >= 1 and last.startswith(f"torch.compile: {more} more graph{'s' * (more > 1)} compiled in epoch 1.")
    assert "pad them, or set drop_last" in last
    trainer.train_loop()
    assert told(capsys) == []


def test_without_compile_nothing_is_told(capsys):
    tiny_trainer().fit(1)
    assert told(capsys) == [] and graphs() == 0


# --- memory format and precision --------------------------------------------------------------------------------------


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        self.inner_strides = x.stride()
        return self.head(self.second(x).mean((2, 3)))


def pictures(ckpt_dir, **attributes):
    x = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    y = (x.mean((1, 2, 3)) > 0).long() + (x[:, 0].mean((1, 2)) > 0)
    data = TensorDataset(x, y)
    return tiny_trainer(ckpt_dir=ckpt_dir, model=Convolutions(), train_loader=DataLoader(data, 8, shuffle=True),
                        eval_loader=DataLoader(TensorDataset(x[:8], y[:8]), 8), **attributes)


def test_channels_last_changes_the_layout_and_not_the_result():
    plain, last = pictures("plain"), pictures("last", channels_last=True)
    for trainer, is_last in ((plain, False), (last, True)):
        trainer.fit(2)
        (model,) = trainer.model_list
        for convolution in (model.first, model.second):
            assert convolution.weight.is_contiguous(memory_format=torch.channels_last) == is_last
        assert model.inner_strides == ((288, 1, 48, 8) if is_last else (288, 36, 6, 1))  # of the evaluation's [8, 8, 6, 6]
    torch.testing.assert_close(weights(last), weights(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first", [False, True])
def test_a_checkpoint_is_loaded_in_the_other_memory_format(first):
    saved = pictures("run", channels_last=first)
    saved.fit(1)
    other = pictures("run", channels_last=not first)
    other.load_state("auto")
    assert torch.equal(weights(other), weights(saved))
    assert other.model_list[0].first.weight.is_contiguous(memory_format=torch.channels_last) == (not first)
    other.fit(2)
    whole = pictures("whole", channels_last=first)
    whole.fit(2)
    torch.testing.assert_close(weights(other), weights(whole), rtol=1e-4, atol=1e-5)


@pytest.fixture
def precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_matmul_precision_is_set_where_it_is_asked_for(precision):
    for value in (*MATMUL_PRECISIONS, "highest"):
        tiny_trainer(matmul_precision=value)
        assert torch.get_float32_matmul_precision() == value
        tiny_trainer()
        assert torch.get_float32_matmul_precision() == value  # None leaves what the user set


@pytest.mark.parametrize("name, value, accepted", [
    ("compile", "fast", [False, True, *COMPILE_MODES, STEP]), ("compile", None, [False, True, *COMPILE_MODES, STEP]),
    ("channels_last", "yes", [False, True]), ("channels_last", torch.channels_last, [False, True]),
    ("matmul_precision", "tf32", [None, *MATMUL_PRECISIONS]), ("matmul_precision", True, [None, *MATMUL_PRECISIONS]),
])
def test_what_is_not_accepted_is_refused_with_a_list_of_what_is(name, value, accepted, precision):
    with pytest.raises(ValueError) as error:
        Tiny(**{name: value}).check_init(use_tb=False)
    assert str(error.value) == f"{name} must be one of {accepted}, got {value!r}."
