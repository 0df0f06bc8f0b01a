"""Which process is which: a number alone does not tell, because the system gives it away again.

    started(pid)        # when the process of that number began; None: there is none
    this_machine()      # what has one numbering of processes
"""

import os
import platform
import socket
import subprocess
import uuid
from contextlib import suppress
from pathlib import Path

UNKNOWN = "unknown"  # a process that is there, about which nothing more can be learned


def this_machine():
    """What has one numbering of processes: a host between two starts, and of its containers each."""
    parts = [socket.gethostname()]
    try:
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    except OSError:
        parts += [platform.system(), f"{uuid.getnode():x}"]
    return " ".join(parts)


def started(pid):
    """When the process of this number began, in the system's own words; None: there is none, or it has ended."""
    if os.name == "nt":
        return _started_on_windows(pid)
    with suppress(OSError, ValueError, IndexError):  # no such process, or a system without /proc: asked below
        state, *rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]
    try:
        os.kill(pid, 0)  # asks only; on Windows it would end the process
    except ProcessLookupError:
        return None
    except OSError:
        return UNKNOWN  # somebody else's, which is hidden
    if os.path.exists("/proc/self/stat"):
        return UNKNOWN
    try:
        told = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, timeout=5,
                              env={**os.environ, "LC_ALL": "C"}).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return UNKNOWN
    return None if not told or told[0].startswith("Z") else " ".join(told[1:])


def _started_on_windows(pid):
    import ctypes
    from ctypes import wintypes

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel.OpenProcess.restype = wintypes.HANDLE
    kernel.OpenProcess.argtypes = [wintypes.DWORD, wintypes.BOOL, wintypes.DWORD]
    kernel.GetProcessTimes.argtypes = [wintypes.HANDLE] + [ctypes.POINTER(wintypes.FILETIME)] * 4
    kernel.GetExitCodeProcess.argtypes = [wintypes.HANDLE, ctypes.POINTER(wintypes.DWORD)]
    kernel.CloseHandle.argtypes = [wintypes.HANDLE]
    may_query, access_denied, still_active = 0x1000, 5, 259
    process = kernel.OpenProcess(may_query, False, pid)
    if not process:
        denied = ctypes.get_last_error() == access_denied  # type: ignore[attr-defined,unused-ignore]
        return UNKNOWN if denied else None
    try:
        code, times = wintypes.DWORD(), [wintypes.FILETIME() for _ in range(4)]
        if kernel.GetExitCodeProcess(process, ctypes.byref(code)) and code.value != still_active:
            return None
        if not kernel.GetProcessTimes(process, *map(ctypes.byref, times)):
            return UNKNOWN
        return f"{times[0].dwHighDateTime:x}{times[0].dwLowDateTime:08x}"
    finally:
        kernel.CloseHandle(process)
