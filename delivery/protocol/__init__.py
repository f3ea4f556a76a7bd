"""The sans-I/O core of delivery.v1: it decides, drivers carry.

Nothing in this package knows Django, Redis, asyncio, a clock or a source of randomness: time and random numbers come
in as arguments. The server's consumer and the Python client drive the same `Connection`, in both directions.

    codes       every code on the wire, with its text and what it asks of whom gets it
    frames      the chunk: a 12-byte header and data
    messages    control messages: strict decoding, encoding
    states      the states of a transfer and the one table of moves between them
    sender      the sending side of one transfer
    receiver    the receiving side of one transfer
    connection  what belongs to the whole socket: hello, handles, turns, heartbeats
    backoff     what a client does after a close: stop, wait, shrink
"""
