"""Trainers of ``KerasModel``: what ``inference``, the loss and the metrics are without a class of the user's own.

    class Trainer(ByLoss, TemplateModel): ...             # with loss_fn(pred, y)
    class Trainer(ByOwnLoss, TemplateModel): ...          # the network returns its loss

``keras_model.py`` joins them with ``TemplateModel``, which nothing in this folder imports. A trainer by a step of the user's
own is in ``fit_by_steps.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...checkpoint.state import unwrap
from ...metrics.functions import as_accumulators
from ..defaults import call_model, label_name, own_loss

if TYPE_CHECKING:
    from ...keras_model import KerasModel
    from ...template import TemplateModel as _Base
else:
    _Base = object


class ByLoss(_Base):
    """Trains a ``KerasModel`` whose loss is ``loss_fn(pred, y)``."""

    gives_metrics = True  # in an evaluation by name, from the first batch on

    def __init__(self, model: KerasModel) -> None:
        super().__init__()
        self.model_list, self.optimizer_list, self.criterion = [model.net], [model.optimizer], model.loss_fn
        self.is_predicting = False
        self.set_metrics(model.metrics_dict)

    def set_metrics(self, metrics):
        self.eval_metrics, self.train_metrics = as_accumulators(metrics), as_accumulators(metrics) or True

    def take_scheduler(self, scheduler):
        self.lr_scheduler_list = [scheduler]

    def begin(self):
        """Behind ``check_init``."""

    def begin_evaluation(self):
        """Before its first batch."""

    def objects(self):
        """What has a state and is no part of a ``TemplateModel``."""
        return {}

    def inference(self, x: Any) -> Any:
        """``net(x)``; in ``predict`` as much of a batch as the network takes."""
        net = self.model_list[0]
        if self.is_predicting:
            x = _inputs_of(net, x, drops_label=self.criterion is not None)
        return call_model(net, x)


class ByOwnLoss(ByLoss):
    """Trains one whose network returns its own loss. Metrics get what else it returns, "logits" if there are any."""

    def set_metrics(self, metrics):
        super().set_metrics(metrics)
        self.train_metrics = self.train_metrics if metrics else False

    def loss_per_batch(self, batch: Any) -> Any:
        output = self.inference(batch)
        self._seen = _logits_of(output), _label_of(batch)
        self.note_predictions(*self._seen)
        return own_loss(output)

    def eval_scores_per_batch(self, batch: Any) -> Mapping[str, Any]:
        return self.metric(*self._seen) if self.eval_metrics else {}


def _inputs_of(net, x, drops_label):
    """As much of a batch as the network takes: ``predict`` hands the whole dict on, and all parts but the last."""
    if isinstance(x, Mapping):
        label = label_name(x) if drops_label else None
        return {name: part for name, part in x.items() if name != label}
    if type(x) is tuple:
        kinds = [p.kind for p in _parameters_of(net)]
        count = sum(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds)
        return x if inspect.Parameter.VAR_POSITIONAL in kinds or not count else x[:count]
    return x


def _parameters_of(net):
    """Of its ``forward``; none where nothing is known of them."""
    try:
        return list(inspect.signature(unwrap(net).forward).parameters.values())
    except (TypeError, ValueError):
        return []


def _logits_of(output):
    if isinstance(output, Mapping):
        return output.get("logits", output)
    return getattr(output, "logits", output)


def _label_of(batch):
    if isinstance(batch, Mapping):
        return batch[label] if (label := label_name(batch)) else None
    return batch[-1] if isinstance(batch, (list, tuple)) and batch else None
