"""Several runs of one kind below one folder: folds, seeds, the trials of a search. The tools that compare runs stand on it.

    with Trials("kfold", "check_point/digits-5-fold", {"k": 5}) as trials:
        for number in range(1, 6):
            note = trials.run(f"fold{number}", make, seed=number, epochs=20)     # {"result": {"acc": 0.97}, …}

Each run has a folder and a file ``trial.json`` of its own, so that the same call goes on where the last one was ended: runs
that are done are read, the one that was cut short is continued to the same bits, and the others begin. It knows nothing of
how runs are compared.
"""

from __future__ import annotations

import gc
import json
import os
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.seeding import rng_kept, seed_everything, seed_of_run
from ..output import run_folder
from ..output.run_lock import RunLock
from ..output.warn import warn

if TYPE_CHECKING:
    from ..template import TemplateModel

FILE = "trial.json"
WEIGHTS = ("last", "best")
_PLAIN = (int, float, str, bool, type(None))
_OF_NO_ACCOUNT = {  # settings that may differ between two halves of one run: they change no number
    "ckpt_dir", "run_name", "overwrite", "seed", "device", "log_per_step", "preflight", "save_per_steps", "save_per_seconds",
    "keep_checkpoints", "stop_when_save_fails", "slice_tensors"}


class Trials:
    """The folder of several runs, while one call works in it.

    Args:
        tool: name of the tool; its settings stand in ``<tool>.json``.
        ckpt_dir: the folder. None: a new one with a time stamp as its name.
        settings: what must be the same when the call goes on in a folder that is there; plain data.

    Raises:
        ValueError: the folder belongs to another tool, or to a call with other settings.
        RunInUse: another process works in the folder.
    """

    def __init__(self, tool: str, ckpt_dir: str | Path | None, settings: Mapping[str, Any]) -> None:
        self.folder = Path(run_folder.place(ckpt_dir or Path(run_folder.ROOT, run_folder.time_stamp())))
        self.tool = tool
        self.is_main = int(os.environ.get("RANK", "0")) == 0
        self._settings = json.loads(json.dumps(dict(settings)))
        self._lock = RunLock()
        self._parameters: list[weakref.ref[torch.Tensor]] = []  # of the models of all runs in this process
        self._first_weights: Any = None  # the first trainer's seed, and the sums of what its parameters began with
        self._compared = False           # the trainers are built as those whose results are read

    def __enter__(self) -> Trials:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.is_main:
            self._lock.claim(self.folder)
            self._lock.is_busy = True
        try:
            self._require_same_call()
        except BaseException:
            self.__exit__()
            raise
        print(f"{self.tool}: in {self.folder}. The same call with ckpt_dir={str(self.folder)!r} goes on where it was ended.")
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.is_busy = False
        self._lock.release()

    def _require_same_call(self):
        path = self.folder / f"{self.tool}.json"
        if not path.exists():
            if run_folder.holds_run(self.folder):
                raise ValueError(f"{self.tool} makes one folder for each of its runs in ckpt_dir, and {self.folder} holds a "
                                 "run itself. Choose another ckpt_dir.")
            if self.is_main:
                run_folder.replace_file(path, json.dumps(self._settings, indent=2) + "\n")
            return
        _require_equal(read_json(path), self._settings, f"{self.tool} in {self.folder}")

    def note_of(self, name: str) -> dict[str, Any]:
        """What ``trial.json`` says of a run; empty where it was not begun."""
        path = self.folder / name / FILE
        return read_json(path) if path.exists() else {}

    def write_note(self, name: str, note: Mapping[str, Any]) -> None:
        """Replace that file. Among several processes rank 0 writes it."""
        if self.is_main:
            run_folder.replace_file(self.folder / name / FILE, json.dumps(dict(note), indent=2, default=str) + "\n")

    def run(self, name: str, make: Callable[[], TemplateModel], seed: int, epochs: int | None = None, arg: Any = None,
            weights: str = "last", finish: Callable[[TemplateModel, Path], Any] | None = None,
            updates: int | None = None) -> dict[str, Any]:
        """Train one of the runs to its end, or go on with it; one that is done is read.

        Args:
            name: its folder in the one of all runs, and its name in TensorBoard.
            make: gives a new trainer, before ``check_init``. Its weights are drawn from ``seed``.
            seed: of its weights, its order of data and its augmentation.
            epochs: of ``trainer.fit``; None: the trainer's ``total_epochs``.
            arg: options to store with the run, for ``check_init``.
            weights: that are scored: of the "last" epoch, or the "best" ones.
            finish: called with the trainer of a run that has ended, and with its folder, before the run counts as done.
                A dict that it returns is added to what is noted.
            updates: of ``trainer.fit(updates=…)``, in the place of ``epochs``.

        Returns:
            ``{"result": {name: value}, "key_metric", "best", "best_epoch", "epochs", "seconds", "settings"}``. The seconds
            are None for a run that was continued.
        """
        before, folder = self.note_of(name), self.folder / name
        is_done = "result" in before
        if is_done and self._compared:
            print(f"{name}: done before, read from {folder / FILE}")
            return before
        with rng_kept():
            trainer = self._made(make, seed)
            settings = _settings_of(trainer, epochs, updates)
            if "settings" in before:
                _require_equal(before["settings"], settings, f"{name} in {self.folder}")
            self._compared = True
            if is_done:
                print(f"{name}: done before, read from {folder / FILE}")
                return before
            note = self._train(trainer, name, seed, settings, arg, weights, finish)
        del trainer
        gc.collect()  # a trainer and its parts hold each other; the next one needs the GPU's memory
        return note

    def _train(self, trainer, name, seed, settings, arg, weights, finish):
        folder, started = self.folder / name, time.perf_counter()
        goes_on = run_folder.holds_run(folder)
        trainer.ckpt_dir, trainer.run_name = str(folder), f"{self.folder.resolve().name}/{name}"
        trainer.seed, trainer.overwrite = seed, False
        trainer.check_init(arg={**run_folder.as_dict(arg), "seed": seed})
        try:
            if goes_on:
                trainer.load_state("auto")
            self.write_note(name, {"settings": settings})
            trainer.fit(settings["epochs"], updates=settings.get("updates"))
            note = {
                "result": scores(trainer, weights), "key_metric": trainer.key_metric, "best": dict(trainer.best_metric),
                "best_epoch": dict(trainer.best_epoch), "epochs": trainer.epochs_done,
                "seconds": None if goes_on else round(time.perf_counter() - started, 3), "settings": settings}
            note |= (finish(trainer, folder) or {}) if finish is not None else {}
            self.write_note(name, note)
        finally:
            trainer.close()
        return note

    def _made(self, make, seed):
        """A new trainer, whose models are no other trainer's."""
        seed_everything(seed)
        trainer = make()
        seed_of_run(seed)  # it is used up; check_init is told the number
        if not hasattr(trainer, "check_init") or not hasattr(trainer, "model_list"):
            raise TypeError(f"make_trainer must return the trainer, a TemplateModel; it returned {trainer!r}.")
        if trainer.hooks is not None:
            raise ValueError(f"make_trainer must return the trainer before check_init(): {self.tool} gives it a folder of "
                             "its own, and calls check_init() and fit() itself. Leave these calls out of make_trainer.")
        if trainer.eval_loader is None and trainer.test_loader is None:
            raise ValueError(f"{self.tool} compares results of evaluations, and make_trainer returned a trainer without an "
                             "eval_loader. Set it.")
        parameters = [parameter for model in trainer.model_list for parameter in model.parameters()]
        known = {id(parameter) for reference in self._parameters if (parameter := reference()) is not None}
        if any(id(parameter) in known for parameter in parameters):
            raise ValueError("make_trainer must build a new model each time it is called; it returned a model that was "
                             "trained in a run before, and that may have seen the data which this run is evaluated on. "
                             "Build the model inside make_trainer, or copy one there with copy.deepcopy.")
        self._parameters += [weakref.ref(parameter) for parameter in parameters]
        self._tell_equal_weights(parameters, seed)
        return trainer

    def _tell_equal_weights(self, parameters, seed):
        sums = [float(parameter.detach().double().sum()) for parameter in parameters if not _is_lazy(parameter)]
        first_seed, first_sums = self._first_weights = self._first_weights or (seed, sums)
        if sums and sums == first_sums and seed != first_seed:
            warn(f"{self.tool}: make_trainer built the same first weights for two seeds. If it calls seed_everything or "
                 "torch.manual_seed, leave that out: it was done, with another seed for each run. Weights that are all "
                 "pretrained are the same, of course; then the seeds differ in the order of data and in dropout.")


def scores(trainer: TemplateModel, weights: str = "last") -> dict[str, float]:
    """Losses and metrics of the weights that the run left in the models, or of its best ones, which are there then."""
    if weights == "best":
        trainer.use_best()
    is_fresh = (trainer.eval_result and trainer.lifetime.evaluated_epoch == trainer.epochs_done
                and not trainer.lifetime.only_looks)  # EarlyStopping(restore_best=True) took the best ones
    found = trainer.eval_result if is_fresh else trainer.test(trainer.eval_loader)
    return {name: value for name, value in found.items() if isinstance(value, float)}


def require_weights(weights: str) -> None:
    """Refuse what is neither "last" nor "best"."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {list(WEIGHTS)}, got {weights!r}.")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _settings_of(trainer, epochs, updates=None):
    """What decides the numbers of a run, as far as plain data tells: it must not change between its two halves."""
    if updates is not None and epochs is not None:
        raise ValueError(f"Give the length of a run once: epochs={epochs!r} or updates={updates!r}.")
    epochs = trainer.total_epochs if epochs is None and updates is None else epochs
    for name, value in ({"epochs": epochs} if updates is None else {"updates": updates}).items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}. Give it here, or set "
                             "self.total_epochs in the trainer.")
    found: dict[str, Any] = {"epochs": epochs} | ({} if updates is None else {"updates": updates})
    found |= {name: value for name, value in vars(trainer).items()
              if not name.startswith("_") and name not in _OF_NO_ACCOUNT and isinstance(value, (*_PLAIN, dict))}
    for index, model in enumerate(trainer.model_list):
        found[f"model {index}"] = {name: list(p.shape) for name, p in model.named_parameters() if not _is_lazy(p)}
    for index, optimizer in enumerate(trainer.optimizer_list):
        groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        found[f"optimizer {index}"] = [type(optimizer).__name__, *groups]
    found["batch_size"] = getattr(trainer.train_loader, "batch_size", None)
    return json.loads(json.dumps(found, default=_as_text))


def _as_text(value):
    """Of a tensor its numbers, of an object the name of its class: its address would differ from process to process."""
    return value.tolist() if isinstance(value, torch.Tensor) else type(value).__name__


def _is_lazy(parameter):
    return isinstance(parameter, torch.nn.parameter.UninitializedTensorMixin)


def _require_equal(before, now, what):
    names = [name for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)]
    if names:
        lines = "; ".join(f"{name} was {_short(before.get(name))} and is {_short(now.get(name))} now" for name in names[:4])
        raise ValueError(f"{what} was begun with other settings, and results of different settings must not be mixed: "
                         f"{lines}. Set them back, choose another ckpt_dir, or delete that folder to begin anew.")


def _short(value):
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
