"""One run: a stack, a sender and two recipients, cut on their way, and every copy compared with the source."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from demo import site
from demo.account import Account, amount
from demo.leg import Leg
from demo.plan import Plan, plan
from demo.source import Copy, DemoFailed, check_room, copy_at, generate
from demo.verdict import Verdict, judge
from rig.stack import Stack

WORKERS = 2
CONNECT_SECONDS = 30.0
#: What a run may take, in seconds, and for each byte of the payload.
RUN_SECONDS, RUN_SECONDS_A_BYTE = 100.0, 1 / 4_194_304
LOG_LINES = 30


class Run:
    """A run in `directory`, which is empty and the run's own. `given`: the file to send, None to generate one."""

    def __init__(self, directory: Path, given: Path | None, account: Account) -> None:
        self._directory = directory
        self._given = given
        self._account = account
        self._stack = Stack(directory / "var", f"--workers={WORKERS}")

    async def verdict(self) -> Verdict:
        """Make the run. Raises DemoFailed where it cannot be made; leaves nothing running, also when cancelled."""
        path, source = await self._prepare()
        run = plan(source.size, self._stack, self._account)
        try:
            self._account.say("stack", f"manage.py {' '.join(self._stack.arguments)}")
            async with asyncio.timeout(RUN_SECONDS + source.size * RUN_SECONDS_A_BYTE), self._stack:
                self._account.say("stack", f"is up, with {WORKERS} workers")
                await asyncio.to_thread(site.open_site, self._stack.var)
                await self._travel(run, path)
                problems = judge(source, await self._copies(run), run)
                if problems:
                    self._show_logs(run)
                self._account.say("stack", "stopping")
        except TimeoutError:
            self._show_logs(run)
            raise DemoFailed(f"not through after {self._account.seconds:.0f} s") from None
        return Verdict(source, run, problems, self._account.seconds)

    async def _prepare(self) -> tuple[Path, Copy]:
        path = self._given
        if path is None:
            path = self._directory / "noise.bin"
            await asyncio.to_thread(generate, path)
        source = await asyncio.to_thread(copy_at, path)
        check_room(source.size, self._directory)
        self._account.say("source", f"{path}: {amount(source.size)}, sha256 {source.sha256}")
        return path, source

    async def _travel(self, run: Plan, path: Path) -> None:
        """Have the recipients connect, then the sender send; return when every client has ended."""
        sender, recipients = run.sender, run.recipients
        async with AsyncExitStack() as clients:
            for leg in recipients:
                await self._start(clients, leg, "receive", "--once", f"--dir={self._directory / leg.name}")
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.gather(*(leg.client.connected.wait() for leg in recipients))
            to = [f"--to=user:{leg.name}" for leg in recipients]
            await self._start(clients, sender, "send", str(path), *to)
            await self._upload(run)
            if sender.client.status == 0:
                await asyncio.gather(*(leg.client.wait() for leg in recipients))

    async def _upload(self, run: Plan) -> None:
        """Return when the sender has ended; meanwhile, what serves it is shut down."""
        draining = asyncio.create_task(run.drains.run()) if run.drains else None
        try:
            await run.sender.client.wait()
        finally:
            if draining is not None:
                draining.cancel()
                await asyncio.wait([draining])
        if draining is not None and not draining.cancelled():
            draining.result()

    async def _start(self, clients: AsyncExitStack, leg: Leg, *arguments: str) -> None:
        token = await asyncio.to_thread(site.token, leg.name)
        home = self._directory / f"{leg.name}-home"
        await clients.enter_async_context(leg.travelling(arguments, token=token, home=home))

    async def _copies(self, run: Plan) -> dict[str, Copy | None]:
        """Read every copy again from where it lies: a digest that somebody reported proves nothing."""
        copies: dict[str, Copy | None] = {"in Storage": None}
        if run.sender.client.done is not None:
            copies["in Storage"] = await asyncio.to_thread(site.stored, run.sender.client.done["payload"])
        for leg in run.recipients:
            done = leg.client.done
            copies[f"with {leg.name}"] = await asyncio.to_thread(copy_at, Path(done["path"])) if done else None
        for where, copy in copies.items():
            self._account.say("check", f"{where}: {amount(copy.size)}, sha256 {copy.sha256}" if copy else f"{where}: -")
        return copies

    def _show_logs(self, run: Plan) -> None:
        for leg in run.legs:
            for line in leg.client.complaints:
                self._account.line(f"{leg.name}: {line}")
        for line in self._stack.last_lines(LOG_LINES):
            self._account.line(line)
