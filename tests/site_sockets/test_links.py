"""Downloads over HTTP by signed link: of the stack's own web process, and of the view under WSGI."""

from __future__ import annotations

import datetime
import http.client
import os
from typing import Any

import pytest
from django.test import RequestFactory, override_settings
from django.utils import timezone

from delivery import deliver
from delivery.errors import UsageError

SEGMENT = 16 * 1024 * 1024
DATA = os.urandom(SEGMENT + 300_000)
NAME = 'Größe "x".html'


def get(stack: Any, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=20)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


@pytest.fixture
async def url(site: Any) -> str:
    return await site.run(lambda: deliver(DATA, name=NAME, content_type="text/html").url())


async def test_a_link_gives_the_payload_as_a_download(site, chat_stack, url):
    response, body = await site.run(get, chat_stack, url)
    assert (response.status, body == DATA) == (200, True)
    assert response.headers["Content-Length"] == str(len(DATA))
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["Content-Disposition"] == "attachment; filename*=utf-8''Gr%C3%B6%C3%9Fe%20%22x%22.html"


async def test_a_head_request_gives_the_size_and_no_bytes(site, chat_stack, url):
    response, body = await site.run(get, chat_stack, url, "HEAD")
    assert (response.status, response.headers["Content-Length"], body) == (200, str(len(DATA)), b"")


async def test_other_methods_are_refused(site, chat_stack, url):
    response, _ = await site.run(get, chat_stack, url, "POST")
    assert response.status in (403, 405)  # 403: without a CSRF token


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, len(DATA)),
        ("bytes=5-9", 5, 10),
        (f"bytes={SEGMENT - 2}-{SEGMENT + 1}", SEGMENT - 2, SEGMENT + 2),
        (f"bytes={SEGMENT}-", SEGMENT, len(DATA)),
        ("bytes=-7", len(DATA) - 7, len(DATA)),
        (f"bytes=3-{10**17}", 3, len(DATA)),
    ],
)
async def test_one_range_is_given(site, chat_stack, url, asked, start, end):
    response, body = await site.run(get, chat_stack, url, Range=asked)
    assert (response.status, body == DATA[start:end]) == (206, True)
    assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    assert response.headers["Content-Length"] == str(end - start)


@pytest.mark.parametrize(
    "asked",
    ["bytes=9-5", "bytes=-", "bytes=0-1,3-4", "lines=1-2", "bytes=a-b", "bytes=" + "9" * 5000 + "-"],
)
async def test_what_is_no_range_gives_everything(site, chat_stack, url, asked):
    response, body = await site.run(get, chat_stack, url, Range=asked)
    assert (response.status, len(body)) == (200, len(DATA))


@pytest.mark.parametrize("asked", [f"bytes={len(DATA)}-", "bytes=-0", f"bytes={10**17}-"])
async def test_a_range_past_the_end_is_416(site, chat_stack, url, asked):
    response, _ = await site.run(get, chat_stack, url, Range=asked)
    assert (response.status, response.headers["Content-Range"]) == (416, f"bytes */{len(DATA)}")


@pytest.mark.parametrize(("asked", "status"), [(None, 200), ("bytes=0-", 416), ("bytes=5-", 416), ("bytes=-5", 416)])
async def test_an_empty_payload_has_no_range(site, chat_stack, asked, status):
    url = await site.run(lambda: deliver(b"").url())
    response, body = await site.run(get, chat_stack, url, **({"Range": asked} if asked else {}))
    assert (response.status, body) == (status, b"")


async def test_a_range_of_something_else_gives_everything(site, chat_stack, url):
    response, _ = await site.run(get, chat_stack, url, "HEAD")
    same, _ = await site.run(get, chat_stack, url, Range="bytes=0-4", If_Range=response.headers["ETag"])
    other, _ = await site.run(get, chat_stack, url, Range="bytes=0-4", If_Range='"other"')
    assert (same.status, other.status) == (206, 200)


async def test_an_inline_payload_has_ranges_too(site, chat_stack):
    url = await site.run(lambda: deliver(b"0123456789").url())
    _, body = await site.run(get, chat_stack, url, Range="bytes=3-5")
    assert body == b"345"


# -- links that lead nowhere ---------------------------------------------------------------------------------------


async def test_a_link_expires(site, chat_stack):
    path = await site.run(lambda: deliver(DATA).url(expires=datetime.timedelta()))
    response, _ = await site.run(get, chat_stack, path)
    assert response.status == 404


async def test_a_link_ends_with_its_payload(site, chat_stack):
    from delivery.models import Payload

    def links() -> list[str]:
        ended, expired = deliver(DATA), deliver(DATA)
        paths = [ended.url(), expired.url()]
        ended.discard()
        past = timezone.now() - datetime.timedelta(seconds=1)
        Payload.objects.filter(pk=expired.pk).update(expires_at=past)  # the sweep has not come by yet
        return paths

    for path in await site.run(links):
        response, _ = await site.run(get, chat_stack, path)
        assert response.status == 404


@pytest.mark.parametrize("how", ["cut", "changed", "other salt", "garbage"])
async def test_a_forged_link_is_not_found(site, chat_stack, url, how):
    from django.core import signing

    other = signing.dumps(["0" * 32, 2**40], salt="another")
    forged = {
        "cut": url[:-1],
        "changed": url.replace("payload/W", "payload/X"),
        "other salt": f"/delivery/payload/{other}",
        "garbage": "/delivery/payload/%00%ff:a:b",
    }[how]
    assert forged != url
    response, _ = await site.run(get, chat_stack, forged)
    assert response.status == 404


async def test_there_is_no_link_to_what_is_not_complete(site):
    from delivery.models import Payload

    payload = await site.run(Payload.objects.create)
    with pytest.raises(UsageError, match="is storing, expected complete"):
        payload.url()


async def test_a_site_without_our_urls_is_told(site):
    payload = await site.run(deliver, b"x")
    with override_settings(ROOT_URLCONF="django.contrib.auth.urls"), pytest.raises(UsageError, match=r"delivery\.urls"):
        payload.url()


async def test_a_file_that_has_changed_is_not_found(site, chat_stack):
    """A file of the site's own, delivered in place, of which nothing has been sent yet."""
    from tests.site_sockets.shelf.models import Scan

    def change() -> str:
        scan, payload = Scan.objects.create(), deliver(b"m" * 100_000)
        payload.attach(scan, "beside")
        path = payload.url()
        with open(scan.beside.path, "ab") as file:
            file.write(b"more")
        return path

    response, _ = await site.run(get, chat_stack, await site.run(change))
    assert response.status == 404


async def test_storage_that_does_not_answer_is_503(site, chat_stack):
    def lose() -> str:
        payload = deliver(b"m" * 100_000)
        for path in chat_stack.files_of(payload.pk):
            path.unlink()
        return payload.url()

    response, _ = await site.run(get, chat_stack, await site.run(lose))
    assert (response.status, response.headers["Retry-After"]) == (503, "10")


async def test_the_view_streams_under_wsgi_too(site, url):
    from delivery import views

    def download() -> bytes:
        response = views.payload(RequestFactory().get(url), url.rpartition("/")[2])
        assert not response.is_async
        try:
            return b"".join(response)
        finally:
            response.close()

    assert await site.run(download) == DATA


async def test_a_download_takes_little_memory(site, chat_stack):
    """Django joins the pieces of a synchronous iterator before an ASGI server sends the first: ours is not one."""
    from pathlib import Path

    (web,) = chat_stack.pids()["web"]

    def peak() -> int:
        status = Path(f"/proc/{web}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def download() -> int:
        Path(f"/proc/{web}/clear_refs").write_text("5")  # the peak begins anew
        before = peak()
        path = deliver(b"z" * 1_048_576 for _ in range(96)).url()
        _, body = get(chat_stack, path)
        assert len(body) == 96 * 1_048_576
        return peak() - before

    assert await site.run(download) < 48 * 1_048_576
