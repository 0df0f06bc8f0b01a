"""Runs that count updates, and evaluations in the middle of an epoch: the training stays the same to the bit."""

import csv
import math
import shutil

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_trainer, weights
from torch.utils.data import DataLoader, IterableDataset

from template import EarlyStopping
from template.callbacks.history import History
from template.hooks import Callback
from template.update.lr_scheduler import SCHEDULES

UPDATES = 6  # of an epoch of Tiny


class Stream(IterableDataset):
    """Never ends, and has no length."""

    def __iter__(self):
        x, y = tiny_data()
        while True:
            for place in torch.randperm(len(x)).tolist():
                yield x[place], y[place]


def endless(**attributes):
    return {"train_loader": DataLoader(Stream(), 10), **attributes}


def build(folder, *callbacks, use_tb=False, **attributes):
    return tiny_trainer(use_tb, ckpt_dir=folder, callbacks=[History(png=False), *callbacks], **attributes)


class Evaluations(Callback):
    """At which updates, and what the rate was behind each update."""

    def __init__(self):
        self.at, self.rates = [], []

    def on_eval_result(self, model, result):
        self.at.append(model.global_step)

    def on_after_step(self, model):
        self.rates.append(float(model.optimizer_list[0].param_groups[0]["lr"]))


class StopAt(Callback):
    def __init__(self, update):
        self.update = update

    def on_after_step(self, model):
        if model.global_step == self.update:
            model.should_stop = "now"


def rows(trainer):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in trainer.history]


# --- eval_per_steps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attributes", [{}, {"amp": "bf16"}, {"lr_scheduler_type": "cosine", "clip_grad": 1.0},
                                        {"accumulate_steps": 2}, {"log_per_step": 100}],
                         ids=["plain", "bf16", "cosine", "accumulation", "open window"])
def test_the_training_is_the_same_to_the_bit_as_without_the_evaluations(attributes):
    plain, seen = build("plain", **attributes), Evaluations()
    train = [plain.train_loop() | {"score": plain.eval()} for _ in plain.epochs(3)]
    trainer = build("often", seen, eval_per_steps=2, **attributes)
    again = [trainer.train_loop() | {"score": trainer.eval()} for _ in trainer.epochs(3)]
    assert torch.equal(weights(plain), weights(trainer)) and train == again
    every = range(2, trainer.global_step + 1)
    ends = {epoch * trainer.updates_per_epoch() for epoch in (1, 2, 3)}
    assert seen.at == [step for step in every if step % 2 == 0 or step in ends]  # none twice


def test_the_weights_that_are_scored_are_those_of_that_update():
    trainer = build("run", eval_per_steps=4)
    trainer.fit(2)
    for row in trainer.history:
        single = tiny_trainer(ckpt_dir=f"to {row['global_step']}", eval_per_steps=None)
        for _ in single.updates(row["global_step"]):
            single.train_loop()
        assert single.test() == {"tol_loss": row["eval/tol_loss"], "acc": row["eval/acc"]}


def test_a_loop_that_never_evaluates_itself_has_all_evaluations_once():
    seen = Evaluations()
    trainer = build("run", seen, eval_per_steps=3)
    for _ in trainer.epochs(2):
        trainer.train_loop()
    assert seen.at == [3, 6, 9, 12] and trainer.epochs_done == 2
    seen = Evaluations()
    trainer = build("plain", seen, eval_per_steps=3)
    for _ in range(2):
        trainer.train_loop()
    trainer.close()
    assert seen.at == [3, 6, 9]  # the last one is left for eval(), which a plain loop may call behind it


@pytest.mark.parametrize("cut", [7, 8, 9, 11])
@pytest.mark.parametrize("kind", ["loss", "cosine", None])
def test_a_run_that_was_cut_and_continued_has_the_same_evaluations_and_ends_with_the_same_bits(cut, kind):
    def part(folder, *callbacks):
        return build(folder, EarlyStopping("tol_loss", patience=50), *callbacks, eval_per_steps=4, lr_scheduler_type=kind,
                     lr_scheduler_args={"patience": 0} if kind == "loss" else {})

    whole = part("whole")
    whole.fit(3)
    part("run", StopAt(cut)).fit(3)
    again = part("run")
    again.load_state("auto")
    again.fit(3)
    assert torch.equal(weights(again), weights(whole)) and rows(again) == rows(whole)
    assert again.best_metric == whole.best_metric and again.best_epoch == whole.best_epoch
    stopping, other = (next(one for one in run.hooks.callbacks if isinstance(one, EarlyStopping)) for run in (again, whole))
    assert stopping.state_dict() == other.state_dict()


def test_a_run_that_was_killed_goes_on_behind_its_last_evaluation_with_the_same_bits():
    class Copies(Callback):
        """The folder as a kill behind update 10 would leave it."""

        def on_after_step(self, model):
            if model.global_step == 10:
                model.wait_for_saves()
                shutil.copytree(model.path_of("."), "killed", ignore=shutil.ignore_patterns("*.lock", ".*"))

    whole = build("whole", Copies(), eval_per_steps=4)
    whole.fit(3)
    again = build("killed", eval_per_steps=4)
    assert again.load_state("auto").startswith("killed") and again.global_step == 8
    again.fit(3)
    assert torch.equal(weights(again), weights(whole)) and rows(again) == rows(whole)


def test_without_anything_to_evaluate_it_is_said_that_it_has_no_effect():
    with pytest.warns(UserWarning, match="eval_per_steps = 4 has no effect, because there is no eval_loader"):
        tiny_trainer(eval_per_steps=4, eval_loader=None)


def test_patience_of_early_stopping_and_of_a_plateau_counts_evaluations():
    seen = Evaluations()

    class NeverBetter(Tiny):
        def metric(self, pred, y):
            return {"acc": 0.5 - self.global_step / 1000}

    trainer = NeverBetter(ckpt_dir="run", eval_per_steps=2, lr_scheduler_type="metric", key_metric="acc",
                          lr_scheduler_args={"patience": 1, "factor": 0.5, "cooldown": 0},
                          callbacks=[seen, EarlyStopping(patience=7)])
    trainer.check_init(use_tb=False)
    trainer.fit(5)
    # at 2 the best, 4 and 6 (the epoch's own) are worse: halved before update 7; 8 and 10 worse: halved before 11
    assert seen.rates[5:13] == [0.1, 0.05, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025]
    assert seen.at == [2, 4, 6, 8, 10, 12, 14, 16, 18] and trainer.epochs_done == 3  # the eighth one ends it at 16


def test_a_best_in_the_middle_of_an_epoch_is_kept_in_best_pth_and_last_pth_stands_at_the_evaluation():
    class BestAtFour(Tiny):
        def metric(self, pred, y):
            return {"acc": float(self.global_step == 4)}

    trainer = BestAtFour(ckpt_dir="run", eval_per_steps=4)
    trainer.check_init(use_tb=False)
    trainer.fit(2)
    trainer.use_best()
    other = tiny_trainer(ckpt_dir="other")
    for _ in other.updates(4):
        other.train_loop()
    assert torch.equal(weights(trainer), weights(other))
    assert trainer.best_metric["acc"] == 1.0 and trainer.best_epoch["acc"] == 1


def test_history_csv_has_a_row_for_each_evaluation_and_the_epochs_have_the_rows_that_they_had():
    plain = build("plain")
    plain.fit(2)
    trainer = build("often", eval_per_steps=4)
    trainer.fit(2)
    assert [(row["epoch"], row["global_step"]) for row in rows(trainer)] == [
        (0.666667, 4), (1, 6), (1.333333, 8), (2, 12)]
    assert [row for row in rows(trainer) if "train/tol_loss" in row] == rows(plain)
    with open(trainer.path_of("history.csv"), newline="") as file:
        assert [row["global_step"] for row in csv.DictReader(file)] == ["4", "6", "8", "12"]


def test_tags_per_update_have_updates_on_their_axis_and_tags_per_epoch_epochs():
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = tiny_trainer(use_tb=True, ckpt_dir="run", eval_per_steps=4)
    trainer.fit(2)
    found = {}
    for part in ("eval", "eval_at_update", "train"):
        events = EventAccumulator(f"runs/run/{part}")
        events.Reload()
        found[part] = {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    at = [(row["global_step"], pytest.approx(row["eval/acc"])) for row in trainer.history]
    assert found["eval_at_update"]["update/acc"] == at
    assert found["eval"].keys() == {"epoch/acc", "epoch/tol_loss"} == found["train"].keys() | {"epoch/acc"}
    assert [step for step, _ in found["eval"]["epoch/acc"]] == [1, 2]


# --- runs that count updates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total, epochs_done", [(1, 0), (5, 0), (6, 1), (8, 1), (12, 2), (13, 2)])
def test_a_run_of_updates_has_the_weights_of_a_plain_loop_of_as_many(total, epochs_done):
    trainer, model, done = build("run", model=linear()), linear(), 0
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for epoch in range(1, 4):
        for x, y in trainer.train_batches.epoch(epoch):
            if done < total:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                done += 1
    trainer.fit(updates=total)
    assert (trainer.global_step, trainer.epochs_done) == (total, epochs_done)
    assert torch.equal(weights(trainer), torch.cat([p.detach().double().flatten() for p in model.parameters()]))


def linear():
    torch.manual_seed(4)
    return torch.nn.Linear(6, 3)


@pytest.mark.parametrize("attributes", [{}, {"accumulate_steps": 4, "lr_scheduler_type": "cosine"}, endless(),
                                        endless(lr_scheduler_type="linear", warm_up_updates=3), {"eval_loader": None}],
                         ids=["plain", "accumulation", "endless", "endless with a schedule", "no evaluation"])
@pytest.mark.parametrize("cut", [4, 7])
def test_a_run_of_updates_that_is_cut_and_continued_ends_with_the_same_bits(attributes, cut):
    whole = build("whole", **attributes)
    whole.fit(updates=9)
    build("run", StopAt(cut), **attributes).fit(updates=9)
    again = build("run", **attributes)
    again.load_state("auto")
    assert again.global_step == cut
    again.fit(updates=9)
    assert torch.equal(weights(again), weights(whole)) and rows(again) == rows(whole) and again.global_step == 9


@pytest.mark.parametrize("attributes", [{}, endless()], ids=["epochs", "endless"])
def test_a_longer_run_goes_on_where_a_shorter_one_ended_in_the_middle_of_an_epoch(attributes):
    whole = build("whole", **attributes)
    whole.fit(updates=16)
    part = build("part", **attributes)
    part.fit(updates=8)
    part.fit(updates=8)  # nothing is left
    assert part.global_step == 8
    part.fit(updates=16)
    assert torch.equal(weights(part), weights(whole))


def test_epochs_and_updates_may_follow_one_another():
    whole = build("whole")
    whole.fit(3)
    part = build("part")
    part.fit(updates=8)
    part.fit(3)
    assert torch.equal(weights(part), weights(whole)) and part.total_updates is None and part.total_epochs == 3


@pytest.mark.parametrize("warm_up", [None, 3])
@pytest.mark.parametrize("kind", sorted(SCHEDULES))
def test_every_named_schedule_is_as_long_as_the_run_and_the_same_on_a_stream(kind, warm_up):
    if kind == "onecycle" and warm_up:
        pytest.skip("it warms up by itself")
    # 18 updates are 3 epochs: the rates are those of fit(3)
    rates = []
    for length, attributes in (({"total": 3}, {}), ({"updates": 18}, {}), ({"updates": 18}, endless())):
        seen = Evaluations()
        interval = {"lr_scheduler_interval": "update"} if kind not in ("loss", "metric") else {}
        arguments = {"step_size": 5} if kind == "step" else {}
        trainer = build(f"{len(rates)}", seen, lr_scheduler_type=kind, warm_up_updates=warm_up, eval_loader=None,
                        lr_scheduler_args=arguments, **interval, **attributes) if kind not in ("loss", "metric") else build(
                            f"{len(rates)}", seen, lr_scheduler_type=kind, warm_up_updates=warm_up, key_metric="acc",
                            **attributes)
        trainer.fit(**length)
        rates.append(seen.rates)
    assert rates[0] == pytest.approx(rates[1]) and len(rates[1]) == 18
    if kind not in ("loss", "metric"):
        assert rates[2] == pytest.approx(rates[1])


def test_a_schedule_that_ends_in_the_middle_of_an_epoch_is_the_closed_form_of_a_cosine():
    seen = Evaluations()
    build("run", seen, lr_scheduler_type="cosine").fit(updates=10)
    assert seen.rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 10)) for step in range(1, 11)])


def test_a_schedule_that_steps_per_epoch_is_told_of_on_a_stream(capsys):
    build("run", lr_scheduler_type="step", **endless()).fit(updates=4)
    assert "StepLR steps at the end of an epoch, which a loader without a length may never reach" in capsys.readouterr().out


def test_a_schedule_over_the_whole_run_that_counts_epochs_is_refused_on_a_stream():
    trainer = build("run", lr_scheduler_type="cosine", lr_scheduler_interval="epoch", **endless())
    with pytest.raises(ValueError, match="per epoch needs the number of epochs, and 20 updates of this train_loader"):
        trainer.fit(updates=20)


def test_early_stopping_ends_a_run_on_a_stream_although_its_epoch_never_ends():
    seen = Evaluations()

    class NeverBetter(Tiny):
        def metric(self, pred, y):
            return {"acc": 0.0 - self.global_step}

    trainer = NeverBetter(ckpt_dir="run", eval_per_steps=2, key_metric="acc", callbacks=[seen, EarlyStopping(patience=2)],
                          **endless())
    trainer.check_init(use_tb=False)
    trainer.fit(updates=1000)
    assert seen.at == [2, 4, 6] and trainer.global_step == 6 and trainer.should_stop is True


def test_the_last_update_is_evaluated_once():
    for total, at in ((8, [4, 8]), (9, [4, 8, 9])):
        seen = Evaluations()
        trainer = build(f"{total}", seen, eval_per_steps=4, **endless())
        trainer.fit(updates=total)
        assert seen.at == at and [row["global_step"] for row in trainer.history] == at


def test_a_length_is_asked_for_once():
    trainer = build("run")
    for arguments in ({}, {"total": 1, "updates": 6}):
        with pytest.raises(TypeError, match=r"fit\(\) needs the length of the run once"):
            trainer.fit(**arguments)
    with pytest.raises(RuntimeError, match=r"trainer.updates\(n\)` must call trainer.train_loop"):
        for _ in trainer.updates(3):
            pass


@pytest.mark.parametrize("name", ["eval_per_steps", "total_updates"])
def test_a_number_of_updates_is_a_whole_number(name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got 0.5"):
        tiny_trainer(**{name: 0.5})
