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

import difflib
import enum
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from torch import nn

from ..data.seeding import is_seed_asked_for, seed_everything, seed_of_run
from ..hooks import Callback
from ..output.run_folder import CONFIG_FILE, replace_file, told_when_it_fails
from ..output.warn import warn
from ..run.options import in_notebook
from ..run.settings import MISSING, SET, Setting, arguments_from, names_of_arguments, settings_of
from ..run.typed_values import Mismatch, as_yaml, is_plain, parts_of, to_type
from ..run.yaml_files import INCLUDE, ConfigError, Given, parse_value, read_yaml

if TYPE_CHECKING:
    from ..template import TemplateModel

TrainerT = TypeVar("TrainerT", bound="TemplateModel")
_RESERVED = ("config", "print_config", "help", SET, INCLUDE)
_WIDTH = 110
_SEED = f"{SET}.seed"
_NOT_STORED = ("resume",)  # the stored settings begin the run again


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
            print(settings.help())
            raise SystemExit(0)
        if "print_config" in asked:
            if int(os.environ.get("RANK", "0")) == 0:
                _print_file(settings.text())
            raise SystemExit(0)
        settings.require_all()
        return settings.build()
    except ConfigError as error:
        print(f"{Path(sys.argv[0]).name or 'configure'}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _print_file(text):
    """Print what becomes a file by ``> my.yml`` in UTF-8, which is not what Windows writes by itself."""
    if hasattr(sys.stdout, "buffer") and not sys.stdout.isatty():
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8"))
        sys.stdout.buffer.flush()
    else:
        print(text, end="")


class Settings:
    """What can be set in a trainer's class, and what was set.

    Args:
        kind: the class.
        given: arguments of ``__init__`` that come from the script.
    """

    def __init__(self, kind: type[TemplateModel], given: Mapping[str, Any]) -> None:
        own = dict(given)
        attributes = dict(own.pop(SET, {}))
        objects = [name for name in names_of_arguments(kind) if name in own and not _is_plain_value(own[name])]
        self.kind: Any = kind
        self.objects = {name: own[name] for name in objects}
        self.known: dict[str, Setting] = settings_of(kind, objects)
        self.given: dict[str, Given] = {}   # what was written
        self.values: dict[str, Any] = {}    # and what it means, together with the defaults of __init__
        self.fixed = {**{name: own[name] for name in own if name not in objects},
                      **{f"{SET}.{name}": value for name, value in attributes.items()}}
        for key in self.known:
            if key.split(".")[0] in _RESERVED and not key.startswith(f"{SET}."):
                raise ConfigError(f"{kind.__name__}.__init__ must not have an argument {key!r}: {list(_RESERVED)} have a "
                                  "meaning of their own. Give it another name.")
        for name in self.fixed:
            if name not in self.known:
                raise ConfigError(self._unknown(name, "configure()"))
        self.values = {key: setting.default for key, setting in self.known.items()
                       if not setting.is_attribute and setting.default is not MISSING} | self.fixed

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, argv: Sequence[str], config: str | Path | None = None) -> set[str]:
        """Read the files and the command line. Returns what else was asked for: "help", "print_config".

        Raises:
            ConfigError: a name that does not exist, or a value that does not fit.
        """
        files, written, asked = self._command_line(argv)
        for file in files or ([] if config is None else [config]):
            for tree in read_yaml(file):
                self._take(list(self._entries(tree)))
        self._take(written)
        for key, given in self.given.items():
            if key in self.fixed:
                self._tell_fixed(key, given)
            else:
                self.values[key] = self._value(self.known[key], given)
        return asked

    def _command_line(self, argv):
        files, written, asked, words = [], [], set(), list(argv)
        while words:
            word = words.pop(0)
            if not word.startswith("--") or word == "--":
                if word == "-h":
                    asked.add("help")
                    continue
                hint = f" Write --config {word}." if word.endswith((".yml", ".yaml")) else " Names begin with --."
                raise ConfigError(f"The command line takes --name value, got {word!r} alone.{hint}")
            written_name, has_value, text = word[2:].partition("=")
            name = written_name if written_name in self.known else written_name.replace("-", "_")
            if name in ("help", "print_config"):
                asked.add(name)
                continue
            if not has_value and words and not words[0].startswith("--"):
                text, has_value = words.pop(0), "="
            if name == "config":
                if not has_value:
                    raise ConfigError("--config needs the path of a YAML file behind it.")
                files.append(text)
                continue
            key, rest = self._found(name)
            negated = name.removeprefix("no_") if key is None and not has_value else ""
            if negated in self.known and bool in parts_of(self.known[negated].hint):
                key, text, has_value = negated, "false", "="
            if key is None:
                raise ConfigError(self._unknown(name, f"--{written_name}", on_command_line=True))
            if not has_value:
                if bool not in parts_of(self.known[key].hint):
                    raise ConfigError(f"--{written_name} needs a value: {self.known[key].accepted}.")
                text = "true"
            written.append((key, rest, self._typed(text, f"--{written_name}", self.known[key].hint if not rest else Any)))
        return files, written, asked

    def _typed(self, text, place, hint):
        """A word of the command line. A text needs no quotes there; lists and sections are written as in YAML."""
        is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
        takes_more = any(part not in (str, int, float, bool, type(None)) for part in parts_of(hint))
        if is_quoted or takes_more and text[:1] in ("[", "{"):
            return parse_value(text, place)
        return Given(text, place, plain=text != "")

    def _found(self, name):
        """(key, path of an entry in its value) of a name with dots; (None, ()) where there is no such setting."""
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            key = ".".join(parts[:length])
            if key in self.known:
                return key, tuple(parts[length:])
        return None, ()

    def _entries(self, tree, prefix="", seen=None):
        """(key, path within its value, Given) of everything that stands in a file."""
        seen = {} if seen is None else seen
        for name, given in tree.items():
            full = prefix + name
            key, rest = self._found(full)
            is_section = any(known.startswith(f"{full}.") for known in self.known)
            if key is None and is_section:
                if isinstance(given.value, dict):
                    yield from self._entries(given.value, f"{full}.", seen)
                elif given.value not in ("", "null", "~"):  # all that stands below is a comment
                    raise ConfigError(f"{given.place}: {full} is a section, with names and values below it, got "
                                      f"{given.shown()}.")
                continue
            if key is None:
                raise ConfigError(f"{given.place}: {self._unknown(full, name)}")
            if (key, rest) in seen:
                raise ConfigError(f"{given.place}: {full} stands twice, before in {seen[key, rest].place}. Remove one.")
            seen[key, rest] = given
            yield key, rest, given

    def _take(self, entries):
        """What comes later counts."""
        for key, rest, given in entries:
            if refusal := self.known[key].refusal:
                raise ConfigError(f"{given.place}: {refusal}")
            before = self.given.get(key)
            self.given[key] = _joined(before, rest, given)

    def _value(self, setting, given):
        try:
            value = to_type(given, setting.hint)
            if is_plain(setting.hint) or any(type(value) is part for part in parts_of(setting.hint)):
                return value
            return _by_jsonargparse(setting, given, value)
        except Mismatch as error:
            meaning = f" It is: {setting.meaning}" if setting.meaning else ""
            reason = f" {error.reason}" if error.reason else ""
            raise ConfigError(f"{error.given.place or given.place}: {setting.key} must be {setting.accepted}, got "
                              f"{error.given.shown()}.{reason}{meaning}") from None

    def _tell_fixed(self, key, given):
        fixed = self.fixed[key]
        if given.file.startswith("--"):
            raise ConfigError(f"{given.place}: the script sets {key} itself, to {fixed!r}, so it cannot be set here.")
        if self._value(self.known[key], given) != fixed:
            warn(f"{given.place}: the script sets {key} itself, to {fixed!r}, so {given.shown()} has no effect.")

    def _unknown(self, name, written, on_command_line=False):
        """What to say of a name that does not exist, with the nearest one that does."""
        dash = "--" if on_command_line else ""
        last = name.split(".")[-1]
        if f"{SET}.{name}" in self.known:
            where = f"--{SET}.{name}" if on_command_line else f"it below `{SET}:`"
            return f"{name} is an attribute of the trainer. Write {where}."
        if name.startswith(f"{SET}.") and last in self.known:
            where = f"--{last}" if on_command_line else f"it at the left margin, and not below `{SET}:`"
            return f"{last} is an argument of {self.kind.__name__}. Write {where}."
        possible = [key for key, setting in self.known.items() if not setting.refusal]
        own = [key for key in possible if not key.startswith(f"{SET}.")]
        close = _nearest(name, [key for key in possible if key.rpartition(".")[0] == name.rpartition(".")[0]]) or _nearest(
            last, possible)
        text = f"{written} is no setting of {self.kind.__name__}."
        if inside := [key for key in possible if key.startswith(f"{name}.")]:
            return f"{written} is a section, and its settings are {', '.join(dash + key for key in inside[:8])}."
        if close:
            text += f" Did you mean {dash}{close[0]}?"
        listed = ", ".join(own[:40]) + (", …" if len(own) > 40 else "") if own else "none"
        return f"{text} Its arguments are: {listed}. Attributes of the trainer stand below `{SET}`; --help lists all."

    def require_all(self) -> None:
        """
        Raises:
            ConfigError: an argument without a default was not given.
        """
        missing = [key for key, setting in self.known.items() if not setting.is_attribute and key not in self.values]
        if missing:
            first = self.known[missing[0]]
            raise ConfigError(
                f"{self.kind.__name__} needs {', '.join(missing)}. Set {first.key} in the file or with --{first.key} "
                f"({first.accepted}). An object comes from the script: configure({self.kind.__name__}, {first.key}=…).")

    # --- building -----------------------------------------------------------------------------------------------------

    def build(self) -> Any:
        """The trainer, with its attributes set and the settings ready to be stored."""
        try:
            arguments = arguments_from(self.kind, self.values, self.objects)
        except ValueError as error:  # a dataclass looks at its fields
            raise ConfigError(str(error)) from None
        seed = self.values.get(_SEED, self.values.get("seed"))
        seed_of_weights = None if is_seed_asked_for() else seed_everything(seed if isinstance(seed, int) else None)
        trainer = self.kind(**arguments, **self.objects)
        draws_seed = trainer.seed is None
        if seed_of_weights is not None:
            seed_of_run(seed_of_weights)  # no later trainer takes it
            trainer.seed = seed_of_weights if draws_seed else trainer.seed
        for key, value in self.values.items():
            if self.known[key].is_attribute:
                setattr(trainer, key.removeprefix(f"{SET}."), value)
        trainer.run_options = {key: self._written(key) for key in self.values
                               if key in self.given or key in self.fixed or not self.known[key].is_attribute}
        if isinstance(trainer.callbacks, (list, tuple, type(None))):  # else check_init says what is wrong
            trainer.callbacks = [*(trainer.callbacks or ()), StoredSettings(self, draws_seed)]
        return trainer

    def _written(self, key):
        """A value as plain data: an object as its class_path."""
        if key in self.given and key not in self.fixed and not is_plain(self.known[key].hint):
            return to_type(self.given[key], Any)
        return self.values[key]

    # --- showing ------------------------------------------------------------------------------------------------------

    def help(self) -> str:
        """All settings with what they accept, their defaults and meanings."""
        lines = [f"usage: {Path(sys.argv[0]).name} [--config FILE.yml] [--name value …] [--print-config]", "",
                 "  --config FILE.yml   settings from a file; of several, the later counts", "  --print-config      print "
                 "all settings as a file with comments"]
        group = None
        for setting in self._settable():
            if setting.group != group:
                group = setting.group
                lines += ["", f"{_title(group)}:"]
            default = "" if setting.default is MISSING else f", default {_shown_default(setting.default)}"
            text = f"{setting.accepted}{default}. {setting.meaning}".strip()
            lines += textwrap.wrap(text, _WIDTH, initial_indent=f"  --{setting.key}  ", subsequent_indent="        ")
        return "\n".join(lines)

    def text(self, trainer: Any = None, seed: int | None = None) -> str:
        """All settings as a file that is read back to the same ones. What was not set in ``set`` stands there as a comment.

        Args:
            trainer: whose attributes are shown there; None: the defaults of ``TemplateModel``.
            seed: of the run.
        """
        script = Path(sys.argv[0]).name
        lines = [f"# Settings of {self.kind.__name__}, read by: python {script} --config <this file>",
                 "# A line that begins with # shows what counts if nothing else is set: remove the # to set it."]
        lines += [f"# {name}: given by the script" for name in self.objects]
        values = dict(self.values) if seed is None else {**self.values, _SEED: seed}
        if trainer is not None:
            values = {key: value for key, value in values.items() if key.split(".")[-1] not in _NOT_STORED}
        group: str | None = None
        section: tuple[str, ...] = ()
        for setting in self._settable():
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
            lines.append(indent + self._line(setting, name, values, trainer))
        return "\n".join(lines) + "\n"

    def _line(self, setting, name, values, trainer):
        if setting.key in values:
            value = self._written(setting.key) if setting.key in self.values else values[setting.key]
            if _is_plain_value(value):
                return f"{name}: {as_yaml(value)}"
            return f"# {name}: {getattr(value, '__name__', type(value).__name__)}"
        is_effective = trainer is not None and setting.is_attribute
        value = getattr(trainer, name, setting.default) if is_effective else setting.default
        if value is MISSING:
            return f"# {name}:"
        return f"# {name}: {as_yaml(value) if _is_plain_value(value) else type(value).__name__}"

    def _settable(self) -> Iterator[Setting]:
        return (setting for setting in self.known.values() if not setting.refusal)


class StoredSettings(Callback):
    """Writes the settings of the run into its folder, and says what is different where a run goes on."""

    def __init__(self, settings: Settings, draws_seed: bool) -> None:
        self.settings = settings
        self.draws_seed = draws_seed  # the class sets no seed of its own

    def on_run_start(self, model: TemplateModel) -> None:
        if not model.is_main:
            return
        path = Path(model.ckpt_dir) / CONFIG_FILE
        is_seed_of_run = self.draws_seed or _SEED in self.settings.values
        text = self.settings.text(model, model.seed if is_seed_of_run else None)
        if path.exists() and (model.global_step or model.epochs_done or model.batches_done):
            for line in _differences(path, text):
                print(f"  resume: {line}")
        with told_when_it_fails(path):
            replace_file(path, text)


def _differences(path, text):
    """What a run that goes on does otherwise than before."""
    try:
        before = _flat(merged_files(path))
    except ConfigError as error:
        return [f"the settings that it was started with cannot be read: {error}"]
    parsed = parse_value(text, CONFIG_FILE)
    now = _flat(parsed.value if parsed is not None else {})
    names = [name for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)]
    lines = [f"{name} was {_shown_default(before.get(name))} and is {_shown_default(now.get(name))} now" for name in names]
    if lines:
        lines.append("what a checkpoint holds (weights, learning rates, momentum, seed) comes from the checkpoint; all else "
                     "counts from here on")
    return lines


def merged_files(path: str | Path) -> dict[str, Given]:
    """The names and values of a file, and of those it includes."""
    found: dict[str, Given] = {}
    for tree in read_yaml(path):
        found |= tree
    return found


def _flat(tree, prefix=""):
    found = {}
    for name, given in tree.items():
        if isinstance(given.value, dict) and given.value:
            found |= _flat(given.value, f"{prefix}{name}.")
        elif given.value != "":
            found[prefix + name] = to_type(given, Any)
    return found


def _joined(before, rest, given):
    """The later value in the place of the earlier one; a name with dots changes one entry of it."""
    if not rest:
        is_same_class = (before is not None and isinstance(before.value, dict) and isinstance(given.value, dict)
                         and "class_path" in before.value and set(given.value) == {"init_args"})
        if not is_same_class:
            return given
        inner = {**getattr(before.value.get("init_args"), "value", {}), **given.value["init_args"].value}
        return Given({**before.value, "init_args": Given(inner, given.file, given.line)}, given.file, given.line)
    inner = dict(before.value) if before is not None and isinstance(before.value, dict) else {}
    inner[rest[0]] = _joined(inner.get(rest[0]), rest[1:], given)
    return Given(inner, given.file, given.line)


def _by_jsonargparse(setting, given, value):
    """A value of any other type, by jsonargparse: objects of a class, paths, enumerations, …"""
    try:
        from jsonargparse import ArgumentParser  # type: ignore  # optional
    except ImportError:
        raise ModuleNotFoundError(f"{setting.key} is made by jsonargparse: pip install jsonargparse pyyaml") from None
    from argparse import ArgumentError
    if any(isinstance(kind, type) and issubclass(kind, (nn.Module, Callback)) for kind in _kinds(setting.hint)):
        value = _with_whole_paths(value, given)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=setting.hint)
    try:
        return parser.instantiate(parser.parse_object({"value": value})).value
    except (ArgumentError, ValueError, TypeError) as error:
        raise Mismatch(given, _reason(error)) from None


def _kinds(hint):
    """The types in a type: Callback in list[Callback] | None."""
    for part in parts_of(hint):
        yield part
        yield from (kind for argument in get_args(part) for kind in _kinds(argument))


def _reason(error):
    """What jsonargparse says, without its frame of types and values."""
    frame = ("Parser key", "Does not validate", "Subtypes", "Errors", "Given value")
    lines = [line.strip(" -").rstrip(".:") for line in str(error).splitlines() if "NoneType" not in line]
    return " ".join(f"{line}." for line in lines if line and not line.startswith(frame))


def _with_whole_paths(value, given):
    """A class may go by the name alone where this package or torch.nn has it: EarlyStopping, CrossEntropyLoss."""
    if isinstance(value, list):
        return [_with_whole_paths(part, one) for part, one in zip(value, given.value)]
    if isinstance(value, str):
        whole = _whole_path(value, given)
        return value if whole == value else {"class_path": whole}
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        return {**value, "class_path": _whole_path(value["class_path"], given.value["class_path"])}
    return value


def _whole_path(name, given):
    if not (name.isidentifier() and name[0].isupper()):
        return name
    package = sys.modules[__package__.rpartition(".")[0]]
    for home in (package, nn):
        if isinstance(found := getattr(home, name, None), type):
            return f"{found.__module__}.{found.__qualname__}"
    close = difflib.get_close_matches(name, [*dir(package), *dir(nn)], n=1)
    raise Mismatch(given, f"Neither {package.__name__} nor torch.nn has a class {name}."
                   f"{f' Did you mean {close[0]}?' if close else ''} A class from elsewhere is written with its module: "
                   "my_package.my_module.MyClass.")


def _is_plain_value(value):
    if isinstance(value, Mapping):
        return all(isinstance(name, (str, int, float)) and _is_plain_value(part) for name, part in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain_value, value))
    return value is None or isinstance(value, (bool, int, float, str, enum.Enum, Path))


def _nearest(name, keys):
    """The key that looks most like a name, as a list; an empty one where none does."""
    plain = {_plain(key.split(".")[-1]): key for key in reversed(keys)}
    return [plain[match] for match in difflib.get_close_matches(_plain(name.split(".")[-1]), plain, n=1)]


def _plain(name):
    return name.replace("_", "").replace("-", "").lower()


def _title(group):
    return group[0].upper() + group[1:]


def _shown_default(value):
    return as_yaml(value) if _is_plain_value(value) else type(value).__name__
