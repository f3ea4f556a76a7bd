"""WebSocket (RFC 6455): frames on the wire, TCP below them, and the server and the client that carry them.

    frames.py          heads and masks of frames
    past_parser.py     whole frames taken past the parser of `websockets`, for speed
    server_reader.py   the server's side of that: masked frames, read into reused buffers
    uvicorn.py         uvicorn's protocols with bounds; knows the insides of uvicorn and `websockets`
    client.py          the client's connection; knows the insides of `websockets`
    internals.py       whether the names that `uvicorn.py` builds on exist in what is installed
    server.py          running and draining one uvicorn server
    body_limit.py      how long the body of an HTTP request may be
    handshakes.py      answers to opening handshakes that no consumer gives
    extensions.py      what our server offers an application beyond ASGI
    tcp.py             socket options and TCP's own figures

No other package uses internals of uvicorn or `websockets`. Nothing in this package knows payloads, transfers or Django. The
client imports `frames`, `past_parser`, `client` and `tcp`, which need neither uvicorn nor asgiref.
"""
