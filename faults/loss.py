"""Packets lost at random on loopback, to and from some ports: by nftables, or by iptables where only that is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from types import TracebackType

TABLE = f"delivery_faults_{os.getpid()}"
PROBE_PORT = 1  # of which nothing is ever lost: nobody uses it


class Loss:
    """Lets packets from and to `ports` get lost with a probability of `share`, on this machine, while it is entered."""

    def __init__(self, ports: Iterable[int], share: float) -> None:
        self._rules = _Nft(ports, share) if shutil.which("nft") else _Iptables(ports, share)

    def __enter__(self) -> Loss:
        self._rules.put()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rules.remove()

    def lost(self) -> int:
        """Return how many packets have got lost so far."""
        return self._rules.lost()


def missing() -> str:
    """Return why nothing can get lost here, empty where it can."""
    if not (shutil.which("nft") or shutil.which("iptables")):
        return "neither nft nor iptables is installed"
    try:
        with Loss([PROBE_PORT], 0.5):
            return ""
    except subprocess.CalledProcessError as error:
        return f"no packet filter can be set: {error.stderr.strip().splitlines()[-1:]}"


class _Nft:
    """One table of our own: what else filters here is left alone."""

    def __init__(self, ports: Iterable[int], share: float) -> None:
        sets = ", ".join(map(str, ports))
        chance = f"numgen random mod 1000 < {round(share * 1000)}"
        rules = "\n".join(f"tcp {end} {{ {sets} }} {chance} counter drop" for end in ("dport", "sport"))
        self._table = (
            f"table ip {TABLE} {{\n chain lossy {{\n{rules}\n }}\n chain loss {{\n"
            f'  type filter hook input priority 0; policy accept;\n  iifname "lo" jump lossy\n }}\n}}\n'
        )

    def put(self) -> None:
        _run("nft", "-f", "-", text=self._table)

    def remove(self) -> None:
        _run("nft", "delete", "table", "ip", TABLE)

    def lost(self) -> int:
        return sum(map(int, re.findall(r"counter packets (\d+)", _run("nft", "list", "table", "ip", TABLE))))


class _Iptables:
    def __init__(self, ports: Iterable[int], share: float) -> None:
        self._rules = [
            [
                *("INPUT", "-i", "lo", "-p", "tcp", end, str(port)),
                *("-m", "statistic", "--mode", "random", "--probability", str(share), "-j", "DROP"),
            ]
            for port in ports
            for end in ("--dport", "--sport")
        ]

    def put(self) -> None:
        for rule in self._rules:
            _run("iptables", "-w", "-A", *rule)

    def remove(self) -> None:
        for rule in self._rules:
            _run("iptables", "-w", "-D", *rule)

    def lost(self) -> int:
        """Count by the ports of the rules: other rules of the chain are somebody else's."""
        listed = _run("iptables", "-w", "-nvxL", "INPUT")
        ports = {rule[6] for rule in self._rules}
        found = re.findall(r"^\s*(\d+) .*[ds]pt:(\d+) statistic", listed, re.MULTILINE)
        return sum(int(count) for count, port in found if port in ports)


def _run(*command: str, text: str = "") -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
