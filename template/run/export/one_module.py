"""The models of a trainer as one module for whatever captures a whole ``inference``: ``torch.export``, ONNX, quantization.

    with ready_to_capture(trainer, "best", "to_onnx()") as source:        # eval mode, these weights, plain modules
        example = Example(trainer, None, {0: "batch"})                    # the first batch of a loader
        program = capture(source.module, example, "to_onnx()")            # torch.export.ExportedProgram

``inference`` is captured as the trainer runs it: several models in a chain, or your own code, become one graph. What a graph
cannot hold (an ``if`` on values, a size that Python computes) is refused with the reason. Nothing here writes a file.
"""

from __future__ import annotations

import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree  # torch.export names inputs and outputs by it, and has no other name for it

from ...checkpoint import files, state
from ...checkpoint.state import unwrap
from ...data.loaders import make_batches
from ...data.seeding import rng_kept
from ...metrics.modes import eval_mode, unchanged
from ..defaults import input_of, parameter_dtype

if TYPE_CHECKING:
    from ...template import TemplateModel

_MOST_SAMPLES = 4  # of an example that a loader gave: its values do not matter, and a small one is soon computed


class OneModule(nn.Module):
    """``trainer.inference`` as a module: a mapping goes in as keyword arguments, a tuple as positional ones."""

    def __init__(self, trainer: TemplateModel):
        super().__init__()
        self.models = nn.ModuleList(unwrap(model) for model in trainer.model_list)
        self.others = nn.ModuleDict({name: part for name, part in vars(trainer).items() if isinstance(part, nn.Module)
                                     and not isinstance(part, nn.ModuleList)})
        self.inference = trainer.inference

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inference(as_input(args, kwargs))


def as_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The ``x`` of ``inference`` that ``call_model`` made these arguments of."""
    return kwargs if kwargs else args[0] if len(args) == 1 else args


class Source:
    """What is to be captured.

    Attributes:
        module: ``inference`` as one module.
        weights: which weights are in it, in words.
    """

    def __init__(self, module: OneModule, weights: str):
        self.module, self.weights = module, weights


@contextmanager
def ready_to_capture(trainer: TemplateModel, weights: str, call: str, trains: bool = False) -> Iterator[Source]:
    """The trainer's models in eval mode, without compilation, with the weights asked for; all as before afterwards.

    Args:
        weights: "now": those that evaluations and ``predict`` use, averaged ones where a callback or an optimizer averages;
            "training": those of the training itself; "best", "last" or a path: those of that file.
        trains: leave the models in train mode, for a graph that is to be trained.

    Raises:
        ValueError: weights are divided among the ranks, or no such weights.
    """
    if trainer.model_list is None or not len(trainer.model_list):
        raise ValueError(f"{call} needs the models of the trainer, and model_list is empty. Set self.model_list.")
    if trainer.is_sharded:
        raise ValueError(f"{call} needs whole weights, and under parallel='fsdp' each rank holds a part of them. Call "
                         "save_state('weights.pth', optim=False), and export in one process that loads this file.")
    plain = [unwrap(model) for model in trainer.model_list]
    compiled = [(model, model._compiled_call_impl) for model in plain]
    listed, fast_path = trainer.model_list, torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        text = stack.enter_context(_weights(trainer, weights, call))
        stack.enter_context(rng_kept())
        stack.enter_context(unchanged(plain))
        stack.enter_context(eval_mode(plain))
        try:
            vars(trainer)["model_list"] = plain  # an assignment would be refused
            for model in plain:
                model._compiled_call_impl = None
                if trains:
                    model.train()
            torch.backends.mha.set_fastpath_enabled(False)  # one fused operator for a whole layer, which no exporter knows
            yield Source(OneModule(trainer), text)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            vars(trainer)["model_list"] = listed
            for model, implementation in compiled:
                model._compiled_call_impl = implementation


@contextmanager
def _weights(trainer, weights, call):
    """These weights are in the models; gives their name in words."""
    if weights == "training":
        yield "those of the training"
    elif weights == "now":
        before = [p.detach().clone() for model in trainer.model_list for p in model.parameters()]
        with trainer.lifetime.weights.for_use():
            now = [p for model in trainer.model_list for p in model.parameters()]
            is_same = all(torch.equal(one, other) for one, other in zip(before, now))
            del before
            yield "those of now" if is_same else "those of now, averaged"
    elif not isinstance(weights, str) or not weights:
        raise ValueError(f"weights must be 'now', 'training', 'best', 'last' or the path of a file; got {weights!r}.")
    else:
        path, saved = files.find_state(trainer, weights) if weights in ("best", "last") else _read(weights, call)
        with trainer.lifetime.weights.in_place(_pairs(trainer, state.with_lists(saved))):
            yield f"{path}, epoch {saved.get('epoch')}"


def _read(path, call):
    try:
        return path, files.read(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{call}: weights must be 'now', 'training', 'best', 'last' or the path of a file, and "
                                f"there is no file {path!r}.") from None


def _pairs(trainer, saved):
    """``[(tensor of a model, its value in the file)]``."""
    modules = {f"model{i}": model for i, model in enumerate(trainer.model_list)}
    weights, _, _ = state._fitting_weights(modules, saved, strict=True)
    pairs = []
    for model, own in zip(modules.values(), weights):
        tensors = model.state_dict(keep_vars=True)
        pairs += [(tensors[name].detach(), value.to(tensors[name].device)) for name, value in own.items()
                  if isinstance(value, torch.Tensor)]
    return pairs


# --- an example of the input ------------------------------------------------------------------------------------------


class Example:
    """An input as ``inference`` takes it, taken apart into its tensors, with the names and the dimensions that vary.

    Args:
        trainer: whose models are fed.
        x: tensor, array, tuple of several inputs, mapping or any nesting of these; None: from the first batch of
            ``eval_loader``, else of ``train_loader``.
        dynamic: ``"batch"``: the first dimension of every input that has the batch's length there; ``{dimension: name}`` for
            every input; ``{input: {dimension: name}}``; None: all sizes are fixed.
        names: of the inputs; None: keys of mappings, parameters of ``forward``, or "input".

    Attributes:
        leaves: the tensors; at least 2 long in every dimension that varies: ``torch.export`` takes a 1 for a constant.
        names: of each.
        dynamic: ``{index of a leaf: {dimension: name}}``.
    """

    def __init__(self, trainer: TemplateModel, x: Any, dynamic: Any, names: Any = None):
        is_from_loader, device = x is None, _device_of(trainer)
        dtype = parameter_dtype(trainer.model_list)
        x = _first_input(trainer, device, dtype) if is_from_loader else _prepared(x, dtype)
        x = dict(x) if isinstance(x, Mapping) else x
        with_paths, self.spec = pytree.tree_flatten_with_path(x)
        self.values = [torch.as_tensor(v).to(device) if isinstance(v, np.ndarray) else
                       v.detach().to(device).clone() if isinstance(v, torch.Tensor) else v for _, v in with_paths]
        self.places = [i for i, value in enumerate(self.values) if isinstance(value, torch.Tensor)]
        if not self.places:
            raise ValueError(f"The example must hold a tensor, as inference() takes it; got {type(x).__name__}. Give one "
                             "input with its batch dimension, or leave it out to take one from eval_loader.")
        self.names = _names(trainer, x, [with_paths[i][0] for i in self.places], names)
        self.fixed = {_joined(with_paths[i][0]): value for i, value in enumerate(self.values)
                      if i not in self.places and value is not None}
        self.dynamic = _dimensions(dynamic, self.leaves, self.names)
        self.sizes = {name: self.leaves[i].shape[dim] for i, dims in self.dynamic.items() for dim, name in dims.items()}
        cut = {"batch": min(self.sizes["batch"], _MOST_SAMPLES)} if is_from_loader and "batch" in self.sizes else {}
        self.sizes |= {name: max(size, 2) for name, size in (self.sizes | cut).items()}
        for place, leaf in zip(self.places, self.resized({})):
            self.values[place] = leaf

    @property
    def leaves(self) -> list[torch.Tensor]:
        return [self.values[i] for i in self.places]

    @property
    def x(self) -> Any:
        return self.whole(self.leaves)

    def whole(self, leaves: Any) -> Any:
        """``x`` with these tensors."""
        values = list(self.values)
        for place, leaf in zip(self.places, leaves):
            values[place] = leaf
        return pytree.tree_unflatten(values, self.spec)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """As ``call_model`` gives it to a model."""
        x = self.x
        if isinstance(x, dict):
            return (), x
        return (x, {}) if type(x) is tuple else ((x,), {})

    def resized(self, sizes: Mapping[str, int]) -> list[torch.Tensor]:
        """The tensors at these sizes of their dynamic dimensions: cut, or repeated."""
        leaves = []
        for i, leaf in enumerate(self.leaves):
            for dim, name in self.dynamic.get(i, {}).items():
                size = sizes.get(name, self.sizes[name])
                leaf = leaf.index_select(dim, torch.arange(size, device=leaf.device) % leaf.shape[dim])
            leaves.append(leaf)
        return leaves

    def matches(self, x: Any) -> list[torch.Tensor]:
        """The tensors of another input of this structure, in the same order.

        Raises:
            ValueError: it has another structure.
        """
        x = dict(x) if isinstance(x, Mapping) else x
        if isinstance(x, dict) and isinstance(self.x, dict):
            x = {name: x[name] for name in self.x if name in x} | x  # in the example's order
        values, spec = pytree.tree_flatten(x)
        if spec != self.spec:
            raise ValueError(f"Inputs must be built like the example that was captured, {self.spec}; got {spec}.")
        return [values[i] for i in self.places]

    def dims_in_words(self, index: int) -> str:
        """``[batch, 1, 8, 8]``."""
        own = self.dynamic.get(index, {})
        return "[" + ", ".join(str(own.get(d, n)) for d, n in enumerate(self.leaves[index].shape)) + "]"


def _device_of(trainer):
    return next((p.device for model in trainer.model_list for p in model.parameters()), torch.device("cpu"))


def _first_input(trainer, device, dtype):
    loader = trainer.eval_loader if trainer.eval_loader is not None else trainer.train_loader
    loader = next(iter(loader.values())) if isinstance(loader, dict) else loader
    if loader is None:
        raise ValueError("An example of the input is needed, and the trainer has no loader to take one from. Give one input "
                         "with its batch dimension.")
    with rng_kept():
        batch = next(iter(make_batches(loader, 0, device).epoch(0)), None)
    if batch is None:
        raise ValueError("An example of the input is needed, and the loader gave no batch. Look at the size of its dataset.")
    return input_of(batch, dtype)


def _prepared(x, dtype):
    """Floating tensors and arrays in the dtype of the models, as ``predict`` and the default methods convert them."""
    if isinstance(x, list):
        x = tuple(x)
    if isinstance(x, Mapping):
        return x
    return pytree.tree_map(lambda v: input_of(torch.as_tensor(v) if isinstance(v, np.ndarray) else v, dtype), x)


def _names(trainer, x, paths, names):
    if names is not None:
        names = [names] if isinstance(names, str) else list(names)
        if len(names) != len(paths) or len(set(names)) != len(names):
            raise ValueError(f"input_names must be {len(paths)} different names, one for each tensor of the example; got "
                             f"{names!r}.")
        return names
    if isinstance(x, torch.Tensor):
        return ["input"]
    first = _parameters_of(trainer, len(x)) if type(x) is tuple else None
    found = []
    for path in paths:
        parts = [str(_key(part)) for part in path]
        if type(x) is tuple:
            parts[0] = first[int(parts[0])] if first else f"input{parts[0]}"
        found.append("_".join(parts))
    return found


def _parameters_of(trainer, count):
    """Of the first model's ``forward``, where it is what takes the inputs."""
    if trainer._overrides("inference"):
        return None
    names = [name for name, p in inspect.signature(unwrap(trainer.model_list[0]).forward).parameters.items()
             if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return names[:count] if len(names) >= count else None


def _key(part):
    return next(getattr(part, name) for name in ("key", "idx", "name") if hasattr(part, name))


def _joined(path):
    return "_".join(str(_key(part)) for part in path) or "input"


def _dimensions(dynamic, leaves, names):
    """``{index of a leaf: {dimension: name}}``."""
    if dynamic is None or dynamic is False:
        return {}
    if dynamic == "batch" or dynamic is True:
        length = next((leaf.shape[0] for leaf in leaves if leaf.dim()), None)
        return {i: {0: "batch"} for i, leaf in enumerate(leaves) if leaf.dim() and leaf.shape[0] == length}
    if not isinstance(dynamic, Mapping):
        raise ValueError("dynamic must be 'batch', {dimension: name}, {input: {dimension: name}} or None, for example "
                         f"{{0: 'batch', 2: 'height', 3: 'width'}}; got {dynamic!r}.")
    by_input = {}
    for key, value in dynamic.items():
        if isinstance(key, int) and isinstance(value, str):
            for i, leaf in enumerate(leaves):
                if key < leaf.dim():
                    by_input.setdefault(i, {})[key] = value
        elif key in names and isinstance(value, Mapping):
            by_input.setdefault(names.index(key), {}).update(value)
        else:
            raise ValueError(f"dynamic must be 'batch', {{dimension: name}} or {{input: {{dimension: name}}}}, where the "
                             f"inputs are {names}; got the entry {key!r}: {value!r}.")
    for i, dims in by_input.items():
        wrong = [dim for dim in dims if not isinstance(dim, int) or not 0 <= dim < leaves[i].dim()]
        if wrong:
            raise ValueError(f"dynamic names the dimensions 0 to {leaves[i].dim() - 1} of {names[i]!r}, whose example has "
                             f"the shape {list(leaves[i].shape)}; got {wrong[0]!r}.")
    return by_input


# --- capturing --------------------------------------------------------------------------------------------------------


def capture(module: nn.Module, example: Example, call: str) -> torch.export.ExportedProgram:
    """One graph of all that ``module`` does with the example.

    Raises:
        ValueError: it cannot be captured; the message says why, and at which line of your code where that is known.
    """
    args, kwargs = example.arguments()
    if not kwargs:
        return captured(module, args, kwargs, example, example.leaves, call)
    names, forward = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in kwargs], module.forward

    def by_name(**kwargs):
        return forward(**kwargs)

    by_name.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]  # torch.export cannot match **kwargs
    module.forward = by_name  # type: ignore[method-assign]
    try:
        return captured(module, args, kwargs, example, example.leaves, call)
    finally:
        del module.forward


def captured(module, args, kwargs, example, leaves, call):
    """The same with these arguments, which hold ``leaves``."""
    if not hasattr(torch.export.Dim, "DYNAMIC"):
        raise ImportError(f"{call} needs PyTorch 2.7 or newer; this is {torch.__version__}.")
    dims = {id(leaf): {dim: torch.export.Dim.DYNAMIC for dim in example.dynamic.get(i, {})}  # type: ignore[attr-defined]
            for i, leaf in enumerate(leaves)}
    shapes = pytree.tree_map(lambda leaf: dims.get(id(leaf)) or None, kwargs or (args,))
    try:
        with torch.no_grad(), quiet():
            shapes = shapes if example.dynamic else None
            return torch.export.export(module, args, kwargs, strict=False, dynamic_shapes=shapes)
    except Exception as error:
        why = _fixed_size(error, module, example) or reason(error)
        raise ValueError(f"{call} needs models that torch.export can capture, and these it cannot. {why}") from error


def _fixed_size(error, module, example):
    """Of a dimension that should vary, and that the code fixes."""
    found = re.search(r"L(\S+?)\.size\(\)\[(\d+)\].{0,40}?specialized it to be a constant \((\d+)\)", str(error))
    if found is None:
        return None
    dim, size = int(found[2]), found[3]
    index = re.search(r"\[(\d+)\]$", found[1])
    name = example.names[int(index[1])] if index and int(index[1]) < len(example.names) else example.names[0]
    recurrent = sorted({type(part).__name__ for part in module.modules() if isinstance(part, nn.RNNBase)})
    loop = (f" torch.export fixes the length of {' and '.join(recurrent)}, while the batch may vary: pad all inputs to one "
            "length, and leave that dimension out of dynamic.") if recurrent else ""
    return (f"Dimension {dim} of {name!r} should vary, and the code fixes it to {size}: by view({size}, -1), by a loop over "
            f"it, by int() of it. Use x.shape[{dim}] and -1 there, or leave it out of dynamic (dynamic=None fixes all "
            f"sizes).{loop}")


def reason(error: BaseException) -> str:
    """What torch says, cut to what a person can use, and what to do."""
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(_NOT_SHOWN)]
    own = next((line for line in reversed(lines) if line.startswith("File ") and "site-packages" not in line), "")
    shown = " ".join(dict.fromkeys([*lines[:2], own]))[:500]
    hint = next((hint for words, hint in _HINTS if any(word in text for word in words)), "")
    return f"torch says: {type(error).__name__}: {shown}{'.' * (not shown.endswith(('.', '. ')))}{hint}"


_NOT_SHOWN = ("To see more debug", "For more information", "For C++ stack", "Potential framework", "(Referenced from")
_HINTS = (
    (("data-dependent", "GuardOnDataDependent", "non-static index", "_local_scalar_dense", ".item()"),
     " forward() or inference() asks for the values of a tensor (an if or while on them, .item(), int(tensor)), which a "
     "graph cannot hold. Compute with tensors instead, for example by torch.where."),
    (("Constraints violated", "specializ", "marked as dynamic", "constraint"),
     " A size that should vary is fixed by the code. Use x.shape and -1 there, or name fewer dimensions in dynamic "
     "(dynamic=None fixes all sizes)."),
)


@contextmanager
def quiet() -> Iterator[None]:
    """The exporters of torch and torchao warn of their own parts, screens of it; errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


