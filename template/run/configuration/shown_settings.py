"""How settings are shown: ``--help``, ``--print-config``, and the file that each run stores.

    print(as_help(settings), as_file(settings))
    trainer.callbacks = [StoredSettings(settings)]     # writes config.yaml into the run's folder
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...hooks import Callback
from ...output.run_folder import CONFIG_FILE, replace_file, told_when_it_fails
from .settings import MISSING, SET, Setting
from .typed_values import as_yaml, is_plain_value
from .written_settings import Settings
from .yaml_files import pyyaml

if TYPE_CHECKING:
    from ...template import TemplateModel

SEED = f"{SET}.seed"
_WIDTH = 110
_NOT_STORED = ("resume",)  # the stored settings begin the run again


def as_help(settings: Settings) -> str:
    """All settings with what they accept, their defaults and meanings."""
    lines = [f"usage: {Path(sys.argv[0]).name} [--config FILE.yml] [--name value …] [--print-config]", "",
             "  --config FILE.yml   settings from a file; of several, the later counts", "  --print-config      print "
             "all settings as a file with comments"]
    group = None
    for setting in _settable(settings):
        if setting.group != group:
            group = setting.group
            lines += ["", f"{_title(group)}:"]
        default = "" if setting.default is MISSING else f", default {_shown(setting.default)}"
        text = f"{setting.accepted}{default}. {setting.meaning}".strip()
        lines += textwrap.wrap(text, _WIDTH, initial_indent=f"  --{setting.key}  ", subsequent_indent="        ")
    return "\n".join(lines)


def as_file(settings: Settings, trainer: Any = None, seed: int | None = None) -> str:
    """All settings as a file that is read back to the same ones. What was not set in ``set`` stands there as a comment.

    Args:
        trainer: whose attributes are shown there; None: the defaults of ``TemplateModel``.
        seed: of the run.
    """
    script = Path(sys.argv[0]).name
    lines = [f"# Settings of {settings.kind.__name__}, read by: python {script} --config <this file>",
             "# A line that begins with # shows what counts if nothing else is set: remove the # to set it."]
    lines += [f"# {name}: given by the script" for name in settings.objects]
    values = dict(settings.values) if seed is None else {**settings.values, SEED: seed}
    if trainer is not None:
        values = {key: value for key, value in values.items() if key.split(".")[-1] not in _NOT_STORED}
    group: str | None = None
    section: tuple[str, ...] = ()
    for setting in _settable(settings):
        *path, name = setting.key.split(".")
        if tuple(path) != section:
            shared = len(os.path.commonprefix([path, list(section)]))
            for depth in range(shared, len(path)):
                lines += ["", f"{'  ' * depth}{path[depth]}:"]
            section = tuple(path)
        indent = "  " * len(path)
        if setting.group != group:
            group = setting.group
            lines += ["", f"{indent}# --- {_title(group)} ---"]
        comment = " ".join(filter(None, [setting.meaning, f"({setting.accepted})"]))
        lines += ["", *textwrap.wrap(comment, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")]
        lines.append(indent + _line(settings, setting, values, trainer))
    return "\n".join(lines) + "\n"


def _line(settings, setting, values, trainer):
    name = setting.key.rpartition(".")[2]
    if setting.key in values:
        value = settings.written(setting.key) if setting.key in settings.values else values[setting.key]
        return f"{'' if is_plain_value(value) else '# '}{name}: {_shown(value)}"
    is_effective = trainer is not None and setting.is_attribute
    value = getattr(trainer, name, setting.default) if is_effective else setting.default
    return f"# {name}:" if value is MISSING else f"# {name}: {_shown(value)}"


def _shown(value):
    return as_yaml(value) if is_plain_value(value) else getattr(value, "__name__", type(value).__name__)


def _settable(settings) -> Iterator[Setting]:
    return (setting for setting in settings.known.values() if not setting.refusal)


def _title(group):
    return group[0].upper() + group[1:]


class StoredSettings(Callback):
    """Writes the settings of the run into its folder, and says what is different where a run goes on."""

    def __init__(self, settings: Settings, draws_seed: bool) -> None:
        self.settings = settings
        self.draws_seed = draws_seed  # the class sets no seed of its own

    def on_run_start(self, model: TemplateModel) -> None:
        if not model.is_main:
            return
        path = Path(model.ckpt_dir) / CONFIG_FILE
        is_seed_of_run = self.draws_seed or SEED in self.settings.values
        text = as_file(self.settings, model, model.seed if is_seed_of_run else None)
        if path.exists() and (model.global_step or model.epochs_done or model.batches_done):
            for line in _differences(path, text):
                print(f"  resume: {line}")
        with told_when_it_fails(path):
            replace_file(path, text)


def _differences(path, text):
    """What a run that goes on does otherwise than before."""
    yaml = pyyaml()
    try:
        before = _flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        return [f"the settings that it was started with cannot be read: {error}"]
    now = _flat(yaml.safe_load(text))
    names = [name for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)]
    lines = [f"{name} was {_shown(before.get(name))} and is {_shown(now.get(name))} now" for name in names]
    if lines:
        lines.append("what a checkpoint holds (weights, learning rates, momentum, seed) comes from the checkpoint; all else "
                     "counts from here on")
    return lines


def _flat(tree, prefix=""):
    found = {}
    for name, value in (tree or {}).items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return found
