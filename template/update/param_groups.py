"""Parameter groups: rates by part of the model, weight decay by role, rates that fall with depth.

    groups = param_groups(model, {"backbone": 1e-5, "head": 1e-3})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    # lr backbone 1.00e-05 backbone/no_decay 1.00e-05 head 1.00e-03 head/no_decay 1.00e-03

It freezes nothing: ``module.requires_grad_(False)`` does that. ``optimizers.py`` builds optimizers of such groups by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.CrossMapLRN2d,
          *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []))
KINDS = ("bias", "norm", "embedding", "scalar")
ROLES = {"weight": 1.0, "bias": 0.0, "norm": 0.0, "embedding": 0.01}  # the usual share of the weight decay
_LISTS = (nn.ModuleList, nn.Sequential)


def param_groups(model: nn.Module, rates: Mapping[str, float], no_decay: Sequence[str | type[nn.Module]] = ("bias", "norm"),
                 weight_decay: float | None = None, layer_decay: float | None = None,
                 beside: torch.optim.Optimizer | None = None, roles: Mapping[str, float] | None = None
                 ) -> list[dict[str, Any]]:
    """Every trainable parameter of ``model`` in exactly one group, for ``torch.optim.AdamW(groups)`` or any other optimizer.

    Args:
        model: whose parts ``rates`` names. A parameter that two parts share counts where it is named first.
        rates: ``{path of a module or parameter: learning rate}``. The longest path that fits counts, and "" is everything
            else.
        no_decay: what gets ``weight_decay=0``: "bias", "norm" (the weights of normalizations), "embedding", "scalar" (single
            numbers, such as a logit scale), or classes of modules. It goes by what a module is, and not by how the model
            calls it: a layer called "bias_net" decays.
        weight_decay: of all others; None: the optimizer's own.
        layer_decay: below 1, the last layer of each part has the part's rate, and each layer before it ``layer_decay`` times
            the rate of the next one. Layers are the entries of the model's lists (``nn.Sequential``, ``nn.ModuleList``) and
            what stands before and behind them, in the order in which they were made.
        beside: parameters that this optimizer has already are left out.
        roles: a group for each role instead, with this share of ``weight_decay``, which is then needed; ``no_decay`` does
            not count. ``{"weight": 1.0, "bias": 0.0, "norm": 0.0, "embedding": 0.01}`` is usual. "bias" are all biases, also
            those of normalizations; "norm" are their weights, and what else scales: single numbers (a logit scale), one
            number for each channel (the gamma of a LayerScale, the slopes of a PReLU); "embedding" are lookup tables;
            "weight" is the rest.

    Returns:
        ``[{"params", "lr", "name"}, …]``, with a "weight_decay" where it is set here. The names are the paths, with "/0",
        "/1", … for layers and "/no_decay", or "/bias" and so on for roles, which are "bias" alone where "" is the only
        path. The log and TensorBoard show the rates by them.

    Raises:
        ValueError: a trainable parameter that no path fits, or a path that fits nothing.

    Source: rates that fall with depth are the discriminative fine-tuning of Howard and Ruder, "Universal Language Model
    Fine-tuning for Text Classification", ACL 2018; with one factor for all layers as in Clark et al., "ELECTRA", ICLR 2020.
    """
    _require(model, rates, no_decay, layer_decay, weight_decay, roles)
    taken = {id(p) for group in (beside.param_groups if beside is not None else ()) for p in group["params"]}
    layers = {path: _Layers(model, path, rates) for path in rates}
    groups: dict[tuple[str, int, int], list[nn.Parameter]] = {}
    kinds = ["", "no_decay"] if roles is None else list(ROLES)
    missed, fitted = [], set()
    for name, owner, parameter in _parameters(model):
        path = longest_path(name, rates)
        fitted.add(path)
        if not parameter.requires_grad or id(parameter) in taken:
            continue
        if path is None:
            missed.append(name)
            continue
        layer = layers[path].of(name) if layer_decay is not None else 0
        kind = int(_decays_not(name, owner, parameter, no_decay)) if roles is None else kinds.index(
            role_of(name, owner, parameter))
        key = (path, layer, kind)
        groups.setdefault(key, []).append(parameter)
    if missed:
        raise ValueError(f"Every trainable parameter needs a rate, and no path in {list(rates)} fits {_some(missed)}. Add "
                         "its path, or \"\" for everything else, or freeze it with requires_grad_(False).")
    if unused := [path for path in rates if path not in fitted]:
        parts = [name for name, _ in model.named_children()]
        raise ValueError(f"rates has paths of modules, and {_some(unused)} fits no parameter. The model has the parts "
                         f"{parts}. A part of which longer paths have everything needs no rate.")
    made, order = [], list(rates)
    for path, layer, number in sorted(groups, key=lambda key: (order.index(key[0]), key[1:])):
        rate, role = rates[path], kinds[number]
        group: dict[str, Any] = {"params": groups[path, layer, number], "lr": rate}
        if isinstance(rate, torch.Tensor):
            group["lr"] = rate.clone()  # or all groups would follow one
        parts = [path or ("rest" if len(rates) > 1 else "model" if roles is None else "")]
        if layer_decay is not None and layers[path].count > 1:
            group["lr"] = rate * layer_decay ** (layers[path].count - 1 - layer)
            parts.append(str(layer))
        share = roles[role] if roles is not None else 0.0 if role else 1.0
        if weight_decay is not None or share == 0.0:
            group["weight_decay"] = share * (weight_decay or 0.0)
        made.append({**group, "name": "/".join(filter(None, [*parts, role]))})
    return made


def role_of(name: str, owner: nn.Module, parameter: nn.Parameter) -> str:
    """Which of ``ROLES`` a parameter has, by the module that it is in.

    Args:
        name: its path; what counts is the last part.
        owner: the module that holds it.
    """
    own = name.rpartition(".")[2]
    if _is_bias(own, owner, parameter):
        return "bias"
    if _is_norm(own, owner, parameter) or _is_scale(owner, parameter):
        return "norm"
    return "embedding" if _IS["embedding"](own, owner, parameter) else "weight"


def _require(model, rates, no_decay, layer_decay, weight_decay, roles):
    if not isinstance(model, nn.Module):
        raise TypeError(f"param_groups needs a module, got {type(model).__name__}. For several models call it for each, or "
                        "for nn.ModuleList(models).")
    if not isinstance(rates, Mapping) or not rates:
        raise TypeError("rates must be a dict of paths and learning rates, for example {'backbone': 1e-5, 'head': 1e-3}, or "
                        f"{{'': 1e-3}} for the whole model; got {rates!r}.")
    for path, rate in rates.items():
        if not isinstance(rate, (int, float, torch.Tensor)) or isinstance(rate, bool) or not rate >= 0:
            raise ValueError(f"Learning rates are numbers from 0 on; rates[{path!r}] is {rate!r}.")
    for kind in [no_decay] if isinstance(no_decay, str) else no_decay:
        if isinstance(no_decay, str) or not isinstance(kind, type) and kind not in KINDS:
            raise ValueError(f"no_decay must be a tuple of {list(KINDS)} and classes of modules, got {no_decay!r}.")
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], for example 0.75; got {layer_decay!r}.")
    if roles is not None:
        require_roles(roles, "roles")
        if roles.keys() != ROLES.keys() or weight_decay is None:
            raise ValueError(f"roles must give each of {list(ROLES)} its share of weight_decay, which is needed too; got "
                             f"roles={dict(roles)!r} and weight_decay={weight_decay!r}.")


def require_roles(roles: Mapping[str, float], name: str) -> None:
    """
    Raises:
        ValueError: an unknown role, or a share that is no number from 0 on.
    """
    shares = roles.values() if isinstance(roles, Mapping) else [None]
    if not all(isinstance(share, (int, float)) and not isinstance(share, bool) and share >= 0 for share in shares):
        raise ValueError(f"{name} must be a dict of shares of the weight decay, such as {{'embedding': 1.0}}; got "
                         f"{roles!r}.")
    if unknown := set(roles) - set(ROLES):
        raise ValueError(f"{name} must have the roles {list(ROLES)}, got {sorted(map(str, unknown))}.")


def _parameters(model) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """(path, the module that it is in, parameter), each parameter once."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}".lstrip("."), module, parameter


def longest_path(name: str, paths: Iterable[str]) -> str | None:
    """The longest of ``paths`` that ``name`` is or lies in; None where it lies in none."""
    fitting = [path for path in paths if not path or name == path or name.startswith(f"{path}.")]
    return max(fitting, key=len, default=None)


def _decays_not(name, owner, parameter, no_decay):
    own = name.rpartition(".")[2]
    return any(isinstance(owner, kind) if isinstance(kind, type) else _IS[kind](own, owner, parameter) for kind in no_decay)


def _is_bias(own, owner, parameter):
    """Also ``in_proj_bias`` of attention and ``bias_hh_l0`` of an LSTM; a table of biases [N, H] is a weight."""
    return parameter.dim() <= 1 and (own == "bias" or own.startswith("bias_") or own.endswith("_bias"))


def _is_norm(own, owner, parameter):
    """Of torch's classes, or of a class that is called a norm, as libraries of language models have their own."""
    return isinstance(owner, _NORMS) or parameter.dim() <= 1 and type(owner).__name__.lower().rstrip("123d").endswith("norm")


def _is_scale(owner, parameter):
    """One number, or one for each channel: [C], or [C, 1, 1] in a module that is none of torch's layers."""
    return parameter.dim() <= 1 or parameter.dim() > 2 and parameter.numel() == parameter.shape[0] > 1 and not type(
        owner).__module__.startswith("torch.nn.")


_IS = {
    "bias": _is_bias,
    "norm": _is_norm,
    "embedding": lambda own, owner, parameter: isinstance(owner, (nn.Embedding, nn.EmbeddingBag)),
    "scalar": lambda own, owner, parameter: parameter.numel() == 1,
}


class _Layers:
    """In which layer of the part at ``path`` a parameter is, counted from the input. What has a rate of its own in ``rates``
    does not count."""

    def __init__(self, model, path, rates):
        self.numbers: dict[str, int] = {}  # by the path of a layer
        self.count = 0
        part = dict(model.named_modules()).get(path)  # None: it is a parameter
        for name, layer in () if part is None else _layers_of(part, path):
            own = [p for inner, p in layer.named_parameters() if longest_path(f"{name}.{inner}".lstrip("."), rates) == path]
            if self.count == 0 and own or any(p.dim() > 1 for p in own):
                self.count += 1  # else a normalization, which counts with the layer before it
            self.numbers[name] = max(0, self.count - 1)

    def of(self, name):
        return self.numbers.get(longest_path(name, self.numbers), 0)  # cls_token, pos_embed and the like are at the input


def _layers_of(module, path):
    """(path, module) of the layers with parameters: what is repeated in a list is one, and what holds no such list."""
    if not _has_repeated(module):
        yield path, module
        return
    for name, child in module.named_children():
        if next(child.parameters(), None) is None:
            continue
        inner = f"{path}.{name}".lstrip(".")
        if _is_repeated(module):
            yield inner, child
        else:
            yield from _layers_of(child, inner)


def _is_repeated(module):
    """A list with two entries of one class that have parameters."""
    kinds = [type(child) for child in module.children() if next(child.parameters(), None) is not None]
    return isinstance(module, _LISTS) and len(set(kinds)) < len(kinds)


def _has_repeated(module):
    return any(map(_is_repeated, module.modules()))


def _some(names):
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more
