"""Settings that a subclass writes into its class body, or computes in a property, instead of assigning them in ``__init__``.

    class Trainer(TemplateModel):
        criterion = torch.nn.CrossEntropyLoss()
        seed = 0

        @functools.cached_property
        def train_loader(self):
            return DataLoader(...)

``TemplateModel.__init__`` gives every setting a default, which would hide these.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..template import TemplateModel

_OTHER_NAMES = {"warm_up_type": "warm_up_mode"}
_MAY_BE_METHODS = ("criterion",)
_SET_BY_THE_RUN = ("ckpt_dir", "run_name", "seed")
_OBJECTS = ("model_list", "optimizer_list", "criterion", "lr_scheduler_list", "warm_up_scheduler_list", "eval_metrics",
            "train_metrics")


def take(trainer: TemplateModel) -> frozenset[str]:
    """Let what the class bodies of a subclass set stand in the place of the defaults; returns the names of the settings."""
    settings = frozenset(vars(trainer))
    bases = type(trainer).__mro__
    for base in reversed(bases[:bases.index(template_of(trainer))]):
        for name, value in vars(base).items():
            if name in settings:
                _take(trainer, name, value, f"{base.__qualname__}.{name}")
            elif name in _OTHER_NAMES:
                vars(trainer)[_OTHER_NAMES[name]] = value
    return settings


def template_of(trainer: TemplateModel) -> type:
    """``TemplateModel`` itself, which cannot be imported here; a subclass overrides none of its private methods."""
    return next(base for base in type(trainer).__mro__ if "_overrides" in vars(base))


def _take(trainer, name, value, full_name):
    """A value stands in the instance from now on; what Python computes when it is asked for is found in the class."""
    is_method = inspect.isfunction(value) and value.__qualname__ == full_name
    if is_method and name not in _MAY_BE_METHODS:
        return  # the default stays, and check_init refuses a method that an attribute hides
    is_computed = hasattr(value, "__get__") and not inspect.isfunction(value) and not isinstance(value, functools.partial)
    if is_method or is_computed:
        vars(trainer).pop(name, None)
    else:
        vars(trainer)[name] = value


def assign_to_property(trainer: TemplateModel, name: str, value: Any) -> None:
    """What ``trainer.<name> = value`` does where Python refused it because a property of that name has no setter. A default
    of ``TemplateModel.__init__`` is not needed then.

    Raises:
        AttributeError: in all other cases where the value differs from that of the property.
    """
    found = getattr(type(trainer), name, None)
    if not isinstance(found, property) or found.fset is not None:
        raise  # noqa: PLE0704  # what Python refused
    if "attribute_names" not in vars(trainer):  # __init__ has not come to its end
        vars(trainer)[name] = value
    elif value != getattr(trainer, name):
        raise AttributeError(
            f"{name} is a property of {type(trainer).__name__} without a setter, so it cannot become {value!r}. Give it a "
            "setter, or write @functools.cached_property instead of @property."
        )


def check_properties(trainer: TemplateModel) -> None:
    """Properties are asked more than once, and must give the same objects.

    Raises:
        ValueError: one makes new ones each time, or is for something that the run itself sets.
    """
    for name in (*_SET_BY_THE_RUN, *_OBJECTS):
        found = getattr(type(trainer), name, None)
        if not isinstance(found, property):
            continue
        cure = "Write @functools.cached_property instead of @property."
        if name in _OBJECTS:
            first, second = _parts(getattr(trainer, name)), _parts(getattr(trainer, name))
            if len(first) != len(second) or any(a is not b for a, b in zip(first, second)):
                raise ValueError(f"{name} is a property that makes new objects each time it is read, so what is saved would "
                                 f"not be what was trained. {cure}")
        elif found.fset is None:
            raise ValueError(f"{name} is a property without a setter, but the run may have to change it: a folder gets a "
                             f"number where a run is in it already, and load_state takes over the seed of the file. {cure}")


def _parts(value):
    return list(value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value])
