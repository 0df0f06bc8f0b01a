"""What templates before this one called differently: subclasses and files of spring 2021 and of 2019."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_data, tiny_model, tiny_trainer, weights
from torch import nn

from template.template import TemplateModel


def batches(num_samples=53, size=10, seed=0):
    x, y = tiny_data(num_samples, seed=seed)
    return list(zip(x.split(size), y.split(size)))


class SpringOf2021(TemplateModel):
    """Before ``model_list``: one model, one optimizer, and the metric is a function that is set."""

    def __init__(self):
        super(SpringOf2021, self).__init__()  # noqa: UP008
        self.step = 0
        self.epoch = 0
        self.best_acc = 0.0
        self.model = tiny_model(dropout=0.0)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.criterion = nn.CrossEntropyLoss()
        self.metric = lambda pred, y: {"acc": (pred.argmax(1) == y).float().mean()}
        self.train_loader = batches()
        self.test_loader = batches(23, seed=5)


def test_one_model_and_one_optimizer_are_taken_for_the_lists_and_train_as_by_hand(capsys):
    trainer = SpringOf2021()
    trainer.check_init()
    assert capsys.readouterr().out.startswith(
        "This class sets one model and one optimizer, as it was before June 2021. Taken as model_list = [self.model] and "
        "optimizer_list = [self.optimizer].\n")
    trainer.train_loop()
    score = trainer.eval()
    model = tiny_model(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert torch.equal(weights(trainer), torch.cat([p.detach().double().flatten() for p in model.parameters()]))
    x, y = tiny_data(23, seed=5)
    assert score == pytest.approx((model.eval()(x).argmax(1) == y).double().mean().item())


def test_a_list_in_the_place_of_the_one_optimizer_is_taken_too():
    trainer = SpringOf2021()
    first, last = trainer.model[0], trainer.model[-1]
    trainer.optimizer = [torch.optim.SGD(first.parameters(), 0.1), torch.optim.SGD(last.parameters(), 0.1)]
    trainer.metric = None  # as the first template wrote it where nothing was meant
    trainer.check_init()
    assert trainer.optimizer_list == trainer.optimizer
    assert list(trainer.metric(torch.eye(4), torch.arange(4))) == ["acc"]


def test_lists_that_are_set_are_not_replaced_by_the_parts_that_a_class_also_keeps(capsys):
    class Whole(SpringOf2021):
        def __init__(self):
            super().__init__()
            whole = nn.Sequential(self.model)
            self.model_list, self.optimizer_list = [whole], [torch.optim.SGD(whole.parameters(), 0.1)]

    trainer = Whole()
    lists = trainer.model_list, trainer.optimizer_list
    trainer.check_init()
    assert (trainer.model_list, trainer.optimizer_list) == lists
    assert "June 2021" not in capsys.readouterr().out


@pytest.mark.parametrize("best, expected", [
    ({"best_acc": 0.75}, {"acc": 0.75}), ({"best_error": torch.tensor(0.25)}, {"error": 0.25}), ({}, {}),
])
@pytest.mark.parametrize("steps", ["global_step", "step"])
def test_a_file_with_one_model_and_one_optimizer_is_continued(best, expected, steps):
    model = tiny_model(seed=8)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), steps: 24, "epoch": 4}
    torch.save(state | best, "old.pth.tar")
    trainer = tiny_trainer()
    trainer.load_state("old.pth.tar")
    assert (trainer.global_step, trainer.epochs_done, trainer.best_metric) == (24, 4, expected)
    for mine, theirs in zip(trainer.model_list[0].parameters(), model.parameters()):
        assert torch.equal(mine, theirs)
        momenta = trainer.optimizer_list[0].state[mine], optimizer.state[theirs]
        assert torch.equal(*(state["momentum_buffer"] for state in momenta))
    assert [epoch for epoch in trainer.epochs(5) if trainer.train_loop()] == [5]


def test_the_weights_alone_of_such_a_file_load_too(capsys):
    model = tiny_model(seed=8)
    torch.save({"model": model.state_dict(), "epoch": 4, "best_acc": 0.5}, "best.pth")
    trainer = tiny_trainer()
    trainer.load_state("best.pth")
    assert torch.equal(weights(trainer), torch.cat([p.detach().double().flatten() for p in model.parameters()]))
    assert "holds weights only" in capsys.readouterr().out


@pytest.mark.parametrize("old, new", [("train_loss", "loss_per_batch"), ("eval_error", "eval_scores_per_batch")])
def test_a_method_of_2019_is_not_passed_over_in_silence(old, new):
    refused = type("T", (SpringOf2021,), {old: lambda self, batch: 0})
    with pytest.raises(TypeError, match=rf"T\.{old}\(\) would never be called.*called {new}.*docs/from-2021\.md"):
        refused().check_init()
    helper = type("T", (SpringOf2021,), {
        old: lambda self, batch: 0, "loss_per_batch": lambda self, batch: self.model(batch[0]).sum(),
        "eval_scores_per_batch": lambda self, batch: {"acc": 1.0}})
    helper().check_init()  # its own use of the name


def test_the_losses_of_an_evaluation_too_come_from_train_loss_per_batch():
    class First(SpringOf2021):
        def train_loss_per_batch(self, batch):
            return {"tol_loss": self.model(batch[0]).square().mean()}

    trainer = First()
    trainer.check_init()
    trainer.eval()
    with torch.no_grad():
        expected = trainer.model.eval()(tiny_data(23, seed=5)[0]).square().mean().item()
    assert trainer.eval_result["tol_loss"] == pytest.approx(expected)


# --- between super().__init__() and check_init() ----------------------------------------------------------------------


class Writes(SpringOf2021):
    def __init__(self):
        super().__init__()
        self.writer.add_text("config", "lr 0.1")
        self.writer.add_scalar("before", 0.5, 0)
        self.kept = self.writer


def test_what_is_written_before_check_init_is_in_the_folder_of_the_run():
    trainer = Writes()
    trainer.check_init()
    trainer.train_loop()
    trainer.kept.add_scalar("later", 0.25, 3)  # by the name that was kept
    trainer.close()
    events = EventAccumulator(f"runs/{trainer.run_name}")
    events.Reload()
    assert [event.value for event in events.Scalars("before")] == [0.5]
    assert [(event.step, event.value) for event in events.Scalars("later")] == [(3, 0.25)]
    assert "config/text_summary" in events.Tags()["tensors"]


def test_what_is_written_before_check_init_goes_into_the_run_that_is_continued():
    first = Writes()
    first.check_init()
    first.train_loop()
    first.eval()
    first.close()
    second = Writes()
    second.check_init()
    second.load_state("auto")
    second.train_loop()
    second.close()
    assert [path.name for path in Path("runs").iterdir()] == [first.run_name]


def test_without_tensorboard_what_is_written_before_check_init_goes_nowhere():
    trainer = Writes()
    trainer.check_init(use_tb=False)
    trainer.kept.add_scalar("later", 0.25, 3)
    trainer.train_loop()
    assert trainer.writer is None and not Path("runs").exists()


# --- arguments and paths ----------------------------------------------------------------------------------------------


def test_log_path_is_seen_from_where_the_script_runs_and_stays_there(tmp_path):
    trainer = SpringOf2021()
    trainer.check_init(log_path="./logs.txt", clean_log=True)
    trainer.train_loop()
    trainer.eval()
    trainer.close()
    again = SpringOf2021()
    again.check_init(log_path="./logs.txt")
    again.load_state("auto")
    again.close()
    log = (tmp_path / "logs.txt").read_text()
    assert log.count("=== ") == 2 and "epoch   1 train" in log
    assert not (Path(trainer.ckpt_dir) / "log.txt").exists()


def test_update_lr_scheduler_takes_a_step_and_counts_one_epoch_once():
    trainer = SpringOf2021()
    trainer.lr_scheduler_type = "step"
    trainer.lr_scheduler_args = {"step_size": 1, "gamma": 0.5}
    trainer.check_init()
    trainer.train_loop()
    trainer.update_lr_scheduler(step=trainer.global_step)
    trainer.eval()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_a_path_without_the_runs_folder_is_answered_with_where_the_newest_such_file_is():
    trainer = SpringOf2021()
    trainer.check_init()
    trainer.train_loop()
    trainer.eval()
    trainer.close()
    later = SpringOf2021()
    later.check_init()
    newest = Path(trainer.ckpt_dir) / "epoch1.pth"
    with pytest.raises(FileNotFoundError, match=rf"No checkpoint at check_point/epoch1\.pth\. The newest .* is {newest}\. "):
        later.load_state("./check_point/epoch1.pth")
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at epoch9\.pth\. Each run has a folder"):
        later.load_state("epoch9.pth")


def test_the_module_holds_the_warm_up_as_that_of_2021_did():
    from template import WarmUpLR, template
    assert template.WarmUpLR is WarmUpLR
