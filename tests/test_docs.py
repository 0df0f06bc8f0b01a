"""What the READMEs say is run as written."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from tiny import ROOT, run_python

IDENTITY = {f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_quick_start_runs_as_written_in_a_project_with_the_folder_copied_as_utils(tmp_path):
    (script,) = blocks(ENGLISH, "python")
    assert len([line for line in script.splitlines() if line.strip()]) <= 22
    shutil.copytree(ROOT / "template", tmp_path / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "train.py").write_text(script)
    run_python("train.py", cwd=tmp_path)
    (best,) = tmp_path.glob("check_point/*/best.pth")
    assert torch.load(best)["best_metric"]["acc"] > 0.9


def test_the_upgrade_commands_run_as_written(tmp_path):
    section = ENGLISH.read_text(encoding="utf-8").partition("## Copy it, own it, upgrade it\n")[2].partition("\n## ")[0]
    copied, plain, lean = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    clone, project = tmp_path / "pytorch-training-template", tmp_path / "old_project"
    for folder in (clone / "template", project / "utils"):
        shutil.copytree(ROOT / "template", folder, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "utils/upgrade.py").unlink()

    def run(commands, cwd):
        done = subprocess.run(["bash", "-ec", f"python() {{ '{sys.executable}' \"$@\"; }}\n{commands}"], cwd=cwd, text=True,
                              capture_output=True, env={**os.environ, **IDENTITY})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for folder in (clone, project):
        run("git init -q; git add .; git commit -qm all", folder)
    run("git tag v$(sed -n 's/^__version__ = \"\\(.*\\)\"/\\1/p' template/__init__.py)", clone)
    assert "Nothing to do: The copy is at v" in run(copied, clone)
    assert "by __version__" in run(plain, project) and (project / "utils/.upstream").exists()
    assert run(lean, clone).count("named by --with: added") == 2
    there = {path.stem for path in (tmp_path / "lean_project/utils").glob("[ct]*s/*.py")}
    assert there == {"__init__", "progress_bar", "early_stopping", "history", "throughput"}


@pytest.mark.parametrize("readme", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_each_line_that_an_upgrade_prints_is_explained(readme):
    from template.upgrade import WORDS
    text = readme.read_text(encoding="utf-8")
    assert not [words for words in WORDS.values() if f"| `{words}` |" not in text]


def test_both_languages_show_the_same_commands_and_code():
    def code(path, language):
        return [re.sub(r"\s*#.*", "", block) for block in blocks(path, language)]

    for language in ("python", "sh"):
        assert code(ENGLISH, language) == code(CHINESE, language)


@pytest.mark.parametrize("readme", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_every_file_that_is_named_exists(readme):
    text = readme.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:template|demo_cifar10|docs)/[\w./]*)`", text)) | set(re.findall(r"\]\(([\w./-]+)\)", text))
    assert len(named) > 15
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("readme", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_every_make_target_and_attribute_that_is_named_exists(readme):
    from template.template import TemplateModel
    text = readme.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)  ", text):
        assert f"\n{target}:" in makefile
    assigned = re.findall(r"`(\w+) = ", text)
    known = set(vars(TemplateModel())) | set(dir(TemplateModel))
    assert assigned and not [name for name in assigned if name not in known]


def test_the_version_is_the_same_everywhere():
    import template
    assert f"## {template.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert "attr: template.__version__" in (ROOT / "setup.cfg").read_text()
