"""The buffer in Redis: chunks of uploads, blocks of deliveries, leases, the registry of processes, wake-ups.

The only package that imports redis. Every byte in the buffer is expendable and every key has a TTL. Each failure of Redis
is raised as `BufferUnavailable`. Functions named `a...` are for the event loop of a web process, the others for
threads and Celery workers.
"""
