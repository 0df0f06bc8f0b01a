"""The k best weights by a metric, beside ``best.pth``: for a soup of weights, an ensemble, or a choice by hand.

    best = Checkpoints("acc", top_k=3)
    trainer.callbacks = [best]
    trainer.fit(30)
    best.files                                 # paths, the best first: top_acc_0.9731_epoch28_update3360.pth, …
    trainer.use_best(best.files[1])            # the second best

The files hold the weights that were scored, as ``best.pth`` does, and nothing to continue from.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hooks import Callback
from ..metrics.best import better_when, find_name
from ..output.console import number
from ..output.run_folder import legal
from ..output.warn import warn

if TYPE_CHECKING:
    from ..template import TemplateModel


class Checkpoints(Callback):
    """Keeps ``top_k`` files. One is deleted only when the file that takes its place is on the disk and was read back.

    Of equal values the later one counts more, because it was trained for longer. What is not finite is never kept.

    Args:
        monitor: name of an eval metric or loss, ``"train/<loss>"`` for the training's, None for ``key_metric``.
        top_k: how many files, at least 1.
        mode: "max" or "min"; None: as the model treats that metric.

    Raises:
        ValueError: a bad argument, or a monitor that no result contains; the message lists what there is.
    """

    def __init__(self, monitor: str | None = None, top_k: int = 3, mode: str | None = None) -> None:
        if mode not in (None, "max", "min"):
            raise ValueError(f"mode must be 'max', 'min' or None, got {mode!r}.")
        if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
            raise ValueError(f"top_k must be a whole number of files of at least 1, got {top_k!r}.")
        self.monitor = monitor
        self.top_k = top_k
        self.mode = mode
        self._kept: list[dict[str, Any]] = []  # {"file", "value", "update"}, the best first
        self._name = ""                        # of the metric in the results
        self._given_up: list[str] = []         # files that are deleted behind the next one that was written
        self._on_its_way: set[str] = set()     # files that are not on the disk yet
        self._folder = Path()

    @property
    def files(self) -> list[Path]:
        """The paths, the best first. ``trainer.wait_for_saves()`` waits until the newest one is on the disk."""
        return [self._folder / entry["file"] for entry in self._kept]

    @property
    def follows_training(self) -> bool:
        """Whether it monitors a loss of the training, and no evaluation."""
        return self.monitor is not None and self.monitor.startswith(("train/", "train_"))

    # --- events ---------------------------------------------------------------------------------------------------

    def on_train_end(self, model: TemplateModel, result: dict[str, float]) -> None:
        if self.follows_training:
            self._take(model, {f"train/{name}": value for name, value in result.items()})

    def on_eval_result(self, model: TemplateModel, result: dict[str, Any]) -> None:
        if not self.follows_training:
            self._take(model, result)

    def look_for_monitor(self, names: list[str], of_training: bool) -> None:
        """Warn where the first batch of the training, or of the evaluation, does not give what is monitored."""
        if self.monitor is not None and self.follows_training == of_training and find_name(self.monitor, names) is None:
            warn(f"Checkpoints monitors {self.monitor!r}, and the first batch gave {names}. If no batch gives it, an error "
                 "ends the training behind the epoch. Set monitor to one of these.")

    def _take(self, model, result):
        asked = self.monitor or model.key_metric
        name = find_name(asked, result)
        if name is None:
            raise ValueError(f"Checkpoints monitors {asked!r}, which is not among {list(result)}. Set monitor to one of "
                             "these.")
        value = float(result[name])
        if not math.isfinite(value):
            return
        self._name, self._folder = name, model.path_of(".")
        mode = self.mode or ("min" if self.follows_training else better_when(model, name))
        file = f"top_{legal(name)}_{number(value)}_epoch{model.epoch}_update{model.global_step}.pth"
        new = {"file": file, "value": value, "update": model.global_step}
        others = [entry for entry in self._kept if entry["update"] != model.global_step]  # evaluated a second time
        sign = 1 if mode == "min" else -1
        kept = sorted([*others, new], key=lambda entry: (sign * entry["value"], -entry["update"]))[:self.top_k]
        self._given_up += [entry["file"] for entry in self._kept if entry not in kept]
        self._kept = kept
        if new in kept:
            self._write(model, file)

    def _write(self, model, file):
        folder, kept = self._folder, {entry["file"] for entry in self._kept}
        given_up = [name for name in self._given_up
                    if name not in kept and (name in self._on_its_way or (folder / name).exists())]
        self._given_up = list(given_up)  # which grows, while this one waits for the disk
        self._on_its_way.add(file)

        def remove():
            self._on_its_way.discard(file)
            for name in given_up:
                (folder / name).unlink(missing_ok=True)

        model.checkpoints.save_best(file, f"top_{legal(self._name)}.pth", remove)

    # --- resume ---------------------------------------------------------------------------------------------------

    def take_files(self, model: TemplateModel, folder: Path) -> list[str]:
        """After ``load_state``: what is not there any more cannot be kept, and what came later in the run is given up.

        Returns:
            A message for each file that is missing.
        """
        self._folder = model.path_of(".")
        there = set(model.world.from_main(self._own_files))
        missing = [entry["file"] for entry in self._kept if entry["file"] not in there]
        self._kept = [entry for entry in self._kept if entry["file"] in there]
        self._given_up = sorted(there - {entry["file"] for entry in self._kept})
        return [f"{name} is not in {model.ckpt_dir} and no longer among the best {self.top_k}" for name in missing]

    def _own_files(self):
        form = re.compile(rf"top_{re.escape(legal(self._name))}_-?[\d.]+(e[+-]\d+)?_epoch\d+_update\d+\.pth")
        return [path.name for path in self._folder.glob("top_*.pth") if self._name and form.fullmatch(path.name)]

    def start_afresh(self) -> None:
        """A checkpoint was loaded that knows nothing of this."""
        self._kept, self._given_up = [], []

    def state_dict(self) -> dict[str, Any]:
        return {"kept": [dict(entry) for entry in self._kept], "name": self._name}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kept, self._name = [dict(entry) for entry in state["kept"]], state["name"]
