"""Telling a process from another that got the same number later.

A number alone proves nothing: the kernel gives it out again. The moment at which a process started, together with the
boot of the machine, does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

PROC = Path("/proc")
POLL_SECONDS = 0.05


def mark_of(pid: int) -> str | None:
    """Return what distinguishes the live process `pid` from all others that ever had its number.

    None if there is no such process, or if it has ended and only waits to be collected.
    """
    if not (PROC / "self" / "stat").exists():
        return _mark_by_ps(pid)
    fields = _stat(pid)
    if fields is None or fields[0] in ("Z", "X"):
        return None
    boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {fields[19]}"


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the third (state) on; None if there is no such process."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The second field is the program's name in parentheses and may itself hold spaces and parentheses.
    return text.rpartition(")")[2].split()


def _mark_by_ps(pid: int) -> str | None:
    """The same where there is no /proc (macOS); seconds are coarse, but numbers don't come round that fast."""
    answer = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, mark = answer.stdout.strip().partition(" ")
    return mark.strip() if mark and not state.startswith("Z") else None


def session_members(leader: int, *, variable: str) -> list[int]:
    """Return the live processes of the session that `leader` began and whose environment holds `variable`.

    Finds what a killed leader left behind: Celery's pool, for instance. `variable` is `NAME=value`. Empty where there
    is no /proc.
    """
    wanted = variable.encode()
    return [pid for pid in _numbers() if _in_session(pid, leader) and wanted in _environment(pid)]


def _numbers() -> list[int]:
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()] if PROC.is_dir() else []


def _in_session(pid: int, leader: int) -> bool:
    fields = _stat(pid)
    return fields is not None and fields[0] not in ("Z", "X") and int(fields[3]) == leader


def _environment(pid: int) -> list[bytes]:
    try:
        return (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def end(pid: int, mark: str, *, grace_seconds: float) -> None:
    """End the process that has this number and mark, and its group, politely at first. Blocks up to the grace."""
    if mark_of(pid) != mark:
        return
    send(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while mark_of(pid) == mark and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    send_group(pid, signal.SIGKILL)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def send_group(leader: int, number: signal.Signals) -> None:
    """Send a signal to what is left of the process group of `leader`."""
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        pass
