"""A trained model as a file for other programs: ONNX, ``torch.export``, safetensors, a TensorRT engine.

    to_onnx(trainer, None, "model.onnx")                       # an example is taken from eval_loader; the batch may vary
    to_torch_export(trainer, None, "model.pt2")                # torch.export.load("model.pt2").module()(x)
    to_safetensors(trainer, "model.safetensors")               # weights alone
    to_tensorrt("model.onnx", "model.engine", sizes={"batch": (1, 8, 32)})   # needs NVIDIA's trtexec

The whole ``inference`` is exported, several models and your own code included, in eval mode and without mixed precision. An
ONNX file was run by onnxruntime at several sizes before it is in its place; after an error no file is left, and a file that
was there is still there. The trainer stays as it was, and needs no ``check_init``. Pre- and post-processing that is not in
``inference`` is not in the file.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoint.state import unwrap
from ..output.console import number
from ..run.export.one_module import Example, capture, ready_to_capture
from ..run.export.onnx_file import beside, call_captured, compared, operators, require_onnx, shapes_in, write_onnx

if TYPE_CHECKING:
    from ..template import TemplateModel


@dataclass
class Exported:
    """A file that was written and checked."""

    path: str
    weights: str
    """Which weights are in it, in words."""
    inputs: dict[str, str]
    """``{name: "[batch, 1, 8, 8] float32"}``."""
    outputs: list[str]
    largest_difference: float
    """From PyTorch, over all sizes that were tried."""
    relative_difference: float
    """The same as a share of the largest value of that output."""
    sizes: list[dict[str, int]]
    """Of the dimensions that vary, as they were tried."""


def to_onnx(trainer: TemplateModel, example: Any, path: str | Path, dynamic: Any = "batch", weights: str = "now",
            input_names: Any = None, output_names: Any = None, opset: int | None = None, tolerance: float = 1e-4,
            check_sizes: Mapping[str, Sequence[int]] | None = None) -> Exported | None:
    """Write ``inference`` as an ONNX file, by PyTorch's newer exporter, and check it with onnxruntime.

    Args:
        example: an input as ``inference`` takes it, with its batch dimension: tensor, array, tuple of several inputs, dict
            or a nesting. None: from the first batch of ``eval_loader``, else of ``train_loader``.
        dynamic: which sizes may vary. ``"batch"``: the first dimension of every input that has the batch's length there;
            ``{0: "batch", 2: "height", 3: "width"}`` for every input, or ``{input: {0: "batch"}}``; None: no size.
        weights: "now": those that evaluations use, averaged where EMA or the like averages; "training": without averages;
            "best", "last" or the path of a checkpoint.
        input_names: None: keys of a dict, parameters of ``forward``, or "input".
        output_names: None: keys of a dict, or "output", "output0", ….
        opset: of ONNX, 18 or newer; None: what PyTorch writes.
        tolerance: the largest difference that is allowed, as a share of the largest output (of 1 where that is smaller).
        check_sizes: ``{"height": [32, 48]}``, sizes to try beside those of the example; None: batches of 1, 2, 3 and 9, and
            twice and half of any other size.

    Returns:
        What was written; None on ranks other than 0.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        ValueError: the models cannot be captured or translated, or the file computes something else. No file is left.
    """
    call = "to_onnx()"
    if opset is not None and (not isinstance(opset, int) or opset < 18):
        raise ValueError(f"opset must be 18 or newer, which PyTorch's exporter writes; got {opset!r}.")
    require_onnx(call)
    if not trainer.is_main:
        return None
    with ready_to_capture(trainer, weights, call) as source:
        parts = Example(trainer, example, dynamic, input_names)
        names, found = write_onnx(source.module, parts, path, call, tolerance, output_names, opset, check_sizes)
    exported = _exported(path, source, parts, names, found)
    _tell(trainer, "ONNX", exported, parts)
    return exported


def to_torch_export(trainer: TemplateModel, example: Any, path: str | Path, dynamic: Any = "batch", weights: str = "now",
                    tolerance: float = 1e-4, check_sizes: Mapping[str, Sequence[int]] | None = None) -> Exported | None:
    """Write ``inference`` as a ``.pt2`` file: ``torch.export.load(path).module()`` computes without any of your code.

    It takes what the models take: of a dict the entries by name, of a tuple the parts. The file is loaded and compared at
    several sizes before it is in its place. It runs on the device that the models are on. Arguments as for ``to_onnx``.

    Raises:
        ValueError: the models cannot be captured, or the file computes something else. No file is left.
    """
    call = "to_torch_export()"
    if not trainer.is_main:
        return None
    with ready_to_capture(trainer, weights, call) as source, beside(Path(path)) as temporary:
        parts = Example(trainer, example, dynamic)
        program = capture(source.module, parts, call)
        torch.export.save(program, str(temporary))
        loaded = torch.export.load(str(temporary)).module()
        names, found = compared(source.module, parts, lambda leaves: call_captured(loaded, parts.whole(leaves)), None,
                                tolerance, check_sizes, call)
    exported = _exported(path, source, parts, names, found)
    _tell(trainer, "torch.export", exported, parts)
    return exported


def to_safetensors(trainer: TemplateModel, path: str | Path, weights: str = "now") -> Exported | None:
    """Write the weights alone, under the names of ``model.state_dict()``; with several models "model0." stands before them.

    A tensor that a model uses under two names is stored once, as ``safetensors.torch.load_model(model, path)`` expects it.

    Raises:
        ImportError: safetensors is missing.
    """
    call = "to_safetensors()"
    try:
        from safetensors.torch import load_file, save_file  # type: ignore  # optional
    except ImportError:
        raise ImportError(f"{call} needs safetensors: pip install safetensors") from None
    if not trainer.is_main:
        return None
    with ready_to_capture(trainer, weights, call) as source, beside(Path(path)) as temporary:
        tensors, shared = _tensors(trainer)
        save_file(tensors, str(temporary), metadata={"format": "pt", **shared})
        loaded = load_file(str(temporary))
        for name, tensor in tensors.items():
            assert torch.equal(torch.nan_to_num(loaded[name]), torch.nan_to_num(tensor)), name
    if trainer.is_main:
        once = "".join(f" {name} is stored as {kept}." for name, kept in shared.items())
        print(f"safetensors: {path}, {len(tensors)} tensors, {_size(path)}; weights: {source.weights}.{once}")
    return Exported(str(path), source.weights, {}, list(tensors), 0.0, 0.0, [])


def _tensors(trainer):
    """``({name: tensor on the CPU}, {name that is left out: name of the same tensor})``."""
    models = [unwrap(model) for model in trainer.model_list]
    tensors, shared, seen = {}, {}, {}
    for i, model in enumerate(models):
        for name, tensor in model.state_dict().items():
            if not isinstance(tensor, torch.Tensor):
                continue  # get_extra_state of somebody's module; there is no place for it
            name = name if len(models) == 1 else f"model{i}.{name}"
            place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
            if tensor.numel() and place in seen:
                shared[name] = seen[place]
            else:
                seen[place] = name
                tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, shared


def _exported(path, source, parts, names, found):
    inputs = {name: f"{parts.dims_in_words(i)} {str(leaf.dtype).removeprefix('torch.')}"
              for i, (name, leaf) in enumerate(zip(parts.names, parts.leaves))}
    return Exported(str(path), source.weights, inputs, names, found.absolute, found.relative, found.sizes)


def _tell(trainer, kind, exported, parts):
    inputs = ", ".join(f"{name} {shape}" for name, shape in exported.inputs.items())
    print(f"{kind}: {exported.path}, {_size(exported.path)}; weights: {exported.weights}")
    print(f"  {inputs} -> {', '.join(exported.outputs)}")
    if parts.fixed:
        print(f"  fixed, because they are no tensors: {', '.join(f'{name}={v!r}' for name, v in parts.fixed.items())}")
    tried = {name: sorted({sizes[name] for sizes in exported.sizes}) for name in (exported.sizes or [{}])[0]}
    at = "; ".join(f"{name} {', '.join(map(str, own))}" for name, own in tried.items()) or "the example's size"
    print(f"  largest difference from PyTorch: {number(exported.largest_difference)} "
          f"({number(exported.relative_difference)} of the largest output), at {at}")


def _size(path):
    return f"{Path(path).stat().st_size / 1e6:.2f} MB"


# --- TensorRT ---------------------------------------------------------------------------------------------------------

_PLACES = ("/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec", "/usr/local/tensorrt/bin/trtexec")
_TAIL = 20  # lines of trtexec's output in a message


def to_tensorrt(onnx: str | Path, engine: str | Path, sizes: Mapping[str, Sequence[int]] | None = None,
                precision: str | None = None, workspace_mb: int | None = None, trtexec: str | Path | None = None,
                options: Sequence[str] = (), timeout_seconds: float | None = None) -> str:
    """Build a TensorRT engine of an ONNX file by NVIDIA's ``trtexec``, which has to be installed, on the GPU it will run on.

    Flags follow the version that is found: TensorRT 8 and 10 are told the precisions they may use; TensorRT 11 takes them
    from the file. A quantized file (with Q/DQ nodes, as ``ptq`` and ``qat`` write it) needs no calibration in any of them.

    Args:
        onnx: the file, from ``to_onnx``, ``ptq`` or ``qat``.
        engine: where the engine goes; it is there only when the build succeeded.
        sizes: ``{name of a dynamic dimension: (smallest, best, largest)}``, for example ``{"batch": (1, 8, 32)}``.
        precision: None: float32, and int8 where the file is quantized; "fp16": float16 is allowed as well (TensorRT 8, 10).
        workspace_mb: memory that the build may use.
        trtexec: the program; None: the one on the PATH, or where NVIDIA's packages put it.
        options: more flags, as trtexec takes them: ``["--builderOptimizationLevel=5"]``.

    Returns:
        The path of the engine.

    Raises:
        FileNotFoundError: there is no trtexec, or no such ONNX file.
        ValueError: an argument does not suit the file or the version.
        RuntimeError: the build failed; the message has the end of trtexec's output.
    """
    require_onnx("to_tensorrt()")
    if not Path(onnx).is_file():
        raise FileNotFoundError(f"to_tensorrt() reads an ONNX file, and there is no {str(onnx)!r}. to_onnx() writes one.")
    if precision not in (None, "fp16"):
        more = (" int8 comes with the file: ptq() and qat() in tools/quantize.py write quantized ones. Without it, trtexec "
                "--int8 invents ranges." if precision == "int8" else "")
        raise ValueError(f"precision must be None or 'fp16'; got {precision!r}.{more}")
    shapes, program = _shape_flags(onnx, sizes or {}), find_trtexec(trtexec)
    version, text = _version(program)
    is_quantized = bool({"QuantizeLinear", "DequantizeLinear"} & set(operators(onnx)))
    flags = [*shapes, *_precision_flags(version, precision, is_quantized), *_other_flags(version, workspace_mb), *options]
    with beside(Path(engine)) as temporary:
        command = [program, f"--onnx={onnx}", f"--saveEngine={temporary}", *flags]
        print(f"TensorRT {text}: {' '.join([os.path.basename(program), *command[1:2], *flags])}")
        _build(command, temporary, timeout_seconds)
    print(f"TensorRT engine: {engine}, {_size(engine)}")
    return str(engine)


def find_trtexec(given: str | Path | None = None) -> str:
    """The program that ``to_tensorrt`` runs.

    Raises:
        FileNotFoundError: there is none; the message says where it comes from.
    """
    if given is not None:
        found = shutil.which(str(given))
        if found is None:
            raise FileNotFoundError(f"trtexec must be a program that can be run; {str(given)!r} is none.")
        return found
    found = shutil.which("trtexec") or next((place for place in _PLACES if os.access(place, os.X_OK)), None)
    if found is None:
        raise FileNotFoundError(
            "to_tensorrt() needs trtexec, and there is none on the PATH nor at /usr/src/tensorrt/bin. It comes with "
            "NVIDIA's TensorRT as a deb, rpm, tar or zip package (https://developer.nvidia.com/tensorrt) and in the "
            "container nvcr.io/nvidia/tensorrt; `pip install tensorrt` does not bring it. Then put it on the PATH, or give "
            "trtexec='/path/to/trtexec'.")
    return found


def _version(program):
    """``(major, text)`` of the banner that trtexec always prints: ``[TensorRT v8601]`` is 8.6.1, ``v101300`` is 10.13.0."""
    output = _run([program, "--help"], 120)[1]
    found = re.search(r"TensorRT[ .]v?(\d+(?:\.\d+)+|\d{4,6})\b", output)
    if found is None:
        raise RuntimeError(f"{program} --help names no version of TensorRT. The end of its output:\n{_tail(output)}")
    digits = found[1]
    if "." in digits:
        parts = digits.split(".")
    elif len(digits) >= 5:
        parts = [digits[:-4], digits[-4:-2], digits[-2:]]
    else:
        parts = [digits[0], digits[1], digits[2:]]
    numbers = [int(part) for part in parts]
    if numbers[0] < 8:
        raise ValueError(f"to_tensorrt() knows TensorRT 8 and newer; {program} is {'.'.join(map(str, numbers))}.")
    return numbers[0], ".".join(map(str, numbers))


def _precision_flags(major, precision, is_quantized):
    """TensorRT 11 is strongly typed: types are those of the file, and ``--fp16 --int8 --best --calib`` are gone."""
    if major >= 11:
        if precision is not None:
            raise ValueError("TensorRT 11 takes the types from the ONNX file and has no --fp16 any more; got "
                             f"precision={precision!r}. Leave it out, or convert the file to float16 first, for example by "
                             "NVIDIA's modelopt.onnx.autocast.")
        return []
    return ["--fp16"] * (precision == "fp16") + ["--int8"] * is_quantized


def _other_flags(major, workspace_mb):
    return [f"--memPoolSize=workspace:{workspace_mb}"] * (workspace_mb is not None) + ["--skipInference"] * (major >= 10)


def _shape_flags(path, sizes):
    inputs = shapes_in(path)
    names = list(dict.fromkeys(dim for dims in inputs.values() for dim in dims if isinstance(dim, str)))
    if set(names) != set(sizes):
        raise ValueError(f"sizes must give (smallest, best, largest) of each dimension that varies in {path}: "
                         f"{names or 'none'}; got {dict(sizes)!r}.")
    for name, own in sizes.items():
        if len(own) != 3 or not all(isinstance(n, int) and n > 0 for n in own) or list(own) != sorted(own):
            raise ValueError(f"sizes must give three rising numbers for {name!r}, for example (1, 8, 32); got {own!r}.")
    if not names:
        return []
    return [f"--{which}Shapes=" + ",".join(
        f"{name}:" + "x".join(str(sizes[dim][i] if isinstance(dim, str) else dim) for dim in dims)
        for name, dims in inputs.items() if any(isinstance(dim, str) for dim in dims))
        for i, which in enumerate(("min", "opt", "max"))]


def _build(command, temporary, timeout_seconds):
    code, output = _run(command, timeout_seconds)
    if code == 0 and temporary.is_file():
        return
    why = f"ended with {code}" if code else "wrote no engine"
    hint = next((hint for words, hint in _HINTS if words in output), "")
    raise RuntimeError(f"trtexec {why}, so there is no engine.{hint} Its command: {' '.join(command)}\nThe end of its "
                       f"output:\n{_tail(output)}")


_HINTS = (
    ("out of memory", " The GPU's memory was not enough: give smaller sizes, or workspace_mb."),
    ("Unknown option", " This trtexec does not know one of the flags."),
    ("No importer registered", " TensorRT does not know an operation of the file."),
    ("CUDA initialization failure", " There is no GPU that trtexec can use, or its driver is too old."),
)


def _run(command, timeout_seconds):
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                              timeout=timeout_seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"trtexec did not end within {timeout_seconds} seconds, and was ended. The end of its output:\n"
                           f"{_tail((error.output or b'').decode(errors='replace'))}") from None
    return done.returncode, done.stdout.decode(errors="replace")


def _tail(output):
    return "\n".join(output.strip().splitlines()[-_TAIL:])
