"""Checkpoints: whole or not there, never silently different, harmless to open, found again, and of 2021 too."""

import builtins
import collections
import copy
import enum
import json
import os
import pickle
import random
import re
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import Tiny, tiny_model, tiny_trainer, weights
from torch import nn

from template.checkpoint import files as checkpoint
from template.checkpoint.files import CheckpointError, keep_newest, newest, read, write, write_last
from template.checkpoint.plain_data import as_plain
from template.checkpoint.state import collect
from template.hooks import Callback


def equal(a, b):
    """The same nesting, types and bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def some_state(step=7):
    generator = torch.Generator().manual_seed(step)
    return {
        "model0": {"weight": torch.randn(5, 7, generator=generator), "count": torch.arange(9)},
        "optimizer_list0": {"state": {0: {"momentum": torch.randn(3, generator=generator)}},
                            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0]}]},
        "epoch": 3, "epochs_done": 3, "global_step": step, "best_metric": {"acc": 0.5}, "key_metric": None,
    }


def files():
    return sorted(os.listdir())


# --- writing ----------------------------------------------------------------------------------------------------------


def test_what_is_written_reads_back_bit_for_bit():
    state = some_state() | {
        "half": torch.tensor([1.5], dtype=torch.bfloat16), "parameter": nn.Parameter(torch.ones(2)), "big": float("inf"),
        "text": "准确率", "size": torch.Size([1]), "dtype": torch.float16, "device": torch.device("cpu"),
        "ordered": collections.OrderedDict(a=1),
    }
    write(state, "a.pth")
    assert files() == ["a.pth"]
    assert equal(state, read("a.pth"))


plain_data = st.recursive(
    st.none() | st.booleans() | st.integers(-2**80, 2**80) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(0, 99), inner),
    max_leaves=12)
names = st.text().filter(lambda name: name != "shards")  # which is reserved; hypothesis draws strings from the source too


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, plain_data))
@example({"callbacks": {"shards": None}})  # further down it is a name like any other
@example({"kind of plain data": None, "mine": {"kind of plain data": "bytes", "text": (b"x", {"kind of plain data": 1})}})
def test_any_plain_data_reads_back(state):
    write(as_plain(state), "any.pth")
    assert equal(state, read("any.pth"))


def parts_in(folder, number=1):
    """What ``sharded.write`` makes and returns, of no weights."""
    path = Path(folder) / f"shards-{number}-{number}"
    path.mkdir(parents=True)
    metadata = pickle.dumps({})
    (path / ".metadata").write_bytes(metadata)
    return {"folder": path.name, "crc": {".metadata": zlib.crc32(metadata)}, "world_size": 2, "param_groups": [],
            "other_state": {}, "groups": []}


@pytest.mark.parametrize("change", [
    lambda parts: None, lambda parts: {}, lambda parts: 3, lambda parts: [1] * 999, lambda parts: parts | {"folder": None},
    lambda parts: parts | {"folder": "../shards-1-1"}, lambda parts: parts | {"crc": {}}, lambda parts: parts | {"crc": 5},
    lambda parts: parts | {"crc": {**parts["crc"], "../x": 1}}, lambda parts: parts | {"crc": {**parts["crc"], 7: 1}},
    lambda parts: {key: value for key, value in parts.items() if key != "groups"},
])
def test_the_reserved_key_is_refused_with_what_it_held_both_when_it_is_written_and_when_it_is_read(change):
    write(some_state(), "a.pth")
    mine = change(parts_in("."))
    held = repr(mine)[:200]
    with pytest.raises(ValueError, match=rf"^The key 'shards' of a checkpoint is reserved: .*; it is {re.escape(held)}…?\. "
                                         "Store data of your own under another key.$") as refused:
        write({"shards": mine}, "a.pth")
    assert not isinstance(refused.value, CheckpointError) and equal(read("a.pth"), some_state())
    assert files() == ["a.pth", "shards-1-1"]
    torch.save({"shards": mine}, "a.pth")
    with pytest.raises(CheckpointError, match="^a.pth cannot be used: The key 'shards' .* under another key.$"):
        read("a.pth")


def test_a_file_that_names_parts_is_written_only_where_they_are():
    state = {"epoch": 3, "shards": parts_in("run")}
    write(state, "run/last.pth")
    assert equal(read("run/last.pth"), {**state, "shards": {**state["shards"], "in": "run"}})
    with pytest.raises(FileNotFoundError, match="^shards-1-1/.metadata is missing$"):
        write(state, "a.pth")
    assert files() == ["run"]


def test_parts_that_a_file_names_are_kept_and_others_deleted_whatever_the_users_own_files_hold():
    write({"shards": parts_in(".", 1)}, "last.pth")
    parts_in(".", 2)
    for number, value in enumerate([None, {}, {"folder": "shards-2-2"}, 3]):
        torch.save({"shards": value}, f"mine{number}.pth")
    torch.save([1], "list.pth")
    keep_newest(".", None)
    assert [name for name in files() if not name.endswith(".pth")] == ["shards-1-1"]
    parts_in(".", 3)
    Path("damaged.pth").write_bytes(b"what it names is not known")
    keep_newest(".", None)
    assert [name for name in files() if not name.endswith(".pth")] == ["shards-1-1", "shards-3-3"]


@pytest.mark.parametrize("state", [[some_state()], 3, None, torch.ones(2)])
def test_what_is_no_dict_is_refused_before_anything_is_written(state):
    with pytest.raises(TypeError, match=f"A checkpoint is a dict; the state is a {type(state).__name__}. Write .* instead."):
        write(state, "a.pth")
    assert files() == []


class Color(enum.IntEnum):
    RED = 1


Pair = collections.namedtuple("Pair", "a b")


@pytest.mark.parametrize("value", [
    lambda: 0, object(), b"", np.float64(0.5), np.zeros(2), {1, 2}, Color.RED, Pair(1, 2), collections.defaultdict(list),
    Path("x"), nn.Linear(1, 1),
])
def test_objects_are_refused_with_their_place_before_anything_is_written(value):
    with pytest.raises(TypeError, match=rf"state\['callbacks'\]\['EMA'\]\[1\] is a .*{type(value).__name__}.*state_dict"):
        write({"callbacks": {"EMA": [0, value]}}, "a.pth")
    assert files() == []


def test_objects_as_keys_are_refused_too():
    with pytest.raises(TypeError, match=r"state\['seen'\], key .* is a .*Color"):
        write({"seen": {Color.RED: 1}}, "a.pth")


def fail(*args, **kwargs):
    raise OSError(28, "No space left on device")


def half_a_save(state, file):
    file.write(b"PK\x03\x04 half of a file")
    fail()


@pytest.mark.parametrize("function, replacement", [("torch.save", half_a_save), ("os.fsync", fail), ("os.replace", fail)])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(monkeypatch, function, replacement):
    write(some_state(1), "a.pth")
    before = Path("a.pth").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(function, replacement)
        with pytest.raises(OSError, match="No space left"):
            write(some_state(2), "a.pth")
    assert files() == ["a.pth"]
    assert Path("a.pth").read_bytes() == before
    write(some_state(2), "a.pth")
    assert equal(read("a.pth"), some_state(2))


def test_a_folder_that_is_not_there_is_told():
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write(some_state(), "nowhere/a.pth")


class FullFile:
    """A file that takes so many bytes and then finds the disk full."""

    def __init__(self, room, *args):
        self.file, self.room = builtins.open(*args), room
        self.flush, self.fileno, self.close = self.file.flush, self.file.fileno, self.file.close

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            fail()
        return self.file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


@pytest.mark.parametrize("room", [0, 100, 1500])
def test_a_disk_that_becomes_full_within_torch_save_surfaces_as_that(monkeypatch, room):
    """torch.save itself says "unexpected pos 64 vs 0", a RuntimeError."""
    write(some_state(1), "a.pth")
    before = Path("a.pth").read_bytes()
    monkeypatch.setattr(checkpoint, "open", lambda *args: FullFile(room, *args), raising=False)
    with pytest.raises(OSError, match="No space left on device") as told:
        write(some_state(2), "a.pth")
    assert told.value.errno == 28
    assert files() == ["a.pth"] and Path("a.pth").read_bytes() == before


@pytest.mark.parametrize("is_cause", [True, False])
def test_of_an_error_of_torch_save_the_os_error_behind_it_counts(monkeypatch, is_cause):
    def save(state, file):
        try:
            raise OSError(122, "Disk quota exceeded")
        except OSError as error:
            raise RuntimeError("unexpected pos 64 vs 0") from (error if is_cause else None)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="Disk quota exceeded"):
        write(some_state(), "a.pth")


def test_an_error_of_torch_save_with_nothing_behind_it_stays_what_it_is(monkeypatch):
    def save(state, file):
        raise RuntimeError("a broken tensor")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RuntimeError, match="a broken tensor"):
        write(some_state(), "a.pth")
    assert files() == []


def flip(data):
    return data[:300] + bytes([data[300] ^ 1]) + data[301:]


@pytest.mark.parametrize("spoil", [flip, lambda data: data[:-30], lambda data: bytes(len(data)), lambda data: b""],
                         ids=["a flipped bit", "cut short", "zeros", "empty"])
@pytest.mark.parametrize("save", [lambda state: write(state, "last.pth"),
                                  lambda state: write_last(state, ".", "epoch2.pth")], ids=["write", "write_last"])
def test_what_cannot_be_read_back_never_takes_the_place_of_what_is_there(monkeypatch, spoil, save):
    write_last(some_state(1) | {"weight": torch.ones(500)}, ".")
    before, fsync = Path("last.pth").read_bytes(), os.fsync

    def spoiling(descriptor):
        fsync(descriptor)
        (temporary,) = Path().glob(".*.tmp")
        temporary.write_bytes(spoil(temporary.read_bytes()))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", spoiling)
        with pytest.raises(OSError, match="What was written cannot be read back"):
            save(some_state(2) | {"weight": torch.ones(500)})
    assert files() == ["last.pth"] and Path("last.pth").read_bytes() == before
    save(some_state(3))
    assert read("last.pth")["global_step"] == 3


def test_a_last_one_that_is_that_of_an_epoch_as_well_is_written_once(monkeypatch):
    saves, save = [], torch.save
    monkeypatch.setattr(torch, "save", lambda *args: saves.append(1) or save(*args))
    write_last(some_state(1), ".", "epoch1.pth")
    assert len(saves) == 1
    write_last(some_state(2), ".")
    write_last(some_state(3), ".", "epoch3.pth")
    assert files() == ["epoch1.pth", "epoch3.pth", "last.pth", "previous.pth"]
    assert [read(name)["global_step"] for name in files()] == [1, 3, 3, 2]
    write_last(some_state(9), ".", "epoch3.pth")  # of a run that went back
    assert [read(name)["global_step"] for name in files()] == [1, 9, 9, 3]


# --- reading ----------------------------------------------------------------------------------------------------------


def damaged_or_equal(state, data):
    Path("damaged.pth").write_bytes(data)
    try:
        return equal(state, read("damaged.pth"))
    except CheckpointError as error:
        assert "damaged.pth" in str(error)
        return True


def test_a_flipped_bit_anywhere_is_noticed_or_harmless():
    state = some_state()
    write(state, "a.pth")
    whole = Path("a.pth").read_bytes()
    generator = random.Random(0)
    noticed = 0
    for _ in range(150):
        data = bytearray(whole)
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        assert damaged_or_equal(state, data)
        try:
            read("damaged.pth")
        except CheckpointError:
            noticed += 1
    assert noticed > 50  # the others hit padding


@pytest.mark.slow
def test_every_flipped_bit_in_the_directory_of_the_file_is_noticed_or_harmless():
    """No checksum covers it, and one bit of it makes torch leave a tensor uninitialised."""
    state = {"model0": torch.randn(6)}
    write(state, "a.pth")
    whole = Path("a.pth").read_bytes()
    with zipfile.ZipFile("a.pth") as archive:
        start = archive.start_dir
        entry = start + sum(46 + len(info.filename) + len(info.extra) for info in archive.infolist()[:1])
    for position in range(start, min(entry + 46 * 3, len(whole))):
        for bit in range(8):
            data = bytearray(whole)
            data[position] ^= 1 << bit
            assert damaged_or_equal(state, data), (position, bit)


def test_a_file_that_was_cut_short_is_noticed():
    state = some_state()
    write(state, "a.pth")
    whole = Path("a.pth").read_bytes()
    for length in sorted({0, 1, 4, 30, *range(0, len(whole), len(whole) // 25), len(whole) - 1}):
        Path("short.pth").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="short.pth"):
            read("short.pth")


def test_what_is_no_checkpoint_is_told():
    with pytest.raises(FileNotFoundError, match="No checkpoint at missing.pth"):
        read("missing.pth")
    Path("text.pth").write_text("hello, I am a text file")
    with pytest.raises(CheckpointError, match="text.pth"):
        read("text.pth")
    torch.save(torch.ones(2), "tensor.pth")
    with pytest.raises(CheckpointError, match="tensor.pth holds a Tensor, not the dict"):
        read("tensor.pth")


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_runs_none(zipped):
    torch.save({"model0": Payload()}, "evil.pth", _use_new_zipfile_serialization=zipped)
    torch.load("evil.pth", weights_only=False)
    assert os.path.exists("executed")  # the trap works
    os.rmdir("executed")
    with pytest.raises(CheckpointError, match="evil.pth was refused.*Nothing of it was executed.*it names .*mkdir"):
        read("evil.pth")
    assert not os.path.exists("executed")


def test_a_file_of_whole_modules_is_refused_with_the_class_that_it_names():
    tiny_trainer().save_model("modules.pth")
    with pytest.raises(CheckpointError, match="it names torch.nn.modules.container.Sequential"):
        read("modules.pth")


# --- the newest, the last, the kept -----------------------------------------------------------------------------------


def test_only_the_highest_numbers_are_kept():
    for number in (1, 2, 9, 10, 11):
        Path(f"epoch{number}.pth").touch()
    Path("epochs.pth").touch()
    Path("epoch_best.pth").touch()
    checkpoint.keep_newest(".", None)
    assert len(files()) == 7
    checkpoint.keep_newest(".", 2)
    assert files() == ["epoch10.pth", "epoch11.pth", "epoch_best.pth", "epochs.pth"]


def test_the_last_one_is_taken_and_the_one_before_it_when_it_is_damaged():
    write_last(some_state(1), ".")
    assert files() == ["last.pth"]
    write_last(some_state(2), ".")
    assert files() == ["last.pth", "previous.pth"]
    path, state, skipped = newest(".")
    assert (path.name, state["global_step"], skipped) == ("last.pth", 2, [])
    Path("last.pth").write_bytes(b"half")
    path, state, skipped = newest(".")
    assert (path.name, state["global_step"]) == ("previous.pth", 1)
    assert len(skipped) == 1 and "last.pth" in skipped[0]


def test_without_the_last_one_the_furthest_counts_by_number_and_content():
    for number in (9, 10):
        write(some_state(number) | {"epochs_done": number}, f"epoch{number}.pth")
    os.utime("epoch9.pth")  # the clock does not count
    assert newest(".")[0].name == "epoch10.pth"
    write(some_state(8), "previous.pth")
    Path("last.pth").write_bytes(b"")
    assert newest(".")[0].name == "epoch10.pth"  # further than the previous one
    Path("epoch10.pth").write_bytes(b"half")
    path, _, skipped = newest(".")
    assert path.name == "epoch9.pth" and len(skipped) == 2
    write(some_state(12), "previous.pth")
    assert newest(".")[0].name == "previous.pth"


def test_who_went_back_to_an_earlier_epoch_goes_on_from_there():
    """Training was at update 10, was started again from 5 on purpose, and was killed after one more epoch."""
    write_last(some_state(10), ".")
    write_last(some_state(6), ".")
    write(some_state(10) | {"epochs_done": 10}, "epoch10.pth")
    assert newest(".")[1]["global_step"] == 6


def test_weights_alone_are_nothing_to_continue_from():
    write({"model0": {}, "epoch": 4}, "last.pth")
    path, state, skipped = newest(".")
    assert path is state is None and "last.pth holds weights only" in skipped[0]
    assert newest("nowhere") == (None, None, [])


@pytest.mark.parametrize("has_links", [True, False])
def test_writing_a_new_last_never_touches_the_files_that_share_its_content(monkeypatch, has_links):
    if not has_links:  # some network file systems
        monkeypatch.setattr(os, "link", fail)
    write_last(some_state(1), ".", epoch_file="epoch1.pth")
    write_last(some_state(2), ".")
    assert files() == ["epoch1.pth", "last.pth", "previous.pth"]
    assert [read(name)["global_step"] for name in files()] == [1, 2, 1]


@pytest.mark.parametrize("has_epoch_file", [True, False])
def test_at_every_instant_of_writing_a_whole_checkpoint_is_there(monkeypatch, has_epoch_file):
    """Each call that changes the folder fails once: what is found then is the old state or the new one."""
    functions = [("os.link", 1), ("os.link", 2), ("os.replace", 1), ("os.replace", 2), ("torch.save", 1), ("os.fsync", 1)]
    for function, failing_call in functions:
        folder = Path(f"{function}{failing_call}")
        folder.mkdir()
        write_last(some_state(1), folder)
        module, name = (torch if function.startswith("torch") else os), function.split(".")[1]
        original, calls = getattr(module, name), []

        def failing(*args, original=original, calls=calls, failing_call=failing_call, **kwargs):
            calls.append(args)
            if len(calls) == failing_call:
                fail()
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, failing)
            if name == "link":
                patch.setattr("shutil.copyfile", fail)
            try:
                write_last(some_state(2), folder, folder / "epoch3.pth" if has_epoch_file else None)
            except OSError:
                pass
        assert equal(newest(folder)[1], some_state(1)) or equal(newest(folder)[1], some_state(2))
        assert not [path for path in folder.iterdir() if path.name.startswith(".")], function


# --- what a trainer puts in and takes out -----------------------------------------------------------------------------


def test_a_saved_trainer_holds_plain_data_with_the_keys_of_2021():
    trainer = tiny_trainer()
    trainer.fit(1)
    trainer.save_state("mine.pth")
    state = torch.load("mine.pth", weights_only=True)
    keys = {"model0", "optimizer_list0", "global_step", "global_step_eval", "epoch", "best_metric", "key_metric"}
    assert keys <= set(state)
    assert state["epoch"] == 1 and state["global_step"] == 6 and state["key_metric"] == "acc"
    trainer.save_state("weights.pth", optim=False)
    assert "optimizer_list0" not in torch.load("weights.pth", weights_only=True)
    model = tiny_model(seed=9)
    model.load_state_dict(torch.load("weights.pth", weights_only=True)["model0"])  # a plain script can use it
    assert torch.equal(weights(trainer), weights(Tiny(model=model)))


def state_of_2021(epoch=4, wrap=lambda value: value):
    """A file as that template wrote it, after training by hand with a model of the same shape."""
    model = tiny_model(seed=8)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 6)).sum().backward()
        optimizer.step()
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:  # torch 1.8 had no other entries
        for name in set(group) - {"lr", "momentum", "dampening", "weight_decay", "nesterov", "params"}:
            del group[name]
    state = {"model0": model.state_dict(), "optimizer_list0": saved, "global_step": 24, "global_step_eval": 12,
             "epoch": epoch, "best_metric": {"acc": wrap(0.75), "f1": wrap(0.5)}, "key_metric": "acc"}
    return state, model, optimizer


def save_like_numpy_1(state, path):
    """numpy called its scalars' module numpy.core.multiarray then."""
    torch.save(state, "new.pth")
    with zipfile.ZipFile("new.pth") as new, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as old:
        for name in new.namelist():
            data = new.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in data or np.__version__ < "2"
                data = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            old.writestr(name, data)


@pytest.mark.parametrize("wrap, save", [
    (float, torch.save), (np.float64, torch.save), (np.float64, save_like_numpy_1), (np.float32, save_like_numpy_1),
    (float, lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False)),
    (np.float64, lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False)),
])
def test_a_file_of_2021_loads_and_goes_on_with_the_next_epoch(wrap, save):
    state, model, optimizer = state_of_2021(epoch=4, wrap=wrap)
    save(state, "epoch4.pth")
    trainer = tiny_trainer()
    assert trainer.load_state("epoch4.pth") == "epoch4.pth"
    assert torch.equal(weights(trainer), weights(Tiny(model=model)))
    assert trainer.best_metric == {"acc": 0.75, "f1": 0.5} and type(trainer.best_metric["acc"]) is float
    assert (trainer.global_step, trainer.global_step_eval, trainer.key_metric) == (24, 12, "acc")
    assert trainer.optimizer_list[0].param_groups[0]["lr"] == 0.05
    momenta = trainer.optimizer_list[0].state
    for mine, theirs in zip(trainer.model_list[0].parameters(), model.parameters()):
        assert torch.equal(momenta[mine]["momentum_buffer"], optimizer.state[theirs]["momentum_buffer"])
    assert list(trainer.epochs(0)) == []
    for epoch in trainer.epochs(5):
        assert epoch == 5
        trainer.train_loop()
        trainer.eval()
    assert trainer.epoch == 5 and trainer.global_step == 30
    read(Path(trainer.ckpt_dir) / "epoch5.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_the_prefixes_of_wrappers_are_taken_off(prefix):
    state, model, _ = state_of_2021()
    state["model0"] = {prefix + name: value for name, value in state["model0"].items()}
    torch.save(state, "wrapped.pth")
    trainer = tiny_trainer()
    trainer.load_state("wrapped.pth")
    assert torch.equal(weights(trainer), weights(Tiny(model=model)))


def test_what_wrapped_models_save_loads_into_plain_ones_and_back():
    plain = tiny_model(seed=4)
    inner = nn.Sequential(*tiny_model(seed=4))
    inner[0] = torch.compile(inner[0], backend="eager")
    for index, model in enumerate([nn.DataParallel(tiny_model(seed=4)), torch.compile(tiny_model(seed=4), backend="eager"),
                                   torch.compile(nn.DataParallel(tiny_model(seed=4)), backend="eager"), inner]):
        tiny_trainer(model=model).save_state(f"{index}.pth")
        assert set(read(f"{index}.pth")["model0"]) == set(plain.state_dict())
        other = tiny_trainer(model=tiny_model(seed=5))
        other.load_state(f"{index}.pth")
        assert torch.equal(weights(other), weights(Tiny(model=plain)))
        other.save_state("plain.pth")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        tiny_trainer(model=model).load_state("plain.pth")
        assert torch.equal(weights(Tiny(model=model)), weights(other))


def test_a_model_whose_own_names_look_like_prefixes_loses_no_weight():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(6, 3)
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return self.module(x * self.weight)

    trainer = tiny_trainer(model=Wrapper())
    trainer.fit(1)
    other = tiny_trainer(model=Wrapper())
    other.load_state(Path(trainer.ckpt_dir) / "last.pth")
    assert torch.equal(weights(trainer), weights(other))


# --- what does not fit ------------------------------------------------------------------------------------------------


def other_head():
    """Has "4.weight" more than the tiny model, lacks nothing, and its "3" has another shape."""
    return nn.Sequential(*tiny_model(seed=2)[:3], nn.Linear(16, 5), nn.Linear(5, 3))


def test_weights_that_do_not_fit_are_listed_and_nothing_is_changed():
    trainer = tiny_trainer(model=other_head())
    trainer.fit(1)
    before = weights(trainer)
    tiny = tiny_trainer()
    tiny.train_loop()
    tiny.save_state("tiny.pth")
    with pytest.raises(ValueError) as caught:
        trainer.load_state("tiny.pth")
    message = str(caught.value)
    assert "model0 (Sequential)" in message and "Nothing was loaded" in message and "strict=False" in message
    assert "missing in the file: ['4.bias', '4.weight']" in message
    assert "3.weight (3, 16), here (5, 16)" in message and "3.bias (3,), here (5,)" in message
    assert torch.equal(weights(trainer), before) and trainer.epochs_done == 1
    trainer.save_state("head.pth")
    with pytest.raises(ValueError, match=r"unknown to the model: \['4.bias', '4.weight'\]"):
        tiny.load_state("head.pth")
    assert tiny.global_step == 6


def test_not_strict_loads_what_fits_and_says_what_did_not(capsys):
    source = tiny_trainer()
    source.fit(1)
    source.save_state("tiny.pth")
    trainer = tiny_trainer(model=other_head())
    head = trainer.model_list[0][3].weight.clone()
    trainer.load_state("tiny.pth", strict=False)
    assert torch.equal(trainer.model_list[0][0].weight, source.model_list[0][0].weight)
    assert torch.equal(trainer.model_list[0][3].weight, head)
    said = capsys.readouterr().out
    assert "missing in the file: ['4.bias', '4.weight']" in said and "3.weight (3, 16), here (5, 16)" in said
    assert "optimizer 0 starts afresh" in said
    trainer.fit(2)  # with the old momenta, of another shape, this would fail
    assert trainer.epochs_done == 2


def test_an_optimizer_with_a_new_shape_of_the_same_number_of_parameters_starts_afresh(capsys):
    source = tiny_trainer()
    source.fit(1)
    source.save_state("tiny.pth")
    trainer = tiny_trainer(model=nn.Sequential(nn.Linear(6, 16), nn.Dropout(), nn.ReLU(), nn.Linear(16, 4)))
    trainer.load_state("tiny.pth", strict=False)
    assert "optimizer 0 starts afresh: some of its parameters did not come from the file" in capsys.readouterr().out
    trainer.fit(2)


def test_an_optimizer_with_other_groups_is_refused_before_anything_is_changed():
    source = tiny_trainer()
    source.fit(1)
    source.save_state("tiny.pth")
    model = tiny_model(seed=6)
    optimizer = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[3].parameters()}], 0.1)
    trainer = tiny_trainer(model=model, optimizer_list=[optimizer])
    before = weights(trainer)
    with pytest.raises(ValueError, match=r"groups of \[2, 2\] parameters, the file's of \[4\].*optim=False"):
        trainer.load_state("tiny.pth")
    assert torch.equal(weights(trainer), before) and trainer.global_step == 0
    trainer.load_state("tiny.pth", optim=False)
    assert torch.equal(weights(trainer), weights(source))


def test_a_file_with_fewer_or_more_models_is_told(capsys):
    one = tiny_trainer()
    one.save_state("one.pth")
    models = [tiny_model(), nn.Linear(3, 3)]
    two = tiny_trainer(model_list=models, optimizer_list=[torch.optim.Adam(nn.ModuleList(models).parameters())])
    with pytest.raises(ValueError, match=r"every model of model_list; it holds \['model0'\]: model1 is missing"):
        two.load_state("one.pth", optim=False)
    two.save_state("two.pth")
    one.load_state("two.pth", optim=False)
    assert "model1 of the file is not used" in capsys.readouterr().out


# --- load_state's arguments -------------------------------------------------------------------------------------------


def test_without_optim_only_weights_counters_and_best_values_come():
    source = tiny_trainer()
    source.fit(2)
    trainer = Tiny()  # check_init is not needed for that
    trainer.load_state(Path(source.ckpt_dir) / "last.pth", optim=False)
    assert torch.equal(weights(trainer), weights(source))
    assert trainer.best_metric == source.best_metric and trainer.epochs_done == 2
    assert trainer.optimizer_list[0].state_dict()["state"] == {}
    trainer = tiny_trainer()
    state_before = trainer.seed, torch.get_rng_state()
    trainer.load_state(Path(source.ckpt_dir) / "last.pth", optim=False)
    assert trainer.seed == state_before[0] and torch.equal(torch.get_rng_state(), state_before[1])


def test_lr_list_replaces_the_restored_rates():
    source = tiny_trainer()
    source.fit(1)
    trainer = tiny_trainer()
    trainer.load_state(Path(source.ckpt_dir) / "last.pth", lr_list=[0.025])
    assert trainer.optimizer_list[0].param_groups[0]["lr"] == 0.025
    buffers = trainer.optimizer_list[0].state_dict()["state"]
    assert equal(buffers, source.optimizer_list[0].state_dict()["state"])
    with pytest.raises(ValueError, match=r"one rate per optimizer \(1\), got \[0.1, 0.2\]"):
        trainer.load_state(Path(source.ckpt_dir) / "last.pth", lr_list=[0.1, 0.2])


def test_best_and_last_stand_for_files_of_the_run():
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.fit(3)
    final = weights(trainer)
    assert trainer.load_state("best") == str(Path("run/best.pth"))
    best = read("run/best.pth")["model0"]
    assert all(torch.equal(value, best[name]) for name, value in trainer.model_list[0].state_dict().items())
    trainer.load_state("last")
    assert torch.equal(weights(trainer), final)
    with pytest.raises(FileNotFoundError, match="best.pth"):
        tiny_trainer(ckpt_dir="empty").load_state("best")


def test_the_seed_that_was_drawn_on_the_first_run_comes_back():
    whole = tiny_trainer(seed=None, ckpt_dir="whole")
    best = whole.fit(3)
    resumed = tiny_trainer(seed=None, ckpt_dir="resumed")
    assert resumed.seed != whole.seed  # by chance once in 2**31
    resumed.load_state("whole/epoch1.pth")
    assert resumed.seed == whole.seed
    assert resumed.fit(3) == best  # the order of data and the dropout of the whole run
    assert torch.equal(weights(resumed), weights(whole))


class Counter(Callback):
    def __init__(self, start=0):
        self.count = start

    def on_train_end(self, model, result):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Other(Counter):
    pass


def test_the_state_of_callbacks_travels_also_of_two_of_one_class(capsys):
    trainer = tiny_trainer(callbacks=[Counter(10), Counter(20)])
    trainer.fit(2)
    path = Path(trainer.ckpt_dir) / "last.pth"
    assert read(path)["callbacks"]["Counter"] == {"count": 12}
    assert read(path)["callbacks"]["Counter#2"] == {"count": 22}
    callbacks = [Counter(), Counter(), Other(5)]
    tiny_trainer(callbacks=callbacks).load_state(path)
    assert [callback.count for callback in callbacks] == [12, 22, 5]
    assert "callback Other starts afresh: the file holds no state of it" in capsys.readouterr().out
    tiny_trainer(callbacks=[Counter()]).load_state(path)
    assert "the state of callback Counter#2 is not used" in capsys.readouterr().out


# --- "auto" -----------------------------------------------------------------------------------------------------------


def test_auto_goes_on_in_the_newest_runs_folder(capsys):
    first = tiny_trainer(use_tb=True)
    first.fit(1)
    second = tiny_trainer(use_tb=True)
    second.fit(2)
    third = Tiny()
    third.check_init(arg={"lr": 0.1})
    assert len(os.listdir("check_point")) == 3
    assert third.load_state("auto").endswith("last.pth")
    assert os.path.abspath(third.ckpt_dir) == os.path.abspath(second.ckpt_dir)  # the newest, not the first
    assert len(os.listdir("check_point")) == 2  # the empty new folder is gone
    third.fit(3)
    assert third.global_step == 18
    log = (Path(second.ckpt_dir) / "log.txt").read_text()
    assert log.count("===") == 8 and "epoch   2 eval" in log and "load model state from" in log and "epoch   3 eval" in log
    places = [log.index(part) for part in ("epoch   2 eval", "=== 2 epochs done", "load model state", "epoch   3 train")]
    assert places == sorted(places) and log.count("=== 20") == 2
    starts = json.loads((Path(second.ckpt_dir) / "config.json").read_text())
    assert [start["options"] for start in starts] == [{}, {"lr": 0.1}]
    assert third.run_name == second.run_name
    assert sorted(os.listdir("runs")) == sorted([first.run_name, second.run_name])


def test_auto_skips_a_newer_run_that_left_nothing():
    first = tiny_trainer()
    first.fit(1)
    tiny_trainer()  # crashed before its first checkpoint
    third = tiny_trainer()
    third.load_state("auto")
    assert os.path.abspath(third.ckpt_dir) == os.path.abspath(first.ckpt_dir)
    assert third.epochs_done == 1


def test_auto_with_nothing_to_continue_says_so_and_starts_from_scratch(capsys):
    trainer = tiny_trainer()
    folder = trainer.ckpt_dir
    assert trainer.load_state("auto") is None
    assert "no checkpoint to continue from; training starts from scratch" in capsys.readouterr().out
    assert trainer.ckpt_dir == folder and os.path.exists(folder)
    trainer.fit(1)
    assert trainer.epochs_done == 1


def test_auto_in_a_folder_of_ones_own_stays_there_and_names_what_it_skipped(capsys):
    beside = tiny_trainer()
    beside.fit(3)
    trainer = tiny_trainer(ckpt_dir="check_point/mine")
    assert trainer.load_state("auto") is None  # another run's files are none of its
    trainer.fit(2)
    Path("check_point/mine/last.pth").unlink()
    Path("check_point/mine/last.pth").write_bytes(b"half")
    again = tiny_trainer(ckpt_dir="check_point/mine")
    assert again.load_state("auto").endswith("epoch2.pth")
    assert again.ckpt_dir == str(Path("check_point/mine"))
    assert again.epochs_done == 2
    assert "skipped: " in capsys.readouterr().out
    assert again.run_name == "mine"


def test_naming_the_last_checkpoint_of_a_run_continues_that_run():
    first = tiny_trainer()
    first.fit(1)
    second = tiny_trainer()
    second.load_state(Path(first.ckpt_dir) / "last.pth")
    assert os.path.abspath(second.ckpt_dir) == os.path.abspath(first.ckpt_dir)
    third = tiny_trainer()
    third.load_state(Path(first.ckpt_dir) / "epoch1.pth")  # an older state is the start of another run
    assert os.path.abspath(third.ckpt_dir) != os.path.abspath(first.ckpt_dir)
    assert third.epochs_done == 1


def test_taking_only_weights_from_another_runs_last_file_leaves_both_runs_in_their_own_folders():
    source = tiny_trainer()
    source.fit(1)
    trainer = tiny_trainer()
    before = (trainer.ckpt_dir, trainer.run_name)
    assert trainer.ckpt_dir != source.ckpt_dir
    trainer.load_state(f"{source.ckpt_dir}/last.pth", optim=False)
    assert (trainer.ckpt_dir, trainer.run_name) == before


@pytest.mark.parametrize("name", ["auto", "last.pth"])
def test_a_load_that_fails_moves_nothing_into_the_other_runs_folder(name):
    source = tiny_trainer()
    source.fit(1)
    log = (Path(source.ckpt_dir) / "log.txt").read_bytes()
    trainer = tiny_trainer(model=nn.Linear(6, 3))
    before = (trainer.ckpt_dir, trainer.run_name)
    with pytest.raises(ValueError, match="do not fit"):
        trainer.load_state(name if name == "auto" else f"{source.ckpt_dir}/{name}")
    assert (trainer.ckpt_dir, trainer.run_name) == before and (Path(trainer.ckpt_dir) / "config.json").exists()
    assert (Path(source.ckpt_dir) / "log.txt").read_bytes() == log


# --- all or nothing ---------------------------------------------------------------------------------------------------


class Refusing(Counter):
    """Takes no state that counts more than 3; what it has changed by then stays changed."""

    def load_state_dict(self, state):
        super().load_state_dict(state)
        if self.count > 3 or self.always:
            raise KeyError("a state of another kind")

    always = False


def prepared(ckpt_dir, callbacks, seed=3, dropout_model=7):
    return tiny_trainer(ckpt_dir=ckpt_dir, callbacks=callbacks, seed=seed, model=tiny_model(seed=dropout_model), amp="fp16",
                        lr_scheduler_type="cosine", warm_up_updates=3, total_epochs=5, skip_non_finite=2)


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("optim", [True, False])
def test_a_load_that_fails_in_the_middle_changes_nothing(always, optim, monkeypatch):
    source = prepared("source", [Counter(10), Refusing(10)], seed=5, dropout_model=8)
    source.key_metric = "tol_loss"
    source.fit(2)
    callbacks = [Counter(), Refusing()]
    callbacks[1].always = always
    trainer = prepared("run", callbacks)
    trainer.train_loop()
    trainer.eval()
    trainer.train_loop()  # and not evaluated yet
    before = copy.deepcopy(collect(trainer))
    attributes = {name: copy.copy(value) for name, value in vars(trainer).items()
                  if type(value) in (int, float, str, dict, bool)}
    if not optim:  # where no callback is asked
        monkeypatch.setattr(trainer.model_list[0], "load_state_dict", refuse_once(trainer.model_list[0].load_state_dict))
    with pytest.raises(KeyError, match="a state of another kind"):
        trainer.load_state("source/last.pth", optim=optim)
    assert equal(before, collect(trainer))
    assert attributes == {name: getattr(trainer, name) for name in attributes}
    callbacks[1].always = False
    trainer.eval()
    trainer.fit(4)

    twin = prepared("twin", [Counter(), Refusing()])  # never tried to load anything
    twin.train_loop()
    twin.eval()
    twin.train_loop()
    twin.eval()
    twin.fit(4)
    assert torch.equal(weights(trainer), weights(twin)) and trainer.best_metric == twin.best_metric


def refuse_once(original):
    calls = []

    def load(*args, **options):
        original(*args, **options)
        calls.append(1)
        if len(calls) == 1:
            raise KeyError("a state of another kind")
    return load


# --- what is being written is waited for ------------------------------------------------------------------------------


@pytest.fixture
def slow_disk(monkeypatch):
    """Nothing is written before ``go`` is set."""
    go, original = threading.Event(), checkpoint.write_last

    def write_last(*args):
        assert go.wait(30)
        original(*args)

    monkeypatch.setattr(checkpoint, "write_last", write_last)
    yield go
    go.set()


def one_epoch(trainer):
    """In a loop of ``epochs()``, which goes on while files are written; the loop itself, so that it is not closed."""
    loop = trainer.epochs(2)
    next(loop)
    trainer.train_loop()
    trainer.eval()
    return loop


def test_loading_right_after_an_evaluation_sees_the_newest_state(slow_disk):
    trainer = tiny_trainer(ckpt_dir="run")
    loop = one_epoch(trainer)  # noqa: F841
    trained = weights(trainer)
    with torch.no_grad():
        for parameter in trainer.model_list[0].parameters():
            parameter.zero_()
    assert not Path("run/last.pth").exists()  # the training did not wait for it
    threading.Timer(0.1, slow_disk.set).start()
    assert trainer.load_state("last") == str(Path("run/last.pth"))
    assert torch.equal(weights(trainer), trained) and trainer.global_step == 6


def test_loading_waits_for_what_another_trainer_of_the_process_writes(slow_disk):
    trainer = tiny_trainer(ckpt_dir="run")
    loop = one_epoch(trainer)  # noqa: F841
    other = tiny_trainer(ckpt_dir="run")
    threading.Timer(0.1, slow_disk.set).start()
    assert other.load_state("auto") is not None
    assert other.global_step == 6


def test_wait_for_saves_returns_when_the_files_are_there(slow_disk):
    trainer = tiny_trainer(ckpt_dir="run")
    loop = one_epoch(trainer)  # noqa: F841
    threading.Timer(0.1, slow_disk.set).start()
    trainer.wait_for_saves()
    assert read("run/last.pth")["global_step"] == 6


def test_save_state_waits_too_and_holds_the_present(slow_disk):
    trainer = tiny_trainer(ckpt_dir="run")
    loop = one_epoch(trainer)  # noqa: F841
    slow_disk.set()
    trainer.save_state("run/last.pth")  # over a file that is being written
    trainer.close()
    assert equal(read("run/last.pth")["model0"], dict(trainer.model_list[0].state_dict()))
