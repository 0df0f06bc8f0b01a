"""Start the command of a run again, and compare the weights of both after each epoch: to the last bit.

    python -m utils.tools.reproduce check_point/2026-11-27_14-03-11             # exit code 0: equal; 1: not
    python -m utils.tools.reproduce check_point/2026-11-27_14-03-11 --epochs 2  # stops when two epochs are compared

    found = reproduce("check_point/2026-11-27_14-03-11", epochs=2)
    print(found.is_equal, found.epochs, found.first_difference)

The command of the run's first start runs in a scratch folder, with the run's seed and number of threads, from the files of
its commit (``git worktree``). What git does not hold, for example data that it ignores, is linked from the project. The run
itself is only read. What a script writes to absolute paths by code of its own is not kept from it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..output.run_folder import REPRODUCE_IN
from ..output.run_record import RunRecord, folders_of_runs
from ..output.text_table import text_table

_LOOKS_EVERY_SECONDS = 0.3
_STOPS_SECONDS = 60.0      # after SIGTERM, until the run is ended without being asked
_LARGEST_COPY = 10_000_000  # bytes of a file that is copied rather than linked
_OF_THE_RUN = {"ckpt_dir", "run_name", "overwrite", "batches_done", "epoch", "epochs_done", "global_step",
               "global_step_eval", "is_sharded", "should_stop", "write_params", "total_epochs", "total_updates"}
_SENDS_NOTHING = {"WANDB_MODE": "disabled", "SWANLAB_MODE": "disabled"}  # by code of the user's
_WITH_A_VALUE = ("-X", "-W", "--check-hash-based-pycs")  # options of Python


class CannotReproduce(ValueError):
    """The run cannot be started again; the message says why, and what to do."""


@dataclass
class Reproduction:
    """What ``reproduce`` found. ``print`` says it in words."""

    run: str
    is_equal: bool = False
    """All digests that were compared are equal, and those of all epochs that were asked for were compared."""
    epochs: int = 0
    """How many epochs are equal, before the first one that differs."""
    first_difference: int | None = None
    """The epoch whose weights differ; None: there is none, or the reproduction ended before."""
    differences: list[dict[str, Any]] = field(default_factory=list)
    """``{"what": "environment.threads", "then": 2, "now": 1}`` for versions, device, threads, options and settings."""
    notes: list[str] = field(default_factory=list)
    """What else may be the reason."""
    folder: str | None = None
    """The scratch folder, with ``keep=True``."""

    def __str__(self) -> str:
        epochs = f"{self.epochs} epoch{'s' * (self.epochs != 1)}"
        if self.is_equal:
            return f"{self.run}: equal to the last bit for {epochs}."
        if self.first_difference is None:
            return "\n".join([f"{self.run}: not reproduced. {epochs} were equal to the last bit.", *self.notes])
        before = f"; {epochs} before it {'is' if self.epochs == 1 else 'are'} equal to the last bit" if self.epochs else ""
        lines = [f"{self.run}: not equal. The weights differ after epoch {self.first_difference}{before}."]
        if self.differences:
            lines += ["These are different now:", text_table(self.differences)]
        else:
            lines.append("Versions, device, threads, options and settings are the same as far as the run noted them.")
        return "\n".join([*lines, *self.notes])


def reproduce(run: str | Path, epochs: int | None = None, present_files: bool = False, keep: bool = False,
              tell: Callable[[str], object] = print) -> Reproduction:
    """Start a run again and compare it.

    Args:
        run: its folder.
        epochs: stop after so many; None: as many as the run has.
        present_files: run the files as they are now, instead of those of the commit: for a run whose files were changed and
            not committed, and that are still the same.
        keep: leave the scratch folder.
        tell: called with each line of progress.

    Raises:
        FileNotFoundError: there is no such run.
        CannotReproduce: it was started from a notebook, by an older version, from files that are not known, …
    """
    record = RunRecord(run)
    expected = _expected(record, epochs)
    start = record.starts[0]
    commit = _commit_of(start, present_files)
    project = _project_of(record, start)
    scratch = Path(tempfile.mkdtemp(prefix="reproduce-")).resolve()
    try:
        top = _fill(scratch, project, commit, record.folder.resolve(), tell)
        command, folder = _command(start, project, top, scratch)
        environment = _environment(start, scratch, project, top)
        threads = environment.get("OMP_NUM_THREADS")
        tell(f"Started again: {' '.join(_short(part) for part in command[1:])}, with seed {_seed_of(start)}"
             f"{f' and OMP_NUM_THREADS={threads}' if threads else ''}")
        found = _compare(record, expected, command, folder, environment, scratch, tell)
        found.folder = str(scratch) if keep else None
        return found
    finally:
        if not keep:
            _remove(scratch, project if commit else None)


# --- what is to be reproduced -------------------------------------------------------------------------------------------


def _expected(record, epochs):
    """``{epoch: row of digests.csv}``; of a run that never ended an epoch by updates."""
    folder = record.folder
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no run {folder}. Give the folder of a run, for example check_point/<run>.")
    if not record.starts:
        raise CannotReproduce(f"{folder} has no config.json that can be read, so nobody knows how the run was started.")
    start = record.starts[0]
    if not isinstance(start.get("process"), dict) or not record.digests:
        why = "has no digests.csv with the digest of an epoch in it" if "process" in start else (
            "was started by a version of the template that did not note how")
        raise CannotReproduce(f"{folder} {why}. A run that is started with this version, and that has saved an epoch, can "
                              "be reproduced.")
    arguments = start["process"]["arguments"]
    if any("kernel_launcher" in argument for argument in arguments):
        raise CannotReproduce(f"{folder} was started from a notebook, whose cells may have run in any order: there is no "
                              "command to start again. Put the code into a script to make the run reproducible.")
    if _place_of_script(arguments) is None:
        raise CannotReproduce(f"{folder} was typed into an interactive session: there is no command to start again.")
    if (nodes := start["process"]["nodes"]) > 1:
        raise CannotReproduce(f"{folder} ran on {nodes} machines, and this tool starts processes on one. Start it by hand "
                              "in another folder, and compare the two by: python -m utils.tools.runs diff")
    of_epochs = {row["epoch"]: row for row in record.digests.values() if row["batch"] == 0}
    found = of_epochs or {step: row for step, row in record.digests.items()}
    found = {number: row for number, row in found.items() if epochs is None or number <= epochs}
    if not found:
        raise CannotReproduce(f"{folder} has saved no epoch up to {epochs}; it has {', '.join(map(str, of_epochs))}.")
    return dict(sorted(found.items()))


def _commit_of(start, present_files):
    """None: the present files are run."""
    commit = (start.get("environment") or {}).get("commit")
    if present_files or commit is None:
        return None
    if commit.endswith("-dirty"):
        raise CannotReproduce(
            f"When the run was started, files were changed that were not committed ({commit}), so the commit alone does not "
            "hold what ran. If the files are still as they were then, run them with --present-files. Commit before the next "
            "run, and it can be reproduced at any time.")
    return commit


def _project_of(record, start):
    """The folder that the script was started in, which may have been moved with its runs since."""
    noted, asked = Path(start["process"]["folder"]), (start.get("settings") or {}).get("ckpt_dir")
    if noted.is_dir():
        return noted
    parts = Path(asked or "/").parts
    here = record.folder.resolve()
    if not Path(asked or "/").is_absolute() and ".." not in parts and here.parts[-len(parts):] == parts:
        return here.parents[len(parts) - 1]
    raise CannotReproduce(f"The run was started in {noted}, and that folder is not there any more.")


def _seed_of(start):
    return (start.get("settings") or {}).get("seed")


# --- the scratch folder -------------------------------------------------------------------------------------------------


def _git(folder, *arguments):
    """What git says; None where it fails."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _fill(scratch, project, commit, run, tell):
    """Put the project into ``scratch``. Returns ``(its top, the same in scratch)``."""
    copy = scratch / "project"
    if commit is None:
        top = Path((_git(project, "rev-parse", "--show-toplevel") or str(project)).strip())
        copy.mkdir()
        names = [path.name for path in top.iterdir()]
        linked = _link(top, copy, names, run, copies=True)
        tell(f"The files of {top} are run as they are now: no commit holds them.")
        return top, copy
    top = Path((_git(project, "rev-parse", "--show-toplevel") or "").strip() or project)
    if _git(top, "worktree", "add", "--detach", str(copy), commit) is None:
        raise CannotReproduce(f"git cannot check out commit {commit} of {top}. Is it in this copy of the repository? Fetch "
                              "it (git fetch --unshallow), or run the present files with --present-files.")
    tell(f"The files are those of commit {commit[:60]}.")
    unknown = (_git(top, "ls-files", "--others", "--directory", "-z") or "").split("\0")
    modules = [line.split("\t", 1)[1] for line in (_git(top, "ls-files", "--stage") or "").splitlines()
               if line.startswith("160000")]
    for name in modules:
        with suppress(OSError):
            (copy / name).rmdir()
    linked = _link(top, copy, [name.rstrip("/") for name in (*unknown, *modules) if name], run)
    if linked:
        more = f" and {len(linked) - 8} more" if len(linked) > 8 else ""
        tell(f"Linked, as git does not hold it: {', '.join(linked[:8])}{more}")
    return top, copy


def _link(top, copy, names, run, copies=False):
    """Links to what the project has under these names, but not to where runs are. Returns the names."""
    linked = []
    for name in sorted(names):
        source, target = top / name, copy / name
        is_of_runs = name.split("/")[0] in ("check_point", "runs") or run.is_relative_to(source.resolve())
        if is_of_runs or Path(name).name in ("__pycache__", ".git") or target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if copies and source.is_file() and source.stat().st_size <= _LARGEST_COPY:
            shutil.copy2(source, target)
            continue
        try:
            target.symlink_to(source.resolve(), target_is_directory=source.is_dir())
        except OSError as error:
            raise CannotReproduce(f"{source} cannot be linked into {copy}: {error.strerror or error}.") from error
        linked.append(name)
    return linked


def _remove(scratch, project):
    if project is not None:
        _git(project, "worktree", "remove", "--force", str(scratch / "project"))
    shutil.rmtree(scratch, ignore_errors=True)
    if project is not None:
        _git(project, "worktree", "prune")


# --- the command --------------------------------------------------------------------------------------------------------


def _place_of_script(arguments):
    """Where the script, ``-m`` or ``-c`` stands among the arguments of Python; None: there is none."""
    place = 0
    while place < len(arguments):
        argument = arguments[place]
        if argument in ("-m", "-c") or not argument.startswith("-"):
            return place
        if argument == "-":
            return None
        place += 2 if argument in _WITH_A_VALUE else 1
    return None


def _command(start, project, top, scratch):
    """``(command, the folder to run it in)``."""
    process, (source, copy) = start["process"], top
    inside = Path(os.path.relpath(Path(project).resolve(), source.resolve()))
    folder = copy / inside
    arguments = list(process["arguments"])
    place = _place_of_script(arguments)
    ahead, script = arguments[:place], arguments[place:]
    fixed = 2 if script[0] in ("-m", "-c") else 0  # a name or code, which is no path
    script = [*script[:fixed], *(_moved(argument, project, source, copy, folder) for argument in script[fixed:])]
    if process["ranks"] == 1:
        return [sys.executable, *ahead, *script], folder
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(process["ranks"]),
            *script], folder


def _moved(argument, project, source, copy, folder):
    """An argument that is a path: in the scratch folder where the file is there, else as an absolute one."""
    option, sign, value = argument.rpartition("=") if argument.startswith("-") else ("", "", argument)
    path = Path(project, value)
    if not value or value.startswith("-") or len(value) > 1000 or not path.exists():
        return argument
    if path.is_absolute() and Path(value).is_absolute() and path.resolve().is_relative_to(source.resolve()):
        there = copy / path.resolve().relative_to(source.resolve())
        return f"{option}{sign}{there}" if there.exists() else argument
    return argument if (folder / value).exists() else f"{option}{sign}{path.resolve()}"


def _environment(start, scratch, project, top):
    environment = {**os.environ, **_SENDS_NOTHING, REPRODUCE_IN: str(scratch), "PYTHONDONTWRITEBYTECODE": "1",
                   "MLFLOW_TRACKING_URI": (scratch / "mlruns").as_uri(), "TRACKIO_DIR": str(scratch / "trackio")}
    if isinstance(_seed_of(start), int):
        environment["REPRODUCE_SEED"] = str(_seed_of(start))
    threads = (start.get("environment") or {}).get("threads")
    if threads:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    source, copy = (path.resolve() for path in top)
    paths = [Path(path).resolve() for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment["PYTHONPATH"] = os.pathsep.join(
        str(copy / path.relative_to(source) if path.is_relative_to(source) else path) for path in paths)
    return environment


def _short(text):
    return text if len(text) <= 60 else f"…{text[-57:]}"


# --- comparing ----------------------------------------------------------------------------------------------------------


def _compare(record, expected, command, folder, environment, scratch, tell):
    found = Reproduction(str(record.folder))
    with open(scratch / "output.txt", "wb") as output:
        process = _start(command, folder, environment, output)
        try:
            other = _follow(record, expected, process, scratch, found, tell)
        finally:
            _stop(process)
    is_explained = bool(found.notes)
    if found.first_difference is not None and other is not None:
        found.differences = _differences(record.starts[0], other.starts[0])
        found.notes += _losses(record, other, found.first_difference)
    if not found.is_equal and not is_explained:
        found.notes += _hints(record, process.returncode, found, scratch / "output.txt")
    return found


def _start(command, folder, environment, output):
    return subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                            stderr=subprocess.STDOUT, start_new_session=True)


def _follow(record, expected, process, scratch, found, tell):
    """Compare epoch by epoch as they appear. Returns the record of the run that is compared, once there is one."""
    other, by_epoch = None, any(row["batch"] == 0 for row in expected.values())
    waiting = list(expected)
    while True:
        has_ended = process.poll() is not None
        other = other or _counterpart(record, scratch)
        rows = RunRecord(other).digests if other else {}
        rows = {row["epoch"]: row for row in rows.values() if row["batch"] == 0} if by_epoch else rows
        while waiting and max(rows, default=-1) >= waiting[0]:
            number = waiting.pop(0)
            if number not in rows and waiting:  # that save was taken together with a later one, see checkpoint/saver.py
                continue
            if number not in rows:
                found.notes.append(f"{'Epoch' if by_epoch else 'Update'} {number} was not compared, because its save was "
                                   "taken together with a later one: the disk was busy. Start it again.")
                return RunRecord(other)
            mine, theirs = expected[number], rows[number]
            if (mine["digest"], mine["global_step"]) != (theirs["digest"], theirs["global_step"]):
                found.first_difference = number
                tell(f"{'epoch' if by_epoch else 'update'} {number}: different")
                return RunRecord(other)
            found.epochs += 1
            tell(f"{'epoch' if by_epoch else 'update'} {number}: equal, {mine['digest'][:16]}…")
        if not waiting:
            found.is_equal = True
        if not waiting or has_ended:
            return RunRecord(other) if other else None
        time.sleep(_LOOKS_EVERY_SECONDS)


def _counterpart(record, scratch):
    """The folder of the run in ``scratch`` that is this one again: a script may make several."""
    mine = _identity(record)
    earlier = [folder for folder in folders_of_runs(record.folder.parent)
               if folder.resolve() != record.folder.resolve() and _process(folder) == _process(record.folder)
               and _number(folder) < _number(record.folder) and _identity(RunRecord(folder)) == mine]
    alike = sorted((folder for folder in folders_of_runs(scratch) if (folder / "digests.csv").exists()
                    and _identity(RunRecord(folder)) == mine), key=_number)
    return alike[len(earlier)] if len(alike) > len(earlier) else None


def _identity(record):
    """What tells the runs of one script apart."""
    start = record.starts[0] if record.starts else {}
    asked = str(start.get("asked_for"))
    is_own_name = not re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?", asked)
    return _seed_of(start), asked if is_own_name else None, repr(sorted(_without_resume(start.get("options")).items()))


def _process(folder):
    starts = RunRecord(folder).starts
    return (starts[0].get("process") or {}).get("id") if starts else None


def _number(folder):
    starts = RunRecord(folder).starts
    return starts[0].get("number") or 0 if starts else 0


def _without_resume(options):
    return {name: value for name, value in (options or {}).items() if "resume" not in name}


def _stop(process):
    """As a cluster would: it saves, and leaves."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOPS_SECONDS)
        except subprocess.TimeoutExpired:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()


def _differences(then, now):
    """Between two starts, as rows of a table."""
    rows = []
    for part in ("environment", "options", "settings"):
        mine, theirs = (_without_resume(start.get(part)) for start in (then, now))
        rows += [{"what": f"{part}.{name}", "then": str(mine.get(name)), "now": str(theirs.get(name))}
                 for name in dict.fromkeys((*mine, *theirs))
                 if name not in _OF_THE_RUN and mine.get(name) != theirs.get(name) and not _is_commit(name, mine, theirs)]
    ranks = [(start.get("process") or {}).get("ranks") for start in (then, now)]
    if ranks[0] != ranks[1]:
        rows.append({"what": "processes", "then": str(ranks[0]), "now": str(ranks[1])})
    return rows


def _is_commit(name, mine, theirs):
    """Whether it is the commit of a scratch folder without git, or one that has links in it."""
    return name == "commit" and (theirs.get(name) is None or mine.get(name) == theirs[name].removesuffix("-dirty"))


def _losses(record, other, epoch):
    """How far apart the runs are, in their own numbers."""
    rows: list[dict[str, Any]] = [next((row for row in run.rows if row["epoch"] == epoch), {}) for run in (record, other)]
    names = [name for name in rows[0] if name.startswith(("train/", "eval/")) and name in rows[1]]
    return [f"Epoch {epoch}: {name} {rows[0][name]!r} then, {rows[1][name]!r} now." for name in names[:2]]


def _hints(record, code, found, output):
    notes = []
    if found.first_difference is None:
        said = output.read_text(encoding="utf-8", errors="replace").splitlines()
        last = "\n".join(f"  {line}" for line in said[-20:])
        notes.append(f"The run that was started again ended with exit code {code} before its next epoch was saved. Its last "
                     f"lines:\n{last}")
        return notes
    first = record.starts[0]
    for number, start in enumerate(record.starts[1:], 2):
        rows = [row for row in _differences(first, start) if row["what"] != "environment.commit"]
        changed = ", ".join(f"{row['what']} ({row['then']}, then {row['now']})" for row in rows[:4])
        if changed and start.get("ended") is not None or changed and number == len(record.starts):
            notes.append(f"The run was continued with other settings, in start {number}: {changed}. What ran now is the "
                         "command of its first start.")
    log = record._part_of_log(1 << 18)
    if "Weights that were drawn before do not come from seed" in log:
        notes.append("The first weights of the run did not come from its seed. Call seed_everything(seed) before you build "
                     "the models: the next run can be reproduced then.")
    device = (first.get("environment") or {}).get("device") or ""
    if device.startswith("cuda") and not (first.get("settings") or {}).get("deterministic"):
        notes.append("Some kernels of a GPU add in an order that varies. With deterministic = True they do not.")
    if not found.differences and not notes:
        notes.append("Look for random numbers that do not come from the seed, for the time or the order of files, and for "
                     "data that has changed.")
    return notes


# --- the command line ---------------------------------------------------------------------------------------------------


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("--epochs", type=int, metavar="N", help="stop when N epochs are compared")
    parser.add_argument("--present-files", action="store_true", help="run the files as they are now, not the commit's")
    parser.add_argument("--keep", action="store_true", help="leave the scratch folder")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        found = reproduce(options.run, options.epochs, options.present_files, options.keep,
                          tell=lambda line: print(line, flush=True))
    except (OSError, CannotReproduce) as error:
        sys.exit(str(error))
    print(found)
    if found.folder:
        print(f"What it wrote is in {found.folder}. When you have looked, delete it, and call: git worktree prune")
    sys.exit(0 if found.is_equal else 1)


if __name__ == "__main__":
    main()
