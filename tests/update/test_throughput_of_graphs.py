"""``throughput`` of a trainer with ``compile = "step"`` measures its graph, and leaves the training what it would be."""

import pytest
from test_compiled_step import Net, assert_same, captured, no_graphs, of, without_kernels  # noqa: F401  fixtures
from tiny import Tiny

from template import Callback
from template.run import bare_loop
from template.tools import throughput as tool
from template.tools.throughput import throughput


@pytest.fixture(autouse=True)
def short(monkeypatch, without_kernels):  # noqa: F811
    for part, name, value in ((tool, "_UPDATES_EACH", 3), (tool, "_WARM_UP", 1), (bare_loop, "_UPDATES_EACH", 2),
                              (bare_loop, "_WARM_UP", 1), (bare_loop, "_ROUNDS", 2)):
        monkeypatch.setattr(part, name, value)


class Reads(Callback):
    def on_before_step(self, model):
        """Asks for the gradients, so the optimizer steps outside of the graph."""


@pytest.mark.slow
@pytest.mark.parametrize("callbacks", [[], [Reads()]], ids=["a graph with the step", "up to the gradients"])
def test_the_graph_is_what_is_timed_and_the_training_is_as_without(callbacks, capsys):
    ends = []
    for measures in (False, True):
        trainer = of(model=Net(dropout=0.0), compile="step", callbacks=callbacks, ckpt_dir=f"{measures}")
        if measures:
            found = throughput(trainer, compare=True)["comparison"]
            said = capsys.readouterr().out
            assert 'compile = "step": "forward and loss" is the time of the graph' in said
            assert found.bare and found.ratio > 0 and found.parts["backward"] == [0.0, 0.0]
            assert (max(found.parts["optimizer"]) > 0) == bool(callbacks)
            assert captured(trainer) == (0, 0) and trainer.stepper._look is not None
            assert (trainer.stepper._part if callbacks else trainer.stepper._whole)._call is not None
        trainer.fit(2)
        assert captured(trainer) == ((0, 1 - measures) if callbacks else (1 - measures, 0))  # its graph is there already
        ends.append(trainer)
    assert_same(*ends)


@pytest.mark.slow
def test_a_batch_of_two_samples_that_cannot_be_trained_on_leaves_the_training_its_graph(capsys):
    class Pairs(Tiny):
        def loss_per_batch(self, batch):
            x, y = batch
            pred = self.inference(x.double())
            return self.criterion(pred.reshape(10, 3), y)

    trainer = of(kind=Pairs, model=Net(dropout=0.0), compile="step")
    assert throughput(trainer)["fixed"] is None
    assert "a batch of two samples cannot be trained on" in capsys.readouterr().out
    trainer.fit(1)
    assert not trainer.stepper._whole.failure and "not captured" not in capsys.readouterr().out
