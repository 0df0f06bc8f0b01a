"""The flat keys of an experiment file, as trainers in the style of YOLO have them, and what each means for a trainer.

    class Classifier(TemplateModel):
        def __init__(self, keys: TrainingKeys, model, train_set, eval_set):
            super().__init__()
            self.model_list = [model]
            self.criterion = torch.nn.CrossEntropyLoss()
            self.train_loader, self.eval_loader = keys.loaders(train_set, eval_set)
            keys.apply(self)                     # optimizer, schedule, warm-up, device, folder, early stopping, …

    trainer = configure(Classifier, model=model, train_set=train_set, eval_set=eval_set)

    python train_cls.py --config cls.yml --lr0 1e-3 --epochs 50

More keys are fields of a subclass: ``recon_weight: float = 10.0``. Behind the loop ``trainer.keys.after_training(trainer)``
does what ``ptq``, ``qat`` and ``trt_quant`` ask for, where ``__init__`` keeps ``self.keys``. Which attribute a key sets
stands in ``docs/configuration.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..output.warn import warn
from ..update.optimizers import build_optimizer

if TYPE_CHECKING:
    from ..template import TemplateModel

_LARGEST_GRADIENT = 10.0  # norm
_LOWEST_RATE = 1e-6


@dataclass
class TrainingKeys:
    """Keys of one experiment, with the names, and nearly all the defaults, of YOLOv5 and its relatives."""

    save_dir: str | None = None
    """Folder of the run; null: one with the time of the start below check_point."""
    device: str = ""
    """ "0" or "cuda:0" for a GPU, "cpu", "mps"; empty: the GPU where there is one, else the CPU."""
    batch: int = 32
    """Samples in a batch, of each process."""
    nbs: int = 64
    """Nominal batch size: so many batches make an update that it has about this many samples."""
    num_workers: int = 0
    """Processes that load data; 0: the training process itself."""
    patience: int = 100
    """Epochs without a better key metric before the run stops; 0: it never stops early."""
    epochs: int = 200
    """Passes over the training data."""
    exist_ok: bool = False
    """Replace the run that is in save_dir already; otherwise a new one begins beside it."""
    amp: bool | Literal["bf16", "fp16"] = False
    """Mixed precision; true: bf16 where the device has it, else fp16."""
    ptq: bool = False
    """Quantize after training."""
    num_batches: int | None = None
    """Batches that the ranges are taken from in ptq; null: all of the training data."""
    method: Literal["entropy", "max", "percentile", "mse"] = "entropy"
    """How ptq chooses a range."""
    qat: bool = False
    """Train on with rounded weights after training, for a tenth of the epochs at a tenth of the rate."""
    trt_quant: bool = False
    """Build a TensorRT engine, in int8 after ptq or qat."""

    optimizer: str = "Adam"
    """SGD, Adam, Adamax, AdamW, NAdam, RAdam, RMSProp, or any other of torch.optim."""
    scheduler: Literal["Cosine", "Linear", "Exponential", "Polynomial"] = "Cosine"
    """How the learning rate falls, from lr0 to lr0 * lrf."""
    lr0: float = 0.01
    """Learning rate behind the warm-up."""
    lrf: float = 0.01
    """Last learning rate, as a share of lr0."""
    gamma: float = 0.9
    """Exponential: what is left of the way to the last rate falls by this factor in each epoch."""
    power: float = 2.0
    """Polynomial: its power."""
    momentum: float = 0.937
    """Momentum of SGD and RMSProp, and the first beta of Adam and its relatives."""
    weight_decay: float = 0.0005
    """Of weights; biases and norms have none, embeddings a hundredth."""
    warmup_epochs: float = 3.0
    """Epochs of warm-up; a fraction counts updates."""
    warmup_momentum: float = 0.8
    """Momentum at the start of the warm-up."""
    warmup_bias_lr: float = 0.1
    """Learning rate of biases at the start of the warm-up."""

    def __post_init__(self) -> None:
        lowest = {"batch": 1, "nbs": 1, "epochs": 1, "num_workers": 0, "patience": 0, "warmup_epochs": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)!r}.")
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma must lie between 0 and 1, got {self.gamma!r}: the rate falls by it in each epoch.")

    def loaders(self, train_set: Dataset[Any], eval_set: Dataset[Any],
                **options: Any) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Loaders of ``batch`` samples; those of the training set are shuffled. ``options`` go to both ``DataLoader``."""
        shared = {"batch_size": self.batch, "num_workers": self.num_workers,
                  "persistent_workers": self.num_workers > 0, **options}
        return DataLoader(train_set, shuffle=True, **shared), DataLoader(eval_set, **shared)

    def optimizers(self, models: nn.Module | Sequence[nn.Module]) -> list[torch.optim.Optimizer]:
        """For ``optimizer_list``: groups of weights, biases, norms and embeddings; SGD with Nesterov momentum."""
        options: dict[str, Any] = {"nesterov": True} if self.optimizer.lower() == "sgd" and self.momentum > 0 else {}
        return build_optimizer(self.optimizer, models, self.lr0, self.momentum, self.weight_decay, **options)

    def apply(self, trainer: TemplateModel) -> None:
        """Set what the keys mean in a trainer that has its models and loaders. Call it at the end of ``__init__``; what you
        set behind it counts."""
        self._require_programs()
        if self.save_dir is not None:
            trainer.ckpt_dir = self.save_dir
        trainer.overwrite = self.exist_ok
        if self.device:
            trainer.device = self.device
        trainer.optimizer_list = self.optimizers(list(trainer.model_list))
        trainer.nominal_batch_size = self.nbs
        trainer.total_epochs = self.epochs
        trainer.amp = self._amp(trainer.device)
        trainer.clip_grad = _LARGEST_GRADIENT
        trainer.lr_scheduler_type = self.scheduler.lower()
        trainer.lr_scheduler_args = self._scheduler_args()
        if self.warmup_epochs:
            trainer.warm_up_epoch = self.warmup_epochs
            trainer.warm_up_init_lr = min(_LOWEST_RATE, self.lr0 / 100)
            trainer.warm_up_momentum = self.warmup_momentum
            trainer.warm_up_bias_lr = self.warmup_bias_lr
        if self.patience:
            from ..callbacks.early_stopping import EarlyStopping
            trainer.callbacks = [*(trainer.callbacks or ()), EarlyStopping(patience=self.patience)]

    def after_training(self, trainer: TemplateModel) -> None:
        """What ``ptq``, ``qat`` and ``trt_quant`` ask for, from the best weights: ``best.onnx`` and ``best.engine`` in the
        run's folder. Call it behind the loop; it runs in one process."""
        if not (self.ptq or self.qat or self.trt_quant):
            return
        if trainer.world.size > 1:
            if trainer.is_main:
                warn("ptq, qat and trt_quant run in one process. Start the script again without torchrun, and go on with "
                     "this run there: it has no epochs left to train.")
            return
        file = trainer.path_of("best.onnx")
        if self.ptq:
            loader: Any = trainer.train_loader
            batches = len(loader) if self.num_batches is None else self.num_batches
            _tool("quantize").ptq(trainer, batches=batches, method=self.method, path=file, weights="best")
        if self.qat:
            _tool("quantize").qat(trainer, epochs=max(self.epochs // 10, 1), lr_factor=0.1, path=file, weights="best")
        if self.trt_quant:
            if not (self.ptq or self.qat):
                _tool("export").to_onnx(trainer, None, file, dynamic="batch", weights="best")
            sizes = {"batch": (1, self.batch, 4 * self.batch)}
            _tool("export").to_tensorrt(file, file.with_suffix(".engine"), sizes=sizes)

    def _require_programs(self):
        """What is missing then is told before the training, not behind it."""
        if self.ptq or self.qat:
            _tool("quantize").require_packages("ptq()" if self.ptq else "qat()")
        if self.trt_quant:
            _tool("export").find_trtexec()

    def _amp(self, device):
        if not self.amp or isinstance(self.amp, str):
            return self.amp or None
        on_gpu = str(device)[:1].isdigit() or torch.device(device).type == "cuda"
        return "fp16" if on_gpu and torch.cuda.is_available() and not torch.cuda.is_bf16_supported() else "bf16"

    def _scheduler_args(self):
        args = {"final_ratio": self.lrf}
        if self.scheduler == "Exponential":
            args["decay"] = self.gamma ** max(self.epochs - self.warmup_epochs, 1)
        elif self.scheduler == "Polynomial":
            args["power"] = self.power
        return args


def _tool(name):
    """A tool beside this one, which a project may have deleted where its keys do not ask for it."""
    return import_module(f".{name}", __package__)
