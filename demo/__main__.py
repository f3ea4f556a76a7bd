"""The command: `python -m demo [FILE]`.

Exit status: 0 all of it held, 1 something did not, 2 wrong usage, 130 stopped by Ctrl-C or SIGTERM. Standard output ends
with one line of JSON, but for wrong usage and when stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from demo.account import Account
from demo.run import Run
from demo.source import DemoFailed
from rig.processes import Failed

HELD, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run the demo; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="Send a file from one client to two others, cut every connection twice, compare every copy.",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="what to send (default: 64 MiB are generated)")
    file: str | None = parser.parse_args().file
    if file is not None and (trouble := _trouble_with(file)):
        print(f"demo: {file}: {trouble}", file=sys.stderr)
        return USAGE
    account = Account()
    try:
        with tempfile.TemporaryDirectory(prefix="delivery-demo-") as directory:
            return asyncio.run(_run(Run(Path(directory), Path(file).absolute() if file else None, account), account))
    except asyncio.CancelledError:
        account.say("demo", "stopped; nothing was left behind")
        return INTERRUPTED
    except (DemoFailed, Failed, OSError) as error:
        account.say("demo", f"FAILED: {error}")
        account.line(json.dumps({"ok": False, "error": str(error), "seconds": round(account.seconds, 1)}))
        return FAILED


def _trouble_with(file: str) -> str | None:
    if not os.path.isfile(file):
        return "is not a file" if os.path.exists(file) else "no such file"
    return None if os.access(file, os.R_OK) else "not readable"


async def _run(run: Run, account: Account) -> int:
    _cancel_once_on_signals()
    verdict = await run.verdict()
    for problem in verdict.problems:
        account.say("demo", f"FAILED: {problem}")
    account.line(verdict.last_line())
    return HELD if verdict.ok else FAILED


def _cancel_once_on_signals() -> None:
    """Have the first signal cancel this task. Those after it change nothing: everything is being ended already."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def stop() -> None:
        if task is not None and not task.cancelling():
            task.cancel()

    for number in STOPPING_SIGNALS:
        loop.add_signal_handler(number, stop)


if __name__ == "__main__":
    sys.exit(main())
