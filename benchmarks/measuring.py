"""What the benchmarks share: contenders in processes of their own, rounds, medians and ratios, printed rows.

    with Process(Plain, job, steady=True) as plain, Process(Ours, job, steady=True) as ours:
        seconds = in_rounds(9, [lambda: {"plain": plain("epochs", 5)}, lambda: {"ours": ours("epochs", 5)}])
    row("this template", seconds["ours"], seconds["plain"], "the plain loop")

Every round measures every contender once, in rotating order, with nothing left to write when a measurement begins. A time
is the median over the rounds; a ratio is that of two times of one round: median (min..max). Times differ from machine to
machine and from hour to hour, ratios less.

A steady process is pinned to one CPU, the same for all, and its glibc neither gives memory back nor asks for it in small
pieces: whether a freed block comes with page faults again depends on what else a process has allocated, and moved a loop
over a CNN between 27 and 42 ms a step. Its stderr is a terminal, so that progress bars draw; its stdout leads nowhere.

It measures no energy and no memory, and takes nobody else's load off the machine.
"""

import errno
import math
import os
import platform
import statistics
import struct
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import torch

from .budget import OutOfTime

ALLOCATOR = {  # glibc reads it when a process starts; other systems' allocators are left alone
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the largest it takes
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
START = os.environ.get("BENCHMARK_START", "spawn")  # tests, in which no time counts, set "fork": torch is there already
if START == "fork":
    import torch._dynamo  # noqa: F401  the first optimizer of a process imports it, which takes seconds: here, and not in each
SAME_LOSS = 0.1  # how far final losses may be apart, as a share: other orders of the data move them by less


# --- processes ------------------------------------------------------------------------------------------------------


class Process:
    """An object of a class in a new process: ``process("save", 3)`` calls its method there and returns what it returns.

    Args:
        kind: the class; it and its arguments can be pickled.
        steady: one CPU, fixed allocator, a terminal as stderr, see above. False leaves the process as it is.
        pinned: False lets a steady process have all CPUs.
        has_workers: it starts processes of its own, as a DataLoader does.
        seconds_left: function that says how long an answer may take; None: as long as it likes.

    Raises:
        RuntimeError: the class or a method raised, and the message holds the traceback; or the process died.
        OutOfTime: an answer did not come in ``seconds_left``; the process was ended.
    """

    _our_ends = []  # of pipes; a fork inherits them, and would keep the others from seeing that one was closed

    def __init__(self, kind, *arguments, steady=False, pinned=True, has_workers=False, seconds_left=None):
        self.seconds_left, self.died = seconds_left, False
        self._terminal = Terminal() if steady and hasattr(os, "openpty") else None
        context = get_context("spawn" if torch.cuda.is_initialized() else START)  # CUDA does not survive a fork
        self._pipe, other_end = context.Pipe()
        Process._our_ends.append(self._pipe)
        terminal = self._terminal and self._terminal.name
        self._process = context.Process(target=_serve, daemon=not has_workers,
                                        args=(other_end, steady and pinned, terminal, kind, *arguments))
        with _environment(ALLOCATOR if steady else {}):
            self._process.start()
        other_end.close()
        self._answer()  # it is set up

    def __call__(self, method, *arguments):
        self._pipe.send((method, *arguments))
        return self._answer()

    def _answer(self):
        if self.seconds_left and not self._pipe.poll(max(1.0, self.seconds_left())):
            self._process.kill()
            self.died = True
            raise OutOfTime("There was no answer before the time was used up.")
        try:
            value, failure = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            self.died = True
            raise RuntimeError(f"A contender's process died with exit code {self._process.exitcode}.") from None
        if failure:
            raise RuntimeError(f"A contender failed:\n{failure}")
        return value

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._pipe.close()
        self._process.join()
        if self._terminal:
            self._terminal.close()


def _serve(pipe, pinned, terminal, kind, *arguments):
    for end in Process._our_ends:
        end.close()
    if pinned and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if terminal:
        os.dup2(os.open(terminal, os.O_RDWR | os.O_NOCTTY), sys.__stderr__.fileno())
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with open(os.devnull, "w") as sys.stdout:
        contender = _attempt(pipe, kind, *arguments)
        while contender is not None:
            try:
                method, *method_arguments = pipe.recv()
            except EOFError:
                return
            _attempt(pipe, getattr(contender, method), *method_arguments, answer=True)


def _attempt(pipe, function, *arguments, answer=False):
    """Call a function and send what it returned, if that is an answer, or how it failed."""
    try:
        result = function(*arguments)
    except Exception:
        pipe.send((None, traceback.format_exc()))
        return None
    pipe.send((result if answer else None, None))
    return result


@contextmanager
def _environment(values):
    """Set variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Terminal:
    """A pseudo-terminal of 120 columns; of what is drawn on it only the end is kept."""

    def __init__(self):
        import fcntl
        import termios

        self._reader, self.writer = os.openpty()
        self.name = os.ttyname(self.writer)
        self.end = ""
        fcntl.ioctl(self.writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self):
        try:
            while data := os.read(self._reader, 65536):
                self.end = (self.end + data.decode(errors="replace"))[-4000:]
        except OSError as error:  # how Linux tells that nobody has it open any more
            if error.errno != errno.EIO:
                raise

    def close(self):
        os.close(self.writer)
        self._thread.join()
        os.close(self._reader)


# --- measuring ------------------------------------------------------------------------------------------------------


def in_rounds(rounds, measurements, practice=1):
    """Every measurement once a round. A single round is not practised.

    Args:
        measurements: functions that return ``{name: seconds}``.
        practice: rounds before the first that are not counted.

    Returns:
        ``{name: [seconds of each round]}``.
    """
    seconds = {}
    for number in range(-practice if rounds > 1 else 0, rounds):
        turn = number % len(measurements)
        for measure in measurements[turn:] + measurements[:turn]:
            if hasattr(os, "sync"):
                os.sync()  # nothing is left to write
            for name, value in measure().items():
                if number >= 0:
                    seconds.setdefault(name, []).append(value)
    return seconds


def timed(name, function, times=1):
    """A measurement: the median of a few calls."""
    def measure():
        seconds = []
        for _ in range(times):
            started = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - started)
        return {name: statistics.median(seconds)}

    return measure


def require_equal_work(losses):
    """Refuse figures of contenders that did not train alike.

    Args:
        losses: ``{name: final loss}``; the first is what the others are compared with.

    Raises:
        RuntimeError: one differs by more than another order of the data explains.
    """
    (reference, expected), *others = losses.items()
    for name, loss in others:
        if not math.isclose(loss, expected, rel_tol=SAME_LOSS):
            raise RuntimeError(f"Contenders must do equal work: {name!r} ended with a loss of {loss:.4f}, {reference!r} "
                               f"with {expected:.4f}; they may differ by {SAME_LOSS:.0%}.")


# --- telling --------------------------------------------------------------------------------------------------------


def ratio(seconds, of):
    """``median (min..max)`` of the rounds' ratios."""
    return spread([one / other for one, other in zip(seconds, of)])


def spread(values, digits=2):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def row(what, seconds, of=None, of_what="", note=""):
    """``what | median time | ratio (min..max) | to what``; a ratio where ``of`` is given."""
    shown = "" if of is None else ratio(seconds, of)
    print(f"  {what:<52}{1000 * statistics.median(seconds):>9.2f} ms   {shown:<24}{of_what}{note}".rstrip(), flush=True)


def conditions(*details):
    """Versions, system and CPU, with what else matters for the figures below it."""
    return ", ".join([f"torch {torch.__version__}", f"Python {platform.python_version()}", platform.system(),
                      f"{cpu_name()} with {os.cpu_count()} CPUs", *details])


def steady_conditions(rounds):
    """``conditions`` of contenders in steady processes."""
    pinned = "one CPU for all" if hasattr(os, "sched_setaffinity") else "not pinned"
    allocator = "fixed" if platform.libc_ver()[0] == "glibc" else "as it is"
    bars = "drawn" if hasattr(os, "openpty") else "not drawn"
    return conditions(f"1 thread, {pinned}, allocator {allocator}, progress bars {bars}",
                      f"{rounds} rounds: medians, ratios (min..max) within a round")


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
