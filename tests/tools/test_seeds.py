"""Runs with several seeds: against single trainings, the interval against scipy, and going on after an interrupt."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from test_kfold import DATA
from tiny import Tiny
from torch import nn
from torch.utils.data import DataLoader

from template.data.seeding import seed_everything
from template.hooks import Callback
from template.tools.seeds import seeds, t_quantile


def make_trainer(seed=None):
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3))
    return Tiny(model, train_loader=DataLoader(DATA, 10, shuffle=True), save_per_steps=4, writer=None)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 30, 99, 1000])
def test_the_quantile_of_t_is_that_of_scipy(degrees):
    for p in (0.01, 0.3, 0.5, 0.7, 0.9, 0.95, 0.975, 0.995, 0.9995):
        assert t_quantile(p, degrees) == pytest.approx(stats.t.ppf(p, degrees), rel=1e-10, abs=1e-12)


@pytest.mark.slow
def test_each_run_is_the_one_that_its_seed_gives_alone_and_mean_spread_and_interval_are_those_of_scipy(capsys):
    found = seeds(make_trainer, 3, 2, ckpt_dir="check_point/three")
    values = []
    for seed in range(3):
        seed_everything(seed)
        trainer = make_trainer()
        trainer.seed, trainer.ckpt_dir = seed, f"alone{seed}"
        trainer.check_init(use_tb=False)
        trainer.fit(2)
        values.append(trainer.eval_result["tol_loss"])
    assert [row["tol_loss"] for row in found.rows] == values and len(set(values)) == 3
    assert found.mean["tol_loss"] == pytest.approx(np.mean(values)) and found.std["tol_loss"] == pytest.approx(
        np.std(values, ddof=1))
    theirs = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert found.interval["tol_loss"] == pytest.approx(theirs)
    assert found.lines["tol_loss"] in capsys.readouterr().out
    assert found.lines["tol_loss"].startswith(f"tol_loss {np.mean(values):.3f}"[:12])
    assert "(mean ± standard deviation, 3 seeds), 95% confidence interval of the mean" in found.lines["tol_loss"]


@pytest.mark.slow
def test_interrupted_it_goes_on_to_the_same_numbers_and_more_seeds_are_added(capsys):
    class Interrupt(Callback):
        def on_after_step(self, model):
            if model.ckpt_dir.endswith("seed1") and model.global_step == 8:
                raise KeyboardInterrupt

    def interrupted(seed):
        trainer = make_trainer()
        trainer.callbacks = [Interrupt()]
        return trainer

    whole = seeds(make_trainer, 3, 3, ckpt_dir="whole")
    with pytest.raises(KeyboardInterrupt):
        seeds(interrupted, 2, 3, ckpt_dir="parts")
    capsys.readouterr()
    continued = seeds(make_trainer, 3, 3, ckpt_dir="parts")
    assert "seed0: done before" in capsys.readouterr().out
    for ours, theirs in zip(continued.rows, whole.rows):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_runs_that_count_updates_end_with_them_and_go_on_after_an_interrupt():
    whole = seeds(make_trainer, 2, updates=9, ckpt_dir="check_point/whole")
    seed_everything(1)
    trainer = make_trainer()
    trainer.seed, trainer.ckpt_dir = 1, "alone"
    trainer.check_init(use_tb=False)
    trainer.fit(updates=9)
    assert whole.rows[1]["tol_loss"] == trainer.eval_result["tol_loss"]
    assert [row["epochs"] for row in whole.rows] == [1, 1]

    class Interrupt(Callback):
        def on_after_step(self, model):
            if model.global_step == 5 and model.seed == 1:
                raise KeyboardInterrupt

    def interrupted(seed):
        trainer = make_trainer()
        trainer.callbacks = [Interrupt()]
        return trainer

    with pytest.raises(KeyboardInterrupt):
        seeds(interrupted, 2, updates=9, ckpt_dir="check_point/parts")
    found = seeds(make_trainer, 2, updates=9, ckpt_dir="check_point/parts")
    assert found.mean == whole.mean and found.std == whole.std
    with pytest.raises(ValueError, match="updates was 9 and is 12 now"):
        seeds(make_trainer, 2, updates=12, ckpt_dir="check_point/parts")
    with pytest.raises(ValueError, match="Give the length of a run once: epochs=2 or updates=9"):
        seeds(make_trainer, 2, 2, updates=9, ckpt_dir="check_point/other")


def test_weights_that_are_the_same_for_two_seeds_are_told_of():
    def seeds_itself(seed):
        seed_everything(0)
        return make_trainer()

    with pytest.warns(UserWarning, match="same first weights for two seeds"):
        seeds(seeds_itself, 2, 1, ckpt_dir="k")


def test_the_seed_reaches_a_function_that_wants_it_and_copies_of_pretrained_models_are_fine():
    pretrained, asked = nn.Linear(6, 3), []

    def make(seed):
        asked.append(seed)
        trainer = make_trainer()
        trainer.model_list = [nn.Sequential(copy.deepcopy(pretrained), nn.Linear(3, 3))]
        trainer.optimizer_list = [torch.optim.SGD(trainer.model_list[0].parameters(), 0.1)]
        trainer.total_epochs = 1
        return trainer

    found = seeds(make, (7, 3), ckpt_dir="k")
    assert asked == [7, 3] and [row["seed"] for row in found.rows] == [7, 3]


def test_an_error_in_make_trainer_leaves_the_folder_free_for_the_next_call():
    with pytest.raises(ZeroDivisionError):
        seeds(lambda seed: 1 / 0, 2, 1, ckpt_dir="k")
    seeds(make_trainer, 2, 1, ckpt_dir="k")


@pytest.mark.parametrize("options, message", [
    ({"n": 1}, "one run has no spread"), ({"n": (3, 3)}, "two different seeds"), ({"n": (-1, 2)}, "from 0 on"),
    ({"confidence": 95}, "between 0 and 1"), ({"epochs": 0}, "at least 1, got 0")])
def test_mistakes_are_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        seeds(make_trainer, **{"epochs": 1, "ckpt_dir": "k", **options})
