"""No tool is seen in the training that follows it: the same bits, the same log, the same files."""

import pytest
import torch
from tiny import tiny_trainer, weights

from template.checkpoint.state import collect
from template.tools.find_batch_size import find_batch_size
from template.tools.find_lr import find_lr
from template.tools.overfit import overfit
from template.tools.soup import soup
from template.tools.summary import summary

FILES = ["../other/epoch1.pth", "../other/epoch2.pth"]
TOOLS = {
    "find_lr": lambda trainer: find_lr(trainer, num_updates=20),
    "overfit": lambda trainer: overfit(trainer, updates=5),
    "find_batch_size": lambda trainer: find_batch_size(trainer, num_updates=1),
    "summary": summary,
    "soup": lambda trainer: soup(trainer, FILES, how="greedy"),
}


def flat(value):
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.detach().double().cpu().numpy().tobytes()
    if isinstance(value, dict):
        return {key: flat(part) for key, part in value.items()}
    return [flat(part) for part in value] if isinstance(value, (list, tuple)) else value


def state_of(trainer):
    return flat({name: part for name, part in collect(trainer).items() if name not in ("run_name", "callbacks")})


def build(name):
    return tiny_trainer(ckpt_dir=f"runs of tests/{name}", lr_scheduler_type="cosine", warm_up_updates=4, total_epochs=3,
                        clip_grad=1.0, accumulate_steps=2)


def trained(name, tool, epochs_before):
    trainer = build(name)
    for _ in range(epochs_before):
        trainer.train_loop()
        trainer.eval()
    trainer.wait_for_saves()
    folder = trainer.path_of(".")
    before = {path: path.read_bytes() for path in folder.iterdir()}, state_of(trainer)
    tool(trainer)
    trainer.stdout_logger.flush()
    assert ({path: path.read_bytes() for path in folder.iterdir()}, state_of(trainer)) == before
    trainer.fit(3)
    return state_of(trainer), weights(trainer).tolist(), trainer.best_metric


@pytest.mark.slow
@pytest.mark.parametrize("epochs_before", [0, 2])
def test_training_on_ends_as_where_no_tool_was_called(epochs_before, capsys):
    build("other").fit(2)
    untouched = trained("untouched", lambda trainer: None, epochs_before)
    for name, tool in TOOLS.items():
        assert trained(name, tool, epochs_before) == untouched, name


class Broken(Exception):
    pass


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_that_fails_or_is_interrupted_leaves_everything_too(name, error, capsys):
    build("other").fit(2)
    trainer = build("own")
    trainer.train_loop()
    trainer.eval()
    before, calls = state_of(trainer), []
    log = trainer.stdout_logger.log
    number = 1 if name == "summary" else 2  # of the forward; a summary needs one
    model = trainer.model_list[0]
    handle = model.register_forward_pre_hook(lambda *args: calls.append(1) or _raise_at(calls, number, error))
    with pytest.raises(error):
        TOOLS[name](trainer)
    handle.remove()
    assert state_of(trainer) == before and trainer.stdout_logger.log is log and trainer.model_list[0].training
    assert all(p.grad is None for p in trainer.model_list[0].parameters())


def _raise_at(calls, number, error):
    if len(calls) == number:
        raise error("in a forward")


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_needs_a_trainer_that_is_set_up(name):
    from tiny import Tiny

    with pytest.raises(RuntimeError, match="check_init"):
        TOOLS[name](Tiny())
