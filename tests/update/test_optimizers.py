"""Parameter groups: which parameter gets which rate and weight decay, and a training that unfreezes a part."""

import pytest
import torch
from tiny import Tiny, weights
from torch import nn

from template.update.lr_scheduler import rates_by_name
from template.update.optimizers import param_groups


class ViT(nn.Module):
    """Small, with all that a vision transformer has."""

    def __init__(self, depth=3):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.patch = nn.Conv2d(3, 8, 4)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(depth))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))


class RootMeanSquareNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))


class Odd(nn.Module):
    """Names that say the wrong thing, and layers that are rarely thought of."""

    def __init__(self):
        super().__init__()
        self.bias_net = nn.Linear(8, 8)
        self.normal = nn.Linear(8, 8, bias=False)
        self.attention = nn.MultiheadAttention(8, 2)
        self.lstm = nn.LSTM(8, 8)
        self.own = RootMeanSquareNorm()
        self.table = nn.Embedding(5, 8)
        self.relative_position_bias = nn.Parameter(torch.zeros(7, 2))
        self.bn = nn.BatchNorm1d(8)


def by_name(model, groups):
    """``{name of a parameter: its group}``; each of them once."""
    found = {}
    for group in groups:
        for parameter in group["params"]:
            name, = [name for name, other in model.named_parameters() if other is parameter]
            assert name not in found
            found[name] = group
    return found


def test_every_trainable_parameter_is_in_one_group_with_the_rate_of_the_longest_path():
    model = ViT()
    model.patch.requires_grad_(False)
    found = by_name(model, param_groups(model, {"": 1e-5, "blocks": 1e-4, "blocks.2": 5e-4, "head": 1e-3}))
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, group in found.items():
        expected = 5e-4 if name.startswith("blocks.2.") else 1e-4 if name.startswith("blocks") else (
            1e-3 if name.startswith("head") else 1e-5)
        assert group["lr"] == expected, name


def test_biases_and_normalizations_do_not_decay_by_what_they_are_and_not_by_how_they_are_called():
    model = Odd()
    found = by_name(model, param_groups(model, {"": 1e-3}, weight_decay=0.1))
    without = {name for name, group in found.items() if group["weight_decay"] == 0}
    assert without == {"bias_net.bias", "attention.in_proj_bias", "attention.out_proj.bias", "lstm.bias_ih_l0",
                       "lstm.bias_hh_l0", "own.weight", "bn.weight", "bn.bias"}
    assert all(group["weight_decay"] == 0.1 for name, group in found.items() if name not in without)
    more = by_name(model, param_groups(model, {"": 1e-3}, ("embedding", nn.LSTM)))
    assert {name for name, group in more.items() if group.get("weight_decay") == 0} == {
        "table.weight", *(name for name, _ in model.named_parameters() if name.startswith("lstm"))}
    assert all("weight_decay" not in group for name, group in more.items() if name.startswith("bias_net"))
    vit = ViT()
    scalars = by_name(vit, param_groups(vit, {"": 1e-3}, ("scalar",)))
    assert [name for name, group in scalars.items() if "weight_decay" in group] == ["logit_scale"]


def test_rates_fall_with_depth_by_one_factor_from_the_last_layer_of_each_part():
    model = ViT()
    found = by_name(model, param_groups(model, {"": 1e-3, "head": 1e-2}, layer_decay=0.5))
    layer = {"cls_token": 0, "logit_scale": 0, "patch": 0, "blocks.0": 1, "blocks.1": 2, "blocks.2": 3, "norm": 3}
    for name, group in found.items():
        start = next((start for start in layer if name == start or name.startswith(f"{start}.")), None)
        assert group["lr"] == (1e-2 if start is None else pytest.approx(1e-3 * 0.5 ** (3 - layer[start]))), name
    plain = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    rates = [by_name(plain, param_groups(plain, {"": 1.0}, layer_decay=0.5))[f"{i}.weight"]["lr"] for i in (0, 1, 3, 5)]
    assert rates == [0.25, 0.25, 0.5, 1.0]
    resnet = nn.Sequential(nn.Conv2d(3, 4, 3))
    resnet.stages = nn.Sequential(*(nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)) for _ in range(2)))
                                    for _ in range(2)))
    names = {group["name"] for group in param_groups(resnet, {"": 1.0}, layer_decay=0.9, no_decay=())}
    assert names == {f"model/{layer}" for layer in range(3)}


def test_a_parameter_that_two_parts_share_is_in_one_group():
    model = nn.ModuleDict({"table": nn.Embedding(5, 8), "head": nn.Linear(8, 5, bias=False)})
    model["head"].weight = model["table"].weight
    groups = param_groups(model, {"": 1e-3})
    assert [len(group["params"]) for group in groups] == [1]
    torch.optim.AdamW(groups)


def test_groups_are_named_in_the_log_and_an_optimizer_takes_them():
    optimizer = torch.optim.SGD(param_groups(ViT(), {"blocks": 1e-5, "": 1e-3}, weight_decay=0.1), momentum=0.9)
    assert rates_by_name([optimizer]) == {"blocks": 1e-5, "blocks/no_decay": 1e-5, "rest": 1e-3, "rest/no_decay": 1e-3}


@pytest.mark.parametrize("rates, options, message", [
    ({"head": 1e-3}, {}, "fits 'cls_token', 'logit_scale', 'patch.weight', 'patch.bias', 'blocks.0.self_attn.in_proj"),
    ({"": 1e-3, "hed": 1e-2}, {}, r"'hed' fits no parameter. The model has the parts \['patch', 'blocks', 'norm', 'head'\]"),
    ({"": -1.0}, {}, "rates\\[''\\] is -1.0"), ({"": 1.0}, {"no_decay": "bias"}, "must be a tuple"),
    ({"": 1.0}, {"no_decay": ("biases",)}, "must be a tuple of \\['bias', 'norm', 'embedding', 'scalar'\\]"),
    ({"": 1.0}, {"layer_decay": 75}, "layer_decay must lie in"), ({}, {}, "rates must be a dict")])
def test_mistakes_are_refused_in_words(rates, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        param_groups(ViT(), rates, **options)


def test_what_is_no_module_is_refused_in_words():
    with pytest.raises(TypeError, match="nn.ModuleList"):
        param_groups([ViT()], {"": 1e-3})


# --- a part that is frozen until epoch 3 --------------------------------------------------------------------------------


class Transfer(Tiny):
    """The body is frozen until epoch 3, and its BatchNorm with it."""

    def __init__(self, **attributes):
        torch.manual_seed(1)
        net = nn.ModuleDict({"body": nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2)),
                             "head": nn.Linear(16, 3)})
        super().__init__(net, writer=None, save_per_steps=2, lr_scheduler_type="cosine", **attributes)
        self.net = net
        net["body"].requires_grad_(False)
        net["body"].eval()
        self.optimizer_list = [torch.optim.AdamW(param_groups(net, {"head": 1e-2}))]

    def inference(self, x):
        return self.net["head"](self.net["body"](x))

    def fit_in_two(self, total):
        for epoch in self.epochs(total):
            optimizer = self.optimizer_list[0]
            if epoch >= 3:
                self.net["body"].train()
                if groups := self.unfrozen(optimizer):
                    for group in groups:
                        optimizer.add_param_group(group)
            self.train_loop()
            self.eval()

    def unfrozen(self, optimizer):
        self.net["body"].requires_grad_(True)
        return param_groups(self.net, {"body": 1e-3}, layer_decay=0.5, beside=optimizer)


def statistics_of(trainer):
    bn = trainer.net["body"][1]
    return torch.stack([bn.running_mean, bn.running_var]).clone(), int(bn.num_batches_tracked)


def test_frozen_batchnorm_stays_frozen_through_training_evaluation_and_prediction_until_it_is_unfrozen():
    trainer = Transfer()
    trainer.check_init(use_tb=False)
    before, body = statistics_of(trainer), trainer.net["body"][0].weight.detach().clone()
    trainer.fit_in_two(2)
    trainer.predict(torch.randn(4, 6))
    trainer.test()
    assert torch.equal(statistics_of(trainer)[0], before[0]) and statistics_of(trainer)[1] == before[1] == 0
    assert torch.equal(trainer.net["body"][0].weight, body) and not trainer.net["body"].training
    trainer.fit_in_two(4)
    assert statistics_of(trainer)[1] == 2 * 6 and not torch.equal(trainer.net["body"][0].weight, body)


def test_groups_that_join_in_epoch_3_are_named_follow_the_schedule_and_are_resumed_to_the_same_bits():
    def begun(folder):
        trainer = Transfer(ckpt_dir=folder)
        trainer.check_init(use_tb=False)
        return trainer

    whole = begun("whole")
    whole.fit_in_two(5)
    names = list(rates_by_name(whole.optimizer_list))
    assert names == ["head", "head/no_decay", "body", "body/no_decay"]  # the BatchNorm counts with its layer
    parts = begun("parts")
    for epoch in parts.epochs(5):
        if epoch == 4:
            break
        if epoch == 3:
            parts.net["body"].train()
            for group in parts.unfrozen(parts.optimizer_list[0]):
                parts.optimizer_list[0].add_param_group(group)
            before = rates_by_name(parts.optimizer_list)
            assert before["body"] == 1e-3 and before["head"] < 1e-2
        parts.train_loop()
        parts.eval()
    parts.close()
    continued = begun("parts")
    continued.load_state("auto")
    assert continued.epochs_done == 3 and continued.net["body"][0].weight.requires_grad
    continued.fit_in_two(5)
    assert torch.equal(weights(continued), weights(whole))
    assert rates_by_name(continued.optimizer_list) == rates_by_name(whole.optimizer_list)
