"""The parts of ``python -m benchmarks.gpu``: each measures for as long as its clock says, and yields what it finds.

A part is a generator of ``Row`` and ``LeftOut``, see ``budget.py``. What takes time is done in a process of its own, which
is ended when the time is used up: an error of a device, or a compiler that takes minutes, reaches no other part.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from . import checkpoint
from .budget import USED_UP, LeftOut, OutOfTime, Row
from .gpu_jobs import BY_HAND, OURS, RESIDUAL, TRANSFORMER, Cifar, DataPath, Job, Pairs
from .measuring import Process, require_equal_work

ROOT = Path(__file__).resolve().parent.parent


class Setting(NamedTuple):
    """What all parts are told."""

    device: str
    folder: Path            # where runs write
    is_tiny: bool           # to see that everything runs, and not how fast
    rounds: int             # at most
    modes: tuple[str, ...]  # "eager", "compiled"

    @property
    def is_gpu(self):
        return self.device.startswith("cuda")

    def new_folder(self, name):
        folder = self.folder / name
        folder.mkdir(parents=True)
        return folder


def rounds_within(clock, most, measure):
    """Call ``measure(number)`` again and again, at least once, as long as one more will probably end in time.

    Returns:
        How many times it was.

    Raises:
        OutOfTime: the first one did not end in time.
    """
    longest = 0.0
    for number in range(most):
        before = clock.left()
        if number and before < longest:
            return number
        try:
            measure(number)
        except OutOfTime:
            if not number:
                raise
            return number  # what the rounds before have measured counts
        longest = max(longest, before - clock.left())
    return most


# --- an update ------------------------------------------------------------------------------------------------------


def jobs(setting):
    """All that are compared; what takes a compiler comes last."""
    found = []
    for compiled in (False, True):
        for network in (RESIDUAL, TRANSFORMER):
            for amp, channels_last in ((None, False), ("bf16", False), ("bf16", True)):
                if (channels_last and network != RESIDUAL) or (compiled and amp is None):
                    continue
                found.append(Job(network, setting.device, amp, channels_last, compiled, setting.is_tiny,
                                 updates=2 if setting.is_tiny else 10))
    return [job for job in found if ("compiled" if job.compiled else "eager") in setting.modes]


def weight(job):
    return 4 if job.compiled else 1


def steps(setting, clock):
    """An update of both networks, by hand and in the template."""
    folder, wanted, failures, pairs = setting.new_folder("steps"), jobs(setting), [], None
    with ExitStack() as stack:
        for number, job in enumerate(wanted):
            own = clock.share(weight(job), sum(map(weight, wanted[number:])))
            if own.left() <= 0:
                yield LeftOut(job.title, USED_UP)
                continue
            try:
                if pairs is None or pairs.died:
                    pairs = stack.enter_context(Process(Pairs, folder, steady=True, pinned=False, seconds_left=clock.left))
                # it stops by itself; half of what is left for all is taken from it only where it does not
                pairs.seconds_left = lambda own=own: max(own.left(), clock.left() / 2)
                yield from _compared(setting, own, job, pairs)
            except OutOfTime:
                yield LeftOut(job.title, USED_UP)
            except RuntimeError as error:
                yield LeftOut(job.title, f"it failed: {last_line(error)}")
                failures.append(f"{job.title}:\n{error}")
    if failures:
        raise RuntimeError("\n".join(failures))


def _compared(setting, clock, job, pair):
    names, seconds, losses = (BY_HAND, OURS), {BY_HAND: [], OURS: []}, {}
    pair("build", job)
    for name in names:  # compiles, and finds the fastest kernels
        pair("run", name)
    updates = job.updates
    if not setting.is_tiny:
        one = max(pair("run", name)[0] for name in names)
        updates = int(min(100, max(10, clock.left() / (2 * setting.rounds + 4) / one)))  # 314 MB of images at most
        pair("resize", updates)
        for name in names:
            pair("run", name)

    syncs = {name: f"{pair('syncs', name):.2f} syncs per update, " if setting.is_gpu else "" for name in names}

    def measure(number):
        for name in names[::1 if number % 2 else -1]:
            value, losses[name] = pair("run", name)
            seconds[name].append(1000 * value)

    done = rounds_within(clock, setting.rounds, measure)
    require_equal_work({name: losses[name] for name in names})
    for name in names:
        compared = {} if name == BY_HAND else {"of": seconds[BY_HAND], "of_what": BY_HAND}
        yield Row(f"{job.title}: {name}", seconds[name], "ms per update", **compared,
                  note=f"{syncs[name]}loss {losses[name]:.4f}, batch {job.batch_size}, {done} rounds of {updates} updates")


def last_line(error):
    return str(error).strip().splitlines()[-1]


# --- the way of the data --------------------------------------------------------------------------------------------


def data_path(setting, clock):
    """Batches of images on the device, cropped and flipped at random."""
    batch_size, num_batches = (8, 2) if setting.is_tiny else (512, 100)
    seconds = {"run_airbench": [], "run_ours": []}
    with Process(DataPath, setting.device, batch_size, num_batches, pinned=False, seconds_left=clock.left) as process:
        for method in seconds:
            process(method)

        def measure(number):
            for method in list(seconds)[::1 if number % 2 else -1]:
                seconds[method].append(1000 * process(method))

        rounds_within(clock, setting.rounds, measure)
    airbench, ours = seconds.values()
    note = f"batch {batch_size}, {1000 * batch_size / sorted(ours)[len(ours) // 2]:,.0f} images per second"
    yield Row("a batch, in the manner of airbench", airbench, "ms")
    yield Row("a batch, TensorLoader with a transform", ours, "ms", airbench, "in the manner of airbench", note)


# --- CIFAR-10's network ---------------------------------------------------------------------------------------------


def cifar10(setting, clock):
    """Images per second of ``demo_cifar10`` on random images."""
    modes = [mode for mode in ("eager", "compiled") if mode in setting.modes]
    for number, mode in enumerate(modes):
        own = clock.share(1, len(modes) - number)
        values, folder = [], setting.new_folder(f"cifar10_{mode}")
        try:
            with Process(Cifar, setting.device, mode == "compiled", setting.is_tiny, folder, pinned=False,
                         seconds_left=own.left) as process:
                note, _ = process("told"), process("run")

                def measure(number, process=process, values=values):
                    values.append(process("run"))

                rounds_within(own, setting.rounds, measure)
                yield Row(f"training of demo_cifar10, {mode}", values, "images/s", note=note)
        except OutOfTime:
            yield LeftOut(f"demo_cifar10, {mode}", USED_UP)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def checkpoints(setting, clock):
    """How long the loop stands still for a save, by size of the state."""
    sizes = (2, 4) if setting.is_tiny else (200, 2000)
    for number, megabytes in enumerate(sizes):
        what, own = f"{megabytes} MB", clock.share(megabytes, sum(sizes[number:]))
        needed = 8 * megabytes * 1e6  # the last, the one before, that of the epoch, the plain one, each also half-written
        if shutil.disk_usage(setting.folder).free < needed:
            yield LeftOut(what, f"{setting.folder} needs {needed / 1e9:.0f} GB of free space")
            continue
        folder = setting.new_folder(f"saves_{megabytes}")
        seconds = {}
        try:
            with ExitStack() as stack:
                plain, ours = (
                    stack.enter_context(Process(kind, folder / kind.__name__, megabytes, True, setting.device, pinned=False,
                                                seconds_left=clock.left))
                    for kind in _with_folders(folder, checkpoint.Plain, checkpoint.Ours))
                plain("save")
                ours("save")

                def measure(number, plain=plain, ours=ours, seconds=seconds):
                    for name, value in (plain("save") | ours("save")).items():
                        seconds.setdefault(name, []).append(1000 * value)

                rounds_within(own, min(setting.rounds, 5), measure)
        except OutOfTime:
            pass
        finally:
            shutil.rmtree(folder)
        if not seconds:
            yield LeftOut(what, USED_UP)
            continue
        yield Row(f"{what}: torch.save", seconds["plain"], "ms")
        yield Row(f"{what}: this template stands still", seconds["standstill"], "ms", seconds["plain"], "torch.save")
        yield Row(f"{what}: the file is verified on the disk", seconds["on disk"], "ms", seconds["plain"], "torch.save")


def _with_folders(folder, *kinds):
    for kind in kinds:
        (folder / kind.__name__).mkdir()
        yield kind


# --- tests ----------------------------------------------------------------------------------------------------------


def tests(setting, clock, files=None):
    """The tests that need a GPU, counted by how they ended. Those that failed are named."""
    if find_spec("pytest") is None:
        yield LeftOut("the tests of a GPU", "the package is missing. pip install pytest")
        return
    files = files or sorted((ROOT / "tests").glob("**/*_gpu.py"))
    told = setting.folder / "tests.txt"
    command = [sys.executable, "-m", "pytest", "-vv", "--tb=short", "-p", "no:cacheprovider", *map(str, files)]
    with open(told, "w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                                   env=os.environ | {"PYTHONUNBUFFERED": "1"})  # what is told by then stays after a kill
    try:
        process.wait(timeout=max(clock.left(), 1))
        is_over = True
    except subprocess.TimeoutExpired:
        is_over = False
    finally:
        end_group(process)
    yield from counted(told.read_text(errors="replace"), len(files), process.returncode if is_over else None)


def counted(text, num_files, return_code):
    """What pytest told, as rows.

    Args:
        return_code: of pytest; None: it was ended because the time was used up.

    Raises:
        RuntimeError: tests failed, or pytest did.
    """
    ended = re.findall(r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", text, re.MULTILINE)
    counts = {how: sum(other == how for _, other in ended) for how in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    for how, count in counts.items():
        yield Row(how.lower(), [count], "tests", note=f"of {num_files} files" if how == "PASSED" else "")
    if return_code is None:
        collected = re.search(r"collected (\d+) item", text)
        yield LeftOut(f"{int(collected[1]) - len(ended)} tests" if collected else "the tests", USED_UP)
    elif not ended or return_code not in (0, 1):
        raise RuntimeError(f"{text[-3000:]}\npytest ended with {return_code}.")
    if failed := [name for name, how in ended if how in ("FAILED", "ERROR")]:
        raise RuntimeError(f"{text[-6000:]}\nThese tests failed: {', '.join(failed)}")


def end_group(process):
    """A process that was started in a session of its own, and what it started."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended, and so has everything it started
    elif process.poll() is None:
        process.kill()
    process.wait()
