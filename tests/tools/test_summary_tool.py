"""Shapes, parameters and operations against counts by hand, for the layers that such tables get wrong."""

import sys

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template.tools.summary import summary

B, T = 2, 5


class Words(nn.Module):
    """Takes a dict, embeds, normalises, and returns one."""

    def __init__(self):
        super().__init__()
        self.words, self.norm, self.head = nn.Embedding(10, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, ids, mask=None):
        return {"logits": self.head(self.norm(self.words(ids).mean(1))), "mask": mask}


def row(found, name):
    return next(one for one in found.rows if one.name == name)


def test_convolutions_and_linear_layers_are_counted_as_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                          nn.Linear(8 * 36, 10))
    found = summary(model, torch.randn(B, 3, 6, 6))
    assert row(found, "0").flops == 2 * B * 8 * 36 * 3 * 9 and row(found, "4").flops == 2 * B * 288 * 10
    assert found.flops == row(found, "0").flops + row(found, "4").flops
    assert row(found, "0").output == "[2, 8, 6, 6]" and row(found, "0").output_bytes == 4 * B * 8 * 36
    assert row(found, "1").parameters == 16 and row(found, "1").parameter_bytes == 4 * (16 + 16) + 8  # and a counter
    assert found.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind, gates", [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_are_counted_although_they_are_one_kernel(kind, gates):
    model = kind(8, 16, 2, batch_first=True, bidirectional=True)
    found = summary(model, torch.randn(B, T, 8))
    assert found.flops == 2 * B * T * 2 * gates * 16 * ((8 + 16) + (32 + 16))
    assert row(found, kind.__name__).output == "[2, 5, 32]"


def test_attention_is_counted_where_a_transformer_layer_would_run_as_one_kernel():
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    found = summary(model, torch.randn(B, T, 16))
    weights = 2 * B * T * (16 * 48 + 16 * 16 + 2 * 16 * 32)
    assert found.flops == weights + 2 * 2 * B * T * T * 16 == sum(one.flops for one in found.rows)
    assert torch.backends.mha.get_fastpath_enabled()


def test_embeddings_and_dict_inputs_go_through(capsys):
    found = summary(Words(), {"ids": torch.randint(0, 10, (3, 7)), "mask": None})
    assert row(found, "words").output == "[3, 7, 4]" and row(found, "words").parameters == 40
    assert found.flops == 2 * 3 * 4 * 3
    assert "63 parameters, 63 of them trainable" in capsys.readouterr().out


def test_shared_weights_are_counted_once_and_frozen_ones_are_not_trainable():
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    first.bias.requires_grad_(False)
    found = summary(nn.Sequential(first, second), torch.randn(2, 6))
    assert found.parameters == 36 + 12 and found.trainable == 36 + 6


def test_a_layer_that_is_called_twice_counts_twice():
    layer = nn.Linear(6, 6)
    found = summary(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 6))
    assert row(found, "0").calls == 2 and found.flops == 2 * 2 * 2 * 36 and row(found, "0").output_bytes == 2 * 4 * 12


@pytest.mark.parametrize("is_lazy", [False, True])
def test_a_model_is_as_before(is_lazy):
    model = nn.Sequential(nn.LazyLinear(6) if is_lazy else nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout())
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items() if not nn.parameter.is_lazy(value)}
    rng = torch.get_rng_state()
    summary(model, torch.randn(4, 6) if is_lazy else torch.ones(4, 6))
    assert is_lazy or torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(part.training and not part._forward_hooks and (is_lazy or not part._forward_pre_hooks)
               for part in model.modules())
    assert "_compiled_call_impl" not in vars(model[1]) and (not is_lazy or nn.parameter.is_lazy(model[0].weight))


def test_a_trainer_gives_its_first_batch_and_its_chain_of_models():
    trainer = tiny_trainer()
    found = summary(trainer)
    assert found.rows[0].output == "[10, 16]" and found.flops == 2 * 10 * (6 * 16 + 16 * 3)
    two = tiny_trainer(model=nn.Linear(6, 3))
    two.model_list[0] = nn.Linear(6, 8)
    two.model_list.append(nn.Linear(8, 3))
    found = summary(two, torch.randn(4, 6))
    assert [one.name for one in found.rows] == ["model_list[0]", "model_list[1]"]
    assert found.flops == 2 * 4 * (48 + 24)


def test_a_trainer_that_knows_alone_what_its_models_take_is_run_as_it_is():
    class Named(Tiny):
        def loss_per_batch(self, batch):
            return nn.functional.cross_entropy(self.model_list[0](batch["a"][0]), batch["a"][1])

    loader = DataLoader(TensorDataset(*tiny_data()), 10)
    trainer = Named(train_loader={"a": loader, "b": loader})
    trainer.check_init(use_tb=False)
    assert summary(trainer).flops == 2 * 10 * (6 * 16 + 16 * 3)


def test_without_torchinfo_our_own_table_is_printed(monkeypatch, capsys):
    model, x = nn.Sequential(nn.Linear(6, 3)), torch.randn(2, 6)
    summary(model, x)
    assert "Layer (type:depth-idx)" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "torchinfo", None)
    found = summary(model, x)
    assert capsys.readouterr().out == f"{found.table()}\n{found.totals()}\n" and "FLOPs" in found.table()


def test_a_model_alone_needs_an_example():
    with pytest.raises(ValueError, match="needs an example"):
        summary(nn.Linear(2, 2))
