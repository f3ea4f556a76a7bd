"""Single transfers through ours, each checked: what several rows measure against different peers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from bench import machine
from bench.bench import OUR_CLIENT, Bench, Costs, megabytes_a_second, require
from bench.stack import Stack

SECONDS = 300.0
PIECE_BYTES = 1024 * 1024


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def uploading(bench: Bench, stack: Stack, source: Path, costs: Costs) -> Callable[[], float]:
    """Return what measures one upload with our Python client: MB/s from the first byte to `done`.

    Each time what is stored is read back and compared, then removed.
    """
    (token,) = stack.tokens(1)
    client = bench.client(OUR_CLIENT)
    size, expected = source.stat().st_size, sha256_of(source)
    request = {"do": "upload", "url": stack.url, "token": token, "path": str(source)}

    def measure() -> float:
        sent = costs.of("ours", stack.servers, lambda: client.ask(request, SECONDS))
        costs.cpu["our client"] = round(sent["cpu"], 2)
        require(sent["sha256"] == expected == stack.digest(sent["payload"]), "what is stored is not the source")
        stack.drop(sent["payload"])
        return megabytes_a_second(size, sent["ended"] - sent["began"])

    return measure


def downloading(bench: Bench, stack: Stack, source: Path, costs: Costs) -> Callable[[], float]:
    """Return what measures one delivery to a file with our Python client: MB/s from its `accept` to the saved file.

    A new payload each time: nothing of it is staged or cached before.
    """
    (token,) = stack.tokens(1)
    client = bench.client(OUR_CLIENT)
    size = source.stat().st_size

    def measure() -> float:
        payload = stack.deliver(source, ["user:bench0"])
        directory = bench.folder("received")
        request = {"do": "receive", "url": stack.url, "token": token, "directory": str(directory)}
        machine.warm(3 * size)
        client.ask(request)
        saved = costs.of("ours", stack.servers, lambda: client.hear(SECONDS))
        costs.cpu["our client"] = round(saved["cpu"], 2)
        require(machine.same(source, Path(saved["path"])), "what was received is not the source")
        Path(saved["path"]).unlink()
        stack.drop(payload)
        return megabytes_a_second(size, saved["ended"] - saved["began"])

    return measure
