"""Which way a metric is better, and which evaluation was the best."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import Tiny, tiny_trainer, weights

from template import EarlyStopping
from template.metrics.best import better_when, direction_of

DOWN = """
    loss val_loss tol_loss train/tol_loss error error_rate top5_error val/err mae MAE val_mae mse RMSE rmsle
    mean_absolute_error meanAbsoluteError perplexity ppl nll neg_log_likelihood negative_log_likelihood
    cross_entropy crossentropy kl_div WER cer FID fid_score LPIPS ECE brier_score BrierScore hd95 hausdorff
    chamfer_distance mpjpe EER dice_loss log_loss mape l1
""".split()
UP = """
    acc accuracy val/acc pixel_acc acc1 top1 top5 accuracy_top5 precision recall recall@5 f1 F1 f1_macro fbeta auc
    AUROC auprc mAP mAP50 map50-95 iou mIoU mean_iou dice r2 R2 r2_score kappa mcc pearson bleu4 BLEU-4 rouge1
    rougeL psnr SSIM ms_ssim MS-SSIM SI-SDR ndcg@10 hits@10 mrr episode_return success_rate score log_likelihood
    neg_mean_squared_error neg_log_loss cosine_similarity balanced_accuracy specificity matthews iou/cat exact_match ks
    average_precision train/acc scores/berlin/auroc
""".split()
UNKNOWN = ["a", "quality", "gap", "my_thing", "lr", "epoch", "confusion", ""]


@pytest.mark.parametrize("names, mode", [(DOWN, "min"), (UP, "max"), (UNKNOWN, None)], ids=["down", "up", "unknown"])
def test_names_that_the_field_knows_have_their_direction(names, mode):
    assert {name: direction_of(name) for name in names} == dict.fromkeys(names, mode)


@given(st.text())
def test_any_text_has_a_direction_or_none(name):
    assert direction_of(name) in ("max", "min", None)


class Scored(Tiny):
    """Scores what the test says, in each evaluation the next."""

    def __init__(self, name, values, **attributes):
        super().__init__(preflight=False, ckpt_dir="run", **attributes)
        self.name, self.values = name, iter(values)

    def eval_scores_per_batch(self, batch):
        return {self.name: self.value}

    def eval(self, save_per_epochs=1):
        self.value = next(self.values)
        return super().eval(save_per_epochs)


def scored(*args, **attributes):
    trainer = Scored(*args, **attributes)
    trainer.check_init(use_tb=False)
    return trainer


def test_the_best_epoch_of_a_regression_is_that_of_the_smallest_error(capsys):
    trainer = scored("mae", [0.5, 0.2, 0.7])
    trainer.fit(3)
    assert (trainer.best_metric["mae"], trainer.best_epoch["mae"]) == (pytest.approx(0.2), 2)
    assert torch.load("run/best.pth")["epoch"] == 2
    assert capsys.readouterr().out.count("best = lowest mae") == 1


def test_early_stopping_waits_for_a_smaller_error():
    trainer = scored("mae", [1.2, 1.1, 1.0, 0.9, 0.8, 0.7], callbacks=[EarlyStopping(patience=2)])
    trainer.fit(6)
    assert trainer.epochs_done == 6


@pytest.mark.parametrize("mode", [None, "max", {"gap": "max"}, "min"])
def test_a_name_that_says_nothing_is_asked_about_once_unless_it_was_said(mode):
    trainer = scored("gap", [0.1, 0.2, 0.3], key_metric_mode=mode)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(3)
    asked = [str(warning.message) for warning in said if "Is more or less of 'gap' better?" in str(warning.message)]
    assert len(asked) == (mode is None)
    assert trainer.best_epoch["gap"] == (1 if mode == "min" else 3)


def test_one_mode_for_all_speaks_of_the_key_and_of_names_that_say_nothing():
    trainer = tiny_trainer(key_metric="acc", key_metric_mode="max")
    assert better_when(trainer, "acc") == better_when(trainer, "gap") == "max" and better_when(trainer, "mae") == "min"
    trainer = tiny_trainer(key_metric="acc", key_metric_mode="min")
    assert better_when(trainer, "acc") == better_when(trainer, "gap") == "min" and better_when(trainer, "f1") == "max"


def test_a_score_among_the_losses_keeps_its_own_direction():
    class Both(Tiny):
        def loss_per_batch(self, batch):
            x, y = batch
            pred = self.inference(x)
            return {"tol_loss": self.criterion(pred, y), "acc": (pred.argmax(1) == y).float().mean(), "gap": pred.mean()}

        def eval_scores_per_batch(self, batch):
            return {}

    trainer = Both()
    trainer.check_init(use_tb=False)
    trainer.fit(4)
    assert [better_when(trainer, name) for name in ("acc", "tol_loss", "gap")] == ["max", "min", "min"]
    assert trainer.key_metric == "tol_loss"


def test_a_second_evaluation_of_an_epoch_with_worse_weights_is_not_the_best(capsys):
    trainer = scored("mae", [0.5, 16.0])
    trainer.train_loop()
    trainer.eval()
    best = weights(trainer)
    with torch.no_grad():
        trainer.model_list[0][0].weight.add_(1.0)
    trainer.eval()
    lines = [line for line in capsys.readouterr().out.splitlines() if " eval " in line]
    assert "best mae" in lines[0] and "best mae" not in lines[1]
    kept = torch.load("run/best.pth")["model0"]
    assert torch.equal(torch.cat([value.double().flatten() for value in kept.values()]), best)
    assert trainer.best_metric["mae"] == 0.5


def test_what_is_not_finite_is_never_best():
    trainer = scored("mae", [math.nan, 0.5, -math.inf])
    trainer.fit(3)
    assert (trainer.best_metric["mae"], trainer.best_epoch["mae"]) == (0.5, 2)
