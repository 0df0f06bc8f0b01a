"""A project that ignores ``data/`` or ``checkpoint*`` still commits the whole copy."""

import shutil
import subprocess

from tiny import ROOT

IGNORED = "data/\noutput/\noutputs\nrun*\ncheckpoint*\nmetrics/\nbuild/\n*.pyc\n__pycache__/\n*.csv\n"


def test_git_holds_every_file_of_a_copy_whatever_the_project_ignores(tmp_path):
    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    git("init", "--quiet")
    shutil.copytree(ROOT / "template", tmp_path / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".gitignore").write_text(IGNORED)
    for folder in ("__pycache__", "data/__pycache__"):
        (tmp_path / "utils" / folder).mkdir()
        (tmp_path / "utils" / folder / "stale.pyc").touch()
    (tmp_path / "utils" / "numbers.csv").touch()
    git("add", "--all")
    held = {tmp_path / name for name in git("ls-files", "-z", "utils").split("\0") if name}
    code = {path for path in (tmp_path / "utils").rglob("*.py")}
    assert held == code | {tmp_path / "utils" / name for name in ("py.typed", ".gitignore")}
