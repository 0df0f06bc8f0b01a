"""The k best files by a metric: against sorting by hand, also over restarts, full disks and odd names."""

import errno
import os
import re
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import Tiny, tiny_model, tiny_trainer, weights

from template import EMA, Callback, Checkpoints
from template.checkpoint import files

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Scripted(Tiny):
    """Its metric takes the values of a list, one per evaluation."""

    def __init__(self, values, name="score", **attributes):
        super().__init__(preflight=False, key_metric="tol_loss", **attributes)
        self.values, self.name = values, name

    def metric(self, pred, y):
        return {self.name: self.values[self.epoch - 1]}


def trained(values, best, folder="run", name="score", resume=False, epochs=None, **attributes):
    trainer = Scripted(values, name, callbacks=[best], ckpt_dir=folder, **attributes)
    trainer.check_init(use_tb=False)
    if resume:
        trainer.load_state("auto")
    trainer.fit(epochs or len(values))
    return trainer


def by_hand(values, k, mode="max"):
    """Numbers of the epochs, the best first; of equal values the later one first."""
    finite = [epoch for epoch, value in enumerate(values, 1) if abs(value) < INF]
    sign = -1 if mode == "max" else 1
    return sorted(finite, key=lambda epoch: (sign * values[epoch - 1], -epoch))[:k]


def epochs_in(folder):
    return {int(re.search(r"_epoch(\d+)_", path.name)[1]) for path in Path(folder).glob("top_*.pth")}


def epochs_of(paths):
    return [int(re.search(r"_epoch(\d+)_", path.name)[1]) for path in paths]


@pytest.mark.parametrize("values", [[0.1, 0.5, 0.3, 0.5, 0.2, 0.9], [0.5, NAN, 0.4, INF, 0.3], [NAN, NAN], [3e-7, 1e9, -2.0],
                                    [0.5] * 5], ids=str)
@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_files_are_those_of_the_k_best_epochs_in_their_order(values, mode):
    best = Checkpoints("score", top_k=3, mode=mode)
    trained(values, best)
    expected = by_hand(values, 3, mode)
    assert epochs_of(best.files) == expected and epochs_in("run") == set(expected)
    for path, epoch in zip(best.files, expected):
        saved = torch.load(path, weights_only=True)
        whole = torch.load(f"run/epoch{epoch}.pth", weights_only=True)
        assert saved["epoch"] == epoch and "optimizer_list0" not in saved
        assert all(torch.equal(saved["model0"][name], value) for name, value in whole["model0"].items())


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, NAN]), min_size=1, max_size=7), st.integers(1, 3))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_values_come_the_list_is_that_of_sorting(values, k):
    best = Checkpoints("score", top_k=k)
    written = []

    class Trainer:
        key_metric, key_metric_mode, eval_loss_names = "score", None, set()

        class checkpoints:
            @staticmethod
            def save_best(file, family, then):
                written.append(file)
                then()

        @staticmethod
        def path_of(name):
            return Path("nowhere")

    for epoch, value in enumerate(values, 1):
        Trainer.epoch = Trainer.global_step = epoch
        best.on_eval_result(Trainer, {"score": value})
    assert epochs_of(best.files) == by_hand(values, k)
    assert {path.name for path in best.files} <= set(written)


def test_the_direction_is_the_metric_s_own_and_key_metric_decides_where_nothing_is_named():
    errors = [0.3, 0.1, 0.2]
    best = Checkpoints("mae", top_k=1)
    trained(errors, best, name="mae")
    assert epochs_of(best.files) == [2]
    best = Checkpoints(top_k=1)
    trainer = trained(errors, best, name="mae", folder="other")
    losses = [row["eval/tol_loss"] for row in trainer.hooks.callbacks[2].rows]
    assert epochs_of(best.files) == by_hand(losses, 1, "min")
    best = Checkpoints("train_loss", top_k=2)
    trainer = trained(errors, best, name="mae", folder="third")
    losses = [row["train/tol_loss"] for row in trainer.hooks.callbacks[2].rows]
    assert epochs_of(best.files) == by_hand(losses, 2, "min")


@pytest.mark.parametrize("name", ["val/acc@1", "a:b|c?d*e<f>g\"h", "acc.", "精度"])
def test_names_are_legal_everywhere(name):
    best = Checkpoints(name, top_k=1, mode="max")
    trained([0.5, 0.25], best, name=name)
    (path,) = best.files
    assert path.is_file() and not re.search(r'[<>:"/\\|?*]', path.name) and path.name.endswith("_update6.pth")


def test_two_with_names_that_begin_alike_leave_each_other_s_files_alone():
    class Two(Scripted):
        def metric(self, pred, y):
            return {"acc": self.values[self.epoch - 1], "acc_top5": 1 - self.values[self.epoch - 1]}

    def build():
        callbacks = [Checkpoints("acc", top_k=1), Checkpoints("acc_top5", top_k=1)]
        trainer = Two([0.1, 0.2, 0.3], callbacks=callbacks, ckpt_dir="run")
        trainer.check_init(use_tb=False)
        return trainer

    build().fit(2)
    again = build()
    again.load_state("auto")
    again.fit(3)
    assert [epochs_of(callback.files) for callback in again.callbacks] == [[3], [1]]
    assert sorted(path.name for path in Path("run").glob("top_*")) == ["top_acc_0.3000_epoch3_update18.pth",
                                                                       "top_acc_top5_0.9000_epoch1_update6.pth"]


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5])
def test_a_run_that_is_resumed_keeps_what_the_whole_one_keeps(cut):
    values = [0.5, 0.9, 0.1, 0.7, 0.8, 0.6]
    trained(values, Checkpoints("score"), epochs=cut)
    again = Checkpoints("score")
    trained(values, again, resume=True)
    assert epochs_of(again.files) == by_hand(values, 3) and epochs_in("run") == set(by_hand(values, 3))


def test_a_run_that_goes_back_gives_up_what_came_later_behind_its_next_file(capsys):
    best = Checkpoints("score", top_k=2)
    trained([0.5, 0.6, 0.8, 0.9], best)
    assert epochs_in("run") == {3, 4}
    os.rename("run/epoch2.pth", "run/last.pth")  # as if it had been killed before it could save more
    for name in ("previous", "epoch3", "epoch4"):
        Path(f"run/{name}.pth").unlink(missing_ok=True)
    again = Checkpoints("score", top_k=2)
    trainer = Scripted([0.5, 0.6, 0.7, 0.65], callbacks=[again], ckpt_dir="run")
    trainer.check_init(use_tb=False)
    trainer.load_state("auto")
    assert trainer.epochs_done == 2 and epochs_in("run") == {3, 4} and again.files == []
    assert "top_score_0.6000_epoch2_update12.pth is not in run and no longer among the best 2" in capsys.readouterr().out
    trainer.fit(4)
    assert sorted(path.name for path in Path("run").glob("top_*")) == ["top_score_0.6500_epoch4_update24.pth",
                                                                       "top_score_0.7000_epoch3_update18.pth"]


def test_a_branch_in_a_new_folder_leaves_the_files_of_the_run_before_it():
    trained([0.5, 0.6], Checkpoints("score", top_k=1), folder="first")
    branch = Checkpoints("score", top_k=1)
    trainer = Scripted([0.5, 0.6, 0.7], callbacks=[branch], ckpt_dir="second")
    trainer.check_init(use_tb=False)
    trainer.load_state("first/epoch2.pth")
    trainer.fit(3)
    assert epochs_in("first") == {2} and epochs_in("second") == {3}


def test_the_worst_file_is_deleted_only_when_the_new_one_is_on_the_disk(monkeypatch, capsys):
    write, is_full = files.write, []

    def failing(saved, path):
        if is_full and "top_" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(saved, path)

    monkeypatch.setattr(files, "write", failing)
    best = Checkpoints("score", top_k=1)
    trainer = Scripted([0.5, 0.6, 0.7, 0.1], callbacks=[best], ckpt_dir="run")
    trainer.check_init(use_tb=False)
    for epoch in trainer.epochs(4):
        is_full[:] = [True] if epoch in (2, 3) else []
        trainer.train_loop()
        trainer.eval()
        trainer.wait_for_saves()
        assert epochs_in("run") == ({1} if epoch < 4 else {3})  # the newest is tried again at the next save
    assert "SAVE FAILED" in capsys.readouterr().out and epochs_of(best.files) == [3]


def test_the_memory_for_copies_does_not_grow_with_the_number_of_files():
    trainer = Scripted([0.1 * n for n in range(8)], callbacks=[Checkpoints("score", top_k=2)])
    trainer.check_init(use_tb=False)
    for _ in range(8):
        trainer.train_loop()
        trainer.eval()
    assert len(trainer.checkpoints.saver._copies) <= 3  # last.pth, best.pth, and one for all of these


def test_evaluations_in_the_middle_of_an_epoch_have_files_of_their_own_and_a_second_one_of_an_update_replaces_the_first():
    class Looks(Callback):
        def on_after_step(self, model):
            if model.global_step == 3:
                model.eval()
                model.eval()

    best = Checkpoints("tol_loss", top_k=5)
    trainer_ = tiny_trainer(callbacks=[best, Looks()], ckpt_dir="run")
    trainer_.fit(1)
    assert {path.name.split("_")[-1] for path in best.files} == {"update3.pth", "update6.pth"} and len(best.files) == 2
    assert all(path.is_file() for path in best.files)


def test_on_a_slow_disk_a_file_is_deleted_only_when_the_one_in_its_place_is_there_and_none_is_left_over(monkeypatch):
    go, verify, seen = threading.Event(), files._verify, []

    def slow(temporary):
        assert go.wait(30)
        if temporary.name.startswith(".top"):
            seen.append((re.search(r"epoch(\d)", temporary.name)[1], epochs_in("run")))
        verify(temporary)

    class Releases(Callback):
        def on_train_start(self, model):
            if model.epoch == 4:  # the files of three epochs wait
                go.set()

    monkeypatch.setattr(files, "_verify", slow)
    best = Checkpoints("score", top_k=1)
    trainer = Scripted([0.1, 0.2, 0.3, 0.4], callbacks=[best, Releases()], ckpt_dir="run")
    trainer.check_init(use_tb=False)
    for _ in trainer.epochs(4):
        trainer.train_loop()
        trainer.eval(save_per_epochs=0)
    assert seen == [("1", set()), ("2", {1}), ("3", {2}), ("4", {3})]
    assert epochs_in("run") == {4} == set(epochs_of(best.files))


def test_an_average_is_what_the_files_hold():
    best = Checkpoints("score", top_k=1)
    trainer = Scripted([0.5], callbacks=[EMA(0.5), best], ckpt_dir="run")
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    (path,) = best.files
    trainer.use_best(path)
    other = tiny_model()
    other.load_state_dict(torch.load("run/best.pth", weights_only=True)["model0"])
    assert torch.equal(weights(trainer), torch.cat([value.double().flatten() for value in other.state_dict().values()]))


def test_a_monitor_that_no_result_contains_lists_what_there_is():
    with pytest.raises(ValueError, match=r"Checkpoints monitors 'f1', which is not among \['tol_loss', 'score'\]"):
        trained([0.5], Checkpoints("f1"))
    with pytest.warns(UserWarning, match="Checkpoints looks at evaluations, and there is no eval_loader"):
        tiny_trainer(callbacks=[Checkpoints("acc")], eval_loader=None)


@pytest.mark.parametrize("arguments, rule", [
    ({"top_k": 0}, "top_k must be a whole number of files of at least 1, got 0"), ({"top_k": True}, "got True"),
    ({"mode": "up"}, "mode must be 'max', 'min' or None, got 'up'"),
])
def test_bad_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        Checkpoints(**arguments)
