"""Exported files against PyTorch itself, run by onnxruntime; a trtexec of our own that knows the flags of its version."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Tiny, tiny_trainer, weights
from torch import nn
from torch.nn import functional

from template import EMA
from template.template import TemplateModel
from template.tools.export import to_onnx, to_safetensors, to_tensorrt, to_torch_export

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Models(TemplateModel):
    """No loaders, no optimizers: what a script has that only loads weights."""

    def __init__(self, *models):
        super().__init__()
        self.model_list = list(models)


def of_forward(function, *parts):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(parts)

        def forward(self, *args, **kwargs):
            return function(self, *args, **kwargs)

    return Own()


def run(path, *arrays):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {name: np.asarray(array) for name, array in zip(names, arrays)})


# --- ten kinds of models ----------------------------------------------------------------------------------------------


def recurrent(kind):
    return of_forward(lambda self, x: self.parts[1](self.parts[0](x)[0][:, -1]),
                      kind(5, 8, batch_first=True, bidirectional=True), nn.Linear(16, 3))


def transformer():
    def forward(self, tokens, mask):
        hidden = self.parts[1](self.parts[0](tokens), src_key_padding_mask=~mask)
        return self.parts[2]((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
            self.parts = nn.ModuleList([nn.Embedding(20, 16), nn.TransformerEncoder(layer, 1), nn.Linear(16, 3)])

        def forward(self, tokens, mask):
            return forward(self, tokens, mask)

    return Masked()


def mask():
    found = torch.ones(4, 7, dtype=torch.bool)
    found[1, 5:] = False
    return found


IMAGE = {0: "batch", 2: "height", 3: "width"}
SEQUENCE = {0: "batch", 1: "time"}
KINDS = {
    "CNN": lambda: (nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                                  nn.Linear(128, 10)), torch.randn(4, 1, 8, 8), "batch"),
    "LSTM": lambda: (recurrent(nn.LSTM), torch.randn(4, 3, 5), "batch"),
    "GRU": lambda: (recurrent(nn.GRU), torch.randn(4, 3, 5), "batch"),
    "transformer with mask": lambda: (transformer(), (torch.randint(0, 20, (4, 7)), mask()), SEQUENCE),
    "dict input": lambda: (of_forward(lambda self, x, ids: {"logits": self.parts[0](x) + self.parts[1](ids).mean(1)},
                                      nn.Linear(4, 3), nn.Embedding(7, 3)),
                           {"x": torch.randn(4, 4), "ids": torch.randint(0, 7, (4, 6))}, "batch"),
    "several inputs": lambda: (of_forward(lambda self, a, b: (self.parts[0](a, b), a.sum(1)), nn.Bilinear(4, 5, 3)),
                               (torch.randn(4, 4), torch.randn(4, 5)), "batch"),
    "dynamic height and width": lambda: (nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                                                       nn.Flatten(), nn.Linear(8, 2)), torch.randn(2, 3, 32, 32), IMAGE),
    "BatchNorm": lambda: (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)),
                          torch.randn(4, 4), "batch"),
    "embedding": lambda: (nn.Sequential(nn.EmbeddingBag(30, 8), nn.Linear(8, 2)), torch.randint(0, 30, (4, 6)), "batch"),
    "transposed convolution": lambda: (nn.Sequential(nn.ConvTranspose2d(4, 8, 4, 2, 1), nn.Sigmoid()),
                                       torch.randn(4, 4, 5, 5), IMAGE),
}
QUICK = ("CNN", "dict input")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in KINDS])
def test_ten_kinds_of_models_compute_the_same_in_onnxruntime(name, own_folder):
    torch.manual_seed(0)
    model, example, dynamic = KINDS[name]()
    found = to_onnx(Models(model), example, "model.onnx", dynamic)
    assert found.largest_difference < 1e-5
    assert {1, 2, 3, 9} <= {sizes["batch"] for sizes in found.sizes}
    assert sorted(os.listdir()) == ["model.onnx"]
    print(name, found.largest_difference)


# --- what is in the file ----------------------------------------------------------------------------------------------


class Chain(Tiny):
    def __init__(self, **attributes):
        super().__init__(**attributes)
        self.head = nn.Linear(3, 2)
        self.model_list = [*self.model_list, self.head]
        self.optimizer_list = [*self.optimizer_list, torch.optim.SGD(self.head.parameters(), 0.1)]
        self.offset = torch.tensor([0.5, -0.5])

    def inference(self, x):
        return {"scores": super().inference(x) + self.offset, "hidden": self.model_list[0](x)}


@pytest.mark.slow
def test_a_chain_with_an_inference_of_its_own_is_one_file_with_names(own_folder, capsys):
    trainer, x = Chain(), torch.randn(1, 6)  # a batch of 1 is no constant
    before = weights(trainer)
    found = to_onnx(trainer, x.double().numpy(), "model.onnx")
    assert found.inputs == {"input": "[batch, 6] float32"} and found.outputs == ["scores", "hidden"]
    for model in trainer.model_list:
        assert model.training
    x = torch.randn(5, 6)
    scores, hidden = run("model.onnx", x)
    trainer.model_list[0].eval()
    with torch.no_grad():
        assert np.allclose(scores, trainer.inference(x)["scores"], atol=1e-6)
        assert np.allclose(hidden, trainer.model_list[0](x), atol=1e-6)
    assert torch.equal(weights(trainer), before)
    assert "largest difference from PyTorch" in capsys.readouterr().out


def test_the_weights_are_those_that_were_asked_for(own_folder):
    ema = EMA(decay=0.5)
    trainer = tiny_trainer(callbacks=[ema])
    trainer.fit(2)
    x = torch.randn(4, 6)
    now = weights(trainer)
    with torch.no_grad():
        averaged = trainer.predict(x)
        expected = {"training": trainer.model_list[0].eval()(x), "now": averaged}
        trainer.model_list[0].train()
    stored = torch.load(trainer.path_of("epoch1.pth"))["model0"]
    expected["run"] = nn.functional.linear(functional.relu(nn.functional.linear(x, stored["0.weight"], stored["0.bias"])),
                                           stored["3.weight"], stored["3.bias"])
    for which, own in expected.items():
        which = str(trainer.path_of("epoch1.pth")) if which == "run" else which
        rng = torch.get_rng_state()
        found = to_safetensors(trainer, "w.safetensors", weights=which)
        assert torch.equal(torch.get_rng_state(), rng)
        from safetensors.torch import load_file

        model = Tiny().model_list[0].eval()
        model.load_state_dict(load_file("w.safetensors"))
        with torch.no_grad():
            assert torch.allclose(model(x), own, atol=1e-6), which
        assert found.weights
    assert "averaged" in to_safetensors(trainer, "w.safetensors").weights
    assert torch.equal(weights(trainer), now)
    assert all(part.training for part in trainer.model_list[0].modules())


def test_torch_export_needs_no_code_and_takes_what_the_model_takes(own_folder):
    trainer = Models(of_forward(lambda self, x, ids: self.parts[0](x) + self.parts[1](ids).mean(1), nn.Linear(4, 3),
                                nn.Embedding(7, 3)))
    to_torch_export(trainer, {"x": torch.randn(4, 4), "ids": torch.randint(0, 7, (4, 6))}, "model.pt2")
    assert "forward" not in vars(trainer.model_list[0])
    module, batch = torch.export.load("model.pt2").module(), {"x": torch.randn(9, 4), "ids": torch.randint(0, 7, (9, 6))}
    assert torch.allclose(module(**batch), trainer.inference(batch))


def test_safetensors_store_a_shared_tensor_once_and_load_model_ties_it_again(own_folder, capsys):
    from safetensors.torch import load_file, load_model

    def tied():
        model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
        model["head"].weight = model["embedding"].weight
        return model

    model = tied()
    to_safetensors(Models(model), "w.safetensors")
    assert list(load_file("w.safetensors")) == ["embedding.weight"]
    other = tied()
    load_model(other, "w.safetensors")
    assert torch.equal(other["head"].weight, model["head"].weight)
    assert "head.weight is stored as embedding.weight" in capsys.readouterr().out


# --- what is refused --------------------------------------------------------------------------------------------------


REFUSED = {
    "an if on values": (lambda self, x: x if x.sum() > 0 else -x, "asks for the values of a tensor.*torch.where"),
    "dropout in eval mode": (lambda self, x: functional.dropout(x), "F.dropout.x, training=self.training"),
    "a batch size in the code": (lambda self, x: x.view(4, -1), "Dimension 0 of 'input' should vary.* fixes it to 4"),
    "a loop over the batch": (lambda self, x: sum(row for row in x), "Dimension 0 of 'input' should vary"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_refused_and_the_file_that_was_there_stays(name, own_folder, capfd):
    forward, message = REFUSED[name]
    Path("model.onnx").write_text("old")
    with pytest.raises(ValueError, match=message):
        to_onnx(Models(of_forward(forward)), torch.randn(4, 6), "model.onnx")
    assert os.listdir() == ["model.onnx"] and Path("model.onnx").read_text() == "old"
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_an_operation_that_onnx_lacks_is_named(own_folder):
    with pytest.raises(ValueError, match="operations that ONNX has.*linalg_svd"):
        to_onnx(Models(of_forward(lambda self, x: torch.linalg.svd(x)[1])), torch.randn(4, 3, 3), "model.onnx")
    assert os.listdir() == []


@pytest.mark.slow
def test_a_file_that_onnxruntime_cannot_run_is_not_kept(own_folder):
    with pytest.raises(ValueError, match="no bfloat16: export such a model after model.float"):
        to_onnx(Models(nn.Linear(6, 2).bfloat16()), torch.randn(4, 6), "model.onnx")
    assert os.listdir() == []


@pytest.mark.slow
def test_the_length_of_a_recurrent_layer_may_not_vary(own_folder):
    with pytest.raises(ValueError, match="fixes the length of LSTM"):
        to_onnx(Models(recurrent(nn.LSTM)), torch.randn(4, 3, 5), "model.onnx", SEQUENCE)


@pytest.mark.parametrize("arguments, message", [
    ({"dynamic": {"image": {0: "batch"}}}, "the inputs are .'input'.; got the entry 'image'"),
    ({"dynamic": {"input": {7: "batch"}}}, "dimensions 0 to 1 of 'input'"),
    ({"dynamic": "all"}, "dynamic must be 'batch'"),
    ({"weights": "gone.pth"}, "no file 'gone.pth'"),
    ({"weights": None}, "weights must be 'now'"),
    ({"opset": 11}, "opset must be 18 or newer"),
    ({"input_names": ["a", "b"]}, "1 different names"),
    ({"example": [1, 2]}, "must hold a tensor"),
])
def test_arguments_that_do_not_fit_are_refused(arguments, message, own_folder):
    arguments = {"example": torch.randn(4, 6), **arguments}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        to_onnx(Models(nn.Linear(6, 2)), path="model.onnx", **arguments)


@pytest.mark.parametrize("name, call", [
    ("onnxruntime", lambda trainer: to_onnx(trainer, None, "model.onnx")),
    ("safetensors.torch", lambda trainer: to_safetensors(trainer, "w.safetensors")),
])
def test_a_package_that_is_missing_is_named(name, call, own_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"pip install {name.split('.')[0]}"):
        call(Tiny())


# --- TensorRT ---------------------------------------------------------------------------------------------------------

FAKE = '''#!{python}
import sys
version, gone, answer = {version!r}, {gone!r}, {answer!r}
print("&&&& RUNNING TensorRT.trtexec [TensorRT v%s] # trtexec" % version)
if "--help" in sys.argv:
    sys.exit(0)
for flag in sys.argv[1:]:
    if flag.split("=")[0] in gone:
        print("[E] Unknown option: " + flag)
        sys.exit(1)
if answer != "works":
    print("line of a log\\n" * 50 + answer)
    sys.exit(1 if answer != "silent" else 0)
path = next(flag.split("=")[1] for flag in sys.argv if flag.startswith("--saveEngine"))
open(path, "w").write(" ".join(sys.argv[1:]))
'''
GONE = {"8503": ["--skipInference", "--stronglyTyped"], "8601": ["--stronglyTyped"],
        "101300": ["--workspace", "--buildOnly"],
        "110000": ["--fp16", "--int8", "--best", "--calib", "--workspace", "--buildOnly"]}


def fake_trtexec(version, answer="works"):
    path = Path("trtexec")
    path.write_text(FAKE.format(python=sys.executable, version=version, gone=GONE[version], answer=answer))
    path.chmod(0o755)
    return str(path.resolve())


def onnx_file(quantized=False):
    import onnx
    from onnx import TensorProto, helper

    shape = ["batch", 3, "height", 8]
    nodes = [helper.make_node("Relu", ["image"], ["output"])]
    values = []
    if quantized:
        values = [helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1])]
        nodes = [helper.make_node("QuantizeLinear", ["image", "scale"], ["q"]),
                 helper.make_node("DequantizeLinear", ["q", "scale"], ["output"])]
    graph = helper.make_graph(nodes, "graph", [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
                              [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)], values)
    onnx.save(helper.make_model(graph), "model.onnx")
    return "model.onnx"


SIZES = {"batch": (1, 8, 32), "height": (8, 16, 64)}
SHAPES = ["--minShapes=image:1x3x8x8", "--optShapes=image:8x3x16x8", "--maxShapes=image:32x3x64x8"]


@pytest.mark.parametrize("version, quantized, precision, flags", [
    ("8503", False, None, []),
    ("8601", False, "fp16", ["--fp16"]),
    ("8601", True, "fp16", ["--fp16", "--int8"]),
    ("101300", True, None, ["--int8", "--skipInference"]),
    ("101300", False, "fp16", ["--fp16", "--skipInference"]),
    ("110000", True, None, ["--skipInference"]),
    ("110000", False, None, ["--skipInference"]),
])
def test_trtexec_gets_the_flags_of_its_version(version, quantized, precision, flags, own_folder):
    engine = to_tensorrt(onnx_file(quantized), "model.engine", SIZES, precision, trtexec=fake_trtexec(version))
    given = Path(engine).read_text().split()
    assert [flag for flag in given if not flag.startswith(("--onnx", "--saveEngine"))] == [*SHAPES, *flags]


def test_tensorrt_11_refuses_a_precision_in_words(own_folder):
    with pytest.raises(ValueError, match="TensorRT 11 takes the types from the ONNX file"):
        to_tensorrt(onnx_file(), "model.engine", SIZES, "fp16", trtexec=fake_trtexec("110000"))


@pytest.mark.parametrize("answer, message", [
    ("CUDA out of memory", "ended with 1.*memory was not enough"),
    ("silent", "wrote no engine"),
])
def test_a_build_that_fails_is_told_with_the_end_of_the_output(answer, message, own_folder):
    Path("model.engine").write_text("old")
    with pytest.raises(RuntimeError, match=message) as told:
        to_tensorrt(onnx_file(), "model.engine", SIZES, trtexec=fake_trtexec("101300", answer))
    assert str(told.value).count("line of a log") < 25 and answer in str(told.value)
    assert Path("model.engine").read_text() == "old" and sorted(os.listdir()) == ["model.engine", "model.onnx", "trtexec"]


def test_a_flag_that_trtexec_does_not_know_is_told(own_folder):
    with pytest.raises(RuntimeError, match="does not know one of the flags"):
        to_tensorrt(onnx_file(), "model.engine", SIZES, trtexec=fake_trtexec("110000"), options=["--best"])


def test_without_trtexec_it_says_what_to_install(own_folder, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="pip install tensorrt. does not bring it"):
        to_tensorrt(onnx_file(), "model.engine", SIZES)


@pytest.mark.parametrize("arguments, message", [
    ({"sizes": {"batch": (1, 8, 32)}}, "each dimension that varies in model.onnx: .'batch', 'height'."),
    ({"sizes": {**SIZES, "batch": (8, 1, 32)}}, "three rising numbers for 'batch'"),
    ({"sizes": SIZES, "precision": "int8"}, "int8 comes with the file"),
])
def test_sizes_and_precisions_that_do_not_fit_are_refused(arguments, message, own_folder):
    with pytest.raises(ValueError, match=message):
        to_tensorrt(onnx_file(), "model.engine", trtexec=fake_trtexec("8601"), **arguments)
