"""The example of docs/how-to/large-messages.md: what the page shows is what runs here."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.site_sockets.chat_client import say
from tests.site_sockets.conftest import member

HERE = Path(__file__).parent
PAGE = (HERE.parent.parent / "docs" / "how-to" / "large-messages.md").read_text()


@pytest.mark.parametrize("name", ["chat.py", "chat_client.py"])
def test_the_page_shows_what_runs(name):
    shown = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    assert (HERE / name).read_text() in shown


@pytest.mark.parametrize("size", [10, 40_000_000], ids=["short", "40 MB"])
async def test_what_is_said_is_heard(site, chat_stack, size):
    person = await member(site, "ops")
    content = {"text": "ü" + "u" * size}
    async with asyncio.timeout(60):
        heard = await say(
            f"ws://127.0.0.1:{chat_stack.port}/ws/chat/ops/",
            chat_stack.ws_url,
            session=person.session,
            token=person.token,
            content=content,
        )
    assert heard == content
