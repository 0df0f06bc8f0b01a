"""Run the scripts of this folder one after the other, and print what each of them reached.

    python -m examples                       # all but those of vision_libraries/; make examples does the same in .venv
    python -m examples vision_libraries      # these; make examples-vision does the same in .venv-vision
    python -m examples regression gan        # some, by name or by folder: python -m examples basics
    python -m examples --list                # their names

The last line that a script prints is ``<figure> 0.983 (at least 0.97; <baseline> 0.101)``, or with ``at most`` where
smaller is better: what it reached, the least that is good enough, and what a trivial answer to the same task has. The exit
code is 1 if a script failed or missed its floor, after all of them have run.
"""

import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
OWN_ENVIRONMENT = "vision_libraries"  # these need torchvision, and with it another torch
NUMBER = r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|nan|-?inf)"
LAST_LINE = re.compile(rf"(?P<name>\S.*?) {NUMBER} \((?P<rule>at least|at most) {NUMBER}; (?P<baseline>\S.*?) {NUMBER}\)")


@dataclass
class Figure:
    """What the last line of a script says."""

    name: str
    value: float
    rule: str
    floor: float
    baseline: str
    baseline_value: float

    @classmethod
    def of(cls, printed):
        """Of all that a script printed; None where its last line is another one."""
        found = LAST_LINE.fullmatch((printed.strip().splitlines() or [""])[-1])
        if found is None:
            return None
        name, value, rule, floor, baseline, baseline_value = found.groups()
        return cls(name, float(value), rule, float(floor), baseline, float(baseline_value))

    def is_better(self, than):
        return self.value >= than if self.rule == "at least" else self.value <= than

    @property
    def is_good(self):
        return self.is_better(self.floor)

    def cells(self):
        return f"{self.name} {self.value:g}", f"{self.rule} {self.floor:g}", f"{self.baseline} {self.baseline_value:g}"


def scripts():
    """Every file whose docstring says how to run it. The others are there to be imported."""
    files = [file for file in sorted(FOLDER.rglob("*.py")) if file.name != "__main__.py"]
    return [file for file in files if f"python examples/{name_of(file)}.py" in file.read_text("utf-8")]


def name_of(script):
    return script.relative_to(FOLDER).with_suffix("").as_posix()


def chosen(names):
    """The scripts of these names or folders; without names, those that run in the main environment."""
    wanted = {}
    for name in names:
        found = [script for script in scripts() if name in (name_of(script), script.stem)
                 or name_of(script).startswith(name.rstrip("/") + "/")]
        if not found:
            raise SystemExit(f"There is no example {name!r}. There are: {', '.join(map(name_of, scripts()))}.")
        wanted |= dict.fromkeys(found)
    return list(wanted) if names else [script for script in scripts() if script.parent.name != OWN_ENVIRONMENT]


def run(script):
    """``(figure or None, seconds, the end of what it said if it did not reach its floor)``."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, encoding="utf-8", errors="replace",
                          stdin=subprocess.DEVNULL)
    figure = Figure.of(done.stdout) if done.returncode == 0 else None
    if figure is not None and figure.is_good:
        return figure, time.perf_counter() - started, ""
    end = "\n".join([*done.stdout.splitlines()[-10:], *done.stderr.splitlines()[-20:]])
    return figure, time.perf_counter() - started, f"exit code {done.returncode}\n{end}"


def row(figure, floor, baseline, seconds):
    """What stands behind the name. The trivial answer comes last, because it may be long."""
    return f"  {figure:<24}  {floor:<21}  {seconds:>7}  {baseline}".rstrip()


def main(arguments):
    if "--list" in arguments:
        print(*map(name_of, scripts()), sep="\n")
        return 0
    if unknown := [word for word in arguments if word.startswith("-")]:
        raise SystemExit(f"{unknown[0]} is no option. Names of scripts or folders are taken, and --list shows them.")
    told, whole = {}, 0.0
    todo = chosen(arguments)
    width = max(len(name_of(script)) for script in todo)
    print(f"{'script':<{width}}" + row("figure", "floor", "trivial answer", "seconds"))
    for script in todo:
        name = name_of(script)
        print(f"{name:<{width}}", end="", flush=True)       # while it runs
        figure, seconds, problem = run(script)
        reached, floor, baseline = figure.cells() if figure else ("failed", "", "")
        print(row(reached, f"{floor}: missed" if figure and problem else floor, baseline, f"{seconds:.1f}"), flush=True)
        told |= {name: problem} if problem else {}
        whole += seconds
    for name, problem in told.items():
        print(f"\n== {name}: {problem}")
    but = f", and not {', '.join(told)}" if told else ""
    print(f"\n{len(todo) - len(told)} of {len(todo)} reached their floor{but}. It took {whole / 60:.1f} minutes.")
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
