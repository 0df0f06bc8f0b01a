"""The scripts of ``examples/``: each runs in a small setting and beats a trivial answer, and the README names them all."""

import ast
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pydoc_data.topics import topics

import pytest
import torch
from fork_server import start_python
from ranks import torchrun
from tiny import ROOT, run_python

from examples import __main__ as runner

# (keyword arguments of main(), a floor for them): one to three seconds each. What is left out has tests of its own.
SMALL = {
    "basics/char_language_model": ({"updates": 50, "width": 64}, 20.0),
    "basics/gan": ({"epochs": 20, "judge_epochs": 4, "width": 64}, 2.2),
    "basics/regression": ({"epochs": 25}, 0.4),
    "basics/unet": ({"epochs": 6, "count": 200, "size": 32}, 0.38),
    "beyond/distillation": ({"epochs": 15}, 0.85),
    "beyond/kfold": ({"k": 3, "epochs": 8}, 0.9),
    "beyond/sam_and_lbfgs": ({"epochs": 15, "width": 64}, 0.75),
    "beyond/search": ({"trials": 3, "epochs": 4}, 0.8),
    "beyond/wgan_gp": ({"epochs": 20, "judge_epochs": 4, "eval_every": 20}, 2.0),
    "features/accumulation": ({"epochs": 2}, 0.7),
    "features/accumulators": ({"epochs": 2}, 0.7),
    "features/basic": ({"epochs": 3}, 0.8),
    "features/checkpoints": ({"epochs": 4}, 0.8),
    "features/dicts": ({"epochs": 2}, 0.7),
    "features/hyper_parameters": ({"epochs": 2}, 0.7),
    "features/interpretation": ({"epochs": 5}, 0.8),
    "features/learning_rate": ({"epochs": 3}, 0.8),
    "features/metrics": ({"epochs": 3}, 0.8),
    "features/own_accumulator": ({"epochs": 3}, 0.8),
    "features/own_callback": ({"epochs": 3}, 0.8),
    "features/own_steps": ({"epochs": 3}, 0.7),
    "features/parameters": ({"epochs": 4}, 0.8),
    "features/schedules": ({"epochs": 3}, 0.7),
    "features/several_loaders": ({"epochs": 6}, 0.5),
    "features/several_optimizers": ({"epochs": 3}, 0.8),
    "features/several_processes": ({"epochs": 2, "processes": 1}, 0.8),
    "features/weights_and_gradients": ({"epochs": 3}, 0.8),
    "features/write_logs": ({"epochs": 3}, 0.8),
    "graphs/gcn_karate": ({"epochs": 30}, 0.85),
    "graphs/multimodal_graph": ({"epochs": 3, "count": 80}, 0.5),
    "reinforcement/dqn": ({"updates": 800}, 60),
    "reinforcement/q_learning": ({"steps": 50_000, "episodes": 200}, 0.5),
    "series/lstm_tbptt": ({"epochs": 5, "meters": 16}, 0.37),
    "tabular/deepfm": ({"rows": 10_000, "epochs": 8}, 0.6),
    "vision/contrastive": ({"epochs": 10, "width": 12}, 0.845),
    "vision/crnn_ctc": ({"characters": "012", "count": 400, "height": 16, "epochs": 10, "width": 8}, 0.5),
    "vision/diffusion": ({"epochs": 4, "width": 64, "eval_every": 4, "judge_epochs": 2}, 1.8),
    "vision/resnet": ({"epochs": 3, "width": 8}, 0.4),
    "vision/ssd": ({"epochs": 6, "count": 200, "width": 8}, 0.15),
}
LONGER = {  # than a second or two
    "basics/gan", "basics/unet",
    "beyond/distillation", "beyond/kfold", "beyond/sam_and_lbfgs", "beyond/search", "beyond/wgan_gp",
    "features/hyper_parameters", "features/interpretation", "features/metrics", "features/schedules",
    "reinforcement/dqn",
    "series/lstm_tbptt",
    "tabular/deepfm",
    "vision/contrastive", "vision/crnn_ctc", "vision/diffusion", "vision/resnet", "vision/ssd",
}
ELSEWHERE = {
    "basics/fine_tuning": "test_fine_tuning_does_better_than_training_from_scratch_and_than_guessing, below",
    "classification/train_cls": "tests/scenarios/test_classification.py",
    "image_generation/train_imgen": "tests/examples/test_image_generation.py",
    "language": "tests/examples/test_language.py",
    "styles": "tests/tools/test_lightning.py",
    "vision_libraries": "make examples-vision, in an environment of its own; what can be tested without it is below",
}
SCRIPTS = {runner.name_of(script): script for script in runner.scripts()}
README = ROOT / "examples/README.md"


def printed_by(name, capsys, **settings):
    """``(all that it printed, the figure of its last line)``."""
    runpy.run_path(str(SCRIPTS[name]))["main"](**settings)
    printed = capsys.readouterr().out
    return printed, runner.Figure.of(printed)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONGER)) for name in SMALL])
def test_in_a_small_setting_it_learns_and_beats_a_trivial_answer(name, capsys):
    settings, floor = SMALL[name]
    printed, figure = printed_by(name, capsys, **settings)
    assert figure is not None, f"the last line is {printed.strip().splitlines()[-1]!r}"
    assert figure.is_better(floor) and figure.is_better(figure.baseline_value), printed.splitlines()[-1]
    trivial = replace(figure, value=figure.baseline_value)
    assert not trivial.is_better(floor) and not trivial.is_good, "a trivial answer reaches the floor too"


@pytest.mark.slow
def test_fine_tuning_does_better_than_training_from_scratch_and_than_guessing(capsys):
    printed, figure = printed_by("basics/fine_tuning", capsys, seeds=1, pretrain_epochs=3, epochs=7)
    tuned, scratch = map(float, re.search(r"fine-tuned (\S+), from scratch (\S+)$", printed, re.M).groups())
    assert figure.value == tuned > 0.7 and tuned > scratch > figure.baseline_value and 0.2 <= figure.baseline_value < 0.21


OF_LIBRARIES = [name for name in SCRIPTS if name.startswith("vision_libraries/")]


@pytest.mark.parametrize("name", [*OF_LIBRARIES, "vision_libraries/instances"])
def test_what_a_script_for_other_libraries_takes_from_here_exists(name):
    tree = ast.parse((README.parent / f"{name}.py").read_text(encoding="utf-8"))
    taken = [(node.module, part.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for part in node.names
             if node.module.split(".")[0] in ("examples", "template")]
    assert taken
    for module, part in taken:
        assert (README.parents[1] / module.replace(".", "/") / f"{part}.py").exists() or hasattr(import_module(module), part)


def test_the_scripts_for_other_libraries_are_run_by_name_alone():
    assert set(map(runner.name_of, runner.chosen([]))) == SCRIPTS.keys() - set(OF_LIBRARIES)
    assert list(map(runner.name_of, runner.chosen(["vision_libraries"]))) == OF_LIBRARIES and OF_LIBRARIES


def test_every_script_is_tested_here_or_elsewhere():
    missing = [name for name in SCRIPTS if not {name, name.split("/")[0]} & (SMALL.keys() | ELSEWHERE.keys())]
    assert not missing and not SMALL.keys() - SCRIPTS.keys()


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_is_short_and_says_how_to_run_it(name):
    text = SCRIPTS[name].read_text(encoding="utf-8")
    assert SCRIPTS[name].stem not in sys.stdlib_module_names, "in its folder, Python would import it in place of its own"
    most = 150 if name == "reinforcement/dqn" else 135  # whose loader is an environment
    assert len(text.splitlines()) <= most and f"python examples/{name}.py" in text.split('"""')[1]
    if name.split("/")[0] not in ("classification", "image_generation", "styles"):
        assert text.count("\n# %% ") >= 3 and "\n    run_main(main" in text and "resume: str | None = None" in text


def test_the_table_names_every_script_with_its_figure_and_seconds():
    text = README.read_text(encoding="utf-8")
    rows = re.findall(r"^\| .+? \| \[(\S+?)\]\((\S+?)\) \| .+? \| .+? \| (.+?) \| (\d+) \|$", text, re.M)
    assert all(shown == linked for shown, linked, _, _ in rows)
    assert {linked for _, linked, _, _ in rows} == {f"{name}.py" for name in SCRIPTS} | {
        notebook.relative_to(README.parent).as_posix() for notebook in README.parent.rglob("*.ipynb")}
    assert all(re.search(r"\d\.?\d* \(.*-?\d.*\)$", figure) for *_, figure, _ in rows)


# --- python -m examples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line, value, is_good", [
    ("accuracy 0.983 (at least 0.97; most frequent class 0.101)", 0.983, True),
    ("accuracy 0.9 (at least 0.97; most frequent class 0.101)", 0.9, False),
    ("perplexity 4.31 (at most 5.0; unigram model 17.2)", 4.31, True),
    ("mean IoU 5.5e-1 (at least 0.5; all background -0.1)", 0.55, True),
    ("perplexity nan (at most 5.0; unigram model 17.2)", None, False),
])
def test_the_last_line_is_read(line, value, is_good):
    figure = runner.Figure.of(f"epoch 1\n{line}\n")
    assert figure.is_good is is_good and (value is None or figure.value == value)


@pytest.mark.parametrize("printed", ["", "epoch 1", "accuracy 0.98", "accuracy 0.98 (at least 0.97)",
                                     "accuracy 0.98 (at least 0.97; chance 0.1)\nbye"])
def test_another_last_line_is_no_figure(printed):
    assert runner.Figure.of(printed) is None


SAYS = '''"""One.

    python examples/one.py
"""
print("accuracy 0.98 (at least 0.97; chance 0.1)")
'''


def test_the_runner_runs_all_of_them_and_fails_at_the_end_if_one_failed_or_missed_its_floor(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    folder = tmp_path / "more"
    folder.mkdir()
    (tmp_path / "one.py").write_text(SAYS)
    (tmp_path / "helper.py").write_text("raise SystemExit('is imported alone')\n")
    assert runner.main([]) == 0 and "1 of 1 reached their floor. It took 0." in capsys.readouterr().out
    (folder / "low.py").write_text(SAYS.replace("one.py", "more/low.py").replace("0.98 ", "0.50 "))
    (folder / "bad.py").write_text(SAYS.replace("one.py", "more/bad.py") + "raise OSError('no data')\n")
    assert runner.main([]) == 1
    said = capsys.readouterr().out
    bad, low, one = [line.split() for line in said.splitlines()[1:4]]
    assert bad[:2] == ["more/bad", "failed"] and "OSError: no data" in said
    assert low[:7] == "more/low accuracy 0.5 at least 0.97: missed".split() and low[8:] == one[7:] == ["chance", "0.1"]
    assert one[:6] == "one accuracy 0.98 at least 0.97".split()
    assert {line.index("  at least") for line in said.splitlines()[2:4]} == {said.index("  floor")}, "they are no column"
    assert "1 of 3 reached their floor, and not more/bad, more/low." in said
    assert runner.main(["one"]) == 0 and runner.main(["more"]) == 1
    for words in (["two"], ["--all"]):
        with pytest.raises(SystemExit, match="There is no example 'two'. There are: more/bad|--all is no option"):
            runner.main(words)


# --- as processes -------------------------------------------------------------------------------------------------------

LANGUAGE_MODEL = SCRIPTS["basics/char_language_model"]


@pytest.fixture
def words(tmp_path):
    """Arguments of a run on a text that is read in a moment."""
    (tmp_path / "my.txt").write_text("\n\n".join(topics.values())[:60_000], encoding="utf-8")
    return ["--file", tmp_path / "my.txt", "--width", 32, "--updates", 80]


@pytest.mark.slow
def test_a_script_that_was_killed_goes_on_to_the_same_bits(tmp_path, words):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    expected = run_python(LANGUAGE_MODEL, *words, cwd=whole).stdout
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    last, deadline = killed / "check_point/char_language_model/last.pth", time.monotonic() + 120
    with start_python([LANGUAGE_MODEL, *words], cwd=killed, env=environment, stdout=subprocess.DEVNULL,
                      stderr=subprocess.DEVNULL) as process:
        while not last.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    said = run_python(LANGUAGE_MODEL, *words, "--resume", "auto", cwd=killed).stdout
    assert 0 < int(re.search(r"load model state from .* (\d+) updates", said)[1]) < 80
    assert said.splitlines()[-1] == expected.splitlines()[-1]
    ends = [torch.load(folder / "check_point/char_language_model/last.pth", weights_only=True) for folder in (whole, killed)]
    assert [end["global_step"] for end in ends] == [80, 80]
    assert all(torch.equal(value, ends[1]["model0"][name]) for name, value in ends[0]["model0"].items())
    sample = (killed / "check_point/char_language_model/samples/sample.txt").read_text(encoding="utf-8")
    assert sample == (whole / "check_point/char_language_model/samples/sample.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_two_processes_run_a_script_as_it_is_and_say_the_figure_once(tmp_path, words):
    said = torchrun(2, LANGUAGE_MODEL, *words, cwd=tmp_path).stdout
    figure = runner.Figure.of(said)
    assert "2 processes (ddp)" in said and said.count(" (at most ") == 1
    assert figure.value < figure.baseline_value


@pytest.mark.slow
def test_the_unet_reads_a_folder_of_images_and_masks(tmp_path, capsys):
    from PIL import Image
    names = runpy.run_path(str(SCRIPTS["basics/unet"]))
    for number, (image, mask) in enumerate(zip(*names["made"](20, 24, seed=1))):
        for kind, pixels in (("images", (image[0].clamp(0, 1) * 255).byte()), ("masks", mask.byte())):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels.numpy()).save(tmp_path / kind / f"{number:02}.png")
    trainer = names["main"](folder=tmp_path, epochs=1, width=4)
    images, masks = (torch.cat([part[place] for part in (trainer.eval_loader.tensors, trainer.train_loader.tensors)])
                     for place in (0, 1))
    expected, classes = names["made"](20, 24, seed=1)
    assert torch.equal(masks, classes) and (images - expected.clamp(0, 1)).abs().max() <= 1 / 255
