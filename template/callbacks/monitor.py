"""How large gradients, weights and updates are, at each log point.

    trainer.callbacks = [Monitor()]

TensorBoard gets ``grad_norm/…``, ``weight_norm/…`` and ``update_ratio/…``, each for every parameter group and in total: the
L2 norm of the gradients (complete, unscaled, before the clipping), of the weights before the update, and the norm of what
the update changed as a share of the weights' norm. A healthy ratio is often about 1e-3.

Source: Karpathy, "makemore part 3", 2022, for the ratio. Only the updates at log points are looked at, and the numbers come
to the host when the losses do: nothing else waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from ..hooks import Callback
from ..output.event_writer import add_scalars
from ..update.lr_scheduler import rates_by_name

if TYPE_CHECKING:
    from ..template import TemplateModel

_KINDS = ("grad_norm", "weight_norm", "update_ratio")


class Monitor(Callback):
    """Norms of gradients and weights, and the ratio of update to weights.

    Args:
        ratio: also the weight norm and the update-to-weight ratio, for which the weights are copied before the update that
            is looked at.

    An update that was skipped has the ratio 0. Optimizers that ``train_step`` steps itself, with ``update(i, step=False)``,
    are not seen.
    """

    def __init__(self, ratio: bool = True) -> None:
        self.ratio = ratio
        self.values: dict[str, float] = {}
        """Of the last log point: ``{"grad_norm/total": …, "update_ratio/head": …}``."""
        self._begin()

    def _begin(self):
        self._gradients: dict[str, Any] = {}  # norms by name of the parameter group, on the device
        self._before: dict[str, Any] = {}     # (parameters, their copies) by name
        self._waiting: Any = None             # (tags, a tensor of values on the host, when it is filled)

    def on_train_start(self, model: TemplateModel) -> None:
        self._begin()  # of an update that was cut short

    def reads_gradients(self, model: TemplateModel) -> bool:
        return not (model.global_step + 1) % model.log_per_step

    def on_before_step(self, model: TemplateModel) -> None:
        """Once an update; where ``train_step`` updates optimizers one by one, once for each of them."""
        if (model.global_step + 1) % model.log_per_step:
            return
        with torch.no_grad():
            for name, parameters in _groups(model):
                gradients = [_values(p.grad) for p in parameters if p.grad is not None]
                if not gradients:
                    continue
                self._gradients[name] = _norm(gradients)
                if self.ratio and name not in self._before:
                    self._before[name] = parameters, [p.detach().clone() for p in parameters]

    def on_after_step(self, model: TemplateModel) -> None:
        if not self._gradients:
            return
        with torch.no_grad():
            found = {"grad_norm": self._gradients}
            if self.ratio:
                weights = {name: _norm(copies) for name, (_, copies) in self._before.items()}
                changes = {name: _norm(_differences(*pair)) for name, pair in self._before.items()}
                found |= {"weight_norm": weights, "change": changes}
            for norms in found.values():
                norms["total"] = _norm([norm.detach() for norm in norms.values()])
            if self.ratio:
                changes = found.pop("change")
                found["update_ratio"] = {name: norm / weights[name].clamp(min=1e-30) for name, norm in changes.items()}
        tags = [f"{kind}/{name}" for kind, norms in found.items() for name in norms]
        values = torch.stack([norm.to(model.device) for norms in found.values() for norm in norms.values()])
        self._begin()
        self._waiting = tags, *_on_the_way(values)

    def on_log(self, model: TemplateModel, values: dict[str, float]) -> None:
        if self._waiting is None:  # the rest of an epoch that is no whole window
            return
        (tags, numbers, arrived), self._waiting = self._waiting, None
        if arrived is not None:
            arrived.synchronize()  # it has: the losses came behind it
        self.values = dict(zip(tags, numbers.tolist()))
        if model.is_main and model.writer is not None:
            add_scalars(model.writer, self.values, model.global_step)


def _groups(model: TemplateModel) -> Iterator[tuple[str, list[Any]]]:
    """``(name, parameters)`` of each parameter group, called as its learning rate is."""
    groups = [group for optimizer in model.optimizer_list for group in optimizer.param_groups]
    for name, group in zip(rates_by_name(model.optimizer_list), groups):
        yield name if name != "total" else "group total", group["params"]


def _values(gradient):
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _norm(tensors):
    """L2 norm over all of them, in float32, on the device. Weights that are divided among the ranks count whole."""
    by_kind: dict[Any, list[Any]] = {}
    for tensor in tensors:
        by_kind.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    norms = [norm for (_, dtype), group in by_kind.items()
             for norm in torch._foreach_norm(group, 2, **({"dtype": torch.float32} if dtype.itemsize < 4 else {}))]
    if hasattr(norms[0], "full_tensor"):  # of FSDP2
        norms = [norm.full_tensor() for norm in norms]
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms]))


def _differences(parameters, copies):
    after = [p.detach() for p in parameters]
    return torch._foreach_sub(after, copies)


def _on_the_way(values):
    """``(the values on the host, an event that says when they are there)``; the event is None where they are there now."""
    if not values.is_cuda:
        return values, None
    host = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
    return host, torch.cuda.current_stream(values.device).record_event()
