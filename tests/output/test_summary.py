"""The table of layers: its totals are true, whoever made it, and looking changes nothing."""

import re
import sys

import numpy as np
import pytest
import torch
from tiny import Tiny, tiny_model, tiny_trainer, weights
from torch import nn

from template.output.summary import layer_table, print_summary


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0].mean(1))


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, 8), nn.Parameter(torch.zeros(4, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head((self.tokens(x) + self.positions).mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x):
        return self.head(self.tokens(x))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, a, b):
        return {"sum": self.layer(a) + self.layer(b)}


def cnn():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 36, 3))


def encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)


def vectors():
    return torch.randn(2, 4, 8)


def tokens():
    return torch.randint(0, 11, (2, 4))


CASES = [
    (Attention, vectors), (Lstm, vectors), (Embedding, tokens), (Tied, tokens), (encoder, vectors),
    (TwoInputs, lambda: (vectors(), vectors())), (TwoInputs, lambda: {"a": vectors(), "b": vectors()}),
    (cnn, lambda: torch.randn(2, 1, 8, 8)),
]


def summarized(model, example, capsys):
    print_summary(Tiny(model=model), example)
    return capsys.readouterr().out


def total(text):
    return int(re.search(r"Total params: ([\d,]+)", text)[1].replace(",", ""))


def true_total(model):
    return sum(parameter.numel() for parameter in set(model.parameters()))


@pytest.mark.parametrize("absent", [(), ("torchinfo",), ("torchinfo", "torchsummary")])
@pytest.mark.parametrize("make_model, make_example", CASES)
def test_the_total_is_true_whoever_makes_the_table(make_model, make_example, absent, monkeypatch, capsys):
    for package in absent:
        monkeypatch.setitem(sys.modules, package, None)
    model = make_model()
    text = summarized(model, make_example(), capsys)
    assert total(text) == true_total(model)
    assert all(type(part).__name__ in text for part in model.children() if list(part.parameters(recurse=False)))


@pytest.mark.parametrize("make_model, make_example", CASES[:2] + CASES[3:4])
def test_the_traps_are_real(make_model, make_example, capsys):
    """torchsummary raises or miscounts here, and torchinfo counts tied weights twice."""
    import torchinfo
    import torchsummary

    model, example = make_model(), make_example()
    if make_model is Tied:
        assert total(str(torchinfo.summary(model, input_data=example, verbose=0))) > true_total(model)
    try:
        torchsummary.summary(model, tuple(example.shape[1:]), device="cpu")
    except Exception:
        return
    assert total(capsys.readouterr().out) != true_total(model)


def test_torchsummarys_table_is_shown_when_it_is_right(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchinfo", None)
    assert "Forward/backward pass size (MB)" in summarized(cnn(), torch.randn(2, 1, 8, 8), capsys)


def test_a_package_that_fails_is_passed_over(monkeypatch, capsys):
    import torchinfo

    def fail(*args, **kwargs):
        raise RuntimeError("Failed to run torchinfo.")

    monkeypatch.setattr(torchinfo, "summary", fail)
    model = Attention()
    assert total(summarized(model, vectors(), capsys)) == true_total(model)


def test_our_own_table_has_the_shape_and_the_parameters_of_each_layer():
    table = layer_table(cnn().eval(), (torch.randn(2, 1, 8, 8),), {})
    rows = {line.split(" (")[0]: line for line in table.splitlines() if " (" in line}
    assert "[2, 4, 6, 6]" in rows["0"] and rows["0"].split()[-1] == str(4 * 9 + 4)
    assert "[2, 4, 6, 6]" in rows["1"] and rows["1"].split()[-1] == "8"
    assert "[2, 144]" in rows["4"] and rows["4"].split()[-1] == "0"
    assert "[2, 3]" in rows["5"] and rows["5"].split()[-1] == str(144 * 3 + 3)
    model = Lstm()
    model.head.requires_grad_(False)
    assert "Trainable: 300" in layer_table(model, (vectors(),), {})
    assert "[2, 4, 5]" in layer_table(model, (vectors(),), {})  # of an output that is a tuple


def test_a_chain_of_models_is_summarized_one_after_the_other(capsys):
    trainer = Tiny(model_list=[nn.Sequential(nn.Linear(6, 4), nn.ReLU()), nn.Linear(4, 3)])
    print_summary(trainer, torch.randn(2, 6))
    totals = re.findall(r"Total params: ([\d,]+)", capsys.readouterr().out)
    assert totals == ["28", "15"]


def test_a_wrong_example_fails_with_the_models_own_message():
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        print_summary(Tiny(), torch.randn(2, 7))


@pytest.mark.parametrize("absent", [(), ("torchinfo",), ("torchinfo", "torchsummary")])
def test_looking_changes_neither_statistics_nor_hooks_nor_modes_nor_randomness(absent, monkeypatch):
    for package in absent:
        monkeypatch.setitem(sys.modules, package, None)
    model = cnn()
    model[1].eval()
    trainer = Tiny(model=model)
    before = weights(trainer).clone()
    modes = [part.training for part in model.modules()]
    rng, numpy_rng = torch.get_rng_state(), np.random.get_state()[1].copy()
    print_summary(trainer, torch.ones(2, 1, 8, 8))
    assert torch.equal(weights(trainer), before)  # buffers too: running mean, number of batches
    assert [part.training for part in model.modules()] == modes
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert torch.equal(torch.get_rng_state(), rng) and np.array_equal(np.random.get_state()[1], numpy_rng)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_get_model_info_prints_into_the_log_and_changes_no_bit_of_the_training(capsys):
    looked = tiny_trainer(model=tiny_model(), ckpt_dir="looked")
    looked.get_model_info(torch.zeros(1, 6))
    looked.fit(1)
    plain = tiny_trainer(model=tiny_model(), ckpt_dir="plain")
    plain.fit(1)
    assert torch.equal(weights(looked), weights(plain))
    with open("looked/log.txt", encoding="utf-8") as file:
        assert total(file.read()) == 6 * 16 + 16 + 16 * 3 + 3
