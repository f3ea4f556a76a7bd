"""Through each proxy of the docs: payloads both ways, a login with secure cookies, Origins, files, and long bodies."""

from __future__ import annotations

import contextlib
import http.client
import http.cookiejar
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import websockets
from websockets.exceptions import InvalidStatus

from delivery.launch.accounts import read_passwords
from tests.conformance.peer import new_id
from tests.launch.live import ROOT, clean_environment, manage
from tests.proxies.conftest import HOST, Proxy
from tests.stack import WebProcess

SIZE = 24 * 1024 * 1024 + 7


def client(proxy: Proxy, user: str, *arguments: str) -> None:
    token = manage("delivery_token", user, DELIVERY_VAR=str(proxy.stack.var)).stdout.strip()
    variables = {
        "DELIVERY_URL": proxy.ws_url,
        "DELIVERY_TOKEN": token,
        "SSL_CERT_FILE": str(proxy.certificate.certificate),
    }
    done = subprocess.run(
        [sys.executable, "-m", "delivery.client", *arguments],
        cwd=ROOT,
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_payloads_go_both_ways(proxy: Proxy, tmp_path: Path) -> None:
    data = os.urandom(SIZE)
    (tmp_path / "scan.tif").write_bytes(data)
    client(proxy, "alice", "send", str(tmp_path / "scan.tif"), "--to", "user:bob")
    client(proxy, "bob", "receive", "--dir", str(tmp_path / "received"), "--once", "--timeout", "60")
    assert (tmp_path / "received" / "scan.tif").read_bytes() == data


class Browser:
    """Cookies, forms and Origins, as a browser has them."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self.cookies),
            urllib.request.HTTPSHandler(context=proxy.certificate.trusting()),
        )

    def get(self, path: str) -> str:
        with self._opener.open(f"{self.proxy.origin}{path}", timeout=20) as answer:
            return str(answer.read().decode())

    def log_in(self, user: str, password: str) -> str:
        page = self.get("/admin/login/?next=/admin/")
        (token,) = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
        form = {"csrfmiddlewaretoken": token, "username": user, "password": password, "next": "/admin/"}
        request = urllib.request.Request(
            f"{self.proxy.origin}/admin/login/",
            data=urllib.parse.urlencode(form).encode(),
            headers={"Origin": self.proxy.origin, "Referer": f"{self.proxy.origin}/admin/login/"},
        )
        with self._opener.open(request, timeout=20) as answer:
            return str(answer.read().decode())

    def connect(self, origin: str) -> websockets.connect:
        cookie = "; ".join(f"{one.name}={one.value}" for one in self.cookies)
        return websockets.connect(
            self.proxy.ws_url,
            origin=origin,  # type: ignore[arg-type]
            subprotocols=["delivery.v1"],  # type: ignore[list-item]
            additional_headers={"Cookie": cookie},
            ssl=self.proxy.certificate.trusting(),
        )


@pytest.fixture
def browser(proxy: Proxy) -> Browser:
    browser = Browser(proxy)
    password = read_passwords(proxy.stack.var / "passwords")["admin"]
    assert "Site administration" in browser.log_in("admin", password)
    return browser


async def test_a_page_of_the_site_may_connect_with_its_secure_cookie(browser: Browser) -> None:
    """Host comes through with its port, and the scheme is https: else the login or the handshake is refused."""
    assert {cookie.name: cookie.secure for cookie in browser.cookies} == {"csrftoken": True, "sessionid": True}
    async with browser.connect(browser.proxy.origin) as socket:
        assert socket.subprotocol == "delivery.v1"
        hello = {"type": "hello", "client": new_id(), "max_message": 1_048_576, "receive": False}
        await socket.send(json.dumps(hello))
        welcome = json.loads(await socket.recv())
        assert welcome["type"] == "welcome"


async def test_a_page_of_another_site_may_not(browser: Browser) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with browser.connect("https://evil.example"):
            pass
    assert refused.value.response.status_code == 403


async def test_a_wrong_path_is_final(proxy: Proxy) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await websockets.connect(f"wss://{HOST}:{proxy.port}/ws/wrong/", ssl=proxy.certificate.trusting())
    assert refused.value.response.status_code == 404


def test_static_files(proxy: Proxy) -> None:
    browser = Browser(proxy)
    own = "/static/site/own.css" if proxy.name != "haproxy" else "/static/delivery/admin.css"
    assert "{" in browser.get(own)


def test_a_client_cannot_say_that_it_came_over_https(proxy: Proxy) -> None:
    """What it says of the scheme is replaced, never passed on."""
    connection = http.client.HTTPSConnection(HOST, proxy.port, context=proxy.certificate.trusting(), timeout=20)
    connection.request("GET", "/admin/login/", headers={"X-Forwarded-Proto": "http"})
    answer = connection.getresponse()
    assert answer.status == 200
    assert "; Secure" in (answer.headers["Set-Cookie"] or "")
    connection.close()


def test_nginx_asks_a_web_process_again_as_soon_as_it_was_replaced(proxy: Proxy, second: WebProcess) -> None:
    """By default it leaves one that refused a connection out for 10 s, and answers 502 if the other goes meanwhile."""
    if proxy.name != "nginx":
        pytest.skip("about nginx")

    def status() -> int:
        connection = http.client.HTTPSConnection(HOST, proxy.port, context=proxy.certificate.trusting(), timeout=20)
        connection.request("GET", "/admin/login/")
        answered = connection.getresponse().status
        connection.close()
        return answered

    second.stop()
    statuses = [status() for _ in range(6)]
    second.start()
    before = proxy.stack.pids()["web"]
    os.kill(before[0], signal.SIGTERM)
    deadline = time.monotonic() + 30
    while proxy.stack.pids().get("web") in (before, [], None) and time.monotonic() < deadline:
        statuses.append(status())
    assert {*statuses} == {200}


def test_large_bodies_are_refused_in_front(proxy: Proxy) -> None:
    """Before they are spooled to a file by anybody who need not have logged in."""
    connection = http.client.HTTPSConnection(HOST, proxy.port, context=proxy.certificate.trusting(), timeout=20)
    connection.putrequest("POST", "/admin/login/")
    connection.putheader("Content-Length", str(12_000_000))
    connection.endheaders()
    with contextlib.suppress(OSError):  # it has answered, and closed
        for _ in range(12):
            connection.send(bytes(1_000_000))
    assert connection.getresponse().status in (413, 502)  # 502: Caddy 2.6
    connection.close()
