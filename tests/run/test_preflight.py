"""What shows on the first batch: a right program is not stopped, and a wrong one is told where, in few lines."""

import re
import sys
import traceback
import warnings
from pathlib import Path

import pytest
import torch
from test_checks import silence
from tiny import ROOT, Tiny, run_python, tiny_data, weights
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from template.metrics.accumulators import Stored
from template.metrics.best import find_name


def trainer_of(kind, **attributes):
    trainer = kind(**attributes)
    trainer.check_init(use_tb=False)
    return trainer


def plain_loop(trainer, epochs=2, evaluates=True):
    for _ in trainer.epochs(epochs):
        trainer.train_loop()
        if evaluates:
            trainer.eval()


# --- evaluations that may never come ----------------------------------------------------------------------------------


class Detector(Tiny):
    """Losses in train mode, predictions in eval mode: such a model has no loss to evaluate."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(6, 3)

        def forward(self, x, y=None):
            scores = self.layer(x)
            return {"class": F.cross_entropy(scores, y), "size": scores.square().mean()} if self.training else [scores]

    def __init__(self, **attributes):
        super().__init__(model=self.Net(), **attributes)

    def loss_per_batch(self, batch):
        losses = self.model_list[0](*batch)
        return {"tol_loss": losses["class"] + losses["size"], **losses}

    def eval_scores_per_batch(self, batch):  # which was demanded in 2021
        pass


def test_a_loader_that_is_never_evaluated_does_not_stop_the_training():
    expected = trainer_of(Detector, eval_loader=None)
    plain_loop(expected, evaluates=False)
    trainer = trainer_of(Detector)
    with pytest.warns(UserWarning, match=r"(?s)could not be scored in eval mode.*TypeError: list indices must be.*"
                                         r"test_preflight.py, line \d+, in loss_per_batch: return .*\"tol_loss\""):
        plain_loop(trainer, evaluates=False)
    assert torch.equal(weights(expected), weights(trainer))


def test_once_it_is_evaluated_the_same_error_stops_it_and_nothing_is_lost():
    trainer = trainer_of(Detector)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train_loop()
    with pytest.raises(TypeError, match="list indices"):
        trainer.eval()
    trained = weights(trainer)
    again = trainer_of(Detector)
    again.load_state(trainer.path_of("last.pth"))
    assert torch.equal(weights(again), trained)


def test_fit_which_will_evaluate_stops_before_the_first_update():
    trainer = trainer_of(Detector)
    with pytest.raises(TypeError, match="list indices"):
        trainer.fit(1)
    assert trainer.global_step == 0


@pytest.mark.parametrize("loss", [None, {}])
def test_no_loss_in_evaluations_is_no_error(loss):
    class NoLoss(Tiny):
        def loss_per_batch(self, batch):
            return super().loss_per_batch(batch) if self.model_list[0].training else loss

    with silence():
        trainer = trainer_of(NoLoss)
        trainer.fit(2)
    assert set(trainer.best_metric) == {"acc"} == set(trainer.eval_result)


def test_a_metric_that_needs_more_than_one_batch_is_not_refused_by_fit():
    def auroc(pred, y):
        if len(set(y.tolist())) < 2:
            raise ValueError("Only one class present in y_true.")
        return 0.75

    class OneClassFirst(Tiny):
        def metric(self, pred, y):
            stored = Stored(auroc)
            stored.update(pred, y)
            return {"auroc": stored}

    x, y = tiny_data(23, seed=5)
    y[:10] = 1
    trainer = trainer_of(OneClassFirst, eval_loader=DataLoader(TensorDataset(x, y), 10))
    with pytest.warns(UserWarning, match="(?s)computed from the first eval batch alone.*Only one class present"):
        trainer.fit(1)
    assert trainer.eval_result["auroc"] == 0.75 and trainer.key_metric == "auroc"


class Sometimes(Tiny):
    """The first eval batch has no "f1"."""

    def metric(self, pred, y):
        return {"f1": 0.5} if len(y) < 10 else {}


def test_a_key_metric_that_some_batches_lack_is_not_refused():
    trainer = trainer_of(Sometimes, key_metric="f1")
    with pytest.warns(UserWarning, match=r"first eval batch gave \['tol_loss'\]. key_metric 'f1' is not among them"):
        assert trainer.fit(1)["f1"] == 0.5


def test_a_key_metric_that_no_batch_gives_stops_the_evaluation():
    trainer = trainer_of(Tiny, key_metric="f1")
    with pytest.warns(UserWarning, match=r"gave \['tol_loss', 'acc'\]. key_metric 'f1' is not among them"):
        trainer.train_loop()
    with pytest.raises(ValueError, match=r"key_metric 'f1' was not returned.*'tol_loss', 'acc'.*Set self.key_metric"):
        trainer.eval()


# --- which number decides ---------------------------------------------------------------------------------------------


class Two(Tiny):
    def metric(self, pred, y):
        return {"acc": 0.5, "f1": 0.25}


def test_of_several_metrics_none_decides_but_the_loss_and_the_header_says_so(capsys):
    trainer = trainer_of(Two)
    trainer.fit(3)
    assert trainer.key_metric == "tol_loss"
    assert trainer.best_metric["tol_loss"] == min(row["eval/tol_loss"] for row in trainer.hooks.callbacks[2].rows)
    header = capsys.readouterr().out.partition("epoch ")[0]
    assert "best = lowest tol_loss, because there are several metrics: acc, f1. Set key_metric" in header


def test_without_a_loss_the_first_metric_decides():
    class NoLoss(Two):
        def loss_per_batch(self, batch):
            return super().loss_per_batch(batch) if self.model_list[0].training else None

    trainer = trainer_of(NoLoss)
    trainer.fit(1)
    assert trainer.key_metric == "acc"


def test_an_evaluation_that_gives_no_number_says_what_is_needed():
    class Nothing(Sometimes):
        def loss_per_batch(self, batch):
            return super().loss_per_batch(batch) if self.model_list[0].training else None

        def metric(self, pred, y):
            pass

    trainer = trainer_of(Nothing)
    with pytest.warns(UserWarning, match=r"gave \[\]. Without any loss or metric eval\(\) will raise an error"):
        trainer.train_loop()
    with pytest.raises(ValueError, match="must give a number.*gave nothing"):
        trainer.eval()


@pytest.mark.parametrize("asked, names, expected", [
    ("acc", ["tol_loss", "acc"], "acc"), ("val_acc", ["tol_loss", "acc"], "acc"), ("val_loss", ["tol_loss"], "tol_loss"),
    ("loss", ["tol_loss"], "tol_loss"), ("loss", ["loss", "tol_loss"], "loss"), ("eval/acc", ["acc"], "acc"),
    ("acc", ["a/acc", "b/acc"], "a/acc"), ("val_loss", ["test/tol_loss", "val/tol_loss"], "val/tol_loss"),
    ("val_acc", ["val_acc", "acc"], "val_acc"), ("train_loss", ["train/tol_loss"], "train/tol_loss"),
    ("train_loss", ["tol_loss"], None), ("f1", ["acc"], None), ("val_f1", ["acc"], None), ("accuracy", ["acc"], "acc"),
    ("top5", ["train/top5"], None), (None, ["acc"], None), ("validity", ["ity"], None),
])
def test_a_name_is_found_by_what_other_libraries_call_it(asked, names, expected):
    assert find_name(asked, names) == expected


def test_key_metric_may_be_called_as_elsewhere():
    trainer = trainer_of(Two, key_metric="val_f1")
    trainer.fit(1)
    assert trainer.key_metric == "f1"


@pytest.mark.parametrize("returned, what", [(torch.tensor(0.5), r"a tensor shaped \(\)"), (0.5, "a float"),
                                            ([0.5], "a list")])
def test_a_metric_without_a_name_is_asked_for_one(returned, what):
    class Bare(Tiny):
        def metric(self, pred, y):
            return returned

    with pytest.raises(TypeError, match=rf"eval_scores_per_batch\(\) return a dict .*got {what}. Write return"):
        trainer_of(Bare).fit(1)


# --- losses by other names --------------------------------------------------------------------------------------------


def test_loss_is_another_name_of_tol_loss_everywhere():
    class Named(Tiny):
        def loss_per_batch(self, batch):
            return {"aux": 2.0, "loss": super().loss_per_batch(batch)["tol_loss"]}

    expected, trainer = trainer_of(Tiny), None
    expected.fit(2)
    trainer = trainer_of(Named, key_metric="loss")
    trainer.fit(2)
    assert torch.equal(weights(expected), weights(trainer)) and trainer.key_metric == "tol_loss"
    assert trainer.eval_result["tol_loss"] == expected.eval_result["tol_loss"]


def test_what_a_model_of_a_library_returns_is_a_loss():
    class Output(dict):  # as transformers' ModelOutput
        loss = property(lambda self: self["loss"])

    class Named(Tiny):
        def loss_per_batch(self, batch):
            pred = self.inference(batch[0])
            return Output(loss=self.criterion(pred, batch[1]), logits=pred)

    expected = trainer_of(Tiny)
    expected.fit(1)
    trainer = trainer_of(Named)
    trainer.fit(1)
    assert torch.equal(weights(expected), weights(trainer))


class Gan(Tiny):
    def train_step(self, batch):
        loss = self.criterion(self.inference(batch[0]), batch[1])
        self.backward(loss)
        return {"generator": loss, "critic": 0.5 * loss.detach()}


def test_a_step_of_ones_own_names_its_losses_as_it_likes(capsys):
    expected = trainer_of(Tiny, eval_loader=None)
    expected.fit(2)
    trainer = trainer_of(Gan, eval_loader=None)
    result = trainer.fit(2)
    assert torch.equal(weights(expected), weights(trainer)) and result == {}
    line = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")][-1]
    assert "generator" in line and "critic" in line and "tol_loss" not in line
    assert "tol_loss" not in trainer.path_of("history.csv").read_text()


def test_a_step_of_ones_own_is_stopped_when_any_loss_is_not_finite():
    class Broken(Gan):
        def train_step(self, batch):
            return {**super().train_step(batch), "critic": float("inf")}

    with pytest.raises(FloatingPointError, match="The loss must stay finite; it is inf"):
        trainer_of(Broken, eval_loader=None).fit(1)


def test_a_plateau_on_a_loss_that_is_not_there_is_told():
    with pytest.warns(UserWarning, match=r"follows 'tol_loss' of train_step.*gave \['generator', 'critic'\]"):
        trainer_of(Gan, eval_loader=None, lr_scheduler_type="loss").fit(1)


# --- an error of a person's own code ----------------------------------------------------------------------------------

SCRIPT = """import warnings; warnings.simplefilter("ignore")
import torch
from torch import nn
from torch.utils.data import DataLoader
from template.template import TemplateModel

class T(TemplateModel):
    def __init__(self):
        super().__init__()
        self.model_list = [nn.Linear(6, 3)]
        self.optimizer_list = [torch.optim.SGD(self.model_list[0].parameters(), 0.1)]
        self.criterion = nn.CrossEntropyLoss()
        samples = [{"image": torch.ones(6), "label": 1}] * 20
        self.train_loader = self.eval_loader = DataLoader(samples, 10)
        self.ckpt_dir = "exp/one"

    def loss_per_batch(self, batch):
        pred = self.inference(batch["image"])
        return {"tol_loss": self.criterion(pred, batch["target"])}  # the mistake

trainer = T()
trainer.check_init()
trainer.CALL
"""
WRONG = [line for line in SCRIPT.splitlines() if "the mistake" in line][0].strip()


@pytest.mark.parametrize("call, batch", [("fit(1)", "The first eval batch, in eval mode"),
                                         ("train_loop()", "The first training batch")])
def test_the_end_of_the_traceback_says_all_and_no_line_of_ours_hides_theirs(call, batch, tmp_path):
    (tmp_path / "mine.py").write_text(SCRIPT.replace("CALL", call))
    done = run_python("mine.py", cwd=tmp_path, check=False, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    if sys.version_info >= (3, 11):
        last = done.stderr[done.stderr.index("KeyError:"):].splitlines()
        assert last[:2] == ["KeyError: 'target'", f"  mine.py, line {SCRIPT.split(WRONG)[0].count(chr(10)) + 1}, in "
                                                  f"loss_per_batch: {WRONG}"]
        assert last[2] == f"  {batch}: {{image: float32 tensor [10, 6], label: int64 tensor [10]}}"
        assert ("preflight = False" in last[-1]) == ("eval" in batch) and len(last) == 3 + ("eval" in batch)
    files = [Path(file).name for file in re.findall(r'File "(.*?)"', done.stderr)]
    assert files[-1] == "mine.py" and files.count("mine.py") == 2
    assert not {"preflight.py", "evaluation.py", "lifetime.py"} & set(files[files.index("template.py") + 1:])
    assert f"Nothing was trained, so the folder {Path('exp/one')} was removed." in done.stderr
    assert not (tmp_path / "exp/one").exists() and not list(tmp_path.glob("runs/*"))


def test_a_forgotten_criterion_is_named_in_the_error_and_a_likely_one_before():
    trainer = Tiny(criterion=None, loss_fn=nn.CrossEntropyLoss(), eval_loader=None)
    with pytest.warns(UserWarning, match=r"self.loss_fn is no attribute.*The loss is self.criterion, which is None"):
        trainer.check_init(use_tb=False)
    with pytest.raises(TypeError, match="must be Tensor, not list") as caught:
        trainer.train_loop()
    if sys.version_info >= (3, 11):
        text = "".join(traceback.format_exception(caught.value))
        assert "criterion is None, so the model is given the whole batch and must return its loss" in text
        assert "There is a self.loss_fn" in text


def test_a_criterion_of_ones_own_name_is_no_mistake_where_it_is_used():
    class Own(Tiny):
        def __init__(self):
            super().__init__(criterion=None, loss_fn=nn.CrossEntropyLoss())

        def loss_per_batch(self, batch):
            return self.loss_fn(self.inference(batch[0]), batch[1])

        def eval_scores_per_batch(self, batch):
            return {}

    with silence():
        trainer_of(Own).fit(1)


# --- warnings ---------------------------------------------------------------------------------------------------------


def test_warnings_name_a_line_of_the_script_and_stand_in_the_log(tmp_path):
    script = SCRIPT.replace('simplefilter("ignore")', 'simplefilter("default")')
    script = script.replace('batch["target"]', 'batch["label"]').replace("CALL", "train_loop()")
    script = script.replace("nn.Linear(6, 3)", "nn.Sequential(nn.Linear(6, 3), nn.Softmax(1))")
    script = script.replace('self.ckpt_dir = "exp/one"', 'self.ckpt_dir = "exp/one"; self.key_metrics = "acc"')
    (tmp_path / "mine.py").write_text(script)
    done = run_python("mine.py", cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    log = (tmp_path / "exp/one/log.txt").read_text()
    lines = script.splitlines()
    told = re.findall(r"mine.py:(\d+): UserWarning: (.*)", done.stderr)
    for text, line in (("Did you mean key_metric?", "trainer.check_init()"), ("read one dataset", "trainer.check_init()"),
                       ("look like probabilities", WRONG.replace("target", "label"))):
        (where,) = {int(number) for number, message in told if text in message}
        assert lines[where - 1].strip() == line
        assert log.count(text) == 1


def test_a_warning_that_is_caught_is_not_written():
    trainer = trainer_of(Tiny)
    with pytest.warns(UserWarning, match="mine"):
        trainer.hooks.set([*trainer.hooks.callbacks, Loud()])
        trainer.train_loop()
    assert warnings.showwarning.__module__ == "warnings"


class Loud:
    def on_train_end(self, model, result):
        warnings.warn("mine", UserWarning, stacklevel=1)


# --- folders of runs that were refused --------------------------------------------------------------------------------


def broken(batch):
    raise RuntimeError("broken")


def test_a_refused_run_leaves_no_folder_and_the_same_trainer_may_go_on():
    trainer = trainer_of(Tiny, ckpt_dir="exp/one")
    trainer.loss_per_batch = broken
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit(2)
    assert not Path("exp/one").exists()
    del trainer.loss_per_batch
    trainer.fit(2)
    log = Path("exp/one/log.txt").read_text()
    assert "RuntimeError: broken" in log and "epoch   2 eval" in log and Path("exp/one/config.json").exists()


@pytest.mark.parametrize("prepare", [
    lambda folder: (folder / "notes.md").write_text("mine"),
    lambda folder: (folder / "log.txt").write_text("of an earlier run"),
])
def test_what_is_not_of_this_run_is_never_removed(prepare):
    folder = Path("exp/one")
    folder.mkdir(parents=True)
    prepare(folder)
    before = {path.name for path in folder.iterdir()}
    trainer = trainer_of(Tiny, ckpt_dir="exp/one")
    trainer.loss_per_batch = broken
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit(2)
    assert before <= {path.name for path in folder.iterdir()} and "broken" in (folder / "log.txt").read_text()


def test_a_run_that_evaluated_or_trained_keeps_its_folder():
    for begin in ("test", "train_loop"):
        trainer = trainer_of(Tiny)
        getattr(trainer, begin)()
        trainer.loss_per_batch = broken
        with pytest.raises(RuntimeError, match="broken"):
            trainer.train_loop()
        assert trainer.path_of("log.txt").exists()


def test_a_file_that_cannot_be_loaded_leaves_no_folder(tmp_path):
    (tmp_path / "mine.py").write_text(SCRIPT.replace("CALL", "load_state('nothing.pth')"))
    done = run_python("mine.py", cwd=tmp_path, check=False, env={"PYTHONPATH": str(ROOT)})
    assert "FileNotFoundError" in done.stderr and not (tmp_path / "exp/one").exists()
