"""Optimizers by name, and parameter groups: which parameter gets which rate and weight decay; a part that is unfrozen."""

import math
from functools import partial

import pytest
import torch
from tiny import Rates, Tiny, tiny_data, tiny_model, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template.hooks import Callback
from template.update.fused import refuse_in_parts
from template.update.lr_scheduler import momentum_of, rates_by_name
from template.update.optimizers import build_optimizer, param_groups


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


@pytest.mark.slow
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


# --- an optimizer by its name, with a group for each role -----------------------------------------------------------------


class LayerScale(nn.Module):
    """As in vision transformers, and in convolutional networks: one factor for each channel."""

    def __init__(self, *shape):
        super().__init__()
        self.gamma = nn.Parameter(torch.full(shape, 1e-4))


class Roles(nn.Module):
    """A parameter of every kind; ``expected`` says its role."""

    expected = {"table.weight": "embedding", "bags.weight": "embedding", "conv.weight": "weight", "conv.bias": "bias",
                "bn.weight": "norm", "bn.bias": "bias", "gn.weight": "norm", "gn.bias": "bias", "own.weight": "norm",
                "scale.gamma": "norm", "wide_scale.gamma": "norm", "prelu.weight": "norm", "logit_scale": "norm",
                "cls_token": "weight", "depthwise.weight": "weight", "bias_net.weight": "weight", "bias_net.bias": "bias",
                "norm_head.weight": "weight", "attention.in_proj_weight": "weight", "attention.in_proj_bias": "bias",
                "attention.out_proj.weight": "weight", "attention.out_proj.bias": "bias"}

    def __init__(self):
        super().__init__()
        self.table, self.bags = nn.Embedding(5, 8), nn.EmbeddingBag(5, 8)
        self.conv, self.bn, self.gn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8)
        self.own, self.scale, self.wide_scale = RootMeanSquareNorm(), LayerScale(8), LayerScale(8, 1, 1)
        self.prelu, self.logit_scale = nn.PReLU(8), nn.Parameter(torch.tensor(1.0))
        self.cls_token, self.depthwise = nn.Parameter(torch.zeros(1, 1, 8)), nn.Conv2d(1, 8, 1, bias=False)
        self.bias_net, self.norm_head = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.attention = nn.MultiheadAttention(8, 2)


def test_the_role_of_a_parameter_goes_by_the_module_that_it_is_in():
    model = Roles()
    optimizer, = build_optimizer("SGD", model, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    assert {name: group["name"] for name, group in by_name(model, optimizer.param_groups).items()} == Roles.expected
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"weight": 5e-4, "bias": 0, "norm": 0, "embedding": pytest.approx(5e-6)}
    assert all((group["lr"], group["momentum"], group["nesterov"]) == (0.1, 0.9, True) for group in optimizer.param_groups)
    assert rates_by_name([optimizer]) == dict.fromkeys(("weight", "bias", "norm", "embedding"), 0.1)


def test_roles_have_rates_by_part_and_by_depth_too():
    model = ViT()
    optimizer, = build_optimizer("AdamW", model, 1e-3, rates={"head": 1e-2}, layer_decay=0.5)
    found = by_name(model, optimizer.param_groups)
    assert found["head.weight"]["name"] == "head/weight" and found["head.bias"]["lr"] == 1e-2
    assert found["blocks.0.linear1.bias"]["name"] == "rest/1/bias"
    assert found["blocks.0.linear1.bias"]["lr"] == pytest.approx(1e-3 * 0.5**2)
    assert found["blocks.0.norm1.weight"]["weight_decay"] == 0 and found["blocks.0.linear1.weight"]["weight_decay"] == 0.01


@pytest.mark.parametrize("name", ["adadelta", "Adafactor", "Adagrad", "ADAM", "AdamW", "Adamax", "ASGD", "LBFGS", "NAdam",
                                  "RAdam", "RMSProp", "Rprop", "sgd"])
def test_any_optimizer_of_torch_is_built_by_its_name_and_takes_a_step(name):
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    optimizer, = build_optimizer(name, model)
    assert type(optimizer).__name__.lower() == name.lower()
    by_default = type(optimizer)(model.parameters())
    assert {group["lr"] for group in optimizer.param_groups} == {by_default.param_groups[0]["lr"]}
    before = [p.detach().clone() for p in model.parameters()]

    def loss():
        optimizer.zero_grad()
        value = model(torch.randn(8, 6)).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters()))


def test_momentum_is_the_first_beta_of_adam_and_its_relatives_and_classes_are_taken_as_they_are():
    model = nn.Linear(2, 2)
    assert build_optimizer("NAdam", model, momentum=0.937)[0].param_groups[0]["betas"] == (0.937, 0.999)
    assert build_optimizer("RMSprop", model, momentum=0.8)[0].param_groups[0]["momentum"] == 0.8
    assert type(build_optimizer(torch.optim.RAdam, [model, nn.Linear(3, 3)])[0]) is torch.optim.RAdam


@pytest.mark.parametrize("name, options, message", [
    ("sdg", {}, "one of \\['ASGD', 'Adadelta'.*got 'sdg'. Did you mean 'SGD'"),
    ("SGD", {"nestorov": True}, "got nestorov=True. Did you mean 'nesterov'"),
    ("Adagrad", {"momentum": 0.9}, "Adagrad has no momentum, and got momentum=0.9"),
    ("Adam", {"momentum": 0.9, "betas": (0.8, 0.9)}, "Give one of them"),
    ("Rprop", {"weight_decay": 0.1}, "Rprop has no weight decay"),
    ("LBFGS", {"rates": {"head": 1.0}, "lr": 0.1}, "LBFGS has one rate"),
    ("LBFGS", {"fused": True}, "\\['Adagrad', 'Adam', 'AdamW', 'SGD'\\], and LBFGS has none"),
    ("Adam", {"decay_factors": {"embeddings": 1}}, "roles \\['weight', 'bias', 'norm', 'embedding'\\], got \\['embeddings'"),
    ("Adam", {"decay_factors": {"bias": -1}}, "must be a dict of shares"), ("Adam", {"adamw": {}}, "for 'Muon'"),
    ("Muon", {"adamw_parts": ("hed",)}, "must be a tuple of paths"), ("Muon", {"fused": True}, "Muon has none"),
    ("Muon", {"adjust_lr_fn": "original"}, "Give AdamW a rate of its own"),
    ("Muon", {"adamw": {"beta": 1}}, "Did you mean 'betas'")])
def test_what_an_optimizer_does_not_know_is_refused_with_what_it_knows(name, options, message):
    if name == "Muon":
        pytest.importorskip("torch.optim._muon")
    with pytest.raises((ValueError, TypeError), match=message):
        build_optimizer(name, ViT(), **options)


def test_a_device_or_a_dtype_without_fused_kernels_is_refused_in_words():
    with pytest.raises(ValueError, match="device that torch has a fused AdamW for, and a parameter is on 'meta'"):
        build_optimizer("AdamW", nn.Linear(2, 2, device="meta"), fused=True)
    with pytest.raises(ValueError, match="floating point numbers, and one is torch.complex64"):
        build_optimizer("SGD", nn.Linear(2, 2, dtype=torch.complex64), fused=True)


@pytest.mark.parametrize("first", ["head", "table"])
def test_an_output_layer_that_is_an_embedding_too_goes_to_adamw_also_by_its_own_name(first):
    pytest.importorskip("torch.optim._muon")
    parts = {"head": nn.Linear(8, 5, bias=False), "body": nn.Linear(8, 8, bias=False), "table": nn.Embedding(5, 8)}
    model = nn.ModuleDict({name: parts[name] for name in (first, *(name for name in parts if name != first))})
    model["head"].weight = model["table"].weight
    for adamw_parts in ((), ("head",)):
        muon, adamw = build_optimizer("Muon", model, adamw_parts=adamw_parts)
        assert [id(p) for group in muon.param_groups for p in group["params"]] == [id(model["body"].weight)]
        assert [id(p) for group in adamw.param_groups for p in group["params"]] == [id(model["table"].weight)]


# --- the same training as with groups by hand -----------------------------------------------------------------------------


class Net(nn.Module):
    """With every role but biases of attention; a nested BatchNorm, whose bias YOLO's scripts put to the biases."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(4, 6)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.LayerNorm(16))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(x + self.table.weight.mean(0)))


def trained_by_hand(model, optimizers, epochs=2):
    """The weights behind a plain loop over the batches of ``Tiny``, which come in their order."""
    data = [batch for batch in DataLoader(TensorDataset(*tiny_data()), 10)]
    for _ in range(epochs):
        for x, y in data:
            nn.functional.cross_entropy(model(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    return torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])


def trained(model, optimizers, **attributes):
    trainer = Tiny(model, train_loader=DataLoader(TensorDataset(*tiny_data()), 10), eval_loader=None, **attributes)
    trainer.optimizer_list = optimizers
    trainer.check_init(use_tb=False)
    trainer.fit(2)
    return trainer


def as_yolo_does(model):
    """By the name of the parameter and the class of the module: biases, weights of normalizations, the rest."""
    norms = tuple(value for name, value in vars(nn).items() if "Norm" in name)
    groups = {"rest": [], "norm": [], "bias": []}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            is_scale = name == "weight" and isinstance(module, norms)
            groups["bias" if name == "bias" else "norm" if is_scale else "rest"].append(p)
    optimizer = torch.optim.SGD(groups["bias"], lr=0.01, momentum=0.937, nesterov=True)
    optimizer.add_param_group({"params": groups["rest"], "weight_decay": 5e-2})
    optimizer.add_param_group({"params": groups["norm"], "weight_decay": 0.0})
    return [optimizer]


def by_dimensions(model):
    """As scripts for language models and ``timm`` do: what has two dimensions or more decays."""
    decay = [p for p in model.parameters() if p.dim() >= 2]
    return [torch.optim.AdamW([{"params": decay, "weight_decay": 0.1},
                               {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}],
                              lr=1e-2, betas=(0.9, 0.95))]


def muon_by_hand(model):
    hidden = [module.weight for module in model.body if isinstance(module, nn.Linear)]
    rest = [p for p in model.parameters() if not any(p is matrix for matrix in hidden)]
    return [torch.optim.Muon(hidden, lr=0.02, momentum=0.9, weight_decay=0.01),
            torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)]


_ALL_DECAY = {"bias": 1.0, "norm": 1.0, "embedding": 1.0}
BY_HAND = {
    "SGD in YOLO's groups": (as_yolo_does, ("SGD", 0.01, 0.937, 5e-2), {
        "nesterov": True, "decay_factors": {"embedding": 1}}),
    "AdamW by dimensions": (by_dimensions, ("AdamW", 1e-2, None, 0.1), {
        "betas": (0.9, 0.95), "decay_factors": {"embedding": 1.0}}),
    "Muon beside AdamW": (muon_by_hand, ("Muon", 0.02, 0.9, 0.01), {
        "adamw": {"lr": 3e-3, "betas": (0.9, 0.95)}, "adamw_parts": ("head",), "adjust_lr_fn": "original",
        "decay_factors": _ALL_DECAY}),
}


@pytest.mark.parametrize("way", BY_HAND)
def test_the_training_is_that_of_groups_by_hand_in_a_plain_loop_to_the_bit(way):
    by_hand, arguments, options = BY_HAND[way]
    if arguments[0] == "Muon":
        pytest.importorskip("torch.optim._muon")
    own, theirs = Net(), Net()
    trainer = trained(own, build_optimizer(arguments[0], own, *arguments[1:], **options))
    assert torch.equal(weights(trainer), trained_by_hand(theirs, by_hand(theirs)))


def test_fused_steps_are_those_of_torch_s_fused_form_and_near_the_others():
    own, theirs, plain = (tiny_model(dropout=0.0) for _ in range(3))
    trainer = trained(own, build_optimizer("AdamW", own, 1e-2, weight_decay=0.0, fused=True))
    assert all(group["fused"] for group in trainer.optimizer_list[0].param_groups)
    result = weights(trainer)
    assert torch.equal(result, trained_by_hand(theirs, [torch.optim.AdamW(theirs.parameters(), 1e-2, weight_decay=0.0,
                                                                          fused=True)]))
    by_foreach = trained_by_hand(plain, [torch.optim.AdamW(plain.parameters(), 1e-2, weight_decay=0.0, foreach=True)])
    assert not torch.equal(result, by_foreach) and torch.allclose(result, by_foreach, atol=1e-6)


@pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD", "Adagrad"])
def test_the_attribute_switches_optimizers_over_that_were_built_without_to_the_same_bits(kind):
    def train(is_built_so, **attributes):
        model = tiny_model(dropout=0.0)
        optimizer = getattr(torch.optim, kind)(model.parameters(), 1e-2, fused=is_built_so or None)
        return weights(trained(model, [optimizer], **attributes))

    assert torch.equal(train(False, fused=True), train(True))
    assert not kind.startswith("Adam") or not torch.equal(train(True), train(False))


def test_a_list_in_the_list_is_refused_with_what_to_write():
    trainer = Tiny()
    trainer.optimizer_list = [build_optimizer("SGD", trainer.model_list)]
    with pytest.raises(TypeError, match="A list is in it: .* write self.optimizer_list = build_optimizer"):
        trainer.check_init(use_tb=False)


def test_each_group_ends_at_the_same_share_of_its_own_rate_also_of_one_that_is_a_tensor():
    for kind, args, factor in (("cosine", {}, lambda s: 0.01 + 0.99 * (1 + math.cos(math.pi * s)) / 2),
                               ("linear", {}, lambda s: 1 - 0.99 * s), ("exponential", {}, lambda s: 0.01**s),
                               ("polynomial", {"power": 2.0}, lambda s: 0.01 + 0.99 * (1 - s) ** 2)):
        model, look = Net(), Rates()
        optimizers = build_optimizer("Adam", model, torch.tensor(1e-2), rates={"head": 1e-3})
        trained(model, optimizers, callbacks=[look], lr_scheduler_type=kind, lr_scheduler_args={"final_ratio": 0.01, **args})
        bases = [1e-3 if group["name"].startswith("head/") else 1e-2 for group in optimizers[0].param_groups]
        assert len(look.rates) == 12 and len(set(bases)) == 2
        for step, rates in enumerate([*look.rates, [float(group["lr"]) for group in optimizers[0].param_groups]]):
            assert rates == [pytest.approx(base * factor(step / 12)) for base in bases], kind


def test_what_has_no_fused_form_is_refused_by_check_init_and_so_is_foreach_beside_it():
    for optimizer, message in ((torch.optim.RMSprop, "RMSprop has none. Leave fused out"),
                               (partial(torch.optim.SGD, foreach=True), "foreach=True of SGD exclude each other")):
        model = tiny_model()
        trainer = Tiny(model, fused=True)
        trainer.optimizer_list = [optimizer(model.parameters(), lr=0.1)]
        with pytest.raises(ValueError, match=message):
            trainer.check_init(use_tb=False)


def test_fused_steps_of_divided_weights_are_refused_where_torch_has_none():
    with_groups = build_optimizer("SGD", tiny_model(), fused=True)
    with pytest.raises(ValueError, match="parallel = 'fsdp' divides the weights.* not for SGD"):
        refuse_in_parts(with_groups)
    refuse_in_parts([*build_optimizer("AdamW", tiny_model(), fused=True), *build_optimizer("SGD", tiny_model())])


def test_a_run_goes_on_fused_from_a_file_of_another_form_with_numbers_near_it():
    def begun(folder, **attributes):
        model = tiny_model(dropout=0.0)
        trainer = Tiny(model, ckpt_dir=folder, **attributes)
        trainer.optimizer_list = [torch.optim.AdamW(model.parameters(), 1e-2)]
        trainer.check_init(use_tb=False)
        return trainer

    begun("parts").fit(2)
    continued, whole = begun("parts", fused=True), begun("whole")
    continued.load_state("auto")
    assert continued.optimizer_list[0].param_groups[0]["fused"] is True
    continued.fit(3)
    whole.fit(3)
    assert torch.allclose(weights(continued), weights(whole), atol=1e-6)


# --- Muon beside AdamW in a run -------------------------------------------------------------------------------------------


class Looks(Rates):
    """Rates, momenta and first betas of all groups, update by update."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_before_step(self, model):
        self.seen.append({f"{type(one).__name__} {group['name']}": (float(group["lr"]), momentum_of(group))
                          for one in model.optimizer_list for group in one.param_groups})


class StopAt(Callback):
    def __init__(self, updates):
        self.updates = updates

    def on_after_step(self, model):
        if model.global_step == self.updates:
            model.should_stop = "now"


def with_muon(folder="muon", **attributes):
    model, look = Net(), Looks()
    trainer = Tiny(model, ckpt_dir=folder, warm_up_updates=4, warm_up_momentum=0.5, warm_up_bias_lr=0.1, accumulate_steps=2,
                   lr_scheduler_type="cosine", lr_scheduler_args={"final_ratio": 0.01}, clip_grad=10.0, callbacks=[look],
                   save_per_steps=1, **attributes)
    trainer.optimizer_list = build_optimizer("Muon", model, lr=0.02, momentum=0.9, weight_decay=0.1)
    trainer.check_init(use_tb=False)
    return trainer, look


def test_rate_momentum_and_bias_rate_warm_up_in_muon_and_in_the_adamw_beside_it(capfd):
    pytest.importorskip("torch.optim._muon")
    trainer, look = with_muon()
    said = capfd.readouterr().out
    assert said.count("Muon matrix: 3 tensors, 400 numbers, lr 0.02, weight decay 0.1") == 1
    assert said.count("AdamW embedding: 1 tensor, 24 numbers, lr 0.02, weight decay 0.001") == 1
    assert said.count("AdamW bias:") == said.count("AdamW norm:") == 1
    trainer.fit(4)
    for step, seen in enumerate(look.seen):
        share, left = min(step / 4, 1.0), max(step - 4, 0) / (12 - 4)
        rate = 1e-6 + (0.02 - 1e-6) * share if step < 4 else 0.02 * (0.01 + 0.99 * (1 + math.cos(math.pi * left)) / 2)
        bias = 0.1 + (0.02 - 0.1) * share if step < 4 else rate
        assert seen["Muon matrix"] == pytest.approx((rate, 0.5 + 0.4 * share))
        assert seen["AdamW norm"] == pytest.approx((rate, 0.5 + 0.4 * share))
        assert seen["AdamW bias"] == pytest.approx((bias, 0.5 + 0.4 * share))
    assert len(look.seen) == 12


@pytest.mark.slow
@pytest.mark.parametrize("updates", [2, 7])
def test_muon_beside_adamw_is_resumed_within_the_warm_up_and_behind_it_to_the_same_bits(updates):
    pytest.importorskip("torch.optim._muon")
    whole, _ = with_muon("whole")
    whole.fit(4)
    first, _ = with_muon("parts")
    first.callbacks = [*first.callbacks, StopAt(updates)]
    first.fit(4)
    assert first.global_step == updates
    continued, _ = with_muon("parts")
    continued.load_state("auto")
    continued.fit(4)
    assert continued.global_step == 12 and torch.equal(weights(continued), weights(whole))


def test_a_bias_rate_reaches_groups_of_parts_and_is_refused_where_there_are_no_biases():
    model = Net()
    trainer = Tiny(model, warm_up_updates=3, warm_up_bias_lr=0.1)
    trainer.optimizer_list = build_optimizer("AdamW", model, 1e-2, rates={"head": 1e-3})
    trainer.check_init(use_tb=False)
    assert rates_by_name(trainer.optimizer_list)["head/bias"] == rates_by_name(trainer.optimizer_list)["rest/bias"] == 0.1
    with pytest.raises(ValueError, match="needs parameter groups named 'bias'"):
        Tiny(warm_up_updates=3, warm_up_bias_lr=0.1).check_init(use_tb=False)
