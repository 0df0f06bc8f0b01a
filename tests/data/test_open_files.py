"""A dataset that opens its file when it reads its first sample, so that each worker has one of its own."""

import multiprocessing
import os
import pickle
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CPU, plain
from torch import nn
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Dataset, IterableDataset, random_split

from template.data.loaders import make_batches
from template.data.seeding import own_generators
from template.template import TemplateModel

COUNT, WIDTH = 120, 8
OPENED = []  # files, in this process


@pytest.fixture(autouse=True)
def close_files():
    """A warning that one was left open would come in the midst of another test."""
    yield
    while OPENED:
        file = OPENED.pop()
        if hasattr(file, "close"):  # a memmap has none
            file.close()


def write_files(name, first):
    """Sample i holds ``first + i``, eight times."""
    rows = (np.arange(COUNT, dtype=np.int32)[:, None] + first).repeat(WIDTH, 1)
    rows.tofile(f"{name}.raw")
    with zipfile.ZipFile(f"{name}.zip", "w") as archive:
        for index, row in enumerate(rows):
            archive.writestr(str(index), row.tobytes())
    if (h5py := find("h5py")) is not None:
        with h5py.File(f"{name}.h5py", "w") as file:
            file.create_dataset("rows", data=rows, chunks=(16, WIDTH), compression="gzip")
    if (lmdb := find("lmdb")) is not None:
        with lmdb.open(f"{name}.lmdb") as environment, environment.begin(write=True) as transaction:
            for index, row in enumerate(rows):
                transaction.put(str(index).encode(), row.tobytes())


def find(module):
    try:
        return __import__(module)
    except ImportError:
        return None


class Lazy(Dataset):
    """Refuses to read in another process than the one that opened the file, where wrong data comes by luck alone."""

    def __init__(self, path, first=0):
        self.path, self.kind, self.first = path, path.split(".")[-1], first
        self.file = self.opened_in = None

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        if self.file is None:
            self.file, self.opened_in = self.open(), os.getpid()
            OPENED.append(self.file)
        assert self.opened_in == os.getpid(), "a file that another process opened"
        return torch.tensor(self.row(index)), self.first + index

    def open(self):
        if self.kind == "memmap":
            return np.memmap(self.path.replace("memmap", "raw"), np.int32, "r", shape=(COUNT, WIDTH))
        if self.kind == "h5py":
            return find("h5py").File(self.path)
        if self.kind == "lmdb":
            return find("lmdb").open(self.path, readonly=True, lock=False)
        return zipfile.ZipFile(self.path) if self.kind == "zip" else open(self.path, "rb")  # noqa: SIM115

    def row(self, index):
        if self.kind in ("memmap", "h5py"):
            return np.array((self.file if self.kind == "memmap" else self.file["rows"])[index])
        if self.kind == "lmdb":
            with self.file.begin() as transaction:
                return np.frombuffer(transaction.get(str(index).encode()), np.int32).copy()
        if self.kind == "zip":
            return np.frombuffer(self.file.read(str(index)), np.int32).copy()
        self.file.seek(4 * WIDTH * index)
        return np.frombuffer(self.file.read(4 * WIDTH), np.int32).copy()


@contextmanager
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


class Reader(TemplateModel):
    """Notes the samples that it trains on and evaluates, and how many of them were wrong."""

    def __init__(self, train_loader, eval_loader):
        super().__init__()
        model = nn.Linear(1, 1)
        self.model_list, self.optimizer_list = [model], [torch.optim.SGD(model.parameters(), 0.001)]
        self.train_loader, self.eval_loader, self.seed = train_loader, eval_loader, 1
        self.wrong, self.trained, self.evaluated = 0, [], []

    def loss_per_batch(self, batch):
        rows, number = batch
        self.wrong += int((rows != number[:, None]).any(1).sum())
        (self.trained if self.model_list[0].training else self.evaluated).extend(number.tolist())
        return self.model_list[0](torch.ones(len(rows), 1)).square().mean()

    def eval_scores_per_batch(self, batch):
        return {}


def loaders(kind, is_split, train=None, evaluation=None):
    """Two halves of one dataset, or two files."""
    if is_split:
        train_data, eval_data = random_split(Lazy(f"a.{kind}"), [0.5, 0.5], torch.Generator().manual_seed(0))
    else:
        train_data, eval_data = Lazy(f"a.{kind}"), Lazy(f"b.{kind}", 1000)
    return DataLoader(train_data, 8, shuffle=True, **train or {}), DataLoader(eval_data, 8, **evaluation or {})


def assert_all_samples_are_right(kind, is_split, train=None, evaluation=None, epochs=2):
    for name, first in (("a", 0), ("b", 1000)):
        write_files(name, first)
    trainer = Reader(*loaders(kind, is_split, train, evaluation))
    trainer.check_init(use_tb=False)
    trainer.fit(epochs)
    count = COUNT // 2 if is_split else COUNT
    looked_at = trainer.evaluated[:8]
    assert trainer.wrong == 0 and trainer.evaluated[8:16] == looked_at  # the batch that is looked at before training
    assert [len(trainer.trained), len(set(trainer.trained))] == [epochs * count, count]
    assert [len(trainer.evaluated) - 8, len(set(trainer.evaluated))] == [epochs * count, count]
    assert set(trainer.trained).isdisjoint(trainer.evaluated)


@pytest.mark.slow
@pytest.mark.parametrize("is_split", [True, False], ids=["random_split", "two files"])
@pytest.mark.parametrize("kind", ["raw", "zip", "memmap", "h5py", "lmdb"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_sample_is_wrong_where_a_dataset_opens_its_file_at_its_first_sample(kind, is_split, num_workers):
    if kind in ("h5py", "lmdb"):
        pytest.importorskip(kind)
    with no_warning():
        assert_all_samples_are_right(kind, is_split, dict(num_workers=num_workers), dict(num_workers=num_workers))


@pytest.mark.slow
@pytest.mark.parametrize("is_split", [True, False], ids=["random_split", "two files"])
def test_nor_with_persistent_workers(is_split):
    options = dict(num_workers=2, persistent_workers=True)
    with no_warning():
        assert_all_samples_are_right("raw", is_split, options, options)


@pytest.mark.slow
def test_nor_with_workers_that_are_spawned():
    options = dict(num_workers=1, multiprocessing_context="spawn")
    assert_all_samples_are_right("raw", True, options, options, epochs=1)


@pytest.mark.slow
def test_nor_where_the_workers_of_the_training_stay_and_the_evaluation_has_none():
    """As in a plain loop, in which these workers are there before the evaluation opens the file in the main process."""
    with no_warning():
        assert_all_samples_are_right("raw", True, dict(num_workers=2, persistent_workers=True))


def test_nor_in_a_dict_of_loaders_one_of_which_has_no_workers():
    write_files("a", 0)
    whole = Lazy("a.raw")
    train, first, second = random_split(whole, [0.4, 0.3, 0.3], torch.Generator().manual_seed(0))
    trainer = Reader(DataLoader(train, 8, num_workers=1, persistent_workers=True), {
        "without": DataLoader(first, 8), "empty": DataLoader(ConcatDataset([second]), 8)})
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    assert trainer.wrong == 0 and len(set(trainer.trained)) == 48 and len(trainer.evaluated) == 16


@pytest.mark.slow
def test_a_file_that_is_open_when_workers_are_forked_is_told_of():
    write_files("a", 0)
    train_loader, eval_loader = loaders("raw", True, dict(num_workers=2))
    trainer = Reader(train_loader, eval_loader)
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    trainer.eval()  # opens it in this process
    assert trainer.wrong == 0
    with pytest.warns(UserWarning, match=r"(?s)must not share an open file.*Subset holds an open one.*BufferedReader a\.raw"
                      r".*2 workers.*give that loader workers too"), pytest.raises(AssertionError, match="another process"):
        trainer.train_loop()


class Holding(Dataset):
    def __init__(self, held):
        self.held = held

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return index


class HoldingIterated(IterableDataset):
    def __init__(self, held):
        self.held = held

    def __iter__(self):
        return iter(range(2))


@pytest.mark.parametrize("kind", [Holding, HoldingIterated])
@pytest.mark.parametrize("make, is_told", [
    (lambda: open("a.raw", "rb"), True),
    (lambda: {"archives": [zipfile.ZipFile("a.zip")]}, True),
    (lambda: open("a.raw"), True),
    (lambda: open("log.txt", "w"), False),
    (lambda: np.memmap("a.raw", np.int32), False),
    (lambda: np.arange(3), False),
    (lambda: None, False),
], ids=["raw", "zip in a dict", "text", "written to", "memmap", "array", "nothing"])
def test_told_is_only_what_workers_would_share(kind, make, is_told):
    write_files("a", 0)
    dataset = kind(make())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert sum(len(batch) for batch in make_batches(DataLoader(dataset, 1, num_workers=1), 3, CPU).epoch(1)) == 2
        assert sum(len(batch) for batch in make_batches(DataLoader(dataset, 1), 3, CPU).epoch(1)) == 2
    assert len([one for one in told if "open file" in str(one.message)]) == is_told


def test_a_closed_file_and_an_open_h5py_file_are_told_apart():
    h5py = pytest.importorskip("h5py")
    write_files("a", 0)
    file = h5py.File("a.h5py")
    with pytest.warns(UserWarning, match=r"File a\.h5py"):
        list(make_batches(DataLoader(Holding(file), 1, num_workers=1), 3, CPU).epoch(1))
    file.close()
    with no_warning():
        list(make_batches(DataLoader(Holding(file), 1, num_workers=1), 3, CPU).epoch(1))


# --- nothing else of a dataset with workers is touched in the main process ------------------------------------------------


class Untouchable(Dataset):
    """Whatever is asked of it in the main process is noted; what torch itself asks for is allowed there."""

    def __init__(self):
        self.parts = OnDemand()
        Path("touched").write_text("")

    def note(self, what):
        if multiprocessing.parent_process() is None:
            with open("touched", "a") as file:
                file.write(f"{what} ")

    def __getitem__(self, index):
        self.note("getitem")
        return torch.zeros(6), index % 3

    def __len__(self):
        self.note("len")
        return 24

    def __repr__(self):
        self.note("repr")
        return "Untouchable()"

    def __copy__(self):
        self.note("copy")
        return self

    def __deepcopy__(self, memo):
        self.note("deepcopy")
        return self

    def __reduce__(self):
        self.note("pickle")
        return Untouchable, ()

    @property
    def file(self):
        self.note("file")

    @property
    def generator(self):
        self.note("generator")


class OnDemand:
    """Opens its file when it is asked for anything, as proxies do, also for its class."""

    __slots__ = ()

    def __getattribute__(self, name):
        with open("touched", "a") as file:
            file.write(f"{name} ")
        return object.__getattribute__(self, name)


@pytest.mark.slow
def test_a_dataset_with_workers_is_touched_in_its_workers_alone():
    """From ``check_init`` to a continued run. Its own batch sampler knows the length, so that torch does not ask for it."""
    def trainer():
        batches = BatchSampler(range(24), 4, False)
        loader = DataLoader(dataset, batch_sampler=batches, num_workers=1)
        built = Reader(loader, DataLoader(dataset, batch_sampler=batches, num_workers=1))
        built.loss_per_batch = lambda batch: built.model_list[0](batch[0][:, :1]).square().mean()
        built.ckpt_dir, built.save_per_steps = "run", 2
        with pytest.warns(UserWarning, match="read one dataset"):
            built.check_init(use_tb=False)
        return built

    dataset = Untouchable()
    trainer().fit(1)
    continued = trainer()
    continued.load_state("auto")
    continued.fit(2)
    assert continued.epochs_done == 2 and Path("touched").read_text() == ""


def test_looking_for_generators_asks_an_object_for_nothing():
    dataset = Untouchable()
    dataset.rng = np.random.default_rng()
    assert own_generators([dataset]) == [dataset.rng] and Path("touched").read_text() == ""


@pytest.mark.slow
def test_generators_that_worker_init_fn_makes_are_seeded_too():
    class Drawing(Dataset):
        rng = None

        def __len__(self):
            return 12

        def __getitem__(self, index):
            return self.rng.normal()

    def make(worker_id):
        torch.utils.data.get_worker_info().dataset.rng = np.random.default_rng()

    first, second = (
        [plain(batch) for batch in make_batches(DataLoader(Drawing(), 4, num_workers=workers, worker_init_fn=make), 3, CPU)
         .epoch(1)] for workers in (1, 2))
    assert first == second


def test_a_spawned_worker_gets_a_dataset_that_can_be_pickled_after_the_first_batch_was_looked_at():
    write_files("a", 0)
    batches = make_batches(loaders("raw", True, dict(num_workers=1), dict(num_workers=1))[1], 3, CPU)
    first = batches.first()
    assert pickle.loads(pickle.dumps(batches.dataset)).dataset.dataset.file is None
    assert plain(first[0]) == [[number] * WIDTH for number in first[1].tolist()]
