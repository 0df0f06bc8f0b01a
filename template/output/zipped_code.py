"""The code of a run as a zip."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

from .run_folder import told_when_it_fails
from .warn import warn

_CODE = (".py", ".yaml", ".yml", ".toml", ".cfg", ".sh")
_MOST_BYTES = 5_000_000


def zipped_code(path: Path) -> Path | None:
    """The files of code below the working directory that git knows; without git, all of them. None: they are too much."""
    try:
        found = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, timeout=10)
        names = found.stdout.splitlines() if found.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired):
        names = None
    if names is None:
        names = [os.path.relpath(file) for file in Path().rglob("*") if not any(part[0] == "." for part in file.parts)]
    names = sorted(name for name in names if name.endswith(_CODE) and "site-packages" not in name and os.path.isfile(name))
    size = sum(os.path.getsize(name) for name in names)
    if size > _MOST_BYTES:
        warn(f"The code is not saved: it must be at most {_MOST_BYTES / 1e6:.0f} MB, and {len(names)} files below "
             f"{os.getcwd()} come to {size / 1e6:.0f} MB. Start the run in the folder of its code.")
        return None
    with told_when_it_fails(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.write(name)
        return path
    return None
