"""Runs ``fault_moments.py 0`` on a small tmpfs that no other process sees: ``python -m mounted_job``. It is mounted at
``disk``, and what the job left there is copied to ``left`` afterwards."""

import ctypes
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000


def own_mounts():
    """What ``unshare -rm`` does, in this process."""
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, content in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(content)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


if __name__ == "__main__":
    own_mounts()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", "disk"], check=True)
    if os.fork() == 0:
        os.chdir("disk")
        sys.argv = ["fault_moments", "0"]
        runpy.run_module("fault_moments", run_name="__main__", alter_sys=True)
    else:
        _, status = os.wait()
        shutil.copytree("disk", "left", symlinks=True)
        sys.exit(os.waitstatus_to_exitcode(status))
