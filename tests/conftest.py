"""Every test runs in an empty folder of its own, on one thread, with stdout given back."""

import gc
import os
import shutil
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two test processes share two cores

import pytest
import torch

from template.callbacks import history, progress_bar
from template.data import workers
from template.output.logger import Logger


def pytest_configure():
    """Temporary folders are in memory where Linux has room for them: the tests write some ten thousand small files and
    have each of them synced, for which a disk takes up to ten milliseconds."""
    memory = "/dev/shm"
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4e9:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", memory)


@pytest.fixture(autouse=True, scope="session")
def no_stacks_for_missing_gpus():
    """``torch.manual_seed`` keeps, for each kind of GPU that is not in use yet, the call with the stack as text, which takes
    0.4 ms below pytest. Where there is no such GPU, nobody will read it."""
    for kind in (torch.cuda, torch.xpu, torch.mtia):
        if not kind.is_available():
            kind._lazy_call = lambda *_, **__: None


@pytest.fixture(autouse=True, scope="module")
def what_is_imported_stays():
    """A ``gc.collect()`` need not look at what was there before a test file, which takes most of its time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """check_point/ and runs/ land in a temporary folder; a Logger that a test left open is taken off stdout."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    stdout = sys.stdout
    yield tmp_path
    while isinstance(sys.stdout, Logger):
        sys.stdout.restore()
    sys.stdout = stdout
    torch.use_deterministic_algorithms(False)
    for iterator in tuple(workers._ITERATORS):  # of loaders that nobody needs any more; as garbage they take 5 s a worker
        iterator._shutdown_workers()


@pytest.fixture(autouse=True)
def without_curves(monkeypatch):
    """No ``history.png``: matplotlib takes ten times as long as a tiny training. ``test_history.py`` has them drawn."""
    monkeypatch.setattr(history.History, "_draw", lambda self, model: None)


class FakeTqdm:
    """Notes what a bar is asked for."""

    made = []

    def __init__(self, **options):
        self.options, self.updates, self.postfixes, self.closed, self.cleared = options, 0, [], 0, 0
        self.unit, self.desc, self.total = options["unit"], options["desc"], options["total"]
        self.format_dict = {"ncols": 300}
        self.made.append(self)

    def update(self):
        self.updates += 1

    def set_postfix_str(self, text, refresh):
        self.postfixes.append(text)

    def clear(self):
        self.cleared += 1

    def close(self):
        self.closed += 1


@pytest.fixture
def fake_tqdm(monkeypatch):
    FakeTqdm.made = []
    monkeypatch.setattr(progress_bar, "_find_tqdm", lambda: (FakeTqdm, False))
    return FakeTqdm.made
