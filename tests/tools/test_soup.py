"""Soups against means by hand, and the choice of their parts against all there are."""

import itertools

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model, tiny_trainer, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template.tools.soup import soup


@pytest.fixture
def files(own_folder):
    """Three checkpoints of one run, one of 2021 and best.pth, and what they hold."""
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.fit(3)
    paths = [f"run/epoch{n}.pth" for n in (1, 2, 3)]
    old = torch.load(paths[2])
    old = {f"module.{key}": value + 0.01 for key, value in old["model0"].items()}
    torch.save({"model": old, "epoch": 3}, "run/2021.pth")
    return paths


def fresh(**attributes):
    return tiny_trainer(ckpt_dir="soup", key_metric="tol_loss", **attributes)


def mean_of(states, shares):
    return {key: sum(share * state[key].double() for share, state in zip(shares, states)).to(states[0][key].dtype)
            for key in states[0]}


def loss_of(state):
    model = tiny_model()
    model.load_state_dict(state)
    x, y = tiny_data(23, seed=5)
    with torch.no_grad():
        return nn.functional.cross_entropy(model.eval()(x), y).item()


def states_of(files):
    return [torch.load(file)["model0"] for file in files]


def test_the_uniform_soup_is_the_mean_and_is_scored_by_the_key_metric(files, capsys):
    trainer, states = fresh(), states_of(files)
    before = weights(trainer)
    found = soup(trainer, files)
    assert list(found.scores.values()) == pytest.approx([loss_of(state) for state in states], rel=1e-5)
    assert found.score == pytest.approx(loss_of(mean_of(states, [1 / 3] * 3)), rel=1e-5)
    assert found.key == "tol_loss" and found.weights == pytest.approx(dict.fromkeys(found.scores, 1 / 3))
    assert found.is_better == (found.score < min(found.scores.values()))
    assert torch.equal(weights(trainer), before) and trainer.best_metric == {} and trainer.key_metric == "tol_loss"
    printed = capsys.readouterr().out
    assert "uniform soup" in printed and "Nothing was changed" in printed


def test_use_puts_the_soup_into_the_models_and_touches_no_file(files):
    trainer, states = fresh(), states_of(files)
    soup(trainer, files, use=True)
    expected = mean_of(states, [1 / 3] * 3)
    assert all(torch.equal(value, expected[key]) for key, value in trainer.model_list[0].state_dict().items())
    trainer.eval()
    assert trainer.best_metric == {} and not trainer.path_of("last.pth").exists()


def test_the_greedy_soup_is_no_worse_than_the_best_file_and_each_part_of_it_helped(files):
    found = soup(fresh(), files, how="greedy")
    states, names = states_of(files), list(found.scores)
    order = sorted(range(3), key=list(found.scores.values()).__getitem__)
    chosen, best = [order[0]], loss_of(states[order[0]])
    for index in order[1:]:
        tried = [*chosen, index]
        loss = loss_of(mean_of([states[i] for i in tried], [1 / len(tried)] * len(tried)))
        if loss <= best:
            chosen, best = tried, loss
    assert set(found.weights) == {names[i] for i in chosen} and found.score == pytest.approx(best, rel=1e-5)
    assert found.score <= min(found.scores.values())


def test_the_direction_of_the_metric_is_followed(files):
    found = soup(tiny_trainer(ckpt_dir="soup", key_metric="acc"), files, how="greedy")
    assert found.score >= max(found.scores.values())


def test_learned_shares_come_near_the_best_ones_there_are(files):
    found = soup(fresh(), files, how="learned", trials=40)
    states = states_of(files)
    grid = [(a / 10, b / 10, 1 - a / 10 - b / 10) for a, b in itertools.product(range(11), repeat=2) if a + b <= 10]
    best = min(loss_of(mean_of(states, shares)) for shares in grid)
    assert found.score <= min(*found.scores.values(), soup(fresh(), files).score) and found.score < best * 1.03
    assert sum(found.weights.values()) == pytest.approx(1) and min(found.weights.values()) >= 0


def test_files_of_2021_best_pth_and_names_within_the_run_are_taken(files):
    trainer = tiny_trainer(ckpt_dir="again", key_metric="tol_loss")
    trainer.fit(2)
    found = soup(trainer, ["best", "epoch1.pth", "run/2021.pth"])
    assert list(found.scores) == ["best.pth", "epoch1.pth", "2021.pth"] and found.score == found.result["tol_loss"]


class Normalised(Tiny):
    def __init__(self, **attributes):
        torch.manual_seed(4)
        model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        super().__init__(model, key_metric="tol_loss", **attributes)
        self.train_loader = DataLoader(TensorDataset(*tiny_data(50)), 10, shuffle=True)


@pytest.mark.parametrize("batches", [None, 100, 0])
def test_statistics_of_batch_norm_are_taken_anew_as_update_bn_does(batches):
    trainer = Normalised(ckpt_dir="normalised")
    trainer.check_init(use_tb=False)
    trainer.fit(3)
    found = soup(trainer, ["epoch1.pth", "epoch3.pth"], use=True, batchnorm_batches=batches)
    states = states_of(["normalised/epoch1.pth", "normalised/epoch3.pth"])
    model = trainer.model_list[0]
    expected = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    expected.load_state_dict(mean_of(states, [0.5, 0.5]))
    if batches != 0:
        torch.optim.swa_utils.update_bn(DataLoader(TensorDataset(*tiny_data(50)), 50), expected)
        # the mean of five batches' means is that of the whole; of variances it is not
        assert torch.allclose(model[1].running_mean, expected[1].running_mean, atol=1e-5)
    else:
        assert torch.equal(model[1].running_mean, expected[1].running_mean)
    assert torch.equal(model[0].weight, expected[0].weight) and model[1].momentum == 0.1
    assert any("BatchNorm: 1 layers" in note for note in found.notes)


def test_two_models_from_different_seeds_are_called_what_they_are(files, capsys):
    other = tiny_trainer(model=tiny_model(seed=99), ckpt_dir="stranger")
    other.fit(3)
    states = states_of(["run/epoch3.pth", "stranger/epoch3.pth"])
    states[1] = {key: -value for key, value in states[1].items()}  # certainly far apart
    torch.save({"model0": states[1]}, "far.pth")
    found = soup(fresh(), ["run/epoch3.pth", "stranger/epoch3.pth"])
    assert found.is_better == (found.score < min(found.scores.values()))
    if found.score > max(found.scores.values()):
        assert "do not come from one starting point" in capsys.readouterr().out


class Weighted(nn.Module):
    """A criterion with a weight of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((), 2.0))

    def forward(self, pred, y):
        return nn.functional.cross_entropy(pred * self.scale, y)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_criterion_is_mixed_where_all_files_hold_it_and_else_stays(files, order):
    criterion = Weighted()
    state = torch.load(files[0])
    torch.save({**state, "criterion": {"scale": torch.tensor(3.0)}}, "with3.pth")
    torch.save({**state, "criterion": {"scale": torch.tensor(5.0)}}, "with5.pth")
    trainer = Tiny(ckpt_dir="soup", key_metric="tol_loss", criterion=criterion)
    trainer.optimizer_list = [torch.optim.SGD([*trainer.model_list[0].parameters(), criterion.scale], 0.1)]
    trainer.check_init(use_tb=False)
    soup(trainer, [["with3.pth", "with5.pth"][i] for i in order], use=True)
    assert criterion.scale.item() == 4.0
    with torch.no_grad():
        criterion.scale.fill_(2.0)
    soup(trainer, [["with3.pth", files[1]][i] for i in order], use=True)
    assert criterion.scale.item() == 2.0


def test_mistakes_are_refused_in_words_and_nothing_is_changed(files):
    trainer = fresh()
    before = weights(trainer)
    for arguments, error, message in [
        ((files[:1],), ValueError, "two or more different files"),
        (([files[0], files[0]],), ValueError, "two or more different files"),
        ((files, "best"), ValueError, r"how must be one of \['uniform', 'greedy', 'learned'\], got 'best'"),
        (([*files, "gone.pth"],), FileNotFoundError, "gone.pth"),
    ]:
        with pytest.raises(error, match=message):
            soup(trainer, *arguments)
    torch.save({"model0": {"0.weight": torch.zeros(1)}}, "other.pth")
    with pytest.raises(ValueError, match="weights do not fit"):
        soup(trainer, [files[0], "other.pth"])
    assert torch.equal(weights(trainer), before)
    with pytest.raises(ValueError, match="eval_loader"):
        soup(tiny_trainer(eval_loader=None, ckpt_dir="without"), files)
