"""An ONNX file that onnxruntime has run, and the comparison of its outputs with PyTorch's.

    written = write_onnx(module, example, "model.onnx", "to_onnx()", tolerance=1e-4)
    session = open_session("model.onnx", threads=1)
    outputs = run_session(session, {"input": tensor})

The file is written in a folder beside its place, run at several sizes, and moved to its place only then: a file that is
there was checked. Outputs are tensors in a row; how they were nested is known to the caller.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .one_module import Example, captured, quiet, reason

_BATCHES = (1, 2, 3, 9)
_LIMIT = 1_900_000_000  # bytes of weights in one file: protobuf ends at 2 GiB


@dataclass
class Difference:
    """Between the file and PyTorch, over all sizes that were tried."""

    absolute: float
    """The largest of ``|file - PyTorch|``."""
    relative: float
    """The same as a share of the largest ``|PyTorch|`` of that output."""
    sizes: list[dict[str, int]]
    """Of the dynamic dimensions, as they were tried."""


class _Flat(nn.Module):
    """Tensors in, tensors out, whatever ``inference`` takes and returns."""

    def __init__(self, module, example):
        super().__init__()
        self.module, self.example, self.names = module, example, None

    def forward(self, *leaves):
        out = call_captured(self.module, self.example.whole(leaves))
        with_paths, _ = pytree.tree_flatten_with_path(_plain(out))
        tensors = [(path, value) for path, value in with_paths if isinstance(value, torch.Tensor)]
        self.names = ["_".join(str(_key(part)) for part in path) for path, _ in tensors]
        return tuple(value for _, value in tensors)


def call_captured(module: nn.Module, x: Any) -> Any:
    """A module that takes arguments as ``OneModule`` does: of a dict the entries by name, of a tuple the parts."""
    return module(**x) if isinstance(x, dict) else module(*x) if type(x) is tuple else module(x)


def _plain(out):
    """Mappings of any kind, like the outputs of transformers, as dicts."""
    return dict(out) if isinstance(out, Mapping) else out


def _key(part):
    return next(getattr(part, name) for name in ("key", "idx", "name") if hasattr(part, name))


def write_onnx(module: nn.Module, example: Example, path: str | Path, call: str, tolerance: float | None,
               output_names: Any = None, opset: int | None = None,
               check_sizes: Mapping[str, Any] | None = None) -> tuple[list[str], Difference]:
    """Capture ``module``, translate it, run the file at several sizes, and move it to ``path``. Returns the names of the
    outputs, and how far they are from PyTorch's.

    Args:
        tolerance: the largest difference that is allowed, as a share of the largest output, or in itself where that is below
            1; None: any, as for quantized models, which round.
        check_sizes: ``{name of a dynamic dimension: sizes to try}``.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        ValueError: the model cannot be captured or translated, or the file computes something else.
    """
    require_onnx(call)
    flat = _Flat(module, example)
    leaves = example.leaves
    with torch.no_grad():
        once, again = flat(*leaves), flat(*leaves)
    _require_same_twice(once, again, call)
    program = captured(flat, tuple(leaves), {}, example, leaves, call)
    names = _output_names(output_names, flat.names, call)
    with beside(Path(path)) as temporary:
        _translate(program, example, names, temporary, opset, call)
        session = _session(temporary, call)
        taken = {value.name for value in session.get_inputs()}  # an input that nothing depends on is left out

        def run(leaves):
            return run_session(session, {name: leaf for name, leaf in zip(example.names, leaves) if name in taken})

        return names, _compare(flat, example, names, run, tolerance, check_sizes, call)


def _session(path, call):
    try:
        return open_session(path, call=call)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"{call} keeps a file that onnxruntime can run on the CPU, and this one it cannot, so it was not "
                         "kept. It has no bfloat16: export such a model after model.float(). onnxruntime says: "
                         f"{str(error)[:300]}") from error


def compared(module: nn.Module, example: Example, other: Any, output_names: Any, tolerance: float | None,
             check_sizes: Mapping[str, Any] | None, call: str) -> tuple[list[str], Difference]:
    """The same comparison of ``module`` with a function of the example's tensors."""
    flat = _Flat(module, example)
    with torch.no_grad():
        _require_same_twice(flat(*example.leaves), flat(*example.leaves), call)
    names = _output_names(output_names, flat.names, call)

    def run(leaves):
        with torch.no_grad():
            return [value.cpu() for value in pytree.tree_leaves(_plain(other(leaves))) if isinstance(value, torch.Tensor)]

    return names, _compare(flat, example, names, run, tolerance, check_sizes, call)


def require_onnx(call: str) -> None:
    missing = []
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            with quiet():
                __import__(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ImportError(f"{call} needs {', '.join(missing)}: pip install {' '.join(missing)}")


def _require_same_twice(once, again, call):
    if not once:
        raise ValueError(f"{call} needs an inference() that returns tensors; it returned none.")
    for one, other in zip(once, again):
        if one.shape != other.shape or not torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)):
            raise ValueError(f"{call} needs a model that gives the same output for the same input in eval mode, and this "
                             "one does not: something draws random numbers. F.dropout(x) drops in eval mode as well; write "
                             "F.dropout(x, training=self.training).")


def _output_names(given, found, call):
    if given is not None:
        given = [given] if isinstance(given, str) else list(given)
        if len(given) != len(found) or len(set(given)) != len(given):
            raise ValueError(f"{call}: output_names must be {len(found)} different names, as many as inference() returns "
                             f"tensors; got {given!r}.")
        return given
    return ["output"] if found == [""] else [f"output{name}" if name[:1].isdigit() else name for name in found]


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A place in a folder beside ``path``, whose files are moved there at the end; after an error nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield folder / path.name
        for part in sorted(folder.iterdir(), key=lambda part: part.name == path.name):  # the file that people look for last
            os.replace(part, path.parent / part.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)




def _translate(program, example, output_names, path, opset, call):
    # names are given anew below: an input may be called like an output, or like a node
    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    inputs = _distinct(example.names, output_names)
    try:
        with torch.no_grad(), quiet():
            torch.onnx.export(program, (), str(path), dynamo=True, input_names=inputs, output_names=output_names,
                              opset_version=opset, external_data=size > _LIMIT, verbose=False)
    except Exception as error:
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(f"{call} needs operations that ONNX has, and the translation failed. {reason(cause)}") from error
    example.names = inputs
    _name_dimensions(path, example, inputs)


def _distinct(names, taken):
    return [f"{name}_in" if name in taken else name for name in names]


def _name_dimensions(path, example, names):
    """"batch" in the place of "s77"; the exporter numbers the sizes."""
    import onnx  # type: ignore  # optional

    model = onnx.load(str(path), load_external_data=False)
    symbols = {}
    for value in model.graph.input:
        dims = example.dynamic.get(names.index(value.name), {}) if value.name in names else {}
        for dim, name in dims.items():
            symbol = value.type.tensor_type.shape.dim[dim].dim_param
            if symbol:
                symbols.setdefault(symbol, name)
    for value in itertools.chain(model.graph.input, model.graph.output, model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda found: symbols.get(found[0], found[0]), dim.dim_param)
    onnx.save(model, str(path))


def _compare(flat, example, output_names, run, tolerance, check_sizes, call):
    found = Difference(0.0, 0.0, [])
    for sizes in _sizes_to_try(example, check_sizes):
        leaves = example.resized(sizes)
        try:
            with torch.no_grad():
                expected = flat(*leaves)
        except Exception:
            if sizes == example.sizes or check_sizes and set(sizes.items()) & {(n, s) for n, own in check_sizes.items()
                                                                               for s in own}:
                raise
            continue  # the model itself does not take this size
        at = ", ".join(f"{name} {size}" for name, size in sizes.items()) or "the example's size"
        try:
            outputs = run(leaves)
        except Exception as error:
            raise ValueError(f"{call}: the file runs at the example's size only, and fails at {at}, so it was not kept. "
                             f"The reason: {str(error)[:300]}") from error
        for name, one, other in zip(output_names, outputs, expected):
            _note(found, name, one, other.cpu(), tolerance, at, call)
        found.sizes.append(dict(sizes))
    return found


def _sizes_to_try(example, check_sizes):
    """Every dynamic dimension at sizes of its own, the others as in the example."""
    check_sizes = dict(check_sizes or {})
    unknown = [name for name in check_sizes if name not in example.sizes]
    if unknown:
        raise ValueError(f"check_sizes names dynamic dimensions, which are {list(example.sizes) or 'none here'}; got "
                         f"{unknown[0]!r}.")
    tried = [dict(example.sizes)]
    for name, size in example.sizes.items():
        own = check_sizes.get(name, _BATCHES if name == "batch" else (2 * size, max(size // 2, 1)))
        tried += [example.sizes | {name: int(n)} for n in own]
    grown = {name: int(check_sizes.get(name, (2 * size,))[0]) for name, size in example.sizes.items()}
    tried.append(grown)  # all of them at once
    return [sizes for i, sizes in enumerate(tried) if sizes not in tried[:i]]


def _note(found, name, one, other, tolerance, at, call):
    if one.shape != other.shape:
        raise ValueError(f"{call}: at {at} the file gives {name!r} with the shape {list(one.shape)}, and PyTorch gives "
                         f"{list(other.shape)}, so it was not kept. Look for squeeze() without a dimension, or for a size "
                         "that Python computes.")
    if not other.numel():
        return
    one, other = one.double(), other.double()
    gap = (one - other).abs()
    gap[(one == other) | one.isnan() & other.isnan()] = 0.0  # infinities, too
    largest = other[other.isfinite()].abs().max().item() if other.isfinite().any() else 0.0
    absolute = gap.max().item()
    relative = absolute / largest if largest else absolute
    if not absolute < float("inf") or tolerance is not None and absolute > tolerance * max(1.0, largest):
        raise ValueError(f"{call}: at {at} the file's {name!r} differs from PyTorch's by {absolute:.3g}, where its largest "
                         f"value is {largest:.3g}, so it was not kept. Up to tolerance={tolerance:g} of that are allowed.")
    found.absolute, found.relative = max(found.absolute, absolute), max(found.relative, relative)


def open_session(path: str | Path, threads: int | None = None, call: str = "onnxruntime") -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU, by so many threads; None: as many as it likes."""
    try:
        import onnxruntime  # type: ignore  # optional
    except ImportError:
        raise ImportError(f"{call} needs onnxruntime: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads is not None:
        options.intra_op_num_threads = options.inter_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_session(session: Any, feed: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Outputs in the file's order, on the CPU."""
    arrays = {name: leaf.detach().cpu().contiguous().numpy() for name, leaf in feed.items()}
    return [torch.from_numpy(array.copy()) for array in session.run(None, arrays)]


def shapes_in(path: str | Path) -> dict[str, list[int | str]]:
    """``{input of a file: [sizes, or the names of those that vary]}``."""
    import onnx  # type: ignore  # optional

    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {value.name for value in graph.initializer}
    return {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in graph.input if value.name not in weights}


def operators(path: str | Path) -> list[str]:
    """The kinds of nodes in a file, in alphabetical order."""
    import onnx  # type: ignore  # optional

    return sorted({node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node})


