"""Runs ``fault_job.py`` with what the environment variable ``FAULT`` makes go wrong in it: ``python fault_moments.py 0``.

    FAULT="kill fsync 3 after"      SIGKILL after the third os.fsync; or "before" it; or "half", with half of it written
    FAULT="full 4 6 1000 50"        the 4th to 6th writing of a checkpoint fail with EFBIG (RLIMIT_FSIZE), last.pth behind
                                    1000 bytes, best.pth behind 50
    FAULT="at 9 delete_folder run"  after update 9 that is done: one of the functions of ACTIONS with its arguments
    FAULT="count"                   nothing; the process says at its end how often it passed each place

Several are joined by ";".
"""

import atexit
import builtins
import errno
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import fault_job

from template.checkpoint import files as checkpoint
from template.checkpoint import saver

PLACES = ("open", "write", "fsync", "testzip", "link", "replace", "unlink")  # what writing a checkpoint goes through


def arm():
    """Read ``FAULT`` and patch what it needs."""
    faults = [fault.split() for fault in os.environ.get("FAULT", "").split(";") if fault]
    kills = {(fault[1], int(fault[2])): fault[3] for fault in faults if fault[0] == "kill"}
    if kills or ["count"] in faults:
        _watch(kills)
    if any(fault[0] in ("count", "full") for fault in faults):
        _write_each_state()
    for first, last, *offsets in (map(int, fault[1:]) for fault in faults if fault[0] == "full"):
        _limit_file_size(range(first, last + 1), dict(zip((".last.pth", ".best.pth"), offsets)))
    actions = {int(fault[1]): fault[2:] for fault in faults if fault[0] == "at"}
    if actions:
        _act_after_updates(actions)


def _write_each_state():
    """The same number of writings in each run: no state gives its place to a newer one."""
    save = saver.Saver.save

    def save_and_wait(*args, **options):
        save(*args, **options)
        saver.wait_for_others()

    saver.Saver.save = save_and_wait


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


# --- SIGKILL in the middle of a write -----------------------------------------------------------------------------------


def _watch(kills):
    """Count the calls at each place, of all threads, and die at the chosen one."""
    seen, process = Counter(), os.getpid()

    def passing(place, call, half=None):
        def watched(*args, **kwargs):
            if os.getpid() != process:  # a worker
                return call(*args, **kwargs)
            seen[place] += 1
            moment = kills.get((place, seen[place]))
            if moment == "half" and half is not None:
                half(*args)
            if moment in ("before", "half"):
                _kill()
            result = call(*args, **kwargs)
            if moment == "after":
                _kill()
            return result
        return watched

    class File:
        """What ``open`` gave, with ``write`` watched."""

        def __init__(self, file):
            def half(data):
                file.write(memoryview(data)[: len(data) // 2])
                file.flush()

            self._file = file
            self.write = passing("write", file.write, half)

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._file.close()

    checkpoint.open = passing("open", lambda *args: File(builtins.open(*args)))
    for place in ("fsync", "link", "replace", "unlink"):
        setattr(os, place, passing(place, getattr(os, place)))
    zipfile.ZipFile.testzip = passing("testzip", zipfile.ZipFile.testzip)
    atexit.register(lambda: fault_job.say("passed " + " ".join(f"{place}={seen[place]}" for place in PLACES)))


# --- a full disk --------------------------------------------------------------------------------------------------------


def _limit_file_size(failing, offsets):
    """From the kernel: no file may grow beyond that while the chosen checkpoints are written.

    Says at each writing what the folder holds before it.
    """
    count = 0

    def limited(*args):
        nonlocal count
        count += 1
        path = Path(args[0])  # .last.pth.<process>.tmp
        fault_job.say(f"writing {count} {count in failing} {_digest(path.parent)}")
        offset = offsets[path.name[: len(".last.pth")]]
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (offset if count in failing else hard, hard))
        return builtins.open(*args)

    checkpoint.open = limited


def _digest(folder):
    contents = [(path.name, path.read_bytes()) for path in sorted(folder.glob("*.pth"))]
    return hashlib.sha256(repr(contents).encode()).hexdigest()


# --- after an update ----------------------------------------------------------------------------------------------------


def _act_after_updates(actions):
    told = fault_job.Told.on_after_step

    def on_after_step(self, model):
        told(self, model)
        if model.global_step in actions:
            model.wait_for_saves()  # what was begun before is none of it
            action, *arguments = actions[model.global_step]
            ACTIONS[action](*arguments)
            fault_job.say(f"files {_digest(Path('run'))}" if Path("run").exists() else "files none")

    fault_job.Told.on_after_step = on_after_step


def _fill(path):
    """Until not one more byte fits on the disk."""
    with builtins.open(path, "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC


def _mount_readonly(path):
    """What the folder holds stays readable, what is opened in it to be written fails with EROFS."""
    subprocess.run(["mount", "--bind", path, path], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)


def _unmount(path):
    subprocess.run(["umount", "-l", path], check=True)


ACTIONS = {
    "kill": _kill,
    "delete_folder": shutil.rmtree,
    "fill": _fill,
    "delete": os.unlink,
    "mount_readonly": _mount_readonly,
    "unmount": _unmount,
    "chmod": lambda path, mode: os.chmod(path, int(mode, 8)),
}


if __name__ == "__main__":
    fault_job.say("imported")
    arm()
    fault_job.main(int(sys.argv[1]))
