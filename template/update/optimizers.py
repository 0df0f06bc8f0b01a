"""Optimizers by their name, with a parameter group for each role.

    self.optimizer_list = build_optimizer("AdamW", model, lr=1e-3, weight_decay=0.05)     # groups weight, bias, norm, …

Which parameter is in which group stands in ``param_groups.py``.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .fused import require_fused_form, use_fused_form
from .param_groups import ROLES, longest_path, require_roles, role_of
from .param_groups import param_groups as param_groups  # ``from utils.update.optimizers import param_groups``


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
    require_roles(decay_factors or {}, "decay_factors")

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
        if isinstance(adamw_parts, str) or not any(longest_path(name, [part]) for name, _, _ in named):
            parts = [name for name, _ in model.named_children()]
            raise ValueError(f"adamw_parts must be a tuple of paths of modules, such as ('head',), and the model has the "
                             f"parts {parts}; got {adamw_parts!r}.")
    others = {id(p) for name, owner, p in named
              if role_of(name, owner, p) != "weight" or p.dim() != 2 or longest_path(name, adamw_parts) is not None}
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
