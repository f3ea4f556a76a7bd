"""The proxies of docs/how-to/deploy.md, as they are there but for ports and paths, in front of two web processes."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launch.live import ROOT, free_port, wait_until
from tests.stack import Stack, WebProcess

PAGE = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
HOST = "localhost"


@dataclass(frozen=True)
class Certificate:
    certificate: Path
    key: Path
    both: Path

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))


@dataclass(frozen=True)
class Proxy:
    """A proxy that runs."""

    name: str
    port: int
    certificate: Certificate
    stack: Stack
    static: Path

    @property
    def origin(self) -> str:
        return f"https://{HOST}:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"wss://{HOST}:{self.port}/ws/delivery/"


@pytest.fixture(scope="session")
def behind_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The shipped stack with the settings for a proxy that ends TLS."""
    stack = Stack(tmp_path_factory.mktemp("behind") / "var", "--workers=1", TLS_PROXY="1")
    try:
        stack.wait_ready()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def second(behind_tls: Stack) -> Iterator[WebProcess]:
    process = WebProcess(behind_tls, "tests.proxies.settings")
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    folder = tmp_path_factory.mktemp("certificate")
    made = Certificate(folder / "site.pem", folder / "site.key", folder / "both.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
    command += ["-keyout", str(made.key), "-out", str(made.certificate)]
    subprocess.run(command, check=True, capture_output=True)
    made.both.write_text(made.certificate.read_text() + made.key.read_text())
    return made


def configuration(name: str, folder: Path) -> tuple[list[str], Path, str]:
    """Return a proxy's command, the file that it reads, and its configuration around what the page has."""
    (block,) = re.findall(rf"^```{name}\n(.*?)^```", PAGE, flags=re.M | re.S)
    if name == "nginx":
        file = folder / "nginx.conf"
        places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        kept = "".join(f"{place}_temp_path {folder / place};\n" for place in places)
        around = f"user root; daemon off; pid {folder}/pid; error_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{kept}{block}}}\n"
        return ["nginx", "-c", str(file), "-e", "stderr"], file, around
    if name == "haproxy":
        file = folder / "haproxy.cfg"
        return ["haproxy", "-db", "-f", str(file)], file, block
    file = folder / "Caddyfile"
    around = f"{{\n admin off\n auto_https disable_redirects\n storage file_system {folder}\n}}\n{block}"
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(file)], file, around


@pytest.fixture(scope="module", params=["nginx", "haproxy", "caddy"])
def proxy(
    request: pytest.FixtureRequest,
    behind_tls: Stack,
    second: WebProcess,
    certificate: Certificate,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    name = str(request.param)
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here")
    folder, port = tmp_path_factory.mktemp(name), free_port()
    static = folder / "static"
    (static / "site").mkdir(parents=True)
    (static / "site" / "own.css").write_text("body {}\n")
    static.chmod(0o755)
    command, file, text = configuration(name, folder)
    swaps = {
        "/etc/ssl/example.org.pem": str(certificate.certificate),
        "/etc/ssl/example.org.key": str(certificate.key),
        "/etc/ssl/example.org.both.pem": str(certificate.both),
        "/srv/mysite/static": str(static),
        "127.0.0.1:8000": f"127.0.0.1:{behind_tls.port}",
        "127.0.0.1:8001": f"127.0.0.1:{second.port}",
        "listen 443": f"listen {port}",
        "bind :443": f"bind :{port}",
        "example.org {": f"{HOST}:{port} {{",
        "example.org;": f"{HOST};",
    }
    for old, new in swaps.items():
        text = text.replace(old, new)
    assert "example.org" not in text
    file.write_text(text)
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        probe = ["curl", "-s", "--cacert", str(certificate.certificate), f"https://{HOST}:{port}/"]
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0

    try:
        wait_until(answers, what=name)
        yield Proxy(name, port, certificate, behind_tls, static)
    finally:
        process.terminate()
        process.wait(30)
