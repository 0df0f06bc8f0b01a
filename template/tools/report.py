"""One page that tells what a run was: curves, best values, settings, pictures, warnings, files.

    report(trainer)                                        # writes report.html into the run's folder
    report(["check_point/a", "check_point/b"])             # one page that compares them

    python -m utils.tools.report check_point/a             # the same from a shell

The page holds everything that it shows. It needs no network and no script, so it can be sent to somebody. It only reads
what the run left: a run that still goes on, or one with broken files, has a page too, which says so.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..metrics.best import best_in_rows
from ..output import page
from ..output.csv_table import number_in, read
from ..output.curves import COLORS, Line, Panel, panels_of, points_of, short_number
from ..output.curves_svg import panel_svg
from ..output.run_folder import replace_file
from ..output.run_lock import NAME as LOCK
from ..output.run_lock import SILENT_SECONDS
from ..output.time_left import clock

if TYPE_CHECKING:
    from ..template import TemplateModel

_FILE = "report.html"
_LEFT_BY_A_RUN = ("config.json", "history.csv", "log.txt", "*.pth")
_STATE = {"batches_done", "epoch", "epochs_done", "global_step", "global_step_eval", "is_sharded", "should_stop",
          "write_params"}  # in config.json, and no settings
_MOST_LINES = 200     # of the log's end, and rows of a table
_MOST_MESSAGES = 60   # warnings and errors
_MOST_CLASSES = 40    # of a confusion matrix that is shown with numbers
_MOST_PICTURES = 24
_MOST_CHARACTERS = 20_000  # of a text
_TABLES = ("confusion_matrix.csv", "worst_samples.csv")  # beside those of the callback Interpret
_MOST_QUANTITIES = 24  # that several runs are compared in
_MESSAGE = re.compile(r"\w*(Warning|Error|Exception|Interrupt)\b|^!!!|could not|not finite|never counts|^Interrupted")


_STATES = {r"=== \d{4}-\d\d-": ("not finished", "wait"), r"=== \d+ epochs? done": ("finished", "good"),
           "Interrupted": ("interrupted", "wait"), "Traceback": ("ended by an error", "bad")}  # by lines of the log


def report(run: Any, file: str | Path | None = None) -> Path:
    """Write the page.

    Args:
        run: a folder of ``check_point/``, a trainer after ``check_init``, or a list of these, which are compared.
        file: where to write; None: ``report.html`` in the folder of the run, or beside the folders of several.

    Returns:
        The path of the page. Among several processes the main one writes it.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder, or nothing in it that a run leaves.
    """
    is_one = isinstance(run, (str, os.PathLike)) or hasattr(run, "path_of")
    sources = [run] if is_one else list(run)
    if not sources:
        raise FileNotFoundError("report() needs at least one run, and got an empty list.")
    folders = [_folder_of(source) for source in sources]
    target = Path(file) if file is not None else (folders[0] if is_one else folders[0].parent) / _FILE
    if all(getattr(source, "is_main", True) for source in sources):
        runs = [_Run(folder, _log_of(source, folder)) for source, folder in zip(sources, folders)]
        replace_file(target, _one(runs[0]) if is_one else _several(runs))
        print(f"The report is in {target}")
    return target


def _folder_of(source):
    if hasattr(source, "path_of"):
        return cast("TemplateModel", source).path_of(".").resolve()
    folder = Path(source)
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist. {_runs_in(folder.parent)}")
    if not folder.is_dir():
        raise NotADirectoryError(f"A run is a folder, and {folder} is a file. Give the folder it is in: {folder.parent}")
    if not _holds_run(folder):
        raise FileNotFoundError(f"{folder} holds no history.csv, log.txt, config.json or .pth file, so it is no run. "
                                f"{_runs_in(folder)}")
    return folder.resolve()


def _runs_in(folder):
    names = sorted(path.name for path in folder.glob("*") if _holds_run(path))
    return f"The runs in {folder} are: {', '.join(names[-8:])}." if names else f"There is no run in {folder}."


def _holds_run(folder):
    return folder.is_dir() and any(next(folder.glob(pattern), None) for pattern in _LEFT_BY_A_RUN)


def _log_of(source, folder):
    logger = getattr(source, "stdout_logger", None)
    if logger is not None:
        return Path(logger.filename)
    others = sorted(path for kind in ("*.log", "*.txt") for path in folder.glob(kind))
    return next((path for path in (folder / "log.txt", *others) if path.exists()), folder / "log.txt")


# --- what a run left ------------------------------------------------------------------------------------------------


class _Run:
    """All that is read, with what is missing or broken in ``notes``."""

    def __init__(self, folder, log):
        self.folder, self.name = folder, folder.name
        self.notes: list[str] = []
        self.rows = self._read_rows(folder / "history.csv")
        self.starts = self._read_starts(folder / "config.json")
        self.log = self._text_of(log).splitlines()
        rules = re.findall(r"^  best = (highest|lowest) (\S+)", "\n".join(self.log), re.M)
        settings = self.starts[-1].get("settings") if self.starts else None
        self.settings = settings if isinstance(settings, dict) else {}
        self.key = rules[-1][1] if rules else self.settings.get("key_metric")
        modes = {name: "max" if which == "highest" else "min" for which, name in rules}
        self.unit = "epoch"
        if any(later["epoch"] <= row["epoch"] for row, later in zip(self.rows, self.rows[1:])):  # a loader without a length
            self.unit, self.rows = "update", [row | {"epoch": row["global_step"]} for row in self.rows]
        self.best = best_in_rows(self.rows, modes)
        self.is_going_on = _age(folder / LOCK) < SILENT_SECONDS
        self.state, self.color = self._find_state()

    def _text_of(self, path):
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            self.notes.append(f"{path.name} is not there.")
        except OSError as error:
            self.notes.append(f"{path.name} cannot be read: {error.strerror or error}.")
        return ""

    def _read_rows(self, path):
        text = self._text_of(path)
        key = "global_step" if "global_step" in text.partition("\n")[0].split(",") else "epoch"
        found = read(path, key, is_whole=key == "global_step") if text else []
        rows = [{name: number_in(cell) for name, cell in row.items()} for row in found]
        rows = [row for row in rows if isinstance(row.get("epoch"), (int, float))]
        lost = max(len([line for line in text.splitlines() if line.strip(" \0")]) - 1, 0) - len(rows)
        if lost > 0:
            self.notes.append(f"{lost} line{'s' * (lost > 1)} of history.csv cannot be read. The curves are without them.")
        elif text and not rows:
            self.notes.append("history.csv holds no epoch yet.")
        return rows

    def _read_starts(self, path):
        text = self._text_of(path)
        try:
            starts = json.loads(text) if text else []
        except ValueError as error:
            self.notes.append(f"config.json cannot be read: {error}.")
            return []
        if not (isinstance(starts, list) and all(isinstance(start, dict) for start in starts)):
            self.notes.append("config.json is not what a run writes.")
            return []
        return starts

    def _find_state(self):
        """In words, from the lock and the log, and the color that it has."""
        if self.is_going_on:
            return "still going on", "wait"
        said = "not finished", "wait"
        for line in self.log:  # the last word counts
            said = next((state for pattern, state in _STATES.items() if re.match(pattern, line)), said)
        return said

    def messages(self):
        """``{text: [line numbers]}`` of warnings and errors in the log."""
        found: dict[str, list[int]] = {}
        number = 0
        while number < len(self.log):
            line, end = self.log[number], number + 1
            if line.startswith("Traceback"):
                while end < len(self.log) and (self.log[end].startswith(" ") or not self.log[end].strip()):
                    end += 1
                end += 1  # the line of the error itself
            elif not _MESSAGE.search(line):
                number = end
                continue
            elif re.search(r":\d+: \w*Warning: ", line) and end < len(self.log) and self.log[end].startswith("  "):
                end += 1  # the line of code that is warned of
            found.setdefault("\n".join(self.log[number:end]).rstrip(), []).append(number + 1)
            number = end
        return found


def _age(path):
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")


# --- the page -------------------------------------------------------------------------------------------------------


def _one(run):
    return page.page(run.name, [*_head(run), *_sections(run)])


def _several(runs):
    """A table and common curves, and below them each run as it would be alone."""
    rows = []
    for run in runs:
        row = {"run": run.name, "state": run.state, "epochs": run.rows[-1]["epoch"] if run.rows else 0}
        for name in dict.fromkeys(run.key for run in runs if run.key):
            row[f"best {name}"] = run.best[name][1] if name in run.best else None
            row["in epoch"] = round(run.best[name][0], 2) if name in run.best else None
        rows.append(row | {"time": _clock_or_none(_seconds(run))})
    different = page.table(_differences(runs))
    return page.page(f"{len(runs)} runs", [
        f"<h1>{len(runs)} runs</h1>", page.text(f"Written {time.strftime('%Y-%m-%d %H:%M')}", "soft"),
        page.section("Compared", page.table(rows)),
        page.section("Options and settings that differ", different or page.text("There are none.", "soft")),
        page.section("Curves", _panels(_compared(runs))),
        "<h2>Each run</h2>",
        *(page.folded(run.name, "".join([*_head(run)[1:], *_sections(run, level=3)]), kind="run") for run in runs)])


def _head(run):
    started = run.starts[0].get("started", "") if run.starts else ""
    facts = {f"{run.unit}s": f"{short_number(run.rows[-1]['epoch'])}" if run.rows else "0"}
    if run.key in run.best:
        epoch, value = run.best[run.key]
        facts = {f"best {run.key}, in {run.unit} {short_number(epoch)}": f"{value:.5g}"} | facts
    if seconds := _seconds(run):
        facts["training time"] = _words(seconds)
    if run.unit == "epoch" and run.rows and isinstance(steps := run.rows[-1].get("global_step"), int):
        facts["updates"] = f"{steps:,}"
    return [f"<h1>{page.escape(run.name)}</h1>",
            f'<p><span class="state {run.color}">{page.escape(run.state)}</span><span class="soft">'
            f"{page.escape(f'started {started}, ' if started else '')}written {time.strftime('%Y-%m-%d %H:%M')}</span></p>",
            page.facts(facts), page.listed(run.notes, "wait")]


def _sections(run, level=2):
    messages = run.messages()
    curves = panels_of(run.rows, run.key, run.best)[0] if run.rows else []
    yield page.section("Curves", _panels(curves, run.unit), level)
    yield page.columns([page.section("Best values", page.table(_best_rows(run)), level),
                        page.section("Time per epoch", _times(run), level)])
    yield page.section(f"Warnings and errors ({len(messages)})", _messages(messages), level)
    tables = [run.folder / name for name in _TABLES] + sorted(run.folder.glob("interpret/*.csv"))
    matrices, samples = ([path for path in tables if path.exists() and ("confusion" in path.stem) == is_matrix]
                         for is_matrix in (True, False))
    yield page.columns([page.section("Confusion matrix", _each(_confusion, matrices), level),
                        page.section("Samples that stand out", _each(_samples, samples), level)])
    shown = {path.with_suffix(".png") for path in matrices + samples}
    yield page.section("Pictures and texts", _pictures(run.folder, shown), level)
    environment = run.starts[-1].get("environment") if run.starts else None
    yield page.columns([page.section("Settings", _settings(run), level),
                        page.section("Environment", page.table(_named_values(environment)), level),
                        page.section("Files", _files(run.folder), level)])
    end = run.log[-_MOST_LINES:]
    yield page.folded(f"The last {len(end)} lines of the log", page.lines("\n".join(end)) if end else "")


def _panels(panels, unit="epoch"):
    drawn = "".join(panel_svg(panel, unit=unit) for panel in panels)
    return f'<div class="panels">{drawn}</div>' if panels else ""


def _best_rows(run):
    last = run.rows[-1] if run.rows else {}
    names = sorted(run.best, key=lambda name: name != run.key)
    return [{"quantity": name, "best": float(run.best[name][1]), f"in {run.unit}": round(run.best[name][0], 2),
             "last eval": last.get(f"eval/{name}"), "last train": last.get(f"train/{name}")} for name in names]


def _messages(messages):
    shown = []
    for text, numbers in list(messages.items())[-_MOST_MESSAGES:]:
        where = f"line {numbers[0]}" + (f" and {len(numbers) - 1} more" if len(numbers) > 1 else "")
        shown.append(page.text(where, "soft") + page.lines(text))
    left_out = len(messages) - len(shown)
    if left_out:
        shown.insert(0, page.text(f"The first {left_out} are left out.", "soft"))
    return "".join(shown) or page.text("The log holds none.", "soft")


def _each(show, paths):
    """With the names where there are several."""
    return "".join(page.section(path.stem.replace("_", " "), show(path), 3) if len(paths) > 1 else show(path)
                   for path in paths)


def _samples(path):
    return _png(path.with_suffix(".png")) + _csv_table(path)


def _confusion(path):
    """As a colored table where the csv holds one that fits on a page, else as the picture."""
    cells = _cells(path)
    try:
        names, values = [row[0] for row in cells[1:]], [[float(cell) for cell in row[1:]] for row in cells[1:]]
        is_matrix = 0 < len(names) <= _MOST_CLASSES and all(len(row) == len(names) for row in values)
    except (ValueError, IndexError):
        is_matrix = False
    if is_matrix:
        words = page.text("A row for each true class, colored by the share of the row.", "soft")
        return words + page.matrix(names, cells[0][1:], values)
    return _png(path.with_suffix(".png")) or _csv_table(path)


def _cells(path):
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace").replace("\0", "")
        return [row for row in csv.reader(io.StringIO(text)) if row]
    except (OSError, csv.Error):
        return []


def _csv_table(path):
    cells = _cells(path)
    if len(cells) < 2:
        return page.text(f"{path.name} holds no row.", "soft") if path.exists() else ""
    rows = [{name: number_in(cell) for name, cell in zip(cells[0], row)} for row in cells[1:_MOST_LINES + 1]]
    left_out = len(cells) - 1 - len(rows)
    return page.table(rows) + (page.text(f"{left_out} more rows are in {path.name}.", "soft") if left_out else "")


def _png(path):
    return page.picture(path) if path.exists() else ""


def _pictures(folder, shown):
    """What callbacks of a person drew or wrote: pictures anywhere, texts in folders of the run's."""
    found = sorted({*folder.rglob("*.png"), *folder.glob("*/*.txt")} - shown - {folder / "history.png"})
    parts = [page.section(str(path.relative_to(folder)), page.picture(path) if path.suffix == ".png" else _text(path), 3)
             for path in found[-_MOST_PICTURES:]]
    left_out = len(found) - len(parts)
    return "".join(parts) + (page.text(f"{left_out} more are in the folder.", "soft") if left_out else "")


def _text(path):
    try:
        words = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return page.text(f"{path.name} cannot be read: {error.strerror or error}.", "soft")
    return page.lines(words[:_MOST_CHARACTERS] + ("…" if len(words) > _MOST_CHARACTERS else ""))


def _seconds(run):
    return sum(_epoch_seconds(run))


def _epoch_seconds(run):
    return [row["seconds"] for row in run.rows if isinstance(row.get("seconds"), (int, float)) and row["seconds"] >= 0]


def _times(run):
    seconds = _epoch_seconds(run)
    if not seconds:
        return ""
    words = (f"All {len(seconds)} epochs took {_words(sum(seconds))} of training, {_words(statistics.median(seconds))} in "
             f"the median and {_words(max(seconds))} at most. Evaluations are not counted.")
    return page.text(words) + _panels([Panel("seconds", [Line("seconds", *points_of(run.rows, "seconds"), 0)])])


def _settings(run):
    """What was asked for by the command line, and all attributes, of the last start; before it, what earlier starts said."""
    if not run.starts:
        return ""
    last = run.starts[-1]
    options = page.table(_named_values(last.get("options")))
    command = last.get("command")
    parts = [page.lines(" ".join(map(str, command)))] if isinstance(command, list) else []
    parts += [page.section("Options", options, 3)] if options else []
    if len(run.starts) > 1:
        parts.append(page.section("Starts", page.table(_start_rows(run.starts)), 3))
    others = {name: value for name, value in run.settings.items() if name not in _STATE}
    parts.append(page.folded("All settings of the trainer", page.table(_named_values(others))))
    return "".join(parts)


def _start_rows(starts):
    rows, before = [], {}
    for start in starts:
        now = _flat(start)
        changed = ", ".join(f"{name} = {value}" for name, value in now.items() if before and before.get(name) != value)
        rows.append({"started": str(start.get("started", "")), "what changed": changed})
        before = now
    return rows


def _flat(start):
    """Options and settings by name, as text."""
    values = {}
    for part in ("settings", "options"):
        found = start.get(part)
        values |= found if isinstance(found, dict) else {}
    return {name: str(value) for name, value in values.items() if name not in _STATE | {"ckpt_dir", "run_name", "resume"}}


def _named_values(values):
    if not isinstance(values, dict):
        return []
    return [{"name": name, "value": (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)}
            for name, value in values.items()]


def _files(folder):
    """The largest first; what is one file under two names is counted once."""
    rows, names, total = [], {}, 0
    for path in sorted(folder.rglob("*"), key=lambda path: (path.name not in ("best.pth", "last.pth"), str(path))):
        try:
            status = path.stat()
        except OSError:  # deleted meanwhile, by a run that goes on
            continue
        if not path.is_file() or path.name in (_FILE, LOCK) or path.name.endswith(".tmp"):
            continue
        name = str(path.relative_to(folder))
        first = names.setdefault((status.st_dev, status.st_ino), name)
        total += status.st_size if first == name else 0
        rows.append((status.st_size, {"file": name, "size": _size(status.st_size),
                                      "": "" if first == name else f"the same file as {first}"}))
    rows = [row for _, row in sorted(rows, key=lambda row: -row[0])]
    more = page.text(f"{len(rows) - _MOST_LINES} more are in the folder.", "soft") if len(rows) > _MOST_LINES else ""
    return page.text(f"{folder}: {_size(total)} on the disk.", "soft") + page.table(rows[:_MOST_LINES]) + more


def _size(size):
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{size} bytes"
        size /= 1000
    return f"{size:.3g} GB"


def _words(seconds):
    return f"{seconds:.3g} s" if seconds < 60 else clock(seconds) + (" h" if seconds >= 3600 else " min")


def _clock_or_none(seconds):
    return _words(seconds) if seconds else ""


# --- several runs ---------------------------------------------------------------------------------------------------


def _differences(runs):
    values = [_flat(run.starts[-1]) if run.starts else {} for run in runs]
    names = [name for name in dict.fromkeys(name for each in values for name in each)
             if len({each.get(name) for each in values}) > 1]
    return [{"name": name} | {run.name: each.get(name, "") for run, each in zip(runs, values)} for name in names]


def _compared(runs):
    """A panel for each quantity, with a line for each run: evaluation, and training dotted where there is both."""
    names = dict.fromkeys(name for run in runs for row in run.rows for name in row)
    quantities = dict.fromkeys(name.partition("/")[2] for name in names if name.startswith(("train/", "eval/")))
    panels = []
    for quantity in list(quantities)[:_MOST_QUANTITIES]:
        lines: list[Line] = []
        for number, run in enumerate(runs[:len(COLORS)]):
            parts = [points for part in ("eval", "train") if len((points := points_of(run.rows, f"{part}/{quantity}"))[0])]
            lines += [Line(run.name if part == 0 else f"_{run.name}", x, y, number, is_dotted=part == 1)
                      for part, (x, y) in enumerate(parts)]
        panels.append(Panel(quantity, lines))
    return panels


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="+", help="folder of a run; several are compared")
    parser.add_argument("-o", "--output", help=f"the file to write; without it {_FILE} in the folder of the run")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        report(options.run[0] if len(options.run) == 1 else options.run, options.output)
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
