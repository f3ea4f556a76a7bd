"""The JavaScript client in a page of Debian's Chromium, against the shipped stack and a network that can be broken."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from delivery.client import connect
from rig.proxy import Proxy
from tests.browser.browsers import Page
from tests.browser.conftest import Open
from tests.stack import Person, Site, Stack

BIG_BYTES = 200_000_000
KIB = 1024
CHUNK = 256 * KIB

#: Sends `size` bytes whose pattern `pattern_bytes` repeats, and counts how far it came.
SEND = """async ([size, options]) => {
    const bytes = new Uint8Array(size);
    for (let at = 0; at < size; at++) bytes[at] = (at * 31 + (at >> 8)) & 255;
    window.progress = [];
    const onProgress = (progress) => window.progress.push(progress);
    window.upload = window.client.start(new Blob([bytes]), {name: "sent.bin", ...options, onProgress});
    window.outcome = window.upload.receipt.then((receipt) => ({receipt}), (error) => ({
        error: {name: error.name, code: error.code, retryable: error.retryable, words: error.words, message: error.message},
    }));
    return window.upload.transfer;
}"""
OUTCOME = "() => window.outcome"
RECEIVED_BYTES = "() => window.upload.progress.received"
HASH = """async (index) => {
    const bytes = await window.incoming[index].bytes();
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return [bytes.length, Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("")];
}"""
CODES = "() => window.states.filter((state) => state.code !== null).map((state) => state.code)"


def pattern_bytes(size: int) -> bytes:
    """Return the bytes that `SEND` makes."""
    period = 256 * 256
    block = bytes((at * 31 + (at >> 8)) & 255 for at in range(min(size, period)))
    return (block * (size // period + 1))[:size]


def hexdigest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def send(page: Page, size: int, **options: Any) -> str:
    transfer: str = await page.run(SEND, [size, options])
    return transfer


async def receipt(page: Page, *, seconds: float = 120.0) -> dict[str, Any]:
    outcome = await page.run(OUTCOME, seconds=seconds)
    assert "receipt" in outcome, outcome
    found: dict[str, Any] = outcome["receipt"]
    return found


async def under_way(page: Page, size: int) -> None:
    """Return once some of the upload has been taken in, and not all of it."""
    await page.until(f"() => window.upload.progress.received > {size // 10}")


async def stored_digest(site: Site, payload: str) -> str:
    return hexdigest(await site.content(payload))


def quiet(page: Page, *, losses: bool = False) -> bool:
    """Return whether the console is empty, but for the browser's own line on a lost WebSocket where `losses` are meant."""
    said = [line for line in page.console if not (losses and "WebSocket connection to" in line)]
    assert said == []
    return True


@pytest.mark.parametrize("size", [0, 1, 64 * KIB, 64 * KIB + 1, CHUNK - 1, CHUNK, CHUNK + 1])
async def test_every_size_arrives(open_page: Open, alice: Person, browser_site: Site, size: int) -> None:
    page = await open_page(alice)
    await send(page, size)
    found = await receipt(page)
    assert found["size"] == size
    assert found["sha256"] == hexdigest(pattern_bytes(size)) == await stored_digest(browser_site, found["payload"])
    assert quiet(page)


async def test_two_hundred_megabytes_go_up_and_come_down(
    open_page: Open, alice: Person, bob: Person, browser_site: Site
) -> None:
    page = await open_page(alice)
    await send(page, BIG_BYTES, to=bob.address)
    found = await receipt(page)
    assert found["sha256"] == await stored_digest(browser_site, found["payload"])
    steps = await page.run("() => window.progress")
    assert [one["stored"] for one in steps] == sorted(one["stored"] for one in steps)
    assert all(one["stored"] <= one["received"] <= one["sent"] <= BIG_BYTES for one in steps)
    assert steps[-1]["phase"] == "done"
    other = await open_page(bob, receive=True)
    await other.until("() => window.incoming.length")
    digest = """async () => {
        const {Sha256} = await import("/static/delivery/client/sha256.js");
        const hash = new Sha256();
        for (const reader = window.incoming[0].stream().getReader();;) {
            const {done, value} = await reader.read();
            if (done) return [hash.length, hash.hex()];
            hash.update(value);
        }
    }"""
    assert await other.run(digest) == [BIG_BYTES, found["sha256"]]
    assert quiet(page)
    assert quiet(other)


async def test_python_to_browser_and_back(
    open_page: Open, alice: Person, bob: Person, browser_stack: Stack, tmp_path: Path
) -> None:
    page = await open_page(bob, receive=True)
    data = pattern_bytes(5_000_000)
    async with connect(browser_stack.ws_url, token=alice.token, receive=True) as client:
        sent = await client.send(data, to=[bob.address], name="größer 😀.bin")
        await page.until("() => window.incoming.length")
        assert await page.run("() => window.incoming[0].name") == "größer 😀.bin"
        assert await page.run(HASH, 0) == [len(data), sent.sha256]
        await send(page, len(data), to=alice.address, name="zurück 😀.bin")
        await receipt(page)
        async for incoming in client.deliveries():
            path = await incoming.save(tmp_path)
            break
    assert path.name == "zurück 😀.bin"
    assert path.read_bytes() == data
    assert quiet(page)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('() => "tëxt"', "tëxt".encode()),
        ('() => ({a: [1, "ü"]})', '{"a":[1,"ü"]}'.encode()),
        ("() => new Uint8Array([1, 2, 3])", b"\1\2\3"),
        ('() => new Blob(["some ", "text"]).stream()', b"some text"),
        ("() => (async function* () { yield new Uint8Array([1]); yield 'two'; })()", b"\1two"),
        ('() => new File(["file"], "a.txt", {type: "text/x-test"})', b"file"),
    ],
)
async def test_every_kind_of_payload_arrives(
    open_page: Open, alice: Person, browser_site: Site, script: str, expected: bytes
) -> None:
    page = await open_page(alice)
    found = await page.run(f"async () => window.client.send(({script})())")
    assert await browser_site.content(found["payload"]) == expected
    assert quiet(page)


async def test_a_cut_connection_goes_on_where_it_was(open_page: Open, alice: Person, network: Proxy) -> None:
    page = await open_page(alice)
    network.conditions.rate = 20e6
    await send(page, 60_000_000)
    for _ in range(3):
        before = await page.run(RECEIVED_BYTES)
        await page.until(f"() => window.upload.progress.received > {before + 3_000_000}")
        network.cut()
    network.conditions.rate = 0
    assert (await receipt(page))["sha256"] == hexdigest(pattern_bytes(60_000_000))
    assert (await page.run(CODES)).count(1006) >= 3
    assert quiet(page, losses=True)


async def test_a_worker_that_drains_costs_one_reconnection(
    open_page: Open, alice: Person, network: Proxy, browser_stack: Stack
) -> None:
    page = await open_page(alice)
    network.conditions.rate = 15e6
    await send(page, 120_000_000)
    await page.until("() => window.upload.progress.stored > 0")
    for pid in browser_stack.pids()["worker"]:
        os.kill(pid, signal.SIGTERM)
    await page.until(f"() => ({CODES})().includes(1001)")
    network.conditions.rate = 0
    assert (await receipt(page))["sha256"] == hexdigest(pattern_bytes(120_000_000))
    assert "worker_draining" in await page.run("() => window.states.map((state) => state.reason)")
    assert quiet(page)


async def test_a_deploy_of_the_web_process_goes_on(
    open_page: Open, alice: Person, network: Proxy, browser_stack: Stack
) -> None:
    page = await open_page(alice)
    network.conditions.rate = 15e6
    await send(page, 60_000_000)
    await under_way(page, 60_000_000)
    (pid,) = browser_stack.pids()["web"]
    os.kill(pid, signal.SIGTERM)
    await page.until(f"() => ({CODES})().includes(1001)")
    network.conditions.rate = 0
    assert (await receipt(page))["sha256"] == hexdigest(pattern_bytes(60_000_000))
    assert quiet(page, losses=True)  # the first attempt may come before the new process listens


async def test_a_black_hole_is_left(open_page: Open, alice: Person, network: Proxy) -> None:
    """Nothing passes any more, and nobody says so: a page that comes into view asks, and does not wait for 50 s."""
    page = await open_page(alice)
    network.conditions.rate = 15e6
    await send(page, 40_000_000)
    await under_way(page, 40_000_000)
    network.hold()
    network.conditions.rate = 0
    await page.run('() => window.dispatchEvent(new Event("pageshow"))')
    assert (await receipt(page))["sha256"] == hexdigest(pattern_bytes(40_000_000))
    assert 1006 in await page.run(CODES)


async def test_a_frozen_page_moves_within_seconds_of_the_thaw(open_page: Open, alice: Person, network: Proxy) -> None:
    page = await open_page(alice)
    network.conditions.rate = 10e6
    await send(page, 60_000_000)
    await under_way(page, 60_000_000)
    await page.call("lifecycle", state="frozen")
    await asyncio.sleep(5)
    network.cut()
    network.conditions.rate = 0
    await page.call("lifecycle", state="active")
    before = await page.run(RECEIVED_BYTES)
    await page.until(f"() => window.upload.progress.received > {before}", seconds=3)
    assert (await receipt(page))["sha256"] == hexdigest(pattern_bytes(60_000_000))


async def test_a_lost_login_waits_for_the_same_user(
    open_page: Open, alice: Person, bob: Person, network: Proxy, browser_site: Site
) -> None:
    page = await open_page(alice)
    network.conditions.rate = 10e6
    await send(page, 40_000_000)
    await under_way(page, 40_000_000)
    await page.run('async () => { await fetch("/browser/logout/"); }')
    await page.until('() => window.client.state.name === "login"', seconds=20)
    assert await page.run("() => window.client.state.code") == 4401
    stored, told = await page.run("() => [window.upload.progress.stored, window.progress.length]")
    # Somebody else logs in: nothing of Alice's goes up as Bob's.
    await page.run(f'async () => {{ await fetch("/browser/login/{bob.pk}/"); window.client.login(); }}')
    await page.until('() => window.states.filter((state) => state.name === "login").length === 2')
    assert await page.run("() => window.upload.progress.stored") == stored
    await page.run(f'async () => {{ await fetch("/browser/login/{alice.pk}/"); window.client.login(); }}')
    network.conditions.rate = 0
    found = await receipt(page)
    assert found["sha256"] == hexdigest(pattern_bytes(40_000_000))
    assert (await browser_site.payload(found["payload"])).owner_id == alice.pk
    assert min(one["stored"] for one in await page.run(f"() => window.progress.slice({told})")) >= stored
    assert quiet(page)


async def test_a_quota_is_told_in_words(open_page: Open, browser_site: Site) -> None:
    small = await browser_site.run(_small_person)
    page = await open_page(small)
    await send(page, 2_000_000)
    outcome = await page.run(OUTCOME)
    assert outcome["error"]["code"] == "quota"
    assert outcome["error"]["words"] == "Your space is used up."
    assert quiet(page)


def _small_person() -> Person:
    import uuid

    from django.contrib.auth.models import User

    from delivery import make_token

    user = User.objects.create(username=f"small-{uuid.uuid4().hex[:12]}")
    return Person(user.pk, make_token(user))


async def test_one_bad_argument_fails_alone(open_page: Open, alice: Person) -> None:
    page = await open_page(alice)
    await send(page, 5_000_000)
    bad = """async () => {
        const bad = [{meta: {a: 1}}, {transfer: "no"}, {meta: Object.fromEntries([...Array(33).keys()].map((k) => [k, ""]))}];
        return Promise.all(bad.map((one) => window.client.send("x", one).then(() => "sent", (error) => error.name)));
    }"""
    assert await page.run(bad) == ["UsageError"] * 3
    await receipt(page)
    assert quiet(page)


async def test_pause_resume_cancel_and_abort(open_page: Open, alice: Person, network: Proxy) -> None:
    page = await open_page(alice)
    network.conditions.rate = 10e6
    await send(page, 40_000_000)
    await under_way(page, 40_000_000)
    await page.run("() => window.upload.pause()")
    await asyncio.sleep(2.5)  # what was on its way is stored meanwhile
    before = await page.run(RECEIVED_BYTES)
    await asyncio.sleep(1)
    assert await page.run(RECEIVED_BYTES) == before
    await page.run("() => window.upload.resume()")
    await page.until(f"() => window.upload.progress.received > {before}")
    await page.run("() => window.upload.cancel()")
    assert (await page.run(OUTCOME))["error"]["code"] == "cancelled"
    aborted = """async () => {
        const controller = new AbortController();
        const sent = window.client.send(new Blob([new Uint8Array(20e6)]), {signal: controller.signal});
        setTimeout(() => controller.abort(), 300);
        return sent.then(() => "sent", (error) => error.code);
    }"""
    assert await page.run(aborted) == "aborted"
    assert quiet(page)


async def test_the_rate_of_sending_is_kept_and_changed(open_page: Open, alice: Person) -> None:
    page = await open_page(alice)
    await send(page, 30_000_000, rate=2_000_000)
    await page.until("() => window.upload.progress.received > 1_000_000")
    measure = """async (seconds) => {
        const before = window.upload.progress.sent;
        const began = performance.now();
        await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
        return (window.upload.progress.sent - before) / (performance.now() - began) * 1000;
    }"""
    assert await page.run(measure, 4) == pytest.approx(2_000_000, rel=0.1)
    await page.run("() => window.upload.setRate(500_000)")
    await page.run(measure, 1)
    assert await page.run(measure, 6) == pytest.approx(500_000, rel=0.15)
    await page.run("() => window.upload.setRate(null)")
    await receipt(page)


async def test_two_pages_share_an_account(open_page: Open, alice: Person, bob: Person) -> None:
    first, second = await open_page(alice), await open_page(alice)
    reader = await open_page(bob, receive=True)
    await asyncio.gather(send(first, 3_000_000, to=bob.address), send(second, 2_000_000, to=bob.address))
    sizes = {(await receipt(first))["size"], (await receipt(second))["size"]}
    await reader.until("() => window.incoming.length === 2")
    assert {(await reader.run(HASH, index))[0] for index in (0, 1)} == sizes


async def test_a_declined_delivery_does_not_come_back(
    open_page: Open, alice: Person, bob: Person, browser_stack: Stack
) -> None:
    page = await open_page(bob, receive=True, clientId="bobs-page")
    async with connect(browser_stack.ws_url, token=alice.token) as client:
        await client.send(b"x" * 100_000, to=[bob.address])
    await page.until("() => window.incoming.length")
    await page.run("() => window.incoming[0].decline()")
    again = await open_page(bob, receive=True, clientId="bobs-page")
    await again.until('() => window.client.state.name === "connected"')
    await asyncio.sleep(1)
    assert await again.run("() => window.incoming.length") == 0


async def test_what_a_program_sends_and_throws_ends_one_upload_alone(open_page: Open, alice: Person) -> None:
    page = await open_page(alice)
    script = """async () => {
        const failing = window.client.send(new Blob([new Uint8Array(3e6)]), {onProgress() { throw new Error("mine"); }});
        async function* broken() { yield new Uint8Array(100_000); throw new Error("source"); }
        const source = window.client.send(broken());
        const fine = window.client.send(new Blob([new Uint8Array(3e6)]));
        const told = (sent) => sent.then(() => "sent", (error) => error.message);
        return Promise.all([told(failing), told(source), told(fine)]);
    }"""
    assert await page.run(script) == ["mine", "source", "sent"]
    assert quiet(page)
