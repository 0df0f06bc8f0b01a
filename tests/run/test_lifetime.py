"""The trainer after it was left: by a signal that ended the loop, by an interrupt at once, by an error in an update."""

import os
import random
import signal
import sys
from pathlib import Path

import pytest
import torch
from odd_loaders import Stateful
from tiny import PATH, run_python, tiny_model, tiny_trainer, weights

from template import Callback
from template.run.signals import is_interactive

EPOCHS = 3


class At(Callback):
    """Does something when a moment comes for the n-th time."""

    def __init__(self, moment="", n=0, action=None):
        self.moment, self.left, self.action = moment, n, action

    def hear(self, moment, model):
        self.left -= moment == self.moment
        if moment == self.moment and self.left == 0:
            self.action(model)

    def on_batch(self, model, batch):
        self.hear("on_batch", model)

    def on_before_step(self, model):
        self.hear("on_before_step", model)

    def on_after_step(self, model):
        self.hear("on_after_step", model)

    def on_train_end(self, model, result):
        self.hear("on_train_end", model)

    def on_eval_batch(self, model, batch):
        self.hear("on_eval_batch", model)


def kill(number):
    return lambda model: os.kill(os.getpid(), number)


def fail(model):
    raise ZeroDivisionError("a bug")


def interrupt(model):
    raise KeyboardInterrupt


def trainer_in(folder, callbacks=(), dropout=0.2, **attributes):
    """Three updates of two batches an epoch."""
    return tiny_trainer(ckpt_dir=folder, callbacks=list(callbacks), model=tiny_model(dropout=dropout),
                        lr_scheduler_type="cosine", accumulate_steps=2, **attributes)


def whole_run(folder="whole", **attributes):
    trainer = trainer_in(folder, **attributes)
    trainer.fit(EPOCHS)
    return trainer


def rows(folder):
    """history.csv without the seconds."""
    return [line.rsplit(",", 1)[0] for line in Path(folder, "history.csv").read_text().splitlines()]


def assert_same_end(trainer, whole):
    assert torch.equal(weights(trainer), weights(whole))
    assert trainer.best_metric == whole.best_metric and trainer.global_step_eval == whole.global_step_eval
    assert rows(trainer.ckpt_dir) == rows(whole.ckpt_dir)
    files = [torch.load(run.path_of("last.pth")) for run in (trainer, whole)]
    assert all(torch.equal(files[0]["model0"][name], value) for name, value in files[1]["model0"].items())
    assert [saved["epochs_done"] for saved in files] == [EPOCHS, EPOCHS]


def interrupt_at_once(model):
    """A second Ctrl-C."""
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)


def leave(model):
    sys.exit("enough")


@pytest.fixture(autouse=True)
def own_handlers():
    """Those of a process in which nothing has trained yet, whatever a test before left."""
    before = {number: signal.signal(number, handler) for number, handler in (
        (signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL))}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def interactive(monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)


# --- a signal ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment, n", [("on_batch", 8), ("on_after_step", 3), ("on_train_end", 2), ("on_eval_batch", 5)])
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_a_script_that_catches_the_exit_goes_on_with_the_same_trainer_to_the_same_bits(number, code, moment, n):
    whole = whole_run()
    trainer = trainer_in("run", [At(moment, n, kill(number))])
    with pytest.raises(SystemExit) as left:
        trainer.fit(EPOCHS)
    assert left.value.code == code
    torch.rand(5)  # what the script draws meanwhile
    before = trainer.global_step_eval
    trainer.test()
    trainer.global_step_eval = before  # it counts every batch that is evaluated
    trainer.fit(EPOCHS)
    assert_same_end(trainer, whole)


@pytest.mark.parametrize("moment, n", [("on_batch", 8), ("on_after_step", 3), ("on_train_end", 2), ("on_eval_batch", 5)])
def test_in_an_interactive_session_ctrl_c_ends_the_plain_loop_and_the_next_one_goes_on(moment, n, interactive, capsys):
    whole = whole_run()
    trainer = trainer_in("run", [At(moment, n, kill(signal.SIGINT))], total_epochs=EPOCHS)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(EPOCHS):
            trainer.train_loop()
            trainer.eval()
    assert "Interrupted; saved at epoch" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    while trainer.epochs_done < EPOCHS:
        trainer.train_loop()
        trainer.eval()
    assert_same_end(trainer, whole)


def test_an_evaluation_that_was_cut_short_may_be_done_again_by_itself(interactive):
    whole = whole_run()
    trainer = trainer_in("run", [At("on_eval_batch", 5, kill(signal.SIGINT))])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(EPOCHS)
    assert (trainer.epochs_done, trainer.global_step_eval) == (1, 3)
    trainer.eval()
    assert trainer.epochs_done == 2
    trainer.fit(EPOCHS)
    assert_same_end(trainer, whole)


class Reshuffled(Stateful):
    """In another order whenever it is begun anew."""

    rounds = 0

    def __iter__(self):
        if self.begin == 0:
            self.rounds += 1
            random.Random(self.rounds).shuffle(self.batches)
        return super().__iter__()


def test_a_loader_with_a_state_of_its_own_goes_on_where_it_was():
    whole = whole_run(train_loader=Reshuffled())
    trainer = trainer_in("run", [At("on_after_step", 2, kill(signal.SIGTERM))], train_loader=Reshuffled())
    with pytest.raises(SystemExit):
        trainer.fit(EPOCHS)
    assert trainer.batches_done
    trainer.fit(EPOCHS)
    assert_same_end(trainer, whole)


def test_after_ctrl_c_between_two_sessions_nobody_s_loop_is_asked_to_stop(interactive):
    trainer = trainer_in("run", total_epochs=EPOCHS)
    trainer.train_loop()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the signal comes before the next line")
    trainer.eval()
    assert trainer.epochs_done == 1


def test_ctrl_c_behind_the_last_update_of_an_epoch_does_not_wait_for_another_cell(interactive):
    trainer = trainer_in("run", [At("on_train_end", 1, kill(signal.SIGINT))], total_epochs=EPOCHS)
    with pytest.raises(KeyboardInterrupt):
        trainer.train_loop()
    trainer.eval()
    assert trainer.epochs_done == 1


def test_an_evaluation_within_an_epoch_is_finished_before_the_training_is_left():
    def evaluate(model):
        os.kill(os.getpid(), signal.SIGTERM)
        model.eval()

    trainer = trainer_in("run", [At("on_after_step", 1, evaluate)])
    with pytest.raises(SystemExit):
        trainer.fit(EPOCHS)
    assert trainer.best_epoch == {"tol_loss": 1, "acc": 1} and trainer.global_step == 1
    saved = torch.load("run/last.pth")
    assert (saved["global_step"], saved["best_epoch"]) == (1, trainer.best_epoch)


def test_a_stop_while_weights_are_looked_at_writes_nothing():
    stops = [At("on_eval_batch", 5, kill(signal.SIGTERM)), At("on_batch", 9, interrupt)]
    trainer = trainer_in("run", stops, total_epochs=EPOCHS)
    with pytest.raises(KeyboardInterrupt):
        trainer.train_loop(), trainer.eval(), trainer.train_loop()
    before = {path: path.read_bytes() for path in Path("run").glob("*.pth")}
    trainer.use_best()
    with pytest.raises(SystemExit):
        trainer.test()
    assert {path: path.read_bytes() for path in Path("run").glob("*.pth")} == before


@pytest.mark.parametrize("action", [fail, interrupt])
def test_an_error_or_an_interrupt_beside_a_sigterm_does_not_answer_it(action):
    def both(model):
        os.kill(os.getpid(), signal.SIGTERM)
        action(model)

    trainer = trainer_in("run", [At("on_batch", 3, both)])
    with pytest.raises((ZeroDivisionError, KeyboardInterrupt)):
        trainer.fit(EPOCHS)
    with pytest.raises(SystemExit):
        trainer.fit(EPOCHS)


# --- an error or an interrupt within an update ------------------------------------------------------------------------


@pytest.mark.parametrize("action", [fail, interrupt])
@pytest.mark.parametrize("moment, n", [
    ("on_batch", 8), ("on_batch", 9), ("on_before_step", 5), ("on_after_step", 5), ("on_eval_batch", 5)])
def test_an_update_that_was_cut_short_begins_again_without_its_old_gradients(moment, n, action):
    whole = whole_run(dropout=0.0)  # without random numbers what begins again comes to the same bits
    trainer = trainer_in("run", [At(moment, n, action)], dropout=0.0)
    with pytest.raises((ZeroDivisionError, KeyboardInterrupt)):
        trainer.fit(EPOCHS)
    trainer.fit(EPOCHS)
    assert_same_end(trainer, whole)


def test_gradients_can_be_looked_at_after_an_error_and_are_gone_once_a_checkpoint_is_loaded():
    trainer = trainer_in("run", [At("on_batch", 8, fail)])
    with pytest.raises(ZeroDivisionError):
        trainer.fit(EPOCHS)
    assert trainer.model_list[0][0].weight.grad is not None
    trainer.load_state("auto")
    assert trainer.model_list[0][0].weight.grad is None
    trainer.fit(EPOCHS)
    assert torch.equal(weights(trainer), weights(whole_run()))


def test_after_an_error_behind_unscaled_gradients_the_loss_scaler_goes_on():
    trainer = trainer_in("run", [At("on_before_step", 5, fail)], amp="fp16")
    with pytest.raises(ZeroDivisionError):
        trainer.fit(EPOCHS)
    trainer.fit(EPOCHS)
    assert trainer.global_step == 3 * EPOCHS


def test_an_interrupt_at_once_says_what_is_not_on_the_disk(capsys):
    trainer = trainer_in("run", [At("on_batch", 3, interrupt_at_once)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(EPOCHS)
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("Interrupted at once, in the middle of what follows epoch 1, update 1. Nothing was saved yet.")
    assert told in Path("run/log.txt").read_text() and not Path("run/last.pth").exists()


def test_an_interrupt_at_once_of_what_only_looks_says_that_the_training_is_saved(capsys):
    trainer = trainer_in("run", [At("on_after_step", 2, kill(signal.SIGTERM)), At("on_eval_batch", 2, interrupt_at_once)])
    with pytest.raises(SystemExit):
        trainer.fit(EPOCHS)
    with pytest.raises(KeyboardInterrupt):
        trainer.test()
    assert capsys.readouterr().out.splitlines()[-1] == (
        "Interrupted at once, at epoch 1, update 2, which is saved. This trainer goes on from here.")


# --- the user's own code ends the process -----------------------------------------------------------------------------


@pytest.mark.parametrize("action, words", [(leave, "sys.exit('enough')"), (interrupt, "the KeyboardInterrupt")])
def test_what_is_evaluated_when_the_user_s_code_leaves_is_saved_and_said_and_goes_on_to_the_same_bits(action, words, capsys):
    whole = whole_run()
    trainer = trainer_in("run", [At("on_eval_batch", 5, action)])
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        trainer.fit(EPOCHS)
    told = f"Saved after {words}, at epoch 2, update 6. load_state('auto') continues there."
    assert capsys.readouterr().out.splitlines()[-1] == told and told in Path("run/log.txt").read_text()
    assert torch.load("run/last.pth")["global_step"] == 6
    again = trainer_in("run")
    again.load_state("auto")
    again.fit(EPOCHS)
    assert_same_end(again, whole)
    assert again.ckpt_dir == "run"


@pytest.mark.parametrize("action, words", [(leave, "sys.exit('enough')"), (interrupt, "the KeyboardInterrupt")])
@pytest.mark.parametrize("moment", ["on_batch", "on_before_step"])
def test_what_the_user_s_code_leaves_within_an_update_is_saved_beside_the_exact_state(moment, action, words, capsys):
    trainer = trainer_in("run", [At(moment, 5 if moment == "on_before_step" else 10, action)])
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        trainer.fit(EPOCHS)
    assert f"Saved as {words} left it, behind epoch 2, update 4" in capsys.readouterr().out
    steps = [torch.load(f"run/{name}.pth")["global_step"] for name in ("last", "crashed")]
    assert steps == [3, 4]


def test_where_nothing_was_saved_before_the_error_both_runs_say_so_and_name_the_file(capsys):
    trainer = trainer_in("run", [At("on_before_step", 2, leave)])
    with pytest.raises(SystemExit):
        trainer.fit(EPOCHS)
    assert "load_state('auto') finds nothing, because nothing was saved before it." in capsys.readouterr().out
    again = trainer_in("run")
    assert again.load_state("auto") is None
    assert "starts from scratch. What an error left is in run/crashed.pth: load it by its name." in capsys.readouterr().out
    again.load_state("run/crashed.pth")
    assert again.global_step == 1


@pytest.mark.slow
def test_a_plain_loop_that_is_left_between_training_and_evaluation_saves_at_the_exit_and_says_so(tmp_path):
    code = """
import sys
from tiny import tiny_trainer
trainer = tiny_trainer(ckpt_dir="run")
for _ in range(3):
    trainer.train_loop()
    if trainer.epoch == 2:
        sys.exit(7)
    trainer.eval()
"""
    done = run_python("-c", code, cwd=tmp_path, env={"PYTHONPATH": PATH}, check=False)
    told = "Saved at epoch 2, update 12, which was not evaluated. load_state('auto') continues with its evaluation."
    assert done.returncode == 7 and told in done.stdout and told in (tmp_path / "run/log.txt").read_text()
    assert torch.load(tmp_path / "run/last.pth")["global_step"] == 12


def test_an_error_while_the_best_weights_are_looked_at_saves_nothing():
    trainer = trainer_in("run", [At("on_eval_batch", 8, leave)])
    trainer.fit(2)
    before = Path("run/last.pth").read_bytes()
    trainer.use_best()
    trainer.global_step += 1
    with pytest.raises(SystemExit):
        trainer.test()
    assert Path("run/last.pth").read_bytes() == before


# --- who is asked -----------------------------------------------------------------------------------------------------


def test_a_session_is_interactive_where_there_is_a_prompt_but_not_in_what_it_starts(monkeypatch):
    assert not is_interactive()
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    assert is_interactive()
    monkeypatch.setattr("multiprocessing.parent_process", lambda: object())
    assert not is_interactive()
