"""Searches: a grid against single trainings, optuna's against a closed form, pruning, failures, and going on."""

import sys
from pathlib import Path

import pytest
import torch
from test_kfold import DATA
from tiny import Tiny
from torch import nn
from torch.utils.data import DataLoader

from template.data.seeding import seed_everything
from template.hooks import Callback
from template.run.trials import read_json
from template.tools.search import search


def make_trainer(params):
    model = nn.Sequential(nn.Linear(6, params.get("width", 8)), nn.ReLU(), nn.Linear(params.get("width", 8), 3))
    optimizer = torch.optim.SGD(model.parameters(), params.get("lr", 0.1))
    return Tiny(model, optimizer_list=[optimizer], train_loader=DataLoader(DATA, params.get("batch_size", 10), shuffle=True),
                key_metric="tol_loss", save_per_steps=4, writer=None)


class Interrupt(Callback):
    """Ctrl-C in the midst of one trial."""

    def __init__(self, name, update):
        self.name, self.update = name, update

    def on_after_step(self, model):
        if model.ckpt_dir.endswith(self.name) and model.global_step == self.update:
            raise KeyboardInterrupt


def interrupted(params):
    trainer = make_trainer(params)
    trainer.callbacks = [Interrupt("trial2", 8)]
    return trainer


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.slow
def test_a_grid_trains_every_combination_as_alone_and_names_the_best(capsys):
    found = search(make_trainer, {"lr": [0.001, 0.3], "width": [4, 8]}, epochs=2, ckpt_dir="check_point/grid")
    assert [(row["lr"], row["width"]) for row in found.rows] == [(0.001, 4), (0.001, 8), (0.3, 4), (0.3, 8)]
    values = []
    for number, row in enumerate(found.rows):
        seed_everything(0)
        trainer = make_trainer(row)
        trainer.seed, trainer.ckpt_dir = 0, f"alone{number}"
        trainer.check_init(use_tb=False)
        trainer.fit(2)
        values.append(trainer.best_metric["tol_loss"])
    assert [row["tol_loss"] for row in found.rows] == values
    assert (found.metric, found.mode, found.best_value) == ("tol_loss", "min", min(values))
    assert found.best_trial == f"trial{values.index(min(values))}"
    assert found.best_params == {name: found.rows[values.index(min(values))][name] for name in ("lr", "width")}
    assert f"best: {found.best_trial}, tol_loss" in capsys.readouterr().out
    with pytest.raises(ValueError, match="a grid is searched without it"):
        found.plots()


@pytest.mark.slow
def test_a_grid_that_was_interrupted_goes_on_to_the_same_numbers():
    space = {"lr": [0.01, 0.1, 0.2, 0.3]}
    whole = search(make_trainer, space, epochs=3, ckpt_dir="whole")
    with pytest.raises(KeyboardInterrupt):
        search(interrupted, space, epochs=3, ckpt_dir="parts")
    continued = search(make_trainer, space, epochs=3, ckpt_dir="parts")
    assert without_seconds(continued.rows) == without_seconds(whole.rows)
    assert continued.rows[2]["seconds"] is None  # nobody knows how long it took the first time


def test_a_trial_whose_loss_is_not_finite_counts_as_failed_and_the_search_goes_on(capsys):
    found = search(make_trainer, {"lr": [1e30, 0.1]}, epochs=2, ckpt_dir="k")
    assert [row["state"] for row in found.rows] == ["failed", "done"] and found.best_params == {"lr": 0.1}
    again = search(make_trainer, {"lr": [1e30, 0.1]}, epochs=2, ckpt_dir="k")
    assert again.rows == found.rows and capsys.readouterr().out.count("failed, and the search goes on") == 1
    none = search(make_trainer, {"lr": [1e30]}, epochs=2, ckpt_dir="k2")
    assert none.best_params == {} and "no trial gave a value" in str(none)


def test_errors_of_the_person_s_own_code_end_the_search():
    with pytest.raises(KeyError, match="rate"):
        search(lambda params: params["rate"], {"lr": [0.1]}, epochs=1, metric="acc", mode="max", ckpt_dir="k")


def test_without_optuna_a_grid_works_and_everything_else_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert search(make_trainer, {"lr": [0.1]}, epochs=1, ckpt_dir="k").best_params == {"lr": 0.1}
    with pytest.raises(ModuleNotFoundError, match="pip install optuna"):
        search(make_trainer, {"lr": (0.1, 0.2)}, trials=2, epochs=1, ckpt_dir="k2")
    assert not Path("k2").exists()


@pytest.mark.parametrize("space, options, message", [
    ({}, {}, "space is empty"), ({"lr": (0.1, 0.2)}, {}, "is the range"), ({"lr": 0.1}, {}, "must be a list of choices"),
    ({"lr": (0.2, 0.1)}, {"trials": 2}, "needs low < high"), ({"lr": ("log", 0, 0.1)}, {"trials": 2}, "0 < low"),
    ({"lr": []}, {}, "must be a list of choices"), (lambda trial: {}, {}, "say with trials="),
    ({"lr": [0.1]}, {"trials": 0}, "trials must be"), ({"lr": [0.1]}, {"mode": "up"}, "mode must be"),
    ({"lr": [0.1]}, {"metric": "auroc"}, "'auroc', and the trials gave")],
    ids=lambda value: "function" if callable(value) else str(value))
def test_mistakes_are_refused_in_words(space, options, message):
    with pytest.raises(ValueError, match=message):
        search(make_trainer, space, epochs=1, ckpt_dir="k", **options)


def test_a_trainer_that_does_not_say_what_decides_is_asked():
    def make(params):
        trainer = make_trainer(params)
        trainer.key_metric = None
        return trainer

    with pytest.raises(ValueError, match="which metric or loss decides"):
        search(make, {"lr": [0.1]}, epochs=1, ckpt_dir="k")
    found = search(make, {"lr": [0.1]}, epochs=1, metric="acc", ckpt_dir="k")
    assert found.mode == "max"


# --- with optuna ------------------------------------------------------------------------------------------------------


class Scored(Tiny):
    """Trains next to nothing, and is as good as its setting says."""

    def __init__(self, x, bend=0.0):
        super().__init__(nn.Linear(6, 3), train_loader=DataLoader(DATA, 53), key_metric="quality_error", writer=None)
        self.x, self.bend = x, bend

    def metric(self, pred, y):
        return {"quality_error": (self.x - 2.0) ** 2 + 1 / max(self.epoch, 1)}


@pytest.mark.slow
def test_optuna_chooses_the_trials_and_the_database_is_in_the_folder(capsys):
    optuna = pytest.importorskip("optuna")
    found = search(lambda params: Scored(params["x"]), {"x": (-10.0, 10.0)}, 6, 1, ckpt_dir="check_point/parabola")
    assert found.best_value == min(row["quality_error"] for row in found.rows) == pytest.approx(
        (found.best_params["x"] - 2) ** 2 + 1)
    study = optuna.load_study(study_name="search", storage="sqlite:///check_point/parabola/optuna.db")
    assert len(study.trials) == 6 and (study.best_value, study.best_params) == (found.best_value, found.best_params)
    options = read_json(Path("check_point/parabola", found.best_trial, "config.json"))[-1]["options"]
    assert options == {**found.best_params, "seed": 0}
    said = capsys.readouterr()
    assert "A new study created" not in said.err and "best: trial" in said.out


@pytest.mark.slow
def test_it_goes_on_with_the_trial_that_was_cut_short_and_a_larger_number_adds_trials(capsys):
    optuna = pytest.importorskip("optuna")
    space = {"lr": ("log", 1e-3, 0.5), "width": (2, 9), "batch_size": [10, 20]}
    whole = search(make_trainer, space, 3, 3, prune=False, ckpt_dir="whole")
    with pytest.raises(KeyboardInterrupt):
        search(interrupted, space, 3, 3, prune=False, ckpt_dir="parts")
    states = [trial.state.name for trial in optuna.load_study(study_name="search", storage="sqlite:///parts/optuna.db").trials]
    assert states == ["COMPLETE", "COMPLETE", "RUNNING"]
    capsys.readouterr()
    continued = search(make_trainer, space, 3, 3, prune=False, ckpt_dir="parts")
    said = capsys.readouterr().out
    assert "trial2 was cut short and goes on" in said and "load model state from" in said
    assert without_seconds(continued.rows) == without_seconds(whole.rows)
    more = search(make_trainer, space, 5, 3, prune=False, ckpt_dir="parts")
    assert without_seconds(more.rows[:3]) == without_seconds(whole.rows) and len(more.rows) == 5
    assert len({row["lr"] for row in more.rows}) == 5
    with pytest.raises(ValueError, match="was begun with other settings"):
        search(make_trainer, {**space, "width": (2, 5)}, 6, 3, ckpt_dir="parts")


@pytest.mark.slow
def test_trials_that_do_worse_are_pruned_and_their_best_value_is_shown():
    optuna = pytest.importorskip("optuna")
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=2)
    order = iter([2.0, 2.1, 9.0, 2.05])

    def space(trial):
        return {"x": trial.suggest_float("x", -20, 20), "fixed": "yes"}

    class InOrder(optuna.samplers.RandomSampler):
        def sample_independent(self, study, trial, name, distribution):
            return next(order)

    found = search(lambda params: Scored(params["x"]), space, 4, 5, metric="quality_error", mode="min", pruner=pruner,
                   sampler=InOrder(), ckpt_dir="k")
    assert [row["state"] for row in found.rows] == ["done", "done", "pruned", "done"]
    assert [row["epochs"] for row in found.rows] == [5, 5, 2, 5] and found.rows[0]["fixed"] == "yes"
    study = optuna.load_study(study_name="search", storage="sqlite:///k/optuna.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    assert study.trials[0].intermediate_values == pytest.approx({epoch: 1 / epoch for epoch in range(1, 6)})
    assert search(lambda params: Scored(params["x"]), space, 4, 5, metric="quality_error", mode="min",
                  ckpt_dir="k").rows == found.rows


@pytest.mark.slow
def test_the_hparams_tab_has_every_trial_with_its_settings_and_best_values():
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    def make(params):
        trainer = make_trainer(params)
        trainer.writer = "auto"
        return trainer

    search(make, {"lr": [0.01, 0.1], "width": [4, 8]}, epochs=1, ckpt_dir="check_point/grid")
    events = EventMultiplexer().AddRunsFromDirectory("runs")
    events.Reload()
    shown = {}
    for run, contents in events.PluginRunToTagToContent("hparams").items():
        for content in contents.values():
            data = HParamsPluginData.FromString(content)
            if data.HasField("session_start_info"):
                values = data.session_start_info.hparams
                shown[run] = values["lr"].number_value, values["width"].number_value
    assert shown == {"grid/trial0": (0.01, 4), "grid/trial1": (0.01, 8), "grid/trial2": (0.1, 4), "grid/trial3": (0.1, 8)}
    assert all("hparam/best_acc" in events.GetAccumulator(run).Tags()["tensors"] for run in shown)


@pytest.mark.slow
def test_optuna_s_plots_are_drawn_into_the_folder_on_request(capsys):
    pytest.importorskip("optuna")
    import matplotlib.pyplot as plt
    found = search(make_trainer, {"lr": ("log", 1e-3, 0.5), "width": (2, 9)}, 4, 2, ckpt_dir="k")
    files = found.plots()
    assert {file.name for file in files} >= {"optimization_history.png", "slice.png", "parallel_coordinate.png"}
    assert all(file.stat().st_size > 5000 and file.parent == Path("k") for file in files)
    before = plt.get_backend()
    plt.switch_backend("svg")  # which has no canvas as optuna wants it for one of them
    try:
        assert len(found.plots()) == len(files) - 1
    finally:
        plt.switch_backend(before)
    assert "param_importances is not drawn: optuna cannot draw it with matplotlib's backend svg." in capsys.readouterr().out
