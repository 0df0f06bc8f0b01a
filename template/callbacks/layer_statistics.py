"""What flows through each layer now and then: mean, std, share of zeros and histogram of its outputs and their gradients.

    trainer.callbacks = [LayerStatistics(every=100)]

TensorBoard gets ``output_mean/<layer>``, ``output_std/…``, ``output_zeros/…`` and the histogram ``outputs/…``, and the same
of ``gradient_…``: a layer that is dead has only zeros, and gradients that vanish shrink from layer to layer. They are of the
whole update: all samples of its batches, and of all processes.

A layer is a module without parts. Its gradients are those of the loss with respect to its output, unscaled. Hooks are in the
models only during an update that is looked at; all others cost nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from ..data.nested import first_tensor
from ..hooks import Callback

if TYPE_CHECKING:
    from ..template import TemplateModel

_BINS = 64  # of a histogram, between the smallest and the largest value of the first batch
_SUMS = ("count", "sum", "squares", "zeros", "finite")


class LayerStatistics(Callback):
    """Looks at one update in ``every``.

    Args:
        outputs: look at the outputs.
        gradients: look at their gradients.
        every: updates from one look to the next; the first one is update 0.
        histograms: write histograms too.

    Raises:
        ValueError: ``every`` is not a whole number of at least 1, or there is nothing to look at. When training starts: a
            model is compiled, which would leave the hooks out.
    """

    def __init__(self, outputs: bool = True, gradients: bool = True, every: int = 100, histograms: bool = True) -> None:
        if type(every) is not int or every < 1:
            raise ValueError(f"every must be a whole number of at least 1, got {every!r}.")
        if not (outputs or gradients):
            raise ValueError("LayerStatistics needs outputs=True or gradients=True; got False for both.")
        self.outputs = outputs
        self.gradients = gradients
        self.every = every
        self.histograms = histograms
        self.values: dict[str, dict[str, dict[str, float]]] = {}
        """Of the last look: ``{layer: {"output": {"mean": …, "std": …, "zeros": …}, "gradient": {…}}}``."""
        self._handles: list[Any] = []
        self._found: dict[tuple[str, str], Any] = {}  # by layer and kind, on the device
        self._waiting: Any = None                     # (the update, what was found in it)
        self._scale: Any = None                       # of the loss under fp16, a tensor

    # --- events ---------------------------------------------------------------------------------------------------

    def on_train_start(self, model: TemplateModel) -> None:
        self._remove()  # of an update that was cut short
        self._found = {}
        refuse_compiled(model)

    def on_batch(self, model: TemplateModel, batch: Any) -> None:
        if model.global_step % self.every or self._handles:
            return
        scaler = model.stepper.scaler
        self._scale = scaler.get_scale() if scaler.is_enabled() else None
        for index, part in enumerate(model.model_list):
            for name, layer in _layers(part, f"{index}." if len(model.model_list) > 1 else ""):
                self._handles.append(layer.register_forward_hook(self._hook(name)))

    def on_after_step(self, model: TemplateModel) -> None:
        if self._handles:
            self._remove()
            self._waiting, self._found = (model.global_step - 1, self._found), {}

    def on_log(self, model: TemplateModel, values: dict[str, float]) -> None:
        """The numbers come to the host where everything waits for the device anyway."""
        if self._waiting is None:
            return
        (step, found), self._waiting = self._waiting, None
        looks = _on_host(found, model.world)
        self.values = {}
        for (layer, kind), look in looks.items():
            self.values.setdefault(layer, {})[kind] = {name: look[name] for name in ("mean", "std", "zeros")}
        if model.is_main and model.writer is not None:
            self._write(model.writer, looks, step)

    def on_exit(self, model: TemplateModel) -> None:
        self._remove()
        self._found = {}

    # --- hooks ----------------------------------------------------------------------------------------------------

    def _remove(self):
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, name):
        def look(layer, inputs, output):
            tensor = first_tensor([output])
            if tensor is None or not tensor.is_floating_point():
                return
            if self.outputs:
                self._add(name, "output", tensor.detach())
            if self.gradients and tensor.requires_grad:
                self._handles.append(tensor.register_hook(lambda gradient: self._add(name, "gradient", gradient.detach())))

        return look

    def _add(self, layer, kind, values):
        """Sums over the values so far; nothing waits for the device."""
        values = values.to(torch.float32).flatten()
        if not values.numel():
            return
        if kind == "gradient" and self._scale is not None:
            values = values / self._scale
        is_finite = values.isfinite()
        finite = torch.where(is_finite, values, 0.0)
        exact = torch.float32 if values.device.type == "mps" else torch.float64
        sums = torch.stack([torch.full((), values.numel(), dtype=exact, device=values.device), finite.sum(dtype=exact),
                            finite.to(exact).square().sum(), (values == 0).sum().to(exact), is_finite.sum().to(exact)])
        low, high = finite.min(), finite.max()
        old = self._found.get((layer, kind))
        if old is None:
            bins = torch.zeros(_BINS, dtype=torch.int64, device=values.device)
            old = self._found[layer, kind] = {"sums": torch.zeros_like(sums), "low": low, "high": high, "edges": (low, high),
                                              "bins": bins}
        old["sums"] = old["sums"] + sums
        old["low"], old["high"] = torch.minimum(old["low"], low), torch.maximum(old["high"], high)
        if self.histograms:
            first, last = old["edges"]
            width = ((last - first) / _BINS).clamp(min=1e-30)
            place = ((finite - first) / width).long().clamp(0, _BINS - 1)
            old["bins"] = old["bins"].index_add(0, place, is_finite.long())

    # --- what is written --------------------------------------------------------------------------------------------

    def _write(self, writer, looks, step):
        for (layer, kind), look in looks.items():
            name = layer.replace(".", "/")
            for part in ("mean", "std", "zeros"):
                writer.add_scalar(f"{kind}_{part}/{name}", look[part], step)
            if self.histograms and look["bins"] is not None and hasattr(writer, "add_histogram_raw"):
                writer.add_histogram_raw(f"{kind}s/{name}", look["low"], look["high"], int(look["finite"]), look["sum"],
                                         look["squares"], look["limits"], look["bins"], step)


def refuse_compiled(trainer: TemplateModel) -> None:
    """Raises a ValueError where a part of the models is compiled: torch leaves hooks out that come later."""
    compiled = ["model"] if trainer.compile else []
    for model in trainer.model_list:
        for part in model.modules():
            # the outermost call is replaced in several processes too, where nothing is compiled
            has_own_call = getattr(part, "_compiled_call_impl", None) is not None
            if hasattr(part, "_orig_mod") or has_own_call and (part is not model or trainer.world.size == 1):
                compiled.append(type(part).__name__)
    if compiled:
        raise ValueError(f"LayerStatistics looks at layers by hooks, which a compiled {compiled[0]} does not call. Set "
                         "compile = False for a run that you want to look into, or leave the callback out.")


def _layers(model, prefix):
    """``(path, module)`` of the modules without parts; scripted ones count as one."""
    parts = dict(model.named_modules())
    scripted = tuple(f"{name}." if name else "" for name, part in parts.items() if isinstance(part, torch.jit.ScriptModule))
    for name, part in parts.items():
        is_scripted = isinstance(part, torch.jit.ScriptModule)
        is_inside = any(name.startswith(outer) and name != outer.rstrip(".") for outer in scripted)
        if (is_scripted or not any(True for _ in part.children())) and not is_inside:
            yield prefix + (name or type(part).__name__), part


def _on_host(found, world):
    """``{(layer, kind): {"mean": …, "std": …, "zeros": …, …}}`` of all ranks. Each rank's gradients are of its own share of
    the loss: the mean over the ranks is what one process would see, so they are divided by their number."""
    own = {key: {"sums": dict(zip(_SUMS, part["sums"].tolist())), "low": part["low"].item(), "high": part["high"].item(),
                 "edges": [edge.item() for edge in part["edges"]], "bins": part["bins"].tolist()}
           for key, part in found.items()}
    if world.size > 1:
        for (_, kind), part in own.items():
            if kind == "gradient":
                _divide(part, world.size)
    ranks = world.gather(own)
    return {key: _joined([part[key] for part in ranks if key in part])
            for key in dict.fromkeys(key for part in ranks for key in part)}


def _divide(part, number):
    part["sums"]["sum"] /= number
    part["sums"]["squares"] /= number**2
    part["low"], part["high"] = part["low"] / number, part["high"] / number
    part["edges"] = [edge / number for edge in part["edges"]]


def _joined(parts):
    sums = {name: sum(part["sums"][name] for part in parts) for name in _SUMS}
    count = max(sums["finite"], 1)
    mean = sums["sum"] / count
    low, high = min(part["low"] for part in parts), max(part["high"] for part in parts)
    width = (high - low) / _BINS
    bins = [0.0] * _BINS
    for part in parts:  # whose own bins lie elsewhere
        first, last = part["edges"]
        for number, amount in enumerate(part["bins"]):
            middle = first + (number + 0.5) * (last - first) / _BINS
            bins[min(max(int((middle - low) / width) if width else 0, 0), _BINS - 1)] += amount
    std = math.sqrt(max(sums["squares"] / count - mean**2, 0.0))
    return {"mean": mean, "std": std, "zeros": sums["zeros"] / sums["count"],
            "finite": sums["finite"], "sum": sums["sum"], "squares": sums["squares"], "low": low, "high": high,
            "bins": bins if width and sum(bins) else None, "limits": [low + (number + 1) * width for number in range(_BINS)]}
