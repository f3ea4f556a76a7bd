"""A site's own Celery app, queue and tasks work beside ours, and none of its options is touched."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys

from tests.conformance.peer import Peer, sha256
from tests.host_site.conftest import HostRig
from tests.launch.live import wait_until
from tests.stack import Site

DATA = random.Random(9).randbytes(20 * 1024 * 1024 + 5)
SLOW_SECONDS = 3.0


def run(rig: HostRig, code: str) -> str:
    """Run Python code as a process of the site; return what it printed."""
    command = [sys.executable, "-W", "error", "-c", f"import django; django.setup()\n{code}"]
    done = subprocess.run(command, env=rig.environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def send_slow(rig: HostRig, name: str) -> None:
    path = str(rig.notes / name)
    run(rig, f"from hostsite.celery import slow; slow.delay({path!r}, {SLOW_SECONDS})")


def options(rig: HostRig, moment: str) -> dict[str, str]:
    found: dict[str, str] = json.loads((rig.notes / f"{moment}.json").read_text())
    assert len(found) > 100
    return found


def test_importing_our_tasks_changes_no_option(rig: HostRig) -> None:
    run(
        rig,
        "from hostsite.celery import app, note_options\n"
        "import delivery.tasks, delivery.server.consumer\n"
        "app.finalize(); app.loader.import_default_modules()\n"
        "assert 'delivery.store_segment' in app.tasks\n"
        "assert app.tasks['hostsite.slow'].serializer == 'pickle'\n"
        "assert app.tasks['hostsite.slow'].acks_late and not app.tasks['celery.backend_cleanup'].acks_late\n"
        "note_options('after')",
    )
    assert options(rig, "after") == options(rig, "before")


def test_its_checks_find_nothing(rig: HostRig) -> None:
    assert "no issues" in run(rig, "from django.core.management import call_command; call_command('check')")


async def test_workers_take_both_and_go_away_as_they_should(rig: HostRig, site: Site) -> None:
    """An upload is served, its socket gets 1001 when the worker goes, and the site's long task is finished, once."""
    web, worker = rig.web(), rig.site_worker()
    web.wait_ready()
    worker.wait_ready()
    assert options(rig, "ready") == options(rig, "before")
    assert options(rig, "child") == options(rig, "before")
    alice = await site.person()
    async with Peer.open(rig.ws_url, token=alice.token) as peer:
        await peer.hello()
        done = await peer.upload(DATA)
        assert done["sha256"] == sha256(DATA)
        await asyncio.to_thread(send_slow, rig, "slow")
        noted = rig.notes / "slow"
        await asyncio.to_thread(wait_until, noted.exists, what="slow task")
        handle, transfer = await peer.offer(size=len(DATA))
        accept = await peer.hear("accept", handle=handle)
        size = accept["chunk_size"]
        for seq in range(32):
            await peer.chunk(handle, seq, DATA[seq * size : (seq + 1) * size])
        await peer.hear_ack(handle, 32)
        worker.send(signal.SIGTERM)
        assert await peer.closes() == (1001, "going away")
        assert noted.read_text() == "begun\n"
    status, _ = await worker.ends(within=20)
    assert status == 0
    assert noted.read_text() == "begun\nended\n"
    assert (rig.notes / "step").read_text() == "closed"

    second = rig.worker("second")  # ours consumes the site's queue, too
    async with Peer.open(rig.ws_url, token=alice.token) as peer:
        await peer.hello()
        handle, _ = await peer.offer(transfer=transfer, size=len(DATA))
        accept = await peer.hear("accept", handle=handle)
        await peer.send_from(DATA, accept)
        assert (await peer.hear("done", handle=handle, seconds=30))["sha256"] == sha256(DATA)
    second.wait_ready()
    await asyncio.to_thread(send_slow, rig, "again")
    await asyncio.to_thread(wait_until, (rig.notes / "again").exists, what="slow task")


async def test_a_worker_without_our_queue_is_none_of_ours(new_rig, django_db_blocker) -> None:
    rig = new_rig(queue="bulk")
    rig.queues = "hostwork"
    worker = rig.site_worker()
    worker.wait_ready()
    worker.says("does not consume 'bulk'")
    await asyncio.to_thread(send_slow, rig, "slow")
    await asyncio.to_thread(wait_until, (rig.notes / "slow").exists, what="slow task")
    found = await asyncio.to_thread(
        run, rig, "from delivery.checks import celery; print([one.id for one in celery.check_workers()])"
    )
    assert found.strip() == "['delivery.W003']"
    worker.send(signal.SIGTERM)
    status, _ = await worker.ends(within=20)
    assert status == 0
