"""tuspyserver (FastAPI) on uvicorn with uvloop, and tuspy sending pieces of 8 MiB."""

from __future__ import annotations

from pathlib import Path

from bench.children import Child, environment
from bench.install import PYTHON
from bench.peers.server import Server


class TusPyServer(Server):
    """Uploads lie in `files`, named by the last part of their URL."""

    name = "tuspyserver"

    @property
    def endpoint(self) -> str:
        return f"{self.url}/files/"

    def _start(self) -> None:
        self.files = self.directory / "files"
        self.files.mkdir(exist_ok=True)
        command = [PYTHON, "-m", "uvicorn", "bench.peers.tuspyserver_app:app", f"--port={self.port}"]
        options = ["--loop=uvloop", "--http=httptools", "--no-access-log", "--log-level=warning"]
        self._run("uvicorn", [*command, *options], environment(BENCH_FILES=str(self.files)))

    def stored(self, url: str) -> Path:
        """Return the file of an upload."""
        return self.files / url.rpartition("/")[2]


def tuspy(directory: Path) -> Child:
    """Start a client: `ask({"endpoint", "path"})` uploads a file and gives `{"seconds", "url"}`."""
    child = Child([PYTHON, "-m", "bench.clients.tuspy_upload"], log=directory / "tuspy.log")
    child.hear()
    return child
