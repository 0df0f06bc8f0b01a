"""Build a trainer from a YAML file and the command line, with every value checked and every name known.

    class Digits(TemplateModel):
        def __init__(self, lr: float = 1e-3, recon_weight: float = 10.0):
            super().__init__()
            …

    trainer = configure(Digits)

    python train.py --config digits.yml --lr 3e-4 --set.amp bf16      # the command line counts before the file
    python train.py --print-config > digits.yml                       # a complete file, with comments
    python train.py --config check_point/<run>/config.yaml            # the run again: each run stores its settings

The arguments of ``__init__`` are set by their names, and the attributes of ``TemplateModel`` below ``set``. Needs two
packages: ``pip install jsonargparse pyyaml``. It starts nothing: ``check_init()`` and the loop stay in your script.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..data.seeding import is_seed_asked_for, seed_everything, seed_of_run
from ..run.configuration.settings import SET, arguments_from
from ..run.configuration.shown_settings import SEED, StoredSettings, as_file, as_help
from ..run.configuration.written_settings import Settings
from ..run.configuration.yaml_files import ConfigError
from ..run.options import in_notebook

if TYPE_CHECKING:
    from ..template import TemplateModel

TrainerT = TypeVar("TrainerT", bound="TemplateModel")


def configure(kind: type[TrainerT], argv: Sequence[str] | None = None, *, config: str | Path | None = None,
              **given: Any) -> TrainerT:
    """A new trainer of class ``kind``, before ``check_init``.

    Args:
        kind: the class. Its arguments may be numbers, texts, choices (``Literal``), lists, dicts, dataclasses of these, and
            objects of a class, which are written as ``{class_path: …, init_args: {…}}``.
        argv: the command line; None takes ``sys.argv[1:]``, and nothing in a notebook.
        config: a file to read where the command line names none with ``--config``.
        **given: arguments that the script gives itself, such as datasets. They count before file and command line, and so
            do attributes in ``set={"total_epochs": 3}``.

    Where nobody called ``seed_everything`` before, it is called with ``set.seed``, else with an argument ``seed``, else with
    a new number, before the model draws its weights. The settings are stored in the run as ``config.yaml``.

    Raises:
        SystemExit: after ``--help`` and ``--print-config``; 2 after a message that says which setting is wrong, where it
            stands and what is accepted.
    """
    try:
        settings = Settings(kind, given)
        arguments = [] if argv is None and in_notebook() else list(sys.argv[1:] if argv is None else argv)
        asked = settings.read(arguments, config)
        if "help" in asked:
            print(as_help(settings))
            raise SystemExit(0)
        if "print_config" in asked:
            if int(os.environ.get("RANK", "0")) == 0:
                if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
                    sys.stdout.reconfigure(encoding="utf-8")  # of a file by ``> my.yml``, also on Windows
                print(as_file(settings), end="")
            raise SystemExit(0)
        settings.require_all()
        return build(settings)
    except ConfigError as error:
        print(f"{Path(sys.argv[0]).name or 'configure'}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def build(settings: Settings) -> Any:
    """The trainer, with its attributes set and the settings ready to be stored."""
    try:
        arguments = arguments_from(settings.kind, settings.values, settings.objects)
    except ValueError as error:  # a dataclass looks at its fields
        raise ConfigError(str(error)) from None
    seed = settings.values.get(SEED, settings.values.get("seed"))
    seed_of_weights = None if is_seed_asked_for() else seed_everything(seed if isinstance(seed, int) else None)
    try:
        trainer = settings.kind(**arguments, **settings.objects)
    finally:
        if seed_of_weights is not None:
            seed_of_run(seed_of_weights)  # no later trainer takes it, also where this one cannot be built
    draws_seed = trainer.seed is None
    if seed_of_weights is not None:
        trainer.seed = seed_of_weights if draws_seed else trainer.seed
    for key, value in settings.values.items():
        if settings.known[key].is_attribute:
            setattr(trainer, key.removeprefix(f"{SET}."), value)
    trainer.run_options = {key: settings.written(key) for key in settings.values
                           if key in settings.given or key in settings.fixed or not settings.known[key].is_attribute}
    if isinstance(trainer.callbacks, (list, tuple, type(None))):  # else check_init says what is wrong
        trainer.callbacks = [*(trainer.callbacks or ()), StoredSettings(settings, draws_seed)]
    return trainer
