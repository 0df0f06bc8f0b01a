"""What goes into a model as one input, and what is taken apart, in training, evaluation and predictions."""

from collections import namedtuple

import pytest
import torch
from tiny import Tiny, tiny_trainer
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader

from template.run.defaults import call_model

Pair = namedtuple("Pair", "left right")


class Noted(nn.Module):
    """Returns scores [B, 3]; ``given`` is what its subclass's forward got last."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.head, self.given = nn.Linear(6, 3), None

    def note(self, *given):
        self.given = given


class OfSequences(Noted):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(6, 6)

    def forward(self, x):
        self.note(x)
        return self.head(self.rnn(x)[1][0])


class OfImages(Noted):
    """A list of images [6, H, W] of any size, as detection models take them."""

    def forward(self, images):
        self.note(images)
        assert type(images) is list
        return self.head(torch.stack([image.mean((1, 2)) for image in images]))


class OfPair(Noted):
    def forward(self, pair):
        self.note(pair)
        return self.head(pair.left + pair.right)


class OfTwo(Noted):
    def forward(self, left, right):
        self.note(left, right)
        return self.head(left + right)


class OfOneOrTwo(Noted):
    def forward(self, x, mask=None):
        self.note(x, mask)
        return self.head(x if mask is None else x * mask)


class OfAny(Noted):
    def forward(self, *parts):
        self.note(*parts)
        return self.head(sum(parts))


LABELS = torch.arange(8) % 3
FEATURES = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def packed(samples):
    return pack_sequence([x for x, _ in samples], enforce_sorted=False), torch.stack([y for _, y in samples])


def listed(samples):
    return [x for x, _ in samples], torch.stack([y for _, y in samples])


def loader(samples, collate=None, batch_size=3):
    return DataLoader(samples, batch_size, collate_fn=collate)


CASES = {
    "packed": (OfSequences, loader([(torch.ones(2 + i, 6), y) for i, y in enumerate(LABELS)], packed), [PackedSequence]),
    "list of images": (OfImages, loader([(torch.ones(6, 4 + i, 5), y) for i, y in enumerate(LABELS)], listed), [list]),
    "batches of one image": (OfImages, loader([(torch.ones(6, 4, 5), y) for y in LABELS], listed, 1), [list]),
    "named tuple": (OfPair, loader([(Pair(x, x), y) for x, y in zip(FEATURES, LABELS)]), [Pair]),
    "collated tuple": (OfTwo, loader([((x, x), y) for x, y in zip(FEATURES, LABELS)]), [torch.Tensor] * 2),
    "collated optional": (OfOneOrTwo, loader([((x, x), y) for x, y in zip(FEATURES, LABELS)]), [torch.Tensor] * 2),
    "collated for any": (OfAny, loader([((x, x, x), y) for x, y in zip(FEATURES, LABELS)]), [torch.Tensor] * 3),
    "three parts": (OfTwo, loader([(x, x, y) for x, y in zip(FEATURES, LABELS)]), [torch.Tensor] * 2),
    "tuple": (OfTwo, [((FEATURES, FEATURES), LABELS)], [torch.Tensor] * 2),
    "tensor": (OfOneOrTwo, [(FEATURES, LABELS)], [torch.Tensor, type(None)]),
}


@pytest.mark.filterwarnings("ignore:train_loader and eval_loader read one dataset")
@pytest.mark.parametrize("name", CASES)
def test_an_input_reaches_the_model_as_a_person_would_hand_it_over(name):
    kind, batches, kinds = CASES[name]
    trainer = tiny_trainer(model=kind(), train_loader=batches, eval_loader=batches, accumulate_steps=2)
    before = trainer.model_list[0].head.weight.detach().clone()
    trainer.fit(1)
    assert [type(part) for part in trainer.model_list[0].given] == kinds
    assert trainer.eval_result["acc"] >= 0 and not torch.equal(before, trainer.model_list[0].head.weight)
    trainer.model_list[0].given = None
    assert trainer.predict(batches).shape == (8, 3)
    assert [type(part) for part in trainer.model_list[0].given] == kinds


def test_a_loader_of_packed_sequences_alone_can_be_predicted():
    sequences = [pack_sequence([torch.ones(3, 6), torch.ones(2, 6)])]
    model = OfSequences()
    assert torch.equal(Tiny(model=model).predict(sequences), model(sequences[0]).detach())


def test_outputs_of_a_chain_follow_the_same_rule():
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return [self.layer(x), x, -x]

    class OfFeatures(Noted):
        def forward(self, features):
            return self.head(sum(features))

    first, second = Features(), OfFeatures()
    optimizer = torch.optim.SGD([*first.parameters(), *second.head.parameters()], 0.1)
    trainer = tiny_trainer(model_list=[first, second], optimizer_list=[optimizer], preflight=False)
    trainer.fit(1)
    assert trainer.eval_result["tol_loss"] > 0


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, torch.jit.script])
def test_wrapped_models_are_asked_too(wrap):
    class Two(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor):
            return left - right

    model = wrap(Two(), backend="eager") if wrap is torch.compile else wrap(Two())
    assert call_model(model, [torch.ones(2), torch.ones(2)]).tolist() == [0, 0]


def test_a_list_that_does_not_fit_several_inputs_ends_in_pythons_own_words():
    with pytest.raises(TypeError, match="takes 3 positional arguments but 4 were given"):
        call_model(OfTwo(), [torch.ones(1, 6)] * 3)
