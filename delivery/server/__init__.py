"""One web process, and its side of each connection: drivers between the protocol core and the world.

They translate events to I/O and I/O to events, and decide nothing that the core could decide. From the socket down:

    consumer         the ASGI end: handshake, close, control events
    connection       one socket: the core, hello, heartbeats, going away
    writer           the outgoing messages, then chunks in turns
    backpressure     stops reading from a connection that asks too much
    upload_offers    the uploads of one connection
    upload           one upload: chunks to the buffer, runs to workers
    inline_upload    one small upload: directly into its row
    download_offers  the deliveries of one connection
    download         one delivery: blocks to frames
    membership       who may receive payloads addressed to a group
    plain            whole payloads, one per message
    large_messages   the mixin for a site's own sockets

    web_process      what all connections share, and its parts:
    block_cache      blocks of deliveries, fetched once for all recipients
    flow_control     the credit of each upload; credit_queue: the uploads that wait for credit
    presence         the addresses of the connected clients, and the notification of new deliveries
    channel          the process's channel of the channel layer
    batching         many rows in one transaction, many lookups in one query
    workers          the Celery workers that are alive or shut down
    database_threads, policy_threads, rate_limits, message_limits
    ports            the interfaces of connection and process that their parts use

Only for speed: `short_uploads`, `store_requests`, `neighbours`.
"""
