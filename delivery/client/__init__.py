"""The asyncio client of delivery.v1, and its command line (`python -m delivery.client`). Needs no Django.

async with delivery.client.connect(url, token=..., receive=True) as client:
    receipt = await client.send(Path("scan.tif"), to=["user:42"])
    async for incoming in client.deliveries():
        path = await incoming.save(directory)

client       what a program holds: `connect`, `Client`
link         one WebSocket connection that drives the protocol core
uploads      one outgoing payload, across connections; `sources`: where its bytes come from; `feed`: reading ahead
deliveries   one incoming payload, across connections; `sinks`, `file_sink`: where its bytes go; `intake`: writing
large_messages   messages of a site's own socket that are too large for it
ceiling      the largest chunk that a URL took, remembered for a day
"""

try:
    from delivery.client.client import Client, connect
    from delivery.client.deliveries import Incoming
    from delivery.client.large_messages import LargeMessages
    from delivery.client.statistics import Statistics
    from delivery.client.uploads import Progress, Receipt, Upload
except ModuleNotFoundError as missing:
    if missing.name != "websockets":
        raise
    raise ModuleNotFoundError(
        "websockets is missing: pip install 'django-delivery[client]'", name="websockets"
    ) from None

__all__ = ["Client", "Incoming", "LargeMessages", "Progress", "Receipt", "Statistics", "Upload", "connect"]
