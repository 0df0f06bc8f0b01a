"""``eval_metrics``: of one loader, and several loaders with metrics of their own each."""

import pytest
from tiny import Tiny, tiny_data, tiny_trainer
from torch.utils.data import DataLoader, TensorDataset

from template import Confusion, Stored


def loaders():
    return {name: DataLoader(TensorDataset(*tiny_data(count, seed=count)), 10)
            for name, count in (("clean", 23), ("noisy", 31))}


def right(pred, y):
    return (pred.argmax(1) == y).double().mean()


def test_each_loader_has_metrics_of_its_own():
    confusion = Confusion(3)
    metrics = {"clean": {"f1": confusion.f1(), "matrix": confusion}, "noisy": {"right": Stored(right)}}
    trainer = tiny_trainer(eval_loader=loaders(), eval_metrics=metrics, key_metric="clean/f1")
    for _ in range(2):
        trainer.eval()
        assert list(trainer.eval_result) == ["clean/tol_loss", "clean/f1", "clean/matrix", "noisy/tol_loss", "noisy/right"]
        assert trainer.eval_result["clean/matrix"].sum() == 23
        pred, y = trainer.predict(loaders()["noisy"], labels=True)
        assert trainer.eval_result["noisy/right"] == pytest.approx(right(pred, y).item())
    assert list(trainer.test(loaders()["noisy"])) == ["tol_loss", "acc"]  # it has no name


def test_a_loader_that_is_left_out_has_the_default_accuracy():
    trainer = tiny_trainer(eval_loader=loaders(), eval_metrics={"clean": {"f1": Confusion(3).f1()}}, key_metric="noisy/acc")
    trainer.eval()
    assert list(trainer.eval_result) == ["clean/tol_loss", "clean/f1", "noisy/tol_loss", "noisy/acc"]


def test_a_metric_of_the_subclass_may_ask_which_loader_is_read():
    class Asks(Tiny):
        def metric(self, pred, y):
            share = (pred.argmax(1) == y).float().mean()
            return {"acc": share} if self.evaluator.loader_name == "clean" else {"error": 1 - share}

    trainer = Asks(eval_loader=loaders(), key_metric="clean/acc")
    trainer.check_init(use_tb=False)
    trainer.eval()
    assert list(trainer.eval_result) == ["clean/tol_loss", "clean/acc", "noisy/tol_loss", "noisy/error"]
    assert trainer.evaluator.loader_name == ""


@pytest.mark.parametrize("metrics", [{"claen": {"f1": Confusion(3).f1()}}, {"clean": {}, "f1": Confusion(3).f1()}])
def test_names_of_no_loader_are_refused_before_the_training_and_later(metrics):
    with pytest.raises(ValueError, match=r"for the loaders \['clean', 'noisy'\]"):
        tiny_trainer(eval_loader=loaders(), eval_metrics=metrics)
    trainer = tiny_trainer(eval_loader=loaders())
    with pytest.raises(ValueError, match=r"for the loaders \['clean', 'noisy'\]"):
        trainer.eval_metrics = metrics


def test_metrics_of_each_loader_are_no_metrics_of_the_training():
    with pytest.raises(ValueError, match=r"which has metrics of \['clean'\] each. Say which ones the training has"):
        tiny_trainer(eval_loader=loaders(), eval_metrics={"clean": {"f1": Confusion(3).f1()}}, train_metrics=True)
