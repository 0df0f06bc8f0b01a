"""The digest of weights: equal where all bits are equal, whatever holds them, and in every file that a run saves."""

import csv
import re
import struct
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Tiny, tiny_model, tiny_trainer, whole_and_continued
from torch import nn

from template import EMA, Callback
from template.checkpoint import digests
from template.checkpoint.digests import digest
from template.checkpoint.files import read, write

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool, torch.complex64]


def rows(folder):
    return list(csv.DictReader(Path(folder, "digests.csv").read_text().splitlines()))


# --- what is the same, and what is not ----------------------------------------------------------------------------------


def test_it_is_the_sha256_of_names_dtypes_shapes_and_bytes_in_the_order_of_the_names():
    by_hand = sha256()
    for name, header, raw in [("model0.a", "torch.int64 []", struct.pack("<q", 7)),
                              ("model0.b", "torch.float32 [2, 1]", struct.pack("<ff", 1.5, -0.0))]:
        text = repr(name).encode()
        by_hand.update(f"str {len(text)};".encode() + text + f"tensor {header};".encode() + raw)
    state = {"b": torch.tensor([[1.5], [-0.0]]), "a": torch.tensor(7)}
    assert digest(state) == by_hand.hexdigest() == digest({"model0": dict(reversed(state.items()))})


def test_a_bit_a_name_a_dtype_a_shape_and_a_buffer_make_a_difference():
    state = {"weight": torch.zeros(2, 3), "count": torch.tensor(0)}
    others = [
        {"weight": -torch.zeros(2, 3), "count": torch.tensor(0)},
        {"Weight": torch.zeros(2, 3), "count": torch.tensor(0)},
        {"weight": torch.zeros(2, 3, dtype=torch.int32), "count": torch.tensor(0)},
        {"weight": torch.zeros(3, 2), "count": torch.tensor(0)},
        {"weight": torch.zeros(2, 3), "count": torch.tensor(1)},
        {"weight": torch.zeros(2, 3)},
        {"model1": {"weight": torch.zeros(2, 3), "count": torch.tensor(0)}},
    ]
    assert len({digest(other) for other in (state, *others)}) == 1 + len(others)


def test_nans_of_the_same_bits_are_the_same_and_others_are_not():
    bits = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32)
    one, same, other = ({"w": bits[i:i + 1].clone().view(torch.float32)} for i in (0, 0, 1))
    assert digest(one) == digest(same) != digest(other)


@settings(max_examples=60, deadline=None)
@given(shape=st.lists(st.integers(0, 4), min_size=4, max_size=4), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99),
       order=st.permutations(range(4)))
def test_strides_offsets_and_expanded_memory_make_no_difference(shape, dtype, seed, order):
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(shape, generator=generator) * 40).to(dtype)
    expected = digest({"w": tensor})
    back = [order.index(i) for i in range(4)]
    strided = tensor.permute(*order).contiguous().permute(*back)
    shifted = torch.cat([tensor.flatten()[:1], tensor.flatten()])[min(1, tensor.numel()):].view(shape)
    assert digest({"w": strided}) == digest({"w": shifted}) == expected
    assert digest({"w": tensor.contiguous(memory_format=torch.channels_last)}) == expected
    if tensor.numel():
        one = tensor.flatten()[:1]
        assert digest({"w": one.expand(5)}) == digest({"w": one.repeat(5)})
        changed = tensor.clone()
        changed.view(-1)[-1] = changed.view(-1)[-1] == 0
        assert digest({"w": changed}) != expected


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning", "ignore:Sparse CSR:UserWarning")
def test_sparse_conjugated_and_quantized_tensors_have_one():
    dense = torch.eye(3)
    assert digest({"w": dense.to_sparse()}) == digest({"w": dense.to_sparse()}) != digest({"w": 2 * dense.to_sparse()})
    z = torch.tensor([1 + 2j, 3 - 1j])
    assert digest({"w": z.conj()}) == digest({"w": z.conj().resolve_conj()}) != digest({"w": z})
    quantized = [torch.quantize_per_tensor(dense * k, 0.1, 0, torch.qint8) for k in (1, 2)]
    assert digest({"w": quantized[0]}) != digest({"w": quantized[1]})
    assert digest({"w": dense.to_sparse_csr()}) != digest({"w": 2 * dense.to_sparse_csr()})


def test_a_tensor_that_is_made_of_tensors_has_one_of_its_parts():
    from torch.testing._internal.two_tensor import TwoTensor

    parts = torch.zeros(2), torch.ones(2)
    found = [digest({"w": TwoTensor(a.clone(), b.clone())}) for a in parts for b in parts]
    assert len(set(found)) == 4 and found[1] == digest({"w": TwoTensor(*parts)})


def test_what_wraps_a_model_and_tied_weights_make_no_difference():
    model = tiny_model()
    expected = digest(model.state_dict())
    assert digest(torch.compile(model).state_dict()) == digest(nn.DataParallel(model).state_dict()) == expected
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before = digest({name: value.clone() for name, value in tied.state_dict().items()} | {"1.weight": tied[0].weight})
    tied[1].weight = tied[0].weight
    assert digest(tied.state_dict()) == before


def test_extra_state_of_a_module_counts():
    class Counting(nn.Linear):
        seen: object = None

        def get_extra_state(self):
            return {"seen": self.seen}

        def set_extra_state(self, state):
            self.seen = state["seen"]

    torch.manual_seed(0)
    model, found = Counting(2, 2), set()
    for model.seen in (1, True, "1", 1.0, [1], torch.tensor(1), None):
        found.add(digest(model.state_dict()))
    assert len(found) == 7


@pytest.mark.parametrize("weights, error", [
    (tiny_model(), "digest(model.state_dict())"), ({}, "with weights"), ({"model0": {}}, "with weights"),
    ({"w": object()}, "get_extra_state")])
def test_what_is_no_state_dict_is_refused(weights, error):
    with pytest.raises((TypeError, ValueError), match=re.escape(error)):
        digest(weights)


# --- in the files of a run ----------------------------------------------------------------------------------------------


class Seen(Callback):
    """The digests of the weights at each end of an epoch, by a loop over the live model."""

    def __init__(self):
        self.digests = {}

    def on_epoch_end(self, model, results):
        self.digests[str(model.epochs_done)] = digest(model.model_list[0].state_dict())


def test_each_save_has_the_digest_of_its_weights_in_the_file_and_in_the_table():
    seen = Seen()
    trainer = tiny_trainer(ckpt_dir="run", callbacks=[seen, EMA(0.5)])
    trainer.fit(3)
    assert {row["epoch"]: row["digest"] for row in rows("run")} == seen.digests and len(set(seen.digests.values())) == 3
    assert [(row["global_step"], row["batch"]) for row in rows("run")] == [("6", "0"), ("12", "0"), ("18", "0")]
    trainer.save_state("own.pth")
    trainer.save_state("use.pth", optim=False)
    for path in (*Path("run").glob("*.pth"), Path("own.pth"), Path("use.pth")):
        state = read(path)
        assert state["digest"] == digest(state), path
    assert read("run/epoch2.pth")["digest"] == seen.digests["2"], "of the weights that are trained, not of their average"
    assert read("own.pth")["digest"] == seen.digests["3"] != read("use.pth")["digest"]


def test_the_memory_format_of_the_training_makes_no_difference():
    model, plain = (nn.Sequential(nn.Linear(6, 4), nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.Flatten())
                    for _ in range(2))
    trainer = tiny_trainer(model=model, ckpt_dir="run", channels_last=True)
    trainer.train_loop()
    trainer.eval()
    trainer.close()
    state = read("run/last.pth")
    plain.load_state_dict(state["model0"])
    assert state["digest"] == digest(plain.state_dict()) == rows("run")[-1]["digest"]


def test_two_models_and_a_criterion_with_weights_are_all_in_it():
    class Pair(Tiny):
        def __init__(self, criterion_weight):
            super().__init__()
            self.model_list = [nn.Sequential(nn.Linear(6, 4)), nn.Linear(4, 3)]
            self.optimizer_list = [torch.optim.SGD(model.parameters(), 0.1) for model in self.model_list]
            self.criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, criterion_weight, 1.0]))

    found = []
    for weight in (1.0, 1.5):
        torch.manual_seed(0)
        trainer = Pair(weight)
        trainer.check_init(use_tb=False)
        trainer.save_state("state.pth")
        found.append(read("state.pth")["digest"])
        parts = {f"model{i}": model.state_dict() for i, model in enumerate(trainer.model_list)}
        assert digest(parts | {"criterion": trainer.criterion.state_dict()}) == found[-1]
    assert len(set(found)) == 2


def test_a_run_that_goes_on_leaves_the_table_of_one_that_never_stopped():
    def build(folder):
        torch.manual_seed(1)
        return tiny_trainer(ckpt_dir=folder)

    whole, continued = whole_and_continued(build, epochs=4, cut=2)
    assert rows("whole") == rows(continued.ckpt_dir) and len(rows("whole")) == 4


def test_lines_behind_the_place_that_a_run_goes_back_to_are_written_anew():
    tiny_trainer(ckpt_dir="run").fit(2)
    text = Path("run/digests.csv").read_text()
    Path("run/digests.csv").write_text(text + "3,0,18,9aae")  # cut short by a kill, before last.pth was written
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.load_state("auto")
    trainer.fit(3)
    assert Path("run/digests.csv").read_text().startswith(text)
    assert rows("run")[2]["digest"] == read("run/last.pth")["digest"] and len(rows("run")) == 3


def test_a_save_within_an_epoch_says_how_many_batches_were_done():
    trainer = tiny_trainer(ckpt_dir="run", save_per_steps=4)
    trainer.fit(1)
    assert [(row["epoch"], row["batch"], row["global_step"]) for row in rows("run")] == [("0", "4", "4"), ("1", "0", "6")]


def test_a_table_that_cannot_be_written_is_told_of_and_the_checkpoint_is_written(capsys):
    trainer = tiny_trainer(ckpt_dir="run")
    Path("run/digests.csv").mkdir()
    trainer.fit(1)
    assert "digests.csv could not be written" in capsys.readouterr().out
    assert read("run/last.pth")["epoch"] == 1


def test_a_run_that_replaces_another_one_begins_its_table_anew():
    tiny_trainer(ckpt_dir="run").fit(3)
    tiny_trainer(ckpt_dir="run", overwrite=True).fit(1)
    assert [row["epoch"] for row in rows("run")] == ["1"]


def test_training_goes_on_while_it_is_computed(monkeypatch):
    """In the thread of the writer, from the copy: the weights may be changed meanwhile."""
    import threading

    threads = []
    monkeypatch.setattr(digests, "_digest_of", lambda named, real=digests._digest_of: (
        threads.append(threading.current_thread().name), real(named))[1])
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.train_loop()
    expected = digest(trainer.model_list[0].state_dict())
    threads.clear()
    trainer.lifetime.count_epoch()
    trainer.checkpoints.save_last()
    with torch.no_grad():
        for p in trainer.model_list[0].parameters():
            p.zero_()
    trainer.wait_for_saves()
    assert read("run/last.pth")["digest"] == expected
    assert threads and all(name.startswith("checkpoint") for name in threads)


def test_a_file_of_somebody_elses_is_written_as_it_is():
    write({"model0": {"w": torch.ones(1)}, "note": "mine"}, "own.pth")
    assert read("own.pth").keys() == {"model0", "note"}


def test_files_of_2021_have_one_too():
    weights = tiny_model().state_dict()
    assert digest({"model": weights, "optimizer": {}, "step": 3}) == digest(weights)
