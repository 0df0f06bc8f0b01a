"""One update: accumulation, clipping, mixed precision, several optimizers, against plain PyTorch loops."""

import copy
import functools
import math
import tempfile
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Tiny, tiny_data, tiny_model, tiny_trainer, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template.data.loaders import TensorLoader, make_batches
from template.data.nested import Fresh
from template.hooks import Callback
from template.update.guard import SkipGuard
from template.update.stepper import Stepper, make_clip

CPU = torch.device("cpu")


def double_model(seed=1):
    return tiny_model(seed, dropout=0.0).double()


def double_data(num_samples=53):
    x, y = tiny_data(num_samples)
    return x.double(), y


def run_stepper(model, optimizer, batches, loss_fn, **options):
    """One epoch of the loop that ``stepper.py`` shows."""
    stepper = Stepper([optimizer], CPU, count_samples=lambda batch: len(batch[0]), **options)
    for group in stepper.groups(batches):
        for (x, y), _ in group:
            with stepper.autocast():
                loss = loss_fn(model(x), y)
            stepper.backward(loss)
        stepper.finish_group()
    return stepper


def vector(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


# --- accumulation ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 53), st.integers(1, 12), st.integers(1, 7), st.sampled_from(["sgd", "adam"]))
def test_accumulated_updates_equal_those_of_one_big_batch(num_samples, batch_size, accumulate_steps, kind):
    x, y = double_data(num_samples)
    ours, plain = double_model(), double_model()
    make = {"sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), "adam": lambda p: torch.optim.Adam(p, 1e-2)}[kind]

    updates = []
    run_stepper(ours, make(ours.parameters()), zip(x.split(batch_size), y.split(batch_size)), nn.CrossEntropyLoss(),
                accumulate_steps=accumulate_steps, after_update=lambda: updates.append(1))

    optimizer, big = make(plain.parameters()), batch_size * accumulate_steps  # the last one is short
    for start in range(0, num_samples, big):
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x[start:start + big]), y[start:start + big]).backward()
        optimizer.step()
    assert len(updates) == -(-num_samples // big)
    assert torch.allclose(vector(ours), vector(plain), rtol=0, atol=1e-12)


@pytest.mark.parametrize("accumulate_steps", [1, 2, 4, 6, 9])
def test_a_training_with_accumulation_equals_a_plain_loop_over_big_batches(accumulate_steps):
    x, y = double_data()
    model, plain = double_model(), double_model()
    trainer = tiny_trainer(model=model, optimizer_list=[torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)],
                           accumulate_steps=accumulate_steps, train_loader=DataLoader(TensorDataset(x, y), 10),
                           eval_loader=None, clip_grad=0.5)
    trainer.fit(3)
    optimizer, big = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9), 10 * accumulate_steps
    for _ in range(3):
        for start in range(0, 53, big):
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(x[start:start + big]), y[start:start + big]).backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            optimizer.step()
    assert trainer.global_step == 3 * -(-53 // big)
    assert torch.allclose(weights(trainer), vector(plain), rtol=0, atol=1e-12)


def test_without_accumulation_the_loss_is_not_touched_so_the_bits_are_those_of_a_plain_loop():
    x, y = tiny_data()
    ours, plain = tiny_model(dropout=0.0), tiny_model(dropout=0.0)
    run_stepper(ours, torch.optim.SGD(ours.parameters(), 0.1), zip(x.split(10), y.split(10)), nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for x_part, y_part in zip(x.split(10), y.split(10)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x_part), y_part).backward()
        optimizer.step()
    assert torch.equal(vector(ours), vector(plain))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_batches_weigh_in_their_group_what_count_samples_says(as_tensor):
    """Token counts: a mean over tokens per micro-batch becomes the mean over the group's tokens."""
    values, masks = torch.randn(6, 5, dtype=torch.float64), torch.rand(6, 5) < 0.6
    masks[:, 0] = True
    weight = nn.Parameter(torch.ones(5, dtype=torch.float64))

    def count(batch):
        return batch[1].sum() if as_tensor else int(batch[1].sum())

    stepper = Stepper([torch.optim.SGD([weight], 1.0)], CPU, accumulate_steps=3, count_samples=count)
    counts = []
    for group in stepper.groups(zip(values.split(2), masks.split(2))):
        for (x, mask), num_samples in group:
            counts.append(num_samples)
            stepper.backward((weight * x)[mask].mean())
        stepper.finish_group()
    assert counts == [int(mask.sum()) for mask in masks.split(2)] and all(type(count) is int for count in counts)
    expected = torch.ones(5, dtype=torch.float64, requires_grad=True)
    (expected * values)[masks].mean().backward()
    assert torch.allclose(weight.detach(), 1 - expected.grad, atol=1e-12, rtol=0)


def test_a_group_reads_no_more_than_its_own_batches():
    read = []

    def batches():
        for number in range(7):
            read.append(number)
            yield torch.zeros(2)

    stepper = Stepper([torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)], CPU, accumulate_steps=3)
    seen = []
    for group in stepper.groups(batches()):
        seen.append(list(read))
        assert sum(1 for _ in group) == (3 if len(seen) < 3 else 1)
    assert seen == [[0, 1, 2], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6]]


# --- batches that count for nothing -----------------------------------------------------------------------------------


class OfLabelled(Tiny):
    """Labels of -1 are none: a batch without any weighs 0, and its loss is a mean over nothing."""

    def loss_per_batch(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self.inference(x.double()), y, ignore_index=-1)

    def count_samples(self, batch):
        return int((batch[1] >= 0).sum())


def labelled(*parts):
    """Batches of 5: the labels of those at ``parts`` are hidden."""
    x, y = double_data(40)
    y = y.clone()
    for part in parts:
        y[5 * part:5 * part + 5] = -1
    return x, y


@pytest.mark.parametrize("accumulate_steps", [1, 2, 4])
@pytest.mark.parametrize("hidden", [(0, 1, 2, 3), (4, 5, 6, 7), (1,), (2, 3, 6)])
@pytest.mark.filterwarnings("ignore:count_samples.. gave 0")
def test_batches_of_no_samples_add_nothing_and_a_group_of_none_changes_no_weight(hidden, accumulate_steps):
    """With momentum and decay, which would move the weights without a gradient too. The loss of such a batch is NaN."""
    x, y = labelled(*hidden)
    ours, plain = double_model(), double_model()
    make = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    trainer = OfLabelled(ours, optimizer_list=[torch.optim.SGD(ours.parameters(), **make)], eval_loader=None,
                         accumulate_steps=accumulate_steps, train_loader=DataLoader(TensorDataset(x, y), 5),
                         preflight=False, lr_scheduler_type="cosine", callbacks=[Losses()])
    trainer.check_init(use_tb=False)
    trainer.fit(2)
    optimizer, big = torch.optim.SGD(plain.parameters(), **make), 5 * accumulate_steps
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * 40 // big)
    losses = []
    for _ in range(2):
        for start in range(0, 40, big):
            x_part, y_part = x[start:start + big], y[start:start + big]
            if (y_part >= 0).any():
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(plain(x_part), y_part, ignore_index=-1)
                losses.append((loss.item(), int((y_part >= 0).sum())))
                loss.backward()
                optimizer.step()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a step of the schedule before the first one of the optimizer
                schedule.step()
    assert trainer.global_step == 2 * 40 // big, "an update without samples is one of those that were planned"
    torch.testing.assert_close(weights(trainer), vector(plain), rtol=0, atol=1e-12)
    second = losses[len(losses) // 2:]
    mean = sum(loss * count for loss, count in second) / sum(count for _, count in second)
    assert trainer.callbacks[0].seen[-1] == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("amp", [None, "fp16"])
def test_an_update_without_samples_is_told_once(amp):
    weight = nn.Parameter(torch.ones(2))
    steps = []
    stepper = Stepper([torch.optim.SGD([weight], 1.0, weight_decay=0.5)], CPU, accumulate_steps=2, amp=amp,
                      count_samples=lambda batch: 0, before_step=lambda: steps.append("before"),
                      after_update=lambda: steps.append("after"))
    message = r"count_samples\(\) gave 0 for all 2 batches of an update.*This is said once"
    with pytest.warns(UserWarning, match=message) as told:
        for group in stepper.groups([torch.zeros(1)] * 6):
            assert [num_samples for _, num_samples in group if stepper.backward(weight.sum() * math.nan) is None] == [0, 0]
            stepper.finish_group()
    assert len(told) == 1 and steps == ["after"] * 3 and weight.tolist() == [1, 1] and weight.grad is None


# --- losses that add up -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate_steps", [1, 2, 3, 6])
@pytest.mark.parametrize("kind", ["module", "partial"])
def test_a_criterion_that_sums_is_trained_on_as_in_one_big_batch_and_reported_as_a_mean(kind, accumulate_steps):
    x, y = double_data()
    model, plain = double_model(), double_model()
    criterion = nn.CrossEntropyLoss(reduction="sum")
    if kind == "partial":
        criterion = functools.partial(nn.functional.cross_entropy, reduction="sum")
    noted = Losses()
    trainer = tiny_trainer(model=model, optimizer_list=[torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)],
                           criterion=criterion, accumulate_steps=accumulate_steps, callbacks=[noted],
                           train_loader=DataLoader(TensorDataset(x, y), 10),
                           eval_loader=DataLoader(TensorDataset(x[:23], y[:23]), 10))
    trainer.fit(2)
    optimizer, big, means = torch.optim.SGD(plain.parameters(), 0.01, momentum=0.9), 10 * accumulate_steps, []
    for _ in range(2):
        total = 0.0
        for start in range(0, 53, big):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(plain(x[start:start + big]), y[start:start + big], reduction="sum")
            total += loss.item()
            loss.backward()
            optimizer.step()
        means.append(total / 53)
    torch.testing.assert_close(weights(trainer), vector(plain), rtol=0, atol=1e-12)
    assert noted.seen == pytest.approx(means, rel=1e-12), "the mean over the samples, whatever the batch size"
    with torch.no_grad():
        expected = nn.functional.cross_entropy(plain(x[:23]), y[:23]).item()
    assert trainer.eval_result["tol_loss"] == pytest.approx(expected, rel=1e-12)
    assert trainer.test(trainer.train_loader)["tol_loss"] == pytest.approx(
        nn.functional.cross_entropy(plain(x), y).item(), rel=1e-12)


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_end(self, model, result):
        self.seen.append(result["tol_loss"])


def test_without_accumulation_a_summed_loss_is_not_touched_so_the_bits_are_those_of_a_plain_loop():
    x, y = tiny_data()
    model, plain = tiny_model(dropout=0.0), tiny_model(dropout=0.0)
    trainer = tiny_trainer(model=model, optimizer_list=[torch.optim.SGD(model.parameters(), 0.01)], eval_loader=None,
                           criterion=nn.CrossEntropyLoss(reduction="sum"), train_loader=DataLoader(TensorDataset(x, y), 10))
    trainer.train_loop()
    optimizer = torch.optim.SGD(plain.parameters(), 0.01)
    for x_part, y_part in zip(x.split(10), y.split(10)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x_part), y_part, reduction="sum").backward()
        optimizer.step()
    assert torch.equal(vector(model), vector(plain))


@pytest.mark.parametrize("accumulate_steps", [1, 3])
def test_a_loss_of_one_s_own_counts_as_a_mean_whatever_the_criterion_says(accumulate_steps):
    class Divides(Tiny):
        def loss_per_batch(self, batch):
            x, y = batch
            return self.criterion(self.inference(x), y) / len(y)

    x, y = double_data()
    results = []
    for kind, reduction in ((Tiny, "mean"), (Divides, "sum")):
        model, noted = double_model(), Losses()
        trainer = kind(model, optimizer_list=[torch.optim.SGD(model.parameters(), 0.1)], callbacks=[noted],
                       criterion=nn.CrossEntropyLoss(reduction=reduction), train_loader=DataLoader(TensorDataset(x, y), 10),
                       eval_loader=DataLoader(TensorDataset(x[:23], y[:23]), 10), accumulate_steps=accumulate_steps)
        trainer.check_init(use_tb=False)
        trainer.fit(2)
        results.append((weights(trainer), torch.tensor(noted.seen + [trainer.eval_result["tol_loss"]])))
    torch.testing.assert_close(*results, rtol=0, atol=1e-7)


def test_a_criterion_that_sums_may_take_over_during_the_run():
    x, y = double_data()
    model, plain, noted = double_model(), double_model(), Losses()
    trainer = tiny_trainer(model=model, optimizer_list=[torch.optim.SGD(model.parameters(), 0.01)], callbacks=[noted],
                           train_loader=DataLoader(TensorDataset(x, y), 10), eval_loader=None, accumulate_steps=2)
    trainer.train_loop()
    trainer.criterion = nn.CrossEntropyLoss(reduction="sum")
    trainer.train_loop()
    optimizer, means = torch.optim.SGD(plain.parameters(), 0.01), []
    for reduction in ("mean", "sum"):
        total = 0.0
        for start in range(0, 53, 20):
            optimizer.zero_grad()
            x_part, y_part = x[start:start + 20], y[start:start + 20]
            loss = nn.functional.cross_entropy(plain(x_part), y_part, reduction=reduction)
            total += loss.item() * (len(y_part) if reduction == "mean" else 1)
            loss.backward()
            optimizer.step()
        means.append(total / 53)
    torch.testing.assert_close(weights(trainer), vector(plain), rtol=0, atol=1e-12)
    assert noted.seen == pytest.approx(means, rel=1e-12)


# --- a loader that fills its tensors again --------------------------------------------------------------------------------


class Refilling:
    """Batches in the same memory each time."""

    def __init__(self, kind, x, y, batch_size, slots=1):
        self.kind, self.x, self.y, self.batch_size = kind, x, y, batch_size
        self.slots = [self.slot() for _ in range(slots)]

    def slot(self):
        x, y = torch.empty_like(self.x[:self.batch_size]), torch.empty_like(self.y[:self.batch_size])
        return {"list": [x, y], "dict": {"x": x, "y": y}, "arrays": (x.numpy(), y.numpy()), "rows": ([x], [y])}[self.kind]

    def __len__(self):
        return -(-len(self.x) // self.batch_size)

    def __iter__(self):
        for number in range(len(self)):
            slot = self.slots[number % len(self.slots)]
            parts = [part[0] if self.kind == "rows" else part for part in (slot.values() if self.kind == "dict" else slot)]
            for part, data in zip(parts, (self.x, self.y)):
                chosen = data[number * self.batch_size:(number + 1) * self.batch_size]
                part[:len(chosen)] = chosen.numpy() if self.kind == "arrays" else chosen
            yield slot


class OfAnyKind(Tiny):
    def loss_per_batch(self, batch):
        x, y = batch.values() if isinstance(batch, dict) else batch
        x, y = (part[0] if isinstance(part, list) else torch.as_tensor(part) for part in (x, y))
        return self.criterion(self.inference(x), y)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.sampled_from(["list", "dict", "arrays", "rows"]), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_a_loader_that_fills_its_tensors_again_trains_as_one_that_does_not(kind, accumulate_steps, slots, in_a_dict):
    x, y = double_data(50)
    model, plain = double_model(), double_model()
    loader, noted = Refilling(kind, x, y, 10, slots), Losses()

    class Trainer(OfAnyKind):
        def loss_per_batch(self, batch):
            return super().loss_per_batch(batch["only"] if in_a_dict else batch)

        def count_samples(self, batch):
            return 10

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, optimizer_list=[torch.optim.SGD(model.parameters(), 0.1)], callbacks=[noted],
                          train_loader={"only": loader} if in_a_dict else loader, eval_loader=None, preflight=False,
                          accumulate_steps=accumulate_steps, ckpt_dir=f"{folder}/run")
        trainer.check_init(use_tb=False)
        trainer.train_loop()
        trainer.close()
    optimizer, big, losses = torch.optim.SGD(plain.parameters(), 0.1), 10 * accumulate_steps, []
    for start in range(0, 50, big):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(plain(x[start:start + big]), y[start:start + big])
        losses.append(loss.item() * len(y[start:start + big]))
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(weights(trainer), vector(plain), rtol=0, atol=1e-12)
    assert noted.seen == pytest.approx([sum(losses) / 50], rel=1e-12)


def test_three_batches_in_one_buffer_are_three_batches():
    """Their losses are 4, 5 and 6."""
    buffer, weight = torch.zeros(2), nn.Parameter(torch.ones(()))

    def batches():
        for value in (4.0, 5.0, 6.0):
            yield buffer.fill_(value)

    stepper, seen = Stepper([torch.optim.SGD([weight], 0.0)], CPU, accumulate_steps=3), []
    for group in stepper.groups(batches()):
        for batch, _ in group:
            seen.append((weight * batch).mean().item())
    assert seen == [4, 5, 6]


@pytest.mark.slow
def test_only_batches_that_wait_are_copied_and_none_where_the_loader_makes_new_ones():
    given = [torch.zeros(2) for _ in range(6)]

    def taken(batches, accumulate_steps):
        stepper = Stepper([torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)], CPU, accumulate_steps=accumulate_steps)
        found = [batch for group in stepper.groups(batches) for batch, _ in group]
        return [batch is other for batch, other in zip(found, given, strict=True)]

    assert taken(iter(given), 1) == [True] * 6
    assert taken(iter(given), 3) == [False, False, True] * 2  # the last one of a group is used before the next is read
    assert taken(Fresh(given), 3) == [True] * 6
    loaders = [DataLoader(TensorDataset(*tiny_data()), 10), [tiny_data(5)], TensorLoader(*tiny_data(), batch_size=9),
               DataLoader(TensorDataset(*tiny_data()), 10, collate_fn=list, num_workers=1)]
    assert all(type(make_batches(loader, 3, CPU).epoch(1)) is Fresh for loader in [*loaders, {"a": loaders[0]}])
    may = [DataLoader(TensorDataset(*tiny_data()), 10, collate_fn=list), iter(given), DataLoader(given, None)]
    may = [*may, TensorLoader(*tiny_data(), batch_size=9, transform=lambda x, y: (x, y)), {"a": loaders[0], "b": may[0]}]
    assert not any(type(make_batches(loader, 3, CPU).epoch(1)) is Fresh for loader in may)


# --- clipping -------------------------------------------------------------------------------------------------------

CLIPS = [
    (0.05, lambda p: torch.nn.utils.clip_grad_norm_(p, 0.05)),
    (1, lambda p: torch.nn.utils.clip_grad_norm_(p, 1)),
    ({"norm": 0.05}, lambda p: torch.nn.utils.clip_grad_norm_(p, 0.05)),
    ({"norm": 0.1, "norm_type": 1.0}, lambda p: torch.nn.utils.clip_grad_norm_(p, 0.1, 1.0)),
    ({"norm": 0.02, "norm_type": float("inf")}, lambda p: torch.nn.utils.clip_grad_norm_(p, 0.02, float("inf"))),
    ({"value": 0.01}, lambda p: torch.nn.utils.clip_grad_value_(p, 0.01)),
    (None, lambda p: None),
]


@pytest.mark.parametrize(("clip_grad", "reference"), CLIPS, ids=[str(clip) for clip, _ in CLIPS])
@pytest.mark.parametrize("accumulate_steps", [1, 4])
def test_clipping_equals_that_of_torch_in_a_plain_loop(clip_grad, reference, accumulate_steps):
    x, y = double_data()
    ours, plain = double_model(), double_model()
    run_stepper(ours, torch.optim.SGD(ours.parameters(), 0.3), zip(x.split(10), y.split(10)), nn.CrossEntropyLoss(),
                clip_grad=clip_grad, accumulate_steps=accumulate_steps)
    optimizer, big = torch.optim.SGD(plain.parameters(), 0.3), 10 * accumulate_steps
    for start in range(0, 53, big):
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x[start:start + big]), y[start:start + big]).backward()
        reference(list(plain.parameters()))
        optimizer.step()
    assert torch.allclose(vector(ours), vector(plain), rtol=0, atol=1e-12)


class Bag(nn.Module):
    """Words [B, T] are looked up, some of them several times in a batch."""

    def __init__(self, sparse):
        super().__init__()
        torch.manual_seed(2)
        self.words, self.rare = nn.Embedding(9, 4, sparse=sparse), nn.Embedding(9, 4, sparse=sparse)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        rare = self.rare(x[x > 7][1:])  # none in some batches
        return self.head(self.words(x).mean(1) + rare.sum())


@pytest.mark.parametrize("accumulate_steps", [1, 3])
@pytest.mark.parametrize("clip_grad", [0.05, {"norm": 0.1, "norm_type": 1.0}, {"norm": 0.01, "norm_type": math.inf},
                                       {"value": 0.002}])
def test_sparse_gradients_are_clipped_like_the_dense_ones_that_they_stand_for(clip_grad, accumulate_steps):
    x, y = torch.randint(9, (30, 5), generator=torch.Generator().manual_seed(0)), tiny_data(30)[1]
    found = []
    for sparse in (True, False):
        model = Bag(sparse)
        trainer = tiny_trainer(model=model, train_loader=list(zip(x.split(8), y.split(8))), eval_loader=None,
                               clip_grad=clip_grad, accumulate_steps=accumulate_steps, skip_non_finite=1,
                               optimizer_list=[torch.optim.SGD(model.parameters(), 0.5)])
        trainer.fit(2)
        found.append(weights(trainer))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)
    assert not torch.equal(found[0], vector_of(Bag(True)))


def vector_of(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


def test_the_clipping_given_to_train_loop_holds_for_that_epoch_alone():
    norms = []

    def clipped_norm(**attributes):
        class Norm(Callback):
            def on_after_step(self, model):
                norms[-1].append(moved(model))

        before = [None]

        def moved(model):
            now = weights(model)
            step, before[0] = (now - before[0]).norm().item(), now
            return step

        model = tiny_model(dropout=0.0)
        trainer = tiny_trainer(model=model, optimizer_list=[torch.optim.SGD(model.parameters(), 1.0)], callbacks=[Norm()],
                               eval_loader=None, **attributes)
        for clip_grad in (0.01, None, {"norm": 0.002}):
            before[0] = weights(trainer)
            norms.append([])
            trainer.train_loop(clip_grad=clip_grad)

    clipped_norm()
    clipped_norm(clip_grad=0.05)
    assert all(step == pytest.approx(0.01, rel=1e-3) for step in norms[0] + norms[3])
    assert min(norms[1]) > 0.06  # off
    assert all(step == pytest.approx(0.05, rel=1e-3) for step in norms[4])  # the attribute's again
    assert all(step == pytest.approx(0.002, rel=1e-3) for step in norms[2] + norms[5])


@pytest.mark.parametrize("clip_grad", [
    0, -1.0, True, "1.0", float("nan"), {}, {"norm": 0}, {"value": -1}, {"norm": 1.0, "value": 1.0}, {"nrm": 1.0},
    {"value": 1.0, "norm_type": 2.0}, {"norm_type": 2.0}, [1.0], {"norm": 1.0, "norm_type": None},
    {"norm": 1.0, "norm_type": "max"}, {"norm": 1.0, "norm_type": 0},
])
def test_a_clip_grad_that_means_nothing_is_refused_with_its_value(clip_grad):
    with pytest.raises(ValueError, match="clip_grad must be None, a positive number") as error:
        make_clip(clip_grad)
    assert repr(clip_grad) in str(error.value)
    with pytest.raises(ValueError, match="clip_grad must be"):
        tiny_trainer(clip_grad=clip_grad)


# --- mixed precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amp", ["fp32", "float16", True, 16, ""])
def test_an_unknown_amp_is_refused_with_the_choices(amp):
    with pytest.raises(ValueError, match=r"amp must be None or one of \['bf16', 'fp16'\], got"):
        tiny_trainer(amp=amp)


@pytest.mark.parametrize(("amp", "dtype"), [(None, torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_forward_runs_in_the_dtype_of_amp(amp, dtype):
    seen = []
    cross_entropy = nn.functional.cross_entropy
    trainer = tiny_trainer(amp=amp, criterion=lambda pred, y: seen.append(pred.dtype) or cross_entropy(pred, y))
    trainer.train_loop()
    trainer.eval()
    assert set(seen) == {dtype}
    assert all(p.dtype == torch.float32 for p in trainer.model_list[0].parameters())


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_equals_a_plain_loop_with_autocast_and_scaler(amp):
    x, y = tiny_data()
    ours, plain = tiny_model(dropout=0.0), tiny_model(dropout=0.0)
    run_stepper(ours, torch.optim.SGD(ours.parameters(), 0.1, momentum=0.9), zip(x.split(10), y.split(10)),
                nn.CrossEntropyLoss(), amp=amp, clip_grad=0.1)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=amp == "fp16")
    for x_part, y_part in zip(x.split(10), y.split(10)):
        optimizer.zero_grad()
        with torch.autocast("cpu", {"bf16": torch.bfloat16, "fp16": torch.float16}[amp]):
            loss = nn.functional.cross_entropy(plain(x_part), y_part)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(vector(ours), vector(plain))


def test_under_fp16_before_step_and_the_clipping_see_unscaled_gradients():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    seen = []
    stepper = Stepper([torch.optim.SGD([weight], 1.0)], CPU, amp="fp16", clip_grad=1.0,
                      before_step=lambda: seen.append(weight.grad.clone()))
    for group in stepper.groups([torch.zeros(1)]):
        for _ in group:
            stepper.backward((weight * torch.tensor([3.0, 4.0])).sum())
            assert weight.grad.tolist() == [3 * 65536, 4 * 65536]
        stepper.finish_group()
    assert seen[0].tolist() == [3.0, 4.0]
    assert weight.tolist() == pytest.approx([3 - 0.6, 4 - 0.8], abs=1e-5)


def test_an_infinite_gradient_skips_the_update_and_halves_the_scale():
    weight = nn.Parameter(torch.ones(2))
    stepper = Stepper([torch.optim.SGD([weight], 1.0)], CPU, amp="fp16", clip_grad=1.0)
    expected_scale, steps = 65536.0, []
    for factor in (float("inf"), 1e-3, float("nan"), 1e-3):
        before = weight.detach().clone()
        for group in stepper.groups([torch.zeros(1)]):
            for _ in group:
                stepper.backward((weight * factor).sum())
            stepper.finish_group()
        steps.append((weight - before).abs().sum().item())
        expected_scale /= 1 if factor == 1e-3 else 2
        assert stepper.scaler.get_scale() == expected_scale
        assert weight.grad is None
    assert [step == 0 for step in steps] == [True, False, True, False]


def test_the_scale_travels_in_the_state():
    weight = nn.Parameter(torch.ones(2))
    stepper, restored, off = (Stepper([torch.optim.SGD([weight], 1.0)], CPU, amp=amp) for amp in ("fp16", "fp16", None))
    for group in stepper.groups([torch.zeros(1)]):
        for _ in group:
            stepper.backward((weight * float("inf")).sum())
        stepper.finish_group()
    restored.load_state_dict(stepper.state_dict())
    assert restored.scaler.get_scale() == 32768.0
    off.load_state_dict(stepper.state_dict())      # switched off since: nothing to restore
    restored.load_state_dict(off.state_dict())     # switched on since: starts afresh
    assert restored.scaler.get_scale() == 32768.0


# --- several optimizers ---------------------------------------------------------------------------------------------


class Noting(torch.optim.SGD):
    def __init__(self, name, calls, parameters):
        super().__init__(parameters, 0.1)
        self.name, self.calls = name, calls

    def step(self, closure=None):
        self.calls.append(("step", self.name))
        return super().step(closure)

    def zero_grad(self, set_to_none=True):
        self.calls.append(("zero_grad", self.name))
        assert set_to_none
        super().zero_grad(set_to_none=set_to_none)


def three(calls):
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    return parameters, [Noting(i, calls, [p]) for i, p in enumerate(parameters)]


@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
def test_optimizers_are_stepped_and_zeroed_from_the_last_to_the_first(amp):
    calls = []
    parameters, optimizers = three(calls)
    stepper = Stepper(optimizers, CPU, amp=amp)
    for group in stepper.groups([torch.zeros(1)]):
        for _ in group:
            stepper.backward(sum(p.sum() for p in parameters))
        stepper.finish_group()
    assert calls == [("step", 2), ("step", 1), ("step", 0), ("zero_grad", 2), ("zero_grad", 1), ("zero_grad", 0)]
    assert all(p.grad is None for p in parameters)


def test_backward_with_an_index_reaches_the_parameters_of_that_optimizer_alone():
    parameters, optimizers = three([])
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    optimizers[1].add_param_group({"params": [frozen]})
    stepper = Stepper(optimizers, CPU)
    stepper.backward(sum((p**2).sum() for p in parameters), 1)
    assert [p.grad is None for p in (*parameters, frozen)] == [True, False, True, True]
    assert parameters[1].grad.tolist() == [2.0, 2.0]


def test_update_with_an_index_steps_and_zeroes_that_optimizer_alone():
    calls = []
    parameters, optimizers = three(calls)
    stepper = Stepper(optimizers, CPU)
    for group in stepper.groups([torch.zeros(1)]):
        for _ in group:
            stepper.backward(sum(p.sum() for p in parameters))
            stepper.update(1)
            assert calls == [("step", 1), ("zero_grad", 1)]
        stepper.finish_group()
    assert calls == [("step", 1), ("zero_grad", 1)]  # train_step did the updating: nothing is added
    assert [p.grad is None for p in parameters] == [False, True, False]


def test_clipping_takes_the_norm_over_the_optimizers_that_are_updated():
    for index, expected in ((None, 1 - 0.1 / 6**0.5), (1, 1 - 0.1 / 2**0.5)):
        parameters, optimizers = three([])
        stepper = Stepper(optimizers, CPU, clip_grad=1.0)
        for group in stepper.groups([torch.zeros(1)]):
            for _ in group:
                stepper.backward(sum(p.sum() for p in parameters))
                stepper.update(index)
        assert parameters[1].tolist() == pytest.approx([expected] * 2, rel=1e-5)


@pytest.mark.parametrize("amp", [None, "fp16"])
def test_update_does_nothing_before_the_last_micro_batch_of_a_group(amp):
    calls, events = [], []
    parameters, optimizers = three(calls)
    stepper = Stepper(optimizers, CPU, accumulate_steps=2, amp=amp, before_step=lambda: events.append("before"),
                      after_update=lambda: events.append("after"))
    for group in stepper.groups([torch.zeros(2), torch.zeros(2), torch.zeros(1)]):
        for batch, _ in group:
            stepper.backward(parameters[0].sum() * len(batch), 0)
            stepper.update(0)
            stepper.backward(parameters[2].sum(), 2)
            stepper.update(2)
        stepper.finish_group()
    assert calls == [("step", 0), ("zero_grad", 0), ("step", 2), ("zero_grad", 2)] * 2
    assert events == ["before", "before", "after"] * 2
    assert parameters[0].tolist() == pytest.approx([1 - 0.1 * 2 - 0.1] * 2)  # mean of 2 and 2, then 1
    assert parameters[2].tolist() == pytest.approx([1 - 0.2] * 2) and parameters[1].tolist() == [1, 1]


@pytest.mark.parametrize("clip_grad", [None, 0.5])
@pytest.mark.parametrize("amp", [None, "bf16"])
def test_a_gan_equals_its_plain_loop_bit_for_bit(amp, clip_grad):
    def networks():
        torch.manual_seed(4)
        return (nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6)),
                nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1)))

    x = tiny_data()[0]
    noise = torch.randn(len(x), 3, generator=torch.Generator().manual_seed(2))
    bce = nn.functional.binary_cross_entropy_with_logits

    def losses(generator, discriminator, batch, part):
        real, z = batch
        if part == "d":
            fake = generator(z).detach()
            return bce(discriminator(real), torch.ones(len(real), 1)) + bce(discriminator(fake), torch.zeros(len(real), 1))
        return bce(discriminator(generator(z)), torch.ones(len(real), 1))

    generator, discriminator = networks()
    optimizers = [torch.optim.Adam(generator.parameters(), 1e-2), torch.optim.Adam(discriminator.parameters(), 2e-2)]

    def train_step(batch):
        with trainer.autocast():
            d_loss = losses(generator, discriminator, batch, "d")
        trainer.backward(d_loss, 1)
        trainer.update(1)
        with trainer.autocast():
            g_loss = losses(generator, discriminator, batch, "g")
        trainer.backward(g_loss, 0)
        trainer.update(0)
        return {"tol_loss": g_loss, "d_loss": d_loss}

    trainer = tiny_trainer(model_list=[generator, discriminator], optimizer_list=optimizers, criterion=None, amp=amp,
                           train_loader=TensorLoader(x, noise, batch_size=10), eval_loader=None, train_step=train_step,
                           clip_grad=clip_grad)
    reported = [trainer.train_loop() for _ in range(3)]

    plain_g, plain_d = networks()
    g_optimizer, d_optimizer = torch.optim.Adam(plain_g.parameters(), 1e-2), torch.optim.Adam(plain_d.parameters(), 2e-2)
    for epoch in range(3):
        total = 0.0
        for batch in zip(x.split(10), noise.split(10)):
            for part, optimizer, network in (("d", d_optimizer, plain_d), ("g", g_optimizer, plain_g)):
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=amp is not None):
                    loss = losses(plain_g, plain_d, batch, part)
                loss.backward()
                if clip_grad is not None:
                    torch.nn.utils.clip_grad_norm_(network.parameters(), clip_grad)
                optimizer.step()
            total += loss.item() * len(batch[0])
        assert reported[epoch]["tol_loss"] == pytest.approx(total / len(x), rel=1e-6)
    assert torch.equal(weights(trainer), torch.cat([vector(plain_g), vector(plain_d)]))
    assert trainer.global_step == 18


def test_under_fp16_an_optimizer_updated_twice_steps_twice_and_a_stale_scale_is_refused():
    parameters, optimizers = three([])
    stepper = Stepper(optimizers, CPU, amp="fp16")
    for group in stepper.groups([torch.zeros(1)]):
        for _ in group:
            for _ in range(2):
                stepper.backward(parameters[0].sum(), 0)
                stepper.update(0)
        stepper.finish_group()
    assert parameters[0].tolist() == pytest.approx([0.8, 0.8])
    with pytest.raises(ValueError, match=r"optimizer 0 cannot be updated twice.*backward\(loss, 0\)"):
        for group in stepper.groups([torch.zeros(1)]):
            for _ in group:
                stepper.backward(parameters[0].sum() + parameters[1].sum())
                stepper.update(0)
                stepper.backward(parameters[0].sum(), 0)
                stepper.update(0)


def test_an_optimizer_without_gradients_is_no_problem_to_the_scaler():
    parameters, optimizers = three([])
    stepper = Stepper(optimizers, CPU, amp="fp16")
    for group in stepper.groups([torch.zeros(1)]):
        for _ in group:
            stepper.backward(parameters[0].sum())
        stepper.finish_group()
    assert parameters[0].tolist() == pytest.approx([0.9, 0.9]) and parameters[1].tolist() == [1, 1]


# --- gradients between updates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
def test_parameters_that_join_in_the_middle_of_training_are_clipped_and_dropped_like_the_others(amp):
    """The norm is taken over old and new ones; a plain loop says what comes of it."""
    def parameters():
        return nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor([12.0, 0.0]))

    def loss_of(first, second):
        return (first**2).sum() / 2 + (second**2).sum() / 2

    (first, second), (plain_first, plain_second) = parameters(), parameters()
    optimizer, plain = torch.optim.SGD([first], 0.5), torch.optim.SGD([plain_first], 0.5)
    stepper = Stepper([optimizer], CPU, amp=amp, clip_grad=1.0)
    for number, group in enumerate(stepper.groups([torch.zeros(1)] * 3)):
        if number == 1:
            optimizer.add_param_group({"params": [second], "lr": 0.25})
            plain.add_param_group({"params": [plain_second], "lr": 0.25})
            second.grad = plain_second.grad = None  # what came before they joined
        for _ in group:
            stepper.backward(loss_of(first, second))
        stepper.finish_group()
        assert first.grad is None and (second.grad is None) == (number > 0)
        loss_of(plain_first, plain_second).backward()
        torch.nn.utils.clip_grad_norm_([p for group in plain.param_groups for p in group["params"]], 1.0)
        plain.step()
        plain.zero_grad()
    assert plain_second.tolist() != [12.0, 0.0]
    torch.testing.assert_close(torch.cat([first, second]), torch.cat([plain_first, plain_second]), rtol=1e-6, atol=0)


def test_parameters_that_join_in_the_middle_of_training_are_guarded():
    old, new = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([old], 0.5)
    guard = SkipGuard(5, lambda in_a_row: None)
    stepper = Stepper([optimizer], CPU, guard=guard)
    for number, group in enumerate(stepper.groups([torch.zeros(1)] * 3)):
        if number == 1:
            optimizer.add_param_group({"params": [new]})
            new.register_hook(lambda gradient: gradient * float("nan"))  # the loss stays finite
        for _ in group:
            stepper.backward((old + new).sum())
        stepper.finish_group()
        assert old.tolist() == [0.5, 0.5] and new.tolist() == [1.0, 1.0] and guard.skipped == number
    assert old.grad is None and new.grad is None


def test_parameters_that_join_in_the_middle_of_training_are_among_those_that_backward_reaches():
    one, other, new = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizers = [torch.optim.SGD([p], 0.1) for p in (one, other)]
    stepper = Stepper(optimizers, CPU)
    optimizers[1].add_param_group({"params": [new]})
    stepper.backward((one + other + new).sum(), 1)
    assert [p.grad is None for p in (one, other, new)] == [True, False, False]


@pytest.mark.parametrize("on", ["its class", "the object"])
def test_a_zero_grad_of_somebodys_own_is_called(on):
    parameters, calls = [nn.Parameter(torch.ones(2)) for _ in range(2)], []

    class Own(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            calls.append(set_to_none)
            super().zero_grad(set_to_none)

    optimizer = Own([parameters[0]], 0.1) if on == "its class" else torch.optim.SGD([parameters[0]], 0.1)
    if on == "the object":
        zero_grad = optimizer.zero_grad
        optimizer.zero_grad = lambda set_to_none=True: calls.append(set_to_none) or zero_grad(set_to_none)
    stepper = Stepper([torch.optim.SGD([parameters[1]], 0.1), optimizer], CPU)
    for group in stepper.groups([torch.zeros(1)] * 3):
        for _ in group:
            stepper.backward(sum(p.sum() for p in parameters))
        stepper.finish_group()
        assert all(p.grad is None for p in parameters)
    assert calls == [True] * 3


@pytest.mark.parametrize("attributes", [
    {}, {"accumulate_steps": 4}, {"amp": "fp16"}, {"clip_grad": 0.5}, {"skip_non_finite": 3},
], ids=["plain", "accumulated", "fp16", "clipped", "guarded"])
def test_after_every_update_of_a_training_there_is_no_gradient(attributes):
    class Look(Callback):
        seen = []

        def on_before_step(self, model):
            self.seen.append(all(p.grad is not None for p in model.model_list[0].parameters()))

        def on_after_step(self, model):
            self.seen.append(all(p.grad is None for p in model.model_list[0].parameters()))

    look = Look()
    tiny_trainer(callbacks=[look], **attributes).train_loop()
    assert look.seen == [True] * 2 * -(-6 // attributes.get("accumulate_steps", 1))


# --- losses that cannot be trained on -------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "said"), [
    (torch.tensor(1.0), r"a tensor of shape \(\) with requires_grad=False"),
    (torch.ones(3), r"shape \(3,\)"),
    (0.5, "0.5 of type float"),
    (None, "None of type NoneType"),
])
def test_a_loss_that_depends_on_no_parameter_says_what_it_is_and_where_to_look(loss, said):
    stepper = Stepper([torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)], CPU)
    with pytest.raises(ValueError, match=said + r".*\.detach\(\)"):
        stepper.backward(loss)


def test_a_detached_loss_in_a_training_is_refused_before_anything_changes():
    trainer = tiny_trainer(loss_per_batch=lambda batch: nn.functional.cross_entropy(trainer.inference(batch[0]),
                                                                                    batch[1]).detach())
    before = copy.deepcopy(weights(trainer))
    with pytest.raises(ValueError, match="depends on a trainable parameter"):
        trainer.train_loop()
    assert torch.equal(weights(trainer), before)


# --- a guard and the state between updates ----------------------------------------------------------------------------


def test_it_knows_whether_an_update_is_begun_and_not_finished():
    weight = nn.Parameter(torch.ones(2))
    stepper = Stepper([torch.optim.SGD([weight], 1.0)], CPU, accumulate_steps=2)
    seen = [stepper.is_between_updates]

    def batches():
        for number in range(3):
            seen.append((number, stepper.is_between_updates))  # while data is read
            yield torch.ones(2)

    for group in stepper.groups(batches()):
        for x, _ in group:
            stepper.backward((weight * x).sum())
            seen.append(stepper.is_between_updates)
        stepper.finish_group()
        seen.append(stepper.is_between_updates)
    assert seen == [True, (0, True), (1, True), False, False, False, (2, True), False, False]
    assert stepper.is_between_updates


def test_loading_a_state_ends_an_update_that_an_error_left_open():
    weight = nn.Parameter(torch.ones(2))
    stepper = Stepper([torch.optim.SGD([weight], 1.0)], CPU)
    state = stepper.state_dict()
    next(stepper.groups([torch.ones(2)]))
    assert not stepper.is_between_updates
    stepper.load_state_dict(state)
    assert stepper.is_between_updates


def test_an_update_that_the_guard_refuses_changes_no_weight_and_no_momentum_and_leaves_no_gradient():
    weights_of_two = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    optimizers = [torch.optim.SGD([weight], 0.5, momentum=0.9) for weight in weights_of_two]
    events = []
    stepper = Stepper(optimizers, CPU, clip_grad=1.0, before_step=lambda: events.append("before_step"),
                      after_update=lambda: events.append("after_update"),
                      guard=SkipGuard(5, lambda in_a_row: events.append(f"skipped {in_a_row}")))
    for factor in (1.0, float("nan")):
        states = copy.deepcopy([optimizer.state_dict() for optimizer in optimizers]) if factor != 1.0 else None
        before = [weight.detach().clone() for weight in weights_of_two]
        for group in stepper.groups([torch.ones(1)]):
            for x, _ in group:
                first, second = weights_of_two
                stepper.backward((first.sum() * factor + second.sum()) * x[0])  # the second's gradient is finite
            stepper.finish_group()
        assert all(weight.grad is None for weight in weights_of_two)
    assert all(torch.equal(weight, old) for weight, old in zip(weights_of_two, before))
    for optimizer, state in zip(optimizers, states):
        buffer, old = (part["state"][0]["momentum_buffer"] for part in (optimizer.state_dict(), state))
        assert torch.equal(buffer, old)
    assert events == ["before_step", "after_update", "before_step", "skipped 1", "after_update"]
    assert stepper.state_dict()["skipped"] == 1
