"""The asyncio client of delivery.v1, and its command line (`python -m delivery.client`). Needs no Django.

async with delivery.client.connect(url, token=..., receive=True) as client:
    receipt = await client.send(Path("scan.tif"), to=["user:42"])
    async for incoming in client.deliveries():
        path = await incoming.save(directory)

client               what a program holds: `connect`, `Client`
connection           one WebSocket connection, which drives the protocol core; `dialing` opens it
upload               outgoing payloads, from connection to connection; `sources`, `producers`: where their bytes come from
download             incoming payloads, from connection to connection; `sinks`, `file_sink`: where their bytes go
runtime              what all of them share: threads, background tasks, counters
placement            the name of a finished file; `receiving_directory`: what lies beside it
large_messages       messages of a site's own socket that are too large for it
chunk_ceilings       the largest chunk that a URL took, remembered for a day
cli                  the command line
"""

try:
    from delivery.client.client import Client, connect
    from delivery.client.download import Incoming
    from delivery.client.large_messages import LargeMessages
    from delivery.client.progress import Progress, Statistics
    from delivery.client.upload import Receipt, Upload
except ModuleNotFoundError as missing:
    if missing.name != "websockets":
        raise
    raise ModuleNotFoundError(
        "websockets is missing: pip install 'django-delivery[client]'", name="websockets"
    ) from None

__all__ = ["Client", "Incoming", "LargeMessages", "Progress", "Receipt", "Statistics", "Upload", "connect"]
