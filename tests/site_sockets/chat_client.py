# chat_client.py
import json

import websockets

from delivery.client import LargeMessages, connect


async def say(chat_url, delivery_url, *, session, token, content):
    """Say something in a room, and return the first thing that is heard there."""
    async with (
        connect(delivery_url, token, receive=True) as client,
        LargeMessages(client) as large,
        websockets.connect(chat_url, additional_headers={"Cookie": f"sessionid={session}"}) as chat,
    ):
        await chat.send(await large.pack(content))
        return json.loads(await large.unpack(await chat.recv()))
