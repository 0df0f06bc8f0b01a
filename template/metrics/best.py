"""Which value of a metric or loss is the best one, in which epoch it came, and whether more or less of it is better.

    direction_of("mae")                  # "min": the field knows it; None for a name that says nothing
    better_when(trainer, "mae")          # the same, with what the user said in key_metric_mode
    note_best(trainer, result)           # True when key_metric is at its best now
"""

from __future__ import annotations

import math
import re
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..template import TemplateModel

_DOWN = frozenset("""
    loss losses error errors err errs residual cost penalty regret nll ce bce xent crossentropy logloss hinge
    mse rmse msle rmsle mae mape smape wape medae mase deviation deviance distance dist divergence kl kld js emd
    hausdorff hd hd95 assd asd chamfer cd epe mpjpe pampjpe
    perplexity ppl bpc bpb bpp wer cer ter mer eer fpr fnr far frr miss fid kid lpips dists niqe brisque ece mce ace brier
    inertia latency runtime flops crps l1 l2 bits""".split())
_UP = frozenset("""
    acc accuracy accuracies top correct precision recall sensitivity specificity tpr tnr npv ppv f1 f2 f05 fbeta fscore
    fmeasure auc auroc auprc auprg roc ap map mar iou miou jaccard dice dsc giou pq kappa mcc matthews r2 ev
    corr correlation pearson spearman kendall pcc srcc plcc srocc krocc ccc
    bleu sacrebleu rouge rougel meteor cider spice chrf bertscore em exact match
    psnr ssim msssim fsim vif sisdr sdr snr sisnr pesq stoi mos
    ndcg mrr hit hits hitrate coverage likelihood elbo silhouette ari nmi ami purity
    similarity reward rewards return returns success win wins score""".split())


def direction_of(name: str) -> str | None:
    """"max" or "min" for names that the field knows (accuracies and areas up, errors, losses and distances down), else None.

    "val/top5_error" is an error, "neg_mean_squared_error" is better when it is larger, "RMSE", "ms_ssim" and "accuracy1" are
    what they look like.
    """
    parts = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+", str(name))
    words = {part.lower() for part in parts} | {"".join(parts).lower(), str(name).rpartition("/")[2].lower()}
    words |= {word.rstrip("0123456789") for word in words}
    found = "min" if words & _DOWN else "max" if words & _UP else None
    if found and words & {"neg", "negative", "minus"} and "nll" not in words:
        return "min" if found == "max" else "max"
    return found


def better_when(trainer: TemplateModel, name: str | None) -> str:
    """Whether more or less of a metric or loss is better, "max" or "min": as ``key_metric_mode`` says, else by its name.
    Where neither tells, less of a loss is better and more of a metric."""
    mode = trainer.key_metric_mode
    if isinstance(mode, dict):
        mode = mode.get(str(name))
    elif name != trainer.key_metric and mode is not None:
        mode = None if direction_of(str(name)) or name in trainer.eval_loss_names else mode
    return mode or direction_of(str(name)) or ("min" if name in trainer.eval_loss_names else "max")


def ask_for_direction(trainer: TemplateModel, name: str) -> None:
    """Say how a name is taken that decides something and tells nothing by itself, once for each name."""
    told = trainer.key_metric_mode.get(name) if isinstance(trainer.key_metric_mode, dict) else trainer.key_metric_mode
    if told or direction_of(name) or name in trainer.eval_loss_names or name in trainer.evaluator.asked_about:
        return
    trainer.evaluator.asked_about.add(name)
    warnings.warn(
        f"Is more or less of {name!r} better? Its name does not tell, so more counts as better. Say so with "
        f"self.key_metric_mode = {{{name!r}: \"max\"}}, or \"min\" where less is better.", UserWarning, stacklevel=2)


def note_best(trainer: TemplateModel, result) -> bool:
    """Keep the best value of everything in ``best_metric`` with its epoch. An equal value counts: the weights that were
    trained for longer are kept.

    Returns:
        Whether ``key_metric`` is at its best in this very evaluation.
    """
    key_improved = False
    for name, value in result.items():
        if not isinstance(value, float):
            continue
        if not math.isfinite(value):
            print(f"The evaluation of epoch {trainer.epoch} gave {name} = {value}, which never counts as best. Look at the "
                  "eval data and at the weights.")
            continue
        best = trainer.best_metric.get(name, value)
        if value <= best if better_when(trainer, name) == "min" else value >= best:
            trainer.best_metric[name], trainer.best_epoch[name] = value, trainer.epoch
            key_improved = key_improved or name == trainer.key_metric
    return key_improved
