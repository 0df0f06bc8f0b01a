"""Optimizers, and their parameter groups: rates by part of the model, weight decay by role, rates that fall with depth.

    self.optimizer_list = build_optimizer("AdamW", model, lr=1e-3, weight_decay=0.05)     # groups weight, bias, norm, …

    groups = param_groups(model, {"backbone": 1e-5, "head": 1e-3})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    # lr backbone 1.00e-05 backbone/no_decay 1.00e-05 head 1.00e-03 head/no_decay 1.00e-03

It freezes nothing: ``module.requires_grad_(False)`` does that.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .fused import require_fused_form, use_fused_form

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
        path = _longest(name, rates)
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
    made = []
    for path in rates:
        for key in sorted(key for key in groups if key[0] == path):
            _, layer, number = key
            name = kinds[number]
            rate = rates[path]  # a tensor of its own for each group, or all would follow one
            group: dict[str, Any] = {"params": groups[key], "lr": rate.clone() if isinstance(rate, torch.Tensor) else rate}
            parts = [path or ("rest" if len(rates) > 1 else "model")]
            if roles is not None and rates.keys() == {""}:
                parts = []
            if layer_decay is not None and layers[path].count > 1:
                group["lr"] = rates[path] * layer_decay ** (layers[path].count - 1 - layer)
                parts.append(str(layer))
            if name:
                parts.append(name)
            if roles is not None and weight_decay is not None:
                group["weight_decay"] = weight_decay * roles[name]
            elif name or weight_decay is not None:
                group["weight_decay"] = 0.0 if name else weight_decay
            made.append({**group, "name": "/".join(parts)})
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
        _require_roles(roles, "roles")
        if roles.keys() != ROLES.keys() or weight_decay is None:
            raise ValueError(f"roles must give each of {list(ROLES)} its share of weight_decay, which is needed too; got "
                             f"roles={dict(roles)!r} and weight_decay={weight_decay!r}.")


def _require_roles(roles, name):
    """Known roles, and shares that are numbers from 0 on."""
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


def _longest(name, paths):
    """The longest of ``paths`` that ``name`` is or lies in; None."""
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
            own = [p for inner, p in layer.named_parameters() if _longest(f"{name}.{inner}".lstrip("."), rates) == path]
            if self.count == 0 and own or any(p.dim() > 1 for p in own):
                self.count += 1  # else a normalization, which counts with the layer before it
            self.numbers[name] = max(0, self.count - 1)

    def of(self, name):
        return self.numbers.get(_longest(name, self.numbers), 0)  # cls_token, pos_embed and the like are at the input


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


# --- an optimizer by its name -----------------------------------------------------------------------------------------


def build_optimizer(name: str | type[torch.optim.Optimizer], models: nn.Module | Sequence[nn.Module],
                    lr: float | None = None, momentum: float | None = None, weight_decay: float | None = None,
                    *, decay_factors: Mapping[str, float] | None = None, rates: Mapping[str, float] | None = None,
                    layer_decay: float | None = None, fused: bool = False, adamw: Mapping[str, Any] | None = None,
                    adamw_parts: Sequence[str] = (), **options: Any) -> list[torch.optim.Optimizer]:
    """The optimizers of a training, with a parameter group for each role: ``self.optimizer_list = build_optimizer(…)``.

    Args:
        name: a class of ``torch.optim`` by its name ("AdamW", "SGD", "RMSProp", …; upper and lower case are the same), or a
            class. "Muon" is for matrices: the weights of linear layers go to it, and everything else goes to an AdamW.
        models: one model, or a list of them.
        lr: None: what the class has by default, as for the next two.
        momentum: of SGD, RMSprop and Muon; the first of the ``betas`` of Adam and its relatives.
        weight_decay: of weights. Other roles have a share of it.
        decay_factors: these shares, where they are not the usual ones: ``{"weight": 1.0, "bias": 0.0, "norm": 0.0,
            "embedding": 0.01}``. ``param_groups`` says what the roles are.
        rates: rates of parts, as in ``param_groups``; ``lr`` is the rate of everything else.
        layer_decay: rates that fall with depth, as in ``param_groups``.
        fused: torch's fused form, which does a step in one pass over the weights.
        adamw: arguments of the AdamW beside Muon, where they are not those of Muon: ``{"lr": 3e-4, "betas": (0.9, 0.95)}``.
        adamw_parts: paths of parts whose matrices AdamW has too: ``("head",)``. Muon is not meant for the output layer.
        **options: of the optimizer's class: ``nesterov=True``, ``betas=(0.9, 0.95)``.

    Returns:
        A list of one optimizer, or of Muon and AdamW. ``check_init`` prints a line for each of their groups.

    Raises:
        ValueError: an unknown name, a parameter without a rate, no fused form.
        TypeError: an argument that the optimizer does not take.

    Source: decay of weights alone as in the YOLOv5 training script (Ultralytics, 2020); Muon for matrices as in Jordan et
    al., "Muon: An optimizer for hidden layers in neural networks", 2024, by default with the scale of Liu et al., "Muon is
    Scalable for LLM Training", 2025, with which AdamW's rate and decay suit it.
    """
    kind = _class_of(name)
    model = models if isinstance(models, nn.Module) else nn.ModuleList(models)
    if not isinstance(models, nn.Module) and (layer_decay is not None or rates is not None):
        raise ValueError("rates and layer_decay go by the parts of one model. Call build_optimizer for each model, and join "
                         "the lists.")
    takes = inspect.signature(kind.__init__).parameters
    arguments = _arguments(kind, takes, options, momentum)
    decay = _own_decay(kind, takes, weight_decay)
    lr = _default(kind, takes, "lr") if lr is None and rates is None else lr
    _require_roles(decay_factors or {}, "decay_factors")

    def grouped(lr, weight_decay):
        of_parts = {**(rates or {}), **({} if lr is None else {"": lr})}
        return param_groups(model, of_parts, weight_decay=weight_decay, layer_decay=layer_decay,
                            roles={**ROLES, **(decay_factors or {})})

    groups = grouped(lr, decay)
    if fused:
        require_fused_form(kind, [p for group in groups for p in group["params"]])
    if kind is getattr(torch.optim, "Muon", None):
        own = {"lr": lr, "weight_decay": decay, **(adamw or {})}
        matrices = _matrices(model, adamw_parts)
        _require_rate_of_adamw(arguments.setdefault("adjust_lr_fn", "match_rms_adamw"), adamw or {})
        return _with_adamw(kind, groups, arguments, grouped(own.pop("lr"), own.pop("weight_decay")), own, matrices)
    if adamw is not None or adamw_parts:
        raise TypeError(f"adamw and adamw_parts are for 'Muon', which leaves a part to AdamW; {kind.__name__} takes all "
                        "parameters. Leave them out.")
    if kind is torch.optim.LBFGS:
        return [kind(_of_one_group(groups), lr=groups[0]["lr"], **arguments)]
    if "weight_decay" not in takes:
        for group in groups:
            del group["weight_decay"]
    optimizer = kind(groups, **arguments)
    if fused:
        use_fused_form(optimizer)
    return [optimizer]


def sizes(optimizers: Sequence[torch.optim.Optimizer]) -> list[str]:
    """A line for each group of the optimizers whose groups have names, as ``build_optimizer`` and ``param_groups`` do it."""
    lines = []
    for optimizer in optimizers:
        groups = optimizer.param_groups if any("name" in group for group in optimizer.param_groups) else []
        for number, group in enumerate(groups):
            parameters = group["params"]
            decay = f", weight decay {group['weight_decay']:.3g}" if "weight_decay" in group else ""
            lines.append(f"{type(optimizer).__name__} {group.get('name', number)}: {len(parameters):,} "
                         f"tensor{'s' * (len(parameters) != 1)}, {sum(p.numel() for p in parameters):,} numbers, lr "
                         f"{float(group.get('initial_lr', group['lr'])):.3g}{decay}")
    return lines


def _class_of(name):
    """The class of ``torch.optim`` that is meant."""
    if isinstance(name, type) and issubclass(name, torch.optim.Optimizer):
        return name
    found = {key.lower(): value for key, value in vars(torch.optim).items()
             if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer}
    if str(name).lower() in found:
        return found[str(name).lower()]
    names = sorted(value.__name__ for value in found.values())
    close = difflib.get_close_matches(str(name).lower(), found, n=1)
    meant = f" Did you mean {found[close[0]].__name__!r}?" if close else ""
    raise ValueError(f"The optimizer must be one of {names}, or a class of optimizers; got {name!r}.{meant}")


def _arguments(kind, known, options, momentum):
    """What the class is given beside its parameters, with ``momentum`` by the name that it has there."""
    own = [key for key in known if key not in ("self", "params", "lr", "weight_decay")]
    for key in options:
        if key not in own and not any(one.kind is one.VAR_KEYWORD for one in known.values()):
            close = difflib.get_close_matches(key, own, n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{kind.__name__} takes {own}, and got {key}={options[key]!r}.{meant}")
    if momentum is None:
        return dict(options)
    if "momentum" in own:
        return {**options, "momentum": momentum}
    if "betas" not in own:
        raise TypeError(f"{kind.__name__} has no momentum, and got momentum={momentum!r}. Leave it out.")
    if "betas" in options:
        raise TypeError(f"momentum={momentum!r} is the first of the betas, and betas={options['betas']!r} were given too. "
                        "Give one of them.")
    return {**options, "betas": (momentum, *known["betas"].default[1:])}


def _own_decay(kind, takes, weight_decay):
    """The weight decay of weights; 0 where there is none."""
    if "weight_decay" in takes:
        return _default(kind, takes, "weight_decay") if weight_decay is None else weight_decay
    if weight_decay:
        raise TypeError(f"{kind.__name__} has no weight decay, and got weight_decay={weight_decay!r}. Leave it out.")
    return 0.0


def _default(kind, takes, name):
    value = takes[name].default if name in takes else inspect.Parameter.empty
    if value is inspect.Parameter.empty:
        raise TypeError(f"{kind.__name__} has no {name} by default. Give it: {name}=1e-3.")
    return value


def _of_one_group(groups):
    """LBFGS takes no groups."""
    if len({group["lr"] for group in groups}) > 1:
        raise ValueError("LBFGS has one rate for all parameters. Leave rates and layer_decay out.")
    return [p for group in groups for p in group["params"]]


def _matrices(model, adamw_parts):
    """Ids of the parameters that Muon can take: weights of two dimensions, outside of ``adamw_parts``. One that is shared
    goes by all its names: an output layer that is an embedding too is an embedding."""
    named = [(f"{prefix}.{name}".lstrip("."), module, p) for prefix, module in model.named_modules(remove_duplicate=False)
             for name, p in module.named_parameters(recurse=False, remove_duplicate=False)]
    for part in [adamw_parts] if isinstance(adamw_parts, str) else adamw_parts:
        if isinstance(adamw_parts, str) or not any(_longest(name, [part]) for name, _, _ in named):
            parts = [name for name, _ in model.named_children()]
            raise ValueError(f"adamw_parts must be a tuple of paths of modules, such as ('head',), and the model has the "
                             f"parts {parts}; got {adamw_parts!r}.")
    others = {id(p) for name, owner, p in named
              if role_of(name, owner, p) != "weight" or p.dim() != 2 or _longest(name, adamw_parts) is not None}
    return {id(p) for _, _, p in named} - others


def _with_adamw(muon, groups, arguments, adamw_groups, adamw_arguments, matrices):
    """``[Muon, AdamW]``, or one of them where it has everything."""
    _arguments(torch.optim.AdamW, inspect.signature(torch.optim.AdamW.__init__).parameters, adamw_arguments, None)
    of_muon = _only(groups, matrices.__contains__)
    for group in of_muon:
        group["name"] = f"{group['name'].removesuffix('weight')}matrix"
    of_adamw = _only(adamw_groups, lambda number: number not in matrices)
    made = [muon(of_muon, **arguments)] if of_muon else []
    return [*made, torch.optim.AdamW(of_adamw, **adamw_arguments)] if of_adamw else made


def _require_rate_of_adamw(adjust_lr_fn, adamw):
    if adjust_lr_fn != "match_rms_adamw" and "lr" not in adamw:
        raise ValueError(f"With adjust_lr_fn={adjust_lr_fn!r} a rate that suits Muon does not suit AdamW, which has what is "
                         "no matrix. Give AdamW a rate of its own: adamw={'lr': 3e-4}.")


def _only(groups, is_wanted):
    """The groups with those of their parameters whose id is wanted, without those that are empty then."""
    kept = [{**group, "params": [p for p in group["params"] if is_wanted(id(p))]} for group in groups]
    return [group for group in kept if group["params"]]
