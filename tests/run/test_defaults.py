"""What the default methods make of a batch: labels as torch asks for them, and accuracy where it is certain what is right.

Losses are compared with a plain call of torch, accuracies with scikit-learn on all labels that count.
"""

import functools
import math

import pytest
import torch
from sklearn.metrics import accuracy_score
from tiny import Tiny, tiny_trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from template.metrics.epoch import EpochMetrics
from template.run.defaults import criterion_inputs, default_metrics


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randint(*args, seed=1):
    return torch.randint(*args, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("label", ["labels", "label"])
def test_dict_batches_with_labels_train_and_score_as_tuples_do(label):
    class Named(nn.Linear):
        def forward(self, pixels, shift=0):
            return super().forward(pixels + shift)

    def trainer(batches):
        torch.manual_seed(0)
        model = Named(6, 3)
        made = tiny_trainer(model=model, train_loader=batches, eval_loader=batches[:2], preflight=False)
        made.fit(2)
        return made

    tuples = [(randn(5, 6, seed=i), randint(3, (5,), seed=i)) for i in range(4)]
    one, other = trainer(tuples), trainer([{"pixels": x.double(), label: y} for x, y in tuples])
    assert one.eval_result == other.eval_result and "acc" in one.eval_result
    assert torch.equal(one.model_list[0].weight, other.model_list[0].weight)
    assert torch.equal(other.predict([{"pixels": tuples[0][0]}]), one.predict([tuples[0][0]]))


class AsOne(nn.Linear):
    """Takes the dict itself, as models do that were written for one kind of batch."""

    def forward(self, batch, with_loss=True):
        pred = super().forward(batch["pixels"])
        return {"loss": nn.functional.cross_entropy(pred, batch["labels"]), "pred": pred} if with_loss else pred


def test_a_model_whose_one_input_has_none_of_the_names_gets_the_dict():
    batches = [{"pixels": randn(5, 6, seed=i), "labels": randint(3, (5,), seed=i)} for i in range(4)]
    model = AsOne(6, 3)
    trainer = tiny_trainer(model=model, criterion=None, train_loader=batches, eval_loader=batches[:2])
    before = sum(model(batch)["loss"].item() for batch in batches)
    trainer.fit(3)
    assert sum(model(batch)["loss"].item() for batch in batches) < before and "tol_loss" in trainer.eval_result
    assert torch.equal(trainer.inference(batches[0])["pred"], model(batches[0], with_loss=False))


def test_a_loss_that_takes_the_labels_out_of_the_dict_leaves_them_to_the_evaluation():
    class Pops(Tiny):
        def loss_per_batch(self, batch):
            labels = batch.pop("labels")
            return self.criterion(self.model_list[0](batch["pixels"]), labels)

        def eval_scores_per_batch(self, batch):
            return self.metric(self.model_list[0](batch["pixels"]), batch["labels"])

    samples = [{"pixels": x, "labels": y} for x, y in zip(randn(20, 6), randint(3, (20,)))]
    trainer = Pops(train_loader=DataLoader(samples, 5), eval_loader=DataLoader(samples[:], 5))
    trainer.check_init(use_tb=False)
    trainer.fit(2)
    right = trainer.predict(DataLoader([sample["pixels"] for sample in samples], 5)).argmax(1) == randint(3, (20,))
    assert trainer.eval_result["acc"] == pytest.approx(right.float().mean().item())


# --- labels in the dtype that a loss takes ----------------------------------------------------------------------------

LARGE = torch.tensor([[1001], [70001], [-3], [257], [0], [12345]])  # no half precision holds the first two
ZERO_ONE, CLASS = randint(2, (6, 4)), randint(4, (6,))
SETS = torch.tensor([[2, 0, -1, 1], [3, -1, 0, 0], [-1, 1, 2, 3], [0, 1, 2, -1], [1, -1, -1, -1], [2, 3, -1, 0]])
WIDE = (torch.int64, torch.int32)
INTEGERS = (*WIDE, torch.int16)
SMALL = (*INTEGERS, torch.uint8)


def sigmoid(pred):
    return pred.float().sigmoid().to(pred.dtype)  # torch has none that is exact in half precision


def as_it_is(pred):
    return pred


def log_softmax(pred):
    return pred.log_softmax(1)


# loss: (shape of pred, labels, their dtypes at the user's, what torch takes, what the model ends in)
ELEMENTWISE = {
    nn.MSELoss: ((6, 1), LARGE, WIDE, torch.float32, as_it_is),
    nn.L1Loss: ((6, 1), LARGE, WIDE, torch.float32, as_it_is),
    nn.SmoothL1Loss: ((6, 1), LARGE, WIDE, torch.float32, as_it_is),
    nn.HuberLoss: ((6, 1), LARGE, WIDE, torch.float32, as_it_is),
    nn.PoissonNLLLoss: ((6, 1), LARGE.abs(), WIDE, torch.float32, as_it_is),
    nn.BCELoss: ((6, 4), ZERO_ONE, (*SMALL, torch.bool), torch.float32, sigmoid),
    nn.BCEWithLogitsLoss: ((6, 4), ZERO_ONE, (*SMALL, torch.bool), torch.float32, as_it_is),
    nn.MultiLabelSoftMarginLoss: ((6, 4), ZERO_ONE, (*SMALL, torch.bool), torch.float32, as_it_is),
    nn.SoftMarginLoss: ((6, 4), ZERO_ONE * 2 - 1, INTEGERS, torch.float32, as_it_is),
    nn.HingeEmbeddingLoss: ((6, 4), ZERO_ONE * 2 - 1, INTEGERS, torch.float32, as_it_is),
    nn.KLDivLoss: ((6, 4), F.one_hot(CLASS, 4), SMALL, torch.float32, log_softmax),
}
OF_CLASSES = {
    nn.CrossEntropyLoss: ((6, 4), CLASS, SMALL, torch.int64, as_it_is),
    nn.NLLLoss: ((6, 4), CLASS, SMALL, torch.int64, log_softmax),
    nn.MultiMarginLoss: ((6, 4), CLASS, SMALL, torch.int64, as_it_is),
    nn.MultiLabelMarginLoss: ((6, 4), SETS, INTEGERS, torch.int64, as_it_is),
}
OF_IMAGES = {
    nn.CrossEntropyLoss: ((2, 4, 3, 5), randint(4, (2, 3, 5)), SMALL, torch.int64, as_it_is),
    nn.NLLLoss: ((2, 4, 3, 5), randint(4, (2, 3, 5)), SMALL, torch.int64, log_softmax),
}
FUNCTIONS = {
    nn.MSELoss: F.mse_loss, nn.L1Loss: F.l1_loss, nn.SmoothL1Loss: F.smooth_l1_loss, nn.HuberLoss: F.huber_loss,
    nn.PoissonNLLLoss: F.poisson_nll_loss, nn.BCELoss: F.binary_cross_entropy, nn.SoftMarginLoss: F.soft_margin_loss,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits, nn.MultiLabelSoftMarginLoss: F.multilabel_soft_margin_loss,
    nn.HingeEmbeddingLoss: F.hinge_embedding_loss, nn.KLDivLoss: F.kl_div, nn.CrossEntropyLoss: F.cross_entropy,
    nn.NLLLoss: F.nll_loss, nn.MultiMarginLoss: F.multi_margin_loss, nn.MultiLabelMarginLoss: F.multilabel_margin_loss,
}
OF_MORE_THAN_TWO = {"GaussianNLLLoss", "CosineEmbeddingLoss", "MarginRankingLoss", "TripletMarginLoss", "CTCLoss",
                    "TripletMarginWithDistanceLoss"}  # (pred, y) is not enough: they need a loss_per_batch
OF_HIDDEN_STATES = {"LinearCrossEntropyLoss", "AdaptiveLogSoftmaxWithLoss"}


def test_every_loss_of_torch_is_in_a_table():
    known = {kind.__name__ for kind in (*ELEMENTWISE, *OF_CLASSES)} | OF_MORE_THAN_TWO | OF_HIDDEN_STATES
    losses = {name for name, kind in vars(nn).items() if name.endswith("Loss") and isinstance(kind, type)}
    assert losses - {"NLLLoss2d"} <= known


def cases(*tables):
    return [pytest.param(kind, *case, id=f"{kind.__name__} {case[0]}") for table in tables for kind, case in table.items()]


@pytest.mark.filterwarnings("ignore:reduction:UserWarning")  # of KLDivLoss
@pytest.mark.parametrize("as_function", [False, True], ids=["module", "function"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind, shape, y, dtypes, taken, ending", cases(ELEMENTWISE, OF_CLASSES, OF_IMAGES))
def test_integer_labels_give_the_loss_and_the_gradient_of_a_plain_call(kind, shape, y, dtypes, taken, ending, dtype,
                                                                       as_function):
    criterion = FUNCTIONS[kind] if as_function else kind()
    is_elementwise = taken is torch.float32
    wide = torch.promote_types(dtype, torch.float32) if is_elementwise else dtype
    if kind in (nn.MultiMarginLoss, nn.MultiLabelMarginLoss) and dtype in (torch.bfloat16, torch.float16):
        wide = torch.float32  # these have no kernel for half precision on the CPU

    plain = randn(*shape).to(dtype).requires_grad_()
    expected = kind()(ending(plain).to(wide), y.to(wide if is_elementwise else taken))
    expected.backward()
    for labels in (y.to(dtype) for dtype in dtypes):
        pred = randn(*shape).to(dtype).requires_grad_()
        given = criterion_inputs(criterion, ending(pred) if is_elementwise else ending(pred).to(wide), labels)
        loss = criterion(*given)
        loss.backward()
        assert torch.equal(loss, expected) and loss.dtype is wide and torch.isfinite(loss)
        assert torch.equal(pred.grad, plain.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("labels", [torch.float32, torch.float64])
def test_floating_labels_keep_their_precision_and_the_loss_has_a_gradient(dtype, labels):
    """HuberLoss of torch gives no gradient when the two differ, the others compute in the wider one."""
    for kind in (nn.MSELoss, nn.HuberLoss, nn.BCEWithLogitsLoss, nn.CrossEntropyLoss):
        y = randn(6, 4, seed=2).to(labels).softmax(1)
        plain, pred = (randn(6, 4).to(dtype).requires_grad_() for _ in range(2))
        expected = kind()(plain.to(labels), y)
        loss = kind()(*criterion_inputs(kind(), pred, y))
        expected.backward()
        loss.backward()
        assert torch.equal(loss, expected) and torch.equal(pred.grad, plain.grad)


def test_labels_that_fit_are_passed_on_as_they_are_and_a_criterion_of_ones_own_gets_what_came():
    pred, y = randn(6, 4), randint(4, (6,))
    for criterion, labels in ((nn.CrossEntropyLoss(), y), (nn.MSELoss(), pred.clone()), (lambda a, b: 0, y.int()),
                              (nn.MSELoss(), {"boxes": y}), (nn.L1Loss(), pred.bfloat16().clone())):
        scores = pred.to(labels.dtype) if isinstance(criterion, nn.L1Loss) else pred
        given = criterion_inputs(criterion, scores, labels)
        assert given[0] is scores and given[1] is labels
    assert criterion_inputs(nn.MSELoss(), (pred, pred), y)[1] is y


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="this torch has none")
def test_class_indices_of_a_loss_over_hidden_states_are_integers():
    criterion = nn.LinearCrossEntropyLoss(4, 3)
    hidden, y = randn(6, 4), randint(3, (6,))
    assert torch.equal(criterion(*criterion_inputs(criterion, hidden, y.to(torch.uint8))), criterion(hidden, y))
    for of_hidden_states in (criterion, nn.AdaptiveLogSoftmaxWithLoss(4, 3, [2])):
        assert default_metrics(of_hidden_states, hidden, y) == {}, "hidden states are no scores"


class Counts(Tiny):
    """Regression with integer labels, among them some that no half precision holds."""

    def __init__(self, **attributes):
        x, y = randn(40, 6), randint(-3, 70002, (40, 1))
        y[:2] = torch.tensor([[1001], [70001]])
        super().__init__(model=nn.Linear(6, 1), criterion=nn.L1Loss(), train_loader=DataLoader(TensorDataset(x, y), 8),
                         eval_loader=DataLoader(TensorDataset(x.clone(), y.clone()), 7), **attributes)


@pytest.mark.parametrize("half", ["amp", "weights"])
def test_regression_on_integers_in_half_precision_sees_the_labels_as_they_are(half):
    trainer = Counts(amp="bf16" if half == "amp" else None)
    if half == "weights":
        trainer.model_list[0].bfloat16()
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    model, (x, y) = trainer.model_list[0], trainer.eval_loader.dataset.tensors
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half == "amp"):
        pred = torch.cat([model(part if half == "amp" else part.bfloat16()) for part in x.split(7)])
    assert pred.dtype is torch.bfloat16
    expected = (pred.double() - y).abs().mean().item()
    assert trainer.test() == {"tol_loss": pytest.approx(expected, rel=1e-6)}


# --- accuracy: of what is certain -------------------------------------------------------------------------------------


def epoch_of(criterion, pred, y, sizes, **options):
    """What an evaluation in batches of these sizes gives."""
    metrics = EpochMetrics()
    for p, t in zip(pred.split(sizes), y.split(sizes)):
        metrics.update(default_metrics(criterion, p, t, **options), len(p))
    return metrics.compute()


def of_counted(classes, y, ignored=-100):
    classes, y = classes.flatten(), y.flatten()
    return accuracy_score(y[y != ignored], classes[y != ignored])


class OwnCriterion(nn.Module):
    def __init__(self, ignore_index):
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, pred, y):
        return F.cross_entropy(pred, y, ignore_index=self.ignore_index)


class OwnCrossEntropy(nn.CrossEntropyLoss):
    pass


@pytest.mark.parametrize("is_direct", [True, False])
@pytest.mark.parametrize("shape", [(20, 5), (20, 5, 7), (20, 5, 4, 3), (20, 2), (20, 5, 20)])
@pytest.mark.parametrize("criterion, ignored", [
    (nn.CrossEntropyLoss(), -100), (nn.CrossEntropyLoss(ignore_index=255), 255), (nn.CrossEntropyLoss(ignore_index=0), 0),
    (nn.NLLLoss(ignore_index=-1), -1), (OwnCrossEntropy(ignore_index=255), 255), (OwnCriterion(255), 255),
    (OwnCriterion(1), 1), (F.cross_entropy, -100), (F.nll_loss, -100), (lambda pred, y: F.cross_entropy(pred, y), -100),
    (functools.partial(F.cross_entropy, ignore_index=255, label_smoothing=0.1), 255),
])
def test_accuracy_of_classes_is_that_of_scikit_learn_over_the_labels_that_count(criterion, ignored, shape, is_direct):
    pred, y = randn(*shape), randint(shape[1], (shape[0], *shape[2:]))
    y[8:16] = ignored                            # a whole batch that counts for nothing
    y[::3] = ignored
    for labels in (y, y.to(torch.uint8)) if ignored >= 0 else (y, y.to(torch.int16)):
        result = epoch_of(criterion, pred, labels, [8, 8, 4], is_direct=is_direct)
        assert result == {"acc": of_counted(pred.argmax(1), y, ignored)}


def test_the_label_156_among_bytes_is_not_the_ignored_one():
    pred, y = randn(30, 200), randint(200, (30,))
    pred[:9, 156], y[:20] = 99.0, 156
    assert epoch_of(nn.CrossEntropyLoss(), pred, y.to(torch.uint8), 8) == {"acc": of_counted(pred.argmax(1), y)}


@pytest.mark.parametrize("y_shape", [(23,), (23, 1)])
@pytest.mark.parametrize("pred_shape", [(23,), (23, 1)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool, torch.uint8])
@pytest.mark.parametrize("criterion, threshold", [
    (nn.BCEWithLogitsLoss(), 0.0), (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), 0.0),
    (F.binary_cross_entropy_with_logits, 0.0), (nn.BCELoss(), 0.5), (F.binary_cross_entropy, 0.5),
    (functools.partial(F.binary_cross_entropy_with_logits, pos_weight=torch.tensor(3.0)), 0.0),
])
def test_accuracy_of_one_score_per_sample_has_the_threshold_of_its_loss(criterion, threshold, dtype, pred_shape, y_shape):
    scores, y = randn(23) if threshold == 0.0 else torch.rand(23, generator=torch.Generator()), randint(2, (23,))
    expected = accuracy_score(y, scores > threshold)
    assert 0.0 < expected < 1.0
    result = epoch_of(criterion, scores.view(pred_shape), y.to(dtype).view(y_shape), [10, 10, 3])
    assert result == {"acc": pytest.approx(expected)}


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), F.cross_entropy, lambda pred, y: 0, nn.NLLLoss()])
def test_the_time_axis_is_not_taken_for_classes(criterion):
    pred, y = randn(20, 7, 5), randint(5, (20, 7))
    y[:, 4:] = -100
    expected = {"acc": of_counted(pred.argmax(-1), y)}
    assert epoch_of(criterion, pred, y, 8, is_direct=False) == expected
    images, labels = randn(9, 4, 3, 5), randint(5, (9, 4, 3))
    assert epoch_of(criterion, images, labels, 4, is_direct=False) == {"acc": of_counted(images.argmax(-1), labels)}


def test_where_the_shapes_allow_both_the_other_batches_decide_and_else_nobody():
    """A language model whose batches are padded to their longest: one of them has as many tokens as there are classes."""
    time_last = [(randn(8, length, 5, seed=length), randint(5, (8, length), seed=length)) for length in (5, 9, 4)]

    def computed(parts, **options):
        metrics = EpochMetrics()
        for pred, y in parts:
            metrics.update(default_metrics(nn.CrossEntropyLoss(), pred, y, **options), len(y))
        return metrics.compute()

    expected = {"acc": accuracy_score(torch.cat([y.flatten() for _, y in time_last]),
                                      torch.cat([pred.argmax(-1).flatten() for pred, _ in time_last]))}
    assert computed(time_last, is_direct=False) == expected
    assert computed(time_last[:1], is_direct=False) == {}
    (pred, y), _, _ = time_last
    assert computed(time_last[:1]) == {"acc": accuracy_score(y.flatten(), pred.argmax(1).flatten())}, "as the loss reads it"


class ArcFace(nn.Module):
    """Classifies what it is given: its pred are embeddings."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(randn(5, 4))

    def forward(self, pred, y):
        return F.cross_entropy(pred @ self.weight.T, y)


@pytest.mark.parametrize("criterion, pred, y", [
    (nn.MSELoss(), randn(8, 5), randint(5, (8,))), (nn.L1Loss(), randn(8, 1), randint(5, (8,))),
    (F.mse_loss, randn(8, 5), randint(5, (8,))), (nn.HingeEmbeddingLoss(), randn(8, 5), randint(2, (8,))),
    (nn.CTCLoss(), randn(8, 3, 5), randint(5, (8, 5))), (nn.MultiLabelMarginLoss(), randn(8, 5), randint(5, (8, 5))),
    (nn.BCEWithLogitsLoss(), randn(8, 5), randint(2, (8, 5))),          # several labels each
    (nn.BCEWithLogitsLoss(), randn(8, 5), randint(2, (8, 5)).float()),
    (nn.BCEWithLogitsLoss(), randn(8), torch.full((8,), 0.3)),          # soft labels
    (nn.BCEWithLogitsLoss(), randn(8, 1), randint(2, (8,)) * 2 - 1),
    (nn.CrossEntropyLoss(), randn(8, 5), randn(8, 5).softmax(1)),
    (nn.CrossEntropyLoss(), randn(8, 1), torch.zeros(8).long()),
    (nn.CrossEntropyLoss(), randn(5), torch.tensor(3)), (nn.CrossEntropyLoss(), randn(8, 5, 3), randint(5, (8, 7))),
    (lambda pred, y: 0, randn(8, 1), randint(2, (8,))),                 # logits or probabilities: nobody knows
    (lambda pred, y: 0, randn(8), randint(2, (8,))), (lambda pred, y: 0, randn(8, 5), randn(8)),
    (lambda pred, y: 0, randn(8, 5), randint(5, 90, (8,))),             # embeddings, and labels beyond them
    (OwnCriterion(None), randn(8, 5), torch.full((8,), 255)), (ArcFace(), randn(8, 4), randint(4, (8,))),
    (lambda pred, y: 0, (randn(8, 5), randn(8, 5)), randint(5, (8,))), (lambda pred, y: 0, randn(8, 5), {"boxes": 1}),
    (lambda pred, y: 0, randint(5, (8, 5)), randint(5, (8,))), (lambda pred, y: 0, randn(8, 5), randint(5, (16,))),
])
def test_where_it_is_not_certain_what_is_right_there_is_no_accuracy(criterion, pred, y):
    metrics = EpochMetrics()
    metrics.update(default_metrics(criterion, pred, y, is_direct=False), 8)
    assert metrics.compute() == {}


def test_one_logit_for_each_of_several_classes_still_tells_the_largest():
    pred, y = randn(20, 5), randint(5, (20,))  # BCEWithLogitsLoss on one-hot labels, in a loss_per_batch of one's own
    assert epoch_of(nn.BCEWithLogitsLoss(), pred, y, 8, is_direct=False) == {"acc": accuracy_score(y, pred.argmax(1))}


def test_an_epoch_whose_labels_are_all_ignored_has_no_number():
    result = epoch_of(nn.CrossEntropyLoss(), randn(6, 5), torch.full((6,), -100), 3)
    assert list(result) == ["acc"] and math.isnan(result["acc"])


def test_counting_labels_waits_for_no_device(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a value was brought to the host in the loop")

    batches = [(nn.CrossEntropyLoss(), randn(8, 5), randint(5, (8,))), (nn.BCEWithLogitsLoss(), randn(8), randint(2, (8,))),
               (lambda pred, y: 0, randn(8, 5, 7), randint(5, (8, 7)))]
    metrics = EpochMetrics()
    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for criterion, pred, y in batches:
        for _ in range(2):
            metrics.update(default_metrics(criterion, pred, y, is_direct=False), 8)
    monkeypatch.undo()
    assert list(metrics.compute()) == ["acc"]


# --- accuracy of a trainer --------------------------------------------------------------------------------------------


def test_a_perfect_segmentation_scores_one():
    y = randint(3, (8, 4, 4))
    x = F.one_hot(y, 3).movedim(-1, 1).float()
    y[:, :2] = 255
    model = nn.Conv2d(3, 3, 1)
    nn.init.dirac_(model.weight)
    loader = DataLoader(TensorDataset(x, y), 3)
    trainer = tiny_trainer(model=model, criterion=nn.CrossEntropyLoss(ignore_index=255), eval_loader=loader)
    assert trainer.test()["acc"] == 1.0


class Binary(Tiny):
    """One logit [B, 1] and labels [B], as people write it."""

    def __init__(self, **attributes):
        x = randn(200, 6)
        y = (x[:, 0] > 0.4).long()
        super().__init__(model=nn.Linear(6, 1), criterion=nn.BCEWithLogitsLoss(),
                         train_loader=DataLoader(TensorDataset(x, y), 10),
                         eval_loader=DataLoader(TensorDataset(x.clone(), y.clone()), 30), **attributes)

    def loss_per_batch(self, batch):
        x, y = batch
        return self.criterion(self.inference(x).squeeze(1), y.float())


def test_one_logit_per_sample_is_scored_at_zero_and_decides_what_is_best():
    trainer = Binary()
    trainer.check_init(use_tb=False)
    trainer.fit(3)
    x, y = trainer.eval_loader.dataset.tensors
    with torch.no_grad():
        expected = accuracy_score(y, trainer.model_list[0](x).squeeze(1) > 0)
    assert trainer.eval_result["acc"] == pytest.approx(expected) and expected > 0.9
    assert trainer.key_metric == "acc" and trainer.best_metric["acc"] >= expected


class Language(Tiny):
    """Scores [B, T, C] with the classes last, flattened for the criterion; every label of the last tokens is padding."""

    def __init__(self, length, **attributes):
        x, y = randint(5, (30, length)), randint(5, (30, length), seed=2)
        y[:, -2:] = -100
        super().__init__(model=nn.Embedding(5, 5), train_loader=DataLoader(TensorDataset(x, y), 8),
                         eval_loader=DataLoader(TensorDataset(x.clone(), y.clone()), 8), **attributes)

    def loss_per_batch(self, batch):
        x, y = batch
        return self.criterion(self.inference(x).flatten(0, 1), y.flatten(0, 1))


def test_a_language_model_is_scored_over_its_tokens():
    trainer = Language(9)
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    x, y = trainer.eval_loader.dataset.tensors
    with torch.no_grad():
        assert trainer.eval_result["acc"] == of_counted(trainer.model_list[0](x).argmax(-1), y)
    unclear = Language(5)  # as many tokens as classes: its loss decides
    unclear.check_init(use_tb=False)
    unclear.fit(1)
    assert list(unclear.eval_result) == ["tol_loss"] and unclear.key_metric == "tol_loss"


def test_a_metric_of_ones_own_may_take_the_default_one_under_another_name():
    class More(Tiny):
        def metric(self, pred, y):
            scores = super().metric(pred, y)
            return {"top1": scores["acc"], "largest": pred.max()}

    trainer = More(key_metric="top1")
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    x, y = trainer.eval_loader.dataset.tensors
    with torch.no_grad():
        expected = accuracy_score(y, trainer.model_list[0].eval()(x).argmax(1))
    assert trainer.eval_result["top1"] == expected and "acc" not in trainer.eval_result
