"""The command line client as a process: started, stopped, killed, started again; what it says is noted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from faults.people import Move, Watch
from faults.site import Person
from rig.clients import ClientProcess


class Command(ClientProcess):
    """`python -m delivery.client ARGUMENTS` of one person. It may be run several times; events come from all runs."""

    def __init__(self, who: str, person: Person, url: str, home: Path, *arguments: str) -> None:
        super().__init__(self._take)
        self.watch = Watch(who)
        self.moves: dict[str, Move] = {}  # what is expected, by name
        self.again_bytes = 0
        self._arguments = arguments
        self._receives = arguments[0] == "receive"
        self._url, self._token, self._home = url, person.token, home

    async def run(self) -> None:
        """Start it, once more."""
        await self.start(*self._arguments, url=self._url, token=self._token, home=self._home)

    def _take(self, event: dict[str, Any]) -> None:
        kind = event.get("event", "")
        if kind == "progress":
            if (move := self.moves.get(event["name"])) is not None:
                move.began = move.began or time.monotonic()
                move.moves.append((time.monotonic(), event["stored"]))
            if not self._receives:
                self.watch.acked(event["transfer"], event["stored"])
            return
        self.watch(kind, {name: value for name, value in event.items() if name != "event"})
        if kind == "resumed":
            self.again_bytes += event.get("again", 0)
        elif kind == "done" and (move := self.moves.get(event["name"])) is not None:
            move.began = move.began or time.monotonic()
            move.ended, move.sha256 = time.monotonic(), event["sha256"]
            # What a recipient has is looked up by its own rows; a sender says what it has made.
            move.payload = "" if self._receives else event["payload"]
        elif kind == "failed":
            self.complaints.append(str(event))
