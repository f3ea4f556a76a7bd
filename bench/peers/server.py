"""What all peers are: a process, or a few, in a directory of their own, listening on a port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.children import Child, answers, environment, free_port, wait_until
from bench.meter import Groups

READY_SECONDS = 30.0


class Server:
    """A server below `directory`. Subclasses start their processes in `_start`, with `_run`."""

    name = "server"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._children: dict[str, Child] = {}
        self._ending = ExitStack()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def servers(self) -> Groups:
        """Return the processes whose cost counts, as groups for `meter`."""
        return {name: child.pid for name, child in self._children.items()}

    def _start(self) -> None:
        raise NotImplementedError

    def _run(
        self, name: str, arguments: Sequence[str | Path], variables: Mapping[str, str] | None = None, **rest: int
    ) -> Child:
        log = self.directory / f"{name}.log"
        child = Child(arguments, log=log, variables=variables or environment(), **rest)
        self._children[name] = child
        self._ending.callback(child.stop)
        return child

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._start()
            wait_until(lambda: answers(self.port), READY_SECONDS, f"{self.name} on port {self.port}")
        except BaseException:
            self._ending.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.close()
