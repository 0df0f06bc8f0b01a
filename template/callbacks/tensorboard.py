"""TensorBoard events under ``runs/<run>/``: open them with ``tensorboard --logdir runs``.

Training and evaluation of one quantity share one chart: ``epoch/<name>`` (x: epoch) is written to the sub-folders
``train`` and ``eval``. What is counted in updates has other tags: ``update/<name>`` (an evaluation in the middle of an epoch
writes it to the sub-folder ``eval_at_update``, beside the training's), ``lr/<parameter group>``, ``speed/…``,
``weights/…``, ``grads/…``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.nested import first_tensor, to_device
from ..hooks import Callback
from ..metrics.modes import eval_mode
from ..output.event_writer import add_scalars
from ..output.speed import peak_gigabytes
from ..update.lr_scheduler import rates_by_name

if TYPE_CHECKING:
    from ..template import TemplateModel

_SPEED_EVERY_SECONDS = 10.0


class TensorBoard(Callback):
    """Scalars, histograms (``train_loop(write_params=True)``), the graph, hyper-parameters, images.

    Args:
        images: number of images of the first eval batch to write at each evaluation, when its first tensor is
            [B, 1 or 3, H, W]; 0 writes none.
    """

    def __init__(self, images: int = 0) -> None:
        self.images = images
        self._parts: dict[str, Any] = {}  # "": the run's own writer, "train" and "eval": those of sub-folders
        self._gradients_of: int | None = None  # the update whose gradients are wanted
        self._speed_since: Any = None  # a mark of output/speed.py
        self._images_wanted = False
        self._hparams_written = False

    def _part(self, model, part=""):
        """The writer of the run or of a sub-folder; what an earlier process left there from now on is void."""
        if part not in self._parts:
            writer = type(model.writer)(str(Path(model.writer.log_dir) / part)) if part else model.writer
            self._parts[part] = writer
            next_update = model.global_step + (not model.running_losses.recent)  # a window that is open is logged again
            by_updates = {"": next_update, "eval_at_update": model.global_step + 1}
            _void(writer, by_updates.get(part, model.epoch))
        return self._parts[part]

    def on_train_start(self, model: TemplateModel) -> None:
        is_first = model.write_params and not model.batches_done  # once an epoch, also where a run goes on within it
        self._gradients_of = model.global_step if is_first else None
        if model.writer is not None:
            self._part(model)
            self._speed_since = model.stepper.speed.mark()

    def reads_gradients(self, model: TemplateModel) -> bool:
        return self._gradients_of == model.global_step and model.writer is not None

    def on_before_step(self, model: TemplateModel) -> None:
        if self._gradients_of == model.global_step and self.reads_gradients(model):
            for name, parameter in _named_parameters(model):
                if parameter.grad is not None:
                    _add_histogram(model.writer, f"grads/{name}", parameter.grad, model.global_step)

    def on_log(self, model: TemplateModel, values: dict[str, float]) -> None:
        if model.writer is None:
            return
        points = {f"update/{name}": value for name, value in values.items()}
        points |= {f"lr/{name}": rate for name, rate in rates_by_name(model.optimizer_list).items()}
        add_scalars(model.writer, points, model.global_step)
        if time.perf_counter() - self._speed_since[0] > _SPEED_EVERY_SECONDS:
            self._write_speed(model)

    def _write_speed(self, model):
        """Since it was last written in this epoch; more often it would cost more than it tells."""
        values = model.stepper.speed.since(self._speed_since)
        memory = peak_gigabytes(torch.device(model.device))
        if values and memory is not None:
            values["peak_memory_gb"] = memory
        add_scalars(model.writer, {f"speed/{name}": value for name, value in values.items()}, model.global_step)
        self._speed_since = model.stepper.speed.mark()

    def on_train_end(self, model: TemplateModel, result: dict[str, float]) -> None:
        if model.writer is None:
            return
        self._write_speed(model)
        numbers = {f"epoch/{name}": value for name, value in result.items() if isinstance(value, float)}
        add_scalars(self._part(model, "train"), numbers, model.epoch)
        if model.write_params:
            for name, parameter in _named_parameters(model):
                _add_histogram(model.writer, f"weights/{name}", parameter, model.global_step)

    def on_eval_start(self, model: TemplateModel) -> None:
        self._images_wanted = self.images > 0

    def on_eval_batch(self, model: TemplateModel, batch: Any) -> None:
        if not self._images_wanted or model.writer is None:
            return
        self._images_wanted = False
        images = first_tensor(batch)
        if images is not None and images.dim() == 4 and images.shape[1] in (1, 3):
            images = images[: self.images].detach().float().cpu()
            low, high = images.min(), images.max()
            self._part(model).add_images("images", (images - low) / (high - low).clamp(min=1e-12), model.epoch)

    def on_eval_result(self, model: TemplateModel, result: dict[str, Any]) -> None:
        if model.writer is None:
            return
        values = {name: value for name, value in result.items() if isinstance(value, float)}
        if model.eval_per_steps or model.lifetime.is_mid_epoch:
            points = {f"update/{name}": value for name, value in values.items()}
            add_scalars(self._part(model, "eval_at_update"), points, model.global_step)
        if not model.lifetime.is_mid_epoch:
            points = {f"epoch/{name}": value for name, value in values.items()}
            add_scalars(self._part(model, "eval"), points, model.epoch)

    def on_exit(self, model: TemplateModel) -> None:
        if self._parts:  # else nothing was written, and asking for a writer would make an empty run
            self._write_hparams(model)
        self.flush()

    def flush(self) -> None:
        """Before a checkpoint is made: what it says has happened is in the event files."""
        for writer in self._parts.values():
            writer.flush()

    def __getstate__(self) -> dict[str, Any]:
        """A copy writes files of its own."""
        return vars(self) | {"_parts": {}}

    def write_graph(self, model: TemplateModel, example: Any) -> None:
        """The graph of ``inference(example)``. Event files with graphs are large, hence only on demand."""
        if model.writer is None:
            return
        example = tuple(example) if isinstance(example, list) else example  # what tracing takes several inputs as
        try:
            with eval_mode(model.model_list), torch.random.fork_rng():
                self._part(model).add_graph(_Inference(model).eval(), to_device(example, torch.device(model.device)))
        except Exception as error:  # tracing raises whatever the model's Python does not stand
            print(f"The graph is not written: this model cannot be traced ({type(error).__name__}: {error}).")

    def _write_hparams(self, model):
        """Options and best values for the HPARAMS tab, in the run's own folder (``add_hparams`` would open a new one)."""
        if self._hparams_written or not model.run_options or not model.best_metric:
            return
        from torch.utils.tensorboard.summary import hparams

        options = {name: value if isinstance(value, (int, float, str, bool)) else str(value)
                   for name, value in model.run_options.items()}
        best = {f"hparam/best_{name}": value for name, value in model.best_metric.items()}
        for summary in hparams(options, best):
            self._part(model).file_writer.add_summary(summary)
        for name, value in best.items():
            self._part(model).add_scalar(name, value, model.epochs_done)
        self._hparams_written = True


def _named_parameters(model):
    """(path, parameter) of what is trainable; ``a.b.c`` becomes ``a/b/c``, several models are numbered. Parameters of which
    each rank holds a part (FSDP2) are left out: rank 0, which writes, has no whole one."""
    for index, part in enumerate(model.model_list):
        prefix = f"{index}/" if len(model.model_list) > 1 else ""
        for name, parameter in part.named_parameters():
            if parameter.requires_grad and not hasattr(parameter, "to_local"):
                yield prefix + name.replace(".", "/"), parameter


def _add_histogram(writer, tag, values, step):
    """Of the finite values: the first gradients under fp16 may overflow, and an empty histogram raises."""
    values = (values.coalesce().values() if values.is_sparse else values).detach()
    values = values[torch.isfinite(values)]
    if values.numel():
        writer.add_histogram(tag, values, step)


def _void(writer, step):
    """Tell TensorBoard that the run was taken up again here: updates that are done a second time show once."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore  # optional, without types

    writer.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step)


class _Inference(torch.nn.Module):
    """``inference`` as one module, which is what ``add_graph`` can trace."""

    def __init__(self, model):
        super().__init__()
        self.parts = torch.nn.ModuleList(model.model_list)
        self.inference = model.inference

    def forward(self, *inputs):
        return self.inference(inputs[0] if len(inputs) == 1 else inputs)
