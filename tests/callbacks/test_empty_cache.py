"""The cache of GPU memory is emptied between training and evaluation, where more than a share of the memory is taken."""

from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_trainer

from template import EmptyCache


def test_on_a_cpu_it_does_nothing_and_says_so_once(capsys):
    trainer = tiny_trainer(callbacks=[EmptyCache()])
    trainer.fit(2)
    assert capsys.readouterr().out.count("EmptyCache has nothing to do on cpu") == 1
    assert trainer.callbacks[0].times == 0


@pytest.fixture
def gpu(monkeypatch):
    """What torch says of a GPU with 10 bytes, of which ``taken`` are reserved until the cache is emptied."""
    state = SimpleNamespace(taken=0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: state.taken)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=10))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: setattr(state, "taken", 2))
    return state


@pytest.mark.parametrize("share, taken, left", [(0.5, 6, 2), (0.5, 5, 5), (0.9, 9, 9), (0.9, 10, 2), (0, 1, 2), (1, 10, 10)])
def test_it_is_emptied_behind_the_training_and_behind_an_evaluation_above_the_share(gpu, share, taken, left):
    callback, model = EmptyCache(share), SimpleNamespace(device="cuda")
    for moment in (lambda: callback.on_train_end(model, {}), lambda: callback.on_eval_end(model)):
        gpu.taken = taken
        moment()
        assert gpu.taken == left
    assert callback.times == (2 if left != taken else 0)


@pytest.mark.parametrize("share", [50, -0.1, "half", True])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="share must be a number from 0 to 1"):
        EmptyCache(share)
