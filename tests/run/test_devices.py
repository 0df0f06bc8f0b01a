"""What a device may be called: numbers, lists, nothing; alone and under torchrun. A missing one is an error in words."""

import pytest
import torch
from tiny import Tiny

from template.run.devices import named_device
from template.run.prepare import check_device


@pytest.fixture
def gpus(monkeypatch):
    """A function that has torch see so many GPUs; what asks torch for them is all that is replaced."""
    def see(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    return see


def under_torchrun(monkeypatch, rank, local_size):
    for name, value in {"WORLD_SIZE": local_size, "LOCAL_WORLD_SIZE": local_size, "LOCAL_RANK": rank, "RANK": rank}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("given, name", [
    ("0", "cuda:0"), (0, "cuda:0"), ("3", "cuda:3"), (" 1", "cuda:1"), ("cuda:1", "cuda:1"), ("cuda", "cuda"),
    ("cpu", "cpu"), ("mps", "mps"), (torch.device("cpu"), torch.device("cpu")), ("", "cuda"), (None, "cuda"),
    ("0,1", "0,1")])
def test_a_device_is_called_by_its_number_or_by_nothing(gpus, given, name):
    gpus(4)
    assert named_device(given) == name and named_device(named_device(given)) == name
    trainer = Tiny(device=given)
    assert trainer.device == name  # at once: __init__ may use it


def test_nothing_is_the_cpu_where_there_is_no_gpu(gpus):
    gpus(0)
    trainer = Tiny(device="")
    assert trainer.device == "cpu"
    trainer.check_init(use_tb=False)
    assert trainer.fit(1)


def test_the_class_body_may_say_it_too(gpus):
    gpus(0)

    class Numbered(Tiny):
        device = 0

    with pytest.raises(ValueError, match="device = 'cuda:0' must be a GPU that torch can use, and torch sees none here"):
        Numbered().check_init(use_tb=False)


@pytest.mark.parametrize("count, device, message", [
    (0, "0", "'cuda:0' must be a GPU .* torch sees none here"), (2, "cuda:7", "'cuda:7' must be a GPU .* sees 2 here"),
    (2, 2, "'cuda:2' must be a GPU .* sees 2 here"), (2, "0,1", "there is 1 for 2. torchrun --nproc-per-node 2 starts one")])
def test_a_device_that_is_not_there_is_an_error_and_never_the_cpu(gpus, count, device, message):
    gpus(count)
    with pytest.raises(ValueError, match=message):
        Tiny(device=device).check_init(use_tb=False)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is a Mac's GPU")
def test_a_mac_s_gpu_is_missing_in_words():
    with pytest.raises(ValueError, match="device = 'mps' needs a Mac"):
        Tiny(device="mps").check_init(use_tb=False)


@pytest.mark.parametrize("rank", [0, 1])
def test_under_torchrun_each_process_takes_its_own_of_the_list_or_by_itself(monkeypatch, gpus, rank):
    gpus(4)
    under_torchrun(monkeypatch, rank, 2)
    assert named_device("2,3") == f"cuda:{2 + rank}" and named_device("cuda:0, 1") == named_device("") == f"cuda:{rank}"
    check_device(named_device("2,3"))


@pytest.mark.parametrize("device, counts", [("0", "2 for 1"), (0, "2 for 1"), ("0,1,2", "2 for 3")])
def test_under_torchrun_a_list_of_another_length_is_refused(monkeypatch, gpus, device, counts):
    gpus(4)
    under_torchrun(monkeypatch, 1, 2)
    with pytest.raises(ValueError, match=f"there are {counts}. .* with device unset each takes its own"):
        check_device(named_device(device))
