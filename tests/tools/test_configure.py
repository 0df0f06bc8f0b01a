"""Settings from YAML and the command line: what is set, what is refused and how, what is stored and repeated."""

import dataclasses
import enum
import re
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import Tiny, tiny_model, weights
from torch import nn

from template import EMA, EarlyStopping, seed_everything
from template.data.seeding import is_seed_asked_for
from template.run.configuration.shown_settings import as_file
from template.run.configuration.typed_values import is_plain, parts_of
from template.run.configuration.written_settings import Settings
from template.run.configuration.yaml_files import ConfigError
from template.tools.configure import configure
from template.tools.kfold import kfold
from template.tools.search import search


@dataclasses.dataclass
class Weights:
    recon: float = 10.0
    """Weight of the reconstruction."""
    vq: float | None = None


THREE = Weights(3.0)


class Color(enum.Enum):
    RED = 1
    GREEN = "no"


class Configured(Tiny):
    """A trainer with one argument of each kind.

    Args:
        lr: learning rate
        optimizer: which optimizer: SGD or
            another one
        name: of nothing
    """

    def __init__(self, lr: float = 0.1, optimizer: Literal["SGD", "Adam"] = "SGD", weights: Weights = THREE,
                 widths: list[int] | None = None, name: str = "a", flag: bool = False, compile_mode: str | bool = False,
                 color: Color = Color.RED, path: Path | None = None, act: nn.Module = None,  # type: ignore[assignment]
                 either: int | str = 1, limit: int | float | None = None, pair: tuple[int, float] = (1, 0.5)):
        torch_model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
        super().__init__(torch_model)
        self.optimizer_list = [getattr(torch.optim, optimizer)(torch_model.parameters(), lr)]
        self.arguments = {name: value for name, value in locals().items() if name != "self"}
        self.seed = self.writer = None
        self.total_epochs = 2


def write(text, name="a.yml"):
    Path(name).write_text(text, encoding="utf-8")
    return name


def configured(text="", *argv, kind=Configured):
    return configure(kind, ["--config", write(text), *argv])


def refused(capsys, text="", *argv, kind=Configured):
    """What is said of it, on one line."""
    with pytest.raises(SystemExit) as left:
        configured(text, *argv, kind=kind)
    assert left.value.code == 2
    return capsys.readouterr().err


# --- what is set ----------------------------------------------------------------------------------------------------


def test_arguments_and_attributes_come_from_the_file_and_the_command_line_counts_before_it():
    trainer = configured("lr: 0.5\nwidths: [1, 2]\nweights:\n  vq: 2\nset:\n  amp: bf16\n  log_per_step: 7\n",
                         "--lr", "1e-3", "--set.log-per-step=9", "--weights.recon", "4", "--set.clip_grad", "{norm: 2}")
    assert trainer.arguments["lr"] == 1e-3 and trainer.arguments["widths"] == [1, 2]
    assert trainer.arguments["weights"] == Weights(4.0, 2.0)
    assert (trainer.amp, trainer.log_per_step, trainer.clip_grad) == ("bf16", 9, {"norm": 2})
    assert trainer.total_epochs == 2  # as __init__ sets it, and nobody else


def test_the_command_line_counts_before_a_file_that_is_named_behind_it():
    write("lr: 0.5")
    assert configure(Configured, ["--lr", "0.2", "--config", "a.yml"]).arguments["lr"] == 0.2


def test_of_several_files_the_later_counts_and_what_the_script_gives_before_all():
    write("lr: 0.5\nname: x", "a.yml"), write("lr: 0.6\nflag: yes", "b.yml")
    with pytest.warns(UserWarning, match="a.yml, line 2: the script sets name itself, to 'z'"):
        trainer = configure(Configured, ["--config", "a.yml", "--config=b.yml"], name="z", set={"total_epochs": 5})
    assert [trainer.arguments[name] for name in ("lr", "name", "flag")] == [0.6, "z", True] and trainer.total_epochs == 5


def test_a_script_names_a_file_to_read_where_the_command_line_names_none():
    write("lr: 0.5", "a.yml"), write("lr: 0.6", "b.yml")
    assert configure(Configured, [], config="a.yml").arguments["lr"] == 0.5
    assert configure(Configured, ["--config", "b.yml"], config="a.yml").arguments["lr"] == 0.6


def test_a_file_includes_others_from_its_own_folder_and_says_the_last_word():
    Path("base").mkdir()
    write("include: more/first.yml\nlr: 0.2\nset: {amp: bf16, clip_grad: {norm: 1}}", "base/base.yml")
    Path("base/more").mkdir()
    write("lr: 0.1\nname: first\nset: {log_per_step: 3}", "base/more/first.yml")
    write("flag: true\nname: second", "second.yml")
    trainer = configured("include: [base/base.yml, second.yml]\nset:\n  clip_grad: {value: 0.5}\n")
    assert [trainer.arguments[name] for name in ("lr", "name", "flag")] == [0.2, "second", True]
    assert (trainer.amp, trainer.log_per_step) == ("bf16", 3)
    assert trainer.clip_grad == {"value": 0.5}  # a dict is one value: the later one, and not both


def test_anchors_and_merge_keys_are_understood_as_yaml_has_them():
    trainer = configured("weights: &w {recon: 1}\nset:\n  parallel_options: {<<: *w, a: 2}")
    assert trainer.arguments["weights"].recon == 1.0 and trainer.parallel_options == {"recon": 1, "a": 2}


def test_the_only_argument_being_a_dataclass_its_fields_stand_at_the_top():
    class Flat(Tiny):
        def __init__(self, options: Weights):
            super().__init__()
            self.options = options

    assert configured("recon: 5", "--vq", "1", kind=Flat).options == Weights(5.0, 1.0)


def test_arguments_behind_two_stars_are_those_of_the_next_class():
    class Child(Configured):
        def __init__(self, extra: int = 1, **others):
            super().__init__(**others)
            self.extra = extra

    trainer = configured("extra: 3\nlr: 0.3", kind=Child)
    assert (trainer.extra, trainer.arguments["lr"]) == (3, 0.3)


def test_callbacks_and_criterion_are_objects_by_the_names_of_their_classes():
    trainer = configured("set:\n  callbacks: [EMA, {class_path: EarlyStopping, init_args: {patience: 3}}]\n"
                         "  criterion: {class_path: torch.nn.CrossEntropyLoss}",
                         "--set.criterion.init_args.label_smoothing", "0.25")
    ema, stopping, _ = trainer.callbacks
    assert isinstance(ema, EMA) and isinstance(stopping, EarlyStopping) and stopping.patience == 3
    assert trainer.criterion.label_smoothing == 0.25


def test_objects_come_from_the_script():
    class Given(Tiny):
        def __init__(self, model, lr: float = 0.1):
            super().__init__(model)
            self.lr = lr

    model = tiny_model()
    trainer = configure(Given, ["--lr", "0.2"], model=model)
    assert trainer.model_list == [model] and trainer.lr == 0.2


# --- the traps of YAML, and those that users of jsonargparse have met -----------------------------------------------


@pytest.mark.parametrize("line, name, value", [
    ("lr: 1e-3", "lr", 1e-3),              # a text in YAML 1.1
    ("lr: '1e-3'", "lr", 1e-3),            # in quotes, where a number is wanted
    ("lr: 1", "lr", 1.0),
    ("lr: .5", "lr", 0.5),
    ("lr: 1_000", "lr", 1000.0),
    ("lr: .inf", "lr", float("inf")),
    ("limit: 1", "limit", 1),
    ("limit: 1.0", "limit", 1.0),          # a share, not a number of batches
    ("limit: None", "limit", None),        # the text "None" in YAML
    ("limit: ~", "limit", None),
    ("limit:", "limit", None),
    ("name: no", "name", "no"),            # False in YAML 1.1
    ("name: 007", "name", "007"),          # 7 in YAML 1.1
    ("name: 1:30", "name", "1:30"),        # 90 in YAML 1.1
    ("name: 2024-01-01", "name", "2024-01-01"),
    ("name: 1e3", "name", "1e3"),
    ("name: ''", "name", ""),
    ("name: 'None'", "name", "None"),
    ("name: Größe 模型", "name", "Größe 模型"),
    ("flag: on", "flag", True),
    ("flag: No", "flag", False),
    ("compile_mode: true", "compile_mode", True),  # with str before bool in the union
    ("compile_mode: reduce-overhead", "compile_mode", "reduce-overhead"),
    ("either: 1", "either", 1),
    ("either: '1'", "either", "1"),        # quotes make a text
    ("widths: [1, 1e1]", "widths", [1, 10]),
    ("pair: [2, 3]", "pair", (2, 3.0)),
    ("color: GREEN", "color", Color.GREEN),
    ("path: Data", "path", Path("Data")),
    ("act: null", "act", None),            # a default of None, where the type does not say so
    ("\ufefflr: 2", "lr", 2.0),            # a mark that editors on Windows write
])
def test_a_value_is_what_people_mean_by_it(line, name, value):
    found = configured(line).arguments[name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("option, value", [("no", False), ("TRUE", True)])
def test_a_flag_may_stand_alone_or_with_a_word(option, value):
    assert configured("", "--flag").arguments["flag"] is True
    assert configured("flag: true", "--no-flag").arguments["flag"] is False
    assert configured("", "--flag", option).arguments["flag"] is value


@pytest.mark.parametrize("word, value", [("", ""), ("[INST] a: b # c", "[INST] a: b # c"), ("-1", "-1"), ("'x'", "x")])
def test_a_text_on_the_command_line_needs_no_quotes_of_yaml(word, value):
    assert configured("", "--name", word).arguments["name"] == value


@pytest.mark.parametrize("text, said", [
    ("name: a\nlrr: 3", r"a.yml, line 2: lrr is no setting of Configured. Did you mean lr\?"),
    ("set:\n  log_per_steps: 3", r"a.yml, line 2: .* Did you mean set.log_per_step\?"),
    ("weights: {recn: 3}", r"a.yml, line 1: .* Did you mean weights.recon\?"),
    ("optimiser: SGD", r"Did you mean optimizer\?"),
    ("amp: bf16", r"a.yml, line 1: amp is no setting of Configured. Did you mean set.amp\?"),
    ("set: {lr: 3}", r"lr is no setting of Configured. Did you mean lr\?"),
    ("set:\n  epoch: 3", "line 2: epoch is counted by the trainer itself"),
    ("set: {model_list: [a]}", "model_list holds objects, which __init__ builds"),
    ("optimizer: sgd", r"optimizer must be one of SGD, Adam, got 'sgd'. Did you mean SGD\? It is: which optimizer: SGD"),
    ("lr: fast", "a.yml, line 1: lr must be a number, got 'fast'. It is: learning rate"),
    ("color: green", r"color must be one of RED, GREEN, got 'green'. Did you mean GREEN\?"),
    ("act: ReLUU", r"act must be an object of the class Module or null, .*Did you mean ReLU\?"),
    ("lr: 010", "A number does not begin with a zero: write 10"),
    ("lr: yes", "lr must be a number, got 'yes'"),
    ("lr: None", "lr must be a number, got 'None'"),
    ("lr: [1]", r"lr must be a number, got \['1'\]"),
    ("set: {total_epochs: 1.5}", "a whole number or null, got '1.5'"),
    ("name: None", "Write 'None' in quotes"),
    ("flag: 1", "flag must be true or false, got '1'"),
    ("flag: maybe", "flag must be true or false"),
    ("widths:\n- 1\n- x", "a.yml, line 3: widths must be a list of items that are a whole number or null, got 'x'"),
    ("pair: [1]", "It needs 2 entries"),
    ("weights: 3", "weights is a section, with names and values below it, got '3'"),
    ("lr: 1\nname: x\nlr: 2", r"a.yml, line 3: lr stands twice, here with '2' and before \(a.yml, line 1\) with '1'"),
    ("set: {amp: bf16}\nset.amp: fp16", "stands twice"),
    ("set:\n\tamp: bf16", "a.yml, line 2: this is no valid YAML.* Replace the tab"),
    ("lr: 1\n---\nlr: 2", "Remove the line with ---"),
    ("weights: {recon:3}", "a blank stands behind the colon"),
    ("- lr", "has a name and a value in each line"),
    ("name: ${oc.env:HOME}", r"\$\{…\} is not filled in here"),
    ("name: !env HOME", "settings have no tags"),
    ("name: !!python/name:os.system", "settings have no tags"),
    ("set: &a\n  parallel_options: *a", "must not hold itself"),
    ("set: {criterion: CrossEntropyLos}", r"Did you mean CrossEntropyLoss\?"),
    ("set: {callbacks: [{class_path: EarlyStopping, init_args: {patience: 0}}]}", "patience must be a whole number"),
    ("include: b.yml", r"a.yml, line 1: There is no file b.yml. Did you mean a.yml\?"),
    ("include: a.yml", "must not include each other in a circle, and these do: a.yml -> a.yml"),
])
def test_what_does_not_fit_is_told_with_its_place_the_value_and_what_to_do(text, said, capsys):
    message = refused(capsys, text)
    assert re.search(said, message), message


@pytest.mark.parametrize("words, said", [
    (["--lrr", "3"], r"--lrr is no setting of Configured. Did you mean --lr\?"),
    (["--amp", "bf16"], r"Did you mean --set.amp\?"),
    (["a.yml"], "Write --config a.yml"),
    (["--lr"], "--lr needs a value: a number"),
    (["--lr", "--flag"], "--lr needs a value"),
    (["--lr", "x"], "--lr: lr must be a number, got 'x'"),
    (["--weights", "3"], "--weights is a section, and its settings are --weights.recon, --weights.vq"),
    (["--config"], "--config needs the path"),
])
def test_so_is_what_does_not_fit_on_the_command_line(words, said, capsys):
    message = refused(capsys, "", *words)
    assert re.search(said, message), message


def test_a_file_in_another_encoding_is_refused_with_its_line(capsys):
    Path("b.yml").write_bytes("lr: 1\nname: Größe".encode("latin-1"))
    with pytest.raises(SystemExit):
        configure(Configured, ["--config", "b.yml"])
    assert "b.yml, line 2: settings are read as UTF-8, and the byte 0xf6" in capsys.readouterr().err


def test_an_argument_without_a_default_must_come_from_somewhere(capsys):
    class Needs(Tiny):
        def __init__(self, width: int):
            super().__init__()

    assert "Needs needs width. Set width in the file or with --width (a whole number)" in refused(capsys, kind=Needs)


def test_a_reserved_name_of_an_argument_and_what_is_no_class_are_refused(capsys):
    class Reserved(Tiny):
        def __init__(self, config: str = ""):
            super().__init__()

    assert "must not have an argument 'config'" in refused(capsys, kind=Reserved)
    with pytest.raises(TypeError, match="without brackets"):
        configure(Tiny(), [])


def test_what_the_script_gives_is_not_set_on_the_command_line_and_must_exist(capsys):
    for words, own, said in ((["--lr", "1"], {"lr": 0.1}, "the script sets lr itself, to 0.1"),
                             ([], {"lrr": 0.1}, "Did you mean lr?"), ([], {"set": {"ampp": 0}}, "Did you mean set.amp?")):
        with pytest.raises(SystemExit):
            configure(Configured, words, **own)
        assert said in capsys.readouterr().err


# --- printed and stored ---------------------------------------------------------------------------------------------


def printed(capsys, *argv, kind=Configured):
    with pytest.raises(SystemExit) as left:
        configure(kind, [*argv, "--print-config"])
    assert left.value.code == 0
    return capsys.readouterr().out


def test_the_printed_file_is_complete_commented_and_is_read_back_to_the_same(capsys):
    text = printed(capsys, "--lr", "1e-5", "--set.amp", "bf16")
    for name in Settings(Configured, {}).known:
        shown = re.search(rf"^ *#? ?{name.split('.')[-1]}:", text, re.M)
        assert shown or Settings(Configured, {}).known[name].refusal, name
    assert "# learning rate (a number)\nlr: 1.0e-05\n" in text and "  # Batches per update (gradient accumulation)." in text
    assert yaml.safe_load(text)["lr"] == 1e-5 and yaml.safe_load(text)["set"] == {"amp": "bf16"}  # for any reader of YAML
    write(text, "full.yml")
    assert printed(capsys, "--config", "full.yml") == text


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit) as left:
        configure(Configured, ["--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and "--lr  a number, default 0.1. learning rate" in text
    assert "--set.amp  a text or null, default null. Mixed precision" in text and "--set.model_list" not in text


TEXTS = st.text(max_size=8) | st.sampled_from(["None", "no", "1e-3", "007", "1:30", "a: b", "#", "~", "null", "{x", "a\n b"])
NUMBERS = st.integers() | st.floats(allow_nan=False)
OF_TYPE: dict[Any, Any] = {bool: st.booleans(), int: st.integers(), float: st.floats(allow_nan=False), str: TEXTS,
                           type(None): st.none(), Any: NUMBERS | st.booleans() | st.none() | TEXTS,
                           "names": st.text("abc_", min_size=1)}


def values_of(hint):
    """A strategy for all values of a type."""
    return st.one_of([OF_TYPE[part] if part in OF_TYPE else st.dictionaries(OF_TYPE["names"], OF_TYPE[part.__args__[1]])
                      for part in parts_of(hint)])


PLAIN = {key: setting for key, setting in Settings(Configured, {}).known.items()
         if setting.is_attribute and not setting.refusal and is_plain(setting.hint)}


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_values_of_the_attributes_are_printed_and_read_back_equal(data):
    keys = data.draw(st.lists(st.sampled_from(sorted(PLAIN)), max_size=4, unique=True))
    first = Settings(Configured, {"set": {key.removeprefix("set."): data.draw(values_of(PLAIN[key].hint)) for key in keys}})
    second = Settings(Configured, {})
    second.read(["--config", write(as_file(first))])
    assert repr(second.values) == repr({key: first.values[key] for key in second.values})
    assert first.values.keys() == second.values.keys() and as_file(second) == as_file(first)


def trained(*argv, epochs=2):
    trainer = configure(Configured, argv)
    trainer.check_init(use_tb=False)
    trainer.fit(epochs)
    return trainer


def test_a_run_stores_its_settings_and_they_repeat_it_to_the_same_bits(capsys):
    write("lr: 0.2\nset:\n  ckpt_dir: check_point/first\n  amp: bf16")
    first = trained("--config", "a.yml")
    stored = Path("check_point/first/config.yaml")
    assert yaml.safe_load(stored.read_text())["set"] == {"ckpt_dir": "check_point/first", "amp": "bf16", "seed": first.seed}
    assert "# total_epochs: 2" in stored.read_text()  # what __init__ set
    seed_everything(99), torch.rand(3)
    configure(Tiny, ["--set.seed", "5"]).check_init(use_tb=False)  # which takes that seed
    again = trained("--config", str(stored), "--set.ckpt_dir", "check_point/again")
    assert again.seed == first.seed and torch.equal(weights(again), weights(first))


def test_a_seed_that_the_script_asked_for_and_one_of_the_class_stay(capsys):
    def first_weight():
        return float(configure(Configured, []).model_list[0][0].weight.detach().sum())

    seed_everything(7)
    torch.manual_seed(7)
    expected = float(nn.Linear(6, 4).weight.detach().sum())
    torch.manual_seed(7)
    assert first_weight() == expected

    class Seeded(Tiny):
        def __init__(self, seed: int = 4):
            super().__init__(nn.Linear(6, 3))
            self.seed = seed

    Tiny().check_init(use_tb=False)
    trainer = configure(Seeded, ["--seed", "8"])
    torch.manual_seed(8)
    assert trainer.seed == 8 and torch.equal(trainer.model_list[0].weight, nn.Linear(6, 3).weight)


def test_a_run_that_goes_on_with_other_settings_says_which(capsys):
    trained("--set.ckpt_dir", "check_point/a", "--set.seed", "1", epochs=1)
    capsys.readouterr()
    trainer = configure(Configured, ["--set.ckpt_dir", "check_point/a", "--set.seed=1", "--lr=0.5", "--set.log_per_step=2"])
    trainer.check_init(use_tb=False)
    trainer.load_state("auto")
    trainer.fit(2)
    said = capsys.readouterr().out
    assert "resume: lr was 0.1 and is 0.5 now" in said and "resume: set.log_per_step was null and is 2 now" in said
    assert "learning rates, momentum, seed) comes from the checkpoint" in said
    assert "lr: 0.5" in Path("check_point/a/config.yaml").read_text() and not Path("check_point/a_2/config.yaml").exists()


def test_a_run_that_fails_on_its_first_batch_leaves_no_folder():
    trainer = configure(Configured, ["--set.ckpt_dir", "check_point/a"])
    trainer.check_init(use_tb=False)
    trainer.model_list[0][0].forward = None
    with pytest.raises(TypeError):
        trainer.fit(1)
    assert not Path("check_point/a").exists()


def test_the_settings_are_the_options_of_the_run_with_those_of_check_init(capsys):
    trainer = configure(Configured, ["--lr", "0.3", "--set.log_per_step", "2"])
    trainer.check_init(arg={"note": "x"}, use_tb=False)
    assert trainer.run_options["lr"] == 0.3 and trainer.run_options["set.log_per_step"] == 2
    assert trainer.run_options["note"] == "x" and "  lr: 0.3" in capsys.readouterr().out


# --- with the tools that make trainers ------------------------------------------------------------------------------


def test_a_search_and_a_cross_validation_configure_each_of_their_trainers():
    write("optimizer: Adam\nset: {ckpt_dir: check_point/x}")
    found = search(lambda params: configure(Configured, ["--config", "a.yml"], **params), {"lr": [0.01, 0.1]}, epochs=1,
                   metric="tol_loss", ckpt_dir="check_point/search")
    assert [row["lr"] for row in found.rows] == [0.01, 0.1]
    assert yaml.safe_load(Path("check_point/search/trial1/config.yaml").read_text())["lr"] == 0.1

    class Fold(Configured):
        def __init__(self, train_set, eval_set, **others):
            super().__init__(**others)
            self.train_loader = torch.utils.data.DataLoader(train_set, 10, shuffle=True)
            self.eval_loader = torch.utils.data.DataLoader(eval_set, 10)

    dataset = Tiny().train_loader.dataset
    def make(train_set, eval_set):
        return configure(Fold, ["--config", "a.yml"], train_set=train_set, eval_set=eval_set)

    result = kfold(make, dataset, k=2, epochs=1, ckpt_dir="check_point/folds")
    text = Path("check_point/folds/fold2/config.yaml").read_text()
    assert len(result.rows) == 2 and "# train_set: given by the script" in text and "optimizer: Adam" in text


def test_config_error_is_a_value_error():
    assert issubclass(ConfigError, ValueError)


def test_a_trainer_that_cannot_be_built_leaves_its_seed_to_no_other(own_folder):
    class Fails(Configured):
        def __init__(self):
            raise OSError("no data")

    with pytest.raises(OSError, match="no data"):
        configure(Fails, ["--set.seed", "5"])
    assert not is_seed_asked_for()
