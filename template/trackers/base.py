"""What every tracker shares: which points there are, the thread that sends them, and the run that is resumed.

    class Mine(Tracker):                                  # a tracker of your own; trainer.callbacks = [Mine()]
        def start(self, about, id):
            self.run = my_service.open(id or about.name, config=about.config)
            return self.run.id
        def scalars(self, values, update, epoch, time):
            self.run.log(values, step=update)

No double and no missing point: each point is first written to a journal in the run's folder, and a thread sends its lines
in their order. A resumed run asks the tracker how many it has, and sends those behind them. A point that is trained again is
in the journal already, and is skipped. So curves are live, and what a package held in memory at a kill is sent once more.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
import time
import weakref
import zipfile
import zlib
from collections import deque
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hooks import Callback
from ..output.journal import Journal
from ..output.run_folder import REPRODUCE_IN, replace_file, settings_of, told_when_it_fails
from ..output.warn import warn
from ..update.lr_scheduler import rates_by_name

if TYPE_CHECKING:
    from ..template import TemplateModel

_PATIENCE = 60.0      # seconds that the end of a run waits for what is not sent yet
_RETRY_SECONDS = 60.0
_MOST_TRIES = 5       # of one point; then it is left out
_CODE = (".py", ".yaml", ".yml", ".toml", ".cfg", ".sh")
_MOST_CODE = 5_000_000  # bytes


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
        self._model: Any = None          # weak reference to the one that the points are of
        self._journal: Any = None
        self._points = 0                 # that the loaded checkpoint knows of
        self._before = 0                 # of the run, which are not in the journal because it was lost
        self._saved: Any = deque(maxlen=2)   # points in the newest two saves of this process
        self._loaded_from: Any = None    # folder of the checkpoint that was loaded last, until it is gone on from
        self._is_loaded = False
        self._last: Any = (-1, set())    # of the journal's last line that was there: its update, what there is of that
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
        if self._sender is None or not self._is_of(model):
            return
        status = _status(model)
        if self.save_checkpoints and status != "stopped":
            paths = [model.path_of(name) for name in ("best.pth", "last.pth")]
            self._sender.files += [(path, "model") for path in paths if path.exists()][:1]
        self._sender.end(status, _PATIENCE)
        self._tell()
        self._sender = None

    # --- the run --------------------------------------------------------------------------------------------------

    def _is_of(self, model):
        return self._model is not None and self._model() is model

    def _begin(self, model):
        """The training begins, or goes on: behind a ``load_state``, or behind an end in this process."""
        if self._is_loaded or not self._is_of(model):
            self._take_up(model)
        if self._sender is None and not self.cuts and REPRODUCE_IN not in os.environ:  # its numbers are there already
            settings = {} if "settings" in model.run_options else {"settings": settings_of(model)}
            about = About(model.run_name or "run", model.path_of(".").absolute(), dict(model.run_options) | settings)
            self._sender = _Sender(self, about, self._journal, self._mark_path(model), model.lifetime.close_at_exit)
            if self.save_code and self.id is None and (path := _zipped_code(model.path_of("trackers/code.zip"))):
                self._sender.files.append((path, "code"))
            self._sender.start()
        elif self._sender is not None:
            self._tell()

    def _take_up(self, model):
        """Find the journal of the run that goes on, or begin one."""
        if self._sender is not None:  # of the trainer before, or of before a load_state
            self._sender.end("finished", _PATIENCE)
            self._tell()
            self._sender = None
        name, source = self._file_name(model), self._loaded_from
        goes_back = self._is_of(model) and len(self._saved) == 2 and self._points < self._saved[0]
        is_elsewhere = source is not None and source.resolve() != model.path_of(".").resolve()
        journal = Journal(model.path_of(name))
        with told_when_it_fails(journal.path):
            before = 0 if self.cuts else _read_mark((source or Path()) / Path(name).with_suffix(".json")).get("before", 0)
            if not self._is_loaded:
                journal.begin(count=0)
            elif self.cuts or goes_back or is_elsewhere:
                journal.begin(source / name if is_elsewhere else None, max(self._points - before, 0))
            self._before, self._last = 0, (-1, set())
            if not self._is_loaded or goes_back or is_elsewhere:  # a run of its own, with the points until there
                self.id = None
                self._mark_path(model).unlink(missing_ok=True)
            elif not self.cuts:
                self._last = _last_of(journal.begin())
                self._before = before if journal.count or before else self._points
        self._journal, self._model = journal, weakref.ref(model)
        self._is_loaded, self._loaded_from = False, None
        self._saved.clear()

    def _file_name(self, model):
        """Of the journal, in the run's folder; a second tracker of the class has its own."""
        alike = [callback for callback in model.hooks.callbacks if type(callback) is type(self)]
        number = 1 + next((place for place, other in enumerate(alike) if other is self), 0)
        return f"trackers/{type(self).__name__.lower()}{f'_{number}' if number > 1 else ''}.jsonl"

    def _mark_path(self, model):
        return model.path_of(self._file_name(model)).with_suffix(".json")

    def _add(self, model, point):
        """Write a point to the journal, unless the process that was killed did."""
        if not model.is_main or not point:
            return
        if self._is_loaded or not self._is_of(model):  # evaluated before it is trained
            self._take_up(model)
        update, kind = model.global_step, _kind(point)
        if update < self._last[0] or update == self._last[0] and kind in self._last[1]:
            return
        self._journal.add(self.line({"update": update, "epoch": model.epoch, "time": round(time.time(), 3)} | point))
        if self._sender is not None:
            self._sender.wake.set()
            if self._sender.notes:
                self._tell()

    def note(self, text: str) -> None:
        """Have the thread of the training print a line."""
        self._sender.notes.append(text)

    def line(self, point: dict[str, Any]) -> str:
        """A point in the journal."""
        return json.dumps(point) + "\n"

    def _tell(self):
        notes = self._sender.notes
        while notes:
            print(f"{type(self).__name__}: {notes.popleft()}")

    # --- what travels in the checkpoint ---------------------------------------------------------------------------

    def flush(self) -> None:
        """A checkpoint is made."""
        if self._journal is not None:
            self._saved.append(self._before + self._journal.count)

    def state_dict(self) -> dict[str, Any]:
        """The run's id in the tracker, and how many points there are."""
        is_known = self._journal is not None and not self._is_loaded
        return {"id": self.id, "points": self._before + self._journal.count if is_known else self._points}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.id, self._points, self._is_loaded = state["id"], state["points"], True

    def take_files(self, model: TemplateModel, folder: Path) -> list[str]:
        """After ``load_state``: whether the run goes on, or another one begins with what was sent until there."""
        self._loaded_from = folder
        return []

    def start_afresh(self) -> None:
        """The checkpoint knows nothing of this tracker."""
        self.id, self._points, self._is_loaded = None, 0, True


class _Sender(threading.Thread):
    """Hands the journal's lines to a tracker, in their order.

    Args:
        tracker: whose methods are called, in this thread.
        mark: file that holds the id of the tracker's run, and how many points were handed over.
        close: method that closes the run at the interpreter's exit.
    """

    def __init__(self, tracker, about, journal, mark, close):
        super().__init__(daemon=True, name=f"{type(tracker).__name__} sender")
        self.tracker, self.about, self.journal, self.mark = tracker, about, journal, mark
        self.wake = threading.Event()
        self.notes: Any = deque()      # to be told by the thread of the training
        self.files: list[Any] = []     # (path, kind) to be sent
        self._status: str | None = None  # with which the run ends
        self._close_run = weakref.WeakMethod(close)
        self._is_open = False
        self._before = tracker._before  # points of the run that are not in the journal
        self._sent = 0                 # lines of it
        self._tries = 0
        self._again = 0.0              # when to try again, on time.monotonic's clock
        self._has_failed = False
        self._mark_file: Any = None
        self._place = 0                # in the journal, in bytes

    def end(self, status, seconds):
        """Send what is left, and finish; so many seconds are waited for it at most."""
        self._status = status
        self.wake.set()
        self.join(seconds)
        left = self.journal.count - self._sent
        if self.is_alive():
            self.notes.append(f"{left} points are not sent after {seconds:.0f} s, and nobody waits for them any longer. A "
                              "run that is resumed sends them.")
        elif left:
            self.notes.append(f"{left} points could not be sent. A run that is resumed sends them.")

    def run(self):
        while True:
            self.wake.wait(max(0.0, self._again - time.monotonic()) if self._again else None)
            self.wake.clear()
            status = self._status
            if status is None and time.monotonic() < self._again:
                continue
            try:
                self._open()
                self._send()
                self._again, self._tries = 0.0, 0
            except Exception as error:  # of the tracker, the network, the disk: whatever it is, the training goes on
                self._fail(error)
            if status is not None:
                self._close(status)
                return

    def _open(self):
        if self._is_open:
            return
        tracker, known = self.tracker, _read_mark(self.mark)
        id = known.get("id") or tracker.id
        tracker.known = {}
        tracker.id = tracker.start(self.about, id)
        self._sent = 0
        if id is not None and tracker.id == id:
            received = tracker.received(known.get("sent", 0) + self._before)
            self._sent = min(max(received - self._before, 0), self.journal.count)
        self._place = len("".join(list(self.journal.lines())[:self._sent]).encode("utf-8"))
        self._is_open = True
        self._note_sent()
        atexit.register(_call, self._close_run)  # before what the tracker's package does there

    def _send(self):
        for path, kind in self.files:
            self.tracker.file(path, kind)
        self.files = []
        if not self.journal.path.exists():
            return
        with open(self.journal.path, "rb") as file:
            file.seek(self._place)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._hand_over(json.loads(line))
                self._place += len(line)
                self._sent += 1
                self._tries = 0
                self._note_sent()

    def _hand_over(self, point):
        tracker, update, epoch, when = self.tracker, point.pop("update"), point.pop("epoch"), point.pop("time")
        tracker.number = self._before + self._sent
        if "text" in point:
            tracker.text(point["text"], point["content"], update, epoch)
        elif "picture" not in point:
            if tracker.known:
                point = {name: value for name, value in point.items()
                         if x_of(name, update, epoch) > tracker.known.get(name, -1)}
            if point:
                tracker.scalars(point, update, epoch, when)
        elif x_of(point["picture"], update, epoch) > tracker.known.get(point["picture"], -1):
            png = self.about.folder / point["file"]
            if png.exists() and zlib.crc32(png.read_bytes()) == point["crc"]:  # else a newer one has taken its place
                tracker.picture(point["picture"], png, update, epoch)

    def _note_sent(self):
        """In one write, so that a kill leaves the number before or this one."""
        content = json.dumps({"id": self.tracker.id, "sent": self._sent, "before": self._before}).ljust(200).encode() + b"\n"
        if self._mark_file is None:
            self.mark.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.mark, content)
            self._mark_file = open(self.mark, "r+b", buffering=0)
        self._mark_file.seek(0)
        self._mark_file.write(content)

    def _fail(self, error):
        self._again = time.monotonic() + _RETRY_SECONDS
        self._tries += 1
        if not self._has_failed:
            self._has_failed = True
            self.notes.append(f"{type(error).__name__}: {str(error).strip()[:500]} The training goes on. It is tried again "
                              f"every {_RETRY_SECONDS:.0f} s, and nothing is lost meanwhile.")
        if self._is_open and self._tries >= _MOST_TRIES and not self.files:
            self._leave_out_one()
        self.files = self.files[1:] if self._tries >= _MOST_TRIES else self.files

    def _leave_out_one(self):
        """The tracker does not take this point."""
        with open(self.journal.path, "rb") as file:
            file.seek(self._place)
            line = file.readline()
        if line.endswith(b"\n"):
            self._place, self._sent, self._tries = self._place + len(line), self._sent + 1, 0
            self._note_sent()

    def _close(self, status):
        try:
            if self._is_open:
                self.tracker.finish(status)
        except Exception as error:
            self._fail(error)
        if self._mark_file is not None:
            self._mark_file.close()
        self.tracker.run = None


def x_of(name: str, update: int, epoch: int) -> int:
    """Where a point of the curve ``name`` is on its axis: the epoch, or the update."""
    return epoch if name.startswith(("epoch/", "best/")) else update


def _call(reference):
    method = reference()
    if method is not None:
        method()


def _read_mark(path):
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}


def _kind(point):
    """What a point is, by which one that is done again is known."""
    for name in ("picture", "text"):
        if name in point:
            return f"{name} {point[name]}"
    return next(iter(point)).partition("/")[0]


def _last_of(lines):
    """The update of the last line, and what there is of this update."""
    update, kinds = -1, set()
    for line in reversed(lines):
        point = json.loads(line)
        if update not in (-1, point["update"]):
            break
        update = point.pop("update")
        del point["epoch"], point["time"]
        kinds.add(_kind(point))
    return update, kinds


def _status(model):
    """How the run ends, for trackers that show it."""
    error = sys.exc_info()[0]
    if model.lifetime.stop_request.signal or error in (KeyboardInterrupt, SystemExit):
        return "stopped"
    return "failed" if error is not None and issubclass(error, Exception) else "finished"


def _zipped_code(path):
    """The files of code below the working directory that git knows; without git, all of them. None: they are too much."""
    try:
        found = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, timeout=10)
        names = found.stdout.splitlines() if found.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired):
        names = None
    if names is None:
        names = [os.path.relpath(file) for file in Path().rglob("*") if not any(part[0] == "." for part in file.parts)]
    names = sorted(name for name in names if name.endswith(_CODE) and "site-packages" not in name and os.path.isfile(name))
    size = sum(os.path.getsize(name) for name in names)
    if size > _MOST_CODE:
        warn(f"The code is not saved: it must be at most {_MOST_CODE / 1e6:.0f} MB, and {len(names)} files below "
             f"{os.getcwd()} come to {size / 1e6:.0f} MB. Start the run in the folder of its code.")
        return None
    with told_when_it_fails(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.write(name)
        return path
    return None
