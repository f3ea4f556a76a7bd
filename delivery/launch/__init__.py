"""`manage.py up` and its parts: processes, their environment and their order.

    state.py        the directory of one stack: its owner and its processes
    identity.py     tells a process from a later one with the same number
    environment.py  the environment of the parts, malloc settings included
    valkey.py       the embedded Redis
    part.py         one part: start, watch, restart, stop
    celery.py       runs a worker or beat of the site's Celery app
    console.py      the output lines of all parts
    stack.py        all parts: their order and readiness
    accounts.py     the demo's accounts and their passwords
    banner.py       the text that is printed when the stack is ready
    application.py  the site's ASGI application, as `delivery_web` serves it

Knows nothing of payloads and transfers. Only `application.py` runs inside a part; the other modules run in the launcher.
"""
