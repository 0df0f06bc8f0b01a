"""Accumulators against scikit-learn, numpy and torchmetrics, over every way of splitting an epoch."""

import copy
import functools
import inspect
import io
import math
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
import torchmetrics
import torchmetrics.functional as tm
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import in_threads
from tiny import tiny_data, tiny_model, tiny_trainer
from torch.utils.data import DataLoader, TensorDataset

from template.metrics.accumulators import Accuracy, Confusion, Mean, Metric, Stored
from template.metrics.epoch import EpochMetrics, RunningLosses
from template.parallel.ranks import OtherRankFailed

MODERATE = settings(deadline=None, max_examples=60)
AVERAGES = ("micro", "macro", "weighted")


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@st.composite
def classified(draw, min_classes=2, max_classes=5, max_samples=40):
    """(C, true classes, predicted classes, sizes of the batches), classes that never occur included."""
    num_classes = draw(st.integers(min_classes, max_classes))
    count = draw(st.integers(1, max_samples))
    label = st.integers(0, num_classes - 1)
    y = draw(st.lists(label, min_size=count, max_size=count))
    pred = draw(st.lists(label, min_size=count, max_size=count))
    cuts = sorted(draw(st.sets(st.integers(1, count), max_size=5)) | {count})
    sizes = [end - start for start, end in zip([0, *cuts], cuts)]
    return num_classes, torch.tensor(y), torch.tensor(pred), sizes


def batches(sizes, *tensors):
    return zip(*(tensor.split(sizes) for tensor in tensors))


def as_scores(pred, num_classes, dtype=torch.float32, seed=0):
    """Random scores [B, C, …] whose largest is at ``pred`` [B, …]."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(len(pred), num_classes, *pred.shape[1:], generator=generator)
    return scores.scatter(1, pred.unsqueeze(1), 9.0).to(dtype)


def expected_scores(y, pred, average):
    y, pred = y.flatten().numpy(), pred.flatten().numpy()
    options = {"average": average, "zero_division": 0}
    return {
        "accuracy": sk.accuracy_score(y, pred),
        "precision": sk.precision_score(y, pred, **options),
        "recall": sk.recall_score(y, pred, **options),
        "f1": sk.f1_score(y, pred, **options),
        "f2": sk.fbeta_score(y, pred, beta=2.0, **options),
        "f0.5": sk.fbeta_score(y, pred, beta=0.5, **options),
    }


def scores_of(confusion, average):
    return {
        "accuracy": confusion.accuracy(),
        "precision": confusion.precision(average),
        "recall": confusion.recall(average),
        "f1": confusion.f1(average),
        "f2": confusion.fbeta(2.0, average),
        "f0.5": confusion.fbeta(0.5, average),
    }


# --- Mean and plain numbers -----------------------------------------------------------------------------------------


@MODERATE
@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.integers(1, 50)), min_size=1, max_size=12), st.booleans())
def test_a_mean_is_weighted_by_what_each_value_stands_for(pairs, as_tensors):
    mean = Mean()
    for value, weight in pairs:
        mean.update(*(torch.tensor(number) for number in (value, weight))) if as_tensors else mean.update(value, weight)
    values, weights = zip(*pairs)
    assert mean.compute() == pytest.approx(np.average(values, weights=weights), rel=1e-12, abs=1e-9)
    assert type(mean.compute()) is float
    assert type(mean.state_dict()["weight"]) in (int, float)


def test_a_mean_of_nothing_is_nan_and_spoils_no_other():
    assert math.isnan(Mean().compute())
    mean = Mean().update(torch.tensor(2.0), torch.tensor(3)).update(torch.tensor(float("nan")), torch.tensor(0))
    assert mean.update(4.0, 1).compute() == 2.5
    metrics = EpochMetrics()
    metrics.update({"tol_loss": float("nan")}, 0)
    metrics.update({"tol_loss": 2.0}, 3)
    assert metrics.compute() == {"tol_loss": 2.0}


@MODERATE
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.integers(1, 9),
       st.sampled_from(["number", "tensor", "numpy"]))
def test_plain_values_are_means_over_samples_with_a_short_last_batch(samples, batch_size, kind):
    metrics = EpochMetrics()
    make = {"number": float, "tensor": lambda v: torch.tensor(v, dtype=torch.float64), "numpy": np.float64}[kind]
    for start in range(0, len(samples), batch_size):
        batch = samples[start:start + batch_size]
        metrics.update({"value": make(np.mean(batch))}, len(batch))
    assert metrics.compute() == {"value": pytest.approx(np.mean(samples), rel=1e-9, abs=1e-9)}


def test_tensors_of_one_element_count_as_numbers_and_values_of_several_dtypes_keep_their_precision():
    metrics = EpochMetrics()
    metrics.update({"half": torch.tensor([0.5], dtype=torch.float16), "count": torch.tensor(70001),
                    "bf16": torch.tensor([[1.5]], dtype=torch.bfloat16), "yes": torch.tensor(True)}, 4)
    assert metrics.compute() == {"half": 0.5, "count": 70001.0, "bf16": 1.5, "yes": 1.0}
    losses = RunningLosses()
    losses.update({"tol_loss": torch.tensor(0.5, dtype=torch.float16), "count": torch.tensor(70001)}, 3)
    assert losses.window() == {"tol_loss": 0.5, "count": 70001.0}


@pytest.mark.parametrize(("value", "said"), [
    (torch.ones(3), "(3,)"), (torch.ones(2, 2), "(2, 2)"), (torch.ones(0), "(0,)"), (np.ones(4), "(4,)"),
    ("good", "'good'"), (None, "None"), ([1.0], "[1.0]"),
])
def test_a_plain_value_that_is_no_single_number_is_named_with_what_it_is(value, said):
    for accumulator in (EpochMetrics(), RunningLosses()):
        with pytest.raises(ValueError, match="single number") as error:
            accumulator.update({"top5": value}, 8)
        assert "'top5'" in str(error.value) and said in str(error.value)
    with pytest.raises(ValueError, match="single number"):
        Mean().update(value)


def test_updating_and_merging_waits_for_no_device(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a value was brought to the host in the loop")

    class OnDevice(torch.Tensor):
        """A number on a device; one on the CPU is read at once."""

    scores, labels = torch.eye(3), torch.tensor([0, 1, 1])
    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    metrics, losses, confusion = EpochMetrics(), RunningLosses(), Confusion(3)
    for value in torch.arange(4.0).as_subclass(OnDevice).unbind():
        losses.update({"tol_loss": value}, 5)
        confusion.update(scores, labels)
        metrics.update({
            "plain": value,
            "mean": Mean().update(value, value),
            "new": Confusion(3).update(scores, labels).accuracy(),
            "once": confusion.accuracy(),
            "stored": Stored(lambda pred, y: len(pred)).update(scores, labels),
        }, 5)
    monkeypatch.undo()
    assert metrics.compute() == pytest.approx({"plain": 1.5, "mean": 14 / 6, "new": 2 / 3, "once": 2 / 3, "stored": 12.0})
    assert losses.window() == {"tol_loss": 1.5}


# --- Stored ---------------------------------------------------------------------------------------------------------


def roc_auc(pred, y):
    return sk.roc_auc_score(y, pred)


def average_precision(pred, y):
    return sk.average_precision_score(y, pred)


@pytest.mark.slow
@MODERATE
@given(st.integers(2, 60), st.integers(1, 13), st.integers(0, 10**6), st.sampled_from([torch.float32, torch.bfloat16]))
def test_stored_scores_equal_scikit_learn_on_the_whole_epoch(count, batch_size, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    pred = torch.rand(count, generator=generator).to(dtype)
    y = torch.randint(2, (count,), generator=generator)
    y[:2] = torch.tensor([0, 1])
    metrics, once = EpochMetrics(), Stored(average_precision, device="cpu")
    for p, t in zip(pred.split(batch_size), y.split(batch_size)):
        metrics.update({"auc": Stored(roc_auc).update(p, t), "ap": once.update(p, t)}, len(p))
    assert metrics.compute() == pytest.approx({
        "auc": sk.roc_auc_score(y.numpy(), pred.float().numpy()),
        "ap": sk.average_precision_score(y.numpy(), pred.float().numpy()),
    }, rel=1e-12)


def test_stored_multi_class_auc_and_regression_scores_equal_scikit_learn():
    x, y = tiny_data(53)
    probabilities = x[:, :3].softmax(1)
    auc = Stored(lambda pred, y: sk.roc_auc_score(y, pred, multi_class="ovr"))
    r2 = Stored(lambda pred, y: sk.r2_score(y, pred))
    for p, t, features in zip(probabilities.split(10), y.split(10), x.split(10)):
        auc.update(p, t)
        r2.update(features[:, 0], features[:, 1])
    assert auc.compute() == pytest.approx(sk.roc_auc_score(y.numpy(), probabilities.numpy(), multi_class="ovr"), rel=1e-6)
    assert r2.compute() == pytest.approx(sk.r2_score(x[:, 1].numpy(), x[:, 0].numpy()), rel=1e-6)


def test_stored_keeps_no_graph_takes_single_samples_and_gives_floats():
    stored = Stored(lambda pred, y: (pred.round() == y).sum())
    pred = torch.tensor([0.9, 0.2, 0.8], requires_grad=True)
    for p, t in zip(pred * 1, torch.tensor([1, 0, 0])):
        stored.update(p, t)
    assert not any(tensor.requires_grad for tensor in stored.preds)
    assert stored.compute() == 2.0 and type(stored.compute()) is float
    stored.reset()
    assert math.isnan(stored.compute())


def test_what_several_classes_score_stays_a_vector():
    per_class = Stored(lambda pred, y: sk.recall_score(y, pred, average=None)).update(torch.tensor([0, 1, 1]),
                                                                                      torch.tensor([0, 1, 0]))
    metrics = EpochMetrics()
    metrics.update({"recall": per_class}, 3)
    assert metrics.compute()["recall"].tolist() == [0.5, 1.0]


def takes_labels_and_predictions(fn):
    parameters = list(inspect.signature(fn).parameters.values()) if callable(fn) and not isinstance(fn, type) else []
    needed = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    return len(needed) == 2 and (needed[0] in ("y_true", "labels_true") or needed == ["y1", "y2"])


def two_class_data(count=41):
    """By kind: predictions and labels of two classes, of scores, of positive numbers, of four labels each."""
    generator = torch.Generator().manual_seed(3)
    labels, many = torch.randint(2, (count,), generator=generator), torch.randint(2, (count, 4), generator=generator)
    return {"classes": (torch.randint(2, (count,), generator=generator), labels),
            "scores": (torch.rand(count, generator=generator), labels),
            "numbers": (torch.rand(count, generator=generator) + 0.1, torch.rand(count, generator=generator) + 0.1),
            "many": (torch.rand(count, 4, generator=generator), many)}


@pytest.mark.parametrize("name", [name for name in dir(sk) if takes_labels_and_predictions(getattr(sk, name))])
@pytest.mark.filterwarnings("ignore")
def test_every_metric_of_scikit_learn_gets_labels_and_predictions_in_its_order(name):
    fn, compared, tells_apart = getattr(sk, name), 0, 0
    for pred, y in two_class_data().values():
        try:
            expected = fn(y.numpy(), pred.numpy())
        except ValueError:  # not for this kind of data
            continue
        stored = Stored(fn)
        for p, t in batches([20, 20, 1], pred, y):
            stored.update(p, t)
        assert same(stored.compute(), expected)
        compared += 1
        try:
            tells_apart += not same(fn(pred.numpy(), y.numpy()), expected)
        except ValueError:
            tells_apart += 1
    assert compared
    assert tells_apart or name in SYMMETRIC


SYMMETRIC = {  # of their arguments, so their order does not show
    "accuracy_score", "adjusted_mutual_info_score", "adjusted_rand_score", "cohen_kappa_score", "f1_score",
    "fowlkes_mallows_score", "hamming_loss", "jaccard_score", "matthews_corrcoef", "max_error", "mean_absolute_error",
    "mean_pinball_loss", "mean_squared_error", "mean_squared_log_error", "mean_tweedie_deviance", "median_absolute_error",
    "mutual_info_score", "normalized_mutual_info_score", "rand_score", "root_mean_squared_error",
    "root_mean_squared_log_error", "v_measure_score", "zero_one_loss",
}


def same(value, expected):
    """Numbers, arrays, or tuples of them; reports as text."""
    if isinstance(expected, (tuple, list)):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(expected, str) or expected is None:
        return value == expected
    value, expected = np.asarray(value, dtype=float), np.asarray(expected, dtype=float)
    return value.shape == expected.shape and np.allclose(value, expected, rtol=1e-6, equal_nan=True)


def test_precision_and_recall_are_not_taken_for_each_other():
    pred, y = torch.tensor([1, 1, 1, 0]), torch.tensor([1, 0, 0, 0])
    values = {"precision": Stored(sk.precision_score), "recall": Stored(sk.recall_score)}
    assert {name: stored.update(pred, y).compute() for name, stored in values.items()} == {
        "precision": pytest.approx(1 / 3), "recall": 1.0}


@pytest.mark.parametrize("fn", [
    functools.partial(sk.fbeta_score, beta=2.0), functools.partial(sk.fbeta_score, beta=2.0, average="binary"),
    functools.partial(functools.partial(sk.fbeta_score, pos_label=1), beta=2.0),
    functools.wraps(sk.fbeta_score)(lambda *args, **kwargs: sk.fbeta_score(*args, beta=2.0, **kwargs)),
])
def test_bound_options_and_decorators_leave_the_order_of_the_function_below(fn):
    pred, y = torch.tensor([1, 1, 1, 0, 1]), torch.tensor([1, 0, 0, 0, 1])
    assert sk.fbeta_score(y, pred, beta=2.0) != sk.fbeta_score(pred, y, beta=2.0)
    assert Stored(fn).update(pred, y).compute() == pytest.approx(sk.fbeta_score(y, pred, beta=2.0))


def test_auc_of_several_classes_takes_probabilities_and_one_bound_option():
    x, y = tiny_data(53)
    probabilities = x[:, :3].softmax(1)
    stored = Stored(functools.partial(sk.roc_auc_score, multi_class="ovr")).update(probabilities, y)
    assert stored.compute() == pytest.approx(sk.roc_auc_score(y.numpy(), probabilities.numpy(), multi_class="ovr"), rel=1e-6)


class Weighed:
    def method(self, target, output):
        return (target * 10 + output).sum()

    def __call__(self, target, output):
        return self.method(target, output)


class Vague:
    def __call__(self, *args):
        return args[0].sum() * 10 + args[1].sum()


@pytest.mark.parametrize("fn, first", [
    (lambda pred, y: pred * 10 + y, "pred"), (lambda y, pred: y * 10 + pred, "y"),
    (lambda y_true, y_pred: y_true * 10 + y_pred, "y"), (lambda y_pred, y_true: y_pred * 10 + y_true, "pred"),
    (lambda preds, target: preds * 10 + target, "pred"), (lambda target, preds: target * 10 + preds, "y"),
    (lambda input, target: input * 10 + target, "pred"), (lambda labels, scores: labels * 10 + scores, "y"),
    (lambda labels_pred, labels_true: labels_pred * 10 + labels_true, "pred"), (lambda gt, x: gt * 10 + x, "y"),
    (lambda x, prediction: x * 10 + prediction, "y"), (lambda X, labels: X * 10 + labels, "pred"),
    (lambda references, predictions: references * 10 + predictions, "y"), (lambda y_gt, y_hat: y_gt * 10 + y_hat, "y"),
    (lambda a, b: a * 10 + b, "pred"), (lambda p, t: p * 10 + t, "pred"), (lambda y, t: y * 10 + t, "pred"),
    (lambda x, y: x * 10 + y, "pred"), (lambda *args: args[0] * 10 + args[1], "pred"), (Vague(), "pred"),
    (lambda pred, *rest: pred * 10 + rest[0], "pred"), (Weighed(), "y"), (Weighed().method, "y"),
    (functools.partial(lambda scale, target, output: target * scale + output, 10), "y"),
    (torch.sub, "pred"),                                     # a builtin has no signature
    (lambda target, output, /: target * 10 + output, "y"),
])
def test_a_function_of_ones_own_gets_what_its_parameters_are_named(fn, first):
    pred, y = torch.tensor([3.0]), torch.tensor([4])
    expected = {"pred": 34.0, "y": 43.0}[first] if fn is not torch.sub else -1.0
    assert Stored(fn).update(pred, y).compute() == expected


@pytest.mark.parametrize("fn", [
    functools.partial(tm.precision, task="binary"), functools.partial(tm.recall, task="binary"), tm.r2_score,
    functools.partial(tm.auroc, task="binary"), tm.mean_absolute_percentage_error, torch.nn.functional.huber_loss,
    torch.nn.functional.binary_cross_entropy,
])
def test_functions_of_torchmetrics_and_torch_get_the_predictions_first(fn):
    generator = torch.Generator().manual_seed(4)
    pred, y = torch.rand(30, generator=generator), torch.randint(2, (30,), generator=generator)
    if getattr(fn, "__module__", "") == "torch.nn.functional":
        y = y.float()
    stored = Stored(fn)
    for p, t in zip(pred.split(7), y.split(7)):
        stored.update(p, t)
    assert stored.compute() == pytest.approx(float(fn(pred, y)), rel=1e-6)


def test_scores_by_scikit_learn_are_the_same_made_anew_over_ranks_and_from_a_file():
    pred, y = two_class_data()["classes"]
    per_rank = []
    for rank in range(2):
        metrics = EpochMetrics()
        for p, t in list(batches([20, 20, 1], pred, y))[rank::2]:
            metrics.update({"precision": Stored(sk.precision_score).update(p, t)}, len(p))
        per_rank.append(metrics)
    expected = sk.precision_score(y, pred)
    assert expected != sk.recall_score(y, pred)
    assert computed_by_ranks(per_rank) == [{"precision": pytest.approx(expected)}] * 2


# --- Accuracy -------------------------------------------------------------------------------------------------------


@MODERATE
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=12),
       st.integers(1, 3), st.booleans())
def test_accuracy_is_right_over_counted_however_the_epoch_is_split_over_ranks(parts, ranks, as_tensors):
    make = torch.tensor if as_tensors else int
    ranks = min(ranks, len(parts))

    def epoch(parts):
        metrics = EpochMetrics()
        for right, wrong, ignored in parts:
            metrics.update({"acc": Accuracy().update({1: make(right)}, make(right + wrong))}, right + wrong + ignored)
        return metrics

    right, counted = sum(part[0] for part in parts), sum(part[0] + part[1] for part in parts)
    expected = {"acc": right / counted if counted else pytest.approx(float("nan"), nan_ok=True)}
    per_rank = [epoch(parts[rank::ranks]) for rank in range(ranks)]
    assert epoch(parts).compute() == expected
    assert computed_by_ranks(per_rank) == [expected] * ranks


def test_a_batch_that_may_be_read_in_two_ways_is_counted_in_the_way_of_the_certain_ones():
    def computed(*updates, name="acc"):
        metrics = EpochMetrics()
        for update in updates:
            metrics.update({name: Accuracy().update(*update)}, 1)
        return metrics.compute()

    either = ({1: 1, -1: 3}, 4)
    assert computed(either, ({-1: 2}, 6)) == computed(({-1: 2}, 6), either) == {"acc": 5 / 10}
    assert computed(({1: 2}, 6), either, name="mine") == {"mine": 3 / 10}
    assert computed(either) == {} and computed(({1: 2}, 6), ({-1: 2}, 6)) == {}
    assert computed(({1: 2}, 6), ({1: 2}, 6, 1)) == {}, "labels that are no classes"


# --- Confusion ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@MODERATE
@given(classified(), st.sampled_from(AVERAGES), st.sampled_from(["indices", "scores", "bf16 scores"]))
def test_confusion_scores_equal_scikit_learn_however_the_epoch_is_split(case, average, kind):
    num_classes, y, pred, sizes = case
    dtype = torch.bfloat16 if kind == "bf16 scores" else torch.float32
    given_pred = pred if kind == "indices" else as_scores(pred, num_classes, dtype)
    confusion = Confusion(num_classes)
    for p, t in batches(sizes, given_pred, y):
        confusion.update(p, t)
    computed = {name: score.compute() for name, score in scores_of(confusion, average).items()}
    assert computed == pytest.approx(expected_scores(y, pred, average), rel=1e-12, abs=1e-12)
    expected_counts = sk.confusion_matrix(y.numpy(), pred.numpy(), labels=range(num_classes))
    assert np.array_equal(confusion.compute().numpy(), expected_counts)


@pytest.mark.slow
@MODERATE
@given(classified(max_classes=2))
def test_binary_scores_equal_scikit_learn(case):
    _, y, pred, sizes = case
    confusion = Confusion(2)
    for p, t in batches(sizes, pred, y):
        confusion.update(p.bool(), t.int())
    computed = {name: score.compute() for name, score in scores_of(confusion, "binary").items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert computed == pytest.approx(expected_scores(y, pred, "binary"), rel=1e-12, abs=1e-12)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(2, 5), st.sampled_from(AVERAGES),
       st.integers(0, 10**6))
def test_images_of_classes_are_counted_pixel_by_pixel(count, height, width, num_classes, average, seed):
    generator = torch.Generator().manual_seed(seed)
    pred, y = (torch.randint(num_classes, (count, height, width), generator=generator) for _ in range(2))
    confusion = Confusion(num_classes)
    for start in range(0, count, 2):
        part = slice(start, start + 2)
        confusion.update(as_scores(pred, num_classes)[part] if start else pred[part], y[part])
    computed = {name: score.compute() for name, score in scores_of(confusion, average).items()}
    assert computed == pytest.approx(expected_scores(y, pred, average), rel=1e-12, abs=1e-12)


@pytest.mark.slow
@MODERATE
@given(classified(), st.sampled_from(AVERAGES))
def test_objects_made_anew_for_each_batch_and_made_once_give_the_same_result(case, average):
    num_classes, y, pred, sizes = case
    shared = Confusion(num_classes)
    lasting = scores_of(shared, average)  # made once, and their Confusion is what is updated
    ways = {name: EpochMetrics() for name in
            ("new, shared", "new, matrix first", "new, each its own", "once", "once, scores made anew")}
    for p, t in batches(sizes, pred, y):
        new = Confusion(num_classes).update(p, t)
        shared.update(p, t)
        own = {name: scores_of(Confusion(num_classes), average)[name].update(p, t) for name in lasting}
        ways["new, shared"].update({**scores_of(new, average), "matrix": new}, len(p))
        ways["new, matrix first"].update({"matrix": new, **scores_of(new, average)}, len(p))
        ways["new, each its own"].update({**own, "matrix": Confusion(num_classes).update(p, t)}, len(p))
        ways["once"].update({**lasting, "matrix": shared}, len(p))
        ways["once, scores made anew"].update({"matrix": shared, **scores_of(shared, average)}, len(p))
    expected = expected_scores(y, pred, average)
    for way, metrics in ways.items():
        result = metrics.compute()
        matrix = result.pop("matrix")
        assert np.array_equal(np.asarray(matrix), sk.confusion_matrix(y, pred, labels=range(num_classes))), way
        assert result == pytest.approx(expected, rel=1e-12, abs=1e-12), way


def test_an_epoch_leaves_nothing_behind_for_the_next():
    shared, mean, metrics = Confusion(2), Mean(), EpochMetrics()
    stored = Stored(lambda pred, y: len(pred))
    for _ in range(3):
        y = torch.tensor([0, 1, 1])
        shared.update(y, y.flip(0))
        metrics.update({"acc": shared.accuracy(), "m": shared, "mean": mean.update(2.0), "n": stored.update(y, y)}, 3)
        result = metrics.compute()
        assert result["acc"] == pytest.approx(1 / 3) and result["m"].sum() == 3 and result["n"] == 3.0
        metrics.reset()
    assert shared.counts_CC.sum() == 0 and math.isnan(mean.compute()) and metrics.compute() == {}


def test_no_samples_score_nan_and_an_empty_matrix():
    confusion = Confusion(3)
    assert all(math.isnan(score.compute()) for average in ("macro", "weighted")
               for score in scores_of(confusion, average).values())
    assert confusion.compute().tolist() == [[0] * 3] * 3


@pytest.mark.parametrize("y", [[0, 3], [0, -1], [255, 0]])
def test_a_label_out_of_range_is_an_error_that_counts_them_and_names_the_range(y):
    score = Confusion(3).update(torch.tensor([0, 1]), torch.tensor(y)).f1()
    with pytest.raises(ValueError, match=r"Confusion\(3\) saw 1 labels or predictions outside \[0, 3\)"):
        score.compute()


def test_a_prediction_out_of_range_is_an_error_too():
    with pytest.raises(ValueError, match="saw 2 labels or predictions outside"):
        Confusion(3).update(torch.tensor([3, -1, 2]), torch.tensor([0, 1, 2])).compute()


@pytest.mark.parametrize(("pred", "y"), [
    (torch.rand(4, 5), torch.zeros(4).long()),           # scores of other than C classes
    (torch.rand(4), torch.zeros(4).long()),              # one score per sample
    (torch.rand(4, 1), torch.zeros(4).long()),
    (torch.rand(4, 3), torch.zeros(4)),                  # floating labels
    (torch.zeros(4).long(), torch.zeros(5).long()),
    (torch.zeros(4).long(), torch.zeros(4, 1).long()),
    (torch.rand(4, 6, 6, 3), torch.zeros(4, 6, 6).long()),  # classes last
    (torch.rand(3), torch.tensor(1)),                    # no batch dimension
])
def test_wrong_shapes_and_dtypes_are_refused_with_both_of_them(pred, y):
    with pytest.raises(ValueError, match=r"Confusion\(3\) takes pred") as error:
        Confusion(3).update(pred, y)
    assert str(tuple(pred.shape)) in str(error.value) and str(tuple(y.shape)) in str(error.value)
    assert str(pred.dtype) in str(error.value) and str(y.dtype) in str(error.value)


def test_an_unknown_average_and_binary_of_three_classes_are_refused():
    with pytest.raises(ValueError, match=r"average must be one of \['micro', .*got 'samples'"):
        Confusion(3).f1("samples")
    with pytest.raises(ValueError, match="needs two classes, got 3"):
        Confusion(3).recall("binary")


# --- merging, state, ranks ------------------------------------------------------------------------------------------


def filled(kind, p, t):
    """A metric of each kind that has seen one part."""
    return {
        "mean": lambda: Mean().update((p == t).double().mean(), len(p)),
        "stored": lambda: Stored(lambda pred, y: sk.accuracy_score(y, pred)).update(p, t),
        "confusion": lambda: Confusion(6).update(p, t),
        "score": lambda: Confusion(6).accuracy().update(p, t),
    }[kind]()


@MODERATE
@given(classified(), st.sampled_from(["mean", "stored", "confusion", "score"]))
def test_merged_parts_equal_the_whole(case, kind):
    _, y, pred, sizes = case
    first, *others = [filled(kind, p, t) for p, t in batches(sizes, pred, y)]
    untouched = [copy.deepcopy(other.compute()) for other in others]
    for other in others:
        first.merge(other)
    whole = filled(kind, pred, y).compute()
    assert np.allclose(first.compute(), whole, rtol=1e-12)
    assert all(np.array_equal(other.compute(), before) for other, before in zip(others, untouched))


@MODERATE
@given(classified(), st.sampled_from(["mean", "stored", "confusion", "score"]))
def test_a_restored_metric_goes_on_like_the_one_that_was_saved(case, kind):
    _, y, pred, sizes = case
    first, *others = [filled(kind, p, t) for p, t in batches(sizes, pred, y)]
    restored = filled(kind, pred[:1], y[:1])  # what it held before is replaced
    restored.load_state_dict(through_a_file(first.state_dict()))
    for other in others:
        first.merge(other)
        restored.merge(other)
    assert np.array_equal(restored.compute(), first.compute())


def test_an_empty_metric_has_a_state_too():
    for metric in (Mean(), Stored(max), Confusion(2), Confusion(2).f1()):
        other = copy.deepcopy(metric)
        other.load_state_dict(through_a_file(metric.state_dict()))
        assert np.array_equal(other.compute(), metric.compute(), equal_nan=True)


class Largest(Metric):
    """One of a user, with an argument of its own."""

    def __init__(self, floor):
        self.floor = floor
        self.reset()

    def update(self, value):
        self.values.append(value)
        return self

    def merge(self, other):
        self.values += other.values

    def compute(self):
        return max(self.values + [self.floor])

    def reset(self):
        self.values = []

    def state_dict(self):
        return {"values": list(self.values)}

    def load_state_dict(self, state):
        self.values[:] = state["values"]


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(classified(), st.integers(1, 4), st.booleans(), st.booleans())
def test_reduced_over_ranks_everything_equals_the_single_process_value(case, ranks, once, matrix_first):
    num_classes, y, pred, sizes = case
    parts = list(batches(sizes, pred, y))
    ranks = min(ranks, len(parts))

    def new():
        return {"confusion": Confusion(num_classes), "stored": Stored(lambda p, t: sk.accuracy_score(t, p)), "mean": Mean()}

    def epoch(parts):
        kept = new()
        metrics = EpochMetrics()
        for p, t in parts:
            made = kept if once else new()
            confusion = made["confusion"].update(p, t)
            scores = scores_of(confusion, "macro")
            values = {"matrix": confusion, **scores} if matrix_first else {**scores, "matrix": confusion}
            metrics.update({**values, "stored": made["stored"].update(p, t), "largest": Largest(-1).update(p.max().item()),
                            "mean": made["mean"].update((p == t).double().mean(), len(p)),
                            "plain": (p == t).double().mean()}, len(p))
        return metrics, kept

    per_rank = [epoch(parts[rank::ranks]) for rank in range(ranks)]
    expected = epoch(parts)[0].compute()
    for result in computed_by_ranks([metrics for metrics, _ in per_rank]):
        assert list(result) == list(expected)
        for name, value in result.items():
            assert np.allclose(value, expected[name], rtol=1e-12, equal_nan=True), name
        assert result["matrix"].sum() == len(y)
    for metrics, kept in per_rank:
        metrics.reset()
        if once:  # the next epoch starts empty
            assert kept["confusion"].counts_CC.sum() == 0 and math.isnan(kept["mean"].compute())


def test_a_rank_without_a_batch_is_left_out_of_a_metric():
    metrics = EpochMetrics()
    metrics.update({"acc": 0.5, "n": Mean().update(1.0)}, 4)
    assert computed_by_ranks([metrics, EpochMetrics()]) == [{"acc": 0.5, "n": 1.0}] * 2
    assert computed_by_ranks([EpochMetrics(), metrics]) == [{"acc": 0.5, "n": 1.0}] * 2


def test_what_only_some_batches_return_counts_whichever_rank_had_them_and_stands_where_one_process_has_it():
    """Names come as one process meets them, and the objects of the rank that met one first compute it."""
    for size in (2, 3, 4):
        epochs = [EpochMetrics() for _ in range(size)]
        whole = EpochMetrics()
        for number in range(9):
            y, pred = torch.arange(number + 2) % 3, torch.ones(number + 2, dtype=torch.int64)
            values = {"all": number}
            if number in (3, 5, 8):
                values |= {"some": number, "f1": Confusion(3).update(pred, y).f1(),
                           "stored": Stored(lambda pred, y: (pred * y).sum()).update(pred, y)}
            if number == 7:
                values = {"one": Mean().update(number, 3), **values}
            for metrics in (whole, epochs[number % size]):
                metrics.update(values if metrics is whole else copy.deepcopy(values), len(y))
        expected = whole.compute()
        assert list(expected) == ["all", "some", "f1", "stored", "one"]
        for result in computed_by_ranks(epochs):
            assert list(result) == list(expected) and result == pytest.approx(expected, rel=1e-12)


def test_torchmetrics_of_some_batches_count_once_whichever_rank_had_them():
    epochs, numbers = [EpochMetrics(), EpochMetrics()], [torchmetrics.MeanMetric(), torchmetrics.MeanMetric()]
    for number in range(8):
        values = {"all": number}
        if number > 2:
            numbers[number % 2].update(number)
            values["mean"] = numbers[number % 2]
        epochs[number % 2].update(values, 1)
    assert computed_by_ranks(epochs) == [{"all": 3.5, "mean": 5.0}] * 2


@pytest.mark.slow
@MODERATE
@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.integers(1, 4), st.booleans(), st.integers(1, 2))
def test_stored_predictions_come_in_the_order_of_the_loader_however_many_ranks_there_are(counts, ranks, once, updates):
    """``updates`` in one batch; a batch without samples has none, and neither has each third."""
    order = Stored(lambda pred, y: tuple(pred.tolist()))
    epochs = [EpochMetrics() for _ in range(ranks)]
    stored = [Stored(order.fn) for _ in range(ranks)]
    expected, first = [], 0
    for number, count in enumerate(counts):
        numbers, first = torch.arange(first, first + count), first + count
        own = stored[number % ranks] if once else Stored(order.fn)
        if number % 3 != 1:
            expected += numbers.tolist()
            for part in numbers.chunk(updates):
                own.update(part, part)
        epochs[number % ranks].update({"order": own} if number % 3 != 1 else {"other": 1.0}, count)
    assert [result.get("order") for result in computed_by_ranks(epochs)] == [tuple(expected)] * ranks


def test_an_error_in_what_another_rank_computes_reaches_every_rank():
    def failing(pred, y):
        raise ArithmeticError("nothing to divide by")

    epochs = [EpochMetrics(), EpochMetrics()]
    epochs[1].update({"bad": Stored(failing).update(torch.ones(2), torch.ones(2))}, 2)
    zero, one = computed_by_ranks(epochs)
    assert type(one) is ArithmeticError
    assert type(zero) is OtherRankFailed and str(zero) == "rank 1: ArithmeticError: nothing to divide by"


def computed_by_ranks(per_rank):
    """For each rank what its ``compute`` gives, or the error that it raises."""
    return in_threads(len(per_rank), lambda world: per_rank[world.rank].compute(world))


# --- torchmetrics and TemplateModel ---------------------------------------------------------------------------------


def expected_eval(trainer):
    """pred and y of the trained model on the eval data, by a plain loop."""
    x, y = tiny_data(23, seed=5)
    model = trainer.model_list[0].eval()
    with torch.no_grad():
        return model(x), y


@pytest.mark.parametrize("how", ["metrics", "metric()"])
def test_torchmetrics_objects_and_collections_score_every_epoch_afresh(how):
    f1 = torchmetrics.F1Score("multiclass", num_classes=3, average="macro")
    collection = torchmetrics.MetricCollection({
        "precision": torchmetrics.Precision("multiclass", num_classes=3, average="macro"),
        "recall": torchmetrics.Recall("multiclass", num_classes=3, average="macro"),
    })

    def metric(pred, y):
        f1.update(pred, y)
        collection.update(pred, y)
        return {"f1": f1, "all": collection, "ours": Confusion(3).update(pred, y).f1()}

    if how == "metrics":
        trainer = tiny_trainer(eval_metrics={"f1": f1, "all": collection, "ours": Confusion(3).f1()}, key_metric="f1")
    else:
        trainer = tiny_trainer(metric=metric, key_metric="f1")
    for _ in range(2):
        trainer.train_loop()
        score = trainer.eval()
        pred, y = expected_eval(trainer)
        options = {"average": "macro", "zero_division": 0}
        expected = {name: fn(y, pred.argmax(1), **options) for name, fn in
                    (("f1", sk.f1_score), ("ours", sk.f1_score), ("precision", sk.precision_score),
                     ("recall", sk.recall_score))}
        assert {name: trainer.eval_result[name] for name in expected} == pytest.approx(expected, abs=1e-6)
        assert score == trainer.eval_result["f1"]
    assert isinstance(trainer.best_metric["recall"], float)


def test_a_torchmetrics_object_made_anew_for_each_batch_is_refused_with_its_name():
    def metric(pred, y):
        accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        accuracy.update(pred, y)
        return {"accuracy_of_batch": accuracy}

    trainer = tiny_trainer(metric=metric, preflight=False)
    with pytest.raises(TypeError, match="'accuracy_of_batch' returned a new MulticlassAccuracy for each batch"):
        trainer.test()


def test_losses_and_metrics_of_an_evaluation_are_means_over_samples():
    auc = Stored(lambda pred, y: sk.roc_auc_score(y, pred.softmax(1), multi_class="ovr"))

    def metric(pred, y):
        confusion = Confusion(3).update(pred, y)
        return {"plain": (pred.argmax(1) == y).double().mean(), "acc": confusion.accuracy(), "f1": confusion.f1(),
                "auc": auc.update(pred, y), "weighted": Mean().update(pred.square().mean(), pred.numel())}

    trainer = tiny_trainer(metric=metric, key_metric="f1")
    result = trainer.test()
    pred, y = expected_eval(trainer)
    classes = pred.argmax(1)
    assert result == pytest.approx({
        "tol_loss": torch.nn.functional.cross_entropy(pred, y).item(),
        "plain": sk.accuracy_score(y, classes), "acc": sk.accuracy_score(y, classes),
        "f1": sk.f1_score(y, classes, average="macro", zero_division=0),
        "auc": sk.roc_auc_score(y, pred.softmax(1), multi_class="ovr"), "weighted": pred.square().mean().item(),
    }, rel=1e-5)
    assert all(type(value) is float for value in result.values())


def test_predictions_in_bfloat16_score_like_their_float32_values():
    trainer = tiny_trainer(amp="bf16", metric=lambda pred, y: {
        "f1": Confusion(3).update(pred, y).f1(), "n": Stored(lambda p, t: float(p.dtype == torch.float32)).update(pred, y),
        "mean": pred.mean(), "dtype": Mean().update(float(pred.dtype == torch.bfloat16)),
    }, key_metric="f1")
    result = trainer.test()
    x, y = tiny_data(23, seed=5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        pred = torch.cat([trainer.model_list[0].eval()(part) for part in x.split(10)])
    assert result["f1"] == pytest.approx(sk.f1_score(y, pred.float().argmax(1), average="macro", zero_division=0))
    assert result["n"] == 1.0 and result["dtype"] == 1.0
    means = [part.mean().item() for part in pred.split(10)]
    assert result["mean"] == pytest.approx(np.average(means, weights=[10, 10, 3]), rel=1e-6)


def test_train_losses_are_means_over_samples_with_a_short_last_batch():
    trainer = tiny_trainer(model=tiny_model(dropout=0.0), log_per_step=4, loss_per_batch=lambda batch: {
        "tol_loss": trainer.criterion(trainer.inference(batch[0]), batch[1]) * 0, "x": batch[0].mean(), "one": 1})
    result = trainer.train_loop()
    assert result["x"] == pytest.approx(tiny_data()[0].double().mean().item(), abs=1e-7)
    assert result["one"] == 1.0 and result["tol_loss"] == 0.0


def test_several_eval_loaders_do_not_share_what_an_object_made_once_has_seen():
    confusion = Confusion(3)
    loaders = {"a": DataLoader(TensorDataset(*tiny_data(23, seed=5)), 10),
               "b": DataLoader(TensorDataset(*tiny_data(31, seed=6)), 10)}
    collection = torchmetrics.MetricCollection({"acc": torchmetrics.Accuracy("multiclass", num_classes=3, average="micro")})
    trainer = tiny_trainer(eval_loader=loaders, eval_metrics={"f1": confusion.f1(), "all": collection}, key_metric="a/f1")
    result = trainer.test()
    model = trainer.model_list[0].eval()
    for name, (x, y) in {"a": tiny_data(23, seed=5), "b": tiny_data(31, seed=6)}.items():
        with torch.no_grad():
            classes = model(x).argmax(1)
        assert result[f"{name}/f1"] == pytest.approx(sk.f1_score(y, classes, average="macro", zero_division=0))
        assert result[f"{name}/acc"] == pytest.approx(sk.accuracy_score(y, classes))


# --- RunningLosses --------------------------------------------------------------------------------------------------


@MODERATE
@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100), st.integers(1, 20)), min_size=1, max_size=15),
       st.integers(1, 6), st.integers(0, 15))
def test_window_and_epoch_means_equal_numpy_also_when_restored_in_the_middle_of_a_window(values, window, restart):
    losses = RunningLosses()
    seen = []
    for number, (a, b, count) in enumerate(values):
        losses.update({"tol_loss": torch.tensor(a, dtype=torch.float64), "b": b}, count)
        seen.append((a, b, count))
        if number == restart:
            state = through_a_file(losses.state_dict())
            losses = RunningLosses()
            losses.update({"tol_loss": 1e9}, 1)  # replaced by the state
            losses.load_state_dict(state)
        if len(seen) == window or number == len(values) - 1:
            a_seen, b_seen, counts = zip(*seen)
            assert losses.window() == pytest.approx({"tol_loss": np.average(a_seen, weights=counts),
                                                     "b": np.average(b_seen, weights=counts)}, abs=1e-9)
            assert losses.window() == {}
            seen = []
    a_all, b_all, counts = zip(*values)
    assert losses.compute() == pytest.approx({"tol_loss": np.average(a_all, weights=counts),
                                              "b": np.average(b_all, weights=counts)}, abs=1e-9)
    losses.reset()
    assert losses.compute() == {} and losses.window() == {}


def test_a_loss_that_only_some_batches_have_is_a_mean_over_those():
    losses = RunningLosses()
    losses.update({"tol_loss": 1.0, "adversarial": 4.0}, 10)
    losses.update({"tol_loss": 2.0}, 30)
    assert losses.window() == {"tol_loss": 1.75, "adversarial": 4.0}


def test_running_losses_keep_no_graph_alive():
    losses = RunningLosses()
    losses.update({"tol_loss": torch.ones((), requires_grad=True) * 2}, 1)
    assert not losses.pending[0][0]["tol_loss"].requires_grad


def test_the_window_lists_every_batch_for_the_look_at_finite_values():
    losses = RunningLosses()
    for value in (1.0, float("nan"), 3.0):
        losses.update({"tol_loss": torch.tensor(value)}, 2)
    assert [math.isnan(entry["tol_loss"]) for entry, _ in losses.fetch()] == [False, True, False]
