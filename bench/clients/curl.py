"""curl, timed by itself: from the moment that it could begin to transfer to the end."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.install import program

SECONDS = 300.0


def put(path: Path, url: str) -> float:
    """Put a file; return seconds."""
    return _timed(["--upload-file", path, url])


def get(url: str, path: Path) -> float:
    """Save what is at `url` in a file; return seconds."""
    return _timed(["--output", path, url])


def get_in_many_processes(url: str, count: int) -> float:
    """Fetch `url` with `count` curls at once, each throwing away what comes; return seconds from first to last."""
    began = time.monotonic()
    running = [subprocess.Popen([program("curl"), *_quiet(), "--output", "/dev/null", url]) for _ in range(count)]
    statuses = [one.wait(SECONDS) for one in running]
    if any(statuses):
        raise RuntimeError("a curl failed")
    return time.monotonic() - began


def get_in_one_process(url: str, count: int) -> float:
    """Fetch `url` `count` times at once with one curl; return seconds. Saves starting processes."""
    began = time.monotonic()
    urls = [word for number in range(count) for word in ("--output", "/dev/null", f"{url}?{number}")]
    command = [program("curl"), *_quiet(), "--parallel", "--parallel-immediate", "--parallel-max", str(count), *urls]
    # It draws its progress, whatever it is told.
    subprocess.run(command, check=True, timeout=SECONDS, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def _quiet() -> list[str]:
    return ["--silent", "--show-error", "--fail", "--noproxy", "*"]


def _timed(arguments: Sequence[str | Path]) -> float:
    form = '{"total": %{time_total}, "ready": %{time_pretransfer}}'
    command = [program("curl"), *_quiet(), "--write-out", "%{stderr}" + form, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"curl: {done.stderr.strip()}")
    times: dict[str, Any] = json.loads(done.stderr.strip().splitlines()[-1])
    return float(times["total"] - times["ready"])
