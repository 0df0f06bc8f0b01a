"""A copy of the folder stays connected: every case of a three-way upgrade, what it refuses, and what may interrupt it."""

import builtins
import errno
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from fault_results import LONG
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny import ROOT, run_python

from template import upgrade

IDENTITY = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "A",
            "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_CONFIG_GLOBAL": os.devnull}
LINES = "".join(f"line_{i} = {i}\n" for i in range(12))
FIRST = {"__init__.py": '__version__ = "0.1.0"\n', "loop.py": LINES, "step.py": LINES, "größe n/wörter.py": LINES,
         "callbacks/__init__.py": "", "callbacks/ema.py": LINES + "ema = 1\n", "callbacks/bar.py": LINES + "bar = 1\n",
         "tools/__init__.py": "", "tools/export.py": LINES + "export = 1\n"}


def git(*args, at):
    return subprocess.run(["git", *map(str, args)], cwd=at, env={**os.environ, **IDENTITY}, check=True,
                          capture_output=True).stdout.decode()


def write(folder, files):
    """Write ``{path: text, bytes or None to delete}`` below ``folder``."""
    for path, content in files.items():
        place = Path(folder, path)
        if content is None:
            place.unlink()
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)


def snapshot(folder):
    """Everything below a folder: bytes and permissions of files, targets of links."""
    found = {}
    for place in sorted(Path(folder).rglob("*")):
        if place.is_symlink():
            found[str(place.relative_to(folder))] = os.readlink(place)
        elif place.is_file():
            found[str(place.relative_to(folder))] = place.read_bytes(), stat.S_IMODE(place.stat().st_mode)
    return found


class House:
    """An upstream repository with versions, and a copy of it in a project whose path has spaces and umlauts."""

    def __init__(self, folder):
        self.upstream = folder / "up ström"
        self.template = self.upstream / "template"
        self.copy = folder / "my prøject" / "utils"
        self.template.mkdir(parents=True)
        git("init", "-q", "-b", "main", ".", at=self.upstream)
        self.release("0.1.0", FIRST)

    def release(self, version, files=None, tag=True):
        write(self.template, {"__init__.py": f'__version__ = "{version}"\n', **(files or {})})
        git("add", "-A", at=self.upstream)
        git("commit", "-q", "--allow-empty", "-m", version, at=self.upstream)
        if tag:
            git("tag", f"v{version}", at=self.upstream)

    def copied(self, *options):
        assert upgrade.main(["copy", str(self.copy), *options], self.template) == 0
        return self

    def copied_plainly(self):
        shutil.copytree(self.template, self.copy)
        return self

    def run(self, *args, code=0):
        """Run upgrade.py's main on the copy; its printed lines are in ``self.lines``, by path."""
        assert upgrade.main(list(args), self.copy) == code
        return self

    def text(self, path):
        return (self.copy / path).read_text()


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


def edited(*changes, text=LINES):
    """``text`` with lines replaced: ``edited((3, "mine"))``."""
    lines = text.splitlines()
    for number, line in changes:
        lines[number] = line
    return "".join(line + "\n" for line in lines)


def said(captured, words, path):
    """Whether a line of the output starts with ``words`` and names ``path``."""
    return any(re.match(rf"\s*{re.escape(words)}.*\s{re.escape(path)}(\s|$|,)", line) for line in captured.splitlines())


# --- copying ------------------------------------------------------------------------------------------------------------


def test_a_copy_holds_the_committed_files_and_a_stamp_that_says_where_they_came_from(house):
    house.copied()
    (house.copy / "__init__.py").chmod(0o644)
    stamp = json.loads(house.text(".upstream"))
    assert {path: (house.copy / path).read_text() for path in FIRST} == FIRST
    assert stamp["version"] == "v0.1.0" and stamp["origin"] == str(house.upstream) and stamp["only"] is None
    assert stamp["commit"] == git("rev-parse", "HEAD", at=house.upstream).strip()
    assert stamp["files"] == {path: git("hash-object", f"template/{path}", at=house.upstream).strip() for path in FIRST}


def test_the_stamp_names_the_remote_of_a_clone_without_its_password(house):
    git("remote", "add", "origin", "https://me:secret@example.org/template.git", at=house.upstream)
    house.copied()
    assert json.loads(house.text(".upstream"))["origin"] == "https://example.org/template.git"


def test_copy_refuses_a_folder_that_is_not_empty_one_inside_the_template_and_uncommitted_files(house, capsys):
    def refused(destination):
        assert upgrade.main(["copy", str(destination)], house.template) == 2
        return capsys.readouterr().err

    write(house.copy, {"mine.py": "1"})
    assert "new or empty" in refused(house.copy) and snapshot(house.copy).keys() == {"mine.py"}
    assert "outside of" in refused(house.template / "new")
    write(house.template, {"draft.py": "1"})
    assert "template/draft.py" in refused(house.copy.parent / "other")
    assert os.listdir(house.copy.parent) == ["utils"]


def test_copy_runs_in_a_clone_only(house, capsys, tmp_path):
    house.copied()
    house.run("copy", str(tmp_path / "second"), code=2)
    assert "must run in a clone of the template" in capsys.readouterr().err
    assert not (tmp_path / "second").exists()


# --- every case of an upgrade -------------------------------------------------------------------------------------------


def test_what_only_upstream_changed_is_taken_and_what_only_you_changed_is_kept(house, capsys):
    house.copied()
    write(house.copy, {"step.py": edited((2, "mine = 1"))})
    house.release("0.2.0", {"loop.py": edited((5, "theirs = 1"))})
    house.run("upgrade")
    out = capsys.readouterr().out
    assert house.text("loop.py") == edited((5, "theirs = 1")) and said(out, "changed upstream only", "loop.py")
    assert house.text("step.py") == edited((2, "mine = 1")) and said(out, "changed here only", "step.py")
    assert house.text("__init__.py") == '__version__ = "0.2.0"\n'
    assert json.loads(house.text(".upstream"))["version"] == "v0.2.0"


def test_changes_of_both_sides_are_merged_and_the_same_change_is_kept(house, capsys):
    house.copied()
    write(house.copy, {"loop.py": edited((1, "mine = 1")), "größe n/wörter.py": edited((3, "both = 1"))})
    house.release("0.2.0", {"loop.py": edited((9, "theirs = 1")), "größe n/wörter.py": edited((3, "both = 1"))})
    house.run("upgrade")
    out = capsys.readouterr().out
    assert house.text("loop.py") == edited((1, "mine = 1"), (9, "theirs = 1")) and said(out, "changed on both", "loop.py")
    assert said(out, "the same on both", "größe n/wörter.py")


def test_a_conflict_shows_yours_base_and_upstream_and_ends_with_exit_code_1(house, capsys):
    house.copied()
    write(house.copy, {"loop.py": edited((4, "mine = 1"), (0, "far = 1"))})
    house.release("0.2.0", {"loop.py": edited((4, "theirs = 1"), (11, "away = 1"))})
    house.run("upgrade", code=1)
    out = capsys.readouterr().out
    assert "Resolve by hand: loop.py\n    -line_0 = 0\n    +far = 1\n    -line_4 = 4\n    +mine = 1\n" in out
    conflict = ("<<<<<<< yours\nmine = 1\n||||||| base v0.1.0\nline_4 = 4\n=======\ntheirs = 1\n"
                ">>>>>>> upstream v0.2.0")
    assert house.text("loop.py") == edited((0, "far = 1"), (4, conflict), (11, "away = 1"))


def test_of_your_changes_in_a_file_with_conflicts_the_first_forty_lines_are_shown(house, capsys):
    house.copied()
    write(house.copy, {"loop.py": edited((4, "\n".join(f"mine_{i} = {i}" for i in range(45))))})
    house.release("0.2.0", {"loop.py": edited((4, "theirs = 1"))})
    house.run("upgrade", code=1)
    shown = capsys.readouterr().out.partition("Resolve by hand: loop.py\n")[2].splitlines()
    assert shown[0] == "    -line_4 = 4" and shown[39:41] == ["    +mine_38 = 38", "    and 6 lines more"]


def test_a_second_upgrade_changes_nothing_and_says_so(house, capsys):
    house.copied()
    write(house.copy, {"loop.py": edited((4, "mine = 1")), "step.py": edited((1, "mine = 1"))})
    house.release("0.2.0", {"loop.py": edited((4, "theirs = 1")), "step.py": edited((9, "theirs = 1"))})
    house.run("upgrade", code=1)
    before = snapshot(house.copy)
    house.run("upgrade", code=1)
    out = capsys.readouterr().out
    assert "Nothing to do: The copy is at v0.2.0" in out and "Does not compile: loop.py, line 5" in out
    assert snapshot(house.copy) == before
    write(house.copy, {"loop.py": edited((4, "resolved = 1"))})
    house.run("upgrade")
    assert house.text("loop.py") == edited((4, "resolved = 1"))


def test_new_files_come_and_a_file_of_yours_by_that_name_loses_nothing(house, capsys):
    house.copied()
    write(house.copy, {"same.py": "x = 1\n", "other.py": "mine = 1\n", "data.bin": b"\0mine"})
    house.release("0.2.0", {"new/deep.py": "n = 1\n", "same.py": "x = 1\n", "other.py": "theirs = 1\n",
                            "data.bin": b"\0theirs"})
    house.run("upgrade", code=1)
    out = capsys.readouterr().out
    assert house.text("new/deep.py") == "n = 1\n" and said(out, "new upstream", "new/deep.py")
    assert house.text("same.py") == "x = 1\n"
    assert house.text("other.py") == ("<<<<<<< yours\nmine = 1\n||||||| base (none)\n=======\ntheirs = 1\n"
                                      ">>>>>>> upstream v0.2.0\n")
    assert (house.copy / "data.bin").read_bytes() == b"\0mine"
    assert (house.copy / "data.bin.upstream-v0.2.0").read_bytes() == b"\0theirs"


def test_a_file_that_you_took_from_a_later_version_by_hand_is_not_taken_for_an_edit_of_yours(house, capsys):
    house.copied()
    house.release("0.2.0", {"tool.py": LINES, "other.py": LINES})
    house.release("0.3.0", {"tool.py": edited((4, "later = 1")), "other.py": edited((4, "later = 1"))})
    write(house.copy, {"tool.py": LINES.replace("\n", "\r\n"), "other.py": edited((4, "mine = 1"))})
    house.run("upgrade", code=1)
    out = capsys.readouterr().out
    assert said(out, "changed upstream only", "tool.py") and said(out, "CONFLICT", "other.py")
    assert (house.copy / "tool.py").read_bytes() == edited((4, "later = 1")).replace("\n", "\r\n").encode()


def test_a_file_deleted_here_stays_deleted_and_is_named_when_upstream_changed_it(house, capsys):
    house.copied()
    write(house.copy, {"loop.py": None, "callbacks/bar.py": None})
    house.release("0.2.0", {"loop.py": edited((4, "theirs = 1"))})
    house.run("upgrade").run("upgrade")
    out = capsys.readouterr().out
    assert not (house.copy / "loop.py").exists() and not (house.copy / "callbacks/bar.py").exists()
    assert re.search(r"deleted here: stays deleted +loop.py +\(changed upstream\)", out)
    assert re.search(r"deleted here: stays deleted +callbacks/bar.py$", out, re.M)


def test_a_file_deleted_upstream_goes_unless_you_changed_it(house, capsys):
    house.copied()
    write(house.copy, {"step.py": edited((4, "mine = 1"))})
    house.release("0.2.0", {"loop.py": None, "step.py": None, "größe n/wörter.py": None})
    house.run("upgrade")
    out = capsys.readouterr().out
    assert not (house.copy / "loop.py").exists() and said(out, "deleted upstream: deleted", "loop.py")
    assert not (house.copy / "größe n").exists()
    assert house.text("step.py") == edited((4, "mine = 1")) and said(out, "deleted upstream, changed here: kept", "step.py")
    house.release("0.3.0", {"tail.py": "t = 1\n"})
    house.run("upgrade")
    assert house.text("step.py") == edited((4, "mine = 1")) and "step.py" not in capsys.readouterr().out


@pytest.mark.parametrize("change", [{}, {"loop.py": None}], ids=["edited", "deleted"])
def test_your_edits_follow_a_file_that_upstream_renamed(house, capsys, change):
    house.copied()
    write(house.copy, {"loop.py": edited((1, "mine = 1")), **change})
    house.release("0.2.0", {"loop.py": None, "deep/cycle.py": edited((9, "theirs = 1"))})
    house.run("upgrade")
    out = capsys.readouterr().out
    assert "loop.py upstream renamed" in out and not (house.copy / "loop.py").exists()
    if change:
        assert not (house.copy / "deep").exists()
    else:
        assert house.text("deep/cycle.py") == edited((1, "mine = 1"), (9, "theirs = 1"))
    before = snapshot(house.copy)
    house.run("upgrade")
    assert snapshot(house.copy) == before


@pytest.mark.parametrize("change", [{}, {"loop.py": None}], ids=["edited", "deleted"])
def test_your_edits_follow_a_file_that_upstream_moved_and_then_rewrote(house, capsys, change):
    house.copied()
    write(house.copy, {"loop.py": edited((1, "mine = 1")), **change})
    house.release("0.1.1", {"loop.py": None, "way/cycle.py": LINES}, tag=False)
    house.release("0.1.2", {"way/cycle.py": None, "deep/cycle.py": LINES}, tag=False)
    rewritten = LINES.splitlines(True)[:4] + [f"entirely_new_{i} = {i}\n" for i in range(60)]
    house.release("0.2.0", {"deep/cycle.py": "".join(rewritten)})
    capsys.readouterr()
    house.run("upgrade")
    assert "loop.py upstream renamed" in capsys.readouterr().out and not (house.copy / "loop.py").exists()
    if change:
        assert not (house.copy / "deep").exists()
    else:
        assert house.text("deep/cycle.py") == "".join(["line_0 = 0\n", "mine = 1\n", *rewritten[2:]])
    assert not (house.copy / "way").exists()


def test_a_move_back_and_forth_or_a_name_that_is_used_anew_is_no_rename(house):
    house.copied()
    write(house.copy, {"loop.py": edited((1, "mine = 1"))})
    house.release("0.1.1", {"loop.py": None, "cycle.py": LINES}, tag=False)
    house.release("0.1.2", {"cycle.py": None, "loop.py": LINES}, tag=False)
    house.release("0.1.3", {"step.py": None, "stride.py": LINES + "s = 1\n" * 9}, tag=False)
    house.release("0.2.0", {"stride.py": None, "step.py": "new = 1\n" * 30, "loop.py": edited((9, "theirs = 1"))})
    house.run("upgrade")
    assert house.text("loop.py") == edited((1, "mine = 1"), (9, "theirs = 1"))
    assert house.text("step.py") == "new = 1\n" * 30
    assert not (house.copy / "cycle.py").exists() and not (house.copy / "stride.py").exists()


def test_your_edits_follow_where_upstream_made_a_folder_of_a_file_s_name(house):
    house.copied()
    write(house.copy, {"loop.py": edited((1, "mine = 1")), "__pycache__/loop.cpython-310.pyc": b"\0"})
    house.release("0.2.0", {"loop.py": None, "loop/__init__.py": "'room'\n", "loop/cycle.py": edited((9, "theirs = 1"))})
    house.run("upgrade", "--dry-run").run("upgrade")
    assert not (house.copy / "loop.py").exists() and house.text("loop/__init__.py") == "'room'\n"
    assert house.text("loop/cycle.py") == edited((1, "mine = 1"), (9, "theirs = 1"))


def test_a_file_of_yours_that_a_folder_upstream_hides_from_python_is_named(house, capsys):
    house.copied()
    write(house.copy, {"data.py": "mine = 1\n", "deep/net.py": "mine = 1\n", "names.py": "mine = 1\n"})
    house.release("0.2.0", {"data/__init__.py": "", "deep/net/__init__.py": "", "names/list.txt": "no package\n"})
    house.run("upgrade", code=1)
    out = capsys.readouterr().out
    assert "Hidden: data.py, because upstream has a folder data/" in out and "Hidden: deep/net.py" in out
    assert "names" not in out.partition("Hidden")[2]
    assert house.text("data.py") == "mine = 1\n"
    house.run("upgrade", code=1)
    assert "Hidden: data.py" in capsys.readouterr().out
    (house.copy / "data.py").rename(house.copy / "my_data.py")
    (house.copy / "deep/net.py").unlink()
    house.run("upgrade")


def test_a_file_renamed_upstream_and_here_to_the_same_name_is_merged_there(house):
    house.copied()
    write(house.copy, {"loop.py": None, "cycle.py": edited((1, "mine = 1"))})
    house.release("0.2.0", {"loop.py": None, "cycle.py": edited((9, "theirs = 1"))})
    house.run("upgrade")
    assert house.text("cycle.py") == edited((1, "mine = 1"), (9, "theirs = 1"))


def test_a_file_renamed_upstream_to_a_name_that_you_use_loses_neither(house):
    house.copied()
    write(house.copy, {"loop.py": edited((1, "mine = 1")), "cycle.py": "quite = 'else'\n"})
    house.release("0.2.0", {"loop.py": None, "cycle.py": edited((9, "theirs = 1"))})
    house.run("upgrade", code=1)
    assert house.text("loop.py") == edited((1, "mine = 1"))
    assert "quite = 'else'" in house.text("cycle.py") and "theirs = 1" in house.text("cycle.py")


def test_line_endings_of_your_file_stay_and_do_not_count_as_changes(house):
    house.copied()
    crlf = {path: edited(text=LINES).replace("\n", "\r\n") for path in ("loop.py", "step.py")}
    write(house.copy, {**crlf, "größe n/wörter.py": edited((1, "mine = 1")).replace("\n", "\r\n")})
    house.release("0.2.0", {"loop.py": edited((5, "theirs = 1")), "größe n/wörter.py": edited((9, "theirs = 1"))})
    house.run("upgrade")
    assert (house.copy / "loop.py").read_bytes() == edited((5, "theirs = 1")).replace("\n", "\r\n").encode()
    assert (house.copy / "step.py").read_bytes() == LINES.replace("\n", "\r\n").encode()
    assert (house.copy / "größe n/wörter.py").read_bytes() == edited(
        (1, "mine = 1"), (9, "theirs = 1")).replace("\n", "\r\n").encode()


def test_bytes_that_are_no_utf_8_survive_a_merge(house):
    latin = "# -*- coding: latin-1 -*-\n" + LINES
    house.release("0.1.1", {"latin.py": latin})
    house.copied()
    mine, theirs = edited((2, "mine = 'ä'"), text=latin), edited((9, "theirs = 'ö'"), text=latin)
    write(house.copy, {"latin.py": mine.encode("latin-1")})
    house.release("0.2.0", {"latin.py": theirs.encode("latin-1")})
    house.run("upgrade")
    both = edited((2, "mine = 'ä'"), (9, "theirs = 'ö'"), text=latin)
    assert (house.copy / "latin.py").read_bytes() == both.encode("latin-1")


def test_binary_files_are_taken_or_kept_whole(house, capsys):
    names = ("taken.png", "kept.png", "both.png")
    house.release("0.1.1", {name: b"\x89PNG\r\n\0" + name.encode() for name in names})
    house.copied()
    write(house.copy, {"kept.png": b"\0mine\r\n", "both.png": b"\0mine\r\n"})
    house.release("0.2.0", {"taken.png": b"\0theirs\r\n", "both.png": b"\0theirs\r\n"})
    house.run("upgrade", code=1)
    assert (house.copy / "taken.png").read_bytes() == b"\0theirs\r\n"
    assert (house.copy / "kept.png").read_bytes() == (house.copy / "both.png").read_bytes() == b"\0mine\r\n"
    assert (house.copy / "both.png.upstream-v0.2.0").read_bytes() == b"\0theirs\r\n"
    assert "Resolve by hand: both.png" in capsys.readouterr().out


def test_permissions_of_your_files_stay(house):
    house.copied()
    (house.copy / "loop.py").chmod(0o700)
    (house.copy / "step.py").chmod(0o440)
    write(house.copy, {"loop.py": edited((1, "mine = 1"))})
    house.release("0.2.0", {"loop.py": edited((9, "theirs = 1")), "step.py": edited((9, "theirs = 1"))})
    house.run("upgrade")
    assert house.text("loop.py") == edited((1, "mine = 1"), (9, "theirs = 1"))
    assert house.text("step.py") == edited((9, "theirs = 1"))
    assert [stat.S_IMODE((house.copy / path).stat().st_mode) for path in ("loop.py", "step.py")] == [0o700, 0o440]


def test_what_is_your_own_in_the_folder_is_never_touched(house, tmp_path):
    house.copied()
    own = {"my_model.py": "no = (python", "callbacks/mine.py": "x", "__pycache__/loop.cpython-311.pyc": b"\0",
           "data/images.bin": b"\0" * 100, ".git": "gitdir: elsewhere"}
    write(house.copy, {path: content for path, content in own.items() if path != ".git"})
    os.symlink(tmp_path, house.copy / "link")
    before = snapshot(house.copy)
    inode = (house.copy / "data/images.bin").stat().st_ino
    house.release("0.2.0", {"loop.py": edited((9, "theirs = 1"))})
    house.run("upgrade")
    after = snapshot(house.copy)
    assert {path for path in after if after[path] != before.get(path)} == {"__init__.py", "loop.py", ".upstream"}
    assert before.keys() == after.keys() and (house.copy / "data/images.bin").stat().st_ino == inode


def test_a_dry_run_says_what_an_upgrade_would_do_and_changes_no_byte(house, capsys):
    house.copied()
    write(house.copy, {"loop.py": edited((4, "mine = 1")), "mine.py": "m"})
    house.release("0.2.0", {"loop.py": edited((4, "theirs = 1")), "step.py": None, "new.py": "n = 1\n"})
    before = snapshot(house.copy)
    capsys.readouterr()
    house.run("upgrade", "--dry-run", code=1)
    would = capsys.readouterr().out
    assert snapshot(house.copy) == before and "Nothing was written." in would
    house.run("upgrade", code=1)
    assert capsys.readouterr().out.replace("The copy is at v0.2.0.", "Nothing was written.") == would


def test_status_names_what_changed_on_each_side_and_writes_nothing(house, capsys):
    house.copied()
    write(house.copy, {"loop.py": edited((4, "mine = 1")), "step.py": edited((1, "mine = 1")), "callbacks/bar.py": None})
    house.release("0.2.0", {"step.py": edited((9, "theirs = 1")), "größe n/wörter.py": edited((9, "theirs = 1"))})
    before = snapshot(house.copy)
    capsys.readouterr()
    house.run("status")
    out = capsys.readouterr().out
    assert "v0.1.0" in out and "newest is v0.2.0" in out and str(house.upstream) in out
    assert said(out, "changed here only", "loop.py") and said(out, "changed upstream only", "größe n/wörter.py")
    assert said(out, "changed on both sides", "step.py") and said(out, "deleted here", "callbacks/bar.py")
    assert snapshot(house.copy) == before


def test_diff_shows_your_changes_or_those_of_upstream(house, capsysbinary):
    house.copied()
    write(house.copy, {"loop.py": edited((4, "mine = 1")), "step.py": None,
                       "größe n/wörter.py": LINES.replace("\n", "\r\n")})
    house.release("0.2.0", {"loop.py": edited((5, "theirs = '\xe4'")).encode("latin-1"), "new.py": "n = 1"})
    capsysbinary.readouterr()
    mine, theirs = (house.run("diff", side) and capsysbinary.readouterr().out for side in ("--mine", "--theirs"))
    assert b"-line_4 = 4\n+mine = 1\n" in mine and b"--- a/step.py" in mine and b"theirs" not in mine
    assert b"rter.py" not in mine
    assert b"-line_5 = 5\n+theirs = '\xe4'\n" in theirs and b"mine" not in theirs
    assert b"+n = 1\n\\ No newline at end of file\n" in theirs


# --- versions and bases -------------------------------------------------------------------------------------------------


def test_the_newest_version_is_the_highest_number_and_to_takes_another_one(house, capsys):
    house.copied()
    for version in ("0.10.0", "0.9.0"):
        house.release(version, {"loop.py": edited((4, f"v = '{version}'"))})
    git("tag", "v1.0.0-rc1", at=house.upstream)
    house.run("upgrade", "--to", "v0.9.0")
    assert "0.9.0" in house.text("loop.py")
    house.run("upgrade")
    assert "0.10.0" in house.text("loop.py")
    house.run("upgrade", "--to", "v0.1.0")
    assert house.text("loop.py") == LINES
    capsys.readouterr()
    house.run("upgrade", "--to", "v7.0.0", code=2)
    assert "got 'v7.0.0'. There are: v0.1.0, v0.9.0, v0.10.0" in capsys.readouterr().err


def test_a_copy_that_is_newer_than_every_version_is_left_alone(house, capsys):
    house.release("0.2.0", {"loop.py": edited((4, "newer = 1"))}, tag=False)
    house.copied().run("upgrade")
    assert "Nothing to do" in capsys.readouterr().out
    assert house.text("loop.py") == edited((4, "newer = 1"))


def test_the_base_of_a_plain_copy_is_the_tag_of_its_version(house, capsys):
    house.copied_plainly()
    write(house.copy, {"loop.py": edited((1, "mine = 1"))})
    house.release("0.2.0", {"loop.py": edited((9, "theirs = 1"))})
    house.run("status", code=2)
    assert "has no .upstream" in capsys.readouterr().err
    house.run("upgrade", "--from", str(house.upstream))
    assert "by __version__" in capsys.readouterr().out
    assert house.text("loop.py") == edited((1, "mine = 1"), (9, "theirs = 1"))
    house.release("0.3.0", {"loop.py": edited((9, "theirs = 2"))})
    house.run("upgrade")
    assert house.text("loop.py") == edited((1, "mine = 1"), (9, "theirs = 2"))


def test_the_base_of_a_plain_copy_made_before_its_version_was_released_is_the_commit_it_was_made_from(house, capsys):
    house.release("0.2.0", {"loop.py": edited((4, "draft = 1")), "step.py": edited((4, "draft = 1"))}, tag=False)
    house.copied_plainly()
    write(house.copy, {"step.py": edited((4, "draft = 1"), (0, "mine = 1"))})
    house.release("0.2.0", {"loop.py": edited((4, "final = 1")), "step.py": edited((4, "final = 1"))})
    house.run("upgrade", "--from", str(house.upstream))
    out = capsys.readouterr().out
    assert f"by its files: {len(FIRST) - 1} of {len(FIRST)}" in out and said(out, "changed upstream only", "loop.py")
    assert house.text("loop.py") == edited((4, "final = 1"))
    assert house.text("step.py") == edited((4, "final = 1"), (0, "mine = 1"))


def test_the_base_of_a_plain_copy_without_a_known_version_is_the_commit_most_alike(house, capsys):
    house.release("0.1.5", {"loop.py": edited((4, "between = 1"))}, tag=False)
    alike = git("rev-parse", "--short=10", "HEAD", at=house.upstream).strip()
    house.copied_plainly()
    write(house.copy, {"loop.py": edited((4, "between = 1")).replace("\n", "\r\n"), "step.py": edited((1, "mine = 1"))})
    house.release("0.2.0", {"loop.py": edited((4, "later = 1")), "step.py": edited((9, "theirs = 1"))})
    house.run("upgrade", "--from", str(house.upstream))
    out = capsys.readouterr().out
    assert f"{alike} ({alike}, by its files: {len(FIRST) - 1} of {len(FIRST)} are equal to those of this commit)" in out
    assert house.text("loop.py") == edited((4, "later = 1")).replace("\n", "\n")
    assert house.text("step.py") == edited((1, "mine = 1"), (9, "theirs = 1"))


def test_a_stamp_whose_commit_is_not_upstream_leads_to_the_tag_of_its_version(house, capsys):
    house.copied()
    stamp = json.loads(house.text(".upstream"))
    write(house.copy, {".upstream": json.dumps({**stamp, "commit": "0" * 40})})
    house.release("0.2.0", {"loop.py": edited((9, "theirs = 1"))})
    house.run("upgrade")
    assert "whose commit is not upstream" in capsys.readouterr().out
    assert house.text("loop.py") == edited((9, "theirs = 1"))


@pytest.mark.slow
def test_it_upgrades_itself_by_path_while_conflict_markers_stand_in_init_and_never_imports_the_copy(house, tmp_path):
    script = (ROOT / "template/upgrade.py").read_text()
    trap = f"open({str(tmp_path / 'trapped')!r}, 'w')\n"
    house.release("0.1.1", {"upgrade.py": script, "json.py": trap})
    house.copied()
    write(house.copy, {"__init__.py": '<<<<<<< yours\n__version__ = "0.1.1"\n=======\n>>>>>>> upstream v0.1.1\n'})
    house.release("0.2.0", {"upgrade.py": script + "# newer\n", "sitecustomize.py": trap, "subprocess.py": trap})
    done = run_python(house.copy / "upgrade.py", "upgrade", cwd=house.copy, check=False)
    assert done.returncode == 1 and "Resolve by hand: __init__.py" in done.stdout, done.stderr
    assert house.text("upgrade.py").endswith("# newer\n")
    done = run_python("upgrade.py", "status", cwd=house.copy)
    assert "v0.2.0" in done.stdout and not (tmp_path / "trapped").exists()


def test_upgrade_py_that_both_sides_changed_is_kept_so_that_it_still_runs(house, capsys):
    script = (ROOT / "template/upgrade.py").read_text()
    house.release("0.1.1", {"upgrade.py": script + "# first\n"})
    house.copied()
    write(house.copy, {"upgrade.py": script + "# mine\n"})
    house.release("0.2.0", {"upgrade.py": script + "# second\n"})
    house.run("upgrade", code=1)
    assert "Resolve by hand: upgrade.py" in capsys.readouterr().out
    assert house.text("upgrade.py") == script + "# mine\n"
    assert house.text("upgrade.py.upstream-v0.2.0") == script + "# second\n"
    house.run("status")


# --- a lean copy --------------------------------------------------------------------------------------------------------


def test_a_lean_copy_stays_lean_and_names_what_is_new_upstream(house, capsys):
    house.copied("--only", "core,callbacks/ema")
    there = set(FIRST) - {"callbacks/bar.py", "tools/export.py"}
    assert snapshot(house.copy).keys() == there | {".upstream"}
    house.release("0.2.0", {"callbacks/swa.py": "s = 1\n", "core_file.py": "c = 1\n", "callbacks/bar.py": LINES,
                            "callbacks/ema.py": None, "callbacks/average.py": LINES + "ema = 1\n"})
    house.run("upgrade")
    out = capsys.readouterr().out
    lean = (there - {"callbacks/ema.py"}) | {".upstream", "core_file.py", "callbacks/average.py"}
    assert snapshot(house.copy).keys() == lean
    assert re.search(r"left out .* callbacks/swa.py +\(new upstream\)", out)
    house.release("0.3.0", {"callbacks/average.py": LINES + "ema = 3\n"})
    house.run("upgrade")
    assert house.text("callbacks/average.py") == LINES + "ema = 3\n" and snapshot(house.copy).keys() == lean


def test_what_was_left_out_comes_when_it_is_named_and_belongs_to_the_copy_from_then_on(house, capsys):
    house.copied("--only", "core").run("upgrade", "--with", "callbacks/ema")
    assert said(capsys.readouterr().out, "named by --with: added", "callbacks/ema.py")
    assert house.text("callbacks/ema.py") == FIRST["callbacks/ema.py"] and not (house.copy / "tools/export.py").exists()
    assert json.loads(house.text(".upstream"))["only"] == ["callbacks/ema"]
    house.release("0.2.0", {"callbacks/ema.py": LINES + "ema = 2\n", "tools/export.py": LINES + "export = 2\n"})
    house.run("upgrade")
    assert house.text("callbacks/ema.py") == LINES + "ema = 2\n" and not (house.copy / "tools/export.py").exists()


def test_what_was_deleted_here_comes_back_when_it_is_named_and_what_is_there_is_not_touched(house):
    house.copied()
    write(house.copy, {"loop.py": None, "callbacks/bar.py": None, "callbacks/ema.py": None, "step.py": edited((1, "mine"))})
    house.run("upgrade", "--with", "core,callbacks/ema")
    assert house.text("loop.py") == LINES and house.text("callbacks/ema.py") == FIRST["callbacks/ema.py"]
    assert house.text("step.py") == edited((1, "mine")) and not (house.copy / "callbacks/bar.py").exists()
    assert json.loads(house.text(".upstream"))["only"] is None


def test_with_refuses_a_part_that_there_is_not_in_the_version_upgraded_to(house, capsys):
    house.copied("--only", "core").run("upgrade", "--with", "callbacks/swa,callbacks/ema", code=2)
    assert "--with must name parts of the template, got callbacks/swa. There are: " in capsys.readouterr().err
    assert not (house.copy / "callbacks/ema.py").exists()


def test_copy_refuses_a_part_that_there_is_not_and_lists_those_there_are(house, capsys):
    assert upgrade.main(["copy", str(house.copy), "--only", "callbacks/emma"], house.template) == 2
    assert "got callbacks/emma. There are: callbacks/bar, callbacks/ema, core, tools/export." in capsys.readouterr().err
    assert not house.copy.exists()


# --- what is refused ----------------------------------------------------------------------------------------------------


def committed(house):
    git("init", "-q", ".", at=house.copy.parent)
    git("add", "-A", at=house.copy.parent)
    git("commit", "-q", "-m", "mine", at=house.copy.parent)


def test_uncommitted_changes_in_the_folder_are_named_and_refused_unless_forced(house, capsys):
    house.copied()
    committed(house)
    house.release("0.2.0", {"loop.py": edited((9, "theirs = 1"))})
    write(house.copy.parent, {"outside.py": "does not matter", "utils/__pycache__/x.pyc": b"\0"})
    write(house.copy, {"größe n/wörter.py": edited((1, "mine = 1")), "untracked.py": "1"})
    before = snapshot(house.copy)
    house.run("upgrade", code=2)
    err = capsys.readouterr().err
    assert "utils/größe n/wörter.py, utils/untracked.py." in err and "outside.py" not in err and "pycache" not in err
    assert snapshot(house.copy) == before
    house.run("upgrade", "--force")
    assert house.text("loop.py") == edited((9, "theirs = 1"))


def test_a_copy_that_is_the_root_of_a_git_repository_keeps_it(house):
    house.copied()
    git("init", "-q", ".", at=house.copy)
    git("add", "-A", at=house.copy)
    git("commit", "-q", "-m", "mine", at=house.copy)
    head = git("rev-parse", "HEAD", at=house.copy)
    house.release("0.2.0", {"loop.py": edited((9, "theirs = 1"))})
    house.run("upgrade")
    assert git("rev-parse", "HEAD", at=house.copy) == head
    assert git("status", "--porcelain", at=house.copy).split() == ["M", ".upstream", "M", "__init__.py", "M", "loop.py"]


def test_it_works_in_a_git_hook_where_git_s_variables_are_about_another_repository(house, monkeypatch):
    house.copied()
    house.release("0.2.0", {"loop.py": edited((9, "theirs = 1"))})
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    house.run("upgrade")
    assert house.text("loop.py") == edited((9, "theirs = 1"))


def links(house, where):
    house.copied()
    write(house.copy, {where: None} if where.endswith(".py") else {f"{where}/__init__.py": None, f"{where}/export.py": None})
    if not where.endswith(".py"):
        (house.copy / where).rmdir()
    outside = house.copy.parent / "outside"
    write(outside, {"export.py": LINES, "__init__.py": ""})
    os.symlink(outside / "export.py" if where.endswith(".py") else outside, house.copy / where)
    return outside


@pytest.mark.parametrize("where", ["loop.py", "tools"])
def test_a_link_in_the_copy_is_refused_and_never_followed(house, capsys, where):
    outside = links(house, where)
    house.release("0.2.0", {"loop.py": edited((9, "theirs = 1")), "tools/export.py": edited((9, "theirs = 1"))})
    before = snapshot(house.copy), snapshot(outside)
    house.run("upgrade", code=2)
    assert "Links are not followed" in capsys.readouterr().err
    assert (snapshot(house.copy), snapshot(outside)) == before


def test_a_link_or_submodule_upstream_is_refused(house, capsys):
    house.copied()
    os.symlink("/etc/passwd", house.template / "evil.py")
    house.release("0.2.0")
    before = snapshot(house.copy)
    house.run("upgrade", code=2)
    assert "'evil.py'" in capsys.readouterr().err and snapshot(house.copy) == before


@pytest.mark.parametrize("path", ["../outside.py", "/etc/evil.py", ".git/hooks/post-commit", "a/.GIT/config", ".upstream",
                                  ".upgrade/journal.json", "a\\..\\b.py", "C:evil.py", "a//b.py", "./a.py", ""])
def test_paths_that_lead_elsewhere_are_refused(path):
    with pytest.raises(upgrade.UpgradeError, match="Paths must stay in the folder"):
        upgrade.check_path(path)


def test_a_hostile_path_in_an_upstream_tree_is_refused(house, capsys):
    house.copied()
    blob = git("hash-object", "-w", "template/loop.py", at=house.upstream).strip()
    listing = f"100644 blob {blob}\t..\n"
    tree = subprocess.run(["git", "mktree"], cwd=house.upstream, input=listing.encode(), capture_output=True).stdout.decode()
    top = subprocess.run(["git", "mktree"], cwd=house.upstream, input=f"040000 tree {tree.strip()}\ttemplate\n".encode(),
                         capture_output=True, check=True).stdout.decode().strip()
    commit = git("commit-tree", top, "-m", "evil", at=house.upstream).strip()
    git("tag", "v0.2.0", commit, at=house.upstream)
    before = snapshot(house.copy.parent)
    house.run("upgrade", code=2)
    assert "Paths must stay in the folder" in capsys.readouterr().err and snapshot(house.copy.parent) == before


def test_a_folder_of_yours_where_upstream_has_a_file_is_refused(house, capsys):
    house.copied()
    write(house.copy, {"new.py/mine.txt": "1", "deep": "2"})
    house.release("0.2.0", {"new.py": "n = 1\n"})
    house.run("upgrade", code=2)
    assert "Move it away" in capsys.readouterr().err
    shutil.rmtree(house.copy / "new.py")
    house.release("0.3.0", {"deep/new.py": "n = 1\n"})
    house.run("upgrade", code=2)
    assert "Upstream has a folder 'deep/new.py'" in capsys.readouterr().err


DAMAGES = {
    "cut": lambda text: text[:100],
    "empty": lambda text: "",
    "list": lambda text: "[]",
    "number": lambda text: "3",
    "key": lambda text: text.replace("commit", "komit"),
    "commit": lambda text: re.sub(r'"commit": "..', r'"commit": "--', text),
    "path": lambda text: text.replace("loop.py", "../loop.py"),
    "origin": lambda text: re.sub('"origin": .*', '"origin": 3,', text),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_stamp_is_named_with_what_helps(house, capsys, damage):
    house.copied()
    write(house.copy, {".upstream": damage(house.text(".upstream"))})
    house.run("status", code=2)
    err = capsys.readouterr().err
    assert "git checkout" in err or "Paths must stay" in err
    (house.copy / ".upstream").unlink()
    house.run("upgrade", "--from", str(house.upstream))


def test_a_stamp_of_a_later_format_is_refused(house, capsys):
    house.copied()
    write(house.copy, {".upstream": house.text(".upstream").replace('"format": 1', '"format": 2')})
    house.run("upgrade", code=2)
    assert "format 1, got 2" in capsys.readouterr().err


def test_without_upstream_status_tells_what_the_stamp_knows_and_then_the_reason(house, capsys):
    house.copied("--only", "callbacks/ema")
    write(house.copy, {"loop.py": edited((9, "mine = 1")), "step.py": LINES.replace("\n", "\r\n")})
    shutil.rmtree(house.upstream)
    capsys.readouterr()
    house.run("status", code=2)
    out, err = capsys.readouterr()
    assert "changed here: loop.py" in out and "step.py" not in out and "left out or deleted here: callbacks/bar.py" in out
    assert str(house.upstream) in err and "Check the network" in err and "--from" in err
    house.run("upgrade", code=2)
    house.run("upgrade", "--from", "https://127.0.0.1:1/x.git", code=2)
    assert "127.0.0.1" in capsys.readouterr().err


def test_protocols_that_run_programs_are_refused(house, capsys, tmp_path):
    house.copied()
    house.run("upgrade", "--from", f"ext::touch {tmp_path / 'ran'}", code=2)
    house.run("upgrade", "--from", f"--upload-pack=touch {tmp_path / 'ran'}", code=2)
    assert not (tmp_path / "ran").exists() and "not allowed" in capsys.readouterr().err


def test_nothing_of_upstream_is_run(house, tmp_path):
    trap = f"#!/bin/sh\ntouch '{tmp_path / 'ran'}'\n"
    house.release("0.1.1", {"setup.py": f"open({str(tmp_path / 'ran')!r}, 'w')",
                            ".gitattributes": "*.py filter=x merge=x diff=x\n"})
    house.copied()
    for hook in ("post-checkout", "post-merge", "reference-transaction", "pre-commit"):
        write(house.upstream, {f".git/hooks/{hook}": trap})
        (house.upstream / ".git/hooks" / hook).chmod(0o755)
    write(house.copy, {"loop.py": edited((9, "mine = 1"))})
    house.release("0.2.0", {"loop.py": edited((1, "theirs = 1")), "evil.py": f"open({str(tmp_path / 'ran')!r}, 'w')\n"})
    (tmp_path / "ran").unlink()  # this test's own commit
    house.run("upgrade")
    house.run("diff", "--mine")
    assert not (tmp_path / "ran").exists()


def test_git_that_is_missing_is_named(house, capsys, monkeypatch, tmp_path):
    house.copied()
    monkeypatch.setenv("PATH", str(tmp_path))
    house.run("upgrade", code=2)
    assert "needs git" in capsys.readouterr().err


def test_a_folder_that_is_no_copy_is_refused(house, capsys):
    write(house.copy, {"mine.py": "m"})
    house.run("upgrade", "--from", str(house.upstream), code=2)
    assert "must run in a copy of the template" in capsys.readouterr().err
    house.copy = house.copy.parent / "other"
    house.copied_plainly()
    git("mv", "template", "elsewhere", at=house.upstream)
    git("commit", "-q", "-m", "moved", at=house.upstream)
    git("tag", "v0.2.0", at=house.upstream)
    house.run("upgrade", "--from", str(house.upstream), code=2)
    assert "must have a folder template/" in capsys.readouterr().err


def test_a_merge_that_does_not_compile_is_told(house, capsys):
    house.copied()
    write(house.copy, {"loop.py": edited((1, "f = (1,"), (2, "2)"))})
    house.release("0.2.0", {"loop.py": edited((4, "x = 'theirs"))})
    house.run("upgrade", code=1)
    assert "Does not compile: loop.py, line 5" in capsys.readouterr().out


# --- random edits -------------------------------------------------------------------------------------------------------

EDITS = st.dictionaries(st.integers(0, 9), st.sampled_from(["replace", "insert", "delete"]), max_size=6)
RELAXED = settings(deadline=None, suppress_health_check=list(HealthCheck))


def base_lines(name=""):
    return [f"base_{name}{i} = {i}" for i in range(10)]


def apply_edits(edits, side, name=""):
    """For each base line what a side makes of it: the lines in its place."""
    made = []
    for i, line in enumerate(base_lines(name)):
        new = f"{side}_{name}{i} = {i}"
        made.append({None: [line], "replace": [new], "insert": [line, new], "delete": []}[edits.get(i)])
    return made


def joined(lines):
    return "".join(f"{line}\n" for line in lines).encode()


def flat(nested):
    return [line for part in nested for line in part]


def outside_of_conflicts(lines):
    kept, inside = [], False
    for line in lines:
        inside = True if line.startswith("<<<<<<<") else inside
        if not inside:
            kept.append(line)
        inside = False if line.startswith(">>>>>>>") else inside
    return kept


@pytest.mark.slow
@RELAXED
@given(EDITS, EDITS, st.booleans())
def test_lines_that_one_side_changed_survive_any_merge(mine, theirs, crlf):
    my_lines, their_lines = apply_edits(mine, "mine"), apply_edits(theirs, "theirs")
    my_file = joined(flat(my_lines)).replace(b"\n", b"\r\n" if crlf else b"\n")
    kind, merged = upgrade.merge(joined(base_lines()), my_file, joined(flat(their_lines)), ("v1", "v2"))
    if crlf and my_lines != [[]] * 10:
        assert merged.count(b"\r\n") == merged.count(b"\n")
    merged = merged.decode().replace("\r\n", "\n").splitlines()
    new = {line for line in flat(my_lines) + flat(their_lines) if not line.startswith("base_")}
    untouched = {line for i, line in enumerate(base_lines()) if i not in mine and i not in theirs}
    assert new | untouched <= set(merged)
    gone = {line for i, line in enumerate(base_lines()) if "delete" in (mine.get(i), theirs.get(i))
            or "replace" in (mine.get(i), theirs.get(i))}
    assert not gone & set(outside_of_conflicts(merged))
    if kind != "conflict" and not set(mine) & set(theirs):  # independently: each line as the side that changed it has it
        assert merged == flat(my_lines[i] if i in mine else their_lines[i] for i in range(10))


NAMES = ["a.py", "b ü.py", "callbacks/c.py", "d/e.py"]
WHOLE = st.dictionaries(st.sampled_from([*NAMES, "new.py", "callbacks/new.py"]), st.one_of(st.none(), EDITS))


@pytest.mark.slow
@settings(RELAXED, max_examples=25)
@given(mine=WHOLE, theirs=WHOLE)
@example(mine={"callbacks/c.py": None},  # which upstream renamed
         theirs={**dict.fromkeys(["a.py", "b ü.py", "callbacks/c.py", "d/e.py"]), "callbacks/new.py": {0: "replace"}})
def test_random_edits_of_whole_folders_lose_nothing_and_a_second_upgrade_does_nothing(tmp_path_factory, mine, theirs):
    def side(changes, who):
        files = {name: None if edits is None else joined(flat(apply_edits(edits, who, name[0])))
                 for name, edits in changes.items()}
        return {name: data for name, data in files.items() if data is not None or name in NAMES}

    folder = tmp_path_factory.mktemp("random")
    house = House(folder)
    house.release("0.1.1", {name: joined(base_lines(name[0])) for name in NAMES})
    house.copied()
    write(house.copy, side(mine, "mine"))
    house.release("0.2.0", side(theirs, "theirs"))
    code = upgrade.main(["upgrade"], house.copy)
    assert code in (0, 1)
    everything = b"".join(path.read_bytes() for path in house.copy.rglob("*") if path.is_file()).decode()
    for who, changes in (("mine", mine), ("theirs", theirs)):
        for name, edits in changes.items():
            kept = name in NAMES and ({"mine": theirs, "theirs": mine}[who].get(name, 1) is None)
            renamed = name not in NAMES and any(mine.get(old, 1) is theirs.get(old, 1) is None for old in NAMES)
            if edits is not None and not (who == "theirs" and (kept or renamed)):  # what was deleted here stays deleted
                assert {line for line in flat(apply_edits(edits, who, name[0])) if line.startswith(who)} <= set(
                    everything.splitlines())
    before = snapshot(house.copy)
    assert upgrade.main(["upgrade"], house.copy) == code
    assert snapshot(house.copy) == before
    shutil.rmtree(folder)


# --- interruptions ------------------------------------------------------------------------------------------------------

WATCHED = ("replace", "rename", "unlink", "mkdir", "rmdir", "chmod", "utime", "fsync")


def in_a_child(work):
    """Run ``work`` in a process of its own; returns its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def interrupted_at(moment, how, folder):
    """Make the file operation number ``moment`` below ``folder`` go wrong: killed, failed, or failed from then on.
    Gives a function that says how many there were."""
    count = 0

    def below(args, kwargs):
        if "dir_fd" in kwargs and kwargs["dir_fd"] is not None:
            return os.readlink(f"/proc/self/fd/{kwargs['dir_fd']}").startswith(str(folder))
        if isinstance(args[0], int):
            return os.readlink(f"/proc/self/fd/{args[0]}").startswith(str(folder))
        return any(str(arg).startswith(str(folder)) for arg in args[:2])

    def watched(real, is_watched=lambda args: True):
        def wrapped(*args, **kwargs):
            nonlocal count
            if is_watched(args) and below(args, kwargs):
                count += 1
                if count == moment and how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if count == moment or count > moment and how == "fail from then on":
                    raise OSError(errno.ENOSPC, "No space left on device", str(args[0]))
            return real(*args, **kwargs)
        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in WATCHED:
            patch.setattr(os, name, watched(getattr(os, name)))
        patch.setattr(builtins, "open", watched(open, lambda args: "w" in "".join(args[1:2])))
        yield lambda: count


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("how", ["kill", "fail", "fail from then on"])
def test_an_interruption_at_any_file_operation_leaves_the_copy_as_before_or_as_after(house, how, capsys, monkeypatch):
    house.copied()
    write(house.copy, {"loop.py": edited((4, "mine = 1")), "mine.py": "m", "__pycache__/a.pyc": b"\0", "step.py": None})
    house.release("0.2.0", {"loop.py": edited((9, "theirs = 1")), "new/file.py": "n = 1\n", "größe n/wörter.py": None,
                            "callbacks/ema.py": None, "callbacks/average.py": LINES + "ema = 2\n",
                            "callbacks/bar.py": None, "callbacks/bar/bar.py": LINES + "bar = 2\n"})
    pristine = house.copy.with_name("pristine")
    shutil.copytree(house.copy, pristine)
    before = snapshot(house.copy)
    compared = upgrade.compare(house.copy, None)  # once: reading upstream writes nothing into the copy
    monkeypatch.setattr(upgrade, "compare", lambda *_: compared)
    with interrupted_at(1000, how, house.copy) as count:
        house.run("upgrade", "--force")
    after = snapshot(house.copy)
    assert after.keys() - before.keys() == {"new/file.py", "callbacks/average.py", "callbacks/bar/bar.py"}
    assert count() > 40
    outcomes, tried = {"before": 0, "after": 0, "half": 0}, set()
    for moment in range(1, count() + 1, 3 if how == "kill" and not LONG else 1):  # a process to kill costs the most
        shutil.rmtree(house.copy)
        shutil.copytree(pristine, house.copy)

        def work(moment=moment):
            with interrupted_at(moment, how, house.copy):
                return upgrade.main(["upgrade", "--force"], house.copy)

        ended = in_a_child(work) if how == "kill" else work()
        left = {path: value for path, value in snapshot(house.copy).items() if not path.startswith(".upgrade")}
        outcomes["before" if left == before else "after" if left == after else "half"] += 1
        has_ended = not (house.copy / ".upgrade").exists()  # otherwise the next start takes it back
        if how == "kill":
            assert ended == -signal.SIGKILL
        else:
            assert ended in (0, 2)
            assert not has_ended or left == (before if ended == 2 else after)
            assert how != "fail" or has_ended
        upgrade.recover(house.copy)
        assert snapshot(house.copy) == (left if has_ended else before), moment
        assert left in (before, after) or not has_ended
        there = repr((sorted(map(str, house.copy.rglob("*"))), snapshot(house.copy)))  # empty folders too
        if there not in tried and (left != after or not has_ended):  # once from each state
            tried.add(there)
            house.run("upgrade", "--force")
            assert snapshot(house.copy) == after
    assert outcomes["before"] and outcomes["after"]
    with capsys.disabled():
        print(f"\n{how}: {count()} file operations; right after it the copy was {outcomes}")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_copy_that_was_killed_half_way_is_made_anew_by_the_next_start(house):
    halves = set()
    for moment in (1, 5, 27, 30, 33, 36):
        def work(moment=moment):
            with interrupted_at(moment, "kill", house.copy):
                return upgrade.main(["copy", str(house.copy)], house.template)

        assert in_a_child(work) == -signal.SIGKILL
        halves.add(len([path for path in snapshot(house.copy) if not path.startswith(".upgrade")]))
        house.copied()
        assert snapshot(house.copy).keys() == {*FIRST, ".upstream"}
        shutil.rmtree(house.copy)
    assert min(halves) == 0 and len(halves) > 2, halves


def test_an_edit_made_after_a_kill_is_not_overwritten_and_the_old_file_stays_beside_it(house, monkeypatch, capsys):
    house.copied()
    write(house.copy, {"loop.py": edited((4, "mine = 1"))})
    house.release("0.2.0", {"loop.py": edited((9, "theirs = 1"))})
    writes = {"loop.py": b"merged\n", "new.py": b"new\n", "newer.py": b"newer\n"}
    with monkeypatch.context() as patch:
        patch.setattr(upgrade, "recover", lambda folder: None)
        real = os.replace
        patch.setattr(os, "replace", lambda one, other: real(one, other) if Path(other).name != ".upgrade.new" else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            upgrade.apply(house.copy, writes)
    write(house.copy, {"loop.py": "edited since\n", "new.py": "edited too\n"})
    house.run("status")
    assert "loop.py was edited after the interruption" in capsys.readouterr().err
    assert house.text("loop.py") == "edited since\n" and house.text("new.py") == "edited too\n"
    assert house.text("loop.py.before-upgrade") == edited((4, "mine = 1"))
    assert not (house.copy / "newer.py").exists() and not list(house.copy.glob(".upgrade*"))


# --- the real folder ----------------------------------------------------------------------------------------------------

VERSION = upgrade.version_in((ROOT / "template/__init__.py").read_bytes())
OLD_VERSION, OLD_COMMIT = "0.1.0", "1728bdf"  # of this repository: before there was an upgrade.py


def commit_all(folder, message, tag=None):
    if not (folder / ".git").exists():
        git("init", "-q", ".", at=folder)
    git("add", "-A", at=folder)
    git("commit", "-q", "--allow-empty", "-m", message, at=folder)
    if tag:
        git("tag", tag, at=folder)


def release_of_the_present_template(upstream):
    shutil.rmtree(upstream / "template", ignore_errors=True)
    shutil.copytree(ROOT / "template", upstream / "template", ignore=shutil.ignore_patterns("__pycache__"))
    commit_all(upstream, "present", f"v{VERSION}")


def release_of_the_old_template(upstream):
    found = subprocess.run(["git", "archive", OLD_COMMIT, "template"], cwd=ROOT, capture_output=True)
    if found.returncode:
        pytest.skip(f"commit {OLD_COMMIT}, version {OLD_VERSION}, is not in the history of this folder: not a full clone")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(upstream)
    commit_all(upstream, "old", f"v{OLD_VERSION}")


TRAIN = """
import sys
from importlib import import_module
import torch

def train(package, epochs, resume, callbacks=()):
    class Trainer(import_module(f"{package}.template").TemplateModel):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            x = torch.randn(60, 4)
            model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Dropout(0.1))
            self.model_list = [model]
            self.optimizer_list = [torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)]
            self.criterion = torch.nn.CrossEntropyLoss()
            data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
            self.train_loader = torch.utils.data.DataLoader(data, 5, shuffle=True)
            self.eval_loader = torch.utils.data.DataLoader(data, 5)
            self.callbacks = list(callbacks)
            self.ckpt_dir = f"check_point/{package}"
            self.seed = 1

    trainer = Trainer()
    trainer.check_init(use_tb=False)
    if resume:
        print("loaded", trainer.load_state("auto"), "at epoch", trainer.epoch)
    for epoch in trainer.epochs(epochs):
        trainer.train_loop()
        trainer.eval()
    print("ended after epoch", trainer.epoch)
"""
TRAIN_UTILS = TRAIN + """
from utils import EarlyStopping
train("utils", int(sys.argv[1]), "--resume" in sys.argv, [EarlyStopping(patience=50)])
"""


def insert_after(path, line, new):
    text = path.read_text()
    assert text.count(line) == 1, f"{path.name} has changed: choose another line than {line!r}"
    path.write_text(text.replace(line, line + new))


def contents(folder):
    return {path: data for path, (data, _) in snapshot(folder).items()}


def edit_by_hand(folder):
    insert_after(folder / "template.py", "        self.write_params = write_params\n", '        print("my edit")\n')
    insert_after(folder / "callbacks/early_stopping.py", "        value = result[name]\n", '        print("my edit")\n')


@pytest.mark.slow
def test_a_copy_of_the_first_version_is_edited_upgraded_to_the_present_one_and_resumes_its_old_checkpoint(tmp_path, capsys):
    upstream, project, expected = tmp_path / "upstream", tmp_path / "project ü", tmp_path / "expected"
    utils = project / "utils"
    upstream.mkdir()
    release_of_the_old_template(upstream)
    shutil.copytree(upstream / "template", utils)
    write(project, {"train.py": TRAIN_UTILS, ".gitignore": "check_point/\nruns/\n__pycache__/\n"})
    release_of_the_present_template(upstream)
    run_python("train.py", 3, cwd=project)
    (project / "check_point").rename(project / "check_point of 3 epochs without an upgrade")
    run_python("train.py", 2, cwd=project)

    edit_by_hand(utils)
    shutil.copy(ROOT / "template/upgrade.py", utils)
    write(project, {".gitignore": "check_point*\nruns/\n__pycache__/\n"})
    commit_all(project, "mine, and upgrade.py of the present version")
    done = run_python(utils / "upgrade.py", "upgrade", "--from", upstream, cwd=tmp_path)
    assert f"v{OLD_VERSION}" in done.stdout and "by __version__" in done.stdout and "CONFLICT" not in done.stdout
    assert said(done.stdout, "changed on both sides: merged", "template.py")
    assert said(done.stdout, "changed on both sides: merged", "callbacks/early_stopping.py")
    shutil.copytree(upstream / "template", expected)
    edit_by_hand(expected)  # what somebody who starts from the present version would have made
    assert contents(utils) == {**contents(expected), ".upstream": (utils / ".upstream").read_bytes()}

    done = run_python("train.py", 3, "--resume", cwd=project)
    assert re.search(r"loaded \S*last.pth at epoch 2", done.stdout) and "ended after epoch 3" in done.stdout, done.stdout
    assert done.stdout.count("my edit\n") == 2
    one, other = (torch.load(project / folder / "utils/last.pth")["model0"]
                  for folder in ("check_point of 3 epochs without an upgrade", "check_point"))
    assert all(torch.equal(one[name], other[name]) for name in one)

    commit_all(project, "upgraded")
    seconds = {}
    for command in ("upgrade", "status", "diff --mine"):
        start = time.perf_counter()
        done = run_python(utils / "upgrade.py", *command.split(), cwd=tmp_path)
        seconds[command] = time.perf_counter() - start
    assert done.stdout.count('+        print("my edit")') == 2 and git("status", "--porcelain", at=project) == ""
    with capsys.disabled():
        print("\nthe whole folder:", ", ".join(f"{command} {value:.2f} s" for command, value in seconds.items()))


@pytest.mark.slow
def test_a_lean_copy_trains_so_does_one_without_any_one_part_and_a_missing_part_says_how_it_comes(tmp_path):
    upstream, project = tmp_path / "upstream", tmp_path / "project"
    upstream.mkdir()
    release_of_the_present_template(upstream)
    run_python(upstream / "template/upgrade.py", "copy", project / "lean", "--only", "core", cwd=tmp_path)
    parts = sorted({upgrade.part_of(path) for path in snapshot(upstream / "template")} - {"core"})
    assert "callbacks/early_stopping" in parts and "tools/throughput" in parts
    assert {upgrade.part_of(path) for path in snapshot(project / "lean")} == {"core"}
    packages = ["lean"]
    for part in parts:
        packages.append("without_" + part.replace("/", "_"))
        shutil.copytree(upstream / "template", project / packages[-1])
        (project / packages[-1] / f"{part}.py").unlink()
    write(project, {"train.py": TRAIN + f"for package in {packages}:\n    train(package, 1, resume=False)\n"})
    run_python("train.py", cwd=project)
    assert {path.parent.name for path in project.glob("check_point/*/last.pth")} == set(packages)

    done = run_python("-c", "from lean import EarlyStopping", cwd=project, check=False)
    message = done.stderr.strip().splitlines()[-1]
    assert "EarlyStopping is in callbacks/early_stopping.py, which is not there: it was left out of this copy" in message
    _, _, command = message.partition("To get it: python ")
    run_python(*command.split(), cwd=project)
    run_python("-c", "from lean import EarlyStopping, TemplateModel", cwd=project)
    assert not (project / "lean/callbacks/history.py").exists()


# --- from the flat folder to the one with rooms -------------------------------------------------------------------------

FLAT_COMMIT = "c2b987c"  # of this repository: the last one before the folder had rooms
MOVED = {"stepper.py": "update/stepper.py", "loaders.py": "data/loaders.py"}  # of the files that are edited below
REWRITTEN = {"loaders.py"}  # of these: the upgrade.py of the flat folder does not see that they moved
OWN = {"my_notes.txt": "mine\n",
       "callbacks/mine.py": "from ..hooks import Callback\nfrom ..metrics import Confusion\n\n\n"
                            "class Mine(Callback):\n    def on_train_end(self, model, result):\n"
                            "        print('mine saw', sorted(result))\n"}
TRAIN_FLAT = TRAIN + """
from utils import EarlyStopping
from utils.callbacks.mine import Mine
from utils.metrics import Confusion
train("utils", int(sys.argv[1]), "--resume" in sys.argv, [EarlyStopping(patience=50), Mine()])
"""


def replace_in(path, line, new):
    text = path.read_text()
    assert text.count(line) == 1, f"{path.name} has changed: choose another line than {line!r}"
    path.write_text(text.replace(line, new))


def edit_as_users_do(folder, place=lambda path: path):
    """``place`` gives the present path of a file of the flat folder."""
    stepper, loaders, stopping, template = (folder / place(path) for path in (
        "stepper.py", "loaders.py", "callbacks/early_stopping.py", "template.py"))
    replace_in(stepper, "        self._updated = False         #", "        self._updated = None          #")
    replace_in(stepper, "    if clip_grad is None:\n        return None\n",
               "    if clip_grad == 'sign':\n"
               "        return lambda parameters: [p.grad.sign_() for p in parameters if p.grad is not None]\n"
               "    if clip_grad is None:\n        return None\n")
    insert_after(loaders, "        has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()\n",
                 "        self.my_marks = []\n")
    replace_in(loaders, "class _ReplayedBatches(_Batches):\n",
               "def is_short(loader):\n    return len(loader) < 10\n\n\nclass _ReplayedBatches(_Batches):\n")
    replace_in(stopping, "if self.waited >= self.patience:\n", "if self.waited > self.patience:  # my edit\n")
    insert_after(template, "            losses = loss_dict(self.loss_per_batch(batch))\n",
                 '            losses["twice"] = 2 * losses["tol_loss"].detach()\n')
    insert_after(template, "        self._epoch_started = time.perf_counter()\n",
                 '        print(f"epoch {self.epoch} begins by my edit")\n')


def flat_files():
    """The names in the flat folder on top."""
    command = ["git", "ls-tree", "--name-only", f"{FLAT_COMMIT}:template"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"commit {FLAT_COMMIT}, the last one without rooms, is not in the history here: not a full clone")
    return found.stdout.split()


class FlatCopy:
    """A clone of this repository whose newest version is the present folder, and a copy that its last commit with a flat
    folder made with the upgrade.py of that commit."""

    def __init__(self, folder, *options):
        self.upstream, self.project = folder / "upstream", folder / "project ü"
        self.copy = self.project / "utils"
        flat_files()
        git("clone", "-q", "--shared", "--no-checkout", ROOT, self.upstream, at=folder)
        git("remote", "remove", "origin", at=self.upstream)
        present = git("rev-parse", "HEAD", at=self.upstream).strip()
        git("checkout", "-q", FLAT_COMMIT, at=self.upstream)
        run_python(self.upstream / "template/upgrade.py", "copy", self.copy, *options, cwd=folder)
        git("checkout", "-q", present, at=self.upstream)
        git("tag", "-d", *git("tag", at=self.upstream).split(), at=self.upstream)
        release_of_the_present_template(self.upstream)
        write(self.project, {".gitignore": "check_point*\nruns/\n__pycache__/\n"})
        commit_all(self.project, "copied")

    def commit(self, files):
        write(self.copy, files)
        commit_all(self.project, "mine")

    def upgrade(self, *options, code=0):
        done = run_python(self.copy / "upgrade.py", "upgrade", *options, cwd=self.project.parent, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def train(self, *args):
        """With bytecode, so that what is left in ``__pycache__`` of the flat files is there."""
        return run_python("train.py", *args, cwd=self.project, env={"PYTHONDONTWRITEBYTECODE": ""}).stdout


def with_upgrade_py(age):
    """The present upgrade.py, or what is in the copy anyway."""
    return {"upgrade.py": (ROOT / "template/upgrade.py").read_bytes()} if age == "present" else {}


def assert_equal_to_the_bit(one, other, path):
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for name in one.keys():
            assert_equal_to_the_bit(one[name], other[name], f"{path}.{name}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for number, pair in enumerate(zip(one, other)):
            assert_equal_to_the_bit(*pair, f"{path}.{number}")
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, f"{path}: {one!r}, {other!r}"


@pytest.mark.slow
@pytest.mark.parametrize("age", ["old", "present"])
def test_an_edited_copy_of_the_flat_folder_takes_the_rooms_with_the_edits_in_the_moved_files(tmp_path, age):
    flat = FlatCopy(tmp_path)
    utils = flat.copy
    moved = {old: new for old, new in MOVED.items() if age == "present" or old not in REWRITTEN}
    stays = {old: (utils / old).read_bytes() for old in MOVED.keys() - moved.keys()}
    edit_as_users_do(utils)
    write(flat.project, {"train.py": TRAIN_FLAT})
    flat.commit({**OWN, "callbacks/profile.py": None, "options.py": None, **with_upgrade_py(age)})
    if age == "old":
        flat.train(4)
        (flat.project / "check_point").rename(flat.project / "check_point of the flat folder")
        flat.train(2)
    before = snapshot(flat.project)
    would = flat.upgrade("--dry-run")
    assert snapshot(flat.project) == before and "Nothing was written." in would and "CONFLICT" not in would

    out = flat.upgrade()
    assert out.rpartition("The copy")[0] == would.rpartition("Nothing")[0]
    for path in ("update/stepper.py", "callbacks/early_stopping.py", "template.py"):
        assert said(out, "changed on both sides: merged", path), path
    for old, new in moved.items():
        assert re.search(rf" {new} +\({old} upstream renamed\)", out), new
    for old in stays:
        assert said(out, "deleted upstream, changed here: kept, now your own", old)
    for path in ("callbacks/profile.py", "run/options.py"):
        assert said(out, "deleted here: stays deleted", path)
    expected = tmp_path / "expected"
    shutil.copytree(flat.upstream / "template", expected)
    write(expected, stays)
    edit_as_users_do(expected, lambda path: moved.get(path, path))
    write(expected, {**OWN, "callbacks/profile.py": None, "run/options.py": None})
    now = {path: data for path, data in contents(utils).items() if "__pycache__" not in path}
    assert now == {**contents(expected), ".upstream": (utils / ".upstream").read_bytes()}
    assert not upgrade.broken({path: data for path, data in now.items() if path not in stays})
    run_python("-c", "from utils.update.stepper import make_clip; assert make_clip('sign')", cwd=flat.project)
    commit_all(flat.project, "upgraded")
    assert "Nothing to do" in flat.upgrade() and git("status", "--porcelain", at=flat.project) == ""
    if age == "present":
        return

    assert list((utils / "__pycache__").glob("metrics.*.pyc")) and not (utils / "metrics.py").exists()
    out = flat.train(4, "--resume")
    assert re.search(r"loaded \S*last.pth at epoch 2", out) and "ended after epoch 4" in out
    assert out.count("begins by my edit\n") == out.count("mine saw ['tol_loss', 'twice']\n") == 2
    (flat.project / "check_point").rename(flat.project / "check_point resumed")
    flat.train(4)
    old, resumed, whole = (torch.load(flat.project / folder / "utils/last.pth") for folder in (
        "check_point of the flat folder", "check_point resumed", "check_point"))
    assert whole["epoch"] == whole["epochs_done"] == 4
    for name in ("epoch", "epochs_done", "global_step", "model0", "optimizer_list0"):
        assert_equal_to_the_bit(resumed[name], whole[name], name)
        assert_equal_to_the_bit(old[name], whole[name], name)


@pytest.mark.slow
def test_a_lean_copy_of_the_flat_folder_takes_the_rooms_and_stays_lean(tmp_path):
    flat = FlatCopy(tmp_path, "--only", "callbacks/early_stopping,tools/consolidate")
    insert_after(flat.copy / "stepper.py", "        self.parallel = parallel\n", "        self.mine = 1\n")
    flat.commit({"callbacks/early_stopping.py": None})
    out = flat.upgrade()
    there = {path for path in contents(flat.copy) if path != ".upstream"}
    whole = {path for path in contents(flat.upstream / "template")}
    parts = {path: upgrade.part_of(path) for path in whole if not path.startswith("trackers/")}  # which it does not know yet
    wanted = {path for path, part in parts.items() if part in ("core", "tools/consolidate")}
    assert {path for path in there if path in parts} == wanted
    assert "self.mine = 1" in (flat.copy / "update/stepper.py").read_text()
    assert said(out, "left out of this copy: stays out", "callbacks/history.py")
    stamp = json.loads((flat.copy / ".upstream").read_text())
    assert stamp["only"] == ["callbacks/early_stopping", "tools/consolidate"]
    write(flat.project, {"train.py": TRAIN + "train('utils', 1, resume=False)\n"})
    assert "ended after epoch 1" in flat.train()


@pytest.mark.slow
@pytest.mark.parametrize("age", ["old", "present"])
def test_edits_in_files_of_the_flat_folder_that_were_rewritten_are_never_lost_silently(tmp_path, age):
    """git finds such a move only in the commit that made it, where the present upgrade.py looks too."""
    flat = FlatCopy(tmp_path)
    moved = {"guard.py": "update/guard.py", "run_lifetime.py": "run/lifetime.py", "run_tools.py": "run/requests.py"}
    mine = {path: f"        self.mine_{i} = 1\n" for i, path in enumerate([*moved, "template.py"])}
    insert_after(flat.copy / "guard.py", "        self._in_a_row = 0\n", mine["guard.py"])
    insert_after(flat.copy / "run_lifetime.py", "        self._stop_request.install()\n", mine["run_lifetime.py"])
    insert_after(flat.copy / "run_tools.py", "        self._saver.wait()\n        saved = state.collect(self, optim)\n",
                 mine["run_tools.py"])
    insert_after(flat.copy / "template.py", "        self.epochs_done = 0           # epochs that are over\n",
                 mine["template.py"])
    edited_files = contents(flat.copy)
    flat.commit(with_upgrade_py(age))
    out = flat.upgrade(code=1)
    now = contents(flat.copy)
    assert "Resolve by hand: template.py" in out and mine["template.py"] in now["template.py"].decode()
    for old, new in moved.items():
        if age == "old":
            assert said(out, "deleted upstream, changed here: kept, now your own", old)
            assert now[old] == edited_files[old] and now[new] == (flat.upstream / "template" / new).read_bytes()
        else:
            assert old not in now and mine[old] in now[new].decode()
            assert f" {new}  ({old} upstream renamed)" in out
    if age == "present":
        assert said(out, "changed on both sides: merged", "update/guard.py")
        assert not upgrade.broken({"guard.py": now["update/guard.py"]})
        for old in ("template.py", "run_lifetime.py", "run_tools.py"):
            path = moved.get(old, old)
            assert f"Resolve by hand: {path}\n    +{mine[old]}" in out


def test_each_file_of_the_flat_folder_is_where_the_table_of_old_places_says():
    import template

    flat = {name.removesuffix(".py") for name in flat_files() if name.endswith(".py")}
    on_top = {path.stem for path in (ROOT / "template").glob("*.py")}
    assert flat - on_top == template._MOVED.keys()
    moves = {(f"{new.replace('.', '/')}.py", f"{old}.py") for old, new in template._MOVED.items()}
    assert moves <= upgrade.renamed(ROOT, FLAT_COMMIT, "HEAD").items()


# --- releases -----------------------------------------------------------------------------------------------------------


def release_mistakes(root):
    """What is wrong with the release that the commit checked out in ``root`` is, or with its being none."""
    version = f"v{upgrade.version_in((root / 'template/__init__.py').read_bytes())}"
    is_unreleased = f"## {version[1:]} (unreleased)\n" in (root / "CHANGELOG.md").read_text()
    tags = [tag for tag in git("tag", "--points-at", "HEAD", at=root).split() if re.match(r"v\d", tag)]
    if tags and tags != [version]:
        return f"the tag of a release is v and __version__, {version}, got {tags}"
    if tags and is_unreleased:
        return f"CHANGELOG.md calls {version} unreleased, and it is tagged"
    exists = version in git("tag", at=root).split()
    if exists and git("diff", "--name-only", version, "HEAD", "--", "template", at=root):
        return f"{version} is released and template/ has changed since: set the next __version__ and head it in CHANGELOG.md"
    return ""


def test_a_tag_on_this_commit_is_the_version_and_a_released_version_is_not_changed_any_more():
    found = subprocess.run(["git", "rev-parse", "--show-toplevel"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode or Path(found.stdout.strip()).resolve() != ROOT:
        pytest.skip("not a git clone, so there are no tags to compare with")
    assert release_mistakes(ROOT) == ""


def test_the_check_of_releases_finds_a_wrong_tag_a_forgotten_changelog_and_a_change_behind_a_release(tmp_path):
    def state(version, unreleased, tag=None, code="1"):
        heading = f"## {version}{' (unreleased)' if unreleased else ''}\n"
        write(tmp_path, {"template/__init__.py": f'__version__ = "{version}"\n', "template/code.py": code,
                         "CHANGELOG.md": heading, "train.py": os.urandom(4)})
        commit_all(tmp_path, "state", tag)
        return release_mistakes(tmp_path)

    assert state("0.1.0", unreleased=True) == ""
    assert "got ['v0.1.1']" in state("0.1.0", unreleased=False, tag="v0.1.1")
    assert "calls v0.1.0 unreleased" in state("0.1.0", unreleased=True, tag="v0.1.0")
    git("tag", "-d", "v0.1.0", at=tmp_path)
    assert state("0.1.0", unreleased=False, tag="v0.1.0") == ""
    assert state("0.1.0", unreleased=False) == ""  # what is outside of template/ may change
    assert "set the next __version__" in state("0.1.0", unreleased=False, code="2")
    assert state("0.2.0", unreleased=True, code="2") == ""
