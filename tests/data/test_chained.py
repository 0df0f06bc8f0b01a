"""``Chained``: several loaders one after the other, in an epoch that goes on anywhere."""

import pytest
import torch
from odd_loaders import Augmented
from ranks import history
from tiny import CPU, Tiny, plain, stream, tiny_data, weights
from torch.utils.data import DataLoader, TensorDataset

from template import Chained, TensorLoader
from template.data.loaders import make_batches
from template.data.shares import Share, Uneven


def parts():
    return {"augmented": DataLoader(Augmented(), 4, shuffle=True),
            "sliced": DataLoader(TensorDataset(torch.arange(17)), 5, shuffle=True),
            "tensors": TensorLoader(torch.arange(30, 41), batch_size=3, shuffle=True),
            "list": [torch.tensor([1, 2]), torch.tensor([3])]}


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_epoch_is_that_of_each_loader_in_turn(epoch):
    expected = [{name: batch} for name, loader in parts().items() for batch in stream(loader, epoch)]
    assert stream(Chained(parts()), epoch) == expected
    assert stream(Chained(list(parts().values())), epoch) == [batch for named in expected for batch in named.values()]
    assert len(make_batches(Chained(parts()), 3, CPU)) == len(expected) == 6 + 4 + 4 + 2


@pytest.mark.parametrize("start", range(17))
def test_it_goes_on_at_any_batch(start):
    assert stream(Chained(parts()), 2, start=start) == stream(Chained(parts()), 2)[start:]


@pytest.mark.parametrize("start", [1, 6, 8, 10, 13, 15, 16])
def test_the_place_in_the_checkpoint_is_found_again(start):
    before = make_batches(Chained(parts()), 3, CPU)
    position, state = before.position(2, start), before.state_dict()
    after = make_batches(Chained(parts()), 3, CPU)
    batch, notes = after.go_on(position, 2, start)
    after.load_state_dict(state, batch)
    assert (batch, notes) == (start, [])
    assert stream(after, 2, start=batch) == stream(Chained(parts()), 2)[start:]
    start = min(start, 15)
    again, _ = make_batches(Chained(parts()), 3, CPU).go_on(after.position(2, start + 1), 2, start + 1)
    assert again == start + 1


def test_another_batch_size_goes_on_at_the_same_sample_of_the_part_that_was_read():
    def loader(size):
        second = DataLoader(TensorDataset(torch.arange(100, 112)), size)
        return Chained([DataLoader(TensorDataset(torch.arange(8)), 4), second])

    position = make_batches(loader(4), 3, CPU).position(1, 3)  # two of the first, one of the second
    batches = make_batches(loader(2), 3, CPU)
    start, notes = batches.go_on(position, 1, 3)
    assert [batch[0] for batch in plain(list(batches.epoch(1, start)))] == [[104, 105], [106, 107], [108, 109], [110, 111]]
    assert len(notes) == 1 and "batch_size 4 -> 2" in notes[0]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_share_each_part(num_ranks):
    expected = [{name: batch} for name, loader in parts().items() for batch in stream(loader, 1)]
    for start_step in (0, 2, 4):
        found, lengths = {"augmented": [], "sliced": [], "tensors": []}, set()
        for rank in range(num_ranks):
            own = {name: part for name, part in parts().items() if name != "list"}
            batches = make_batches(Chained(own), 3, CPU, share=Share(rank, num_ranks))
            read = list(batches.epoch(1, start_step * num_ranks))
            lengths.add(len(read))
            assert len(read) == len(batches) - start_step
            for batch in read:
                batch, is_spare = batch if type(batch) is Uneven else (batch, False)
                for name, part in batch.items():
                    first = part if isinstance(part, torch.Tensor) else part[0]
                    found[name] += [] if is_spare else first.tolist()
        assert len(lengths) == 1
        for name in found:
            wanted = [value for batch in expected for key, part in batch.items() if key == name
                      for value in (part if isinstance(part[0], int) else part[0])]
            assert set(found[name]) <= set(wanted) and len(found[name]) == len(set(found[name]))
            assert start_step or sorted(found[name]) == sorted(wanted)


class Both(Tiny):
    """Data of two sources, with a weight of their own."""

    def __init__(self, **attributes):
        x, y = tiny_data()
        clean = DataLoader(TensorDataset(x[:30], y[:30]), 8, shuffle=True)
        noisy = DataLoader(TensorDataset(x[30:], y[30:]), 8, shuffle=True)
        super().__init__(**{"train_loader": Chained({"clean": clean, "noisy": noisy}), **attributes})
        self.read = []

    def loss_per_batch(self, batch):
        if not isinstance(batch, dict):
            return super().loss_per_batch(batch)
        (name, (x, y)), = batch.items()
        self.read.append(name)
        loss = self.criterion(self.inference(x), y)
        return {"tol_loss": loss if name == "clean" else 0.5 * loss, name: loss}


def test_a_training_over_two_sources_goes_on_where_it_was_cut(tmp_path):
    def build(folder, **attributes):
        trainer = Both(ckpt_dir=str(tmp_path / folder), save_per_steps=1, accumulate_steps=3, **attributes)
        trainer.check_init(use_tb=False)
        return trainer

    class Ends:
        def on_after_step(self, model):
            if model.global_step == 5:
                raise KeyError("the end")

    whole = build("whole")
    whole.fit(2)
    assert whole.read == 2 * (["clean"] * 4 + ["noisy"] * 3)
    with pytest.raises(KeyError):
        build("parts", callbacks=[Ends()]).fit(2)
    continued = build("parts")
    continued.load_state("auto")
    continued.fit(2)
    assert torch.equal(weights(whole), weights(continued))
    assert history(tmp_path / "whole") == history(tmp_path / "parts")
    assert {"train/clean", "train/noisy"} <= set(history(tmp_path / "whole")[0])


@pytest.mark.parametrize("loaders, kind, reason", [
    ([], TypeError, "takes a list or a dict of loaders"),
    (TensorLoader(torch.zeros(3), batch_size=1), TypeError, "takes a list"),
    ([iter([1])], ValueError, "entry 0, a list_iterator, has None"), ({"a": []}, ValueError, "entry 'a', a list, has 0"),
    ([{"a": [1]}], TypeError, "entry 0 is a dict"),
])
def test_what_cannot_be_chained_is_refused_in_words(loaders, kind, reason):
    with pytest.raises(kind, match=reason):
        Chained(loaders)


def test_a_length_that_is_not_true_is_told():
    class Lies(list):
        def __iter__(self):
            return iter(list.__getitem__(self, slice(0, 2)))

    with pytest.raises(ValueError, match="must have a true len.*: 0 gave 2 batches where 3 were expected"):
        stream(Chained([Lies([torch.zeros(1)] * 3), [torch.ones(1)]]), 1)
