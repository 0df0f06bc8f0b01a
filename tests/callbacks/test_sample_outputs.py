"""A person's own picture is shown after an evaluation, and looking changes nothing."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import Tiny, weights

from template import EMA, Interpret, SampleOutputs


def run(callbacks, epochs=3, **attributes):
    trainer = Tiny(callbacks=callbacks, **attributes)
    trainer.check_init(use_tb=False)
    trainer.fit(epochs)
    return trainer


def test_the_function_sees_eval_mode_and_what_it_draws_and_changes_is_put_back():
    seen = []

    def noise(trainer):
        seen.append((trainer.model_list[0].training, torch.is_grad_enabled(), trainer.epoch))
        trainer.model_list[0].train()
        return torch.rand(8, 8)

    plain, looked = run([], epochs=4), run([SampleOutputs(noise, every=2)], epochs=4)
    assert seen == [(False, False, 2), (False, False, 4)]
    assert looked.path_of("samples/noise.png").exists()
    assert torch.equal(weights(plain), weights(looked))


def test_several_pictures_and_a_file_for_each_epoch():
    trainer = run([SampleOutputs(lambda trainer: {"a": "text", "b": torch.rand(8, 8), "c": None}, keep_all=True)], epochs=2)
    names = sorted(path.name for path in trainer.path_of("samples").iterdir())
    assert names == ["a_epoch1.txt", "a_epoch2.txt", "b_epoch1.png", "b_epoch2.png"]


@pytest.mark.slow
def test_evaluations_within_an_epoch_have_files_and_steps_of_their_own():
    trainer = Tiny(callbacks=[SampleOutputs(lambda trainer: {"a": torch.rand(8, 8), "b": "text"}, keep_all=True),
                              Interpret(k=2)], eval_per_steps=4, ckpt_dir="run")
    trainer.check_init()
    trainer.fit(1)
    names = sorted(path.name for path in trainer.path_of("samples").iterdir())
    assert names == ["a_epoch1.png", "a_epoch1_update4.png", "b_epoch1.txt", "b_epoch1_update4.txt"]
    events = EventAccumulator("runs/run", size_guidance={"images": 0, "tensors": 0}).Reload()
    steps = {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}
    assert steps == {"samples/a": [4, 6], "interpret/confusion": [4, 6]}
    texts = {tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    assert texts.keys() >= {"interpret/largest_loss/text_summary", "samples/b/text_summary"}
    assert set(map(tuple, texts.values())) == {(4, 6)}


def test_without_an_evaluation_it_is_called_at_the_end_of_each_epoch_with_the_averaged_weights():
    ema, seen = EMA(0.5), []

    def look(trainer):
        seen.append((trainer.epoch, trainer.model_list[0].training, weights(trainer)))
        return torch.rand(8, 8)

    plain = run([EMA(0.5)], eval_loader=None)
    trainer = run([ema, SampleOutputs(look)], eval_loader=None)
    assert [(epoch, training) for epoch, training, _ in seen] == [(1, False), (2, False), (3, False)]
    with trainer.lifetime.weights.for_use():
        assert torch.equal(seen[-1][2], weights(trainer))
    assert torch.equal(weights(plain), weights(trainer)) and trainer.path_of("samples/look.png").exists()


@pytest.mark.parametrize("returned, message", [(5, "TypeError: A picture must be"), (torch.rand(2, 2, 2, 2, 2), "must be")])
def test_an_error_names_the_function(returned, message):
    def my_plot(trainer):
        return returned

    with pytest.raises(RuntimeError, match=rf"my_plot\(trainer\).*{message}"):
        run([SampleOutputs(my_plot)])


def test_an_error_within_the_function_is_behind_the_one_that_names_it():
    def my_plot(trainer):
        raise KeyError("nothing there")

    with pytest.raises(RuntimeError, match="my_plot.*KeyError") as caught:
        run([SampleOutputs(my_plot)])
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("arguments", [(5,), (print, 0), (print, 1.5)])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises((TypeError, ValueError), match="got"):
        SampleOutputs(*arguments)
