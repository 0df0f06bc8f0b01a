"""Which value of a metric or loss is the best one, in which epoch it came, and whether more or less of it is better.

    direction_of("mae")                  # "min": the field knows it; None for a name that says nothing
    better_when(trainer, "mae")          # the same, with what the user said in key_metric_mode
    resolve_key(trainer, result)         # the name in an evaluation's result that decides
    note_best(trainer, result)           # "best" when key_metric is at its best now, "equals the best", or ""
    note_training(trainer, result)       # the same at the end of an epoch's training, for key_metric = "train/tol_loss"
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..output.warn import warn

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
    ndcg mrr hit hits hitrate coverage likelihood elbo silhouette ari nmi ami purity ks
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
        mode = None if direction_of(str(name)) or _is_loss(trainer, name) else mode
    return mode or direction_of(str(name)) or ("min" if _is_loss(trainer, name) else "max")


def _is_loss(trainer, name):
    return name in trainer.eval_loss_names or (
        is_of_training(name) and str(name).removeprefix("train/") in trainer.running_losses.names)


def ask_for_direction(trainer: TemplateModel, name: str) -> None:
    """Say how a name is taken that decides something and tells nothing by itself, once for each name."""
    told = trainer.key_metric_mode.get(name) if isinstance(trainer.key_metric_mode, dict) else trainer.key_metric_mode
    if told or direction_of(name) or _is_loss(trainer, name) or name in trainer.evaluator.asked_about:
        return
    trainer.evaluator.asked_about.add(name)
    warn(
        f"Is more or less of {name!r} better? Its name does not tell, so more counts as better. Say so with "
        f"self.key_metric_mode = {{{name!r}: \"max\"}}, or \"min\" where less is better.")


def find_name(asked: str | None, names: Iterable[str]) -> str | None:
    """The entry of ``names`` that ``asked`` means, or None: "acc" is that of the first of several loaders, "val_acc" is
    "acc", "val_loss" and "loss" are "tol_loss", and "train_loss" is "train/tol_loss"."""
    names = list(names)
    part, rest = ("", asked or "")
    if found := re.match(r"(train|val|valid|validation|eval|dev|test)[_/](.+)", rest):
        part, rest = found.groups()
    words = [rest, *(["tol_loss"] if rest == "loss" else []), *(["acc"] if rest == "accuracy" else [])]
    if part:
        words = [f"{part}/{word}" for word in words] + (words if part != "train" else [])
    for word in [asked, *words]:
        if word in names:
            return word
    ends = [name for word in words for name in names if name.endswith(f"/{word}") and not name.startswith("train/")]
    return ends[0] if ends else None


def resolve_key(trainer: TemplateModel, result) -> str:
    """The name in ``result`` that decides what is best; noted in ``key_metric``, and told once.

    Raises:
        ValueError: ``key_metric`` names nothing that was returned, or there is nothing.
    """
    numbers = [name for name, value in result.items() if isinstance(value, float)]
    if not numbers:
        raise ValueError(f"An evaluation must give a number that says how good it is, and loss_per_batch and metric() gave "
                         f"{list(result) or 'nothing'}. Return at least one loss or metric.")
    key, why = trainer.key_metric, ""
    if key is None:
        losses = [name for name in numbers if name in trainer.eval_loss_names]
        metrics = [name for name in numbers if name not in losses]
        totals = [name for name in losses if name.endswith("tol_loss")]
        key = (metrics if len(metrics) == 1 else totals or metrics or losses)[0]
        if len(metrics) > 1:
            why = f", because there are several metrics: {', '.join(metrics)}. Set key_metric to the one that decides"
    found = find_name(key, numbers)
    if found is None:
        raise ValueError(
            f"key_metric {key!r} was not returned by metric() or loss_per_batch(); the evaluation gave {numbers}. Set "
            "self.key_metric to one of these."
        )
    return _settle(trainer, found, why)


def _settle(trainer, found, why=""):
    """``found`` decides what is best: noted, and told once."""
    best = better_when(trainer, found)
    built = trainer.lr_schedule.schedulers[0].mode if trainer.lr_scheduler_type == "metric" else None
    if built not in (None, best):
        raise ValueError(
            f"lr_scheduler_type='metric' was built to wait for a {built}imum, and of {found!r} the {best}imum is best. Set "
            "key_metric in __init__, so that it is known then, or lr_scheduler_type='loss'."
        )
    ask_for_direction(trainer, found)
    if trainer.evaluator.told_rule_of != found:
        trainer.evaluator.told_rule_of = found
        print(f"  best = {'highest' if best == 'max' else 'lowest'} {found}{why}")
    trainer.key_metric = found
    return found


def follows_training(trainer: TemplateModel) -> bool:
    """Whether ``key_metric`` is a loss or metric of the training: "train/tol_loss", and no loader of that name."""
    loaders = trainer.eval_loader if isinstance(trainer.eval_loader, dict) else {}
    return is_of_training(trainer.key_metric) and "train" not in loaders


def is_of_training(name: str | None) -> bool:
    """Whether it is the name of a loss or metric of the training."""
    return name is not None and name.startswith(("train/", "train_"))


def score_of(trainer: TemplateModel, result) -> float:
    """The value of ``key_metric``, where an evaluation gave ``result``; NaN where it is the training's, and nothing was
    trained yet."""
    if follows_training(trainer) and find_name(trainer.key_metric, result) is None:
        return trainer.running_losses.result.get(str(trainer.key_metric).removeprefix("train/"), math.nan)
    return result[resolve_key(trainer, result)]


def last_score(trainer: TemplateModel) -> float:
    """``score_of`` the last evaluation; NaN before the first one."""
    return score_of(trainer, trainer.eval_result) if trainer.eval_result else math.nan


def note_training(trainer: TemplateModel, result) -> str:
    """An epoch was trained. Where ``key_metric`` is of the training, its best value and weights are kept. Plateau schedules
    are told, which look at it, or at the loss where there is nothing to evaluate.

    Returns:
        For the line of the epoch: " | best train/acc", or "".

    Raises:
        ValueError: ``key_metric`` names nothing that the training gave.
    """
    own, value, improved = {f"train/{name}": number for name, number in result.items()}, None, ""
    numbers = [name for name, number in own.items() if isinstance(number, float)]
    key = find_name(trainer.key_metric, numbers) if follows_training(trainer) else None
    if key is not None:
        value = own[_settle(trainer, key)]
        improved = note_best(trainer, {key: value})
        if improved:
            trainer.checkpoints.save_best()
    elif follows_training(trainer) and str(trainer.key_metric).startswith("train/"):
        raise ValueError(f"key_metric {trainer.key_metric!r} is no loss or metric of the training, which gave {numbers}. "
                         "Set self.key_metric to one of these, or train_metrics = True for what metric() gives.")
    if trainer.eval_loader is None or key is not None:
        trainer.lr_schedule.note_result(trainer.epoch, value, None if trainer.eval_loader else result.get("tol_loss"))
    return f" | {improved} {key}" if improved else ""


def note_best(trainer: TemplateModel, result) -> str:
    """Keep the best value of everything in ``best_metric`` with its epoch. An equal value counts: the weights that were
    trained for longer are kept.

    Returns:
        What ``key_metric`` is in this very evaluation: "best", "equals the best", or "" where it was better before.
    """
    of_key = ""
    for name, value in result.items():
        if not isinstance(value, float):
            continue
        if not math.isfinite(value):
            what = "training" if follows_training(trainer) and name == trainer.key_metric else "evaluation"
            print(f"The {what} of epoch {trainer.epoch} gave {name} = {value}, which never counts as best. Look at the "
                  f"{'' if what == 'training' else 'eval '}data and at the weights.")
            continue
        best = trainer.best_metric.get(name, value)
        if value <= best if better_when(trainer, name) == "min" else value >= best:
            if name == trainer.key_metric:
                of_key = "equals the best" if value == trainer.best_metric.get(name) else "best"
            trainer.best_metric[name], trainer.best_epoch[name] = value, trainer.epoch
    return of_key


def best_in_rows(rows: Iterable[dict[str, Any]], modes: dict[str, str] | None = None) -> dict[str, tuple[int, float]]:
    """``{quantity: (epoch, value)}``, as ``note_best`` would have kept them, from the rows of ``history.csv``.

    Args:
        rows: with ``epoch``, ``eval/<quantity>`` and ``train/<quantity>``; that of training counts where there is no other.
        modes: ``{quantity: "max" or "min"}`` for those whose names do not tell. Without it more counts as better, but less
            of what training has too, which is a loss.
    """
    rows = list(rows)
    names = _columns_of(rows)
    best = {}
    for quantity in dict.fromkeys(name.partition("/")[2] for name in names):
        column = f"eval/{quantity}" if f"eval/{quantity}" in names else f"train/{quantity}"
        mode = (modes or {}).get(quantity) or direction_of(quantity) or ("min" if f"train/{quantity}" in names else "max")
        values = [(row["epoch"], row[column]) for row in rows
                  if isinstance(row.get(column), (int, float)) and math.isfinite(row[column])]
        if values:
            best[quantity] = max(values, key=lambda value: (value[1] if mode == "max" else -value[1], value[0]))
    return best


def quantities_in(rows: Iterable[dict[str, Any]]) -> list[str]:
    """What the rows of ``history.csv`` have values of: "acc" for "train/acc" and "eval/acc"."""
    return list(dict.fromkeys(name.partition("/")[2] for name in _columns_of(rows)))


def key_in_rows(rows: list[dict[str, Any]], asked: str | None = None) -> str | None:
    """The quantity whose best value is told: the one that ``asked`` means; for None the first score, which is what training
    has no value of, else the first loss."""
    columns = _columns_of(rows)
    names = list(dict.fromkeys(name.partition("/")[2] for name in columns))
    if asked is not None:
        return find_name(asked, names) or asked
    return next((name for name in names if f"train/{name}" not in columns), next(iter(names), None))


def _columns_of(rows):
    return dict.fromkeys(name for row in rows for name in row if name.startswith(("train/", "eval/")))
