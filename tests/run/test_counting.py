"""What a batch weighs by default in a training, against numbers that are computed sample by sample."""

import timeit
import warnings

import pytest
import torch
from odd_loaders import Stateful
from tiny import Tiny, tiny_data
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from template.data.lengths import batch_sizes
from template.data.loaders import TensorLoader
from template.template import TemplateModel


class Images(Dataset):
    """Images [3, H, W] of many sizes; what stands out in one channel is its label. Every fifth is hard."""

    def __init__(self, count=64):
        generator = torch.Generator().manual_seed(11)
        self.samples = []
        for number in range(count):
            sizes = torch.randint(5, 12, (2,), generator=generator).tolist()
            label = int(torch.randint(3, (), generator=generator))
            image = torch.randn(3, *sizes, generator=generator)
            image[label] += 0.1 if number % 5 else -1.5 - number / 40
            boxes = torch.rand(int(torch.randint(4, (), generator=generator)), 4, generator=generator)
            self.samples.append((image, {"boxes": boxes, "label": torch.tensor(label)}))

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def by_columns(samples):
    return tuple(zip(*samples))


def as_dicts(samples):
    return [{"image": image, **target} for image, target in samples]


def as_lists(samples):
    return {"image": [image for image, _ in samples], "label": [target["label"] for _, target in samples]}


def images_and_labels(batch):
    if isinstance(batch, dict):
        return batch["image"], torch.stack(batch["label"])
    if isinstance(batch, list):
        return [sample["image"] for sample in batch], torch.stack([sample["label"] for sample in batch])
    return batch[0], torch.stack([target["label"] for target in batch[1]])


class Detector(TemplateModel):
    def __init__(self, collate_fn, rate=0.0, **attributes):
        super().__init__()
        torch.manual_seed(2)
        self.model_list = [nn.Linear(3, 3).double()]
        self.optimizer_list = [torch.optim.SGD(self.model_list[0].parameters(), rate)]
        self.train_loader = DataLoader(Images(), 9, shuffle=True, collate_fn=collate_fn)
        self.eval_loader = DataLoader(Images(), 9, collate_fn=collate_fn)
        self.seed, self.criterion = 3, nn.CrossEntropyLoss()
        for name, value in attributes.items():
            setattr(self, name, value)

    def scores(self, batch):
        images, labels = images_and_labels(batch)
        return self.inference(torch.stack([image.mean((1, 2)) for image in images]).double()), labels

    def loss_per_batch(self, batch):
        return self.criterion(*self.scores(batch))

    def eval_scores_per_batch(self, batch):
        pred, labels = self.scores(batch)
        return {"acc": (pred.argmax(1) == labels).double().mean()}


def one_by_one(model):
    """(loss, accuracy) over all samples."""
    loss = right = 0
    for image, target in Images().samples:
        pred = model(image.mean((1, 2)).double()[None])
        loss = loss + nn.functional.cross_entropy(pred, target["label"][None])
        right += pred.argmax().item() == target["label"].item()
    return loss / 64, right / 64


@pytest.mark.parametrize("collate_fn", [by_columns, as_dicts, as_lists])
def test_64_images_in_batches_of_9_weigh_the_same_each(collate_fn):
    trainer = Detector(collate_fn)
    loss, accuracy = one_by_one(trainer.model_list[0])
    trainer.check_init(use_tb=False)
    trained = trainer.train_loop()
    trainer.eval()
    assert trained["tol_loss"] == pytest.approx(loss.item(), rel=1e-12)
    assert trainer.eval_result["tol_loss"] == pytest.approx(loss.item(), rel=1e-12)
    assert trainer.eval_result["acc"] == pytest.approx(accuracy, rel=1e-12)
    of_batches = [trainer.loss_per_batch(batch).item() for batch in trainer.eval_loader]  # 7 of 9 images, and one alone
    assert len(of_batches) == 8 and abs(sum(of_batches) / 8 - loss.item()) > 0.01, "the mean of their means is another one"


@pytest.mark.parametrize("accumulate_steps", [1, 3, 8])
@pytest.mark.parametrize("collate_fn", [by_columns, as_dicts, as_lists])
def test_an_accumulated_update_over_them_is_that_of_one_big_batch(collate_fn, accumulate_steps):
    trainer = Detector(collate_fn, rate=0.5, accumulate_steps=accumulate_steps, eval_loader=None)
    trainer.train_loader = DataLoader(Images(), 9, collate_fn=collate_fn)
    plain = nn.Linear(3, 3).double()
    plain.load_state_dict(trainer.model_list[0].state_dict())
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    samples, big = Images().samples, 9 * accumulate_steps
    for start in range(0, 64, big):
        part = samples[start:start + big]
        pred = plain(torch.stack([image.mean((1, 2)) for image, _ in part]).double())
        gradients = torch.autograd.grad(nn.functional.cross_entropy(pred, torch.stack([t["label"] for _, t in part])),
                                        list(plain.parameters()))
        with torch.no_grad():
            for p, gradient in zip(plain.parameters(), gradients):
                p -= 0.5 * gradient
    for p, expected in zip(trainer.model_list[0].parameters(), plain.parameters()):
        torch.testing.assert_close(p, expected, rtol=0, atol=1e-12)


# --- what is not certain is said, once ------------------------------------------------------------------------------------


def said(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught if warning.category is UserWarning]


def test_columns_that_disagree_are_told_once_per_trainer():
    for trainer in (Tiny(), Tiny()):
        batch = ([torch.zeros(3, 9, 9)] * 9, [{"boxes": torch.zeros(2, 4)}] * 7)
        (message,) = said(lambda: [trainer.count_samples(batch) for trainer in [trainer] * 3])  # noqa: B023
        assert message == (
            "It is not certain how many samples are in a batch (list of 9, the first tensor [3, 9, 9], list of 7, the first "
            "{boxes: tensor [2, 4]}). It counts as 9 in the means of losses and metrics and in gradient accumulation. "
            "Override count_samples(batch) to say what is right.")


def test_what_cannot_be_counted_is_told_once_and_counts_as_one():
    trainer = Tiny()
    (message,) = said(lambda: [trainer.count_samples({"a": 1.0}), trainer.count_samples(torch.tensor(3.0))])
    assert message.startswith("No samples can be counted in a batch {a: float}, so each batch counts as 1 in the means")
    assert trainer.count_samples({"a": 1.0}) == 1


def test_a_training_on_such_batches_tells_it_and_one_with_count_samples_does_not():
    class Counting(Tiny):
        def count_samples(self, batch):
            return len(batch[1])

    x, y = tiny_data(40)
    batches = [(x[start:start + 10].T.contiguous(), y[start:start + 10]) for start in range(0, 40, 10)]  # [F, B]

    def run(kind):
        trainer = kind(train_loader=batches, eval_loader=None, preflight=False)
        trainer.inference = lambda x: trainer.model_list[0](x.T)
        trainer.check_init(use_tb=False)
        trainer.fit(2)

    (message,) = said(lambda: run(Tiny))
    assert "(tensor [6, 10], tensor [10])" in message and "It counts as 6" in message
    assert said(lambda: run(Counting)) == []


@pytest.mark.parametrize("loader", [
    lambda: DataLoader(TensorDataset(*tiny_data()), 10), lambda: DataLoader(TensorDataset(*tiny_data(53)), 3),
    lambda: DataLoader(TensorDataset(*tiny_data()), 4), lambda: DataLoader(TensorDataset(tiny_data()[0]), 1),
    lambda: TensorLoader(*tiny_data(), batch_size=10), lambda: Stateful(), lambda: [tiny_data(5)] * 3,
    lambda: {"a": DataLoader(TensorDataset(*tiny_data()), 10), "b": TensorLoader(*tiny_data(), batch_size=10)},
], ids=["tens", "threes", "fours", "ones", "TensorLoader", "iterable", "list", "dict"])
def test_ordinary_batches_are_counted_without_a_word(loader):
    trainer = Tiny(train_loader=loader(), eval_loader=None)
    numbers = []
    parts = trainer.train_loader
    batches = [dict(zip(parts, both)) for both in zip(*parts.values())] if isinstance(parts, dict) else list(parts)
    assert said(lambda: numbers.extend(trainer.count_samples(batch) for batch in batches)) == []
    assert numbers == [len(next(iter(batch["a"] if isinstance(batch, dict) else batch))) for batch in batches]


def test_a_loader_that_is_set_later_tells_its_sizes_too():
    trainer = Tiny(train_loader=DataLoader(Images(), 9, collate_fn=list), eval_loader=None)
    same = [torch.zeros(3, 8, 8)]
    assert said(lambda: trainer.count_samples(same * 9)) == [] and trainer.count_samples(same * 9) == 9
    assert said(lambda: trainer.count_samples(same)) == [] and trainer.count_samples(same) == 1
    trainer.train_loader = DataLoader(Images(), 12, collate_fn=list)
    assert said(lambda: trainer.count_samples(same * 12)) == [] and trainer.count_samples(same * 12) == 12
    assert len(said(lambda: trainer.count_samples(same * 7))) == 1  # of no loader that there is


@pytest.mark.parametrize(("loader", "ranks", "expected"), [
    (None, 1, (set(), True)),
    (DataLoader(range(53), 10), 1, ({10, 3}, True)),
    (DataLoader(range(50), 10), 1, ({10}, True)),
    (DataLoader(range(53), 10, drop_last=True), 1, ({10}, True)),
    (DataLoader(range(53), 10), 2, ({10, 3, 6, 7}, True)),   # 13 samples in the last round: 7 and 6
    (DataLoader(range(44), 10), 3, ({10, 4, 5}, True)),      # 14 in the last round: 5, 5 and 4
    (DataLoader(range(53), None), 1, (set(), False)),
    (DataLoader(range(53), batch_sampler=[[0, 1], [2]]), 1, (set(), False)),
    (TensorLoader(torch.zeros(53), batch_size=10), 1, ({10, 3}, True)),
    ([1, 2], 1, (set(), False)),
    ({"a": DataLoader(range(53), 10), "b": DataLoader(range(9), 4)}, 1, ({10, 3, 4, 1}, True)),
    ({"a": DataLoader(range(53), 10), "b": [1]}, 1, ({10, 3}, False)),
], ids=["none", "short", "full", "drop_last", "2 ranks", "3 ranks", "no batching", "batch_sampler", "TensorLoader", "list",
        "dict", "dict with a list"])
def test_the_sizes_that_batches_of_a_loader_may_have(loader, ranks, expected):
    assert batch_sizes(loader, ranks) == expected


def test_counting_ordinary_batches_costs_no_more_than_looking_for_the_first_tensor_did():
    """Half a microsecond; the bound is generous, for a machine that does other things too."""
    trainer = Tiny()
    batch = [torch.zeros(10, 6), torch.zeros(10)]
    assert trainer.count_samples(batch) == 10
    seconds = min(timeit.repeat(lambda: trainer.count_samples(batch), number=1000, repeat=20)) / 1000
    read = min(timeit.repeat(lambda: (isinstance(batch, dict), len(batch[0])), number=1000, repeat=20)) / 1000
    assert seconds < 8 * read
