"""The sans-I/O core of delivery.v1: it makes the decisions, drivers do the I/O.

Nothing in this package knows Django, Redis, asyncio, a clock or a source of randomness: time and random numbers come
in as arguments. The server's consumer and the Python client drive the same `Connection`, in both directions.

    codes       every code on the wire, with its text and the reaction to it
    frames      the chunk: a 12-byte header and data
    rules       strict JSON, and a rule for each kind of member
    messages    control messages: strict decoding, encoding
    states      the states of a transfer and the one table of moves between them
    sender      the sending side of one transfer
    storing     the receiving side, lower half: the runs to store, acks and credit
    receiver    the receiving side of one transfer
    limits      the limits that each side announces
    handles     the handles that were offered
    turns       the order in which senders send
    heartbeat   pings, and the detection of a silent peer
    exchange    the transfers of one connection, in both directions
    connection  the whole socket: greeting, heartbeats, going away
    events      the events that a connection returns to its driver
    backoff     a client's reaction to a close: stop, wait, shrink
"""
