"""Django's FileResponse on uvicorn: what a site does today that sends a file through Django."""

from __future__ import annotations

import sys

from bench.children import environment
from bench.peers.server import Server


class FileResponseSite(Server):
    """Serves files of `root` by name."""

    name = "Django FileResponse on uvicorn"

    def _start(self) -> None:
        self.root = self.directory / "root"
        self.root.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "uvicorn", "bench.peers.fileresponse_app:app", f"--port={self.port}"]
        options = ["--loop=uvloop", "--http=httptools", "--lifespan=off", "--no-access-log", "--log-level=warning"]
        self._run("uvicorn", [*command, *options], environment(BENCH_FILES=str(self.root)))
