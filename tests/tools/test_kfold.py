"""Folds against scikit-learn's properties, out-of-fold predictions, and a cross-validation that was killed and goes on."""

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold
from tiny import PATH, Tiny, run_python, tiny_data
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from template import EarlyStopping
from template.data.in_memory import TensorLoader
from template.run.trials import read_json
from template.tools.kfold import fold_numbers, in_order, kfold

JOB = """
import os, sys
from template.hooks import Callback
from test_kfold import DATA, make_trainer
from template.tools.kfold import kfold

class Kill(Callback):
    def on_after_step(self, model):
        if model.ckpt_dir.endswith("fold3") and model.global_step == 7:
            model.wait_for_saves()
            os._exit(9)

def make(train_set, eval_set):
    trainer = make_trainer(train_set, eval_set)
    trainer.callbacks = [Kill()]
    return trainer

kfold(make, DATA, 3, 2, ckpt_dir="killed")
"""
DATA = TensorDataset(*tiny_data(53))


def make_trainer(train_set, eval_set, **attributes):
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3))
    return Tiny(model, train_loader=DataLoader(train_set, 10, shuffle=True), eval_loader=DataLoader(eval_set, 10),
                **{"save_per_steps": 3, "writer": None, **attributes})


# --- the folds --------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=8, max_size=80), st.integers(2, 5), st.integers(0, 99))
def test_every_sample_is_in_one_fold_and_sizes_and_shares_of_classes_differ_by_one_at_most(labels, k, seed):
    labels = np.array([*labels, *([0, 1, 2, 3] * k)])
    folds = fold_numbers(len(labels), k, labels, seed=seed).numpy()
    assert set(folds) == set(range(1, k + 1))
    theirs = [np.bincount(labels[test], minlength=4) for _, test in StratifiedKFold(k).split(labels, labels)]
    ours = [np.bincount(labels[folds == number], minlength=4) for number in range(1, k + 1)]
    for counts in (ours, theirs):
        assert (np.ptp(np.stack(counts), axis=0) <= 1).all()
    assert np.ptp(np.bincount(folds)[1:]) <= 1
    plain = fold_numbers(len(labels), k, seed=seed).numpy()
    assert np.ptp(np.bincount(plain)[1:]) <= 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=5, max_size=30), st.integers(2, 5), st.integers(0, 99))
def test_groups_stay_whole_and_folds_are_as_even_as_those_of_scikit_learn(sizes, k, seed):
    groups = np.repeat(np.arange(len(sizes)), sizes)[np.random.default_rng(seed).permutation(sum(sizes))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they differ in size
        folds = fold_numbers(len(groups), k, groups=groups, seed=seed).numpy()
    assert all(len(set(folds[groups == group])) == 1 for group in groups)
    theirs = [len(test) for _, test in GroupKFold(k).split(groups, groups=groups)]
    assert max(np.bincount(folds)[1:]) == max(theirs) and min(np.bincount(folds)[1:]) == min(theirs)


def test_groups_and_classes_together_are_as_even_as_those_of_scikit_learn():
    worse = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        groups = generator.integers(0, 40, 400)
        labels = (groups % 4 == 0).astype(int) if seed % 2 else generator.integers(0, 3, 400)
        folds = fold_numbers(400, 5, labels, groups, seed).numpy()
        assert all(len(set(folds[groups == group])) == 1 for group in range(40) if (groups == group).any())
        shares = [np.mean(labels[folds == number] == 1) for number in range(1, 6)]
        theirs = [np.mean(labels[test] == 1) for _, test in StratifiedGroupKFold(5).split(labels, labels, groups)]
        worse += np.std(shares) > np.std(theirs) + 0.02
    assert worse <= 2


def test_the_seed_decides_the_folds_and_the_random_numbers_of_others_stay():
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert torch.equal(fold_numbers(50, 5, seed=1), fold_numbers(50, 5, seed=1))
    assert not torch.equal(fold_numbers(50, 5, seed=1), fold_numbers(50, 5, seed=2))
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


# --- a cross-validation -----------------------------------------------------------------------------------------------


def test_predictions_stand_in_the_dataset_s_order_and_come_from_the_fold_that_did_not_train_on_them(capsys):
    found = kfold(make_trainer, DATA, 4, 2, stratify=True, ckpt_dir="check_point/k4")
    assert found.predictions.shape == (53, 3) and found.folds.shape == (53,)
    for number in range(1, 5):
        mine = found.folds == number
        trainer = make_trainer(Subset(DATA, [0]), Subset(DATA, [0]))
        trainer.load_state(f"check_point/k4/fold{number}/last.pth", optim=False)
        trainer.model_list[0].eval()
        with torch.no_grad():
            expected = trainer.model_list[0](DATA.tensors[0][mine])
        assert torch.allclose(found.predictions[mine], expected, atol=1e-6)
        accuracy = (expected.argmax(1) == DATA.tensors[1][mine]).double().mean()
        assert found.rows[number - 1]["acc"] == pytest.approx(accuracy.item())
        assert found.rows[number - 1]["eval"] == mine.sum() and found.rows[number - 1]["train"] == (~mine).sum()
    accuracies = [row["acc"] for row in found.rows]
    assert found.mean["acc"] == pytest.approx(np.mean(accuracies)) and found.std["acc"] == pytest.approx(
        np.std(accuracies, ddof=1))
    shown = capsys.readouterr().out
    assert str(found) in shown and str(found).splitlines()[-2].startswith("mean")


@pytest.mark.slow
def test_killed_in_fold_3_it_reads_the_folds_before_and_goes_on_to_the_same_bits(tmp_path, capsys):
    whole = kfold(make_trainer, DATA, 3, 2, ckpt_dir="whole")
    job = tmp_path / "job.py"
    job.write_text(JOB)
    done = run_python(job, cwd=tmp_path, check=False, env={"PYTHONPATH": f"{PATH}:{PATH.split(':')[1]}/tools"})
    assert done.returncode == 9, done.stderr
    assert "result" in read_json(tmp_path / "killed/fold2/trial.json")
    assert "result" not in read_json(tmp_path / "killed/fold3/trial.json")
    untouched = (tmp_path / "killed/fold2/last.pth").stat().st_mtime_ns
    capsys.readouterr()
    continued = kfold(make_trainer, DATA, 3, 2, ckpt_dir="killed")
    said = capsys.readouterr().out
    assert "fold1: done before" in said and "fold2: done before" in said
    assert "epoch 1 done, 6 updates" in said and (tmp_path / "killed/fold2/last.pth").stat().st_mtime_ns == untouched
    assert torch.equal(continued.predictions, whole.predictions)
    assert continued.mean == whole.mean and continued.std == whole.std
    there = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert there == ["fold1", "fold2", "fold3", "kfold.json"]
    again = kfold(make_trainer, DATA, 3, 2, ckpt_dir="killed")
    assert again.mean == whole.mean and torch.equal(again.predictions, whole.predictions)


def test_each_fold_begins_with_weights_of_its_own_seed_and_the_caller_s_random_numbers_go_on():
    weights = []

    def make(train_set, eval_set):
        trainer = make_trainer(train_set, eval_set)
        weights.append(copy.deepcopy(trainer.model_list[0][0].weight.detach()))
        return trainer

    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    kfold(make, DATA, 2, 1, seed=7, predict=False, ckpt_dir="k")
    assert torch.equal(torch.rand(3), expected)
    for number in (1, 2):
        torch.manual_seed(7 + number)
        assert torch.equal(weights[number - 1], nn.Linear(6, 16).weight.detach())
        options = read_json(Path(f"k/fold{number}/config.json"))[-1]["options"]
        assert options == {"fold": number, "seed": 7 + number}


def test_best_weights_are_scored_and_predicted_with_when_asked_for():
    found = kfold(make_trainer, DATA, 2, 6, weights="best", ckpt_dir="k", arg={"lr": 0.1})
    for number, row in enumerate(found.rows, 1):
        note = read_json(Path(f"k/fold{number}/trial.json"))
        assert row["acc"] == note["best"]["acc"]
        mine = found.folds == number
        accuracy = (found.predictions[mine].argmax(1) == DATA.tensors[1][mine]).double().mean()
        assert accuracy.item() == pytest.approx(row["acc"])


@pytest.mark.slow
def test_results_and_predictions_are_of_the_same_weights_where_early_stopping_restored_the_best():
    def make(train_set, eval_set):
        return make_trainer(train_set, eval_set, callbacks=[EarlyStopping("loss", patience=9, restore_best=True)])

    found = kfold(make, DATA, 3, 8, ckpt_dir="k")
    losses = []
    for number, row in enumerate(found.rows, 1):
        mine = found.folds == number
        losses.append(nn.functional.cross_entropy(found.predictions[mine], DATA.tensors[1][mine]).item())
        best = read_json(Path(f"k/fold{number}/trial.json"))["best"]["tol_loss"]
        assert row["tol_loss"] == pytest.approx(losses[-1]) == best
    assert found.mean["tol_loss"] == pytest.approx(np.mean(losses))


class Doubled(Dataset):
    """A person's wrapper, which shows nothing of what it stands around."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        x, y = self.samples[index]
        return 2 * x, y


@pytest.mark.slow
def test_transforms_around_the_sets_and_tensors_made_of_them_are_fine_and_shuffled_evaluations_are_put_in_order():
    def make(train_set, eval_set):
        trainer = make_trainer(train_set, eval_set)
        trainer.train_loader = DataLoader(Doubled(train_set), 10, shuffle=True)
        trainer.eval_loader = DataLoader(eval_set, 10, shuffle=True)
        return trainer

    def in_memory(train_set, eval_set):
        trainer = make_trainer(train_set, eval_set)
        trainer.train_loader = TensorLoader.from_dataset(train_set, batch_size=10, shuffle=True)
        trainer.eval_loader = TensorLoader.from_dataset(eval_set, batch_size=10)
        return trainer

    for number, function in enumerate((make, in_memory)):
        found = kfold(function, DATA, 2, 5, ckpt_dir=f"k{number}")
        accuracy = (found.predictions.argmax(1) == DATA.tensors[1]).double().mean()
        sizes = [row["eval"] for row in found.rows]
        assert accuracy.item() == pytest.approx(np.average([row["acc"] for row in found.rows], weights=sizes))


def test_outputs_that_are_dicts_tuples_and_lists_are_put_in_order():
    indices = [torch.tensor([1, 3]), torch.tensor([0, 2])]
    parts = [{"a": torch.tensor([1, 3]), "b": (torch.tensor([10, 30]), ["one", "three"])},
             {"a": torch.tensor([0, 2]), "b": (torch.tensor([0, 20]), ["zero", "two"])}]
    found = in_order(parts, indices)
    assert found["a"].tolist() == [0, 1, 2, 3] and found["b"][0].tolist() == [0, 10, 20, 30]
    assert found["b"][1] == ["zero", "one", "two", "three"]


# --- mistakes ---------------------------------------------------------------------------------------------------------


def whole_in_training(train_set, eval_set):
    return make_trainer(DATA, eval_set)


def swapped(train_set, eval_set):
    return make_trainer(train_set, train_set)


def own_loaders(train_set, eval_set):
    return Tiny(nn.Linear(6, 3))


MODEL = nn.Linear(6, 3)


def one_model(train_set, eval_set):
    trainer = make_trainer(train_set, eval_set)
    trainer.model_list = [MODEL]
    trainer.optimizer_list = [torch.optim.SGD(MODEL.parameters(), 0.1)]
    return trainer


def set_up(train_set, eval_set):
    trainer = make_trainer(train_set, eval_set, ckpt_dir="own")
    trainer.check_init(use_tb=False)
    return trainer


def without_eval(train_set, eval_set):
    trainer = make_trainer(train_set, eval_set)
    trainer.eval_loader = None
    return trainer


@pytest.mark.parametrize("make, message", [
    (whole_in_training, "reads the whole dataset"), (swapped, "reads the other one"),
    (own_loaders, "nothing has looked at it"), (one_model, "new model each time"),
    (set_up, r"before check_init\(\)"), (without_eval, "without an eval_loader"),
    (lambda train_set, eval_set: None, "must return the trainer")], ids=lambda part: getattr(part, "__name__", ""))
def test_a_trainer_that_would_give_wrong_numbers_is_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        kfold(make, DATA, 2, 1, ckpt_dir="k")


@pytest.mark.parametrize("options, message", [
    ({"k": 1}, "from 2 to the number of samples"), ({"k": 54}, "from 2 to the number of samples, 53"),
    ({"stratify": [0, 1]}, "one entry for each of the 53"), ({"groups": torch.zeros(53)}, "1 groups for k=5"),
    ({"stratify": torch.rand(53)}, "For a regression"), ({"stratify": list(range(53))}, "For a regression"),
    ({"weights": "final"}, "weights must be"), ({"epochs": None}, "epochs must be a whole number"),
    ({"stratify": [str(i % 18) for i in range(53)], "k": 6}, "fewer than k=6")])
def test_sizes_and_labels_that_do_not_fit_are_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        kfold(make_trainer, DATA, **{"epochs": 1, "ckpt_dir": "k", **options})
    assert not Path("runs").exists()


def test_what_is_no_dataset_is_refused_in_words():
    class Endless(IterableDataset):
        def __iter__(self):
            yield from iter(int, 1)

    for data, message in ((DataLoader(DATA), "loader.dataset"), (Endless(), "length and samples by number"),
                          (tiny_data(), r"TensorDataset\(x, y\)"), ({"x": 1}, r"TensorDataset\(x, y\)")):
        with pytest.raises(TypeError, match=message):
            kfold(make_trainer, data, 2, 1)


def test_rare_classes_and_large_groups_are_told_of():
    with pytest.warns(UserWarning, match="some folds lack a class"):
        fold_numbers(20, 5, [0] * 18 + [1] * 2)
    with pytest.warns(UserWarning, match="the largest group has 15"):
        fold_numbers(20, 3, groups=[0] * 15 + [1, 1, 2, 2, 3])


def test_results_of_other_settings_are_never_mixed_in():
    kfold(make_trainer, DATA, 2, 1, ckpt_dir="k")
    with pytest.raises(ValueError, match="k was 2 and is 3 now"):
        kfold(make_trainer, DATA, 3, 1, ckpt_dir="k")
    with pytest.raises(ValueError, match="epochs was 1 and is 2 now"):
        kfold(make_trainer, DATA, 2, 2, ckpt_dir="k")

    def other_rate(train_set, eval_set):
        trainer = make_trainer(train_set, eval_set)
        trainer.optimizer_list = [torch.optim.SGD(trainer.model_list[0].parameters(), 0.2)]
        return trainer

    with pytest.raises(ValueError, match="optimizer 0 was"):
        kfold(other_rate, DATA, 2, 1, ckpt_dir="k")
    kfold(make_trainer, DATA, 2, 1, predict=False, ckpt_dir="without")
    with pytest.raises(ValueError, match="trained with predict=False"):
        kfold(make_trainer, DATA, 2, 1, ckpt_dir="without")
    trainer = make_trainer(DATA, Subset(DATA, [0, 1]), ckpt_dir="plain")
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    with pytest.raises(ValueError, match="holds a run itself"):
        kfold(make_trainer, DATA, 2, 1, ckpt_dir="plain")
