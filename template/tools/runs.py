"""The runs under ``check_point/``: list, filter, sort, compare and delete them. It has no server, and reads what is there.

    python -m utils.tools.runs                                  # all runs, the newest last
    python -m utils.tools.runs --where "lr<1e-3 and acc>0.98" --sort acc
    python -m utils.tools.runs show 2026-11-27_14-03-11         # one of them; the beginning or the end of a name will do
    python -m utils.tools.runs diff baseline wider              # settings, versions, curves, weights
    python -m utils.tools.runs delete baseline                  # asks first; TensorBoard events go too
    python -m utils.tools.runs --json

    for run in list_runs("check_point", where="state=finished"):    # the same from Python
        print(run.name, run.value("acc"))

No checkpoint is loaded and nothing is written, so it may look at runs that go on. ``output/conditions.py`` says what
``--where`` takes.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..metrics.best import best_in_rows, direction_of
from ..output.conditions import is_number, parse
from ..output.named_values import flat
from ..output.run_lock import RunInUse, RunLock, is_held
from ..output.run_record import RunRecord, folders_of_runs
from ..output.text_table import text_table

_ROOT, _TENSORBOARD = "check_point", "runs"
_NO_SETTINGS = {"ckpt_dir", "run_name", "batches_done", "epoch", "epochs_done", "global_step", "global_step_eval",
                "is_sharded", "should_stop", "write_params"}  # differ from run to run, or are no settings
_MOST_ROWS = 8  # of curves side by side


class Run:
    """One run of the list: its place, its state, and every value that it has by name."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.record = folder, RunRecord(folder)
        self.name = folder.relative_to(root).as_posix() if folder != root else folder.resolve().name

    @property
    def state(self) -> str:
        return self.record.state

    @cached_property
    def key(self) -> str | None:
        """The name of the quantity that decides what is best."""
        name = self.record.key[0]
        if name is None and len(self.best) == 1:
            name = next(iter(self.best))
        return name and name.removeprefix("train/") if name not in self.best else name

    @cached_property
    def best(self) -> dict[str, tuple[float, float]]:
        """``{quantity: (epoch, its best value)}``."""
        name, mode = self.record.key
        return dict(best_in_rows(self.record.rows, {name.removeprefix("train/"): mode} if name and mode else {}))

    @cached_property
    def epochs(self) -> int:
        """Epochs that are done, as far as files say."""
        return int(self.record.rows[-1]["epoch"]) if self.record.rows else int(self.record.end.get("epochs") or 0)

    @cached_property
    def minutes(self) -> float:
        """Of training, in all its processes; evaluations are not in it."""
        seconds = [row["seconds"] for row in self.record.rows if isinstance(row.get("seconds"), (int, float))]
        return sum(seconds) / 60

    @cached_property
    def started(self) -> str:
        """When it was started first: "2026-11-27 14:03:11"."""
        return str(self.record.starts[0].get("started") or "") if self.record.starts else ""

    @cached_property
    def age(self) -> float:
        """Days since then; of a run that does not say when it was started, since its folder was changed."""
        try:
            then = time.mktime(time.strptime(self.started, "%Y-%m-%d %H:%M:%S"))
        except ValueError:
            then = self.folder.stat().st_mtime
        return max(time.time() - then, 0) / 86400

    @cached_property
    def values(self) -> dict[str, Any]:
        """All that ``--where`` and ``--sort`` know, by its full name."""
        record, last = self.record, self.record.rows[-1] if self.record.rows else {}
        found = {"name": self.name, "state": self.state, "why": record.end.get("why"), "epochs": self.epochs,
                 "minutes": self.minutes, "age": self.age, "started": self.started, "metric": self.key,
                 "best": self.best[self.key][1] if self.key in self.best else None, "updates": last.get("global_step")}
        parts: dict[str, dict[str, Any]] = {name: record.newest(name) for name in ("options", "settings", "environment")}
        parts["best"] = {name: value for name, (_, value) in self.best.items()}
        parts["last"] = {name: value for name, value in last.items() if name not in ("epoch", "global_step", "seconds")}
        for part, own in parts.items():
            found |= {f"{part}.{name}": value for name, value in flat(own)}
        return found

    @cached_property
    def _by_short_name(self):
        """``{name without its part: value}``; of equal names the first counts: columns, options, settings, best, … The "lr"
        of ``history.csv`` has no short name: it would stand in for an option that a run does not have."""
        found: dict[str, Any] = {}
        for name, value in self.values.items():
            part, dot, rest = name.partition(".")
            if part != "last" or "/" in rest:
                found.setdefault(_plain(rest if dot else part), value)
        return found

    def has(self, name: str) -> bool:
        return name in self.values or _plain(name) in self._by_short_name

    def value(self, name: str) -> Any:
        """By its full name, "options.lr", or the short one, "lr"; None where the run has none."""
        return self.values[name] if name in self.values else self._by_short_name.get(_plain(name))

    def as_row(self) -> dict[str, Any]:
        """A line of the list."""
        of, best = self.record.end.get("of"), self.best.get(self.key or "")
        epochs = f"{self.epochs}/{of}" if of and of != self.epochs else str(self.epochs)
        return {"run": self.name, "state": self.state, "age": _words(self.age), "epochs": epochs, "metric": self.key,
                "best": float(best[1]) if best else None, "in epoch": round(best[0], 2) if best else None,
                "minutes": float(self.minutes) if self.minutes else None}

    def as_data(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        short = {name: value for name, value in self.values.items() if "." not in name}
        record = self.record
        return short | {
            "folder": str(self.folder), "best_epoch": self.best[self.key][0] if self.key in self.best else None,
            "end": record.end, "options": record.newest("options"), "settings": record.newest("settings"),
            "environment": record.newest("environment"), "starts": len(record.starts),
            "best_values": {name: value for name, (_, value) in self.best.items()},
            "last_values": record.rows[-1] if record.rows else {}, "notes": record.notes}


def list_runs(root: str | Path = _ROOT, where: str | Sequence[str] = (), sort: str | None = None,
              reverse: bool = False) -> list[Run]:
    """The runs below ``root``.

    Args:
        root: a folder; the runs in it may be at any depth, as those of ``kfold`` and ``search`` are.
        where: conditions that all have to be true: "lr<1e-3", "state=finished and acc>0.98".
        sort: the name of a value. What is better comes first where the name says which way is better, else the lowest. None:
            the order in which the runs were started.
        reverse: the other way round.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a condition cannot be read, or no run has the value that it asks for.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root} here, in {Path.cwd()}. Go to where your training script is "
                                "started, or name the folder of your runs: --root FOLDER.")
    found = [Run(folder, root) for folder in folders_of_runs(root)]
    conditions = [parse(text) for text in ([where] if isinstance(where, str) else where)]
    for name in [name for condition in conditions for name in condition.names] + ([sort] if sort else []):
        _require_known(name, found)
    found = [run for run in found if all(condition(run.value) for condition in conditions)]
    if sort is None:
        return sorted(found, key=lambda run: (-run.age, run.name), reverse=reverse)
    return _sorted(found, sort, reverse)


def _require_known(name, runs):
    if runs and not any(run.has(name) for run in runs):
        known = sorted({short for run in runs for short in run._by_short_name})
        close = difflib.get_close_matches(_plain(name), known, 4, 0.5)
        hint = f"Did you mean {', '.join(close)}?" if close else f"There are {', '.join(known[:30])}."
        raise ValueError(f"No run here has a value named {name!r}. {hint}")


def _sorted(runs, name, reverse):
    """Numbers before text, and what has no value at the end, whichever way round."""
    modes = {run.record.key[1] for run in runs if run.key and name in ("best", run.key)} - {None}
    direction = next(iter(modes)) if len(modes) == 1 else direction_of(_plain(name.rpartition(".")[2]))
    downwards = (direction == "max") != reverse
    numbers = [run for run in runs if is_number(run.value(name))]
    texts = [run for run in runs if not is_number(value := run.value(name)) and value is not None and value == value]
    rest = [run for run in runs if run not in numbers and run not in texts]
    return (sorted(numbers, key=lambda run: run.value(name), reverse=downwards)
            + sorted(texts, key=lambda run: str(run.value(name)), reverse=reverse) + rest)


def _plain(name):
    return name.replace("-", "_")


def _words(days):
    """"3 min", "5 h", "2 d"."""
    minutes = days * 1440
    if minutes < 60:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if days < 2 else f"{days:.0f} d"


# --- one run, and two -------------------------------------------------------------------------------------------------


def find_run(name: str, root: str | Path = _ROOT) -> Run:
    """The run that a person means: a path, a name below ``root``, or what one name alone begins or ends with.

    Raises:
        FileNotFoundError: there is none, or there are several.
    """
    root = Path(root)
    for folder in (root / name, Path(name)):
        if folder.is_dir() and folder in folders_of_runs(folder):
            return Run(folder, root if folder.is_relative_to(root) else folder.parent)
    runs = list_runs(root)
    found = [run for run in runs if run.name.startswith(name)] or [run for run in runs if run.name.endswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(sorted(run.name for run in found)[:8])
        raise FileNotFoundError(f"{name!r} means {len(found)} runs in {root}: {names}. Write more of the name.")
    raise FileNotFoundError(f"There is no run {name!r} in {root}. The newest are: "
                            f"{', '.join(run.name for run in runs[-8:]) or 'none'}.")


def show(run: Run) -> str:
    """All about one run, as text."""
    record = run.record
    parts = [f"{run.folder}: {run.state}" + (f" ({why})" if (why := record.end.get("why")) else "")]
    starts = [{"start": number, "at": start.get("started"), "ended": (start.get("ended") or {}).get("how", ""),
               "command": _command(start)} for number, start in enumerate(record.starts, 1)]
    parts.append(text_table(starts) if starts else "")
    parts.append(text_table([{"quantity": name, "best": float(value), "in epoch": round(epoch, 2)}
                             for name, (epoch, value) in sorted(run.best.items(), key=lambda item: item[0] != run.key)])
                 if run.best else "No evaluation yet.")
    if record.rows:
        from ..output.curves_text import characters_for, text_figure  # numpy
        parts.append(text_figure(record.rows, run.key, {name: best for name, best in run.best.items()},  # type: ignore[misc]
                                 shutil.get_terminal_size().columns, characters=characters_for(sys.stdout.encoding)))
    for what in ("options", "settings", "environment"):
        own = {name: value for name, value in flat(record.newest(what)) if what != "settings" or value not in (None, {})}
        parts.append(f"{what}\n" + text_table([{"": "", "name": f"  {name}", "value": str(value)} for name, value
                                              in own.items() if name not in _NO_SETTINGS]) if own else "")
    if record.digests:
        newest = record.digests[max(record.digests)]
        parts.append(f"weights after epoch {newest['epoch']}, update {newest['global_step']}: {newest['digest'][:16]}…")
    files = sorted((path for path in run.folder.iterdir() if path.is_file() and path.name != ".lock"), key=_name)
    parts.append("files\n" + "\n".join(f"  {path.name}  {_size(path.stat().st_size)}" for path in files))
    return "\n\n".join(part for part in [*parts, *record.notes] if part)


def diff(one: Run, other: Run) -> str:
    """What two runs differ in, as text: options, settings, versions, results, curves, weights."""
    parts, names = [], (one.name, other.name) if one.name != other.name else (str(one.folder), str(other.folder))
    rows = []
    for what in ("options", "settings", "environment"):
        mine, theirs = (dict(flat(run.record.newest(what))) for run in (one, other))
        rows += [{"what": f"{what}.{name}", names[0]: str(mine.get(name, "")), names[1]: str(theirs.get(name, ""))}
                 for name in dict.fromkeys((*mine, *theirs))
                 if name not in _NO_SETTINGS and mine.get(name) != theirs.get(name)]
    parts.append(text_table(rows) if rows else "Options, settings and versions are the same.")
    results = [{"best": name, names[0]: _best_in_words(one, name), names[1]: _best_in_words(other, name)}
               for name in dict.fromkeys((*one.best, *other.best))]
    results += [{"best": what, names[0]: str(get(one)), names[1]: str(get(other))} for what, get in (
        ("epochs", lambda run: run.epochs), ("minutes", lambda run: f"{run.minutes:.3g}"), ("state", lambda run: run.state))]
    parts.append(text_table(results))
    column = _column(one, other)
    if column:
        curves: list[dict[float, Any]] = [{row["epoch"]: row.get(column) for row in run.record.rows} for run in (one, other)]
        epochs = sorted(curves[0].keys() | curves[1].keys())
        step = max((len(epochs) - 1) / (_MOST_ROWS - 1), 1)
        chosen = sorted({epochs[min(round(i * step), len(epochs) - 1)] for i in range(_MOST_ROWS)})
        parts.append(f"{column}\n" + text_table([
            {"epoch": epoch, names[0]: curves[0].get(epoch), names[1]: curves[1].get(epoch)} for epoch in chosen]))
    parts.append(_weights_compared(one.record.digests, other.record.digests))
    return "\n\n".join(part for part in [*parts, *one.record.notes, *other.record.notes] if part)


def _best_in_words(run, name):
    if name not in run.best:
        return ""
    epoch, value = run.best[name]
    return f"{value:.5g} (epoch {epoch:g})"


def _column(one, other):
    """The column of ``history.csv`` in which two runs are compared."""
    common = {name for row in one.record.rows for name in row} & {name for row in other.record.rows for name in row}
    keys = [f"{part}/{run.key}" for run in (one, other) if run.key for part in ("eval", "train")]
    return next((name for name in (*keys, "eval/tol_loss", "train/tol_loss") if name in common), None)


def _weights_compared(mine, theirs):
    steps = sorted(mine.keys() & theirs.keys())
    if not steps:
        return ""
    differ = next((step for step in steps if mine[step]["digest"] != theirs[step]["digest"]), None)
    if differ is None:
        return f"The weights are equal to the last bit in all {len(steps)} saves that both have, until update {steps[-1]}."
    return f"The weights differ from update {differ} on, epoch {mine[differ]['epoch']}."


def _command(start):
    process = start.get("process")
    arguments = process.get("arguments") if isinstance(process, dict) else None
    command = arguments or start.get("command") or []
    return " ".join(map(str, command)) if isinstance(command, list) else str(command)


def _name(path):
    return path.name


def _size(count):
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


# --- deleting -----------------------------------------------------------------------------------------------------------


def delete(run: Run, root: str | Path = _ROOT) -> list[Path]:
    """Remove the folder of a run, with all runs in it, and its TensorBoard events.

    Returns:
        The folders that are gone.

    Raises:
        RunInUse: somebody trains there. Nothing was deleted.
        ValueError: the folder is not below ``root``.
    """
    if Path(root).resolve() not in run.folder.resolve().parents:
        raise ValueError(f"Only what is in the folder of the runs is deleted, and {run.folder} is not in {root}. Name the "
                         "folder that it is in: --root FOLDER.")
    inner = folders_of_runs(run.folder)
    for folder in {run.folder, *inner}:
        if is_held(folder):
            raise RunInUse(f"{folder} is being trained in, so it is not deleted. Stop that run first.")
    events = [path for folder in inner if (path := events_of(Run(folder, Path(root)), root)) is not None]
    lock = RunLock()
    lock.claim(run.folder, waits=False)  # nobody begins there meanwhile
    try:
        for folder in (*events, run.folder):
            shutil.rmtree(folder)
    finally:
        lock.release()
    return [*events, run.folder]


def events_of(run: Run, root: str | Path = _ROOT) -> Path | None:
    """The folder of its TensorBoard events, beside ``root``; None where there is none, or where another run shares it."""
    name, beside = run.record.newest("settings").get("run_name"), Path(root).resolve().parent / _TENSORBOARD
    if not isinstance(name, str) or not name:
        return None
    folder = (beside / name).resolve()
    if not folder.is_relative_to(beside) or folder == beside or next(folder.glob("**/events.out.tfevents*"), None) is None:
        return None
    others = (Run(path, Path(root)) for path in folders_of_runs(root) if path.resolve() != run.folder.resolve())
    return None if any(other.record.newest("settings").get("run_name") == name for other in others) else folder


def _ask_and_delete(names, root, is_sure):
    runs = [find_run(name, root) if not _is_group(root, name) else Run(Path(root, name), Path(root)) for name in names]
    for run in runs:
        if Path(root).resolve() not in run.folder.resolve().parents:
            delete(run, root)  # which refuses it
        inner, files = folders_of_runs(run.folder), [path for path in run.folder.rglob("*") if path.is_file()]
        what = f"{run.folder} ({f'{len(inner)} runs, ' if len(inner) > 1 else ''}{len(files)} files, "
        what += f"{_size(sum(path.stat().st_size for path in files))})"
        if is_held(run.folder) is not True and not is_sure:
            if not sys.stdin or not sys.stdin.isatty():
                raise ValueError(f"Nobody can be asked whether {what} shall be deleted. Say so with --yes.")
            if input(f"Delete {what}? [y/N] ").strip().lower() not in ("y", "yes"):
                print("It is kept.")
                continue
        for folder in delete(run, root):
            print(f"deleted {folder}")


def _is_group(root, name):
    """Whether it is a folder of runs, of ``kfold`` for example, and no run itself."""
    folder = Path(root, name)
    return Path(root).resolve() in folder.resolve().parents and folder.is_dir() and bool(folders_of_runs(folder))


# --- the command line ---------------------------------------------------------------------------------------------------


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    for one, default in ((parser, _ROOT), (common, argparse.SUPPRESS)):
        one.add_argument("--root", default=default, metavar="FOLDER", help=f"where the runs are; without it {_ROOT}")
    parser.add_argument("--where", action="append", default=[], metavar="CONDITION", help="list these runs: 'lr<1e-3'")
    parser.add_argument("--sort", metavar="NAME", help="by a value: acc, minutes, lr; the best or the lowest comes first")
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument("-n", type=int, metavar="N", help="the first N of a sorted list, or the N newest runs")
    parser.add_argument("--json", action="store_true", help="everything that is known of each run, as JSON")
    commands = parser.add_subparsers(dest="command", metavar="show | diff | delete")
    commands.add_parser("show", parents=[common], help="all about one run").add_argument("run")
    comparing = commands.add_parser("diff", parents=[common], help="what two runs differ in")
    comparing.add_argument("run")
    comparing.add_argument("other")
    deleting = commands.add_parser("delete", parents=[common], help="delete runs, with their TensorBoard events")
    deleting.add_argument("run", nargs="+")
    deleting.add_argument("--yes", action="store_true", help="without a question")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        _do(options)
    except BrokenPipeError:  # of `| head`
        os._exit(1)
    except (OSError, ValueError, RunInUse) as error:
        sys.exit(str(error))


def _do(options):
    if options.command == "show":
        print(show(find_run(options.run, options.root)))
    elif options.command == "diff":
        print(diff(find_run(options.run, options.root), find_run(options.other, options.root)))
    elif options.command == "delete":
        _ask_and_delete(options.run, options.root, options.yes)
    else:
        _list(options)


def _list(options):
    found = list_runs(options.root, options.where, options.sort, options.reverse)
    if options.n is not None:
        found = found[:options.n] if options.sort else found[-options.n:]
    if options.json:
        print(json.dumps([run.as_data() for run in found], indent=2, default=str))
        return
    rows = [run.as_row() for run in found]
    names = dict.fromkeys(name for row in rows for name in row)
    shown = [name for name in names if any(row[name] is not None for row in rows)]
    print(text_table([{name: row[name] for name in shown} for row in rows]) if rows else
          f"There is no run in {options.root}{' for which that is true' if options.where else ''}.")
    for note in [note for run in found for note in run.record.notes]:
        print(f"note: {note}", file=sys.stderr)


if __name__ == "__main__":
    main()
