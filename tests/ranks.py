"""Jobs of several processes, for the ``*_dist.py`` tests: how they are started, and what their ranks hand back.

    results = in_ranks(2, "training_job", tmp_path_factory)      # [what rank 0 gave to hand_back, rank 1, …]

A job that many tests look at runs once, also where several test processes share the tests.
"""

import io
import os
import re
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import tiny
import torch
from fork_server import start_python
from tiny import PATH, run_python

from template.parallel.ranks import Alone

ENVIRONMENT = {"PYTHONPATH": PATH}
DEVICE = os.environ.get("DEVICE_OF_RANKS", "cpu")
TORCHRUN = ["-m", "torch.distributed.run"]


class Tiny(tiny.Tiny):
    """On the CPU, where ranks need no GPUs of their own, unless the environment says "cuda"."""

    def __init__(self, model=None, **attributes):
        super().__init__(model, **{"device": DEVICE, **attributes})


def torchrun(num_ranks, *arguments, cwd, options=(), env=None, check=True, timeout=300):
    """``torchrun --nproc-per-node <num_ranks> <options> <arguments>``; returns the CompletedProcess."""
    options = options or ["--standalone"]
    return run_python(*TORCHRUN, "--nproc-per-node", num_ranks, *options, *arguments, cwd=cwd,
                      env={**ENVIRONMENT, **(env or {})}, check=check, timeout=timeout)


def hand_back(results):
    """In a job: what the tests shall see of this rank. Plain data and tensors."""
    rank = os.environ.get("RANK", "0")
    torch.save(results, f".rank{rank}.tmp")
    os.replace(f".rank{rank}.tmp", f"rank{rank}.pth")


def handed_back(folder, num_ranks):
    files = [folder / f"rank{rank}.pth" for rank in range(num_ranks)]
    return [torch.load(file, map_location="cpu", weights_only=True) for file in files]


def in_ranks(num_ranks, job, tmp_path_factory, *arguments, device="cpu"):
    """Run a module of ``tests/jobs/`` in ``num_ranks`` processes, once.

    Returns:
        ``(results of the ranks, the folder that they ran in, the CompletedProcess's stdout and stderr)``.
    """
    name = f"{job} {num_ranks} {device}"

    def run(folder):
        told = run_ranks(num_ranks, "-m", job, *arguments, cwd=folder, env={"DEVICE_OF_RANKS": device})
        for name, text in zip(("stdout", "stderr"), told):
            (folder / f"{name}.txt").write_text(text)

    folder = once(tmp_path_factory, name, run)
    said = [(folder / f"{name}.txt").read_text() for name in ("stdout", "stderr")]
    return handed_back(folder, num_ranks), folder, *said


def once(tmp_path_factory, name, run):
    """``run(folder)`` in the first test process that asks; the others wait. Returns the folder."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / name, base / f"{name}.done"
    try:
        folder.mkdir()
    except FileExistsError:
        while not done.exists():
            time.sleep(0.2)
        if failure := done.read_text():
            raise AssertionError(f"in the other test process: {failure}") from None
        return folder
    failure = "interrupted"
    try:
        run(folder)
        failure = ""
    except BaseException as error:
        failure = str(error)
        raise
    finally:
        done.write_text(failure)
    return folder


def history(folder):
    """``history.csv`` as a list of dicts of numbers, without the seconds and without what a row lacks."""
    header, *rows = [line.split(",") for line in (Path(folder) / "history.csv").read_text().splitlines()]
    return [{name: float(value) for name, value in zip(header, row) if value and name != "seconds"} for row in rows]


def epochs_told(text):
    """The epochs that a training printed the end of, in the order of the lines."""
    return [int(number) for number in re.findall(r"^epoch +(\d+) train", text, re.M)]


# --- ranks that are threads, for what they tell each other -------------------------------------------------------------


class Thread(Alone):
    """A rank that is a thread; what it tells goes through a file."""

    patience = 30  # seconds

    def __init__(self, rank, slots, barrier):
        self.rank, self.size, self.is_main, self.slots, self.barrier = rank, len(slots), rank == 0, slots, barrier

    def gather(self, value):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        self.slots[self.rank] = buffer.getvalue()
        self.barrier.wait(self.patience)
        found = [torch.load(io.BytesIO(told), weights_only=True) for told in self.slots]
        self.barrier.wait(self.patience)
        return found


def in_threads(num_ranks, function):
    """For each rank what ``function(world)`` gives, or the error that it raises."""
    slots, barrier, results = [None] * num_ranks, threading.Barrier(num_ranks), [None] * num_ranks

    def run(rank):
        try:
            results[rank] = function(Thread(rank, slots, barrier))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=[rank]) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


# --- ranks and agents as processes that a test sends signals to ---------------------------------------------------------


class Process:
    """One that runs beside the test; what it says goes to files, so that nothing waits for a pipe."""

    def __init__(self, name, arguments, cwd, env=None):
        self.files = {stream: cwd / f"{name}.{stream}.txt" for stream in ("stdout", "stderr")}
        with open(self.files["stdout"], "w") as stdout, open(self.files["stderr"], "w") as stderr:
            self.process = start_python(
                arguments, cwd=cwd, stdout=stdout, stderr=stderr, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **ENVIRONMENT, **(env or {})})
        self.pid = self.process.pid

    def end(self, timeout=240):
        """The exit code, once it ended."""
        try:
            return self.process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            raise AssertionError(f"It does not end: {self.stdout} {self.stderr}") from None

    def send(self, number, *others):
        """A signal to it, and to other processes at the same moment."""
        for pid in (self.pid, *others):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    @property
    def stdout(self):
        return self.files["stdout"].read_text()

    @property
    def stderr(self):
        return self.files["stderr"].read_text()


def start_ranks(num_ranks, *arguments, cwd, env=None):
    """The ranks without an agent: each with its own exit code."""
    port = free_port()
    return [Process(f"rank{rank}", arguments, cwd, {
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks), "RANK": str(rank),
        "LOCAL_RANK": str(rank), **(env or {})}) for rank in range(num_ranks)]


def run_ranks(num_ranks, *arguments, cwd, env=None):
    """The ranks without an agent, to their end. Returns what all of them said on stdout, and on stderr."""
    ranks = start_ranks(num_ranks, *arguments, cwd=cwd, env=env)
    codes = [rank.end() for rank in ranks]
    told = ["".join(getattr(rank, name) for rank in ranks) for name in ("stdout", "stderr")]
    if any(codes):
        raise AssertionError(f"{arguments} ended with {codes}:\n" + "\n".join(told))
    return told


def start_torchrun(num_ranks, *arguments, cwd, options=("--standalone",), env=None, name="torchrun"):
    return Process(name, [*TORCHRUN, "--nproc-per-node", num_ranks, *options, *arguments], cwd, env)


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]
