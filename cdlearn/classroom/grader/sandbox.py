"""Where the student's process runs: a sandbox by `bwrap` (bubblewrap) where that works, and a broom for what is left.

In the sandbox a process sees the system read-only, an empty folder to write, no file of anybody else, no network and no
other process, and whatever it starts ends with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOM = 1 << 29  # bytes of a sandbox's own files
HOME = "/handed-in"  # the working folder in a sandbox
OPEN = "students' code has your rights: nothing protects your files, the network, or other students' work"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/opt")


@cache
def unprotected() -> str:
    """Why submissions can read what the grader can, in one line; empty where they run in a sandbox."""
    if not shutil.which("bwrap"):
        return f"no sandbox, so {OPEN} (install bubblewrap)"
    tried = subprocess.run([*sandbox([]), "true"], capture_output=True, text=True)
    why = " ".join(tried.stderr.split())[:120]
    return f"no sandbox ({why}), so {OPEN}" if tried.returncode else ""


def sandbox(readable: Iterable[str | Path]) -> list[str]:
    """The command that runs another with these folders to read, an empty one to write, and nothing else."""
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--proc", "/proc", "--dev", "/dev"]
    for place in ("/tmp", "/dev/shm", HOME):
        command += ["--size", str(ROOM), "--tmpfs", place]
    for path in (*_SYSTEM, *map(str, readable)):
        command += ["--ro-bind-try", path, path]
    return [*command, "--chdir", HOME]


def end_all(pid: int) -> None:
    """Kill a process and all below it."""
    import psutil

    with contextlib.suppress(psutil.Error):
        one = psutil.Process(pid)
        for victim in (*one.children(recursive=True), one):
            with contextlib.suppress(psutil.Error, OSError):
                victim.kill()


def adopt() -> None:
    """Have all that this process ever starts come back to it when it is orphaned, so that `sweep` finds it (Linux)."""
    global _adopts
    with contextlib.suppress(AttributeError, OSError):
        _adopts = ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER


_adopts = False


def sweep() -> None:
    """Kill every process below this one, if it adopts."""
    import psutil

    while _adopts and (strays := psutil.Process().children(recursive=True)):
        for one in strays:
            with contextlib.suppress(psutil.Error, OSError):
                one.kill()
        psutil.wait_procs(strays, timeout=1)
