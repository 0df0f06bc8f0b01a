"""Stopping when a metric no longer gets better: whichever, in either direction, and across restarts."""

import math
from pathlib import Path

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model, tiny_trainer, weights
from torch.utils.data import DataLoader

from template import EMA, Callback
from template.callbacks.early_stopping import EarlyStopping


class Scripted(Tiny):
    """Its metric takes the values of a list, one per evaluation."""

    def __init__(self, values, name="score", **attributes):
        super().__init__(preflight=False, **attributes)
        self.values, self.name = values, name

    def metric(self, pred, y):
        return {self.name: self.values[self.epoch - 1]}


def stopped_after(values, epochs=None, name="score", **arguments):
    """The number of epochs that were trained, and the callback."""
    stopping = EarlyStopping(**arguments)
    trainer = Scripted(values, name, callbacks=[stopping])
    trainer.check_init(use_tb=False)
    trainer.fit(epochs or len(values))
    return trainer.epochs_done, stopping


def by_hand(values, patience, mode="max", min_delta=0.0):
    """The epoch that a person with pencil and paper stops after."""
    sign = 1 if mode == "max" else -1
    best, waited = -math.inf, 0
    for epoch, value in enumerate(values, 1):
        if sign * value - best > min_delta:
            best, waited = sign * value, 0
        else:
            waited += 1
        if waited == patience:
            return epoch
    return len(values)


RISING_THEN_FLAT = [0.1, 0.3, 0.5, 0.4, 0.45, 0.5, 0.6, 0.1, 0.1, 0.1, 0.1]


@pytest.mark.parametrize("patience", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("min_delta", [0.0, 0.15])
def test_it_stops_where_a_person_would(patience, mode, min_delta):
    values = RISING_THEN_FLAT if mode == "max" else [1 - value for value in RISING_THEN_FLAT]
    expected = by_hand(values, patience, mode, min_delta)
    assert stopped_after(values, mode=mode, patience=patience, min_delta=min_delta)[0] == expected


def test_a_gain_of_exactly_min_delta_is_none():
    assert stopped_after([1.0, 1.5, 2.0], patience=1, min_delta=0.5)[0] == 2
    assert stopped_after([1.0, 1.5, 2.0], patience=1, min_delta=0.25)[0] == 3


def test_without_arguments_the_key_metric_decides_in_the_models_direction():
    falling = [5.0, 4.0, 3.0, 2.0]
    assert stopped_after(falling, patience=2)[0] == 3  # a metric is better when bigger
    stopping = EarlyStopping(patience=2)
    trainer = Scripted(falling, callbacks=[stopping], key_metric_mode="min")
    trainer.check_init(use_tb=False)
    trainer.fit(4)
    assert trainer.epochs_done == 4 and stopping.best == 2.0


def test_the_eval_loss_is_better_when_smaller():
    stopping = EarlyStopping("tol_loss", patience=1)
    trainer = tiny_trainer(callbacks=[stopping])
    losses = []
    for _ in trainer.epochs(20):
        trainer.train_loop()
        trainer.eval()
        losses.append(trainer.eval_result["tol_loss"])
    assert len(losses) == by_hand(losses, 1, "min") < 20
    assert stopping.best == min(losses)


def test_the_training_loss_can_be_watched_without_an_eval_loader():
    class Rising(Tiny):
        def loss_per_batch(self, batch):
            return super().loss_per_batch(batch)["tol_loss"] + 10 * self.epoch

    trainer = Rising(eval_loader=None, callbacks=[EarlyStopping("train/tol_loss", patience=2)])
    trainer.check_init(use_tb=False)
    for _ in trainer.epochs(9):
        trainer.train_loop()
    assert trainer.epochs_done == 3


NAN = float("nan")


@pytest.mark.parametrize("values, patience, expected", [
    ([0.5, NAN, NAN, NAN], 2, 3),        # a NaN is no gain
    ([NAN, 0.1, 0.2, 0.3], 2, 4),        # anything is better than a NaN
    ([NAN, NAN, NAN], 2, 3),
])
@pytest.mark.parametrize("mode", ["max", "min"])
def test_not_a_number_is_never_the_best(values, patience, expected, mode):
    values = values if mode == "max" else [-value for value in values]
    assert stopped_after(values, mode=mode, patience=patience)[0] == expected


def test_a_monitor_that_no_result_contains_lists_what_there_is():
    with pytest.raises(ValueError, match=r"monitors 'f1', which is not among \['tol_loss', 'score'\]"):
        stopped_after([0.1], monitor="f1", mode="max")
    trainer = tiny_trainer(callbacks=[EarlyStopping("train/l2")])
    with (pytest.raises(ValueError, match=r"monitors 'train/l2', which is not among \['train/tol_loss'\]"),
          pytest.warns(UserWarning, match=r"monitors 'train/l2', and the first batch gave \['train/tol_loss'\]")):
        trainer.train_loop()


@pytest.mark.parametrize("monitor", ["train_loss", "train/loss", "train/tol_loss", "val_loss", "eval/tol_loss", "loss",
                                     "val_acc", "accuracy"])
def test_the_usual_names_of_other_libraries_are_understood(monitor):
    trainer = tiny_trainer(callbacks=[EarlyStopping(monitor)])
    trainer.fit(1)
    (stopping,) = trainer.callbacks
    values = {"train": trainer.hooks.callbacks[2].rows[-1]["train/tol_loss"], "acc": trainer.eval_result["acc"]}
    name = "train" if "train" in monitor else "acc" if "acc" in monitor else None
    assert stopping.best == values.get(name, trainer.eval_result["tol_loss"])


def test_one_that_would_never_act_is_told():
    with pytest.warns(UserWarning, match="EarlyStopping looks at evaluations, .*no eval_loader, so it never acts"):
        tiny_trainer(callbacks=[EarlyStopping()], eval_loader=None)


@pytest.mark.parametrize("arguments, rule", [
    ({"mode": "up"}, "mode must be 'max', 'min' or None, got 'up'"),
    ({"patience": 0}, "patience must be a whole number of at least 1, got 0"),
    ({"patience": 2.5}, "patience must be a whole number of at least 1, got 2.5"),
    ({"min_delta": -0.1}, "min_delta must be 0 or more, got -0.1"),
])
def test_bad_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        EarlyStopping(**arguments)


def test_a_plain_loop_that_goes_on_after_the_stop_does_nothing(capsys):
    trainer = Scripted([0.5, 0.375, 0.25, 0.9, 0.9], callbacks=[EarlyStopping(patience=2)])
    trainer.check_init(use_tb=False)
    scores = []
    for _ in range(5):
        trainer.train_loop()
        scores.append(trainer.eval())
    assert trainer.epoch == 3 and trainer.global_step == 18
    assert scores == [0.5, 0.375, 0.25, 0.25, 0.25]
    assert not Path(trainer.ckpt_dir, "epoch4.pth").exists()
    said = capsys.readouterr().out
    assert "EarlyStopping: score did not get better than 0.5000 in 2 evaluations." in said
    assert "Training was stopped, so train_loop() does nothing" in said


def test_the_counter_travels_in_the_checkpoint():
    values = [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    first = Scripted(values, callbacks=[EarlyStopping(patience=3)], ckpt_dir="run")
    first.check_init(use_tb=False)
    first.fit(3)  # two of the three have passed
    assert first.should_stop is False
    stopping = EarlyStopping(patience=3)
    again = Scripted(values, callbacks=[stopping], ckpt_dir="run")
    again.check_init(use_tb=False)
    again.load_state("last")
    assert (stopping.best, stopping.waited) == (0.5, 2)
    again.fit(6)
    assert again.epochs_done == 4


def model_in(path):
    model = tiny_model()
    model.load_state_dict(torch.load(path, weights_only=True)["model0"])
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


@pytest.mark.parametrize("values, epochs, best", [([0.5, 0.9, 0.3, 0.2, 0.1], 5, 2), ([0.1, 0.9, 0.3], 3, 2)])
def test_the_best_weights_are_used_behind_the_run_whether_it_was_stopped_or_not(values, epochs, best):
    trainer = Scripted(values, callbacks=[EarlyStopping(patience=2, restore_best=True)], ckpt_dir="run")
    trainer.check_init(use_tb=False)
    trainer.fit(epochs)
    assert torch.equal(weights(trainer), model_in("run/best.pth"))
    assert torch.equal(weights(trainer), model_in(f"run/epoch{best}.pth"))
    assert not torch.equal(model_in("run/last.pth"), weights(trainer))
    assert not list(Path("run").glob("best_*"))


@pytest.mark.parametrize("updates", [10, 12])
def test_the_best_weights_are_used_behind_a_run_that_counts_updates(updates):
    """It may end in the middle of an epoch, of a loader that may have no end."""
    trainer = Scripted([0.9, 0.5, 0.3, 0.2], callbacks=[EarlyStopping(restore_best=True)], ckpt_dir="run", eval_per_steps=4)
    trainer.check_init(use_tb=False)
    trainer.fit(updates=updates)
    assert trainer.global_step == updates and trainer.best_metric["score"] == 0.9
    assert torch.equal(weights(trainer), model_in("run/best.pth"))
    assert not torch.equal(model_in("run/last.pth"), weights(trainer))


def test_the_best_weights_by_another_quantity_than_the_key_metric_have_a_file_of_their_own(capsys):
    class Rising(Tiny):
        def loss_per_batch(self, batch):
            return super().loss_per_batch(batch)["tol_loss"] + 10 * (self.epoch - 2) ** 2 * self.model_list[0].training

    trainer = Rising(callbacks=[EarlyStopping("train/tol_loss", patience=1, restore_best=True)], ckpt_dir="run")
    trainer.check_init(use_tb=False)
    trainer.fit(9)
    assert trainer.epochs_done == 3
    assert torch.equal(weights(trainer), model_in("run/epoch2.pth"))
    assert torch.equal(weights(trainer), model_in("run/best_train_tol_loss.pth"))
    assert "best_train_tol_loss.pth: epoch 2, update 12\n" in capsys.readouterr().out  # and no other file's best value
    again = Rising(ckpt_dir="run")
    again.check_init(use_tb=False)
    again.load_state("auto")  # it is no state to continue from
    assert again.epochs_done == 3 and torch.equal(weights(again), model_in("run/epoch3.pth"))


def test_the_average_is_what_is_restored_where_it_was_scored():
    trainer = Scripted([0.9, 0.5], callbacks=[EarlyStopping(patience=1, restore_best=True), EMA(0.5)], ckpt_dir="run")
    trainer.check_init(use_tb=False)
    trainer.fit(5)
    assert trainer.epochs_done == 2 and torch.equal(weights(trainer), model_in("run/best.pth"))
    assert not torch.equal(weights(trainer), model_in("run/epoch1.pth"))


def test_an_interrupted_run_keeps_the_weights_of_the_training():
    class Interrupts(Callback):
        def on_after_step(self, model):
            if model.global_step == 15:
                raise KeyboardInterrupt

    trainer = Scripted([0.9, 0.5, 0.4], callbacks=[EarlyStopping(restore_best=True), Interrupts()], ckpt_dir="run")
    trainer.check_init(use_tb=False)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(3)
    assert not trainer.lifetime.only_looks and not torch.equal(weights(trainer), model_in("run/best.pth"))


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield from zip(*tiny_data())


@pytest.mark.parametrize("loader", [None, DataLoader(Endless(), 10)], ids=["its last epoch ends in the middle", "endless"])
def test_a_run_that_counts_updates_restores_them_behind_its_last_one(loader):
    class ByUpdates(Tiny):
        def metric(self, pred, y):
            return {"score": {3: 0.9, 6: 0.5, 9: 0.4}.get(self.global_step, 0.0)}

    other = {} if loader is None else {"train_loader": loader}
    trainer = ByUpdates(callbacks=[EarlyStopping(restore_best=True)], ckpt_dir="run", eval_per_steps=3, **other)
    trainer.check_init(use_tb=False)
    trainer.fit(updates=9)
    assert trainer.best_metric["score"] == 0.9 and torch.equal(weights(trainer), model_in("run/best.pth"))
    assert not torch.equal(model_in("run/last.pth"), weights(trainer))


def test_a_run_that_was_ended_now_keeps_its_weights_and_stays_ended():
    class StopNow(Callback):
        def on_after_step(self, model):
            if model.global_step == 12:
                model.should_stop = "now"

    trainer = Scripted([0.9, 0.5], callbacks=[EarlyStopping(patience=1, restore_best=True), StopNow()], ckpt_dir="run",
                       eval_per_steps=8)
    trainer.check_init(use_tb=False)
    trainer.fit(9)
    assert not trainer.lifetime.only_looks and torch.equal(weights(trainer), model_in("run/last.pth"))


def test_a_resumed_run_restores_what_was_best_before():
    def build():
        trainer = Scripted([0.9, 0.5, 0.4], callbacks=[EarlyStopping("val_score", patience=2, restore_best=True)],
                           ckpt_dir="run", key_metric="tol_loss")
        trainer.check_init(use_tb=False)
        return trainer

    build().fit(1)
    again = build()
    again.load_state("auto")
    again.fit(3)
    assert torch.equal(weights(again), model_in("run/epoch1.pth"))


@pytest.mark.parametrize("length", [{"total": 3}, {"updates": 15}])
@pytest.mark.parametrize("patience", [2, 10])
def test_a_script_that_is_started_again_when_all_is_done_has_the_best_weights_too(length, patience):
    def start():
        trainer = Scripted([0.9, 0.5, 0.4], callbacks=[EarlyStopping(patience=patience, restore_best=True)], ckpt_dir="run")
        trainer.check_init(use_tb=False)
        trainer.load_state("auto")
        trainer.fit(**length)
        return trainer

    first, again = start(), start()
    assert torch.equal(weights(again), model_in("run/best.pth")) and torch.equal(weights(again), weights(first))
    assert not torch.equal(model_in("run/last.pth"), weights(again))
    again.use_best("last")  # other weights that somebody takes stay
    again.fit(**length)
    assert torch.equal(weights(again), model_in("run/last.pth"))


def test_an_epoch_whose_evaluation_was_left_for_the_next_start_is_judged_once():
    stopping = EarlyStopping("train/tol_loss", patience=3, min_delta=100.0)
    trainer = tiny_trainer(callbacks=[stopping], ckpt_dir="run")
    trainer.fit(1)
    trainer.train_loop()
    trainer.close()
    assert stopping.waited == 1
    again = EarlyStopping("train/tol_loss", patience=3, min_delta=100.0)
    trainer = tiny_trainer(callbacks=[again], ckpt_dir="run")
    trainer.load_state("auto")
    trainer.fit(2)
    assert again.waited == 1


def test_a_run_that_was_stopped_stays_stopped_when_it_is_resumed(capsys):
    values = [0.5, 0.4, 0.3]
    first = Scripted(values, callbacks=[EarlyStopping(patience=1)], ckpt_dir="run")
    first.check_init(use_tb=False)
    first.fit(3)
    again = Scripted(values, callbacks=[EarlyStopping(patience=1)], ckpt_dir="run")
    again.check_init(use_tb=False)
    again.load_state("auto")
    again.fit(3)
    assert again.epochs_done == 2
    assert "Nothing left to train: 2 of 3 epochs are done and the run was stopped early" in capsys.readouterr().out
