"""Storage: full, a limit on files, slow, damaged before and after sealing, changed where it lies."""

from __future__ import annotations

import asyncio
import resource
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from faults import site
from faults.cells import cell
from faults.people import every
from faults.site import ask
from faults.trial import MIB, Trial
from rig.processes import send

HELD_SECONDS = 4.0


def _no_tmpfs() -> str:
    with tempfile.TemporaryDirectory(prefix="delivery-faults-") as folder:
        if not _mount(Path(folder), MIB):
            return "no tmpfs can be mounted"
        _run("umount", folder)
    return ""


@cell("storage: no space (tmpfs)", missing=_no_tmpfs)
async def no_space(trial: Trial) -> None:
    """Payloads lie on a file system that is too small for a while."""
    payloads = trial.stack.var / "payloads"
    payloads.mkdir(exist_ok=True)
    if not _mount(payloads, 48 * MIB):
        raise OSError(f"no tmpfs can be mounted on {payloads}")
    trial.afterwards(lambda: _run("umount", "-l", str(payloads)))
    await trial.begin(big=40 * MIB + 77, before=24 * MIB - 1)  # together more than fits
    await every([trial.upload], seconds=HELD_SECONDS)
    trial.broken()
    trial.check(trial.upload.ended is None, "the disk was not full")
    _run("mount", "-o", "remount,size=600m", str(payloads))
    trial.healed()


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _mount(folder: Path, size: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@cell("storage: EFBIG for 4 s", quick=True, orphans=True)
async def limited_files(trial: Trial) -> None:
    """No process of a worker may write a file of more than 1 MiB for a while.

    SQLite's log is such a file too: a commit that fails may have happened, so that its file is left to the sweep.
    """
    await trial.begin()
    await trial.moment("upload")
    pids = trial.stack.writers()
    trial.broken()
    try:
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (MIB, resource.RLIM_INFINITY))
        await asyncio.sleep(HELD_SECONDS)
    finally:
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    trial.healed()


@cell("storage: EFBIG for 25 s", deadline=120, most_recovery=40, orphans=True)
async def limited_for_long(trial: Trial) -> None:
    """Longer than the server keeps trying on one connection: it lets go, and the client comes back."""
    global HELD_SECONDS
    HELD_SECONDS, before = 25.0, HELD_SECONDS
    try:
        await limited_files(trial)
    finally:
        HELD_SECONDS = before


@cell("storage: payloads unreadable for 20 s", deadline=120, most_recovery=40)
async def unreadable(trial: Trial) -> None:
    """What is complete cannot be read for a while; recipients stay connected, and get it once it can."""
    await trial.begin(big=8 * MIB, before=40 * MIB, rate=12e6)
    await every([trial.delivery("before.bin")], seconds=20, look=lambda move: move.share > 0.1)
    payloads = trial.stack.var / "payloads"
    aside = payloads.with_name("payloads-away")
    trial.broken()
    payloads.rename(aside)
    try:
        await asyncio.sleep(20)
    finally:
        if payloads.exists():
            _run("cp", "-a", f"{payloads}/.", str(aside))
            _run("rm", "-rf", str(payloads))
        aside.rename(payloads)
    trial.healed()


@cell("storage: volume unmounted for 20 s, and back", deadline=120, most_recovery=40)
async def unmounted(trial: Trial) -> None:
    """An empty folder is where the volume was. No payload fails for it, however often its files are looked for."""
    await trial.begin(big=8 * MIB, before=40 * MIB, rate=12e6)
    await every([trial.upload], seconds=60)
    await every([trial.delivery("before.bin")], seconds=20, look=lambda move: move.share > 0.1)
    payloads = trial.stack.var / "payloads"
    volume = payloads.with_name("payloads-volume")
    trial.broken()
    payloads.rename(volume)
    payloads.mkdir(mode=0o700)
    try:
        await asyncio.sleep(20)
        missing = await ask(site.try_missing)
        trial.note(f"{missing} payloads missed a file")
        trial.check(missing > 0, "nobody missed a file")
        for payload in await ask(site.payloads_of, trial.people_ids):
            state = await ask(site.payload_state, payload)
            trial.check(state[0] == "complete", f"a payload is {state} because its volume was not mounted")
    finally:
        _run("cp", "-a", f"{payloads}/.", str(volume))
        _run("rm", "-rf", str(payloads))
        volume.rename(payloads)
    trial.healed()


@cell("storage: a stored file removed, and revived", deadline=120)
async def removed(trial: Trial) -> None:
    """Its recipient is told that it failed, once it is certain; it gets all of it once the file is back and revived."""
    people = await trial.people(2)
    size = 40 * MIB
    await trial.deliver("neighbour.bin", MIB, people[1:])
    payload = await trial.deliver("before.bin", size, people[:1])
    name = trial.random.choice(await ask(site.segments_of, payload))[0]
    path = trial.stack.var / "payloads" / name
    aside = path.rename(trial.folder / "aside")
    parties = [await trial.party(f"recipient{at}", person, rate=40e6, receive=True) for at, person in enumerate(people)]
    move, neighbour = parties[0].expect("before.bin", size), parties[1].expect("neighbour.bin", MIB)
    for party in parties:
        party.receive()
    deadline = time.monotonic() + 60
    while not await ask(site.try_missing) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    trial.check(not await every([move, neighbour], seconds=30), "the recipient is not told")
    trial.check(move.error is not None, "the recipient got what is not there")
    trial.check(await ask(site.payload_state, payload) == ("failed", "digest"), "the payload did not fail")
    aside.rename(path)
    trial.check(await ask(site.revive, payload), "it cannot be revived")
    left = await every([move], seconds=60, look=lambda one: one.error is None and one.sha256 != "")
    trial.check(not left, "the recipient does not get what was revived")


@cell("storage: slow writes")
async def slow(trial: Trial) -> None:
    """Every process that writes stands still for three quarters of the time."""
    await trial.begin(big=40 * MIB + 77)
    await trial.moment("upload")
    pids = trial.stack.writers()
    trial.broken()
    for _ in range(12):
        for pid in pids:
            send(pid, signal.SIGSTOP)
        await asyncio.sleep(0.3)
        for pid in pids:
            send(pid, signal.SIGCONT)
        await asyncio.sleep(0.1)
    trial.healed()


async def _damage(path: Path, trial: Trial) -> None:
    """Cut the end off a file, or turn one bit of it."""
    if trial.random.random() < 0.5:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(trial.random.randrange(size))
        trial.note(f"{path.name} truncated")
    else:
        with path.open("r+b") as file:
            at = trial.random.randrange(path.stat().st_size)
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ (1 << trial.random.randrange(8))]))
        trial.note(f"a bit of {path.name} flipped")


@cell("storage: a segment damaged before sealing")
async def damaged_before(trial: Trial) -> None:
    """The upload must never be complete, and its sender must hear of it."""
    trial.must_fail = {"big.bin"}
    await trial.begin(big=40 * MIB, rate=24e6)
    people = trial.people_ids

    async def stored() -> list[tuple[str, int, int]]:
        return [row for row in await ask(site.live_segments, people) if row[2] >= MIB]

    while len(found := await stored()) < 2:
        await asyncio.sleep(0.05)
    await _damage(trial.stack.var / "payloads" / trial.random.choice(found)[0], trial)
    left = await every([trial.upload], seconds=60)
    trial.check(not left, "the upload of what is damaged does not end")
    trial.check(trial.upload.error is not None, "the upload of what is damaged succeeded")
    trial.note(repr(trial.upload.error))


@cell("storage: a segment damaged after sealing")
async def damaged_after(trial: Trial) -> None:
    """No recipient may save wrong bytes; it fails visibly."""
    people = await trial.people(1)
    payload = await ask(site.deliver_to, trial.data("before.bin", 24 * MIB), [people[0].pk], name="before.bin")
    trial.must_fail = {"before.bin"}
    name = trial.random.choice(await ask(site.segments_of, payload))[0]
    await _damage(trial.stack.var / "payloads" / name, trial)
    recipient = await trial.party("recipient", people[0], rate=40e6, receive=True)
    move = recipient.expect("before.bin", 24 * MIB)
    recipient.receive()
    left = await every([move], seconds=60)
    state = await ask(site.payload_state, payload)
    trial.note(f"the client says {move.error!r}; the payload is {state}")
    trial.may_wait = True  # another client of the user may still ask for it
    trial.check(not left, "the recipient is not told")
    trial.check(not list(recipient.folder.glob("*.bin")), "a damaged payload was saved")


@cell("storage: a file delivered in place that changes")
async def changed_in_place(trial: Trial) -> None:
    """Its recipient must not get a mixture; the payload fails visibly."""
    people = await trial.people(1)
    data = trial.data("place.bin", 64 * MIB)
    trial.must_fail = {"place.bin"}
    source = trial.folder / "place.bin"
    source.write_bytes(data)
    payload = await ask(site.deliver_in_place, source, [people[0].pk], name="place.bin")
    recipient = await trial.party("recipient", people[0], rate=12e6, receive=True)
    move = recipient.expect("place.bin", len(data))
    recipient.receive()
    share = trial.random.random() * 0.3  # the range after the next is read after the change
    await every([move], seconds=30, look=lambda one: one.share > share)
    segment = (await ask(site.segments_of, payload))[0][0]
    path = trial.stack.var / "media" / segment
    with path.open("r+b") as file:
        file.seek(0)
        file.write(bytes(len(data)))
    left = await every([move], seconds=60)
    state = await ask(site.payload_state, payload)
    trial.note(f"the client says {move.error!r}; the payload is {state}")
    trial.check(not left, "the recipient is not told")
    trial.check(move.error is not None, "the recipient got it")
    trial.check(state[0] == "failed", f"the payload is {state}")
    path.unlink(missing_ok=True)
