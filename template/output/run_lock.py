"""One folder has one writer: the process that trains there says so in a file ``.lock``.

    lock = RunLock()
    lock.claim("check_point/run")       # RunInUse where somebody else trains there
    lock.require()                      # before anything is written: is it still this one's?
    lock.release()

The file names the process and is renewed every ten seconds. One that was left behind is recognised and taken over: its
process is gone, or the number was given to another process. The processes of another machine cannot be looked at: there a
lock is left behind when it is not renewed for a minute, by the clock of the file system and by watching it, never by a
comparison of two machines' clocks. Only the creation of a file has to be atomic, so a network disk will do.

It guards against accidents, and keeps nobody from reading.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import forks
from .processes import UNKNOWN, started, this_machine

NAME = ".lock"
RENEWED_EVERY_SECONDS = 10.0
SILENT_SECONDS = 60.0  # after which a lock of another machine is taken for one that was left behind
_HELD: dict[Path, RunLock] = {}  # by this process
_JOBS = {"SLURM_JOB_ID": "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID": "TORCHELASTIC_RESTART_COUNT"}
_ADVICE = ("One folder has one writer. Wait until that one ends, or stop it, and then call load_state('auto') again. Or "
           "begin a run of its own, with another ckpt_dir. test(), predict() and use_best() only read, and work meanwhile.")
_GO_ON = ("load_state('auto') goes on from what is there now. To keep the state of this trainer, write it to another place "
          "with save_state(path).")


class RunInUse(RuntimeError):
    """Somebody else trains in the folder; the message says who, and what to do."""


class RunLock:
    """The claim of one trainer to one folder."""

    def __init__(self) -> None:
        self.is_busy = False  # its trainer is in the midst of training or of an evaluation
        self._path: Any = None
        self._token = ""
        self._has_written = False
        self._refusal = ""    # why nothing may be written; until another folder is claimed
        self._looked = 0.0    # when the file was seen to be its own, on time.monotonic's clock
        self._left: Any = None  # what ``last.pth`` was when the claim was given up
        forks.tell(self)

    def claim(self, folder: str | Path, waits: bool = True) -> None:
        """Become the one that writes in ``folder``; a claim to another folder is given up.

        Among trainers of one process the one that begins last has the folder.

        Args:
            waits: False counts a lock of which nothing is certain as taken; else it is watched, for a minute at most.

        Raises:
            RunInUse: somebody else is. From now on ``require`` raises it too, until a claim succeeds.
        """
        path = Path(folder).resolve() / NAME
        other = _HELD.get(path)
        if other is not self:
            if other is not None and other.is_busy:
                self._refuse(f"{_shown(path.parent)} is being trained in by another trainer of this process. {_ADVICE}")
            if other is not None:
                token, other._left = other._token, _stamp(path)
            else:
                token = self._taken(path, waits)
            self.release()
            self._path, self._token, self._has_written = path, token, False
            _HELD[path] = self
        self._refusal, self._left, self._looked = "", None, time.monotonic()

    def claim_or_tell(self, folder: str | Path) -> bool:
        """``claim``; where somebody else writes there, it says so and returns False."""
        try:
            self.claim(folder)
        except RunInUse as error:
            print(f"  only to look at: {error}")
        return not self._refusal

    def require(self) -> None:
        """Make sure that this trainer may write now, and that nobody else does.

        Raises:
            RunInUse: it may not, because another trainer or process has the folder.
        """
        if self._refusal:
            raise RunInUse(self._refusal)
        if self._path is None:
            return
        if _HELD.get(self._path) is not self:
            self._claim_again()
        elif time.monotonic() - self._looked > 1.0:
            self._look()
        self._has_written = True

    def _claim_again(self):
        path = self._path
        is_changed = self._left is not None and self._left != _stamp(path)
        if is_changed or path in _HELD and _HELD[path]._has_written:
            self._refuse(f"Another trainer or process has trained in {_shown(path.parent)} since, and this one does not "
                         f"have its state. {_GO_ON}")
        self.claim(path.parent)

    def _look(self):
        """Another machine may have taken over what was not renewed: this process was stopped, or the network was away."""
        path, found = self._path, _read(self._path)
        if found is None:  # somebody deleted the folder
            del _HELD[path]
            self.claim(path.parent)
        elif found["token"] != self._token:
            del _HELD[path]
            self._refuse(f"{_shown(path.parent)} was taken over by {_who(found)}, because this process did not renew its "
                         f"lock for more than {SILENT_SECONDS:g} seconds. {_GO_ON}")
        self._looked = time.monotonic()

    def _taken(self, path, waits):
        try:
            return _take(path, waits)
        except RunInUse as error:
            self._refusal = str(error)
            raise

    def _refuse(self, reason):
        self._refusal = reason
        raise RunInUse(reason)

    @property
    def is_refused(self) -> bool:
        """Nothing may be written, and that was said."""
        return bool(self._refusal)

    def release(self) -> None:
        """Give the claim up. Safe to call twice; ``require`` takes it up again."""
        if self._path is None or _HELD.get(self._path) is not self:
            return
        del _HELD[self._path]
        self._left = _stamp(self._path)
        found = _read(self._path)
        if found is not None and found["token"] == self._token:
            with suppress(OSError):
                self._path.unlink()

    def forked(self) -> None:
        """In a child the claim is the parent's."""
        _HELD.clear()
        if self._path is not None:
            folder = _shown(self._path.parent)
            self._refusal = (f"This process is a child, made by a fork, of the one that trains in {folder}, and writes "
                             "nothing there. A trainer that is made in the child has a folder of its own.")


def is_held(folder: str | Path) -> bool | None:
    """Whether somebody trains in ``folder`` now. False: a lock was left behind there, by a process that was killed; None:
    there is no lock. It only looks, and waits for nothing: a lock of another machine counts until it is silent for a minute.
    """
    path = Path(folder).resolve() / NAME
    if path in _HELD:
        return True
    found = _read(path)
    if found is None:
        return None
    is_alive = _is_alive({"pid": None, "started": None, "folder": "", **found}, _identity(path), path)
    return time.time() - found["renewed"] / 1e9 < SILENT_SECONDS if is_alive is None else is_alive


# --- the file ---------------------------------------------------------------------------------------------------------


def _take(path, waits):
    """Make the file; what was left behind is removed. Returns its token."""
    own = _identity(path)
    content = json.dumps(own).encode()
    watched = None
    while True:
        found = _read(path)
        if found is None:
            try:
                if _create(path, content):
                    _renew_in_background()
                    return own["token"]
            except OSError as error:
                print(f"{_shown(path)} could not be written: {error.strerror or error}. Nothing keeps another run from this "
                      "folder.")
                return own["token"]
            continue
        is_alive = _is_alive(found, own, path)
        if is_alive is None:
            watched = watched or _Watched(path, found)
            is_alive = watched.is_alive(found) if waits else True
        if is_alive:
            raise RunInUse(f"{_shown(path.parent)} is being trained in by {_who(found)}. {_ADVICE} If you are sure that it "
                           f"is gone, delete {_shown(path)}.")
        if is_alive is False:
            _remove(path, found)


def _identity(path):
    pid = os.getpid()
    jobs = {name: [value, int(os.environ.get(_JOBS[name]) or 0)]
            for name in _JOBS if (value := os.environ.get(name)) not in (None, "", "none")}
    return {"token": uuid.uuid4().hex, "host": socket.gethostname(), "machine": this_machine(), "pid": pid,
            "started": started(pid), "folder": str(path.parent), "jobs": jobs,
            "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _shown(path):
    """As short as it can be said from here."""
    try:
        return min(os.path.relpath(path), str(path), key=len)
    except ValueError:  # another drive, on Windows
        return str(path)


def _who(found):
    since = f" since {found['since']}" if found.get("since") else ""
    return f"process {found.get('pid', '?')} on {found.get('host', 'an unknown host')}{since}"


def _read(path) -> Any:
    """What the file holds and when it was renewed; None: there is none."""
    try:
        with open(path, "rb") as file:  # opened anew: a network disk then asks its server
            renewed = os.fstat(file.fileno()).st_mtime_ns
            content = file.read()
    except OSError:
        return None
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    return {"token": None, **(found if isinstance(found, dict) else {}), "renewed": renewed}


def _create(path, content):
    """Whether this process made the file: all of it at once, where the file system has links."""
    temporary = _temporary(path)
    try:
        temporary.write_bytes(content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:
            with suppress(FileExistsError), open(path, "xb") as file:
                file.write(content)
                return True
            return False
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _remove(path, found):
    """Take away the file that was found, and no other: two may have found it at the same time."""
    aside = _temporary(path)
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        if _read(aside)["token"] != found["token"]:
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)


def _temporary(path):
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")


def _stamp(path):
    """What the newest checkpoint beside the lock is, so that another one is recognised; () where there is none."""
    try:
        status = path.with_name("last.pth").stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _renew_in_background():
    if not any(thread.name == _THREAD for thread in threading.enumerate()):
        threading.Thread(target=_renew, name=_THREAD, daemon=True).start()


_THREAD = "renews the locks of runs"


def _renew():
    while True:
        time.sleep(RENEWED_EVERY_SECONDS)
        for path, lock in tuple(_HELD.items()):
            found = _read(path)
            if found is not None and found["token"] == lock._token:
                with suppress(OSError):
                    os.utime(path)


# --- who is alive -----------------------------------------------------------------------------------------------------


def _is_alive(found, own, path):
    """Whether the process that ``found`` names is at work there; None: that cannot be known from here."""
    for name, (job, attempt) in own["jobs"].items():
        other, before = found.get("jobs", {}).get(name, (None, 0))
        if other == job and before < attempt:  # a job is started again after all of its processes were ended
            return False
    if not own["machine"] or found.get("machine") != own["machine"]:
        return None
    if found["pid"] == own["pid"]:  # it is not held, so it is from before this process began anew by exec
        return False
    there = started(found["pid"])
    if there is None or UNKNOWN not in (there, found["started"]) and there != found["started"]:
        return False
    with suppress(OSError):
        if there != UNKNOWN and os.path.samefile(found["folder"], path.parent):
            return True
    return None  # perhaps a copy of the folder of a run that goes on


class _Watched:
    """A lock of which only its being renewed tells whether somebody is alive."""

    def __init__(self, path, found):
        self.found = found
        self.until = time.monotonic() + max(0.0, SILENT_SECONDS - _age(path, found))
        if self.until > time.monotonic():
            print(f"{_shown(path.parent)} was trained in by {_who(found)}. Looking for up to {SILENT_SECONDS:g} seconds "
                  "whether that one still goes on …", flush=True)

    def is_alive(self, found):
        """True, False, or None: look again."""
        if (found["renewed"], found["token"]) != (self.found["renewed"], self.found["token"]):
            return True
        if time.monotonic() >= self.until:
            return False
        time.sleep(min(1.0, SILENT_SECONDS / 20))
        return None


def _age(path, found):
    """Seconds since the lock was renewed, by the clock of the file system that it is on."""
    probe = _temporary(path)
    try:
        probe.write_bytes(b"?")
        return max(0.0, (probe.stat().st_mtime_ns - found["renewed"]) / 1e9)
    except OSError:
        return 0.0
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
