"""The buffer in Redis: chunks on their way in, blocks on their way out, leases, the registry of processes, wake-ups.

The only package that imports redis. Every byte in here is expendable and every key has a TTL; each failure of Redis
comes out as `BufferUnavailable`. Functions named `a...` are for the event loop of a web process, the others for
threads and Celery workers.
"""
