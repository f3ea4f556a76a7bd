"""`make demo FILE=path`: the main job on real parts, with connections cut and parts shut down on the way, checked to the last byte.

    __main__.py   the command: its arguments, signals, exit status
    run.py        one run from its source to its verdict
    source.py     the payload
    plan.py       who does what in a run
    drains.py     what is shut down on the way
    site.py       what the site's rows say: tokens, who serves, what Storage holds
    leg.py        one client with its network: what happens to it, and what it says
    cuts.py       where in the payload the network between client and server cuts
    account.py    what the demo says while it runs
    verdict.py    what must hold at the end, and the last line

Only `site.py` touches Django, in this process. Stack, network and clients are those of `rig`: the shipped commands, started
as anybody would.
"""
