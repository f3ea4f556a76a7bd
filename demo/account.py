"""What the demo says while it runs: one line for everything that happens, with the seconds since its start."""

from __future__ import annotations

import sys
import time

MIB = 1_048_576


class Account:
    """Writes lines to standard output. Where nobody reads any more, it goes on in silence: the run is to end cleanly."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def say(self, who: str, text: str) -> None:
        """Write one line about `who`."""
        self.line(f"{self.seconds:6.1f} s  {who:<7} {text}")

    def line(self, text: str) -> None:
        """Write a line as it is."""
        try:
            print(text, flush=True)
        except BrokenPipeError:
            sys.stdout = open("/dev/null", "w")  # noqa: SIM115 - for the rest of the process


def amount(count: int) -> str:
    """Return a number of bytes for people: exact below 1 MiB."""
    return f"{count / MIB:,.1f} MiB" if count >= MIB else f"{count:,} bytes"


def share(count: int, size: int) -> str:
    """Return `count` of `size` bytes as a percentage."""
    return f"{100 * min(1.0, count / size):.0f} %" if size else "0 %"
