"""``draw`` of ``curves.py`` in a process of its own, so that the training does not keep what matplotlib takes: 34 MB.

    png = draw(rows, title="2024-05-01_12-00-00", key="acc", best={"acc": (25, 0.997)})      # bytes

The process takes 0.9 s of a CPU for each picture. Here it would be 0.6 s for the first one and 0.2 s for each later one. A
program that imported matplotlib itself pays for it already, and may have set a style: then the picture is drawn here. It is
drawn here too where no other Python can be started, for example in a program that was frozen into one file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from . import curves

_MOST_SECONDS = 120  # the first start after an installation looks for fonts on all disks
_START = "import sys; sys.path[:] = sys.argv[1:]; from output.curves_process import main; main()"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # each further one takes memory
_told: set[str] = set()  # what earlier pictures said


def draw(rows: list[dict[str, Any]], title: str, key: str | None = None,
         best: dict[str, tuple[int, float]] | None = None) -> bytes:
    """A png of the rows of ``history.csv``; the arguments are those of ``curves.draw``.

    Raises:
        ImportError: there is no matplotlib.
        OSError: the process failed or took two minutes; the message is what it said last.
    """
    if "matplotlib.figure" in sys.modules or not _can_start_python():
        return curves.draw(rows, title, key, best)
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("matplotlib")
    try:
        process = subprocess.Popen(command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env=os.environ | ONE_THREAD, start_new_session=True,  # Ctrl-C is for the training
                                   creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0))
    except OSError:  # no more processes are allowed
        return curves.draw(rows, title, key, best)
    return _png_from(process, json.dumps([rows, title, key, best], default=float).encode())


def _can_start_python():
    name = Path(sys.executable or "").name.lower()
    return name.startswith(("python", "pypy"))


def command() -> list[str]:
    """The folder of the template comes first. What it lies in is not imported: that may be a project that imports torch."""
    return [sys.executable, "-c", _START, str(Path(__file__).parent.parent),
            *(entry for entry in sys.path if isinstance(entry, str))]


def _png_from(process, request):
    """The answer to a request, waited for; the process is over then in any case."""
    with process:
        try:
            png, said = process.communicate(request, timeout=_MOST_SECONDS)
        except subprocess.TimeoutExpired:
            raise OSError(f"drawing it took longer than {_MOST_SECONDS} s") from None
        finally:
            process.kill()
    lines = said.decode(errors="replace").strip().splitlines()
    if process.returncode != 0:
        raise OSError(lines[-1] if lines else f"the process that draws it ended with {process.returncode}")
    for line in lines:
        if line not in _told:
            _told.add(line)
            print(line)
    return png


def main() -> None:
    """In the process: a request on stdin, the png on stdout, and what is to be told on stderr."""
    del sys.path[0]  # what matplotlib imports is never a file of the template
    rows, title, key, best = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):
        png = curves.draw(rows, title, key, best)
    sys.stdout.buffer.write(png)
