"""should_stop = "now": the run ends between two updates in the middle of an epoch, and goes on there to the same bits."""

import pytest
import torch
from tiny import tiny_trainer, weights

from template.callbacks.history import History
from template.hooks import Callback


class StopAt(Callback):
    def __init__(self, update, event="on_after_step"):
        self.update = update
        setattr(self, event, self._stop)

    def _stop(self, model, *args):
        if model.global_step == self.update:
            model.should_stop = "now"


def build(folder, *callbacks, **attributes):
    return tiny_trainer(ckpt_dir=folder, callbacks=[History(png=False), *callbacks], **attributes)


def rows(trainer):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in trainer.history]


@pytest.mark.parametrize("attributes, last", [({}, 8), ({"accumulate_steps": 4}, 3), ({"amp": "bf16"}, 7),
                                              ({"eval_loader": None}, 8), ({"lr_scheduler_type": "cosine"}, 11)],
                         ids=["plain", "accumulation", "bf16", "no evaluation", "schedule"])
def test_a_run_that_stopped_now_and_was_loaded_ends_with_the_bits_of_one_that_was_never_stopped(attributes, last):
    whole = build("whole", **attributes)
    whole.fit(3)
    stopped = build("run", StopAt(last), **attributes)
    stopped.fit(3)
    assert (stopped.global_step, stopped.epochs_done, stopped.should_stop) == (last, 1, "now")
    again = build("run", **attributes)
    again.load_state("auto")
    assert again.should_stop is False
    again.fit(3)
    assert torch.equal(weights(again), weights(whole)) and again.best_metric == whole.best_metric
    assert rows(again) == rows(whole)


def test_the_same_trainer_goes_on_to_the_same_bits_also_after_an_evaluation_and_other_random_numbers():
    whole = build("whole")
    whole.fit(3)
    trainer = build("run", StopAt(8))
    trainer.fit(3)
    torch.rand(5)
    trainer.eval()
    trainer.should_stop = False
    trainer.fit(3)
    assert torch.equal(weights(trainer), weights(whole))


def test_no_evaluation_and_no_epoch_follow_the_stop_and_the_run_is_closed():
    calls = []

    class Recorder(Callback):
        def on_eval_start(self, model):
            calls.append("eval")

        def on_exit(self, model):
            calls.append("exit")

    trainer = build("run", StopAt(2), Recorder())
    for _ in trainer.epochs(5):
        trainer.train_loop()
        trainer.eval()
    assert calls == ["exit"] and trainer.path_of("last.pth").exists()
    trainer.eval()  # somebody asks for it behind the loop
    assert calls[1] == "eval"


def test_a_plain_loop_stops_training_too():
    trainer = build("run", StopAt(8))
    for _ in range(4):
        trainer.train_loop()
        trainer.eval()
    assert trainer.global_step == 8 and trainer.epochs_done == 1


def test_now_in_a_log_point_and_in_an_evaluation_counts_as_soon_as_an_update_is_done():
    trainer = build("log", StopAt(10, "on_log"))
    trainer.fit(4)
    assert trainer.global_step == 10
    trainer = build("eval", StopAt(6, "on_eval_result"))
    trainer.fit(4)
    assert (trainer.global_step, trainer.epochs_done, trainer.should_stop) == (6, 1, "now")


def test_another_word_is_refused_where_it_is_assigned():
    trainer = build("run")
    with pytest.raises(ValueError, match='should_stop must be False, True .* or "now" .*, got \'soon\''):
        trainer.should_stop = "soon"
    assert trainer.should_stop is False
    with pytest.raises(ValueError, match="got 'later'"):
        tiny_trainer(should_stop="later")


def test_the_history_is_the_rows_of_history_csv():
    trainer = build("run")
    assert trainer.history == []
    trainer.fit(2)
    assert [row["epoch"] for row in trainer.history] == [1, 2]
    assert trainer.history[1]["eval/acc"] == trainer.eval_result["acc"]
    trainer.callbacks = []
    with pytest.raises(RuntimeError, match="rows of the callback History"):
        _ = trainer.history
