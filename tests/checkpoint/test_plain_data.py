"""Copies in host memory equal what was copied to the last type and bit, and know nothing of what comes after."""

import enum
import weakref
from collections import Counter, OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model
from torch import nn

from template.checkpoint.plain_data import HostCopy, refuse_objects


def equal(a, b):
    """The same nesting, order, types, dtypes and bits."""
    if isinstance(a, torch.Tensor):
        same = (a.dtype, a.shape, a.layout, a.stride()) == (b.dtype, b.shape, b.layout, b.stride())
        return same and a.detach().numpy().tobytes() == b.detach().numpy().tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b or a != a and b != b  # NaN


def tensors(data):
    """The tensors of nested data in order."""
    if isinstance(data, torch.Tensor):
        return [data]
    parts = data.values() if isinstance(data, dict) else data if isinstance(data, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors(part)]


# --- equal, to the last type ------------------------------------------------------------------------------------------

dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64])
shapes = st.lists(st.integers(0, 4), max_size=3)


@st.composite
def any_tensor(draw):
    values = torch.arange(64).mul(draw(st.integers(1, 50))).to(draw(dtypes)).reshape(4, 4, 4)
    shape = draw(shapes)
    return values.flatten()[:np.prod(shape, dtype=int)].reshape(shape).clone()


leaves = (st.none() | st.booleans() | st.integers(-2**80, 2**80) | st.floats() | st.text(max_size=5) | any_tensor()
          | st.sampled_from([torch.Size([2, 3]), torch.bfloat16, torch.device("cpu"), Counter({30: 1, 80: 2}), Counter()]))
keys = st.text(max_size=3) | st.integers(0, 9)
nested = st.recursive(leaves, lambda inner: (
    st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(keys, inner, max_size=3)
    | st.dictionaries(keys, inner, max_size=3).map(OrderedDict)), max_leaves=12)


@settings(deadline=None, max_examples=80)
@given(st.lists(nested, min_size=1, max_size=3))
def test_a_copy_of_any_plain_data_equals_it_also_in_memory_that_held_something_else(states):
    copy = HostCopy()
    for state in states:
        refuse_objects(state)
        filled = copy.fill(state)
        assert equal(filled, state)
        assert not {t.data_ptr() for t in tensors(state) if t.numel()} & {t.data_ptr() for t in tensors(filled)}


def test_what_happens_to_the_original_does_not_reach_the_copy():
    state = {"weight": torch.ones(3), "rows": [{"epoch": 1}], "milestones": Counter({3: 1}),
             "nested": OrderedDict(a=([torch.zeros(2)], 5))}
    filled = HostCopy().fill(state)
    state["weight"].add_(1)
    state["nested"]["a"][0][0].fill_(7)
    state["rows"][0]["epoch"] = 2
    state["rows"].append({})
    state["milestones"][3] += 1
    state["nested"]["b"] = 1
    assert equal(filled, {"weight": torch.ones(3), "rows": [{"epoch": 1}], "milestones": Counter({3: 1}),
                          "nested": OrderedDict(a=([torch.zeros(2)], 5))})


def test_parameters_become_tensors_without_a_gradient():
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    filled = HostCopy().fill({"p": parameter, "result": parameter * 3})
    assert type(filled["p"]) is torch.Tensor and filled["result"].tolist() == [3, 3]
    assert not any(part.requires_grad or part.grad_fn or part.grad is not None for part in filled.values())


@pytest.mark.filterwarnings("ignore:.*[Ss]parse.*:UserWarning")
def test_tensors_of_every_form_are_copied():
    base = torch.arange(24.0).reshape(2, 3, 4)
    state = {
        "transposed": base.transpose(0, 2), "slice": base[:, ::2, 1:3], "expanded": torch.ones(1, 3).expand(4, 3),
        "number": torch.tensor(2.5), "empty": torch.empty(0, 3), "empty too": torch.empty(0, 3, dtype=torch.int64),
        "bf16": torch.tensor([1.5, float("nan"), float("-inf")], dtype=torch.bfloat16),
        "conjugated": torch.tensor([1 + 2j]).conj(), "not conjugated": torch.tensor([1 + 2j]),
        "sparse": torch.sparse_coo_tensor([[0, 2]], [1.0, 2.0], (4,)).coalesce(),
        "csr": torch.eye(3).to_sparse_csr(),
    }
    filled = HostCopy().fill(state)
    assert list(filled) == list(state)
    for name, tensor in state.items():
        copied = filled[name]
        assert (copied.dtype, copied.shape, copied.layout) == (tensor.dtype, tensor.shape, tensor.layout), name
        assert torch.equal(copied.to_dense().nan_to_num(9.0), tensor.to_dense().nan_to_num(9.0)), name
    state["sparse"].values().zero_()
    assert filled["sparse"].to_dense().tolist() == [1, 0, 2, 0]


def test_a_tensor_and_its_conjugate_share_memory_and_are_two():
    value = torch.tensor([1 + 2j])
    filled = HostCopy().fill([value, value.conj()])
    assert [part.item() for part in filled] == [1 + 2j, 1 - 2j]


def test_the_order_in_memory_is_kept():
    copy, images = HostCopy(), torch.randn(2, 3, 4, 5)
    channels_last = images.to(memory_format=torch.channels_last)
    for value in (channels_last, images.transpose(0, 3)):
        assert copy.fill([value])[0].stride() == value.stride()


def test_the_order_in_memory_follows_a_model_that_changes_it():
    """``model.to(memory_format=torch.channels_last)`` between two saves; the shapes stay what they were."""
    copy, images = HostCopy(), torch.randn(2, 3, 4, 5)
    copy.fill([images])
    changed = images.to(memory_format=torch.channels_last)
    filled, = copy.fill([changed])
    assert torch.equal(filled, changed) and filled.stride() == changed.stride()


# --- tied stays tied --------------------------------------------------------------------------------------------------


def test_tied_weights_stay_tied_so_a_file_holds_them_once(tmp_path):
    weight = nn.Parameter(torch.randn(100, 100))
    model = nn.ModuleDict({"embedding": nn.Embedding(100, 100), "head": nn.Linear(100, 100, bias=False)})
    model["embedding"].weight = model["head"].weight = weight
    copy = HostCopy()
    for _ in range(2):
        filled = copy.fill(model.state_dict())
        first, second = filled.values()
        assert first.data_ptr() == second.data_ptr() and torch.equal(first, weight)
    torch.save(filled, tmp_path / "tied.pth")
    torch.save({"one": weight.detach()}, tmp_path / "one.pth")
    assert (tmp_path / "tied.pth").stat().st_size < 1.1 * (tmp_path / "one.pth").stat().st_size


def test_equal_values_are_no_tie_and_neither_is_shared_memory_of_another_shape():
    whole = torch.zeros(2, 3)
    filled = HostCopy().fill([torch.zeros(3), torch.zeros(3), whole, whole[0], whole.view(3, 2)])
    filled[0].fill_(1)
    assert len({part.data_ptr() for part in filled}) == 5 and filled[1].tolist() == [0, 0, 0]
    assert [tuple(part.shape) for part in filled[2:]] == [(2, 3), (3,), (3, 2)]


# --- memory is kept ---------------------------------------------------------------------------------------------------


def test_the_memory_of_the_last_copy_is_filled_again():
    model = tiny_model()
    optimizer = torch.optim.Adam(model.parameters())
    nn.functional.cross_entropy(model(torch.randn(4, 6)), torch.zeros(4).long()).backward()
    optimizer.step()

    def state():
        return {"model0": model.state_dict(), "optimizer_list0": optimizer.state_dict()}

    copy = HostCopy()
    before = [part.data_ptr() for part in tensors(copy.fill(state()))]
    optimizer.step()
    filled = copy.fill(state())
    assert [part.data_ptr() for part in tensors(filled)] == before and len(before) > 8
    assert equal(filled, state())


def test_one_tensor_of_another_shape_or_dtype_leaves_the_memory_of_the_others():
    copy = HostCopy()
    before = [part.data_ptr() for part in copy.fill([torch.zeros(9), torch.zeros(3), torch.zeros(5)])]
    filled = copy.fill([torch.ones(9), torch.ones(3).double(), torch.ones(5)])
    assert [part.data_ptr() == old for part, old in zip(filled, before)] == [True, False, True]
    filled = copy.fill([torch.ones(9), torch.ones(4), torch.ones(5)])
    assert [part.data_ptr() == old for part, old in zip(filled, before)] == [True, False, True]
    assert [part.tolist() for part in filled] == [[1] * 9, [1] * 4, [1] * 5]


def test_memory_that_is_no_longer_needed_is_given_back():
    copy = HostCopy()
    filled = copy.fill([torch.zeros(3), torch.zeros(4)])
    first, second = map(weakref.ref, filled)
    del filled
    copy.fill([torch.zeros(3)])
    assert first() is not None and second() is None


def test_after_a_copy_that_failed_the_next_one_is_right():
    copy = HostCopy()
    copy.fill([torch.zeros(3), torch.zeros(4)])
    with pytest.raises(NotImplementedError):  # a RuntimeError, as that of a lack of memory
        copy.fill([torch.ones(3), torch.empty(4, device="meta")])
    assert [part.tolist() for part in copy.fill([torch.full((3,), 2.0), torch.full((4,), 3.0)])] == [[2] * 3, [3] * 4]


# --- what is no plain data --------------------------------------------------------------------------------------------


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    pass


@pytest.mark.parametrize("value, name", [
    (object(), "builtins.object"), (np.float64(0.5), "numpy.float64"), (np.zeros(1), "numpy.ndarray"), ({1}, "builtins.set"),
    (b"", "builtins.bytes"), (1j, "builtins.complex"), (Color.RED, "Color"), (Text("a"), "Text"), (len, "builtin_function"),
    (defaultdict(int), "collections.defaultdict"), (namedtuple("Pair", "a b")(1, 2), "Pair"), (nn.Linear(1, 1), "Linear"),
])
def test_what_is_no_plain_data_is_refused_with_its_place_and_class(value, name):
    with pytest.raises(TypeError, match=rf"the file\['a'\]\[1\]\[0\] is a .*{name}.*Return plain data from state_dict"):
        refuse_objects({"a": ["fine", (value, 2)]}, "the file")


def test_objects_as_keys_are_refused_and_plain_keys_are_not():
    refuse_objects({"a": {1: 0, 2.5: 0, None: 0, (1, "b"): 0}})
    with pytest.raises(TypeError, match=r"state\['a'\], key .* is a .*Color"):
        refuse_objects({"a": {Color.RED: 0}})
    with pytest.raises(TypeError, match=r"state, key .*\[1\] is a .*Color"):
        refuse_objects({("b", Color.RED): 0})
