"""``launch`` from a program and from a notebook: every rank's result comes back, its errors do too."""

import sys

import pytest
import torch
from launch_job import train
from ranks import ENVIRONMENT, history
from tiny import run_python

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="torch's launcher needs gloo and fork")]


def test_a_program_gets_what_each_rank_returned_and_trains_like_one_process(tmp_path):
    done = run_python("-m", "launch_job", cwd=tmp_path, env=ENVIRONMENT)
    assert done.stderr == ""
    results, alone = torch.load("results.pth"), train(8, epochs=2, ckpt_dir="alone")
    assert list(results) == [0, 1] and [results[rank]["rank"] for rank in range(2)] == [0, 1]
    for result in results.values():
        torch.testing.assert_close(result["weights"], alone["weights"], rtol=1e-5, atol=1e-6)
        assert result["updates"] == alone["updates"] == 14, "the keyword arguments arrived"
        assert result["best"] == pytest.approx(alone["best"])
    assert len(history("launched")) == 2


NOTEBOOK = '''
from launch_job import Tiny, error_of, fail, once_more, weights
from template.tools.launch import launch

calls = []

def cell(epochs, name=None):
    calls.append(name)
    trainer = Tiny(ckpt_dir=name)
    trainer.callbacks = []
    trainer.check_init(use_tb=False)
    trainer.fit(epochs)
    return trainer.world.size, trainer.global_step, float(weights(trainer).sum())

(size, steps, total), other = launch(cell, 2, 1, name="notebook").values()
assert (size, steps, total) == other, (total, other)
print("trained", size, steps, calls)
message, seconds = error_of(fail, 2, "in rank 1")
print("ended", message.split(":")[0], seconds < 20)
print("restarts", launch(once_more, 2, "marker", max_restarts=1))
'''


def test_a_function_that_stands_in_a_notebook_is_run_by_forked_processes(tmp_path):
    """A program given by ``-c`` has no file either, from which others could import it."""
    done = run_python("-c", NOTEBOOK, cwd=tmp_path, env=ENVIRONMENT)
    assert "trained 2 3 []\n" in done.stdout
    assert "ended ChildFailedError True\n" in done.stdout and "ZeroDivisionError: in rank 1" in done.stderr
    assert "restarts {0: '1', 1: '1'}\n" in done.stdout
    assert len(history(tmp_path / "notebook")) == 1
