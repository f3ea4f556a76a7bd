"""The wall clock of the whole machine jumps, with libfaketime; clocks that only rise go on."""

from __future__ import annotations

import atexit
import os
import tempfile
from pathlib import Path

from faults.cells import cell
from faults.trial import Trial

LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
)
_library = next((path for path in LIBRARIES if os.path.exists(path)), None)


def _offset_file() -> Path:
    """Return the file that every process of the stack reads its offset from."""
    return Path(tempfile.gettempdir()) / f"delivery-faults-clock-{os.getpid()}"


VARIABLES = {
    "LD_PRELOAD": _library or "",
    "FAKETIME_TIMESTAMP_FILE": str(_offset_file()),
    "FAKETIME_NO_CACHE": "1",
    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    "DONT_FAKE_MONOTONIC": "1",
}


async def _jump(trial: Trial, offset: str) -> None:
    _offset_file().write_text("+0\n")
    await trial.begin()
    await trial.moment()
    trial.broken()
    trial.afterwards(lambda: _offset_file().write_text("+0\n"))
    _offset_file().write_text(f"{offset}\n")
    trial.healed()


def _missing() -> str:
    if _library is None:
        return "libfaketime is not installed"
    _offset_file().write_text("+0\n")
    atexit.register(_offset_file().unlink, missing_ok=True)
    return ""


@cell("clock: 1 h forward or back", variables=VARIABLES, missing=_missing)
async def hour(trial: Trial) -> None:
    await _jump(trial, trial.turn(("+3600", "-3600")))


@cell("clock: 3 days forward or back", variables=VARIABLES, missing=_missing)
async def days(trial: Trial) -> None:
    await _jump(trial, trial.turn(("+259200", "-259200")))
