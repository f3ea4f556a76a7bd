"""The README's site, made from its own code blocks: what `startproject` makes, with what a reader pastes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.launch.live import ROOT

README = (ROOT / "README.md").read_text()
STARTED = "django-admin startproject mysite ."
DAEMON = re.compile(r"python manage\.py (delivery_(?:web|worker|beat))\b")


@dataclass(frozen=True)
class Block:
    """What a reader pastes into one file."""

    path: str
    new: bool
    code: str

    def paste(self, folder: Path) -> None:
        file = folder / self.path
        assert file.exists() is not self.new, file
        before = "" if self.new else file.read_text()
        file.write_text(before + self.code)


def blocks() -> list[Block]:
    found = re.findall(r"^```python\n# (mysite/\S+), (new|at the end)\n(.*?)^```", README, flags=re.M | re.S)
    return [Block(path, where == "new", code) for path, where, code in found]


def lines() -> list[str]:
    """Return the shell's lines, without what is said about them."""
    (found,) = re.findall(r"^```sh\n(.*?)^```", README, flags=re.M | re.S)
    return [line.partition("  #")[0].rstrip() for line in found.splitlines() if line.strip()]


def daemons() -> list[str]:
    """Return the lines that go on running, each in a terminal of its own."""
    return [line for line in lines() if DAEMON.match(line)]


def around_daemons() -> tuple[list[str], list[str]]:
    """Return the lines before those that go on running, and those after."""
    whole = lines()
    places = [place for place, line in enumerate(whole) if DAEMON.match(line)]
    assert places == list(range(places[0], places[-1] + 1))
    return whole[: places[0]], whole[places[-1] + 1 :]
