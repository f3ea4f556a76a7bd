"""The sans-I/O core of delivery.v1: it decides, drivers carry.

Nothing in this package knows Django, Redis, asyncio, a clock or a source of randomness: time and random numbers come
in as arguments. The server's consumer and the Python client drive the same `Connection`, in both directions.

    codes       every code on the wire, with its text and what it asks of whom gets it
    frames      the chunk: a 12-byte header and data
    rules       strict JSON, and what each kind of member may hold
    messages    control messages: strict decoding, encoding
    states      the states of a transfer and the one table of moves between them
    sender      the sending side of one transfer
    storing     the receiving side, lower half: what is to be stored now, acks and credit
    receiver    the receiving side of one transfer
    limits      what each side of a connection announces
    handles     which handles were offered
    turns       which sender's turn it is
    heartbeat   pings, and a peer that has gone silent
    exchange    the transfers of one connection, in both directions
    connection  the whole socket: greeting, heartbeats, going away
    events      what a connection tells its driver
    backoff     what a client does after a close: stop, wait, shrink
"""
