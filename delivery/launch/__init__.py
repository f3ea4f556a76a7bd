"""What `manage.py up` and its parts consist of: processes, their environment and their order.

    state.py        the directory of one stack: who holds it, which processes belong to it
    identity.py     telling a process from another that got the same number later
    environment.py  what the parts find in their environment, malloc settings included
    valkey.py       the embedded Redis
    part.py         one part: started, watched, started again, stopped
    celery.py       becoming a worker or beat of the site's Celery app
    console.py      the lines of all parts
    stack.py        all parts: their order, and when they are ready
    accounts.py     the demo's accounts and their passwords
    banner.py       what is printed when the stack is ready
    application.py  the site's ASGI application, as `delivery_web` serves it

Knows nothing of payloads and transfers. Only `application.py` runs inside a part; all else runs in the launcher.
"""
