"""The shipped stack, the network in front of it and the shipped client, as real processes: for demo, bench, faults and tests.

    environment.py   environments and ports that lead to no other stack
    waiting.py       waiting for something with a deadline
    processes.py     one process with a log: started, watched, signalled, ended
    stack.py         `manage.py up` on a directory of its own
    proxy.py         a TCP proxy that cuts, delays, throttles, holds and swallows
    frames.py        where WebSocket frames begin and end in what the proxy passes on
    clients.py       the command line client as a process
    postgres.py      a PostgreSQL server

It imports none of those that use it, nor Django or `delivery`: everything is started and reached as by a user.
"""
