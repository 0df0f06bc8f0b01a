"""Nested batches: how many samples are in one, whatever made it, and a copy that the loader cannot overwrite."""

import random
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import zeros
from torch.nn.utils.rnn import pack_sequence, pad_sequence
from torch.utils.data import default_collate

from template.data.nested import copied, count_samples, sketch, tell_samples

Pair = namedtuple("Pair", ["x", "y"])


@dataclass
class Record:
    image: object
    label: object
    name: str = "train"


@dataclass(frozen=True)
class Frozen:
    image: object
    settings: tuple = (0.5, 0.25)


class Plain:
    """As in torch's own tutorial on ``pin_memory``."""

    def __init__(self, samples):
        self.inputs = torch.stack([image for image, _ in samples])
        self.targets = torch.tensor([label for _, label in samples])


class Slots:
    __slots__ = ()


class Graphs:
    """As torch_geometric's: nodes of all graphs in one tensor, and a length that counts something else."""

    def __init__(self, sizes):
        self.x, self.num_graphs = zeros(sum(sizes), 2), len(sizes)

    def __len__(self):
        return 2


class Sized:
    """As tensordict's or DGL's."""

    def __init__(self, batch_size):
        self.batch_size = batch_size


class Instances:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count


# --- what people collate, from samples whose number is known -------------------------------------------------------------


def dropping(samples):
    """Boxes of an image: none, some, or by chance as many as others have."""
    return [{"boxes": zeros(len(boxes), 4), "labels": zeros(len(boxes)).long()} for _, _, boxes in samples]


COLLATED = {
    "by default": lambda samples: default_collate([(zeros(2, 5), label) for _, label, _ in samples]),
    "by default, one tensor": lambda samples: default_collate([zeros(2, 5) for _ in samples]),
    "by default, in a list": lambda samples: default_collate([(zeros(7),) for _ in samples]),
    "by default, a dict": lambda samples: default_collate([{"x": zeros(2, 5), "y": y, "z": str(y)} for _, y, _ in samples]),
    "by default, views": lambda samples: default_collate([((zeros(3, 8, 8), zeros(3, 8, 8)), y) for _, y, _ in samples]),
    "by default, views without labels": lambda samples: default_collate([(zeros(3, 8, 8), zeros(3, 8, 8)) for _ in samples]),
    "by default, two dicts": lambda samples: default_collate([({"i": zeros(9)}, {"i": zeros(9)}) for _ in samples]),
    "by default, a named tuple": lambda samples: default_collate([Pair(zeros(4), y) for _, y, _ in samples]),
    "by default, names": lambda samples: default_collate([str(y) for _, y, _ in samples]),
    "zip: images, boxes": lambda samples: (tuple(image for image, _, _ in samples), tuple(dropping(samples))),
    "zip: images, labels": lambda samples: tuple(zip(*[(image, label) for image, label, _ in samples])),
    "zip: images, 0-dim labels": lambda samples: tuple(zip(*[(image, torch.tensor(y)) for image, y, _ in samples])),
    "zip: arrays, names": lambda samples: tuple(zip(*[(np.zeros(image.shape), str(y)) for image, y, _ in samples])),
    "images in a list, boxes": lambda samples: [[image for image, _, _ in samples], dropping(samples)],
    "images stacked, boxes in a list": lambda samples: (torch.stack([zeros(3, 8, 8) for _ in samples]), dropping(samples)),
    "list of samples": lambda samples: [(image, label) for image, label, _ in samples],
    "list of samples with boxes": lambda samples: [(image, label, boxes) for image, label, boxes in samples],
    "list of dicts": lambda samples: [{"image": image, "label": label, "boxes": boxes} for image, label, boxes in samples],
    "list of dicts with instances": lambda samples: [
        {"image": image, "height": 480, "instances": Instances(len(boxes))} for image, _, boxes in samples],
    "list of dicts of numbers": lambda samples: [{"a": 1.0, "b": label} for _, label, _ in samples],
    "list of names": lambda samples: [str(label) for _, label, _ in samples],
    "list of arrays": lambda samples: [np.zeros((5 + 3 * number, 2)) for number, _ in enumerate(samples)],
    "dict of lists": lambda samples: {"pixels": [image for image, _, _ in samples], "labels": [y for _, y, _ in samples]},
    "dict of lists of boxes": lambda samples: {"pixels": [image for image, _, _ in samples], "targets": dropping(samples)},
    "arrays": lambda samples: (np.zeros((len(samples), 5)), np.arange(len(samples))),
    "one array": lambda samples: np.zeros((len(samples), 5)),
    "dict of arrays": lambda samples: {"x": np.zeros((len(samples), 5)), "y": np.arange(len(samples)), "rate": 0.5},
    "dataclass": lambda samples: Record(zeros(len(samples), 3), zeros(len(samples))),
    "frozen dataclass": lambda samples: Frozen(zeros(len(samples), 3)),
    "dataclass of lists": lambda samples: Record([image for image, _, _ in samples], [y for _, y, _ in samples]),
    "list of dataclasses": lambda samples: [Record(image, label) for image, label, _ in samples],
    "named tuple": lambda samples: Pair(zeros(len(samples), 3), [str(y) for _, y, _ in samples]),
    "plain object": lambda samples: Plain([(zeros(3), label) for _, label, _ in samples]),
    "graphs": lambda samples: Graphs([2 + len(boxes) for _, _, boxes in samples]),
    "graphs, labels": lambda samples: (Graphs([2 + len(boxes) for _, _, boxes in samples]), zeros(len(samples))),
    "batch_size": lambda samples: Sized(len(samples)),
    "batch_size as a shape": lambda samples: Sized(torch.Size([len(samples), 7])),
    "length": lambda samples: (Instances(len(samples)), None),
    "packed": lambda samples: pack_sequence([zeros(5 + label, 2) for _, label, _ in samples], enforce_sorted=False),
    "packed, labels": lambda samples: (pack_sequence([zeros(5 + y) for _, y, _ in samples], enforce_sorted=False),
                                       zeros(len(samples))),
    "UserDict": lambda samples: UserDict(input_ids=zeros(len(samples), 9), attention_mask=zeros(len(samples), 9)),
    "OrderedDict": lambda samples: OrderedDict(x=zeros(len(samples), 9)),
    "a setting beside": lambda samples: {"scale": zeros(1), "size": (224, 224), "x": zeros(len(samples), 9)},
    "dict of loaders": lambda samples: {"labelled": [zeros(len(samples), 3), zeros(len(samples))],
                                        "other": [zeros(len(samples), 3)]},
}


@st.composite
def drawn_samples(draw, smallest=1, largest=12):
    """``[(image [3, H, W], label, boxes [n, 4]), …]``: images of one size or of many, also with as many boxes each."""
    count = draw(st.integers(smallest, largest))
    rng = random.Random(draw(st.integers(0, 99)))
    is_one_size, boxes = draw(st.booleans()), draw(st.sampled_from([[0, 1, 2, 3, 7], [1], [3]]))
    return [(zeros(3, *((32, 32) if is_one_size else (rng.randint(5, 40), rng.randint(5, 40)))), rng.randrange(5),
             zeros(rng.choice(boxes), 4)) for _ in range(count)]


@settings(deadline=None, max_examples=25)
@given(drawn_samples(), st.integers(13, 40))
@pytest.mark.parametrize("kind", COLLATED)
def test_the_samples_that_were_collated_are_counted_where_the_loader_tells_its_batch_sizes(kind, samples, batch_size):
    """``sizes``: full batches, and this one, which is the short one at the end."""
    told = tell_samples(COLLATED[kind](samples), {batch_size, len(samples)})
    if kind == "list of arrays" and len(samples) == 1:  # or [x] of five samples, some of which were dropped
        assert told == (5, (5, 1))
    else:
        assert told == (len(samples), (len(samples),))


UNCERTAIN = {"zip: images, boxes", "images in a list, boxes", "dict of lists of boxes"}  # with as many boxes as channels


@settings(deadline=None, max_examples=25)
@given(drawn_samples(5))
@pytest.mark.parametrize("kind", COLLATED)
def test_they_are_counted_without_it_too_and_what_is_not_certain_is_said(kind, samples):
    told = tell_samples(COLLATED[kind](samples))
    if len(told.candidates) > 1:
        assert kind in UNCERTAIN and len(samples) in told.candidates
    else:
        assert told == (len(samples), (len(samples),))


def test_images_in_a_list_are_told_from_columns_by_the_sizes_of_the_loader():
    images = [zeros(3, 30 + number, 40) for number in range(9)]
    for batch in (images, [zeros(3, 32, 32)] * 9, [{"image": image} for image in images]):
        assert tell_samples(batch, {9, 1}) == (9, (9,))
        assert tell_samples(batch[:1], {9, 1}) == (1, (1,))   # the short last batch, as if it were [x] of three samples
        assert len(tell_samples(batch).candidates) > 1        # nobody tells
    assert tell_samples(images).samples == 9                  # of many sizes
    assert tell_samples([zeros(100, 4)] * 9, {9, 2}) == (9, (9,))      # sequences of one length
    assert tell_samples([zeros(16, 4), zeros(16, 2)], {16}) == (16, (16,))
    assert tell_samples([zeros(15, 4), zeros(15, 2)], {16, 2}) == (15, (15, 2))  # a broken sample was dropped, or two are


@pytest.mark.parametrize(("batch", "sizes", "first", "others"), [
    ((zeros(4, 3, 8, 8), zeros(11, 6)), (), 4, {11}),                 # images, and the boxes of all of them
    ((zeros(4, 3, 8, 8), zeros(11, 6)), (4,), 4, {11}),
    ((zeros(50, 20, 7), zeros(20)), (), 50, {20}),                    # time first
    ((zeros(50, 20, 7), zeros(20)), (20, 13), 20, {50}),              # the loader knows better
    (([zeros(3, 9, 9)] * 9, [{"boxes": zeros(n, 4)} for n in range(7)]), (), 9, {7}),
    ({"labelled": [zeros(16, 3), zeros(16)], "other": [zeros(48, 3)]}, (), 16, {48}),
    ({"x": zeros(5), "names": ["a"] * 4, "y": zeros(6)}, (), 5, {6}),
    (Record(zeros(5), zeros(6)), (), 5, {6}), (Pair(zeros(5), np.zeros(6)), (), 5, {6}),
    ([zeros(50, 20), zeros(60, 20)], (), 2, {50, 60}),                # source and target, or two samples
], ids=["boxes of all images", "with sizes", "time first", "time first, with sizes", "images and targets", "loaders", "dict",
        "dataclass", "named tuple", "source and target"])
def test_columns_that_disagree_count_as_the_first_one_and_that_is_uncertain(batch, sizes, first, others):
    told = tell_samples(batch, sizes)
    assert told.samples == count_samples(batch, sizes) == first and set(told.candidates) >= {first, *others}


def test_sequences_with_the_time_first_are_seen_where_all_batch_sizes_are_known():
    words = [torch.arange(length) for length in (50, 41, 7, 3, 3, 2)]
    batch = (pad_sequence(words), pad_sequence(words))  # [T, B], torch's default
    assert tell_samples(batch, {6, 4}, are_all=True) == (6, (6, 50, 2))
    assert tell_samples(batch, {6, 4}) == (50, (50,))
    assert tell_samples([zeros(50, 6), zeros(60, 6)], {6}, are_all=True) == (6, (6, 2, 50, 60))
    assert tell_samples((zeros(6, 50), zeros(6, 50)), {6, 50}, are_all=True) == (6, (6,))


@pytest.mark.parametrize("batch", [
    None, 3, 0.5, "text", b"bytes", torch.tensor(1.0), np.float32(3), np.array(3), (0.5, 3), {}, (None, "text"),
    {"a": 1.0, "b": torch.tensor(2.0)}, Record(1, 2), Slots(), Sized(None),
], ids=lambda batch: type(batch).__name__)
def test_what_tells_nothing_counts_as_one(batch):
    assert tell_samples(batch) == (None, ()) and count_samples(batch) == 1


@pytest.mark.parametrize("batch", [[], zeros(0, 3), (zeros(0, 3), zeros(0)), {"x": zeros(0)}], ids=repr)
def test_an_empty_batch_has_no_samples(batch):
    assert count_samples(batch) == 0


def test_an_object_that_holds_itself_is_no_endless_search():
    batch = Plain([(zeros(3), 1), (zeros(3), 2)])
    batch.owner = batch
    assert count_samples(batch) == 2
    nested = [zeros(5)]
    for _ in range(50):
        nested = [nested]
    assert isinstance(count_samples(nested), int)


def test_a_batch_is_sketched_in_a_few_words():
    images = tuple(zeros(3, 9, 9) for _ in range(9))
    assert sketch((images, [{"boxes": zeros(2, 4)}] * 7)) == (
        "(tuple of 9, the first tensor [3, 9, 9], list of 7, the first {boxes: tensor [2, 4]})")
    entries = {"x": np.zeros((2, 3)), "y": 3, "z": "text", "u": None, "v": 1}
    assert sketch(entries) == "{x: array [2, 3], y: int, z: str, u: NoneType, …}"
    assert sketch([]) == "list" and len(sketch([[[[[[zeros(3)]] * 2] * 2] * 2] * 2])) < 200


# --- a copy that nobody overwrites -----------------------------------------------------------------------------------------


class Cloned:
    def __init__(self, x):
        self.x = x

    def clone(self):
        return Cloned(self.x.clone())


def test_a_copy_keeps_nesting_types_and_values_while_the_original_is_filled_again():
    x, array = torch.arange(4.0), np.arange(3)
    weight = torch.ones(2, requires_grad=True)
    made = {
        "list": [x, (x, "text", None, 3)], "named": Pair(x, array), "dict": OrderedDict(x=x), "user": UserDict(x=x),
        "record": Record(x, [x]), "frozen": Frozen(x), "plain": Plain([(x, 1)]), "cloned": Cloned(x), "slots": Slots(),
        "packed": pack_sequence([x, x]), "weight": weight, "subclass": x.as_subclass(Marked), "graphs": Graphs([2]),
    }
    made["plain"].inputs = x
    got = copied(made)
    x.zero_()
    array[:] = 0
    kept = [got["list"][0], got["list"][1][0], got["named"].x, got["dict"]["x"], got["user"]["x"], got["record"].image,
            got["record"].label[0], got["frozen"].image, got["plain"].inputs, got["cloned"].x, got["subclass"]]
    assert all(tensor.tolist() == [0, 1, 2, 3] for tensor in kept) and got["named"].y.tolist() == [0, 1, 2]
    assert {name: type(part) for name, part in got.items()} == {name: type(part) for name, part in made.items()}
    assert got["list"][1][1:] == ("text", None, 3) and got["frozen"].settings == (0.5, 0.25)
    assert got["weight"].requires_grad and got["weight"].is_leaf
    assert got["packed"].data.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and got["slots"] is made["slots"]
    assert (got["record"].name, got["graphs"].num_graphs) == ("train", 1)


class Marked(torch.Tensor):
    pass
