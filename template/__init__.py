"""A training template to copy into your project: subclass ``TemplateModel`` and own the loop.

    from utils.template import TemplateModel        # the folder may have any name
    from utils import Confusion, EarlyStopping      # everything else

Names are imported when they are first used, so ``import utils`` costs nothing.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

_HOMES = {
    "TemplateModel": ".template",
    "KerasModel": ".keras_model",
    "TensorLoader": ".data.in_memory",
    "Divided": ".data.agreement",
    "Chained": ".data.chained",
    "Mean": ".metrics.accumulators",
    "Stored": ".metrics.accumulators",
    "Confusion": ".metrics.accumulators",
    "Metric": ".metrics.accumulators",
    "MultiLabel": ".metrics.multi_label",
    "TopK": ".metrics.top_k",
    "BinaryScores": ".metrics.binary_scores",
    "Regression": ".metrics.regression",
    "Perplexity": ".metrics.perplexity",
    "by_group": ".metrics.by_group",
    "digest": ".checkpoint.digests",
    "Callback": ".hooks",
    "Logger": ".output.logger",
    "WarmUpLR": ".update.lr_scheduler",
    "build_optimizer": ".update.optimizers",
    "seed_everything": ".data.seeding",
    "option": ".run.options",
    "parse_options": ".run.options",
    "run_main": ".run.main_function",
    "Checkpoints": ".callbacks.checkpoints",
    "EarlyStopping": ".callbacks.early_stopping",
    "EMA": ".callbacks.ema",
    "EmptyCache": ".callbacks.empty_cache",
    "History": ".callbacks.history",
    "Interpret": ".callbacks.interpret",
    "LayerStatistics": ".callbacks.layer_statistics",
    "LearningRateFloor": ".callbacks.learning_rate_floor",
    "LivePlot": ".callbacks.live_plot",
    "LogRecords": ".callbacks.log_records",
    "Monitor": ".callbacks.monitor",
    "Notify": ".callbacks.notify",
    "Profile": ".callbacks.profile",
    "ProgressBar": ".callbacks.progress_bar",
    "SampleOutputs": ".callbacks.sample_outputs",
    "StopAfter": ".callbacks.stop_after",
    "SWA": ".callbacks.swa",
    "TensorBoard": ".callbacks.tensorboard",
    "Tracker": ".trackers.base",
    "Csv": ".trackers.csv",
    "JsonLines": ".trackers.json_lines",
    "MLflow": ".trackers.mlflow",
    "SwanLab": ".trackers.swanlab",
    "Trackio": ".trackers.trackio",
    "Wandb": ".trackers.wandb",
}

if TYPE_CHECKING:  # for editors and type checkers, which take a module with __getattr__ to have any name
    # a callback may be left out of a copy: its name is then Any, and no error
    from .callbacks.checkpoints import Checkpoints as Checkpoints  # type: ignore[import-not-found,unused-ignore]
    from .callbacks.early_stopping import EarlyStopping as EarlyStopping  # type: ignore[import-not-found,unused-ignore]
    from .callbacks.ema import EMA as EMA  # type: ignore[import-not-found,unused-ignore]
    from .callbacks.empty_cache import EmptyCache as EmptyCache  # type: ignore[import-not-found,unused-ignore]
    from .callbacks.history import History as History  # type: ignore[import-not-found,unused-ignore]
    from .callbacks.interpret import Interpret as Interpret  # type: ignore[import-not-found,unused-ignore]
    from .callbacks.layer_statistics import LayerStatistics as LayerStatistics  # type: ignore[import-not-found,unused-ignore]
    from .callbacks.learning_rate_floor import LearningRateFloor as LearningRateFloor  # type: ignore[import-not-found,unused-ignore]
    from .callbacks.live_plot import LivePlot as LivePlot  # type: ignore[import-not-found,unused-ignore]
    from .callbacks.log_records import LogRecords as LogRecords  # type: ignore[import-not-found,unused-ignore]
    from .callbacks.monitor import Monitor as Monitor  # type: ignore[import-not-found,unused-ignore]
    from .callbacks.notify import Notify as Notify  # type: ignore[import-not-found,unused-ignore]
    from .callbacks.profile import Profile as Profile  # type: ignore[import-not-found,unused-ignore]
    from .callbacks.progress_bar import ProgressBar as ProgressBar  # type: ignore[import-not-found,unused-ignore]
    from .callbacks.sample_outputs import SampleOutputs as SampleOutputs  # type: ignore[import-not-found,unused-ignore]
    from .callbacks.stop_after import StopAfter as StopAfter  # type: ignore[import-not-found,unused-ignore]
    from .callbacks.swa import SWA as SWA  # type: ignore[import-not-found,unused-ignore]
    from .callbacks.tensorboard import TensorBoard as TensorBoard  # type: ignore[import-not-found,unused-ignore]
    from .checkpoint.digests import digest as digest
    from .data.agreement import Divided as Divided
    from .data.chained import Chained as Chained
    from .data.in_memory import TensorLoader as TensorLoader
    from .data.seeding import seed_everything as seed_everything
    from .hooks import Callback as Callback
    from .keras_model import KerasModel as KerasModel
    from .metrics.accumulators import Confusion as Confusion
    from .metrics.accumulators import Mean as Mean
    from .metrics.accumulators import Metric as Metric
    from .metrics.accumulators import Stored as Stored
    from .metrics.binary_scores import BinaryScores as BinaryScores
    from .metrics.by_group import by_group as by_group
    from .metrics.multi_label import MultiLabel as MultiLabel
    from .metrics.perplexity import Perplexity as Perplexity
    from .metrics.regression import Regression as Regression
    from .metrics.top_k import TopK as TopK
    from .output.logger import Logger as Logger
    from .run.main_function import run_main as run_main
    from .run.options import option as option
    from .run.options import parse_options as parse_options
    from .template import TemplateModel as TemplateModel
    from .trackers.base import Tracker as Tracker
    from .trackers.csv import Csv as Csv  # type: ignore[import-not-found,unused-ignore]
    from .trackers.json_lines import JsonLines as JsonLines  # type: ignore[import-not-found,unused-ignore]
    from .trackers.mlflow import MLflow as MLflow  # type: ignore[import-not-found,unused-ignore]
    from .trackers.swanlab import SwanLab as SwanLab  # type: ignore[import-not-found,unused-ignore]
    from .trackers.trackio import Trackio as Trackio  # type: ignore[import-not-found,unused-ignore]
    from .trackers.wandb import Wandb as Wandb  # type: ignore[import-not-found,unused-ignore]
    from .update.lr_scheduler import WarmUpLR as WarmUpLR
    from .update.optimizers import build_optimizer as build_optimizer
else:
    __all__ = ["__version__", *_HOMES]

    def __getattr__(name):
        if name in _MOVED:
            raise AttributeError(f"{__name__}.{name} is {__name__}.{_MOVED[name]} now.")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")
        try:
            value = globals()[name] = getattr(import_module(_HOMES[name], __name__), name)
        except ModuleNotFoundError as error:
            if error.name != __name__ + _HOMES[name]:
                raise
            file = _HOMES[name][1:].replace(".", "/")
            part = file if file.startswith(("callbacks/", "trackers/")) else "core"
            raise ModuleNotFoundError(
                f"{name} is in {file}.py, which is not there: it was left out of this copy, or deleted. To get it: "
                f"python {__path__[0]}/upgrade.py upgrade --with {part}", name=error.name) from None
        return value

    def __dir__():
        return __all__


# --- imports from where a file was before there were rooms end in an error that says where it is now --------------------

_ROOMS = {
    "data": "loaders in_memory shares nested seeding",
    "update": "stepper guard lr_scheduler schedule",
    "metrics": "one_forward",
    "checkpoint": "state saver plain_data sharded",
    "run": "signals checks options defaults prepare",
    "output": "run_folder logger event_writer patient_file summary speed",
}
_MOVED = {name: f"{room}.{name}" for room, names in _ROOMS.items() for name in names.split()} | {
    "metrics": "metrics.accumulators", "epoch_metrics": "metrics.epoch", "checkpoint": "checkpoint.files",
    "distributed": "parallel.ranks", "parallel": "parallel.gradients", "run_lifetime": "run.lifetime",
    "run_tools": "run.requests"}


class _OldPlaces:
    """Python asks it last, for a module that it found nowhere else."""

    package = __name__

    @staticmethod
    def find_spec(fullname: str, path: object = None, target: object = None) -> None:
        before, _, place = fullname.partition(f"{__name__}.")
        old, _, name = place.partition(".")  # with a name where a folder is called as the file was: utils.checkpoint.read
        new = "" if before else _MOVED.get(old, "")
        if new and (_defines(new, name) if name else not new.startswith(f"{old}.")):
            raise ModuleNotFoundError(f"{__name__}.{old} is {__name__}.{new} now. "
                                      f"Write: from {__name__}.{new} import {name or '...'}")


def _defines(module: str, name: str) -> bool:
    import re
    from pathlib import Path
    file = Path(__path__[0], *module.split(".")).with_suffix(".py")
    return file.is_file() and bool(re.search(rf"^(def |class )?{name}\b", file.read_text(encoding="utf-8"), re.M))


if not any(getattr(finder, "package", None) == __name__ for finder in sys.meta_path):  # a reload finds it there
    sys.meta_path.append(_OldPlaces)
