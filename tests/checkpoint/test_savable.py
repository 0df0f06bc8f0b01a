"""What a person keeps in states is saved and comes back, or is refused before an epoch was trained for it."""

from collections import Counter, OrderedDict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import Tiny, tiny_data, tiny_trainer
from torch import nn

from template.checkpoint import files
from template.checkpoint.plain_data import as_plain, refuse_objects, restored
from template.hooks import Callback

ALL_BYTES = bytes(range(256))
leaves = (st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3) | st.binary(max_size=4)
          | st.deferred(lambda: st.lists(leaves, max_size=3).map(lambda parts: deque(parts, 3))))
nested = st.recursive(leaves, lambda inner: (
    st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    | st.dictionaries(st.integers(), inner, max_size=2).map(OrderedDict)), max_leaves=9)


@given(nested)
def test_bytes_and_deques_come_back_as_they_were(value):
    plain = as_plain(value)
    refuse_objects(plain)
    back = restored(plain)
    assert back == value and repr(back) == repr(value)


def test_they_come_back_from_a_file():
    state = {"key": b"", "all": ALL_BYTES, "newest": deque([torch.ones(2), b"x"], maxlen=2), "parts": [(b"1",)]}
    files.write(as_plain(state), "state.pth")
    back = files.read("state.pth")
    assert back["all"] == ALL_BYTES and back["key"] == b"" and back["parts"] == [(b"1",)]
    assert back["newest"].maxlen == 2 and torch.equal(back["newest"][0], torch.ones(2)) and back["newest"][1] == b"x"


@pytest.mark.parametrize("number", [np.float64(0.1), np.float32(0.5), np.int64(7), np.bool_(True), np.array(3)])
def test_numpys_numbers_are_numbers(number):
    plain = as_plain({"a": [number], "b": (1, number)})
    assert plain == {"a": [number.item()], "b": (1, number.item())}
    assert type(plain["a"][0]) in (bool, int, float)
    assert as_plain({np.int64(3): 1}) == {3: 1} and type(*as_plain({np.int64(3): 1})) is int


def test_what_needs_no_change_is_handed_back_itself():
    state = {"a": [1, (2.0, "x")], "b": OrderedDict(c=torch.ones(1)), "d": Counter([3])}
    assert as_plain(state) is state


class Remembering(torch.optim.SGD):
    """Keeps the last gradient norms, as adaptive clipping does, and counts with numpy."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                norms = self.state[p].setdefault("norms", deque(maxlen=3))
                norms.append(np.float64(p.grad.norm().item()))
                p.grad /= 1.0 + sum(norms)
                self.state[p]["count"] = np.int64(len(norms))
        super().step()


class Opaque(nn.Module):
    def __init__(self, extra):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.extra = nn.Linear(6, 3), extra

    def forward(self, x):
        return self.layer(x)

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, extra):
        self.extra = extra


def parameters(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model_list[0].parameters()])


class Numpy(Tiny):
    def count_samples(self, batch):
        return np.int64(len(batch[0]))

    def metric(self, pred, y):
        return {"score": np.float32((pred.argmax(1) == y).float().mean().item())}


def test_a_run_with_numpys_numbers_bytes_and_deques_continues_to_the_same_bits():
    def build(ckpt_dir):
        model = Opaque({"key": ALL_BYTES, "window": deque([1], maxlen=4)})
        rate = np.logspace(-3, -1, 3)[2]
        trainer = Numpy(model=model, ckpt_dir=ckpt_dir, lr_scheduler_type="cosine", total_epochs=4, save_per_steps=2,
                        optimizer_list=[Remembering(model.parameters(), rate, momentum=np.float32(0.5))])
        trainer.check_init(use_tb=False)
        return trainer

    whole, continued = build("whole"), build("parts")
    whole.fit(4)
    continued.load_state("whole/epoch2.pth")
    assert {one["norms"].maxlen for one in continued.optimizer_list[0].state.values()} == {3}
    assert continued.model_list[0].extra == {"key": ALL_BYTES, "window": deque([1], maxlen=4)}
    continued.fit(4)
    assert torch.equal(parameters(whole), parameters(continued)) and whole.best_metric == continued.best_metric


def test_accumulation_with_numpys_counts_equals_that_with_numbers():
    found = []
    for kind in (Numpy, Tiny):
        trainer = kind(model=Opaque(None), accumulate_steps=4)
        trainer.check_init(use_tb=False)
        trainer.train_loop()
        found.append(parameters(trainer))
    assert torch.equal(*found)


# --- what is refused --------------------------------------------------------------------------------------------------


class Keeps(Callback):
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


@pytest.mark.parametrize("attributes, where", [
    (lambda: {"model": Opaque({"lock": object()})}, r"the state of model0\['_extra_state'\]\['lock'\] is a builtins.object"),
    (lambda: {"callbacks": [Keeps(np.zeros(3))]}, r"the state of callback Keeps\['value'\] is a numpy.ndarray"),
    (lambda: {"callbacks": [Keeps({b"key": 1})]}, "is a builtins.bytes"),
])
def test_what_no_checkpoint_can_hold_is_told_by_check_init_and_leaves_no_folder(attributes, where):
    trainer = Tiny(ckpt_dir="refused", **attributes())
    with pytest.raises(TypeError, match=where):
        trainer.check_init(use_tb=False)
    assert not Path("refused").exists()


def test_what_an_optimizer_puts_into_its_state_is_told_behind_the_first_update():
    class Late(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            self.state[self.param_groups[0]["params"][0]]["cache"] = object()

    model = Opaque(None)
    trainer = tiny_trainer(model=model, optimizer_list=[Late(model.parameters(), 0.1)])
    with pytest.raises(TypeError, match=r"the state of optimizer_list\[0\]\['state'\]\[0\]\['cache'\] is a builtins.object"):
        trainer.train_loop()
    assert trainer.global_step == 1


def test_a_callback_that_cannot_tell_its_state_before_the_training_is_no_mistake():
    class Born(Callback):
        def on_train_start(self, model):
            self.seen = 0

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    trainer = tiny_trainer(callbacks=[Born()], train_loader=[tiny_data(10)])
    trainer.fit(1)
    assert files.read(trainer.path_of("last.pth"))["callbacks"]["Born"] == {"seen": 0}
