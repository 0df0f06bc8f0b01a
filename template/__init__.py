"""A training template to copy into your project: subclass ``TemplateModel`` and own the loop.

    from utils.template import TemplateModel        # the folder may have any name
    from utils import Confusion, EarlyStopping      # everything else

Names are imported when they are first used, so ``import utils`` costs nothing.
"""

from importlib import import_module

__version__ = "0.2.0"

_HOMES = {
    "TemplateModel": ".template",
    "TensorLoader": ".data.in_memory",
    "Mean": ".metrics.accumulators",
    "Stored": ".metrics.accumulators",
    "Confusion": ".metrics.accumulators",
    "Callback": ".hooks",
    "Logger": ".output.logger",
    "WarmUpLR": ".update.lr_scheduler",
    "seed_everything": ".data.seeding",
    "option": ".run.options",
    "parse_options": ".run.options",
    "EarlyStopping": ".callbacks.early_stopping",
    "History": ".callbacks.history",
    "Profile": ".callbacks.profile",
    "ProgressBar": ".callbacks.progress_bar",
    "TensorBoard": ".callbacks.tensorboard",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")
    try:
        value = globals()[name] = getattr(import_module(_HOMES[name], __name__), name)
    except ModuleNotFoundError as error:
        if error.name != __name__ + _HOMES[name]:
            raise
        file = _HOMES[name][1:].replace(".", "/")
        part = file if "/" in file else "core"
        raise ModuleNotFoundError(
            f"{name} is in {file}.py, which is not there: it was left out of this copy, or deleted. To get it: "
            f"python {__path__[0]}/upgrade.py upgrade --with {part}", name=error.name) from None
    return value


def __dir__():
    return __all__
