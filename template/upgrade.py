"""Keep a copy of this folder connected with where it came from: merge a newer version into a copy that you edited.

    python template/upgrade.py copy my_project/utils        # in a clone; leaves the stamp my_project/utils/.upstream
    python my_project/utils/upgrade.py status               # what you changed, what upstream changed
    python my_project/utils/upgrade.py diff --mine
    python my_project/utils/upgrade.py upgrade              # to the newest version; --dry-run only says what it would do

Each file is merged three ways with ``git merge-file``: yours, upstream's new one, and the base, which is the one that you
once copied. The exit code is 0, 1 when files are left that need you (with conflicts, not valid Python, or hidden by a
folder of the same name), 2 when it was refused.

It imports and runs nothing of the copy or of upstream, so it also works while conflict markers stand in the other files.
It never touches files that upstream does not have, follows no links, does not see that you renamed a file, and commits
nothing. Line endings and permissions of your files stay.
"""

import os
import sys

if __name__ == "__main__" and os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)):
    sys.path.pop(0)  # a json.py in the copy is not what is imported below

import argparse
import difflib
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
import warnings
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent
SOURCE = "template"         # the folder in upstream's repository
STAMP = ".upstream"
JOURNAL = ".upgrade"        # there while files are being put in place: the next start takes back what is half done
STAGE = ".upgrade.new"      # not yet begun, or already done: the next start removes it
OPTIONAL = ("callbacks", "trackers", "tools")  # folders whose files are parts of their own
MOST_LINES = 40             # of your changes in a file with conflicts that are shown
_VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)")
_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES",
           "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX")  # set in a git hook, and about another repository
WORDS = {
    "yours": "changed here only: kept",
    "taken": "changed upstream only: taken",
    "same": "the same on both sides: kept",
    "merged": "changed on both sides: merged",
    "conflict": "CONFLICT, changed on both sides",
    "new": "new upstream: added",
    "wanted": "named by --with: added",
    "deleted": "deleted here: stays deleted",
    "removed": "deleted upstream: deleted",
    "orphaned": "deleted upstream, changed here: kept, now your own",
    "left out": "left out of this copy: stays out",
}


class UpgradeError(Exception):
    """What a person has to know and do; shown without a traceback."""


class Unreachable(UpgradeError):
    """Upstream cannot be read."""


class Step(NamedTuple):
    """What becomes of one of upstream's files: ``writes`` maps paths to their new bytes, or None to delete."""

    kind: str
    path: str
    note: str = ""
    writes: dict = {}


class Comparison(NamedTuple):
    """A copy between its base and a version of upstream: bytes by path, and upstream's renames (new -> old)."""

    base: dict
    mine: dict
    theirs: dict
    renames: dict
    base_name: str
    target_name: str
    only: list          # the optional parts that a lean copy has, None for a whole one
    wanted: set         # the parts that come even when they were deleted here
    stamp: bytes        # as it will be
    heading: str


# --- git ------------------------------------------------------------------------------------------------------------


def run_git(*args, at, stdin=None):
    """A finished git command, run in ``at`` without hooks and prompts.

    Raises:
        UpgradeError: git is not installed.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _PLACES}
    environment |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh"}
    command = ["git", "-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=false", *map(str, args)]
    try:
        return subprocess.run(command, cwd=at, env=environment, input=stdin, capture_output=True)
    except FileNotFoundError:
        raise UpgradeError("This needs git, and there is no git on PATH. Install it (https://git-scm.com).") from None


def git(*args, at, stdin=None):
    """What a git command prints, as bytes.

    Raises:
        UpgradeError: it failed; the message holds git's own.
    """
    done = run_git(*args, at=at, stdin=stdin)
    if done.returncode:
        raise UpgradeError(f"git {args[0]} failed in {at}: {_last_lines(done)}")
    return done.stdout


def _last_lines(done):
    return " ".join(os.fsdecode(done.stderr).split("\n")[-4:]).strip()


@contextmanager
def cloned(origin):
    """A bare clone of ``origin``, a URL or path, in a temporary folder: nothing of it is checked out."""
    with tempfile.TemporaryDirectory(prefix="upstream-", ignore_cleanup_errors=True) as folder:
        done = run_git("clone", "--bare", "--quiet", "--template=", "--", origin, folder, at=folder)
        if done.returncode:
            raise Unreachable(f"Upstream must be a git repository that can be reached, and {origin} is not: "
                              f"{_last_lines(done)} Check the network, or name another clone or URL with --from.")
        yield folder


def tree(clone, commit):
    """``{path: blob id}`` of the template folder in a commit.

    Raises:
        UpgradeError: the commit has no such folder, or one that holds links, submodules or paths that lead out of it.
    """
    done = run_git("ls-tree", "-r", "-z", f"{commit}:{SOURCE}", at=clone)
    if done.returncode:
        raise UpgradeError(f"Upstream must have a folder {SOURCE}/, and its commit {commit[:10]} has none. "
                           "Name a repository of the template with --from.")
    files = {}
    for line in os.fsdecode(done.stdout).split("\0")[:-1]:
        described, _, path = line.partition("\t")
        mode, _, blob = described.split()
        if mode not in ("100644", "100755"):
            raise UpgradeError(f"Upstream may hold plain files only, and {path!r} of commit {commit[:10]} is a link or a "
                               f"submodule (mode {mode}). Nothing was written; choose another version with --to.")
        files[check_path(path)] = blob
    return files


def contents(clone, files):
    """``{path: bytes}`` of what ``tree`` listed."""
    out = git("cat-file", "--batch", at=clone, stdin="".join(f"{blob}\n" for blob in files.values()).encode())
    found, start = {}, 0
    for path in files:
        first = out.index(b"\n", start) + 1
        header = out[start:first].split()  # id, type and size, or "missing" behind the id
        if header[1] != b"blob":
            raise UpgradeError(f"Upstream must be a whole clone, and {path} is missing in it. Name another with --from.")
        end = first + int(header[2])
        found[path], start = out[first:end], end + 1  # a line feed stands behind each
    return found


def was_upstream(clone, path, data):
    """Whether some commit of upstream had these bytes at ``path``."""
    blob = git("hash-object", "--stdin", at=clone, stdin=lf(data)).decode().strip()
    found = run_git("log", "--all", "-1", "--format=%H", f"--find-object={blob}", "--", f"{SOURCE}/{path}", at=clone)
    return bool(found.stdout)


def renamed(clone, base, target):
    """``{new path: old path}`` of the files that upstream renamed, as git finds them between the two commits, and in each
    step from one to the other: a file that was rewritten after its move is no longer like the one that it was."""
    steps = git("rev-list", "--first-parent", "--reverse", f"{base}..{target}", at=clone).decode().split()
    by_steps = {}
    for old, new in _renames_of(clone, zip([base, *steps], steps)):
        by_steps[new] = by_steps.pop(old, old)
    found = {new: old for old, new in _renames_of(clone, [(base, target)])}
    before, after = tree(clone, base), tree(clone, target)
    for new, old in by_steps.items():
        is_move = old in before and old not in after and new in after and new not in before
        if is_move and new not in found and old not in found.values():
            found[new] = old
    return found


def _renames_of(clone, pairs):
    """``[(old path, new path), …]`` between the commits of each pair, in their order."""
    flags = "-r", "-z", "-M", "--name-status", "--diff-filter=R", "--no-commit-id", f"--relative={SOURCE}"
    pairs = "".join(f"{after} {before}\n" for before, after in pairs)
    parts = os.fsdecode(git("diff-tree", "--stdin", *flags, at=clone, stdin=pairs.encode())).split("\0")
    return list(zip(parts[1::3], parts[2::3]))


def uncommitted(folder):
    """Files below ``folder`` that differ from its repository's last commit, untracked ones too; [] outside of one."""
    done = run_git("rev-parse", "--is-inside-work-tree", at=folder)
    if done.returncode and b"not a git repository" not in done.stderr:
        raise UpgradeError(f"git cannot tell whether {folder} has uncommitted changes: {_last_lines(done)} "
                           "Repair that, or upgrade with --force.")
    if done.stdout.strip() != b"true":
        return []
    out = os.fsdecode(git("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", ".", at=folder))
    paths = [line[3:] for line in out.split("\0")[:-1]]
    return [path for path in paths if not {"__pycache__", JOURNAL, STAGE} & set(path.split("/"))]


# --- versions -------------------------------------------------------------------------------------------------------


def versions(clone):
    """Names of upstream's released versions, oldest first."""
    tags = [tag for tag in git("tag", at=clone).decode(errors="replace").split("\n") if _VERSION.fullmatch(tag)]
    return sorted(tags, key=lambda tag: [int(number) for number in _VERSION.fullmatch(tag).groups()])


def commit_of(clone, name):
    """The commit id of a tag or commit, None when it is not there."""
    done = run_git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", at=clone)
    return done.stdout.decode().strip() or None


def version_in(source):
    """``__version__`` in the bytes of an ``__init__.py``, None when there is none. Read, not imported."""
    found = re.search(rb"^__version__\s*=\s*[\"']([\w.+-]+)[\"']", source, re.M)
    return found and found[1].decode()


def find_base(folder, stamp, clone):
    """The commit that the copy was made from: ``(commit, name, how it is known)``.

    The stamp knows it. For a plain ``cp -r`` it is the tag of ``__version__``, unless another commit has more files in
    common with the copy: it may have been made between two releases.
    """
    if stamp and commit_of(clone, stamp["commit"]):
        return stamp["commit"], stamp["version"], f"by {STAMP}"
    init = inside(folder, "__init__.py")
    version = stamp["version"] if stamp else f"v{version_in(init.read_bytes()) if init.is_file() else None}"
    tagged = commit_of(clone, f"refs/tags/{version}") if version in versions(clone) else None
    commit, equal, total = _most_alike(folder, clone, tagged)
    if commit == tagged:
        return commit, version, f"by the version in {STAMP}, whose commit is not upstream" if stamp else "by __version__"
    return commit, commit[:10], f"by its files: {equal} of {total} are equal to those of this commit"


def _most_alike(folder, clone, tagged):
    """``(commit, number of files that are equal here, number of its files)``: ``tagged``, or a commit that has more."""
    @cache
    def is_here(path, blob):
        place = inside(folder, path)
        return place.is_file() and has_id(place.read_bytes(), blob)

    best = None, 0, 0
    commits = git("log", "--all", "--format=%H", "--", SOURCE, at=clone).decode().split()
    for commit in [tagged, *commits] if tagged else commits:
        with suppress(UpgradeError):  # without the folder, or with something in it that is never copied
            files = tree(clone, commit)
            equal = sum(is_here(path, blob) for path, blob in files.items())
            if equal > best[1]:
                best = commit, equal, len(files)
    if not best[1]:
        raise UpgradeError(f"This must run in a copy of the template, and no file in {folder} is like one upstream. "
                           "Name the repository it was copied from with --from.")
    return best


def find_target(clone, base, wanted):
    """``(commit, name)`` of the version to upgrade to: ``wanted``, or the newest; the base itself when that is newer.

    Raises:
        UpgradeError: there is no such version; the message lists those there are.
    """
    there = versions(clone)
    if wanted and wanted not in there:
        raise UpgradeError(f"--to must name a version of upstream, got {wanted!r}. There are: {', '.join(there) or 'none'}.")
    if not there:
        return base
    name = wanted or there[-1]
    commit = commit_of(clone, f"refs/tags/{name}")
    base_is_release = base[1] in there and commit_of(clone, f"refs/tags/{base[1]}") == base[0]
    if not (wanted or base_is_release) and run_git("merge-base", "--is-ancestor", commit, base[0], at=clone).returncode == 0:
        return base
    return commit, name


# --- the copy -------------------------------------------------------------------------------------------------------


def check_path(path):
    """``path`` when it stays in the folder and is none of ours.

    Raises:
        UpgradeError: it is absolute, has ``..`` or a name that is special to git, Windows or this file.
    """
    parts = path.split("/")
    special = {"", ".", "..", ".git"} & {part.lower() for part in parts} or parts[0] in (STAMP, JOURNAL, STAGE)
    if special or re.search(r"[\\:\0-\x1f]", path):
        raise UpgradeError(f"Paths must stay in the folder, got {path!r}. Nothing was written.")
    return path


def inside(folder, path):
    """The place of ``path`` in ``folder``, when no link leads elsewhere.

    Raises:
        UpgradeError: a link or something else that is no plain file is in the way.
    """
    full, parts = folder, path.split("/")
    for i, part in enumerate(parts):
        full = full / part
        if full.is_symlink():
            raise UpgradeError(f"Links are not followed, and {full} is one. Put a plain file or folder there.")
        is_last = i == len(parts) - 1
        if os.path.lexists(full) and not (full.is_file() if is_last else full.is_dir()):
            raise UpgradeError(f"Upstream has a {'file' if is_last else 'folder'} {path!r}, and {full} is something else. "
                               "Move it away.")
    return full


def read_copy(folder, paths):
    """``{path: bytes}`` of those paths that are in the copy."""
    places = {path: inside(folder, path) for path in sorted(paths)}
    return {path: place.read_bytes() for path, place in places.items() if place.exists()}


def has_id(data, blob):
    """Whether ``blob`` is git's id of these bytes, or of the same with line feeds alone."""
    algorithm = hashlib.sha1 if len(blob) == 40 else hashlib.sha256
    return any(algorithm(b"blob %d\0" % len(form) + form).hexdigest() == blob for form in (data, lf(data)))


def read_stamp(folder):
    """What ``.upstream`` says, None when there is none.

    Raises:
        UpgradeError: it is damaged, or of a later format.
    """
    path = folder / STAMP
    if path.is_symlink() or not path.exists():
        return None
    try:
        stamp = json.loads(path.read_bytes())
        if stamp["format"] != 1:
            raise UpgradeError(f"{path} must have format 1, got {stamp['format']!r}. Take upgrade.py from a newer version.")
        sound = (isinstance(stamp["origin"], str) and isinstance(stamp["version"], str) and _ID.fullmatch(stamp["commit"])
                 and all(_ID.fullmatch(blob) and check_path(path) for path, blob in stamp["files"].items())
                 and (stamp["only"] is None or all(isinstance(name, str) for name in stamp["only"])))
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UpgradeError(f"{path} must be as copy or upgrade wrote it, and it is damaged. Get it back (git checkout), or "
                           "delete it and say --from: the base is then found by __version__.")
    return stamp


def make_stamp(origin, version, commit, only, files):
    """The stamp as bytes; passwords in ``origin`` stay out of it."""
    stamp = {"format": 1, "origin": re.sub(r"^(https?://)[^/@]*@", r"\1", origin), "version": version,
             "commit": commit, "only": only, "files": dict(sorted(files.items()))}
    return json.dumps(stamp, indent=1).encode() + b"\n"


# --- parts ----------------------------------------------------------------------------------------------------------


def part_of(path):
    """Which part of the template a file belongs to: "callbacks/ema", "tools/export", or "core" for all the rest."""
    folder, *rest = path.split("/")
    optional = folder in OPTIONAL and rest and rest[0] not in ("__init__.py", "base.py")
    return f"{folder}/{rest[0].partition('.')[0]}" if optional else "core"


def is_left_out(path, only):
    return only is not None and part_of(path) not in ("core", *only)


def named_parts(option, names, files):
    """The set of parts in ``names``, "core,callbacks/ema"; empty for None.

    Raises:
        UpgradeError: one of them is no part of ``files``; the message lists those there are.
    """
    named, there = set(names.split(",") if names else ()), {part_of(path) for path in files}
    if named - there:
        raise UpgradeError(f"{option} must name parts of the template, got {','.join(sorted(named - there))}. "
                           f"There are: {', '.join(sorted(there))}.")
    return named


# --- merging --------------------------------------------------------------------------------------------------------


def is_binary(data):
    return b"\0" in data


def lf(data):
    """With line feeds alone at the ends of lines; binary data as it is."""
    return data if is_binary(data) else data.replace(b"\r\n", b"\n")


def like(data, model):
    """``data`` with the line endings that most lines of ``model`` have."""
    if is_binary(data) or is_binary(model):
        return data
    crlf = model.count(b"\r\n") * 2 > model.count(b"\n")
    return lf(data).replace(b"\n", b"\r\n") if crlf else lf(data)


def merge(base, mine, theirs, names):
    """``(kind, bytes)`` of three versions, ``base`` None when there is none; binary data in conflict stays ``mine``.

    ``names`` are those of base and target, for the conflict markers.
    """
    b, m, t = lf(base or b""), lf(mine), lf(theirs)
    if m == t:
        return "unchanged" if m == b and base is not None else "same", mine
    if base is not None and b == t:
        return "yours", mine
    if base is not None and m == b:
        return "taken", like(t, mine)
    if any(map(is_binary, (b, m, t))):
        return "conflict", mine
    with tempfile.TemporaryDirectory(prefix="merge-", ignore_cleanup_errors=True) as folder:
        for name, data in (("mine", m), ("base", b), ("theirs", t)):
            Path(folder, name).write_bytes(data)
        labels = ["-L", "yours", "-L", f"base {names[0]}", "-L", f"upstream {names[1]}"]
        done = run_git("merge-file", "--diff3", "-p", *labels, "mine", "base", "theirs", at=folder)
    if not 0 <= done.returncode < 128:
        raise UpgradeError(f"git merge-file failed: {_last_lines(done)}")
    return "conflict" if done.returncode else "merged", like(done.stdout, mine)  # git returns the number of conflicts


def plan(folder, compared):
    """The Steps of an upgrade, one for each file of upstream that is not the same in base, copy and target."""
    base_files, mine_files, theirs_files = compared.base, compared.mine, compared.theirs
    renames = {new: old for new, old in compared.renames.items() if not (old in mine_files and new in mine_files)}
    steps = []
    for path in sorted((base_files.keys() | theirs_files.keys()) - set(renames.values())):
        old = renames.get(path, path)
        base, theirs = base_files.get(old), theirs_files.get(path)
        mine = mine_files.get(path, mine_files.get(old))
        if mine is None:
            step = _absent_step(path, old, base, theirs, compared)
        elif theirs is None:
            step = Step("orphaned", path) if lf(mine) != lf(base) else Step("removed", path, "", {path: None})
        else:
            step = _merge_step(folder, path, base, mine, theirs, compared)
        if old != path:
            step = _renamed_step(step, old, old in mine_files)
        if step and step.kind != "unchanged":
            steps.append(step)
    return steps


def _absent_step(path, old, base, theirs, compared):
    if theirs is None:
        return None  # deleted on both sides
    if part_of(path) in compared.wanted:
        return Step("wanted", path, "", {path: theirs})
    if is_left_out(path if base is None else old, compared.only):
        return Step("left out", path, "new upstream" if base is None else "")
    if base is None:
        return Step("new", path, "", {path: theirs})
    return Step("deleted", path, "" if lf(base) == lf(theirs) else "changed upstream")


def _merge_step(folder, path, base, mine, theirs, compared):
    kind, merged = merge(base, mine, theirs, ("(none)" if base is None else compared.base_name, compared.target_name))
    if kind == "conflict" and path == "upgrade.py":
        merged = mine  # it must still run
    writes = {path: merged} if merged != mine or path not in compared.mine else {}
    if kind == "conflict" and merged == mine:  # both stay, side by side
        beside = f"{path}.upstream-{compared.target_name}"
        while os.path.lexists(folder / beside):
            beside += "_"
        return Step(kind, path, f"upstream's is {beside}", {**writes, beside: theirs})
    return Step(kind, path, "new upstream, and a file of that name was here" if base is None else "", writes)


def _renamed_step(step, old, is_at_old):
    """``step`` of a file that upstream renamed; your edits follow to the new name."""
    writes = {**step.writes, old: None} if is_at_old else step.writes
    kind = "taken" if step.kind in ("unchanged", "same") and is_at_old else step.kind
    return step._replace(kind=kind, note=f"{old} upstream renamed; {step.note}".rstrip("; "), writes=writes)


def own_changes(compared, path):
    """Your changes in a file that is left with conflicts, line by line: a conflict may span many more lines."""
    old = compared.renames.get(path, path)
    base, mine = compared.base.get(old), compared.mine.get(path, compared.mine.get(old))
    if base is None or is_binary(base) or is_binary(mine):
        return []
    before, after = (lf(data).decode(errors="backslashreplace").splitlines() for data in (base, mine))
    changed = [line for line in difflib.unified_diff(before, after, n=0, lineterm="") if not line.startswith("@@")][2:]
    more = len(changed) - MOST_LINES
    return [*changed[:MOST_LINES], *([f"and {more} lines more"] if more > 0 else [])]


def hidden(folder, compared, writes):
    """``{file: folder}`` of your Python files that cannot be imported, because upstream has a package of their name."""
    packages = [path.removesuffix("/__init__.py") for path in sorted(compared.theirs) if path.endswith("/__init__.py")]
    there = {**compared.mine, **writes}
    return {f"{package}.py": package for package in packages
            if there.get(f"{package}/__init__.py") is not None and f"{package}.py" not in compared.theirs
            and writes.get(f"{package}.py", b"") is not None and (folder / f"{package}.py").is_file()}


def broken(files):
    """``{path: reason}`` of the Python files that do not compile; nothing is run."""
    reasons = {}
    for path, data in files.items():
        try:
            if path.endswith(".py"):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    compile(data, path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            reasons[path] = f"line {getattr(error, 'lineno', None)}: {getattr(error, 'msg', error)}"
    return reasons


# --- writing --------------------------------------------------------------------------------------------------------


def apply(folder, writes):
    """Write all of ``{path: bytes, or None to delete}`` or nothing.

    New files and the old ones are laid in a folder inside the copy; renaming it to ``JOURNAL`` begins the change, renaming
    it back ends it. Whatever happens between the two is taken back, at once or, after a kill, at the next start.

    Raises:
        UpgradeError: something could not be written; the copy is as it was.
    """
    try:
        _stage(folder, writes)
        os.replace(folder / STAGE, folder / JOURNAL)
        for number, (path, data) in enumerate(writes.items()):
            place = inside(folder, path)
            if data is None:
                place.unlink()
                _remove_empty_parents(folder, path)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(folder / JOURNAL / f"new{number}", place)
        os.replace(folder / JOURNAL, folder / STAGE)
    except BaseException as error:
        recover(folder)
        if isinstance(error, OSError):
            raise UpgradeError(f"Writing failed, and the copy is as it was: {error}") from error
        raise
    shutil.rmtree(folder / STAGE, ignore_errors=True)


def _stage(folder, writes):
    stage = folder / STAGE
    stage.mkdir()
    journal = []
    for number, (path, data) in enumerate(writes.items()):
        place, old, new = inside(folder, path), stage / f"old{number}", stage / f"new{number}"
        if there := place.exists():
            _write(old, place.read_bytes())
            shutil.copystat(place, old)
        if data is not None:
            _write(new, data)
            if there:
                shutil.copymode(place, new)
        journal.append([path, there, None if data is None else hashlib.sha256(data).hexdigest()])
    _write(stage / "journal.json", json.dumps(journal).encode())


def _write(path, data):
    with open(path, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def recover(folder):
    """Take back a change that was interrupted; a file that you edited since then stays, with the old one beside it."""
    shutil.rmtree(folder / STAGE, ignore_errors=True)
    if not (folder / JOURNAL).is_dir():
        return
    for number, entry in enumerate(json.loads((folder / JOURNAL / "journal.json").read_bytes())):
        _put_back(folder, folder / JOURNAL / f"old{number}", *entry)
    os.replace(folder / JOURNAL, folder / STAGE)
    shutil.rmtree(folder / STAGE, ignore_errors=True)
    print(f"A change was interrupted; {folder} is as it was before.", file=sys.stderr)


def _put_back(folder, old, path, was_there, new_hash):
    place = inside(folder, path if path == STAMP else check_path(path))
    now = place.read_bytes() if place.exists() else None
    is_new = now is not None and hashlib.sha256(now).hexdigest() == new_hash
    if not was_there:
        if is_new:
            place.unlink()
        _remove_empty_parents(folder, path)
    elif old.exists() and now != old.read_bytes():  # otherwise it was not reached, or is back already
        if now is not None and not is_new:
            place = place.with_name(f"{place.name}.before-upgrade")
            print(f"{path} was edited after the interruption and stays; as it was before: {place}", file=sys.stderr)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(old, place)


def _remove_empty_parents(folder, path):
    with suppress(OSError):  # not empty
        for parent in list(Path(path).parents)[:-1]:
            (folder / parent).rmdir()


# --- commands -------------------------------------------------------------------------------------------------------


def compare(folder, origin, to=None, parts=None):
    """The Comparison of a copy with the version ``to``, None for the newest; ``parts`` is what ``--with`` names."""
    stamp = read_stamp(folder)
    origin = origin or stamp and stamp["origin"]
    if not origin:
        raise UpgradeError(f"{folder} has no {STAMP}, so upstream must be named: --from CLONE_OR_URL.")
    if os.path.exists(origin):
        origin = os.path.realpath(origin)
    with cloned(origin) as clone:
        base_commit, base_name, how = find_base(folder, stamp, clone)
        commit, name = find_target(clone, (base_commit, base_name), to)
        base_files, files = tree(clone, base_commit), tree(clone, commit)
        base, theirs, renames = contents(clone, base_files), contents(clone, files), renamed(clone, base_commit, commit)
        newest = (versions(clone) or ["no version"])[-1]
        mine = read_copy(folder, base.keys() | theirs.keys())
        for path in mine.keys() - base.keys():  # new upstream: yours too, or one that you took from there
            if was_upstream(clone, path, mine[path]):
                base[path] = mine[path]
    wanted, only = named_parts("--with", parts, files), stamp["only"] if stamp else None
    if only is not None:  # what was renamed upstream stays in
        only = sorted({*only, *wanted, *(part_of(new) for new, old in renames.items() if old in mine)} - {"core"})
    heading = f"{folder}: {base_name} ({base_commit[:10]}, {how}); upstream {origin}: newest is {newest}"
    new_stamp = make_stamp(origin, name, commit, only, files)
    return Comparison(base, mine, theirs, renames, base_name, name, only, wanted, new_stamp, heading)


def show(steps):
    for kind, words in WORDS.items():
        for step in steps:
            if step.kind == kind:
                print(f"  {words:<50} {step.path}" + (f"  ({step.note})" if step.note else ""))


def status(folder, options):
    """Say what became of each file here and upstream; without upstream, what the stamp tells."""
    try:
        compared = compare(folder, options.origin)
    except Unreachable:
        stamp = read_stamp(folder)
        for path, blob in stamp["files"].items() if stamp else ():
            place = inside(folder, path)
            if not place.exists():
                print(f"  left out or deleted here: {path}")
            elif not has_id(place.read_bytes(), blob):
                print(f"  changed here: {path}")
        raise
    print(compared.heading)
    show(plan(folder, compared))
    return 0


def diff(folder, options):
    """Print the changes since the base, of this copy or of upstream."""
    compared = compare(folder, options.origin)
    after = compared.mine if options.mine else compared.theirs
    left_out = {path for path in compared.base if path not in after and is_left_out(path, compared.only)}
    with tempfile.TemporaryDirectory(prefix="diff-", ignore_cleanup_errors=True) as place:
        for side, files in (("a", compared.base), ("b", after)):
            Path(place, side).mkdir()
            for path in (files.keys() & compared.base.keys() if options.mine else files.keys()) - left_out:
                Path(place, side, path).parent.mkdir(parents=True, exist_ok=True)
                Path(place, side, path).write_bytes(lf(files[path]))
        flags = "--no-index", "--no-ext-diff", "--no-prefix"
        sys.stdout.buffer.write(run_git("-c", "core.quotePath=false", "diff", *flags, "a", "b", at=place).stdout)
    return 0


def upgrade(folder, options):
    """Merge a version of upstream into the copy. Returns 1 when files are left that do not work."""
    changed = [] if options.force or options.dry_run else uncommitted(folder)
    if changed:
        raise UpgradeError(f"What is in {folder} must be committed first, so that you can go back, and this is not: "
                           f"{', '.join(changed)}. Commit or stash it, or say --force.")
    compared = compare(folder, options.origin, options.to, options.parts)
    steps = plan(folder, compared)
    writes = {path: data for step in steps for path, data in step.writes.items()}
    reasons = broken({path: data for path, data in {**compared.mine, **writes}.items() if data is not None})
    conflicts = [step.path for step in steps if step.kind == "conflict"]
    if not (inside(folder, STAMP).exists() and (folder / STAMP).read_bytes() == compared.stamp):
        writes[STAMP] = compared.stamp
    print(compared.heading)
    if writes:
        show(steps)
        if not options.dry_run:
            apply(folder, writes)
    for path in conflicts:
        print(f"Resolve by hand: {path}")
        for line in own_changes(compared, path):
            print(f"    {line}")
    for path in reasons:
        if path not in conflicts:
            print(f"Does not compile: {path}, {reasons[path]}")
    in_the_way = hidden(folder, compared, writes)
    for path, package in in_the_way.items():
        print(f"Hidden: {path}, because upstream has a folder {package}/, which Python imports instead. Rename your file.")
    if options.dry_run and writes:
        print("Nothing was written.")
    else:
        print(f"{'' if writes else 'Nothing to do: '}The copy is at {compared.target_name}.")
    return 1 if conflicts or reasons or in_the_way else 0


def copy(folder, options):
    """Copy the committed files of a clone, with a stamp, into a folder that is not there yet."""
    destination = Path(options.destination).resolve()
    found = run_git("rev-parse", "--show-prefix", "--show-toplevel", at=folder)
    prefix, _, top = os.fsdecode(found.stdout).strip("\n").partition("\n")
    if found.returncode or prefix != f"{SOURCE}/" or (folder / STAMP).exists():
        raise UpgradeError(f"copy must run in a clone of the template, as python {SOURCE}/upgrade.py, and {folder} is none. "
                           "Clone it with git, or copy the folder with cp -r and say --from when you upgrade.")
    if folder in (destination, *destination.parents):
        raise UpgradeError(f"DESTINATION must be outside of {folder}, got {destination}.")
    if changed := uncommitted(folder):
        raise UpgradeError(f"Committed files are copied, and these are not: {', '.join(changed)}. Commit them first.")
    recover(destination)  # a copy that was interrupted
    if os.path.lexists(destination) and (not destination.is_dir() or any(destination.iterdir())):
        raise UpgradeError(f"DESTINATION must be new or empty, and {destination} is not. A copy is "
                           "upgraded with its own upgrade.py.")
    commit = commit_of(top, "HEAD")
    files = tree(top, commit)
    only = None if options.only is None else sorted(named_parts("--only", options.only, files) - {"core"})
    new = contents(top, {path: blob for path, blob in files.items() if not is_left_out(path, only)})
    version = f"v{version_in(new['__init__.py'])}"
    destination.mkdir(parents=True, exist_ok=True)
    apply(destination, {**new, STAMP: make_stamp(origin_of(top), version, commit, only, files)})
    print(f"{destination} is a copy of {version} ({commit[:10]}), {len(new)} files. Commit it with its {STAMP}.")
    return 0


def origin_of(top):
    """Where a clone came from; its own path when it came from nowhere."""
    url = os.fsdecode(run_git("config", "remote.origin.url", at=top).stdout).strip()
    path = os.path.join(top, url)
    return os.path.realpath(path) if os.path.exists(path) else url or top


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="command")
    copying = commands.add_parser("copy", help="copy the template into your project", allow_abbrev=False)
    copying.add_argument("destination", metavar="DESTINATION", help="a folder that is not there yet")
    copying.add_argument("--only", metavar="PARTS", help="a lean copy, for example core,callbacks/history; "
                                                         "the rest stays out on upgrade too")
    copying.set_defaults(run=copy)
    for run, words in ((status, "what changed here and upstream"), (diff, "the same, line by line"),
                       (upgrade, "merge a version of upstream into the copy")):
        command = commands.add_parser(run.__name__, help=words, allow_abbrev=False)
        command.add_argument("--from", dest="origin", metavar="CLONE_OR_URL", help="upstream, when not the one in the stamp")
        command.set_defaults(run=run)
        if run is diff:
            side = command.add_mutually_exclusive_group(required=True)
            side.add_argument("--mine", action="store_true", help="what you changed")
            side.add_argument("--theirs", action="store_true", help="what upstream changed")
        if run is upgrade:
            command.add_argument("--to", metavar="vX.Y.Z", help="the version to take; the newest by default")
            command.add_argument("--with", dest="parts", metavar="PARTS", help="what was left out or deleted and shall come")
            command.add_argument("--dry-run", action="store_true", help="only say what would be done")
            command.add_argument("--force", action="store_true", help="also with uncommitted changes in the copy")
    return parser.parse_args(argv)


def main(argv=None, folder=FOLDER):
    """Run a command of the command line on the copy in ``folder``; returns the exit code."""
    options = parse(argv)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    try:
        recover(folder)
        return options.run(folder, options)
    except (UpgradeError, OSError) as error:
        sys.stdout.flush()
        print(f"upgrade.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
