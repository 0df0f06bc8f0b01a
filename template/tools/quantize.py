"""A trained model in 8-bit integers, after the training (PTQ) or by training on with rounding (QAT), as a Q/DQ ONNX file.

    trainer.check_init()
    trainer.fit(30)
    found = ptq(trainer, batches=32, method="entropy")          # some seconds; writes int8.onnx into the run's folder
    found = qat(trainer, epochs=3, lr_factor=0.1)               # trains on in <ckpt_dir>/qat, and can be resumed
    print(found.table())                                        # loss, metrics, size and latency before and after

Weights are symmetric int8 numbers with a scale for each output channel, activations uint8 numbers with one scale and zero
point; BatchNorm is folded into the convolution before it. onnxruntime runs the file on CPUs, TensorRT on NVIDIA's GPUs. The
trainer stays as it was. It quantizes no language models to 4 bits, and it does not use NVIDIA's modelopt, which needs a GPU.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree  # torch.export nests by it

from ..checkpoint.state import unwrap
from ..data.seeding import rng_kept
from ..data.shares import Uneven
from ..output.text_table import text_table
from ..run.as_found import as_found, planned_rates
from ..run.checks import check_count, require_eval_loader, require_init
from ..run.export.calibration import RANGES, Histogram
from ..run.export.one_module import Example, as_input, capture, quiet, ready_to_capture
from ..run.export.onnx_file import beside, call_captured, open_session, operators, require_onnx, run_session, write_onnx
from ..run.setup import batches_to_train

if TYPE_CHECKING:
    from ..template import TemplateModel

BACKENDS = ("torchao", "onnxruntime")
_ROUNDS = 15         # of a measured latency
_SECONDS_EACH = 0.02  # at least, for each of them


@dataclass
class Quantized:
    """A quantized model, and what it costs and saves."""

    path: str
    """The ONNX file with Q/DQ nodes."""
    method: str
    """How it was made, in words."""
    before: dict[str, float]
    """Losses and metrics of ``eval_loader``, of the model in float32."""
    after: dict[str, float]
    """The same in 8 bits, as PyTorch computes it; {} where onnxruntime quantized."""
    onnx: dict[str, float]
    """The same of the file, as onnxruntime computes it."""
    bytes_before: int
    """Of the ONNX file in float32."""
    bytes_after: int
    latency_before: tuple[float, float, float]
    """Milliseconds for one sample in onnxruntime: median, smallest, largest of 15 rounds, in turn with the other one."""
    latency_after: tuple[float, float, float]
    threads: int
    """That onnxruntime computed with when it was timed."""
    weights: str
    """Which weights were quantized, in words."""
    module: Any = field(default=None, repr=False)
    """The quantized model in PyTorch (a ``GraphModule``), or None where onnxruntime quantized."""

    def table(self) -> str:
        """One row for each form of the model."""
        rows = [{"model": "float32", **self.before, "MB": self.bytes_before / 1e6, "ms": self.latency_before[0]},
                {"model": "int8 in PyTorch", **self.after},
                {"model": "int8 in onnxruntime", **self.onnx, "MB": self.bytes_after / 1e6, "ms": self.latency_after[0]}]
        return text_table([row for row in rows if len(row) > 1])


def ptq(trainer: TemplateModel, batches: int = 32, method: str = "max", loader: str = "train",
        path: str | Path | None = None, weights: str = "now", backend: str = "torchao", percent: float = 99.99,
        example: Any = None, dynamic: Any = "batch", threads: int = 1) -> Quantized:
    """Quantize the trained model: the ranges of its activations are taken from ``batches`` batches.

    Args:
        batches: how many calibrate; at most one pass over the loader.
        method: of choosing a range. "max": all values that were seen. "percentile": ``percent`` of them. "mse": the range
            with the smallest squared error. "entropy": the one that keeps the distribution. See
            ``run/export/calibration.py``.
        loader: "train" or "eval": what calibrates. Scores are always those of ``eval_loader``, so "train" is honest.
        path: of the ONNX file; None: ``int8.onnx`` in the run's folder.
        weights: "now", "training", "best", "last" or a path, as for ``to_onnx``.
        backend: "torchao" (PT2E), or "onnxruntime": its own static quantization, with "max", "entropy" and "percentile".
        example, dynamic: as for ``to_onnx``.
        threads: that latency is measured with.

    Raises:
        ImportError: torchao, onnx, onnxscript or onnxruntime is missing.
        ValueError: an argument does not fit, the model cannot be captured, or nothing in it can be quantized.
    """
    call = "ptq()"
    _require(trainer, call)
    check_count("batches", batches)
    _check_choices(method, loader, backend, percent)
    require_onnx(call)
    quantizer = require_packages(call, method, percent) if backend == "torchao" else None
    path = trainer.path_of("int8.onnx") if path is None else Path(path)
    with as_found(trainer, call), _in_float32(trainer), ready_to_capture(trainer, weights, call) as source:
        work = _Work(trainer, source, Example(trainer, example, dynamic), call, threads)
        if backend == "onnxruntime":
            work.finish_by_onnxruntime(path, batches, loader, method, percent)
            what = f"PTQ, {method}, {batches} batches of {loader}_loader, by onnxruntime"
        else:
            graph = _graph(work)
            work.finish(_ptq_graph(work, graph, quantizer, batches, loader), path)
            what = f"PTQ, {method}, {batches} batches of {loader}_loader"
    return work.result(what)


def qat(trainer: TemplateModel, epochs: int, lr_factor: float = 0.1, batches: int = 8, path: str | Path | None = None,
        weights: str = "now", callbacks: Sequence[Any] | None = None, resume: bool = True, example: Any = None,
        dynamic: Any = "batch", threads: int = 1) -> Quantized:
    """Train on for some epochs with rounded weights and activations, and quantize what comes of it.

    It is a run of its own in ``<ckpt_dir>/qat``, by the same loop, with your loaders, criterion, metrics, schedule type and
    kinds of optimizers: log, history, ``best.pth`` and TensorBoard as in any run. Killed and started again by the same
    script, it goes on where it was, to the same bits. The best epoch is quantized.

    Args:
        epochs: of the training on.
        lr_factor: times the rates that the run was planned with.
        batches: of ``train_loader``, from which the first ranges are taken.
        path: of the ONNX file; None: ``qat.onnx`` in the run's folder.
        weights: which to begin with, as for ``ptq``.
        callbacks: of this run, beside the default ones. Those of the trainer are not taken, since they hold its state.
        resume: go on with what is in the folder; False: begin again.
        example, dynamic, threads: as for ``ptq``.

    Raises:
        ImportError, ValueError: as ``ptq``; also if the folder holds the QAT of other weights or other settings.
    """
    call = "qat()"
    _require(trainer, call)
    check_count("epochs", epochs)
    check_count("batches", batches)
    if not isinstance(lr_factor, (int, float)) or not lr_factor > 0:
        raise ValueError(f"lr_factor must be a number above 0, the share of the training's rate; got {lr_factor!r}.")
    quantizer = require_packages(call, is_qat=True)
    path = trainer.path_of("qat.onnx") if path is None else Path(path)
    trainer.close()  # two runs at once would both want the signals and stdout
    with as_found(trainer, call), _in_float32(trainer), ready_to_capture(trainer, weights, call) as source:
        work = _Work(trainer, source, Example(trainer, example, dynamic), call, threads)
        module = _trainable(work, quantizer, batches)
        start = {"weights": _digest(module), "epochs": epochs, "lr_factor": lr_factor}
    twin = _twin(trainer, module, work, lr_factor, callbacks)
    with rng_kept():
        _train(twin, epochs, start, resume, use_tb=trainer._writer.own is not None)
    with as_found(trainer, call), _in_float32(trainer), ready_to_capture(trainer, weights, call) as source:
        work.source = source
        work.finish(_converted(module.eval().graph, call), path)
    return work.result(f"QAT, {epochs} epochs at {lr_factor:g} of the rate")


# --- what is the same for both ----------------------------------------------------------------------------------------


class _Work:
    """The steps from a captured model to a scored file."""

    def __init__(self, trainer, source, example, call, threads):
        self.trainer, self.source, self.example, self.call, self.threads = trainer, source, example, call, threads
        self.overrides = trainer._overrides("inference")
        self.before = _numbers(trainer.evaluator.score())
        self.after: dict[str, float] = {}
        self.module: Any = None

    def calibrate(self, run, count, loader):
        """``run`` gets what ``inference`` gets when your losses are computed."""
        done = 0
        with rng_kept(), torch.no_grad(), _in_place(self.trainer, run, self.overrides):
            for batch in itertools.islice(self._batches(loader), count):
                self.trainer.evaluator.forward(batch.batch if type(batch) is Uneven else batch)
                done += 1
        if not done:
            raise ValueError(f"{self.call} calibrates on the batches of {loader}_loader, and it gave none.")

    def _batches(self, loader):
        if loader == "train":
            return batches_to_train(self.trainer, self.trainer.train_loader).epoch(1)
        return itertools.chain.from_iterable(part.epoch(0) for part in self.trainer.evaluator.batches.values())

    def finish(self, module, path):
        """Score a converted graph, write it, and score the file."""
        _require_quantized(module, self.source.module, self.call)
        self.module = module
        self.after = self._score(lambda x: call_captured(module, self.example.whole(self.example.matches(x))))
        write_onnx(module, copy.copy(self.example), path, self.call, tolerance=None)
        with tempfile.TemporaryDirectory() as folder:
            self._compare(self._float_file(folder), path)

    def finish_by_onnxruntime(self, path, count, loader, method, percent):
        inputs: list[Any] = []
        inference = self.trainer.inference

        def noting(x):
            inputs.append([leaf.detach().cpu().numpy() for leaf in self.example.matches(x)])
            return inference(x)

        models = list(self.trainer.model_list)
        self.calibrate(lambda x: _with_models(self.trainer, models, noting, x), count, loader)
        with tempfile.TemporaryDirectory() as folder:
            plain = self._float_file(folder)
            with beside(path) as temporary:
                prepared = Path(folder, "prepared.onnx")
                _quantize_static(plain, prepared, temporary, self.example.names, inputs, method, percent)
                if "QuantizeLinear" not in operators(temporary):
                    raise ValueError(_nothing_quantized(self.call, self.source.module))
            self._compare(plain, path)

    def _float_file(self, folder):
        path = Path(folder, "float32.onnx")
        write_onnx(self.source.module, self.example, path, self.call, tolerance=1e-3)
        return path

    def _compare(self, plain, path):
        """The quantized file with the trainer's metrics, and beside the one in float32 in size and time."""
        session, outputs = open_session(path, self.threads), _Outputs(self.source.module, self.example)
        taken = {value.name for value in session.get_inputs()}

        def run(x):
            leaves = self.example.matches(x)
            feed = {name: leaf for name, leaf in zip(self.example.names, leaves) if name in taken}
            return outputs.whole([value.to(leaves[0].device) for value in run_session(session, feed)])

        self.onnx, self.path = self._score(run), path
        self.sizes = Path(plain).stat().st_size, Path(path).stat().st_size
        self.latencies = _latencies([plain, path], self.example, self.threads)

    def _score(self, run):
        with _in_place(self.trainer, run, self.overrides):
            return _numbers(self.trainer.evaluator.score())

    def result(self, method):
        found = Quantized(str(self.path), method, self.before, self.after, self.onnx, *self.sizes, *self.latencies,
                          self.threads, self.source.weights, self.module)
        print(f"{method}: {self.path}; weights: {found.weights}")
        print(found.table())
        print(f"ms: one sample in onnxruntime on the CPU, {self.threads} thread{'s' * (self.threads > 1)}, median of "
              f"{_ROUNDS} rounds: {_spread(found.latency_before)} before, {_spread(found.latency_after)} after.")
        return found


class _StandIn(nn.Module):
    """In the place of the only model of a trainer: what is called in its place."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, *args, **kwargs):
        return self.run(as_input(args, kwargs))


class _NotCaptured(nn.Module):
    def forward(self, *args, **kwargs):
        raise ValueError("The whole inference() was quantized, as one model, and your loss_per_batch() or "
                         "eval_scores_per_batch() calls a model of model_list itself: it would be scored in float32. Call "
                         "self.inference(x) there.")


def _in_place_of_models(run, count, overrides):
    return [_StandIn(run)] if count == 1 and not overrides else [_NotCaptured() for _ in range(count)]


@contextmanager
def _in_place(trainer, run, overrides):
    """``run(x)`` in the place of ``inference`` and of the models, however your methods call them."""
    own = vars(trainer)
    before, models = own.get("inference"), own["model_list"]
    own["inference"], own["model_list"] = run, _in_place_of_models(run, len(models), overrides)
    try:
        yield
    finally:
        own["model_list"] = models
        if before is None:
            del own["inference"]
        else:
            own["inference"] = before


def _with_models(trainer, models, run, x):
    """``run`` while the models themselves are in the list: the trainer's own ``inference`` reads it."""
    own = vars(trainer)
    stand_ins, own["model_list"] = own["model_list"], models
    try:
        return run(x)
    finally:
        own["model_list"] = stand_ins


@contextmanager
def _in_float32(trainer):
    """Scores of the model without mixed precision, as it is exported."""
    stepper = trainer.stepper
    autocast, stepper.autocast = stepper.autocast, nullcontext
    try:
        yield
    finally:
        stepper.autocast = autocast


class _Outputs:
    """How the outputs of ``inference`` are nested, to nest those of a file alike."""

    def __init__(self, module, example):
        with torch.no_grad():
            out = call_captured(module, example.x)
        self.values, self.spec = pytree.tree_flatten(dict(out) if isinstance(out, Mapping) else out)

    def whole(self, tensors):
        left = iter(tensors)
        return pytree.tree_unflatten([next(left) if isinstance(v, torch.Tensor) else v for v in self.values], self.spec)


def _numbers(result):
    return {name: float(value) for name, value in result.items() if isinstance(value, (int, float))}


def _latencies(paths, example, threads):
    """``[(median, smallest, largest)]`` in milliseconds for one sample; the files take turns."""
    sizes = {"batch": 1} if "batch" in example.sizes else {}
    feed = dict(zip(example.names, example.resized(sizes)))
    calls = []
    for path in paths:
        session = open_session(path, threads)
        taken = {value.name for value in session.get_inputs()}
        calls.append(functools.partial(session.run, None, {name: leaf.detach().cpu().contiguous().numpy()
                                                           for name, leaf in feed.items() if name in taken}))
    counts = [max(1, round(_SECONDS_EACH / max(_seconds(call, 5), 1e-6))) for call in calls]
    rounds = [[1000 * _seconds(call, count) for call, count in zip(calls, counts)] for _ in range(_ROUNDS)]
    return [(statistics.median(times), min(times), max(times)) for times in zip(*rounds)]


def _seconds(call, count):
    started = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - started) / count


def _spread(times):
    return f"{times[0]:.3g} ({times[1]:.3g} to {times[2]:.3g})"


def _require(trainer, call):
    require_init(trainer)
    require_eval_loader(trainer)
    if trainer.world.size > 1:
        raise ValueError(f"{call} runs in one process, and there are {trainer.world.size}. Start a script without torchrun "
                         "that loads the weights: trainer.load_state('…/best.pth', optim=False).")


def _check_choices(method, loader, backend, percent):
    for name, value, accepted in (("method", method, tuple(RANGES)), ("loader", loader, ("train", "eval")),
                                  ("backend", backend, BACKENDS)):
        if value not in accepted:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}; got {value!r}.")
    if backend == "onnxruntime" and method == "mse":
        raise ValueError("backend='onnxruntime' has the methods 'max', 'entropy' and 'percentile'; got 'mse'. Take one of "
                         "these, or backend='torchao'.")
    if not 50 < percent <= 100:
        raise ValueError(f"percent must be above 50 and at most 100, the share of the values that is kept; got {percent!r}.")


# --- torchao ----------------------------------------------------------------------------------------------------------

_COMPUTES = ("aten.conv", "aten.linear", "aten.matmul", "aten.bmm", "aten.mm", "aten.addmm")


def require_packages(call: str, method: str = "max", percent: float = 99.99, is_qat: bool = False) -> Any:
    """torchao's quantizer for x86: uint8 activations, int8 weights for each channel.

    Raises:
        ImportError: a package is missing that quantizing needs.
    """
    require_onnx(call)
    with quiet():
        try:
            from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86  # type: ignore  # optional
        except ImportError:
            raise ImportError(f"{call} needs torchao: pip install torchao") from None
        config = x86.get_default_x86_inductor_quantization_config(is_qat=is_qat)
        if not is_qat:
            spec = dataclasses.replace(config.input_activation,
                                       observer_or_fake_quant_ctr=_observer_class(method, percent))
            config = dataclasses.replace(config, input_activation=spec, output_activation=spec)
        return x86.X86InductorQuantizer().set_global(config)


def _observer_class(method, percent):
    """An observer for torchao that keeps a histogram, and asks ``run/export/calibration.py`` for the range."""
    from torchao.quantization.pt2e.observer import UniformQuantizationObserverBase  # type: ignore  # optional

    class RangeObserver(UniformQuantizationObserverBase):
        def __init__(self, **_):
            super().__init__(dtype=torch.uint8, qscheme=torch.per_tensor_affine, quant_min=0, quant_max=255, eps=2 ** -12)
            self.histogram = Histogram()

        def forward(self, values):
            self.histogram.add(values)
            return values

        def calculate_qparams(self):
            given = (self.histogram, percent) if method == "percentile" else (self.histogram,)
            low, high = RANGES[method](*given)
            return self._calculate_qparams(torch.tensor(low), torch.tensor(high))

    return RangeObserver


def _graph(work):
    """A captured copy of the models, with weights of its own."""
    program = capture(work.source.module, work.example, work.call)
    with quiet():
        return copy.deepcopy(program.module())


def _ptq_graph(work, graph, quantizer, batches, loader):
    with quiet():
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e  # type: ignore  # optional

        prepared = prepare_pt2e(graph, quantizer)
    example = work.example
    work.calibrate(lambda x: call_captured(prepared, example.whole(example.matches(x))), batches, loader)
    return _converted(prepared, work.call)


def _converted(prepared, call):
    """A graph that was calibrated or trained, with Q/DQ operators in the place of its observers."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e  # type: ignore  # optional

    with quiet(), torch.no_grad():
        module = convert_pt2e(copy.deepcopy(prepared))
    _set_mode(module, training=False)
    for node in [node for node in module.graph.nodes if _counts_batches(node)]:
        module.graph.erase_node(node)  # of BatchNorm, which is folded
    module.recompile()
    return module


def _counts_batches(node):
    return str(node.target).startswith("aten.add_.Tensor") and "num_batches_tracked" in str(node.args[0])


def _require_quantized(module, plain, call):
    quantized = [node for node in module.graph.nodes if "quantize_per_" in str(node.target)]
    if not quantized:
        raise ValueError(_nothing_quantized(call, plain))


def _nothing_quantized(call, plain):
    kinds = sorted({type(part).__name__ for part in plain.models.modules() if not list(part.children())})
    return (f"{call} quantizes convolutions and linear layers, and found none among {', '.join(kinds)}. LSTM, GRU and "
            "embeddings stay in float32.")


def _set_mode(graph, training):
    """Dropout, BatchNorm and recurrent layers of a captured graph in train or eval mode, with their own p, momentum and eps.

    torchao's ``move_exported_model_to_eval`` and ``…_to_train`` put p = 0.5, momentum = 0.1 and eps = 1e-5 in their place
    (torchao 0.18; pull request 4790 of pytorch/ao).
    """
    for node in graph.graph.nodes:
        name = str(node.target)
        place = next((place for start, place in _MODES if name.startswith(start)), None)
        if place is not None and len(node.args) > place:
            node.args = (*node.args[:place], training, *node.args[place + 1:])
        if _counts_batches(node):
            node.args = (node.args[0], int(training))  # the batches that BatchNorm has seen
    graph.recompile()
    for part in graph.modules():
        if hasattr(part, "enable_observer"):
            part.enable_observer(training)  # what is evaluated shall not widen a range


_MODES = (("aten.dropout", 2), ("aten.feature_dropout", 2), ("aten.alpha_dropout", 2), ("aten.batch_norm", 5),
          ("aten.lstm.input", 6), ("aten.gru.input", 6))  # which argument says whether it trains


# --- training on ------------------------------------------------------------------------------------------------------


class _Captured(nn.Module):
    """A captured graph with fake quantization as a model that is trained: ``train()`` and ``eval()`` of a graph raise."""

    def __init__(self, graph):
        super().__init__()
        self.graph = graph
        self.smallest_scales = [(part, part.eps.clone()) for part in graph.modules()
                                if isinstance(getattr(part, "eps", None), torch.Tensor)]
        self.register_load_state_dict_post_hook(_as_before_loading)

    def forward(self, *args, **kwargs):
        return self.graph(*args, **kwargs)

    def train(self, mode=True):
        self.training = mode
        _set_mode(self.graph, mode)
        return self


def _as_before_loading(module, _):
    """A file says whether observers looked when it was written, and the module knows its mode. The smallest scale of an
    observer becomes another one where a file has no versions of modules, as plain data has none (torchao 0.18)."""
    for part, eps in module.smallest_scales:
        part.eps.copy_(eps)
    module.train(module.training)


def _trainable(work, quantizer, batches):
    """The model with fake quantization, whose ranges have seen some batches."""
    trainer, example = work.trainer, work.example
    for model in trainer.model_list:
        model.train()
    graph = _graph(work)
    for model in trainer.model_list:
        model.eval()
    _require_same_graph(work, graph)
    with quiet():
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e  # type: ignore  # optional

        graph = prepare_qat_pt2e(graph, quantizer)
    module = _Captured(graph).eval()
    if not any(hasattr(part, "enable_observer") for part in graph.modules()):
        raise ValueError(_nothing_quantized(work.call, work.source.module))
    for part in graph.modules():
        if hasattr(part, "enable_observer"):
            part.enable_observer()
    work.calibrate(lambda x: call_captured(module, example.whole(example.matches(x))), batches, "train")
    for p in module.parameters():
        p.requires_grad_(True)
    frozen = {f"models.{name}" for i, model in enumerate(trainer.model_list)
              for name in (f"{i}.{own}" for own, p in model.named_parameters() if not p.requires_grad)}
    for name, p in graph.named_parameters():
        p.requires_grad_(name not in frozen)
    return module.train()


def _require_same_graph(work, graph):
    """A graph knows one way through ``forward``, that of train mode; dropout and BatchNorm are switched."""
    _set_mode(graph, training=False)
    example = work.example
    before = {name: value.clone() for name, value in graph.named_buffers()}
    with torch.no_grad():
        ours, theirs = (pytree.tree_leaves(call_captured(module, example.x)) for module in (graph, work.source.module))
    for one, other in zip(ours, theirs):
        if isinstance(one, torch.Tensor) and (one.shape != other.shape or not torch.allclose(one, other, 1e-3, 1e-4)):
            raise ValueError(f"{work.call} trains one graph, captured in train mode, and this model computes something else "
                             "in eval mode than dropout and BatchNorm explain: forward() asks for self.training. Write it "
                             "so that both modes go the same way, or use ptq().")
    if changed := [name for name, value in graph.named_buffers() if not torch.equal(before[name], value)]:
        raise ValueError(f"{work.call} trains one graph, captured in train mode, which changes {changed} in eval mode too: "
                         "forward() asks for self.training before it writes there. Use ptq().")
    _set_mode(graph, training=True)


def _twin(trainer, module, work, lr_factor, callbacks):
    """A trainer of the same class over the captured model, as before ``check_init``."""
    twin = copy.copy(trainer)
    own = vars(twin)
    own.pop("_copied_at", None)
    criterion = copy.deepcopy(trainer.criterion) if isinstance(trainer.criterion, nn.Module) else trainer.criterion

    def inference(x):
        return call_captured(module, work.example.whole(work.example.matches(x)))

    count = len(trainer.model_list)
    own["inference"] = inference
    own["model_list"] = [module] if count == 1 and not work.overrides else [*(_NotCaptured() for _ in range(count)), module]
    own["optimizer_list"] = _optimizers(trainer, module, criterion, lr_factor)
    own.update(criterion=criterion, amp=None, compile=False, lr_scheduler_list=None, warm_up_scheduler_list=None,
               warm_up_epoch=0, warm_up_updates=None, callbacks=callbacks, epoch=0, epochs_done=0, batches_done=0,
               global_step=0, global_step_eval=0, best_metric={}, best_epoch={}, eval_result={}, should_stop=False,
               total_epochs=None, total_updates=None, ckpt_dir=str(trainer.path_of("qat")),
               run_name=f"{trainer.run_name}/qat", preflight=False)
    return twin


def _optimizers(trainer, module, criterion, lr_factor):
    """New ones of the same kinds, groups and settings, over the captured parameters."""
    captured = dict(module.graph.named_parameters())
    new = {id(p): captured.get(f"models.{i}.{name}") for i, model in enumerate(trainer.model_list)
           for name, p in unwrap(model).named_parameters()}
    if isinstance(criterion, nn.Module):
        new |= {id(p): copied for p, copied in zip(trainer.criterion.parameters(), criterion.parameters())}
    optimizers = []
    for optimizer, rates in zip(trainer.optimizer_list, planned_rates(trainer)):
        groups = []
        for group, rate in zip(optimizer.param_groups, rates):
            parameters = [new[id(p)] for p in group["params"] if new.get(id(p)) is not None]
            settings = {key: value for key, value in group.items() if key not in ("params", "initial_lr", "max_lr")}
            groups.append({**settings, "lr": rate * lr_factor, "params": parameters})
        accepted = inspect.signature(type(optimizer)).parameters
        defaults = {key: value for key, value in optimizer.defaults.items() if key in accepted}
        optimizers.append(type(optimizer)([group for group in groups if group["params"]], **defaults))
    return optimizers


def _train(twin, epochs, start, resume, use_tb):
    """The run in its own folder; it goes on where an earlier one of the same beginning was."""
    folder, note = Path(vars(twin)["ckpt_dir"]), "qat.json"
    is_there = (folder / note).is_file()
    if is_there and resume and json.loads((folder / note).read_text(encoding="utf-8")) != start:
        raise ValueError(f"{folder} holds a QAT that began with other weights, epochs or lr_factor. Call qat(…, "
                         "resume=False) to replace it, or move that folder away.")
    twin.overwrite = not resume
    twin.check_init(use_tb=use_tb)
    try:
        if is_there and resume:
            twin.load_state("auto")
        if twin.is_main:
            Path(folder).mkdir(parents=True, exist_ok=True)
            Path(folder, note).write_text(json.dumps(start), encoding="utf-8")
        twin.fit(epochs)
        twin.use_best()
    finally:
        twin.close()


def _digest(module):
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


# --- onnxruntime ------------------------------------------------------------------------------------------------------


def _quantize_static(plain, prepared, path, names, inputs, method, percent):
    """onnxruntime's own quantization, of a file and arrays to calibrate with."""
    with quiet():
        from onnxruntime import quantization as q  # type: ignore  # optional
        from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore  # optional

        length = max(len(arrays[0]) for arrays in inputs)
        full = [arrays for arrays in inputs if len(arrays[0]) == length]  # its histograms take batches of one length

        class Reader(q.CalibrationDataReader):
            left = iter(full)

            def get_next(self):
                arrays = next(self.left, None)
                return None if arrays is None else dict(zip(names, arrays))

        quant_pre_process(str(plain), str(prepared))
        ways = {"max": q.CalibrationMethod.MinMax, "entropy": q.CalibrationMethod.Entropy,
                "percentile": q.CalibrationMethod.Percentile}
        q.quantize_static(str(prepared), str(path), Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
                          activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8, calibrate_method=ways[method],
                          extra_options={"CalibPercentile": percent} if method == "percentile" else {})
