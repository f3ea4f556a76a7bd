"""One web process, and its side of each connection: drivers between the protocol core and the world.

They translate events to I/O and I/O to events, and decide nothing that the core could decide. From the socket down:

    consumer         the ASGI end: handshake, close, control events
    connection       one socket: the core, hello, heartbeats, going away
    writer           what goes out: messages first, then chunks in turns
    backpressure     how fast one connection may ask
    upload_offers    the uploads of one connection
    upload           one upload: chunks to the buffer, runs to workers
    inline_upload    one small upload: straight into its row
    download_offers  the deliveries of one connection
    download         one delivery: blocks to frames
    membership       who may have what is addressed to a group
    plain            whole payloads, one a message
    large_messages   the mixin for a site's own sockets

    web_process      what all connections share, and its parts:
    block_cache      blocks on their way out, one fetch for all who want the same
    flow_control     how much each upload may send; credit_queue: who waits for it
    presence         who is connected for which addresses, and how they hear of what arrives
    channel          the process's channel of the channel layer
    batching         many rows in one transaction, many questions in one query
    workers          which Celery workers live, and which shut down
    database_threads, policy_threads, rate_limits, message_limits
    ports            what parts may ask of the connection and of the process

There for speed alone: `short_uploads`, `store_requests`, `neighbours`.
"""
