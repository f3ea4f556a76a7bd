"""@tus/server with its file store, and tus-js-client: the reference implementations of tus, with their defaults."""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.children import Child
from bench.install import LISTS, NODE, program
from bench.peers.server import Server


class TusNode(Server):
    """Uploads lie in `files`, named by the last part of their URL."""

    name = "@tus/server"

    @property
    def endpoint(self) -> str:
        return f"{self.url}/files"

    def _start(self) -> None:
        self.files = self.directory / "files"
        self.files.mkdir(exist_ok=True)
        self._run("node", [program("node"), _script("tus_server.mjs"), str(self.port), self.files]).hear()

    def stored(self, url: str) -> Path:
        """Return the file of an upload."""
        return self.files / url.rpartition("/")[2]


def tus_js_client(directory: Path) -> Child:
    """Start a client: `ask({"endpoint", "path"})` uploads a file and gives `{"seconds", "url"}`."""
    child = Child([program("node"), _script("tus_upload.mjs")], log=directory / "tus-js-client.log")
    child.hear()
    return child


def _script(name: str) -> Path:
    """Return a copy of one of our scripts where node finds the packages that it imports."""
    return Path(shutil.copyfile(LISTS / name, NODE / name))
