"""What README and docs say is run as written.

- Each ```` ```python ```` block is a whole program. It runs alone, in a project that has ``template/`` as ``utils`` and the
  quick start of the README as ``train.py``. The blocks of a page share one project.
- Each ```` ```sh ```` block runs with ``bash -e`` in a clone of this repository, where ``python`` and ``torchrun`` are
  those of this environment. The blocks of a page share one clone.
- A block that needs a package which the tests do not install, as ```` ```python needs catboost ````, is run by
  ``scenarios/test_other_libraries.py`` where the package is there.
- A block that cannot run here (it needs a GPU, a cluster, the network or half an hour) has the word ``excerpt`` behind its
  language. It must at least be good syntax.
- The pages in Chinese show the code of those in English, but for its comments, so it is not run a second time.
"""

import json
import os
import re
import runpy
import shutil
from pathlib import Path
from typing import NamedTuple

import fork_server
import pytest
import torch
from tiny import ROOT, run_python

IDENTITY = {f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
CHINESE_OF = {ENGLISH: CHINESE, **{ROOT / "docs" / page.name: page for page in sorted((ROOT / "docs/zh").glob("*.md"))}}
PAGES = [ENGLISH, *DOCS, *CHINESE_OF.values()]
UPGRADE = ROOT / "docs/copy-and-upgrade.md"
IN_A_CLONE = ("template", "demo_cifar10", "train.py")


def name_of(page):
    return str(page.relative_to(ROOT))


class Block(NamedTuple):
    page: Path
    line: int   # of the page; the code begins on the one below
    info: str   # "python", "sh excerpt", "" …
    code: str


def blocks(page):
    text = page.read_text(encoding="utf-8")
    return [Block(page, text[:match.start()].count("\n") + 1, match[1], match[2])
            for match in re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", text, flags=re.MULTILINE)]


def code_of(page, info):
    return [block.code for block in blocks(page) if block.info == info]


def text_without_code(page):
    return re.sub(r"^```.*\n(?:.*\n)*?```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


def copy_folder(source, target):
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))


def bash(commands, folder, **environment):
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "OMP_NUM_THREADS": "1", **environment}
    done = fork_server.run_commands(commands, cwd=folder, env=environment, timeout=300)
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# --- the code runs --------------------------------------------------------------------------------------------------


def project(folder):
    """Where a reader of the quick start is: the folder copied as ``utils``, the quick start saved as ``train.py``."""
    copy_folder(ROOT / "template", folder / "utils")
    (folder / "train.py").write_text(code_of(ENGLISH, "python")[0])
    return folder


@pytest.mark.slow
def test_the_quick_start_is_short_and_learns(tmp_path):
    script = code_of(ENGLISH, "python")[0]
    assert len([line for line in script.splitlines() if line.strip()]) <= 22
    printed = run_python("train.py", cwd=project(tmp_path)).stdout
    (best,) = tmp_path.glob("check_point/*/best.pth")
    assert torch.load(best)["best_metric"]["acc"] > 0.9

    def form(text):  # without the numbers, which are another computer's
        return [re.sub(r"[\d.]+(?:e-\d+)?", "0", line) for line in text.splitlines()]

    (shown,) = code_of(ENGLISH, "")
    assert form(shown)[1:] == form(printed)[1:len(form(shown))]


@pytest.mark.slow
def test_every_python_block_runs_as_written(tmp_path):
    found = []
    for page in [ENGLISH, *DOCS]:
        folder = project(tmp_path / page.stem)
        found += [[str(page.relative_to(ROOT)), block.line, block.code, str(folder)] for block in blocks(page)
                  if block.info == "python"]
    assert len(found) >= 30
    (tmp_path / "blocks.json").write_text(json.dumps(found))
    done = run_python(ROOT / "tests/jobs/docs_job.py", tmp_path / "blocks.json", cwd=tmp_path, check=False,
                      timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in [ENGLISH, *DOCS] if code_of(page, "sh") and page != UPGRADE],
                         ids=lambda page: page.stem)
def test_every_sh_block_runs_as_written(page, tmp_path):
    for name in IN_A_CLONE:
        (copy_folder if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    for commands in code_of(page, "sh"):
        bash(commands, tmp_path)


@pytest.mark.slow
def test_the_upgrade_commands_run_as_written(tmp_path):
    copied, plain, newer, lean = code_of(UPGRADE, "sh")
    clone, old_project = tmp_path / "pytorch-training-template", tmp_path / "old_project"
    copy_folder(ROOT / "template", clone / "template")
    copy_folder(ROOT / "template", old_project / "utils")
    (old_project / "utils/upgrade.py").unlink()
    for folder in (clone, old_project):
        bash("git init -q; git add .; git commit -qm all", folder, **IDENTITY)
    bash("git tag v$(sed -n 's/^__version__ = \"\\(.*\\)\"/\\1/p' template/__init__.py)", clone, **IDENTITY)

    assert "Nothing to do: The copy is at v" in bash(copied, clone, **IDENTITY)
    assert "by __version__" in bash(plain, old_project, **IDENTITY) and (old_project / "utils/.upstream").exists()
    bash("echo '# older' >> utils/upgrade.py; git add .; git commit -qm older", old_project, **IDENTITY)
    assert "Nothing to do: The copy is at v" in bash(newer, old_project, **IDENTITY)
    assert bash(lean, clone, **IDENTITY).count("named by --with: added") == 2
    there = {path.stem for room in ("callbacks", "tools") for path in (tmp_path / "lean_project/utils" / room).glob("*.py")}
    assert there == {"__init__", "progress_bar", "early_stopping", "history", "throughput"}


def test_excerpts_are_good_syntax_and_few():
    found = [block for page in PAGES for block in blocks(page)]
    excerpts = [block for block in found if block.info.endswith(" excerpt")]
    needing = [block for block in found if block.info.startswith("python needs ")]
    for block in excerpts + needing:
        if block.info.startswith("python "):
            compile(block.code, f"{block.page.name}, line {block.line}", "exec")
        else:
            bash(f"bash -n <<'END'\n{block.code}END", ROOT)
    kinds = {block.info for block in found if block not in needing}
    assert kinds == {"python", "python excerpt", "sh", "sh excerpt", "yaml", ""}
    assert len(excerpts) < len(found) / 3


# --- what is named exists -------------------------------------------------------------------------------------------


def anchors(page):
    """Those that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text_without_code(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()).replace(" ", "-")
            for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "examples/README.md"], ids=name_of)
def test_every_link_leads_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text_without_code(page)) if not link.startswith("https://")]
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def pages_linked_from(page):
    """``[(words, page, what stands behind the link), …]``"""
    found = re.findall(r"\[([^]]*)\]\(([^)#\s]+\.md)[^)]*\)(（英文）)?", text_without_code(page))
    return [(words, (page.parent / path).resolve(), mark) for words, path, mark in found]


def test_every_page_is_linked_from_the_readmes():
    linked, linked_in_chinese = ({page for _, page, _ in pages_linked_from(readme)} for readme in (ENGLISH, CHINESE))
    assert linked >= {*DOCS, CHINESE}
    assert linked_in_chinese >= {CHINESE_OF.get(page, page) for page in DOCS} | {ENGLISH}


@pytest.mark.parametrize("room, page", [("callbacks", "callbacks.md"), ("tools", "tools.md")])
def test_each_callback_and_each_tool_is_in_the_table_of_its_page(room, page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    tables = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    for file in (ROOT / "template" / room).glob("[a-z]*.py"):
        name = file.stem if room == "tools" else next(
            name for name in re.findall(r"^class (\w+)", file.read_text(encoding="utf-8"), re.M) if not name.startswith("_"))
        assert re.search(rf"\[`{name}`\]\(", tables), f"{page} has no line and link for {name}"


@pytest.mark.parametrize("english", CHINESE_OF, ids=name_of)
def test_a_page_in_chinese_leads_to_pages_in_chinese_where_there_are_some(english):
    page = CHINESE_OF[english]
    assert ("中文", page, "") in pages_linked_from(english)
    (back, *others) = pages_linked_from(page)
    assert back == ("English", english, "")
    for words, target, mark in others:
        assert target not in CHINESE_OF, words
        assert bool(mark) == (target not in CHINESE_OF.values()), words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_target_test_and_attribute_that_is_named_exists(page):
    from template.template import TemplateModel
    text = page.read_text(encoding="utf-8")
    files = re.findall(r"`((?:template|tests|docs|benchmarks|demo_cifar10)/[\w./-]*)`", text)
    modules = [f"{name.replace('.', '/')}.py" for name in re.findall(r"python -m (benchmarks\.\w+|demo_cifar10\.\w+)", text)]
    assert not [name for name in files + modules if not (ROOT / name).exists()]

    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"`make (\w+)`|^make (\w+)", text, flags=re.MULTILINE)
    assert not [name for pair in targets for name in pair if name and f"\n{name}:" not in makefile]

    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name in re.findall(r"`(test_\w+_\w+_\w+)`", text) if f"def {name}(" not in tests]

    known = set(vars(TemplateModel())) | set(dir(TemplateModel))
    assert not [name for name in re.findall(r"`(?:trainer\.|self\.|model\.)?(\w+) = ", text) if name not in known]
    assert not [name for name in re.findall(r"`(?:trainer|self)\.(\w+)", text) if name not in known]


@pytest.mark.parametrize("page", [ROOT / "docs/faq.md", ROOT / "docs/cluster.md"], ids=lambda page: page.stem)
def test_the_messages_that_are_quoted_are_those_of_the_code(page):
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "template").rglob("*.py")))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a message over several lines
    quoted = re.findall(r'^(?:- )?\*\*"(.+?)"', page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(quoted) >= 2
    assert not [part for message in quoted for part in message.split("…") if part.strip() not in source]


@pytest.mark.parametrize("page", [UPGRADE, CHINESE_OF[UPGRADE]], ids=name_of)
def test_each_line_that_an_upgrade_prints_is_explained(page):
    from template.upgrade import WORDS
    text = page.read_text(encoding="utf-8")
    assert not [words for words in WORDS.values() if f"| `{words}` |" not in text]
    to_do = re.findall(r'print\(f"([A-Z][a-z ]+): \{path\}', (ROOT / "template/upgrade.py").read_text(encoding="utf-8"))
    assert len(to_do) == 3 and not [words for words in to_do if f"| `{words}: <file>" not in text]


# --- the pages keep their form --------------------------------------------------------------------------------------


@pytest.mark.parametrize("readme", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_a_readme_is_short(readme):
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("english", CHINESE_OF, ids=name_of)
def test_both_languages_show_the_same_code_commands_and_figures(english):
    def code(page):
        return [(block.info, re.sub(r"\s*#.*", "", block.code)) for block in blocks(page)]

    def figures(page):  # of two digits or with a point, as the others are often words
        return set(re.findall(r"\d+(?:\.\d+)+|\d{2,}", text_without_code(page)))

    chinese = CHINESE_OF[english]
    assert code(english) == code(chinese)
    assert figures(english) == figures(chinese)


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem not in ("README", "README.zh-CN", "faq")],
                         ids=name_of)
def test_a_page_begins_with_the_code_that_answers_it(page):
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line]
    if re.fullmatch(r"\[(English|中文)\]\(\S+\)", lines[1]):
        del lines[1]
    assert lines[0].startswith("# ") and lines[1].startswith("```")


def test_the_page_of_attributes_is_the_one_that_the_source_gives():
    made = runpy.run_path(str(ROOT / "docs/make_attributes.py"))
    assert made["SOURCE"] == ROOT / "template/template.py"
    page = made["page"](made["SOURCE"].read_text(encoding="utf-8"))
    assert page == (ROOT / "docs/attributes.md").read_text(encoding="utf-8"), "run python docs/make_attributes.py"


@pytest.mark.parametrize("body, said", [
    ("self.seed: int = 3\n", "below a comment"),
    ('# --- may be set ---\n        self.seed: int = 3\n        self.amp: str = ""\n        """Kind."""\n', "a docstring"),
    ('# --- may be set ---\n        self.seed = 3\n        """Seed."""\n', "a type"),
])
def test_an_attribute_without_group_type_or_docstring_is_refused(body, said):
    groups = runpy.run_path(str(ROOT / "docs/make_attributes.py"))["groups"]
    with pytest.raises(ValueError, match=f"self.seed must .*{said}"):
        groups(f"class TemplateModel:\n    def __init__(self):\n        {body}")


def test_the_version_is_the_same_everywhere():
    import template
    assert f"## {template.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert "attr: template.__version__" in (ROOT / "setup.cfg").read_text()
