"""What every tracker shares, and what your own is made from: which points there are, and when they are sent.

    class Mine(Tracker):                                  # a tracker of your own; trainer.callbacks = [Mine()]
        def start(self, about, id):
            self.run = my_service.open(id or about.name, config=about.config)
            return self.run.id
        def scalars(self, values, update, epoch, time):
            self.run.log(values, step=update)

No double and no missing point: each point is first written to a journal in the run's folder (``output/points.py``), and a
thread sends its lines in their order (``output/sender.py``). A resumed run asks the tracker how many it has, and sends those
behind them. A point that is trained again is in the journal already, and is skipped. So curves are live, and what a package
held in memory at a kill is sent once more.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hooks import Callback
from ..output.points import Points
from ..output.run_folder import REPRODUCE_IN, settings_of
from ..output.sender import Sender
from ..output.sender import x_of as x_of  # of trackers that put a point on an axis themselves
from ..output.zipped_code import zipped_code
from ..update.lr_scheduler import rates_by_name

if TYPE_CHECKING:
    from ..template import TemplateModel

_PATIENCE = 60.0  # seconds that the end of a run waits for what is not sent yet


@dataclass
class About:
    """What a tracker is told of the run.

    Args:
        name: of the run.
        folder: of the run, absolute.
        config: what was given to ``check_init(arg=…)`` by name, and the trainer's settings under "settings".
    """

    name: str
    folder: Path
    config: dict[str, Any]


class Tracker(Callback):
    """Sends the numbers and pictures of a run.

    A subclass overrides ``start`` and ``scalars``, and of ``received``, ``picture``, ``text``, ``file`` and ``finish`` what
    its tracker can do. These are called in a thread of their own, one after the other, so that they may take their time: an
    error in one of them is told once, and it is tried again a minute later.

    Args:
        save_checkpoints: send ``best.pth`` (without an evaluation: ``last.pth``) when the run ends.
        save_code: send the code below the working directory as a zip when the run begins.
    """

    package = ""   # that has to be installed
    pip = ""       # how it is called there, if differently
    cuts = False   # what lies behind a checkpoint can be taken back: the journal itself is all there is

    def __init__(self, save_checkpoints: bool = False, save_code: bool = False) -> None:
        if self.package and find_spec(self.package) is None:
            name = type(self).__name__
            raise ModuleNotFoundError(f"{name} needs a package that is missing: pip install {self.pip or self.package}",
                                      name=self.package)
        self.save_checkpoints = save_checkpoints
        self.save_code = save_code
        self.run: Any = None             # the tracker's own object of the run, for what you want to send yourself
        self.id: str | None = None       # of the run in the tracker
        self.known: dict[str, int] = {}  # of each curve, the last update or epoch that the tracker has; see received()
        self.number = 0                  # of the point that is sent now, counted from 0 on
        self._points = Points(is_cut=self.cuts)
        self._sender: Any = None

    # --- what a tracker does --------------------------------------------------------------------------------------

    def start(self, about: About, id: str | None) -> str | None:
        """Begin a run, or go on with the one called ``id``. Returns its id."""
        return id

    def received(self, sent: int) -> int:
        """How many points the tracker has of the run that goes on; ``sent`` were handed to it. One that may have part of the
        points behind these puts what it has into ``known``."""
        return sent

    def scalars(self, values: dict[str, float], update: int, epoch: int, time: float) -> None:
        """One point. Those named "epoch/…" and "best/…" belong to the epoch, all others to the update."""

    def picture(self, name: str, png: Path, update: int, epoch: int) -> None:
        """A picture, in a file that is there during the call."""

    def text(self, name: str, text: str, update: int, epoch: int) -> None:
        """A text, which may be of many lines."""

    def file(self, path: Path, kind: str) -> None:
        """A file of the run: ``kind`` is "model" or "code"."""

    def finish(self, status: str) -> None:
        """The run ends, as far as this process goes: "finished", "stopped" or "failed". It may go on later."""

    # --- events ---------------------------------------------------------------------------------------------------

    def on_train_start(self, model: TemplateModel) -> None:
        if model.is_main:
            self._begin(model)

    def on_log(self, model: TemplateModel, values: dict[str, float]) -> None:
        if model.is_main:
            rates = rates_by_name(model.optimizer_list)
            rates = {"lr" if len(rates) == 1 else f"lr/{name}": rate for name, rate in rates.items()}
            self._add(model, {f"train/{name}": value for name, value in values.items()} | rates)

    def on_eval_result(self, model: TemplateModel, result: dict[str, Any]) -> None:
        self._add(model, {f"eval/{name}": value for name, value in result.items() if isinstance(value, float)})

    def on_epoch_end(self, model: TemplateModel, results: dict[str, Any]) -> None:
        values = {f"epoch/{name}": value for name, value in results.items() if isinstance(value, float)}
        self._add(model, values | {f"best/{name}": value for name, value in model.best_metric.items()})

    def take_picture(self, model: TemplateModel, name: str, content: bytes | str, path: Path) -> None:
        """Of a callback, or your own by ``output/pictures.py``: a png, which is in the file ``path`` too, or a text."""
        if isinstance(content, str):
            self._add(model, {"text": name, "content": content})
        else:
            file = os.path.relpath(path, model.path_of("."))
            self._add(model, {"picture": name, "file": file, "crc": zlib.crc32(content)})

    def on_exit(self, model: TemplateModel) -> None:
        if self._sender is not None and self._points.are_of(model):
            status = _status(model)
            if self.save_checkpoints and status != "stopped":
                paths = [model.path_of(name) for name in ("best.pth", "last.pth")]
                self._sender.files += [(path, "model") for path in paths if path.exists()][:1]
            self._end(status)

    # --- the run --------------------------------------------------------------------------------------------------

    def _begin(self, model):
        """The training begins, or goes on: behind a ``load_state``, or behind an end in this process."""
        self._take_up(model)
        if self._sender is None and not self.cuts and REPRODUCE_IN not in os.environ:  # its numbers are there already
            settings = {} if "settings" in model.run_options else {"settings": settings_of(model)}
            about = About(model.run_name or "run", model.path_of(".").absolute(), dict(model.run_options) | settings)
            self._sender = Sender(self, about, self._points, model.lifetime.close_at_exit)
            if self.save_code and self.id is None and (path := zipped_code(model.path_of("trackers/code.zip"))):
                self._sender.files.append((path, "code"))
            self._sender.start()
        elif self._sender is not None:
            self._tell()

    def _take_up(self, model):
        """Before the first point of a trainer, and of what goes on from a checkpoint."""
        if not self._points.are_taken_up(model):
            if self._sender is not None:  # of the trainer before, or of before a load_state
                self._end("finished")
            if self._points.take_up(model, self._file_name(model)):
                self.id = None

    def _file_name(self, model):
        """Of the journal, in the run's folder; a second tracker of the class has its own."""
        alike = [callback for callback in model.hooks.callbacks if type(callback) is type(self)]
        number = 1 + next((place for place, other in enumerate(alike) if other is self), 0)
        return f"trackers/{type(self).__name__.lower()}{f'_{number}' if number > 1 else ''}.jsonl"

    def _add(self, model, point):
        """Write a point to the journal, unless the process that was killed did."""
        if not model.is_main or not point:
            return
        self._take_up(model)  # it may be evaluated before it is trained
        if self._points.has(model.global_step, point):
            return
        when = {"update": model.global_step, "epoch": model.epoch, "time": round(time.time(), 3)}
        self._points.journal.add(self.line(when | point))
        if self._sender is not None:
            self._sender.wake.set()
            self._tell()

    def line(self, point: dict[str, Any]) -> str:
        """A point in the journal."""
        return json.dumps(point) + "\n"

    def note(self, text: str) -> None:
        """Have the thread of the training print a line."""
        self._sender.notes.append(text)

    def _tell(self):
        notes = self._sender.notes
        while notes:
            print(f"{type(self).__name__}: {notes.popleft()}")

    def _end(self, status):
        self._sender.end(status, _PATIENCE)
        self._tell()
        self._sender = None

    # --- what travels in the checkpoint ---------------------------------------------------------------------------

    def flush(self) -> None:
        """A checkpoint is made."""
        self._points.note_save()

    def state_dict(self) -> dict[str, Any]:
        """The run's id in the tracker, and how many points there are."""
        return {"id": self.id, "points": self._points.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.id = state["id"]
        self._points.load(state["points"])

    def take_files(self, model: TemplateModel, folder: Path) -> list[str]:
        """After ``load_state``: whether the run goes on, or another one begins with what was sent until there."""
        self._points.folder = folder
        return []

    def start_afresh(self) -> None:
        """The checkpoint knows nothing of this tracker."""
        self.id = None
        self._points.load(0)


def _status(model):
    """How the run ends, for trackers that show it."""
    error = sys.exc_info()[0]
    if model.lifetime.stop_request.signal or error in (KeyboardInterrupt, SystemExit):
        return "stopped"
    return "failed" if error is not None and issubclass(error, Exception) else "finished"
