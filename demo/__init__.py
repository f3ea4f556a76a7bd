"""`make demo FILE=path`: the main job on real parts, with connections cut and parts shut down on the way, checked to the last byte.

    __main__.py   the command: its arguments, signals, exit status
    run.py        one run from its source to its verdict
    source.py     the payload
    plan.py       who does what in a run
    drains.py     what is shut down on the way
    stack.py      the whole stack as a process of its own, on a free port, in a temporary directory
    site.py       what the site's rows say: tokens, who serves, what Storage holds
    leg.py        one client with its network: what happens to it, and what it says
    clients.py    the command-line client as processes: what they say, how they end
    proxy.py      the network between client and server, which cuts
    ending.py     ending processes, whatever comes between
    account.py    what the demo says while it runs
    verdict.py    what must hold at the end, and the last line

Only `site.py` touches Django, in this process; stack and clients are the shipped commands, started as anybody would.
"""
