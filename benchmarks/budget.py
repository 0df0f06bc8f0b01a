"""Parts of a measurement that share some minutes, and a report that loses nothing of what was measured.

    report = Report("gpu.json", {"torch": "2.13.0"})
    run_parts([Part("steps", 2, steps), Part("files", 1, files)], minutes=6, report=report)
    report.print_table()

A part is a function of a ``Clock`` that yields its findings one by one, ``Row`` or ``LeftOut``. It has its share of the time
that is left when it begins, so what one part leaves over goes to those behind it, and what one takes too much they miss. A
part looks at its clock and shortens itself. One that raises is named with its error, and the next one begins. The file is
written after each finding, under another name first: a run that is killed leaves everything until then.
"""

import json
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class OutOfTime(RuntimeError):
    """The time that a measurement has was used up."""


USED_UP = "the time was used up"


class Row(NamedTuple):
    """One figure: the median of ``values``, and how each of them compares with the one of ``of`` in the same round."""

    what: str
    values: list[float]
    unit: str
    of: list[float] | None = None
    of_what: str = ""
    note: str = ""

    def found(self):
        middle = statistics.median(self.values)
        row = {"what": self.what, "unit": self.unit, "median": middle, "values": self.values, "note": self.note}
        if self.of:
            ratios = [one / other for one, other in zip(self.values, self.of)]
            row |= {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios), "of": self.of_what}
        return row


class LeftOut(NamedTuple):
    """Something was not measured."""

    what: str
    why: str


class Part(NamedTuple):
    name: str
    share: float                                     # of the time, by weight
    measure: Callable[["Clock"], Iterator[Any]]
    least_seconds: float = 0.0                       # with less there is no use in beginning


class Clock:
    """How much time is left.

    Args:
        seconds: from now on.
    """

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds; negative when they are used up."""
        return self.end - time.monotonic()

    def share(self, weight: float, of: float) -> "Clock":
        """A clock with a part of what is left of this one."""
        return Clock(max(self.left(), 0.0) * weight / of)


def run_parts(parts, minutes, report):
    """Args: parts: ``Part`` objects, in order; report: a ``Report``."""
    whole = Clock(60 * minutes)
    for number, part in enumerate(parts):
        clock = whole.share(part.share, sum(other.share for other in parts[number:]))
        if clock.left() < max(part.least_seconds, 1e-3):
            report.leave_out(part.name, clock.left(), part.least_seconds)
            continue
        report.begin(part.name, clock.left())
        try:
            for found in part.measure(clock):
                report.add(found)
        except OutOfTime:
            report.add(LeftOut(f"the rest of {part.name}" if report.part["rows"] else part.name, USED_UP))
        except Exception:
            report.fail(traceback.format_exc())
        report.end()


class Report:
    """What was found, in a file and as a table.

    Args:
        path: of the JSON file.
        conditions: ``{name: value}`` of what the figures depend on.
    """

    def __init__(self, path, conditions):
        self.path = Path(path)
        self.found: dict[str, Any] = {"conditions": conditions, "parts": {}}
        self.write()

    def begin(self, name, seconds):
        self.part = {"state": "interrupted", "seconds_given": seconds, "rows": [], "left_out": []}
        self.started = time.monotonic()
        self.found["parts"][name] = self.part
        self.write()
        print(f"{name}: at most {seconds:.0f} s …", flush=True)

    def add(self, found):
        if isinstance(found, LeftOut):
            self.part["left_out"].append(found._asdict())
        else:
            self.part["rows"].append(found.found())
            print(f"  {_line(self.part['rows'][-1])}", flush=True)
        self.write()

    def fail(self, error):
        self.part |= {"state": "failed", "error": error}

    def end(self):
        if self.part["state"] != "failed":
            self.part["state"] = "shortened" if self.part["left_out"] else "complete"
        self.part["seconds"] = time.monotonic() - self.started
        self.write()

    def leave_out(self, name, left, needed):
        why = f"{max(left, 0):.0f} s were left for it, and it needs {needed:.0f}"
        self.found["parts"][name] = {"state": "left out", "rows": [], "left_out": [LeftOut(name, why)._asdict()]}
        self.write()

    def write(self):
        """Either the old file or the whole new one is there, at any moment."""
        other = self.path.with_name(self.path.name + ".tmp")
        other.write_text(json.dumps(self.found, indent=1), encoding="utf-8")
        os.replace(other, self.path)

    def failures(self):
        return [name for name, part in self.found["parts"].items() if part["state"] == "failed"]

    def print_table(self):
        print("\n" + "\n".join(f"{name:<12}{value}" for name, value in self.found["conditions"].items()))
        for name, part in self.found["parts"].items():
            took = f", {part['seconds']:.0f} s" if "seconds" in part else ""
            print(f"\n{name} ({part['state']}{took})")
            for row in part["rows"]:
                print(f"  {_line(row)}")
            for one in part["left_out"]:
                print(f"  left out: {one['what']}: {one['why']}")
            if "error" in part:
                print("  failed:", part["error"].strip().splitlines()[-1])
        print(f"\nEverything is in {self.path}.", flush=True)


def _line(row):
    compared = ""
    if "ratio" in row:
        compared = f"{row['ratio']:.3f} ({row['lowest']:.3f}..{row['highest']:.3f}) of {row['of']}"
    return f"{row['what']:<60}{row['median']:>12,.2f} {row['unit']:<14} {compared:<54} {row['note']}".rstrip()
